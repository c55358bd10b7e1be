//! Products with dense matrices (f32, bf16, f16): the path of the reference model.
//!
//! For a row and a token the result is one chain of fused multiply-adds over columns in increasing
//! order, for one token or many, from panels or from row-major matrices.

use gristmill_formats::codec::PANEL_ROWS;

use crate::act::{ActBuffer, FewTokens, GROUP};
use crate::ahead::Ahead;
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

/// A run of dense panels: 16 elements per column, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct DensePanels {
    pub(crate) first: *const u8,
    pub(crate) count: usize,
    pub(crate) stride: usize,
    pub(crate) cols: usize,
}

/// A few tokens: `out[(tokens p + t) 16 + r]` for panel p, token t, row r. `T` is the number of tokens
/// computed: 1 (of width 1), or whole groups. Several panels are read side by side: their chains hide each
/// other's latency, and more misses are in flight.
///
/// # Safety
/// The panels, the activations and `16 * count` outputs for each panel are valid.
#[inline(always)]
pub(crate) unsafe fn gemv<S: Simd, E: Element, const T: usize>(
    panels: DensePanels,
    tokens: FewTokens,
    out: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        if T == 1 || (T == GROUP && S::TILE_GROUPS > 1) {
            streams::<S, E, T, 4>(panels, tokens, out);
        } else if S::TILE_GROUPS > 1 {
            streams::<S, E, T, 2>(panels, tokens, out);
        } else {
            streams::<S, E, T, 1>(panels, tokens, out);
        }
    }
}

/// [`gemv`] of `N` panels side by side, then of one.
#[inline(always)]
unsafe fn streams<S: Simd, E: Element, const T: usize, const N: usize>(
    panels: DensePanels,
    tokens: FewTokens,
    out: *mut f32,
) {
    let DensePanels { first, count, stride, .. } = panels;
    let whole = count - count % N;
    // SAFETY: the caller's contract; the panels are among the run's.
    unsafe {
        let mut ahead = Ahead::<N>::new(first, stride);
        for i in (0..whole).step_by(N) {
            tile::<S, E, T, N>(panels, i, &mut ahead, tokens, out);
        }
        let mut ahead = Ahead::<1>::new(first.add(whole * stride), stride);
        for i in whole..count {
            tile::<S, E, T, 1>(panels, i, &mut ahead, tokens, out);
        }
    }
}

/// `N` panels side by side, from panel `index` on.
#[inline(always)]
unsafe fn tile<S: Simd, E: Element, const T: usize, const N: usize>(
    panels: DensePanels,
    index: usize,
    ahead: &mut Ahead<N>,
    tokens: FewTokens,
    out: *mut f32,
) {
    let column_bytes = const { PANEL_ROWS * E::BYTES };
    // SAFETY: the caller's contract.
    unsafe {
        let weights: [*const u8; N] =
            std::array::from_fn(|n| panels.first.add((index + n) * panels.stride));
        let mut sums = [[S::splat(0.0); T]; N];
        let mut c = 0;
        while c < panels.cols {
            ahead.lines::<S>(1);
            // A cache line of each panel.
            if c + 64 / column_bytes <= panels.cols {
                for c in c..c + 64 / column_bytes {
                    let weights = weights.map(|p| p.add(c * column_bytes));
                    column::<S, E, T, N>(weights, tokens, c, &mut sums);
                }
            } else {
                let weights = weights.map(|p| p.add(c * column_bytes));
                column::<S, E, T, N>(weights, tokens, c, &mut sums);
            }
            c += 64 / column_bytes;
        }
        for n in 0..N {
            for (t, &sum) in sums[n].iter().enumerate().take(tokens.count) {
                S::store(out.add(((index + n) * tokens.count + t) * PANEL_ROWS), sum);
            }
        }
    }
}

/// One column of `N` panels.
#[inline(always)]
unsafe fn column<S: Simd, E: Element, const T: usize, const N: usize>(
    weights: [*const u8; N],
    tokens: FewTokens,
    c: usize,
    sums: &mut [[S::F; T]; N],
) {
    let width = const { if T == 1 { 1 } else { GROUP } };
    // SAFETY: the caller's contract.
    unsafe {
        for (p, sums) in weights.into_iter().zip(sums) {
            let w = E::load::<S>(p);
            for (t, sum) in sums.iter_mut().enumerate() {
                let x = *tokens.acts[t / width].dense.add(c * width + t % width);
                *sum = S::fma(w, S::splat(x), *sum);
            }
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
