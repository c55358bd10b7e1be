//! Tuning: scales, tables and gains move so that the rounded model says what the original says.
//!
//! Rounding answers to each matrix alone. Here the whole rounded model is compared with the original on the
//! calibration text, and what can move without moving a code or costing a byte follows the gradient of the
//! divergence between their distributions (distillation, Hinton et al. 2015): row and block scales, tables, and
//! the gains of norms that linear layers read. Each is used as it is stored, rounded; the gradient passes
//! rounding by (Bengio et al. 2013).
//!
//! One sequence in [`HELD_OUT`] is not learned from. What the divergence over those says decides which
//! pass over the text is kept, so that tuning that only fits the text is undone.
//!
//! The gradients come from [`crate::network`]: `dW = dyᵀ x` of every linear layer holds those of all that
//! multiplies its rows, blocks and columns. The model is held in single precision.

mod adam;
mod matrix;
mod student;

use std::collections::HashMap;
use std::time::Instant;

use gristmill_formats::Progress;
use gristmill_formats::model::{BlockSpec, ModelSpec, NormSpec, layer_tensor};
use gristmill_formats::source::ModelSource;
use serde::{Deserialize, Serialize};

use self::matrix::TunedMatrix;
use self::student::Student;
use crate::calibrate::{Calibration, Work, forward_model, packed_file, put};
use crate::fold::Folds;
use crate::network::{Head, Matrix, embed};
use crate::plan::TensorPlan;
use crate::{QuantizeError, Result};

/// One of so many sequences is held out.
const HELD_OUT: usize = 8;

/// Tokens of a step, as whole sequences.
const STEP_TOKENS: usize = 1024;

/// What a scale under 2-bit codes moves by in a step, about: a relative change. With every bit the levels
/// lie twice as close, there is half as much to gain, and the same noise of the gradient costs as much.
const STRIDE: f32 = 1e-3;

/// The stride of what belongs to codes of so many bits; the gain of a norm belongs to those that read it.
fn stride(bits: u32) -> f32 {
    STRIDE * 2f32.powi(2 - bits as i32)
}

/// Share of the steps in which the rate rises from nothing; then it falls as a half cosine.
const WARM_UP: f64 = 0.1;

/// The norm before the head.
const FINAL_NORM: &str = "final_norm";

/// File of all parameters: what makes tuning finished.
const TUNED_FILE: &str = "tuned.parameters";
const REPORT_FILE: &str = "tuned.json";

/// What tuning did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuningReport {
    /// Passes over the text.
    pub epochs: usize,
    /// The pass whose result was kept; 0 when none was better than no tuning.
    pub kept: usize,
    /// Tokens learned from.
    pub tokens: usize,
    /// Tokens held out.
    pub held_out: usize,
    /// Divergence over the held-out tokens, nats per token, before tuning and after every pass.
    pub divergence: Vec<f64>,
    /// Seconds.
    pub seconds: f64,
}

/// A tuned model: what differs from the rounded one.
pub(crate) struct Tuned {
    parameters: HashMap<String, Vec<f32>>,
    pub(crate) report: TuningReport,
}

/// Tunes the matrices of `plan` that are rounded in the work directory, on `epochs` passes over the text.
pub(crate) fn tune(
    source: &dyn ModelSource,
    plan: &[TensorPlan],
    calibration: &Calibration,
    epochs: usize,
    work: &Work,
    progress: &dyn Progress,
) -> Result<Tuned> {
    if let Some(tuned) = Tuned::load(work)? {
        return Ok(tuned);
    }
    let start = Instant::now();
    let sequence = calibration.sequence;
    let (learned, held_out): (Vec<usize>, Vec<usize>) =
        (0..calibration.sequences()).partition(|i| i % HELD_OUT != HELD_OUT / 2);
    if held_out.is_empty() {
        let (name, found) = (calibration.name.clone(), calibration.tokens.len());
        let needed = (HELD_OUT / 2 + 1) * sequence;
        return Err(QuantizeError::ShortCalibration { name, found, needed });
    }
    let (tokens, held) = (learned.len() * sequence, held_out.len() * sequence);
    progress.begin("tuning", (epochs * (tokens + held) + held) as u64, "tokens");
    let lesson = Lesson::new(source, calibration)?;
    let mut student = Student::new(source, plan, sequence, |name| work.read(&packed_file(name)))?;
    let check = |student: &Student| -> Result<f64> {
        let mut sum = 0.0;
        for part in held_out.chunks(STEP_TOKENS.div_ceil(sequence)) {
            cancel(progress)?;
            let (tokens, hidden) = lesson.take(part);
            sum += student.divergence(&tokens, &lesson.teacher, &hidden) * tokens.len() as f64;
            progress.advance(tokens.len() as u64);
        }
        Ok(sum / held as f64)
    };
    let mut divergence = vec![check(&student)?];
    let mut best = (0, student.snapshot());
    let per_step = STEP_TOKENS.div_ceil(sequence);
    let steps = epochs * learned.len().div_ceil(per_step);
    let mut step = 0;
    for epoch in 1..=epochs {
        for part in shuffled(&learned, epoch).chunks(per_step) {
            cancel(progress)?;
            step += 1;
            let (tokens, hidden) = lesson.take(part);
            student.learn(&tokens, &lesson.teacher, &hidden);
            student.descend(step, rate(step, steps));
            progress.advance(tokens.len() as u64);
        }
        let found = check(&student)?;
        if divergence.iter().all(|&before| found < before) {
            best = (epoch, student.snapshot());
        }
        divergence.push(found);
    }
    let (kept, parameters) = best;
    let seconds = start.elapsed().as_secs_f64();
    let report = TuningReport { epochs, kept, tokens, held_out: held, divergence, seconds };
    let tuned = Tuned { parameters, report };
    tuned.store(work)?;
    Ok(tuned)
}

fn cancel(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(QuantizeError::Cancelled) } else { Ok(()) }
}

/// Share of a stride at a step, counted from 1.
fn rate(step: usize, steps: usize) -> f32 {
    let at = (step as f64 - 0.5) / steps as f64;
    let falling = 0.5 * (1.0 + (std::f64::consts::PI * at).cos());
    (falling * (at / WARM_UP).min(1.0)) as f32
}

/// The sequences in another order each time. Neighbours in the text are of one kind, so a step takes
/// sequences from far apart.
fn shuffled(sequences: &[usize], epoch: usize) -> Vec<usize> {
    // Multiples of the golden ratio spread evenly over the unit interval.
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let mut order: Vec<(usize, f64)> = sequences
        .iter()
        .enumerate()
        .map(|(i, &s)| (s, ((i + epoch * sequences.len()) as f64 * GOLDEN).fract()))
        .collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    order.into_iter().map(|(s, _)| s).collect()
}

/// The text and what the original makes of it.
struct Lesson<'a> {
    calibration: &'a Calibration,
    teacher: Head,
    /// Residual stream before the teacher's final norm.
    hidden: Matrix,
}

impl<'a> Lesson<'a> {
    fn new(source: &dyn ModelSource, calibration: &'a Calibration) -> Result<Self> {
        let mut hidden = embed(source, &calibration.tokens)?;
        forward_model(source, &mut hidden, calibration.sequence)?;
        Ok(Self { calibration, teacher: Head::load(source)?, hidden })
    }

    /// Tokens of some sequences and the teacher's stream for them.
    fn take(&self, sequences: &[usize]) -> (Vec<u32>, Matrix) {
        let sequence = self.calibration.sequence;
        let mut hidden = Matrix::zeros(sequences.len() * sequence, self.hidden.cols());
        let mut tokens = Vec::with_capacity(hidden.rows());
        for (i, s) in sequences.iter().enumerate() {
            let rows = s * sequence..(s + 1) * sequence;
            tokens.extend(&self.calibration.tokens[rows.clone()]);
            put(&mut hidden, i * sequence, &self.hidden.slice(rows));
        }
        (tokens, hidden)
    }
}

impl Tuned {
    fn store(&self, work: &Work) -> Result<()> {
        let json = serde_json::to_vec(&self.report).expect("a plain struct");
        // The parameters go last: with them, tuning is finished.
        work.write(REPORT_FILE, &json)?;
        let mut vectors: Vec<_> = self.parameters.clone().into_iter().collect();
        vectors.sort_by(|a, b| a.0.cmp(&b.0));
        work.write_vectors(TUNED_FILE, &vectors)
    }

    fn load(work: &Work) -> Result<Option<Self>> {
        let Some(vectors) = work.read_vectors(TUNED_FILE)? else { return Ok(None) };
        let damaged = || QuantizeError::Damaged { file: REPORT_FILE.into() };
        let report = work.read(REPORT_FILE)?.ok_or_else(damaged)?;
        let report = serde_json::from_slice(&report).map_err(|_| damaged())?;
        Ok(Some(Self { parameters: vectors.into_map(), report }))
    }

    /// Writes the tuned matrices to the work directory and their codecs into the plan.
    pub(crate) fn pack(&self, plan: &mut [TensorPlan], work: &Work) -> Result<()> {
        for tensor in plan.iter_mut().filter(|t| t.shape.len() == 2) {
            let Some(bytes) = work.read(&packed_file(&tensor.name))? else { continue };
            let Some(moved) = self.parameters.get(&tensor.name) else { continue };
            let [rows, cols] = [0, 1].map(|i| tensor.shape[i] as usize);
            let mut matrix = TunedMatrix::new(&tensor.encoding, &bytes, rows, cols);
            if matrix.parameters.values.len() != moved.len() {
                return Err(QuantizeError::Damaged { file: TUNED_FILE.into() });
            }
            matrix.parameters.values.clone_from(moved);
            work.write(&tuned_file(&tensor.name), &matrix.pack())?;
            tensor.encoding = matrix.codec();
        }
        Ok(())
    }

    /// Puts the tuned gains into the folds of a model.
    pub(crate) fn fold(&self, spec: &ModelSpec, folds: &mut Folds) {
        for (name, origin) in norms(spec) {
            if let Some(moved) = self.parameters.get(&name) {
                let divisors: Vec<f32> = moved.iter().map(|by| 1.0 / (1.0 + by)).collect();
                folds.divide(&name, origin, &divisors);
            }
        }
    }
}

/// The norms whose output linear layers read: names of their gains, and what these are offset by.
fn norms(spec: &ModelSpec) -> Vec<(String, f32)> {
    let origin = |norm: &NormSpec| f32::from(u8::from(norm.plus_one));
    let blocks = spec.layers.iter().enumerate().flat_map(|(layer, l)| {
        let name = move |block: &BlockSpec| pre_norm_name(layer, block);
        l.blocks.iter().map(move |block| (name(block), origin(&block.pre_norm)))
    });
    blocks.chain([(FINAL_NORM.to_owned(), origin(&spec.final_norm))]).collect()
}

fn pre_norm_name(layer: usize, block: &BlockSpec) -> String {
    layer_tensor(layer, &format!("{}.norm", block.mixer.name()))
}

/// File of a tuned matrix.
pub(crate) fn tuned_file(name: &str) -> String {
    format!("{name}.tuned")
}
