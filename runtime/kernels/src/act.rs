//! Activations, prepared for matrix products: int8 codes per block of 32 columns with an f32 scale and
//! the sum of the codes (block codecs), and plain f32 (dense codecs).

use gristmill_formats::codec::{BLOCK_COLS, block_count};

use crate::simd::Simd;

/// Tokens of a group: the unit in which activations of a chunk are interleaved.
pub const GROUP: usize = 4;

/// A block with no larger magnitude than this is all zeros: the inverse of its scale could overflow,
/// which would make codes of 127 even of its zeros.
const TINY: f32 = 1e-30;

/// The activations of one token (width 1) or of a group of four (width [`GROUP`]), interleaved so that
/// a kernel reads one stream: four columns of token 0, of token 1, …
#[derive(Debug, Clone)]
pub struct ActBuffer {
    width: usize,
    cols: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    dense: Vec<f32>,
}

impl ActBuffer {
    /// Room for `width` tokens (1 or 4) of up to `max_cols` columns.
    ///
    /// # Panics
    /// When the width is neither.
    pub fn new(width: usize, max_cols: usize) -> Self {
        assert!(width == 1 || width == GROUP, "width {width}");
        let blocks = block_count(max_cols);
        let padded = blocks * BLOCK_COLS;
        Self {
            width,
            cols: 0,
            codes: vec![0; padded * width],
            scales: vec![0.0; blocks * width],
            sums: vec![0; blocks * width],
            dense: vec![0.0; padded * width],
        }
    }

    /// Tokens side by side: 1 or 4.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Sets the number of columns of the activations that follow.
    ///
    /// # Panics
    /// When there is no room.
    pub fn set_cols(&mut self, cols: usize) {
        assert!(block_count(cols) * self.width <= self.scales.len(), "room for {cols} columns");
        self.cols = cols;
    }

    /// Columns of the current activations.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 4 * (self.scales.len() + self.sums.len() + self.dense.len())) as u64
    }

    /// Codes, scale and sum of one token and block, for reports and tests.
    pub fn block(&self, token: usize, block: usize) -> (Vec<i8>, f32, i32) {
        let codes = (0..BLOCK_COLS).map(|c| {
            let col = block * BLOCK_COLS + c;
            self.codes[(col / 4) * 4 * self.width + token * 4 + col % 4]
        });
        let at = block * self.width + token;
        (codes.collect(), self.scales[at], self.sums[at])
    }

    pub(crate) fn view(&self) -> ActView {
        ActView {
            codes: self.codes.as_ptr(),
            scales: self.scales.as_ptr(),
            sums: self.sums.as_ptr(),
            dense: self.dense.as_ptr(),
        }
    }

    pub(crate) fn view_mut(&mut self) -> ActViewMut {
        ActViewMut {
            width: self.width,
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            dense: self.dense.as_mut_ptr(),
        }
    }
}

/// Where a kernel reads activations.
#[derive(Clone, Copy)]
pub(crate) struct ActView {
    pub(crate) codes: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) sums: *const i32,
    pub(crate) dense: *const f32,
}

/// Where [`quantize`] and [`interleave`] write.
#[derive(Clone, Copy)]
pub(crate) struct ActViewMut {
    width: usize,
    codes: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
    dense: *mut f32,
}

/// Quantizes one token's activations: scale = absmax / 127 of each block, codes rounded to nearest.
///
/// # Safety
/// `x` is valid for `blocks * 32` values; `to` has room for `blocks` blocks and token `token`.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Simd>(x: *const f32, blocks: usize, to: ActViewMut, token: usize) {
    let mut row = [0i8; BLOCK_COLS];
    for b in 0..blocks {
        // SAFETY: the contract above covers block b of `x` and its place in `to`.
        unsafe {
            let x0 = S::load(x.add(b * BLOCK_COLS));
            let x1 = S::load(x.add(b * BLOCK_COLS + 16));
            let absmax = S::reduce_max(S::max(S::abs(x0), S::abs(x1)));
            let inverse = S::splat(if absmax > TINY { 127.0 / absmax } else { 0.0 });
            // The clamp keeps codes within ±127 even where the input is not finite.
            let limit = S::splat(127.0);
            let clamp = |x| S::max(S::min(S::mul(x, inverse), limit), S::splat(-127.0));
            let (c0, c1) = (S::round(clamp(x0)), S::round(clamp(x1)));
            S::store_i8(row.as_mut_ptr(), c0);
            S::store_i8(row.as_mut_ptr().add(16), c1);
            *to.scales.add(b * to.width + token) = absmax / 127.0;
            *to.sums.add(b * to.width + token) = S::reduce_add_i(S::add_i(c0, c1));
            let codes = to.codes.add(b * BLOCK_COLS * to.width + token * 4).cast::<[i8; 4]>();
            for (i, four) in row.as_chunks::<4>().0.iter().enumerate() {
                codes.add(i * to.width).write_unaligned(*four);
            }
        }
    }
}

/// Copies one token's activations for the dense kernels.
///
/// # Safety
/// `x` is valid for `cols` values; `to` has room for them and token `token`.
#[inline(always)]
pub(crate) unsafe fn interleave(x: *const f32, cols: usize, to: ActViewMut, token: usize) {
    for c in 0..cols {
        // SAFETY: the contract above.
        unsafe { *to.dense.add(c * to.width + token) = *x.add(c) };
    }
}
