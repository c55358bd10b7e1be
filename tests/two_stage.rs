//! The two-stage head on a trained model: the same tokens, and less of the head read.

use std::path::Path;
use std::sync::Arc;

use gristmill_convert::HfCheckpoint;
use gristmill_formats::Silent;
use gristmill_formats::container::PackedFile;
use gristmill_formats::source::ModelSource;
use gristmill_quantize::{Metadata, Recipe, quantize};
use gristmill_runtime::text::{Sampler, SamplerConfig};
use gristmill_runtime::{Engine, EngineConfig, Head, Model};

/// Tokens generated.
const STEPS: usize = 64;

fn checkpoint() -> HfCheckpoint {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/tiny-shakespeare");
    HfCheckpoint::open(&path).expect("the checkpoint opens")
}

fn packed(recipe: &str, directory: &Path) -> PackedFile {
    let recipe = Recipe::for_bits(4).and_then(|r| r.with_override(recipe)).expect("a recipe");
    let path = directory.join("model.grist");
    quantize(&checkpoint(), &recipe, &path, &Metadata::default(), &Silent).expect("it packs");
    PackedFile::open(&path).expect("the file opens")
}

fn load(source: Arc<dyn ModelSource>, head: Head) -> Model {
    let mut model = Model::load(source).expect("the model loads");
    model.set_head(head, 2).expect("a head of 8 bits or more");
    model
}

/// Tokens and the engine that made them.
fn generate(
    source: &Arc<dyn ModelSource>,
    head: Head,
    sampling: &SamplerConfig,
) -> (Vec<u32>, Engine) {
    let model = Arc::new(load(Arc::clone(source), head));
    let vocab_size = model.spec().vocab_size as usize;
    let mut engine = Engine::new(model, &EngineConfig::default()).expect("the engine builds");
    let mut sampler = Sampler::new(sampling.clone(), vocab_size).expect("the sampler builds");
    let prompt = [70, 11, 300, 5];
    prompt.iter().for_each(|&id| sampler.accept(id));
    let logits = engine.prefill_top(&prompt, sampler.reach()).expect("the prompt runs");
    let mut tokens = vec![sampler.sample(logits)];
    while tokens.len() < STEPS {
        let last = tokens[tokens.len() - 1];
        sampler.accept(last);
        let logits = engine.decode_top(last, sampler.reach()).expect("a token runs");
        tokens.push(sampler.sample(logits));
    }
    (tokens, engine)
}

#[test]
fn tokens_are_those_of_the_full_head_and_less_of_it_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let sources: [Arc<dyn ModelSource>; 2] =
        [Arc::new(packed("embed=q8", directory.path())), Arc::new(checkpoint())];
    let sampled =
        SamplerConfig { temperature: 0.8, top_k: 20, seed: 4, ..SamplerConfig::default() };
    let penalized = SamplerConfig { repetition_penalty: 1.3, ..sampled.clone() };
    for source in &sources {
        for sampling in [&SamplerConfig::greedy(), &sampled, &penalized] {
            let (expected, _) = generate(source, Head::Full, sampling);
            let (found, engine) = generate(source, Head::TwoStage, sampling);
            assert_eq!(found, expected, "{sampling:?}");
            let used = engine.head_use();
            assert_eq!(used.tokens, STEPS as u64, "{sampling:?}");
            if sampling.is_greedy() {
                let share = engine.model().fine_head_share(used).expect("tokens were generated");
                assert!(share < 0.5, "{share}");
            }
        }
    }
}

#[test]
fn the_largest_logits_are_found_after_a_prompt_and_a_token() {
    let source: Arc<dyn ModelSource> = Arc::new(checkpoint());
    let engine = |head| {
        let model = Arc::new(load(Arc::clone(&source), head));
        Engine::new(model, &EngineConfig::default()).expect("the engine builds")
    };
    let largest = |logits: &[f32]| {
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        ids[..40].iter().map(|&id| (id, logits[id].to_bits())).collect::<Vec<_>>()
    };
    let (mut full, mut staged) = (engine(Head::Full), engine(Head::TwoStage));
    let expected = largest(full.prefill(&[9, 8, 7]).expect("the prompt runs"));
    assert_eq!(largest(staged.prefill_top(&[9, 8, 7], 40).expect("the prompt runs")), expected);
    for token in [1, 100, 1000] {
        let expected = largest(full.decode(token).expect("a token runs"));
        assert_eq!(largest(staged.decode_top(token, 40).expect("a token runs")), expected);
    }
}

#[test]
fn a_head_of_few_bits_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = Arc::new(packed("embed=q6", directory.path()));
    let mut model = Model::load(file).expect("the model loads");
    let error = model.set_head(Head::TwoStage, 1).expect_err("6 bits").to_string();
    assert!(error.contains("is q6") && error.contains("--head full"), "{error}");
}
