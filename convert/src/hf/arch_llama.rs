//! Llama (2, 3.x, SmolLM2 and other models of that type) and Mistral.

use gristmill_formats::limits::MAX_CONTEXT;
use gristmill_formats::model::{AttentionSpec, MlpSpec, ModelSpec};

use super::arch::{Architecture, DEFAULT_THETA, Decoder, Defaults, activation};
use super::config::Config;
use super::rope;
use super::tensors::PRE_NORM_NAMES;
use crate::Result;

pub(super) static LLAMA: Architecture = Architecture {
    model_type: "llama",
    classes: &["LlamaForCausalLM"],
    used: &[
        "model_type",
        "architectures",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "attention_bias",
        "mlp_bias",
    ],
    defaults: Defaults {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: None,
        head_dim: None,
        max_context: 2048,
        tied: false,
        eos: Some(2),
    },
    build: llama,
    names: PRE_NORM_NAMES,
    wrapper: None,
};

fn llama(config: &Config<'_>, defaults: &Defaults) -> Result<ModelSpec> {
    let decoder = Decoder::read(config, defaults)?;
    let bias = config.flag_or("attention_bias", false)?;
    let attention = AttentionSpec {
        qkv_bias: bias,
        out_bias: bias,
        rope: Some(rope::uniform(config, DEFAULT_THETA, decoder.max_context)?),
        ..decoder.attention()
    };
    let mlp = MlpSpec {
        d_ff: decoder.d_ff,
        activation: activation(config, "hidden_act", "silu")?,
        bias: config.flag_or("mlp_bias", false)?,
    };
    Ok(decoder.model("llama", vec![decoder.layer(attention, mlp); decoder.layers]))
}

pub(super) static MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    classes: &["MistralForCausalLM"],
    used: &[
        "model_type",
        "architectures",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "sliding_window",
    ],
    defaults: Defaults {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: Some(8),
        head_dim: None,
        max_context: 4096 * 32,
        tied: false,
        eos: Some(2),
    },
    build: mistral,
    names: PRE_NORM_NAMES,
    wrapper: None,
};

/// Default of `sliding_window` in Mistral, Qwen and Gemma configurations.
pub(super) const DEFAULT_WINDOW: u32 = 4096;

fn mistral(config: &Config<'_>, defaults: &Defaults) -> Result<ModelSpec> {
    let decoder = Decoder::read(config, defaults)?;
    let attention = AttentionSpec {
        window: sliding_window(config)?,
        rope: Some(rope::uniform(config, DEFAULT_THETA, decoder.max_context)?),
        ..decoder.attention()
    };
    let mlp = MlpSpec {
        d_ff: decoder.d_ff,
        activation: activation(config, "hidden_act", "silu")?,
        bias: false,
    };
    Ok(decoder.model("mistral", vec![decoder.layer(attention, mlp); decoder.layers]))
}

/// `sliding_window`: absent means the default, `null` means none.
pub(super) fn sliding_window(config: &Config<'_>) -> Result<Option<u32>> {
    match config.get("sliding_window") {
        None => Ok(Some(DEFAULT_WINDOW)),
        Some(_) => config.count("sliding_window", MAX_CONTEXT),
    }
}
