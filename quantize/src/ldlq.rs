//! Rounding with error feedback.
//!
//! With `Hᵢ = Bᵀ D B` and `Hₒ = Aᵀ C A` (see [`crate::hessian`]) the loss of a rounded matrix is
//! `Σ Cᵣ Dⱼ (A E Bᵀ)²ᵣⱼ`. In the order of rounding, entry (r, j) of `A E Bᵀ` is the error of weight
//! (r, j) itself plus terms of weights before it, so each weight is rounded to cancel them: its target is
//! `w + Σ A E` over earlier rows of its column, plus `Σ B F` over earlier columns of its row, where F is
//! E with those row terms included. Without A this is LDLQ (Chee et al. 2023, section 4), which is GPTQ
//! (Frantar et al. 2022) without an inverse; with it, rounding under both factors (Tseng et al. 2025).
//!
//! Columns go block by block: matrix products bring the feedback of all earlier blocks at once, and only
//! the feedback inside a block is column by column.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use rayon::prelude::*;

use crate::grid::RowGrid;
use crate::hessian::Factor;

/// Most columns of a group.
const MAX_GROUP: usize = 32;

/// Rows whose feedback to each other is computed one by one; from others it comes by matrix product.
const ROW_TILE: usize = 32;

/// Rounds the rows of `weights` (`[rows, cols]`, row-major). Rows feed errors back to later rows when
/// there is an `output` factor; without one they are independent and rounded in parallel.
///
/// # Panics
/// When sizes do not match or a weight is not finite.
pub(crate) fn round_matrix<G: RowGrid>(
    grid: &G,
    weights: &[f32],
    cols: usize,
    input: &Factor,
    output: Option<&Factor>,
) -> Vec<G::Row> {
    let rows = weights.len() / cols;
    assert_eq!(weights.len(), rows * cols, "whole rows");
    assert_eq!(input.order.len(), cols, "one factor column per weight column");
    match output {
        Some(output) => {
            assert_eq!(output.order.len(), rows, "one factor row per weight row");
            let mut state = State::new(grid, weights, cols, input, &output.order);
            state.run(Some(&output.lower), Par::Seq);
            let mut placed: Vec<Option<G::Row>> = vec![None; rows];
            for (row, &index) in state.rows.into_iter().zip(&output.order) {
                placed[index] = Some(row);
            }
            placed.into_iter().map(|row| row.expect("an order names every row")).collect()
        }
        None => {
            let chunks = weights.par_chunks(INDEPENDENT_ROWS * cols);
            let chunks = chunks.map(|weights| {
                let order: Vec<usize> = (0..weights.len() / cols).collect();
                let mut state = State::new(grid, weights, cols, input, &order);
                state.run(None, Par::Seq);
                state.rows
            });
            chunks.collect::<Vec<_>>().into_iter().flatten().collect()
        }
    }
}

/// Independent rows rounded together: enough for matrix products, few enough to share them out.
const INDEPENDENT_ROWS: usize = 64;

/// Plain rounding to the same grid: every weight to its nearest value, under scales searched with
/// `importance` per column.
pub(crate) fn round_nearest<G: RowGrid>(
    grid: &G,
    weights: &[f32],
    cols: usize,
    importance: &[f32],
) -> Vec<G::Row> {
    let round = |weights: &[f32]| {
        let mut row = grid.start(weights, importance);
        for (group, x) in weights.chunks(G::GROUP).enumerate() {
            let first = group * G::GROUP;
            grid.fit(&mut row, group, x, &importance[first..first + x.len()]);
            for (i, &x) in x.iter().enumerate() {
                grid.round(&mut row, first + i, x);
            }
        }
        row
    };
    weights.par_chunks(cols).map(round).collect()
}

/// Hₒ of a loss.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left<'a> {
    /// The identity.
    Equal,
    /// A diagonal.
    Rows(&'a [f32]),
    /// A moment.
    Moment(&'a Mat<f32>),
}

/// `tr(Hₒ E Hᵢ Eᵀ)` of a rounded matrix.
pub(crate) fn loss<G: RowGrid>(
    grid: &G,
    rows: &[G::Row],
    weights: &[f32],
    cols: usize,
    input: &Mat<f32>,
    left: Left<'_>,
) -> f64 {
    let tile = LOSS_ROWS.max(if let Left::Moment(_) = left { rows.len() } else { 0 });
    let tiles = weights.par_chunks(tile * cols).zip(rows.par_chunks(tile)).enumerate();
    let losses: Vec<f64> = tiles
        .map(|(t, (weights, rows))| {
            let mut errors = weights.to_vec();
            for (r, (errors, row)) in errors.chunks_exact_mut(cols).zip(rows).enumerate() {
                let weight = if let Left::Rows(w) = left { w[t * tile + r].sqrt() } else { 1.0 };
                errors.iter_mut().enumerate().for_each(|(j, e)| {
                    *e = weight * (*e - grid.value(row, j));
                });
            }
            error_loss(
                &errors,
                cols,
                input,
                if let Left::Moment(m) = left { Some(m) } else { None },
            )
        })
        .collect();
    // In order, so that the sum does not depend on the threads.
    losses.iter().sum()
}

/// Rows whose errors are held at a time.
const LOSS_ROWS: usize = 1024;

/// `tr(Hₒ E Hᵢ Eᵀ)` of errors E.
fn error_loss(errors: &[f32], cols: usize, input: &Mat<f32>, output: Option<&Mat<f32>>) -> f64 {
    let errors = MatRef::from_row_major_slice(errors, errors.len() / cols, cols);
    let mut right = Mat::zeros(errors.nrows(), cols);
    matmul(right.as_mut(), Accum::Replace, errors, input.as_ref(), 1.0f32, Par::Seq);
    let left = output.map(|output| {
        let mut left = Mat::zeros(errors.nrows(), cols);
        matmul(left.as_mut(), Accum::Replace, output.as_ref(), errors, 1.0f32, Par::Seq);
        left
    });
    let left = left.as_ref().map_or(errors, |left| left.as_ref());
    (0..cols)
        .map(|j| {
            let pairs = (0..errors.nrows()).map(|i| f64::from(left[(i, j)] * right[(i, j)]));
            pairs.sum::<f64>()
        })
        .sum()
}

/// A matrix under way. Rows and columns are in the order of rounding.
struct State<'a, G: RowGrid> {
    grid: &'a G,
    input: &'a Factor,
    /// D by column index.
    importance: Vec<f32>,
    rows: Vec<G::Row>,
    /// W, row-major, columns in order.
    weights: Vec<f32>,
    /// F, row-major, columns in order.
    fed: Vec<f32>,
    cols: usize,
}

impl<'a, G: RowGrid> State<'a, G> {
    fn new(grid: &'a G, weights: &[f32], cols: usize, input: &'a Factor, order: &[usize]) -> Self {
        let importance = input.importance();
        let row = |r: usize| &weights[r * cols..(r + 1) * cols];
        Self {
            rows: order.par_iter().map(|&r| grid.start(row(r), &importance)).collect(),
            weights: order
                .iter()
                .flat_map(|&r| input.order.iter().map(move |&j| row(r)[j]))
                .collect(),
            fed: vec![0.0; weights.len()],
            grid,
            input,
            importance,
            cols,
        }
    }

    fn run(&mut self, output: Option<&Mat<f32>>, par: Par) {
        const { assert!(G::GROUP <= MAX_GROUP) };
        let mut first = 0;
        while first < self.cols {
            // Neighbours in the order are a group of columns, and the last group may be short.
            let group = self.input.order[first] / G::GROUP;
            let width = G::GROUP.min(self.cols - group * G::GROUP);
            self.block(group, first..first + width, output, par);
            first += width;
        }
    }

    /// Rounds the columns at `places` of all rows.
    fn block(&mut self, group: usize, places: Range<usize>, output: Option<&Mat<f32>>, par: Par) {
        let (count, width) = (self.rows.len(), places.len());
        // Targets: weights and the feedback of earlier columns.
        let mut targets = Mat::<f32>::zeros(width, count);
        if places.start > 0 {
            let fed = MatRef::from_row_major_slice(&self.fed, count, self.cols);
            let lower = self.input.lower.as_ref();
            matmul(
                targets.as_mut(),
                Accum::Replace,
                lower.submatrix(places.start, 0, width, places.start),
                fed.subcols(0, places.start).transpose(),
                1.0,
                par,
            );
        }
        // Errors of this block, [row][place]: what later rows are fed back.
        let mut errors = vec![0.0f32; count * width];
        let mut from_rows = Mat::<f32>::zeros(width, ROW_TILE);
        for tile in (0..count).step_by(ROW_TILE) {
            let tile = tile..count.min(tile + ROW_TILE);
            if let Some(output) = output
                && tile.start > 0
            {
                let before =
                    MatRef::from_row_major_slice(&errors[..tile.start * width], tile.start, width);
                let mut to: MatMut<'_, f32> = from_rows.as_mut().subcols_mut(0, tile.len());
                let lower = output.as_ref().submatrix(tile.start, 0, tile.len(), tile.start);
                matmul(
                    to.as_mut(),
                    Accum::Replace,
                    before.transpose(),
                    lower.transpose(),
                    1.0,
                    par,
                );
            }
            for r in tile.clone() {
                let mut feedback = [0.0f32; MAX_GROUP];
                if let Some(output) = output {
                    let column = from_rows.col(r - tile.start);
                    feedback[..width].iter_mut().zip(column.iter()).for_each(|(f, x)| *f = *x);
                    for k in tile.start..r {
                        let a = output[(r, k)];
                        let errors = &errors[k * width..(k + 1) * width];
                        feedback.iter_mut().zip(errors).for_each(|(f, e)| *f += a * e);
                    }
                }
                let mut target = [0.0f32; MAX_GROUP];
                let weights = &self.weights[r * self.cols..][places.clone()];
                for p in 0..width {
                    target[p] = weights[p] + feedback[p] + targets[(p, r)];
                }
                self.row(
                    r,
                    group,
                    places.clone(),
                    &mut target,
                    &feedback,
                    &mut errors[r * width..(r + 1) * width],
                );
            }
        }
    }

    /// Rounds one row's columns at `places`: fits the group's scale, then column by column.
    fn row(
        &mut self,
        r: usize,
        group: usize,
        places: Range<usize>,
        target: &mut [f32; MAX_GROUP],
        feedback: &[f32; MAX_GROUP],
        errors: &mut [f32],
    ) {
        let (grid, row) = (self.grid, &mut self.rows[r]);
        let width = places.len();
        let order = &self.input.order[places.clone()];
        let (first, mut x) = (group * G::GROUP, [0.0f32; MAX_GROUP]);
        for (&index, &target) in order.iter().zip(target.iter()) {
            x[index - first] = target;
        }
        grid.fit(row, group, &x[..width], &self.importance[first..first + width]);
        let start = r * self.cols + places.start;
        for p in 0..width {
            let value = grid.round(row, order[p], target[p]);
            errors[p] = self.weights[start + p] - value;
            let fed = errors[p] + feedback[p];
            self.fed[start + p] = fed;
            for later in p + 1..width {
                target[later] += self.input.lower[(places.start + later, places.start + p)] * fed;
            }
        }
    }
}

#[cfg(test)]
mod tests;
