//! Writing a GGUF file: everything about the tensors stands in front of them, then they stream through.

use std::path::Path;

use super::types::GgmlType;
use super::value::{Metadata, write_text};
use crate::output::Output;
use crate::{FormatError, Result};

/// Alignment of the data and of every tensor in it: the format's default.
pub const ALIGN: u64 = 32;
const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
/// Longest tensor name that ggml takes, with its final zero.
const MAX_NAME: usize = 64;

/// A tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// Its type.
    pub ty: GgmlType,
}

impl TensorInfo {
    /// Bytes of the tensor.
    ///
    /// # Errors
    /// [`FormatError::Unsupported`] when the rows are no whole number of blocks, or the size overflows.
    pub fn bytes(&self) -> Result<u64> {
        let (ty, name, shape) = (self.ty, &self.name, &self.shape);
        let unfit = || {
            FormatError::Unsupported(format!(
                "tensor `{name}`: shape {shape:?} cannot be {ty}, which has blocks of {} elements",
                ty.block_len()
            ))
        };
        let (&cols, outer) = shape.split_last().ok_or_else(unfit)?;
        let row = usize::try_from(cols).ok().and_then(|cols| ty.row_bytes(cols));
        let row = row.ok_or_else(unfit)? as u64;
        outer.iter().try_fold(row, |n, &extent| n.checked_mul(extent)).ok_or_else(unfit)
    }
}

/// Writes `path.partial`, then renames it to `path`. Dropped before [`GgufWriter::finish`], it removes
/// what it wrote.
#[derive(Debug)]
pub struct GgufWriter {
    out: Output,
    /// Names and sizes, in the order of the file.
    tensors: Vec<(String, u64)>,
    /// The tensor that is being written, and how many of its bytes are.
    current: usize,
    written: u64,
}

impl GgufWriter {
    /// Creates the partial file and writes all that stands before the data. The types of the tensors
    /// decide their offsets, so they must be settled here.
    ///
    /// # Errors
    /// When a tensor's shape does not fit its type, a name is too long or occurs twice, or writing
    /// fails.
    pub fn begin(path: &Path, metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Self> {
        let mut sizes: Vec<(String, u64)> = Vec::with_capacity(tensors.len());
        let mut names = std::collections::HashSet::new();
        let mut head = Vec::new();
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        head.extend_from_slice(&(metadata.entries().len() as u64).to_le_bytes());
        for (key, value) in metadata.entries() {
            write_text(key, &mut head);
            value.write(&mut head);
        }
        let mut offset = 0u64;
        for tensor in tensors {
            let name = &tensor.name;
            if name.len() >= MAX_NAME || !names.insert(name) {
                return Err(FormatError::Unsupported(format!(
                    "tensor name `{name}` occurs twice or is longer than {} bytes",
                    MAX_NAME - 1
                )));
            }
            write_text(name, &mut head);
            head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            // Innermost extent first: the reverse of what is usual elsewhere.
            head.extend(tensor.shape.iter().rev().flat_map(|extent| extent.to_le_bytes()));
            head.extend_from_slice(&tensor.ty.id().to_le_bytes());
            head.extend_from_slice(&offset.to_le_bytes());
            let bytes = tensor.bytes()?;
            let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGN));
            offset = end.ok_or_else(|| FormatError::Unsupported("the file is too large".into()))?;
            sizes.push((name.clone(), bytes));
        }
        let mut out = Output::create(path)?;
        out.write(&head)?;
        out.align(ALIGN)?;
        Ok(Self { out, tensors: sizes, current: 0, written: 0 })
    }

    /// Appends bytes of a tensor. Tensors come in the order in which they were announced, each in one
    /// or more pieces.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When it is another tensor's turn, or the tensor becomes too long.
    pub fn tensor(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (expected, size) = self.tensors.get(self.current).expect("a tensor is missing yet");
        assert_eq!(name, expected, "tensors come in the order in which they were announced");
        self.written += bytes.len() as u64;
        assert!(self.written <= *size, "tensor `{name}` is too long");
        self.out.write(bytes)?;
        if self.written == *size {
            self.out.align(ALIGN)?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Syncs and renames the file into place; returns its size in bytes.
    ///
    /// # Errors
    /// When that fails; nothing appears at the path then.
    ///
    /// # Panics
    /// When a tensor is missing or incomplete.
    pub fn finish(self) -> Result<u64> {
        let complete = self.current == self.tensors.len() && self.written == 0;
        assert!(complete, "a tensor is missing or incomplete");
        let bytes = self.out.position();
        self.out.publish(&MAGIC)?;
        Ok(bytes)
    }
}
