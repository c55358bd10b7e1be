//! Any panel of a dense codec.
#![no_main]

use gristmill_formats::codec::{Codec, PANEL_ROWS};
use gristmill_fuzz::{panel, same};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    let codec = [Codec::F32, Codec::Bf16, Codec::F16][usize::from(which) % 3].clone();
    let Some((cols, bytes)) = panel(data, &codec) else { return };
    let mut rows = Vec::new();
    for row in 0..PANEL_ROWS {
        let mut out = vec![0.0; cols];
        codec.decode_row(&bytes, row, &mut out);
        for (col, &value) in out.iter().enumerate() {
            let mut linear = [0.0];
            codec.decode_linear(&bytes, col * PANEL_ROWS + row, &mut linear);
            assert!(same(linear[0], value));
        }
        rows.extend(out);
    }
    if cols > 0 {
        // Every element is representable, so that encoding it again changes nothing.
        let mut again = vec![0; bytes.len()];
        codec.encode_dense_panel(&rows, cols, &mut again);
        for row in 0..PANEL_ROWS {
            let mut out = vec![0.0; cols];
            codec.decode_row(&again, row, &mut out);
            assert!(out.iter().zip(&rows[row * cols..]).all(|(a, b)| same(*a, *b)));
        }
    }
});
