//! The architectures that can be imported, and what they have in common. Defaults of absent keys are
//! those of the transformers configuration class of the same model type.

use gristmill_formats::FormatError;
use gristmill_formats::limits::{MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH};
use gristmill_formats::model::{
    Activation, AttentionSpec, BlockSpec, LayerSpec, Mixer, MlpSpec, ModelSpec, NormSpec,
};
use serde_json::{Map, Value};

use super::config::{CONFIG_FILE, Config, is_off, shown};
use super::files::parse_json;
use super::tensors::Names;
use super::{arch_gemma3, arch_llama, arch_qwen};
use crate::limits::MAX_STOP_IDS;
use crate::{ConvertError, Result};

/// A family of checkpoints: everything that sets it apart, as data, and the function that reads it.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `model_type` in `config.json`.
    pub(super) model_type: &'static str,
    /// Classes that may stand in `architectures`.
    pub(super) classes: &'static [&'static str],
    /// Keys that `build` reads.
    pub(super) used: &'static [&'static str],
    /// Values of absent keys.
    pub(super) defaults: Defaults,
    /// From the configuration to the description.
    pub(super) build: fn(&Config<'_>, &Defaults) -> Result<ModelSpec>,
    /// Names of the tensors in the checkpoint.
    pub(super) names: Names,
    /// Where the text model is nested in a multimodal configuration.
    pub(super) wrapper: Option<&'static Wrapper>,
}

/// A multimodal configuration around a text model.
#[derive(Debug)]
pub(super) struct Wrapper {
    /// Key of the text model's configuration, and its path in errors.
    pub(super) text: (&'static str, &'static str),
    /// `model_type` of the text model.
    pub(super) text_model_type: &'static str,
    /// Outer keys that are read or that concern other modalities only.
    pub(super) used: &'static [&'static str],
    /// First parts of names of tensors that the text model does not use.
    pub(super) other_tensors: &'static [&'static str],
    /// Told to the user.
    pub(super) note: &'static str,
}

/// What transformers assumes for absent keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) vocab_size: u32,
    pub(super) hidden_size: u32,
    pub(super) intermediate_size: u32,
    pub(super) layers: u32,
    pub(super) heads: u32,
    /// `None`: as many as query heads.
    pub(super) kv_heads: Option<u32>,
    /// `None`: the hidden size divided among the heads.
    pub(super) head_dim: Option<u32>,
    pub(super) max_context: u32,
    pub(super) tied: bool,
    pub(super) eos: Option<u32>,
}

/// Default of `rms_norm_eps` in every supported configuration class.
const DEFAULT_EPS: f64 = 1e-6;
/// Default base of the rotation.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;

/// Every architecture that can be imported.
static ARCHITECTURES: &[&Architecture] = &[
    &arch_llama::LLAMA,
    &arch_llama::MISTRAL,
    &arch_qwen::QWEN2,
    &arch_qwen::QWEN3,
    &arch_gemma3::GEMMA3_TEXT,
    &arch_gemma3::GEMMA3,
];

/// Every `model_type` that can be imported.
pub const SUPPORTED_MODEL_TYPES: &[&str] =
    &["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma3"];

/// What `config.json` says.
#[derive(Debug)]
pub(super) struct Imported {
    pub(super) spec: ModelSpec,
    pub(super) architecture: &'static Architecture,
    /// `eos_token_id`, as a list. Empty when absent.
    pub(super) eos: Vec<u32>,
    pub(super) bos: Option<u32>,
    pub(super) name_or_path: Option<String>,
}

/// Reads `config.json`.
pub(super) fn import(bytes: &[u8]) -> Result<Imported> {
    let root: Map<String, Value> = parse_json(CONFIG_FILE, bytes)?;
    let found = match root.get("model_type") {
        Some(Value::String(model_type)) => model_type.as_str(),
        None => return Err(unsupported_architecture("model_type", "(absent)")),
        Some(other) => return Err(unsupported_architecture("model_type", &shown(other))),
    };
    let architecture = ARCHITECTURES
        .iter()
        .copied()
        .find(|a| a.model_type == found)
        .ok_or_else(|| unsupported_architecture("model_type", found))?;
    check_classes(architecture, &root)?;

    let spec = match architecture.wrapper {
        None => {
            let config = Config::new(&root, "", architecture.used)?;
            (architecture.build)(&config, &architecture.defaults)?
        }
        Some(wrapper) => {
            let outer = Config::new(&root, "", wrapper.used)?;
            let (key, path) = wrapper.text;
            let empty = Map::new();
            let inner = outer.object(key)?.unwrap_or(&empty);
            let config = Config::new(inner, path, architecture.used)?;
            if config.string_or("model_type", wrapper.text_model_type)? != wrapper.text_model_type {
                return Err(config.unsupported("model_type", wrapper.text_model_type));
            }
            let mut spec = (architecture.build)(&config, &architecture.defaults)?;
            let tied = outer.flag_or("tie_word_embeddings", spec.tied_head)?;
            if config.get("tie_word_embeddings").is_some() && tied != spec.tied_head {
                return Err(outer.contradiction(format!(
                    "`tie_word_embeddings` is {tied}, `{path}tie_word_embeddings` is {}",
                    spec.tied_head
                )));
            }
            spec.tied_head = tied;
            spec
        }
    };
    spec.validate().map_err(|error| match error {
        FormatError::InvalidHeader(detail) => {
            ConvertError::Contradiction { file: CONFIG_FILE.into(), detail }
        }
        other => other.into(),
    })?;

    let text = architecture.wrapper.and_then(|w| root.get(w.text.0));
    let id = |key: &str| root.get(key).or_else(|| text?.get(key));
    let eos = match id("eos_token_id") {
        None => architecture.defaults.eos.into_iter().collect(),
        Some(value) => token_ids(CONFIG_FILE, "eos_token_id", value)?,
    };
    let bos = match id("bos_token_id") {
        None => None,
        Some(value) => token_ids(CONFIG_FILE, "bos_token_id", value)?.first().copied(),
    };
    let name_or_path =
        root.get("_name_or_path").and_then(Value::as_str).filter(|s| !s.is_empty()).map(Into::into);
    Ok(Imported { spec, architecture, eos, bos, name_or_path })
}

/// The head of the network must be the language model's.
fn check_classes(architecture: &Architecture, root: &Map<String, Value>) -> Result<()> {
    let classes = match root.get("architectures") {
        Some(Value::Array(classes)) => classes.as_slice(),
        Some(other) if !is_off(other) => {
            return Err(unsupported_architecture("architectures", &shown(other)));
        }
        _ => &[],
    };
    for class in classes {
        let known = class.as_str().is_some_and(|c| architecture.classes.contains(&c));
        if !known {
            return Err(ConvertError::UnsupportedArchitecture {
                key: "architectures",
                found: shown(class),
                supported: architecture.classes.join(", "),
            });
        }
    }
    Ok(())
}

fn unsupported_architecture(key: &'static str, found: &str) -> ConvertError {
    ConvertError::UnsupportedArchitecture {
        key,
        found: found.chars().take(80).collect(),
        supported: SUPPORTED_MODEL_TYPES.join(", "),
    }
}

/// A token id or a list of them; `null` and negative numbers (an old spelling of "none") are none.
pub(super) fn token_ids(file: &str, key: &str, value: &Value) -> Result<Vec<u32>> {
    let one = |value: &Value| match value {
        Value::Null => Ok(None),
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => Ok(None),
        _ => match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(ConvertError::InvalidValue {
                file: file.into(),
                key: key.into(),
                found: shown(value),
                expected: "a token id or a list of token ids".into(),
            }),
        },
    };
    match value {
        Value::Array(items) if items.len() > MAX_STOP_IDS => Err(ConvertError::InvalidValue {
            file: file.into(),
            key: key.into(),
            found: format!("a list of {}", items.len()),
            expected: format!("at most {MAX_STOP_IDS} token ids"),
        }),
        Value::Array(items) => items.iter().filter_map(|item| one(item).transpose()).collect(),
        value => Ok(one(value)?.into_iter().collect()),
    }
}

/// The numbers that every decoder has, read from the keys in [`DECODER_KEYS`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoder {
    pub(super) vocab_size: u32,
    pub(super) d_model: u32,
    pub(super) d_ff: u32,
    pub(super) layers: usize,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) max_context: u32,
    pub(super) eps: f32,
    pub(super) tied: bool,
}

impl Decoder {
    pub(super) fn read(config: &Config<'_>, defaults: &Defaults) -> Result<Self> {
        let d_model = config.count_or("hidden_size", defaults.hidden_size, MAX_WIDTH)?;
        let heads = config.count_or("num_attention_heads", defaults.heads, MAX_HEADS)?;
        let kv_heads = match (config.get("num_key_value_heads"), defaults.kv_heads) {
            (None, Some(default)) => default,
            _ => config.count("num_key_value_heads", MAX_HEADS)?.unwrap_or(heads),
        };
        let head_dim = match config.count("head_dim", MAX_WIDTH)?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if d_model.is_multiple_of(heads) => d_model / heads,
            None => {
                return Err(config.contradiction(format!(
                    "`hidden_size` {d_model} is no multiple of `num_attention_heads` {heads}, and \
                     `head_dim` is absent"
                )));
            }
        };
        let layers = config.count_or("num_hidden_layers", defaults.layers, MAX_LAYERS as u32)?;
        Ok(Self {
            vocab_size: config.count_or("vocab_size", defaults.vocab_size, MAX_VOCAB)?,
            d_model,
            d_ff: config.count_or("intermediate_size", defaults.intermediate_size, MAX_WIDTH)?,
            layers: layers as usize,
            heads,
            kv_heads,
            head_dim,
            max_context: config.count_or(
                "max_position_embeddings",
                defaults.max_context,
                MAX_CONTEXT,
            )?,
            eps: config.positive_or("rms_norm_eps", DEFAULT_EPS)? as f32,
            tied: config.flag_or("tie_word_embeddings", defaults.tied)?,
        })
    }

    /// A norm whose stored gain is the gain.
    pub(super) fn norm(&self) -> NormSpec {
        NormSpec { eps: self.eps, plus_one: false }
    }

    /// Attention over everything before, without biases or norms of q and k.
    pub(super) fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: f64::from(self.head_dim).powf(-0.5) as f32,
            window: None,
            softcap: None,
            qkv_bias: false,
            out_bias: false,
            qk_norm: None,
            rope: None,
        }
    }

    /// A layer of attention and feed-forward with a norm before each.
    pub(super) fn layer(&self, attention: AttentionSpec, mlp: MlpSpec) -> LayerSpec {
        let block = |mixer| BlockSpec { pre_norm: self.norm(), post_norm: None, mixer };
        LayerSpec { blocks: vec![block(Mixer::Attention(attention)), block(Mixer::Mlp(mlp))] }
    }

    /// The model around the layers.
    pub(super) fn model(&self, architecture: &str, layers: Vec<LayerSpec>) -> ModelSpec {
        ModelSpec {
            architecture: architecture.into(),
            vocab_size: self.vocab_size,
            d_model: self.d_model,
            max_context: self.max_context,
            embedding_scale: 1.0,
            tied_head: self.tied,
            logit_softcap: None,
            final_norm: self.norm(),
            layers,
        }
    }
}

/// The nonlinearity named by `key`.
pub(super) fn activation(
    config: &Config<'_>,
    key: &str,
    default: &'static str,
) -> Result<Activation> {
    match config.string_or(key, default)? {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        _ => Err(config.unsupported(key, "silu, swish, gelu_pytorch_tanh, gelu_new")),
    }
}

/// Which layers have a sliding window: `layer_types`, or else the rule of the architecture.
pub(super) fn sliding_layers(
    config: &Config<'_>,
    layers: usize,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let key = "layer_types";
    let Some(value) = config.non_null(key) else { return Ok((0..layers).map(rule).collect()) };
    let Some(types) = value.as_array().filter(|types| types.len() == layers) else {
        return Err(config.invalid(key, format_args!("a list of {layers}, one for each layer")));
    };
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(ConvertError::UnsupportedValue {
                file: CONFIG_FILE.into(),
                key: key.into(),
                value: shown(kind),
                supported: "full_attention, sliding_attention".into(),
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::policy::{HARMLESS, RESTRICTED};
    use super::{ARCHITECTURES, SUPPORTED_MODEL_TYPES};

    #[test]
    fn the_published_list_is_the_list_in_use() {
        let types: Vec<_> = ARCHITECTURES.iter().map(|a| a.model_type).collect();
        assert_eq!(types, SUPPORTED_MODEL_TYPES);
    }

    #[test]
    fn no_key_has_two_policies() {
        for architecture in ARCHITECTURES {
            let outer = architecture.wrapper.map_or(&[][..], |wrapper| wrapper.used);
            for key in architecture.used.iter().chain(outer) {
                let name = architecture.model_type;
                assert!(!HARMLESS.contains(key), "{name}: `{key}` is used and harmless");
                assert!(RESTRICTED.iter().all(|r| r.key != *key), "{name}: `{key}`");
            }
        }
        for rule in RESTRICTED {
            assert!(!HARMLESS.contains(&rule.key), "`{}`", rule.key);
        }
    }
}
