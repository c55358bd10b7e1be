//! Feed-forward: `down(act(gate(x)) * up(x))`.

use gristmill_formats::model::{Activation, MlpSpec};
use rayon::prelude::*;

use super::block::GradientObserver;
use super::vecmath::{sigmoid, vectorized};
use super::{Linear, Matrix, Projection};

/// A feed-forward block's mixer.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Shape and nonlinearity.
    pub spec: MlpSpec,
    /// `[d_ff, d_model]`.
    pub gate: Projection,
    /// `[d_ff, d_model]`.
    pub up: Projection,
    /// `[d_model, d_ff]`.
    pub down: Projection,
}

/// The inside of a feed-forward, all `[tokens, d_ff]`.
#[derive(Debug)]
pub(super) struct MlpTrace {
    gate: Matrix,
    up: Matrix,
    /// `act(gate) * up`, what `down` reads.
    pub(super) mid: Matrix,
}

impl Mlp {
    pub(super) fn trace(&self, input: &Matrix) -> MlpTrace {
        let (gate, up) = (self.gate.apply(input), self.up.apply(input));
        let mid = match self.spec.activation {
            Activation::Silu => gated(silu, &gate, &up),
            Activation::GeluTanh => gated(gelu_tanh, &gate, &up),
        };
        MlpTrace { gate, up, mid }
    }

    /// The input's gradient from that of `mid`.
    pub(super) fn backward(
        &self,
        input: &Matrix,
        trace: MlpTrace,
        d_mid: &Matrix,
        observer: GradientObserver<'_>,
    ) -> Matrix {
        let MlpTrace { mut gate, mut up, .. } = trace;
        match self.spec.activation {
            Activation::Silu => gated_back(silu, &mut gate, &mut up, d_mid),
            Activation::GeluTanh => gated_back(gelu_tanh, &mut gate, &mut up, d_mid),
        }
        let (d_gate, d_up) = (gate, up);
        observer(Linear::Gate, input, &d_gate);
        observer(Linear::Up, input, &d_up);
        let mut d_input = self.gate.back(&d_gate);
        self.up.add_back(&d_up, &mut d_input);
        d_input
    }
}

/// Both nonlinearities are `x * sigmoid(z(x))`; this is `z` and its derivative.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    (x, 1.0)
}

/// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))` is `x * sigmoid(2 √(2/π) (x + 0.044715 x³))`.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    const CUBIC: f32 = 0.044_715;
    let square = x * x;
    (
        TWO_SQRT_2_OVER_PI * x * (1.0 + CUBIC * square),
        TWO_SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * square),
    )
}

/// `act(gate) * up`.
fn gated(act: impl Fn(f32) -> (f32, f32) + Sync, gate: &Matrix, up: &Matrix) -> Matrix {
    let mut mid = Matrix::unset(gate.rows(), gate.cols());
    mid.for_each_row(|t, mid| {
        vectorized(|| {
            for ((mid, gate), up) in mid.iter_mut().zip(gate.row(t)).zip(up.row(t)) {
                *mid = gate * sigmoid(act(*gate).0) * up;
            }
        });
    });
    mid
}

/// Turns `gate` and `up` into their gradients.
fn gated_back(
    act: impl Fn(f32) -> (f32, f32) + Sync,
    gate: &mut Matrix,
    up: &mut Matrix,
    d_mid: &Matrix,
) {
    let d_ff = gate.cols();
    let rows = gate.data_mut().par_chunks_exact_mut(d_ff);
    let rows = rows.zip(up.data_mut().par_chunks_exact_mut(d_ff)).enumerate();
    rows.for_each(|(t, (gate, up))| {
        vectorized(|| {
            for ((gate, up), d_mid) in gate.iter_mut().zip(up).zip(d_mid.row(t)) {
                let (x, (z, slope)) = (*gate, act(*gate));
                let s = sigmoid(z);
                *gate = d_mid * *up * (s + x * s * (1.0 - s) * slope);
                *up = d_mid * x * s;
            }
        });
    });
}
