//! The header that block codecs share: row scales and block scales of 16 rows.

use half::bf16;

use super::{BLOCK_COLS, PANEL_ROWS, block_count};
use crate::limits::PANEL_ALIGN;

/// Bytes of the 16 row scales.
const ROW_SCALES_BYTES: usize = PANEL_ROWS * 2;

/// Bytes of the header of a panel with `cols` columns: a multiple of 64.
pub(super) fn header_bytes(cols: usize) -> usize {
    (ROW_SCALES_BYTES + block_count(cols) * PANEL_ROWS).next_multiple_of(PANEL_ALIGN)
}

/// One row after quantization: `weight ≈ row_scale * block_scale * value(code)`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedRow {
    /// Scale of the row.
    pub row_scale: bf16,
    /// One scale per block of 32 columns (its top bit is the table shift in table codecs).
    pub block_scales: Vec<u8>,
    /// One code per column, padded to whole blocks: q8 codes are int8 in two's complement, those of
    /// the table codecs are table indices.
    pub codes: Vec<u8>,
}

/// Read access to the header of a panel.
#[derive(Debug, Clone, Copy)]
pub struct PanelHeader<'a> {
    bytes: &'a [u8],
}

impl<'a> PanelHeader<'a> {
    /// Views the header of a panel with `cols` columns; returns it and the codes that follow it.
    ///
    /// # Panics
    /// When the panel is shorter than its header.
    pub fn split(panel: &'a [u8], cols: usize) -> (Self, &'a [u8]) {
        let (bytes, codes) = panel.split_at(header_bytes(cols));
        (Self { bytes }, codes)
    }

    /// Scale of a row.
    pub fn row_scale(&self, row: usize) -> f32 {
        bf16::from_le_bytes([self.bytes[2 * row], self.bytes[2 * row + 1]]).to_f32()
    }

    /// Scale byte of a block of a row.
    pub fn block_scale(&self, block: usize, row: usize) -> u8 {
        self.bytes[ROW_SCALES_BYTES + block * PANEL_ROWS + row]
    }
}

/// Writes row and block scales.
pub(super) fn write_header(rows: &[QuantizedRow], cols: usize, panel: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        assert_eq!(row.block_scales.len(), block_count(cols), "block scales of a row");
        assert_eq!(row.codes.len(), block_count(cols) * BLOCK_COLS, "codes of a row");
        panel[2 * r..2 * r + 2].copy_from_slice(&row.row_scale.to_le_bytes());
        for (b, &scale) in row.block_scales.iter().enumerate() {
            panel[ROW_SCALES_BYTES + b * PANEL_ROWS + r] = scale;
        }
    }
}
