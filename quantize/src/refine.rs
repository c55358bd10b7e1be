//! Coordinate descent after rounding: each code moves to the nearest value of the optimum that all other
//! codes leave it, as long as that lowers the loss (Behdin et al. 2023, section 3); then so does the scale
//! of each row.
//!
//! Error feedback decides a weight knowing only those before it; here every weight answers to all
//! others. With `G = Hₒ E Hᵢ`, the loss as a function of weight (r, j) alone is a parabola whose minimum is
//! `G / (Hₒ,ᵣᵣ Hᵢ,ⱼⱼ)` away.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::grid::RowGrid;

/// Improves rounded rows in place, `sweeps` times over all columns. Moments are those that the loss is
/// measured with; `output` of `None` is the identity. Returns how many codes moved.
pub(crate) fn refine<G: RowGrid>(
    grid: &G,
    rows: &mut [G::Row],
    weights: &[f32],
    cols: usize,
    input: &Mat<f32>,
    output: Option<&Mat<f32>>,
    sweeps: usize,
) -> usize {
    let count = rows.len();
    let (input, output) = (&unit(input), output.map(unit));
    let output = output.as_ref();
    let mut errors = weights.to_vec();
    for (errors, row) in errors.chunks_exact_mut(cols).zip(rows.iter()) {
        errors.iter_mut().enumerate().for_each(|(j, e)| *e -= grid.value(row, j));
    }
    let mut moved = 0;
    for _ in 0..sweeps {
        let before = moved;
        for first in (0..cols).step_by(G::GROUP) {
            let width = G::GROUP.min(cols - first);
            let mut gradient = gradient(&errors, count, cols, first, width, input, output);
            for r in 0..count {
                let own = output.map_or(1.0, |o| o[(r, r)]);
                for p in 0..width {
                    let j = first + p;
                    let curvature = own * input[(j, j)];
                    if curvature.is_nan() || curvature <= 0.0 {
                        continue;
                    }
                    let old = grid.value(&rows[r], j);
                    let step = gradient[p * count + r] / curvature;
                    let new = grid.round(&mut rows[r], j, old + step);
                    let change = new - old;
                    if change == 0.0 {
                        continue;
                    }
                    // Towards the minimum, but a coarse grid can overshoot to where it is no lower.
                    if change * (2.0 * step - change) <= 0.0 {
                        grid.round(&mut rows[r], j, old);
                        continue;
                    }
                    moved += 1;
                    errors[r * cols + j] -= change;
                    for q in 0..width {
                        let factor = change * input[(first + q, j)];
                        let column = &mut gradient[q * count..(q + 1) * count];
                        match output {
                            Some(output) => {
                                let coupling = output.col_as_slice(r);
                                column.iter_mut().zip(coupling).for_each(|(g, o)| *g -= factor * o);
                            }
                            None => column[r] -= factor,
                        }
                    }
                }
            }
        }
        moved += refit(grid, rows, &mut errors, cols, input, output);
        if moved == before {
            break;
        }
    }
    moved
}

/// A moment with a largest diagonal entry of 1: the optimum is the same, and products of tiny or huge
/// entries stay within range.
fn unit(moment: &Mat<f32>) -> Mat<f32> {
    let n = moment.nrows();
    let largest = (0..n).map(|i| f64::from(moment[(i, i)])).fold(0.0, f64::max);
    let factor = if largest > 0.0 { 1.0 / largest } else { 1.0 };
    Mat::from_fn(n, n, |i, j| (f64::from(moment[(i, j)]) * factor) as f32)
}

/// A row's scale moves by at most this share at a time: it was fitted already.
const MAX_REFIT: f32 = 0.25;

/// Moves each row's scale to the optimum that all other rows leave it, where that lowers the loss. The
/// loss as a function of the factor `1 + d` on row r alone is `-2 d Mᵣᵣ + d² Hₒ,ᵣᵣ Nᵣᵣ` with
/// `M = Hₒ E Hᵢ Ŵᵀ` and `N = Ŵ Hᵢ Ŵᵀ`. Returns how many rows moved.
fn refit<G: RowGrid>(
    grid: &G,
    rows: &mut [G::Row],
    errors: &mut [f32],
    cols: usize,
    input: &Mat<f32>,
    output: Option<&Mat<f32>>,
) -> usize {
    let count = rows.len();
    let mut values = Mat::from_fn(count, cols, |r, j| grid.value(&rows[r], j));
    let product = |a: MatRef<'_, f32>, b: MatRef<'_, f32>| {
        let mut c = Mat::<f32>::zeros(a.nrows(), b.ncols());
        matmul(c.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
        c
    };
    let seen = product(values.as_ref(), input.as_ref());
    // E Hᵢ Ŵᵀ and N, where rows answer to each other: moving row r by d takes d times row r of the one
    // from row r of the other.
    let mut coupled = output.map(|output| {
        let errors = MatRef::from_row_major_slice(errors, count, cols);
        (output, product(errors, seen.transpose()), product(seen.as_ref(), values.transpose()))
    });
    let mut moved = 0;
    for r in 0..count {
        let (slope, curvature) = match &coupled {
            Some((output, gradient, norms)) => {
                let slope = (0..count).map(|k| output[(r, k)] * gradient[(k, r)]).sum::<f32>();
                (slope, output[(r, r)] * norms[(r, r)])
            }
            None => {
                let errors = &errors[r * cols..(r + 1) * cols];
                let slope = errors.iter().zip(seen.row(r).iter()).map(|(e, s)| e * s).sum();
                let norm = (0..cols).map(|j| values[(r, j)] * seen[(r, j)]).sum::<f32>();
                (slope, norm)
            }
        };
        if curvature.is_nan() || curvature <= 0.0 {
            continue;
        }
        let before = rows[r].clone();
        let wanted: f32 = (slope / curvature).clamp(-MAX_REFIT, MAX_REFIT);
        let step = grid.rescale(&mut rows[r], 1.0 + wanted) - 1.0;
        // The stored scale is coarse and can overshoot to where the loss is no lower.
        if step == 0.0 || step * (2.0 * slope - step * curvature) <= 0.0 {
            rows[r] = before;
            continue;
        }
        moved += 1;
        for j in 0..cols {
            let value = grid.value(&rows[r], j);
            errors[r * cols + j] -= value - values[(r, j)];
            values[(r, j)] = value;
        }
        if let Some((_, gradient, norms)) = &mut coupled {
            (0..count).for_each(|k| gradient[(r, k)] -= step * norms[(r, k)]);
        }
    }
    moved
}

/// Columns `first..first + width` of `Hₒ E Hᵢ`, one after the other.
fn gradient(
    errors: &[f32],
    count: usize,
    cols: usize,
    first: usize,
    width: usize,
    input: &Mat<f32>,
    output: Option<&Mat<f32>>,
) -> Vec<f32> {
    let errors = MatRef::from_row_major_slice(errors, count, cols);
    let mut right = Mat::<f32>::zeros(count, width);
    let columns = input.as_ref().subcols(first, width);
    matmul(right.as_mut(), Accum::Replace, errors, columns, 1.0, Par::Seq);
    let mut result = vec![0.0f32; count * width];
    let mut to = faer::MatMut::from_column_major_slice_mut(&mut result, count, width);
    match output {
        Some(output) => {
            matmul(to.as_mut(), Accum::Replace, output.as_ref(), right.as_ref(), 1.0, Par::Seq);
        }
        None => to.copy_from(&right),
    }
    result
}

#[cfg(test)]
mod tests;
