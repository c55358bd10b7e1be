//! The second pass: matrices are rounded block by block, each on what the rounded blocks before it
//! produce.

use std::collections::HashMap;

use gristmill_formats::Progress;
use gristmill_formats::model::layer_tensor;
use gristmill_formats::source::ModelSource;
use rayon::prelude::*;

use super::matrix::{Moments, RoundedTensor};
use super::statistics::{EndStatistics, Statistics, forward_batches, load_blocks};
use super::target::Target;
use super::work::Work;
use super::{Calibration, batches};
use crate::fold::FoldedSource;
use crate::hessian::Moment;
use crate::network::{BlockParams, Linear, Matrix, embed_by, observe, tensor};
use crate::{QuantizeError, Result};

/// Rounds the matrices that `target` has a format for, into the work directory.
pub(crate) fn round_model(
    source: &FoldedSource<'_>,
    target: &dyn Target,
    calibration: &Calibration,
    work: &Work,
    progress: &dyn Progress,
) -> Result<HashMap<String, RoundedTensor>> {
    let tensors = source.spec().tensors();
    let matrices = tensors.iter().filter(|t| target.rounds(&t.name));
    let weights = matrices.map(|t| t.shape.iter().product::<u64>()).sum();
    progress.begin("rounding", weights, "weights");
    let mut pass = Pass { source, target, work, progress, done: HashMap::new() };
    pass.ends()?;
    let mut x = pass.embed(&calibration.tokens)?;
    for layer in 0..source.spec().layers.len() {
        for mut block in load_blocks(source, layer)? {
            pass.block(layer, &mut block, &x, calibration)?;
            forward_batches(&block, &mut x, calibration.sequence);
        }
    }
    Ok(pass.done)
}

struct Pass<'a> {
    source: &'a FoldedSource<'a>,
    target: &'a dyn Target,
    work: &'a Work,
    progress: &'a dyn Progress,
    done: HashMap<String, RoundedTensor>,
}

impl Pass<'_> {
    /// The embedding and the output head, on the statistics of the model as it is.
    fn ends(&mut self) -> Result<()> {
        for end in EndStatistics::load(self.work, self.source.spec())? {
            if !self.target.rounds(&end.name) || self.is_finished(&end.name)? {
                continue;
            }
            let weights = tensor(self.source, &end.name)?;
            let moments = Moments { input: &end.input, output: None, rows: &end.rows };
            let (bytes, report) =
                self.target.round(&end.name, &weights, &moments, end.input.trace());
            self.keep(&end.name, weights.data().len(), &bytes, report)?;
        }
        Ok(())
    }

    /// Embedding rows of tokens as rounded.
    fn embed(&self, tokens: &[u32]) -> Result<Matrix> {
        let Some(bytes) = self.work.read(&packed_file("embed"))? else {
            return crate::network::embed(self.source, tokens);
        };
        Ok(embed_by(self.source.spec(), tokens, |token, row| {
            self.target.decode_row("embed", &bytes, token, row);
        }))
    }

    /// Rounds a block's matrices and puts them into it.
    fn block(
        &mut self,
        layer: usize,
        block: &mut BlockParams,
        x: &Matrix,
        calibration: &Calibration,
    ) -> Result<()> {
        let name = |l: Linear| layer_tensor(layer, l.part());
        let mut wanted: Vec<Linear> = Vec::new();
        for &linear in block.linears() {
            if self.target.rounds(&name(linear)) && !self.is_finished(&name(linear))? {
                wanted.push(linear);
            }
        }
        if !wanted.is_empty() {
            if self.progress.cancelled() {
                return Err(QuantizeError::Cancelled);
            }
            let mut statistics = Statistics::load_layer(self.work, layer, &wanted)?;
            for (&linear, statistics) in wanted.iter().zip(&mut statistics) {
                statistics.fold(self.source.folds(), &name(linear));
            }
            let inputs = capture(block, x, calibration, &wanted, &statistics);
            let jobs: Vec<_> = wanted.iter().zip(inputs).zip(statistics).collect();
            let rounded: Vec<_> = jobs
                .into_par_iter()
                .map(|((&linear, input), statistics)| {
                    let weights = &block.projection(linear).expect("a layer of this block").weight;
                    let output = statistics.output.as_ref();
                    let moments = Moments { input: &input, output, rows: &[] };
                    let name = name(linear);
                    let (bytes, mut report) =
                        self.target.round(&name, weights, &moments, statistics.fisher);
                    if self.source.folds().columns(&name).is_some() {
                        report.method = report.method.with_scales();
                    }
                    (name, weights.data().len(), bytes, report)
                })
                .collect();
            for (name, weights, bytes, report) in rounded {
                self.keep(&name, weights, &bytes, report)?;
            }
        }
        for &linear in block.linears() {
            let name = name(linear);
            if let Some(bytes) = self.work.read(&packed_file(&name))? {
                let projection = block.projection_mut(linear).expect("a layer of this block");
                projection.weight.for_each_row(|r, row| {
                    self.target.decode_row(&name, &bytes, r, row);
                });
            }
        }
        Ok(())
    }

    /// Whether an earlier run has rounded a matrix; what it reported is taken over.
    fn is_finished(&mut self, name: &str) -> Result<bool> {
        if !self.work.has(&packed_file(name)) {
            return Ok(false);
        }
        let damaged = || QuantizeError::Damaged { file: report_file(name) };
        let report = self.work.read(&report_file(name))?.ok_or_else(damaged)?;
        let report = serde_json::from_slice(&report).map_err(|_| damaged())?;
        self.done.insert(name.into(), report);
        Ok(true)
    }

    fn keep(
        &mut self,
        name: &str,
        weights: usize,
        bytes: &[u8],
        report: RoundedTensor,
    ) -> Result<()> {
        // The report goes first: what has its bytes is finished.
        let json = serde_json::to_vec(&report).expect("a plain struct");
        self.work.write(&report_file(name), &json)?;
        self.work.write(&packed_file(name), bytes)?;
        if let Some(fallback) = report.fallback {
            self.progress.note(&format!("{name}: rounded plainly: {fallback}"));
        }
        self.progress.advance(weights as u64);
        self.done.insert(name.into(), report);
        Ok(())
    }
}

/// File of a rounded matrix.
pub(crate) fn packed_file(name: &str) -> String {
    format!("{name}.packed")
}

fn report_file(name: &str) -> String {
    format!("{name}.json")
}

/// Moments of the inputs of some layers of a block, tokens weighted by their gradients' energy.
fn capture(
    block: &BlockParams,
    x: &Matrix,
    calibration: &Calibration,
    wanted: &[Linear],
    statistics: &[Statistics],
) -> Vec<Moment> {
    let weights = |&l: &Linear| &block.projection(l).expect("a layer of this block").weight;
    let mut moments: Vec<Moment> = wanted.iter().map(|l| Moment::new(weights(l).cols())).collect();
    for batch in batches(x.rows(), calibration.sequence) {
        let part = x.slice(batch.clone());
        observe(block, &part, calibration.sequence, &mut |input, matrix| {
            for (i, linear) in wanted.iter().enumerate() {
                if linear.input() == input {
                    let energy = &statistics[i].energy[batch.clone()];
                    moments[i].add(matrix.data(), Some(energy));
                }
            }
        });
    }
    moments
}
