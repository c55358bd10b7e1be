//! Keys and values as integer codes with a scale each, computed with in integers.
//!
//! Codes are multiplied by `dot4` with queries and weights in 16 bits: two planes of int8 codes, the
//! fine one in steps of the coarse one's / [`FINE_STEPS`], with one scale per query, and per query and
//! part for weights (times the values' scales). Integer sums are exact, so a score, and the mixture of
//! a part, is one rounding of one product.
//!
//! Vectors hold four dimensions of 16 positions (keys) or four positions of 16 dimensions (values), and
//! come in pairs, so that a narrower code can have two of them in the bytes of one.

use std::marker::PhantomData;

use super::scratch::Coding;
use super::{Family, KvViewMut, POSITIONS_PER_BLOCK, ScratchView, Seen, Span, Tile, fill_unseen};
use crate::act::FINE_STEPS;
use crate::simd::Simd;

/// Bytes of a vector of codes.
const VECTOR: usize = 64;
/// Dimensions of a pair of key vectors, positions of a pair of value vectors.
const PAIR: usize = 8;
/// Below this a scale's inverse overflows; what is no larger is zero for every purpose.
const TINY: f32 = 1e-30;
/// Largest code of a plane.
const MAX_CODE: f32 = 127.0;

/// A width of codes.
///
/// # Safety
/// As for [`Simd`]: `load` reads `PAIR_BYTES`, `put` writes within them.
pub(crate) unsafe trait Codes: Copy {
    /// Bytes of two vectors.
    const PAIR_BYTES: usize;
    /// What [`Codes::load`] adds to codes.
    fn offset<S: Simd>() -> i32;
    /// The scale of a key or a value.
    unsafe fn scale<S: Simd>(x: *const f32, padded: usize) -> f32;
    /// Codes of 16 elements that were divided by the scale.
    unsafe fn round<S: Simd>(x: S::F) -> [i8; 16];
    /// Both vectors of a pair, as `dot4` takes them.
    unsafe fn load<S: Simd>(pair: *const u8) -> [S::B; 2];
    /// Sets a code: byte `at` of a pair's vector 0 or 1.
    unsafe fn put(pair: *mut u8, vector: usize, at: usize, code: i8);
}

/// The family, by width of codes.
#[derive(Clone, Copy)]
pub(crate) struct Coded<C>(PhantomData<C>);

/// int8 codes: elements in steps of a 127th of the largest.
#[derive(Clone, Copy)]
pub(crate) struct Int8;

// SAFETY: two vectors of 64 bytes follow each other.
unsafe impl Codes for Int8 {
    const PAIR_BYTES: usize = 2 * VECTOR;
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        if S::BIASED { 128 } else { 0 }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(x: *const f32, padded: usize) -> f32 {
        // SAFETY: the trait's contract.
        let Extent { absmax, poison } = unsafe { extent::<S>(x, padded) };
        if absmax > TINY { absmax / MAX_CODE + poison } else { poison }
    }
    #[inline(always)]
    unsafe fn round<S: Simd>(x: S::F) -> [i8; 16] {
        let mut codes = [0; 16];
        // SAFETY: the trait's contract; elements are at most 127 scales but for rounding.
        unsafe { S::store_i8(codes.as_mut_ptr(), S::round(x)) };
        codes
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(pair: *const u8) -> [S::B; 2] {
        // SAFETY: the trait's contract.
        unsafe { [0, VECTOR].map(|at| S::weights(S::load_bytes(pair.add(at)))) }
    }
    #[inline(always)]
    unsafe fn put(pair: *mut u8, vector: usize, at: usize, code: i8) {
        // SAFETY: the trait's contract.
        unsafe { *pair.add(vector * VECTOR + at) = code as u8 }
    }
}

/// Codes of four bits, -8 to 7, in steps of a scale of either sign.
#[derive(Clone, Copy)]
pub(crate) struct Int4;

impl Int4 {
    const MIN_CODE: f32 = -8.0;
    const MAX_CODE: f32 = 7.0;
    /// Scales that are tried, as shares of the one that makes the largest element the lowest code. A
    /// smaller one cuts the largest elements off and rounds all others more finely; a rotated head of
    /// 64 to 128 elements is best off with shares of 0.8 to 1.1.
    const SHARES: [f32; 8] = [1.0, 0.76, 0.81, 0.86, 0.91, 0.96, 1.05, 1.1];

    #[inline(always)]
    unsafe fn clamp<S: Simd>(x: S::F) -> S::F {
        // SAFETY: no memory is touched.
        unsafe { S::max(S::min(x, S::splat(Self::MAX_CODE)), S::splat(Self::MIN_CODE)) }
    }

    /// Squared error of rounding with a scale.
    #[inline(always)]
    unsafe fn error<S: Simd>(x: *const f32, padded: usize, scale: f32) -> f32 {
        let factor = inverse(scale);
        // SAFETY: the caller's contract: `x` is valid for `padded` values, a multiple of 16.
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..padded).step_by(16) {
                let scaled = S::mul(S::load(x.add(i)), S::splat(factor));
                let code = S::to_f32(S::round(Self::clamp::<S>(scaled)));
                let error = S::sub(scaled, code);
                sum = S::fma(error, error, sum);
            }
            S::reduce_add(sum) * scale * scale
        }
    }
}

// SAFETY: two codes share a byte of 64.
unsafe impl Codes for Int4 {
    const PAIR_BYTES: usize = VECTOR;
    #[inline(always)]
    fn offset<S: Simd>() -> i32 {
        8
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(x: *const f32, padded: usize) -> f32 {
        // SAFETY: the trait's contract.
        unsafe {
            let Extent { absmax, poison } = extent::<S>(x, padded);
            // As `!(absmax > TINY)` would have it for what is not a number.
            if absmax <= TINY || poison.is_nan() {
                return poison;
            }
            // The lowest code reaches one step further than the highest: the largest element gets it.
            let negative = (0..padded).any(|i| *x.add(i) == -absmax);
            let whole = absmax / if negative { -Self::MIN_CODE } else { Self::MIN_CODE };
            let mut best = (whole, f32::INFINITY);
            for share in Self::SHARES {
                let scale = whole * share;
                let error = Self::error::<S>(x, padded, scale);
                if error < best.1 {
                    best = (scale, error);
                }
            }
            best.0
        }
    }
    #[inline(always)]
    unsafe fn round<S: Simd>(x: S::F) -> [i8; 16] {
        let mut codes = [0; 16];
        // SAFETY: the trait's contract; the clamp keeps lanes within four bits.
        unsafe { S::store_i8(codes.as_mut_ptr(), S::round(Self::clamp::<S>(x))) };
        codes
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(pair: *const u8) -> [S::B; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let codes = S::load_bytes(pair);
            [S::field(codes, 0, 15), S::field(codes, 4, 15)]
        }
    }
    #[inline(always)]
    unsafe fn put(pair: *mut u8, vector: usize, at: usize, code: i8) {
        // SAFETY: the trait's contract.
        let byte = unsafe { &mut *pair.add(at) };
        let code = (code + 8) as u8 & 15;
        *byte = if vector == 0 { *byte & 0xf0 | code } else { *byte & 0x0f | code << 4 };
    }
}

/// Largest magnitude of a row, and zero, or NaN if an element is not finite: added to a scale, it keeps
/// rounding from hiding that.
struct Extent {
    absmax: f32,
    poison: f32,
}

#[inline(always)]
unsafe fn extent<S: Simd>(x: *const f32, n: usize) -> Extent {
    // SAFETY: the caller's contract: `x` is valid for `n` values, a multiple of 16.
    unsafe {
        let (mut absmax, mut poison) = (S::splat(0.0), S::splat(0.0));
        for i in (0..n).step_by(16) {
            let x = S::load(x.add(i));
            absmax = S::max(S::abs(x), absmax);
            poison = S::fma(x, S::splat(0.0), poison);
        }
        Extent { absmax: S::reduce_max(absmax), poison: S::reduce_add(poison) }
    }
}

/// The inverse of a scale; zero for one that is zero or not a number.
fn inverse(scale: f32) -> f32 {
    if scale.abs() > 0.0 { 1.0 / scale } else { 0.0 }
}

/// Codes of `n` values in two planes.
#[inline(always)]
unsafe fn two_planes<S: Simd>(
    x: *const f32,
    n: usize,
    extent: Extent,
    planes: [*mut i8; 2],
) -> Coding {
    // SAFETY: the caller's contract: `x` and the planes are valid for `n` values, a multiple of 16.
    unsafe {
        let whole = extent.absmax > TINY;
        let factor = S::splat(if whole { MAX_CODE / extent.absmax } else { 0.0 });
        let mut sums = [S::splat_i(0); 2];
        for i in (0..n).step_by(16) {
            let scaled = S::mul(S::load(x.add(i)), factor);
            let coarse = S::round(scaled);
            let rest = S::sub(scaled, S::to_f32(coarse));
            let fine = S::round(S::mul(rest, S::splat(FINE_STEPS as f32)));
            for (plane, codes) in [coarse, fine].into_iter().enumerate() {
                S::store_i8(planes[plane].add(i), codes);
                sums[plane] = S::add_i(sums[plane], codes);
            }
        }
        let step = if whole { extent.absmax / (MAX_CODE * FINE_STEPS as f32) } else { 0.0 };
        Coding { step: step + extent.poison, sums: sums.map(|s| S::reduce_add_i(s)) }
    }
}

/// What sums of `dot4` start with, so that codes with an offset give the product of the codes.
#[inline(always)]
unsafe fn start<S: Simd, C: Codes>(coding: *const Coding) -> [S::I; 2] {
    let bias = -C::offset::<S>();
    // SAFETY: the caller's pointer is valid. Codes of what is not finite may have any sum; the step is
    // not a number then.
    unsafe { (*coding).sums.map(|sum| S::splat_i(sum.wrapping_mul(bias))) }
}

/// The product that the sums of both planes stand for, in steps.
#[inline(always)]
unsafe fn join<S: Simd>([coarse, fine]: [S::I; 2]) -> S::F {
    // SAFETY: no memory is touched.
    unsafe { S::fma(S::to_f32(coarse), S::splat(FINE_STEPS as f32), S::to_f32(fine)) }
}

/// Where the pair of a block of keys begins that holds dimensions `d .. d + 8`.
#[inline(always)]
fn key_pair<C: Codes>(padded: usize, slot: usize, d: usize) -> usize {
    (slot / POSITIONS_PER_BLOCK * padded + d) / PAIR * C::PAIR_BYTES
}

/// Where the pair of values begins that holds eight positions and dimensions `d .. d + 16`.
#[inline(always)]
fn value_pair<C: Codes>(padded: usize, slot: usize, d: usize) -> usize {
    (slot / PAIR * padded + d) / 16 * C::PAIR_BYTES
}

// SAFETY: offsets stay within the slots and rows that the trait names.
unsafe impl<C: Codes> Family for Coded<C> {
    const SUMS: usize = 2;

    #[inline(always)]
    unsafe fn write<S: Simd>(kv: KvViewMut, position: usize, k: *mut f32, v: *mut f32) {
        let (padded, slot) = (kv.padded(), position % kv.capacity);
        // SAFETY: the trait's contract.
        unsafe {
            let (k_scale, v_scale) = (C::scale::<S>(k, padded), C::scale::<S>(v, padded));
            *kv.key_scales.add(slot) = k_scale;
            *kv.value_scales.add(slot) = v_scale;
            let factors = [k_scale, v_scale].map(|scale| S::splat(inverse(scale)));
            let lane = slot % POSITIONS_PER_BLOCK;
            let (vector, place) = (slot % PAIR / 4, slot % 4);
            for d in (0..padded).step_by(16) {
                let key = C::round::<S>(S::mul(S::load(k.add(d)), factors[0]));
                let value = C::round::<S>(S::mul(S::load(v.add(d)), factors[1]));
                let values = kv.values.add(value_pair::<C>(padded, slot, d));
                for i in 0..16 {
                    let keys = kv.keys.add(key_pair::<C>(padded, slot, d + i));
                    C::put(keys, i % PAIR / 4, 4 * lane + i % 4, key[i]);
                    C::put(values, vector, 4 * i + place, value[i]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn prepare<S: Simd>(q: *const f32, _: Span, scratch: ScratchView, row: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            let planes = [0, 1].map(|plane| scratch.query_codes(row, plane));
            let extent = extent::<S>(q, scratch.padded);
            *scratch.query_coding(row) = two_planes::<S>(q, scratch.padded, extent, planes);
        }
    }

    #[inline(always)]
    unsafe fn score<S: Simd, const R: usize, const B: usize>(
        tile: Tile,
        block: usize,
    ) -> [[S::F; B]; R] {
        let Tile { kv, scratch, .. } = tile;
        let padded = kv.padded();
        // SAFETY: the trait's contract.
        unsafe {
            let slots: [usize; B] =
                std::array::from_fn(|b| tile.block_slot(block + b) * POSITIONS_PER_BLOCK);
            let keys = slots.map(|slot| kv.keys.add(key_pair::<C>(padded, slot, 0)));
            let mut sums: [[[S::I; 2]; B]; R] =
                std::array::from_fn(|r| [start::<S, C>(scratch.query_coding(r)); B]);
            for j in 0..padded / PAIR {
                for b in 0..B {
                    let pair = C::load::<S>(keys[b].add(j * C::PAIR_BYTES));
                    for (half, w) in pair.into_iter().enumerate() {
                        for r in 0..R {
                            for plane in 0..2 {
                                let q = scratch.query_codes(r, plane).add(PAIR * j + 4 * half);
                                sums[r][b][plane] = S::dot4(sums[r][b][plane], w, q);
                            }
                        }
                    }
                }
            }
            std::array::from_fn(|r| {
                let step = S::splat((*scratch.query_coding(r)).step);
                std::array::from_fn(|b| {
                    let scales = S::load(kv.key_scales.add(slots[b]));
                    S::mul(S::mul(join::<S>(sums[r][b]), step), scales)
                })
            })
        }
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(tile: Tile, row: usize, seen: Seen, all: Seen) {
        let Tile { kv, scratch, .. } = tile;
        // SAFETY: the trait's contract.
        unsafe {
            let planes = [0, 1].map(|plane| scratch.weight_codes(row, plane));
            let own = seen.blocks_of(POSITIONS_PER_BLOCK);
            for plane in planes {
                let unused = [all.from..own.from.max(all.from), own.end.max(all.from)..all.end];
                for range in unused.into_iter().filter(|range| !range.is_empty()) {
                    plane.add(range.start).write_bytes(0, range.len());
                }
            }
            if seen.is_empty() {
                *scratch.weight_coding(row) = Coding::default();
                return;
            }
            let weights = scratch.scores(row);
            for i in (own.from..own.end).step_by(POSITIONS_PER_BLOCK) {
                let scales = S::load(kv.value_scales.add(tile.slot(i)));
                S::store(weights.add(i), S::mul(S::load(weights.add(i)), scales));
            }
            // Whatever the scale of a position that is not seen.
            fill_unseen(weights, seen, 0.0);
            let (weights, n) = (weights.add(own.from), own.end - own.from);
            let extent = extent::<S>(weights, n);
            let planes = planes.map(|plane| plane.add(own.from));
            *scratch.weight_coding(row) = two_planes::<S>(weights, n, extent, planes);
        }
    }

    #[inline(always)]
    unsafe fn mix<S: Simd, const R: usize, const V: usize>(
        tile: Tile,
        seen: [Seen; R],
        d: usize,
    ) -> [[S::F; V]; R] {
        let Tile { kv, scratch, .. } = tile;
        let padded = kv.padded();
        let all = Seen::union(&seen).blocks_of(PAIR);
        // SAFETY: the trait's contract.
        unsafe {
            let mut sums: [[[S::I; 2]; V]; R] =
                std::array::from_fn(|r| [start::<S, C>(scratch.weight_coding(r)); V]);
            for position in (all.from..all.end).step_by(PAIR) {
                let pairs = kv.values.add(value_pair::<C>(padded, tile.slot(position), d));
                for v in 0..V {
                    let pair = C::load::<S>(pairs.add(v * C::PAIR_BYTES));
                    for (half, w) in pair.into_iter().enumerate() {
                        for r in 0..R {
                            for plane in 0..2 {
                                let at = position + 4 * half;
                                let weights = scratch.weight_codes(r, plane).add(at);
                                sums[r][v][plane] = S::dot4(sums[r][v][plane], w, weights);
                            }
                        }
                    }
                }
            }
            std::array::from_fn(|r| {
                let step = S::splat((*scratch.weight_coding(r)).step);
                std::array::from_fn(|v| S::mul(join::<S>(sums[r][v]), step))
            })
        }
    }
}
