//! Scales that make the channels that matter easier to round (AWQ, Lin et al. 2023).
//!
//! A channel's columns multiplied by s are rounded s times as finely against its neighbours in the
//! block, and dividing whoever produces the channel by s leaves the model's function as it was
//! ([`crate::fold`]). How fine each channel should be is guessed from the size x̄ of its activations and
//! the size w̄ of its weights, as `s = x̄^r / w̄^(1-r)`, with one exponent r per pair: the one of a grid
//! with which plain rounding loses least. Not to scale at all is among the candidates.
//!
//! The first pass keeps second moments and no means, so x̄ is the root of the moment's diagonal instead
//! of the mean of magnitudes. The loss is `tr(E Hᵢ Eᵀ)` with rows weighed by the diagonal of Hₒ, E being
//! the rounding error mapped back to the unscaled matrix. AWQ's search for clipping thresholds has no
//! counterpart here: the scales of all blocks are searched in any case ([`crate::rtn`]).

use faer::Mat;
use gristmill_formats::Progress;
use gristmill_formats::codec::BLOCK_COLS;
use gristmill_formats::fold::FoldPair;
use gristmill_formats::model::layer_tensor;
use gristmill_formats::source::ModelSource;
use rayon::prelude::*;

use crate::calibrate::{PackedTarget, Statistics, Work, load_blocks};
use crate::fold::Folds;
use crate::grid::RowGrid;
use crate::grid::packed::PackedGrid;
use crate::hessian::Factor;
use crate::ldlq::{Left, loss, round_matrix, round_nearest};
use crate::network::{Linear, Matrix};
use crate::{QuantizeError, Result};

/// Exponents: `0, 1/20, … 19/20`, as in the authors' search.
const EXPONENTS: usize = 20;

/// Rows of a matrix that candidates are compared on; the winner has to win on all.
const SAMPLED_ROWS: usize = 128;

/// Keeps scales of channels without weights or activations within reason.
const SMALLEST: f32 = 1e-4;

/// What scales have to improve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judge {
    /// Plain rounding.
    Plain,
    /// Whichever is better of plain rounding and error feedback, with and without the scales.
    Best,
}

/// Searches the scales of all foldable pairs for the formats of `target`, layer by layer from the
/// statistics in the work directory, where the scales are kept too.
pub(crate) fn search_scales(
    source: &dyn ModelSource,
    target: &PackedTarget,
    work: &Work,
    judge: Judge,
    progress: &dyn Progress,
) -> Result<Folds> {
    let spec = source.spec();
    let layers = 0..spec.layers.len();
    let pairs: Vec<Vec<FoldPair>> = layers.map(|layer| spec.fold_pairs(layer)).collect();
    let count: usize = pairs.iter().map(Vec::len).sum();
    progress.begin("searching scales", count as u64, "pairs");
    let mut folds = Folds::default();
    for (layer, pairs) in pairs.iter().enumerate() {
        if progress.cancelled() {
            return Err(QuantizeError::Cancelled);
        }
        let file = layer_tensor(layer, "scales");
        if work.has(&file) {
            progress.advance(pairs.len() as u64);
        } else {
            let found = search_layer(source, target, work, judge, (layer, pairs), progress)?;
            work.write_vectors(&file, &found)?;
        }
        let damaged = || QuantizeError::Damaged { file: file.clone() };
        let mut scales = work.read_vectors(&file)?.ok_or_else(damaged)?;
        for pair in pairs {
            // Pairs that stay as they are have no scales.
            if let Some(scales) = scales.take(pair.producer.name()) {
                if scales.len() != pair.channels {
                    return Err(damaged());
                }
                folds.add(pair, &scales);
            }
        }
    }
    Ok(folds)
}

/// Scales of one layer's pairs, by the pairs' names.
fn search_layer(
    source: &dyn ModelSource,
    target: &PackedTarget,
    work: &Work,
    judge: Judge,
    (layer, pairs): (usize, &[FoldPair]),
    progress: &dyn Progress,
) -> Result<Vec<(String, Vec<f32>)>> {
    let blocks = load_blocks(source, layer)?;
    let linears = blocks.iter().flat_map(|b| b.linears().iter().map(move |&l| (l, b)));
    let (linears, weights): (Vec<Linear>, Vec<&Matrix>) = linears
        .map(|(l, block)| (l, &block.projection(l).expect("a layer of this block").weight))
        .unzip();
    let statistics = Statistics::load_layer(work, layer, &linears)?;
    let consumer = |name: &String| {
        let at = linears.iter().position(|l| layer_tensor(layer, l.part()) == *name)?;
        Consumer::new(target.grid(name)?, weights[at], &statistics[at])
    };
    let found: Vec<_> = pairs
        .par_iter()
        .map(|pair| {
            let consumers: Vec<_> = pair.consumers.iter().filter_map(consumer).collect();
            let scales = search(pair, &consumers, judge);
            progress.advance(1);
            Some((pair.producer.name().to_owned(), scales?))
        })
        .collect();
    Ok(found.into_iter().flatten().collect())
}

/// A matrix that reads the channels of a pair.
struct Consumer<'a> {
    grid: PackedGrid,
    weights: &'a Matrix,
    /// Hᵢ.
    input: Mat<f32>,
    /// Tokens that it is from.
    tokens: u64,
    /// Divergence per squared output error of each row.
    rows: Vec<f32>,
}

impl<'a> Consumer<'a> {
    /// `None` when the statistics cannot steer anything.
    fn new(grid: PackedGrid, weights: &'a Matrix, statistics: &Statistics) -> Option<Self> {
        let moment = statistics.input.as_ref()?;
        let trace = moment.trace();
        if !(trace.is_finite() && trace > 0.0) {
            return None;
        }
        let equal = || vec![1.0; weights.rows()];
        let mut rows = statistics.output.as_ref().map_or_else(equal, |moment| moment.diagonal());
        let total = trace * rows.iter().map(|&o| f64::from(o)).sum::<f64>();
        let scale = (0.5 * statistics.fisher / total) as f32;
        rows.iter_mut().for_each(|o| *o *= scale);
        let (input, tokens) = (moment.mean(), moment.counts().0);
        let usable = rows.iter().all(|o| o.is_finite() && *o >= 0.0);
        usable.then_some(Self { grid, weights, input, tokens, rows })
    }

    /// Share of each column in the energy of the inputs.
    fn energies(&self) -> Vec<f64> {
        let energies = (0..self.weights.cols()).map(|j| f64::from(self.input[(j, j)]));
        let energies: Vec<f64> = energies.collect();
        let total: f64 = energies.iter().sum();
        energies.into_iter().map(|e| e / total).collect()
    }

    /// Mean of each column's magnitudes, relative to the largest of their blocks.
    fn magnitudes(&self) -> Vec<f64> {
        let mut sums = vec![0.0f64; self.weights.cols()];
        for row in 0..self.weights.rows() {
            let blocks = self.weights.row(row).chunks(BLOCK_COLS);
            for (block, sums) in blocks.zip(sums.chunks_mut(BLOCK_COLS)) {
                let largest = block.iter().fold(f32::MIN_POSITIVE, |m, w| m.max(w.abs()));
                sums.iter_mut().zip(block).for_each(|(s, w)| *s += f64::from(w.abs() / largest));
            }
        }
        sums.into_iter().map(|s| s / self.weights.rows() as f64).collect()
    }

    /// Rows at equal distances.
    fn sample(&self) -> Vec<usize> {
        let (count, rows) = (SAMPLED_ROWS.min(self.weights.rows()), self.weights.rows());
        (0..count).map(|i| i * rows / count).collect()
    }

    /// What rounding some rows costs with the columns multiplied by `factors`.
    fn cost(&self, rows: &[usize], factors: &[f32], judge: Judge) -> f64 {
        let cols = factors.len();
        let row = |&r: &usize| self.weights.row(r).iter().zip(factors).map(|(w, s)| w * s);
        let weights: Vec<f32> = rows.iter().flat_map(row).collect();
        let left: Vec<f32> = rows.iter().map(|&r| self.rows[r]).collect();
        // The moment of inputs divided by the factors maps errors back.
        let entry = |i: usize, j: usize| self.input[(i, j)] / factors[i] / factors[j];
        let input = Mat::from_fn(cols, cols, entry);
        let importance: Vec<f32> = (0..cols).map(|j| input[(j, j)].min(f32::MAX)).collect();
        let loss =
            |rounded: &[_]| loss(&self.grid, rounded, &weights, cols, &input, Left::Rows(&left));
        let plain = loss(&round_nearest(&self.grid, &weights, cols, &importance));
        if judge == Judge::Plain {
            return plain;
        }
        match Factor::new(&input, self.tokens, PackedGrid::GROUP) {
            Ok(factor) => plain.min(loss(&round_matrix(&self.grid, &weights, cols, &factor, None))),
            Err(_) => plain,
        }
    }
}

/// The best scales of a pair's channels; `None` when none are better than no scales.
fn search(pair: &FoldPair, consumers: &[Consumer<'_>], judge: Judge) -> Option<Vec<f32>> {
    let activations: Vec<f64> = by_channel(pair, consumers.iter().map(Consumer::energies))
        .into_iter()
        .map(f64::sqrt)
        .collect();
    let magnitudes = by_channel(pair, consumers.iter().map(Consumer::magnitudes));
    let cost = |scales: &[f32], judge: Judge, sampled: bool| -> f64 {
        let factors: Vec<f32> = (0..pair.columns()).map(|c| scales[pair.channel(c)]).collect();
        let costs = consumers.par_iter().map(|consumer| {
            let all = || (0..consumer.weights.rows()).collect();
            let rows = if sampled { consumer.sample() } else { all() };
            consumer.cost(&rows, &factors, judge)
        });
        // In order, so that the sum does not depend on the threads.
        costs.collect::<Vec<_>>().iter().sum()
    };
    let none = vec![1.0; pair.channels];
    let mut best = (cost(&none, Judge::Plain, true), None);
    for step in 0..EXPONENTS {
        let scales = scales(&activations, &magnitudes, step as f64 / EXPONENTS as f64);
        let cost = cost(&scales, Judge::Plain, true);
        if cost < best.0 {
            best = (cost, Some(scales));
        }
    }
    let scales = best.1?;
    // Error feedback costs too much to be tried on all rows.
    let sampled = judge == Judge::Best;
    (cost(&scales, judge, sampled) < cost(&none, judge, sampled)).then_some(scales)
}

/// Means over the consumers and over the columns that share a channel.
fn by_channel(pair: &FoldPair, columns: impl Iterator<Item = Vec<f64>>) -> Vec<f64> {
    let (mut sums, mut count) = (vec![0.0; pair.channels], 0);
    for values in columns {
        count += pair.copies;
        values.iter().enumerate().for_each(|(c, x)| sums[pair.channel(c)] += x);
    }
    sums.into_iter().map(|s| s / f64::from(count.max(1) as u32)).collect()
}

/// `x̄^r / w̄^(1-r)`, the largest as far above one as the smallest is below.
fn scales(activations: &[f64], magnitudes: &[f64], r: f64) -> Vec<f32> {
    let smallest = f64::from(SMALLEST);
    let largest = activations.iter().fold(f64::MIN_POSITIVE, |m, &x| m.max(x));
    let pairs = activations.iter().zip(magnitudes);
    let scales: Vec<f64> = pairs
        .map(|(x, w)| ((x / largest).powf(r) / (w.powf(1.0 - r) + smallest)).max(smallest))
        .collect();
    let (low, high) =
        scales.iter().fold((f64::INFINITY, 0.0f64), |(low, high), &s| (low.min(s), high.max(s)));
    scales.into_iter().map(|s| (s / (low * high).sqrt()) as f32).collect()
}

#[cfg(test)]
mod tests;
