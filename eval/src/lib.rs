//! Measurements: perplexity, KL divergence, speed and memory.
//!
//! * [`quality()`] scores a text by one of two protocols ([`Protocol`]) and, given a reference, compares
//!   the two models token by token.
//! * [`choices()`] asks multiple-choice questions.
//! * [`bench()`] measures prefill and decoding beside the read bandwidth that bounds them.
//! * [`hwbench()`] measures every kernel on every instruction set beside what bounds it.
//! * [`write_synthetic()`] makes models to measure the speed of.
//!
//! Every report carries the host, the commit, the instruction set, the threads, the model's fingerprint
//! and the protocol, because a number without them cannot be compared with another.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod bench;
mod choice;
mod error;
mod file_cache;
mod host;
mod hwbench;
mod kv_choice;
mod model_facts;
mod predict;
mod probe;
mod quality;
mod stats;
mod synthetic;
mod table;

pub use bench::{BenchConfig, BenchReport, BenchRow, KernelReport, Percentiles, bench};
pub use choice::{
    Accuracy, Agreement, ChoiceReference, ChoiceReport, ChoiceTask, EncodedTask, Question,
    QuestionScore, choices,
};
pub use error::{EvalError, Result};
pub use host::{Host, Memory, peak_memory, reset_peak_memory};
pub use hwbench::{
    Case, Ceiling, CeilingRow, Family, HwBenchConfig, HwBenchReport, HwBenchRow, Operation, Origin,
    SlowChoice, Subject, TOLERANCE, Unit, hwbench,
};
pub use kv_choice::{KvChoice, KvDivergence, MAX_KV_KLD, choose_kv};
pub use model_facts::ModelFacts;
pub use predict::{
    AttentionRate, Device, GemmRate, GemvRate, Interval, Machine, MemoryForecast, ModelShape,
    Needs, Origin as MachineOrigin, Overheads, PredictConfig, Prediction, PredictionError,
    PredictionRow, ReadRate, TokenTime, predict, score,
};
pub use probe::{Bandwidth, ReadProbe, default_probe_bytes, probe_bandwidth, probe_slices};
pub use quality::{
    Comparison, Difference, Divergence, EarlierReport, Estimate, PairedDifference, PositionQuality,
    Protocol, QualityConfig, QualityReport, Ratio, ReferenceQuality, TextTokens, TokenPath,
    UnknownProtocol, Verdict, WindowQuality, quality,
};
pub use synthetic::{Shape, write_synthetic};

/// Version of the reports' JSON: raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;
