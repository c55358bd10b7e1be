//! The result of a prediction.

use serde::{Deserialize, Serialize};

use super::machine::{Interval, Origin};
use crate::table::{Table, mebibytes, number, percent};

/// What one token waits for, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenTime {
    /// Products with its matrices.
    pub weights_ms: f64,
    /// Weights fetched from storage meanwhile.
    pub streamed_ms: f64,
    /// Attention.
    pub attention_ms: f64,
    /// Threads meeting, norms, activations.
    pub stages_ms: f64,
    /// Logits and greedy sampling.
    pub vocabulary_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

impl TokenTime {
    /// Shares of weights, attention, stages and vocabulary, for tables.
    fn shares(&self) -> String {
        let parts = [self.weights_ms, self.attention_ms, self.stages_ms, self.vocabulary_ms];
        parts.map(|ms| percent(ms / self.total_ms)).join(" / ")
    }
}

/// A number of threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictionRow {
    /// Threads.
    pub threads: usize,
    /// Tokens generated per second.
    pub decode_tok_s: Interval,
    /// Tokens of the prompt per second.
    pub prefill_tok_s: Interval,
    /// From a prompt's tokens to the first generated one, the model being in memory.
    pub ttft_ms: Interval,
    /// The same when the file must be read first; null where storage is not known.
    pub ttft_from_storage_ms: Option<Interval>,
    /// Bytes of weights, keys and values that a token reads.
    pub bytes_per_token: u64,
    /// At that rate.
    pub gb_s: f64,
    /// What a token's time is spent on.
    pub token: TokenTime,
}

/// Memory that running takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryForecast {
    /// Positions it is planned for.
    pub context: usize,
    /// Keys and values.
    pub kv_bytes: u64,
    /// Activations, scratch and logits.
    pub buffer_bytes: u64,
    /// Weights copied into memory of the process.
    pub copied_bytes: u64,
    /// Weights fetched from the file for every token.
    pub streamed_bytes: u64,
    /// What must be free: the first three. The tokenizer and the program come on top.
    pub must_have_bytes: u64,
    /// Mapped from the file, which the system can drop and read again.
    pub mapped_bytes: u64,
    /// What is free; null where it is not known.
    pub available_bytes: Option<u64>,
    /// Where the weights will be.
    pub residency: String,
    /// Whether what must be free is.
    pub fits: Option<bool>,
    /// What would fit, if it does not.
    pub advice: Vec<String>,
}

/// A prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Name of the machine.
    pub machine: String,
    /// Where its rates come from.
    pub origin: Origin,
    /// The importer's name of the architecture.
    pub architecture: String,
    /// Parameters.
    pub parameters: u64,
    /// Codecs of its matrices.
    pub codecs: Vec<String>,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// Bits per weight, everything on disk counted.
    pub bits_per_weight: f64,
    /// Multiply-accumulates of a prompt's token, attention aside.
    pub macs_per_prompt_token: u64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated after it.
    pub r#gen: usize,
    /// Tokens in the context before the prompt.
    pub depth: usize,
    /// Type of the key/value cache.
    pub kv: String,
    /// One per number of threads.
    pub rows: Vec<PredictionRow>,
    /// The number of threads that decodes fastest.
    pub best_threads: usize,
    /// Memory.
    pub memory: MemoryForecast,
}

impl Prediction {
    /// The prediction as a Markdown table with lines on its circumstances.
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            "threads",
            "decode tok/s",
            "prefill tok/s",
            "TTFT ms",
            "from storage ms",
            "MB/token",
            "GB/s",
            "weights / attention / stages / vocabulary",
        ]);
        for row in &self.rows {
            let spread =
                |s: Interval| format!("{} ({} … {})", number(s.mid), number(s.low), number(s.high));
            table.row(vec![
                row.threads.to_string(),
                spread(row.decode_tok_s),
                spread(row.prefill_tok_s),
                spread(row.ttft_ms),
                row.ttft_from_storage_ms.map_or_else(|| "unknown".into(), spread),
                number(row.bytes_per_token as f64 / 1e6),
                number(row.gb_s),
                row.token.shares(),
            ]);
        }
        let m = &self.memory;
        let mib = |bytes: u64| format!("{} MiB", mebibytes(bytes));
        let available = m.available_bytes.map_or("unknown".into(), mib);
        let mut out = format!(
            "{}\nprompt {}, {} generated, depth {}; {}, {:.3} bits per weight, {:.1} MB, {}; KV {}\n\
             memory for a context of {}: {} must be free ({} keys and values, {} buffers, {} copied \
             weights), {} mapped; free now {}\n",
            table.render(),
            self.prompt,
            self.r#gen,
            self.depth,
            self.architecture,
            self.bits_per_weight,
            self.file_bytes as f64 / 1e6,
            self.codecs.join("+"),
            self.kv,
            m.context,
            mib(m.must_have_bytes),
            mib(m.kv_bytes),
            mib(m.buffer_bytes),
            mib(m.copied_bytes),
            mib(m.mapped_bytes),
            available,
        );
        if m.streamed_bytes > 0 {
            out += &format!(
                "{} of the weights are read from storage for every token\n",
                mib(m.streamed_bytes)
            );
        }
        match &self.origin {
            Origin::Probed { host, .. } => {
                out += &format!("probed on {}\n", host.line());
            }
            Origin::Table { basis, sources } => {
                out += &format!(
                    "{}: from the table of devices ({basis}), not measured here\nsources: {}\n",
                    self.machine,
                    sources.join("; ")
                );
            }
        }
        match m.fits {
            Some(false) => out += "does NOT fit: ",
            _ if !m.advice.is_empty() => out += "note: ",
            _ => {}
        }
        out += &m.advice.join("; ");
        if !m.advice.is_empty() {
            out.push('\n');
        }
        out
    }
}
