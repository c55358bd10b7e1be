use super::*;
use crate::grid::packed::PackedRow;
use crate::testing::{Random, activations, exact_loss, moment, moment_of, packed_grids, values};

/// The trace of the Fisher information in these tests.
const FISHER: f64 = 3.0;

fn weights(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::new(rows, cols, Random::new(seed).normals(rows * cols))
}

#[test]
fn the_better_rounding_is_kept_and_its_loss_reported() {
    for (codec, grid) in packed_grids() {
        for (seed, (rows, cols)) in [(1, 40), (30, 1), (33, 96), (20, 65)].into_iter().enumerate() {
            let seed = seed as u64;
            let weights = weights(rows, cols, seed);
            let (input, output) = (moment(400, cols, seed + 5), moment(400, rows, seed + 6));
            for output in [None, Some(&output)] {
                for sweeps in [0, 2] {
                    let moments = Moments { input: &input, output, rows: &[] };
                    let (rounded, report) = round(&grid, &weights, &moments, FISHER, sweeps);
                    let mean = output.map(Moment::mean);
                    let stored = values(&grid, &rounded, cols);
                    let exact = exact_loss(weights.data(), &stored, &input.mean(), mean.as_ref());
                    // A loss at which all of the weights' energy is lost would be half the trace.
                    let outputs = output.map_or(rows as f64, Moment::trace);
                    let exact = 0.5 * FISHER * exact / (input.trace() * outputs);
                    let name = format!("{}, {rows} x {cols}", codec.id());
                    let off = (report.predicted_kld - exact).abs();
                    assert!(off <= 1e-3 * exact, "{name}: {exact}, but {report:?}");
                    assert!(report.predicted_kld <= report.predicted_kld_rtn, "{name}: {report:?}");
                    if cols > 32 && rows > 1 {
                        assert_eq!(report.fallback, None, "{name}");
                        let gain = report.predicted_kld / report.predicted_kld_rtn;
                        assert!(gain < 0.7, "{name}: {gain:.3} of plain rounding");
                    }
                }
            }
        }
    }
}

#[test]
fn shares_of_rows_weigh_their_losses() {
    let (rows, cols) = (12, 64);
    let (_, grid) = packed_grids().swap_remove(3);
    let (weights, input) = (weights(rows, cols, 1), moment(300, cols, 2));
    let predicted = |shares: &[f32]| {
        let moments = Moments { input: &input, output: None, rows: shares };
        round(&grid, &weights, &moments, FISHER, 0).1.predicted_kld
    };
    let only = |r: usize| (0..rows).map(|i| f32::from(i == r)).collect::<Vec<_>>();
    let sum: f64 = (0..rows).map(|r| predicted(&only(r))).sum();
    let equal = predicted(&vec![1.0 / rows as f32; rows]);
    assert!((equal - sum / rows as f64).abs() <= 1e-4 * equal);
    assert!((predicted(&[]) - equal).abs() <= 1e-4 * equal, "no shares are equal shares");
}

/// A moment of vectors with NaN and infinity among its entries.
fn broken(width: usize) -> Moment {
    let mut vector = moment(20, width, 1).to_vector();
    vector[0] = f32::NAN;
    vector[1] = f32::INFINITY;
    Moment::from_vector(vector).expect("a moment's vector")
}

/// Moments that cannot steer well or at all, and what is reported of them.
fn degenerate(width: usize) -> Vec<(&'static str, Moment, Option<Fallback>)> {
    let scaled = |gain: fn(usize) -> f32| {
        let mut x = activations(60, width, 3);
        x.chunks_exact_mut(width)
            .for_each(|x| x.iter_mut().enumerate().for_each(|(j, x)| *x *= gain(j)));
        moment_of(&x, width)
    };
    vec![
        ("no tokens", Moment::new(width), Some(Fallback::NoActivations)),
        (
            "no finite token",
            moment_of(&vec![f32::NAN; width], width),
            Some(Fallback::NoActivations),
        ),
        ("all channels dead", scaled(|_| 0.0), Some(Fallback::NoActivations)),
        ("not finite", broken(width), Some(Fallback::NotFinite)),
        ("squares beyond the largest number", scaled(|_| 1e25), Some(Fallback::NotFinite)),
        ("some channels dead", scaled(|j| f32::from(j % 3 != 1)), None),
        ("rank one", moment(1, width, 4), None),
        ("one large channel", scaled(|j| if j == 1 { 1e6 } else { 1.0 }), None),
        ("small channels", scaled(|j| if j == 1 { 1.0 } else { 1e-15 }), None),
        ("tiny", scaled(|_| 1e-18), None),
        ("large", scaled(|_| 1e16), None),
    ]
}

/// Checks what holds whatever was rounded. Not every loss can be predicted.
fn check(name: &str, rounded: &[f32], weights: &Matrix, report: &RoundedTensor, known: bool) {
    let json = serde_json::to_vec(report).expect("a plain struct");
    let read: RoundedTensor = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(read.fallback, report.fallback, "{name}");
    for (kld, read) in [
        (report.predicted_kld, read.predicted_kld),
        (report.predicted_kld_rtn, read.predicted_kld_rtn),
    ] {
        assert!(kld >= 0.0 || (!known && kld.is_nan()), "{name}: {report:?}");
        assert!(if known { (kld - read).abs() <= 1e-12 * kld } else { true }, "{name}: {report:?}");
    }
    assert!(report.damping.is_finite(), "{name}: {report:?}");
    // However little they matter, the weights are still about what they were.
    for (row, stored) in rounded.chunks_exact(weights.cols()).enumerate() {
        let largest = weights.row(row).iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let near = stored.iter().all(|y| y.abs() <= 2.0 * largest);
        assert!(near, "{name}: {stored:?} of {:?}", weights.row(row));
    }
}

#[test]
fn degenerate_inputs_fall_back_and_say_so() {
    for (codec, grid) in packed_grids() {
        for (rows, cols) in [(5, 40), (1, 33), (9, 2)] {
            let weights = weights(rows, cols, 5);
            let output = moment(100, rows, 6);
            for (what, input, fallback) in degenerate(cols) {
                for output in [None, Some(&output)] {
                    let name = format!("{}, {rows} x {cols}, {what}", codec.id());
                    let moments = Moments { input: &input, output, rows: &[] };
                    let (rounded, report) = round(&grid, &weights, &moments, FISHER, 1);
                    let known = fallback != Some(Fallback::NotFinite);
                    check(&name, &values(&grid, &rounded, cols), &weights, &report, known);
                    match (fallback, report.fallback) {
                        (None, None | Some(Fallback::WorseThanRtn)) => (),
                        (expected, found) => assert_eq!(expected, found, "{name}"),
                    }
                    if what == "some channels dead" {
                        let dead = (0..cols).filter(|j| j % 3 == 1).count();
                        assert_eq!(report.dead_columns, dead, "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn without_a_usable_moment_rounding_is_plain() {
    let (rows, cols) = (5, 40);
    let weights = weights(rows, cols, 5);
    for (codec, grid) in packed_grids() {
        let plain = round_nearest(&grid, weights.data(), cols, &vec![1.0; cols]);
        let stored = |rows: &[PackedRow]| rows.iter().map(|r| grid.store(r)).collect::<Vec<_>>();
        for (what, input, fallback) in degenerate(cols) {
            if fallback.is_some() {
                let moments = Moments { input: &input, output: None, rows: &[] };
                let (rounded, _) = round(&grid, &weights, &moments, FISHER, 0);
                assert_eq!(stored(&rounded), stored(&plain), "{}, {what}", codec.id());
            }
        }
    }
}

#[test]
fn degenerate_outputs_leave_the_inputs_to_steer() {
    let (rows, cols) = (9, 64);
    let (weights, input) = (weights(rows, cols, 7), moment(300, cols, 8));
    for (codec, grid) in packed_grids() {
        for (what, output, fallback) in degenerate(rows) {
            let name = format!("{}, {what}", codec.id());
            let moments = Moments { input: &input, output: Some(&output), rows: &[] };
            let (rounded, report) = round(&grid, &weights, &moments, FISHER, 0);
            check(&name, &values(&grid, &rounded, cols), &weights, &report, true);
            if fallback.is_some() {
                assert_eq!(report.fallback, None, "{name}");
                assert!(report.predicted_kld < report.predicted_kld_rtn, "{name}");
            }
        }
    }
}

#[test]
fn degenerate_weights_and_shares_are_rounded() {
    let (rows, cols) = (5, 40);
    let input = moment(100, cols, 1);
    for (codec, grid) in packed_grids() {
        let mut huge = weights(rows, cols, 2);
        huge.data_mut()[3] = 1e30;
        for (what, weights) in [("zeros", Matrix::zeros(rows, cols)), ("one huge weight", huge)] {
            let name = format!("{}, {what}", codec.id());
            let moments = Moments { input: &input, output: None, rows: &[] };
            let (rounded, report) = round(&grid, &weights, &moments, FISHER, 1);
            check(&name, &values(&grid, &rounded, cols), &weights, &report, false);
        }
        let weights = weights(rows, cols, 2);
        for (what, share) in [("no share", 0.0), ("unknown shares", f32::NAN)] {
            let name = format!("{}, {what}", codec.id());
            let shares = vec![share; rows];
            let moments = Moments { input: &input, output: None, rows: &shares };
            let (rounded, report) = round(&grid, &weights, &moments, FISHER, 1);
            check(&name, &values(&grid, &rounded, cols), &weights, &report, false);
        }
        for fisher in [0.0, f64::NAN, f64::INFINITY] {
            let name = format!("{}, Fisher information {fisher}", codec.id());
            let moments = Moments { input: &input, output: None, rows: &[] };
            let (rounded, report) = round(&grid, &weights, &moments, fisher, 1);
            check(&name, &values(&grid, &rounded, cols), &weights, &report, false);
        }
    }
}
