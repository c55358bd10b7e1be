//! The result of a speed measurement.

use serde::{Deserialize, Serialize};

use crate::activity::Activity;
use crate::energy::EnergyReport;
use crate::first_text::Ttft;
use crate::host::Host;
use crate::memory::Memory;
use crate::model_facts::ModelFacts;
use crate::predict::PredictionError;
use crate::stats::nearest_rank;
use crate::sustained::Sustained;

/// Least number of samples for a 95th percentile that means something.
pub const MIN_SAMPLES_P95: usize = 400;
/// Least number of samples for a 99th percentile.
pub const MIN_SAMPLES_P99: usize = 2000;

/// Percentiles by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile; see `too_few_for_p95`.
    pub p95: f64,
    /// 99th percentile; null for fewer than [`MIN_SAMPLES_P99`] samples.
    #[serde(default)]
    pub p99: Option<f64>,
    /// Values that these are percentiles of.
    #[serde(default)]
    pub samples: usize,
    /// Whether there were fewer than [`MIN_SAMPLES_P95`]: `p95` is then near the largest value and says
    /// little.
    #[serde(default)]
    pub too_few_for_p95: bool,
}

impl Percentiles {
    /// Of some values, at least one; they are sorted.
    pub(crate) fn of(values: &mut [f64]) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let samples = values.len();
        Self {
            p50: nearest_rank(values, 0.5),
            p95: nearest_rank(values, 0.95),
            p99: (samples >= MIN_SAMPLES_P99).then(|| nearest_rank(values, 0.99)),
            samples,
            too_few_for_p95: samples < MIN_SAMPLES_P95,
        }
    }
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

/// Speed with one number of threads at one depth with one prompt. Rates are medians over the repeats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// Threads.
    pub threads: usize,
    /// Tokens in the context before the prompt.
    #[serde(default)]
    pub depth: usize,
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt: usize,
    /// Tokens generated per second after the first.
    pub decode_tok_s: f64,
    /// 95 % interval of that median over repeats; null for fewer than five. Repeats share a process: fresh
    /// processes (several files, or `--rounds`) differ more.
    #[serde(default)]
    pub decode_tok_s_ci95: Option<[f64; 2]>,
    /// The same for each repeat.
    pub decode_tok_s_by_repeat: Vec<f64>,
    /// Tokens of the prompt processed per second.
    pub prefill_tok_s: f64,
    /// The same for each repeat.
    pub prefill_tok_s_by_repeat: Vec<f64>,
    /// From a prompt's tokens to the first generated one: prefill and greedy sampling, in a process
    /// that is warm; tokenizing and detokenizing are not in it.
    pub ttft_ms: Percentiles,
    /// Time of each following token (decoding and greedy sampling), pooled over the repeats. Every step
    /// gives one token, so this is the inter-token latency as well.
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
    /// Energy of a decoded token, the whole of what the counters count; null without a counter.
    #[serde(default)]
    pub joules_per_token: Option<f64>,
    /// Less the machine's power at rest.
    #[serde(default)]
    pub net_joules_per_token: Option<f64>,
    /// BLAKE3 of the generated tokens, each as four bytes, least significant first.
    #[serde(default)]
    pub output_blake3: String,
    /// Whether every repeat generated them.
    #[serde(default)]
    pub repeats_agree: bool,
}

/// Speed and memory of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// One row per number of threads, depth and prompt, in the order asked for.
    pub rows: Vec<BenchRow>,
    /// BLAKE3 of the tokens that the first row generated. Two runs of the same model with the same lengths
    /// and cache have the same.
    #[serde(default)]
    pub output_blake3: String,
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
    /// Where energy was read.
    #[serde(default)]
    pub energy: EnergyReport,
    /// Time to first token of a text, cold and warm; null when it was not measured.
    #[serde(default)]
    pub ttft: Option<Ttft>,
    /// A run of minutes; null when none was asked for.
    #[serde(default)]
    pub sustained: Option<Sustained>,
    /// What was predicted for these rows; null when this machine has not been probed (see `predict`).
    #[serde(default)]
    pub prediction: Option<Vec<PredictionError>>,
    /// What else the machine did during the repeats.
    #[serde(default)]
    pub activity: Activity,
    /// Instruction-set class.
    pub isa: String,
    /// Kernels that ran.
    pub kernels: Vec<KernelReport>,
    /// Element type of the key/value cache.
    pub kv: String,
    /// Tokens of the prompt, of the first row.
    pub prompt: usize,
    /// Tokens generated after the first.
    pub r#gen: usize,
    /// Tokens already in the context before the prompt, of the first row.
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
    /// Depth and prompt of a row. Rows of earlier versions have neither: there it is that of the report.
    pub(crate) fn place_of(&self, row: &BenchRow) -> (usize, usize) {
        if row.prompt > 0 { (row.depth, row.prompt) } else { (self.depth, self.prompt) }
    }

    /// The row at a place with so many threads.
    pub(crate) fn row_at(&self, threads: usize, place: (usize, usize)) -> Option<&BenchRow> {
        self.rows.iter().find(|row| row.threads == threads && self.place_of(row) == place)
    }
}
