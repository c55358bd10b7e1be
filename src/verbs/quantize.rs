//! `quantize`: pack a model into one file.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use gristmill_convert::{GgufOrigin, gguf_model};
use gristmill_eval::{
    ModelFacts, Protocol, QualityConfig, QualityReport, peak_memory, quality, reset_peak_memory,
};
use gristmill_formats::Progress;
use gristmill_formats::container::{self, FOOTER_BYTES, Header, Provenance};
use gristmill_formats::limits::PANEL_ALIGN;
use gristmill_quantize::{
    Calibration, GgufExport, GgufFileType, Metadata, Method, Objective, Plan, QuantizeError,
    Recipe, Report, RoundedTensor, TuningReport, plan_source, quantize,
};
use gristmill_runtime::KvType;
use serde::Serialize;

use super::Session;
use crate::args::{QuantizeArgs, RoundingArgs};
use crate::error::{Outcome, Usage, WithHint};
use crate::measure::{self, BRIEF_WINDOWS, Setup};
use crate::progress::TerminalProgress;
use crate::render::{self, Facts, Render, SCHEMA_VERSION, Table};
use crate::source::{self, Source};

/// What was made. Serialized, it is `report.json` and the JSON output.
#[derive(Debug, Serialize)]
pub(super) struct Packed {
    pub(super) output: PathBuf,
    #[serde(flatten)]
    pub(super) report: Report,
    /// Largest resident size of the process, mapped source included; null where the system does not
    /// tell.
    pub(super) peak_memory_bytes: Option<u64>,
    /// Null when it was not measured.
    pub(super) quality: Option<QualityReport>,
}

/// A GGUF file.
#[derive(Debug, Serialize)]
struct Exported {
    schema_version: u32,
    output: PathBuf,
    file_type: &'static str,
    file_bytes: u64,
    seconds: f64,
    /// What calibrated rounding did, by tensor.
    matrices: BTreeMap<String, RoundedTensor>,
}

#[derive(Debug, Serialize)]
struct DryRun {
    schema_version: u32,
    dry_run: bool,
    #[serde(flatten)]
    plan: Plan,
}

pub(super) fn run(session: Session, args: &QuantizeArgs) -> Result<Outcome> {
    let plain = plain_recipe(&args.rounding)?;
    if args.gguf.is_some() && !matches!(plain.method, Method::Rtn | Method::Gptq) {
        let message = format!("--gguf rounds with rtn or gptq, not with {}", plain.method);
        return Err(Usage(message)).hint("give --method rtn or --method gptq");
    }
    // Read before the work, so that a wrong name costs nothing.
    let text = args.measure.as_deref().map(measure::read_text).transpose()?;
    let source = Source::open(&args.model)?;
    let threads = args.threads.resolve()?;
    let (false, Some(output)) = (args.dry_run, &args.output) else {
        let provenance = Provenance { source: args.model.clone(), ..Provenance::default() };
        let metadata = Metadata { provenance, source_paths: source.files() };
        let plan = plan_source(&*source.model_source(), &plain, &metadata).map_err(usage)?;
        let result = DryRun { schema_version: SCHEMA_VERSION, dry_run: true, plan };
        render::emit(&result, session.json)?;
        return Ok(Outcome::Done);
    };

    let rounding = &args.rounding;
    let mut recipe = Recipe { resume: args.resume, ..recipe_for(rounding, &source)? };
    if recipe.method.is_calibrated() {
        let (path, tokens) = (rounding.calib.as_deref(), rounding.calib_tokens);
        recipe.calibration = Some(calibration(&source, path, tokens)?);
    }
    if let Some(file_type) = args.gguf {
        let exported = export(&source, file_type, &recipe, output, threads)?;
        if let Some(path) = &args.report {
            write_report(path, &exported)?;
        }
        render::emit(&exported, session.json)?;
        return Ok(Outcome::Done);
    }

    let progress = TerminalProgress::new();
    let mut packed = pack(&source, &recipe, output, threads, &progress)?;
    if let Some(text) = &text {
        let measured = measure_packed(session, &source, &mut packed, text, threads, &progress);
        if measured.is_err() {
            progress.note(&format!("{} is complete, but was not measured", output.display()));
        }
        measured?;
    }
    drop(progress);
    if let Some(path) = &args.report {
        write_report(path, &packed)?;
    }
    render::emit(&packed, session.json)?;
    Ok(Outcome::Done)
}

/// What a calibrated method looks at: a file, or the text that is built in.
pub(super) fn calibration(
    source: &Source,
    path: Option<&Path>,
    tokens: usize,
) -> Result<Calibration> {
    let (name, text) = match path {
        Some(path) => (path.display().to_string(), measure::read_text(path)?),
        None => ("built-in text".to_owned(), Calibration::built_in_text()),
    };
    let ids = measure::tokenize(&source.tokenizer()?, &text)?.ids;
    let context = source.model_source().spec().max_context as usize;
    let sequence = Calibration::DEFAULT_SEQUENCE.min(context);
    Ok(Calibration::new(&name, &text, &ids, sequence, tokens)?)
}

/// What the arguments say of a model, all but the text to calibrate on.
pub(super) fn recipe_for(args: &RoundingArgs, source: &Source) -> Result<Recipe> {
    let recipe = plain_recipe(args)?;
    // Looked at before any text is read.
    recipe.resolve(source.model_source().spec()).map_err(usage)?;
    Ok(Recipe {
        sweeps: args.refine,
        epochs: args.tune,
        objective: args.objective,
        file_bytes: budget(args, source),
        ..recipe
    })
}

/// What the arguments say without a look at a model.
pub(super) fn plain_recipe(args: &RoundingArgs) -> Result<Recipe> {
    let mut recipe = Recipe::for_bits(args.bits).map_err(usage)?;
    for text in &args.codecs {
        recipe = recipe.with_override(text).map_err(usage)?;
    }
    let calibrating = [
        ("--size", args.size.is_some()),
        ("--bpw", args.bpw.is_some()),
        ("--tune", args.tune > 0),
        ("--refine", args.refine > 0),
        ("--objective", args.objective != Objective::default()),
    ];
    let calibrating = calibrating.into_iter().find(|(_, given)| *given).map(|(name, _)| name);
    let default = if calibrating.is_some() { Method::Gptq } else { Method::Rtn };
    recipe.method = args.method.unwrap_or(default);
    if let (Some(option), false) = (calibrating, recipe.method.is_calibrated()) {
        let message = format!("{option} needs a calibrated method, {} is not", recipe.method);
        return Err(Usage(message)).hint("leave --method out, or give --method gptq");
    }
    if args.refine > 0 && !recipe.method.feeds_back() {
        let message = format!("--refine follows error feedback, {} has none", recipe.method);
        return Err(Usage(message)).hint("leave --method out, or give --method gptq");
    }
    Ok(recipe)
}

/// The bytes that the file may have; `None` when all matrices get the same codec.
fn budget(args: &RoundingArgs, source: &Source) -> Option<u64> {
    let parameters = source.model_source().spec().parameter_count() as f64;
    args.size.or_else(|| args.bpw.map(|bits| (bits * parameters / 8.0) as u64))
}

/// A recipe that cannot be followed is wrong usage, all else a failure.
pub(super) fn usage(error: QuantizeError) -> anyhow::Error {
    match error {
        QuantizeError::UnknownBits { .. }
        | QuantizeError::InvalidOverride { .. }
        | QuantizeError::UnmatchedOverride { .. }
        | QuantizeError::VectorCodec { .. } => Usage(error.to_string()).into(),
        other => other.into(),
    }
}

/// Makes the file.
pub(super) fn pack(
    source: &Source,
    recipe: &Recipe,
    output: &Path,
    threads: Option<usize>,
    progress: &dyn Progress,
) -> Result<Packed> {
    // The recipe and the place are looked at first: hashing a large source takes minutes.
    let model = source.model_source();
    recipe.resolve(model.spec()).map_err(usage)?;
    check_output(output, source)?;
    let provenance = source.provenance(progress)?;
    let metadata = Metadata { provenance, source_paths: source.files() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build()?;
    reset_peak_memory();
    let report =
        pool.install(|| quantize(&*model, recipe, output, &metadata, progress)).map_err(usage)?;
    let peak_memory_bytes = peak_memory();
    Ok(Packed { output: output.into(), report, peak_memory_bytes, quality: None })
}

/// Writes a GGUF file.
fn export(
    source: &Source,
    file_type: GgufFileType,
    recipe: &Recipe,
    output: &Path,
    threads: Option<usize>,
) -> Result<Exported> {
    check_output(output, source)?;
    let start = Instant::now();
    let progress = TerminalProgress::new();
    let model_source = source.model_source();
    let model = gguf_model(&*model_source, GgufOrigin::default())?;
    let files = source.files();
    let export = GgufExport {
        source: &*model_source,
        model: &model,
        file_type,
        calibrated: recipe.calibration.is_some(),
        source_paths: &files,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build()?;
    let (file_bytes, matrices) = pool.install(|| match &recipe.calibration {
        Some(calibration) => export.write_calibrated(output, calibration, recipe.resume, &progress),
        None => {
            let bytes = export.write(output, &mut |_, _| Ok(None), &progress)?;
            Ok((bytes, HashMap::new()))
        }
    })?;
    Ok(Exported {
        schema_version: SCHEMA_VERSION,
        output: output.into(),
        file_type: file_type.name(),
        file_bytes,
        seconds: start.elapsed().as_secs_f64(),
        matrices: matrices.into_iter().collect(),
    })
}

/// Refuses what would fail only after the source has been hashed.
fn check_output(output: &Path, source: &Source) -> Result<()> {
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(anyhow::anyhow!(
            "cannot write {}: directory {} does not exist",
            output.display(),
            directory.display()
        ))
        .hint(format!("mkdir -p {}", directory.display()));
    }
    if output.is_dir() {
        let error = Usage(format!("{} is a directory", output.display()));
        return Err(error).hint(format!("name a file in it: -o {}/m.grist", output.display()));
    }
    let same = |file: PathBuf| {
        let (a, b) = (file.canonicalize(), output.canonicalize());
        matches!((a, b), (Ok(a), Ok(b)) if a == b)
    };
    if source.files().into_iter().any(same) {
        return Err(Usage(format!("{} is part of the source", output.display())))
            .hint("choose another -o");
    }
    Ok(())
}

/// Measures the file against its source and stores the figures in it.
pub(super) fn measure_packed(
    session: Session,
    source: &Source,
    packed: &mut Packed,
    text: &str,
    threads: Option<usize>,
    progress: &dyn Progress,
) -> Result<()> {
    let reference = source.load()?;
    let tokens = measure::tokenize(&source.tokenizer()?, text)?;
    let config =
        QualityConfig { windows: Some(BRIEF_WINDOWS), ..QualityConfig::new(Protocol::Chunk) };
    let config = measure::config_for(&reference, config);
    let setup = Setup { threads, isa: session.isa, context: config.ctx };
    let report = {
        let mut reference = setup.engine(&reference, KvType::F16)?;
        let mut student = setup.engine(&Source::open_path(&packed.output)?.load()?, KvType::F16)?;
        quality(&mut student, Some(&mut reference), &tokens, &config, progress)?
    };

    let file = source::open_packed(&packed.output)?;
    let mut header = file.header().clone();
    let header_offset = file.superblock().header_offset;
    drop(file);
    let stored = header.quality.get_or_insert_default();
    store(stored, &report, &config);
    let file_bytes = settle_size(&mut header, header_offset)?;
    container::rewrite_header(&packed.output, &header)?;

    let (made, header_bytes) = (&mut packed.report, header.to_bytes()?.len() as u64);
    made.file_bytes = file_bytes;
    made.bits_per_weight = file_bytes as f64 * 8.0 / made.parameters as f64;
    made.bytes.header = header_bytes;
    made.bytes.container = 0;
    made.bytes.container = file_bytes - made.bytes.total();
    // The measured file had no figures in it yet: what it weighs is what it weighs with them, and its
    // fingerprint is the one that a user will see.
    let finished = Source::open_path(&packed.output)?;
    let model = ModelFacts {
        file_bytes,
        bits_per_weight: made.bits_per_weight,
        fingerprint: finished.model_source().fingerprint(),
        ..report.model
    };
    packed.quality = Some(QualityReport { model, ..report });
    Ok(())
}

/// Puts measured figures into a header.
fn store(stored: &mut container::QualityReport, report: &QualityReport, config: &QualityConfig) {
    stored.protocol = config.label(report.windows);
    stored.text_blake3 = Some(report.text_blake3.clone());
    stored.tokens = Some(report.tokens);
    stored.kv = Some(report.kv.clone());
    stored.ppl = Some(report.ppl.value);
    stored.ppl_ci95 = report.ppl.ci95;
    stored.ppl_reference = report.reference.as_ref().map(|reference| reference.ppl.value);
    stored.reference = report.reference.as_ref().map(|r| r.model.fingerprint.clone());
    stored.kld_mean = report.kld.map(|kld| kld.mean);
    stored.kld_ci95 = report.kld.and_then(|kld| measure::half_width(kld.ci95));
    stored.kld_p99 = report.kld.map(|kld| kld.p99);
    stored.kld_p999 = report.kld.map(|kld| kld.p999);
    stored.same_top1 = report.same_top1;
    stored.delta_p_rms = report.delta_p_rms;
    stored.measured_by = Some(concat!("gristmill ", env!("CARGO_PKG_VERSION")).into());
}

/// Puts the bits per weight of the file with this header into the header; returns the file's bytes. The
/// figure's digits are part of what it counts, so this takes a few rounds; padding ends them.
fn settle_size(header: &mut Header, header_offset: u64) -> Result<u64> {
    const ROUNDS: usize = 4;
    const SCALE: f64 = 1e4;
    let parameters = header.model.parameter_count() as f64;
    let mut file_bytes = 0;
    for _ in 0..ROUNDS {
        let end = header_offset + header.to_bytes()?.len() as u64;
        file_bytes = end.next_multiple_of(PANEL_ALIGN as u64) + FOOTER_BYTES as u64;
        let bits = (file_bytes as f64 * 8.0 / parameters * SCALE).round() / SCALE;
        match &mut header.quality {
            Some(quality) if quality.bits_per_weight != bits => quality.bits_per_weight = bits,
            _ => break,
        }
    }
    Ok(file_bytes)
}

fn write_report(path: &Path, packed: &impl Serialize) -> Result<()> {
    let text = render::json_text(packed)?;
    let write = || fs::File::create(path)?.write_all(text.as_bytes());
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Lines that a plan and a report have in common.
fn sizes(facts: &mut Facts, file_bytes: u64, bits_per_weight: f64, bytes_per_token: u64) {
    facts.add(
        "size",
        format_args!(
            "{} ({file_bytes} bytes), {bits_per_weight:.3} bits per weight",
            render::bytes(file_bytes)
        ),
    );
    facts.add("per token", format_args!("{} of weights read", render::bytes(bytes_per_token)));
}

impl Render for Packed {
    fn text(&self) -> String {
        let report = &self.report;
        let mut facts = Facts::default();
        facts.add("wrote", self.output.display());
        facts.add("recipe", &report.recipe);
        sizes(&mut facts, report.file_bytes, report.bits_per_weight, report.bytes_per_token);
        facts.add("error", format_args!("{:.3e} of the weights' energy", report.relative_error));
        if let Some(calibration) = &report.calibration {
            let (name, tokens) = (&calibration.name, calibration.tokens);
            facts.add("calibration", format_args!("{tokens} tokens of {name}"));
        }
        if let Some(predicted) = report.predicted_kld {
            facts.add("predicted", format_args!("{predicted:.4} nats of divergence per token"));
        }
        if let Some(TuningReport { kept, epochs, divergence, .. }) = &report.tuning {
            let (before, after) = (divergence[0], divergence[*kept]);
            facts.add(
                "tuned",
                format_args!(
                    "{before:.4} -> {after:.4} nats over text held out, pass {kept} of {epochs}"
                ),
            );
        }
        facts.add("time", format_args!("{:.1} s, {} threads", report.seconds, report.threads));
        if let Some(peak) = self.peak_memory_bytes {
            facts.add(
                "memory",
                format_args!("{} at most, mapped files included", render::bytes(peak)),
            );
        }
        let mut text = facts.text();
        if let Some(quality) = &self.quality {
            text.push('\n');
            text.push_str(&quality.table());
        }
        text
    }
}

impl Render for Exported {
    fn text(&self) -> String {
        let mut facts = Facts::default();
        facts.add("wrote", self.output.display());
        facts.add("type", format_args!("GGUF {}", self.file_type));
        facts.add(
            "size",
            format_args!("{} ({} bytes)", render::bytes(self.file_bytes), self.file_bytes),
        );
        facts.add("time", format_args!("{:.1} s", self.seconds));
        facts.text()
    }
}

impl Render for DryRun {
    fn text(&self) -> String {
        let plan = &self.plan;
        let mut facts = Facts::default();
        facts.add("recipe", &plan.recipe);
        sizes(&mut facts, plan.file_bytes, plan.bits_per_weight, plan.bytes_per_token);
        let mut table = Table::new(["part", "bytes"]);
        for (part, bytes) in [
            ("embeddings", plan.bytes.embeddings),
            ("head", plan.bytes.head),
            ("linear layers", plan.bytes.linears),
            ("vectors", plan.bytes.vectors),
            ("scales", plan.bytes.scales),
            ("tokenizer", plan.bytes.tokenizer),
            ("header", plan.bytes.header),
            ("container", plan.bytes.container),
        ] {
            table.row([part.into(), bytes.to_string()]);
        }
        format!("{}\n{}", facts.text(), table.text())
    }
}
