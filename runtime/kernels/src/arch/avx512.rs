//! Primitives on AVX-512 with VNNI: one 512-bit register per vector. With VBMI, a byte of a whole register
//! is looked up by six bits, whatever the others are.

use std::arch::x86_64::*;

use crate::simd::{Simd, lookup_in_parts};

#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VBMI: bool>;

/// Vector `4 q + k` of the result holds, in 128-bit part p, column `4 p + k` of rows `4 q .. 4 q + 4`.
#[inline(always)]
unsafe fn transpose_quads(rows: [__m512; 16]) -> [__m512; 16] {
    let mut out = rows;
    for q in (0..16).step_by(4) {
        unsafe {
            let low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[q], rows[q + 1]));
            let high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[q], rows[q + 1]));
            let low2 = _mm512_castps_pd(_mm512_unpacklo_ps(rows[q + 2], rows[q + 3]));
            let high2 = _mm512_castps_pd(_mm512_unpackhi_ps(rows[q + 2], rows[q + 3]));
            out[q] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2));
            out[q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
            out[q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2));
            out[q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
        }
    }
    out
}

// SAFETY: each method is one or a few instructions that compute what the trait says. The trait's
// callers guarantee the CPU features and the validity of pointers.
unsafe impl<const VBMI: bool> Simd for Avx512<VBMI> {
    const BIASED: bool = true;
    const TILE_GROUPS: usize = 3;
    const TILE_PANELS: usize = 3;
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn reduce_add(a: __m512) -> f32 {
        unsafe {
            let low = _mm512_castps512_ps256(a);
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b1110>(a, a));
            super::avx2::reduce_add8(_mm256_add_ps(low, high))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: __m512) -> f32 {
        unsafe {
            let low = _mm512_castps512_ps256(a);
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b1110>(a, a));
            super::avx2::reduce_max8(_mm256_max_ps(low, high))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
        unsafe {
            // Columns of four rows at a time, in each 128-bit part; then parts are transposed.
            let quads = transpose_quads(rows);
            let mut out = rows;
            for k in 0..4 {
                let [a, b, c, d] = [quads[k], quads[4 + k], quads[8 + k], quads[12 + k]];
                let even_ab = _mm512_shuffle_f32x4::<0x88>(a, b);
                let odd_ab = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let even_cd = _mm512_shuffle_f32x4::<0x88>(c, d);
                let odd_cd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                out[k] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
                out[4 + k] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
                out[8 + k] = _mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd);
                out[12 + k] = _mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m512) {
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(p.cast(), half);
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u7(p: *const u8) -> __m512 {
        unsafe {
            let bytes = _mm_and_si128(_mm_loadu_si128(p.cast()), _mm_set1_epi8(0x7f));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(x) }
    }
    #[inline(always)]
    unsafe fn exp2i(x: __m512i) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(x, _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn add_i(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn reduce_add_i(a: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(a) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: __m512i) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    unsafe fn add_where_top_bit(acc: __m512i, p: *const u8, x: __m512i) -> __m512i {
        unsafe {
            let mask = _mm_movepi8_mask(_mm_loadu_si128(p.cast()));
            _mm512_mask_add_epi32(acc, mask, acc, x)
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn field(x: __m512i, shift: usize, mask: u8) -> __m512i {
        unsafe {
            let shifted = _mm512_srl_epi16(x, _mm_cvtsi32_si128(shift as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn select(x: __m512i, bit: usize, zero: __m512i, one: __m512i) -> __m512i {
        unsafe {
            let mask = _mm512_test_epi8_mask(x, _mm512_set1_epi8((1u8 << bit) as i8));
            _mm512_mask_blend_epi8(mask, zero, one)
        }
    }
    #[inline(always)]
    unsafe fn part(values: &[i8; 16]) -> __m512i {
        unsafe {
            let values = _mm_loadu_si128(values.as_ptr().cast());
            _mm512_broadcast_i32x4(_mm_xor_si128(values, _mm_set1_epi8(-128)))
        }
    }
    #[inline(always)]
    unsafe fn shuffle(part: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(part, x) }
    }
    #[inline(always)]
    unsafe fn table(values: &[i8; 64]) -> [__m512i; 4] {
        unsafe {
            if VBMI {
                return [Self::weights(_mm512_loadu_si512(values.as_ptr().cast())); 4];
            }
            let parts = values.as_chunks::<16>().0;
            std::array::from_fn(|i| Self::part(&parts[i]))
        }
    }
    #[inline(always)]
    unsafe fn lookup<const TOP: usize>(
        table: [__m512i; 4],
        nibbles: __m512i,
        shift: usize,
        top: __m512i,
        bit: usize,
    ) -> __m512i {
        unsafe {
            if !VBMI {
                return lookup_in_parts::<Self, TOP>(table, nibbles, shift, top, bit);
            }
            let low = _mm512_srl_epi16(nibbles, _mm_cvtsi32_si128(shift as i32));
            let index = match TOP {
                0 => low,
                // Bit `bit` of a byte goes to bit 4; what else of `top` lands there or above is ignored
                // or, for one bit, repeats the table.
                _ => {
                    let left = _mm_cvtsi32_si128(4usize.saturating_sub(bit) as i32);
                    let right = _mm_cvtsi32_si128(bit.saturating_sub(4) as i32);
                    let top = _mm512_srl_epi16(_mm512_sll_epi16(top, left), right);
                    _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(0x0f), low, top)
                }
            };
            _mm512_permutexvar_epi8(index, table[0])
        }
    }
    #[inline(always)]
    unsafe fn weights(x: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(x, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn add_bytes_where_top_bit(w: __m512i, p: *const u8, x: i8) -> __m512i {
        unsafe {
            let mask = _mm_movepi8_mask(_mm_loadu_si128(p.cast()));
            let shift = _mm512_maskz_mov_epi32(mask, _mm512_set1_epi8(x));
            _mm512_add_epi8(w, shift)
        }
    }
    #[inline(always)]
    unsafe fn dot4(acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
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
