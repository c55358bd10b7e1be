//! Any panel of q4 with any table: 16 bytes of table, one of shift, then the panel.
#![no_main]

use gristmill_formats::codec::{BLOCK_COLS, Codec, Grid4, PANEL_ROWS, PanelHeader};
use gristmill_fuzz::{panel, same};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((table, data)) = data.split_first_chunk::<16>() else { return };
    let Some((&shift, data)) = data.split_first() else { return };
    let mut table = table.map(|b| b as i8);
    if Grid4::new(table, shift as i8).is_err() {
        table.sort_unstable();
    }
    let Ok(grid) = Grid4::new(table, shift as i8) else { return };
    let codec = Codec::Q4(grid);
    let Some((cols, bytes)) = panel(data, &codec) else { return };
    let (header, codes) = PanelHeader::split(&bytes, cols);
    for row in 0..PANEL_ROWS {
        let mut out = vec![0.0; cols];
        codec.decode_row(&bytes, row, &mut out);
        for (col, &value) in out.iter().enumerate() {
            let scale = header.block_scale(col / BLOCK_COLS, row);
            let byte = codes[(col / 8) * 64 + row * 4 + col % 4];
            let code = if col % 8 < 4 { byte & 15 } else { byte >> 4 };
            let mut weight = i32::from(table[usize::from(code)]);
            if scale >= 128 {
                weight += i32::from(shift as i8);
            }
            let want = header.row_scale(row) * f32::from(scale % 128) * weight as f32;
            assert!(same(value, want), "row {row}, column {col}");
        }
    }
});
