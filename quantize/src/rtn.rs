//! Plain rounding with searched scales.
//!
//! A weight is stored as `row_scale * block_scale * value`: a bf16, a small integer and an entry of the
//! grid. The search minimises the squared error of exactly that product, so what it chooses is what a
//! reader gets. It works on rows scaled by a power of two to about 1, where nothing under- or overflows.

use gristmill_formats::codec::{BLOCK_COLS, Codec, QuantizedRow, block_count};
use half::bf16;

use crate::levels::{
    Block, Int8Levels, Levels, TableLevels, least_squares_scale, squared_error, squared_norm,
};

/// Weights of this magnitude and above are refused: their stored form could exceed `f32`.
pub const MAX_MAGNITUDE: f32 = 8.507_059e37; // 2^126

/// First candidates for the scale of a block, as factors on the scale at which nothing is clipped.
/// Below 1 the largest weight is clipped for the sake of the others; above 1 it meets an inner entry.
const CLIP_FACTORS: [f32; 14] =
    [1.0, 0.68, 0.72, 0.76, 0.79, 0.82, 0.85, 0.88, 0.91, 0.94, 0.97, 1.03, 1.06, 1.10];
/// Rounds of least squares and rounding after the best first candidate.
const REFINEMENTS: usize = 3;
/// Row scales above `largest / MAX_SCALE` that are looked at, as a factor; beyond, steps are too coarse.
const ROW_SCALE_RANGE: f32 = 1.15;
/// Row scales for which all blocks are rounded again; the cheap estimate picks them.
const ROW_SCALES_TRIED: usize = 3;
/// Below this many steps, a block scale's neighbours differ enough to be tried always.
const COARSE_STEPS: f32 = 24.0;
/// A variant whose ideal error is this much above the best one's cannot win by luck of its steps.
const VARIANT_MARGIN: f32 = 1.3;

/// Rounds rows to the values of one block codec.
#[derive(Debug, Clone)]
pub struct RowRounder {
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Int8(Int8Levels),
    Table(TableLevels),
}

impl RowRounder {
    /// For a block codec; `None` for dense ones, which have no scales.
    pub fn new(codec: &Codec) -> Option<Self> {
        let kind = match codec {
            Codec::Q8 => Kind::Int8(Int8Levels),
            Codec::Q4(grid) => Kind::Table(TableLevels::new(grid)),
            Codec::F32 | Codec::Bf16 | Codec::F16 => return None,
        };
        Some(Self { kind })
    }

    /// Rounds one row. `importance` has a non-negative weight per column for the squared error; `None`
    /// weighs all columns the same.
    ///
    /// # Panics
    /// When a value is not finite or is [`MAX_MAGNITUDE`] or larger, or `importance` has another length
    /// or an entry that is negative or not finite.
    pub fn round(&self, row: &[f32], importance: Option<&[f32]>) -> QuantizedRow {
        match &self.kind {
            Kind::Int8(levels) => round_row(levels, row, importance, Effort::Search),
            Kind::Table(levels) => round_row(levels, row, importance, Effort::Search),
        }
    }

    /// Rounds one row without a search: every block's scale is the smallest that clips nothing, up to
    /// the rounding of the scale itself, in the unshifted table. The yardstick for [`Self::round`].
    ///
    /// # Panics
    /// As [`Self::round`].
    pub fn round_absmax(&self, row: &[f32]) -> QuantizedRow {
        match &self.kind {
            Kind::Int8(levels) => round_row(levels, row, None, Effort::Absmax),
            Kind::Table(levels) => round_row(levels, row, None, Effort::Absmax),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Effort {
    Absmax,
    Search,
}

/// A row scaled by a power of two, in blocks; the last one is padded with weightless zeros.
struct ScaledRow {
    blocks: Vec<Block>,
    weights: Vec<Block>,
    /// The row is the blocks times `2^exponent`.
    exponent: i32,
}

impl ScaledRow {
    fn new(row: &[f32], importance: Option<&[f32]>) -> Self {
        if let Some(importance) = importance {
            assert_eq!(importance.len(), row.len(), "one importance per column");
        }
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(
            largest < MAX_MAGNITUDE && row.iter().all(|x| x.is_finite()),
            "weights are finite and small enough"
        );
        let exponent = if largest > 0.0 { f64::from(largest).log2().floor() as i32 } else { 0 };
        let down = exp2(-exponent);
        let mut blocks = vec![[0.0f32; BLOCK_COLS]; block_count(row.len())];
        for (block, source) in blocks.iter_mut().zip(row.chunks(BLOCK_COLS)) {
            for (b, &x) in block.iter_mut().zip(source) {
                *b = (f64::from(x) * down) as f32;
            }
        }
        Self { weights: weights(&blocks, row.len(), importance), blocks, exponent }
    }

    fn is_zero(&self) -> bool {
        self.blocks.iter().flatten().all(|&x| x == 0.0)
    }

    /// The bf16 nearest to `scale` (at the size of the scaled row), moved by some steps. Never zero.
    fn row_scale(&self, scale: f32, steps: i32) -> RowScale {
        let nearest = bf16::from_f64(f64::from(scale) * exp2(self.exponent));
        let bits =
            (i32::from(nearest.to_bits()) + steps).clamp(1, i32::from(bf16::MAX.to_bits())) as u16;
        let stored = bf16::from_bits(bits);
        RowScale { stored, value: (stored.to_f64() * exp2(-self.exponent)) as f32 }
    }
}

/// A row scale as stored and at the size of the scaled row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct RowScale {
    stored: bf16,
    value: f32,
}

fn exp2(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
}

/// Importance per column scaled to at most 1; a block in which only unimportant columns are non-zero
/// weighs its columns the same, so that it still gets the scale it would have without importance.
fn weights(blocks: &[Block], cols: usize, importance: Option<&[f32]>) -> Vec<Block> {
    let mut weights = vec![[1.0f32; BLOCK_COLS]; blocks.len()];
    if let Some(importance) = importance {
        let largest = importance.iter().fold(0.0f32, |m, &w| m.max(w));
        assert!(
            importance.iter().all(|w| w.is_finite() && *w >= 0.0),
            "importance is finite and not negative"
        );
        let norm = if largest > 0.0 { 1.0 / f64::from(largest) } else { 0.0 };
        for (b, source) in importance.chunks(BLOCK_COLS).enumerate() {
            let mut scaled = [0.0f32; BLOCK_COLS];
            for (s, &w) in scaled.iter_mut().zip(source) {
                *s = (f64::from(w) * norm) as f32;
            }
            if squared_norm(&scaled, &blocks[b]) > 0.0 {
                weights[b] = scaled;
            }
        }
    }
    if let Some(last) = weights.last_mut() {
        let used = cols - (blocks.len() - 1) * BLOCK_COLS;
        last[used..].fill(0.0);
    }
    weights
}

/// Where the search of one block in one variant ended, before scales are quantized.
#[derive(Debug, Clone, Copy, Default)]
struct Ideal {
    scale: f32,
    error: f32,
}

/// The ideal scales of one block.
#[derive(Debug, Clone, Copy, Default)]
struct BlockIdeal {
    variants: [Ideal; 2],
    best: usize,
    /// How fast the error grows off the best variant's scale: `error(s) ≈ error + curvature (s - scale)²`.
    curvature: f32,
}

/// What a block gets.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    scale: u8,
    variant: usize,
}

impl Choice {
    /// A block of zeros.
    const ZERO: Self = Self { scale: 0, variant: 0 };
}

/// All scales of a row, and the squared error that they leave.
struct RowChoice {
    row_scale: RowScale,
    blocks: Vec<Choice>,
    error: f64,
}

fn round_row<L: Levels>(
    levels: &L,
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
) -> QuantizedRow {
    let row = ScaledRow::new(row, importance);
    let mut best = absmax(levels, &row);
    if effort == Effort::Search {
        let ideals: Vec<BlockIdeal> =
            row.blocks.iter().zip(&row.weights).map(|(x, w)| ideal_scales(levels, x, w)).collect();
        for row_scale in row_scale_candidates::<L>(&row, &ideals) {
            if let Some(choice) = choose_blocks(levels, &row, &ideals, row_scale, best.error) {
                best = choice;
            }
        }
    }
    store(levels, &row, &best)
}

/// The row as it is stored.
fn store<L: Levels>(levels: &L, row: &ScaledRow, choice: &RowChoice) -> QuantizedRow {
    let mut codes = vec![0u8; row.blocks.len() * BLOCK_COLS];
    let mut block_scales = Vec::with_capacity(row.blocks.len());
    for (b, codes) in codes.chunks_exact_mut(BLOCK_COLS).enumerate() {
        let Choice { scale, variant } = choice.blocks[b];
        let value = choice.row_scale.value * f32::from(scale);
        // A block of scale 0 gets the codes nearest to zero.
        let inverse = if scale > 0 { 1.0 / value } else { 0.0 };
        levels.codes(variant, &row.blocks[b], inverse, codes);
        block_scales.push(levels.scale_byte(scale, variant));
    }
    QuantizedRow { row_scale: choice.row_scale.stored, block_scales, codes }
}

/// The smallest scale at which no weight lies outside the table; 0 for a block of zeros.
fn clip_free_scale(x: &Block, extremes: (f32, f32)) -> f32 {
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(l, h), &x| (l.min(x), h.max(x)));
    let side = |x: f32, end: f32| if x * end > 0.0 { x / end } else { 0.0 };
    side(low, extremes.0).max(side(high, extremes.1))
}

/// Scales without a search. A row of zeros gets scales of zero.
fn absmax<L: Levels>(levels: &L, row: &ScaledRow) -> RowChoice {
    let extremes = levels.extremes(0);
    let max_scale = f32::from(L::MAX_SCALE);
    let scales: Vec<f32> = row.blocks.iter().map(|x| clip_free_scale(x, extremes)).collect();
    let largest = scales.iter().fold(0.0f32, |m, &s| m.max(s));
    if row.is_zero() {
        let row_scale = RowScale { stored: bf16::ZERO, value: 0.0 };
        return RowChoice { row_scale, blocks: vec![Choice::ZERO; scales.len()], error: 0.0 };
    }
    let row_scale = row.row_scale(largest / max_scale, 0);
    let mut error = 0.0f64;
    let mut blocks = Vec::with_capacity(scales.len());
    for (b, scale) in scales.iter().enumerate() {
        let steps = (scale / row_scale.value).round().min(max_scale) as u8;
        let choice = Choice { scale: steps, variant: 0 };
        error += f64::from(choice_error(levels, row, b, choice, row_scale));
        blocks.push(choice);
    }
    RowChoice { row_scale, blocks, error }
}

/// Squared error of one block as stored.
#[inline(always)]
fn choice_error<L: Levels>(
    levels: &L,
    row: &ScaledRow,
    block: usize,
    choice: Choice,
    row_scale: RowScale,
) -> f32 {
    let (x, weights) = (&row.blocks[block], &row.weights[block]);
    if choice.scale == 0 {
        return squared_norm(weights, x);
    }
    let scale = row_scale.value * f32::from(choice.scale);
    let mut values = [0.0f32; BLOCK_COLS];
    levels.round(choice.variant, x, 1.0 / scale, &mut values);
    squared_error(x, weights, &values, scale)
}

/// Searches the best real scale in every variant.
fn ideal_scales<L: Levels>(levels: &L, x: &Block, weights: &Block) -> BlockIdeal {
    let mut ideal = BlockIdeal::default();
    if squared_norm(weights, x) == 0.0 {
        return ideal;
    }
    let mut values = [0.0f32; BLOCK_COLS];
    for variant in 0..levels.variants() {
        let clip_free = clip_free_scale(x, levels.extremes(variant));
        let mut best = Ideal { scale: 0.0, error: squared_norm(weights, x) };
        let mut curvature = 0.0;
        // Rounds at a scale, then moves to the best scale for those values; whether that helped.
        let mut attempt = |scale: f32, best: &mut Ideal| {
            levels.round(variant, x, 1.0 / scale, &mut values);
            let Some(scale) = least_squares_scale(x, weights, &values) else { return false };
            let error = squared_error(x, weights, &values, scale);
            let better = error < best.error;
            if better {
                *best = Ideal { scale, error };
                curvature = squared_norm(weights, &values);
            }
            better
        };
        if clip_free > 0.0 {
            for factor in CLIP_FACTORS {
                attempt(clip_free * factor, &mut best);
            }
            for _ in 0..REFINEMENTS {
                if best.scale == 0.0 || !attempt(best.scale, &mut best) {
                    break;
                }
            }
        }
        ideal.variants[variant] = best;
        if variant == 0 || best.error < ideal.variants[ideal.best].error {
            ideal.best = variant;
            ideal.curvature = curvature;
        }
    }
    ideal
}

/// The row scales worth rounding for, best estimate first. Every bf16 from just below
/// `largest / MAX_SCALE` up is looked at: they differ in how well all ideal scales are near multiples.
fn row_scale_candidates<L: Levels>(row: &ScaledRow, ideals: &[BlockIdeal]) -> Vec<RowScale> {
    let max_scale = f32::from(L::MAX_SCALE);
    let scale = |i: &BlockIdeal| i.variants[i.best].scale;
    let largest = ideals.iter().map(scale).fold(0.0f32, f32::max);
    if largest == 0.0 {
        return Vec::new();
    }
    let smallest = largest / max_scale;
    let mut candidates = Vec::new();
    for steps in -1.. {
        let candidate = row.row_scale(smallest, steps);
        if steps > 1 && candidate.value > smallest * ROW_SCALE_RANGE {
            break;
        }
        let inverse = 1.0 / candidate.value;
        let estimate: f64 = ideals
            .iter()
            .map(|ideal| {
                let multiple = (scale(ideal) * inverse).round().min(max_scale);
                let off = scale(ideal) - multiple * candidate.value;
                f64::from(ideal.curvature * off * off)
            })
            .sum();
        candidates.push((estimate, candidate));
    }
    candidates.sort_by(|a, b| a.0.total_cmp(&b.0));
    candidates.dedup_by_key(|(_, candidate)| candidate.stored);
    candidates.truncate(ROW_SCALES_TRIED);
    candidates.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The best scale and variant of every block under a row scale, and the row's error; `None` when that
/// is not below `limit`.
fn choose_blocks<L: Levels>(
    levels: &L,
    row: &ScaledRow,
    ideals: &[BlockIdeal],
    row_scale: RowScale,
    limit: f64,
) -> Option<RowChoice> {
    let mut blocks = Vec::with_capacity(ideals.len());
    let mut total = 0.0f64;
    for (block, ideal) in ideals.iter().enumerate() {
        let (choice, error) = choose_block(levels, row, block, ideal, row_scale);
        total += f64::from(error);
        if total >= limit {
            return None;
        }
        blocks.push(choice);
    }
    Some(RowChoice { row_scale, blocks, error: total })
}

fn choose_block<L: Levels>(
    levels: &L,
    row: &ScaledRow,
    block: usize,
    ideal: &BlockIdeal,
    row_scale: RowScale,
) -> (Choice, f32) {
    let mut best = (Choice::ZERO, choice_error(levels, row, block, Choice::ZERO, row_scale));
    let max_scale = f32::from(L::MAX_SCALE);
    let bound = ideal.variants[ideal.best].error * VARIANT_MARGIN;
    for variant in 0..levels.variants() {
        let Ideal { scale, error } = ideal.variants[variant];
        let steps = (scale / row_scale.value).min(max_scale);
        let coarse = steps < COARSE_STEPS;
        if scale == 0.0 || (error > bound && !coarse) {
            continue;
        }
        // With few steps to choose from, the error has other minima than the one next to the ideal.
        let reach = if coarse { L::REACH.max(1.0) } else { L::REACH };
        let first = (steps.floor() - reach).max(1.0) as u8;
        let last = (steps.ceil() + reach).min(max_scale) as u8;
        for scale in first..=last {
            let choice = Choice { scale, variant };
            let error = choice_error(levels, row, block, choice, row_scale);
            if error < best.1 {
                best = (choice, error);
            }
        }
    }
    best
}
