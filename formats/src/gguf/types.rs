//! The element types of GGUF tensors that are written here.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use super::block::{BLOCK, Block};
use super::superblock::{SUPERBLOCK, SuperBlock};
use crate::{FormatError, Result};

/// How the elements of a row are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Type, name, number in the file, elements and bytes of a block.
type Row = (GgmlType, &'static str, u32, usize, usize);

const TABLE: [Row; 11] = [
    (GgmlType::F32, "f32", 0, 1, 4),
    (GgmlType::F16, "f16", 1, 1, 2),
    (GgmlType::Q4_0, "q4_0", 2, BLOCK, 18),
    (GgmlType::Q4_1, "q4_1", 3, BLOCK, 20),
    (GgmlType::Q5_0, "q5_0", 6, BLOCK, 22),
    (GgmlType::Q5_1, "q5_1", 7, BLOCK, 24),
    (GgmlType::Q8_0, "q8_0", 8, BLOCK, 34),
    (GgmlType::Q4_K, "q4_k", 12, SUPERBLOCK, 144),
    (GgmlType::Q5_K, "q5_k", 13, SUPERBLOCK, 176),
    (GgmlType::Q6_K, "q6_k", 14, SUPERBLOCK, 210),
    (GgmlType::Bf16, "bf16", 30, 1, 2),
];

impl GgmlType {
    /// All of them.
    pub const ALL: [Self; 11] = {
        let mut all = [Self::F32; 11];
        let mut i = 0;
        while i < all.len() {
            all[i] = TABLE[i].0;
            i += 1;
        }
        all
    };

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.0 == self).expect("every type is in the table")
    }

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Its number in the file (`enum ggml_type`).
    pub fn id(self) -> u32 {
        self.row().2
    }

    /// Elements of a block; a row must be a multiple of it.
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether elements are plain floating-point numbers.
    pub fn is_dense(self) -> bool {
        self.block_len() == 1
    }

    /// Bytes of a row of `cols` elements; `None` when it is no whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len()).then(|| cols / self.block_len() * self.block_bytes())
    }

    /// Appends values in a dense type.
    ///
    /// # Panics
    /// When the type is not dense.
    pub fn encode_dense(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            Self::Bf16 => {
                bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
            }
            _ => panic!("{self} has blocks"),
        }
    }

    /// Decodes a row of whole blocks: the scalar reference.
    ///
    /// # Panics
    /// When `bytes` is not [`GgmlType::row_bytes`] of `out`.
    pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(bytes.len()), "a row of {self}");
        let blocks = bytes.chunks_exact(self.block_bytes());
        for (out, bytes) in out.chunks_exact_mut(self.block_len()).zip(blocks) {
            match self {
                Self::F32 => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                Self::F16 => out[0] = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Self::Bf16 => out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                Self::Q4_K | Self::Q5_K | Self::Q6_K => {
                    let block = SuperBlock::unpack(self, bytes);
                    out.iter_mut().enumerate().for_each(|(i, v)| *v = block.value(self, i));
                }
                _ => {
                    let block = Block::unpack(self, bytes);
                    out.iter_mut().enumerate().for_each(|(i, v)| *v = block.value(self, i));
                }
            }
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GgmlType {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            FormatError::Unsupported(format!("no GGUF type is named `{name}`; there are {known}"))
        })
    }
}
