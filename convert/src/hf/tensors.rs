//! Names of tensors: from the canonical ones to those in checkpoints.

use gristmill_formats::model::{ModelSpec, TensorSpec};

/// Parts of a layer: canonical name and name in the checkpoint.
pub(super) type Names = &'static [(&'static str, &'static str)];

/// One norm before each block.
pub(super) const PRE_NORM_NAMES: Names = &[
    ("attn.norm", "input_layernorm.weight"),
    ("attn.q_norm", "self_attn.q_norm.weight"),
    ("attn.k_norm", "self_attn.k_norm.weight"),
    ("attn.q_bias", "self_attn.q_proj.bias"),
    ("attn.k_bias", "self_attn.k_proj.bias"),
    ("attn.v_bias", "self_attn.v_proj.bias"),
    ("attn.o_bias", "self_attn.o_proj.bias"),
    ("attn.q", "self_attn.q_proj.weight"),
    ("attn.k", "self_attn.k_proj.weight"),
    ("attn.v", "self_attn.v_proj.weight"),
    ("attn.o", "self_attn.o_proj.weight"),
    ("mlp.norm", "post_attention_layernorm.weight"),
    ("mlp.gate_bias", "mlp.gate_proj.bias"),
    ("mlp.up_bias", "mlp.up_proj.bias"),
    ("mlp.down_bias", "mlp.down_proj.bias"),
    ("mlp.gate", "mlp.gate_proj.weight"),
    ("mlp.up", "mlp.up_proj.weight"),
    ("mlp.down", "mlp.down_proj.weight"),
];

/// Norms before and after each block. `post_attention_layernorm` is another norm than above.
pub(super) const SANDWICH_NORM_NAMES: Names = &[
    ("attn.norm", "input_layernorm.weight"),
    ("attn.post_norm", "post_attention_layernorm.weight"),
    ("attn.q_norm", "self_attn.q_norm.weight"),
    ("attn.k_norm", "self_attn.k_norm.weight"),
    ("attn.q_bias", "self_attn.q_proj.bias"),
    ("attn.k_bias", "self_attn.k_proj.bias"),
    ("attn.v_bias", "self_attn.v_proj.bias"),
    ("attn.o_bias", "self_attn.o_proj.bias"),
    ("attn.q", "self_attn.q_proj.weight"),
    ("attn.k", "self_attn.k_proj.weight"),
    ("attn.v", "self_attn.v_proj.weight"),
    ("attn.o", "self_attn.o_proj.weight"),
    ("mlp.norm", "pre_feedforward_layernorm.weight"),
    ("mlp.post_norm", "post_feedforward_layernorm.weight"),
    ("mlp.gate", "mlp.gate_proj.weight"),
    ("mlp.up", "mlp.up_proj.weight"),
    ("mlp.down", "mlp.down_proj.weight"),
];

/// Where a checkpoint keeps its tensors: in front of the decoder's names, and in front of `lm_head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) decoder: &'static str,
    pub(super) head: &'static str,
}

/// The prefixes in use; the first whose embedding exists is taken.
pub(super) const PREFIXES: &[Prefix] = &[
    Prefix { decoder: "model.", head: "" },
    Prefix { decoder: "language_model.model.", head: "language_model." },
    Prefix { decoder: "model.language_model.", head: "" },
];

const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Buffers of old checkpoints that follow from the configuration.
pub(super) const HARMLESS_SUFFIX: &str = "rotary_emb.inv_freq";

impl Prefix {
    /// The prefix of a checkpoint, given what it contains.
    pub(super) fn detect(contains: impl Fn(&str) -> bool) -> Self {
        let found = PREFIXES.iter().find(|p| contains(&p.embedding()));
        *found.unwrap_or(&PREFIXES[0])
    }

    pub(super) fn embedding(&self) -> String {
        format!("{}{EMBEDDING}", self.decoder)
    }

    pub(super) fn head(&self) -> String {
        format!("{}{HEAD}", self.head)
    }

    /// Every tensor of the model with its name in the checkpoint; `None` for one that the
    /// architecture's checkpoints have no name for.
    pub(super) fn map(&self, spec: &ModelSpec, names: Names) -> Vec<(TensorSpec, Option<String>)> {
        let hf_name = |canonical: &str| match canonical {
            "embed" => Some(self.embedding()),
            "final_norm" => Some(format!("{}norm.weight", self.decoder)),
            "head" => Some(self.head()),
            layer => {
                let (index, part) = layer.strip_prefix("layers.")?.split_once('.')?;
                let (_, hf_part) = names.iter().find(|(name, _)| *name == part)?;
                Some(format!("{}layers.{index}.{hf_part}", self.decoder))
            }
        };
        spec.tensors()
            .into_iter()
            .map(|tensor| {
                let name = hf_name(&tensor.name);
                (tensor, name)
            })
            .collect()
    }
}
