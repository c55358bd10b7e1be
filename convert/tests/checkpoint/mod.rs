//! Small checkpoints, written by hand so that every byte can be wrong.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::Path;

use gristmill_convert::{ConvertError, HfCheckpoint};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A Llama of one layer: width 4, 2 heads of 2, feed-forward 6, 8 tokens.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": true,
    })
}

/// The tensors of that model in the order in which they are written.
pub(crate) fn tensors() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("model.embed_tokens.weight", vec![8, 4]),
        ("model.layers.0.input_layernorm.weight", vec![4]),
        ("model.layers.0.self_attn.q_proj.weight", vec![4, 4]),
        ("model.layers.0.self_attn.k_proj.weight", vec![4, 4]),
        ("model.layers.0.self_attn.v_proj.weight", vec![4, 4]),
        ("model.layers.0.self_attn.o_proj.weight", vec![4, 4]),
        ("model.layers.0.post_attention_layernorm.weight", vec![4]),
        ("model.layers.0.mlp.gate_proj.weight", vec![6, 4]),
        ("model.layers.0.mlp.up_proj.weight", vec![6, 4]),
        ("model.layers.0.mlp.down_proj.weight", vec![4, 6]),
        ("model.norm.weight", vec![4]),
    ]
}

/// A safetensors file of f32 tensors; element `i` of tensor `t` is `100 t + i`.
pub(crate) fn safetensors(tensors: &[(&str, Vec<usize>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (t, (name, shape)) in tensors.iter().enumerate() {
        let start = data.len();
        for i in 0..shape.iter().product::<usize>() {
            data.extend(((100 * t + i) as f32).to_le_bytes());
        }
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).into(), info);
    }
    from_parts(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with any header and data.
pub(crate) fn from_parts(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A directory in the making.
pub(crate) struct Checkpoint(pub(crate) TempDir);

impl Checkpoint {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The whole small model.
    pub(crate) fn new() -> Self {
        let checkpoint = Self::empty();
        checkpoint.json("config.json", &config());
        checkpoint.file("model.safetensors", safetensors(&tensors()));
        checkpoint
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path().join(name), content).unwrap();
        self
    }

    pub(crate) fn json(&self, name: &str, value: &Value) -> &Self {
        self.file(name, value.to_string())
    }

    /// The configuration with one key changed.
    pub(crate) fn set(&self, key: &str, value: Value) -> &Self {
        let mut config = config();
        config[key] = value;
        self.json("config.json", &config)
    }

    pub(crate) fn open(&self) -> Result<HfCheckpoint, ConvertError> {
        HfCheckpoint::open(self.path())
    }

    /// Opens what must not open; the error must contain every one of `parts`.
    #[track_caller]
    pub(crate) fn refuses(&self, parts: &[&str]) -> ConvertError {
        let error = self.open().expect_err("the checkpoint should be refused");
        assert_says(&error, parts);
        error
    }
}

#[track_caller]
pub(crate) fn assert_says(error: &ConvertError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}
