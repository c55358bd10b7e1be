//! The primitives that kernels are written in.

/// 16 lanes of f32 and i32 and vectors of 64 bytes.
///
/// # Safety
/// Implementations must compute exactly what each method says, so that all classes give the same bits.
/// Every method may be called only where the CPU has the class of the implementation; pointers must be
/// valid for the bytes that the method names. Loads and stores need no alignment.
pub(crate) unsafe trait Simd: Copy + 'static {
    /// Whether weights enter [`Simd::dot4`] with 128 added (the unsigned operand of VNNI).
    const BIASED: bool;
    /// Groups of four tokens in one register tile of a product with a dense panel.
    const TILE_GROUPS: usize;
    /// Panels in one register tile of a product with a group of four tokens, at most
    /// [`crate::block::MAX_TILE_PANELS`].
    const TILE_PANELS: usize;
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// Sum of the lanes: lane i + lane i+8, then +4, +2, +1.
    unsafe fn reduce_add(a: Self::F) -> f32;
    /// Largest lane.
    unsafe fn reduce_max(a: Self::F) -> f32;

    /// Lane j of vector i becomes lane i of vector j.
    unsafe fn transpose(rows: [Self::F; 16]) -> [Self::F; 16];

    /// 16 bf16 as f32.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// 16 f16 as f32.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// 16 f32 as f16, rounded to nearest even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    /// 16 bytes as f32.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// The low seven bits of 16 bytes as f32.
    unsafe fn load_u7(p: *const u8) -> Self::F;

    /// To integers, rounded to nearest even. Lanes are within i32; what a NaN becomes is not defined,
    /// and callers must not let it matter.
    unsafe fn round(x: Self::F) -> Self::I;
    /// 2 to the power of each lane; lanes are within -126..=127.
    unsafe fn exp2i(x: Self::I) -> Self::F;
    unsafe fn to_f32(x: Self::I) -> Self::F;
    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn reduce_add_i(a: Self::I) -> i32;
    /// 16 lanes, each within int8, as int8.
    unsafe fn store_i8(p: *mut i8, x: Self::I);
    /// Adds `x` in the lanes whose byte of the 16 at `p` has its top bit set.
    unsafe fn add_where_top_bit(acc: Self::I, p: *const u8, x: Self::I) -> Self::I;

    unsafe fn load_bytes(p: *const u8) -> Self::B;
    unsafe fn store_bytes(p: *mut u8, x: Self::B);
    /// Each byte shifted right, and of that the bits of `mask`, which are among the lowest `8 - shift`.
    unsafe fn field(x: Self::B, shift: usize, mask: u8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// The byte of `one` where bit `bit` of the byte of `x` is set, else that of `zero`.
    unsafe fn select(x: Self::B, bit: usize, zero: Self::B, one: Self::B) -> Self::B;
    /// 16 weights in the form that [`Simd::dot4`] takes, repeated over the vector.
    unsafe fn part(values: &[i8; 16]) -> Self::B;
    /// The byte of a part that each byte, below 16, counts from its start.
    unsafe fn shuffle(part: Self::B, x: Self::B) -> Self::B;
    /// A table of weights for [`Simd::lookup`], in the form that [`Simd::dot4`] takes.
    #[inline(always)]
    unsafe fn table(values: &[i8; 64]) -> [Self::B; 4] {
        let parts = values.as_chunks::<16>().0;
        // SAFETY: the caller's contract.
        std::array::from_fn(|i| unsafe { Self::part(&parts[i]) })
    }
    /// Entries of a table: the lowest four bits of an index are those of each byte of `nibbles` from bit
    /// `shift` (0 or 4) on, the next `TOP` (0 to 2) those of `top` from bit `bit` on. Tables repeat, so
    /// that what an implementation takes for higher bits does not matter.
    #[inline(always)]
    unsafe fn lookup<const TOP: usize>(
        table: [Self::B; 4],
        nibbles: Self::B,
        shift: usize,
        top: Self::B,
        bit: usize,
    ) -> Self::B {
        // SAFETY: the caller's contract.
        unsafe { lookup_in_parts::<Self, TOP>(table, nibbles, shift, top, bit) }
    }
    /// int8 weights in the form that [`Simd::dot4`] takes.
    unsafe fn weights(x: Self::B) -> Self::B;
    /// Adds `x` to the bytes of the rows (four bytes each) whose byte of the 16 at `p` has its top bit
    /// set.
    unsafe fn add_bytes_where_top_bit(w: Self::B, p: *const u8, x: i8) -> Self::B;
    /// Lane r gains the dot product of bytes `4r .. 4r + 4` of `w` and the four int8 at `a`.
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I;

    /// Hints that the cache line at `p` is needed soon (near: all cache levels, else level 2). Any
    /// address is allowed.
    unsafe fn prefetch_near(p: *const u8);
    /// See [`Simd::prefetch_near`].
    unsafe fn prefetch_far(p: *const u8);
}

/// [`Simd::lookup`] in parts of 16 entries.
///
/// # Safety
/// The CPU has the class of `S`.
#[inline(always)]
pub(crate) unsafe fn lookup_in_parts<S: Simd, const TOP: usize>(
    table: [S::B; 4],
    nibbles: S::B,
    shift: usize,
    top: S::B,
    bit: usize,
) -> S::B {
    // SAFETY: the contract above.
    unsafe {
        let low = S::field(nibbles, shift, 0x0f);
        match TOP {
            0 => S::shuffle(table[0], low),
            1 => lookup_in_pair::<S>([table[0], table[1]], low, top, bit),
            _ => {
                let zero = lookup_in_pair::<S>([table[0], table[1]], low, top, bit);
                let one = lookup_in_pair::<S>([table[2], table[3]], low, top, bit);
                S::select(top, bit + 1, zero, one)
            }
        }
    }
}

#[inline(always)]
unsafe fn lookup_in_pair<S: Simd>(parts: [S::B; 2], low: S::B, top: S::B, bit: usize) -> S::B {
    // SAFETY: the caller's contract.
    unsafe { S::select(top, bit, S::shuffle(parts[0], low), S::shuffle(parts[1], low)) }
}
