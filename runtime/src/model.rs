//! A model bound to its tensors: matrices in place, vectors decoded.

use std::sync::Arc;

use gristmill_formats::codec::{CodecId, panel_count};
use gristmill_formats::model::{AttentionSpec, Mixer, MlpSpec, ModelSpec, NormSpec, layer_tensor};
use gristmill_formats::source::{ModelSource, TensorData, check_tensors};
use gristmill_kernels::MatrixView;

use crate::coarse::CoarseHead;
use crate::engine::HeadUse;
use crate::error::Result;
use crate::residency::{Placement, Stream};

/// A model ready to be run. Holds its source, so the memory behind the matrices stays valid.
#[derive(Debug)]
pub struct Model {
    source: Arc<dyn ModelSource>,
    pub(crate) embed: TensorData,
    pub(crate) layers: Vec<Vec<Block>>,
    pub(crate) final_norm: Norm,
    pub(crate) head: TensorData,
    pub(crate) coarse: Option<CoarseHead>,
    pub(crate) placement: Placement,
    pub(crate) stream: Stream,
}

/// One block of a layer.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) pre_norm: Norm,
    pub(crate) post_norm: Option<Norm>,
    pub(crate) mixer: MixerWeights,
}

#[derive(Debug)]
pub(crate) enum MixerWeights {
    Attention(Box<Attention>),
    Mlp(Box<Mlp>),
}

#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) spec: AttentionSpec,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) qk_norm: Option<(Norm, Norm)>,
}

#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) spec: MlpSpec,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Block {
    /// Its matrices, in the order in which they are read.
    pub(crate) fn matrices(&self) -> Vec<&TensorData> {
        let linears = match &self.mixer {
            MixerWeights::Attention(a) => vec![&a.q, &a.k, &a.v, &a.o],
            MixerWeights::Mlp(m) => vec![&m.gate, &m.up, &m.down],
        };
        linears.into_iter().map(|linear| &linear.weight).collect()
    }
}

/// A matrix and its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: TensorData,
    /// Padded with zeros to a multiple of 32.
    pub(crate) bias: Option<Vec<f32>>,
}

/// A norm's gain as it is multiplied (the offset of one included), padded with zeros to a multiple of
/// 32.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) gain: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) len: usize,
}

/// A tensor as kernels take it.
pub(crate) fn view(tensor: &TensorData) -> MatrixView<'_> {
    MatrixView {
        codec: &tensor.codec,
        layout: tensor.layout,
        bytes: &tensor.bytes,
        rows: tensor.rows(),
        cols: tensor.cols(),
    }
}

impl Model {
    /// Binds a source's tensors. Matrices stay where they are.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the description implies.
    pub fn load(source: Arc<dyn ModelSource>) -> Result<Self> {
        check_tensors(&*source)?;
        let bind = Binder { source: &*source };
        let spec = source.spec();
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(i, layer)| layer.blocks.iter().map(|b| bind.block(i, b)).collect())
            .collect::<Result<Vec<Vec<Block>>>>()?;
        let embed = bind.source.tensor("embed")?;
        let head = bind.source.tensor(spec.head_tensor())?;
        let final_norm = bind.norm("final_norm", spec.final_norm)?;
        let (placement, stream) = (Placement::MAPPED, Stream::default());
        Ok(Self { embed, layers, final_norm, head, coarse: None, placement, stream, source })
    }

    /// The description.
    pub fn spec(&self) -> &ModelSpec {
        self.source.spec()
    }

    /// The source.
    pub fn source(&self) -> &Arc<dyn ModelSource> {
        &self.source
    }

    /// Bytes of weights that decoding one token reads: every matrix once, and one row of the embedding
    /// when it is not the head as well. With a coarse head, of which all is read, `fine_head_share` is that of
    /// the real head.
    pub fn bytes_per_token(&self, fine_head_share: Option<f64>) -> u64 {
        let matrices = self.matrices().map(|t| t.bytes.len() as u64).sum::<u64>();
        let tensors = self.spec().tensors();
        let vectors = tensors.iter().filter(|t| t.shape.len() == 1).map(|t| t.shape[0] * 4);
        let vectors = vectors.sum::<u64>();
        let row = if self.spec().tied_head {
            0
        } else {
            self.embed.bytes.len() as u64 / self.embed.rows() as u64
        };
        let all = matrices + vectors + row;
        match (&self.coarse, fine_head_share) {
            (Some(coarse), Some(share)) => {
                let unread = (1.0 - share) * self.head.bytes.len() as f64;
                all - unread as u64 + coarse.bytes()
            }
            _ => all,
        }
    }

    /// Mean share of the real head that was computed after the coarse one; `None` when it never was.
    pub fn fine_head_share(&self, used: HeadUse) -> Option<f64> {
        let panels = used.tokens * panel_count(self.head.rows()) as u64;
        (panels > 0).then(|| used.panels as f64 / panels as f64)
    }

    /// Multiply-accumulate operations per token of a prompt: all matrices but the head.
    pub fn macs_per_prompt_token(&self) -> u64 {
        let head = (self.head.rows() * self.head.cols()) as u64;
        self.matrices().map(|t| (t.rows() * t.cols()) as u64).sum::<u64>() - head
    }

    /// Codecs in use, widest first.
    pub fn codecs(&self) -> Vec<CodecId> {
        let mut codecs: Vec<_> = self.matrices().map(|t| t.codec.id()).collect();
        codecs.sort_unstable();
        codecs.dedup();
        codecs
    }

    /// Every matrix that a token is multiplied with, in the order in which they are read.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &TensorData> {
        let blocks = self.layers.iter().flatten().flat_map(Block::matrices);
        blocks.chain(std::iter::once(&self.head))
    }

    /// See [`Self::matrices`].
    pub(crate) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut TensorData> {
        let blocks = self.layers.iter_mut().flatten().flat_map(|block| match &mut block.mixer {
            MixerWeights::Attention(a) => vec![&mut a.q, &mut a.k, &mut a.v, &mut a.o],
            MixerWeights::Mlp(m) => vec![&mut m.gate, &mut m.up, &mut m.down],
        });
        blocks.map(|linear| &mut linear.weight).chain(std::iter::once(&mut self.head))
    }

    /// The bytes of every matrix that a token is multiplied with, where they are read.
    pub fn weight_slices(&self) -> Vec<&[u8]> {
        self.matrices().map(|t| &*t.bytes).collect()
    }
}

/// Looks tensors up by their canonical names.
struct Binder<'a> {
    source: &'a dyn ModelSource,
}

impl Binder<'_> {
    fn block(&self, layer: usize, spec: &gristmill_formats::model::BlockSpec) -> Result<Block> {
        let kind = spec.mixer.name();
        let name = |part: &str| layer_tensor(layer, &format!("{kind}.{part}"));
        let linear = |part: &str, bias: bool| -> Result<Linear> {
            let bias = if bias { Some(self.vector(&name(&format!("{part}_bias")))?) } else { None };
            Ok(Linear { weight: self.source.tensor(&name(part))?, bias })
        };
        let mixer = match &spec.mixer {
            Mixer::Attention(a) => MixerWeights::Attention(Box::new(Attention {
                q: linear("q", a.qkv_bias)?,
                k: linear("k", a.qkv_bias)?,
                v: linear("v", a.qkv_bias)?,
                o: linear("o", a.out_bias)?,
                qk_norm: match a.qk_norm {
                    Some(norm) => {
                        Some((self.norm(&name("q_norm"), norm)?, self.norm(&name("k_norm"), norm)?))
                    }
                    None => None,
                },
                spec: a.clone(),
            })),
            Mixer::Mlp(m) => MixerWeights::Mlp(Box::new(Mlp {
                gate: linear("gate", m.bias)?,
                up: linear("up", m.bias)?,
                down: linear("down", m.bias)?,
                spec: m.clone(),
            })),
        };
        let post_norm = match spec.post_norm {
            Some(norm) => Some(self.norm(&name("post_norm"), norm)?),
            None => None,
        };
        Ok(Block { pre_norm: self.norm(&name("norm"), spec.pre_norm)?, post_norm, mixer })
    }

    fn norm(&self, name: &str, spec: NormSpec) -> Result<Norm> {
        let mut gain = self.vector(name)?;
        let len = self.source.tensor(name)?.cols();
        if spec.plus_one {
            gain[..len].iter_mut().for_each(|g| *g += 1.0);
        }
        Ok(Norm { gain, eps: spec.eps, len })
    }

    /// A vector as f32, padded to a multiple of 32.
    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.source.tensor(name)?;
        let mut values = vec![0.0; tensor.cols().next_multiple_of(32)];
        tensor.decode_row(0, &mut values[..tensor.cols()]);
        Ok(values)
    }
}
