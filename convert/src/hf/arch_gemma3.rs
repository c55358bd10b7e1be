//! Gemma 3: the text models, and the text part of the multimodal ones.

use gristmill_formats::limits::MAX_LAYERS;
use gristmill_formats::model::{
    AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
};

use super::arch::{Architecture, Decoder, Defaults, Wrapper, activation, sliding_layers};
use super::arch_llama::sliding_window;
use super::config::Config;
use super::rope;
use super::tensors::SANDWICH_NORM_NAMES;
use crate::Result;

const USED: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_activation",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_theta",
    "rope_local_base_freq",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "query_pre_attn_scalar",
    "sliding_window",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    hidden_size: 2304,
    intermediate_size: 9216,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    head_dim: Some(256),
    max_context: 131_072,
    tied: true,
    eos: Some(1),
};

pub(super) static GEMMA3_TEXT: Architecture = Architecture {
    model_type: "gemma3_text",
    classes: &["Gemma3ForCausalLM"],
    used: USED,
    defaults: DEFAULTS,
    build: gemma3,
    names: SANDWICH_NORM_NAMES,
    wrapper: None,
};

pub(super) static GEMMA3: Architecture = Architecture {
    model_type: "gemma3",
    classes: &["Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"],
    used: USED,
    defaults: DEFAULTS,
    build: gemma3,
    names: SANDWICH_NORM_NAMES,
    wrapper: Some(&Wrapper {
        text: ("text_config", "text_config."),
        text_model_type: "gemma3_text",
        used: &[
            "model_type",
            "architectures",
            "text_config",
            "tie_word_embeddings",
            // Pictures only.
            "vision_config",
            "mm_tokens_per_image",
            "boi_token_index",
            "eoi_token_index",
            "image_token_index",
            "boi_token_id",
            "eoi_token_id",
            "image_token_id",
        ],
        other_tensors: &[
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ],
        note: "the vision tower is left out: gristmill runs the text model",
    }),
};

/// Every sixth layer sees everything, the others a window.
const DEFAULT_PATTERN: u32 = 6;
/// Bases of the rotation in layers that see everything and in those that see a window.
const DEFAULT_THETAS: (f64, f64) = (1_000_000.0, 10_000.0);
/// Default of `query_pre_attn_scalar`.
const DEFAULT_QUERY_SCALAR: f64 = 256.0;

fn gemma3(config: &Config<'_>, defaults: &Defaults) -> Result<ModelSpec> {
    let decoder = Decoder::read(config, defaults)?;
    // transformers reads this key but does not apply it, so no reference says what it should do.
    if config.non_null("attn_logit_softcapping").is_some() {
        return Err(config.unsupported("attn_logit_softcapping", "null"));
    }
    let norm = NormSpec { eps: decoder.eps, plus_one: true };
    let bias = config.flag_or("attention_bias", false)?;
    let (full, local) = rope::per_layer_type(config, DEFAULT_THETAS, decoder.max_context)?;
    let scalar = config.positive_or("query_pre_attn_scalar", DEFAULT_QUERY_SCALAR)?;
    let attention = AttentionSpec {
        scale: scalar.powf(-0.5) as f32,
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: Some(norm),
        ..decoder.attention()
    };
    let mlp = MlpSpec {
        d_ff: decoder.d_ff,
        activation: activation(config, "hidden_activation", "gelu_pytorch_tanh")?,
        bias: false,
    };
    let window = sliding_window(config)?;
    let sliding = gemma3_sliding_layers(config, decoder.layers)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(
            config.contradiction("layers have sliding_attention, but `sliding_window` is null")
        );
    }
    let layers = sliding
        .into_iter()
        .map(|sliding| {
            let attention = AttentionSpec {
                window: window.filter(|_| sliding),
                rope: Some(if sliding { local.clone() } else { full.clone() }),
                ..attention.clone()
            };
            let block = |mixer| BlockSpec { pre_norm: norm, post_norm: Some(norm), mixer };
            LayerSpec {
                blocks: vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp.clone()))],
            }
        })
        .collect();
    Ok(ModelSpec {
        // The factor is rounded to the weights' type before use; this is the single-precision model.
        embedding_scale: f64::from(decoder.d_model).sqrt() as f32,
        logit_softcap: config.positive("final_logit_softcapping")?.map(|cap| cap as f32),
        final_norm: norm,
        ..decoder.model("gemma3_text", layers)
    })
}

/// `layer_types`, or else every `sliding_window_pattern`-th layer sees everything.
fn gemma3_sliding_layers(config: &Config<'_>, layers: usize) -> Result<Vec<bool>> {
    let max = MAX_LAYERS as u32;
    let pattern = config.count_or("sliding_window_pattern", DEFAULT_PATTERN, max)?;
    // Newer files store what was derived; without `layer_types` it must agree.
    let derived = config.count_or("_sliding_window_pattern", pattern, max)?;
    if config.non_null("layer_types").is_none() && derived != pattern {
        return Err(config.contradiction(format!(
            "`_sliding_window_pattern` is {derived}, `sliding_window_pattern` is {pattern} (or absent), \
             and `layer_types` is absent; add `layer_types`"
        )));
    }
    sliding_layers(config, layers, |i| !(i as u64 + 1).is_multiple_of(u64::from(pattern)))
}
