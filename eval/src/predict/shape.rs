//! What of a model decides its speed: its matrices, its blocks, and how its bytes are laid out.

use gristmill_formats::codec::CodecId;
use gristmill_formats::model::{AttentionSpec, Mixer, ModelSpec, TensorRole};
use gristmill_formats::source::ModelSource;
use gristmill_runtime::KvType;

use crate::error::Result;
use crate::model_facts::{attentions, kv_bytes_read, positions_seen};

/// A matrix that tokens are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matrix {
    pub(super) codec: CodecId,
    pub(super) bytes: u64,
    /// Multiply-accumulates per token.
    pub(super) macs: u64,
    /// Whether it is the output head, which only the last token of a prompt needs.
    pub(super) is_head: bool,
}

/// A model as far as it matters for its speed. It need not exist: a description and a plan of codecs do.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    pub(super) spec: ModelSpec,
    pub(super) matrices: Vec<Matrix>,
    /// Bytes of weights that one token reads, and of all matrices that are held.
    pub(super) weight_bytes_per_token: u64,
    pub(super) held_bytes: u64,
    pub(super) file_bytes: u64,
}

impl ModelShape {
    /// Of a model with a codec and a number of bytes for each tensor. `file_bytes` is what is stored of
    /// it.
    ///
    /// # Errors
    /// What `tensor` returns for a tensor that it does not know.
    pub fn new(
        spec: &ModelSpec,
        file_bytes: u64,
        tensor: impl Fn(&str) -> Result<(CodecId, u64)>,
    ) -> Result<Self> {
        let head = spec.head_tensor();
        let (mut matrices, mut per_token, mut held) = (Vec::new(), 0, 0);
        for part in spec.tensors() {
            let (codec, bytes) = tensor(&part.name)?;
            match (part.role, &part.shape[..]) {
                (TensorRole::Vector, _) => per_token += bytes,
                (_, &[rows, cols]) => {
                    held += bytes;
                    let is_head = part.name == head;
                    if part.role == TensorRole::Embedding && !is_head {
                        per_token += bytes / rows.max(1);
                        continue;
                    }
                    per_token += bytes;
                    matrices.push(Matrix { codec, bytes, macs: rows * cols, is_head });
                }
                (_, shape) => unreachable!("`{}` has shape {shape:?}", part.name),
            }
        }
        Ok(Self {
            spec: spec.clone(),
            matrices,
            weight_bytes_per_token: per_token,
            held_bytes: held,
            file_bytes,
        })
    }

    /// Of a packed file or a checkpoint as it is.
    ///
    /// # Errors
    /// When a tensor cannot be found.
    pub fn of(source: &dyn ModelSource) -> Result<Self> {
        Self::new(source.spec(), source.file_bytes(), |name| {
            let data = source.tensor(name).map_err(gristmill_runtime::RuntimeError::from)?;
            Ok((data.codec.id(), data.bytes.len() as u64))
        })
    }

    /// The description.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Codecs of the matrices, widest first.
    pub fn codecs(&self) -> Vec<CodecId> {
        let mut codecs: Vec<_> = self.matrices.iter().map(|m| m.codec).collect();
        codecs.sort_unstable();
        codecs.dedup();
        codecs
    }

    /// Bytes on disk.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    pub(super) fn layers(&self) -> usize {
        self.spec.layers.len()
    }

    /// Stages of the forward pass: three of attention, two of a feed-forward, the embedding and the head.
    pub(super) fn stages(&self) -> usize {
        let blocks = self.spec.layers.iter().flat_map(|l| &l.blocks);
        let stages = blocks.map(|b| if matches!(b.mixer, Mixer::Attention(_)) { 3 } else { 2 });
        stages.sum::<usize>() + 2
    }

    /// Values whose norm or quantization one token waits for.
    pub(super) fn columns(&self) -> u64 {
        let d_model = u64::from(self.spec.d_model);
        let blocks = self.spec.layers.iter().flat_map(|l| &l.blocks);
        let inner = blocks.map(|b| match &b.mixer {
            Mixer::Attention(a) => d_model + u64::from(a.q_width()),
            Mixer::Mlp(m) => d_model + u64::from(m.d_ff),
        });
        inner.sum::<u64>() + d_model
    }

    /// Multiply-accumulates of a prompt's token, attention and the head aside.
    pub(super) fn prompt_macs(&self) -> u64 {
        self.matrices.iter().filter(|m| !m.is_head).map(|m| m.macs).sum()
    }

    /// Multiply-accumulates of attention for the tokens at `first..first + count`.
    pub(super) fn attention_macs(&self, first: u64, count: u64) -> u64 {
        let of = |a: &AttentionSpec| {
            let positions: u64 = (first..first + count).map(|p| positions_seen(a, p)).sum();
            2 * u64::from(a.q_width()) * positions
        };
        attentions(&self.spec).map(of).sum()
    }

    /// Bytes of keys and values that the token at a position reads.
    pub(super) fn kv_bytes(&self, kv: KvType, position: u64) -> u64 {
        kv_bytes_read(&self.spec, kv, position)
    }
}
