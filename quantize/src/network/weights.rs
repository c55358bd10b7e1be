//! A block's tensors in single precision.

use gristmill_formats::FormatError;
use gristmill_formats::model::{Mixer, ModelSpec, NormSpec, layer_tensor};
use gristmill_formats::source::ModelSource;

use super::{Attention, Linear, Matrix, Mlp, Norm, Projection};
use crate::Result;

/// A tensor in single precision; a vector has one row.
///
/// # Errors
/// When the source has no such tensor or cannot read it.
pub fn tensor(source: &dyn ModelSource, name: &str) -> Result<Matrix> {
    let tensor = source.tensor(name)?;
    let mut matrix = Matrix::unset(tensor.rows(), tensor.cols());
    matrix.for_each_row(|r, row| tensor.decode_row(r, row));
    Ok(matrix)
}

/// Embedding rows of `tokens`, `[tokens, d_model]`: the residual stream before the first block.
///
/// # Errors
/// When the embedding cannot be read.
///
/// # Panics
/// When a token is not in the vocabulary.
pub fn embed(source: &dyn ModelSource, tokens: &[u32]) -> Result<Matrix> {
    let spec = source.spec();
    assert!(tokens.iter().all(|&t| t < spec.vocab_size), "a token beyond the vocabulary");
    let tensor = source.tensor("embed")?;
    Ok(embed_by(spec, tokens, |token, row| tensor.decode_row(token, row)))
}

/// The same from an embedding of which `decode` gives the row of a token.
pub(crate) fn embed_by(
    spec: &ModelSpec,
    tokens: &[u32],
    decode: impl Fn(usize, &mut [f32]) + Sync,
) -> Matrix {
    let mut x = Matrix::unset(tokens.len(), spec.d_model as usize);
    x.for_each_row(|t, row| {
        decode(tokens[t] as usize, row);
        row.iter_mut().for_each(|x| *x *= spec.embedding_scale);
    });
    x
}

pub(super) fn vector(source: &dyn ModelSource, name: &str) -> Result<Vec<f32>> {
    Ok(tensor(source, name)?.data().to_vec())
}

pub(super) fn norm(source: &dyn ModelSource, name: &str, spec: NormSpec) -> Result<Norm> {
    let mut gain = vector(source, name)?;
    if spec.plus_one {
        gain.iter_mut().for_each(|g| *g += 1.0);
    }
    Ok(Norm { gain, eps: spec.eps })
}

/// `x += post_norm(mixer(pre_norm(x)))`.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockParams {
    /// Norm of the block's input.
    pub pre_norm: Norm,
    /// Norm of the block's output.
    pub post_norm: Option<Norm>,
    /// What the block computes.
    pub mixer: MixerParams,
}

/// What a block computes.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerParams {
    /// Causal self-attention.
    Attention(Box<Attention>),
    /// Feed-forward.
    Mlp(Mlp),
}

impl BlockParams {
    /// The tensors of one block of a layer.
    ///
    /// # Errors
    /// When there is no such block, or a tensor of it is missing or cannot be read.
    pub fn load(source: &dyn ModelSource, layer: usize, block: usize) -> Result<Self> {
        let spec = source.spec().layers.get(layer).and_then(|l| l.blocks.get(block));
        let spec = spec.ok_or_else(|| {
            FormatError::MissingTensor(layer_tensor(layer, &format!("block {block}")))
        })?;
        let name =
            |part: &str| layer_tensor(layer, &format!("{kind}.{part}", kind = spec.mixer.name()));
        let norm = |part: &str, spec| norm(source, &name(part), spec);
        let projection = |part: &str, biased: bool| -> Result<Projection> {
            let bias = || vector(source, &name(&format!("{part}_bias")));
            Ok(Projection {
                weight: tensor(source, &name(part))?,
                bias: biased.then(bias).transpose()?,
            })
        };
        let mixer = match &spec.mixer {
            Mixer::Attention(a) => {
                let qk_norm = match a.qk_norm {
                    Some(spec) => Some((norm("q_norm", spec)?, norm("k_norm", spec)?)),
                    None => None,
                };
                MixerParams::Attention(Box::new(Attention {
                    q: projection("q", a.qkv_bias)?,
                    k: projection("k", a.qkv_bias)?,
                    v: projection("v", a.qkv_bias)?,
                    o: projection("o", a.out_bias)?,
                    qk_norm,
                    spec: a.clone(),
                }))
            }
            Mixer::Mlp(m) => MixerParams::Mlp(Mlp {
                gate: projection("gate", m.bias)?,
                up: projection("up", m.bias)?,
                down: projection("down", m.bias)?,
                spec: m.clone(),
            }),
        };
        Ok(Self {
            pre_norm: norm("norm", spec.pre_norm)?,
            post_norm: spec.post_norm.map(|spec| norm("post_norm", spec)).transpose()?,
            mixer,
        })
    }

    /// The linear layers of the block, in the order in which [`super::forward`] meets them.
    pub fn linears(&self) -> &'static [Linear] {
        match self.mixer {
            MixerParams::Attention(_) => &[Linear::Q, Linear::K, Linear::V, Linear::O],
            MixerParams::Mlp(_) => &[Linear::Gate, Linear::Up, Linear::Down],
        }
    }

    /// A linear layer; `None` when the block has no such.
    pub fn projection(&self, linear: Linear) -> Option<&Projection> {
        Some(match (&self.mixer, linear) {
            (MixerParams::Attention(a), Linear::Q) => &a.q,
            (MixerParams::Attention(a), Linear::K) => &a.k,
            (MixerParams::Attention(a), Linear::V) => &a.v,
            (MixerParams::Attention(a), Linear::O) => &a.o,
            (MixerParams::Mlp(m), Linear::Gate) => &m.gate,
            (MixerParams::Mlp(m), Linear::Up) => &m.up,
            (MixerParams::Mlp(m), Linear::Down) => &m.down,
            _ => return None,
        })
    }

    /// A linear layer, to be replaced by its rounded form; `None` when the block has no such.
    pub fn projection_mut(&mut self, linear: Linear) -> Option<&mut Projection> {
        Some(match (&mut self.mixer, linear) {
            (MixerParams::Attention(a), Linear::Q) => &mut a.q,
            (MixerParams::Attention(a), Linear::K) => &mut a.k,
            (MixerParams::Attention(a), Linear::V) => &mut a.v,
            (MixerParams::Attention(a), Linear::O) => &mut a.o,
            (MixerParams::Mlp(m), Linear::Gate) => &mut m.gate,
            (MixerParams::Mlp(m), Linear::Up) => &mut m.up,
            (MixerParams::Mlp(m), Linear::Down) => &mut m.down,
            _ => return None,
        })
    }
}
