//! Prints error and speed of plain rounding for every grid on synthetic weights.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use gristmill_formats::codec::{Codec, NamedGrid};
use gristmill_quantize::RowRounder;
use rayon::prelude::*;

const ROWS: usize = 2048;
const COLS: usize = 1536;

/// A small deterministic generator, so that two runs print the same errors.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn laplace(&mut self) -> f64 {
        let magnitude = -(1.0 - self.uniform()).ln();
        if self.uniform() < 0.5 { magnitude } else { -magnitude }
    }

    /// Five degrees of freedom.
    fn student(&mut self) -> f64 {
        let chi: f64 = (0..5).map(|_| self.normal().powi(2)).sum();
        self.normal() / (chi / 5.0).sqrt()
    }
}

fn stored_error(
    codec: &Codec,
    rows: &[f32],
    quantize: impl Fn(&[f32]) -> gristmill_formats::codec::QuantizedRow + Sync,
) -> f64 {
    let (error, norm) = rows
        .par_chunks(16 * COLS)
        .map(|panel_rows| {
            let quantized: Vec<_> = panel_rows.chunks_exact(COLS).map(&quantize).collect();
            let mut panel = vec![0u8; codec.panel_bytes(COLS)];
            codec.pack_panel(&quantized, COLS, &mut panel);
            let mut decoded = vec![0.0f32; COLS];
            let (mut error, mut norm) = (0.0f64, 0.0f64);
            for (r, row) in panel_rows.chunks_exact(COLS).enumerate() {
                codec.decode_row(&panel, r, &mut decoded);
                for (x, y) in row.iter().zip(&decoded) {
                    error += (f64::from(*x) - f64::from(*y)).powi(2);
                    norm += f64::from(*x).powi(2);
                }
            }
            (error, norm)
        })
        .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    error / norm
}

fn main() {
    let mut random = Random(1);
    let data: Vec<(&str, Vec<f32>)> = vec![
        ("normal", (0..ROWS * COLS).map(|_| random.normal() as f32 * 0.02).collect()),
        ("laplace", (0..ROWS * COLS).map(|_| random.laplace() as f32 * 0.02).collect()),
        ("student-5", (0..ROWS * COLS).map(|_| random.student() as f32 * 0.02).collect()),
    ];
    let mut codecs = vec![("q8".to_owned(), Codec::Q8)];
    for grid in NamedGrid::ALL {
        codecs.push((format!("q4 {}", grid.name()), Codec::Table(grid.grid())));
    }
    println!("{ROWS} x {COLS} weights, {} threads", rayon::current_num_threads());
    println!(
        "{:<12} {:<10} {:>12} {:>12} {:>12}",
        "codec", "weights", "absmax", "searched", "Mweights/s"
    );
    for (name, codec) in &codecs {
        let rounder = RowRounder::new(codec).expect("a block codec");
        for (kind, rows) in &data {
            let plain = stored_error(codec, rows, |row| rounder.round_absmax(row));
            let start = Instant::now();
            let searched = stored_error(codec, rows, |row| rounder.round(row, None));
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{name:<12} {kind:<10} {plain:>12.3e} {searched:>12.3e} {:>12.1}",
                rows.len() as f64 / seconds / 1e6
            );
        }
    }
}
