//! Measurements: perplexity, KL divergence, speed and memory.
//!
//! * [`quality()`] scores a text by one of two protocols ([`Protocol`]) and, given a reference, compares
//!   the two models token by token.
//! * [`bench()`] measures prefill and decoding beside the read bandwidth that bounds them.
//!
//! Every report carries the host, the commit, the instruction set, the threads, the model's fingerprint
//! and the protocol, because a number without them cannot be compared with another.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod bench;
mod error;
mod host;
mod model_facts;
mod probe;
mod quality;
mod stats;
mod table;

pub use bench::{BenchConfig, BenchReport, BenchRow, KernelReport, Percentiles, bench};
pub use error::{EvalError, Result};
pub use host::{Host, Memory, peak_memory, reset_peak_memory};
pub use probe::{Bandwidth, ReadProbe, default_probe_bytes, probe_bandwidth, probe_slices};
pub use quality::{
    Divergence, Estimate, Protocol, QualityConfig, QualityReport, Ratio, ReferenceQuality,
    TextTokens, UnknownProtocol, WindowQuality, quality,
};

/// Version of the reports' JSON: raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;
