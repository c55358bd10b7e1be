//! Products with matrices in block codecs.
//!
//! For a row r and a token t the result is `row_scale[r] * Σ_b (block_scale[r][b] * act_scale[t][b]) *
//! dot[r][t][b]`, one chain of fused multiply-adds over blocks b in increasing order; `dot` is an exact
//! integer. One token streams the panel as stored; several tokens unpack it once to int8.

use gristmill_formats::codec::{BLOCK_COLS, Grid4, PANEL_ROWS, block_count};

use crate::act::{ActBuffer, ActView, GROUP};
use crate::simd::Simd;

/// Bytes ahead of the one in use that are brought into the first-level cache.
const PREFETCH_NEAR: usize = 1 << 10;
/// Bytes ahead that are brought into the second-level cache: far enough that the misses of several
/// pages are in flight.
const PREFETCH_FAR: usize = 32 << 10;

/// Bytes of a block unpacked to int8.
pub(crate) const UNPACKED_BLOCK_BYTES: usize = PANEL_ROWS * BLOCK_COLS;
const ROW_SCALES_BYTES: usize = 2 * PANEL_ROWS;

/// What a block codec does, per block.
///
/// # Safety
/// As for [`Simd`]: the CPU has the class, pointers are valid for one block and its 16 scale bytes.
pub(crate) unsafe trait BlockCodec<S: Simd>: Copy {
    /// Bytes of the codes of one block.
    const BLOCK_BYTES: usize;
    /// Per row, the dot product of the block with 32 activations whose sum is `sum`.
    unsafe fn dot(self, codes: *const u8, scales: *const u8, a: *const i8, sum: i32) -> S::I;
    /// The block's scale per row.
    unsafe fn scale(scales: *const u8) -> S::F;
    /// Writes the block's weights as eight vectors of 16 rows x 4 columns in the form of `dot4`.
    unsafe fn unpack(self, codes: *const u8, scales: *const u8, out: *mut u8);
}

/// int8 codes.
#[derive(Clone, Copy)]
pub(crate) struct Q8;

// SAFETY: reads eight vectors at `codes`, 16 bytes at `scales`, 32 activations at `a`.
unsafe impl<S: Simd> BlockCodec<S> for Q8 {
    const BLOCK_BYTES: usize = 512;

    #[inline(always)]
    unsafe fn dot(self, codes: *const u8, _: *const u8, a: *const i8, sum: i32) -> S::I {
        // SAFETY: the trait's contract.
        unsafe {
            let mut even = bias::<S>(sum);
            let mut odd = S::splat_i(0);
            for v in 0..4 {
                let w = |i: usize| S::weights(S::load_bytes(codes.add(64 * i)));
                even = S::dot4(even, w(2 * v), a.add(8 * v));
                odd = S::dot4(odd, w(2 * v + 1), a.add(8 * v + 4));
            }
            S::add_i(even, odd)
        }
    }

    #[inline(always)]
    unsafe fn scale(scales: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_u8(scales) }
    }

    #[inline(always)]
    unsafe fn unpack(self, codes: *const u8, _: *const u8, out: *mut u8) {
        for v in 0..8 {
            // SAFETY: the trait's contract.
            unsafe { S::store_bytes(out.add(64 * v), S::weights(S::load_bytes(codes.add(64 * v)))) };
        }
    }
}

/// 4-bit codes through a table, with a shift that a block may add to every value.
#[derive(Clone, Copy)]
pub(crate) struct Q4<S: Simd> {
    pub(crate) table: S::B,
    pub(crate) shift: i8,
}

/// The q4 codec of a tensor's grid.
///
/// # Safety
/// The CPU has the class of `S`.
#[inline(always)]
pub(crate) unsafe fn q4<S: Simd>(grid: &Grid4) -> Q4<S> {
    // SAFETY: the contract above.
    Q4 { table: unsafe { S::table(grid.values()) }, shift: grid.shift() }
}

// SAFETY: reads four vectors at `codes`, 16 bytes at `scales`, 32 activations at `a`.
unsafe impl<S: Simd> BlockCodec<S> for Q4<S> {
    const BLOCK_BYTES: usize = 256;

    #[inline(always)]
    unsafe fn dot(self, codes: *const u8, scales: *const u8, a: *const i8, sum: i32) -> S::I {
        // SAFETY: the trait's contract.
        unsafe {
            let mut even = bias::<S>(sum);
            let mut odd = S::splat_i(0);
            for v in 0..4 {
                let x = S::load_bytes(codes.add(64 * v));
                even = S::dot4(even, S::lookup(self.table, S::low_nibbles(x)), a.add(8 * v));
                odd = S::dot4(odd, S::lookup(self.table, S::high_nibbles(x)), a.add(8 * v + 4));
            }
            // Adding the shift to all 32 weights of a row adds shift * sum to its dot product.
            let shifted = S::splat_i(i32::from(self.shift) * sum);
            S::add_where_top_bit(S::add_i(even, odd), scales, shifted)
        }
    }

    #[inline(always)]
    unsafe fn scale(scales: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_u7(scales) }
    }

    #[inline(always)]
    unsafe fn unpack(self, codes: *const u8, scales: *const u8, out: *mut u8) {
        // SAFETY: the trait's contract.
        unsafe {
            for v in 0..4 {
                let x = S::load_bytes(codes.add(64 * v));
                for (i, nibbles) in [S::low_nibbles(x), S::high_nibbles(x)].into_iter().enumerate() {
                    let w = S::lookup(self.table, nibbles);
                    let w = S::add_bytes_where_top_bit(w, scales, self.shift);
                    S::store_bytes(out.add(64 * (2 * v + i)), w);
                }
            }
        }
    }
}

/// Start value of a dot product: what the +128 on biased weights would otherwise add.
#[inline(always)]
unsafe fn bias<S: Simd>(sum: i32) -> S::I {
    // SAFETY: no memory is touched.
    unsafe { S::splat_i(if S::BIASED { -128 * sum } else { 0 }) }
}

/// A run of consecutive panels.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    pub(crate) first: *const u8,
    pub(crate) count: usize,
    /// Bytes from one panel to the next.
    pub(crate) stride: usize,
    pub(crate) cols: usize,
}

impl Panels {
    fn header_bytes(&self) -> usize {
        (ROW_SCALES_BYTES + block_count(self.cols) * PANEL_ROWS).next_multiple_of(64)
    }
}

/// One token: `out[16 p + r]` for row r of panel p.
///
/// # Safety
/// The panels, the activations of one token (width 1) and `16 * count` outputs are valid.
#[inline(always)]
pub(crate) unsafe fn gemv<S: Simd, C: BlockCodec<S>>(
    codec: C,
    panels: Panels,
    act: ActView,
    out: *mut f32,
) {
    let blocks = block_count(panels.cols);
    let header = panels.header_bytes();
    for p in 0..panels.count {
        // SAFETY: panel p has its header and `blocks` blocks; prefetches may go anywhere.
        unsafe {
            let panel = panels.first.add(p * panels.stride);
            let mut codes = panel.add(header);
            let mut scales = panel.add(ROW_SCALES_BYTES);
            // The next panel's header is not among the lines that the loop below runs ahead of.
            for line in 0..header.div_ceil(64) {
                S::prefetch_far(panel.wrapping_add(PREFETCH_FAR + 64 * line));
            }
            let mut sum = S::splat(0.0);
            for b in 0..blocks {
                for line in 0..C::BLOCK_BYTES / 64 {
                    S::prefetch_near(codes.wrapping_add(PREFETCH_NEAR + 64 * line));
                    S::prefetch_far(codes.wrapping_add(PREFETCH_FAR + 64 * line));
                }
                let a = act.codes.add(b * BLOCK_COLS);
                let dot = codec.dot(codes, scales, a, *act.sums.add(b));
                let scale = S::mul(C::scale(scales), S::splat(*act.scales.add(b)));
                sum = S::fma(S::to_f32(dot), scale, sum);
                codes = codes.add(C::BLOCK_BYTES);
                scales = scales.add(PANEL_ROWS);
            }
            let row_scales = S::load_bf16(panel.cast());
            S::store(out.add(p * PANEL_ROWS), S::mul(sum, row_scales));
        }
    }
}

/// Unpacks one panel to int8 in the form of `dot4`, and its block scales to f32.
///
/// # Safety
/// The panel is valid, `weights` has room for `blocks * 512` bytes and `scales` for `blocks * 16`.
#[inline(always)]
pub(crate) unsafe fn unpack<S: Simd, C: BlockCodec<S>>(
    codec: C,
    panel: *const u8,
    cols: usize,
    weights: *mut u8,
    scales: *mut f32,
) {
    let header = Panels { first: panel, count: 1, stride: 0, cols }.header_bytes();
    for b in 0..block_count(cols) {
        // SAFETY: block b is within the panel and the outputs.
        unsafe {
            let scale_bytes = panel.add(ROW_SCALES_BYTES + b * PANEL_ROWS);
            let codes = panel.add(header + b * C::BLOCK_BYTES);
            S::prefetch_far(codes.wrapping_add(4 * C::BLOCK_BYTES));
            codec.unpack(codes, scale_bytes, weights.add(b * UNPACKED_BLOCK_BYTES));
            S::store(scales.add(b * PANEL_ROWS), C::scale(scale_bytes));
        }
    }
}

/// An unpacked panel.
#[derive(Clone, Copy)]
pub(crate) struct Unpacked {
    pub(crate) weights: *const u8,
    pub(crate) scales: *const f32,
    /// 16 bf16.
    pub(crate) row_scales: *const u8,
    pub(crate) blocks: usize,
}

/// Several tokens: `out[16 t + r]` for token t, row r of one unpacked panel.
///
/// # Safety
/// The panel, the groups' activations and `16 * tokens` outputs are valid; groups hold `tokens` tokens.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd>(
    panel: Unpacked,
    groups: &[ActBuffer],
    tokens: usize,
    out: *mut f32,
) {
    let mut first = 0;
    while first < groups.len() {
        let left = (groups.len() - first).min(S::TILE_GROUPS);
        let tile = &groups[first..first + left];
        // SAFETY: the contract above; the tile writes only tokens below `tokens`.
        unsafe {
            match left {
                1 => gemm_tile::<S, 1>(panel, tile, first * GROUP, tokens, out),
                2 => gemm_tile::<S, 2>(panel, tile, first * GROUP, tokens, out),
                _ => gemm_tile::<S, 3>(panel, tile, first * GROUP, tokens, out),
            }
        }
        first += left;
    }
}

#[inline(always)]
unsafe fn gemm_tile<S: Simd, const G: usize>(
    panel: Unpacked,
    groups: &[ActBuffer],
    first_token: usize,
    tokens: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's contract; `groups` has at least G elements.
    unsafe {
        let acts: [ActView; G] = std::array::from_fn(|g| groups[g].view());
        let mut sums = [[S::splat(0.0); GROUP]; G];
        for b in 0..panel.blocks {
            let mut dots: [[S::I; GROUP]; G] = std::array::from_fn(|g| {
                std::array::from_fn(|t| bias::<S>(*acts[g].sums.add(b * GROUP + t)))
            });
            for v in 0..8 {
                let w = S::load_bytes(panel.weights.add((b * 8 + v) * 64));
                for g in 0..G {
                    let a = acts[g].codes.add((b * 8 + v) * 4 * GROUP);
                    for t in 0..GROUP {
                        dots[g][t] = S::dot4(dots[g][t], w, a.add(4 * t));
                    }
                }
            }
            let block_scale = S::load(panel.scales.add(b * PANEL_ROWS));
            for g in 0..G {
                for t in 0..GROUP {
                    let act_scale = S::splat(*acts[g].scales.add(b * GROUP + t));
                    let scale = S::mul(block_scale, act_scale);
                    sums[g][t] = S::fma(S::to_f32(dots[g][t]), scale, sums[g][t]);
                }
            }
        }
        let row_scales = S::load_bf16(panel.row_scales.cast());
        for g in 0..G {
            for t in 0..GROUP {
                let token = first_token + g * GROUP + t;
                if token < tokens {
                    S::store(out.add(token * PANEL_ROWS), S::mul(sums[g][t], row_scales));
                }
            }
        }
    }
}
