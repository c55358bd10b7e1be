//! Devices that are not at hand: what is published about them, with sources.

use gristmill_formats::codec::CodecId;
use gristmill_kernels::Kernels;
use gristmill_runtime::KvType;
use serde::{Deserialize, Serialize};

use super::machine::{
    AttentionRate, GemmRate, GemvRate, Interval, Machine, Origin, Overheads, ReadRate,
};
use super::probe::Needs;
use crate::error::{EvalError, Result};

/// The table. Rates are of the CPU, all its useful cores together.
const TABLE: &str = include_str!("devices.json");

// What kernels make of a device's ceilings. The middle of each is what `hwbench` and `bench` show on
// machines at hand; the ends are what published figures of other engines on such devices span.
/// Of the read bandwidth, by products with one token.
const GEMV: Interval = Interval { low: 0.60, mid: 0.85, high: 0.95 };
/// Of the int8 rate, by products with a prompt.
const GEMM: Interval = Interval { low: 0.20, mid: 0.40, high: 0.55 };
/// Of the int8 rate, by attention of one token.
const DECODE_ATTENTION: Interval = Interval { low: 0.02, mid: 0.04, high: 0.08 };
/// Of the int8 rate, by attention of a prompt.
const PROMPT_ATTENTION: Interval = Interval { low: 0.04, mid: 0.08, high: 0.12 };
/// What of a specified bandwidth can be read.
const READABLE: Interval = Interval { low: 0.60, mid: 0.75, high: 0.90 };
/// Microseconds of a stage.
const STAGE_US: Interval = Interval { low: 2.0, mid: 4.0, high: 10.0 };
/// Nanoseconds of a column, and of an entry of the vocabulary.
const COLUMN_NS: Interval = Interval { low: 0.5, mid: 1.0, high: 2.0 };
const VOCAB_NS: Interval = Interval { low: 0.3, mid: 0.8, high: 2.0 };
/// Microseconds of a prompt's token in a layer, and nanoseconds in a column.
const PROMPT_LAYER_US: Interval = Interval { low: 0.5, mid: 1.0, high: 3.0 };
const PROMPT_COLUMN_NS: Interval = Interval { low: 0.3, mid: 0.6, high: 1.5 };

/// A device of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What it is called on the command line.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Threads that the rates are of: those that read fastest.
    pub threads: usize,
    /// Measured read bandwidth, 1e9 bytes per second.
    pub read_gb_s: Option<f64>,
    /// Bandwidth of the memory as specified; what is predicted from where no measurement is known.
    pub specified_gb_s: f64,
    /// int8 multiply-accumulates, 1e9 per second: cores times clock times products per cycle.
    pub int8_gmac_s: f64,
    /// Memory of the device.
    pub memory_gb: f64,
    /// What of it a program may use.
    pub usable_gb: f64,
    /// Reading storage, 1e9 bytes per second.
    pub storage_gb_s: Option<f64>,
    /// Who says so.
    pub sources: Vec<String>,
}

impl Device {
    /// The devices that are known.
    ///
    /// # Panics
    /// Never: the table is checked by a test.
    pub fn all() -> Vec<Self> {
        serde_json::from_str(TABLE).expect("the table of devices is well-formed")
    }

    /// The device of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(id: &str) -> Result<Self> {
        let all = Self::all();
        let known = all.iter().map(|d| d.id.as_str()).collect::<Vec<_>>().join(", ");
        let unknown = || EvalError::Config(format!("unknown device `{id}`; known: {known}"));
        all.iter().find(|d| d.id == id).cloned().ok_or_else(unknown)
    }

    /// Bytes that a program may use.
    pub fn usable_bytes(&self) -> u64 {
        (self.usable_gb * 1e9) as u64
    }

    /// What the device can be expected to do with kernels like ours.
    pub fn machine(&self, needs: &Needs) -> Machine {
        let threads = self.threads;
        let read = match self.read_gb_s {
            Some(measured) => Interval { low: measured, mid: measured, high: measured },
            None => READABLE.scaled(self.specified_gb_s),
        };
        let product = Interval {
            low: read.low * GEMV.low,
            mid: read.mid * GEMV.mid,
            high: read.high * GEMV.high,
        };
        let gemv = |&codec: &CodecId| GemvRate {
            codec,
            threads,
            bytes: u64::MAX,
            huge_pages: needs.huge_pages,
            gb_s: product,
        };
        let gemm = |&codec: &CodecId| {
            let planes = if Kernels::takes_fine(codec) { 2.0 } else { 1.0 };
            // Dense weights are multiplied in f32, a quarter as wide.
            let width = if codec.is_dense() { 4.0 } else { planes };
            let gmac_s = GEMM.scaled(self.int8_gmac_s / width);
            GemmRate { codec, threads, tokens: 512, gmac_s }
        };
        let attention = |kv: KvType| AttentionRate {
            kv,
            threads,
            decode_gmac_s: DECODE_ATTENTION.scaled(self.int8_gmac_s),
            prompt_gmac_s: PROMPT_ATTENTION.scaled(self.int8_gmac_s),
        };
        Machine {
            schema_version: crate::SCHEMA_VERSION,
            name: self.name.clone(),
            origin: Origin::Table {
                basis: match self.read_gb_s {
                    Some(_) => "bandwidth measured by others".into(),
                    None => "specification".into(),
                },
                sources: self.sources.clone(),
            },
            reads: vec![ReadRate { threads, bytes: u64::MAX, gb_s: read }],
            gemv: needs.codecs.iter().map(gemv).collect(),
            gemm: needs.codecs.iter().map(gemm).collect(),
            overheads: vec![Overheads {
                threads,
                barrier_us: STAGE_US,
                stage_us: STAGE_US,
                column_ns: COLUMN_NS,
                vocab_ns: VOCAB_NS,
                prompt_layer_us: PROMPT_LAYER_US,
                prompt_column_ns: PROMPT_COLUMN_NS,
            }],
            attention: vec![attention(needs.kv)],
            storage_gb_s: self.storage_gb_s.map(|s| Interval { low: s, mid: s, high: s }),
            memory_bytes: Some((self.memory_gb * 1e9) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed_and_cites_its_sources() {
        let all = Device::all();
        assert!(all.len() >= 8);
        for device in &all {
            assert!(!device.sources.is_empty(), "{}", device.id);
            assert!(device.usable_gb <= device.memory_gb, "{}", device.id);
            let ids = all.iter().filter(|d| d.id == device.id).count();
            assert_eq!(ids, 1, "{}", device.id);
            if let Some(read) = device.read_gb_s {
                assert!(read <= device.specified_gb_s, "{}", device.id);
            }
            assert!(device.int8_gmac_s > device.specified_gb_s, "{}", device.id);
        }
        assert!(Device::find("abacus").unwrap_err().to_string().contains(&all[0].id));
    }
}
