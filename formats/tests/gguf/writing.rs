use std::fs;

use gristmill_formats::gguf::{GgmlType, GgufWriter, Metadata, RowOrder, TensorInfo};

use crate::reader::{Tensor, read};

fn info(name: &str, shape: &[u64], ty: GgmlType) -> TensorInfo {
    TensorInfo { name: name.into(), shape: shape.into(), ty }
}

#[test]
fn a_file_reads_back_as_it_was_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("model.gguf");
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "llama");
    metadata.set("llama.block_count", 3u32);
    metadata.set("llama.rope.freq_base", 1e5f32);
    metadata.set("tokenizer.ggml.add_bos_token", true);
    metadata.set("tokenizer.ggml.tokens", vec!["a".to_string(), "Ġb".to_string(), String::new()]);
    metadata.set("tokenizer.ggml.token_type", vec![1, 3, -1]);
    metadata.set("tokenizer.ggml.scores", vec![0.5f32, -1.0]);
    metadata.set("llama.block_count", 2u32);
    let infos = [
        info("token_embd.weight", &[3, 64], GgmlType::Q8_0),
        info("blk.0.attn_norm.weight", &[5], GgmlType::F32),
        info("blk.0.ffn_down.weight", &[2, 256], GgmlType::Q4_K),
        info("blk.0.ffn_up.weight", &[1, 3], GgmlType::Bf16),
    ];
    let expected: Vec<Tensor> = infos
        .iter()
        .zip(1u8..)
        .map(|(info, fill)| Tensor {
            name: info.name.clone(),
            shape: info.shape.clone(),
            ty: info.ty,
            bytes: vec![fill; info.bytes().expect("whole blocks") as usize],
        })
        .collect();
    let mut writer = GgufWriter::begin(&path, &metadata, &infos).expect("a file");
    for tensor in &expected {
        // In pieces of any size.
        for piece in tensor.bytes.chunks(7) {
            writer.tensor(&tensor.name, piece).expect("written");
        }
        assert!(!path.exists(), "the file appears at the end");
    }
    let bytes = writer.finish().expect("a file");
    let file = fs::read(&path).expect("the file");
    assert_eq!(file.len() as u64, bytes);
    let (read_metadata, tensors) = read(&file);
    assert_eq!(tensors, expected);
    assert_eq!(read_metadata, metadata.entries().iter().cloned().collect());
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "no partial file is left");
}

#[test]
fn an_abandoned_file_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("model.gguf");
    let infos = [info("a", &[4], GgmlType::F32)];
    drop(GgufWriter::begin(&path, &Metadata::default(), &infos).expect("a file"));
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
}

#[test]
fn what_the_format_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("model.gguf");
    let long = "n".repeat(64);
    let cases = [
        (vec![info("a", &[2, 33], GgmlType::Q4_0)], "blocks of 32"),
        (vec![info("a", &[2, 128], GgmlType::Q4_K)], "blocks of 256"),
        (vec![info(&long, &[2], GgmlType::F32)], "longer than 63"),
        (vec![info("a", &[2], GgmlType::F32), info("a", &[2], GgmlType::F32)], "twice"),
        (vec![info("a", &[u64::MAX, 2], GgmlType::F32)], "shape"),
    ];
    for (infos, expected) in cases {
        let error = GgufWriter::begin(&path, &Metadata::default(), &infos).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
}

#[test]
fn rotary_pairs_interleave_the_halves_of_each_head() {
    let order = RowOrder::RotaryPairs { head_dim: 6 };
    let rows: Vec<usize> = (0..12).map(|row| order.source_row(row)).collect();
    assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
}
