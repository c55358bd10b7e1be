//! What a machine can do: rates that were probed on it, or taken from a table of devices.

use gristmill_formats::codec::CodecId;
use gristmill_runtime::KvType;
use serde::{Deserialize, Serialize};

use crate::host::Host;

/// A rate or a time, and the extremes of its samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Least.
    pub low: f64,
    /// Median.
    pub mid: f64,
    /// Largest.
    pub high: f64,
}

/// Which value of a [`Interval`] a prediction is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    /// Low rates, long times.
    Slow,
    Median,
    /// High rates, short times.
    Fast,
}

impl Interval {
    pub(super) fn of(samples: &[f64]) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for &sample in samples {
            low = low.min(sample);
            high = high.max(sample);
        }
        Self { low, mid: crate::stats::median(samples), high }
    }

    pub(super) fn scaled(self, factor: f64) -> Self {
        Self { low: self.low * factor, mid: self.mid * factor, high: self.high * factor }
    }

    /// As a rate.
    pub(super) fn rate(self, case: Case) -> f64 {
        match case {
            Case::Slow => self.low,
            Case::Median => self.mid,
            Case::Fast => self.high,
        }
    }

    /// As a time.
    pub(super) fn time(self, case: Case) -> f64 {
        match case {
            Case::Slow => self.high,
            Case::Median => self.mid,
            Case::Fast => self.low,
        }
    }
}

/// Where the figures of a [`Machine`] come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Origin {
    /// Probed on this machine.
    Probed {
        /// The machine.
        host: Box<Host>,
        /// When the first probe began, in seconds since 1970.
        unix_time_s: u64,
    },
    /// From the table of devices.
    Table {
        /// What the rates rest on: `measured` or `specification`.
        basis: String,
        /// Who says so.
        sources: Vec<String>,
    },
}

/// Read bandwidth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadRate {
    /// Threads.
    pub threads: usize,
    /// Bytes that are read again and again.
    pub bytes: u64,
    /// 1e9 bytes per second.
    pub gb_s: Interval,
}

/// Products of a matrix with one token: bytes of weights per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GemvRate {
    /// Codec of the matrix.
    #[serde(with = "codec_name")]
    pub codec: CodecId,
    /// Threads.
    pub threads: usize,
    /// Bytes of all weights that take turns.
    pub bytes: u64,
    /// Whether they are in huge pages.
    pub huge_pages: bool,
    /// 1e9 bytes per second.
    pub gb_s: Interval,
}

/// Products of a matrix with the tokens of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GemmRate {
    /// Codec of the matrix.
    #[serde(with = "codec_name")]
    pub codec: CodecId,
    /// Threads.
    pub threads: usize,
    /// Tokens at once.
    pub tokens: usize,
    /// 1e9 multiply-accumulates per second.
    pub gmac_s: Interval,
}

/// What a token costs beside products and attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overheads {
    /// Threads.
    pub threads: usize,
    /// Meeting of the threads alone: an empty stage, in microseconds.
    pub barrier_us: Interval,
    /// Of one token per stage, microseconds: the barrier, handing out work, norms, heads.
    pub stage_us: Interval,
    /// Of one token per input column of a stage, nanoseconds: norm and quantization of activations.
    pub column_ns: Interval,
    /// Per entry of the vocabulary, nanoseconds: logits and greedy sampling.
    pub vocab_ns: Interval,
    /// Of a prompt's token per layer, microseconds.
    pub prompt_layer_us: Interval,
    /// Of a prompt's token per input column, nanoseconds.
    pub prompt_column_ns: Interval,
}

/// Attention: multiply-accumulates of queries with keys and of weights with values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionRate {
    /// Type of the cache.
    #[serde(with = "kv_name")]
    pub kv: KvType,
    /// Threads.
    pub threads: usize,
    /// Of one token: 1e9 multiply-accumulates per second.
    pub decode_gmac_s: Interval,
    /// Of a prompt.
    pub prompt_gmac_s: Interval,
}

/// What a machine can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Its name.
    pub name: String,
    /// Where the figures come from.
    pub origin: Origin,
    /// Read bandwidth.
    pub reads: Vec<ReadRate>,
    /// Products with one token.
    pub gemv: Vec<GemvRate>,
    /// Products with prompts.
    pub gemm: Vec<GemmRate>,
    /// Everything else of the forward pass.
    pub overheads: Vec<Overheads>,
    /// Attention.
    pub attention: Vec<AttentionRate>,
    /// Reading files that no cache holds, 1e9 bytes per second.
    pub storage_gb_s: Option<Interval>,
    /// Memory that programs can use; of the machine itself it is read anew each time.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// Rate of a matrix in a working set of so many bytes; between probed sizes the rate changes with
    /// the logarithm of the size.
    pub(super) fn gemv(
        &self,
        codec: CodecId,
        threads: usize,
        huge_pages: bool,
        bytes: u64,
        case: Case,
    ) -> Option<f64> {
        let rows = |huge: bool| {
            let is =
                move |r: &&GemvRate| (r.codec, r.threads, r.huge_pages) == (codec, threads, huge);
            let rows = self.gemv.iter().filter(is);
            let mut points: Vec<_> = rows.map(|r| (r.bytes as f64, r.gb_s.rate(case))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        let points = match rows(huge_pages) {
            points if points.is_empty() => rows(!huge_pages),
            points => points,
        };
        interpolate(&points, bytes as f64)
    }

    pub(super) fn gemm(&self, codec: CodecId, threads: usize, case: Case) -> Option<f64> {
        let is = |r: &&GemmRate| (r.codec, r.threads) == (codec, threads);
        self.gemm.iter().find(is).map(|r| r.gmac_s.rate(case))
    }

    pub(super) fn overheads(&self, threads: usize) -> Option<&Overheads> {
        self.overheads.iter().find(|o| o.threads == threads)
    }

    pub(super) fn attention(&self, kv: KvType, threads: usize) -> Option<&AttentionRate> {
        self.attention.iter().find(|a| (a.kv, a.threads) == (kv, threads))
    }
}

/// The value at `x` on straight lines over the logarithm; beyond the ends, the ends' values.
fn interpolate(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let (&first, &last) = (points.first()?, points.last()?);
    if x <= first.0 {
        return Some(first.1);
    }
    if x >= last.0 {
        return Some(last.1);
    }
    let pair = points.windows(2).find(|pair| x <= pair[1].0)?;
    let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
    let share = (x / x0).ln() / (x1 / x0).ln();
    Some(y0 + share * (y1 - y0))
}

/// Names in JSON for what has one.
macro_rules! by_name {
    ($module:ident, $type:ty) => {
        mod $module {
            use serde::de::Error;
            use serde::{Deserialize, Deserializer, Serializer};

            pub(super) fn serialize<S: Serializer>(
                value: &$type,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                to.serialize_str(value.name())
            }

            pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<$type, D::Error> {
                String::deserialize(from)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

by_name!(codec_name, gristmill_formats::codec::CodecId);
by_name!(kv_name, gristmill_runtime::KvType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_between_sizes_lie_between_their_rates() {
        let points = [(16.0, 40.0), (64.0, 30.0), (256.0, 10.0)];
        for (x, y) in [(1.0, 40.0), (16.0, 40.0), (32.0, 35.0), (64.0, 30.0), (128.0, 20.0)] {
            assert!((interpolate(&points, x).unwrap() - y).abs() < 1e-12, "{x}");
        }
        assert_eq!(interpolate(&points, 1e9), Some(10.0));
        assert_eq!(interpolate(&[], 1.0), None);
    }

    #[test]
    fn a_slow_machine_has_low_rates_and_long_times() {
        let spread = Interval::of(&[3.0, 1.0, 2.0]);
        assert_eq!(spread, Interval { low: 1.0, mid: 2.0, high: 3.0 });
        assert_eq!((spread.rate(Case::Slow), spread.time(Case::Slow)), (1.0, 3.0));
        assert_eq!((spread.rate(Case::Fast), spread.time(Case::Fast)), (3.0, 1.0));
    }
}
