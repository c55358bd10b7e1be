//! The pass over a model: tensors stream from a source into a packed file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gristmill_formats::Progress;
use gristmill_formats::codec::CodecId;
use gristmill_formats::container::{
    Header, PackedWriter, Provenance, QualityReport, SectionEntry, TensorQuality,
};
use gristmill_formats::source::{ModelSource, check_tensors};

use crate::allocate::{Candidate, allocate};
use crate::awq::search_scales;
use crate::calibrate::{
    Calibration, PackedTarget, Swap, Wanted, Work, collect, correction, measure_swaps, predict,
    round_model,
};
use crate::fold::{FoldedSource, Folds};
use crate::pass::{Pass, Tally, check_weights};
use crate::plan::{Plan, header_for};
use crate::recipe::Recipe;
use crate::report::{CalibrationReport, REPORT_SCHEMA_VERSION, Report, TensorReport};
use crate::tune::tune;
use crate::{QuantizeError, Result, output};

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
    if recipe.epochs > 0 && !recipe.method.is_calibrated() {
        return Err(QuantizeError::TuningNeedsCalibration(recipe.method));
    }
    output::check(out, &metadata.source_paths)?;
    check_tensors(source)?;
    let tokenizer = source.tokenizer()?.map(|t| t.to_section());
    let tokenizer_bytes = tokenizer.as_ref().map_or(0, |t| t.len() as u64);
    let mut header = header_for(source, &recipe, metadata);
    let mut plan = Plan::build(&header, tokenizer_bytes, &recipe)?;
    output::check_space(out, plan.file_bytes)?;

    let mut rounded = HashMap::new();
    let (mut swaps, mut tuning) = (Vec::new(), None);
    let mut work = None;
    let mut folded = FoldedSource::new(source, Folds::default());
    if recipe.method.is_calibrated() {
        let calibration = recipe.calibration.clone().ok_or(QuantizeError::NoCalibration)?;
        let identity = work_identity(source, &recipe.to_string(), &calibration);
        check_weights(source, &plan.tensors)?;
        let directory = Work::open(out, &identity, recipe.resume)?;
        let inputs = recipe.file_bytes.is_some() || recipe.method.scales().is_some();
        let wanted = Wanted { objective: recipe.objective, inputs };
        collect(source, &calibration, wanted, &directory, progress)?;
        if let Some(budget) = recipe.file_bytes {
            swaps = measure_swaps(source, &recipe, &calibration, &directory, progress)?;
            let mut matrices = predict(source, &recipe, &plan.tensors, &directory, progress)?;
            for (name, candidates) in &mut matrices {
                let factor = correction(&swaps, name);
                candidates.iter_mut().for_each(|c| c.loss *= factor);
            }
            choose_codecs(&matrices, &mut recipe, &mut plan, &header, budget)?;
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
        if recipe.epochs > 0 {
            let (plan, epochs) = (&mut plan.tensors, recipe.epochs);
            let tuned = tune(&folded, plan, &calibration, epochs, &directory, progress)?;
            tuned.pack(plan, &directory)?;
            let mut folds = folded.folds().clone();
            tuned.fold(source.spec(), &mut folds);
            folded = FoldedSource::new(source, folds);
            tuning = Some(tuned.report);
        }
        work = Some(directory);
    }
    let mut writer = PackedWriter::create(out).map_err(|e| output::explain_create(out, e))?;
    progress.begin("quantizing", plan.parameters, "weights");
    let (method, work_files) = (recipe.method, work.as_ref());
    let mut pass = Pass { writer: &mut writer, method, work: work_files, progress, peak_bytes: 0 };
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
        predicted_kld: predicted_kld(&tensors, &swaps),
        swaps,
        tuning,
        seconds: start.elapsed().as_secs_f64(),
        threads: rayon::current_num_threads(),
        peak_batch_bytes,
        tensors,
    })
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
    matrices: &[(String, Vec<Candidate>)],
    recipe: &mut Recipe,
    plan: &mut Plan,
    header: &Header,
    budget: u64,
) -> Result<()> {
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
fn predicted_kld(tensors: &[TensorReport], swaps: &[Swap]) -> Option<f64> {
    let predicted = tensors
        .iter()
        .filter_map(|t| Some(correction(swaps, &t.name) * t.rounding.as_ref()?.predicted_kld));
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
