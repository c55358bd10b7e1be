use gristmill_formats::codec::CodecId;

use super::*;
use crate::testing::{Random, packed_grids};

const ROWS: usize = 19;
const COLS: usize = 70;

/// A matrix whose scales are of few bits, so that moves by a quarter are exact.
fn matrix(codec: &Codec) -> (TunedMatrix, Vec<u8>) {
    let mut random = Random::new(7);
    let mut below = |n: u32| ((random.uniform() + 0.5) * n as f32) as u8;
    let codes = if codec.id() == CodecId::Q8 { 255 } else { 1 << codec.id().code_bits() };
    let rows: Vec<QuantizedRow> = (0..ROWS)
        .map(|_| QuantizedRow {
            row_scale: bf16::from_f32([0.5, 1.0, 2.0][usize::from(below(3))]),
            block_scales: (0..3).map(|_| [0u8, 16, 64, 64 | 0x80][usize::from(below(4))]).collect(),
            codes: (0..3 * BLOCK_COLS).map(|_| below(codes)).collect(),
        })
        .collect();
    let panel_bytes = codec.panel_bytes(COLS);
    let mut bytes = vec![0u8; ROWS.div_ceil(PANEL_ROWS) * panel_bytes];
    for (panel, rows) in bytes.chunks_exact_mut(panel_bytes).zip(rows.chunks(PANEL_ROWS)) {
        codec.pack_panel(rows, COLS, panel);
    }
    (TunedMatrix::new(codec, &bytes, ROWS, COLS), bytes)
}

fn decoded(matrix: &TunedMatrix) -> Matrix {
    let mut weights = Matrix::zeros(ROWS, COLS);
    matrix.decode(&mut weights);
    weights
}

/// What a reader makes of the panels.
fn read(matrix: &TunedMatrix) -> Matrix {
    let (codec, bytes) = (matrix.codec(), matrix.pack());
    let mut weights = Matrix::zeros(ROWS, COLS);
    for r in 0..ROWS {
        let panel = &bytes[r / PANEL_ROWS * codec.panel_bytes(COLS)..][..codec.panel_bytes(COLS)];
        codec.decode_row(panel, r % PANEL_ROWS, weights.row_mut(r));
    }
    weights
}

#[test]
fn what_has_not_moved_is_as_it_was() {
    for (codec, _) in packed_grids() {
        let (matrix, bytes) = matrix(&codec);
        assert_eq!(matrix.codec(), codec);
        assert_eq!(matrix.pack(), bytes);
        assert_eq!(decoded(&matrix), read(&matrix));
    }
}

/// However far it has moved.
#[test]
fn weights_are_those_that_a_reader_gets() {
    for (codec, _) in packed_grids() {
        for size in [1e-3f32, 0.1, 3.0] {
            let (mut matrix, _) = matrix(&codec);
            let mut random = Random::new(3);
            matrix.parameters.values.iter_mut().for_each(|v| *v = size * random.normal());
            assert_eq!(decoded(&matrix), read(&matrix), "{codec:?} {size}");
        }
    }
}

/// Tables whose values have room on both sides, so that one unit more or less is not rounded away.
fn roomy() -> Vec<Codec> {
    let table = |bits: u32| {
        let count = 1i16 << bits;
        let values: Vec<i8> = (0..count).map(|i| ((2 * i - count) * 96 / count) as i8).collect();
        Codec::Table(Grid::new(&values, 5).expect("a table"))
    };
    (Grid::MIN_BITS..=Grid::MAX_BITS).map(table).chain([Codec::Q8]).collect()
}

/// Weights are linear in each parameter as long as nothing is rounded, so differences are exact.
#[test]
fn gradients_are_those_of_differences() {
    for codec in roomy() {
        let (mut matrix, _) = matrix(&codec);
        let d_weights = Matrix::new(ROWS, COLS, Random::new(5).normals(ROWS * COLS));
        let unmoved = decoded(&matrix);
        matrix.add_gradient(&unmoved, &d_weights);
        let gradient = matrix.parameters.gradient.clone();
        let table = matrix.table();
        for (p, found) in gradient.into_iter().enumerate() {
            let by = if table.contains(&p) { 1.0 / TABLE_UNIT } else { 0.25 };
            let mut at = |by: f32| -> f64 {
                matrix.parameters.values[p] = by;
                let weights = decoded(&matrix);
                matrix.parameters.values[p] = 0.0;
                let pairs = weights.data().iter().zip(d_weights.data());
                pairs.map(|(w, d)| f64::from(*w) * f64::from(*d)).sum()
            };
            let expected = (at(by) - at(-by)) / (2.0 * f64::from(by));
            let error = (f64::from(found) - expected).abs();
            assert!(error < 1e-4 * expected.abs().max(1e3), "{codec:?} {p}: {found} {expected}");
        }
    }
}
