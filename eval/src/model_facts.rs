//! What reports say about a model.

use gristmill_formats::model::{AttentionSpec, Mixer, ModelSpec};
use gristmill_runtime::{KvType, Model};
use serde::{Deserialize, Serialize};

/// The part of a report that identifies a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The importer's name of the architecture.
    pub architecture: String,
    /// Parameters.
    pub parameters: u64,
    /// Digest that identifies the model.
    pub fingerprint: String,
    /// Codecs of its matrices.
    pub codecs: Vec<String>,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// Bits per weight, everything on disk counted.
    pub bits_per_weight: f64,
}

impl ModelFacts {
    /// Of a model.
    pub fn of(model: &Model) -> Self {
        let parameters = model.spec().parameter_count();
        let file_bytes = model.source().file_bytes();
        Self {
            architecture: model.spec().architecture.clone(),
            parameters,
            fingerprint: model.source().fingerprint(),
            codecs: model.codecs().iter().map(|c| c.name().to_string()).collect(),
            file_bytes,
            bits_per_weight: file_bytes as f64 * 8.0 / parameters as f64,
        }
    }
}

/// Position in the middle of `generated` tokens behind `filled` others.
pub(crate) fn mean_position(filled: usize, generated: usize) -> u64 {
    (filled + (generated - 1) / 2) as u64
}

/// Bytes of keys and values that one token at position `position` reads, its own included.
pub(crate) fn kv_bytes_read(spec: &ModelSpec, kv: KvType, position: u64) -> u64 {
    let blocks = attentions(spec).map(|a| {
        let positions = positions_seen(a, position) as usize;
        let kv = if a.window.is_some() { kv.of_sliding_window() } else { kv };
        u64::from(a.kv_heads)
            * kv.bytes_read(a.head_dim as usize, position as usize, positions) as u64
    });
    blocks.sum()
}

/// Positions that a token sees, its own included.
pub(crate) fn positions_seen(a: &AttentionSpec, position: u64) -> u64 {
    a.window.map_or(position + 1, |window| u64::from(window).min(position + 1))
}

/// The attention blocks of a model.
pub(crate) fn attentions(spec: &ModelSpec) -> impl Iterator<Item = &AttentionSpec> {
    let blocks = spec.layers.iter().flat_map(|l| &l.blocks);
    blocks.filter_map(|block| match &block.mixer {
        Mixer::Attention(a) => Some(a),
        Mixer::Mlp(_) => None,
    })
}
