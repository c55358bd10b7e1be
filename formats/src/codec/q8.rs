//! q8: int8 codes. Vector `v` of a block holds columns `4v .. 4v + 4` of 16 rows: the code of row `r`,
//! column `4v + j` is byte `64 v + 4 r + j`.

use super::panel::{PanelHeader, QuantizedRow, header_bytes};
use super::{BLOCK_COLS, PANEL_ROWS};

const BLOCK_BYTES: usize = PANEL_ROWS * BLOCK_COLS;

fn offset(row: usize, col: usize) -> usize {
    let (block, c) = (col / BLOCK_COLS, col % BLOCK_COLS);
    block * BLOCK_BYTES + (c / 4) * 64 + row * 4 + c % 4
}

/// The code of a row and column.
pub(super) fn code(codes: &[u8], row: usize, col: usize) -> u8 {
    codes[offset(row, col)]
}

pub(super) fn decode_row(panel: &[u8], row: usize, out: &mut [f32]) {
    let (header, codes) = PanelHeader::split(panel, out.len());
    let row_scale = header.row_scale(row);
    for (col, o) in out.iter_mut().enumerate() {
        let scale = row_scale * f32::from(header.block_scale(col / BLOCK_COLS, row));
        *o = scale * f32::from(code(codes, row, col) as i8);
    }
}

pub(super) fn pack_row(row: &QuantizedRow, r: usize, cols: usize, panel: &mut [u8]) {
    let codes = &mut panel[header_bytes(cols)..];
    for (col, &code) in row.codes.iter().enumerate() {
        codes[offset(r, col)] = code;
    }
}
