//! Elements stored one by one: f32, bf16, f16.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{CodecId, PANEL_ROWS};

/// Decodes `out.len()` consecutive little-endian elements.
pub(super) fn decode(codec: CodecId, bytes: &[u8], out: &mut [f32]) {
    match codec {
        CodecId::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        CodecId::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = bf16::from_le_bytes(*b).to_f32();
            }
        }
        CodecId::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        _ => unreachable!("{codec} is not dense"),
    }
}

/// Decodes one row of a panel: element `(row, col)` is element `16 col + row` of the panel.
pub(super) fn decode_panel_row(codec: CodecId, bytes: &[u8], row: usize, out: &mut [f32]) {
    let element = if codec == CodecId::F32 { 4 } else { 2 };
    for (col, o) in out.iter_mut().enumerate() {
        let at = (col * PANEL_ROWS + row) * element;
        decode(codec, &bytes[at..at + element], std::slice::from_mut(o));
    }
}

/// Encodes consecutive elements, rounding to nearest even.
pub(super) fn encode(codec: CodecId, values: &[f32]) -> Vec<u8> {
    match codec {
        CodecId::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        CodecId::Bf16 => {
            let mut half = vec![bf16::ZERO; values.len()];
            half.convert_from_f32_slice(values);
            half.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        CodecId::F16 => {
            let mut half = vec![f16::ZERO; values.len()];
            half.convert_from_f32_slice(values);
            half.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        _ => unreachable!("{codec} is not dense"),
    }
}

/// Encodes rows (`rows.len() / cols` of them) as a panel.
pub(super) fn encode_panel(codec: CodecId, rows: &[f32], cols: usize, panel: &mut [u8]) {
    let mut transposed = vec![0.0f32; PANEL_ROWS * cols];
    for (r, row) in rows.chunks_exact(cols).enumerate() {
        for (c, &value) in row.iter().enumerate() {
            transposed[c * PANEL_ROWS + r] = value;
        }
    }
    let bytes = encode(codec, &transposed);
    panel[..bytes.len()].copy_from_slice(&bytes);
    panel[bytes.len()..].fill(0);
}
