use std::sync::Mutex;

use gristmill_formats::codec::BLOCK_COLS;

use super::*;
use crate::grid::packed::{PackedGrid, PackedRow};
use crate::hessian::Factor;
use crate::ldlq::{round_matrix, round_nearest};
use crate::testing::{Random, exact_loss, moment, packed_grids, values};

/// A problem to refine: weights and the moments that the loss is measured with.
struct Problem {
    weights: Vec<f32>,
    cols: usize,
    input: Mat<f32>,
    output: Option<Mat<f32>>,
}

impl Problem {
    fn new(rows: usize, cols: usize, two_sided: bool, seed: u64) -> Self {
        let weights = Random::new(seed).normals(rows * cols);
        let input = moment(3 * cols, cols, seed + 1).mean();
        let output = two_sided.then(|| moment(3 * rows, rows, seed + 2).mean());
        Self { weights, cols, input, output }
    }

    fn all() -> impl Iterator<Item = Self> {
        let shapes = [(1, 1), (1, 33), (6, 5), (4, 40), (9, 70)].into_iter().enumerate();
        shapes.flat_map(|(seed, (rows, cols))| {
            [false, true].map(|two_sided| Self::new(rows, cols, two_sided, seed as u64))
        })
    }

    fn loss(&self, values: &[f32]) -> f64 {
        exact_loss(&self.weights, values, &self.input, self.output.as_ref())
    }

    fn plain<G: RowGrid>(&self, grid: &G) -> Vec<G::Row> {
        round_nearest(grid, &self.weights, self.cols, &vec![1.0; self.cols])
    }

    fn refine<G: RowGrid>(&self, grid: &G, rows: &mut [G::Row], sweeps: usize) -> usize {
        refine(grid, rows, &self.weights, self.cols, &self.input, self.output.as_ref(), sweeps)
    }
}

#[test]
fn the_loss_never_rises() {
    for (codec, grid) in packed_grids() {
        for problem in Problem::all() {
            let cols = problem.cols;
            let factor = Factor::new(&problem.input, 100, BLOCK_COLS).expect("a factor");
            let fed = round_matrix(&grid, &problem.weights, cols, &factor, None);
            for mut rows in [problem.plain(&grid), fed] {
                for _ in 0..3 {
                    let before = problem.loss(&values(&grid, &rows, cols));
                    let moved = problem.refine(&grid, &mut rows, 1);
                    let after = problem.loss(&values(&grid, &rows, cols));
                    assert!(after <= before * (1.0 + 1e-6), "{}: {after} > {before}", codec.id());
                    assert!(moved > 0 || after == before, "only moves change anything");
                }
            }
        }
    }
}

#[test]
fn it_improves_on_plain_rounding() {
    for (codec, grid) in packed_grids() {
        let problem = Problem::new(12, 96, true, 7);
        let mut rows = problem.plain(&grid);
        let before = problem.loss(&values(&grid, &rows, 96));
        problem.refine(&grid, &mut rows, 4);
        let after = problem.loss(&values(&grid, &rows, 96));
        assert!(after < 0.8 * before, "{}: {after} of {before}", codec.id());
    }
}

#[test]
fn it_ends_where_no_single_code_is_better() {
    for (codec, grid) in packed_grids() {
        for problem in Problem::all().filter(|p| p.weights.len() <= 40) {
            let cols = problem.cols;
            let mut rows = problem.plain(&grid);
            problem.refine(&grid, &mut rows, 1000);
            let mut stored = values(&grid, &rows, cols);
            let best = problem.loss(&stored);
            for at in 0..stored.len() {
                let old = stored[at];
                for value in possible_values(&grid, &rows[at / cols], at % cols) {
                    stored[at] = value;
                    let loss = problem.loss(&stored);
                    assert!(loss >= best * (1.0 - 1e-4), "{}: {loss} < {best}", codec.id());
                }
                stored[at] = old;
            }
        }
    }
}

/// Far off scales come back, as far as a bf16 can say them.
#[test]
fn scales_of_rows_are_refitted() {
    for (codec, grid) in packed_grids() {
        for problem in Problem::all() {
            let cols = problem.cols;
            let mut rows = problem.plain(&grid);
            let fitted = problem.loss(&values(&grid, &rows, cols));
            for row in &mut rows {
                grid.rescale(row, 1.25);
            }
            let stored = values(&grid, &rows, cols);
            let (output, mut moved) = (problem.output.as_ref(), 0);
            let mut errors: Vec<f32> =
                problem.weights.iter().zip(&stored).map(|(w, v)| w - v).collect();
            for _ in 0..20 {
                let before = problem.loss(&values(&grid, &rows, cols));
                moved += refit(&grid, &mut rows, &mut errors, cols, &problem.input, output);
                let after = problem.loss(&values(&grid, &rows, cols));
                assert!(after <= before * (1.0 + 1e-5), "{}: {after} > {before}", codec.id());
            }
            let refitted = problem.loss(&values(&grid, &rows, cols));
            assert!(moved > 0);
            // Plain rounding's scales are those of another loss, so they are not the best either.
            assert!(refitted <= fitted * 1.1, "{}: {refitted} {fitted}", codec.id());
            let stored = values(&grid, &rows, cols);
            for ((w, v), e) in problem.weights.iter().zip(&stored).zip(&errors) {
                assert!((w - v - e).abs() < 1e-4, "errors are kept up");
            }
        }
    }
}

/// All values that a weight can have under the scales of its row.
fn possible_values(grid: &PackedGrid, row: &PackedRow, col: usize) -> Vec<f32> {
    let mut row = row.clone();
    let reach = 8.0f32;
    let mut values: Vec<f32> =
        (-2000..=2000).map(|x| grid.round(&mut row, col, x as f32 / 2000.0 * reach)).collect();
    values.dedup();
    values
}

/// A grid that writes down what becomes of every weight.
struct Traced {
    grid: PackedGrid,
    rounded: Mutex<Vec<(usize, usize, f32)>>,
}

/// Index of a row, and the row.
type TracedRow = (usize, PackedRow);

impl RowGrid for Traced {
    type Row = TracedRow;
    const GROUP: usize = BLOCK_COLS;

    fn start(&self, row: &[f32], importance: &[f32]) -> TracedRow {
        (0, self.grid.start(row, importance))
    }

    fn fit(&self, row: &mut TracedRow, group: usize, x: &[f32], importance: &[f32]) {
        self.grid.fit(&mut row.1, group, x, importance);
    }

    fn round(&self, row: &mut TracedRow, col: usize, x: f32) -> f32 {
        let value = self.grid.round(&mut row.1, col, x);
        self.rounded.lock().expect("no panic").push((row.0, col, value));
        value
    }

    fn value(&self, row: &TracedRow, col: usize) -> f32 {
        self.grid.value(&row.1, col)
    }

    // Without `rescale`: rows keep their scales, so that every change is a code's.
}

#[test]
fn no_single_move_is_uphill() {
    for (codec, grid) in packed_grids() {
        for problem in Problem::all() {
            let cols = problem.cols;
            let traced = Traced { grid: grid.clone(), rounded: Mutex::default() };
            let mut rows = problem.plain(&traced);
            rows.iter_mut().enumerate().for_each(|(r, row)| row.0 = r);
            traced.rounded.lock().expect("no panic").clear();
            let mut stored = values(&traced, &rows, cols);
            let mut loss = problem.loss(&stored);
            let claimed = problem.refine(&traced, &mut rows, 2);
            let trace = std::mem::take(&mut *traced.rounded.lock().expect("no panic"));
            let mut moved = 0;
            for (i, &(r, c, value)) in trace.iter().enumerate() {
                let taken_back = trace.get(i + 1).is_some_and(|next| (next.0, next.1) == (r, c));
                if taken_back || stored[r * cols + c] == value {
                    continue;
                }
                stored[r * cols + c] = value;
                moved += 1;
                let after = problem.loss(&stored);
                assert!(after <= loss * (1.0 + 1e-6), "{}: {after} > {loss}", codec.id());
                loss = after;
            }
            assert_eq!(moved, claimed, "{}", codec.id());
            assert_eq!(stored, values(&traced, &rows, cols), "{}", codec.id());
        }
    }
}

#[test]
fn weights_that_cost_nothing_stay() {
    let (_, grid) = packed_grids().swap_remove(3);
    let mut problem = Problem::new(4, 40, true, 1);
    problem.input = Mat::zeros(40, 40);
    let mut rows = problem.plain(&grid);
    let before = values(&grid, &rows, 40);
    assert_eq!(problem.refine(&grid, &mut rows, 3), 0);
    assert_eq!(values(&grid, &rows, 40), before);
    assert_eq!(problem.refine(&grid, &mut rows, 0), 0, "no sweeps, no moves");
}
