//! The loop that turns a prompt into text, and its timings.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use gristmill_runtime::text::{Sampler, TextStream, Tokenizer};
use gristmill_runtime::{Engine, EngineConfig, RuntimeError};
use serde::Serialize;

use crate::interrupt;
use crate::render;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Finish {
    /// The model ended it, or one of the stop strings did.
    Stop,
    /// It has as many tokens as were asked for, or as fit the context.
    Length,
    /// The user stopped it.
    Interrupted,
}

/// What to generate.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The whole sequence so far. The first `cached` tokens are in the engine already.
    pub(crate) prompt: &'a [u32],
    /// Tokens that need no computing; fewer than all.
    pub(crate) cached: usize,
    /// Most tokens to generate.
    pub(crate) max_tokens: usize,
    /// Tokens that end the text and are no part of it.
    pub(crate) stop_ids: &'a [u32],
    /// Texts that end it and are no part of it.
    pub(crate) stop_strings: &'a [String],
}

/// What was generated.
#[derive(Debug)]
pub(crate) struct Generated {
    pub(crate) text: String,
    /// Without the token that ended it.
    pub(crate) ids: Vec<u32>,
    pub(crate) finish: Finish,
    pub(crate) timings: Timings,
}

/// How long it took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Timings {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Of these, taken from the cache.
    pub(crate) cached_tokens: usize,
    pub(crate) prefill_ms: f64,
    /// Null when nothing was computed.
    pub(crate) prefill_tok_s: Option<f64>,
    /// From the prompt's tokens to the first generated one.
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) generated_tokens: usize,
    /// From the first generated token to the last.
    pub(crate) decode_ms: f64,
    /// Null when there was no second token.
    pub(crate) decode_tok_s: Option<f64>,
}

impl Timings {
    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let speed = |rate: Option<f64>| match rate {
            Some(rate) => format!("{} tok/s", render::rate(rate)),
            None => "-".into(),
        };
        let cached = match self.cached_tokens {
            0 => String::new(),
            n => format!(" ({n} cached)"),
        };
        format!(
            "prompt {} tokens{cached}, {} ms, {}; generated {} tokens, {} ms, {}",
            self.prompt_tokens,
            render::rate(self.prefill_ms),
            speed(self.prefill_tok_s),
            self.generated_tokens,
            render::rate(self.decode_ms),
            speed(self.decode_tok_s),
        )
    }
}

/// Runs the prompt, then generates; `emit` gets the text as it becomes certain. A Ctrl-C ends it
/// between two tokens or two chunks of the prompt.
pub(crate) fn generate(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    request: &Request<'_>,
    emit: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<Generated> {
    let start = Instant::now();
    if request.prompt.is_empty() {
        return Err(RuntimeError::NoTokens.into());
    }
    let (needed, context) = (request.prompt.len(), engine.context());
    if needed > context {
        return Err(RuntimeError::ContextFull { needed, context }.into());
    }
    request.prompt.iter().for_each(|&id| sampler.accept(id));

    let mut next = None;
    let mut computed = 0;
    let mut prefill = Duration::ZERO;
    let mut chunks =
        request.prompt[request.cached..].chunks(EngineConfig::DEFAULT_CHUNK).peekable();
    while let Some(chunk) = chunks.next()
        && !interrupt::requested()
    {
        let logits = engine.prefill_top(chunk, sampler.reach())?;
        computed += chunk.len();
        prefill = start.elapsed();
        if chunks.peek().is_none() {
            next = Some(sampler.sample(logits));
        }
    }
    let ttft = next.map(|_| start.elapsed());
    if request.max_tokens == 0 {
        next = None;
    }

    let decode_start = Instant::now();
    let mut text = Writer {
        stream: TextStream::new(tokenizer, true),
        stops: StopStrings::new(request.stop_strings),
        text: String::new(),
        emit,
    };
    let mut ids = Vec::new();
    let mut finish = if interrupt::requested() { Finish::Interrupted } else { Finish::Length };
    while let Some(id) = next.take() {
        if request.stop_ids.contains(&id) {
            finish = Finish::Stop;
            break;
        }
        ids.push(id);
        sampler.accept(id);
        if text.push(id)? {
            finish = Finish::Stop;
            break;
        }
        if interrupt::requested() {
            finish = Finish::Interrupted;
        } else if ids.len() < request.max_tokens && engine.position() < context {
            next = Some(sampler.sample(engine.decode_top(id, sampler.reach())?));
        }
    }
    let decode = decode_start.elapsed();
    let text = text.finish()?;
    // The first token came from the prompt's logits.
    let steps = ids.len().saturating_sub(1);
    let per_second = |count: usize, seconds: f64| (count > 0).then(|| count as f64 / seconds);
    let timings = Timings {
        prompt_tokens: request.prompt.len(),
        cached_tokens: request.cached,
        prefill_ms: prefill.as_secs_f64() * 1e3,
        prefill_tok_s: per_second(computed, prefill.as_secs_f64()),
        ttft_ms: ttft.map(|time| time.as_secs_f64() * 1e3),
        generated_tokens: ids.len(),
        decode_ms: decode.as_secs_f64() * 1e3,
        decode_tok_s: per_second(steps, decode.as_secs_f64()),
    };
    Ok(Generated { text, ids, finish, timings })
}

/// Where a text goes as it is generated: to standard output at once, or nowhere when one JSON document
/// will hold it.
pub(crate) fn printer(json: bool) -> impl FnMut(&str) -> io::Result<()> {
    move |text| {
        if json {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

/// Decodes tokens, looks for stop strings and hands the rest on.
struct Writer<'a> {
    stream: TextStream<'a>,
    stops: StopStrings<'a>,
    text: String,
    emit: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

impl Writer<'_> {
    /// Whether a stop string ended the text.
    fn push(&mut self, id: u32) -> Result<bool> {
        let piece = self.stream.push(id)?;
        let (ready, stopped) = self.stops.push(piece);
        if !ready.is_empty() {
            self.text.push_str(&ready);
            (self.emit)(&ready)?;
        }
        Ok(stopped)
    }

    fn finish(mut self) -> Result<String> {
        let rest = self.stops.finish(self.stream.finish()?);
        if !rest.is_empty() {
            self.text.push_str(&rest);
            (self.emit)(&rest)?;
        }
        Ok(self.text)
    }
}

/// Holds text back for as long as it could be the beginning of a stop string.
struct StopStrings<'a> {
    stops: &'a [String],
    held: String,
    stopped: bool,
}

impl<'a> StopStrings<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// The text that is certain now, and whether a stop string was met.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.stopped = true;
            return (std::mem::take(&mut self.held), true);
        }
        let begins = |rest: &str| self.stops.iter().any(|stop| stop.starts_with(rest));
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.find(|&at| begins(&self.held[at..])).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is left at the end of the text.
    fn finish(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        let (mut ready, stopped) = self.push(piece);
        if !stopped {
            ready.push_str(&self.held);
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that comes out, piece by piece.
    fn filtered(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String) {
        let stops: Vec<_> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut filter = StopStrings::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let (ready, stopped) = filter.push(piece);
            out.push(ready);
            if stopped {
                break;
            }
        }
        let rest = filter.finish("");
        (out, rest)
    }

    #[test]
    fn without_stop_strings_nothing_waits() {
        assert_eq!(filtered(&[], &["a", "é"]), (vec!["a".into(), "é".into()], String::new()));
    }

    #[test]
    fn a_stop_string_across_pieces_never_shows() {
        let (out, rest) = filtered(&["\nUser:"], &["Hi", "!\nUs", "er", ": x"]);
        assert_eq!((out.concat().as_str(), rest.as_str()), ("Hi!", ""));
        assert_eq!(out, ["Hi", "!", "", ""]);
    }

    #[test]
    fn a_beginning_that_does_not_go_on_is_text() {
        let (out, rest) = filtered(&["END"], &["xE", "N", "d EN"]);
        assert_eq!((out.concat().as_str(), rest.as_str()), ("xENd ", "EN"));
    }

    #[test]
    fn the_earliest_stop_string_counts() {
        let (out, _) = filtered(&["cd", "b"], &["abcd"]);
        assert_eq!(out, ["a"]);
    }
}
