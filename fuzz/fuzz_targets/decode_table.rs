//! Any panel of any table codec with any table: a byte chooses the bits, then come the table, its shift
//! and the panel.
#![no_main]

use gristmill_formats::codec::{BLOCK_COLS, Codec, Grid, PANEL_ROWS, PanelHeader};
use gristmill_fuzz::{panel, same};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&width, data)) = data.split_first() else { return };
    let bits = 2 + usize::from(width) % 5;
    let Some((table, data)) = data.split_at_checked(1 << bits) else { return };
    let Some((&shift, data)) = data.split_first() else { return };
    let mut table: Vec<i8> = table.iter().map(|&b| b as i8).collect();
    if Grid::new(&table, shift as i8).is_err() {
        table.sort_unstable();
    }
    let Ok(grid) = Grid::new(&table, shift as i8) else { return };
    let codec = Codec::Table(grid);
    let Some((cols, bytes)) = panel(data, &codec) else { return };
    let (header, codes) = PanelHeader::split(&bytes, cols);
    for row in 0..PANEL_ROWS {
        let mut out = vec![0.0; cols];
        codec.decode_row(&bytes, row, &mut out);
        for (col, &value) in out.iter().enumerate() {
            let (block, in_block) = (col / BLOCK_COLS, col % BLOCK_COLS);
            let code = (0..bits).fold(0, |code, bit| {
                let (vector, in_byte) = place(bits, in_block / 4, bit);
                let byte = codes[(block * bits + vector) * 64 + row * 4 + in_block % 4];
                code | usize::from(byte >> in_byte & 1) << bit
            });
            let scale = header.block_scale(block, row);
            let mut weight = i32::from(table[code]);
            if scale >= 128 {
                weight += i32::from(shift as i8);
            }
            let want = header.row_scale(row) * f32::from(scale % 128) * weight as f32;
            assert!(same(value, want), "row {row}, column {col}");
        }
    }
});

/// The vector of a block and the bit of its bytes that hold a bit of the codes of unpacked vector `v`.
fn place(bits: usize, v: usize, bit: usize) -> (usize, usize) {
    match (bits, bit) {
        (2, _) => (v / 4, v % 4 * 2 + bit),
        (3, _) if v >= 6 => (bit, 3 + v % 2 * 4),
        (6, 4..) => (4 + v / 4, v % 4 * 2 + bit - 4),
        (5, 4) => (4, v),
        _ => (v / 2, v % 2 * 4 + bit),
    }
}
