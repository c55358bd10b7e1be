//! Import of foreign checkpoints, Hugging Face directories of safetensors files, and the description of
//! a model for a foreign program, llama.cpp ([`gguf_model`]).
//!
//! [`HfCheckpoint`] reads a directory and is a [`gristmill_formats::source::ModelSource`], so that the
//! runtime runs it and the quantizer packs it like any other model. Weights are mapped, not copied.
//!
//! An importer refuses what it does not understand. A configuration key that it does not know and that
//! could change the result is an error that names the key; so is a tensor that the model would not use.
//! Given any files it returns `Ok` or `Err`: it does not panic and allocates nothing that the files'
//! own sizes do not justify (see [`limits`]).

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod error;
mod gguf;
mod hf;
pub mod limits;

pub use error::{ConvertError, Result};
pub use gguf::{GgufOrigin, gguf_model};
pub use hf::{HfCheckpoint, Licence, SUPPORTED_MODEL_TYPES, spec_from_config};
