//! Attention of a few queries over one key/value head.
//!
//! Positions come in *parts* of [`PART`]. For each part a query has a partial result of its own: the
//! largest score, the sum of `e^(score - largest)`, and the values mixed with those weights. Results of
//! parts are folded in order of position ([`fold`]), so that parts may be computed anywhere: the bits
//! depend on positions alone, not on threads, chunks, or the queries that are computed together.
//!
//! Keys lie in blocks of 16 positions, so that 16 scores are one vector and no horizontal sum is needed.
//! What is in a block, and how scores and mixtures are computed from it, is a matter of the family:
//! [`float`] (f32, f16), [`coded`] (int8) or [`windowed`] (int4), each an implementation of [`Family`].

mod coded;
mod float;
mod hadamard;
mod kv;
mod scratch;
mod windowed;

use crate::simd::Simd;
use crate::vecmath;

pub(crate) use coded::{Coded, Int8};
pub(crate) use float::Float;
pub use kv::{KvHead, KvType};
pub(crate) use kv::{KvView, KvViewMut};
pub use scratch::AttentionScratch;
pub(crate) use scratch::ScratchView;
pub(crate) use windowed::Windowed;

/// Positions whose keys are interleaved.
pub const POSITIONS_PER_BLOCK: usize = 16;
/// Positions of a part: few enough that its keys and values stay in the second-level cache (64 KB for
/// heads of 64 in f16) and that a context of a few hundred positions is shared among threads.
pub const PART: usize = 256;
/// Most queries that are computed together.
pub const MAX_QUERY_ROWS: usize = 12;
const BLOCKS: usize = PART / POSITIONS_PER_BLOCK;

/// Values of a result row after the mixture: the largest score, the sum of weights, and padding.
const ROW_TAIL: usize = 16;

/// Values of a row of results for heads of `head_dim` elements: the mixture, rounded up to 16, and 16
/// values of state that [`Kernels::attend`](crate::Kernels::attend) needs to fold parts.
pub fn result_width(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16) + ROW_TAIL
}

/// A query's place: it sees positions `first ..= position`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First position it sees.
    pub first: usize,
    /// Its own position, the last it sees.
    pub position: usize,
}

impl Span {
    /// The parts that it sees positions of.
    pub fn parts(self) -> std::ops::Range<usize> {
        self.first / PART..self.position / PART + 1
    }

    /// The positions of a part that it sees, counted from the part's first.
    fn within(self, part: usize) -> Seen {
        let local = |position: usize| position.saturating_sub(part * PART).min(PART);
        Seen { from: local(self.first), end: local(self.position + 1) }
    }
}

/// How scores become weights.
#[derive(Debug, Clone, Copy)]
pub struct ScoreRule {
    /// Factor on `q·k`.
    pub scale: f32,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Positions `from..end` of a part.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    from: usize,
    end: usize,
}

impl Seen {
    fn is_empty(self) -> bool {
        self.from >= self.end
    }

    /// Whole blocks of `positions` that hold them.
    fn blocks_of(self, positions: usize) -> Self {
        let whole = Self {
            from: self.from / positions * positions,
            end: self.end.next_multiple_of(positions),
        };
        if self.is_empty() { Self { from: whole.from, end: whole.from } } else { whole }
    }

    /// The smallest range that holds all of some.
    fn union(all: &[Self]) -> Self {
        let seen = || all.iter().filter(|s| !s.is_empty());
        Self {
            from: seen().map(|s| s.from).min().unwrap_or(0),
            end: seen().map(|s| s.end).max().unwrap_or(0),
        }
    }
}

/// Where the kernels of a family find things: one tile of rows over one part.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    kv: KvView,
    scratch: ScratchView,
    part: usize,
}

impl Tile {
    /// The slot of the ring that holds a position of the part.
    fn slot(&self, position: usize) -> usize {
        (self.part * PART + position) % self.kv.capacity
    }

    /// The slot, in blocks, of a block of the part.
    fn block_slot(&self, block: usize) -> usize {
        (self.part * BLOCKS + block) % (self.kv.capacity / POSITIONS_PER_BLOCK)
    }
}

/// How keys and values of a type are kept, and what is computed from them.
///
/// # Safety
/// As for [`Simd`]. Implementations touch nothing but what each method names: slots of the cache and
/// rows of the scratch memory.
pub(crate) unsafe trait Family: Copy {
    /// Registers that a row's sums take for each vector of keys or of a value.
    const SUMS: usize;

    /// Stores `k` and `v`, `padded` elements each, which it may change.
    unsafe fn write<S: Simd>(kv: KvViewMut, position: usize, k: *mut f32, v: *mut f32);

    /// Prepares a query of `padded` elements as row `row` of the scratch memory.
    unsafe fn prepare<S: Simd>(q: *const f32, span: Span, scratch: ScratchView, row: usize);

    /// `q·k` of rows `0..R` with the keys of `B` blocks of the part from `block` on.
    unsafe fn score<S: Simd, const R: usize, const B: usize>(
        tile: Tile,
        block: usize,
    ) -> [[S::F; B]; R];

    /// Prepares a row of weights for [`Family::mix`], which will look at whole quads of the positions
    /// in `all`; outside of `seen` weights are zero.
    unsafe fn weigh<S: Simd>(tile: Tile, row: usize, seen: Seen, all: Seen);

    /// Elements `d .. d + 16 V` of the weighted sums of values, for rows `0..R`.
    unsafe fn mix<S: Simd, const R: usize, const V: usize>(
        tile: Tile,
        seen: [Seen; R],
        d: usize,
    ) -> [[S::F; V]; R];

    /// Turns a mean of values as they are kept into one of values as they were given.
    unsafe fn finish<S: Simd>(_row: *mut f32, _padded: usize) {}
}

/// Attention of some queries over some parts, in order; each has a row of results.
///
/// # Safety
/// There are as many queries of `padded` elements as spans, at most [`MAX_QUERY_ROWS`], and as many
/// rows of `padded` + [`ROW_TAIL`] results. The scratch memory is for heads as wide. No span exceeds
/// the ring.
#[inline(always)]
pub(crate) unsafe fn attend<S: Simd, K: Family>(
    kv: KvView,
    queries: &[&[f32]],
    spans: &[Span],
    rule: ScoreRule,
    parts: std::ops::Range<usize>,
    scratch: ScratchView,
    out: *mut f32,
) {
    let width = result_width(kv.head_dim);
    let mut row = 0;
    while row < spans.len() {
        // SAFETY: each tile has its rows of queries, spans and results.
        unsafe {
            let (q, s) = (&queries[row..], &spans[row..]);
            let (out, parts) = (out.add(row * width), parts.clone());
            // Of 32 registers 24 hold sums. Two blocks share the loads of queries, and few rows take
            // several, so that chains hide each other's latency.
            row += match s.len() {
                12.. if S::TILE_GROUPS > 1 && K::SUMS == 1 => {
                    tile::<S, K, 12, 2>(kv, q, s, rule, parts, scratch, out)
                }
                6.. if S::TILE_GROUPS > 1 && K::SUMS == 2 => {
                    tile::<S, K, 6, 2>(kv, q, s, rule, parts, scratch, out)
                }
                4.. => tile::<S, K, 4, 2>(kv, q, s, rule, parts, scratch, out),
                3 => tile::<S, K, 3, 2>(kv, q, s, rule, parts, scratch, out),
                2 => tile::<S, K, 2, 2>(kv, q, s, rule, parts, scratch, out),
                _ => tile::<S, K, 1, 4>(kv, q, s, rule, parts, scratch, out),
            };
        }
    }
}

/// [`attend`] for the first `R` rows; returns `R`.
#[inline(always)]
unsafe fn tile<S: Simd, K: Family, const R: usize, const B: usize>(
    kv: KvView,
    queries: &[&[f32]],
    spans: &[Span],
    rule: ScoreRule,
    parts: std::ops::Range<usize>,
    scratch: ScratchView,
    out: *mut f32,
) -> usize {
    let (padded, width) = (kv.padded(), result_width(kv.head_dim));
    // SAFETY: the caller's contract.
    unsafe {
        for r in 0..R {
            K::prepare::<S>(queries[r].as_ptr(), spans[r], scratch, r);
            *out.add(r * width + padded + 1) = 0.0;
        }
        for part in parts {
            let seen: [Seen; R] = std::array::from_fn(|r| spans[r].within(part));
            part_of_tile::<S, K, R, B>(Tile { kv, scratch, part }, rule, seen);
            for r in 0..R {
                fold::<S>(out.add(r * width), scratch.result(r), padded);
            }
        }
    }
    R
}

/// The results of one part, into the scratch memory's rows.
#[inline(always)]
unsafe fn part_of_tile<S: Simd, K: Family, const R: usize, const B: usize>(
    tile: Tile,
    rule: ScoreRule,
    seen: [Seen; R],
) {
    const N: usize = POSITIONS_PER_BLOCK;
    let Tile { kv, scratch, .. } = tile;
    let padded = kv.padded();
    // SAFETY: the caller's contract. Scores of blocks that no row sees are computed and left alone:
    // every slot is initialised memory, and a part has a whole number of `B` blocks.
    unsafe {
        let all = Seen::union(&seen).blocks_of(N * B);
        for block in (all.from / N..all.end / N).step_by(B) {
            let products = K::score::<S, R, B>(tile, block);
            for r in 0..R {
                for b in 0..B {
                    let mut score = S::mul(products[r][b], S::splat(rule.scale));
                    if let Some(cap) = rule.softcap {
                        score = vecmath::capped::<S>(score, cap);
                    }
                    S::store(scratch.scores(r).add((block + b) * N), score);
                }
            }
        }
        for r in 0..R {
            let (max, sum) = softmax::<S>(scratch.scores(r), seen[r]);
            K::weigh::<S>(tile, r, seen[r], all);
            *scratch.result(r).add(padded) = max;
            *scratch.result(r).add(padded + 1) = sum;
        }
        let mut d = 0;
        while d < padded {
            if padded - d >= 16 * B {
                let mixed = K::mix::<S, R, B>(tile, seen, d);
                store_rows::<S, R, B>(mixed, scratch, d);
                d += 16 * B;
            } else {
                let mixed = K::mix::<S, R, 1>(tile, seen, d);
                store_rows::<S, R, 1>(mixed, scratch, d);
                d += 16;
            }
        }
    }
}

#[inline(always)]
unsafe fn store_rows<S: Simd, const R: usize, const V: usize>(
    rows: [[S::F; V]; R],
    scratch: ScratchView,
    d: usize,
) {
    for r in 0..R {
        for v in 0..V {
            // SAFETY: the caller's contract: results have these elements.
            unsafe { S::store(scratch.result(r).add(d + 16 * v), rows[r][v]) };
        }
    }
}

/// Turns the scores of the positions seen into unnormalised weights; in their first and last block
/// those of others become zero. Returns the largest score and the sum of the weights, which is zero
/// only where nothing is seen.
#[inline(always)]
unsafe fn softmax<S: Simd>(row: *mut f32, seen: Seen) -> (f32, f32) {
    const N: usize = POSITIONS_PER_BLOCK;
    if seen.is_empty() {
        return (f32::NEG_INFINITY, 0.0);
    }
    let Seen { from, end } = seen.blocks_of(N);
    // SAFETY: `from..end` is within the part's row.
    unsafe {
        fill_unseen(row, seen, f32::NEG_INFINITY);
        let max = vecmath::max::<S>(row.add(from), end - from);
        for i in (from..end).step_by(N) {
            let at = row.add(i);
            S::store(at, vecmath::exp::<S>(S::sub(S::load(at), S::splat(max))));
        }
        fill_unseen(row, seen, 0.0);
        let mut sum = S::splat(0.0);
        for i in (from..end).step_by(N) {
            sum = S::add(sum, S::load(row.add(i)));
        }
        (max, S::reduce_add(sum))
    }
}

/// Sets the positions of the first and last block that are not seen.
#[inline(always)]
unsafe fn fill_unseen(row: *mut f32, seen: Seen, value: f32) {
    let whole = seen.blocks_of(POSITIONS_PER_BLOCK);
    for i in (whole.from..seen.from).chain(seen.end..whole.end) {
        // SAFETY: the caller's contract: the blocks are within the row.
        unsafe { *row.add(i) = value };
    }
}

/// Adds the result of a later part to a row of results. A part of which nothing is seen changes
/// nothing, and a row without a sum takes the first part as it is.
///
/// # Safety
/// Both are valid for `padded` + [`ROW_TAIL`] values.
#[inline(always)]
pub(crate) unsafe fn fold<S: Simd>(row: *mut f32, part: *const f32, padded: usize) {
    // SAFETY: the contract above.
    unsafe {
        let [row_max, row_sum] = [*row.add(padded), *row.add(padded + 1)];
        let [part_max, part_sum] = [*part.add(padded), *part.add(padded + 1)];
        if part_sum == 0.0 {
            return;
        }
        if row_sum == 0.0 {
            std::ptr::copy_nonoverlapping(part, row, padded + 2);
            return;
        }
        let max = if part_max > row_max { part_max } else { row_max };
        let factor = |own: f32| vecmath::exp::<S>(S::splat(own - max));
        let (row_factor, part_factor) = (factor(row_max), factor(part_max));
        for d in (0..padded).step_by(16) {
            let kept = S::mul(S::load(row.add(d)), row_factor);
            S::store(row.add(d), S::fma(S::load(part.add(d)), part_factor, kept));
        }
        let mut sums = [0.0f32; 16];
        let kept = S::mul(S::splat(row_sum), row_factor);
        S::store(sums.as_mut_ptr(), S::fma(S::splat(part_sum), part_factor, kept));
        *row.add(padded) = max;
        *row.add(padded + 1) = sums[0];
    }
}

/// Makes a folded row the mean of values.
///
/// # Safety
/// It is valid for `padded` + [`ROW_TAIL`] values.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd, K: Family>(row: *mut f32, padded: usize) {
    // SAFETY: the contract above.
    unsafe {
        let factor = S::splat(1.0 / *row.add(padded + 1));
        for d in (0..padded).step_by(16) {
            S::store(row.add(d), S::mul(S::load(row.add(d)), factor));
        }
        K::finish::<S>(row, padded);
    }
}
