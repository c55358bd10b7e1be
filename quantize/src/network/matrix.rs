//! Row-major matrices and their products.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::spare;
use super::vecmath::{dot, vectorized};

/// Rows that one task takes at least, so that short rows are not drowned in scheduling.
const MIN_ROWS: usize = 16;
/// Rows of a product that are one task: enough that packing the other factor costs little.
const PRODUCT_ROWS: usize = 512;
/// Columns of a product that are one task: those of faer's kernel for the widest vectors.
const PRODUCT_COLS: usize = 96;

/// A row-major matrix of f32; `[tokens, width]` for activations, `[n_out, n_in]` for weights.
#[derive(Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// A matrix of these values, one row after the other.
    ///
    /// # Panics
    /// When there are not `rows * cols` of them.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), rows * cols, "{rows} x {cols}");
        Self { rows, cols, data }
    }

    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let mut matrix = Self::unset(rows, cols);
        matrix.data.fill(0.0);
        matrix
    }

    /// Any values: all are to be written.
    pub(super) fn unset(rows: usize, cols: usize) -> Self {
        Self::new(rows, cols, spare::take(rows * cols))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, one row after the other.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, one row after the other.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// A copy of some rows.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Self {
        let mut copy = Self::unset(rows.len(), self.cols);
        copy.data.copy_from_slice(&self.data[rows.start * self.cols..rows.end * self.cols]);
        copy
    }

    /// `self += other`.
    pub fn add(&mut self, other: &Self) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        self.for_each_row(|r, row| {
            row.iter_mut().zip(other.row(r)).for_each(|(x, y)| *x += y);
        });
    }

    /// Calls `each(row index, row)` for all rows in parallel.
    pub fn for_each_row(&mut self, each: impl Fn(usize, &mut [f32]) + Sync) {
        self.data
            .par_chunks_exact_mut(self.cols.max(1))
            .with_min_len(MIN_ROWS)
            .enumerate()
            .for_each(|(r, row)| each(r, row));
    }

    /// `Σ x²` of each row.
    pub fn row_energies(&self) -> Vec<f32> {
        let rows = self.data.par_chunks_exact(self.cols.max(1)).with_min_len(MIN_ROWS);
        rows.map(|row| vectorized(|| dot(row, row))).collect()
    }

    /// Adds `Σ x²` of each column to `sums`.
    ///
    /// # Panics
    /// When there are not as many sums as columns.
    pub fn add_column_energies(&self, sums: &mut [f32]) {
        const STRIP: usize = 256;
        assert_eq!(sums.len(), self.cols);
        sums.par_chunks_mut(STRIP).enumerate().for_each(|(strip, sums)| {
            let first = strip * STRIP;
            vectorized(|| {
                for r in 0..self.rows {
                    let row = &self.row(r)[first..first + sums.len()];
                    sums.iter_mut().zip(row).for_each(|(s, x)| *s += x * x);
                }
            });
        });
    }

    /// As faer sees it.
    pub(crate) fn view(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.data, self.rows, self.cols)
    }

    /// As faer sees it.
    pub(crate) fn view_mut(&mut self) -> MatMut<'_, f32> {
        MatMut::from_row_major_slice_mut(&mut self.data, self.rows, self.cols)
    }

    /// Disjoint pieces of `rows` by `cols`, smaller at the edges.
    pub(crate) fn pieces_mut(&mut self, rows: usize, cols: usize) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        let (height, width) = (self.rows, self.cols);
        let mut below = self.view_mut();
        for row in (0..height).step_by(rows) {
            let (mut right, rest) = below.split_at_row_mut(rows.min(height - row));
            below = rest;
            for col in (0..width).step_by(cols) {
                let (view, rest) = right.split_at_col_mut(cols.min(width - col));
                right = rest;
                pieces.push(Piece { row, col, view });
            }
        }
        pieces
    }

    /// `x Wᵀ`: `[tokens, n_in]` and `w` `[n_out, n_in]` to `[tokens, n_out]`.
    pub fn multiply(x: &Self, w: &Self) -> Self {
        let mut y = Self::unset(x.rows, w.rows);
        product(&mut y, Accum::Replace, x.view(), w.view().transpose());
        y
    }

    /// `aᵀ b`: `[tokens, m]` and `[tokens, n]` to `[m, n]`.
    pub fn transposed_product(a: &Self, b: &Self) -> Self {
        let mut c = Self::unset(a.cols, b.cols);
        product(&mut c, Accum::Replace, a.view().transpose(), b.view());
        c
    }

    /// `self += aᵀ b`.
    pub fn add_transposed_product(&mut self, a: &Self, b: &Self) {
        product(self, Accum::Add, a.view().transpose(), b.view());
    }

    /// `self += x Wᵀ`.
    pub fn add_multiply(&mut self, x: &Self, w: &Self) {
        product(self, Accum::Add, x.view(), w.view().transpose());
    }

    /// `dy W`, the gradient of `x` in `y = x Wᵀ`: `[tokens, n_out]` to `[tokens, n_in]`.
    pub fn multiply_back(dy: &Self, w: &Self) -> Self {
        let mut dx = Self::unset(dy.rows, w.cols);
        product(&mut dx, Accum::Replace, dy.view(), w.view());
        dx
    }

    /// `self += dy W`.
    pub fn add_multiply_back(&mut self, dy: &Self, w: &Self) {
        product(self, Accum::Add, dy.view(), w.view());
    }
}

impl Clone for Matrix {
    fn clone(&self) -> Self {
        self.slice(0..self.rows)
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        spare::give(std::mem::take(&mut self.data));
    }
}

/// Part of a matrix, to be written by one task.
pub(crate) struct Piece<'a> {
    /// Its first row.
    pub(crate) row: usize,
    /// Its first column.
    pub(crate) col: usize,
    pub(crate) view: MatMut<'a, f32>,
}

/// `to = a b`, or `to += a b`.
///
/// One task computes one piece by itself: faer's own threads wait for each other by spinning, which
/// takes several times as long when they are not alone on the machine, and pieces that do not depend
/// on the number of threads give sums that do not either.
fn product(to: &mut Matrix, accum: Accum, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    to.pieces_mut(PRODUCT_ROWS, PRODUCT_COLS).into_par_iter().for_each(|piece| {
        let Piece { row, col, view } = piece;
        let (a, b) = (a.subrows(row, view.nrows()), b.subcols(col, view.ncols()));
        matmul(view, accum, a, b, 1.0, Par::Seq);
    });
}
