//! What reports say about a model.

use gristmill_formats::model::{Mixer, ModelSpec};
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

/// Bytes of keys and values that one token at position `position` reads, its own included.
pub(crate) fn kv_bytes_read(model: &Model, kv: KvType, position: u64) -> u64 {
    kv_bytes_of(model.spec(), kv, position)
}

/// [`kv_bytes_read`] of a model's description.
pub(crate) fn kv_bytes_of(spec: &ModelSpec, kv: KvType, position: u64) -> u64 {
    let blocks = attention_blocks(spec).map(|(window, kv_heads, head_dim)| {
        let positions = window.map_or(position + 1, |w| w.min(position + 1)) as usize;
        let kv = if window.is_some() { kv.of_sliding_window() } else { kv };
        kv_heads * kv.bytes_read(head_dim as usize, position as usize, positions) as u64
    });
    blocks.sum()
}

/// Window, key/value heads and their width of each attention block.
fn attention_blocks(spec: &ModelSpec) -> impl Iterator<Item = (Option<u64>, u64, u64)> {
    let blocks = spec.layers.iter().flat_map(|l| &l.blocks);
    blocks.filter_map(|block| match &block.mixer {
        Mixer::Attention(a) => {
            let window = a.window.map(u64::from);
            Some((window, u64::from(a.kv_heads), u64::from(a.head_dim)))
        }
        Mixer::Mlp(_) => None,
    })
}
