//! The tiny checkpoints of every architecture, as transformers writes them.

use std::path::{Path, PathBuf};

use gristmill_convert::HfCheckpoint;
use gristmill_formats::codec::Codec;
use gristmill_formats::model::Mixer;
use gristmill_formats::source::{ModelSource, check_tensors};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/architectures")
}

fn open(name: &str) -> HfCheckpoint {
    let source =
        HfCheckpoint::open(&fixtures().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    check_tensors(&source).unwrap();
    source
}

#[test]
fn every_fixture_opens_with_all_its_tensors() {
    for name in ["llama2", "llama3", "smollm2", "mistral", "qwen2", "qwen3", "gemma3"] {
        let source = open(name);
        assert_eq!(source.tensor("embed").unwrap().codec, Codec::Bf16, "{name}");
        assert_eq!(source.text().stop_ids, [2], "{name}");
        assert!(source.notes().is_empty(), "{name}: {:?}", source.notes());
        assert!(source.tokenizer().unwrap().is_none());
    }
}

#[test]
fn qwen3_is_sharded() {
    let shards = open("qwen3").files().iter().filter(|f| f.ends_with(".safetensors")).count();
    assert_eq!(shards, 2);
}

#[test]
fn both_spellings_describe_the_same_llama() {
    let config = std::fs::read(fixtures().join("llama-v4config/config.json")).unwrap();
    let spec = gristmill_convert::spec_from_config(&config).unwrap();
    assert_eq!(&spec, open("llama3").spec());
}

#[test]
fn gemma3_mixes_windows_and_rotations() {
    let source = open("gemma3");
    let layers: Vec<_> = source
        .spec()
        .layers
        .iter()
        .map(|layer| match &layer.blocks[0].mixer {
            Mixer::Attention(a) => (a.window, a.rope.as_ref().unwrap().base),
            Mixer::Mlp(_) => panic!("attention comes first"),
        })
        .collect();
    let (sliding, full) = ((Some(9), 200.0), (None, 20_000.0));
    assert_eq!(layers, [sliding, sliding, sliding, sliding, sliding, full, sliding]);
}
