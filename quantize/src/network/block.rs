//! A block on the residual stream, forwards and backwards.

use super::attention::AttentionTrace;
use super::mlp::MlpTrace;
use super::{BlockParams, Input, Linear, Matrix, MixerParams, Projection};

/// Is shown a linear layer's input `[tokens, n_in]` and the gradient of its output `[tokens, n_out]`.
pub(super) type GradientObserver<'a> = &'a mut dyn FnMut(Linear, &Matrix, &Matrix);

/// The inside of a block.
enum Trace {
    Attention(AttentionTrace),
    Mlp(MlpTrace),
}

impl Trace {
    /// What the block's last linear layer reads.
    fn mid(&self) -> &Matrix {
        match self {
            Self::Attention(a) => &a.mid,
            Self::Mlp(m) => &m.mid,
        }
    }
}

impl MixerParams {
    fn trace(&self, input: &Matrix, sequence: usize) -> Trace {
        match self {
            Self::Attention(a) => Trace::Attention(a.trace(input, sequence)),
            Self::Mlp(m) => Trace::Mlp(m.trace(input)),
        }
    }

    /// The block's last linear layer.
    fn last(&self) -> (Linear, &Projection) {
        match self {
            Self::Attention(a) => (Linear::O, &a.o),
            Self::Mlp(m) => (Linear::Down, &m.down),
        }
    }

    fn first(&self) -> Input {
        match self {
            Self::Attention(_) => Input::Qkv,
            Self::Mlp(_) => Input::GateUp,
        }
    }
}

/// Adds a block's output to the residual stream `x` `[tokens, d_model]`, which holds whole sequences of
/// `sequence` tokens one after the other. `observer` is shown each matrix that linear layers read.
///
/// # Panics
/// When `x` does not hold whole sequences.
pub fn forward(
    block: &BlockParams,
    x: &mut Matrix,
    sequence: usize,
    observer: &mut dyn FnMut(Input, &Matrix),
) {
    let trace = inputs(block, x, sequence, observer);
    let (_, last) = block.mixer.last();
    match &block.post_norm {
        Some(norm) => x.add(&norm.forward(&last.apply(trace.mid()))),
        None => last.add_apply(trace.mid(), x),
    }
}

/// Shows `observer` what the linear layers of a block read, and computes no more than that takes.
///
/// # Panics
/// When `x` does not hold whole sequences.
pub fn observe(
    block: &BlockParams,
    x: &Matrix,
    sequence: usize,
    observer: &mut dyn FnMut(Input, &Matrix),
) {
    inputs(block, x, sequence, observer);
}

fn inputs(
    block: &BlockParams,
    x: &Matrix,
    sequence: usize,
    observer: &mut dyn FnMut(Input, &Matrix),
) -> Trace {
    check(x, sequence);
    let input = block.pre_norm.forward(x);
    observer(block.mixer.first(), &input);
    let trace = block.mixer.trace(&input, sequence);
    let (name, _) = block.mixer.last();
    observer(name.input(), trace.mid());
    trace
}

/// Turns the gradient of the residual stream after a block into that before it, in place. `x` is the
/// stream before the block; everything inside is computed again. `observer` is shown, last layer
/// first, each linear layer's input and the gradient of its output.
///
/// # Panics
/// When `x` does not hold whole sequences, or `dy` is not of its shape.
pub fn backward(
    block: &BlockParams,
    x: &Matrix,
    dy: &mut Matrix,
    sequence: usize,
    observer: &mut dyn FnMut(Linear, &Matrix, &Matrix),
) {
    check(x, sequence);
    assert_eq!((x.rows(), x.cols()), (dy.rows(), dy.cols()));
    let input = block.pre_norm.forward(x);
    let trace = block.mixer.trace(&input, sequence);
    let (name, last) = block.mixer.last();
    let through_norm =
        block.post_norm.as_ref().map(|norm| norm.backward(&last.apply(trace.mid()), dy));
    let d_last = through_norm.as_ref().unwrap_or(dy);
    observer(name, trace.mid(), d_last);
    let d_mid = last.back(d_last);
    let d_input = match (&block.mixer, trace) {
        (MixerParams::Attention(a), Trace::Attention(t)) => {
            a.backward(&input, &t, &d_mid, observer)
        }
        (MixerParams::Mlp(m), Trace::Mlp(t)) => m.backward(&input, t, &d_mid, observer),
        _ => unreachable!("a mixer's trace is of its own kind"),
    };
    dy.add(&block.pre_norm.backward(x, &d_input));
}

fn check(x: &Matrix, sequence: usize) {
    let whole = sequence > 0 && x.rows().is_multiple_of(sequence);
    assert!(whole, "{} tokens are not sequences of {sequence}", x.rows());
}
