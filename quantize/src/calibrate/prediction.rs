//! What each codec would cost each matrix, from the first pass alone.
//!
//! With error feedback the loss of a matrix is `½ Σ Cᵣ Dⱼ e²ᵣⱼ`, where e are the rounding errors that
//! are left when everything before has been made up for ([`crate::ldlq`]). Those are distributed as the
//! errors of plain rounding, so plain rounding of some rows predicts the loss of any codec.

use std::collections::HashMap;

use gristmill_formats::Progress;
use gristmill_formats::codec::{BLOCK_COLS, Codec, CodecId};
use gristmill_formats::model::layer_tensor;
use gristmill_formats::source::ModelSource;
use rayon::prelude::*;

use super::statistics::{EndStatistics, Statistics, load_blocks};
use super::work::Work;
use crate::allocate::Candidate;
use crate::grid::RowGrid;
use crate::grid::packed::PackedGrid;
use crate::hessian::{Factor, Moment};
use crate::ldlq::round_nearest;
use crate::network::{Matrix, tensor};
use crate::plan::TensorPlan;
use crate::recipe::Recipe;
use crate::{QuantizeError, Result};

/// Rows of a matrix that are rounded for a prediction.
const SAMPLED_ROWS: usize = 64;

/// The codecs that a matrix may get.
const CODECS: [CodecId; 6] =
    [CodecId::Q8, CodecId::Q6, CodecId::Q5, CodecId::Q4, CodecId::Q3, CodecId::Q2];

/// Candidates of every matrix of `plan` that is free to choose, in the order of the plan.
pub(crate) fn predict(
    source: &dyn ModelSource,
    recipe: &Recipe,
    plan: &[TensorPlan],
    work: &Work,
    progress: &dyn Progress,
) -> Result<Vec<(String, Vec<Candidate>)>> {
    let free: Vec<&TensorPlan> = plan.iter().filter(|t| recipe.is_free(t)).collect();
    let is_free = |name: &str| free.iter().any(|t| t.name == name);
    progress.begin("comparing codecs", free.len() as u64, "matrices");
    let codecs = CODECS.map(|id| recipe.codec(id));
    let mut found = HashMap::new();
    for end in EndStatistics::load(work, source.spec())? {
        if !is_free(&end.name) {
            continue;
        }
        let weights = tensor(source, &end.name)?;
        let rows = Rows::sample(&end.rows, weights.rows());
        let candidates = candidates(&codecs, &weights, &end.input, &rows, end.input.trace());
        found.insert(end.name, candidates);
        progress.advance(1);
    }
    for layer in 0..source.spec().layers.len() {
        if progress.cancelled() {
            return Err(QuantizeError::Cancelled);
        }
        for block in load_blocks(source, layer)? {
            let linears: Vec<_> = block.linears().to_vec();
            let statistics = Statistics::load_layer(work, layer, &linears)?;
            let jobs: Vec<_> = linears.iter().zip(&statistics).collect();
            let results: Vec<_> = jobs
                .into_par_iter()
                .filter(|(linear, _)| is_free(&layer_tensor(layer, linear.part())))
                .map(|(&linear, s)| {
                    let weights = &block.projection(linear).expect("a layer of this block").weight;
                    let factor = s
                        .output
                        .as_ref()
                        .and_then(|moment| Factor::new(&moment.mean(), moment.counts().0, 1).ok());
                    let trace = s.output.as_ref().map_or(1.0, Moment::trace);
                    let costs = factor.map_or_else(Vec::new, |f| f.importance());
                    let mut rows = Rows::sample(&costs, weights.rows());
                    rows.scale /= trace;
                    let input = s.input(layer)?;
                    let candidates = candidates(&codecs, weights, input, &rows, s.fisher);
                    progress.advance(1);
                    Ok((layer_tensor(layer, linear.part()), candidates))
                })
                .collect::<Result<_>>()?;
            found.extend(results);
        }
    }
    let candidates = |t: &&TensorPlan| Some((t.name.clone(), found.remove(&t.name)?));
    Ok(free.iter().map(candidates).collect::<Option<Vec<_>>>().unwrap_or_default())
}

/// Rows to look at, and what the sum over them is multiplied with to stand for all.
struct Rows {
    indices: Vec<usize>,
    scale: f64,
}

impl Rows {
    /// Rows at equal distances in the running sum of `costs`, so that each stands for the same cost;
    /// evenly spread rows when there are no costs.
    fn sample(costs: &[f32], rows: usize) -> Self {
        let count = SAMPLED_ROWS.min(rows);
        let total: f64 = costs.iter().map(|&c| f64::from(c)).sum();
        if costs.len() != rows || total <= 0.0 {
            let indices = (0..count).map(|i| i * rows / count).collect();
            return Self { indices, scale: 1.0 / count as f64 };
        }
        let (mut indices, mut sum, mut next) = (Vec::with_capacity(count), 0.0, 0.5);
        for (row, &cost) in costs.iter().enumerate() {
            sum += f64::from(cost) / total * count as f64;
            while next < sum && indices.len() < count {
                indices.push(row);
                next += 1.0;
            }
        }
        Self { scale: total / indices.len().max(1) as f64, indices }
    }
}

/// Predicted losses of a matrix in each codec.
fn candidates(
    codecs: &[Codec],
    weights: &Matrix,
    input: &Moment,
    rows: &Rows,
    fisher: f64,
) -> Vec<Candidate> {
    let cols = weights.cols();
    let importance = match Factor::new(&input.mean(), input.counts().0.max(1), BLOCK_COLS) {
        Ok(factor) => factor.importance(),
        Err(_) => vec![1.0; cols],
    };
    let trace = input.trace();
    let scale = if trace > 0.0 { 0.5 * fisher * rows.scale / trace } else { 0.0 };
    let sample: Vec<f32> = rows.indices.iter().flat_map(|&r| weights.row(r)).copied().collect();
    let shape = [weights.rows() as u64, cols as u64];
    let candidate = |codec: &Codec| {
        let grid = PackedGrid::new(codec)?;
        let rounded = round_nearest(&grid, &sample, cols, &importance);
        let mut loss = 0.0;
        for (row, x) in rounded.iter().zip(sample.chunks_exact(cols)) {
            for (j, (&x, &d)) in x.iter().zip(&importance).enumerate() {
                loss += f64::from(d) * f64::from(x - grid.value(row, j)).powi(2);
            }
        }
        let bytes = codec.tensor_bytes(&shape).ok()?;
        Some(Candidate { codec: codec.id(), bytes, loss: scale * loss })
    };
    codecs.iter().filter_map(candidate).collect()
}
