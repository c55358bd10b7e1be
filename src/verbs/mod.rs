//! The verbs, one file each.

mod bench;
mod chat;
mod demo;
mod eval;
mod hwbench;
mod inspect;
mod pareto;
mod predict;
mod quantize;
mod run;
mod verify;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use gristmill_eval::KvChoice;
use gristmill_runtime::text::Sampler;
use gristmill_runtime::{Engine, EngineConfig, Isa};

use crate::args::{Cli, EngineArgs, Verb};
use crate::error::Outcome;
use crate::source::Source;
use crate::{interrupt, knobs, render};

/// What every verb is given.
#[derive(Debug, Clone, Copy)]
struct Session {
    /// Print JSON.
    json: bool,
    /// Instruction set, where the environment lowers it.
    isa: Option<Isa>,
}

/// Does what the arguments say.
pub(crate) fn run(cli: Cli) -> Result<Outcome> {
    let session = Session { json: cli.json, isa: knobs::isa()? };
    // Whoever inspects wants no cleaning up: there Ctrl-C ends the process as usual.
    if !matches!(cli.verb, Verb::Inspect(_)) {
        interrupt::install()?;
    }
    match cli.verb {
        Verb::Demo(args) => demo::run(session, &args),
        Verb::Quantize(args) => quantize::run(session, &args),
        Verb::Run(args) => run::run(session, &args),
        Verb::Chat(args) => chat::run(session, &args),
        Verb::Eval(args) => eval::run(session, &args),
        Verb::Bench(args) => bench::run(session, &args),
        Verb::Hwbench(args) => hwbench::run(session, &args),
        Verb::Predict(args) => predict::run(session, &args),
        Verb::Pareto(args) => pareto::run(session, &args),
        Verb::Inspect(args) => inspect::run(session, &args),
        Verb::Verify(args) => verify::run(session, &args),
    }
}

impl Session {
    /// The engine that `run` and `chat` use.
    fn engine(&self, source: &Source, args: &EngineArgs) -> Result<(Engine, Option<KvChoice>)> {
        let threads = args.threads.resolve()?;
        let model = source.load_as(args.residency, args.head, threads)?;
        let mut config =
            EngineConfig { threads, isa: self.isa, context: args.ctx, ..EngineConfig::default() };
        let (kv, choice) = args.kv.resolve(source, || Ok(model.clone()), &config)?;
        config.kv = kv;
        Ok((Engine::new(model, &config)?, choice))
    }
}

/// Says so when sampling leaves nothing to a two-stage head.
fn note_unused_head(engine: &Engine, sampler: &Sampler) {
    if engine.model().coarse_head().is_some() && sampler.reach() > Engine::MAX_TOP {
        let most = Engine::MAX_TOP;
        render::note(format_args!(
            "note: this sampling looks at more than {most} logits, so the head is computed in full"
        ));
    }
}

/// A seed that differs from run to run. Small enough to be typed again.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let mixed = (now as u64 ^ u64::from(std::process::id()).rotate_left(40))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 32
}
