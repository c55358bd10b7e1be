//! The forward pass is the runtime's.

use std::sync::Arc;

use gristmill_formats::source::ModelSource;
use gristmill_quantize::network::{Head, Input, Matrix, embed, forward};
use gristmill_runtime::{Engine, EngineConfig, KvType, Model};

use crate::models::{SEQUENCE, all, blocks};
use crate::source::TestSource;

fn tokens(source: &TestSource, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i + 7 * i + 3) % source.spec().vocab_size).collect()
}

fn logits(source: &TestSource, tokens: &[u32], sequence: usize) -> Matrix {
    let mut x = embed(source, tokens).expect("the embedding is read");
    for (_, block) in blocks(source) {
        forward(&block, &mut x, sequence, &mut |_, _| ());
    }
    Head::load(source).expect("the head loads").logits(&x)
}

#[test]
fn logits_are_those_of_the_engine() {
    for source in all() {
        let tokens = tokens(&source, SEQUENCE);
        let found = logits(&source, &tokens, SEQUENCE);
        let name = source.spec().architecture.clone();
        let model = Model::load(Arc::new(source)).expect("the model loads");
        let config = EngineConfig { threads: Some(1), kv: KvType::F32, ..EngineConfig::default() };
        let mut engine = Engine::new(Arc::new(model), &config).expect("the engine builds");
        let mut largest = 0.0f32;
        engine
            .score(&tokens, 0, |t, expected| {
                let pairs = found.row(t).iter().zip(expected);
                largest = pairs.map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
            })
            .expect("tokens are scored");
        assert!(largest < 1e-4, "{name}: {largest}");
    }
}

#[test]
fn sequences_do_not_see_each_other() {
    for source in all() {
        let tokens = tokens(&source, 3 * 40);
        let together = logits(&source, &tokens, 40);
        for (i, alone) in tokens.chunks(40).enumerate() {
            let alone = logits(&source, alone, 40);
            let together = together.slice(i * 40..(i + 1) * 40);
            let pairs = together.data().iter().zip(alone.data());
            let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(largest < 1e-5, "sequence {i}: {largest}");
        }
    }
}

#[test]
fn observers_are_shown_what_each_layer_reads() {
    for source in all() {
        let tokens = tokens(&source, 20);
        let mut x = embed(&source, &tokens).expect("the embedding is read");
        for (name, block) in blocks(&source) {
            let mut seen = Vec::new();
            let before = x.clone();
            forward(&block, &mut x, 10, &mut |input, matrix| seen.push((input, matrix.clone())));
            let expected: Vec<Input> = match block.linears().len() {
                4 => vec![Input::Qkv, Input::O],
                _ => vec![Input::GateUp, Input::Down],
            };
            assert_eq!(seen.iter().map(|(input, _)| *input).collect::<Vec<_>>(), expected);
            let mut layers = Vec::new();
            let mut dy = before.clone();
            let mut observe = |linear: gristmill_quantize::network::Linear,
                               x: &Matrix,
                               g: &Matrix| {
                let weight = &block.projection(linear).expect("a layer of the block").weight;
                assert_eq!((x.cols(), g.cols()), (weight.cols(), weight.rows()), "{name}");
                let (_, input) = seen.iter().find(|s| s.0 == linear.input()).expect("seen before");
                assert_eq!(input, x, "{name} {linear:?}");
                layers.push(linear);
            };
            gristmill_quantize::network::backward(&block, &before, &mut dy, 10, &mut observe);
            for linear in block.linears() {
                assert!(layers.contains(linear), "{name}: {linear:?} was not shown");
                assert!(linear.input().linears().contains(linear));
            }
            assert_eq!(layers.len(), block.linears().len());
        }
    }
}
