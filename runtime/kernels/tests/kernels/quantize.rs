//! Activations as int8.

use gristmill_formats::codec::{BLOCK_COLS, Codec};
use gristmill_kernels::{ActBuffer, GROUP};

use crate::oracle::{QuantizedBlock, Rng, Width, all_kernels, padded, padded_tokens, prepare};

#[test]
fn codes_scale_and_sum_match_the_definition() {
    let mut rng = Rng::new(20);
    for cols in [1, 31, 32, 33, 64, 576] {
        let xs = padded_tokens(7, cols, &mut rng);
        for kernels in all_kernels() {
            let groups = prepare(kernels, &Codec::Q8, &xs, cols, Width::Groups);
            for (t, x) in xs.iter().enumerate() {
                let alone = prepare(kernels, &Codec::Q8, &xs[t..=t], cols, Width::One);
                for (b, block) in x.chunks(BLOCK_COLS).enumerate() {
                    let want = QuantizedBlock::of(block);
                    let fine = (want.fine, want.fine_sum);
                    let want = (want.codes, want.scale, want.sum);
                    let group = &groups[t / GROUP];
                    assert_eq!(group.block(t % GROUP, b), want, "token {t} in a group");
                    assert_eq!(group.fine_block(t % GROUP, b), fine, "token {t} in a group");
                    assert_eq!(alone[0].block(0, b), want, "token {t} alone");
                    assert_eq!(alone[0].fine_block(0, b), fine, "token {t} alone");
                }
            }
        }
    }
}

#[test]
fn a_value_is_off_by_at_most_half_a_step() {
    let mut rng = Rng::new(21);
    for kernels in all_kernels() {
        for magnitude in [1e-29, 1e-20, 1e-3, 1.0, 1e3, 1e30, 3.4e38] {
            let x: Vec<f32> = rng.vector(BLOCK_COLS).iter().map(|v| v * magnitude).collect();
            let mut act = ActBuffer::new(1, BLOCK_COLS);
            act.set_cols(BLOCK_COLS);
            kernels.quantize(&x, &mut act, 0, false);
            let (codes, scale, _) = act.block(0, 0);
            for (x, code) in x.iter().zip(codes) {
                let error = (f64::from(*x) - f64::from(code) * f64::from(scale)).abs();
                assert!(error <= 0.5001 * f64::from(scale), "{x:e} became {code} * {scale:e}");
            }
        }
    }
}

#[test]
fn the_fine_plane_leaves_at_most_half_of_its_own_step() {
    let mut rng = Rng::new(22);
    for kernels in all_kernels() {
        let x = rng.vector(BLOCK_COLS);
        let mut act = ActBuffer::new(1, BLOCK_COLS);
        act.set_cols(BLOCK_COLS);
        kernels.quantize(&x, &mut act, 0, true);
        let ((codes, scale, _), (fine, _)) = (act.block(0, 0), act.fine_block(0, 0));
        for (i, x) in x.iter().enumerate() {
            let value = (f64::from(codes[i]) + f64::from(fine[i]) / 254.0) * f64::from(scale);
            let error = (f64::from(*x) - value).abs();
            assert!(error <= 0.51 / 254.0 * f64::from(scale), "{x} became {value}");
        }
    }
}

#[test]
fn ties_go_to_the_even_code() {
    let mut x = vec![0.0; BLOCK_COLS];
    x[0] = 127.0;
    for i in 1..BLOCK_COLS {
        x[i] = i as f32 - 15.5;
    }
    for kernels in all_kernels() {
        let mut act = ActBuffer::new(1, BLOCK_COLS);
        act.set_cols(BLOCK_COLS);
        kernels.quantize(&x, &mut act, 0, false);
        let (codes, scale, _) = act.block(0, 0);
        assert_eq!(scale, 1.0);
        assert!(codes[1..].iter().all(|c| c % 2 == 0), "{codes:?}");
    }
}

#[test]
fn codes_never_reach_minus_128_whatever_comes_in() {
    // The AVX2 product relies on it.
    let mut rng = Rng::new(22);
    let special =
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -1e-42, -0.0];
    for kernels in all_kernels() {
        for round in 0..500 {
            let x: Vec<f32> = (0..BLOCK_COLS)
                .map(|_| match rng.below(3) {
                    0 => special[rng.below(special.len())],
                    1 => f32::from_bits(rng.bits() as u32),
                    _ => rng.unit(),
                })
                .collect();
            let mut act = ActBuffer::new(1, BLOCK_COLS);
            act.set_cols(BLOCK_COLS);
            kernels.quantize(&x, &mut act, 0, false);
            let (codes, _, sum) = act.block(0, 0);
            assert!(codes.iter().all(|&c| c >= -127), "round {round}: {x:?} became {codes:?}");
            assert_eq!(sum, codes.iter().map(|&c| i32::from(c)).sum::<i32>());
        }
    }
}

#[test]
fn zeros_stay_zero_beside_values_too_small_to_scale() {
    let x = padded(vec![0.0, 1e-42, 0.0, -1e-45, 0.0, 3e-38]);
    for kernels in all_kernels() {
        let mut act = ActBuffer::new(1, BLOCK_COLS);
        act.set_cols(6);
        kernels.quantize(&x, &mut act, 0, false);
        let (codes, scale, sum) = act.block(0, 0);
        assert_eq!((codes, sum), (vec![0; BLOCK_COLS], 0));
        assert!(scale.is_finite());
    }
}

#[test]
fn classes_quantize_alike() {
    let mut rng = Rng::new(23);
    let xs = padded_tokens(8, 640, &mut rng);
    let blocks = |kernels| {
        let groups = prepare(kernels, &Codec::Q8, &xs, 640, Width::Groups);
        let all = groups.iter().flat_map(|g| {
            (0..GROUP).flat_map(move |t| {
                (0..20).map(move |b| {
                    let (codes, scale, sum) = g.block(t, b);
                    (codes, scale.to_bits(), sum)
                })
            })
        });
        all.collect::<Vec<_>>()
    };
    let results: Vec<_> = all_kernels().into_iter().map(blocks).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}
