//! Any model source as a model for llama.cpp: metadata, tensor names, order of rows, vocabulary.
//!
//! llama.cpp has the code of an architecture where this project has a description, so a description
//! can be exported only if it says what that code does. Each difference is an error that names it;
//! nothing is approximated. Facts are those of llama.cpp's converter (`conversion/`) and of its
//! `src/models/`.

mod architecture;
mod pretokenizer;
mod vocabulary;

use gristmill_formats::gguf::{GgufData, GgufModel, GgufTensor, RowOrder};
use gristmill_formats::model::{ModelSpec, RopeScaling, TensorRole};
use gristmill_formats::source::ModelSource;

use crate::{ConvertError, Result};
use architecture::Architecture;

/// What the file says about its origin.
#[derive(Debug, Clone, Copy, Default)]
pub struct GgufOrigin<'a> {
    /// Name of the model.
    pub name: Option<&'a str>,
    /// Identifier of its licence.
    pub licence: Option<&'a str>,
}

/// Names of a layer's tensors: ours and llama.cpp's.
const PARTS: [(&str, &str); 20] = [
    ("attn.norm", "attn_norm.weight"),
    ("attn.post_norm", "post_attention_norm.weight"),
    ("attn.q_norm", "attn_q_norm.weight"),
    ("attn.k_norm", "attn_k_norm.weight"),
    ("attn.q_bias", "attn_q.bias"),
    ("attn.k_bias", "attn_k.bias"),
    ("attn.v_bias", "attn_v.bias"),
    ("attn.o_bias", "attn_output.bias"),
    ("attn.q", "attn_q.weight"),
    ("attn.k", "attn_k.weight"),
    ("attn.v", "attn_v.weight"),
    ("attn.o", "attn_output.weight"),
    ("mlp.norm", "ffn_norm.weight"),
    ("mlp.post_norm", "post_ffw_norm.weight"),
    ("mlp.gate_bias", "ffn_gate.bias"),
    ("mlp.up_bias", "ffn_up.bias"),
    ("mlp.down_bias", "ffn_down.bias"),
    ("mlp.gate", "ffn_gate.weight"),
    ("mlp.up", "ffn_up.weight"),
    ("mlp.down", "ffn_down.weight"),
];

/// Describes a model for llama.cpp.
///
/// # Errors
/// [`ConvertError::NotInGguf`] naming what llama.cpp does otherwise or does not have, or what reading
/// the tokenizer met.
pub fn gguf_model(source: &dyn ModelSource, origin: GgufOrigin<'_>) -> Result<GgufModel> {
    let spec = source.spec();
    let architecture = Architecture::find(spec)?;
    let mut metadata = architecture.metadata(spec, origin)?;
    match source.tokenizer()? {
        Some(tokenizer) => {
            vocabulary::write(&tokenizer, source.text(), spec.vocab_size, &mut metadata)?;
        }
        // A file without a tokenizer still runs on token ids.
        None => metadata.set("tokenizer.ggml.model", "no_vocab"),
    }
    Ok(GgufModel {
        metadata,
        tensors: tensors(spec, architecture)?,
        layers: spec.layers.len(),
        tied_head: spec.tied_head,
    })
}

/// All tensors under llama.cpp's names.
fn tensors(spec: &ModelSpec, architecture: &Architecture) -> Result<Vec<GgufTensor>> {
    let mut tensors = Vec::new();
    for tensor in spec.tensors() {
        let part = tensor.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        let name = match (tensor.name.as_str(), part) {
            ("embed", _) => "token_embd.weight".to_string(),
            ("final_norm", _) => "output_norm.weight".to_string(),
            ("head", _) => "output.weight".to_string(),
            (_, Some((layer, part))) => {
                let known = PARTS.iter().find(|(ours, _)| *ours == part);
                let (_, theirs) = known.ok_or_else(|| not_in_gguf(&tensor.name))?;
                format!("blk.{layer}.{theirs}")
            }
            _ => return Err(not_in_gguf(&tensor.name)),
        };
        let part = part.map_or("", |(_, part)| part);
        let rotated = ["attn.q", "attn.k", "attn.q_bias", "attn.k_bias"].contains(&part);
        let order = match architecture.head_dim(spec) {
            head_dim if rotated && architecture.rotary_pairs => RowOrder::RotaryPairs { head_dim },
            _ => RowOrder::Same,
        };
        // Their norms multiply by the gain itself; an offset from one is added when the file is made.
        let offset_gain = architecture.plus_one && tensor.name.ends_with("norm");
        let add = if offset_gain { 1.0 } else { 0.0 };
        let data = GgufData::Source { name: tensor.name, order, add };
        tensors.push(GgufTensor { name, shape: tensor.shape, role: tensor.role, data });
    }
    tensors.extend(rope_factors(spec, architecture));
    Ok(tensors)
}

/// Llama 3's frequencies: divisors of the unscaled ones, as a tensor.
fn rope_factors(spec: &ModelSpec, architecture: &Architecture) -> Option<GgufTensor> {
    let mut rope = architecture.rope(spec).clone();
    if !matches!(rope.scaling, RopeScaling::Llama3 { .. }) {
        return None;
    }
    let head_dim = architecture.head_dim(spec) as u32;
    let scaled = rope.frequencies(head_dim);
    rope.scaling = RopeScaling::None;
    let plain = rope.frequencies(head_dim);
    let values: Vec<f32> =
        plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect();
    Some(GgufTensor {
        name: "rope_freqs.weight".into(),
        shape: vec![values.len() as u64],
        role: TensorRole::Vector,
        data: GgufData::Values(values),
    })
}

fn not_in_gguf(what: impl Into<String>) -> ConvertError {
    ConvertError::NotInGguf { what: what.into() }
}
