//! A model as llama.cpp wants it: metadata, names and order of rows. Which type a matrix gets and how
//! it is rounded is decided elsewhere.

use super::value::Metadata;
use crate::model::TensorRole;

/// A model as a GGUF file describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufModel {
    /// All metadata but what follows from the tensors' types.
    pub metadata: Metadata,
    /// The tensors in the order of the file.
    pub tensors: Vec<GgufTensor>,
    /// Layers of the model.
    pub layers: usize,
    /// Whether the embedding is the output head.
    pub tied_head: bool,
}

/// A tensor of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// Its part.
    pub role: TensorRole,
    /// Where its values come from.
    pub data: GgufData,
}

/// Where a tensor's values come from.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufData {
    /// A tensor of the source.
    Source {
        /// Its canonical name.
        name: String,
        /// Order of its rows, or of a vector's elements.
        order: RowOrder,
        /// Added to every value.
        add: f32,
    },
    /// Values that follow from the description of the model.
    Values(Vec<f32>),
}

/// Which row of the source stands where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As in the source.
    Same,
    /// Rotation by neighbouring pairs instead of the two halves of each head: rows `i` and
    /// `i + head_dim / 2` of a head become rows `2 i` and `2 i + 1`.
    RotaryPairs {
        /// Width of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The source's row that stands at `row` of the file.
    pub fn source_row(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::RotaryPairs { head_dim } => {
                let (head, at) = (row / head_dim, row % head_dim);
                head * head_dim + at / 2 + at % 2 * (head_dim / 2)
            }
        }
    }
}

impl GgufTensor {
    /// Columns of a matrix; the length of a vector.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0) as usize
    }

    /// Rows of a matrix; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.shape.len() == 2 { self.shape[0] as usize } else { 1 }
    }
}
