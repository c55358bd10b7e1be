//! `eval`: perplexity, divergence from a reference, multiple-choice questions.

mod choices;
mod embedded;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use gristmill_eval::{
    EarlierReport, KvChoice, QualityComparison, QualityConfig, QualityReport, TextTokens, quality,
};
use gristmill_runtime::{Engine, KvType};
use serde::Serialize;

use super::Session;
use crate::args::EvalArgs;
use crate::error::{Outcome, Usage, WithHint};
use crate::measure::{self, Setup};
use crate::progress::TerminalProgress;
use crate::render::{self, Render};
use crate::source::Source;
use embedded::{Drift, Embedded};

#[derive(Debug, Serialize)]
struct Evaluation {
    #[serde(flatten)]
    report: QualityReport,
    /// Null when the user named the type of the cache.
    kv_choice: Option<KvChoice>,
    /// Null without `--against`.
    against: Option<QualityComparison>,
    /// Null without `--against-embedded`.
    drift: Option<Drift>,
    checks: Vec<Check>,
}

/// A limit that the user set.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    value: f64,
    max: f64,
    passed: bool,
}

impl Check {
    fn new(name: &'static str, value: f64, max: f64) -> Self {
        Self { name, value, max, passed: value <= max }
    }
}

pub(super) fn run(session: Session, args: &EvalArgs) -> Result<Outcome> {
    match &args.choices {
        Some(path) => choices::run(session, args, path),
        None => run_text(session, args),
    }
}

fn run_text(session: Session, args: &EvalArgs) -> Result<Outcome> {
    let text = args.text.as_deref().map(measure::read_text).transpose()?;
    let earlier = args.against.as_deref().map(read_report).transpose()?;
    let source = Source::open(&args.model)?;
    let embedded = args.against_embedded.then(|| Embedded::of(&source)).transpose()?;
    let text = match (text, &embedded) {
        (Some(text), Some(embedded)) => embedded.check_text(text)?,
        (None, Some(embedded)) => embedded.built_in_text()?,
        (text, None) => text.context("the arguments need a text")?,
    };
    let model = source.load()?;
    let config = match &embedded {
        Some(embedded) => embedded.config,
        None => {
            let limit = model.spec().max_context as usize;
            config(args, limit)?
        }
    };
    let tokens = measure::tokenize(&source.tokenizer()?, &text)?;
    if let Some(earlier) = &earlier {
        check_earlier(earlier, args, &tokens, &config)?;
    }
    let setup =
        Setup { threads: args.threads.resolve()?, isa: session.isa, context: config.context() };
    let (kv, kv_choice) = match &embedded {
        Some(embedded) => (embedded.kv, None),
        None => args.kv.resolve(&source, || Ok(model.clone()), &setup.config())?,
    };
    let mut student = setup.engine(&model, kv)?;
    let mut reference = reference(args, &setup, kv)?;
    if let (Some(embedded), Some(reference)) = (&embedded, &reference) {
        embedded.check_reference(reference)?;
    }
    let progress = TerminalProgress::new();
    let report = quality(&mut student, reference.as_mut(), &tokens, &config, &progress)?;
    drop(progress);

    let limits = [
        ("ppl", Some(report.ppl.value), args.max_ppl),
        ("kld", report.kld.map(|kld| kld.mean), args.max_kld),
    ];
    let limits = limits.into_iter();
    let mut checks: Vec<_> =
        limits.filter_map(|(name, value, max)| Some(Check::new(name, value?, max?))).collect();
    let drift = embedded.as_ref().map(|embedded| embedded.drift(&report));
    if let Some(drift) = &drift {
        checks.push(Check::new("ppl_drift", drift.ppl.drift, args.max_drift));
        checks.extend(drift.kld.map(|kld| Check::new("kld_drift", kld.drift, args.max_drift)));
    }
    let against = earlier.as_ref().map(|earlier| earlier.compare(&report));
    let evaluation = Evaluation { checks, against, drift, kv_choice, report };
    render::emit(&evaluation, session.json)?;
    let passed = evaluation.checks.iter().all(|check| check.passed);
    Ok(if passed { Outcome::Done } else { Outcome::CheckFailed })
}

/// What the arguments ask to be scored, with a window that the model takes.
fn config(args: &EvalArgs, limit: usize) -> Result<QualityConfig> {
    let depth = args.depth;
    if depth >= limit {
        return Err(Usage(format!("a depth of {depth}; the model's context is {limit}")))
            .hint("choose a --depth that leaves room for a window");
    }
    let usual = QualityConfig::new(args.protocol);
    let ctx = args.ctx.unwrap_or(usual.ctx.min(limit - depth));
    Ok(QualityConfig { ctx, windows: args.windows, depth, path: args.path, ..usual })
}

/// The engine to compare with.
fn reference(args: &EvalArgs, setup: &Setup, kv: KvType) -> Result<Option<Engine>> {
    let Some(name) = &args.reference else { return Ok(None) };
    Ok(Some(setup.engine(&Source::open(name)?.load()?, measure::reference_kv(kv))?))
}

fn read_report(path: &Path) -> Result<EarlierReport> {
    let shown = path.display();
    let json = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    EarlierReport::from_json(&json)
        .with_context(|| shown.to_string())
        .hint("give what `gristmill eval MODEL --text FILE --json` printed")
}

/// Whether the earlier report is of the windows that are going to be scored.
fn check_earlier(
    earlier: &EarlierReport,
    args: &EvalArgs,
    tokens: &TextTokens,
    config: &QualityConfig,
) -> Result<()> {
    let path = args.against.as_deref().unwrap_or(Path::new("--against"));
    earlier
        .check(tokens, config)
        .with_context(|| path.display().to_string())
        .hint("measure both models with the same --text, --protocol, --ctx, --depth and --windows")
}

impl Render for Evaluation {
    fn text(&self) -> String {
        let mut text = format!("{}\n{}", self.report.table(), self.report.position_table());
        if let Some(against) = &self.against {
            text.push('\n');
            text.push_str(&against.table());
        }
        if let Some(drift) = &self.drift {
            text.push('\n');
            text.push_str(&drift.text());
        }
        for check in &self.checks {
            let Check { name, value, max, passed } = check;
            let verdict = if *passed { "passed" } else { "FAILED" };
            let _ = writeln!(text, "check {verdict}: {name} {value:.6}, at most {max}");
        }
        text
    }
}
