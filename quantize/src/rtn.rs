//! Plain rounding with searched scales.
//!
//! A weight is stored as `row_scale * block_scale * value`: a bf16, a small integer and an entry of the
//! grid. The search minimises the squared error of exactly that product, so what it chooses is what a
//! reader gets. It works on rows scaled by a power of two to about 1, where nothing under- or overflows.

use gristmill_formats::codec::{BLOCK_COLS, Codec, QuantizedRow};
use half::bf16;
use pulp::{Arch, NullaryFnOnce};

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
            Codec::Table(grid) => Kind::Table(TableLevels::new(grid)),
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

/// How the weights and importances of a row are brought to about 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowUnits {
    /// The row is the scaled one times `2^exponent`.
    exponent: i32,
    /// `2^-exponent`.
    down: f64,
    /// Factor on importances.
    importance: f64,
}

impl RowUnits {
    fn of(row: &[f32], importance: Option<&[f32]>) -> Self {
        let largest = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(
            largest < MAX_MAGNITUDE && row.iter().all(|x| x.is_finite()),
            "weights are finite and small enough"
        );
        let exponent = if largest > 0.0 { f64::from(largest).log2().floor() as i32 } else { 0 };
        let mut factor = 1.0;
        if let Some(importance) = importance {
            assert_eq!(importance.len(), row.len(), "one importance per column");
            assert!(
                importance.iter().all(|w| w.is_finite() && *w >= 0.0),
                "importance is finite and not negative"
            );
            let largest = importance.iter().fold(0.0f32, |m, &w| m.max(w));
            factor = if largest > 0.0 { 1.0 / f64::from(largest) } else { 0.0 };
        }
        Self { exponent, down: exp2(-exponent), importance: factor }
    }

    /// One weight, scaled.
    pub(crate) fn scaled(&self, weight: f32) -> f32 {
        (f64::from(weight) * self.down) as f32
    }

    /// At most a block of weights, scaled and padded with zeros.
    pub(crate) fn block(&self, weights: &[f32]) -> Block {
        let mut block = [0.0f32; BLOCK_COLS];
        block.iter_mut().zip(weights).for_each(|(b, &x)| *b = self.scaled(x));
        block
    }

    /// Importance of the columns of a scaled block of `cols` columns, 0 for padding. A block in which
    /// only unimportant columns are non-zero weighs its columns the same, so that it still gets the
    /// scale it would have without importance.
    pub(crate) fn weights(&self, block: &Block, cols: usize, importance: Option<&[f32]>) -> Block {
        let mut weights = [1.0f32; BLOCK_COLS];
        if let Some(importance) = importance {
            let mut scaled = [0.0f32; BLOCK_COLS];
            for (s, &w) in scaled.iter_mut().zip(importance) {
                *s = (f64::from(w) * self.importance) as f32;
            }
            if squared_norm(&scaled, block) > 0.0 {
                weights = scaled;
            }
        }
        weights[cols..].fill(0.0);
        weights
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

/// A row at the size of its units, in blocks; the last one is padded with weightless zeros.
struct ScaledRow {
    units: RowUnits,
    blocks: Vec<Block>,
    weights: Vec<Block>,
}

impl ScaledRow {
    fn new(row: &[f32], importance: Option<&[f32]>) -> Self {
        let units = RowUnits::of(row, importance);
        let blocks: Vec<Block> = row.chunks(BLOCK_COLS).map(|x| units.block(x)).collect();
        let columns = |b: usize| b * BLOCK_COLS..row.len().min((b + 1) * BLOCK_COLS);
        let weights = blocks.iter().enumerate().map(|(b, block)| {
            let columns = columns(b);
            units.weights(block, columns.len(), importance.map(|i| &i[columns]))
        });
        Self { weights: weights.collect(), blocks, units }
    }

    fn is_zero(&self) -> bool {
        self.blocks.iter().flatten().all(|&x| x == 0.0)
    }
}

/// A row scale as stored and at the size of the scaled row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RowScale {
    pub(crate) stored: bf16,
    pub(crate) value: f32,
}

impl RowScale {
    const ZERO: Self = Self { stored: bf16::ZERO, value: 0.0 };

    /// Multiplies by about `factor`; returns the factor as stored. Stays where the product is no
    /// positive bf16.
    pub(crate) fn rescale(&mut self, factor: f32) -> f32 {
        let stored = bf16::from_f32(self.stored.to_f32() * factor);
        let actual = stored.to_f32() / self.stored.to_f32();
        if !(stored > bf16::ZERO && stored.is_finite() && actual.is_finite()) {
            return 1.0;
        }
        *self = Self { stored, value: self.value * actual };
        actual
    }
}

fn exp2(exponent: i32) -> f64 {
    f64::from(exponent).exp2()
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
pub(crate) struct Choice {
    pub(crate) scale: u8,
    pub(crate) variant: usize,
}

impl Choice {
    /// A block of zeros.
    pub(crate) const ZERO: Self = Self { scale: 0, variant: 0 };
}

/// All scales of a row, and the squared error that they leave.
struct RowChoice {
    row_scale: RowScale,
    blocks: Vec<Choice>,
    error: f64,
}

/// The row scale that the search finds for a row as it is.
pub(crate) fn search_row_scale<L: Levels>(
    levels: &L,
    row: &[f32],
    importance: Option<&[f32]>,
) -> (RowUnits, RowScale) {
    let row = ScaledRow::new(row, importance);
    (row.units, search(levels, &row).row_scale)
}

/// The scale of a block under a row scale. `x` and `weights` are in the units of the row.
pub(crate) fn search_block<L: Levels>(
    levels: &L,
    x: &Block,
    weights: &Block,
    row_scale: RowScale,
) -> Choice {
    if row_scale == RowScale::ZERO {
        return Choice::ZERO;
    }
    choose_block(levels, x, weights, &ideal_scales(levels, x, weights), row_scale).0
}

fn search<L: Levels>(levels: &L, row: &ScaledRow) -> RowChoice {
    let plain = absmax(levels, row);
    if row.is_zero() {
        return plain;
    }
    let ideals: Vec<BlockIdeal> =
        row.blocks.iter().zip(&row.weights).map(|(x, w)| ideal_scales(levels, x, w)).collect();
    let mut candidates = row_scale_candidates::<L>(row, &ideals);
    if !candidates.contains(&plain.row_scale) {
        candidates.push(plain.row_scale);
    }
    let mut best = RowChoice { error: f64::INFINITY, ..plain };
    for row_scale in candidates {
        if let Some(choice) = choose_blocks(levels, row, &ideals, row_scale, best.error) {
            best = choice;
        }
    }
    best
}

fn round_row<L: Levels>(
    levels: &L,
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
) -> QuantizedRow {
    let row = ScaledRow::new(row, importance);
    let choice = match effort {
        Effort::Absmax => absmax(levels, &row),
        Effort::Search => search(levels, &row),
    };
    store(levels, &row, &choice)
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

/// The scale step next to the clip-free scale.
fn clip_free_choice<L: Levels>(levels: &L, x: &Block, row_scale: RowScale) -> Choice {
    let steps = clip_free_scale(x, levels.extremes(0)) / row_scale.value;
    Choice { scale: steps.round().min(f32::from(L::MAX_SCALE)) as u8, variant: 0 }
}

/// Scales without a search. A row of zeros gets scales of zero.
fn absmax<L: Levels>(levels: &L, row: &ScaledRow) -> RowChoice {
    if row.is_zero() {
        let blocks = vec![Choice::ZERO; row.blocks.len()];
        return RowChoice { row_scale: RowScale::ZERO, blocks, error: 0.0 };
    }
    let extremes = levels.extremes(0);
    let largest = row.blocks.iter().fold(0.0f32, |m, x| m.max(clip_free_scale(x, extremes)));
    let row_scale = row.units.row_scale(largest / f32::from(L::MAX_SCALE), 0);
    let mut error = 0.0f64;
    let mut blocks = Vec::with_capacity(row.blocks.len());
    for (x, weights) in row.blocks.iter().zip(&row.weights) {
        let choice = clip_free_choice(levels, x, row_scale);
        error += f64::from(choice_error(levels, x, weights, choice, row_scale));
        blocks.push(choice);
    }
    RowChoice { row_scale, blocks, error }
}

/// Squared error of one block as stored.
#[inline(always)]
fn choice_error<L: Levels>(
    levels: &L,
    x: &Block,
    weights: &Block,
    choice: Choice,
    row_scale: RowScale,
) -> f32 {
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
    for variant in 0..levels.variants() {
        let (best, curvature) = Arch::new().dispatch(IdealScale { levels, variant, x, weights });
        ideal.variants[variant] = best;
        if variant == 0 || best.error < ideal.variants[ideal.best].error {
            ideal.best = variant;
            ideal.curvature = curvature;
        }
    }
    ideal
}

/// The search of the best real scale in one variant; returns with it how fast the error grows off it.
/// Compiled for every instruction set, unlike a closure, which is only where it is inlined.
struct IdealScale<'a, L> {
    levels: &'a L,
    variant: usize,
    x: &'a Block,
    weights: &'a Block,
}

impl<L: Levels> NullaryFnOnce for IdealScale<'_, L> {
    type Output = (Ideal, f32);

    #[inline(always)]
    fn call(self) -> (Ideal, f32) {
        let Self { levels, variant, x, weights } = self;
        let clip_free = clip_free_scale(x, levels.extremes(variant));
        let mut best = Ideal { scale: 0.0, error: squared_norm(weights, x) };
        let mut curvature = 0.0;
        if clip_free <= 0.0 {
            return (best, curvature);
        }
        let mut values = [0.0f32; BLOCK_COLS];
        for attempt in 0..CLIP_FACTORS.len() + REFINEMENTS {
            // Candidates first, then what least squares makes of the best of them.
            let scale = CLIP_FACTORS.get(attempt).map_or(best.scale, |factor| clip_free * factor);
            if scale == 0.0 {
                break;
            }
            levels.round(variant, x, 1.0 / scale, &mut values);
            let moved = least_squares_scale(x, weights, &values);
            let error = moved.map(|scale| squared_error(x, weights, &values, scale));
            match (moved, error) {
                (Some(scale), Some(error)) if error < best.error => {
                    best = Ideal { scale, error };
                    curvature = squared_norm(weights, &values);
                }
                _ if attempt >= CLIP_FACTORS.len() => break,
                _ => {}
            }
        }
        (best, curvature)
    }
}

/// [`choice_error`], compiled likewise.
struct ChoiceError<'a, L> {
    levels: &'a L,
    x: &'a Block,
    weights: &'a Block,
    choice: Choice,
    row_scale: RowScale,
}

impl<L: Levels> NullaryFnOnce for ChoiceError<'_, L> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        choice_error(self.levels, self.x, self.weights, self.choice, self.row_scale)
    }
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
        let candidate = row.units.row_scale(smallest, steps);
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
        let (x, weights) = (&row.blocks[block], &row.weights[block]);
        let (choice, error) = choose_block(levels, x, weights, ideal, row_scale);
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
    x: &Block,
    weights: &Block,
    ideal: &BlockIdeal,
    row_scale: RowScale,
) -> (Choice, f32) {
    let mut best = (Choice::ZERO, squared_norm(weights, x));
    let mut attempt = |choice: Choice| {
        let error = Arch::new().dispatch(ChoiceError { levels, x, weights, choice, row_scale });
        if error < best.1 {
            best = (choice, error);
        }
    };
    // Never worse than without a search.
    attempt(clip_free_choice(levels, x, row_scale));
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
            attempt(Choice { scale, variant });
        }
    }
    best
}
