//! What a model is, as data. An importer turns a foreign configuration into a [`ModelSpec`]; the
//! runtime interprets it. There is no code per architecture anywhere else.
//!
//! Matrices are `[n_out, n_in]` row-major in meaning, `y = x Wᵀ`.

use serde::{Deserialize, Serialize};

use crate::limits::{
    MAX_BLOCKS_PER_LAYER, MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH,
};
use crate::{FormatError, Result};

/// A decoder-only language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The importer's name for the architecture (`llama`, `qwen3`, …); for people, not for code.
    pub architecture: String,
    /// Rows of the embedding and of the output head.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub d_model: u32,
    /// Longest sequence the model was made for.
    pub max_context: u32,
    /// Factor on the embedding row before the first layer.
    pub embedding_scale: f32,
    /// Whether the output head is the embedding matrix.
    pub tied_head: bool,
    /// `cap * tanh(logit / cap)` on the logits.
    pub logit_softcap: Option<f32>,
    /// Norm before the output head.
    pub final_norm: NormSpec,
    /// The layers in order.
    pub layers: Vec<LayerSpec>,
}

/// One layer: blocks applied one after the other, each added to the residual stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// The blocks in order.
    pub blocks: Vec<BlockSpec>,
}

/// `x += post_norm(mixer(pre_norm(x)))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// Norm of the block's input.
    pub pre_norm: NormSpec,
    /// Norm of the block's output before the residual addition (Gemma's sandwich norm).
    pub post_norm: Option<NormSpec>,
    /// What the block computes.
    pub mixer: Mixer,
}

/// What a block computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mixer {
    /// Causal self-attention.
    Attention(AttentionSpec),
    /// Feed-forward.
    Mlp(MlpSpec),
}

/// Root-mean-square norm: `x / sqrt(mean(x²) + eps) * w`, or `* (1 + w)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether the stored gain is an offset from one (Gemma).
    pub plus_one: bool,
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Factor on `q·k` before the softmax.
    pub scale: f32,
    /// Sliding window: a query sees this many positions including its own.
    pub window: Option<u32>,
    /// `cap * tanh(score / cap)` on the scaled scores.
    pub softcap: Option<f32>,
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub out_bias: bool,
    /// Norm over each head of q and k, before rotation.
    pub qk_norm: Option<NormSpec>,
    /// Rotary position embedding; `None` for layers without positions.
    pub rope: Option<RopeSpec>,
}

/// Rotary position embedding over the two halves of each head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    /// Base of the geometric frequencies.
    pub base: f64,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// Stretching of the rotary frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by the factor, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_context: u32,
    },
}

/// Feed-forward: `down(act(gate(x)) * up(x))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpSpec {
    /// Inner width.
    pub d_ff: u32,
    /// Nonlinearity of the gate.
    pub activation: Activation,
    /// Bias on gate, up and down.
    pub bias: bool,
}

/// Nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// The part a tensor plays; decides which codecs it may have and what quantization may do to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// Token embedding; the output head too when tied.
    Embedding,
    /// Output head.
    Head,
    /// Matrix of a linear layer.
    Linear,
    /// Gain or bias: a short vector, always stored dense.
    Vector,
}

/// A tensor that a model description calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name, e.g. `layers.3.attn.q`.
    pub name: String,
    /// `[n_out, n_in]` or `[n]`.
    pub shape: Vec<u64>,
    /// Its part.
    pub role: TensorRole,
}

impl AttentionSpec {
    /// Width of all query heads together.
    pub fn q_width(&self) -> u32 {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> u32 {
        self.kv_heads * self.head_dim
    }
}

impl RopeSpec {
    /// Angle per position of each rotated pair: `head_dim / 2` values, in double precision.
    /// Llama 3.1's ramp follows its published reference description (wavelength thresholds).
    pub fn frequencies(&self, head_dim: u32) -> Vec<f64> {
        let half = head_dim / 2;
        (0..half)
            .map(|i| {
                let freq = self.base.powf(-2.0 * f64::from(i) / f64::from(head_dim));
                match self.scaling {
                    RopeScaling::None => freq,
                    RopeScaling::Linear { factor } => freq / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_context,
                    } => {
                        let turns = f64::from(original_context) * freq / std::f64::consts::TAU;
                        if turns > high_freq_factor {
                            freq
                        } else if turns < low_freq_factor {
                            freq / factor
                        } else {
                            let ramp =
                                (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            freq * ((1.0 - ramp) / factor + ramp)
                        }
                    }
                }
            })
            .collect()
    }
}

/// The canonical names of one layer's tensors.
pub fn layer_tensor(layer: usize, part: &str) -> String {
    format!("layers.{layer}.{part}")
}

impl ModelSpec {
    /// Every tensor of the model in execution order, which is the order in the packed file.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut list = Vec::new();
        let d = u64::from(self.d_model);
        let vocab = u64::from(self.vocab_size);
        let mut push = |name: String, shape: Vec<u64>, role| {
            list.push(TensorSpec { name, shape, role });
        };
        push("embed".into(), vec![vocab, d], TensorRole::Embedding);
        for (i, layer) in self.layers.iter().enumerate() {
            for block in &layer.blocks {
                let kind = block.mixer.name();
                let mut vector = |part: &str, n: u64| {
                    push(layer_tensor(i, &format!("{kind}.{part}")), vec![n], TensorRole::Vector);
                };
                vector("norm", d);
                if block.post_norm.is_some() {
                    vector("post_norm", d);
                }
                match &block.mixer {
                    Mixer::Attention(a) => {
                        let (q, kv) = (u64::from(a.q_width()), u64::from(a.kv_width()));
                        if a.qk_norm.is_some() {
                            vector("q_norm", u64::from(a.head_dim));
                            vector("k_norm", u64::from(a.head_dim));
                        }
                        if a.qkv_bias {
                            vector("q_bias", q);
                            vector("k_bias", kv);
                            vector("v_bias", kv);
                        }
                        if a.out_bias {
                            vector("o_bias", d);
                        }
                        for (part, rows, cols) in
                            [("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)]
                        {
                            let name = layer_tensor(i, &format!("{kind}.{part}"));
                            push(name, vec![rows, cols], TensorRole::Linear);
                        }
                    }
                    Mixer::Mlp(m) => {
                        let ff = u64::from(m.d_ff);
                        if m.bias {
                            vector("gate_bias", ff);
                            vector("up_bias", ff);
                            vector("down_bias", d);
                        }
                        for (part, rows, cols) in [("gate", ff, d), ("up", ff, d), ("down", d, ff)]
                        {
                            let name = layer_tensor(i, &format!("{kind}.{part}"));
                            push(name, vec![rows, cols], TensorRole::Linear);
                        }
                    }
                }
            }
        }
        push("final_norm".into(), vec![d], TensorRole::Vector);
        if !self.tied_head {
            push("head".into(), vec![vocab, d], TensorRole::Head);
        }
        list
    }

    /// Name of the tensor that produces logits.
    pub fn head_tensor(&self) -> &'static str {
        if self.tied_head { "embed" } else { "head" }
    }

    /// Parameters of the model, all tensors counted once.
    pub fn parameter_count(&self) -> u64 {
        self.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum()
    }

    /// Checks every number against its limit and against the others, so that later arithmetic on the
    /// description cannot overflow and the runtime cannot meet a shape that it does not know.
    ///
    /// # Errors
    /// [`FormatError::InvalidHeader`] that names the field.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: String| Err(FormatError::InvalidHeader(what));
        let bounded = |what: &str, value: u32, max: u32| {
            if value == 0 || value > max {
                bad(format!("model: {what} is {value}, expected 1..={max}"))
            } else {
                Ok(())
            }
        };
        bounded("vocab_size", self.vocab_size, MAX_VOCAB)?;
        bounded("d_model", self.d_model, MAX_WIDTH)?;
        bounded("max_context", self.max_context, MAX_CONTEXT)?;
        if self.architecture.len() > crate::limits::MAX_NAME_BYTES {
            return bad("model: architecture name is too long".into());
        }
        if self.layers.len() > MAX_LAYERS {
            return bad(format!("model: {} layers, at most {MAX_LAYERS}", self.layers.len()));
        }
        let finite = |what: &str, value: f32| {
            if value.is_finite() { Ok(()) } else { bad(format!("model: {what} is {value}")) }
        };
        finite("embedding_scale", self.embedding_scale)?;
        positive_cap("logit_softcap", self.logit_softcap)?;
        self.final_norm.validate("final_norm")?;
        for (i, layer) in self.layers.iter().enumerate() {
            if layer.blocks.is_empty() || layer.blocks.len() > MAX_BLOCKS_PER_LAYER {
                return bad(format!("layer {i}: {} blocks", layer.blocks.len()));
            }
            let mut kinds: Vec<_> = layer.blocks.iter().map(|b| b.mixer.name()).collect();
            kinds.sort_unstable();
            kinds.dedup();
            if kinds.len() != layer.blocks.len() {
                return bad(format!("layer {i}: two blocks of one kind"));
            }
            for block in &layer.blocks {
                block.pre_norm.validate("pre_norm")?;
                if let Some(norm) = block.post_norm {
                    norm.validate("post_norm")?;
                }
                match &block.mixer {
                    Mixer::Attention(a) => {
                        bounded("heads", a.heads, MAX_HEADS)?;
                        bounded("kv_heads", a.kv_heads, MAX_HEADS)?;
                        bounded("head_dim", a.head_dim, MAX_WIDTH)?;
                        if !a.heads.is_multiple_of(a.kv_heads) {
                            return bad(format!(
                                "layer {i}: {} heads is no multiple of {} kv_heads",
                                a.heads, a.kv_heads
                            ));
                        }
                        if u64::from(a.heads) * u64::from(a.head_dim) > u64::from(MAX_WIDTH) {
                            return bad(format!("layer {i}: attention is wider than {MAX_WIDTH}"));
                        }
                        finite("attention scale", a.scale)?;
                        positive_cap("attention softcap", a.softcap)?;
                        if a.window == Some(0) {
                            return bad(format!("layer {i}: sliding window of 0"));
                        }
                        if let Some(norm) = a.qk_norm {
                            norm.validate("qk_norm")?;
                        }
                        if let Some(rope) = &a.rope {
                            rope.validate(i, a.head_dim)?;
                        }
                    }
                    Mixer::Mlp(m) => bounded("d_ff", m.d_ff, MAX_WIDTH)?,
                }
            }
        }
        Ok(())
    }
}

impl Mixer {
    /// The block's part in tensor names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attention(_) => "attn",
            Self::Mlp(_) => "mlp",
        }
    }
}

fn positive_cap(what: &str, cap: Option<f32>) -> Result<()> {
    match cap {
        Some(cap) if !(cap.is_finite() && cap > 0.0) => {
            Err(FormatError::InvalidHeader(format!("model: {what} is {cap}")))
        }
        _ => Ok(()),
    }
}

impl NormSpec {
    fn validate(&self, what: &str) -> Result<()> {
        if self.eps.is_finite() && self.eps >= 0.0 {
            Ok(())
        } else {
            Err(FormatError::InvalidHeader(format!("{what}: eps is {}", self.eps)))
        }
    }
}

impl RopeSpec {
    fn validate(&self, layer: usize, head_dim: u32) -> Result<()> {
        let bad = |what: String| Err(FormatError::InvalidHeader(format!("layer {layer}: {what}")));
        if !head_dim.is_multiple_of(2) {
            return bad(format!("rope needs an even head_dim, found {head_dim}"));
        }
        if !(self.base.is_finite() && self.base > 0.0) {
            return bad(format!("rope base is {}", self.base));
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } if positive(factor) => Ok(()),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
                if positive(factor)
                    && positive(low_freq_factor)
                    && positive(high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && original_context > 0 =>
            {
                Ok(())
            }
            _ => bad(format!("rope scaling {:?} is out of range", self.scaling)),
        }
    }
}
