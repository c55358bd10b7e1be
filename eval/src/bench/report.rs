//! The result of a speed measurement.

use serde::{Deserialize, Serialize};

use crate::host::{Host, Memory};
use crate::model_facts::ModelFacts;
use crate::table::{Table, mebibytes, number, percent};

/// Percentiles by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

/// Which kernel multiplies the matrices of a codec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelReport {
    /// Codec.
    pub codec: String,
    /// Kernel for one token.
    pub decode: String,
    /// Kernel for prompts.
    pub prefill: String,
}

/// Speed with one number of threads. Rates are medians over the repeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// Threads.
    pub threads: usize,
    /// Tokens generated per second after the first.
    pub decode_tok_s: f64,
    /// The same for each repeat.
    pub decode_tok_s_by_repeat: Vec<f64>,
    /// Tokens of the prompt processed per second.
    pub prefill_tok_s: f64,
    /// The same for each repeat.
    pub prefill_tok_s_by_repeat: Vec<f64>,
    /// From a prompt's tokens to the first generated one: prefill and greedy sampling, in a process
    /// that is warm; tokenizing and detokenizing are not in it.
    pub ttft_ms: Percentiles,
    /// Time of each following token (decoding and greedy sampling), pooled over the repeats.
    pub tpot_ms: Percentiles,
    /// Bytes that decoding a token reads: the sum of the next two.
    pub bytes_per_token: u64,
    /// Of weights.
    pub weight_bytes_per_token: u64,
    /// Mean share of the output head's panels that decoding a token computed after the coarse head; null
    /// when there was none.
    pub fine_head_share: Option<f64>,
    /// Of keys and values, at the mean depth of the generated tokens.
    pub kv_bytes_per_token: u64,
    /// `bytes_per_token` times `decode_tok_s`.
    pub achieved_gb_s: f64,
    /// Read bandwidth of memory with as many threads, probed before and after each repeat; median.
    pub bandwidth_gb_s: f64,
    /// Read bandwidth over the model's own weights, probed alike: the ceiling of a model that fits a
    /// cache.
    pub bandwidth_model_sized_gb_s: f64,
    /// `achieved_gb_s` over `bandwidth_gb_s`; above 1 when weights stay in a cache.
    pub share_of_bandwidth: f64,
    /// `achieved_gb_s` over `bandwidth_model_sized_gb_s`.
    pub share_of_model_sized_bandwidth: f64,
    /// What the roofline allows: `bandwidth_model_sized_gb_s` over `bytes_per_token`.
    pub predicted_decode_tok_s: f64,
}

/// Speed and memory of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// One row per number of threads, in the order asked for.
    pub rows: Vec<BenchRow>,
    /// Opening and binding the model, for the first time in this process. The system's file cache may
    /// have been warm.
    pub load_ms: f64,
    /// The same again, median.
    pub load_warm_ms: f64,
    /// Where the weights were: `map`, `huge` or `stream`.
    pub residency: String,
    /// Bytes of them copied into memory of the process.
    pub copied_bytes: u64,
    /// Bytes of them fetched from the file for every token.
    pub streamed_bytes: u64,
    /// Bytes of the coarse head; null when the head was not computed in two stages.
    pub coarse_head_bytes: Option<u64>,
    /// What making the coarse head took; a part of the load time.
    pub coarse_head_ms: Option<f64>,
    /// Memory before the bandwidth probe took its own: the most over the numbers of threads.
    pub memory: Memory,
    /// Instruction-set class.
    pub isa: String,
    /// Kernels that ran.
    pub kernels: Vec<KernelReport>,
    /// Element type of the key/value cache.
    pub kv: String,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated after the first.
    pub r#gen: usize,
    /// Tokens already in the context before the prompt.
    pub depth: usize,
    /// Repeats of each row.
    pub repeat: usize,
    /// Size of the memory probe's buffer.
    pub probe_bytes: u64,
    /// Part of that buffer in huge pages; a mapped model has none. Null where it cannot be read.
    pub probe_huge_page_bytes: Option<u64>,
    /// The model.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// What the numbers mean, in words.
    pub method: String,
    /// Why the numbers should not be compared with others, if so.
    pub warnings: Vec<String>,
    /// Duration.
    pub seconds: f64,
    /// When it ended, in seconds since 1970.
    pub unix_time_s: u64,
    /// The machine.
    pub host: Host,
}

impl BenchReport {
    /// Where the weights were, in words.
    fn weights(&self) -> String {
        let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        match (self.copied_bytes, self.streamed_bytes) {
            (0, 0) => "mapped".into(),
            (copied, 0) => format!("copied into huge pages ({})", mb(copied)),
            (copied, streamed) => format!("{} in memory, {} streamed", mb(copied), mb(streamed)),
        }
    }

    /// How the output head was computed, in words.
    fn head(&self) -> String {
        let (Some(bytes), Some(ms)) = (self.coarse_head_bytes, self.coarse_head_ms) else {
            return "in full".into();
        };
        let shares = self.rows.iter().filter_map(|row| row.fine_head_share).map(percent);
        format!(
            "in two stages ({:.1} MB of coarse head made in {} ms, then {} of the panels)",
            bytes as f64 / 1e6,
            number(ms),
            shares.collect::<Vec<_>>().join(", "),
        )
    }

    /// The report as a Markdown table with lines on its circumstances.
    pub fn table(&self) -> String {
        let mut table = Table::new(&[
            "threads",
            "prefill tok/s",
            "TTFT p50/p95 ms",
            "decode tok/s",
            "TPOT p50/p95 ms",
            "MB/token",
            "GB/s",
            "of memory",
            "of model-sized",
            "roofline tok/s",
        ]);
        let pair = |p: Percentiles| format!("{} / {}", number(p.p50), number(p.p95));
        for row in &self.rows {
            table.row(vec![
                row.threads.to_string(),
                number(row.prefill_tok_s),
                pair(row.ttft_ms),
                number(row.decode_tok_s),
                pair(row.tpot_ms),
                number(row.bytes_per_token as f64 / 1e6),
                number(row.achieved_gb_s),
                format!("{} of {}", percent(row.share_of_bandwidth), number(row.bandwidth_gb_s)),
                format!(
                    "{} of {}",
                    percent(row.share_of_model_sized_bandwidth),
                    number(row.bandwidth_model_sized_gb_s)
                ),
                number(row.predicted_decode_tok_s),
            ]);
        }
        let memory = |bytes: Option<u64>| {
            bytes.map_or_else(|| "unknown".into(), |b| format!("{} MiB", mebibytes(b)))
        };
        let mut out = format!(
            "{}\nprompt {}, {} generated, depth {}, {} repeats; {:.3} bits per weight, {:.1} MB, {}; KV {}\n\
             load {} ms (again {} ms), weights {}, head {}; memory {} anonymous, {} mapped\n{}\n",
            table.render(),
            self.prompt,
            self.r#gen,
            self.depth,
            self.repeat,
            self.model.bits_per_weight,
            self.model.file_bytes as f64 / 1e6,
            self.model.codecs.join("+"),
            self.kv,
            number(self.load_ms),
            number(self.load_warm_ms),
            self.weights(),
            self.head(),
            memory(self.memory.anonymous_peak_bytes),
            memory(self.memory.file_peak_bytes),
            self.host.line(),
        );
        if self.rows.iter().any(|row| row.share_of_bandwidth > 1.0) {
            out.push_str("above 100 % of memory: weights stay in a cache between tokens\n");
        }
        for warning in &self.warnings {
            out.push_str("warning: ");
            out.push_str(warning);
            out.push('\n');
        }
        out
    }
}
