//! Tables that 4-bit codes index: which 16 values a weight can take, up to its scales.

use crate::{FormatError, Result};

/// Bits of a q4 block scale that are the scale.
pub(super) const SCALE_MASK: u8 = 0x7f;
/// Bit of a q4 block scale that selects the shifted table.
pub(super) const SHIFT_BIT: u8 = 0x80;

/// The table of a q4 tensor: 16 int8 values in increasing order, and what a block adds to all of them
/// when its shift bit is set. Every value, shifted or not, is an int8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid4 {
    values: [i8; 16],
    shift: i8,
}

/// Grids with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedGrid {
    /// Equal steps.
    Int4,
    /// Quantiles of a normal distribution (QLoRA, arXiv 2305.14314).
    Nf4,
    /// Steps that widen towards the ends, offset a little, as in llama.cpp's IQ4_NL.
    Iq4Nl,
    /// Lloyd's fixed point for blocks of normal and Laplacian weights with one scale and one shift
    /// bit each (`cargo run --release -p gristmill-quantize --example grid_design`).
    Mix4,
}

impl NamedGrid {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Int4, Self::Nf4, Self::Iq4Nl, Self::Mix4];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int4 => "int4",
            Self::Nf4 => "nf4",
            Self::Iq4Nl => "iq4-nl",
            Self::Mix4 => "mix4",
        }
    }

    /// The table.
    pub fn grid(self) -> Grid4 {
        let (values, shift) = match self {
            Self::Int4 => {
                ([-120, -105, -90, -75, -60, -45, -30, -15, 0, 15, 30, 45, 60, 75, 90, 105], 15)
            }
            Self::Nf4 => {
                ([-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127], 0)
            }
            Self::Iq4Nl => {
                ([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], 4)
            }
            Self::Mix4 => {
                ([-127, -98, -78, -61, -46, -33, -21, -10, 1, 12, 24, 37, 51, 68, 88, 116], 6)
            }
        };
        Grid4 { values, shift }
    }
}

impl Grid4 {
    /// A table and its shift.
    ///
    /// # Errors
    /// When the values do not increase or leave int8 once shifted.
    pub fn new(values: [i8; 16], shift: i8) -> Result<Self> {
        if !values.is_sorted() {
            return Err(FormatError::InvalidHeader(format!(
                "q4 table {values:?} does not increase"
            )));
        }
        if values.iter().any(|v| v.checked_add(shift).is_none()) {
            return Err(FormatError::InvalidHeader(format!(
                "q4 table {values:?} shifted by {shift} leaves int8"
            )));
        }
        Ok(Self { values, shift })
    }

    /// The unshifted table.
    pub fn values(&self) -> &[i8; 16] {
        &self.values
    }

    /// What a set shift bit adds.
    pub fn shift(&self) -> i8 {
        self.shift
    }

    /// The value of a code (its low four bits).
    pub fn value(&self, code: u8, shifted: bool) -> i8 {
        self.values[usize::from(code & 0x0f)] + if shifted { self.shift } else { 0 }
    }

    /// The name of the grid if it has one.
    pub fn name(&self) -> Option<&'static str> {
        NamedGrid::ALL.into_iter().find(|g| g.grid() == *self).map(NamedGrid::name)
    }

    /// The largest scale a block may have.
    pub const MAX_BLOCK_SCALE: u8 = SCALE_MASK;
    /// The bit of a block scale that selects the shifted table.
    pub const SHIFT_BIT: u8 = SHIFT_BIT;
}
