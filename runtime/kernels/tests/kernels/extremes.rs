//! Inputs at the ends of every range: where saturation, overflow and special values would show.

use gristmill_formats::codec::{BLOCK_COLS, Codec, Grid, PANEL_ROWS, QuantizedRow, block_count};
use gristmill_formats::source::Layout;
use half::bf16;

use crate::oracle::{
    Matrix, Rng, Width, all_codecs, all_kernels, assert_same_bits, block_codecs, multiply, padded,
    random_row,
};

/// The code of a row and a column.
type Pattern = fn(usize, usize) -> u8;

/// A quantized matrix of 17 rows, all with the given scales and with a code per row and column.
fn filled(codec: &Codec, cols: usize, scale: u8, code: impl Fn(usize, usize) -> u8) -> Matrix {
    let rows = (0..17).map(|r| QuantizedRow {
        row_scale: bf16::ONE,
        block_scales: vec![scale; block_count(cols)],
        codes: (0..cols.next_multiple_of(BLOCK_COLS)).map(|c| code(r, c)).collect(),
    });
    Matrix::quantized(codec, cols, rows.collect())
}

/// Compares all classes, one token and several, with the exact oracle.
fn check(matrix: &Matrix, xs: &[Vec<f32>], what: &str) {
    for kernels in all_kernels() {
        let name = format!("{what} on {}", kernels.isa().name());
        let batch = multiply(kernels, matrix, 0..matrix.panels(), xs, Width::Groups);
        for (t, x) in xs.iter().enumerate() {
            let alone =
                multiply(kernels, matrix, 0..matrix.panels(), std::slice::from_ref(x), Width::One);
            for r in 0..matrix.rows {
                let want = [matrix.exact_dot(r, x)];
                let (p, lane) = (r / PANEL_ROWS, r % PANEL_ROWS);
                assert_same_bits(&alone[r..=r], &want, &name);
                let at = (p * xs.len() + t) * PANEL_ROWS + lane;
                assert_same_bits(&batch[at..=at], &want, &name);
            }
        }
    }
}

/// Activations whose codes are ±127 in every pattern that could make neighbouring products add up.
fn saturating_activations(cols: usize) -> Vec<Vec<f32>> {
    let signs: [fn(usize) -> f32; 5] = [
        |_| 1.0,
        |_| -1.0,
        |c| if c % 2 == 0 { 1.0 } else { -1.0 },
        |c| if c % 4 < 2 { 1.0 } else { -1.0 },
        |c| if c % 3 == 0 { 1.0 } else { -1.0 },
    ];
    signs.map(|sign| padded((0..cols).map(|c| sign(c) * 3.5).collect())).into()
}

#[test]
fn the_largest_codes_times_the_largest_activations_do_not_saturate() {
    let patterns: [(&str, Pattern); 6] = [
        ("all -128", |_, _| 0x80),
        ("all 127", |_, _| 0x7f),
        ("alternating", |_, c| if c % 2 == 0 { 0x80 } else { 0x7f }),
        ("alternating pairs", |_, c| if c % 4 < 2 { 0x80 } else { 0x7f }),
        ("by row", |r, _| if r % 2 == 0 { 0x80 } else { 0x7f }),
        ("-128 and -127", |_, c| if c % 2 == 0 { 0x80 } else { 0x81 }),
    ];
    for cols in [32, 33, 576] {
        for (name, code) in patterns {
            for scale in [1, 255] {
                let matrix = filled(&Codec::Q8, cols, scale, code);
                check(&matrix, &saturating_activations(cols), &format!("q8 {name}"));
            }
        }
    }
}

#[test]
fn tables_at_the_ends_of_int8_do_not_saturate_shifted_or_not() {
    for bits in Grid::MIN_BITS..=Grid::MAX_BITS {
        let count = 1usize << bits;
        let last = count as u8 - 1;
        let table = |low: i8, high: i8| [vec![low; count / 2], vec![high; count / 2]].concat();
        let grids = [
            Grid::new(&table(-128, 127), 0),
            Grid::new(&table(-128, 0), 127),
            Grid::new(&table(-1, 127), -127),
            Grid::new(&table(0, 127), -128),
            Grid::new(&table(-128, -128), 127),
            Grid::new(&table(127, 127), -128),
        ];
        type Pattern<'a> = &'a dyn Fn(usize, usize) -> u8;
        let patterns: [(&str, Pattern<'_>); 5] = [
            ("low", &|_, _| 0),
            ("high", &|_, _| last),
            ("alternating", &|_, c| if c % 2 == 0 { 0 } else { last }),
            ("vectors", &|_, c| if c % 8 < 4 { 0 } else { last }),
            ("every code", &|r, c| (r + c) as u8 & last),
        ];
        for grid in grids {
            let codec = Codec::Table(grid.expect("within int8"));
            for scale in [1, 127, 0x80 | 1, 0xff, 0x80] {
                for (name, code) in patterns {
                    let matrix = filled(&codec, 96, scale, code);
                    check(&matrix, &saturating_activations(96), &format!("{codec:?} {name}"));
                }
            }
        }
    }
}

#[test]
fn zero_rows_blocks_and_activations_give_exact_zeros() {
    let mut rng = Rng::new(10);
    for codec in all_codecs(&mut rng) {
        let zeros = vec![vec![0.0; 96]; 5];
        let matrix = Matrix::random(&codec, Layout::Panels, 20, 70, &mut rng);
        for kernels in all_kernels() {
            let got = multiply(kernels, &matrix, 0..2, &zeros, Width::Groups);
            assert!(got.iter().all(|&y| y == 0.0), "{codec:?}: zero activations");
        }
        if codec.id().is_dense() {
            continue;
        }
        let rows = (0..20).map(|r| {
            let mut row = random_row(&codec, 70, &mut rng);
            match r % 3 {
                0 => row.row_scale = bf16::ZERO,
                // The shift bit alone scales nothing either.
                1 if codec.grid().is_some() => row.block_scales.fill(0x80),
                1 => row.block_scales.fill(0),
                _ => row.block_scales[r % 3 - 1] = 0,
            }
            row
        });
        let matrix = Matrix::quantized(&codec, 70, rows.collect());
        let xs: Vec<_> = (0..5).map(|_| padded(rng.activations(70))).collect();
        check(&matrix, &xs, "zero rows and blocks");
        for kernels in all_kernels() {
            let got = multiply(kernels, &matrix, 0..2, &xs[..1], Width::One);
            assert!((0..20).filter(|r| r % 3 < 2).all(|r| got[r] == 0.0), "{codec:?}: zero rows");
        }
    }
}

#[test]
fn huge_and_tiny_activations_match_the_oracle() {
    let mut rng = Rng::new(11);
    for codec in all_codecs(&mut rng) {
        let matrix = Matrix::random(&codec, Layout::Panels, 17, 70, &mut rng);
        for magnitude in [1e30f32, 3e38, 1e-20, 2e-38, 1e-42, 1e-45] {
            let xs: Vec<_> = (0..5)
                .map(|_| padded(rng.vector(70).iter().map(|x| x * magnitude).collect()))
                .collect();
            check(&matrix, &xs, &format!("activations of {magnitude:e}"));
        }
        // Blocks of very different sizes side by side.
        let mixed: Vec<f32> =
            (0..70).map(|c| rng.unit() * [1e30, 1e-42, 1.0][c / BLOCK_COLS]).collect();
        check(&matrix, &[padded(mixed)], "mixed magnitudes");
    }
}

#[test]
fn scales_that_are_not_finite_poison_their_rows_and_no_others() {
    let mut rng = Rng::new(12);
    for codec in block_codecs(&mut rng) {
        let mut rows: Vec<_> = (0..20).map(|_| random_row(&codec, 64, &mut rng)).collect();
        rows[3].row_scale = bf16::NAN;
        rows[17].row_scale = bf16::INFINITY;
        let matrix = Matrix::quantized(&codec, 64, rows);
        let xs: Vec<_> = (0..5).map(|_| padded(rng.activations(64))).collect();
        for kernels in all_kernels() {
            let got = multiply(kernels, &matrix, 0..2, &xs[..1], Width::One);
            let batch = multiply(kernels, &matrix, 0..2, &xs, Width::Groups);
            for r in 0..20 {
                let at = (r / PANEL_ROWS) * 5 * PANEL_ROWS + r % PANEL_ROWS;
                let finite = ![3, 17].contains(&r);
                assert_eq!(got[r].is_finite(), finite, "row {r}");
                assert_eq!(batch[at].is_finite(), finite, "row {r} of a batch");
            }
            assert!(got[3].is_nan() && batch[3].is_nan());
        }
    }
}

#[test]
fn activations_that_are_not_finite_do_not_panic() {
    let mut rng = Rng::new(13);
    for codec in all_codecs(&mut rng) {
        let matrix = Matrix::random(&codec, Layout::Panels, 17, 64, &mut rng);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17, 40] {
                let mut x = rng.vector(64);
                x[at] = special;
                for kernels in all_kernels() {
                    multiply(kernels, &matrix, 0..2, &[x.clone()], Width::One);
                    multiply(kernels, &matrix, 0..2, &vec![x.clone(); 6], Width::Groups);
                }
            }
        }
    }
}

#[test]
fn bytes_of_any_kind_are_multiplied_without_panic_and_alike_in_all_classes() {
    let mut rng = Rng::new(14);
    for codec in block_codecs(&mut rng) {
        for _ in 0..50 {
            let mut bytes: Vec<u8> = (0..2 * codec.panel_bytes(70)).map(|_| rng.byte()).collect();
            // Row scales stay finite: the bits of a NaN are nobody's promise.
            for panel in bytes.chunks_mut(codec.panel_bytes(70)) {
                for scale in panel[..32].chunks_mut(2) {
                    scale[1] &= 0xbf;
                }
            }
            let view = gristmill_kernels::MatrixView {
                codec: &codec,
                layout: Layout::Panels,
                bytes: &bytes,
                rows: 32,
                cols: 70,
            };
            let xs: Vec<_> = (0..3).map(|_| padded(rng.activations(70))).collect();
            let results: Vec<Vec<f32>> = all_kernels()
                .into_iter()
                .map(|kernels| {
                    let acts = crate::oracle::prepare(kernels, &codec, &xs, 70, Width::Groups);
                    let mut scratch = gristmill_kernels::Scratch::new(70);
                    let mut out = vec![0.0; 2 * 3 * PANEL_ROWS];
                    kernels.matmul(view, 0..2, &acts, 3, &mut scratch, &mut out);
                    out
                })
                .collect();
            for other in &results[1..] {
                assert_same_bits(other, &results[0], "arbitrary bytes");
            }
        }
    }
}

/// Calls that would read or write out of bounds must panic before they do.
mod refused {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use gristmill_formats::codec::Codec;
    use gristmill_formats::source::Layout;
    use gristmill_kernels::{
        ActBuffer, AttentionScratch, KvHead, KvType, MAX_QUERY_ROWS, MatrixView, ScoreRule,
        Scratch, Span, result_width,
    };

    use crate::oracle::all_kernels;

    #[track_caller]
    fn assert_panics(what: &str, call: impl FnOnce()) {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "{what} was accepted");
    }

    #[test]
    fn matrices_with_fewer_bytes_than_their_shape_needs() {
        // Row counts that overflow the size computation are the interesting ones.
        let huge = [usize::MAX, usize::MAX - 15, 1 << 60, 1 << 58, (1 << 60) + 1];
        for kernels in all_kernels() {
            for codec in [Codec::F32, Codec::Bf16, Codec::F16, Codec::Q8] {
                for layout in [Layout::Panels, Layout::RowMajor] {
                    for cols in [0, 16, 32] {
                        for rows in huge.into_iter().chain([17]) {
                            let mut act = ActBuffer::new(1, cols);
                            act.set_cols(cols);
                            let bytes = vec![0; 64];
                            let view =
                                MatrixView { codec: &codec, layout, bytes: &bytes, rows, cols };
                            let mut scratch = Scratch::new(cols);
                            let all = rows.div_ceil(16);
                            if cols == 0 && rows == 17 {
                                continue;
                            }
                            for panels in [0..all, all - 1..all] {
                                let len = panels.len().wrapping_mul(16).min(16);
                                let mut out = vec![0.0; len];
                                if cols == 0 && panels.len() == 1 {
                                    continue;
                                }
                                assert_panics(&format!("{rows}x{cols} of {codec:?}"), || {
                                    let acts = std::slice::from_ref(&act);
                                    kernels.matmul(view, panels, acts, 1, &mut scratch, &mut out);
                                });
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn buffers_that_are_too_short() {
        for kernels in all_kernels() {
            let codec = Codec::Q8;
            let bytes = vec![0; codec.panel_bytes(64)];
            let view = MatrixView {
                codec: &codec,
                layout: Layout::Panels,
                bytes: &bytes,
                rows: 16,
                cols: 64,
            };
            let mut act = ActBuffer::new(1, 64);
            act.set_cols(64);
            let mut group = ActBuffer::new(4, 64);
            group.set_cols(64);
            let mut narrow = ActBuffer::new(1, 64);
            narrow.set_cols(32);
            let coarse = act.clone();
            for buffer in [&mut act, &mut group, &mut narrow] {
                kernels.quantize(&[0.0; 64], buffer, 0, true);
            }
            let run = |acts: &[ActBuffer], tokens: usize, scratch_cols: usize, out: usize| {
                let mut scratch = Scratch::new(scratch_cols);
                kernels.matmul(view, 0..1, acts, tokens, &mut scratch, &mut vec![0.0; out]);
            };
            run(&[act.clone()], 1, 64, 16);
            run(&[group.clone()], 4, 64, 64);
            assert_panics("a short output", || run(&[act.clone()], 1, 64, 15));
            assert_panics("a long output", || run(&[act.clone()], 1, 64, 32));
            assert_panics("short activations", || run(&[narrow.clone()], 1, 64, 16));
            assert_panics("no fine plane", || run(std::slice::from_ref(&coarse), 1, 64, 16));
            assert_panics("no activations", || run(&[], 0, 64, 0));
            assert_panics("two tokens in one", || run(&[act.clone()], 2, 64, 32));
            assert_panics("five tokens in a group", || run(&[group.clone()], 5, 64, 80));
            assert_panics("mixed widths", || run(&[group.clone(), act.clone()], 5, 64, 80));
            assert_panics("short scratch", || run(&[group.clone()], 4, 32, 64));
            assert_panics("room for more columns", || ActBuffer::new(1, 32).set_cols(33));
            assert_panics("short input", || {
                kernels.quantize(&[0.0; 63], &mut act.clone(), 0, false)
            });
            assert_panics("no such token", || {
                kernels.quantize(&[0.0; 64], &mut act.clone(), 1, false)
            });
            assert_panics("short input", || kernels.interleave(&[0.0; 63], &mut act.clone(), 0));
            assert_panics("no such token", || {
                kernels.interleave(&[0.0; 64], &mut group.clone(), 4)
            });
            let mut out = [0.0; 32];
            assert_panics("a short norm", || {
                kernels.rms_norm(&[0.0; 32], &[0.0; 32], 1e-5, 33, &mut out);
            });
            assert_panics("a ragged gate", || kernels.silu_mul(&mut [0.0; 17], &[0.0; 17]));
            assert_panics("unequal lengths", || kernels.silu_mul(&mut [0.0; 32], &[0.0; 16]));
            assert_panics("unequal lengths", || kernels.gelu_tanh_mul(&mut [0.0; 32], &[0.0; 16]));
            assert_panics("a ragged softcap", || kernels.softcap(&mut [0.0; 8], 1.0));
        }
    }

    #[test]
    fn spans_that_exceed_the_ring_and_heads_that_exceed_memory() {
        let rule = ScoreRule { scale: 1.0, softcap: None };
        for kernels in all_kernels() {
            for kind in KvType::ALL {
                let mut kv = KvHead::new(kind, 16, 32);
                let attend = |spans: &[Span], queries: &[usize], room: usize, rows: usize| {
                    let queries: Vec<_> = queries.iter().map(|&n| vec![0.0; n]).collect();
                    let queries: Vec<_> = queries.iter().map(Vec::as_slice).collect();
                    let mut scratch = AttentionScratch::new(room);
                    let mut rows = vec![0.0; rows];
                    kernels.attend(&kv, &queries, spans, rule, 0..1, &mut scratch, &mut rows);
                };
                let span = |first, position| Span { first, position };
                let one = result_width(16);
                attend(&[span(16, 47)], &[16], 16, one);
                let panics = |what, spans: &[Span], queries: &[usize], room, rows| {
                    assert_panics(what, || attend(spans, queries, room, rows));
                };
                panics("three blocks", &[span(15, 40)], &[16], 16, one);
                panics("a far pair", &[span(0, 3), span(64, 65)], &[16; 2], 16, 2 * one);
                panics("an empty span", &[span(5, 4)], &[16], 16, one);
                panics("no span", &[], &[], 16, one);
                const MANY: usize = MAX_QUERY_ROWS + 1;
                panics("a query too many", &[span(0, 3); MANY], &[16; MANY], 16, MANY * one);
                panics("a query without a span", &[span(0, 3)], &[16; 2], 16, 2 * one);
                panics("little scratch", &[span(0, 16)], &[16], 0, one);
                panics("a short query", &[span(0, 16); 2], &[16, 15], 16, 2 * one);
                panics("short rows", &[span(0, 16); 2], &[16; 2], 16, 2 * one - 1);
                let mut row = vec![0.0; one];
                assert_panics("a short part", || {
                    kernels.fold_attention(16, &mut row, &[0.0; 31]);
                });
                assert_panics("a short row", || {
                    kernels.finish_attention(kind, 16, &mut row[..one - 1]);
                });
                assert_panics("a short key", || {
                    kernels.write_kv(&mut kv, 0, &mut [0.0; 15], &mut [0.0; 16])
                });
                assert_panics("a short value", || {
                    kernels.write_kv(&mut kv, 0, &mut [0.0; 16], &mut [0.0; 8])
                });
                assert_panics("an impossible head", || drop(KvHead::new(kind, 1 << 20, 1 << 44)));
            }
            let mut empty = KvHead::new(KvType::F16, 16, 0);
            assert_panics("an empty ring", || {
                kernels.write_kv(&mut empty, 0, &mut [0.0; 16], &mut [0.0; 16])
            });
        }
    }
}
