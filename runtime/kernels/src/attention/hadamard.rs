//! The rotation of heads that are kept in few bits.
//!
//! A Walsh-Hadamard transform spreads outliers over all dimensions, so that one scale fits them all, and
//! leaves products of rotated vectors as they were. It is its own inverse. A head whose vectors of 16
//! are no power of two is rotated in equal parts that are.

use crate::simd::Simd;

/// The transform of 16 elements, normalised, row by row: the sign is the parity of the bits that the
/// two indices share.
const SIXTEEN: [[f32; 16]; 16] = {
    let mut rows = [[0.25; 16]; 16];
    let mut i = 0usize;
    while i < 256 {
        if ((i / 16) & (i % 16)).count_ones() % 2 == 1 {
            rows[i / 16][i % 16] = -0.25;
        }
        i += 1;
    }
    rows
};

/// Rotates `n` elements, a multiple of 16, in place.
///
/// # Safety
/// `x` is valid for `n` values.
#[inline(always)]
pub(super) unsafe fn rotate<S: Simd>(x: *mut f32, n: usize) {
    let vectors = n / 16;
    let part = 1 << vectors.trailing_zeros();
    let norm = 1.0 / (part as f32).sqrt();
    // SAFETY: the contract above.
    unsafe {
        for i in (0..n).step_by(16) {
            let mut sum = S::splat(0.0);
            for (j, row) in SIXTEEN.iter().enumerate() {
                sum = S::fma(S::splat(*x.add(i + j) * norm), S::load(row.as_ptr()), sum);
            }
            S::store(x.add(i), sum);
        }
        let mut half = 1;
        while half < part {
            for i in (0..vectors).filter(|i| i & half == 0) {
                let (low, high) = (x.add(16 * i), x.add(16 * (i + half)));
                let (a, b) = (S::load(low), S::load(high));
                S::store(low, S::add(a, b));
                S::store(high, S::sub(a, b));
            }
            half *= 2;
        }
    }
}
