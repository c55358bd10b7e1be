//! Compares a model's logits and greedy tokens with transformers'.
//!
//! ```text
//! python3 tests/reference/logits.py MODEL_DIR TEXT --out golden.json
//! cargo run --release --example compare_logits -- MODEL golden.json
//! ```
//!
//! MODEL is the checkpoint directory or a packed file. The key/value cache is f32, so that what is
//! compared is the forward pass.

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use gristmill_convert::HfCheckpoint;
use gristmill_formats::container::PackedFile;
use gristmill_formats::source::ModelSource;
use gristmill_runtime::{Engine, EngineConfig, KvType, Model};

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(i, _)| i as u32)
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, golden] = &arguments[..] else { bail!("usage: compare_logits MODEL GOLDEN.json") };
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(golden)?)?;
    let ids = |key: &str| -> Result<Vec<u32>> {
        serde_json::from_value(golden[key].clone()).with_context(|| format!("{key} in the golden"))
    };
    let (prompt, greedy) = (ids("prompt")?, ids("greedy")?);
    let encoded = golden["logits_f32_base64"].as_str().context("logits in the golden")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded)?;
    let expected: Vec<f32> =
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();

    let path = Path::new(model);
    let source: Arc<dyn ModelSource> = if path.is_dir() {
        Arc::new(HfCheckpoint::open(path)?)
    } else {
        Arc::new(PackedFile::open(path)?)
    };
    let config = EngineConfig { kv: KvType::F32, ..EngineConfig::default() };
    let mut engine = Engine::new(Arc::new(Model::load(source)?), &config)?;
    let mut largest = 0.0f32;
    engine.score(&prompt, 0, |i, logits| {
        let row = &expected[i * logits.len()..(i + 1) * logits.len()];
        largest = logits.iter().zip(row).fold(largest, |m, (a, b)| m.max((a - b).abs()));
    })?;
    engine.reset();
    let mut next = argmax(engine.prefill(&prompt)?);
    let mut tokens = Vec::new();
    for _ in 0..greedy.len() {
        tokens.push(next);
        next = argmax(engine.decode(next)?);
    }
    let equal = tokens.iter().zip(&greedy).take_while(|(a, b)| a == b).count();
    println!("largest difference of {} logits: {largest:.2e}", expected.len());
    println!("greedy tokens equal: {equal} of {}", greedy.len());
    Ok(())
}
