//! Products with matrices in block codecs.
//!
//! For a row r and a token t the result is `row_scale[r] * Σ_b (block_scale[r][b] * act_scale[t][b]) *
//! dot[r][t][b]`, one chain of fused multiply-adds over blocks b in increasing order; `dot` is an exact
//! integer. One token streams the panel as stored; several tokens unpack it once to int8.
//!
//! With fine activations (q8, q6) `dot` is 254 times the coarse plane's dot product plus the fine plane's,
//! and the scale is divided by 254. Each is at most 32 * 128 * 127 < 2^20, exact in f32, so that one fused
//! multiply-add rounds their sum once.

use std::ops::Range;

use gristmill_formats::codec::{BLOCK_COLS, Grid, PANEL_ROWS, block_count};

use crate::act::{ActBuffer, ActView, FINE_STEPS, FewTokens, GROUP};
use crate::ahead::Ahead;
use crate::simd::Simd;

/// Bytes of a block unpacked to int8.
pub(crate) const UNPACKED_BLOCK_BYTES: usize = PANEL_ROWS * BLOCK_COLS;
const ROW_SCALES_BYTES: usize = 2 * PANEL_ROWS;

/// What a block codec is, to the kernels: how eight columns of 16 rows become weights.
///
/// # Safety
/// As for [`Simd`]: the CPU has the class; `weights` reads nothing but the block's `BLOCK_BYTES`,
/// `scale` 16 bytes.
pub(crate) unsafe trait BlockCodec<S: Simd>: Copy {
    /// Bytes of the codes of one block.
    const BLOCK_BYTES: usize;
    /// Whether a block can add [`BlockCodec::shift`] to the weights of a row.
    const SHIFTS: bool;
    /// Whether unpacking takes registers that more panels side by side would need.
    const HEAVY: bool;
    /// Added to the weights of the rows whose block scale has its top bit set.
    fn shift(self) -> i8;
    /// Unshifted weights of columns `8 v .. 8 v + 4` and `8 v + 4 .. 8 v + 8`, in the form of `dot4`.
    unsafe fn weights(self, codes: *const u8, v: usize) -> [S::B; 2];
    /// The block's scale per row.
    unsafe fn scale(scales: *const u8) -> S::F;
}

/// int8 codes.
#[derive(Clone, Copy)]
pub(crate) struct Q8;

// SAFETY: two vectors of 64 bytes for eight columns.
unsafe impl<S: Simd> BlockCodec<S> for Q8 {
    const BLOCK_BYTES: usize = 512;
    const SHIFTS: bool = false;
    const HEAVY: bool = false;

    fn shift(self) -> i8 {
        0
    }

    #[inline(always)]
    unsafe fn weights(self, codes: *const u8, v: usize) -> [S::B; 2] {
        // SAFETY: the trait's contract.
        unsafe {
            let codes = codes.add(128 * v);
            [S::weights(S::load_bytes(codes)), S::weights(S::load_bytes(codes.add(64)))]
        }
    }

    #[inline(always)]
    unsafe fn scale(scales: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_u8(scales) }
    }
}

/// Codes of `BITS` bits through a table.
#[derive(Clone, Copy)]
pub(crate) struct Table<S: Simd, const BITS: usize> {
    /// What a code is worth. Two codes of 2 bits share an index: there this is for the low one.
    values: [S::B; 4],
    /// For the high one.
    high: [S::B; 4],
    shift: i8,
}

/// The codec of a tensor's grid of `BITS` bits.
///
/// # Safety
/// The CPU has the class of `S`.
#[inline(always)]
pub(crate) unsafe fn table<S: Simd, const BITS: usize>(grid: &Grid) -> Table<S, BITS> {
    let low = grid.repeated();
    let high = std::array::from_fn(|i| low[i / 4 % 4]);
    // SAFETY: the contract above.
    unsafe { Table { values: S::table(low), high: S::table(&high), shift: grid.shift() } }
}

/// Both nibbles' entries.
#[inline(always)]
unsafe fn nibbles<S: Simd>(values: [S::B; 4], x: S::B) -> [S::B; 2] {
    // SAFETY: the caller's contract.
    unsafe { [S::lookup::<0>(values, x, 0, x, 0), S::lookup::<0>(values, x, 4, x, 0)] }
}

// SAFETY: a block has `BITS` vectors of 64 bytes, and `weights` loads only these.
unsafe impl<S: Simd, const BITS: usize> BlockCodec<S> for Table<S, BITS> {
    const BLOCK_BYTES: usize = BITS * 64;
    const SHIFTS: bool = true;
    const HEAVY: bool = BITS == 6;

    #[inline(always)]
    fn shift(self) -> i8 {
        self.shift
    }

    #[inline(always)]
    unsafe fn weights(self, codes: *const u8, v: usize) -> [S::B; 2] {
        let Self { values, high, .. } = self;
        // SAFETY: the trait's contract.
        unsafe {
            match BITS {
                2 => {
                    let (x, shift) = (S::load_bytes(codes.add(v / 2 * 64)), v % 2 * 4);
                    [S::lookup::<0>(values, x, shift, x, 0), S::lookup::<0>(high, x, shift, x, 0)]
                }
                3 if v == 3 => {
                    // The last two vectors are in the top bits of the others' nibbles.
                    let p = S::field(S::load_bytes(codes), 3, 0x11);
                    let q = S::field(S::load_bytes(codes.add(64)), 2, 0x22);
                    let r = S::field(S::load_bytes(codes.add(128)), 1, 0x44);
                    nibbles::<S>(values, S::or(S::or(p, q), r))
                }
                3 | 4 => nibbles::<S>(values, S::load_bytes(codes.add(v * 64))),
                5 => {
                    let (x, top) =
                        (S::load_bytes(codes.add(v * 64)), S::load_bytes(codes.add(256)));
                    [
                        S::lookup::<1>(values, x, 0, top, 2 * v),
                        S::lookup::<1>(values, x, 4, top, 2 * v + 1),
                    ]
                }
                _ => {
                    let x = S::load_bytes(codes.add(v * 64));
                    let (top, bit) = (S::load_bytes(codes.add(256 + v / 2 * 64)), v % 2 * 4);
                    [
                        S::lookup::<2>(values, x, 0, top, bit),
                        S::lookup::<2>(values, x, 4, top, bit + 2),
                    ]
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn scale(scales: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_u7(scales) }
    }
}

/// One dot product from those of `P` planes.
#[inline(always)]
unsafe fn combine<S: Simd, const P: usize>(dots: [S::I; P]) -> S::F {
    // SAFETY: no memory is touched.
    unsafe {
        let mut sum = S::to_f32(dots[0]);
        for fine in &dots[1..] {
            sum = S::fma(sum, S::splat(FINE_STEPS as f32), S::to_f32(*fine));
        }
        sum
    }
}

/// What an activation scale is divided by when there are `P` planes.
const fn plane_factor<const P: usize>() -> f32 {
    if P == 1 { 1.0 } else { 1.0 / FINE_STEPS as f32 }
}

/// A run of consecutive panels.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) first: *const u8,
    pub(crate) count: usize,
    /// Bytes from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) cols: usize,
    /// Room for an integer per block, token and plane: activations' sums times the codec's shift.
    pub(crate) shifted: *mut i32,
}

fn header_bytes(cols: usize) -> usize {
    (ROW_SCALES_BYTES + block_count(cols) * PANEL_ROWS).next_multiple_of(64)
}

/// A few tokens, `P` planes: `out[(tokens p + t) 16 + r]` for panel p, token t, row r. Weights stay in
/// registers from their look-up to their product, so that four tokens take little longer than one where
/// memory decides. `T` is the number of tokens computed: 1 (of width 1), or whole groups.
///
/// # Safety
/// The panels and their scratch, the activations and `16 * count` outputs for each panel are valid.
#[inline(always)]
pub(crate) unsafe fn gemv<S: Simd, C: BlockCodec<S>, const P: usize, const T: usize>(
    codec: C,
    panels: Panels,
    tokens: FewTokens,
    out: *mut f32,
) {
    let blocks = block_count(panels.cols);
    let shift = i32::from(codec.shift());
    for b in 0..if C::SHIFTS { blocks } else { 0 } {
        for t in 0..T {
            for p in 0..P {
                // SAFETY: the contract above.
                unsafe {
                    let (act, at) = tokens.block::<T>(t, b);
                    let sum = *act.sums[p].add(at);
                    *panels.shifted.add((b * T + t) * P + p) = shift * sum;
                }
            }
        }
    }
    // As many streams as registers allow.
    // SAFETY: the contract above.
    unsafe {
        match (T, C::HEAVY) {
            (1, false) => streams::<S, C, P, T, 4>(codec, panels, tokens, out),
            (1, true) | (GROUP, false) => streams::<S, C, P, T, 2>(codec, panels, tokens, out),
            _ => streams::<S, C, P, T, 1>(codec, panels, tokens, out),
        }
    }
}

/// [`gemv`] of `N` panels side by side, then of fewer.
#[inline(always)]
unsafe fn streams<S: Simd, C: BlockCodec<S>, const P: usize, const T: usize, const N: usize>(
    codec: C,
    panels: Panels,
    tokens: FewTokens,
    out: *mut f32,
) {
    let Panels { first, count, stride, .. } = panels;
    let whole = count - count % N;
    // SAFETY: the caller's contract; the panels are among the run's.
    unsafe {
        let mut ahead = Ahead::<N>::new(first, stride);
        for i in (0..whole).step_by(N) {
            tile::<S, C, P, T, N>(codec, panels, i, &mut ahead, tokens, out);
        }
        let mut next = whole;
        if N > 2 && count - next >= 2 {
            let mut ahead = Ahead::<2>::new(first.add(next * stride), stride);
            tile::<S, C, P, T, 2>(codec, panels, next, &mut ahead, tokens, out);
            next += 2;
        }
        let mut ahead = Ahead::<1>::new(first.add(next * stride), stride);
        for i in next..count {
            tile::<S, C, P, T, 1>(codec, panels, i, &mut ahead, tokens, out);
        }
    }
}

/// [`gemv`] for `N` panels side by side, from panel `index` on.
#[inline(always)]
unsafe fn tile<S: Simd, C: BlockCodec<S>, const P: usize, const T: usize, const N: usize>(
    codec: C,
    panels: Panels,
    index: usize,
    ahead: &mut Ahead<N>,
    tokens: FewTokens,
    out: *mut f32,
) {
    let header = header_bytes(panels.cols);
    // SAFETY: panels have their header and blocks.
    unsafe {
        let first: [*const u8; N] =
            std::array::from_fn(|n| panels.first.add((index + n) * panels.stride));
        ahead.lines::<S>(header / 64);
        let mut sums = [[S::splat(0.0); T]; N];
        for b in 0..block_count(panels.cols) {
            ahead.lines::<S>(C::BLOCK_BYTES / 64);
            let shifted = panels.shifted.wrapping_add(b * T * P);
            for (first, sums) in first.into_iter().zip(&mut sums) {
                let codes = first.add(header + b * C::BLOCK_BYTES);
                let scales = first.add(ROW_SCALES_BYTES + b * PANEL_ROWS);
                block::<S, C, P, T>(codec, codes, scales, tokens, b, shifted, sums);
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            let row_scales = S::load_bf16(first[n].cast());
            for (t, &sum) in sums.iter().enumerate().take(tokens.count) {
                let out = out.add(((index + n) * tokens.count + t) * PANEL_ROWS);
                S::store(out, S::mul(sum, row_scales));
            }
        }
    }
}

/// Block `b` of one panel, added to the sums of its rows. `shifted` holds the shift times the sums of the
/// block's activations.
#[inline(always)]
unsafe fn block<S: Simd, C: BlockCodec<S>, const P: usize, const T: usize>(
    codec: C,
    codes: *const u8,
    scales: *const u8,
    tokens: FewTokens,
    b: usize,
    shifted: *const i32,
    sums: &mut [S::F; T],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let zero = [S::splat_i(0); P];
        let mut dots = [Dots { even: zero, odd: zero }; T];
        for t in 0..T {
            let (act, at) = tokens.block::<T>(t, b);
            for p in 0..P {
                dots[t].even[p] = S::splat_i(*act.starts[p].add(at));
            }
        }
        // Written out, because dots must stay in registers and loops this large are not unrolled.
        eight_columns::<S, C, P, T>(codec, codes, 0, tokens, b, &mut dots);
        eight_columns::<S, C, P, T>(codec, codes, 1, tokens, b, &mut dots);
        eight_columns::<S, C, P, T>(codec, codes, 2, tokens, b, &mut dots);
        eight_columns::<S, C, P, T>(codec, codes, 3, tokens, b, &mut dots);
        let block_scale = C::scale(scales);
        for t in 0..T {
            let Dots { even: mut dot, odd } = dots[t];
            for p in 0..P {
                if T == 1 {
                    dot[p] = S::add_i(dot[p], odd[p]);
                }
                if C::SHIFTS {
                    // Adding the shift to all 32 weights of a row adds shift * sum.
                    let shifted = S::splat_i(*shifted.add(t * P + p));
                    dot[p] = S::add_where_top_bit(dot[p], scales, shifted);
                }
            }
            let (act, at) = tokens.block::<T>(t, b);
            let act_scale = *act.scales.add(at) * const { plane_factor::<P>() };
            let scale = S::mul(block_scale, S::splat(act_scale));
            sums[t] = S::fma(combine::<S, P>(dot), scale, sums[t]);
        }
    }
}

/// Dot products of a block with one token, in two chains for a single token so that they hide each other's
/// latency.
#[derive(Clone, Copy)]
struct Dots<S: Simd, const P: usize> {
    even: [S::I; P],
    odd: [S::I; P],
}

/// Columns `8 v .. 8 v + 8` of block `b`.
#[inline(always)]
unsafe fn eight_columns<S: Simd, C: BlockCodec<S>, const P: usize, const T: usize>(
    codec: C,
    codes: *const u8,
    v: usize,
    tokens: FewTokens,
    b: usize,
    dots: &mut [Dots<S, P>; T],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let [low, high] = codec.weights(codes, v);
        for t in 0..T {
            let (act, at) = tokens.block::<T>(t, b);
            for p in 0..P {
                let x = act.codes[p].add(at * BLOCK_COLS + 8 * v);
                let Dots { even, odd } = &mut dots[t];
                even[p] = S::dot4(even[p], low, x);
                let second = if T == 1 { odd } else { even };
                second[p] = S::dot4(second[p], high, x.add(4));
            }
        }
    }
}

/// Unpacks some blocks of one panel to int8 in the form of `dot4`, and their scales to f32.
///
/// # Safety
/// The panel is valid and has the blocks, `weights` has room for 512 bytes and `scales` for 16 values for
/// each.
#[inline(always)]
pub(crate) unsafe fn unpack<S: Simd, C: BlockCodec<S>>(
    codec: C,
    panel: *const u8,
    cols: usize,
    blocks: Range<usize>,
    weights: *mut u8,
    scales: *mut f32,
) {
    let header = header_bytes(cols);
    let first = panel.wrapping_add(header + blocks.start * C::BLOCK_BYTES);
    let mut ahead = Ahead::of_one(first);
    for (i, b) in blocks.enumerate() {
        // SAFETY: block b is within the panel, block i within the outputs.
        unsafe {
            let scale_bytes = panel.add(ROW_SCALES_BYTES + b * PANEL_ROWS);
            let codes = panel.add(header + b * C::BLOCK_BYTES);
            ahead.lines::<S>(C::BLOCK_BYTES / 64);
            for v in 0..4 {
                let out = weights.add(i * UNPACKED_BLOCK_BYTES + 128 * v);
                for (half, mut w) in codec.weights(codes, v).into_iter().enumerate() {
                    if C::SHIFTS {
                        w = S::add_bytes_where_top_bit(w, scale_bytes, codec.shift());
                    }
                    S::store_bytes(out.add(64 * half), w);
                }
            }
            S::store(scales.add(i * PANEL_ROWS), C::scale(scale_bytes));
        }
    }
}

/// Most panels that are unpacked and multiplied together.
pub(crate) const MAX_TILE_PANELS: usize = 3;
/// Most blocks of columns that are unpacked at a time: with as many panels they stay in the first-level
/// cache while all groups of tokens pass over them.
pub(crate) const TILE_BLOCKS: usize = 16;

/// Panels side by side in a tile of a product with `P` planes: two planes need two accumulators for
/// each output.
pub(crate) const fn tile_panels<S: Simd, const P: usize>() -> usize {
    if P == 1 || S::TILE_PANELS == 1 { S::TILE_PANELS } else { 2 }
}

/// Some blocks of `count` panels, unpacked.
#[derive(Clone, Copy)]
pub(crate) struct Unpacked {
    /// `[panel][TILE_BLOCKS][512]`.
    pub(crate) weights: *const u8,
    /// `[panel][TILE_BLOCKS][16]`.
    pub(crate) scales: *const f32,
    /// Of the first panel: 16 bf16.
    pub(crate) row_scales: *const u8,
    /// Bytes from a panel's row scales to the next panel's.
    pub(crate) stride: usize,
    pub(crate) count: usize,
    /// The first of the blocks, and how many.
    pub(crate) first: usize,
    pub(crate) blocks: usize,
    /// Whether they are the panels' last.
    pub(crate) last: bool,
}

/// Several tokens, `P` planes: `out[(tokens p + t) 16 + r]` for panel p, token t, row r. Until the last
/// blocks have been multiplied, the sums so far are kept there.
///
/// # Safety
/// The panels, at most [`tile_panels`], the groups' activations and `16 * tokens` outputs for each panel
/// are valid; groups hold `tokens` tokens.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, const P: usize>(
    panels: Unpacked,
    groups: &[ActBuffer],
    tokens: usize,
    out: *mut f32,
) {
    for (g, group) in groups.iter().enumerate() {
        let (act, place) = (group.view(), Place { token: g * GROUP, tokens, out });
        // SAFETY: the contract above.
        unsafe {
            match panels.count {
                1 => gemm_tile::<S, P, 1>(panels, act, place),
                2 => gemm_tile::<S, P, 2>(panels, act, place),
                _ => gemm_tile::<S, P, MAX_TILE_PANELS>(panels, act, place),
            }
        }
    }
}

/// Where a tile's outputs go.
#[derive(Clone, Copy)]
struct Place {
    /// Its first token.
    token: usize,
    /// Tokens of the product; beyond them nothing is stored.
    tokens: usize,
    out: *mut f32,
}

impl Place {
    unsafe fn at(self, panel: usize, t: usize) -> *mut f32 {
        // SAFETY: the caller asks only for tokens of the product.
        unsafe { self.out.add((panel * self.tokens + self.token + t) * PANEL_ROWS) }
    }
}

/// `N` panels and a group of tokens.
#[inline(always)]
unsafe fn gemm_tile<S: Simd, const P: usize, const N: usize>(
    panels: Unpacked,
    act: ActView,
    place: Place,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; GROUP];
        let valid = GROUP.min(place.tokens - place.token);
        if panels.first > 0 {
            for (t, sums) in sums.iter_mut().enumerate().take(valid) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(place.at(n, t));
                }
            }
        }
        for i in 0..panels.blocks {
            let b = panels.first + i;
            let mut dots: [[[S::I; P]; N]; GROUP] = std::array::from_fn(|t| {
                [std::array::from_fn(|p| S::splat_i(*act.starts[p].add(b * GROUP + t))); N]
            });
            for v in 0..8 {
                let w: [S::B; N] = std::array::from_fn(|n| {
                    S::load_bytes(panels.weights.add(((n * TILE_BLOCKS + i) * 8 + v) * 64))
                });
                for t in 0..GROUP {
                    for p in 0..P {
                        let a = act.codes[p].add((b * GROUP + t) * BLOCK_COLS + 4 * v);
                        for n in 0..N {
                            dots[t][n][p] = S::dot4(dots[t][n][p], w[n], a);
                        }
                    }
                }
            }
            for n in 0..N {
                let block_scale = S::load(panels.scales.add((n * TILE_BLOCKS + i) * PANEL_ROWS));
                for t in 0..GROUP {
                    let act_scale = *act.scales.add(b * GROUP + t) * const { plane_factor::<P>() };
                    let scale = S::mul(block_scale, S::splat(act_scale));
                    sums[t][n] = S::fma(combine::<S, P>(dots[t][n]), scale, sums[t][n]);
                }
            }
        }
        for n in 0..N {
            let row_scales = S::load_bf16(panels.row_scales.add(n * panels.stride).cast());
            for (t, sums) in sums.iter().enumerate().take(valid) {
                let sum = if panels.last { S::mul(sums[n], row_scales) } else { sums[n] };
                S::store(place.at(n, t), sum);
            }
        }
    }
}
