//! Second moments of activations and their factors.
//!
//! Rounding a matrix W to Ŵ changes the loss, to second order, by `½ tr(Hₒ E Hᵢ Eᵀ)` with `E = W - Ŵ`:
//! Hᵢ is the second moment of the layer's inputs and Hₒ that of the gradients of its outputs, the two
//! factors of the Fisher information (Martens and Grosse 2015, section 3). GPTQ's objective is the one
//! with Hₒ = 1.
//!
//! Rounding wants them as `H = Bᵀ D B` with B unit lower triangular in the order of rounding (the LDLQ
//! form, Chee et al. 2023, section 4): column j then takes up what columns before it left, weighted by
//! row j of B, and `D` says how much an error that nothing can take up any more costs.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par, Side};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Rows added at a time.
const TILE_ROWS: usize = 1024;

/// Damping factors on the mean diagonal that are tried one after the other.
const DAMPING_LADDER: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// A moment from few rows is drawn towards its diagonal by `width / rows`, at most by this share.
const MAX_SHRINKAGE: f64 = 0.5;

/// A diagonal entry is at least this share of the largest one.
const DIAGONAL_FLOOR: f64 = 1e-7;

/// `E[x xᵀ]` of vectors x, accumulated.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    /// Lower triangle of `Σ w x xᵀ`.
    sum: Mat<f32>,
    weight: f64,
    rows: u64,
    skipped: u64,
}

impl Moment {
    /// Of vectors of length `n`.
    pub(crate) fn new(n: usize) -> Self {
        Self { sum: Mat::zeros(n, n), weight: 0.0, rows: 0, skipped: 0 }
    }

    /// Length of the vectors.
    pub(crate) fn len(&self) -> usize {
        self.sum.nrows()
    }

    /// Adds the rows of `x` (row-major), each with its weight. A row with a value that is not finite
    /// is left out and counted.
    pub(crate) fn add(&mut self, x: &[f32], weights: Option<&[f32]>) {
        let n = self.len();
        for (t, rows) in x.chunks(TILE_ROWS * n).enumerate() {
            let weight = |r: usize| weights.map_or(1.0, |w| w[t * TILE_ROWS + r]);
            let finite: Vec<bool> = rows
                .par_chunks_exact(n)
                .enumerate()
                .map(|(r, row)| weight(r).is_finite() && row.iter().all(|x| x.is_finite()))
                .collect();
            let kept: Vec<usize> = (0..finite.len()).filter(|&r| finite[r]).collect();
            self.rows += kept.len() as u64;
            self.skipped += (finite.len() - kept.len()) as u64;
            self.weight += kept.iter().map(|&r| f64::from(weight(r))).sum::<f64>();
            let mut tile = vec![0.0f32; kept.len() * n];
            tile.par_chunks_exact_mut(n).zip(&kept).for_each(|(scaled, &r)| {
                let root = weight(r).max(0.0).sqrt();
                let row = &rows[r * n..(r + 1) * n];
                scaled.iter_mut().zip(row).for_each(|(scaled, x)| *scaled = x * root);
            });
            let tile = MatRef::from_row_major_slice(&tile, kept.len(), n);
            triangular::matmul(
                self.sum.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                tile.transpose(),
                BlockStructure::Rectangular,
                tile,
                BlockStructure::Rectangular,
                1.0,
                Par::rayon(0),
            );
        }
    }

    /// Rows added and rows left out.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.rows, self.skipped)
    }

    /// Trace of the mean.
    pub(crate) fn trace(&self) -> f64 {
        let sum: f64 = (0..self.len()).map(|i| f64::from(self.sum[(i, i)])).sum();
        if self.weight > 0.0 { sum / self.weight } else { 0.0 }
    }

    /// The lower triangle row by row, then weight and counts: what [`Self::from_vector`] reads.
    pub(crate) fn to_vector(&self) -> Vec<f32> {
        let mut vector = Vec::with_capacity(packed_len(self.len()));
        for i in 0..self.len() {
            vector.extend((0..=i).map(|j| self.sum[(i, j)]));
        }
        vector.extend([self.weight as f32, self.rows as f32, self.skipped as f32]);
        vector
    }

    /// A moment from its vector; `None` when it has no possible length.
    pub(crate) fn from_vector(vector: Vec<f32>) -> Option<Self> {
        let triangle = vector.len().checked_sub(TAIL)?;
        let n = (((8 * triangle + 1) as f64).sqrt() as usize - 1) / 2;
        if packed_len(n) != vector.len() {
            return None;
        }
        let entry = |i: usize, j: usize| vector[i * (i + 1) / 2 + j];
        let sum = Mat::from_fn(n, n, |i, j| if i >= j { entry(i, j) } else { 0.0 });
        let [weight, rows, skipped] = [0, 1, 2].map(|t| vector[triangle + t]);
        Some(Self { sum, weight: f64::from(weight), rows: rows as u64, skipped: skipped as u64 })
    }

    /// Diagonal of the mean.
    pub(crate) fn diagonal(&self) -> Vec<f32> {
        let scale = if self.weight > 0.0 { 1.0 / self.weight } else { 0.0 };
        let entry = |i: usize| (f64::from(self.sum[(i, i)]) * scale) as f32;
        (0..self.len()).map(entry).collect()
    }

    /// Makes it the moment of vectors whose entries are multiplied by `factor`.
    pub(crate) fn rescale(&mut self, factor: impl Fn(usize) -> f32) {
        let factors: Vec<f32> = (0..self.len()).map(factor).collect();
        for (j, column) in self.sum.col_iter_mut().enumerate() {
            column.iter_mut().zip(&factors).for_each(|(x, f)| *x *= f * factors[j]);
        }
    }

    /// `self += factor * other`, both as means.
    pub(crate) fn mix(&mut self, own: f64, other: &Self, factor: f64) {
        let share = |m: &Self, f: f64| if m.weight > 0.0 { (f / m.weight) as f32 } else { 0.0 };
        let (a, b) = (share(self, own), share(other, factor));
        let n = self.len();
        self.sum = Mat::from_fn(n, n, |i, j| a * self.sum[(i, j)] + b * other.sum[(i, j)]);
        self.weight = 1.0;
    }

    /// The mean, full and symmetric.
    pub(crate) fn mean(&self) -> Mat<f32> {
        let scale = if self.weight > 0.0 { (1.0 / self.weight) as f32 } else { 0.0 };
        let lower = |i: usize, j: usize| if i >= j { self.sum[(i, j)] } else { self.sum[(j, i)] };
        Mat::from_fn(self.len(), self.len(), |i, j| lower(i, j) * scale)
    }
}

/// Numbers after the triangle in a moment's vector.
const TAIL: usize = 3;

fn packed_len(n: usize) -> usize {
    n * (n + 1) / 2 + TAIL
}

/// Why a moment cannot steer rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// No finite activation reached the layer.
    NoActivations,
    /// The moment has an entry that is not finite.
    NotFinite,
    /// Not positive definite under any damping.
    NotPositiveDefinite,
    /// Error feedback lost against plain rounding.
    WorseThanRtn,
}

impl std::fmt::Display for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoActivations => "no activation reached the layer",
            Self::NotFinite => "an activation is not finite",
            Self::NotPositiveDefinite => "the activations' moment cannot be factored",
            Self::WorseThanRtn => "error feedback was no better",
        })
    }
}

/// A moment ready for rounding, with what was done to make it so.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    /// Position in the order of rounding -> index.
    pub(crate) order: Vec<usize>,
    /// B in the order of rounding: unit lower triangular.
    pub(crate) lower: Mat<f32>,
    /// D in the order of rounding.
    pub(crate) diagonal: Vec<f32>,
    /// Share of the mean diagonal that was added to the diagonal.
    pub(crate) damping: f64,
    /// Share by which the moment was drawn towards its diagonal.
    pub(crate) shrinkage: f64,
    /// Indices whose activations were always zero.
    pub(crate) dead: usize,
}

impl Factor {
    /// Factors a mean moment of `rows` vectors. The order keeps `group` neighbours together, as columns
    /// that share a scale must be.
    pub(crate) fn new(mean: &Mat<f32>, rows: u64, group: usize) -> Result<Self, Fallback> {
        let n = mean.nrows();
        if rows == 0 {
            return Err(Fallback::NoActivations);
        }
        let diagonal: Vec<f64> = (0..n).map(|i| f64::from(mean[(i, i)])).collect();
        if (0..n).any(|j| mean.col(j).iter().any(|x| !x.is_finite())) {
            return Err(Fallback::NotFinite);
        }
        let largest = diagonal.iter().fold(0.0f64, |m, &d| m.max(d));
        if largest <= 0.0 {
            return Err(Fallback::NoActivations);
        }
        let average = diagonal.iter().sum::<f64>() / n as f64;
        let dead = diagonal.iter().filter(|&&d| d <= 0.0).count();
        let order = importance_order(&diagonal, group);
        let shrinkage = (n as f64 / rows as f64).min(MAX_SHRINKAGE);
        for damping in DAMPING_LADDER {
            let entry = |i: usize, j: usize| {
                if i == j {
                    (diagonal[i] + damping * average).max(DIAGONAL_FLOOR * largest)
                } else {
                    f64::from(mean[(i, j)]) * (1.0 - shrinkage)
                }
            };
            // Cholesky of the reversed order: reversing its factor gives the upper unit triangle Bᵀ.
            let at = |p: usize| order[n - 1 - p];
            let reversed = Mat::from_fn(n, n, |p, q| entry(at(p), at(q)));
            let Ok(cholesky) = reversed.llt(Side::Lower) else { continue };
            let l = cholesky.L();
            let pivots: Vec<f64> = (0..n).map(|p| l[(n - 1 - p, n - 1 - p)]).collect();
            if pivots.iter().any(|p| !p.is_finite() || *p <= 0.0) {
                continue;
            }
            let lower = Mat::from_fn(n, n, |j, i| match i.cmp(&j) {
                std::cmp::Ordering::Less => (l[(n - 1 - i, n - 1 - j)] / pivots[j]) as f32,
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => 0.0,
            });
            let diagonal: Vec<f32> = pivots.iter().map(|p| (p * p) as f32).collect();
            if diagonal.iter().any(|d| !d.is_finite()) {
                return Err(Fallback::NotFinite);
            }
            return Ok(Self { order, lower, diagonal, damping, shrinkage, dead });
        }
        Err(Fallback::NotPositiveDefinite)
    }

    /// The moment that was factored, by index: damped and drawn towards its diagonal.
    pub(crate) fn conditioned(&self, mean: &Mat<f32>) -> Mat<f32> {
        let n = mean.nrows();
        let largest = (0..n).map(|i| mean[(i, i)]).fold(0.0f32, f32::max);
        let added = self.damping as f32 * (0..n).map(|i| mean[(i, i)]).sum::<f32>() / n as f32;
        let kept = 1.0 - self.shrinkage as f32;
        Mat::from_fn(n, n, |i, j| {
            if i == j {
                (mean[(i, i)] + added).max(DIAGONAL_FLOOR as f32 * largest)
            } else {
                mean[(i, j)] * kept
            }
        })
    }

    /// D by index instead of by position.
    pub(crate) fn importance(&self) -> Vec<f32> {
        let mut importance = vec![0.0; self.order.len()];
        for (&index, &d) in self.order.iter().zip(&self.diagonal) {
            importance[index] = d;
        }
        importance
    }
}

/// Most important first, so that errors of what matters can still be taken up by what follows; whole
/// groups by their most important member, and within groups likewise.
fn importance_order(diagonal: &[f64], group: usize) -> Vec<usize> {
    let descending = |a: &usize, b: &usize| diagonal[*b].total_cmp(&diagonal[*a]).then(a.cmp(b));
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    let mut groups: Vec<&mut [usize]> = order.chunks_mut(group).collect();
    groups.iter_mut().for_each(|group| group.sort_by(descending));
    groups.sort_by(|a, b| descending(&a[0], &b[0]));
    groups.into_iter().flat_map(|group| group.iter().copied()).collect()
}

#[cfg(test)]
mod tests;
