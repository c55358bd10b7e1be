//! `run`: continue a text.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use gristmill_eval::KvChoice;
use gristmill_runtime::text::{ChatTemplate, Message, Sampler, SamplerConfig};
use serde::Serialize;
use serde_json::Map;

use super::{Session, fresh_seed, note_unused_head};
use crate::args::RunArgs;
use crate::error::{Outcome, Usage, WithHint};
use crate::generate::{Finish, Request, Timings, generate, printer};
use crate::render::{self, SCHEMA_VERSION};
use crate::source::Source;

#[derive(Debug, Serialize)]
struct RunResult<'a> {
    schema_version: u32,
    text: String,
    /// How many were generated.
    tokens: usize,
    ids: Vec<u32>,
    finish_reason: Finish,
    prompt_ids: &'a [u32],
    chat_template: bool,
    sampling: &'a SamplerConfig,
    timings: AllTimings,
    threads: usize,
    isa: &'static str,
    kv: &'static str,
    /// Null when the user named the type.
    kv_choice: Option<KvChoice>,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct AllTimings {
    /// Opening the model and building the engine.
    load_ms: f64,
    tokenize_ms: f64,
    #[serde(flatten)]
    generation: Timings,
}

pub(super) fn run(session: Session, args: &RunArgs) -> Result<Outcome> {
    let start = Instant::now();
    let source = Source::open(&args.model)?;
    let prompt = read_prompt(args)?;
    let tokenizer = source.tokenizer()?;
    let (mut engine, kv_choice) = session.engine(&source, &args.engine)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;

    let start = Instant::now();
    let assets = source.model_source();
    let assets = assets.text();
    let templated = assets.chat_template.is_some() && !args.raw;
    let ids = if templated {
        let system = args.system.as_ref().map(|text| Message::new("system", text.as_str()));
        let messages: Vec<_> = system.into_iter().chain([Message::new("user", prompt)]).collect();
        let text = ChatTemplate::new(assets)?
            .render(&messages, true, Map::new())
            .hint("--raw applies no chat template")?;
        tokenizer.encode(&text, false)?
    } else if args.system.is_some() {
        return Err(Usage("--system needs a chat template, and the model has none".into()))
            .hint("put it into the prompt");
    } else {
        tokenizer.encode(&prompt, true)?
    };
    let tokenize_ms = start.elapsed().as_secs_f64() * 1e3;

    let defaults = SamplerConfig::from_defaults(source.model_source().generation());
    let config = args.sampling.apply(defaults, fresh_seed());
    let mut sampler = Sampler::new(config, engine.model().spec().vocab_size as usize)
        .map_err(|e| Usage(e.to_string()))?;
    note_unused_head(&engine, &sampler);
    let request = Request {
        prompt: &ids,
        cached: 0,
        max_tokens: args.max_tokens,
        stop_ids: &assets.stop_ids,
        stop_strings: &args.stop,
    };
    let json = session.json;
    let mut emit = printer(json);
    let generated = generate(&mut engine, &tokenizer, &mut sampler, &request, &mut emit)?;
    // Piped, the output is the continuation and nothing else.
    if !json && io::stdout().is_terminal() {
        emit("\n")?;
    }

    let interrupted = generated.finish == Finish::Interrupted;
    if args.stats || interrupted {
        render::note(generated.timings.line());
    }
    if args.stats {
        let codecs = engine.model().codecs().iter().map(|c| c.name()).collect::<Vec<_>>().join("+");
        let sampling = sampler.config();
        let seed = match sampling.is_greedy() {
            true => "greedy".into(),
            false => format!("seed {}", sampling.seed),
        };
        render::note(format_args!(
            "load {} ms, {codecs}, {} threads, {}, KV {}, {seed}",
            render::rate(load_ms),
            engine.threads(),
            engine.isa().name(),
            engine.kv().name(),
        ));
        if let Some(coarse) = engine.model().coarse_head() {
            render::note(coarse);
        }
    }
    if json {
        let text = render::json_text(&RunResult {
            schema_version: SCHEMA_VERSION,
            text: generated.text,
            tokens: generated.ids.len(),
            ids: generated.ids,
            finish_reason: generated.finish,
            prompt_ids: &ids,
            chat_template: templated,
            sampling: sampler.config(),
            timings: AllTimings { load_ms, tokenize_ms, generation: generated.timings },
            threads: engine.threads(),
            isa: engine.isa().name(),
            kv: engine.kv().name(),
            kv_choice,
            fingerprint: source.model_source().fingerprint(),
        })?;
        io::stdout().lock().write_all(text.as_bytes())?;
    }
    Ok(if interrupted { Outcome::Interrupted } else { Outcome::Done })
}

/// The prompt from the flag, the file, or standard input.
fn read_prompt(args: &RunArgs) -> Result<String> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    if let Some(path) = &args.file {
        return fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    }
    if io::stdin().is_terminal() {
        return Err(Usage("there is no prompt".into())).hint("give one with -p TEXT or -f FILE");
    }
    let mut prompt = String::new();
    crate::interrupt::while_idle(|| io::stdin().read_to_string(&mut prompt))
        .context("cannot read the prompt from standard input")?;
    Ok(prompt)
}
