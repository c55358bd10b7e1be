//! Any bytes as the weights of a small model. An odd first byte gives the header its length in the two
//! bytes that follow, which spares the fuzzer the outer one.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::source::ModelSource;
use gristmill_fuzz::budget;
use libfuzzer_sys::fuzz_target;

const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","vocab_size":3,
    "hidden_size":4,"intermediate_size":4,"num_hidden_layers":1,"num_attention_heads":1,
    "num_key_value_heads":1,"head_dim":4,"hidden_act":"silu","max_position_embeddings":16,
    "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#;

/// A directory of this process, which the script that started it removes.
fn checkpoint() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("gristmill-fuzz-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for the checkpoint");
        fs::write(dir.join("config.json"), CONFIG).expect("room for the checkpoint");
        dir
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, data)) = data.split_first() else { return };
    let mut file = Vec::new();
    match data.split_first_chunk::<2>() {
        Some((length, rest)) if kind % 2 == 1 => {
            let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
            file.extend((length as u64).to_le_bytes());
            file.extend_from_slice(rest);
        }
        _ => file.extend_from_slice(data),
    }
    let dir = checkpoint();
    // A new file each time: the one before may still be mapped.
    let path = dir.join("model.safetensors");
    let _ = fs::remove_file(&path);
    fs::write(&path, &file).expect("room for the weights");
    budget::within(file.len(), 256, || {
        let Ok(checkpoint) = HfCheckpoint::open(dir) else { return };
        for spec in checkpoint.spec().tensors() {
            let tensor = checkpoint.tensor(&spec.name).expect("opening found every tensor");
            assert_eq!(tensor.shape, spec.shape);
            let mut row = vec![0.0; tensor.cols()];
            for r in 0..tensor.rows() {
                tensor.decode_row(r, &mut row);
            }
        }
    });
});
