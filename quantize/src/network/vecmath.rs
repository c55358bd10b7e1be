//! Exponentials and sums over rows, written so that the compiler turns them into vector code: no
//! branches, sums in independent lanes. Results are the same on every instruction set.

use std::f32::consts::LOG2_E;

const LANES: usize = 16;
/// Values that are summed in single precision; sums of those are in double.
const SUMMED: usize = 4096;

/// Runs a loop over a row as compiled for the widest vectors of this CPU. What the loop calls must be
/// inlined into it.
#[inline]
pub(super) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// e^x with a relative error below 3e-7; `x` is clamped to ±87, so the result is never zero and never
/// infinite.
///
/// x = k ln 2 + r with |r| ≤ ln 2 / 2 (Cody and Waite's two-part constant), e^r by its Taylor
/// polynomial of degree 7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer, which then stands in the lowest bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (x - k * 0.693_359_4) + k * 2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `cap * tanh(x / cap)`, with tanh z = 1 - 2 / (e^2z + 1).
#[inline(always)]
pub(super) fn softcap(x: f32, cap: f32) -> f32 {
    cap * (1.0 - 2.0 / (exp(x * (2.0 / cap)) + 1.0))
}

/// Derivative of [`softcap`] where its value is `capped`.
#[inline(always)]
pub(super) fn softcap_slope(capped: f32, cap: f32) -> f32 {
    let tanh = capped / cap;
    1.0 - tanh * tanh
}

/// `Σ a b`.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>();
    sums.iter().sum::<f32>() + rest
}

/// `Σ x`.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let (x, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for x in x {
        for i in 0..LANES {
            sums[i] += x[i];
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Largest value; -infinity of none.
#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (x, rest) = x.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for x in x {
        for i in 0..LANES {
            best[i] = larger(x[i], best[i]);
        }
    }
    best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// `x = e^(x - shift)` in place; returns the sum of the results.
#[inline(always)]
fn exponentiate(x: &mut [f32], shift: f32) -> f64 {
    let mut total = 0.0;
    for x in x.chunks_mut(SUMMED) {
        for x in x.iter_mut() {
            *x = exp(*x - shift);
        }
        total += f64::from(sum(x));
    }
    total
}

/// `x = softmax(x)` in place.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let factor = (1.0 / exponentiate(x, max(x))) as f32;
    x.iter_mut().for_each(|x| *x *= factor);
}

/// `x = log softmax(x)` in place.
#[inline(always)]
pub(super) fn log_softmax(x: &mut [f32], scratch: &mut Vec<f32>) {
    scratch.clear();
    scratch.extend_from_slice(x);
    let shift = max(x);
    let log_sum = exponentiate(scratch, shift).ln() as f32;
    x.iter_mut().for_each(|x| *x = (*x - shift) - log_sum);
}

/// `Σ p (log p - log q)` over a distribution, both given as logarithms.
#[inline(always)]
pub(super) fn divergence(log_p: &[f32], log_q: &[f32]) -> f64 {
    let pairs = log_p.iter().zip(log_q);
    pairs.map(|(&p, &q)| f64::from(exp(p)) * (f64::from(p) - f64::from(q))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_whole_range() {
        for i in -8_700_000..=8_700_000 {
            let x = i as f32 * 1e-5;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(error < 3e-7, "e^{x}: {error:.2e}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert_eq!((exp(-1e9), exp(1e9)), (exp(-87.0), exp(87.0)));
    }

    #[test]
    fn sums_and_largest_values_take_every_element() {
        for n in 0..50 {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 - 7.5) * 0.25).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn logarithms_of_a_softmax_are_log_softmax() {
        let x: Vec<f32> = (0..9000).map(|i| (i as f32 * 0.37).sin() * 8.0).collect();
        let (mut p, mut log_p) = (x.clone(), x);
        softmax(&mut p);
        log_softmax(&mut log_p, &mut Vec::new());
        for (p, log_p) in p.iter().zip(&log_p) {
            assert!((p.ln() - log_p).abs() < 2e-6, "{p} {log_p}");
        }
        assert!(divergence(&log_p, &log_p) == 0.0);
    }
}
