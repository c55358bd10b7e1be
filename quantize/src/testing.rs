//! Made-up matrices and moments, and what to check them against.

use faer::Mat;
use gristmill_formats::codec::{Codec, CodecId};

use crate::Recipe;
use crate::grid::RowGrid;
use crate::grid::packed::PackedGrid;
use crate::hessian::Moment;

/// A linear congruential generator (Knuth's MMIX): the same numbers in every run.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.uniform();
        random
    }

    /// In [-0.5, 0.5).
    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    /// Near enough to normal, of variance 1.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum()
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// Vectors as a layer of a network sees them: their channels are of unequal size and depend on each
/// other.
pub(crate) fn activations(count: usize, width: usize, seed: u64) -> Vec<f32> {
    const DIRECTIONS: usize = 6;
    let mut random = Random::new(seed);
    let directions: Vec<Vec<f32>> = (0..DIRECTIONS).map(|_| random.normals(width)).collect();
    let gains: Vec<f32> = random.normals(width).into_iter().map(f32::exp).collect();
    let mut all = Vec::with_capacity(count * width);
    for _ in 0..count {
        let shares = random.normals(DIRECTIONS);
        all.extend((0..width).map(|j| {
            let shared: f32 = shares.iter().zip(&directions).map(|(s, d)| s * d[j]).sum();
            gains[j] * (shared + 0.5 * random.normal())
        }));
    }
    all
}

/// The moment of [`activations`].
pub(crate) fn moment(count: usize, width: usize, seed: u64) -> Moment {
    moment_of(&activations(count, width, seed), width)
}

/// The moment of given vectors, one after the other.
pub(crate) fn moment_of(vectors: &[f32], width: usize) -> Moment {
    let mut moment = Moment::new(width);
    moment.add(vectors, None);
    moment
}

/// Every block codec and its grid.
pub(crate) fn packed_grids() -> Vec<(Codec, PackedGrid)> {
    let ids = [CodecId::Q8, CodecId::Q6, CodecId::Q5, CodecId::Q4, CodecId::Q3, CodecId::Q2];
    let with_grid = |id| {
        let codec = Recipe::new(id).codec(id);
        let grid = PackedGrid::new(&codec).expect("a block codec");
        (codec, grid)
    };
    ids.map(with_grid).into()
}

/// What rounded rows stand for, row-major.
pub(crate) fn values<G: RowGrid>(grid: &G, rows: &[G::Row], cols: usize) -> Vec<f32> {
    rows.iter().flat_map(|row| (0..cols).map(|col| grid.value(row, col))).collect()
}

/// `tr(Hₒ E Hᵢ Eᵀ)` in double precision; `output` of `None` is the identity.
pub(crate) fn exact_loss(
    weights: &[f32],
    values: &[f32],
    input: &Mat<f32>,
    output: Option<&Mat<f32>>,
) -> f64 {
    let cols = input.nrows();
    let rows = weights.len() / cols;
    let error =
        |r: usize, c: usize| f64::from(weights[r * cols + c]) - f64::from(values[r * cols + c]);
    let errors = Mat::from_fn(rows, cols, error);
    let double = |m: &Mat<f32>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]));
    let right = &errors * double(input);
    let left = output.map_or_else(|| errors.clone(), |output| double(output) * &errors);
    (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|at| left[at] * right[at]).sum()
}

/// Runs something on as many threads.
pub(crate) fn on_threads<T: Send>(threads: usize, job: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("a pool").install(job)
}

/// Bit patterns: equality that tells zeros apart and knows NaN.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
