//! Keys and values rotated and in four bits, but for a window of recent positions, which a query sees in
//! half precision: most of attention is there.
//!
//! What is recent depends on the blocks of a query and of a key alone: a query sees its own block and
//! [`EXACT_BLOCKS`] - 1 before it exactly. So every position is stored twice, and the window is a ring.

use super::coded::{Coded, Int4};
use super::float::Float;
use super::hadamard::rotate;
use super::{Family, KvViewMut, PART, POSITIONS_PER_BLOCK, ScratchView, Seen, Span, Tile};
use crate::dense::F16;
use crate::simd::Simd;

type Past = Coded<Int4>;
type Recent = Float<F16>;

/// Blocks of 16 positions, the query's own included, that a query sees in half precision.
pub(super) const EXACT_BLOCKS: usize = 2;

/// The family.
#[derive(Clone, Copy)]
pub(crate) struct Windowed;

/// The first position that a query sees exactly.
pub(super) fn exact_from(position: usize) -> usize {
    (position / POSITIONS_PER_BLOCK).saturating_sub(EXACT_BLOCKS - 1) * POSITIONS_PER_BLOCK
}

impl Tile {
    /// The same rows over the window.
    fn recent(self) -> Self {
        Self { kv: self.kv.recent(), ..self }
    }

    /// The first position of the part, counted from its own first, that a row sees exactly.
    ///
    /// # Safety
    /// The row was prepared.
    #[inline(always)]
    unsafe fn exact_from(&self, row: usize) -> usize {
        // SAFETY: the contract above.
        let from = unsafe { *self.scratch.exact_from(row) };
        from.saturating_sub(self.part * PART).min(PART)
    }

    /// What a row sees, in four bits and exactly.
    ///
    /// # Safety
    /// As for [`Self::exact_from`].
    #[inline(always)]
    unsafe fn split(&self, row: usize, seen: Seen) -> [Seen; 2] {
        // SAFETY: the contract above.
        let exact = unsafe { self.exact_from(row) };
        let middle = exact.clamp(seen.from, seen.end.max(seen.from));
        [Seen { from: seen.from, end: middle }, Seen { from: middle, end: seen.end }]
    }
}

// SAFETY: the families that it is made of stay within the slots and rows that the trait names, each in
// its own ring.
unsafe impl Family for Windowed {
    const SUMS: usize = Past::SUMS;

    #[inline(always)]
    unsafe fn write<S: Simd>(kv: KvViewMut, position: usize, k: *mut f32, v: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe {
            rotate::<S>(k, kv.padded());
            rotate::<S>(v, kv.padded());
            Past::write::<S>(kv, position, k, v);
            Recent::write::<S>(kv.recent(), position, k, v);
        }
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd>(q: *const f32, span: Span, scratch: ScratchView, row: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            Recent::prepare::<S>(q, span, scratch, row);
            rotate::<S>(scratch.query(row), scratch.padded);
            Past::prepare::<S>(scratch.query(row), span, scratch, row);
            *scratch.exact_from(row) = exact_from(span.position);
        }
    }

    #[inline(always)]
    unsafe fn score<S: Simd, const R: usize, const B: usize>(
        tile: Tile,
        block: usize,
    ) -> [[S::F; B]; R] {
        // SAFETY: the trait's contract.
        unsafe {
            let exact: [usize; R] =
                std::array::from_fn(|r| tile.exact_from(r) / POSITIONS_PER_BLOCK);
            if exact.iter().all(|&exact| block + B <= exact) {
                return Past::score::<S, R, B>(tile, block);
            }
            if exact.iter().all(|&exact| exact <= block) {
                return Recent::score::<S, R, B>(tile.recent(), block);
            }
            let mut scores = Past::score::<S, R, B>(tile, block);
            let recent = Recent::score::<S, R, B>(tile.recent(), block);
            for r in 0..R {
                for b in 0..B {
                    if exact[r] <= block + b {
                        scores[r][b] = recent[r][b];
                    }
                }
            }
            scores
        }
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(tile: Tile, row: usize, seen: Seen, all: Seen) {
        // SAFETY: the trait's contract.
        unsafe { Past::weigh::<S>(tile, row, tile.split(row, seen)[0], all) }
    }

    #[inline(always)]
    unsafe fn mix<S: Simd, const R: usize, const V: usize>(
        tile: Tile,
        seen: [Seen; R],
        d: usize,
    ) -> [[S::F; V]; R] {
        // SAFETY: the trait's contract.
        unsafe {
            let split: [[Seen; 2]; R] = std::array::from_fn(|r| tile.split(r, seen[r]));
            let mut sums = Past::mix::<S, R, V>(tile, split.map(|[past, _]| past), d);
            if split.iter().any(|[_, recent]| !recent.is_empty()) {
                let recent = split.map(|[_, recent]| recent);
                let recent = Recent::mix::<S, R, V>(tile.recent(), recent, d);
                for r in 0..R {
                    // A part of which a row sees nothing exactly adds nothing, whatever its tile.
                    if !split[r][1].is_empty() {
                        for v in 0..V {
                            sums[r][v] = S::add(sums[r][v], recent[r][v]);
                        }
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(row: *mut f32, padded: usize) {
        // SAFETY: the trait's contract.
        unsafe { rotate::<S>(row, padded) }
    }
}
