//! The values that a block of weights can take, and rounding to them. This is the hook for a codec:
//! the searches know grids only through [`Levels`].

use gristmill_formats::codec::{BLOCK_COLS, Grid};

/// One block of weights, or one number per column of it.
pub(crate) type Block = [f32; BLOCK_COLS];

/// The values of a block codec, for scale 1. A block picks one of a few *variants* of the table.
pub(crate) trait Levels: Sync {
    /// Largest integer scale of a block.
    const MAX_SCALE: u8;

    /// How many integer scales beyond the two next to the ideal one are worth trying on either side:
    /// the finer the levels, the more the error jumps about between neighbouring scales.
    const REACH: f32;

    /// Number of variants.
    fn variants(&self) -> usize;

    /// Smallest and largest value of a variant.
    fn extremes(&self, variant: usize) -> (f32, f32);

    /// The values nearest to `x * inverse`, where `inverse` is finite.
    fn round(&self, variant: usize, x: &Block, inverse: f32, values: &mut Block);

    /// Code and value nearest to `x * inverse`.
    fn nearest(&self, variant: usize, x: f32, inverse: f32) -> (u8, f32);

    /// The codes of the same values.
    fn codes(&self, variant: usize, x: &Block, inverse: f32, codes: &mut [u8]);

    /// The stored byte of a scale and a variant.
    fn scale_byte(&self, scale: u8, variant: usize) -> u8;
}

/// `2^23`: adding it to a number in `0 .. 2^22` leaves the nearest integer in the low bits of the sum.
/// Unlike a cast, this needs no saturation and so vectorises on every target.
const TO_INTEGER: f32 = 8_388_608.0;

/// The 255 values of q8. -128 is left out: it would buy nothing and would make negation overflow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Levels;

/// Value plus 128 as the low byte of a float.
fn int8_bits(x: f32, inverse: f32) -> u32 {
    ((x * inverse).clamp(-127.0, 127.0) + 128.0 + TO_INTEGER).to_bits()
}

impl Levels for Int8Levels {
    const MAX_SCALE: u8 = u8::MAX;
    const REACH: f32 = 8.0;

    fn variants(&self) -> usize {
        1
    }

    fn extremes(&self, _: usize) -> (f32, f32) {
        (-127.0, 127.0)
    }

    #[inline(always)]
    fn round(&self, _: usize, x: &Block, inverse: f32, values: &mut Block) {
        for i in 0..BLOCK_COLS {
            values[i] = f32::from_bits(int8_bits(x[i], inverse)) - (TO_INTEGER + 128.0);
        }
    }

    fn nearest(&self, _: usize, x: f32, inverse: f32) -> (u8, f32) {
        let bits = int8_bits(x, inverse);
        ((bits as u8).wrapping_sub(128), f32::from_bits(bits) - (TO_INTEGER + 128.0))
    }

    fn codes(&self, _: usize, x: &Block, inverse: f32, codes: &mut [u8]) {
        for i in 0..BLOCK_COLS {
            codes[i] = (int8_bits(x[i], inverse) as u8).wrapping_sub(128);
        }
    }

    fn scale_byte(&self, scale: u8, _: usize) -> u8 {
        scale
    }
}

/// Cells of a lookup table: one per half unit from -128 to 128.
const CELLS: usize = 512;

/// Nearest entry of a table. Entries are integers, so midpoints between them are multiples of one
/// half and every cell lies on one side of all of them: looking up the cell is exact rounding.
#[derive(Debug, Clone)]
struct Nearest {
    value: [f32; CELLS],
    code: [u8; CELLS],
}

impl Nearest {
    fn new(table: &[i16]) -> Self {
        let mut nearest = Self { value: [0.0; CELLS], code: [0; CELLS] };
        for cell in 0..CELLS {
            // The middle of the cell, in quarters so that the comparison stays in integers.
            let middle = 2 * (cell as i32 - 256) + 1;
            let distance = |&code: &usize| (middle - 4 * i32::from(table[code])).abs();
            let code = (0..table.len()).min_by_key(distance).unwrap_or_default();
            nearest.value[cell] = f32::from(table[code]);
            nearest.code[cell] = code as u8;
        }
        nearest
    }

    /// Cell of a value given at twice its size.
    #[inline(always)]
    fn cell(doubled: f32) -> usize {
        // Half a cell down turns rounding into floor. A value on the border of two cells may go to
        // either: they differ only when it is a midpoint, and then both entries are as near.
        let shifted = doubled.clamp(-255.5, 255.0) + 255.5;
        ((shifted + TO_INTEGER).to_bits() & (CELLS as u32 - 1)) as usize
    }
}

/// The values of a table codec: a table and its shifted twin.
#[derive(Debug, Clone)]
pub(crate) struct TableLevels {
    nearest: Vec<Nearest>,
    extremes: Vec<(f32, f32)>,
}

impl TableLevels {
    pub(crate) fn new(grid: &Grid) -> Self {
        let variants = if grid.shift() == 0 { 1 } else { 2 };
        let tables: Vec<Vec<i16>> = (0..variants)
            .map(|v| {
                grid.values().iter().map(|&x| i16::from(x) + v * i16::from(grid.shift())).collect()
            })
            .collect();
        let ends = |t: &Vec<i16>| (f32::from(t[0]), f32::from(t[t.len() - 1]));
        Self {
            nearest: tables.iter().map(|t| Nearest::new(t)).collect(),
            extremes: tables.iter().map(ends).collect(),
        }
    }
}

impl Levels for TableLevels {
    const MAX_SCALE: u8 = Grid::MAX_BLOCK_SCALE;
    const REACH: f32 = 0.0;

    fn variants(&self) -> usize {
        self.nearest.len()
    }

    fn extremes(&self, variant: usize) -> (f32, f32) {
        self.extremes[variant]
    }

    #[inline(always)]
    fn round(&self, variant: usize, x: &Block, inverse: f32, values: &mut Block) {
        let table = &self.nearest[variant].value;
        // Two loops: the first becomes vector code, the second is only loads.
        let mut cells = [0u32; BLOCK_COLS];
        for i in 0..BLOCK_COLS {
            cells[i] = Nearest::cell(x[i] * (2.0 * inverse)) as u32;
        }
        for i in 0..BLOCK_COLS {
            values[i] = table[cells[i] as usize & (CELLS - 1)];
        }
    }

    #[inline(always)]
    fn nearest(&self, variant: usize, x: f32, inverse: f32) -> (u8, f32) {
        let (cell, nearest) = (Nearest::cell(x * (2.0 * inverse)), &self.nearest[variant]);
        (nearest.code[cell], nearest.value[cell])
    }

    fn codes(&self, variant: usize, x: &Block, inverse: f32, codes: &mut [u8]) {
        let table = &self.nearest[variant].code;
        for i in 0..BLOCK_COLS {
            codes[i] = table[Nearest::cell(x[i] * (2.0 * inverse))];
        }
    }

    fn scale_byte(&self, scale: u8, variant: usize) -> u8 {
        if variant == 1 { scale | Grid::SHIFT_BIT } else { scale }
    }
}

/// Lanes of a sum. Fixed, so that sums are the same on every machine.
const LANES: usize = 8;

#[inline(always)]
fn sum(terms: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for start in (0..BLOCK_COLS).step_by(LANES) {
        for lane in 0..LANES {
            lanes[lane] += terms(start + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// The scale that minimises the weighted squared error of `scale * values`, `Σ w x v / Σ w v v`;
/// `None` when it is not a positive number.
#[inline(always)]
pub(crate) fn least_squares_scale(x: &Block, weights: &Block, values: &Block) -> Option<f32> {
    let xv = sum(|i| weights[i] * x[i] * values[i]);
    let vv = sum(|i| weights[i] * values[i] * values[i]);
    (xv > 0.0 && vv > 0.0).then(|| xv / vv)
}

/// `Σ w (x - scale v)²`.
#[inline(always)]
pub(crate) fn squared_error(x: &Block, weights: &Block, values: &Block, scale: f32) -> f32 {
    sum(|i| {
        let d = x[i] - scale * values[i];
        weights[i] * d * d
    })
}

/// `Σ w v²`.
#[inline(always)]
pub(crate) fn squared_norm(weights: &Block, values: &Block) -> f32 {
    sum(|i| weights[i] * values[i] * values[i])
}

#[cfg(test)]
mod tests {
    use gristmill_formats::codec::NamedGrid;

    use super::*;

    fn check<L: Levels>(levels: &L, table: impl Fn(u8, usize) -> Option<f32>) {
        for variant in 0..levels.variants() {
            let mut x = [0.0f32; BLOCK_COLS];
            for step in 0..3000 {
                for (i, x) in x.iter_mut().enumerate() {
                    *x = (step as f32 - 1500.0) * 0.1 + i as f32 * 0.003;
                }
                let (mut values, mut codes) = ([0.0; BLOCK_COLS], [0u8; BLOCK_COLS]);
                levels.round(variant, &x, 1.0, &mut values);
                levels.codes(variant, &x, 1.0, &mut codes);
                for i in 0..BLOCK_COLS {
                    assert_eq!(table(codes[i], variant), Some(values[i]));
                    let best = (0..=255)
                        .filter_map(|c| table(c, variant))
                        .map(|v| (v - x[i]).abs())
                        .fold(f32::INFINITY, f32::min);
                    assert!((values[i] - x[i]).abs() <= best + 2e-5, "{} -> {}", x[i], values[i]);
                }
            }
        }
    }

    #[test]
    fn rounding_finds_the_nearest_value() {
        check(&Int8Levels, |code, _| (code != 128).then(|| f32::from(code as i8)));
        for named in NamedGrid::ALL {
            let grid = named.grid();
            check(&TableLevels::new(&grid), |code, variant| {
                let known = usize::from(code) < grid.values().len();
                known.then(|| f32::from(grid.value(code, variant == 1)))
            });
        }
    }
}
