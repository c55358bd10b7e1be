//! The SIMD code of gristmill.
//!
//! Each kernel is written once, generic over the trait `simd::Simd` (16 lanes of f32 and i32, 64 bytes), and
//! compiled once per instruction-set class; `arch` holds only the primitives. All classes perform the
//! same operations in the same order, so results do not depend on the class, and they depend neither
//! on how rows are shared among threads nor on how many tokens are computed at once:
//!
//! * integer sums are exact;
//! * each output element is one chain of fused multiply-adds, over column blocks (block codecs) or
//!   columns (dense codecs) in increasing order;
//! * sums over a vector are 16 interleaved chains and a fixed tree.
//!
//! Everything below the entry points is inlined into them, which is what gives it their instructions. A
//! closure cannot be made to be inlined, and one that is not takes ten times as long: in loops over weights
//! none computes with vectors.
//!
//! Kernels do no I/O, allocation or threading. [`Kernels::for_isa`] is the only way to reach one, and
//! it returns `None` when the CPU lacks the class: holding a `&'static Kernels` proves the feature.

#![deny(missing_docs)]

mod act;
mod ahead;
mod arch;
mod attention;
mod block;
mod dense;
mod isa;
mod peak;
mod simd;
mod table;
mod vecmath;

pub use act::{ActBuffer, GROUP};
pub use attention::{
    AttentionScratch, KvHead, KvType, MAX_QUERY_ROWS, PART, POSITIONS_PER_BLOCK, ScoreRule, Span,
    result_width,
};
pub use isa::{Isa, UnknownIsa};
pub use table::{Kernels, MatrixView, Scratch};
