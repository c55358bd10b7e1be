//! `eval`: perplexity, and divergence from a reference.

use std::fmt::Write;

use anyhow::Result;
use gristmill_eval::{KvChoice, QualityConfig, QualityReport, quality};
use gristmill_runtime::KvType;
use serde::Serialize;

use super::Session;
use crate::args::EvalArgs;
use crate::error::Outcome;
use crate::measure::{self, Setup};
use crate::progress::TerminalProgress;
use crate::render::{self, Render};
use crate::source::Source;

#[derive(Debug, Serialize)]
struct Evaluation {
    #[serde(flatten)]
    report: QualityReport,
    /// Null when the user named the type of the cache.
    kv_choice: Option<KvChoice>,
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

pub(super) fn run(session: Session, args: &EvalArgs) -> Result<Outcome> {
    let text = measure::read_text(&args.text)?;
    let source = Source::open(&args.model)?;
    let model = source.load()?;
    let mut config = QualityConfig::new(args.protocol);
    config.windows = args.windows;
    config = match args.ctx {
        Some(ctx) => QualityConfig { ctx, ..config },
        None => measure::config_for(&model, config),
    };
    let tokens = measure::tokenize(&source.tokenizer()?, &text)?;
    let setup = Setup { threads: args.threads.resolve()?, isa: session.isa, context: config.ctx };
    let (kv, kv_choice) = args.kv.resolve(&source, || Ok(model.clone()), &setup.config())?;
    let mut student = setup.engine(&model, kv)?;
    let mut reference = match &args.reference {
        // The usual cache type, so that the divergence is that of the weights, and shows the loss of
        // a narrower cache when one is asked for.
        Some(name) => {
            let kv = if kv == KvType::F32 { KvType::F32 } else { KvType::F16 };
            Some(setup.engine(&Source::open(name)?.load()?, kv)?)
        }
        None => None,
    };
    let progress = TerminalProgress::new();
    let report = quality(&mut student, reference.as_mut(), &tokens, &config, &progress)?;
    drop(progress);

    let limits = [
        ("ppl", Some(report.ppl.value), args.max_ppl),
        ("kld", report.kld.map(|kld| kld.mean), args.max_kld),
    ];
    let checks = limits.into_iter().filter_map(|(name, value, max)| {
        let (value, max) = (value?, max?);
        Some(Check { name, value, max, passed: value <= max })
    });
    let evaluation = Evaluation { checks: checks.collect(), kv_choice, report };
    render::emit(&evaluation, session.json)?;
    let passed = evaluation.checks.iter().all(|check| check.passed);
    Ok(if passed { Outcome::Done } else { Outcome::CheckFailed })
}

impl Render for Evaluation {
    fn text(&self) -> String {
        let mut text = self.report.table();
        for check in &self.checks {
            let Check { name, value, max, passed } = check;
            let verdict = if *passed { "passed" } else { "FAILED" };
            let _ = writeln!(text, "check {verdict}: {name} {value:.6}, at most {max}");
        }
        text
    }
}
