//! How far predictions are off. Losses of single matrices are predicted to second order and from
//! independent tokens; what rounding all matrices of one role does to the model's output is measured, and
//! the ratio corrects the predictions of that role.

use gristmill_formats::Progress;
use gristmill_formats::codec::CodecId;
use gristmill_formats::source::ModelSource;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Calibration;
use super::matrix::{Moments, round_plainly};
use super::statistics::{EndStatistics, Statistics, forward_model, load_blocks};
use super::work::Work;
use crate::grid::RowGrid;
use crate::grid::packed::PackedGrid;
use crate::network::{BlockParams, Head, Linear, Matrix, embed, embed_by, forward, tensor};
use crate::recipe::Recipe;
use crate::{QuantizeError, Result};

/// Sequences of the text that are measured on.
const SEQUENCES: usize = 4;

/// The codec that matrices are rounded to: coarse enough to be measured on few tokens, fine enough for
/// the second order to hold.
const CODEC: CodecId = CodecId::Q4;

/// A correction is at most this, or its inverse: with few tokens a ratio can be off.
const MAX_CORRECTION: f64 = 4.0;

/// Where the results are kept.
const FILE: &str = "swaps.json";

/// All matrices of a role rounded plainly, and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// Part of the matrices' names, e.g. `mlp.down`.
    pub role: String,
    /// Sum of the matrices' predicted divergences, nats per token.
    pub predicted: f64,
    /// Divergence measured.
    pub measured: f64,
}

impl Swap {
    /// What predictions of the role are to be multiplied with.
    pub fn correction(&self) -> f64 {
        let ratio = self.measured / self.predicted;
        if ratio.is_finite() { ratio.clamp(1.0 / MAX_CORRECTION, MAX_CORRECTION) } else { 1.0 }
    }
}

/// The correction for a matrix; 1 where its role was not measured.
pub(crate) fn correction(swaps: &[Swap], name: &str) -> f64 {
    let swap = swaps.iter().find(|swap| role(name) == swap.role);
    swap.map_or(1.0, Swap::correction)
}

/// A name without the layer.
fn role(name: &str) -> &str {
    let inner = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    inner.map_or(name, |(_, part)| part)
}

/// Measures the swap of every role, or reads what an earlier run has measured.
pub(crate) fn measure_swaps(
    source: &dyn ModelSource,
    recipe: &Recipe,
    calibration: &Calibration,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Vec<Swap>> {
    if let Some(json) = work.read(FILE)? {
        let damaged = |_| QuantizeError::Damaged { file: FILE.into() };
        return serde_json::from_slice(&json).map_err(damaged);
    }
    let spec = source.spec();
    progress.begin("measuring swaps", spec.layers.len() as u64 + 1, "layers");
    let tokens = SEQUENCES.min(calibration.sequences()) * calibration.sequence;
    let tokens = &calibration.tokens[..tokens];
    let grid = PackedGrid::new(&recipe.codec(CODEC)).expect("a block codec");
    let mut model = embed(source, tokens)?;
    let mut runs: Vec<Run> = Vec::new();
    for layer in 0..spec.layers.len() {
        if progress.cancelled() {
            return Err(QuantizeError::Cancelled);
        }
        for block in load_blocks(source, layer)? {
            for &linear in block.linears() {
                if !runs.iter().any(|run| run.linear == linear) {
                    runs.push(Run { linear, predicted: 0.0, x: model.clone() });
                }
            }
            let statistics = Statistics::load_layer(work, layer, block.linears())?;
            let rounded: Vec<_> = (block.linears().par_iter().zip(&statistics))
                .map(|(&linear, statistics)| {
                    let weights = &block.projection(linear).expect("of this block").weight;
                    let (input, output) = (statistics.input(layer)?, statistics.output.as_ref());
                    let moments = Moments { input, output, rows: &[] };
                    Ok((linear, round_to(&grid, weights, &moments, statistics.fisher)))
                })
                .collect::<Result<_>>()?;
            for run in &mut runs {
                let own = rounded.iter().find(|(linear, _)| *linear == run.linear);
                run.pass(&block, own.map(|(_, rounded)| rounded), calibration.sequence);
            }
            forward(&block, &mut model, calibration.sequence, &mut |_, _| ());
        }
        progress.advance(1);
    }
    let head = Head::load(source)?;
    let mut swaps: Vec<Swap> = runs
        .into_iter()
        .map(|run| Swap {
            role: run.linear.part().to_owned(),
            predicted: run.predicted,
            measured: head.divergence(&run.x, &head, &model),
        })
        .collect();
    for end in EndStatistics::load(work, spec)? {
        let weights = tensor(source, &end.name)?;
        let moments = Moments { input: &end.input, output: None, rows: &end.rows };
        let (rounded, predicted) = round_to(&grid, &weights, &moments, end.input.trace());
        let role = end.name.clone();
        let measured =
            measure_end(source, &end.name, rounded, tokens, calibration.sequence, (&head, &model))?;
        swaps.push(Swap { role, predicted, measured });
    }
    progress.advance(1);
    work.write(FILE, &serde_json::to_vec(&swaps).expect("plain structs"))?;
    Ok(swaps)
}

/// The model with all matrices of one role rounded, up to some block.
struct Run {
    linear: Linear,
    predicted: f64,
    x: Matrix,
}

impl Run {
    /// Passes a block, with the role's matrix rounded where the block has one.
    fn pass(&mut self, block: &BlockParams, rounded: Option<&(Matrix, f64)>, sequence: usize) {
        let Some((weights, predicted)) = rounded else {
            return forward(block, &mut self.x, sequence, &mut |_, _| ());
        };
        self.predicted += predicted;
        let mut block = block.clone();
        block.projection_mut(self.linear).expect("of this block").weight = weights.clone();
        forward(&block, &mut self.x, sequence, &mut |_, _| ());
    }
}

/// A matrix as plain rounding stores it, and the divergence predicted.
fn round_to(
    grid: &PackedGrid,
    weights: &Matrix,
    moments: &Moments<'_>,
    fisher: f64,
) -> (Matrix, f64) {
    let (rows, report) = round_plainly(grid, weights, moments, fisher);
    let mut rounded = Matrix::zeros(weights.rows(), weights.cols());
    rounded.for_each_row(|r, row| {
        row.iter_mut().enumerate().for_each(|(j, w)| *w = grid.value(&rows[r], j));
    });
    (rounded, report.predicted_kld)
}

/// Divergence with another embedding or head; with both where they are one matrix.
fn measure_end(
    source: &dyn ModelSource,
    name: &str,
    rounded: Matrix,
    tokens: &[u32],
    sequence: usize,
    (head, model): (&Head, &Matrix),
) -> Result<f64> {
    let spec = source.spec();
    let embedded = match name {
        "embed" => {
            let row = |token: usize, out: &mut [f32]| out.copy_from_slice(rounded.row(token));
            let mut x = embed_by(spec, tokens, row);
            forward_model(source, &mut x, sequence)?;
            Some(x)
        }
        _ => None,
    };
    let x = embedded.as_ref().unwrap_or(model);
    if name == spec.head_tensor() {
        let swapped = Head { norm: head.norm.clone(), weight: rounded, softcap: head.softcap };
        return Ok(swapped.divergence(x, head, model));
    }
    Ok(head.divergence(x, head, model))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_names_without_layers() {
        assert_eq!(role("layers.12.mlp.down"), "mlp.down");
        assert_eq!(role("layers.3.attn.q"), "attn.q");
        assert_eq!(role("embed"), "embed");
    }

    #[test]
    fn corrections_are_ratios_within_reason() {
        let swap = |predicted, measured| Swap { role: "mlp.up".into(), predicted, measured };
        let swaps = [swap(0.01, 0.015)];
        assert!((correction(&swaps, "layers.0.mlp.up") - 1.5).abs() < 1e-12);
        assert_eq!(correction(&swaps, "layers.0.mlp.down").to_bits(), 1f64.to_bits());
        assert_eq!(swap(0.01, 1.0).correction().to_bits(), MAX_CORRECTION.to_bits());
        assert_eq!(swap(1.0, 1e-9).correction().to_bits(), (1.0 / MAX_CORRECTION).to_bits());
        for (predicted, measured) in [(0.0, 0.0), (0.0, 0.1), (f64::NAN, 0.1)] {
            assert_eq!(swap(predicted, measured).correction().to_bits(), 1f64.to_bits());
        }
    }
}
