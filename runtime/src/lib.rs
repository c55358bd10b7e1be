//! Runs a model: logits and tokens from a packed file or from a checkpoint directory.
//!
//! [`Model`] binds the tensors of a [`ModelSource`](gristmill_formats::source::ModelSource) without
//! copying them; [`Engine`] holds the caches and buffers of one sequence and computes logits. After an
//! engine is built, decoding a token allocates nothing. Logits are bit-identical for any number of
//! threads and any split of a sequence into chunks.

#![deny(missing_docs)]

mod coarse;
mod engine;
mod error;
mod memory;
mod model;
mod pool;
mod residency;
pub mod text;

pub use coarse::{CoarseHead, Head};
pub use engine::{Engine, EngineConfig, HeadUse, KernelUse, MemoryPlan, default_threads};
pub use error::{Result, RuntimeError};
pub use gristmill_kernels::{Isa, Kernels, KvType};
pub use memory::available_memory_bytes;
pub use model::Model;
pub use pool::Pool;
pub use residency::{Placement, Residency};
