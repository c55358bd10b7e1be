//! Designs 4-bit tables: alternates the best scale, variant and codes of many blocks with the least-squares
//! table and shift for them (Lloyd's algorithm with a scale per block), from several starts.
//!
//! `cargo run --release --example grid_design [RAW]` also fits to a file of little-endian f32 weights.

#![allow(clippy::print_stdout)]

use rayon::prelude::*;

const BLOCK: usize = 32;
const BLOCKS: usize = 12_000;
const ROUNDS: usize = 40;

#[derive(Debug, Clone, Copy)]
struct Table {
    values: [f32; 16],
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

fn round(table: &[f32; 16], x: &[f32; BLOCK], inverse: f32) -> ([u8; BLOCK], [f32; BLOCK]) {
    let mut codes = [0.0f32; BLOCK];
    let mut values = [table[0]; BLOCK];
    for k in 0..15 {
        let (middle, step) = (0.5 * (table[k] + table[k + 1]), table[k + 1] - table[k]);
        for i in 0..BLOCK {
            let above = if x[i] * inverse > middle { 1.0 } else { 0.0 };
            codes[i] += above;
            values[i] += above * step;
        }
    }
    (codes.map(|c| c as u8), values)
}

fn fit(table: &Table, x: &[f32; BLOCK]) -> Fit {
    let norm: f32 = x.iter().map(|x| x * x).sum();
    let mut best = Fit { error: norm, scale: 0.0, shifted: false, codes: [0; BLOCK] };
    for shifted in [false, true] {
        let values = table.values.map(|v| v + if shifted { table.shift } else { 0.0 });
        let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
        let clip_free = (low / values[0]).max(high / values[15]);
        let attempt = |scale: f32, best: &mut Fit| {
            let (codes, rounded) = round(&values, x, 1.0 / scale);
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
        let (mut top, mut bottom) = ([0.0f64; 16], [0.0f64; 16]);
        let (mut shift_top, mut shift_bottom) = (0.0f64, 0.0f64);
        for (x, f) in blocks.iter().zip(&fits) {
            let s = f64::from(f.scale);
            let shift = if f.shifted { f64::from(table.shift) } else { 0.0 };
            for (&x, &c) in x.iter().zip(&f.codes) {
                let c = usize::from(c);
                top[c] += s * (f64::from(x) - s * shift);
                bottom[c] += s * s;
                if f.shifted {
                    shift_top += s * (f64::from(x) - s * f64::from(table.values[c]));
                    shift_bottom += s * s;
                }
            }
        }
        for c in 0..16 {
            if bottom[c] > 0.0 {
                table.values[c] = (top[c] / bottom[c]) as f32;
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
    let ends = [
        -table.values[0],
        -(table.values[0] + table.shift),
        table.values[15],
        table.values[15] + table.shift,
    ];
    let unit = 127.0 / ends.into_iter().fold(0.0f32, f32::max);
    Table { values: table.values.map(|v| (v * unit).round()), shift: (table.shift * unit).round() }
}

fn main() -> std::io::Result<()> {
    let mut random = Random(7);
    let mut sets: Vec<(String, Vec<[f32; BLOCK]>)> = Vec::new();
    let mut draw = |name: &str, sample: fn(&mut Random) -> f64| {
        let blocks: Vec<[f32; BLOCK]> =
            (0..BLOCKS).map(|_| std::array::from_fn(|_| sample(&mut random) as f32)).collect();
        sets.push((name.to_owned(), blocks));
    };
    draw("normal", Random::normal);
    draw("laplace", Random::laplace);
    draw("student-5", Random::student);
    // Trained weights are nearly normal with some heavier tails: seven normal blocks to one Laplacian.
    let mixture = (0..BLOCKS).map(|i| sets[usize::from(i % 8 == 7)].1[i]).collect();
    sets.push(("mixture".to_owned(), mixture));
    if let Some(path) = std::env::args().nth(1) {
        let bytes = std::fs::read(&path)?;
        let weights: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let every = (weights.len() / BLOCK / BLOCKS).max(1);
        let blocks = weights.as_chunks::<BLOCK>().0.iter().step_by(every).copied().collect();
        sets.push(("file".to_owned(), blocks));
    }
    let named = |name: &str, values: [i8; 16], shift: i8| {
        (name.to_owned(), Table { values: values.map(f32::from), shift: f32::from(shift) })
    };
    let mut tables: Vec<(String, Table)> = gristmill_formats::codec::NamedGrid::ALL
        .into_iter()
        .map(|n| named(n.name(), *n.grid().values(), n.grid().shift()))
        .collect();
    for (name, shift) in [("int4", 8), ("nf4", 5), ("iq4-nl", 8)] {
        let (_, mut table) =
            tables.iter().find(|(n, _)| n == name).cloned().expect("a grid of that name");
        table.shift = shift as f32;
        tables.push((format!("{name}/{shift}"), table));
    }
    let mut found: Vec<(String, Table)> = Vec::new();
    for (set, blocks) in &sets {
        let mut best: Option<(f64, Table)> = None;
        for (start, table) in &tables {
            for free_shift in [true, false] {
                let real = lloyd(*table, free_shift, blocks);
                let table = to_int8(&real);
                let error = error(&table, blocks);
                println!(
                    "fit to {set:<10} from {start:<10} {} {error:.4e} {:?} shift {}",
                    if free_shift { "free " } else { "fixed" },
                    table.values.map(|v| v as i32),
                    table.shift
                );
                if best.as_ref().is_none_or(|(e, _)| error < *e) {
                    best = Some((error, table));
                }
            }
        }
        if let Some((_, table)) = best {
            found.push((format!("fit {set}"), table));
        }
    }
    tables.extend(found);
    println!();
    print!("{:<14}", "table");
    sets.iter().for_each(|(set, _)| print!(" {set:>12}"));
    println!();
    for (name, table) in &tables {
        print!("{name:<14}");
        for (_, blocks) in &sets {
            print!(" {:>12.4e}", error(table, blocks));
        }
        println!("  {:?} {}", table.values.map(|v| v as i32), table.shift);
    }
    Ok(())
}
