//! Activations, prepared for matrix products: int8 codes per block of 32 columns with an f32 scale and
//! the sum of the codes (block codecs), and plain f32 (dense codecs).
//!
//! Rounding activations to int8 costs about as much as rounding weights to 8 bits does, so codecs of
//! that precision take a second, *fine* plane of codes for the remainders: 16 bits in all.

use gristmill_formats::codec::{BLOCK_COLS, block_count};

use crate::simd::Simd;

/// Tokens of a group: the unit in which activations of a chunk are interleaved.
pub const GROUP: usize = 4;

/// A block with no larger magnitude than this is all zeros: the inverse of its scale could overflow,
/// which would make codes of 127 even of its zeros.
const TINY: f32 = 1e-30;

/// The activations of one token (width 1) or of a group of four (width [`GROUP`]), so that a kernel reads
/// one stream: the codes of a block of token 0, of token 1, …
#[derive(Debug, Clone)]
pub struct ActBuffer {
    width: usize,
    cols: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// What dot products start from, see [`start`].
    starts: Vec<i32>,
    /// The remainders, in steps of the scale / [`FINE_STEPS`], and their sums.
    fine_codes: Vec<i8>,
    fine_sums: Vec<i32>,
    fine_starts: Vec<i32>,
    /// Whether the current activations have their fine plane.
    fine: bool,
    dense: Vec<f32>,
}

/// Fine steps per coarse step: the remainder of a rounding, half a step at most, is 127 of them.
pub(crate) const FINE_STEPS: i32 = 254;

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
            starts: vec![0; blocks * width],
            fine_codes: vec![0; padded * width],
            fine_sums: vec![0; blocks * width],
            fine_starts: vec![0; blocks * width],
            fine: false,
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
        self.fine = false;
    }

    pub(crate) fn set_fine(&mut self, fine: bool) {
        self.fine = fine;
    }

    pub(crate) fn is_fine(&self) -> bool {
        self.fine
    }

    /// Columns of the current activations.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        let words =
            self.scales.len() + 2 * (self.sums.len() + self.fine_sums.len()) + self.dense.len();
        (self.codes.len() + self.fine_codes.len() + 4 * words) as u64
    }

    /// Bytes that [`Self::new`] allocates.
    pub fn bytes_for(width: usize, max_cols: usize) -> u64 {
        let blocks = block_count(max_cols);
        // Two planes of codes and the f32 values of a column; a scale, two sums and two starts of a block.
        (width * blocks * (BLOCK_COLS * (2 + 4) + 5 * 4)) as u64
    }

    /// Codes, scale and sum of one token and block, for reports and tests.
    pub fn block(&self, token: usize, block: usize) -> (Vec<i8>, f32, i32) {
        let at = block * self.width + token;
        (self.codes_of(&self.codes, token, block), self.scales[at], self.sums[at])
    }

    /// Fine codes and their sum of one token and block, for reports and tests.
    pub fn fine_block(&self, token: usize, block: usize) -> (Vec<i8>, i32) {
        let at = block * self.width + token;
        (self.codes_of(&self.fine_codes, token, block), self.fine_sums[at])
    }

    fn codes_of(&self, plane: &[i8], token: usize, block: usize) -> Vec<i8> {
        let first = (block * self.width + token) * BLOCK_COLS;
        plane[first..first + BLOCK_COLS].to_vec()
    }

    pub(crate) fn view(&self) -> ActView {
        ActView {
            codes: [self.codes.as_ptr(), self.fine_codes.as_ptr()],
            scales: self.scales.as_ptr(),
            sums: [self.sums.as_ptr(), self.fine_sums.as_ptr()],
            starts: [self.starts.as_ptr(), self.fine_starts.as_ptr()],
            dense: self.dense.as_ptr(),
        }
    }

    pub(crate) fn view_mut(&mut self) -> ActViewMut {
        ActViewMut {
            width: self.width,
            codes: [self.codes.as_mut_ptr(), self.fine_codes.as_mut_ptr()],
            scales: self.scales.as_mut_ptr(),
            sums: [self.sums.as_mut_ptr(), self.fine_sums.as_mut_ptr()],
            starts: [self.starts.as_mut_ptr(), self.fine_starts.as_mut_ptr()],
            dense: self.dense.as_mut_ptr(),
        }
    }
}

/// Where a kernel reads activations.
#[derive(Clone, Copy)]
pub(crate) struct ActView {
    /// The coarse and the fine plane.
    pub(crate) codes: [*const i8; 2],
    pub(crate) scales: *const f32,
    pub(crate) sums: [*const i32; 2],
    pub(crate) starts: [*const i32; 2],
    pub(crate) dense: *const f32,
}

/// Most tokens that are multiplied as few.
pub(crate) const MAX_GEMV_TOKENS: usize = 2 * GROUP;

/// The activations of up to [`MAX_GEMV_TOKENS`] tokens: one buffer of width 1, or one or two groups.
#[derive(Clone, Copy)]
pub(crate) struct FewTokens {
    pub(crate) acts: [ActView; MAX_GEMV_TOKENS / GROUP],
    /// Those that are stored.
    pub(crate) count: usize,
}

impl FewTokens {
    /// The first `count` tokens of at most [`MAX_GEMV_TOKENS`].
    pub(crate) fn new(acts: &[ActBuffer], count: usize) -> Self {
        Self { acts: [acts[0].view(), acts[acts.len() - 1].view()], count }
    }

    /// The activations that hold token t of `T`, and where they have its block b.
    #[inline(always)]
    pub(crate) fn block<const T: usize>(&self, t: usize, b: usize) -> (ActView, usize) {
        let width = const { if T == 1 { 1 } else { GROUP } };
        (self.acts[t / width], b * width + t % width)
    }
}

/// Where [`quantize`] and [`interleave`] write.
#[derive(Clone, Copy)]
pub(crate) struct ActViewMut {
    width: usize,
    codes: [*mut i8; 2],
    scales: *mut f32,
    sums: [*mut i32; 2],
    starts: [*mut i32; 2],
    dense: *mut f32,
}

/// Quantizes one token's activations: scale = absmax / 127 of each block, codes rounded to nearest;
/// with `fine` also what that leaves, in steps of the scale / 254.
///
/// # Safety
/// `x` is valid for `blocks * 32` values; `to` has room for `blocks` blocks and token `token`.
#[inline(always)]
pub(crate) unsafe fn quantize<S: Simd>(
    x: *const f32,
    blocks: usize,
    to: ActViewMut,
    token: usize,
    fine: bool,
) {
    for b in 0..blocks {
        // SAFETY: the contract above covers block b of `x` and its place in `to`.
        unsafe {
            let halves: [S::F; 2] =
                std::array::from_fn(|i| S::load(x.add(b * BLOCK_COLS + 16 * i)));
            let absmax = S::reduce_max(S::max(S::abs(halves[0]), S::abs(halves[1])));
            let inverse = S::splat(if absmax > TINY { 127.0 / absmax } else { 0.0 });
            // The clamp keeps codes within ±127 even where the input is not finite.
            let round = |x| S::round(S::max(S::min(x, S::splat(127.0)), S::splat(-127.0)));
            let scaled = halves.map(|x| S::mul(x, inverse));
            let codes = scaled.map(round);
            *to.scales.add(b * to.width + token) = absmax / 127.0;
            store_codes::<S>(codes, b, to, token, 0);
            if fine {
                let steps = S::splat(FINE_STEPS as f32);
                let rest: [S::I; 2] = std::array::from_fn(|i| {
                    round(S::mul(S::sub(scaled[i], S::to_f32(codes[i])), steps))
                });
                store_codes::<S>(rest, b, to, token, 1);
            }
        }
    }
}

/// Start value of a dot product with activations of this sum: what the +128 on biased weights would
/// otherwise add.
fn start<S: Simd>(sum: i32) -> i32 {
    if S::BIASED { -128 * sum } else { 0 }
}

/// Stores the codes of one block in a plane, with their sum.
#[inline(always)]
unsafe fn store_codes<S: Simd>(
    codes: [S::I; 2],
    block: usize,
    to: ActViewMut,
    token: usize,
    plane: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let first = to.codes[plane].add((block * to.width + token) * BLOCK_COLS);
        S::store_i8(first, codes[0]);
        S::store_i8(first.add(16), codes[1]);
        let sum = S::reduce_add_i(S::add_i(codes[0], codes[1]));
        *to.sums[plane].add(block * to.width + token) = sum;
        *to.starts[plane].add(block * to.width + token) = start::<S>(sum);
    }
}

/// Copies one token's activations for the dense kernels: the same column of all tokens side by side.
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
