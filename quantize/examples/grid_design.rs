//! Designs tables: alternates the best scale, variant and codes of many blocks with the least-squares table
//! and shift for them (Lloyd's algorithm with a scale per block), from several starts.
//!
//! `cargo run --release --example grid_design BITS [RAW]` fits to a mixture of distributions and, when
//! given, to a file of little-endian f32 weights.

#![allow(clippy::print_stdout)]

use gristmill_formats::codec::NamedGrid;
use rayon::prelude::*;

const BLOCK: usize = 32;
const BLOCKS: usize = 12_000;
const ROUNDS: usize = 200;

#[derive(Debug, Clone)]
struct Table {
    values: Vec<f32>,
    shift: f32,
}

/// A small deterministic generator, so that two runs print the same tables.
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
        std::f64::consts::FRAC_1_SQRT_2 * if self.uniform() < 0.5 { magnitude } else { -magnitude }
    }

    /// Five degrees of freedom.
    fn student(&mut self) -> f64 {
        let chi: f64 = (0..5).map(|_| self.normal().powi(2)).sum();
        self.normal() / (chi / 3.0).sqrt()
    }
}

#[derive(Debug, Clone, Copy)]
struct Fit {
    error: f32,
    scale: f32,
    shifted: bool,
    codes: [u8; BLOCK],
}

/// Codes and values nearest to `x * inverse`; `middles` lie between the values.
fn round(
    values: &[f32],
    middles: &[f32],
    x: &[f32; BLOCK],
    inverse: f32,
) -> ([u8; BLOCK], [f32; BLOCK]) {
    let codes = x.map(|x| middles.partition_point(|&m| x * inverse > m) as u8);
    (codes, codes.map(|c| values[usize::from(c)]))
}

fn fit(table: &Table, x: &[f32; BLOCK]) -> Fit {
    let norm: f32 = x.iter().map(|x| x * x).sum();
    let mut best = Fit { error: norm, scale: 0.0, shifted: false, codes: [0; BLOCK] };
    for shifted in [false, true] {
        let shift = if shifted { table.shift } else { 0.0 };
        let values: Vec<f32> = table.values.iter().map(|v| v + shift).collect();
        let middles: Vec<f32> = values.windows(2).map(|v| 0.5 * (v[0] + v[1])).collect();
        let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
        let clip_free = (low / values[0]).max(high / values[values.len() - 1]);
        let attempt = |scale: f32, best: &mut Fit| {
            let (codes, rounded) = round(&values, &middles, x, 1.0 / scale);
            let xv: f32 = x.iter().zip(&rounded).map(|(x, v)| x * v).sum();
            let vv: f32 = rounded.iter().map(|v| v * v).sum();
            if xv > 0.0 && norm - xv * xv / vv < best.error {
                *best = Fit { error: norm - xv * xv / vv, scale: xv / vv, shifted, codes };
            }
        };
        for step in 0..14 {
            attempt(clip_free * (0.70 + 0.03 * step as f32), &mut best);
        }
        if best.shifted == shifted && best.scale > 0.0 {
            attempt(best.scale, &mut best);
        }
    }
    best
}

fn error(table: &Table, blocks: &[[f32; BLOCK]]) -> f64 {
    let norm: f64 = blocks.iter().flatten().map(|x| f64::from(x * x)).sum();
    blocks.par_iter().map(|x| f64::from(fit(table, x).error)).sum::<f64>() / norm
}

fn lloyd(mut table: Table, free_shift: bool, blocks: &[[f32; BLOCK]]) -> Table {
    for _ in 0..ROUNDS {
        let fits: Vec<Fit> = blocks.par_iter().map(|x| fit(&table, x)).collect();
        let mut sums = vec![(0.0f64, 0.0f64); table.values.len()];
        let (mut shift_top, mut shift_bottom) = (0.0f64, 0.0f64);
        for (x, f) in blocks.iter().zip(&fits) {
            let s = f64::from(f.scale);
            let shift = if f.shifted { f64::from(table.shift) } else { 0.0 };
            for (&x, &c) in x.iter().zip(&f.codes) {
                let c = usize::from(c);
                sums[c].0 += s * (f64::from(x) - s * shift);
                sums[c].1 += s * s;
                if f.shifted {
                    shift_top += s * (f64::from(x) - s * f64::from(table.values[c]));
                    shift_bottom += s * s;
                }
            }
        }
        for (value, (top, bottom)) in table.values.iter_mut().zip(sums) {
            if bottom > 0.0 {
                *value = (top / bottom) as f32;
            }
        }
        if free_shift && shift_bottom > 0.0 {
            table.shift = (shift_top / shift_bottom) as f32;
        }
        table.values.sort_by(f32::total_cmp);
    }
    table
}

/// The int8 table of the same shape, as wide as int8 allows for both variants.
fn to_int8(table: &Table) -> Table {
    let ends = [table.values[0], table.values[table.values.len() - 1]];
    let largest = ends.iter().flat_map(|v| [v.abs(), (v + table.shift).abs()]).fold(0.0, f32::max);
    let to_int8 = |v: f32| (v * 127.0 / largest).round();
    Table {
        values: table.values.iter().map(|&v| to_int8(v)).collect(),
        shift: to_int8(table.shift),
    }
}

/// Tables of some bits to begin with: those with names, and steps that widen towards the ends.
fn starts(bits: u32) -> Vec<(String, Table)> {
    let mut starts = Vec::new();
    for named in NamedGrid::ALL {
        let grid = named.grid();
        if grid.bits() == bits {
            let values = grid.values().iter().map(|&v| f32::from(v)).collect();
            starts.push((named.name().to_owned(), Table { values, shift: grid.shift().into() }));
        }
    }
    let count = 1 << bits;
    for power in [1.0f32, 1.3, 1.6] {
        let side = |code: i32| (2 * code + 1 - count) as f32 / count as f32;
        let value = |code| 127.0 * side(code).signum() * side(code).abs().powf(power);
        let values: Vec<f32> = (0..count).map(value).collect();
        let shift = 0.5 * (values[count as usize / 2] - values[count as usize / 2 - 1]);
        starts.push((format!("power {power}"), Table { values, shift }));
    }
    starts
}

fn show(table: &Table) -> String {
    let values: Vec<i32> = table.values.iter().map(|&v| v as i32).collect();
    format!("{values:?} shift {}", table.shift)
}

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let bits = args.next().and_then(|bits| bits.parse().ok()).unwrap_or(4);
    let mut random = Random(7);
    let mut sets: Vec<(&str, Vec<[f32; BLOCK]>)> = Vec::new();
    let mut draw = |name, sample: fn(&mut Random) -> f64| {
        let blocks: Vec<[f32; BLOCK]> =
            (0..BLOCKS).map(|_| std::array::from_fn(|_| sample(&mut random) as f32)).collect();
        sets.push((name, blocks));
    };
    draw("normal", Random::normal);
    draw("laplace", Random::laplace);
    draw("student-5", Random::student);
    // Trained weights are nearly normal with some heavier tails: seven normal blocks to one Laplacian.
    let mixture = (0..BLOCKS).map(|i| sets[usize::from(i % 8 == 7)].1[i]).collect();
    sets.push(("mixture", mixture));
    if let Some(path) = args.next() {
        let bytes = std::fs::read(&path)?;
        let weights: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let every = (weights.len() / BLOCK / BLOCKS).max(1);
        let blocks = weights.as_chunks::<BLOCK>().0.iter().step_by(every).copied().collect();
        sets.push(("file", blocks));
    }
    let mut tables = starts(bits);
    let starts = tables.clone();
    for (set, blocks) in &sets[3..] {
        let mut best: Option<(f64, Table)> = None;
        for (start, table) in &starts {
            for free_shift in [true, false] {
                let table = to_int8(&lloyd(table.clone(), free_shift, blocks));
                let error = error(&table, blocks);
                let kind = if free_shift { "free" } else { "fixed" };
                println!("fit to {set} from {start}, {kind} shift: {error:.4e} {}", show(&table));
                if best.as_ref().is_none_or(|(e, _)| error < *e) {
                    best = Some((error, table));
                }
            }
        }
        tables.extend(best.map(|(_, table)| (format!("fit {set}"), table)));
    }
    println!();
    print!("{:<14}", "table");
    sets.iter().for_each(|(set, _)| print!(" {set:>12}"));
    println!();
    for (name, table) in &tables {
        print!("{name:<14}");
        for (_, blocks) in &sets {
            print!(" {:>12.4e}", error(table, blocks));
        }
        println!("  {}", show(table));
    }
    Ok(())
}
