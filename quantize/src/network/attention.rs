//! Attention around its scores: projections, head norms, rotation.

use gristmill_formats::model::AttentionSpec;

use super::block::GradientObserver;
use super::rotation::Rotation;
use super::scores::Scores;
use super::{Linear, Matrix, Norm, Projection};

/// An attention block's mixer.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Heads, window, caps, positions.
    pub spec: AttentionSpec,
    /// `[heads * head_dim, d_model]`.
    pub q: Projection,
    /// `[kv_heads * head_dim, d_model]`.
    pub k: Projection,
    /// `[kv_heads * head_dim, d_model]`.
    pub v: Projection,
    /// `[d_model, heads * head_dim]`.
    pub o: Projection,
    /// Norms over each head of q and of k.
    pub qk_norm: Option<(Norm, Norm)>,
}

/// The inside of an attention block.
#[derive(Debug)]
pub(super) struct AttentionTrace {
    /// Outputs of the q and k projections, where a norm stands after them.
    raw: Option<(Matrix, Matrix)>,
    rotation: Option<Rotation>,
    scores: Scores,
    /// What the heads have gathered, `[tokens, heads * head_dim]`; what `o` reads.
    pub(super) mid: Matrix,
}

impl Attention {
    pub(super) fn trace(&self, input: &Matrix, sequence: usize) -> AttentionTrace {
        let (mut q, mut k) = (self.q.apply(input), self.k.apply(input));
        let raw = self.qk_norm.as_ref().map(|(q_norm, k_norm)| {
            let normed = (q_norm.forward(&q), k_norm.forward(&k));
            (std::mem::replace(&mut q, normed.0), std::mem::replace(&mut k, normed.1))
        });
        let rope = self.spec.rope.as_ref();
        let rotation = rope.map(|rope| Rotation::new(rope, self.spec.head_dim, sequence));
        if let Some(rotation) = &rotation {
            rotation.turn(&mut q);
            rotation.turn(&mut k);
        }
        let scores = Scores { q, k, v: self.v.apply(input), sequence };
        let mid = scores.attend(&self.spec);
        AttentionTrace { raw, rotation, scores, mid }
    }

    /// The input's gradient from that of `mid`.
    pub(super) fn backward(
        &self,
        input: &Matrix,
        trace: &AttentionTrace,
        d_mid: &Matrix,
        observer: GradientObserver<'_>,
    ) -> Matrix {
        let (mut dq, mut dk, dv) = trace.scores.backward(&self.spec, d_mid);
        if let Some(rotation) = &trace.rotation {
            rotation.turn_back(&mut dq);
            rotation.turn_back(&mut dk);
        }
        if let (Some((q_norm, k_norm)), Some((q, k))) = (&self.qk_norm, &trace.raw) {
            dq = q_norm.backward(q, &dq);
            dk = k_norm.backward(k, &dk);
        }
        observer(Linear::Q, input, &dq);
        observer(Linear::K, input, &dk);
        observer(Linear::V, input, &dv);
        let mut d_input = self.q.back(&dq);
        self.k.add_back(&dk, &mut d_input);
        self.v.add_back(&dv, &mut d_input);
        d_input
    }
}
