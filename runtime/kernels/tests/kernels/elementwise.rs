//! Norm, gated activations, caps and softmax sums against double precision, and all classes against
//! each other to the last bit.

use gristmill_kernels::Kernels;

use crate::oracle::{Rng, all_kernels, assert_same_bits, padded};

/// Asserts closeness: an error of `relative` times the size of the terms, and `absolute` besides.
#[track_caller]
fn assert_close(got: f32, want: f64, size: f64, relative: f64, absolute: f64) {
    let error = (f64::from(got) - want).abs();
    assert!(
        error <= relative * size + absolute,
        "{got:e}, expected {want:e}: off by {error:e}, size {size:e}"
    );
}

/// Runs one function on all classes, asserts that they agree to the last bit, and returns the result.
fn on_all(what: &str, run: impl Fn(&Kernels) -> Vec<f32>) -> Vec<f32> {
    let results: Vec<_> = all_kernels().into_iter().map(run).collect();
    for other in &results[1..] {
        assert_same_bits(other, &results[0], what);
    }
    results.into_iter().next().expect("the portable class")
}

#[test]
fn rms_norm_matches_double_precision() {
    let mut rng = Rng::new(30);
    for n in [1, 15, 32, 33, 64, 576, 960, 4096] {
        for (magnitude, eps) in [(1.0f32, 1e-5f32), (1e3, 1e-6), (1e-3, 1e-5), (1e-25, 1e-6)] {
            let x: Vec<f32> = padded(rng.activations(n).iter().map(|x| x * magnitude).collect());
            let gain = padded(rng.vector(n));
            let got = on_all("rms_norm", |kernels| {
                let mut out = vec![f32::NAN; x.len()];
                kernels.rms_norm(&x, &gain, eps, n, &mut out);
                out
            });
            let square: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let factor = 1.0 / (square / n as f64 + f64::from(eps)).sqrt();
            for i in 0..n {
                let want = f64::from(x[i]) * factor * f64::from(gain[i]);
                assert_close(got[i], want, want.abs(), 1e-6, 1e-36);
            }
            assert!(got[n..].iter().all(|&y| y == 0.0), "padding stays zero");
        }
    }
}

#[test]
fn rms_norm_of_zeros_is_zero() {
    for eps in [1e-5, 1e-12] {
        let got = on_all("zeros", |kernels| {
            let mut out = vec![f32::NAN; 64];
            kernels.rms_norm(&[0.0; 64], &[1.0; 64], eps, 64, &mut out);
            out
        });
        assert!(got.iter().all(|&y| y == 0.0));
    }
}

/// Gates over the whole range, dense around zero, with the places where clamps begin.
fn gates(rng: &mut Rng) -> Vec<f32> {
    let mut gates =
        vec![0.0, -0.0, 1e-42, -1e-42, 87.0, -87.0, 88.0, -88.0, 1e4, -1e4, 1e30, -1e30];
    gates.extend((0..2000).map(|i| (i as f32 - 1000.0) * 0.1));
    gates.extend((0..2000).map(|_| rng.unit() * 8.0));
    gates.extend((0..200).map(|_| rng.unit() * 1e-6));
    gates.resize(gates.len().next_multiple_of(16), 1.0);
    gates
}

#[test]
fn silu_matches_double_precision() {
    let mut rng = Rng::new(31);
    let gate = gates(&mut rng);
    let up = rng.vector(gate.len());
    let got = on_all("silu", |kernels| {
        let mut out = gate.clone();
        kernels.silu_mul(&mut out, &up);
        out
    });
    for i in 0..gate.len() {
        let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
        let want = g / (1.0 + (-g).exp()) * u;
        // The absolute part is where e^g is clamped, far below any f32 that matters.
        assert_close(got[i], want, want.abs(), 1e-6, 1e-36 * g.abs().max(1.0));
    }
}

#[test]
fn gelu_matches_double_precision() {
    let mut rng = Rng::new(32);
    let gate = gates(&mut rng);
    let up = rng.vector(gate.len());
    let got = on_all("gelu", |kernels| {
        let mut out = gate.clone();
        kernels.gelu_tanh_mul(&mut out, &up);
        out
    });
    for i in 0..gate.len() {
        let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g);
        let want = 0.5 * g * (1.0 + inner.tanh()) * u;
        // Relative to the input: in the negative tail the result is tiny beside it.
        assert_close(got[i], want, (g * u).abs(), 1e-6, 1e-36 * g.abs().max(1.0));
    }
}

#[test]
fn softcap_matches_double_precision() {
    let mut rng = Rng::new(33);
    for cap in [0.5f32, 30.0, 50.0, 1e6] {
        let mut x: Vec<f32> = (0..4000).map(|_| rng.unit() * 5.0 * cap).collect();
        x.extend([0.0, -0.0, 1e30, -1e30, 1e-30, f32::MAX, f32::MIN, cap, -cap]);
        x.resize(x.len().next_multiple_of(16), 0.0);
        let got = on_all("softcap", |kernels| {
            let mut out = x.clone();
            kernels.softcap(&mut out, cap);
            out
        });
        for i in 0..x.len() {
            let (x, cap) = (f64::from(x[i]), f64::from(cap));
            // Relative to the cap: 1 - 2 / (e^2z + 1) cancels around zero.
            assert_close(got[i], cap * (x / cap).tanh(), cap, 5e-7, 0.0);
            assert!(f64::from(got[i].abs()) <= cap);
        }
    }
}

#[test]
fn log_sum_exp_matches_double_precision_for_any_length() {
    let mut rng = Rng::new(34);
    for n in [1, 2, 15, 16, 17, 31, 4095, 4096, 4097, 8192 + 5, 49_152, 50_001] {
        for (magnitude, offset) in
            [(1.0, 0.0), (20.0, 5.0), (500.0, -300.0), (0.0, 1e4), (1e30, 0.0)]
        {
            let x: Vec<f32> = (0..n).map(|_| rng.unit() * magnitude + offset).collect();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|x| (f64::from(*x) - f64::from(max)).exp()).sum();
            let want = f64::from(max) + sum.ln();
            let results: Vec<f64> =
                all_kernels().into_iter().map(|kernels| kernels.log_sum_exp(&x)).collect();
            for got in &results {
                assert_eq!(got.to_bits(), results[0].to_bits(), "classes differ for {n} values");
                let error = (got - want).abs();
                assert!(error <= 1e-6 + 1e-15 * want.abs(), "{n} values: {got}, expected {want}");
            }
        }
    }
}

#[test]
fn log_sum_exp_of_nothing_is_minus_infinity() {
    for kernels in all_kernels() {
        assert_eq!(kernels.log_sum_exp(&[]), f64::NEG_INFINITY);
    }
}

#[test]
fn log_sum_exp_does_not_hide_a_nan() {
    // A model that is broken must not get a perplexity.
    for kernels in all_kernels() {
        for n in [1, 16, 40, 5000] {
            for at in [0, n / 2, n - 1] {
                let mut x = vec![0.5; n];
                x[at] = f32::NAN;
                assert!(kernels.log_sum_exp(&x).is_nan(), "NaN at {at} of {n}");
            }
        }
    }
}

#[test]
fn gates_do_not_hide_a_nan() {
    for kernels in all_kernels() {
        let run = |function: fn(&Kernels, &mut [f32], &[f32])| {
            let mut gate = [0.5; 16];
            gate[3] = f32::NAN;
            function(kernels, &mut gate, &[1.0; 16]);
            assert!(gate[3].is_nan() && gate[2].is_finite());
        };
        run(Kernels::silu_mul);
        run(Kernels::gelu_tanh_mul);
        let mut x = [f32::NAN; 16];
        kernels.softcap(&mut x, 30.0);
        assert!(x.iter().all(|x| x.is_nan()));
    }
}
