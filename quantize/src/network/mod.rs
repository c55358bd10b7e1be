//! A model's blocks in single precision, forwards and backwards: what calibration looks through.
//!
//! The quantizer needs, of every linear layer, its inputs and the gradient of a loss with respect to
//! its outputs. Both come from whole sequences at once, so everything here works on matrices
//! `[tokens, width]` of several sequences of equal length, and one block at a time: the caller keeps
//! the residual stream between blocks and nothing else, and [`backward`] recomputes what it needs of
//! the inside of a block from that block's input.
//!
//! ```text
//! embed ─ forward ─ forward ─ … ─ Head
//!            │         │            │      the caller keeps x before every block
//!         backward ─ backward ─ … ──┘      in reverse order, dx in place
//! ```
//!
//! Gradients are those of activations; weights have none. The products with the large matrices are
//! faer's, everything else is parallel over tokens or heads.

mod attention;
mod block;
mod head;
mod linear;
mod matrix;
mod mlp;
mod norm;
mod rotation;
mod scores;
mod spare;
mod vecmath;
mod weights;

pub use attention::Attention;
pub use block::{backward, forward, observe};
pub use head::Head;
pub use linear::{Input, Linear, Projection};
pub use matrix::Matrix;
pub use mlp::Mlp;
pub use norm::Norm;
pub(crate) use weights::embed_by;
pub use weights::{BlockParams, MixerParams, embed, tensor};
