//! `eval --choices`: multiple-choice questions.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use gristmill_eval::{ChoiceReport, ChoiceTask, EncodedTask, KvChoice, choices};
use serde::Serialize;

use super::{Session, reference};
use crate::args::EvalArgs;
use crate::error::{Outcome, WithHint};
use crate::measure::Setup;
use crate::progress::TerminalProgress;
use crate::render::{self, Render};
use crate::source::Source;

#[derive(Debug, Serialize)]
struct Answers {
    #[serde(flatten)]
    report: ChoiceReport,
    /// Null when the user named the type of the cache.
    kv_choice: Option<KvChoice>,
}

pub(super) fn run(session: Session, args: &EvalArgs, path: &Path) -> Result<Outcome> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    let task = ChoiceTask::from_jsonl(&bytes).with_context(|| shown.to_string()).hint(
        "one JSON object a line: {\"query\": \"…\", \"choices\": [\"…\", \"…\"], \"gold\": 0}, or the \
         lines of HellaSwag or ARC",
    )?;
    let source = Source::open(&args.model)?;
    let model = source.load()?;
    let limit = model.spec().max_context as usize;
    let task =
        EncodedTask::new(&task, &source.tokenizer()?, limit).with_context(|| shown.to_string())?;
    let setup =
        Setup { threads: args.threads.resolve()?, isa: session.isa, context: task.context() };
    let (kv, kv_choice) = args.kv.resolve(&source, || Ok(model.clone()), &setup.config())?;
    let mut student = setup.engine(&model, kv)?;
    let mut reference = reference(args, &setup, kv)?;
    let progress = TerminalProgress::new();
    let report = choices(&mut student, reference.as_mut(), &task, &progress)?;
    drop(progress);
    render::emit(&Answers { report, kv_choice }, session.json)?;
    Ok(Outcome::Done)
}

impl Render for Answers {
    fn text(&self) -> String {
        self.report.table()
    }
}
