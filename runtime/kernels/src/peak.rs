//! Multiply-accumulates and nothing else: the ceilings of the matrix products.
//!
//! As in the products one operand stays in a register and the other is broadcast from memory, here from
//! a few lines of the first-level cache; independent chains hide the latency.

use std::hint::black_box;

use crate::simd::Simd;

/// Broadcasts in a pass, per chain.
const STEPS: usize = 64;
/// Chains where vectors are one register of 32.
const CHAINS: usize = 16;
/// Chains where vectors are two registers of 16: more would be spilled.
const FEW_CHAINS: usize = 4;

/// Makes `passes` passes of `dot4` and returns the multiply-accumulates done.
///
/// # Safety
/// The CPU has the class of `S`.
#[inline(always)]
pub(crate) unsafe fn int8<S: Simd>(passes: usize) -> u64 {
    // SAFETY: the contract above.
    unsafe {
        if S::TILE_GROUPS == 1 {
            int8_chains::<S, FEW_CHAINS>(passes)
        } else {
            int8_chains::<S, CHAINS>(passes)
        }
    }
}

/// The same of fused multiply-adds in f32.
///
/// # Safety
/// The CPU has the class of `S`.
#[inline(always)]
pub(crate) unsafe fn f32<S: Simd>(passes: usize) -> u64 {
    // SAFETY: the contract above.
    unsafe {
        if S::TILE_GROUPS == 1 {
            f32_chains::<S, FEW_CHAINS>(passes)
        } else {
            f32_chains::<S, CHAINS>(passes)
        }
    }
}

#[inline(always)]
unsafe fn int8_chains<S: Simd, const N: usize>(passes: usize) -> u64 {
    // Products of a chain cancel, so that no number of passes overflows it.
    let activations = [[[1i8, -1, 1, -1]; N]; STEPS];
    // SAFETY: 64 bytes of weights, four activations per step and chain.
    unsafe {
        let weights = S::weights(S::load_bytes(black_box([1u8; 64]).as_ptr()));
        let mut sums = [S::splat_i(0); N];
        for _ in 0..passes {
            // Read anew in each pass.
            for step in black_box(&activations) {
                for c in 0..N {
                    sums[c] = S::dot4(sums[c], weights, step[c].as_ptr());
                }
            }
        }
        black_box(sums.map(|sum| S::reduce_add_i(sum)));
    }
    (passes * STEPS * N * 64) as u64
}

#[inline(always)]
unsafe fn f32_chains<S: Simd, const N: usize>(passes: usize) -> u64 {
    let values = [[1.0f32; N]; STEPS];
    // SAFETY: no memory but `values` is read.
    unsafe {
        let weight = S::splat(black_box(0.5));
        let mut sums = [S::splat(0.0); N];
        for _ in 0..passes {
            for step in black_box(&values) {
                for c in 0..N {
                    sums[c] = S::fma(weight, S::splat(step[c]), sums[c]);
                }
            }
        }
        black_box(sums.map(|sum| S::reduce_add(sum)));
    }
    (passes * STEPS * N * 16) as u64
}
