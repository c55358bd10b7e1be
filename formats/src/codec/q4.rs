//! q4: 4-bit codes into the tensor's table. Vector `v` of a block holds columns `8v .. 8v + 8` of 16
//! rows: byte `64 v + 4 r + j` has column `8v + j` of row `r` in its low nibble and column `8v + 4 + j`
//! in its high nibble. The low 7 bits of a block scale are the scale, its top bit selects the shifted
//! table.

use super::grid::{Grid4, SCALE_MASK, SHIFT_BIT};
use super::panel::{PanelHeader, QuantizedRow, header_bytes};
use super::{BLOCK_COLS, PANEL_ROWS};

pub(super) const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK_COLS / 2;

/// Byte of a code and the bits to shift it down by.
fn offset(row: usize, col: usize) -> (usize, u32) {
    let (block, c) = (col / BLOCK_COLS, col % BLOCK_COLS);
    let byte = block * BLOCK_BYTES + (c / 8) * 64 + row * 4 + c % 4;
    (byte, if c % 8 < 4 { 0 } else { 4 })
}

pub(super) fn decode_row(grid: &Grid4, panel: &[u8], row: usize, out: &mut [f32]) {
    let (header, codes) = PanelHeader::split(panel, out.len());
    let row_scale = header.row_scale(row);
    for (col, o) in out.iter_mut().enumerate() {
        let block_scale = header.block_scale(col / BLOCK_COLS, row);
        let (byte, shift) = offset(row, col);
        let code = (codes[byte] >> shift) & 0x0f;
        let value = grid.value(code, block_scale & SHIFT_BIT != 0);
        *o = row_scale * f32::from(block_scale & SCALE_MASK) * f32::from(value);
    }
}

pub(super) fn pack_row(row: &QuantizedRow, r: usize, cols: usize, panel: &mut [u8]) {
    let codes = &mut panel[header_bytes(cols)..];
    for (col, &code) in row.codes.iter().enumerate() {
        let (byte, shift) = offset(r, col);
        codes[byte] |= (code & 0x0f) << shift;
    }
}
