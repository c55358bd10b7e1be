//! Speed and memory of a model that has not been run, or does not exist yet, on this machine or another.
//!
//! A token's time is the sum of what it waits for: its matrices at the rate that their codec reaches in a
//! working set of that size, attention over the positions before it, and, for each stage, threads that
//! meet and activations that are prepared. Rates are probed ([`Machine::probe`]) or from a table
//! ([`Device`]).

mod device;
mod machine;
mod probe;
mod report;
mod score;
mod shape;

use gristmill_runtime::{EngineConfig, KvType, Residency};

pub use device::Device;
pub use machine::{
    AttentionRate, GemmRate, GemvRate, Interval, Machine, Origin, Overheads, ReadRate,
};
pub use probe::Needs;
pub use report::{MemoryForecast, Prediction, PredictionRow, TokenTime};
pub use score::{PredictionError, score};
pub use shape::ModelShape;

use crate::error::{EvalError, Result};
use crate::model_facts::mean_position;
use machine::Case;

/// What is predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct PredictConfig {
    /// Numbers of threads; one row each.
    pub threads: Vec<usize>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated after it.
    pub r#gen: usize,
    /// Tokens in the context before the prompt.
    pub depth: usize,
    /// Positions that memory is planned for; `None` for those of the run.
    pub context: Option<usize>,
    /// Type of the key/value cache.
    pub kv: KvType,
    /// Where the weights will be.
    pub residency: Residency,
    /// Memory that is free; `None` when it is not known.
    pub available_bytes: Option<u64>,
}

impl PredictConfig {
    /// Positions that the run fills.
    pub fn positions(&self) -> usize {
        self.depth + self.prompt + self.r#gen
    }

    /// Where weights of so many bytes will be.
    fn residency(&self, weights: u64) -> Residency {
        self.residency.for_weights(weights, self.available_bytes)
    }

    /// What must be known of a machine.
    pub fn needs(&self, shape: &ModelShape) -> Needs {
        Needs {
            codecs: shape.codecs(),
            threads: self.threads.clone(),
            kv: self.kv,
            huge_pages: self.residency(shape.held_bytes) != Residency::Map,
        }
    }

    fn check(&self, shape: &ModelShape) -> Result<()> {
        let limit = shape.spec.max_context as usize;
        let bad = |what: String| Err(EvalError::Config(what));
        if self.threads.is_empty() || self.prompt == 0 || self.r#gen == 0 {
            return bad("a prediction needs threads, a prompt and tokens to generate".into());
        }
        if self.positions() > limit {
            let positions = self.positions();
            return bad(format!("{positions} positions; this model takes 1..={limit}"));
        }
        if let Some(context) = self.context
            && !(self.positions()..=limit).contains(&context)
        {
            let least = self.positions();
            return bad(format!("a context of {context}; expected {least}..={limit}"));
        }
        Ok(())
    }
}

/// Predicts speed and memory. The machine must know what [`PredictConfig::needs`] asks for.
///
/// # Errors
/// When the configuration does not fit the model, or the machine lacks a rate.
pub fn predict(
    shape: &ModelShape,
    machine: &Machine,
    config: &PredictConfig,
) -> Result<Prediction> {
    config.check(shape)?;
    let memory = forecast(shape, config)?;
    let mut rows = Vec::new();
    for &threads in &config.threads {
        let run = Run { shape, machine, config, memory: &memory, threads };
        rows.push(run.row()?);
    }
    let fastest =
        |a: &&PredictionRow, b: &&PredictionRow| a.decode_tok_s.mid.total_cmp(&b.decode_tok_s.mid);
    let best_threads = rows.iter().max_by(fastest).map_or(1, |row| row.threads);
    Ok(Prediction {
        schema_version: crate::SCHEMA_VERSION,
        machine: machine.name.clone(),
        origin: machine.origin.clone(),
        architecture: shape.spec.architecture.clone(),
        parameters: shape.spec.parameter_count(),
        codecs: shape.codecs().iter().map(|c| c.name().into()).collect(),
        file_bytes: shape.file_bytes,
        bits_per_weight: shape.file_bytes as f64 * 8.0 / shape.spec.parameter_count() as f64,
        macs_per_prompt_token: shape.prompt_macs(),
        prompt: config.prompt,
        r#gen: config.r#gen,
        depth: config.depth,
        kv: config.kv.name().into(),
        rows,
        best_threads,
        memory,
    })
}

/// Memory that running takes, and what would fit if it does not.
fn forecast(shape: &ModelShape, config: &PredictConfig) -> Result<MemoryForecast> {
    let threads = config.threads.iter().max().copied();
    let context = config.context.unwrap_or(config.positions());
    let engine =
        EngineConfig { threads, context: Some(context), kv: config.kv, ..EngineConfig::default() };
    let plan = engine.memory(&shape.spec)?;
    let residency = config.residency(shape.held_bytes);
    let held = shape.held_bytes;
    let room = config.available_bytes.map(|bytes| bytes.saturating_sub(plan.total()));
    let (copied, streamed) = match residency {
        Residency::Huge => (held, 0),
        Residency::Stream => {
            let pinned = Residency::pinned_bytes(held, room);
            (pinned, held - pinned)
        }
        Residency::Map | Residency::Auto => (0, 0),
    };
    let must_have = plan.total() + copied;
    let mapped = shape.file_bytes.saturating_sub(copied);
    let fits = config.available_bytes.map(|available| must_have <= available);
    let resident =
        config.available_bytes.map(|bytes| must_have + mapped - streamed.min(mapped) <= bytes);
    let mut advice = Vec::new();
    if fits == Some(false) {
        advice.push(engine.advice(&shape.spec, config.available_bytes.unwrap_or(0)));
    }
    if streamed > 0 || resident == Some(false) {
        let bits = room.map_or(0.0, |room| room as f64 * 8.0 / shape.spec.parameter_count() as f64);
        advice.push(format!(
            "the weights are more than what is free, so every token reads storage; a file of \
             {bits:.2} bits per weight would stay in memory (`gristmill quantize --bpw`)"
        ));
    }
    Ok(MemoryForecast {
        context,
        kv_bytes: plan.kv_bytes,
        buffer_bytes: plan.buffer_bytes,
        copied_bytes: copied,
        streamed_bytes: streamed,
        must_have_bytes: must_have,
        mapped_bytes: mapped,
        available_bytes: config.available_bytes,
        residency: residency.name().into(),
        fits,
        advice,
    })
}

/// One number of threads.
struct Run<'a> {
    shape: &'a ModelShape,
    machine: &'a Machine,
    config: &'a PredictConfig,
    memory: &'a MemoryForecast,
    threads: usize,
}

impl Run<'_> {
    fn row(&self) -> Result<PredictionRow> {
        let &Self { shape, config, threads, .. } = self;
        let position = mean_position(config.depth + config.prompt, config.r#gen);
        let at = |case| self.token(position, case);
        let (slow, median, fast) = (at(Case::Slow)?, at(Case::Median)?, at(Case::Fast)?);
        let rate = |time: &TokenTime| 1e3 / time.total_ms;
        let prompt = |case| self.prompt_seconds(case);
        let (slow_prompt, prompt, fast_prompt) =
            (prompt(Case::Slow)?, prompt(Case::Median)?, prompt(Case::Fast)?);
        let tokens = config.prompt as f64;
        let sampling = self.overheads()?.vocab_ns.mid * f64::from(shape.spec.vocab_size) / 1e9;
        let ttft = |seconds: f64| (seconds + sampling) * 1e3;
        let storage = self.machine.storage_gb_s;
        let cold = |seconds: f64, case| {
            storage.map(|s| ttft(seconds) + shape.file_bytes as f64 / s.rate(case) / 1e6)
        };
        let bytes = shape.weight_bytes_per_token + shape.kv_bytes(config.kv, position);
        Ok(PredictionRow {
            threads,
            decode_tok_s: Interval { low: rate(&slow), mid: rate(&median), high: rate(&fast) },
            prefill_tok_s: Interval {
                low: tokens / slow_prompt,
                mid: tokens / prompt,
                high: tokens / fast_prompt,
            },
            ttft_ms: Interval {
                mid: ttft(prompt),
                low: ttft(fast_prompt),
                high: ttft(slow_prompt),
            },
            ttft_from_storage_ms: cold(prompt, Case::Median).map(|mid| Interval {
                low: cold(fast_prompt, Case::Fast).unwrap_or(mid),
                mid,
                high: cold(slow_prompt, Case::Slow).unwrap_or(mid),
            }),
            bytes_per_token: bytes,
            gb_s: bytes as f64 * rate(&median) / 1e9,
            token: median,
        })
    }

    /// What one token at a position waits for.
    fn token(&self, position: u64, case: Case) -> Result<TokenTime> {
        let &Self { shape, machine, config, memory, threads } = self;
        let working_set = shape.weight_bytes_per_token + shape.kv_bytes(config.kv, position);
        let huge = memory.copied_bytes > 0;
        let mut weights = 0.0;
        for matrix in &shape.matrices {
            let rate = machine
                .gemv(matrix.codec, threads, huge, working_set, case)
                .ok_or_else(|| self.lacks(matrix.codec.name()))?;
            weights += matrix.bytes as f64 / rate / 1e9;
        }
        let streamed = match (memory.streamed_bytes, machine.storage_gb_s) {
            (0, _) => 0.0,
            (bytes, Some(storage)) => bytes as f64 / storage.rate(case) / 1e9,
            (_, None) => return Err(self.lacks("storage")),
        };
        let attention = self.attention_rate(case, false)?;
        let attention = shape.attention_macs(position, 1) as f64 / attention / 1e9;
        let o = self.overheads()?;
        let stages = shape.stages() as f64 * o.stage_us.time(case) / 1e6;
        let columns = shape.columns() as f64 * o.column_ns.time(case) / 1e9;
        let vocab = f64::from(shape.spec.vocab_size) * o.vocab_ns.time(case) / 1e9;
        let ms = |seconds: f64| seconds * 1e3;
        Ok(TokenTime {
            weights_ms: ms(weights),
            streamed_ms: ms(streamed),
            attention_ms: ms(attention),
            stages_ms: ms(stages + columns),
            vocabulary_ms: ms(vocab),
            // Fetching from storage goes on while the rest is computed.
            total_ms: ms((weights + attention + stages + columns + vocab).max(streamed)),
        })
    }

    fn prompt_seconds(&self, case: Case) -> Result<f64> {
        let &Self { shape, machine, config, threads, .. } = self;
        let (first, count) = (config.depth as u64, config.prompt as u64);
        let chunks = config.prompt.div_ceil(EngineConfig::DEFAULT_CHUNK) as f64;
        let huge = self.memory.copied_bytes > 0;
        let mut products = 0.0;
        for matrix in &shape.matrices {
            let lacks = || self.lacks(matrix.codec.name());
            let gemv = machine
                .gemv(matrix.codec, threads, huge, shape.weight_bytes_per_token, case)
                .ok_or_else(lacks)?;
            let once = matrix.bytes as f64 / gemv / 1e9;
            if matrix.is_head {
                products += once;
                continue;
            }
            let gemm = machine.gemm(matrix.codec, threads, case).ok_or_else(lacks)?;
            // Few tokens are bound by reading the weights.
            products += (matrix.macs as f64 * count as f64 / gemm / 1e9).max(once * chunks);
        }
        let attention = self.attention_rate(case, true)?;
        let attention = shape.attention_macs(first, count) as f64 / attention / 1e9;
        let o = self.overheads()?;
        let per_token = shape.layers() as f64 * o.prompt_layer_us.time(case) / 1e6
            + shape.columns() as f64 * o.prompt_column_ns.time(case) / 1e9;
        let streamed = match machine.storage_gb_s {
            Some(storage) => self.memory.streamed_bytes as f64 * chunks / storage.rate(case) / 1e9,
            None => 0.0,
        };
        Ok((products + attention + count as f64 * per_token).max(streamed))
    }

    fn attention_rate(&self, case: Case, prompt: bool) -> Result<f64> {
        let (kv, threads) = (self.config.kv, self.threads);
        let rate = self.machine.attention(kv, threads).ok_or_else(|| self.lacks(kv.name()))?;
        Ok(if prompt { rate.prompt_gmac_s } else { rate.decode_gmac_s }.rate(case))
    }

    fn overheads(&self) -> Result<&Overheads> {
        self.machine.overheads(self.threads).ok_or_else(|| self.lacks("overheads"))
    }

    fn lacks(&self, what: &str) -> EvalError {
        let (name, threads) = (&self.machine.name, self.threads);
        EvalError::Config(format!("{name}: no rate of {what} with {threads} threads is known"))
    }
}

#[cfg(test)]
mod tests;
