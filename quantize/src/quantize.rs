//! The pass over a model: tensors stream from a source into a packed file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gristmill_formats::Progress;
use gristmill_formats::codec::{CodecId, PANEL_ROWS, QuantizedRow, panel_count};
use gristmill_formats::container::{
    Header, PackedWriter, Provenance, QualityReport, SectionEntry, TensorQuality,
};
use gristmill_formats::source::{ModelSource, TensorData, check_tensors};
use rayon::prelude::*;

use crate::allocate::{Candidate, allocate};
use crate::awq::search_scales;
use crate::calibrate::{
    Calibration, PackedTarget, Work, collect, packed_file, predict, round_model,
};
use crate::fold::{FoldedSource, Folds};
use crate::plan::{Plan, TensorPlan, header_for};
use crate::recipe::Recipe;
use crate::report::{CalibrationReport, REPORT_SCHEMA_VERSION, Report, TensorReport};
use crate::rtn::{MAX_MAGNITUDE, RowRounder};
use crate::{QuantizeError, Result, output};

/// Bound on the weights of one batch, as f32. A batch is the unit of parallel work: its packed bytes
/// are held until they are written. A single panel that is larger is a batch of its own.
pub const MAX_BATCH_BYTES: usize = 64 << 20;

/// Decimals of the quality figures in the header. They are for people; more would only make it longer.
const QUALITY_DIGITS: usize = 4;

/// What the file says about its origin.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// Where the weights came from. `recipe` is filled in, `tool` too when it is empty.
    pub provenance: Provenance,
    /// Files of the source, which must not be overwritten.
    pub source_paths: Vec<PathBuf>,
}

/// Squared error and squared norm of some weights.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    error: f64,
    norm: f64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.error += other.error;
        self.norm += other.norm;
    }

    fn relative(self) -> f64 {
        if self.norm > 0.0 { self.error / self.norm } else { 0.0 }
    }
}

/// Makes a packed file at `out` from a source, on the threads of the current rayon pool. The bytes of
/// the file do not depend on their number. The file appears by rename, complete, or not at all.
///
/// # Errors
/// When the recipe does not fit the model, the source cannot be read or has a weight that is not
/// finite, `out` cannot be written or is part of the source, space is short, or
/// [`Progress::cancelled`] says so ([`QuantizeError::Cancelled`]).
pub fn quantize(
    source: &dyn ModelSource,
    recipe: &Recipe,
    out: &Path,
    metadata: &Metadata,
    progress: &dyn Progress,
) -> Result<Report> {
    let start = Instant::now();
    let mut recipe = recipe.clone();
    output::check(out, &metadata.source_paths)?;
    check_tensors(source)?;
    let tokenizer = source.tokenizer()?.map(|t| t.to_section());
    let tokenizer_bytes = tokenizer.as_ref().map_or(0, |t| t.len() as u64);
    let mut header = header_for(source, &recipe, metadata);
    let mut plan = Plan::build(&header, tokenizer_bytes, &recipe)?;
    output::check_space(out, plan.file_bytes)?;

    let mut rounded = HashMap::new();
    let mut work = None;
    let mut folded = FoldedSource::new(source, Folds::default());
    if recipe.method.is_calibrated() {
        let calibration = recipe.calibration.clone().ok_or(QuantizeError::NoCalibration)?;
        let identity = work_identity(source, &recipe.to_string(), &calibration);
        check_weights(source, &plan.tensors)?;
        let directory = Work::open(out, &identity, recipe.resume)?;
        collect(source, &calibration, &directory, progress)?;
        if let Some(budget) = recipe.file_bytes {
            choose_codecs(source, &mut recipe, &mut plan, &header, &directory, budget, progress)?;
        }
        let matrices = plan.tensors.iter().filter(|t| t.shape.len() == 2);
        let target = PackedTarget::new(
            matrices.map(|t| (t.name.as_str(), &t.encoding)),
            recipe.method.feeds_back().then_some(recipe.sweeps),
        );
        if let Some(judge) = recipe.method.scales() {
            let folds = search_scales(source, &target, &directory, judge, progress)?;
            folded = FoldedSource::new(source, folds);
        }
        rounded = round_model(&folded, &target, &calibration, &directory, progress)?;
        work = Some(directory);
    }
    let mut writer = PackedWriter::create(out).map_err(|e| output::explain_create(out, e))?;
    progress.begin("quantizing", plan.parameters, "weights");
    let mut pass = Pass { writer: &mut writer, work: work.as_ref(), progress, peak_bytes: 0 };
    let mut tensors = Vec::with_capacity(plan.tensors.len());
    let mut whole = Tally::default();
    for tensor in &plan.tensors {
        let tensor_start = Instant::now();
        let tally = pass.tensor(tensor, &folded.tensor(&tensor.name)?)?;
        whole.add(tally);
        tensors.push(TensorReport {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            codec: tensor.codec,
            bytes: tensor.bytes,
            bits_per_weight: tensor.bits_per_weight,
            relative_error: tally.relative(),
            seconds: tensor_start.elapsed().as_secs_f64(),
            rounding: rounded.remove(&tensor.name),
        });
    }
    let peak_batch_bytes = pass.peak_bytes;
    if let Some(section) = &tokenizer {
        writer.tokenizer(section)?;
    }
    if progress.cancelled() {
        return Err(QuantizeError::Cancelled);
    }
    header.quality = Some(quality(&plan, &tensors));
    settle_sizes(&mut header, &mut plan, &writer, tokenizer_bytes)?;
    let header = writer.finish(header)?;
    if let Some(work) = work {
        work.remove()?;
    }
    Ok(Report {
        schema_version: REPORT_SCHEMA_VERSION,
        recipe: plan.recipe,
        provenance: header.provenance,
        source_fingerprint: source.fingerprint(),
        parameters: plan.parameters,
        bytes: plan.bytes,
        file_bytes: plan.file_bytes,
        bits_per_weight: plan.bits_per_weight,
        bytes_per_token: plan.bytes_per_token,
        relative_error: whole.relative(),
        calibration: recipe.calibration.as_ref().map(CalibrationReport::of),
        predicted_kld: predicted_kld(&tensors),
        seconds: start.elapsed().as_secs_f64(),
        threads: rayon::current_num_threads(),
        peak_batch_bytes,
        tensors,
    })
}

/// Refuses weights that cannot be rounded before anything is computed with them.
fn check_weights(source: &dyn ModelSource, plan: &[TensorPlan]) -> Result<()> {
    for plan in plan.iter().filter(|t| t.shape.len() == 2) {
        let data = source.tensor(&plan.name)?;
        let job = PanelJob { plan, data: &data, rounder: None };
        let check = |panel: usize| {
            let weights = job.weights(panel)?;
            if plan.codec.is_dense() {
                Ok(())
            } else {
                job.check_magnitude(panel * PANEL_ROWS, &weights)
            }
        };
        let checked: Vec<_> = (0..panel_count(data.rows())).into_par_iter().map(check).collect();
        // In order, so that the reported error is that of a single thread.
        checked.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

/// What a work directory belongs to: another version may round otherwise.
pub(crate) fn work_identity(
    source: &dyn ModelSource,
    recipe: &str,
    calibration: &Calibration,
) -> String {
    let (fingerprint, digest) = (source.fingerprint(), &calibration.digest);
    format!("{fingerprint}\n{recipe}\n{digest}\n{}\n", env!("CARGO_PKG_VERSION"))
}

/// Chooses the codecs of a recipe that states a size, and plans anew.
fn choose_codecs(
    source: &dyn ModelSource,
    recipe: &mut Recipe,
    plan: &mut Plan,
    header: &Header,
    work: &Work,
    budget: u64,
    progress: &dyn Progress,
) -> Result<()> {
    let matrices = predict(source, recipe, &plan.tensors, work, progress)?;
    let candidates: Vec<_> = matrices.iter().map(|(_, candidates)| candidates.clone()).collect();
    let fixed = plan.file_bytes
        - matrices
            .iter()
            .flat_map(|(name, _)| plan.tensors.iter().find(|t| t.name == *name))
            .map(|t| t.bytes)
            .sum::<u64>();
    let smallest = |c: &Vec<Candidate>| c.iter().map(|c| c.bytes).min().unwrap_or_default();
    let too_small = || QuantizeError::SizeTooSmall {
        wanted: budget,
        smallest: fixed + candidates.iter().map(smallest).sum::<u64>(),
    };
    // Headers differ by a few bytes from one choice to another, and tensors are aligned.
    let mut spend = budget.checked_sub(fixed).ok_or_else(too_small)?;
    loop {
        let chosen = allocate(&candidates, spend).ok_or_else(too_small)?;
        recipe.chosen =
            matrices.iter().zip(&chosen).map(|((name, _), c)| (name.clone(), c.codec)).collect();
        *plan = Plan::build(header, plan.bytes.tokenizer, recipe)?;
        let Some(over) = plan.file_bytes.checked_sub(budget).filter(|over| *over > 0) else {
            break;
        };
        spend = spend.checked_sub(over).ok_or_else(too_small)?;
    }
    Ok(())
}

/// The sum over matrices, `None` when nothing was predicted.
fn predicted_kld(tensors: &[TensorReport]) -> Option<f64> {
    let predicted = tensors.iter().filter_map(|t| Some(t.rounding.as_ref()?.predicted_kld));
    predicted.reduce(|a, b| a + b)
}

/// What the header says about the loss; f32 tensors have none.
fn quality(plan: &Plan, tensors: &[TensorReport]) -> QualityReport {
    let short = |x: f64| format!("{x:.QUALITY_DIGITS$e}").parse().unwrap_or(x);
    QualityReport {
        bits_per_weight: plan.bits_per_weight,
        bytes_per_token: plan.bytes_per_token,
        tensors: tensors
            .iter()
            .filter(|t| t.codec != CodecId::F32)
            .map(|t| TensorQuality {
                name: t.name.clone(),
                codec: t.codec,
                relative_error: short(t.relative_error),
            })
            .collect(),
        ..QualityReport::default()
    }
}

/// Puts the file's bits per weight into its own header. The figure's digits are part of the length it
/// states, so it is settled in a few rounds; padding absorbs the last byte.
fn settle_sizes(
    header: &mut Header,
    plan: &mut Plan,
    writer: &PackedWriter,
    tokenizer_bytes: u64,
) -> Result<()> {
    const ROUNDS: usize = 4;
    let scale = 10f64.powi(QUALITY_DIGITS as i32);
    for _ in 0..ROUNDS {
        let mut complete = header.clone();
        complete.tensors = writer.tensors().to_vec();
        complete.tokenizer = (tokenizer_bytes > 0).then(|| {
            let end = complete.tensors.last().map_or(0, |t| t.offset + t.bytes);
            let align = gristmill_formats::limits::PANEL_ALIGN as u64;
            let offset = end.next_multiple_of(align);
            SectionEntry { offset, bytes: tokenizer_bytes, blake3: "0".repeat(64) }
        });
        plan.set_sizes(tokenizer_bytes, complete.to_bytes()?.len() as u64);
        let bits = (plan.bits_per_weight * scale).round() / scale;
        match &mut header.quality {
            Some(quality) if quality.bits_per_weight != bits => quality.bits_per_weight = bits,
            _ => break,
        }
    }
    Ok(())
}

/// The state of a pass over the tensors.
struct Pass<'a> {
    writer: &'a mut PackedWriter,
    /// Where matrices that are already rounded are.
    work: Option<&'a Work>,
    progress: &'a dyn Progress,
    peak_bytes: u64,
}

impl Pass<'_> {
    fn tensor(&mut self, plan: &TensorPlan, data: &TensorData) -> Result<Tally> {
        if self.progress.cancelled() {
            return Err(QuantizeError::Cancelled);
        }
        self.writer.begin_tensor(&plan.name, &plan.shape, &plan.encoding)?;
        let tally = if plan.shape.len() == 1 {
            self.vector(plan, data)?
        } else if let Some(bytes) = self.rounded(plan)? {
            self.copy(plan, data, &bytes)?
        } else {
            self.matrix(plan, data)?
        };
        self.writer.end_tensor();
        Ok(tally)
    }

    fn rounded(&self, plan: &TensorPlan) -> Result<Option<Vec<u8>>> {
        self.work.map_or(Ok(None), |work| work.read(&packed_file(&plan.name)))
    }

    /// Writes panels that are ready.
    fn copy(&mut self, plan: &TensorPlan, data: &TensorData, bytes: &[u8]) -> Result<Tally> {
        let (rows, cols) = (data.rows(), data.cols());
        let panel_bytes = plan.encoding.panel_bytes(cols);
        let job = PanelJob { plan, data, rounder: None };
        let results: Vec<Result<Tally>> = bytes
            .par_chunks_exact(panel_bytes)
            .enumerate()
            .map(|(panel, bytes)| job.measure(panel, &job.weights(panel)?, bytes))
            .collect();
        let mut tally = Tally::default();
        for result in results {
            tally.add(result?);
        }
        self.writer.write(bytes)?;
        self.progress.advance((rows * cols) as u64);
        Ok(tally)
    }

    fn vector(&mut self, plan: &TensorPlan, data: &TensorData) -> Result<Tally> {
        let mut values = vec![0.0f32; data.cols()];
        data.decode_row(0, &mut values);
        check_finite(&plan.name, 0, &values)?;
        let bytes = plan.encoding.encode_linear(&values);
        let mut stored = vec![0.0f32; values.len()];
        plan.encoding.decode_linear(&bytes, 0, &mut stored);
        let tally = compare(plan, 0, &values, &stored)?;
        self.writer.write(&bytes)?;
        self.progress.advance(values.len() as u64);
        Ok(tally)
    }

    fn matrix(&mut self, plan: &TensorPlan, data: &TensorData) -> Result<Tally> {
        let (rows, cols) = (data.rows(), data.cols());
        let panel_bytes = plan.encoding.panel_bytes(cols);
        let decoded_bytes = PANEL_ROWS * cols * size_of::<f32>();
        let panels = panel_count(rows);
        let batch = (MAX_BATCH_BYTES / decoded_bytes).clamp(1, panels);
        let mut packed = vec![0u8; batch * panel_bytes];
        let in_flight = batch.min(rayon::current_num_threads()) * decoded_bytes;
        self.peak_bytes = self.peak_bytes.max((packed.len() + in_flight) as u64);
        let job = PanelJob { plan, data, rounder: RowRounder::new(&plan.encoding) };
        let progress = self.progress;
        let mut tally = Tally::default();
        for first in (0..panels).step_by(batch) {
            let bytes = &mut packed[..batch.min(panels - first) * panel_bytes];
            // All results are looked at in order, so that sums and the reported error are those of a
            // single thread.
            let results: Vec<Result<Tally>> = bytes
                .par_chunks_exact_mut(panel_bytes)
                .enumerate()
                .map(|(i, bytes)| {
                    if progress.cancelled() {
                        return Err(QuantizeError::Cancelled);
                    }
                    let tally = job.run(first + i, bytes)?;
                    let rows = PANEL_ROWS.min(rows - (first + i) * PANEL_ROWS);
                    progress.advance((rows * cols) as u64);
                    Ok(tally)
                })
                .collect();
            for result in results {
                tally.add(result?);
            }
            self.writer.write(bytes)?;
        }
        Ok(tally)
    }
}

/// Rounds the panels of one matrix.
struct PanelJob<'a> {
    plan: &'a TensorPlan,
    data: &'a TensorData,
    rounder: Option<RowRounder>,
}

impl PanelJob<'_> {
    /// Decodes, rounds and packs one panel, then measures what was packed.
    fn run(&self, panel: usize, bytes: &mut [u8]) -> Result<Tally> {
        let cols = self.data.cols();
        let weights = self.weights(panel)?;
        let codec = &self.plan.encoding;
        match &self.rounder {
            None => codec.encode_dense_panel(&weights, cols, bytes),
            Some(rounder) => {
                self.check_magnitude(panel * PANEL_ROWS, &weights)?;
                let rows = weights.chunks_exact(cols).map(|row| rounder.round(row, None));
                let quantized: Vec<QuantizedRow> = rows.collect();
                codec.pack_panel(&quantized, cols, bytes);
            }
        }
        self.measure(panel, &weights, bytes)
    }

    /// The weights of a panel's rows.
    fn weights(&self, panel: usize) -> Result<Vec<f32>> {
        let (rows, cols) = (self.data.rows(), self.data.cols());
        let first = panel * PANEL_ROWS;
        let mut weights = vec![0.0f32; PANEL_ROWS.min(rows - first) * cols];
        for (r, row) in weights.chunks_exact_mut(cols).enumerate() {
            self.data.decode_row(first + r, row);
            check_finite(&self.plan.name, first + r, row)?;
        }
        Ok(weights)
    }

    /// The error of a packed panel.
    fn measure(&self, panel: usize, weights: &[f32], bytes: &[u8]) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut stored = vec![0.0f32; self.data.cols()];
        for (r, row) in weights.chunks_exact(stored.len()).enumerate() {
            self.plan.encoding.decode_row(bytes, r, &mut stored);
            tally.add(compare(self.plan, panel * PANEL_ROWS + r, row, &stored)?);
        }
        Ok(tally)
    }

    fn check_magnitude(&self, first: usize, weights: &[f32]) -> Result<()> {
        match weights.iter().position(|w| w.abs() >= MAX_MAGNITUDE) {
            None => Ok(()),
            Some(at) => {
                let (row, col) = (first + at / self.data.cols(), at % self.data.cols());
                Err(out_of_range(self.plan, row, col, weights[at]))
            }
        }
    }
}

pub(crate) fn check_finite(tensor: &str, row: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(col) => {
            let value = values[col];
            Err(QuantizeError::NotFinite { tensor: tensor.into(), row, col, value })
        }
    }
}

fn out_of_range(plan: &TensorPlan, row: usize, col: usize, value: f32) -> QuantizeError {
    QuantizeError::OutOfRange { tensor: plan.name.clone(), row, col, value, codec: plan.codec }
}

/// The error of a row as stored. A dense codec may have turned a large weight into an infinity.
fn compare(plan: &TensorPlan, row: usize, values: &[f32], stored: &[f32]) -> Result<Tally> {
    let mut tally = Tally::default();
    for (&x, &y) in values.iter().zip(stored) {
        tally.error += (f64::from(x) - f64::from(y)).powi(2);
        tally.norm += f64::from(x).powi(2);
    }
    if tally.error.is_finite() {
        return Ok(tally);
    }
    let col = stored.iter().position(|y| !y.is_finite()).unwrap_or_default();
    Err(out_of_range(plan, row, col, values[col]))
}
