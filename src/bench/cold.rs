//! Cold starts: a fresh process from its first instruction to the first byte of text.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use gristmill_eval::{
    ColdRun, MAX_SILENT_TOKENS, Request, Start, drop_pages, first_text, major_faults,
    storage_read_bytes,
};
use gristmill_formats::Progress;
use gristmill_runtime::{Engine, EngineConfig, Model};

use super::child;
use crate::error::Interrupted;
use crate::source::Source;

/// Ends the text in what a cold run prints; its report follows.
const END_OF_TEXT: u8 = b'\n';
/// What a model without a tokenizer answers.
const NO_TEXT: &str = ".";

/// What a fresh process shall answer.
#[derive(Debug)]
pub(crate) struct ColdRequest<'a> {
    /// The model's path.
    pub(crate) model: &'a Path,
    /// Every file of it.
    pub(crate) files: &'a [PathBuf],
    /// Bytes of these.
    pub(crate) file_bytes: u64,
    /// Words for threads, cache, residency and head, and the length of the prompt.
    pub(crate) arguments: &'a [String],
    /// The prompt; `None` for a model without a tokenizer.
    pub(crate) text: Option<&'a str>,
}

/// One start without the file cache for so many with it: storage makes it slow, and clearly so.
const STARTS_PER_UNCACHED: usize = 3;

/// Cold starts with the file cache as it is, then a third as many after asking the system to drop the file from it;
/// with why the second kind is missing, if it is.
pub(crate) fn cold_starts(
    request: &ColdRequest<'_>,
    count: usize,
    progress: &dyn Progress,
) -> Result<(Start, Result<Start, String>)> {
    let uncached_count = count.div_ceil(STARTS_PER_UNCACHED);
    progress.begin("cold starts", (count + uncached_count) as u64, "starts");
    let starts = |count: usize, drop: bool| -> Result<Start> {
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            if progress.cancelled() {
                return Err(Interrupted.into());
            }
            if drop {
                request.files.iter().try_for_each(|file| drop_from_cache(file))?;
            }
            runs.push(start(request)?);
            progress.advance(1);
        }
        Ok(Start::cold(&runs, request.file_bytes))
    };
    let cold = starts(count, false)?;
    if !cfg!(target_os = "linux") {
        let reason =
            format!("{} has no call that drops a file from its cache", std::env::consts::OS);
        return Ok((cold, Err(reason)));
    }
    let uncached = starts(uncached_count, true)?;
    if uncached.file_cache.as_deref() == Some("warm") {
        let reason = "the system kept the file in its cache when it was asked to drop it (another \
                      process may have it mapped)";
        return Ok((cold, Err(reason.into())));
    }
    Ok((cold, Ok(uncached)))
}

/// Asks the system to forget what it holds of a file. Pages that a process has mapped stay.
fn drop_from_cache(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // Pages that were not written back cannot be dropped. What the next start reads shows whether the rest
    // was.
    let _ = file.sync_data();
    drop_pages(&file);
    Ok(())
}

/// One fresh process: the time to its first byte as it looks from here, and what it tells.
fn start(request: &ColdRequest<'_>) -> Result<(f64, ColdRun)> {
    let what = format!("a cold start of {}", request.model.display());
    let mut command = child::this_program()?;
    command.arg("bench").args(request.arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    command.args(["--cold-run", &nanoseconds_now().to_string()]).arg("--").arg(request.model);
    let mut process = command.spawn().with_context(|| format!("cannot start {what}"))?;
    let mut input = process.stdin.take().context("the process has an input")?;
    // A process that failed has closed it and says why below.
    let _ = input.write_all(request.text.unwrap_or_default().as_bytes());
    drop(input);
    let mut output = process.stdout.take().context("the process has an output")?;
    let mut bytes = [0];
    let first = output.read(&mut bytes).with_context(|| format!("cannot read {what}"))?;
    let ttft_ms = began.elapsed().as_secs_f64() * 1e3;
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).with_context(|| format!("cannot read {what}"))?;
    drop(output);
    let ended = process.wait_with_output().with_context(|| format!("cannot wait for {what}"))?;
    child::check(&ended, &what)?;
    let report = rest.iter().rposition(|&byte| byte == END_OF_TEXT).filter(|_| first > 0);
    let Some(at) = report else { bail!("{what}: its process printed no report") };
    let run = serde_json::from_slice(&rest[at + 1..])
        .with_context(|| format!("{what}: the report of its process cannot be read"))?;
    Ok((ttft_ms, run))
}

fn nanoseconds_now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// The process itself: reads a prompt from standard input, or none for a model without a tokenizer, prints
/// the first text of the answer and then its report. `began` is when it was started, in nanoseconds since
/// 1970.
pub(crate) fn cold_run(
    model: &str,
    began: u128,
    config: EngineConfig,
    prompt: usize,
    load: impl FnOnce(&Source) -> Result<Arc<Model>>,
) -> Result<()> {
    let process_ms = nanoseconds_now().saturating_sub(began) as f64 / 1e6;
    let mut lap = Instant::now();
    let mut lap_ms = || {
        let now = Instant::now();
        (now - std::mem::replace(&mut lap, now)).as_secs_f64() * 1e3
    };
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("cannot read the prompt")?;
    lap_ms();
    let source = Source::open_path(&crate::source::locate(model)?)?;
    let loaded = load(&source)?;
    let load_ms = lap_ms();
    let tokenizer = if text.is_empty() { None } else { Some(source.tokenizer()?) };
    let tokenizer_ms = lap_ms();
    let context = (prompt + MAX_SILENT_TOKENS).min(loaded.spec().max_context as usize);
    let mut engine = Engine::new(loaded, &EngineConfig { context: Some(context), ..config })?;
    let engine_ms = lap_ms();
    let request = match &tokenizer {
        Some(tokenizer) => Request::Text(tokenizer, &text),
        None => Request::Tokens(prompt),
    };
    let mut stdout = io::stdout().lock();
    let answer = first_text(&mut engine, request, &mut |text| {
        let text = if text.is_empty() { NO_TEXT } else { text };
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    })?;
    let report = ColdRun {
        process_ms,
        load_ms,
        tokenizer_ms: tokenizer.as_ref().map(|_| tokenizer_ms),
        engine_ms,
        answer,
        storage_read_bytes: storage_read_bytes(),
        major_faults: major_faults(),
    };
    stdout.write_all(&[END_OF_TEXT])?;
    stdout.write_all(serde_json::to_string(&report)?.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
