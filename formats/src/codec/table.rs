//! q6 to q2: codes into the tensor's table. The low 7 bits of a block scale are the scale, its top bit
//! selects the shifted table.
//!
//! A block unpacks to eight vectors of 64 bytes as in q8: vector `v` has column `4v + j` of row `r` in
//! byte `4 r + j`. All parts of the codes in byte `i` of an unpacked vector are in bytes `i` of stored
//! vectors, so that a kernel unpacks with shifts and masks of whole vectors.

use super::grid::Grid;
use super::panel::{PanelHeader, QuantizedRow, header_bytes};
use super::{BLOCK_COLS, PANEL_ROWS};

/// Bytes of a vector.
const VECTOR: usize = PANEL_ROWS * 4;

/// Some bits of a code and where they are stored.
#[derive(Clone, Copy)]
struct Part {
    /// Lowest of the bits in the code.
    bit: usize,
    /// Number of bits.
    width: usize,
    /// Stored vector of the block.
    vector: usize,
    /// Lowest of the bits in the stored byte.
    shift: usize,
}

impl Part {
    /// No bits.
    const NONE: Self = Self { bit: 0, width: 0, vector: 0, shift: 0 };

    /// The bits from `bit` on in a plane of `width` bits per code that starts at stored vector `start`:
    /// a byte has those of consecutive unpacked vectors, the first in its lowest bits.
    fn in_plane(bit: usize, width: usize, start: usize, v: usize) -> Self {
        let per_byte = 8 / width;
        Self { bit, width, vector: start + v / per_byte, shift: v % per_byte * width }
    }

    fn mask(self) -> u8 {
        (1 << self.width) - 1
    }
}

/// The parts of the codes of unpacked vector `v`.
fn parts(bits: u32, v: usize) -> [Part; 3] {
    match bits {
        2 => [Part::in_plane(0, 2, 0, v), Part::NONE, Part::NONE],
        // Six of the vectors have a nibble per code; the others are spread over the nibbles' top bits.
        3 if v < 6 => [Part { width: 3, ..Part::in_plane(0, 4, 0, v) }, Part::NONE, Part::NONE],
        3 => [0, 1, 2].map(|k| Part { bit: k, width: 1, vector: k, shift: 3 + v % 2 * 4 }),
        4 => [Part::in_plane(0, 4, 0, v), Part::NONE, Part::NONE],
        5 => [Part::in_plane(0, 4, 0, v), Part::in_plane(4, 1, 4, v), Part::NONE],
        _ => [Part::in_plane(0, 4, 0, v), Part::in_plane(4, 2, 4, v), Part::NONE],
    }
}

/// Byte within the codes of stored vector 0's share of a row and column, and its unpacked vector.
fn place(bits: u32, row: usize, col: usize) -> (usize, usize) {
    let (block, c) = (col / BLOCK_COLS, col % BLOCK_COLS);
    (block * bits as usize * VECTOR + row * 4 + c % 4, c / 4)
}

/// The code of a row and column.
pub(super) fn code(bits: u32, codes: &[u8], row: usize, col: usize) -> u8 {
    let (byte, v) = place(bits, row, col);
    let part = |p: Part| ((codes[byte + p.vector * VECTOR] >> p.shift) & p.mask()) << p.bit;
    parts(bits, v).into_iter().fold(0, |code, p| code | part(p))
}

pub(super) fn decode_row(grid: &Grid, panel: &[u8], row: usize, out: &mut [f32]) {
    let (header, codes) = PanelHeader::split(panel, out.len());
    let row_scale = header.row_scale(row);
    for (col, o) in out.iter_mut().enumerate() {
        let code = code(grid.bits(), codes, row, col);
        let block_scale = header.block_scale(col / BLOCK_COLS, row);
        let value = grid.value(code, block_scale & Grid::SHIFT_BIT != 0);
        *o = row_scale * f32::from(block_scale & Grid::MAX_BLOCK_SCALE) * f32::from(value);
    }
}

pub(super) fn pack_row(bits: u32, row: &QuantizedRow, r: usize, cols: usize, panel: &mut [u8]) {
    let codes = &mut panel[header_bytes(cols)..];
    for (col, &code) in row.codes.iter().enumerate() {
        let (byte, v) = place(bits, r, col);
        for part in parts(bits, v) {
            codes[byte + part.vector * VECTOR] |= ((code >> part.bit) & part.mask()) << part.shift;
        }
    }
}
