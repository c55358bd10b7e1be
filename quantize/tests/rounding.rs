//! Properties of the scale search, checked on what a reader of the panel gets.

use gristmill_formats::codec::{
    BLOCK_COLS, Codec, CodecId, Grid, NamedGrid, QuantizedRow, block_count,
};
use gristmill_quantize::RowRounder;
use half::bf16;
use proptest::prelude::*;

fn codecs() -> Vec<Codec> {
    let mut codecs: Vec<_> = NamedGrid::ALL.map(|n| Codec::Table(n.grid())).into();
    codecs.push(Codec::Q8);
    codecs
}

fn rounder(codec: &Codec) -> RowRounder {
    RowRounder::new(codec).expect("a block codec")
}

/// What a reader decodes.
fn stored(codec: &Codec, quantized: &QuantizedRow, cols: usize) -> Vec<f32> {
    let mut panel = vec![0u8; codec.panel_bytes(cols)];
    codec.pack_panel(std::slice::from_ref(quantized), cols, &mut panel);
    let mut out = vec![0.0f32; cols];
    codec.decode_row(&panel, 0, &mut out);
    out
}

fn error(row: &[f32], stored: &[f32], importance: Option<&[f32]>) -> f64 {
    row.iter()
        .zip(stored)
        .enumerate()
        .map(|(i, (&x, &y))| {
            let weight = importance.map_or(1.0, |w| f64::from(w[i]));
            weight * (f64::from(x) - f64::from(y)).powi(2)
        })
        .sum()
}

fn searched_error(codec: &Codec, row: &[f32]) -> f64 {
    error(row, &stored(codec, &rounder(codec).round(row, None), row.len()), None)
}

/// Values of a code in both variants, straight from the format.
fn value(codec: &Codec, code: usize, variant: usize) -> f64 {
    match codec {
        Codec::Table(grid) => f64::from(grid.value(code as u8, variant == 1)),
        _ => code as f64 - 127.0,
    }
}

/// The smallest error of any row scale within two octaves, block scale, variant and code.
fn brute_force(codec: &Codec, row: &[f32]) -> f64 {
    let (codes, variants, max_scale) = match codec {
        Codec::Table(grid) => (grid.values().len(), 2, usize::from(Grid::MAX_BLOCK_SCALE)),
        _ => (255, 1, 255),
    };
    let largest = row.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
    let base = bf16::from_f64(largest / 128.0 / max_scale as f64).to_bits();
    let mut best = f64::INFINITY;
    for bits in base - 32..base + 160 {
        let row_scale = bf16::from_bits(bits).to_f64();
        let mut total = 0.0f64;
        for block in row.chunks(BLOCK_COLS) {
            let mut block_best = f64::INFINITY;
            for variant in 0..variants {
                for scale in 0..=max_scale {
                    let scale = row_scale * scale as f64;
                    let mut sum = 0.0f64;
                    for &x in block {
                        let x = f64::from(x);
                        sum += match codec {
                            // Scanning 255 equal steps would only take longer.
                            Codec::Q8 if scale > 0.0 => {
                                (x - scale * (x / scale).round().clamp(-127.0, 127.0)).powi(2)
                            }
                            _ => (0..codes)
                                .map(|c| (x - scale * value(codec, c, variant)).powi(2))
                                .fold(f64::INFINITY, f64::min),
                        };
                        if sum >= block_best {
                            break;
                        }
                    }
                    block_best = block_best.min(sum);
                }
            }
            total += block_best;
        }
        best = best.min(total);
    }
    best
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // Sums of uniform numbers: near enough to normal.
    (0..len).map(|_| (0..6).map(|_| uniform() - 0.5).sum::<f32>()).collect()
}

#[test]
fn search_is_near_the_best_that_the_format_can_do() {
    for (name, codec, limit) in [
        ("mix2", Codec::Table(NamedGrid::Mix2.grid()), 1.01),
        ("mix3", Codec::Table(NamedGrid::Mix3.grid()), 1.01),
        ("int4", Codec::Table(NamedGrid::Int4.grid()), 1.01),
        ("iq4-nl", Codec::Table(NamedGrid::Iq4Nl.grid()), 1.01),
        ("mix5", Codec::Table(NamedGrid::Mix5.grid()), 1.02),
        ("q8", Codec::Q8, 1.08),
    ] {
        let (mut found, mut best) = (0.0f64, 0.0f64);
        for seed in 0..4 {
            let mut row = noise(seed + 1, 64);
            // Blocks of different size, so that the second one has few steps to choose from.
            row[32..].iter_mut().for_each(|x| *x *= if seed % 2 == 0 { 0.1 } else { 0.7 });
            found += searched_error(&codec, &row);
            best += brute_force(&codec, &row);
        }
        assert!(found >= best * (1.0 - 1e-9), "{name}: better than possible, {found} < {best}");
        assert!(found <= best * limit, "{name}: {found} is far from the optimum {best}");
    }
}

#[test]
fn rows_on_the_grid_are_found_again() {
    for codec in codecs() {
        let codes: Vec<usize> = (0..BLOCK_COLS).collect();
        let row: Vec<f32> = codes
            .iter()
            .map(|&c| match &codec {
                Codec::Table(grid) => f32::from(grid.value(c as u8, false)) * 0.125,
                _ => (c as f32 - 16.0) * 127.0 / 16.0 * 0.125,
            })
            .collect();
        let norm: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let limit = if codec == Codec::Q8 { 2e-5 } else { 3e-5 };
        assert!(searched_error(&codec, &row) <= limit * norm, "{:?}", codec.id());
    }
}

#[test]
fn degenerate_rows_are_defined() {
    let subnormal = f32::from_bits(1);
    for codec in codecs() {
        for (what, row) in [
            ("zeros", vec![0.0f32; 40]),
            ("negative zeros", vec![-0.0f32; 40]),
            ("one block of zeros", [vec![0.0f32; 32], vec![0.5f32; 8]].concat()),
            ("one weight", [vec![0.0f32; 39], vec![-3.0f32]].concat()),
            ("one column", vec![0.25f32]),
            ("subnormal", vec![subnormal; 40]),
            ("tiny", vec![1e-38f32, -2e-40, 3e-39]),
            ("huge", vec![8e37f32, -8e37, 1.0]),
            ("wide range", vec![1e30f32, 1e-30, -1e-38, 0.0]),
        ] {
            let quantized = rounder(&codec).round(&row, None);
            assert_eq!(quantized.block_scales.len(), block_count(row.len()));
            let stored = stored(&codec, &quantized, row.len());
            assert!(stored.iter().all(|x| x.is_finite()), "{what} in {}: {stored:?}", codec.id());
            let norm: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let error = error(&row, &stored, None);
            assert!(error <= norm, "{what} in {}: {error} > {norm}", codec.id());
            if row.iter().all(|x| *x == 0.0) {
                assert!(stored.iter().all(|x| *x == 0.0), "{what} in {}", codec.id());
            } else if !["subnormal", "tiny"].contains(&what) {
                // The four values of q2 have no zero among them.
                let limit = if codec.id() == CodecId::Q2 { 0.2 } else { 0.02 };
                assert!(error <= limit * norm, "{what} in {}: {error} of {norm}", codec.id());
            }
        }
    }
}

#[test]
fn importance_moves_the_error_to_unimportant_columns() {
    let row = noise(5, 96);
    let mut importance = vec![1.0f32; 96];
    for i in (0..96).step_by(4) {
        importance[i] = 50.0;
    }
    for codec in codecs() {
        let plain = stored(&codec, &rounder(&codec).round(&row, None), 96);
        let weighted = stored(&codec, &rounder(&codec).round(&row, Some(&importance)), 96);
        let loss = |stored| error(&row, stored, Some(&importance));
        assert!(loss(&weighted) < loss(&plain), "{}", codec.id());
        // Only ratios count, and importance of zero everywhere means that none is known.
        let scaled: Vec<f32> = importance.iter().map(|w| w * 1e-12).collect();
        assert_eq!(
            rounder(&codec).round(&row, Some(&scaled)),
            rounder(&codec).round(&row, Some(&importance))
        );
        assert_eq!(
            rounder(&codec).round(&row, Some(&[0.0; 96])),
            rounder(&codec).round(&row, None)
        );
    }
}

#[test]
#[should_panic(expected = "finite")]
fn infinite_weights_are_refused() {
    rounder(&Codec::Q8).round(&[1.0, f32::INFINITY], None);
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => -0.01f32..0.01,
        1 => -30.0f32..30.0,
        1 => Just(0.0f32),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The yardstick is computed here from the format's definition, not by the crate.
    #[test]
    fn never_worse_than_absmax_rounding(row in prop::collection::vec(weight(), 1..100), exponent in -60i32..60) {
        let row: Vec<f32> = row.iter().map(|x| x * (exponent as f32).exp2()).collect();
        for codec in codecs() {
            let rounder = rounder(&codec);
            let plain = absmax_by_definition(&codec, &row);
            let searched = searched_error(&codec, &row);
            prop_assert!(searched <= plain * (1.0 + 1e-4), "{}: {searched} > {plain}", codec.id());
            let own = error(&row, &stored(&codec, &rounder.round_absmax(&row), row.len()), None);
            prop_assert!((own - plain).abs() <= plain * 1e-4, "{}: {own} is not {plain}", codec.id());
        }
    }

    #[test]
    fn codes_are_the_nearest_values_under_the_stored_scales(row in prop::collection::vec(weight(), 1..100)) {
        for codec in codecs() {
            let quantized = rounder(&codec).round(&row, None);
            let stored = stored(&codec, &quantized, row.len());
            for (i, (&x, &y)) in row.iter().zip(&stored).enumerate() {
                let byte = quantized.block_scales[i / BLOCK_COLS];
                let (steps, variant, codes) = match &codec {
                    Codec::Table(grid) => {
                        let steps = byte & Grid::MAX_BLOCK_SCALE;
                        (steps, usize::from(byte >> 7), grid.values().len())
                    }
                    _ => (byte, 0, 255),
                };
                let scale = quantized.row_scale.to_f64() * f64::from(steps);
                let best = (0..codes)
                    .map(|c| (f64::from(x) - scale * value(&codec, c, variant)).abs())
                    .fold(f64::INFINITY, f64::min);
                prop_assert!((f64::from(x) - f64::from(y)).abs() <= best + 1e-5 * scale.abs());
            }
        }
    }
}

/// Scales from the largest weights, nearest codes in the unshifted table; the error of that.
fn absmax_by_definition(codec: &Codec, row: &[f32]) -> f64 {
    let (codes, max_scale) = match codec {
        Codec::Table(grid) => (grid.values().len(), f64::from(Grid::MAX_BLOCK_SCALE)),
        _ => (255, 255.0),
    };
    let (low, high) = (value(codec, 0, 0), value(codec, codes - 1, 0));
    let fits = |block: &[f32]| {
        block
            .iter()
            .map(|&x| f64::from(x))
            .map(|x| if x < 0.0 { x / low } else { x / high })
            .fold(0.0f64, f64::max)
    };
    let largest = row.chunks(BLOCK_COLS).map(fits).fold(0.0f64, f64::max);
    let row_scale = bf16::from_f64(largest / max_scale).to_f64();
    let mut error = 0.0f64;
    for block in row.chunks(BLOCK_COLS) {
        let steps =
            if row_scale > 0.0 { (fits(block) / row_scale).round().min(max_scale) } else { 0.0 };
        for &x in block {
            error += (0..codes)
                .map(|c| (f64::from(x) - row_scale * steps * value(codec, c, 0)).powi(2))
                .fold(f64::INFINITY, f64::min);
        }
    }
    error
}
