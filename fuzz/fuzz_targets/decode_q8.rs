//! Any panel of q8.
#![no_main]

use gristmill_formats::codec::{BLOCK_COLS, Codec, PANEL_ROWS, PanelHeader};
use gristmill_fuzz::{panel, same};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((cols, bytes)) = panel(data, &Codec::Q8) else { return };
    let (header, codes) = PanelHeader::split(&bytes, cols);
    for row in 0..PANEL_ROWS {
        let mut out = vec![0.0; cols];
        Codec::Q8.decode_row(&bytes, row, &mut out);
        for (col, &value) in out.iter().enumerate() {
            let scale =
                header.row_scale(row) * f32::from(header.block_scale(col / BLOCK_COLS, row));
            // Vectors of four columns and sixteen rows follow each other whatever the block.
            let code = codes[(col / 4) * 64 + row * 4 + col % 4] as i8;
            assert!(same(value, scale * f32::from(code)), "row {row}, column {col}");
        }
    }
});
