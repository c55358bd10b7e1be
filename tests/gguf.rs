//! Export to GGUF, from checkpoint to file: what a strict reader finds is what the checkpoint has.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use gristmill_convert::{GgufOrigin, HfCheckpoint, gguf_model};
use gristmill_formats::Silent;
use gristmill_formats::gguf::{GgmlType, Value};
use gristmill_formats::source::ModelSource;
use gristmill_quantize::{GgufExport, GgufFileType, QuantizeError, RoundedRows};

#[path = "../formats/tests/gguf/reader.rs"]
mod reader;

fn checkpoint(name: &str) -> HfCheckpoint {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    HfCheckpoint::open(&root.join(name)).expect("a checkpoint")
}

fn export(
    source: &HfCheckpoint,
    file_type: GgufFileType,
    rounded: &mut RoundedRows<'_>,
) -> (std::collections::BTreeMap<String, Value>, Vec<reader::Tensor>) {
    let dir = tempfile::tempdir().expect("a directory");
    let out: PathBuf = dir.path().join("model.gguf");
    let origin = GgufOrigin { name: Some("tiny"), licence: None };
    let model = gguf_model(source, origin).expect("a model for llama.cpp");
    let export =
        GgufExport { source, model: &model, file_type, calibrated: false, source_paths: &[] };
    let bytes = export.write(&out, rounded, &Silent).expect("a file");
    let file = std::fs::read(&out).expect("the file");
    assert_eq!(file.len() as u64, bytes);
    reader::read(&file)
}

fn values(tensor: &reader::Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
    tensor.ty.decode_row(&tensor.bytes, &mut values);
    values
}

fn find<'a>(tensors: &'a [reader::Tensor], name: &str) -> &'a reader::Tensor {
    tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("{name} is missing"))
}

fn row(source: &HfCheckpoint, name: &str, row: usize) -> Vec<f32> {
    let data = source.tensor(name).expect("a tensor");
    let mut values = vec![0.0; data.cols()];
    data.decode_row(row, &mut values);
    values
}

#[test]
fn full_precision_is_the_checkpoint_in_another_order() {
    let source = checkpoint("tests/fixtures/architectures/llama3");
    let (metadata, tensors) = export(&source, GgufFileType::F32, &mut |_, _| Ok(None));
    assert_eq!(metadata["general.name"], Value::Text("tiny".into()));
    assert_eq!(metadata["general.file_type"], Value::U32(0));
    let q = find(&tensors, "blk.1.attn_q.weight");
    let (cols, head_dim) = (q.shape[1] as usize, 16);
    let stored = values(q);
    for (r, stored) in stored.chunks_exact(cols).enumerate() {
        let (head, at) = (r / head_dim, r % head_dim);
        let half = head_dim / 2;
        let expected = head * head_dim + at / 2 + if at % 2 == 1 { half } else { 0 };
        assert_eq!(stored, row(&source, "layers.1.attn.q", expected), "row {r}");
    }
    let v = values(find(&tensors, "blk.1.attn_v.weight"));
    assert_eq!(v[..cols], row(&source, "layers.1.attn.v", 0)[..]);
    let norm = find(&tensors, "blk.0.attn_norm.weight");
    assert_eq!((norm.ty, values(norm)), (GgmlType::F32, row(&source, "layers.0.attn.norm", 0)));
}

#[test]
fn a_rounded_file_is_near_the_checkpoint() {
    let source = checkpoint("examples/models/tiny-shakespeare");
    let mut last = 0.0;
    for (file_type, bound) in [
        (GgufFileType::Bf16, 1e-5),
        (GgufFileType::Q8_0, 1e-4),
        (GgufFileType::Q4_K_S, 9e-3),
        (GgufFileType::Q4_0, 1e-2),
    ] {
        let (metadata, tensors) = export(&source, file_type, &mut |_, _| Ok(None));
        assert_eq!(metadata["general.file_type"], Value::U32(file_type.id()));
        assert_eq!(metadata["general.quantization_version"], Value::U32(2));
        let down = values(find(&tensors, "blk.0.ffn_down.weight"));
        let cols = source.tensor("layers.0.mlp.down").expect("a tensor").cols();
        let (mut error, mut norm) = (0.0f64, 0.0f64);
        for (r, stored) in down.chunks_exact(cols).enumerate() {
            for (x, y) in row(&source, "layers.0.mlp.down", r).iter().zip(stored) {
                error += f64::from(x - y).powi(2);
                norm += f64::from(*x).powi(2);
            }
        }
        let relative = error / norm;
        assert!(relative < bound, "{file_type}: {relative:.2e}");
        assert!(relative >= last, "{file_type} has fewer bits than the one before");
        last = relative;
    }
}

#[test]
fn rows_that_were_rounded_elsewhere_are_taken() {
    let source = checkpoint("examples/models/tiny-shakespeare");
    let mut asked = Vec::new();
    let mut rounded = |tensor: &gristmill_formats::gguf::GgufTensor, ty: GgmlType| {
        asked.push(tensor.name.clone());
        let size = ty.row_bytes(tensor.cols()).expect("whole blocks") * tensor.rows();
        Ok::<_, QuantizeError>((tensor.name == "blk.1.attn_k.weight").then(|| vec![0x11; size]))
    };
    let (_, tensors) = export(&source, GgufFileType::Q4_0, &mut rounded);
    let filled = |name: &str| find(&tensors, name).bytes.iter().all(|&b| b == 0x11);
    assert!(filled("blk.1.attn_k.weight"));
    assert!(!filled("blk.0.attn_k.weight"));
    assert!(asked.iter().all(|name| !name.contains("norm")), "vectors are not rounded");
}
