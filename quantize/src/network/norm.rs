//! Root-mean-square norm.

use rayon::prelude::*;

use super::Matrix;
use super::vecmath::{dot, vectorized};

/// Rows that one task takes at least.
const MIN_ROWS: usize = 32;

/// `x / sqrt(mean(x²) + eps) * gain` over pieces as long as the gain: whole rows, or the heads in them.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// As it is multiplied: an offset of one is included.
    pub gain: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Norm {
    #[inline(always)]
    fn factor(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    /// The norm of `x`.
    pub(super) fn forward(&self, x: &Matrix) -> Matrix {
        let mut y = Matrix::unset(x.rows(), x.cols());
        let n = self.gain.len();
        let rows = y.data_mut().par_chunks_exact_mut(n).zip(x.data().par_chunks_exact(n));
        rows.with_min_len(MIN_ROWS).for_each(|(y, x)| {
            vectorized(|| {
                let factor = self.factor(x);
                for ((y, x), gain) in y.iter_mut().zip(x).zip(&self.gain) {
                    *y = x * factor * gain;
                }
            });
        });
        y
    }

    /// The gradient of `x` from that of its norm:
    /// `dx = f (g dy) - x f³ mean(g dy x)`, `f = 1 / sqrt(mean(x²) + eps)`.
    pub(super) fn backward(&self, x: &Matrix, dy: &Matrix) -> Matrix {
        let mut dx = Matrix::unset(x.rows(), x.cols());
        let n = self.gain.len();
        let rows = dx.data_mut().par_chunks_exact_mut(n);
        let rows = rows.zip(x.data().par_chunks_exact(n)).zip(dy.data().par_chunks_exact(n));
        rows.with_min_len(MIN_ROWS).for_each(|((dx, x), dy)| {
            vectorized(|| {
                let factor = self.factor(x);
                for ((dx, dy), gain) in dx.iter_mut().zip(dy).zip(&self.gain) {
                    *dx = dy * gain * factor;
                }
                let along = dot(dx, x) / n as f32 * factor * factor;
                dx.iter_mut().zip(x).for_each(|(dx, x)| *dx -= along * x);
            });
        });
        dx
    }
}
