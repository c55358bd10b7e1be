//! GGUF version 3, the file that llama.cpp loads: its block types and a writer. What the metadata
//! means is decided by whoever fills it in; here are only bytes.
//!
//! ```text
//! 0     "GGUF", version (u32), number of tensors (u64), number of metadata entries (u64)
//! 24    metadata: key, type (u32), value
//!       tensors: name, number of dimensions (u32), extents (u64, innermost first), type (u32), offset (u64)
//!       zeros up to a multiple of 32
//! data  tensors, each on a multiple of 32; offsets count from here
//! ```
//!
//! All integers are little-endian; a string is its length (u64) and its UTF-8. Source: the
//! specification in ggml's `docs/gguf.md`; the blocks are those of ggml's `ggml-common.h`.

mod block;
mod model;
mod superblock;
mod types;
mod value;
mod writer;

pub use block::{BLOCK, Block};
pub use model::{GgufData, GgufModel, GgufTensor, RowOrder};
pub use superblock::{SUPERBLOCK, SuperBlock};
pub use types::GgmlType;
pub use value::{Metadata, Value};
pub use writer::{ALIGN, GgufWriter, TensorInfo};
