//! Logits of every supported architecture against transformers (f32), on tiny random checkpoints, and
//! what must not change them: threads, chunks, instruction set, file kind.
//!
//! The fixtures are made by `tests/fixtures/make_architectures.py`.

#![allow(clippy::print_stdout, reason = "the differences are there to be read with --nocapture")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use gristmill_convert::{HfCheckpoint, spec_from_config};
use gristmill_runtime::{Engine, EngineConfig, Isa, KvType, Model};

const ARCHITECTURES: [&str; 7] =
    ["llama2", "llama3", "smollm2", "mistral", "qwen2", "qwen3", "gemma3"];

/// Largest difference from transformers' logits that counts as equal.
const TOLERANCE: f32 = 1e-3;

struct Golden {
    prompt: Vec<u32>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures").join(name)
}

fn golden(name: &str) -> Golden {
    let text = std::fs::read_to_string(fixture(name).join("golden.json")).expect("golden.json");
    let json: serde_json::Value = serde_json::from_str(&text).expect("golden.json is JSON");
    let ids = |key: &str| -> Vec<u32> {
        serde_json::from_value(json[key].clone()).unwrap_or_else(|_| panic!("{key} is a list"))
    };
    let vocab = json["shape"][1].as_u64().expect("shape") as usize;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(json["logits_f32_base64"].as_str().expect("logits"))
        .expect("base64");
    let values: Vec<f32> =
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Golden {
        prompt: ids("prompt"),
        logits: values.chunks(vocab).map(<[f32]>::to_vec).collect(),
        greedy: ids("greedy"),
    }
}

fn model(name: &str) -> Arc<Model> {
    let source = HfCheckpoint::open(&fixture(name)).expect("the fixture opens");
    Arc::new(Model::load(Arc::new(source)).expect("the fixture loads"))
}

fn engine(model: &Arc<Model>, threads: usize, chunk: usize, isa: Isa, kv: KvType) -> Engine {
    let config = EngineConfig { threads: Some(threads), isa: Some(isa), context: None, kv, chunk };
    Engine::new(Arc::clone(model), &config).expect("the engine builds")
}

fn all_logits(engine: &mut Engine, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    engine.reset();
    engine.score(tokens, 0, |_, logits| rows.push(logits.to_vec())).expect("tokens are scored");
    rows
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("logits are not empty").0 as u32
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_equal_transformers_on_every_architecture_and_instruction_set() {
    for name in ARCHITECTURES {
        let (golden, model) = (golden(name), model(name));
        for isa in Isa::available() {
            let mut engine = engine(&model, 2, 512, isa, KvType::F32);
            let difference =
                largest_difference(&all_logits(&mut engine, &golden.prompt), &golden.logits);
            println!("{name} on {}: largest difference {difference:.2e}", isa.name());
            assert!(difference <= TOLERANCE, "{name} on {}: {difference}", isa.name());
        }
    }
}

#[test]
fn greedy_tokens_equal_transformers_over_64_steps() {
    for name in ARCHITECTURES {
        let (golden, model) = (golden(name), model(name));
        let mut engine = engine(&model, 2, 512, Isa::detect(), KvType::F32);
        let mut next = argmax(engine.prefill(&golden.prompt).expect("the prompt runs"));
        let mut tokens = Vec::new();
        for _ in 0..golden.greedy.len() {
            tokens.push(next);
            next = argmax(engine.decode(next).expect("a token runs"));
        }
        assert_eq!(tokens, golden.greedy, "{name}");
    }
}

#[test]
fn logits_have_the_same_bits_for_any_threads_and_chunks() {
    for name in ARCHITECTURES {
        let (golden, model) = (golden(name), model(name));
        for isa in Isa::available() {
            for kv in KvType::ALL {
                let expected = all_logits(&mut engine(&model, 1, 512, isa, kv), &golden.prompt);
                for (threads, chunk) in [(1, 1), (2, 1), (3, 5), (2, 4), (3, 17), (2, 512)] {
                    let mut engine = engine(&model, threads, chunk, isa, kv);
                    let found = all_logits(&mut engine, &golden.prompt);
                    let isa = isa.name();
                    let same = found == expected;
                    assert!(same, "{name} {isa} {kv:?}: {threads} threads, chunk {chunk}");
                }
            }
        }
    }
}

#[test]
fn both_spellings_of_a_configuration_are_one_model() {
    let read = |name: &str| std::fs::read(fixture(name).join("config.json")).expect("config.json");
    let v4 = spec_from_config(&read("llama-v4config")).expect("transformers 4's spelling");
    let v5 = spec_from_config(&read("llama3")).expect("transformers 5's spelling");
    assert_eq!(v4, v5);
}

#[test]
fn a_rewound_sequence_continues_with_the_same_bits() {
    for name in ["llama3", "mistral", "gemma3"] {
        let (golden, model) = (golden(name), model(name));
        for kv in KvType::ALL {
            let mut engine = engine(&model, 2, 8, Isa::detect(), kv);
            let expected = all_logits(&mut engine, &golden.prompt);
            engine.rewind(30).expect("two tokens back is within every window");
            let logits = engine.prefill(&golden.prompt[30..]).expect("the rest runs").to_vec();
            assert!(Some(&logits) == expected.last(), "{name} {kv:?}");
        }
    }
}

/// Tokens for long sequences.
fn tokens(count: u32, vocab_size: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 389 + 17) % vocab_size).collect()
}

#[test]
fn a_sequence_goes_back_as_far_as_what_it_saw_exactly_is_kept() {
    let model = model("llama3");
    let tokens = tokens(120, model.spec().vocab_size);
    for kv in KvType::ALL {
        let mut whole = engine(&model, 1, 512, Isa::detect(), kv);
        let expected = all_logits(&mut whole, &tokens);
        let mut engine = engine(&model, 2, 48, Isa::detect(), kv);
        engine.prefill(&tokens).expect("the sequence fits");
        // Positions 64 to 119 are left of int4's exact window, and a query sees one block before its own.
        for position in [119, 97, 80] {
            engine.rewind(position).expect("the window holds what is needed");
            for (i, &token) in tokens.iter().enumerate().skip(position) {
                let logits = engine.decode(token).expect("a token runs");
                assert!(logits == &expected[i][..], "{kv:?}: token {i} from {position} on");
            }
        }
        assert_eq!(engine.rewind(79).is_err(), kv == KvType::Int4, "{kv:?}");
        assert_eq!(engine.position(), if kv == KvType::Int4 { 120 } else { 79 });
    }
}

#[test]
fn tokens_beyond_the_context_or_the_vocabulary_are_errors() {
    let model = model("llama3");
    let config = EngineConfig { context: Some(16), ..EngineConfig::default() };
    let mut engine = Engine::new(Arc::clone(&model), &config).expect("the engine builds");
    let vocab = model.source().spec().vocab_size;
    assert!(engine.prefill(&[]).is_err());
    assert!(engine.prefill(&[vocab]).is_err());
    assert!(engine.prefill(&[1; 17]).is_err());
    assert_eq!(engine.position(), 0, "a refused call changes nothing");
    engine.prefill(&[1; 16]).expect("the context holds 16");
    assert!(engine.decode(1).is_err());
}
