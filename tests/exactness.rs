//! Invariant 4 on the path that users run: a packed file gives the same logits, bit for bit, for any
//! threads and chunks and on every instruction set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::Silent;
use gristmill_formats::container::PackedFile;
use gristmill_formats::source::ModelSource;
use gristmill_kernels::PART;
use gristmill_quantize::{Metadata, Recipe, quantize};
use gristmill_runtime::{Engine, EngineConfig, Isa, KvType, Model, Residency, RuntimeError};

fn checkpoint() -> HfCheckpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    HfCheckpoint::open(&path).expect("the checkpoint opens")
}

fn pack(recipe: &Recipe, directory: &Path) -> PathBuf {
    let path = directory.join("model.grist");
    quantize(&checkpoint(), recipe, &path, &Metadata::default(), &Silent).expect("it packs");
    path
}

fn load(source: impl ModelSource + 'static) -> Arc<Model> {
    Arc::new(Model::load(Arc::new(source)).expect("the model loads"))
}

/// Logits of the last `count` of some tokens: all but the last ten as a prompt, then one by one.
fn logits(model: &Arc<Model>, threads: usize, chunk: usize, isa: Isa, kv: KvType) -> Vec<f32> {
    let tokens: Vec<u32> = (0..70u32).map(|i| (i * 389 + 17) % 1024).collect();
    let config = EngineConfig { threads: Some(threads), isa: Some(isa), context: None, kv, chunk };
    let mut engine = Engine::new(Arc::clone(model), &config).expect("the engine builds");
    let (prompt, rest) = tokens.split_at(60);
    let mut rows = Vec::new();
    engine.score(prompt, 0, |_, logits| rows.extend_from_slice(logits)).expect("the prompt runs");
    for &token in rest {
        rows.extend_from_slice(engine.decode(token).expect("a token runs"));
    }
    rows
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn packed_files_give_the_same_bits_for_any_threads_chunks_and_instruction_set() {
    let mixed = |text: &str| {
        Recipe::for_bits(4).and_then(|r| r.with_override(text)).expect("a recipe of two codecs")
    };
    let recipes = [
        Recipe::for_bits(4).expect("a recipe"),
        Recipe::for_bits(8).expect("a recipe"),
        mixed("embed|attn.v|mlp.up=q8"),
        // Every table codec, and those that take fine activations beside those that do not.
        ["embed=q6", "attn.v=q5", "mlp.up=q3", "mlp.down=q2"]
            .into_iter()
            .try_fold(Recipe::for_bits(4).expect("a recipe"), |r, text| r.with_override(text))
            .expect("a recipe of five codecs"),
        mixed("attn=bf16"),
    ];
    for recipe in recipes {
        let directory = tempfile::tempdir().expect("a directory");
        let file = PackedFile::open(&pack(&recipe, directory.path())).expect("the file opens");
        let model = load(file);
        for kv in [KvType::F16, KvType::Int8, KvType::Int4] {
            let expected = bits(&logits(&model, 1, 512, Isa::detect(), kv));
            let splits = [(1, 1), (2, 1), (3, 1), (2, 512), (3, 7), (2, 16), (3, 4)];
            for (threads, chunk) in splits {
                let same = bits(&logits(&model, threads, chunk, Isa::detect(), kv)) == expected;
                assert!(same, "{recipe} {kv:?}: {threads} threads, chunks of {chunk}");
            }
            for isa in Isa::available() {
                let same = bits(&logits(&model, 2, 32, isa, kv)) == expected;
                assert!(same, "{recipe} {kv:?} on {}", isa.name());
            }
        }
    }
}

#[test]
fn contexts_of_several_parts_have_the_same_bits_for_any_threads_and_chunks() {
    let directory = tempfile::tempdir().expect("a directory");
    let recipe = Recipe::for_bits(4).expect("a recipe");
    let model = load(PackedFile::open(&pack(&recipe, directory.path())).expect("the file opens"));
    let tokens: Vec<u32> = (0..PART as u32 + 30).map(|i| (i * 389 + 17) % 1024).collect();
    let all = |threads: usize, chunk: usize, kv: KvType| {
        let config = EngineConfig { threads: Some(threads), kv, chunk, ..EngineConfig::default() };
        let mut engine = Engine::new(Arc::clone(&model), &config).expect("the engine builds");
        let mut rows = Vec::new();
        // What a single token's threads share out begins before the second part does.
        let (prompt, rest) = tokens.split_at(PART - 10);
        engine.score(prompt, 0, |_, row| rows.extend_from_slice(row)).expect("the prompt runs");
        if chunk == 1 {
            rest.iter().for_each(|&t| rows.extend_from_slice(engine.decode(t).expect("it runs")));
        } else {
            engine.score(rest, 0, |_, row| rows.extend_from_slice(row)).expect("the rest runs");
        }
        bits(&rows)
    };
    for kv in KvType::ALL {
        let expected = all(1, 512, kv);
        // More threads than units of a token, as many, and fewer.
        for (threads, chunk) in [(1, 1), (3, 1), (5, 1), (2, 50)] {
            let same = all(threads, chunk, kv) == expected;
            assert!(same, "{kv:?}: {threads} threads, chunks of {chunk}");
        }
    }
}

#[test]
fn a_checkpoint_and_its_lossless_copy_give_the_same_bits() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = pack(&Recipe::for_bits(16).expect("a recipe"), directory.path());
    let packed = load(PackedFile::open(&path).expect("the file opens"));
    let isa = Isa::detect();
    let expected = bits(&logits(&load(checkpoint()), 2, 512, isa, KvType::F16));
    assert!(bits(&logits(&packed, 2, 512, isa, KvType::F16)) == expected);
}

#[test]
fn weights_give_the_same_bits_wherever_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = pack(&Recipe::for_bits(4).expect("a recipe"), directory.path());
    let open = || Arc::new(PackedFile::open(&path).expect("the file opens"));
    let run = |model: Model| bits(&logits(&Arc::new(model), 2, 16, Isa::detect(), KvType::F16));
    let expected = run(Model::load(open()).expect("the model loads"));
    let weights: u64 =
        Model::load(open()).expect("it loads").weight_slices().iter().map(|s| s.len() as u64).sum();

    // (policy, available memory, policy in force, whether something is copied, whether streamed)
    for (policy, available, residency, copies, streams) in [
        (Residency::Map, None, Residency::Map, false, false),
        (Residency::Auto, Some(weights * 2), Residency::Map, false, false),
        (Residency::Huge, Some(weights * 2), Residency::Huge, true, false),
        (Residency::Stream, Some(weights / 2), Residency::Stream, true, true),
        (Residency::Auto, Some(weights), Residency::Stream, true, true),
        (Residency::Stream, Some(0), Residency::Stream, false, true),
    ] {
        let mut model = Model::load(open()).expect("the model loads");
        model.place_within(policy, available, 2).expect("there is memory");
        let placement = model.placement();
        assert_eq!(placement.residency, residency, "{policy:?} within {available:?}");
        assert_eq!(placement.copied_bytes > 0, copies, "{placement:?}");
        assert_eq!(placement.streamed_bytes > 0, streams, "{placement:?}");
        if copies || streams {
            assert_eq!(placement.copied_bytes + placement.streamed_bytes, weights);
        }
        assert!(run(model) == expected, "{policy:?} within {available:?}");
    }
    let mut model = Model::load(open()).expect("the model loads");
    let refused = model.place_within(Residency::Huge, Some(weights), 2);
    assert!(matches!(refused, Err(RuntimeError::Residency { .. })), "{refused:?}");
}
