//! `bench`: speed and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use gristmill_eval::{
    BenchConfig, BenchDocument, BenchReport, Comparison, FirstText, Interleaved, KvChoice,
    MAX_SILENT_TOKENS, ModelShape, PredictConfig, PredictionError, Request, Start, SustainedConfig,
    Ttft, bench, first_text, predict, prompt_text, score, sustained,
};
use gristmill_formats::Progress;
use gristmill_quantize::Calibration;
use gristmill_runtime::text::Tokenizer;
use gristmill_runtime::{Engine, EngineConfig, Head, Model, available_memory_bytes};
use serde::Serialize;

use super::Session;
use crate::args::BenchArgs;
use crate::bench::{ColdRequest, cold_run, cold_starts, interleave, list};
use crate::error::{Interrupted, Outcome, WithHint};
use crate::kv::KvArg;
use crate::progress::TerminalProgress;
use crate::render::{self, Render};
use crate::source::{Source, locate};
use crate::{interrupt, knobs, machine};

/// Tokens of the prompt when no flag says so.
const DEFAULT_PROMPT: usize = 512;
/// Tokens generated when no flag says so, for a row and in a sustained run.
const DEFAULT_GEN: usize = 128;
const DEFAULT_SUSTAINED_GEN: usize = 256;
/// Fresh processes for each of several files.
const DEFAULT_ROUNDS: u64 = 5;
/// Cold starts of each kind, and warm ones; fewer when there are fewer repeats.
const STARTS: usize = 3;

pub(super) fn run(session: Session, args: &BenchArgs) -> Result<Outcome> {
    let earlier = args.compare.as_deref().map(read_document).transpose()?;
    match (args.models.as_slice(), args.rounds) {
        ([model], None) => match args.cold_run {
            Some(began) => answer_once(session, args, model, began),
            None => one(session, args, model, earlier.as_ref()),
        },
        (models, rounds) => {
            // Before the first run, not after an hour of them.
            models.iter().try_for_each(|model| locate(model).map(drop))?;
            let rounds = rounds.unwrap_or(DEFAULT_ROUNDS) as usize;
            let progress = TerminalProgress::new();
            let compared = interleave(models, &words(args), rounds, &progress)?;
            drop(progress);
            let document = BenchDocument::Interleaved(Box::new(compared));
            finish(session, args, document, None, earlier.as_ref())
        }
    }
}

/// What `bench --json` printed earlier.
fn read_document(path: &Path) -> Result<BenchDocument> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let document = BenchDocument::from_json(&text);
    document
        .with_context(|| format!("{shown} is no report of a benchmark"))
        .hint("give what `gristmill bench MODEL --json` printed")
}

/// Prints a measurement, compared with an earlier one if there is one.
fn finish(
    session: Session,
    args: &BenchArgs,
    document: BenchDocument,
    kv_choice: Option<KvChoice>,
    earlier: Option<&BenchDocument>,
) -> Result<Outcome> {
    let comparison = earlier.map(|earlier| Comparison::of(&document, earlier, args.max_slowdown));
    let failed = comparison.as_ref().is_some_and(|comparison| comparison.passed == Some(false));
    render::emit(&Benchmark { document, kv_choice, comparison }, session.json)?;
    Ok(if failed { Outcome::CheckFailed } else { Outcome::Done })
}

/// The arguments of one measurement, as users type them.
fn words(args: &BenchArgs) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    if !args.threads.is_empty() {
        add("--threads", list(args.threads.iter().map(|&threads| threads as usize)));
    }
    if !args.prompt.is_empty() {
        add("--prompt", list(args.prompt.iter().copied()));
    }
    if let Some(tokens) = args.r#gen {
        add("--gen", tokens.to_string());
    }
    if let Some(cold) = args.cold {
        add("--cold", cold.to_string());
    }
    if let Some(seconds) = args.sustained {
        add("--sustained", seconds.to_string());
        add("--throttled-below", args.throttled_below.to_string());
    }
    add("--depth", list(args.depth.iter().copied()));
    add("--repeat", args.repeat.to_string());
    add("--kv", args.kv.name().into());
    add("--residency", args.residency.name().into());
    add("--head", args.head.name().into());
    words
}

/// A cold start: this process was started to answer one prompt.
fn answer_once(session: Session, args: &BenchArgs, model: &str, began: u128) -> Result<Outcome> {
    let KvArg::Is(kv) = args.kv else { anyhow::bail!("a cold start needs a type of cache") };
    let threads = args.threads.first().map(|&threads| threads as usize);
    let config = EngineConfig { threads, isa: session.isa, kv, ..EngineConfig::default() };
    let prompt = args.prompt.first().copied().unwrap_or(DEFAULT_PROMPT);
    let load = |source: &Source| source.load_as(args.residency, args.head, threads);
    cold_run(model, began, config, prompt, load)?;
    Ok(Outcome::Done)
}

/// One file, in this process but for its cold starts.
fn one(
    session: Session,
    args: &BenchArgs,
    model: &str,
    earlier: Option<&BenchDocument>,
) -> Result<Outcome> {
    let source = Source::open(model)?;
    let limit = source.model_source().spec().max_context as usize;
    let mut config = config(session, args, limit)?;
    let engines = EngineConfig {
        threads: config.threads.iter().max().copied(),
        isa: session.isa,
        ..EngineConfig::default()
    };
    let (kv, kv_choice) = args.kv.resolve(&source, || source.load(), &engines)?;
    config.kv = kv;
    let (path, files) = (source.path.clone(), source.files());
    let file_bytes = source.model_source().file_bytes();
    drop(source);
    let subject = Subject { args, path: &path, files: &files, file_bytes };
    let open = || subject.open().map_err(|error| format!("{error:#}"));
    let progress = TerminalProgress::new();
    // First, so that no memory of what follows counts as the model's.
    let mut report = bench(&open, &config, &progress)?;
    report.prediction = subject.prediction(&config, &report)?;
    report.ttft = Some(subject.ttft(&config, limit, &progress)?);
    if let Some(seconds) = args.sustained {
        let prompt = config.prompts[0];
        let room = limit.saturating_sub(prompt).max(1);
        let run = SustainedConfig {
            seconds: seconds as f64,
            threads: config.threads.iter().max().copied().unwrap_or(1),
            prompt,
            r#gen: args.r#gen.unwrap_or(DEFAULT_SUSTAINED_GEN.min(room)),
            throttled_below: args.throttled_below,
            kv: config.kv,
            isa: config.isa,
        };
        report.sustained = Some(sustained(&open, &run, &progress)?);
    }
    drop(progress);
    finish(session, args, BenchDocument::One(Box::new(report)), kv_choice, earlier)
}

/// Tokens of the prompt when no flag says so, for a model of so many positions of which some are taken.
pub(super) fn usual_prompt(limit: usize, taken: usize) -> usize {
    DEFAULT_PROMPT.min(limit.saturating_sub(taken).max(1))
}

/// What is measured, by the flags and the model's limit.
fn config(session: Session, args: &BenchArgs, limit: usize) -> Result<BenchConfig> {
    let mut config = BenchConfig {
        prompts: args.prompt.clone(),
        r#gen: args.r#gen.unwrap_or(DEFAULT_GEN),
        depths: args.depth.clone(),
        repeat: args.repeat,
        isa: session.isa,
        ..BenchConfig::default()
    };
    if config.prompts.is_empty() {
        let deepest = args.depth.iter().copied().max().unwrap_or(0);
        let prompt = usual_prompt(limit, config.r#gen.saturating_add(deepest));
        config.prompts = vec![prompt];
        if prompt < DEFAULT_PROMPT {
            render::note(format_args!(
                "note: a prompt of {prompt}, as the model takes {limit} tokens"
            ));
        }
    }
    if !args.threads.is_empty() {
        config.threads = args.threads.iter().map(|&threads| threads as usize).collect();
    } else if let Some(threads) = knobs::threads()? {
        config.threads = vec![threads];
    }
    Ok(config)
}

/// The prompt whose time to first token is measured: text of the first prompt's length, for the largest
/// number of threads.
struct TextRequest {
    tokens: usize,
    /// Positions that it needs with its answer.
    context: usize,
    threads: usize,
    /// With the text; `None` for a model without a tokenizer.
    tokenizer: Option<(Tokenizer, String)>,
}

impl TextRequest {
    fn new(source: &Source, config: &BenchConfig, limit: usize) -> Result<Self> {
        let room = limit.saturating_sub(MAX_SILENT_TOKENS).max(1);
        let tokens = config.prompts.first().copied().unwrap_or(DEFAULT_PROMPT).clamp(1, room);
        let threads = config.threads.iter().max().copied().unwrap_or(1);
        let has_tokenizer = source.model_source().tokenizer().is_ok_and(|data| data.is_some());
        let tokenizer = match has_tokenizer {
            true => {
                let tokenizer = source.tokenizer()?;
                let text = prompt_text(&tokenizer, &Calibration::built_in_text(), tokens)?;
                Some((tokenizer, text))
            }
            false => None,
        };
        let context = (tokens + MAX_SILENT_TOKENS).min(limit);
        Ok(Self { tokens, context, threads, tokenizer })
    }

    fn text(&self) -> Option<&str> {
        self.tokenizer.as_ref().map(|(_, text)| text.as_str())
    }

    fn request(&self) -> Request<'_> {
        match &self.tokenizer {
            Some((tokenizer, text)) => Request::Text(tokenizer, text),
            None => Request::Tokens(self.tokens),
        }
    }
}

/// The file and how it is opened.
struct Subject<'a> {
    args: &'a BenchArgs,
    path: &'a Path,
    files: &'a [PathBuf],
    file_bytes: u64,
}

impl Subject<'_> {
    fn source(&self) -> Result<Source> {
        Source::open_path(self.path)
    }

    fn open(&self) -> Result<Arc<Model>> {
        self.source()?.load_as(self.args.residency, self.args.head, None)
    }

    /// How far off a prediction for these rows would have been, if this machine was probed for it.
    fn prediction(
        &self,
        config: &BenchConfig,
        report: &BenchReport,
    ) -> Result<Option<Vec<PredictionError>>> {
        // What a head in two stages will skip is not known before.
        let known = if self.args.head == Head::Full { machine::recall() } else { None };
        let Some(machine) = known else { return Ok(None) };
        let shape = ModelShape::of(&*self.source()?.model_source())?;
        let mut errors = Vec::new();
        for (&depth, &prompt) in
            config.depths.iter().flat_map(|d| config.prompts.iter().map(move |p| (d, p)))
        {
            let config = PredictConfig {
                threads: config.threads.clone(),
                prompt,
                r#gen: config.r#gen,
                depth,
                context: None,
                kv: config.kv,
                residency: self.args.residency,
                available_bytes: available_memory_bytes(),
            };
            // A rate that was not probed: nothing was predicted.
            let Ok(predicted) = predict(&shape, &machine, &config) else { return Ok(None) };
            errors.extend(score(&predicted, report));
        }
        Ok(Some(errors))
    }

    fn cold_starts(
        &self,
        config: &BenchConfig,
        request: &TextRequest,
        count: usize,
        progress: &dyn Progress,
    ) -> Result<(Start, Result<Start, String>)> {
        let words = [
            ("--threads", request.threads.to_string()),
            ("--prompt", request.tokens.to_string()),
            ("--kv", config.kv.name().into()),
            ("--residency", self.args.residency.name().into()),
            ("--head", self.args.head.name().into()),
        ];
        let arguments: Vec<String> =
            words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let request = ColdRequest {
            model: self.path,
            files: self.files,
            file_bytes: self.file_bytes,
            arguments: &arguments,
            text: request.text(),
        };
        cold_starts(&request, count, progress)
    }

    /// Times to first token: of fresh processes, and of this one.
    fn ttft(&self, config: &BenchConfig, limit: usize, progress: &dyn Progress) -> Result<Ttft> {
        // Not kept open: what this process has mapped cannot be dropped from the file cache.
        let request = TextRequest::new(&self.source()?, config, limit)?;
        let cold = match self.args.cold.unwrap_or(STARTS.min(config.repeat)) {
            0 => None,
            count => Some(self.cold_starts(config, &request, count, progress)?),
        };
        let mut engine = Engine::new(
            self.open()?,
            &EngineConfig {
                threads: Some(request.threads),
                isa: config.isa,
                context: Some(request.context),
                kv: config.kv,
                ..EngineConfig::default()
            },
        )?;
        let count = STARTS.min(config.repeat);
        progress.begin("warm starts", count as u64 + 1, "starts");
        let mut answers: Vec<FirstText> = Vec::with_capacity(count + 1);
        for _ in 0..=count {
            if interrupt::requested() {
                return Err(Interrupted.into());
            }
            answers.push(first_text(&mut engine, request.request(), &mut |_| Ok(()))?);
            progress.advance(1);
        }
        // The first one warmed up.
        let warm = Start::warm(&answers[1..]);
        let mut reasons = Vec::new();
        if request.tokenizer.is_none() {
            reasons.push(
                "the model has no tokenizer: tokenizing and detokenizing are not in the times"
                    .into(),
            );
        }
        let (cold, uncached) = match cold {
            Some((cold, uncached)) => {
                (Some(cold), uncached.map_err(|reason| reasons.push(reason)).ok())
            }
            None => {
                reasons.push("no cold starts were asked for (--cold)".into());
                (None, None)
            }
        };
        Ok(Ttft {
            prompt_tokens: answers[0].prompt_tokens,
            prompt_bytes: request.text().map(str::len),
            threads: request.threads,
            warm,
            cold,
            uncached,
            reasons,
        })
    }
}

#[derive(Debug, Serialize)]
struct Benchmark {
    #[serde(flatten)]
    document: BenchDocument,
    /// Null when the user named the type of the cache.
    kv_choice: Option<KvChoice>,
    /// Null when there was nothing to compare with.
    comparison: Option<Comparison>,
}

impl Render for Benchmark {
    fn text(&self) -> String {
        let mut text = match &self.document {
            BenchDocument::One(report) => BenchReport::table(report),
            BenchDocument::Interleaved(all) => Interleaved::table(all),
        };
        if let Some(comparison) = &self.comparison {
            text.push('\n');
            text.push_str(&comparison.table());
        }
        text
    }
}
