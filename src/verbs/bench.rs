//! `bench`: speed and memory.

use anyhow::Result;
use gristmill_eval::{BenchConfig, BenchReport, KvChoice, bench};
use gristmill_runtime::EngineConfig;
use serde::Serialize;

use super::Session;
use crate::args::BenchArgs;
use crate::error::Outcome;
use crate::knobs;
use crate::progress::TerminalProgress;
use crate::render::{self, Render};
use crate::source::Source;

/// Tokens of the prompt when no flag says so.
pub(super) const DEFAULT_PROMPT: usize = 512;

pub(super) fn run(session: Session, args: &BenchArgs) -> Result<Outcome> {
    let source = Source::open(&args.model)?;
    let mut config = BenchConfig {
        prompt: args.prompt.unwrap_or(DEFAULT_PROMPT),
        r#gen: args.r#gen,
        depth: args.depth,
        repeat: args.repeat,
        isa: session.isa,
        ..BenchConfig::default()
    };
    if args.prompt.is_none() {
        let limit = source.model_source().spec().max_context as usize;
        let room = limit.saturating_sub(args.r#gen).saturating_sub(args.depth).max(1);
        if room < config.prompt {
            config.prompt = room;
            render::note(format_args!(
                "note: a prompt of {room}, as the model takes {limit} tokens"
            ));
        }
    }
    if !args.threads.is_empty() {
        config.threads = args.threads.iter().map(|&threads| threads as usize).collect();
    } else if let Some(threads) = knobs::threads()? {
        config.threads = vec![threads];
    }
    let engines = EngineConfig {
        threads: config.threads.iter().max().copied(),
        isa: session.isa,
        ..EngineConfig::default()
    };
    let (kv, kv_choice) = args.kv.resolve(&source, || source.load(), &engines)?;
    config.kv = kv;
    let path = source.path.clone();
    drop(source);
    let open = || {
        let source = Source::open_path(&path);
        let load = |source: Source| source.load_as(args.residency, args.head, None);
        source.and_then(load).map_err(|error| format!("{error:#}"))
    };
    let progress = TerminalProgress::new();
    let report = bench(&open, &config, &progress)?;
    drop(progress);
    render::emit(&Benchmark { report, kv_choice }, session.json)?;
    Ok(Outcome::Done)
}

#[derive(Debug, Serialize)]
struct Benchmark {
    #[serde(flatten)]
    report: BenchReport,
    /// Null when the user named the type of the cache.
    kv_choice: Option<KvChoice>,
}

impl Render for Benchmark {
    fn text(&self) -> String {
        self.report.table()
    }
}
