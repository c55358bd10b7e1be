//! The first pass: moments of every linear layer of the model as it is.

use std::collections::HashMap;

use gristmill_formats::Progress;
use gristmill_formats::model::{ModelSpec, layer_tensor};
use gristmill_formats::source::ModelSource;
use half::bf16;

use super::work::{Vectors, Work};
use super::{Calibration, batches};
use crate::fold::Folds;
use crate::hessian::Moment;
use crate::network::{BlockParams, Head, Linear, Matrix, backward, embed, forward};
use crate::recipe::Objective;
use crate::{QuantizeError, Result};

/// Sequences whose weight gradients are computed.
const GRADIENT_SEQUENCES: usize = 8;

/// Seed of the labels that the Fisher information is sampled with.
const LABEL_SEED: u64 = 0x6772_6973_746d;

/// Energies above this quantile are cut to it: a few tokens must not be all that counts.
const ENERGY_QUANTILE: f64 = 0.999;

/// File of the head's and the embedding's statistics.
const ENDS_FILE: &str = "ends.moments";

/// What the first pass knows of one matrix.
#[derive(Debug)]
pub(crate) struct Statistics {
    /// Inputs, weighted by the energy of the output's gradient; `None` where they are not wanted.
    pub(crate) input: Option<Moment>,
    /// Gradients of the output, weighted by the energy of the input; `None` where rows are taken as
    /// independent.
    pub(crate) output: Option<Moment>,
    /// Energy of the output's gradient, per token.
    pub(crate) energy: Vec<f32>,
    /// Trace of the Fisher information per token: mean energy of the weights' gradient. Gradients of a
    /// sequence's tokens add up coherently, so this is more than the product of the moments' traces; it
    /// is what makes predicted losses of different layers comparable.
    pub(crate) fisher: f64,
    /// Mean squared gradient per row, where there is no `output`.
    pub(crate) row_energy: Vec<f32>,
}

/// What is to be collected.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) objective: Objective,
    /// Whether moments of the inputs of the model as it is are needed too. Rounding takes those behind
    /// blocks already rounded.
    pub(crate) inputs: bool,
}

/// Collects the statistics of all matrices into the work directory.
pub(crate) fn collect(
    source: &dyn ModelSource,
    calibration: &Calibration,
    wanted: Wanted,
    work: &Work,
    progress: &dyn Progress,
) -> Result<()> {
    let layers = source.spec().layers.len();
    if work.has(ENDS_FILE) {
        return Ok(());
    }
    let (tokens, sequence) = (calibration.tokens.len(), calibration.sequence);
    progress.begin("calibrating", (2 * layers + 1) as u64 * tokens as u64, "token layers");
    let check = || if progress.cancelled() { Err(QuantizeError::Cancelled) } else { Ok(()) };

    let stride = calibration.sequences().div_ceil(GRADIENT_SEQUENCES);
    let mut x = embed(source, &calibration.tokens)?;
    let mut checkpoints = Vec::with_capacity(layers);
    for layer in 0..layers {
        check()?;
        checkpoints.push(Checkpoint::of(&x));
        for block in load_blocks(source, layer)? {
            forward_batches(&block, &mut x, sequence);
        }
        progress.advance(tokens as u64);
    }

    let head = Head::load(source)?;
    let mut ends = Ends::new(&head, tokens, wanted.objective);
    let mut gradient = Matrix::zeros(tokens, x.cols());
    for batch in batches(tokens, sequence) {
        check()?;
        let part = x.slice(batch.clone());
        let seed = LABEL_SEED.wrapping_add(batch.start as u64);
        let d = head.sampled_loss_backward(&part, seed, &mut |input, d| ends.add(input, d));
        put(&mut gradient, batch.start, &d);
        progress.advance(batch.len() as u64);
    }
    drop(head);

    for layer in (0..layers).rev() {
        check()?;
        let blocks = load_blocks(source, layer)?;
        let stream = checkpoints.pop().expect("one checkpoint per layer").restore(x.cols());
        let mut collectors = HashMap::new();
        for batch in batches(tokens, sequence) {
            let mut inputs = vec![stream.slice(batch.clone())];
            for block in &blocks[..blocks.len() - 1] {
                let mut next = inputs[inputs.len() - 1].clone();
                forward(block, &mut next, sequence, &mut |_, _| ());
                inputs.push(next);
            }
            let mut d = gradient.slice(batch.clone());
            for (block, x) in blocks.iter().zip(&inputs).rev() {
                backward(block, x, &mut d, sequence, &mut |linear, input, d_output| {
                    let collector = collectors.entry(linear).or_insert_with(|| {
                        Collector::new(input.cols(), d_output.cols(), stride, wanted)
                    });
                    collector.add(input, d_output, sequence);
                });
            }
            put(&mut gradient, batch.start, &d);
            progress.advance(batch.len() as u64);
        }
        let vectors = collectors.into_iter().flat_map(|(linear, collector)| {
            collector
                .vectors()
                .into_iter()
                .map(move |(name, v)| (format!("{}.{name}", linear.part()), v))
        });
        work.write_vectors(&layer_file(layer), &vectors.collect::<Vec<_>>())?;
    }
    ends.add_embedding(gradient, source.spec().embedding_scale);
    work.write_vectors(ENDS_FILE, &ends.vectors())
}

impl Statistics {
    /// Reads those of one layer's matrix.
    pub(crate) fn load_layer(work: &Work, layer: usize, linears: &[Linear]) -> Result<Vec<Self>> {
        let missing = || QuantizeError::Damaged { file: layer_file(layer) };
        let mut vectors = work.read_vectors(&layer_file(layer))?.ok_or_else(missing)?;
        linears.iter().map(|l| Self::take(&mut vectors, l.part()).ok_or_else(missing)).collect()
    }

    /// Turns them into those of a folded matrix: inputs are divided by the factors on its columns,
    /// gradients of outputs multiplied by the divisors of its rows. Exact for the moments but for the
    /// energies that tokens are weighed by, of which only the sums over all channels are known: tokens
    /// keep their weights. The Fisher information goes with the moments whose product it is.
    pub(crate) fn fold(&mut self, folds: &Folds, name: &str) {
        if let (Some(factors), Some(input)) = (folds.columns(name), &mut self.input) {
            let before = input.trace();
            input.rescale(|j| 1.0 / factors[j]);
            self.fisher *= ratio(input.trace(), before);
        }
        if let (Some(divisors), Some(output)) = (folds.rows(name), &mut self.output) {
            let before = output.trace();
            output.rescale(|r| divisors[r]);
            self.fisher *= ratio(output.trace(), before);
        }
    }

    /// Moment of the inputs, where it was wanted.
    pub(crate) fn input(&self, layer: usize) -> Result<&Moment> {
        let missing = || QuantizeError::Damaged { file: layer_file(layer) };
        self.input.as_ref().ok_or_else(missing)
    }

    fn take(vectors: &mut Vectors, part: &str) -> Option<Self> {
        let mut take = |name: &str| vectors.take(&format!("{part}.{name}"));
        Some(Self {
            input: take("input").and_then(Moment::from_vector),
            output: take("output").and_then(Moment::from_vector),
            energy: take("energy")?,
            fisher: f64::from(*take("fisher")?.first()?),
            row_energy: take("row_energy").unwrap_or_default(),
        })
    }
}

/// 1 where there is nothing to compare with.
fn ratio(after: f64, before: f64) -> f64 {
    if before > 0.0 { after / before } else { 1.0 }
}

/// What the first pass knows of the embedding or the output head. Their rows are many and nearly
/// independent, so rows have weights instead of a moment.
#[derive(Debug)]
pub(crate) struct EndStatistics {
    /// Canonical name.
    pub(crate) name: String,
    /// Moment of all uses of the matrix; its trace is that of the Fisher information per token.
    pub(crate) input: Moment,
    /// Share of each row in the Fisher information; empty when not known.
    pub(crate) rows: Vec<f32>,
}

impl EndStatistics {
    /// Reads those of the embedding and, where it is another matrix, of the output head.
    pub(crate) fn load(work: &Work, spec: &ModelSpec) -> Result<Vec<Self>> {
        let missing = || QuantizeError::Damaged { file: ENDS_FILE.into() };
        let mut vectors = work.read_vectors(ENDS_FILE)?.ok_or_else(missing)?;
        let embed = vectors.take("embed").and_then(Moment::from_vector).ok_or_else(missing)?;
        let head = Statistics::take(&mut vectors, "head").ok_or_else(missing)?;
        let total: f32 = head.row_energy.iter().sum();
        let rows = head.row_energy.iter().map(|e| e / total).collect();
        let mut input = head.input.ok_or_else(missing)?;
        let name = spec.head_tensor().to_owned();
        if spec.tied_head {
            // One matrix, used twice: both uses add to the loss.
            input.mix(head.fisher, &embed, 1.0);
            return Ok(vec![Self { name, input, rows }]);
        }
        input.mix(head.fisher, &embed, 0.0);
        let embed = Self { name: "embed".into(), input: embed, rows: Vec::new() };
        Ok(vec![embed, Self { name, input, rows }])
    }
}

fn layer_file(layer: usize) -> String {
    layer_tensor(layer, "moments")
}

/// The blocks of a layer.
pub(crate) fn load_blocks(source: &dyn ModelSource, layer: usize) -> Result<Vec<BlockParams>> {
    let count = source.spec().layers[layer].blocks.len();
    (0..count).map(|block| BlockParams::load(source, layer, block)).collect()
}

/// Passes a block, batch by batch.
pub(super) fn forward_batches(block: &BlockParams, x: &mut Matrix, sequence: usize) {
    for batch in batches(x.rows(), sequence) {
        let mut part = x.slice(batch.clone());
        forward(block, &mut part, sequence, &mut |_, _| ());
        put(x, batch.start, &part);
    }
}

/// Passes all blocks of a model.
pub(crate) fn forward_model(
    source: &dyn ModelSource,
    x: &mut Matrix,
    sequence: usize,
) -> Result<()> {
    for layer in 0..source.spec().layers.len() {
        for block in load_blocks(source, layer)? {
            forward_batches(&block, x, sequence);
        }
    }
    Ok(())
}

/// Replaces rows of `x` from `first` on.
pub(crate) fn put(x: &mut Matrix, first: usize, part: &Matrix) {
    let start = first * x.cols();
    x.data_mut()[start..start + part.data().len()].copy_from_slice(part.data());
}

/// A residual stream at half the size.
struct Checkpoint(Vec<bf16>);

impl Checkpoint {
    fn of(x: &Matrix) -> Self {
        Self(x.data().iter().map(|&x| bf16::from_f32(x)).collect())
    }

    fn restore(self, cols: usize) -> Matrix {
        let data: Vec<f32> = self.0.iter().map(|x| x.to_f32()).collect();
        Matrix::new(data.len() / cols, cols, data)
    }
}

/// Moments of one linear layer under way.
struct Collector {
    objective: Objective,
    input: Option<Moment>,
    output: Option<Moment>,
    energy: Vec<f32>,
    /// `Σ |G|²` of the weights' gradients G of whole sequences, and the tokens of those.
    gradient: (f64, usize),
    /// Sequences between two whose gradient is computed.
    stride: usize,
    sequences: usize,
}

impl Collector {
    fn new(n_in: usize, n_out: usize, stride: usize, wanted: Wanted) -> Self {
        let Wanted { objective, inputs } = wanted;
        let input = inputs.then(|| Moment::new(n_in));
        let output = (objective == Objective::Fisher).then(|| Moment::new(n_out));
        let (energy, gradient, sequences) = (Vec::new(), (0.0, 0), 0);
        Self { objective, input, output, energy, gradient, stride, sequences }
    }

    fn add(&mut self, input: &Matrix, d_output: &Matrix, sequence: usize) {
        let g = token_weights(self.objective, d_output);
        if let Some(moment) = &mut self.input {
            moment.add(input.data(), Some(&g));
        }
        if let Some(moment) = &mut self.output {
            moment.add(d_output.data(), Some(&clip(input.row_energies())));
        }
        self.energy.extend(g);
        for first in (0..input.rows()).step_by(sequence) {
            if self.sequences.is_multiple_of(self.stride) {
                let tokens = first..first + sequence;
                let (x, g) = (input.slice(tokens.clone()), d_output.slice(tokens));
                let energies = Matrix::transposed_product(&g, &x).row_energies();
                self.gradient.0 += energies.iter().map(|&e| f64::from(e)).sum::<f64>();
                self.gradient.1 += sequence;
            }
            self.sequences += 1;
        }
    }

    fn vectors(self) -> Vec<(&'static str, Vec<f32>)> {
        let fisher = self.gradient.0 / self.gradient.1 as f64;
        let moments = [("input", self.input), ("output", self.output)].into_iter();
        let moments = moments.filter_map(|(name, moment)| Some((name, moment?.to_vector())));
        moments.chain([("energy", self.energy), ("fisher", vec![fisher as f32])]).collect()
    }
}

/// How much each token's input counts.
fn token_weights(objective: Objective, d_output: &Matrix) -> Vec<f32> {
    match objective {
        Objective::Inputs => vec![1.0; d_output.rows()],
        Objective::Guided | Objective::Fisher => clip(d_output.row_energies()),
    }
}

/// Cuts energies at [`ENERGY_QUANTILE`]; ones that are not finite become zero.
fn clip(mut energy: Vec<f32>) -> Vec<f32> {
    energy.iter_mut().filter(|e| !e.is_finite()).for_each(|e| *e = 0.0);
    let mut sorted = energy.clone();
    let at = ((sorted.len() - 1) as f64 * ENERGY_QUANTILE) as usize;
    let (_, &mut limit, _) = sorted.select_nth_unstable_by(at, f32::total_cmp);
    energy.iter_mut().for_each(|e| *e = e.min(limit));
    energy
}

/// Statistics of the output head and of the embedding.
struct Ends {
    objective: Objective,
    input: Moment,
    energy: Vec<f32>,
    row_energy: Vec<f32>,
    embed: Moment,
}

impl Ends {
    fn new(head: &Head, tokens: usize, objective: Objective) -> Self {
        let (vocab, d) = (head.weight.rows(), head.weight.cols());
        Self {
            objective,
            input: Moment::new(d),
            energy: Vec::with_capacity(tokens),
            row_energy: vec![0.0; vocab],
            embed: Moment::new(d),
        }
    }

    fn add(&mut self, input: &Matrix, d_logits: &Matrix) {
        let weights = token_weights(self.objective, d_logits);
        self.input.add(input.data(), Some(&weights));
        self.energy.extend(clip(d_logits.row_energies()));
        d_logits.add_column_energies(&mut self.row_energy);
    }

    /// Adds gradients of the first block's input, which is `scale` times the embedding.
    fn add_embedding(&mut self, mut gradient: Matrix, scale: f32) {
        gradient.for_each_row(|_, row| row.iter_mut().for_each(|g| *g *= scale));
        self.embed.add(gradient.data(), None);
    }

    fn vectors(self) -> Vec<(String, Vec<f32>)> {
        let tokens = self.energy.len() as f64;
        let energy = self.energy.iter().map(|&e| f64::from(e)).sum::<f64>() / tokens;
        vec![
            ("head.input".into(), self.input.to_vector()),
            ("head.energy".into(), self.energy),
            ("head.fisher".into(), vec![energy as f32]),
            ("head.row_energy".into(), self.row_energy),
            ("embed".into(), self.embed.to_vector()),
        ]
    }
}
