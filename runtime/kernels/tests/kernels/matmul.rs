//! Matrix products of every codec, to the last bit.

use gristmill_formats::codec::{Codec, PANEL_ROWS};
use gristmill_formats::source::Layout;
use gristmill_kernels::{Kernels, Scratch};

use crate::oracle::{
    Matrix, Rng, Width, all_codecs, all_kernels, assert_same_bits, multiply, padded_tokens, prepare,
};

const ROWS: [usize; 5] = [1, 15, 16, 17, 100];
const COLS: [usize; 7] = [1, 31, 32, 33, 48, 576, 1536];
const MAX_TOKENS: usize = 29;

/// Every token count of one to three groups and their tails, and one that takes several tiles.
fn token_counts() -> impl Iterator<Item = usize> {
    (1..=13).chain([MAX_TOKENS])
}

/// Large shapes times many tokens in portable code take seconds and show nothing new.
fn is_quick(kernels: &Kernels, matrix: &Matrix, tokens: usize) -> bool {
    kernels.isa() != gristmill_kernels::Isa::Scalar
        || matrix.rows * matrix.cols * tokens < 200_000
        || (matrix.rows < 20 && [1, 5, MAX_TOKENS].contains(&tokens))
}

fn layouts(codec: &Codec) -> &'static [Layout] {
    if codec.id().is_dense() { &[Layout::Panels, Layout::RowMajor] } else { &[Layout::Panels] }
}

/// The expected `[panels][tokens][16]` of the first `tokens` tokens.
fn expected(results: &[Vec<f32>], panels: usize, tokens: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for p in 0..panels {
        for result in &results[..tokens] {
            out.extend((p * PANEL_ROWS..(p + 1) * PANEL_ROWS).map(|r| {
                // Rows beyond the matrix come out zero.
                result.get(r).copied().unwrap_or_default()
            }));
        }
    }
    out
}

#[test]
fn products_match_the_exact_oracle_in_every_shape_and_batch() {
    let mut rng = Rng::new(1);
    for codec in all_codecs(&mut rng) {
        for &layout in layouts(&codec) {
            for rows in ROWS {
                for cols in COLS {
                    let matrix = Matrix::random(&codec, layout, rows, cols, &mut rng);
                    let xs = padded_tokens(MAX_TOKENS, cols, &mut rng);
                    check_batches(&matrix, &xs);
                }
            }
        }
    }
}

/// All classes and token counts against one oracle: so all are the same, and a token of a batch is the
/// same token alone.
fn check_batches(matrix: &Matrix, xs: &[Vec<f32>]) {
    let results: Vec<Vec<f32>> =
        xs.iter().map(|x| (0..matrix.rows).map(|r| matrix.exact_dot(r, x)).collect()).collect();
    let panels = matrix.panels();
    for kernels in all_kernels() {
        for tokens in token_counts().filter(|&t| is_quick(kernels, matrix, t)) {
            let want = expected(&results, panels, tokens);
            let what = format!(
                "{} {:?} {}x{} with {tokens} tokens",
                kernels.matmul_name(matrix.codec.id(), tokens),
                matrix.layout,
                matrix.rows,
                matrix.cols
            );
            let width = if tokens == 1 { Width::One } else { Width::Groups };
            let got = multiply(kernels, matrix, 0..panels, &xs[..tokens], width);
            assert_same_bits(&got, &want, &what);
        }
        // A group may hold one token.
        let got = multiply(kernels, matrix, 0..panels, &xs[..1], Width::Groups);
        assert_same_bits(&got, &expected(&results, panels, 1), "a group of one token");
    }
}

#[test]
fn any_range_of_panels_gives_the_same_bits() {
    let mut rng = Rng::new(2);
    for codec in all_codecs(&mut rng) {
        for &layout in layouts(&codec) {
            let matrix = Matrix::random(&codec, layout, 165, 80, &mut rng);
            let xs = padded_tokens(6, 80, &mut rng);
            for kernels in all_kernels() {
                for (tokens, width) in [(1, Width::One), (6, Width::Groups)] {
                    let all = multiply(kernels, &matrix, 0..11, &xs[..tokens], width);
                    for start in 0..=11 {
                        for end in start..=11 {
                            let got = multiply(kernels, &matrix, start..end, &xs[..tokens], width);
                            let size = tokens * PANEL_ROWS;
                            let want = &all[start * size..end * size];
                            assert_same_bits(&got, want, &format!("panels {start}..{end}"));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_does_not_depend_on_its_place_or_its_neighbours() {
    let mut rng = Rng::new(3);
    for codec in all_codecs(&mut rng) {
        for &layout in layouts(&codec) {
            let matrix = Matrix::random(&codec, layout, 33, 96, &mut rng);
            let xs = padded_tokens(11, 96, &mut rng);
            for kernels in all_kernels() {
                let batch = multiply(kernels, &matrix, 0..3, &xs, Width::Groups);
                for t in 0..xs.len() {
                    let alone = multiply(kernels, &matrix, 0..3, &xs[t..=t], Width::One);
                    for p in 0..3 {
                        let at = (p * xs.len() + t) * PANEL_ROWS;
                        let want = &alone[p * PANEL_ROWS..(p + 1) * PANEL_ROWS];
                        let got = &batch[at..at + PANEL_ROWS];
                        assert_same_bits(got, want, &format!("token {t} of a batch"));
                    }
                }
            }
        }
    }
}

#[test]
fn products_agree_with_decoded_rows_in_double_precision() {
    let mut rng = Rng::new(4);
    for codec in all_codecs(&mut rng) {
        for &layout in layouts(&codec) {
            for (rows, cols) in [(1, 1), (17, 33), (40, 576)] {
                let matrix = Matrix::random(&codec, layout, rows, cols, &mut rng);
                let xs = padded_tokens(1, cols, &mut rng);
                for kernels in all_kernels() {
                    let got = multiply(kernels, &matrix, 0..matrix.panels(), &xs, Width::One);
                    for r in 0..rows {
                        let (want, size) = matrix.f64_dot(r, &xs[0][..cols]);
                        let error = (f64::from(got[r]) - want).abs();
                        // Rounding of `cols` terms, each relative to the terms' own size.
                        assert!(
                            error <= 1e-6 * size + 1e-30,
                            "{codec:?} row {r}: off by {error:e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn scratch_and_output_may_hold_anything_before() {
    let mut rng = Rng::new(5);
    for codec in all_codecs(&mut rng) {
        for &layout in layouts(&codec) {
            let wide = Matrix::random(&codec, layout, 32, 200, &mut rng);
            let narrow = Matrix::random(&codec, layout, 20, 33, &mut rng);
            for kernels in all_kernels() {
                let mut scratch = Scratch::new(200);
                let mut run = |matrix: &Matrix, xs: &[Vec<f32>]| {
                    let acts = prepare(kernels, &codec, xs, matrix.cols, Width::Groups);
                    let mut out = vec![f32::INFINITY; matrix.panels() * xs.len() * PANEL_ROWS];
                    let panels = 0..matrix.panels();
                    kernels.matmul(matrix.view(), panels, &acts, xs.len(), &mut scratch, &mut out);
                    out
                };
                run(&wide, &padded_tokens(5, 200, &mut rng));
                let xs = padded_tokens(5, 33, &mut rng);
                let got = run(&narrow, &xs);
                let want = multiply(kernels, &narrow, 0..2, &xs, Width::Groups);
                assert_same_bits(&got, &want, "used scratch");
            }
        }
    }
}
