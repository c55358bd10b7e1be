//! How the elements of a tensor become bytes.
//!
//! A matrix is stored as *panels* of [`PANEL_ROWS`] output rows; inside a panel, columns follow each
//! other in blocks of [`BLOCK_COLS`]. Kernels read a panel from front to back and need no horizontal
//! sums. The functions here are the scalar reference that every kernel is tested against.
//!
//! | codec | one panel of `cols` columns (`nb = ceil(cols / 32)`) |
//! |---|---|
//! | f32, bf16, f16 | `cols` groups of 16 elements, padded to 64 bytes |
//! | q8 | header, then `nb` blocks of 8 vectors of 64 bytes |
//! | q6, q5, q4, q3, q2 | header, then `nb` blocks of 6, 5, 4, 3, 2 times 64 bytes |
//!
//! The header of a block codec is 16 row scales (bf16), then `nb` groups of 16 block scales (u8, one
//! per row), padded to 64 bytes. See FORMAT.md for the bytes.

mod dense;
mod grid;
mod panel;
mod q8;
mod table;

pub use grid::{Grid, NamedGrid};
pub use panel::{PanelHeader, QuantizedRow};

use crate::limits::PANEL_ALIGN;
use crate::{FormatError, Result};

/// Output rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Columns that share a block scale; widths are padded to a multiple of this in block codecs.
pub const BLOCK_COLS: usize = 32;

/// Encoding of a tensor's elements, with the parameters that belong to the tensor as a whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Codec {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 8-bit integers under block and row scales.
    Q8,
    /// Codes of 2 to 6 bits into a table under block and row scales: q6, q5, q4, q3, q2.
    Table(Grid),
}

/// A codec without its parameters: the rung of the ladder.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CodecId {
    /// See [`Codec::F32`].
    F32,
    /// See [`Codec::Bf16`].
    Bf16,
    /// See [`Codec::F16`].
    F16,
    /// See [`Codec::Q8`].
    Q8,
    /// [`Codec::Table`] with 6 bits.
    Q6,
    /// [`Codec::Table`] with 5 bits.
    Q5,
    /// [`Codec::Table`] with 4 bits.
    Q4,
    /// [`Codec::Table`] with 3 bits.
    Q3,
    /// [`Codec::Table`] with 2 bits.
    Q2,
}

impl CodecId {
    /// All codecs, widest first.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Q8,
        Self::Q6,
        Self::Q5,
        Self::Q4,
        Self::Q3,
        Self::Q2,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q6 => "q6",
            Self::Q5 => "q5",
            Self::Q4 => "q4",
            Self::Q3 => "q3",
            Self::Q2 => "q2",
        }
    }

    /// Whether elements are stored one by one, without scales.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16 | Self::F16)
    }

    /// Whether codes are indices into a table.
    pub fn has_table(self) -> bool {
        matches!(self, Self::Q6 | Self::Q5 | Self::Q4 | Self::Q3 | Self::Q2)
    }

    /// Bits of an element or a code.
    pub fn code_bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::Bf16 | Self::F16 => 16,
            Self::Q8 => 8,
            Self::Q6 => 6,
            Self::Q5 => 5,
            Self::Q4 => 4,
            Self::Q3 => 3,
            Self::Q2 => 2,
        }
    }

    /// Bits per weight of a wide matrix: codes and block scales, without the row scales.
    pub fn nominal_bits(self) -> f64 {
        let block_scale = if self.is_dense() { 0.0 } else { 8.0 / BLOCK_COLS as f64 };
        f64::from(self.code_bits()) + block_scale
    }
}

impl std::fmt::Display for CodecId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for CodecId {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|c| c.name()).collect();
            FormatError::Unsupported(format!("unknown codec `{name}`; known: {}", known.join(", ")))
        })
    }
}

impl From<CodecId> for Codec {
    /// The codec with the default table of its width.
    fn from(id: CodecId) -> Self {
        match id {
            CodecId::F32 => Self::F32,
            CodecId::Bf16 => Self::Bf16,
            CodecId::F16 => Self::F16,
            CodecId::Q8 => Self::Q8,
            _ => Self::Table(NamedGrid::default_for(id.code_bits()).grid()),
        }
    }
}

/// Number of panels that hold `rows` rows.
pub fn panel_count(rows: usize) -> usize {
    rows.div_ceil(PANEL_ROWS)
}

/// Number of column blocks that hold `cols` columns.
pub fn block_count(cols: usize) -> usize {
    cols.div_ceil(BLOCK_COLS)
}

impl Codec {
    /// The rung of the ladder.
    pub fn id(&self) -> CodecId {
        match self {
            Self::F32 => CodecId::F32,
            Self::Bf16 => CodecId::Bf16,
            Self::F16 => CodecId::F16,
            Self::Q8 => CodecId::Q8,
            Self::Table(grid) => match grid.bits() {
                2 => CodecId::Q2,
                3 => CodecId::Q3,
                4 => CodecId::Q4,
                5 => CodecId::Q5,
                _ => CodecId::Q6,
            },
        }
    }

    /// The table of a table codec.
    pub fn grid(&self) -> Option<&Grid> {
        match self {
            Self::Table(grid) => Some(grid),
            _ => None,
        }
    }

    /// Bytes of one element of a dense codec.
    fn element_bytes(&self) -> Option<usize> {
        let id = self.id();
        id.is_dense().then_some(id.code_bits() as usize / 8)
    }

    /// Bytes of the codes of one column block of a panel in a block codec.
    fn block_bytes(&self) -> usize {
        PANEL_ROWS * BLOCK_COLS * self.id().code_bits() as usize / 8
    }

    /// Bytes of one panel of `cols` columns: a multiple of 64.
    pub fn panel_bytes(&self, cols: usize) -> usize {
        match self.element_bytes() {
            Some(element) => (cols * PANEL_ROWS * element).next_multiple_of(PANEL_ALIGN),
            None => panel::header_bytes(cols) + block_count(cols) * self.block_bytes(),
        }
    }

    /// Bytes of a whole tensor in panel layout (matrices) or linear layout (vectors).
    ///
    /// # Errors
    /// When the shape is not of rank 1 or 2, too large, or a vector has a block codec.
    pub fn tensor_bytes(&self, shape: &[u64]) -> Result<u64> {
        let invalid = |why: &str| FormatError::InvalidHeader(format!("shape {shape:?}: {why}"));
        if shape.iter().any(|&n| n == 0 || n > crate::limits::MAX_DIM) {
            return Err(invalid("an extent is zero or too large"));
        }
        let bytes: u128 = match *shape {
            [n] => {
                let element = self
                    .element_bytes()
                    .ok_or_else(|| invalid("a vector must have a dense codec"))?;
                u128::from(n) * element as u128
            }
            [rows, cols] => {
                let panels = u128::from(rows.div_ceil(PANEL_ROWS as u64));
                panels * self.panel_bytes(cols as usize) as u128
            }
            _ => return Err(invalid("only vectors and matrices are stored")),
        };
        u64::try_from(bytes).map_err(|_| invalid("the tensor is too large"))
    }

    /// Decodes consecutive elements of a row-major dense tensor, starting at element `start`.
    ///
    /// # Panics
    /// When the codec is not dense or the elements are not there.
    pub fn decode_linear(&self, bytes: &[u8], start: usize, out: &mut [f32]) {
        let element = self.element_bytes().expect("row-major tensors are dense");
        let bytes = &bytes[start * element..(start + out.len()) * element];
        dense::decode(self.id(), bytes, out);
    }

    /// Decodes row `row` of one panel into `out`, whose length is the number of columns.
    ///
    /// # Panics
    /// When `bytes` is not one panel of that many columns or `row` is not below 16.
    pub fn decode_row(&self, bytes: &[u8], row: usize, out: &mut [f32]) {
        let cols = out.len();
        assert!(row < PANEL_ROWS, "row {row} of a panel");
        assert_eq!(bytes.len(), self.panel_bytes(cols), "bytes of one {} panel", self.id());
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => {
                dense::decode_panel_row(self.id(), bytes, row, out);
            }
            Self::Q8 => q8::decode_row(bytes, row, out),
            Self::Table(grid) => table::decode_row(grid, bytes, row, out),
        }
    }

    /// Encodes 16 rows of a dense matrix (`rows.len() / cols` of them, the rest zero) as one panel.
    ///
    /// # Panics
    /// When the codec is not dense, there are more than 16 rows, or `panel` has another size.
    pub fn encode_dense_panel(&self, rows: &[f32], cols: usize, panel: &mut [u8]) {
        assert_eq!(panel.len(), self.panel_bytes(cols), "bytes of one {} panel", self.id());
        assert!(rows.len() <= PANEL_ROWS * cols && rows.len().is_multiple_of(cols));
        dense::encode_panel(self.id(), rows, cols, panel);
    }

    /// Encodes a vector in a dense codec.
    ///
    /// # Panics
    /// When the codec is not dense.
    pub fn encode_linear(&self, values: &[f32]) -> Vec<u8> {
        dense::encode(self.id(), values)
    }

    /// Packs up to 16 quantized rows as one panel; missing rows are zero.
    ///
    /// # Panics
    /// When the codec is dense, there are more than 16 rows, or sizes do not fit `cols`.
    pub fn pack_panel(&self, rows: &[QuantizedRow], cols: usize, panel: &mut [u8]) {
        assert_eq!(panel.len(), self.panel_bytes(cols), "bytes of one {} panel", self.id());
        assert!(rows.len() <= PANEL_ROWS);
        panel.fill(0);
        panel::write_header(rows, cols, panel);
        for (r, row) in rows.iter().enumerate() {
            match self {
                Self::Q8 => q8::pack_row(row, r, cols, panel),
                Self::Table(grid) => table::pack_row(grid.bits(), row, r, cols, panel),
                Self::F32 | Self::Bf16 | Self::F16 => panic!("{} has no codes", self.id()),
            }
        }
    }

    /// Row `row` of one panel of `cols` columns as [`Self::pack_panel`] was given it.
    ///
    /// # Panics
    /// When the codec is dense, `bytes` is not one panel of that many columns, or `row` is not below 16.
    pub fn unpack_row(&self, bytes: &[u8], row: usize, cols: usize) -> QuantizedRow {
        assert!(row < PANEL_ROWS, "row {row} of a panel");
        assert_eq!(bytes.len(), self.panel_bytes(cols), "bytes of one {} panel", self.id());
        let (header, codes) = PanelHeader::split(bytes, cols);
        let code = |col: usize| match self {
            Self::Q8 => q8::code(codes, row, col),
            Self::Table(grid) => table::code(grid.bits(), codes, row, col),
            Self::F32 | Self::Bf16 | Self::F16 => panic!("{} has no codes", self.id()),
        };
        QuantizedRow {
            row_scale: half::bf16::from_f32(header.row_scale(row)),
            block_scales: (0..block_count(cols)).map(|b| header.block_scale(b, row)).collect(),
            codes: (0..block_count(cols) * BLOCK_COLS).map(code).collect(),
        }
    }
}
