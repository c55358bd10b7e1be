//! Qwen2 (and Qwen2.5) and Qwen3, dense.

use gristmill_formats::model::{Activation, AttentionSpec, MlpSpec, ModelSpec};

use super::arch::{Architecture, DEFAULT_THETA, Decoder, Defaults, activation, sliding_layers};
use super::arch_llama::sliding_window;
use super::config::Config;
use super::rope;
use super::tensors::PRE_NORM_NAMES;
use crate::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    layers: 32,
    heads: 32,
    kv_heads: Some(32),
    head_dim: None,
    max_context: 32_768,
    tied: false,
    eos: None,
};

pub(super) static QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    classes: &["Qwen2ForCausalLM"],
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
        "use_sliding_window",
        "sliding_window",
        "max_window_layers",
        "layer_types",
    ],
    defaults: DEFAULTS,
    build: qwen2,
    names: PRE_NORM_NAMES,
    wrapper: None,
};

pub(super) static QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    classes: &["Qwen3ForCausalLM"],
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
        "use_sliding_window",
        "sliding_window",
        "max_window_layers",
        "layer_types",
        "attention_bias",
    ],
    defaults: Defaults { head_dim: Some(128), ..DEFAULTS },
    build: qwen3,
    names: PRE_NORM_NAMES,
    wrapper: None,
};

fn qwen2(config: &Config<'_>, defaults: &Defaults) -> Result<ModelSpec> {
    let decoder = Decoder::read(config, defaults)?;
    let attention = AttentionSpec {
        qkv_bias: true,
        rope: Some(rope::uniform(config, DEFAULT_THETA, decoder.max_context)?),
        ..decoder.attention()
    };
    qwen(config, "qwen2", &decoder, &attention)
}

fn qwen3(config: &Config<'_>, defaults: &Defaults) -> Result<ModelSpec> {
    let decoder = Decoder::read(config, defaults)?;
    let bias = config.flag_or("attention_bias", false)?;
    let attention = AttentionSpec {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: Some(decoder.norm()),
        rope: Some(rope::uniform(config, DEFAULT_THETA, decoder.max_context)?),
        ..decoder.attention()
    };
    qwen(config, "qwen3", &decoder, &attention)
}

/// Default of `max_window_layers`.
const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;

/// The layers: from layer `max_window_layers` on, attention has a sliding window, if windows are used
/// at all and `layer_types` does not say otherwise.
fn qwen(
    config: &Config<'_>,
    name: &str,
    decoder: &Decoder,
    attention: &AttentionSpec,
) -> Result<ModelSpec> {
    let activation: Activation = activation(config, "hidden_act", "silu")?;
    let window = match config.flag_or("use_sliding_window", false)? {
        true => sliding_window(config)?,
        false => None,
    };
    let first = match config.get("max_window_layers") {
        None => DEFAULT_MAX_WINDOW_LAYERS,
        Some(value) => {
            value.as_u64().ok_or_else(|| config.invalid("max_window_layers", "a whole number"))?
        }
    };
    let sliding =
        sliding_layers(config, decoder.layers, |i| window.is_some() && i as u64 >= first)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(config.contradiction(
            "`layer_types` asks for sliding_attention, but `use_sliding_window` is false or \
             `sliding_window` is null",
        ));
    }
    let mlp = MlpSpec { d_ff: decoder.d_ff, activation, bias: false };
    let layers = sliding
        .into_iter()
        .map(|sliding| {
            let window = window.filter(|_| sliding);
            decoder.layer(AttentionSpec { window, ..attention.clone() }, mlp.clone())
        })
        .collect();
    Ok(decoder.model(name, layers))
}
