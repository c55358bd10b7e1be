//! Linear layers and their names.

use super::Matrix;

/// Linear layers that read the same matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// Queries, keys and values: the normed residual stream.
    Qkv,
    /// Output projection: what the heads have gathered.
    O,
    /// Gate and up: the normed residual stream.
    GateUp,
    /// Down: the gated activations.
    Down,
}

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Linear {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// Gate of the feed-forward.
    Gate,
    /// What the gate multiplies.
    Up,
    /// Feed-forward's output.
    Down,
}

impl Input {
    /// The layers that read it.
    pub fn linears(self) -> &'static [Linear] {
        match self {
            Self::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Self::O => &[Linear::O],
            Self::GateUp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }
}

impl Linear {
    /// What it reads.
    pub fn input(self) -> Input {
        match self {
            Self::Q | Self::K | Self::V => Input::Qkv,
            Self::O => Input::O,
            Self::Gate | Self::Up => Input::GateUp,
            Self::Down => Input::Down,
        }
    }

    /// Its weight's name within a layer, e.g. `attn.q`.
    pub fn part(self) -> &'static str {
        match self {
            Self::Q => "attn.q",
            Self::K => "attn.k",
            Self::V => "attn.v",
            Self::O => "attn.o",
            Self::Gate => "mlp.gate",
            Self::Up => "mlp.up",
            Self::Down => "mlp.down",
        }
    }
}

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// `[n_out, n_in]`.
    pub weight: Matrix,
    /// `[n_out]`.
    pub bias: Option<Vec<f32>>,
}

impl Projection {
    pub(super) fn apply(&self, x: &Matrix) -> Matrix {
        let mut y = Matrix::multiply(x, &self.weight);
        self.add_bias(&mut y);
        y
    }

    /// `y += x Wᵀ + b`.
    pub(super) fn add_apply(&self, x: &Matrix, y: &mut Matrix) {
        y.add_multiply(x, &self.weight);
        self.add_bias(y);
    }

    fn add_bias(&self, y: &mut Matrix) {
        if let Some(bias) = &self.bias {
            y.for_each_row(|_, row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
    }

    /// The input's gradient from the output's.
    pub(super) fn back(&self, dy: &Matrix) -> Matrix {
        Matrix::multiply_back(dy, &self.weight)
    }

    /// Adds the input's gradient to `dx`.
    pub(super) fn add_back(&self, dy: &Matrix, dx: &mut Matrix) {
        dx.add_multiply_back(dy, &self.weight);
    }
}
