//! Measurements: perplexity, KL divergence, speed and memory.
//!
//! * [`quality()`] scores a text by one of two protocols ([`Protocol`]) and, given a reference, compares
//!   the two models token by token.
//! * [`choices()`] asks multiple-choice questions.
//! * [`bench()`] measures prefill and decoding beside the read bandwidth that bounds them.
//! * [`ParetoReport`] puts size, quality and speed of several files into one table and one page.
//! * [`hwbench()`] measures every kernel on every instruction set beside what bounds it.
//! * [`write_synthetic()`] makes models to measure the speed of.
//!
//! Every report carries the host, the commit, the instruction set, the threads, the model's fingerprint
//! and the protocol, because a number without them cannot be compared with another.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod activity;
mod bench;
mod choice;
mod control_group;
mod energy;
mod error;
mod file_cache;
mod first_text;
mod host;
mod hwbench;
mod kv_choice;
mod memory;
mod model_facts;
mod pareto;
mod platform;
mod predict;
mod probe;
mod quality;
mod spread;
mod stats;
mod sustained;
mod synthetic;
mod table;
#[cfg(test)]
mod testing;

pub use activity::Activity;
pub use bench::{
    BenchConfig, BenchDocument, BenchReport, BenchRow, ComparedRow, Comparison, FileRuns,
    Interleaved, KernelReport, MIN_SAMPLES_P95, MIN_SAMPLES_P99, Percentiles, RunsRow, bench,
};
pub use choice::{
    Accuracy, Agreement, ChoiceReference, ChoiceReport, ChoiceTask, EncodedTask, Question,
    QuestionScore, choices,
};
pub use control_group::CpuThrottling;
pub use energy::{EnergyMeter, EnergyReport, EnergyWindow, Measured};
pub use error::{EvalError, Result};
pub use file_cache::drop_pages;
pub use first_text::{
    ColdRun, FirstText, MAX_SILENT_TOKENS, Request, Start, Ttft, first_text, prompt_text,
};
pub use host::{Host, unix_time_s};
pub use hwbench::{
    Case, Ceiling, CeilingRow, Family, HwBenchConfig, HwBenchReport, HwBenchRow, Operation, Origin,
    SlowChoice, Subject, TOLERANCE, Unit, hwbench,
};
pub use kv_choice::{KvChoice, KvDivergence, MAX_KV_KLD, choose_kv};
pub use memory::{Memory, major_faults, peak_memory, reset_peak_memory, storage_read_bytes};
pub use model_facts::ModelFacts;
pub use pareto::{
    Compared, ParetoComparison, ParetoPoint, ParetoQuality, ParetoReport, ParetoSpeed, Peer,
    PeerSpeed, Peers, PeersError, PointMemory, PointSpeed, compare_pareto,
};
pub use predict::{
    AttentionRate, Device, GemmRate, GemvRate, Interval, Machine, MemoryForecast, ModelShape,
    Needs, Origin as MachineOrigin, Overheads, PredictConfig, Prediction, PredictionError,
    PredictionRow, ReadRate, TokenTime, predict, score,
};
pub use probe::{Bandwidth, ReadProbe, default_probe_bytes, probe_bandwidth, probe_slices};
pub use quality::{
    Difference, Divergence, EarlierReport, Estimate, PairedDifference, PositionQuality, Protocol,
    QualityComparison, QualityConfig, QualityReport, QualityVerdict, Ratio, ReferenceQuality,
    TextTokens, TokenPath, UnknownProtocol, WindowQuality, quality,
};
pub use spread::{MIN_RUNS, Spread, Verdict};
pub use sustained::{
    Phase, RateAt, Steadiness, Sustained, SustainedConfig, ThrottleRule, TracePoint, sustained,
};
pub use synthetic::{Shape, write_synthetic};

/// Version of the reports' JSON: raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;
