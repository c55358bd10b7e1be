//! The block codecs of packed files as grids: `weight = row scale * block scale * value`.

use gristmill_formats::codec::{BLOCK_COLS, Codec, QuantizedRow, block_count};

use super::RowGrid;
use crate::levels::{Int8Levels, Levels, TableLevels};
use crate::rtn::{Choice, RowScale, RowUnits, search_block, search_row_scale};

/// The grid of a block codec.
#[derive(Debug, Clone)]
pub(crate) enum PackedGrid {
    Int8(Int8Levels),
    Table(TableLevels),
}

impl PackedGrid {
    /// Of a block codec; `None` for dense ones.
    pub(crate) fn new(codec: &Codec) -> Option<Self> {
        match codec {
            Codec::Q8 => Some(Self::Int8(Int8Levels)),
            Codec::Table(grid) => Some(Self::Table(TableLevels::new(grid))),
            Codec::F32 | Codec::Bf16 | Codec::F16 => None,
        }
    }

    /// The row as codecs pack it.
    pub(crate) fn store(&self, row: &PackedRow) -> QuantizedRow {
        let byte = |c: &Choice| match self {
            Self::Int8(levels) => levels.scale_byte(c.scale, c.variant),
            Self::Table(levels) => levels.scale_byte(c.scale, c.variant),
        };
        let block_scales = row.choices.iter().map(byte).collect();
        QuantizedRow { row_scale: row.row_scale.stored, block_scales, codes: row.codes.clone() }
    }
}

/// A row being rounded.
#[derive(Debug, Clone)]
pub(crate) struct PackedRow {
    units: RowUnits,
    row_scale: RowScale,
    choices: Vec<Choice>,
    /// Padded to whole blocks.
    codes: Vec<u8>,
    /// What the codes stand for, before scales.
    values: Vec<i8>,
}

impl PackedRow {
    fn start<L: Levels>(levels: &L, row: &[f32], importance: &[f32]) -> Self {
        let (units, row_scale) = search_row_scale(levels, row, Some(importance));
        let blocks = block_count(row.len());
        let (zero, _) = levels.nearest(0, 0.0, 0.0);
        Self {
            units,
            row_scale,
            choices: vec![Choice::ZERO; blocks],
            codes: vec![zero; blocks * BLOCK_COLS],
            values: vec![0; row.len()],
        }
    }

    fn fit<L: Levels>(&mut self, levels: &L, block: usize, x: &[f32], importance: &[f32]) {
        let scaled = self.units.block(x);
        let weights = self.units.weights(&scaled, x.len(), Some(importance));
        let choice = search_block(levels, &scaled, &weights, self.row_scale);
        self.choices[block] = choice;
        // Padding decodes to nothing that is read, but its codes are part of the file.
        let (padding, _) = levels.nearest(choice.variant, 0.0, 0.0);
        self.codes[block * BLOCK_COLS + x.len()..(block + 1) * BLOCK_COLS].fill(padding);
    }

    fn round<L: Levels>(&mut self, levels: &L, col: usize, x: f32) -> f32 {
        let Choice { scale, variant } = self.choices[col / BLOCK_COLS];
        let value = self.row_scale.value * f32::from(scale);
        let inverse = if scale > 0 { 1.0 / value } else { 0.0 };
        let (code, value) = levels.nearest(variant, self.units.scaled(x), inverse);
        self.codes[col] = code;
        self.values[col] = value as i8;
        self.value(col)
    }

    /// As [`Codec::decode_row`] computes it.
    fn value(&self, col: usize) -> f32 {
        let scale = f32::from(self.choices[col / BLOCK_COLS].scale);
        self.row_scale.stored.to_f32() * scale * f32::from(self.values[col])
    }
}

impl RowGrid for PackedGrid {
    type Row = PackedRow;
    const GROUP: usize = BLOCK_COLS;

    fn start(&self, row: &[f32], importance: &[f32]) -> PackedRow {
        match self {
            Self::Int8(levels) => PackedRow::start(levels, row, importance),
            Self::Table(levels) => PackedRow::start(levels, row, importance),
        }
    }

    fn fit(&self, row: &mut PackedRow, group: usize, x: &[f32], importance: &[f32]) {
        match self {
            Self::Int8(levels) => row.fit(levels, group, x, importance),
            Self::Table(levels) => row.fit(levels, group, x, importance),
        }
    }

    fn round(&self, row: &mut PackedRow, col: usize, x: f32) -> f32 {
        match self {
            Self::Int8(levels) => row.round(levels, col, x),
            Self::Table(levels) => row.round(levels, col, x),
        }
    }

    fn value(&self, row: &PackedRow, col: usize) -> f32 {
        row.value(col)
    }

    fn rescale(&self, row: &mut PackedRow, factor: f32) -> f32 {
        row.row_scale.rescale(factor)
    }
}
