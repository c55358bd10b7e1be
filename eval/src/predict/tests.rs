use gristmill_formats::codec::{Codec, CodecId};
use gristmill_runtime::{KvType, Residency};

use super::*;
use crate::synthetic::Shape;

/// The 1B shape with one codec.
fn shape(codec: CodecId) -> ModelShape {
    let spec = Shape::Llama1b.spec();
    let tensors = spec.tensors();
    let bytes = |name: &str| {
        let tensor = tensors.iter().find(|t| t.name == name).expect("a tensor of the model");
        let codec = if tensor.shape.len() == 1 { CodecId::F32 } else { codec };
        Ok((codec, Codec::from(codec).tensor_bytes(&tensor.shape).expect("a size")))
    };
    let file_bytes = tensors.iter().map(|t| bytes(&t.name).expect("bytes").1).sum();
    ModelShape::new(&spec, file_bytes, bytes).expect("a shape")
}

fn config() -> PredictConfig {
    PredictConfig {
        threads: vec![2],
        prompt: 512,
        r#gen: 128,
        depth: 0,
        context: None,
        kv: KvType::F16,
        residency: Residency::Map,
        available_bytes: Some(4 << 30),
    }
}

fn exactly(value: f64) -> Interval {
    Interval { low: value, mid: value, high: value }
}

/// Ten GB/s and nothing else costs anything.
fn machine(shape: &ModelShape) -> Machine {
    let mut machine = Device::find("pi5").expect("a device").machine(&config().needs(shape));
    machine.gemv.iter_mut().for_each(|r| r.gb_s = exactly(10.0));
    machine.gemm.iter_mut().for_each(|r| r.gmac_s = exactly(100.0));
    let o = &mut machine.overheads[0];
    for time in [&mut o.stage_us, &mut o.column_ns, &mut o.vocab_ns] {
        *time = exactly(0.0);
    }
    (o.prompt_layer_us, o.prompt_column_ns) = (exactly(0.0), exactly(0.0));
    let free = exactly(f64::INFINITY);
    machine.attention.iter_mut().for_each(|a| {
        (a.decode_gmac_s, a.prompt_gmac_s) = (free, free);
    });
    machine
}

#[test]
fn a_machine_that_only_reads_decodes_at_its_bandwidth() {
    let shape = shape(CodecId::Q4);
    let found = predict(&shape, &machine(&shape), &config()).expect("a prediction");
    let row = &found.rows[0];
    let matrices: u64 = shape.matrices.iter().map(|m| m.bytes).sum();
    let expected = 10e9 / matrices as f64;
    assert!((row.decode_tok_s.mid / expected - 1.0).abs() < 1e-9, "{row:?}");
    // 973 M products a token in blocks, and the head once.
    let head = shape.matrices.iter().find(|m| m.is_head).expect("a head").bytes as f64 / 10e9;
    let seconds = found.macs_per_prompt_token as f64 * 512.0 / 100e9 + head;
    assert!((row.prefill_tok_s.mid * seconds / 512.0 - 1.0).abs() < 1e-9, "{row:?}");
    assert_eq!(
        row.bytes_per_token,
        shape.weight_bytes_per_token + shape.kv_bytes(KvType::F16, 575)
    );
    // A tied head is read, and counted, once.
    assert_eq!(shape.held_bytes, matrices);
}

#[test]
fn few_tokens_of_a_prompt_are_bound_by_reading() {
    let shape = shape(CodecId::Q4);
    let one = PredictConfig { prompt: 1, r#gen: 1, ..config() };
    let found = predict(&shape, &machine(&shape), &one).expect("a prediction");
    let row = &found.rows[0];
    assert!((row.prefill_tok_s.mid / row.decode_tok_s.mid - 1.0).abs() < 1e-6, "{row:?}");
}

#[test]
fn everything_that_costs_time_is_counted() {
    let shape = shape(CodecId::Q4);
    let rate = |machine: &Machine, config: &PredictConfig| {
        predict(&shape, machine, config).expect("a prediction").rows[0].decode_tok_s.mid
    };
    let bare = machine(&shape);
    let all = rate(&bare, &config());
    let with = |change: &dyn Fn(&mut Machine)| {
        let mut machine = bare.clone();
        change(&mut machine);
        rate(&machine, &config())
    };
    assert!(with(&|m| m.overheads[0].stage_us = exactly(5.0)) < all);
    assert!(with(&|m| m.overheads[0].column_ns = exactly(5.0)) < all);
    assert!(with(&|m| m.overheads[0].vocab_ns = exactly(5.0)) < all);
    assert!(with(&|m| m.attention[0].decode_gmac_s = exactly(1.0)) < all);
    let mut slow = bare.clone();
    slow.attention[0].decode_gmac_s = exactly(1.0);
    let deep = PredictConfig { depth: 4000, ..config() };
    assert!(rate(&slow, &deep) < rate(&slow, &config()));
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let shape = shape(CodecId::Q8);
    let tight =
        PredictConfig { available_bytes: Some(64 << 20), context: Some(100_000), ..config() };
    let found = predict(&shape, &machine(&shape), &tight).expect("a prediction");
    assert_eq!(found.memory.fits, Some(false));
    assert!(found.memory.advice[0].contains("--ctx"), "{:?}", found.memory.advice);
    assert!(found.table().contains("does NOT fit"));
}

#[test]
fn weights_beyond_memory_are_read_from_storage() {
    let shape = shape(CodecId::Q8);
    let tight =
        PredictConfig { available_bytes: Some(700 << 20), residency: Residency::Auto, ..config() };
    let machine = machine(&shape);
    let found = predict(&shape, &machine, &tight).expect("a prediction");
    let streamed = found.memory.streamed_bytes;
    assert!(streamed > 0 && streamed < shape.held_bytes);
    let storage = machine.storage_gb_s.expect("known").mid;
    let bound = storage * 1e9 / streamed as f64;
    assert!((found.rows[0].decode_tok_s.mid / bound - 1.0).abs() < 1e-9);
    assert!(found.memory.advice[0].contains("bits per weight"), "{:?}", found.memory.advice);
}

#[test]
fn a_rate_that_is_not_known_is_named() {
    let shape = shape(CodecId::Q4);
    let mut machine = machine(&shape);
    machine.gemv.clear();
    let error = predict(&shape, &machine, &config()).unwrap_err().to_string();
    assert!(error.contains("q4") && error.contains("2 threads"), "{error}");
    let long = PredictConfig { depth: 200_000, ..config() };
    let error = predict(&shape, &machine, &long).unwrap_err().to_string();
    assert!(error.contains("131072"), "{error}");
}
