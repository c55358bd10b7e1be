//! The file around the tensors: superblock, tensor data, tokenizer section, header, footer.
//!
//! ```text
//! 0        superblock (128 bytes), zeros up to 16 KiB
//! 16 KiB   tensors in execution order, each on a 64-byte boundary
//! 64 B ↑   tokenizer section
//! 64 B ↑   header (JSON)
//! 64 B ↑   footer: the superblock again, and a commit mark
//! ```

mod header;
mod reader;
mod superblock;
mod verify;
mod writer;

pub use header::{
    Header, Provenance, QualityReport, SectionEntry, SourceFile, TensorEntry, TensorQuality,
};
pub use reader::PackedFile;
pub use superblock::{FOOTER_BYTES, MAGIC, SUPERBLOCK_BYTES, Superblock, VERSION};
pub use verify::{Damage, verify};
pub use writer::{PackedWriter, rewrite_header};

/// Rounds an offset up to a multiple of `align`, a power of two; `None` on overflow.
fn align_up(offset: u64, align: u64) -> Option<u64> {
    offset.checked_add(align - 1).map(|x| x & !(align - 1))
}
