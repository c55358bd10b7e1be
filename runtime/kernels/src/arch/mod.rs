//! The primitives per instruction-set class.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is a primitive whose contract is the trait's, stated once per `impl`"
)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;
