//! Folding leaves what a model computes as it is.

use std::sync::Arc;

use gristmill_formats::source::{ModelSource, check_tensors};
use gristmill_quantize::{FoldedSource, Folds};
use gristmill_runtime::{Engine, EngineConfig, KvType, Model};

use crate::models::{SEQUENCE, all};
use crate::source::Random;

fn logits(source: Arc<dyn ModelSource>) -> Vec<f32> {
    let vocab = source.spec().vocab_size;
    let tokens: Vec<u32> = (0..SEQUENCE as u32).map(|i| (i * i + 5 * i + 1) % vocab).collect();
    let model = Model::load(source).expect("the model loads");
    let config = EngineConfig { threads: Some(1), kv: KvType::F32, ..EngineConfig::default() };
    let mut engine = Engine::new(Arc::new(model), &config).expect("the engine builds");
    let mut all = Vec::new();
    engine.score(&tokens, 0, |_, logits| all.extend_from_slice(logits)).expect("tokens are scored");
    all
}

/// Scales of all pairs, between a half and two.
fn folds(source: &dyn ModelSource) -> Folds {
    let mut folds = Folds::default();
    let mut random = Random(23);
    for layer in 0..source.spec().layers.len() {
        for pair in source.spec().fold_pairs(layer) {
            let scales: Vec<f32> =
                (0..pair.channels).map(|_| (2.0 * random.uniform()).exp2()).collect();
            folds.add(&pair, &scales);
        }
    }
    folds
}

#[test]
fn logits_stay() {
    for source in all() {
        let name = source.spec().architecture.clone();
        // For as long as the engine lives.
        let source: &'static _ = Box::leak(Box::new(source));
        let folded = FoldedSource::new(source, folds(source));
        check_tensors(&folded).expect("all tensors in their shapes");
        let plain = logits(Arc::new(FoldedSource::new(source, Folds::default())));
        let folded = logits(Arc::new(folded));
        let pairs = plain.iter().zip(&folded);
        let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert!(largest < 1e-4, "{name}: {largest}");
        assert!(largest > 0.0, "{name}: nothing was folded");
    }
}

#[test]
fn every_matrix_is_scaled_on_both_sides_but_queries_keys_and_gates() {
    for source in all() {
        let folds = folds(&source);
        for layer in 0..source.spec().layers.len() {
            let parts = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"];
            for part in parts {
                let name = gristmill_formats::model::layer_tensor(layer, part);
                assert!(folds.columns(&name).is_some(), "{name}");
                assert_eq!(folds.rows(&name).is_some(), ["attn.v", "mlp.up"].contains(&part));
            }
        }
        assert!(folds.columns("embed").is_none() && folds.rows("final_norm").is_none());
    }
}
