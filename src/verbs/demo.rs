//! `demo`: the whole story on a built-in model. What it prints can be had step by step with the other
//! verbs.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use gristmill_eval::{
    BenchConfig, Divergence, Estimate, Host, Protocol, QualityConfig, QualityReport, Ratio, bench,
    quality,
};
use gristmill_formats::codec::CodecId;
use gristmill_formats::container;
use gristmill_formats::{Progress, Silent};
use gristmill_quantize::{Calibration, Method, Recipe};
use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{EngineConfig, KvType};
use serde::Serialize;

use super::Session;
use super::quantize::{calibration, pack};
use crate::args::DemoArgs;
use crate::error::{Interrupted, Outcome};
use crate::generate::{Request, generate};
use crate::measure::{self, BRIEF_WINDOWS, Setup};
use crate::progress::TerminalProgress;
use crate::render::{self, Render, SCHEMA_VERSION, Table};
use crate::source::{Source, open_packed};
use crate::{embedded, interrupt, knobs};

/// The rungs that are shown, widest first, and how they are rounded.
const RUNGS: [(CodecId, Method); 6] = [
    (CodecId::Bf16, Method::Rtn),
    (CodecId::Q8, Method::Rtn),
    (CodecId::Q4, Method::Rtn),
    (CodecId::Q4, Method::Gptq),
    (CodecId::Q3, Method::Rtn),
    (CodecId::Q3, Method::Gptq),
];
const PROMPT: &str = "ROMEO:\n";
const GENERATED_TOKENS: usize = 80;
const REPORT_FILE: &str = "report.json";

#[derive(Debug, Serialize)]
struct Demo {
    schema_version: u32,
    model: &'static str,
    rows: Vec<Row>,
    prompt: &'static str,
    /// What the smallest file continues the prompt with, greedily.
    text: String,
    #[serde(flatten)]
    circumstances: Circumstances,
    seconds: f64,
    /// Where the files were kept, if they were.
    directory: Option<PathBuf>,
}

/// How it was measured; the same for all rows.
#[derive(Debug, Serialize)]
struct Circumstances {
    protocol: Protocol,
    ctx: usize,
    windows: usize,
    tokens: u64,
    text_blake3: String,
    kv: String,
    threads: usize,
    isa: String,
    host: Host,
}

/// One model: the checkpoint, or a file packed from it. Absent figures are null: the checkpoint is not
/// compared with itself.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    file_bytes: u64,
    bits_per_weight: f64,
    quantize_seconds: Option<f64>,
    verified: Option<bool>,
    ppl: Estimate,
    ppl_ratio: Option<Ratio>,
    kld: Option<Divergence>,
    same_top1: Option<f64>,
    #[serde(flatten)]
    speed: Speed,
}

#[derive(Debug, Serialize)]
struct Speed {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    ttft_ms: f64,
    bytes_per_token: u64,
    /// Why the speeds are not comparable with others, if so.
    warnings: Vec<String>,
}

pub(super) fn run(session: Session, args: &DemoArgs) -> Result<Outcome> {
    let start = Instant::now();
    let temporary;
    let directory = match &args.out {
        Some(directory) => {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
            directory.as_path()
        }
        None => {
            temporary = tempfile::tempdir().context("cannot create a temporary directory")?;
            temporary.path()
        }
    };
    let progress = TerminalProgress::new();
    let stage = Stage { session, threads: knobs::threads()?, progress: &progress };
    let checkpoint = Source::open_path(&embedded::extract(directory)?)?;

    let mut rows = Vec::new();
    let mut smallest = checkpoint.clone();
    let mut circumstances = None;
    for (codec, method) in RUNGS {
        let name =
            if method.is_calibrated() { format!("{codec} {method}") } else { codec.to_string() };
        let file = format!("{}-{}.grist", embedded::NAME, name.replace(' ', "-"));
        let output = directory.join(file);
        let mut recipe = Recipe { method, ..Recipe::new(codec) };
        if method.is_calibrated() {
            let tokens = Calibration::DEFAULT_TOKENS;
            recipe.calibration = Some(calibration(&checkpoint, None, tokens)?);
        }
        let packed = pack(&checkpoint, &recipe, &output, stage.threads, &progress)?;
        if let Some(damage) = container::verify(&open_packed(&output)?, &Silent).first() {
            bail!("{} is damaged: {}: {}", output.display(), damage.part, damage.detail);
        }
        smallest = Source::open_path(&output)?;
        let quality = stage.quality(&smallest, &checkpoint)?;
        let reference = quality.reference.as_ref().context("there is a reference")?;
        if rows.is_empty() {
            rows.push(Row {
                name: "checkpoint".into(),
                file_bytes: reference.model.file_bytes,
                bits_per_weight: reference.model.bits_per_weight,
                quantize_seconds: None,
                verified: None,
                ppl: reference.ppl,
                ppl_ratio: None,
                kld: None,
                same_top1: None,
                speed: stage.speed(&checkpoint)?,
            });
        }
        rows.push(Row {
            name,
            file_bytes: quality.model.file_bytes,
            bits_per_weight: quality.model.bits_per_weight,
            quantize_seconds: Some(packed.report.seconds),
            verified: Some(true),
            ppl: quality.ppl,
            ppl_ratio: quality.ppl_ratio,
            kld: quality.kld,
            same_top1: quality.same_top1,
            speed: stage.speed(&smallest)?,
        });
        circumstances = Some(Circumstances {
            protocol: quality.protocol,
            ctx: quality.ctx,
            windows: quality.windows,
            tokens: quality.tokens,
            text_blake3: quality.text_blake3,
            kv: quality.kv,
            threads: quality.threads,
            isa: quality.isa,
            host: quality.host,
        });
    }
    let text = stage.continuation(&smallest)?;
    drop(progress);
    if interrupt::requested() {
        return Err(Interrupted.into());
    }

    let demo = Demo {
        schema_version: SCHEMA_VERSION,
        model: embedded::NAME,
        rows,
        prompt: PROMPT,
        text,
        circumstances: circumstances.context("there are codecs")?,
        seconds: start.elapsed().as_secs_f64(),
        directory: args.out.clone(),
    };
    if let Some(directory) = &args.out {
        let path = directory.join(REPORT_FILE);
        let written = fs::write(&path, render::json_text(&demo)?);
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    render::emit(&demo, session.json)?;
    Ok(Outcome::Done)
}

/// What all measurements have in common.
struct Stage<'a> {
    session: Session,
    threads: Option<usize>,
    progress: &'a dyn Progress,
}

impl Stage<'_> {
    fn speed(&self, source: &Source) -> Result<Speed> {
        let open = || {
            let model = Source::open_path(&source.path).and_then(|source| source.load());
            model.map_err(|error| format!("{error:#}"))
        };
        let default = BenchConfig::default();
        let config = BenchConfig {
            threads: self.threads.map_or(default.threads, |threads| vec![threads]),
            prompts: vec![256],
            r#gen: 128,
            depths: vec![0],
            repeat: 3,
            kv: KvType::F16,
            isa: self.session.isa,
        };
        let report = bench(&open, &config, self.progress)?;
        let row = report.rows.first().context("the benchmark has a row")?;
        Ok(Speed {
            prefill_tok_s: row.prefill_tok_s,
            decode_tok_s: row.decode_tok_s,
            ttft_ms: row.ttft_ms.p50,
            bytes_per_token: row.bytes_per_token,
            warnings: report.warnings,
        })
    }

    /// Measures a packed file against the checkpoint on the built-in text.
    fn quality(&self, source: &Source, checkpoint: &Source) -> Result<QualityReport> {
        let model = source.load()?;
        let text = std::str::from_utf8(embedded::HELDOUT)?;
        let tokens = measure::tokenize(&source.tokenizer()?, text)?;
        let config =
            QualityConfig { windows: Some(BRIEF_WINDOWS), ..QualityConfig::new(Protocol::Chunk) };
        let config = measure::config_for(&model, config);
        let setup = Setup { threads: self.threads, isa: self.session.isa, context: config.ctx };
        let mut student = setup.engine(&model, KvType::F16)?;
        let mut reference = setup.engine(&checkpoint.load()?, KvType::F16)?;
        Ok(quality(&mut student, Some(&mut reference), &tokens, &config, self.progress)?)
    }

    /// The prompt, continued greedily.
    fn continuation(&self, source: &Source) -> Result<String> {
        let tokenizer = source.tokenizer()?;
        let config = EngineConfig {
            threads: self.threads,
            isa: self.session.isa,
            ..EngineConfig::default()
        };
        let mut engine = gristmill_runtime::Engine::new(source.load()?, &config)?;
        let vocab_size = engine.model().spec().vocab_size as usize;
        let mut sampler = Sampler::new(SamplerConfig::greedy(), vocab_size)?;
        let assets = source.model_source();
        let request = Request {
            prompt: &tokenizer.encode(PROMPT, true)?,
            cached: 0,
            max_tokens: GENERATED_TOKENS,
            stop_ids: &assets.text().stop_ids,
            stop_strings: &[],
        };
        let generated = generate(&mut engine, &tokenizer, &mut sampler, &request, &mut |_| Ok(()))?;
        Ok(generated.text)
    }
}

impl Render for Demo {
    fn text(&self) -> String {
        let mut table = Table::new([
            "file",
            "bytes",
            "bits/weight",
            "PPL ± stderr",
            "KLD ± 95 %",
            "same top 1",
            "prefill tok/s",
            "decode tok/s",
            "MB/token",
        ]);
        for row in &self.rows {
            let kld = row.kld.map_or("-".into(), |kld| {
                let half = measure::half_width(kld.ci95).unwrap_or(f64::NAN);
                format!("{:.6} ± {half:.6}", kld.mean)
            });
            table.row([
                row.name.clone(),
                row.file_bytes.to_string(),
                format!("{:.2}", row.bits_per_weight),
                format!("{:.3} ± {:.3}", row.ppl.value, row.ppl.stderr),
                kld,
                row.same_top1.map_or("-".into(), |share| format!("{:.2} %", share * 100.0)),
                render::rate(row.speed.prefill_tok_s),
                render::rate(row.speed.decode_tok_s),
                format!("{:.2}", row.speed.bytes_per_token as f64 / 1e6),
            ]);
        }
        let Circumstances { protocol, ctx, windows, tokens, isa, threads, .. } =
            &self.circumstances;
        let mut text = table.text();
        let _ = writeln!(
            text,
            "\n{}: PPL and KLD against the checkpoint, {protocol} protocol, {windows} windows of {ctx}, \
             {tokens} tokens.\nEvery file is verified. {isa}, {threads} threads, {:.1} s in all.",
            self.model, self.seconds,
        );
        if let Some(warning) = self.rows.iter().flat_map(|row| &row.speed.warnings).next() {
            let _ = writeln!(text, "warning: {warning}");
        }
        let last = self.rows.last().map_or("", |row| &row.name);
        let _ = writeln!(text, "\n{last} continues \"{}\":\n{}", self.prompt.trim(), self.text);
        let _ = match &self.directory {
            Some(directory) => {
                writeln!(text, "\nFiles and {REPORT_FILE} are in {}.", directory.display())
            }
            None => writeln!(text, "\n`gristmill demo --out DIR` keeps the files."),
        };
        text
    }
}
