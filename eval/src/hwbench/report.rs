//! The result of measuring the kernels.

use gristmill_kernels::Isa;
use serde::{Serialize, Serializer};

use super::case::{Case, Ceiling, Family, Origin, Unit};
use super::check::SlowChoice;
use crate::host::Host;

/// One kernel on one instruction-set class with one number of threads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HwBenchRow {
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// Threads.
    pub threads: usize,
    /// Instruction-set class.
    #[serde(serialize_with = "isa_name")]
    pub isa: Isa,
    /// Whether the dispatcher chooses this class.
    pub chosen: bool,
    /// Rate of all threads together: the median of the repeats.
    pub rate: f64,
    /// Its unit.
    pub unit: Unit,
    /// Of each repeat.
    pub rate_by_repeat: Vec<f64>,
    /// What bounds the rate, measured in the same repeats, in the same unit; half the multiplier's peak
    /// where each weight takes two products. Null where nothing was measured that would.
    pub ceiling: Option<f64>,
    /// `rate` over `ceiling`.
    pub share: Option<f64>,
    /// Of a few tokens: time over that of one token.
    pub cost: Option<f64>,
}

/// A ceiling with one number of threads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CeilingRow {
    /// Which.
    pub ceiling: Ceiling,
    /// Instruction-set class, where it matters.
    #[serde(serialize_with = "maybe_isa_name")]
    pub isa: Option<Isa>,
    /// Threads.
    pub threads: usize,
    /// Rate of all threads together: the median.
    pub rate: f64,
    /// Its unit.
    pub unit: Unit,
}

/// Speed of all kernels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HwBenchReport {
    /// [`crate::SCHEMA_VERSION`].
    pub schema_version: u32,
    /// One row per case, number of threads and class.
    pub rows: Vec<HwBenchRow>,
    /// What bounds them, over the whole run. Shares are of what was measured beside a row.
    pub ceilings: Vec<CeilingRow>,
    /// The class that the dispatcher chooses.
    #[serde(serialize_with = "isa_name")]
    pub chosen: Isa,
    /// Whether its choice was compared with the other classes.
    pub checked: bool,
    /// By how much another class may be faster, as a share.
    pub tolerance: f64,
    /// Where another class is faster by more.
    pub slow_choices: Vec<SlowChoice>,
    /// Whether this was a short run, whose figures are rough.
    pub quick: bool,
    /// Repeats of each row.
    pub repeat: usize,
    /// Least time of a sample in milliseconds.
    pub sample_ms: f64,
    /// The large buffer that memory is read from.
    pub memory_bytes: u64,
    /// What each thread holds in its second-level cache.
    pub cache_bytes: u64,
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

/// Compares a few tokens with one.
pub(super) fn fill_costs(rows: &mut [HwBenchRow]) {
    let single: Vec<HwBenchRow> = rows
        .iter()
        .filter(|row| row.case.family == Family::Gemv && row.case.from == Origin::Memory)
        .cloned()
        .collect();
    for row in rows.iter_mut().filter(|row| row.case.family == Family::SmallM) {
        let same = |one: &&HwBenchRow| {
            one.case.subject == row.case.subject && (one.threads, one.isa) == (row.threads, row.isa)
        };
        // Both rates count bytes of weights.
        row.cost = single.iter().find(same).map(|one| one.rate / row.rate);
    }
}

pub(super) fn isa_name<S: Serializer>(isa: &Isa, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(isa.name())
}

fn maybe_isa_name<S: Serializer>(isa: &Option<Isa>, serializer: S) -> Result<S::Ok, S::Error> {
    isa.map(Isa::name).serialize(serializer)
}
