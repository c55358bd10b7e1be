//! Elementwise mathematics: norm, exponential, gated activations, softmax sums.

use crate::simd::Simd;

/// `x / sqrt(mean(x²) + eps) * gain`, over `n` values in buffers padded to a multiple of 32.
///
/// # Safety
/// `x`, `gain` and `out` are valid for `n` rounded up to 32; `x` and `gain` are zero beyond `n`.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Simd>(
    x: *const f32,
    gain: *const f32,
    eps: f32,
    n: usize,
    out: *mut f32,
) {
    // SAFETY: the contract above.
    unsafe {
        let padded = n.next_multiple_of(32);
        let (mut even, mut odd) = (S::splat(0.0), S::splat(0.0));
        for i in (0..padded).step_by(32) {
            let (a, b) = (S::load(x.add(i)), S::load(x.add(i + 16)));
            even = S::fma(a, a, even);
            odd = S::fma(b, b, odd);
        }
        let mean = S::reduce_add(S::add(even, odd)) / n as f32;
        let factor = S::splat(1.0 / (mean + eps).sqrt());
        for i in (0..padded).step_by(16) {
            let normed = S::mul(S::load(x.add(i)), factor);
            S::store(out.add(i), S::mul(normed, S::load(gain.add(i))));
        }
    }
}

/// e^x with a relative error below 2e-7. Lanes are clamped to ±87, so the result is never zero and
/// never infinite; a NaN stays one.
///
/// x = k ln 2 + r with |r| ≤ ln 2 / 2 (Cody and Waite's two-part constant), e^r by its Taylor
/// polynomial of degree 7.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: no memory is touched.
    unsafe {
        // `x` is the second operand of both: that is the one that a NaN passes through.
        let x = S::max(S::splat(-87.0), S::min(S::splat(87.0), x));
        let k = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let kf = S::to_f32(k);
        let r = S::fma(kf, S::splat(-0.693_359_4), x);
        let r = S::fma(kf, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::mul(p, S::exp2i(k))
    }
}

/// `gate = gate * sigmoid(gate) * up`.
///
/// # Safety
/// Both are valid for `n` values, a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn silu_mul<S: Simd>(gate: *mut f32, up: *const f32, n: usize) {
    for i in (0..n).step_by(16) {
        // SAFETY: the contract above.
        unsafe {
            let g = S::load(gate.add(i));
            let one = S::splat(1.0);
            let sigmoid = S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), g))));
            S::store(gate.add(i), S::mul(S::mul(g, sigmoid), S::load(up.add(i))));
        }
    }
}

/// `gate = gelu(gate) * up` with gelu in its tanh form: `0.5 g (1 + tanh(√(2/π) (g + 0.044715 g³)))`,
/// which is `g * sigmoid(2 √(2/π) (g + 0.044715 g³))`.
///
/// # Safety
/// Both are valid for `n` values, a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh_mul<S: Simd>(gate: *mut f32, up: *const f32, n: usize) {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    for i in (0..n).step_by(16) {
        // SAFETY: the contract above.
        unsafe {
            let g = S::load(gate.add(i));
            let one = S::splat(1.0);
            let cubic = S::fma(S::mul(g, g), S::splat(0.044_715), one);
            let z = S::mul(S::mul(g, cubic), S::splat(-TWO_SQRT_2_OVER_PI));
            let sigmoid = S::div(one, S::add(one, exp::<S>(z)));
            S::store(gate.add(i), S::mul(S::mul(g, sigmoid), S::load(up.add(i))));
        }
    }
}

/// Largest value of `n`; -infinity when `n` is 0.
///
/// # Safety
/// `x` is valid for `n` values.
#[inline(always)]
pub(crate) unsafe fn max<S: Simd>(x: *const f32, n: usize) -> f32 {
    // SAFETY: the contract above.
    unsafe {
        let mut best = S::splat(f32::NEG_INFINITY);
        let whole = n / 16 * 16;
        for i in (0..whole).step_by(16) {
            best = S::max(S::load(x.add(i)), best);
        }
        let mut best = S::reduce_max(best);
        for i in whole..n {
            let value = *x.add(i);
            best = if value > best { value } else { best };
        }
        best
    }
}

/// `Σ e^(x - max)` in double precision per block of 4096, so that a vocabulary of any size loses
/// nothing.
///
/// # Safety
/// `x` is valid for `n` values.
#[inline(always)]
pub(crate) unsafe fn exp_sum<S: Simd>(x: *const f32, n: usize, max: f32) -> f64 {
    // SAFETY: the contract above.
    unsafe {
        let mut total = 0.0f64;
        let mut i = 0;
        while i + 16 <= n {
            let mut sum = S::splat(0.0);
            let end = (i + 4096).min(n / 16 * 16);
            while i < end {
                sum = S::add(sum, exp::<S>(S::sub(S::load(x.add(i)), S::splat(max))));
                i += 16;
            }
            total += f64::from(S::reduce_add(sum));
        }
        for j in i..n {
            total += f64::from((*x.add(j) - max).exp());
        }
        total
    }
}

/// `x = cap * tanh(x / cap)` in place.
///
/// # Safety
/// `x` is valid for `n` values, a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn softcap<S: Simd>(x: *mut f32, n: usize, cap: f32) {
    for i in (0..n).step_by(16) {
        // SAFETY: the contract above.
        unsafe { S::store(x.add(i), capped::<S>(S::load(x.add(i)), cap)) };
    }
}

/// `cap * tanh(x / cap)`, with tanh z = 1 - 2 / (e^2z + 1).
#[inline(always)]
pub(crate) unsafe fn capped<S: Simd>(x: S::F, cap: f32) -> S::F {
    // SAFETY: no memory is touched.
    unsafe {
        let one = S::splat(1.0);
        let e = exp::<S>(S::mul(x, S::splat(2.0 / cap)));
        let tanh = S::sub(one, S::div(S::splat(2.0), S::add(e, one)));
        S::mul(tanh, S::splat(cap))
    }
}
