//! Keys and values as floating-point numbers, computed with as such.
//!
//! Keys lie in blocks of 16 positions, dimension by dimension, values position by position. A score is
//! one chain over dimensions, an element of the output one chain over positions.

use std::marker::PhantomData;

use super::{Family, KvView, KvViewMut, PART, POSITIONS_PER_BLOCK, ScratchView, Seen, Span, Tile};
use crate::dense::{Element, F16, F32};
use crate::simd::Simd;

/// The family, by element.
#[derive(Clone, Copy)]
pub(crate) struct Float<E>(PhantomData<E>);

/// An element type of the cache.
///
/// # Safety
/// As for [`Simd`]: `store` writes 16 elements.
pub(crate) unsafe trait Stored: Element {
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F);
}

// SAFETY: 16 f32.
unsafe impl Stored for F32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the trait's contract.
        unsafe { S::store(p.cast(), x) }
    }
}

// SAFETY: 16 f16.
unsafe impl Stored for F16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the trait's contract.
        unsafe { S::store_f16(p.cast(), x) }
    }
}

/// Where the key of a slot begins; its elements are 16 apart.
#[inline(always)]
fn key_at(kv_padded: usize, slot: usize) -> usize {
    let (block, lane) = (slot / POSITIONS_PER_BLOCK, slot % POSITIONS_PER_BLOCK);
    block * kv_padded * POSITIONS_PER_BLOCK + lane
}

#[inline(always)]
fn value<S: Simd, E: Stored>(kv: KvView, slot: usize, d: usize) -> S::F {
    // SAFETY: the caller's slot is below the capacity, and `d + 16` within the value.
    unsafe { E::load::<S>(kv.values.add((slot * kv.padded() + d) * E::BYTES)) }
}

// SAFETY: offsets stay within the slots and rows that the trait names.
unsafe impl<E: Stored> Family for Float<E> {
    const SUMS: usize = 1;

    #[inline(always)]
    unsafe fn write<S: Simd>(kv: KvViewMut, position: usize, k: *mut f32, v: *mut f32) {
        let (padded, slot) = (kv.padded(), position % kv.capacity);
        // SAFETY: the trait's contract.
        unsafe {
            let key = kv.keys.add(key_at(padded, slot) * E::BYTES);
            let value = kv.values.add(slot * padded * E::BYTES);
            let mut lanes = [0u8; 64];
            for d in (0..padded).step_by(16) {
                E::store::<S>(value.add(d * E::BYTES), S::load(v.add(d)));
                E::store::<S>(lanes.as_mut_ptr(), S::load(k.add(d)));
                for i in 0..16 {
                    let to = key.add((d + i) * POSITIONS_PER_BLOCK * E::BYTES);
                    std::ptr::copy_nonoverlapping(lanes.as_ptr().add(i * E::BYTES), to, E::BYTES);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd>(q: *const f32, _: Span, scratch: ScratchView, row: usize) {
        // SAFETY: the trait's contract.
        unsafe { std::ptr::copy_nonoverlapping(q, scratch.query(row), scratch.padded) }
    }

    #[inline(always)]
    unsafe fn score<S: Simd, const R: usize, const B: usize>(
        tile: Tile,
        block: usize,
    ) -> [[S::F; B]; R] {
        let padded = tile.kv.padded();
        // SAFETY: the trait's contract.
        unsafe {
            let keys: [*const u8; B] = std::array::from_fn(|b| {
                let slot = tile.block_slot(block + b) * POSITIONS_PER_BLOCK;
                tile.kv.keys.add(key_at(padded, slot) * E::BYTES)
            });
            let mut sums = [[S::splat(0.0); B]; R];
            for d in 0..tile.kv.head_dim {
                let at = d * POSITIONS_PER_BLOCK * E::BYTES;
                let k: [S::F; B] = std::array::from_fn(|b| E::load::<S>(keys[b].add(at)));
                for r in 0..R {
                    let x = S::splat(*tile.scratch.query(r).add(d));
                    for b in 0..B {
                        sums[r][b] = S::fma(k[b], x, sums[r][b]);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(_: Tile, _: usize, _: Seen, _: Seen) {}

    #[inline(always)]
    unsafe fn mix<S: Simd, const R: usize, const V: usize>(
        tile: Tile,
        seen: [Seen; R],
        d: usize,
    ) -> [[S::F; V]; R] {
        // Positions that all rows see are read once; each row's own stretches before and after keep its
        // chain in order. What a row does not see must not enter: it need not be finite.
        let from = seen.iter().map(|s| s.from).max().unwrap_or(0);
        let end = seen.iter().map(|s| s.end).min().unwrap_or(PART).max(from);
        let weight = |r: usize, position: usize| {
            // SAFETY: a row has a weight for every position of the part.
            unsafe { S::splat(*tile.scratch.scores(r).add(position)) }
        };
        // SAFETY: the trait's contract.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; R];
            for r in 0..R {
                for position in seen[r].from..from.min(seen[r].end) {
                    let slot = tile.slot(position);
                    for v in 0..V {
                        let x = value::<S, E>(tile.kv, slot, d + 16 * v);
                        sums[r][v] = S::fma(x, weight(r, position), sums[r][v]);
                    }
                }
            }
            for position in from..end {
                let slot = tile.slot(position);
                let x: [S::F; V] =
                    std::array::from_fn(|v| value::<S, E>(tile.kv, slot, d + 16 * v));
                for r in 0..R {
                    let w = weight(r, position);
                    for v in 0..V {
                        sums[r][v] = S::fma(x[v], w, sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for position in end.max(seen[r].from)..seen[r].end {
                    let slot = tile.slot(position);
                    for v in 0..V {
                        let x = value::<S, E>(tile.kv, slot, d + 16 * v);
                        sums[r][v] = S::fma(x, weight(r, position), sums[r][v]);
                    }
                }
            }
            sums
        }
    }
}
