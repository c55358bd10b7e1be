//! Primitives on AVX2 with FMA and F16C: two 256-bit registers per vector, the first for lanes and
//! rows 0..8.

use std::arch::x86_64::*;

use crate::simd::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Sum of eight lanes in the order that [`Simd::reduce_add`] fixes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(crate) unsafe fn reduce_add8(a: __m256) -> f32 {
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}

/// Largest of eight lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(crate) unsafe fn reduce_max8(a: __m256) -> f32 {
    unsafe {
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}

/// Lane j of vector i becomes lane i of vector j.
#[inline(always)]
unsafe fn transpose8(rows: [__m256; 8]) -> [__m256; 8] {
    let mut quads = rows;
    for q in [0, 4] {
        unsafe {
            let low = _mm256_castps_pd(_mm256_unpacklo_ps(rows[q], rows[q + 1]));
            let high = _mm256_castps_pd(_mm256_unpackhi_ps(rows[q], rows[q + 1]));
            let low2 = _mm256_castps_pd(_mm256_unpacklo_ps(rows[q + 2], rows[q + 3]));
            let high2 = _mm256_castps_pd(_mm256_unpackhi_ps(rows[q + 2], rows[q + 3]));
            quads[q] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2));
            quads[q + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2));
            quads[q + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2));
            quads[q + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2));
        }
    }
    std::array::from_fn(|c| {
        let (a, b) = (quads[c % 4], quads[4 + c % 4]);
        unsafe {
            if c < 4 {
                _mm256_permute2f128_ps::<0x20>(a, b)
            } else {
                _mm256_permute2f128_ps::<0x31>(a, b)
            }
        }
    })
}

/// Applies an expression to both halves.
macro_rules! both {
    (|$($x:ident),+| $e:expr) => {{
        let halves = |i: usize| { $(let $x = $x[i];)+ unsafe { $e } };
        [halves(0), halves(1)]
    }};
}

// SAFETY: each method is a few instructions that compute what the trait says. The trait's callers
// guarantee the CPU features and the validity of pointers.
unsafe impl Simd for Avx2 {
    const BIASED: bool = false;
    const TILE_GROUPS: usize = 1;
    const TILE_PANELS: usize = 1;
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(|a, b| _mm256_add_ps(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(|a, b| _mm256_sub_ps(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(|a, b| _mm256_mul_ps(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(|a, b| _mm256_div_ps(a, b))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(|a, b, c| _mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(|a, b| _mm256_max_ps(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(|a, b| _mm256_min_ps(a, b))
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        both!(|a| _mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }
    #[inline(always)]
    unsafe fn reduce_add(a: Self::F) -> f32 {
        unsafe { reduce_add8(_mm256_add_ps(a[0], a[1])) }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: Self::F) -> f32 {
        unsafe { reduce_max8(_mm256_max_ps(a[0], a[1])) }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self::F; 16]) -> [Self::F; 16] {
        let mut out = rows;
        for half in 0..2 {
            for part in 0..2 {
                let square = std::array::from_fn(|i| rows[8 * half + i][part]);
                let columns = unsafe { transpose8(square) };
                for (i, column) in columns.into_iter().enumerate() {
                    out[8 * part + i][half] = column;
                }
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        let half = |i: usize| unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8 * i).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        let half = |i: usize| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.add(8 * i).cast())) };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        for i in 0..2 {
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[i]);
                _mm_storeu_si128(p.add(8 * i).cast(), half);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        let half = |i: usize| unsafe {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast())))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn load_u7(p: *const u8) -> Self::F {
        let half = |i: usize| unsafe {
            let bytes = _mm_and_si128(_mm_loadl_epi64(p.add(8 * i).cast()), _mm_set1_epi8(0x7f));
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::I {
        both!(|x| _mm256_cvtps_epi32(x))
    }
    #[inline(always)]
    unsafe fn exp2i(x: Self::I) -> Self::F {
        both!(|x| {
            let biased = _mm256_add_epi32(x, _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        both!(|x| _mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        both!(|a, b| _mm256_add_epi32(a, b))
    }
    #[inline(always)]
    unsafe fn reduce_add_i(a: Self::I) -> i32 {
        unsafe {
            let a = _mm256_add_epi32(a[0], a[1]);
            let a = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            let a = _mm_add_epi32(a, _mm_shuffle_epi32::<0b1110>(a));
            _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32::<1>(a)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        unsafe {
            // Packing works within 128-bit halves; the permutation restores the order of lanes.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
            let low = _mm256_castsi256_si128(words);
            let high = _mm256_extracti128_si256::<1>(words);
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high));
        }
    }
    #[inline(always)]
    unsafe fn add_where_top_bit(acc: Self::I, p: *const u8, x: Self::I) -> Self::I {
        let half = |i: usize| unsafe {
            let bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
            let mask = _mm256_srai_epi32::<31>(bytes);
            _mm256_add_epi32(acc[i], _mm256_and_si256(mask, x[i]))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: Self::B) {
        unsafe {
            _mm256_storeu_si256(p.cast(), x[0]);
            _mm256_storeu_si256(p.add(32).cast(), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn field(x: Self::B, shift: usize, mask: u8) -> Self::B {
        both!(|x| {
            let shifted = _mm256_srl_epi16(x, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        both!(|a, b| _mm256_or_si256(a, b))
    }
    #[inline(always)]
    unsafe fn select(x: Self::B, bit: usize, zero: Self::B, one: Self::B) -> Self::B {
        // A blend looks at the top bits of bytes.
        both!(|x, zero, one| {
            let top = _mm256_sll_epi16(x, _mm_cvtsi32_si128(7 - bit as i32));
            _mm256_blendv_epi8(zero, one, top)
        })
    }
    #[inline(always)]
    unsafe fn part(values: &[i8; 16]) -> Self::B {
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())); 2] }
    }
    #[inline(always)]
    unsafe fn shuffle(part: Self::B, x: Self::B) -> Self::B {
        both!(|part, x| _mm256_shuffle_epi8(part, x))
    }
    #[inline(always)]
    unsafe fn weights(x: Self::B) -> Self::B {
        x
    }
    #[inline(always)]
    unsafe fn add_bytes_where_top_bit(w: Self::B, p: *const u8, x: i8) -> Self::B {
        let half = |i: usize| unsafe {
            let bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
            let mask = _mm256_srai_epi32::<31>(bytes);
            _mm256_add_epi8(w[i], _mm256_and_si256(mask, _mm256_set1_epi8(x)))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // maddubs saturates at 16 bits. With the weight's sign moved to the activation, a pair sums to
        // at most 2 * 128 * 127 = 32512, which fits: activations are never -128.
        both!(|acc, w| {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    unsafe fn prefetch_near(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
