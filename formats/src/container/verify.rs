//! Finding damage: every byte of a file is covered by a digest, a twin, or must be zero.

use super::reader::PackedFile;
use super::superblock::{FOOTER_BYTES, SUPERBLOCK_BYTES};
use crate::limits::SECTION_ALIGN;
use crate::progress::Progress;

/// A damaged part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The tensor or section.
    pub part: String,
    /// First byte of the part in the file.
    pub offset: u64,
    /// What is wrong with it.
    pub detail: String,
}

/// Checks every tensor, the tokenizer and all padding of a file whose metadata has been checked by
/// opening it. Together with that, any changed bit is found.
pub fn verify(file: &PackedFile, progress: &dyn Progress) -> Vec<Damage> {
    let mut damage = Vec::new();
    let bytes = file.bytes();
    let mut padding = |part: &str, start: u64, end: u64| {
        let gap = &bytes[start as usize..end as usize];
        if let Some(at) = gap.iter().position(|&b| b != 0) {
            damage.push(Damage {
                part: format!("padding before {part}"),
                offset: start + at as u64,
                detail: "a byte that must be zero is not".into(),
            });
        }
    };
    let header = file.header();
    padding("the first tensor", SUPERBLOCK_BYTES as u64, SECTION_ALIGN);
    let mut end = SECTION_ALIGN;
    for entry in &header.tensors {
        padding(&entry.name, end, entry.offset);
        end = entry.offset + entry.bytes;
    }
    if let Some(section) = &header.tokenizer {
        padding("the tokenizer", end, section.offset);
        end = section.offset + section.bytes;
    }
    let superblock = file.superblock();
    padding("the header", end, superblock.header_offset);
    let header_end = superblock.header_offset + superblock.header_bytes;
    padding("the footer", header_end, bytes.len() as u64 - FOOTER_BYTES as u64);

    let total = header.tensors.iter().map(|t| t.bytes).sum();
    progress.begin("verifying", total, "bytes");
    let mismatch = |part: &str, offset: u64| Damage {
        part: part.into(),
        offset,
        detail: "its bytes do not match their digest".into(),
    };
    for entry in &header.tensors {
        let data = file.tensor_bytes(entry);
        if blake3::hash(&data).to_hex().as_str() != entry.blake3 {
            damage.push(mismatch(&format!("tensor `{}`", entry.name), entry.offset));
        }
        progress.advance(entry.bytes);
    }
    if let Some(entry) = &header.tokenizer {
        let start = entry.offset as usize;
        let data = &bytes[start..start + entry.bytes as usize];
        if blake3::hash(data).to_hex().as_str() != entry.blake3 {
            damage.push(mismatch("tokenizer section", entry.offset));
        }
    }
    damage
}
