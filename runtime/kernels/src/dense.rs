//! Products with dense matrices (f32, bf16, f16): the path of the reference model.
//!
//! For a row and a token the result is one chain of fused multiply-adds over columns in increasing
//! order, for one token or many, from panels or from row-major matrices.

use gristmill_formats::codec::PANEL_ROWS;

use crate::act::{ActBuffer, ActView, GROUP};
use crate::simd::Simd;

/// An element type of dense matrices.
///
/// # Safety
/// As for [`Simd`]: `load` reads 16 elements.
pub(crate) unsafe trait Element: Copy {
    const BYTES: usize;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
    /// One element.
    unsafe fn read(p: *const u8) -> f32;
}

/// f32.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;
/// IEEE half.
#[derive(Clone, Copy)]
pub(crate) struct F16;

// SAFETY: reads 16 or one f32.
unsafe impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn read(p: *const u8) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<f32>().read_unaligned() }
    }
}

// SAFETY: reads 16 or one bf16.
unsafe impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_bf16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn read(p: *const u8) -> f32 {
        // SAFETY: the trait's contract.
        half::bf16::from_bits(unsafe { p.cast::<u16>().read_unaligned() }).to_f32()
    }
}

// SAFETY: reads 16 or one f16.
unsafe impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the trait's contract.
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn read(p: *const u8) -> f32 {
        // SAFETY: the trait's contract.
        half::f16::from_bits(unsafe { p.cast::<u16>().read_unaligned() }).to_f32()
    }
}

/// Panels computed side by side for one token, so that their chains hide each other's latency.
const GEMV_PANELS: usize = 4;

/// A run of dense panels: 16 elements per column, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct DensePanels {
    pub(crate) first: *const u8,
    pub(crate) count: usize,
    pub(crate) stride: usize,
    pub(crate) cols: usize,
}

/// One token: `out[16 p + r]` for row r of panel p.
///
/// # Safety
/// The panels, one token's activations (width 1) and `16 * count` outputs are valid.
#[inline(always)]
pub(crate) unsafe fn gemv<S: Simd, E: Element>(panels: DensePanels, act: ActView, out: *mut f32) {
    let mut p = 0;
    while p < panels.count {
        // SAFETY: the contract above, for panels from p on.
        unsafe {
            let at = panels.first.add(p * panels.stride);
            let out = out.add(p * PANEL_ROWS);
            if panels.count - p >= GEMV_PANELS {
                gemv_tile::<S, E, GEMV_PANELS>(at, panels.stride, panels.cols, act.dense, out);
                p += GEMV_PANELS;
            } else {
                gemv_tile::<S, E, 1>(at, panels.stride, panels.cols, act.dense, out);
                p += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn gemv_tile<S: Simd, E: Element, const P: usize>(
    at: *const u8,
    stride: usize,
    cols: usize,
    x: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [S::splat(0.0); P];
        for c in 0..cols {
            let x = S::splat(*x.add(c));
            for p in 0..P {
                let w = E::load::<S>(at.add(p * stride + c * PANEL_ROWS * E::BYTES));
                sums[p] = S::fma(w, x, sums[p]);
            }
        }
        for p in 0..P {
            S::store(out.add(p * PANEL_ROWS), sums[p]);
        }
    }
}

/// Several tokens: `out[16 t + r]` for token t, row r of one panel.
///
/// # Safety
/// The panel, the groups' activations and `16 * tokens` outputs are valid; groups hold `tokens` tokens.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, E: Element>(
    panel: *const u8,
    cols: usize,
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
                1 => gemm_tile::<S, E, 1>(panel, cols, tile, first * GROUP, tokens, out),
                2 => gemm_tile::<S, E, 2>(panel, cols, tile, first * GROUP, tokens, out),
                _ => gemm_tile::<S, E, 3>(panel, cols, tile, first * GROUP, tokens, out),
            }
        }
        first += left;
    }
}

#[inline(always)]
unsafe fn gemm_tile<S: Simd, E: Element, const G: usize>(
    panel: *const u8,
    cols: usize,
    groups: &[ActBuffer],
    first_token: usize,
    tokens: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's contract; `groups` has at least G elements.
    unsafe {
        let acts: [*const f32; G] = std::array::from_fn(|g| groups[g].view().dense);
        let mut sums = [[S::splat(0.0); GROUP]; G];
        for c in 0..cols {
            let w = E::load::<S>(panel.add(c * PANEL_ROWS * E::BYTES));
            for g in 0..G {
                for t in 0..GROUP {
                    let x = S::splat(*acts[g].add(c * GROUP + t));
                    sums[g][t] = S::fma(w, x, sums[g][t]);
                }
            }
        }
        for g in 0..G {
            for t in 0..GROUP {
                let token = first_token + g * GROUP + t;
                if token < tokens {
                    S::store(out.add(token * PANEL_ROWS), sums[g][t]);
                }
            }
        }
    }
}

/// Gathers `rows` (at most 16) rows of a row-major matrix into an f32 panel; missing rows are zero.
///
/// # Safety
/// `first` is valid for `rows * cols` elements and `out` for `16 * cols` f32.
#[inline(always)]
pub(crate) unsafe fn gather_panel<S: Simd, E: Element>(
    first: *const u8,
    rows: usize,
    cols: usize,
    out: *mut f32,
) {
    let whole = if rows == PANEL_ROWS { cols / 16 * 16 } else { 0 };
    for c in (0..whole).step_by(16) {
        // SAFETY: the contract above: 16 rows of at least `c + 16` columns.
        unsafe {
            let at = |r: usize| first.add((r * cols + c) * E::BYTES);
            let columns = S::transpose(std::array::from_fn(|r| E::load::<S>(at(r))));
            for (i, column) in columns.into_iter().enumerate() {
                S::store(out.add((c + i) * PANEL_ROWS), column);
            }
        }
    }
    for c in whole..cols {
        for r in 0..PANEL_ROWS {
            // SAFETY: the contract above.
            unsafe {
                *out.add(c * PANEL_ROWS + r) =
                    if r < rows { E::read(first.add((r * cols + c) * E::BYTES)) } else { 0.0 };
            }
        }
    }
}
