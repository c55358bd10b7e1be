//! Attention of a few queries over one key/value head.
//!
//! Keys lie in blocks of 16 positions, dimension by dimension, so that 16 scores are one vector and no
//! horizontal sum is needed; values lie position by position. A score is one chain over dimensions, an
//! output one chain over positions, a softmax sum 16 interleaved chains over blocks: nothing depends on
//! how many queries are computed together.

use crate::simd::Simd;
use crate::vecmath;

/// Positions whose keys are interleaved.
pub const POSITIONS_PER_BLOCK: usize = 16;
/// Most queries that are computed together.
pub const MAX_QUERY_ROWS: usize = 4;
/// Key blocks, and vectors of a value, that are computed together.
const TILE: usize = 4;

/// Element type of the key/value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Single precision: for comparisons.
    F32,
    /// Half precision.
    F16,
    /// int8 with an f32 scale per position and head.
    Int8,
}

impl KvType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| format!("unknown KV type `{name}`; known: f32, f16, int8"))
    }
}

/// Zeroed bytes whose use begins on a cache line. They come from the allocator as zero pages, so a
/// context costs memory only as far as it is filled; that rules out an allocation with an alignment of
/// its own, which would be written to be zeroed. Not `Clone`: a copy would begin elsewhere.
#[derive(Debug)]
struct Storage(Vec<u8>);

impl Storage {
    const ALIGN: usize = 64;

    fn new(bytes: usize) -> Self {
        let bytes = bytes.checked_add(Self::ALIGN).expect("a cache within the address space");
        Self(vec![0; bytes])
    }

    fn start(&self) -> usize {
        self.0.as_ptr().align_offset(Self::ALIGN)
    }

    fn as_ptr(&self) -> *const u8 {
        self.0[self.start()..].as_ptr()
    }

    fn as_mut_ptr(&mut self) -> *mut u8 {
        let start = self.start();
        self.0[start..].as_mut_ptr()
    }
}

/// Keys and values of one head of one layer: a ring of positions.
#[derive(Debug)]
pub struct KvHead {
    kind: KvType,
    head_dim: usize,
    /// Positions the ring holds: a multiple of 16.
    capacity: usize,
    keys: Storage,
    values: Storage,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
}

impl KvHead {
    /// Room for `positions` (rounded up to 16) keys and values of `head_dim` elements.
    ///
    /// # Panics
    /// When the size overflows.
    pub fn new(kind: KvType, head_dim: usize, positions: usize) -> Self {
        let capacity = positions.next_multiple_of(POSITIONS_PER_BLOCK);
        let storage = |width: usize| {
            let elements = capacity.checked_mul(width);
            let bytes = elements.and_then(|n| n.checked_mul(kind.element_bytes()));
            Storage::new(bytes.expect("a cache within the address space"))
        };
        let scales = if kind == KvType::Int8 { capacity } else { 0 };
        Self {
            kind,
            head_dim,
            capacity,
            keys: storage(head_dim),
            values: storage(head_dim.next_multiple_of(16)),
            key_scales: vec![0.0; scales],
            value_scales: vec![0.0; scales],
        }
    }

    /// Element type.
    pub fn kind(&self) -> KvType {
        self.kind
    }

    /// Elements of a key.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Positions the ring holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.keys.0.len()
            + self.values.0.len()
            + (self.key_scales.len() + self.value_scales.len()) * 4
    }

    pub(crate) fn view(&self) -> KvView {
        KvView {
            head_dim: self.head_dim,
            capacity: self.capacity,
            keys: self.keys.as_ptr(),
            values: self.values.as_ptr(),
            key_scales: self.key_scales.as_ptr(),
            value_scales: self.value_scales.as_ptr(),
        }
    }

    pub(crate) fn view_mut(&mut self) -> KvViewMut {
        KvViewMut {
            head_dim: self.head_dim,
            capacity: self.capacity,
            keys: self.keys.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            key_scales: self.key_scales.as_mut_ptr(),
            value_scales: self.value_scales.as_mut_ptr(),
        }
    }
}

/// A query's place: it sees positions `first ..= position`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First position it sees.
    pub first: usize,
    /// Its own position, the last it sees.
    pub position: usize,
}

/// How scores become weights.
#[derive(Debug, Clone, Copy)]
pub struct ScoreRule {
    /// Factor on `q·k`.
    pub scale: f32,
    /// `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

#[derive(Clone, Copy)]
pub(crate) struct KvView {
    head_dim: usize,
    capacity: usize,
    keys: *const u8,
    values: *const u8,
    key_scales: *const f32,
    value_scales: *const f32,
}

#[derive(Clone, Copy)]
pub(crate) struct KvViewMut {
    head_dim: usize,
    capacity: usize,
    keys: *mut u8,
    values: *mut u8,
    key_scales: *mut f32,
    value_scales: *mut f32,
}

/// An element type of the cache.
///
/// # Safety
/// As for [`Simd`]: `load` reads and `store` writes 16 elements.
pub(crate) unsafe trait KvElement: Copy {
    const BYTES: usize;
    /// Whether each position has a scale.
    const SCALED: bool;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F);
}

#[derive(Clone, Copy)]
pub(crate) struct KvF32;
#[derive(Clone, Copy)]
pub(crate) struct KvF16;
#[derive(Clone, Copy)]
pub(crate) struct KvI8;

// SAFETY: 16 f32.
unsafe impl KvElement for KvF32 {
    const BYTES: usize = 4;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the trait's contract.
        unsafe { S::store(p.cast(), x) }
    }
}

// SAFETY: 16 f16.
unsafe impl KvElement for KvF16 {
    const BYTES: usize = 2;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the trait's contract.
        unsafe { S::store_f16(p.cast(), x) }
    }
}

// SAFETY: 16 int8.
unsafe impl KvElement for KvI8 {
    const BYTES: usize = 1;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_i8(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u8, x: S::F) {
        // SAFETY: the trait's contract.
        unsafe { S::store_i8(p.cast(), S::round(x)) }
    }
}

/// Stores a key and a value at a position.
///
/// # Safety
/// `k` and `v` are valid for `head_dim` elements rounded up to 16, zero beyond `head_dim`.
#[inline(always)]
pub(crate) unsafe fn write<S: Simd, E: KvElement>(
    kv: KvViewMut,
    position: usize,
    k: *const f32,
    v: *const f32,
) {
    let padded = kv.head_dim.next_multiple_of(16);
    let slot = position % kv.capacity;
    let (block, lane) = (slot / POSITIONS_PER_BLOCK, slot % POSITIONS_PER_BLOCK);
    // SAFETY: `slot` is below the capacity; the contract above.
    unsafe {
        let mut k_factor = S::splat(1.0);
        let mut v_factor = S::splat(1.0);
        if E::SCALED {
            let (scale, factor) = int8_scale::<S>(k, padded);
            *kv.key_scales.add(slot) = scale;
            k_factor = S::splat(factor);
            let (scale, factor) = int8_scale::<S>(v, padded);
            *kv.value_scales.add(slot) = scale;
            v_factor = S::splat(factor);
        }
        let value = kv.values.add(slot * padded * E::BYTES);
        let mut lanes = [0u8; 64];
        for d in (0..padded).step_by(16) {
            E::store::<S>(value.add(d * E::BYTES), S::mul(S::load(v.add(d)), v_factor));
            E::store::<S>(lanes.as_mut_ptr(), S::mul(S::load(k.add(d)), k_factor));
            for i in 0..16.min(kv.head_dim - d) {
                let at = ((block * kv.head_dim + d + i) * POSITIONS_PER_BLOCK + lane) * E::BYTES;
                let from = lanes.as_ptr().add(i * E::BYTES);
                std::ptr::copy_nonoverlapping(from, kv.keys.add(at), E::BYTES);
            }
        }
    }
}

/// Scale of int8 values with the given extremes, and its inverse.
#[inline(always)]
unsafe fn int8_scale<S: Simd>(x: *const f32, n: usize) -> (f32, f32) {
    // SAFETY: the caller's contract: `x` is valid for `n` values, a multiple of 16.
    unsafe {
        let mut absmax = S::splat(0.0);
        for i in (0..n).step_by(16) {
            absmax = S::max(S::abs(S::load(x.add(i))), absmax);
        }
        let absmax = S::reduce_max(absmax);
        // Below this the inverse overflows; such a vector is zero for every purpose.
        if absmax > 1e-30 { (absmax / 127.0, 127.0 / absmax) } else { (0.0, 0.0) }
    }
}

/// Attention of `R` queries. `q` and `out` hold `R` rows of `head_dim` rounded up to 16; `scores` has
/// `R` rows of `stride` values.
///
/// # Safety
/// All buffers are valid; every position that a span names has been written and is still in the ring;
/// `stride` is at least 16 times the blocks from the smallest `first` to the largest `position`.
#[inline(always)]
pub(crate) unsafe fn attend<S: Simd, E: KvElement, const R: usize>(
    kv: KvView,
    q: *const f32,
    spans: [Span; R],
    rule: ScoreRule,
    scores: *mut f32,
    stride: usize,
    out: *mut f32,
) {
    let first_block = spans.iter().map(|s| s.first).min().unwrap_or(0) / POSITIONS_PER_BLOCK;
    let last_block = spans.iter().map(|s| s.position).max().unwrap_or(0) / POSITIONS_PER_BLOCK;
    let padded = kv.head_dim.next_multiple_of(16);
    // SAFETY: the contract above; each helper states what it reads.
    unsafe {
        let mut block = first_block;
        while block <= last_block {
            let to = scores.add((block - first_block) * POSITIONS_PER_BLOCK);
            if last_block - block + 1 >= TILE {
                score_tile::<S, E, R, TILE>(kv, q, padded, block, rule, to, stride);
                block += TILE;
            } else {
                score_tile::<S, E, R, 1>(kv, q, padded, block, rule, to, stride);
                block += 1;
            }
        }
        let start = first_block * POSITIONS_PER_BLOCK;
        let mut factors = [0.0f32; R];
        for r in 0..R {
            let row = scores.add(r * stride);
            factors[r] = 1.0 / softmax::<S, E>(kv, row, start, spans[r]);
        }
        let mut d = 0;
        while d < padded {
            let weights = Weights { scores, stride, start };
            if padded - d >= 16 * TILE {
                mix_tile::<S, E, R, TILE>(kv, weights, spans, factors, d, padded, out);
                d += 16 * TILE;
            } else {
                mix_tile::<S, E, R, 1>(kv, weights, spans, factors, d, padded, out);
                d += 16;
            }
        }
    }
}

/// Scores of `R` queries with `B` blocks of keys.
#[inline(always)]
unsafe fn score_tile<S: Simd, E: KvElement, const R: usize, const B: usize>(
    kv: KvView,
    q: *const f32,
    q_stride: usize,
    block: usize,
    rule: ScoreRule,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let ring = kv.capacity / POSITIONS_PER_BLOCK;
        let slots: [usize; B] = std::array::from_fn(|b| (block + b) % ring);
        let keys: [*const u8; B] = std::array::from_fn(|b| {
            kv.keys.add(slots[b] * kv.head_dim * POSITIONS_PER_BLOCK * E::BYTES)
        });
        let mut sums = [[S::splat(0.0); B]; R];
        for d in 0..kv.head_dim {
            let at = d * POSITIONS_PER_BLOCK * E::BYTES;
            let k: [S::F; B] = std::array::from_fn(|b| E::load::<S>(keys[b].add(at)));
            for r in 0..R {
                let x = S::splat(*q.add(r * q_stride + d));
                for b in 0..B {
                    sums[r][b] = S::fma(k[b], x, sums[r][b]);
                }
            }
        }
        for b in 0..B {
            for r in 0..R {
                let mut score = sums[r][b];
                if E::SCALED {
                    let scales = kv.key_scales.add(slots[b] * POSITIONS_PER_BLOCK);
                    score = S::mul(score, S::load(scales));
                }
                score = S::mul(score, S::splat(rule.scale));
                if let Some(cap) = rule.softcap {
                    score = vecmath::capped::<S>(score, cap);
                }
                S::store(to.add(r * stride + b * POSITIONS_PER_BLOCK), score);
            }
        }
    }
}

/// Turns a row of scores (its element 0 is position `start`) into unnormalised weights, times the
/// values' scales where there are any; returns their sum before that.
#[inline(always)]
unsafe fn softmax<S: Simd, E: KvElement>(
    kv: KvView,
    row: *mut f32,
    start: usize,
    span: Span,
) -> f32 {
    const N: usize = POSITIONS_PER_BLOCK;
    let from = (span.first / N * N) - start;
    let end = (span.position / N + 1) * N - start;
    let outside = |i: usize| i + start < span.first || i + start > span.position;
    // SAFETY: `from..end` is within the row.
    unsafe {
        for i in (from..from + N).chain(end - N..end).filter(|&i| outside(i)) {
            *row.add(i) = f32::NEG_INFINITY;
        }
        let max = vecmath::max::<S>(row.add(from), end - from);
        let mut sum = S::splat(0.0);
        for i in (from..end).step_by(N) {
            let at = row.add(i);
            S::store(at, vecmath::exp::<S>(S::sub(S::load(at), S::splat(max))));
            if i == from || i + N == end {
                for lane in (i..i + N).filter(|&i| outside(i)) {
                    *row.add(lane) = 0.0;
                }
            }
            let weight = S::load(at);
            sum = S::add(sum, weight);
            if E::SCALED {
                let slot = (i + start) % kv.capacity;
                S::store(at, S::mul(weight, S::load(kv.value_scales.add(slot))));
            }
        }
        S::reduce_add(sum)
    }
}

#[derive(Clone, Copy)]
struct Weights {
    scores: *const f32,
    stride: usize,
    /// Position of element 0 of each row.
    start: usize,
}

/// `V` vectors, from dimension `d` on, of the weighted sums of values.
#[inline(always)]
unsafe fn mix_tile<S: Simd, E: KvElement, const R: usize, const V: usize>(
    kv: KvView,
    weights: Weights,
    spans: [Span; R],
    factors: [f32; R],
    d: usize,
    padded: usize,
    out: *mut f32,
) {
    // Positions that all queries see are read once; each query's own stretches before and after keep
    // its chain in order.
    let first = spans.iter().map(|s| s.first).max().unwrap_or(0);
    let end = spans.iter().map(|s| s.position + 1).min().unwrap_or(0).max(first);
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        let value = |position: usize, v: usize| {
            let slot = position % kv.capacity;
            E::load::<S>(kv.values.add((slot * padded + d + 16 * v) * E::BYTES))
        };
        let weight = |r: usize, position: usize| {
            S::splat(*weights.scores.add(r * weights.stride + position - weights.start))
        };
        for r in 0..R {
            for position in spans[r].first..first.min(spans[r].position + 1) {
                for v in 0..V {
                    sums[r][v] = S::fma(value(position, v), weight(r, position), sums[r][v]);
                }
            }
        }
        for position in first..end {
            let x: [S::F; V] = std::array::from_fn(|v| value(position, v));
            for r in 0..R {
                let w = weight(r, position);
                for v in 0..V {
                    sums[r][v] = S::fma(x[v], w, sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for position in end..spans[r].position + 1 {
                for v in 0..V {
                    sums[r][v] = S::fma(value(position, v), weight(r, position), sums[r][v]);
                }
            }
            for v in 0..V {
                let mixed = S::mul(sums[r][v], S::splat(factors[r]));
                S::store(out.add(r * padded + d + 16 * v), mixed);
            }
        }
    }
}
