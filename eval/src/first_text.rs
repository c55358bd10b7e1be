//! Time to first token, as users meet it: from a text in hand to the first byte of the answer.

use std::io;
use std::time::Instant;

use gristmill_runtime::Engine;
use gristmill_runtime::text::{Sampler, SamplerConfig, TextError, TextStream, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::bench::{Percentiles, random_tokens};
use crate::error::{EvalError, Result};
use crate::stats::median;

/// Most tokens that are decoded to get the first text: a character has at most four bytes, and some tokens
/// have no text.
pub const MAX_SILENT_TOKENS: usize = 16;

/// What is to be answered.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// A text, by a model that has a tokenizer.
    Text(&'a Tokenizer, &'a str),
    /// So many pseudo-random tokens, by one that has none.
    Tokens(usize),
}

/// The parts of a time to first token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstText {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the request to the first byte of text: the sum of the parts.
    pub ttft_ms: f64,
    /// From text to tokens; null without a tokenizer.
    pub tokenize_ms: Option<f64>,
    /// From tokens to the first logits.
    pub prefill_ms: f64,
    /// From logits to a token.
    pub sample_ms: f64,
    /// Further tokens that were needed before there was text; 0 when the first one has some.
    pub decode_ms: f64,
    /// From tokens to text, and handing it on; null without a tokenizer.
    pub detokenize_ms: Option<f64>,
}

/// Answers a request from an empty context up to the first text, which is handed to `emit`; of a model
/// without a tokenizer that is nothing, once there is a token.
///
/// # Errors
/// When the prompt has no tokens or more than the context takes, the text cannot be tokenised, no text
/// came, or `emit` failed.
pub fn first_text(
    engine: &mut Engine,
    request: Request<'_>,
    emit: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<FirstText> {
    let bad = |error: TextError| EvalError::Config(error.to_string());
    let vocab_size = engine.model().spec().vocab_size;
    // Not a part of the request: a tokenizer makes its own.
    let random = match request {
        Request::Tokens(count) => random_tokens(count, vocab_size),
        Request::Text(..) => vec![],
    };
    engine.reset();
    let mut sampler = Sampler::new(SamplerConfig::greedy(), vocab_size as usize).map_err(bad)?;
    let mut lap = Lap::start();
    let start = lap.0;
    let tokens = match request {
        Request::Text(tokenizer, text) => tokenizer.encode(text, true).map_err(bad)?,
        Request::Tokens(_) => random,
    };
    let tokenize_ms = lap.ms();
    let logits = engine.prefill_top(&tokens, sampler.reach())?;
    let prefill_ms = lap.ms();
    let mut token = sampler.sample(logits);
    let mut sample_ms = lap.ms();
    let mut parts = FirstText {
        prompt_tokens: tokens.len(),
        ttft_ms: 0.0,
        tokenize_ms: None,
        prefill_ms,
        sample_ms,
        decode_ms: 0.0,
        detokenize_ms: None,
    };
    let sent = |emitted: io::Result<()>| {
        emitted.map_err(|error| EvalError::Config(format!("cannot hand on the text: {error}")))
    };
    let Request::Text(tokenizer, _) = request else {
        sent(emit(""))?;
        parts.ttft_ms = start.elapsed().as_secs_f64() * 1e3;
        return Ok(parts);
    };
    let mut stream = TextStream::new(tokenizer, true);
    let mut detokenize_ms = 0.0;
    for _ in 0..MAX_SILENT_TOKENS {
        let piece = stream.push(token).map_err(bad)?;
        if !piece.is_empty() {
            sent(emit(piece))?;
            detokenize_ms += lap.ms();
            parts.ttft_ms = start.elapsed().as_secs_f64() * 1e3;
            parts.tokenize_ms = Some(tokenize_ms);
            parts.sample_ms = sample_ms;
            parts.detokenize_ms = Some(detokenize_ms);
            return Ok(parts);
        }
        detokenize_ms += lap.ms();
        let logits = engine.decode_top(token, sampler.reach())?;
        parts.decode_ms += lap.ms();
        token = sampler.sample(logits);
        sample_ms += lap.ms();
    }
    Err(EvalError::Config(format!(
        "the first {MAX_SILENT_TOKENS} tokens of the answer have no text, so there is no time to the first"
    )))
}

/// Time since the last look.
struct Lap(Instant);

impl Lap {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn ms(&mut self) -> f64 {
        let now = Instant::now();
        let lap = (now - self.0).as_secs_f64() * 1e3;
        self.0 = now;
        lap
    }
}

/// A prompt of about so many tokens from the beginning of a text, repeated if it is too short; never of
/// more.
///
/// # Errors
/// When the tokenizer refuses the text.
pub fn prompt_text(tokenizer: &Tokenizer, text: &str, tokens: usize) -> Result<String, TextError> {
    let mut source = text.to_owned();
    let mut ids = tokenizer.encode(&source, true)?;
    while ids.len() < tokens && !text.is_empty() {
        source.push_str(text);
        ids = tokenizer.encode(&source, true)?;
    }
    // Decoded and tokenised again, a cut text may have other tokens at its end.
    let mut keep = tokens.min(ids.len());
    loop {
        let prompt = tokenizer.decode(&ids[..keep], true)?;
        let count = tokenizer.encode(&prompt, true)?.len();
        if count <= tokens || keep == 0 {
            return Ok(prompt);
        }
        keep = keep.saturating_sub(count - tokens);
    }
}

/// Time to first token, cold and warm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ttft {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Bytes of its text; null without a tokenizer.
    pub prompt_bytes: Option<usize>,
    /// Threads.
    pub threads: usize,
    /// In a process that has answered before.
    pub warm: Start,
    /// From starting a process, with the file cache as the runs before left it.
    pub cold: Option<Start>,
    /// From starting a process, after the system was asked to drop the file from its cache.
    pub uncached: Option<Start>,
    /// Why something is missing.
    pub reasons: Vec<String>,
}

/// Times of some starts: medians but for the first. Null where a part does not exist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// From the request to the first byte of text.
    pub ttft_ms: Percentiles,
    /// From starting the process to its first instruction that is ours.
    pub process_ms: Option<f64>,
    /// Opening and binding the model.
    pub load_ms: Option<f64>,
    /// Making the tokenizer.
    pub tokenizer_ms: Option<f64>,
    /// Making the engine: threads, caches, buffers.
    pub engine_ms: Option<f64>,
    /// From text to tokens.
    pub tokenize_ms: Option<f64>,
    /// From tokens to the first logits; the first time the weights are read, page by page.
    pub prefill_ms: f64,
    /// From logits to a token.
    pub sample_ms: f64,
    /// Further tokens that were needed before there was text.
    pub decode_ms: f64,
    /// From tokens to text.
    pub detokenize_ms: Option<f64>,
    /// Bytes fetched from storage: next to none when the file cache was warm.
    pub storage_read_bytes: Option<u64>,
    /// Pages that had to be waited for.
    pub major_faults: Option<u64>,
    /// `warm` when less than a hundredth of the file was fetched, `cold` when more than nine tenths were,
    /// `partly warm` in between.
    pub file_cache: Option<String>,
}

/// What a fresh process tells of its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColdRun {
    /// From starting the process to its first instruction that is ours.
    pub process_ms: f64,
    /// Opening and binding the model.
    pub load_ms: f64,
    /// Making the tokenizer; null when there is none.
    pub tokenizer_ms: Option<f64>,
    /// Making the engine.
    pub engine_ms: f64,
    /// From there on, as in a warm process.
    pub answer: FirstText,
    /// Bytes that the process fetched from storage.
    pub storage_read_bytes: Option<u64>,
    /// Pages that it had to wait for.
    pub major_faults: Option<u64>,
}

impl Start {
    /// Of answers in this process, at least one.
    pub fn warm(answers: &[FirstText]) -> Self {
        let all =
            |value: &dyn Fn(&FirstText) -> f64| -> Vec<f64> { answers.iter().map(value).collect() };
        let some = |value: &dyn Fn(&FirstText) -> Option<f64>| {
            answers.iter().map(value).collect::<Option<Vec<_>>>().map(|v| median(&v))
        };
        Self {
            ttft_ms: Percentiles::of(&mut all(&|a| a.ttft_ms)),
            process_ms: None,
            load_ms: None,
            tokenizer_ms: None,
            engine_ms: None,
            tokenize_ms: some(&|a| a.tokenize_ms),
            prefill_ms: median(&all(&|a| a.prefill_ms)),
            sample_ms: median(&all(&|a| a.sample_ms)),
            decode_ms: median(&all(&|a| a.decode_ms)),
            detokenize_ms: some(&|a| a.detokenize_ms),
            storage_read_bytes: None,
            major_faults: None,
            file_cache: None,
        }
    }

    /// Of fresh processes, at least one, each with its time to the first byte as its parent saw it.
    pub fn cold(runs: &[(f64, ColdRun)], file_bytes: u64) -> Self {
        let answers: Vec<FirstText> = runs.iter().map(|(_, run)| run.answer.clone()).collect();
        let all = |value: &dyn Fn(&ColdRun) -> f64| -> f64 {
            median(&runs.iter().map(|(_, run)| value(run)).collect::<Vec<_>>())
        };
        let counts = |value: &dyn Fn(&ColdRun) -> Option<u64>| {
            runs.iter().map(|(_, run)| value(run)).collect::<Option<Vec<_>>>()
        };
        let middle = |mut counts: Vec<u64>| {
            counts.sort_unstable();
            counts[counts.len() / 2]
        };
        let tokenizer: Option<Vec<f64>> = runs.iter().map(|(_, run)| run.tokenizer_ms).collect();
        let read = counts(&|run| run.storage_read_bytes).map(middle);
        Self {
            ttft_ms: Percentiles::of(&mut runs.iter().map(|(ms, _)| *ms).collect::<Vec<_>>()),
            process_ms: Some(all(&|run| run.process_ms)),
            load_ms: Some(all(&|run| run.load_ms)),
            tokenizer_ms: tokenizer.map(|ms| median(&ms)),
            engine_ms: Some(all(&|run| run.engine_ms)),
            storage_read_bytes: read,
            major_faults: counts(&|run| run.major_faults).map(middle),
            file_cache: read.map(|read| {
                let share = read as f64 / file_bytes.max(1) as f64;
                let state = match share {
                    ..0.01 => "warm",
                    ..0.9 => "partly warm",
                    _ => "cold",
                };
                state.into()
            }),
            ..Self::warm(&answers)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(read: u64, prefill_ms: f64) -> ColdRun {
        let answer = FirstText {
            prompt_tokens: 8,
            ttft_ms: prefill_ms + 2.0,
            tokenize_ms: Some(1.0),
            prefill_ms,
            sample_ms: 0.5,
            decode_ms: 0.0,
            detokenize_ms: Some(0.5),
        };
        ColdRun {
            process_ms: 3.0,
            load_ms: 2.0,
            tokenizer_ms: Some(4.0),
            engine_ms: 1.0,
            answer,
            storage_read_bytes: Some(read),
            major_faults: Some(read / 4096),
        }
    }

    #[test]
    fn the_file_cache_is_judged_by_what_was_fetched() {
        let cache = |read| Start::cold(&[(50.0, run(read, 9.0))], 1 << 20).file_cache;
        assert_eq!(cache(0).as_deref(), Some("warm"));
        assert_eq!(cache(1 << 19).as_deref(), Some("partly warm"));
        assert_eq!(cache(1 << 20).as_deref(), Some("cold"));
        let silent = ColdRun { storage_read_bytes: None, ..run(0, 9.0) };
        assert_eq!(Start::cold(&[(50.0, silent)], 1).file_cache, None);
    }

    #[test]
    fn parts_are_medians_and_the_whole_is_what_the_parent_saw() {
        let runs = [(30.0, run(0, 10.0)), (50.0, run(0, 30.0)), (40.0, run(0, 20.0))];
        let start = Start::cold(&runs, 1 << 20);
        assert_eq!((start.ttft_ms.p50, start.prefill_ms), (40.0, 20.0));
        assert!(start.ttft_ms.too_few_for_p95 && start.ttft_ms.samples == 3);
        assert_eq!((start.tokenizer_ms, start.tokenize_ms), (Some(4.0), Some(1.0)));
    }
}
