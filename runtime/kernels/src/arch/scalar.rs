//! Portable primitives over arrays.

use half::{bf16, f16};

use crate::simd::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
    a.map(f)
}

fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

fn reduce(mut a: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            a[i] = f(a[i], a[i + half]);
        }
    }
    a[0]
}

// SAFETY: each method is the definition in the trait, written out. Reads and writes are unaligned and
// of the sizes that the trait names.
unsafe impl Simd for Scalar {
    const BIASED: bool = false;
    const TILE_GROUPS: usize = 1;
    const TILE_PANELS: usize = 1;
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];

    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, f32::abs)
    }
    unsafe fn reduce_add(a: Self::F) -> f32 {
        reduce(a, |a, b| a + b)
    }
    unsafe fn reduce_max(a: Self::F) -> f32 {
        reduce(a, |a, b| if a > b { a } else { b })
    }
    unsafe fn transpose(rows: [Self::F; 16]) -> [Self::F; 16] {
        std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))
    }
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 elements.
        let bits = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        bits.map(|b| bf16::from_bits(b).to_f32())
    }
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 elements.
        let bits = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits())) }
    }
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { p.cast::<[u8; 16]>().read_unaligned() }.map(f32::from)
    }
    unsafe fn load_u7(p: *const u8) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { p.cast::<[u8; 16]>().read_unaligned() }.map(|b| f32::from(b & 0x7f))
    }
    unsafe fn round(x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }
    unsafe fn exp2i(x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(((x + 127) as u32) << 23))
    }
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; 16]
    }
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    unsafe fn reduce_add_i(a: Self::I) -> i32 {
        a.into_iter().fold(0, i32::wrapping_add)
    }
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { p.cast::<[i8; 16]>().write_unaligned(x.map(|x| x as i8)) }
    }
    unsafe fn add_where_top_bit(acc: Self::I, p: *const u8, x: Self::I) -> Self::I {
        // SAFETY: the caller's pointer is valid for 16 elements.
        let bytes = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        std::array::from_fn(|i| if bytes[i] & 0x80 != 0 { acc[i] + x[i] } else { acc[i] })
    }
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: the caller's pointer is valid for 64 bytes.
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    unsafe fn store_bytes(p: *mut u8, x: Self::B) {
        // SAFETY: the caller's pointer is valid for 64 bytes.
        unsafe { p.cast::<[u8; 64]>().write_unaligned(x) }
    }
    unsafe fn field(x: Self::B, shift: usize, mask: u8) -> Self::B {
        x.map(|b| (b >> shift) & mask)
    }
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    unsafe fn select(x: Self::B, bit: usize, zero: Self::B, one: Self::B) -> Self::B {
        std::array::from_fn(|i| if x[i] >> bit & 1 == 1 { one[i] } else { zero[i] })
    }
    unsafe fn part(values: &[i8; 16]) -> Self::B {
        std::array::from_fn(|i| values[i % 16] as u8)
    }
    unsafe fn shuffle(part: Self::B, x: Self::B) -> Self::B {
        x.map(|i| part[usize::from(i & 0x0f)])
    }
    unsafe fn weights(x: Self::B) -> Self::B {
        x
    }
    unsafe fn add_bytes_where_top_bit(w: Self::B, p: *const u8, x: i8) -> Self::B {
        // SAFETY: the caller's pointer is valid for 16 elements.
        let bytes = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        std::array::from_fn(|i| {
            if bytes[i / 4] & 0x80 != 0 { w[i].wrapping_add(x as u8) } else { w[i] }
        })
    }
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: the caller's pointer is valid for 4 elements.
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|r| {
            let products = (0..4).map(|j| i32::from(w[4 * r + j] as i8) * i32::from(a[j]));
            acc[r] + products.sum::<i32>()
        })
    }
    unsafe fn prefetch_near(_: *const u8) {}
    unsafe fn prefetch_far(_: *const u8) {}
}
