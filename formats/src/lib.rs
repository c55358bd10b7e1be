//! The packed model file of gristmill: container, codecs, and the description of a model.
//!
//! This crate has no threads and no policy about files. Given any bytes it returns `Ok` or `Err`: it
//! does not panic and allocates nothing that the input's own size does not justify (see [`limits`]).
//! The byte-level specification is FORMAT.md.

#![deny(missing_docs)]

mod bytes;
pub mod codec;
pub mod container;
mod error;
pub mod fold;
pub mod gguf;
pub mod limits;
pub mod model;
mod output;
mod progress;
pub mod source;
pub mod tokenizer;

pub use bytes::{HugeBuffer, SharedBytes};
pub use error::{FormatError, Result};
pub use progress::{Progress, Silent};
