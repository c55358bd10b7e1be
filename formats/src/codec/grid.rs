//! Tables that codes index: which values a weight can take, up to its scales.

use crate::{FormatError, Result};

/// The table of a tensor in a table codec: 4 to 64 int8 values in increasing order, and what a block
/// adds to all of them when its shift bit is set. Every value, shifted or not, is an int8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    bits: u8,
    /// The `2^bits` values over and over.
    values: [i8; 1 << Grid::MAX_BITS],
    shift: i8,
}

impl std::fmt::Debug for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grid({:?} shift {})", self.values(), self.shift)
    }
}

/// Grids with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedGrid {
    /// Equal steps, 2 bits.
    Int2,
    /// Equal steps, 3 bits.
    Int3,
    /// Equal steps, 4 bits.
    Int4,
    /// Equal steps, 5 bits.
    Int5,
    /// Equal steps, 6 bits.
    Int6,
    /// Quantiles of a normal distribution (QLoRA, arXiv 2305.14314).
    Nf4,
    /// Steps that widen towards the ends, offset a little, as in llama.cpp's IQ4_NL.
    Iq4Nl,
    /// Lloyd's fixed point for blocks of normal and Laplacian weights with one scale and one shift
    /// bit each (`cargo run --release -p gristmill-quantize --example grid_design`), 2 bits.
    Mix2,
    /// As [`NamedGrid::Mix2`], 3 bits.
    Mix3,
    /// As [`NamedGrid::Mix2`], 4 bits.
    Mix4,
    /// As [`NamedGrid::Mix2`], 5 bits.
    Mix5,
    /// As [`NamedGrid::Mix2`], 6 bits.
    Mix6,
}

impl NamedGrid {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Int2,
        Self::Int3,
        Self::Int4,
        Self::Int5,
        Self::Int6,
        Self::Nf4,
        Self::Iq4Nl,
        Self::Mix2,
        Self::Mix3,
        Self::Mix4,
        Self::Mix5,
        Self::Mix6,
    ];

    /// The default of a width.
    ///
    /// # Panics
    /// When no table codec has that many bits.
    pub fn default_for(bits: u32) -> Self {
        match bits {
            2 => Self::Mix2,
            3 => Self::Mix3,
            4 => Self::Mix4,
            5 => Self::Mix5,
            6 => Self::Mix6,
            _ => panic!("no table has {bits} bits"),
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int2 => "int2",
            Self::Int3 => "int3",
            Self::Int4 => "int4",
            Self::Int5 => "int5",
            Self::Int6 => "int6",
            Self::Nf4 => "nf4",
            Self::Iq4Nl => "iq4-nl",
            Self::Mix2 => "mix2",
            Self::Mix3 => "mix3",
            Self::Mix4 => "mix4",
            Self::Mix5 => "mix5",
            Self::Mix6 => "mix6",
        }
    }

    /// The table.
    pub fn grid(self) -> Grid {
        match self {
            Self::Int2 => Grid::uniform(2),
            Self::Int3 => Grid::uniform(3),
            Self::Int4 => Grid::uniform(4),
            Self::Int5 => Grid::uniform(5),
            Self::Int6 => Grid::uniform(6),
            Self::Nf4 => Grid::repeating(
                &[-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127],
                0,
            ),
            Self::Iq4Nl => Grid::repeating(
                &[-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
                4,
            ),
            Self::Mix2 => Grid::repeating(&[-121, -43, 19, 96], 31),
            Self::Mix3 => Grid::repeating(&[-122, -74, -42, -16, 8, 35, 67, 115], 12),
            Self::Mix4 => Grid::repeating(
                &[-127, -98, -78, -61, -46, -33, -21, -10, 1, 12, 24, 37, 51, 68, 88, 116],
                6,
            ),
            Self::Mix5 => Grid::repeating(
                &[
                    -125, -113, -97, -86, -77, -69, -61, -53, -46, -39, -32, -26, -20, -14, -9, -3,
                    2, 8, 14, 20, 26, 32, 39, 46, 53, 60, 68, 77, 86, 97, 113, 125,
                ],
                2,
            ),
            Self::Mix6 => Grid::repeating(
                &[
                    -126, -120, -115, -105, -99, -94, -89, -85, -79, -75, -70, -66, -61, -57, -53,
                    -49, -45, -41, -37, -33, -30, -27, -23, -20, -17, -14, -12, -9, -7, -5, -3, -1,
                    1, 3, 5, 7, 9, 12, 14, 17, 20, 23, 26, 30, 33, 37, 41, 45, 49, 53, 57, 61, 66,
                    70, 75, 79, 84, 89, 94, 100, 106, 115, 121, 126,
                ],
                1,
            ),
        }
    }
}

impl Grid {
    /// Bits of a code of the widest table.
    pub const MAX_BITS: u32 = 6;
    /// Bits of a code of the narrowest table.
    pub const MIN_BITS: u32 = 2;
    /// The largest scale that a block may have.
    pub const MAX_BLOCK_SCALE: u8 = 0x7f;
    /// The bit of a block scale that selects the shifted table.
    pub const SHIFT_BIT: u8 = 0x80;

    /// A table and its shift.
    ///
    /// # Errors
    /// When there are not 4, 8, 16, 32 or 64 values, they do not increase, or they leave int8 once
    /// shifted.
    pub fn new(values: &[i8], shift: i8) -> Result<Self> {
        let invalid = |why: &str| FormatError::InvalidHeader(format!("table {values:?}: {why}"));
        if !(Self::MIN_BITS..=Self::MAX_BITS).any(|bits| values.len() == 1 << bits) {
            return Err(invalid("a table has 4, 8, 16, 32 or 64 values"));
        }
        if !values.is_sorted() {
            return Err(invalid("the values do not increase"));
        }
        if values.iter().any(|v| v.checked_add(shift).is_none()) {
            return Err(invalid(&format!("shifted by {shift} it leaves int8")));
        }
        Ok(Self::repeating(values, shift))
    }

    fn repeating(values: &[i8], shift: i8) -> Self {
        let repeated = std::array::from_fn(|i| values[i % values.len()]);
        Self { bits: values.len().ilog2() as u8, values: repeated, shift }
    }

    /// Equal steps around zero, as large as int8 allows; the shift is a step.
    fn uniform(bits: u32) -> Self {
        let (count, step) = (1i8 << bits, i8::MAX >> (bits - 1));
        let values: Vec<i8> = (0..count).map(|code| (code - count / 2) * step).collect();
        Self::repeating(&values, step)
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        u32::from(self.bits)
    }

    /// The unshifted table, `2^bits` values.
    pub fn values(&self) -> &[i8] {
        &self.values[..1 << self.bits]
    }

    /// The unshifted table, repeated to 64 values.
    pub fn repeated(&self) -> &[i8; 1 << Self::MAX_BITS] {
        &self.values
    }

    /// What a set shift bit adds.
    pub fn shift(&self) -> i8 {
        self.shift
    }

    /// The value of a code (its low bits).
    pub fn value(&self, code: u8, shifted: bool) -> i8 {
        self.values[usize::from(code) % self.values.len()] + if shifted { self.shift } else { 0 }
    }

    /// The name of the grid if it has one.
    pub fn name(&self) -> Option<&'static str> {
        NamedGrid::ALL.into_iter().find(|g| g.grid() == *self).map(NamedGrid::name)
    }
}
