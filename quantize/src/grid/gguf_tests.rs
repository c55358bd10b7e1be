//! The contract of [`RowGrid`], for every type with blocks: what is read is what was returned.

use gristmill_formats::gguf::{GgmlType, SUPERBLOCK};
use proptest::prelude::*;

use super::gguf::{GgufGrid, GridVisitor, visit};

const COLS: usize = 2 * SUPERBLOCK;

fn with_blocks() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.into_iter().filter(|ty| !ty.is_dense())
}

/// Rounds a row as error feedback does: what is fitted and rounded has moved since the start.
struct Feedback<'a> {
    ty: GgmlType,
    row: &'a [f32],
    moved: &'a [f32],
    importance: &'a [f32],
}

/// Values as returned, as asked for again, and as decoded from the bytes.
type Values = [Vec<f32>; 3];

impl GridVisitor for Feedback<'_> {
    type Output = Values;

    fn visit<G: GgufGrid>(self, grid: &G) -> Values {
        let mut state = grid.start(self.row, self.importance);
        let mut returned = Vec::new();
        let groups = self.moved.chunks(G::GROUP).zip(self.importance.chunks(G::GROUP));
        for (group, (x, importance)) in groups.enumerate() {
            grid.fit(&mut state, group, x, importance);
            for (i, &x) in x.iter().enumerate() {
                returned.push(grid.round(&mut state, group * G::GROUP + i, x));
            }
        }
        let again = (0..self.row.len()).map(|col| grid.value(&state, col)).collect();
        let mut bytes = Vec::new();
        grid.pack(&state, &mut bytes);
        let mut decoded = vec![0.0; self.row.len()];
        self.ty.decode_row(&bytes, &mut decoded);
        [returned, again, decoded]
    }
}

fn values(ty: GgmlType, row: &[f32], moved: &[f32], importance: &[f32]) -> Values {
    visit(ty, Feedback { ty, row, moved, importance }).expect("a type with blocks")
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let magnitude = prop_oneof![Just(1e-8f32), Just(1e-3), Just(1.0), Just(1e4)];
    let offset = prop_oneof![Just(0.0f32), -3.0f32..3.0];
    let shape = prop::collection::vec(-1.0f32..1.0, COLS);
    (magnitude, offset, shape)
        .prop_map(|(m, o, x)| x.into_iter().map(|x| m * (x * x * x + o)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_was_returned(
        row in rows(),
        drift in prop::collection::vec(-0.3f32..0.3, COLS),
        importance in prop::collection::vec(prop_oneof![Just(0.0f32), 1e-3f32..1e3], COLS),
    ) {
        let size = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let moved: Vec<f32> = row.iter().zip(&drift).map(|(x, d)| x + d * size).collect();
        for ty in with_blocks() {
            let [returned, again, decoded] = values(ty, &row, &moved, &importance);
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&returned), bits(&again), "{}", ty);
            prop_assert_eq!(bits(&returned), bits(&decoded), "{}", ty);
            prop_assert!(returned.iter().all(|v| v.is_finite()), "{}", ty);
        }
    }
}

/// A row that looks like weights: bell-shaped, a few larger ones.
fn bell(seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..COLS).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.04).collect()
}

fn relative_error(x: &[f32], y: &[f32], w: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| f64::from(w[i] * f(i))).sum::<f64>();
    sum(&|i| (x[i] - y[i]).powi(2)) / sum(&|i| x[i] * x[i])
}

#[test]
fn errors_are_below_those_of_llama_cpp() {
    // Of `ggml_quantize_chunk` (ggml 0.25.3) on these rows, given the same importance.
    let bounds = [
        (GgmlType::Q4_0, 6.1987e-3),
        (GgmlType::Q4_1, 4.7526e-3),
        (GgmlType::Q5_0, 1.5271e-3),
        (GgmlType::Q5_1, 1.1124e-3),
        (GgmlType::Q8_0, 2.6793e-5),
        (GgmlType::Q4_K, 4.8833e-3),
        (GgmlType::Q5_K, 1.2183e-3),
        (GgmlType::Q6_K, 2.8593e-4),
    ];
    let equal = vec![1.0; COLS];
    for (ty, bound) in bounds {
        let rows: Vec<_> = (0..16).map(bell).collect();
        let error: f64 = rows
            .iter()
            .map(|row| relative_error(row, &values(ty, row, row, &equal)[2], &equal))
            .sum::<f64>()
            / rows.len() as f64;
        assert!(error < bound, "{ty}: {error:.3e}, at most {bound:.3e}");
    }
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    let row = bell(7);
    let equal = vec![1.0; COLS];
    let importance: Vec<f32> = (0..COLS).map(|i| if i % 3 == 0 { 30.0 } else { 0.1 }).collect();
    for ty in with_blocks() {
        let weighed = relative_error(&row, &values(ty, &row, &row, &importance)[2], &importance);
        let plain = relative_error(&row, &values(ty, &row, &row, &equal)[2], &importance);
        assert!(weighed < plain, "{ty}: {weighed:.3e} with importance, {plain:.3e} without");
    }
}

#[test]
fn zeros_stay_zeros_and_lone_weights_stay() {
    let equal = vec![1.0; COLS];
    for ty in with_blocks() {
        let mut row = vec![0.0f32; COLS];
        assert!(values(ty, &row, &row, &equal)[2].iter().all(|&v| v == 0.0), "{ty}");
        row[COLS / 2 + 5] = -0.75;
        let read = &values(ty, &row, &row, &equal)[2];
        assert!((read[COLS / 2 + 5] + 0.75).abs() < 1e-3, "{ty}: {}", read[COLS / 2 + 5]);
        // A weight that nothing depends on still is not lost where its group has no other.
        let mut importance = equal.clone();
        importance[COLS / 2 + 5] = 0.0;
        let read = &values(ty, &row, &row, &importance)[2];
        assert!((read[COLS / 2 + 5] + 0.75).abs() < 1e-3, "{ty}: {}", read[COLS / 2 + 5]);
    }
}
