//! Which tokens calibration looks at, and what comes of it whatever the threads.

use gristmill_formats::codec::CodecId;
use gristmill_formats::container::PackedFile;
use gristmill_formats::model::{Mixer, ModelSpec};
use gristmill_formats::{Silent, container::verify};
use gristmill_quantize::{Calibration, Metadata, Method, QuantizeError, Recipe, quantize};

use crate::source::{Random, TestSource, spec};

/// A text of tokens of the test model.
pub(crate) fn calibration(sequences: usize, sequence: usize) -> Calibration {
    let mut random = Random(11);
    let count = sequences * sequence;
    let tokens: Vec<u32> = (0..count).map(|_| ((random.uniform() + 0.5) * 75.0) as u32).collect();
    Calibration::new("made up", "the text", &tokens, sequence, count).expect("a long text")
}

/// Rounding with error feedback on a short text.
pub(crate) fn gptq(default: CodecId) -> Recipe {
    let calibration = Some(calibration(6, 16));
    Recipe { method: Method::Gptq, calibration, ..Recipe::new(default) }
}

#[test]
fn sequences_are_spread_over_the_text() {
    let tokens: Vec<u32> = (0..1050).collect();
    // Texts of 105 sequences; what is left over at the end is not used.
    for (budget, count) in [(0, 1), (9, 1), (10, 1), (19, 1), (35, 3), (500, 50), (9999, 105)] {
        let taken = Calibration::new("name", "text", &tokens, 10, budget).expect("long enough");
        assert_eq!((taken.sequences(), taken.tokens.len()), (count, 10 * count));
        let firsts: Vec<u32> = taken.tokens.chunks(10).map(|s| s[0]).collect();
        for sequence in taken.tokens.chunks(10) {
            assert_eq!(sequence[0] % 10, 0, "sequences of the text");
            assert!(sequence.windows(2).all(|pair| pair[1] == pair[0] + 1), "in one piece");
        }
        let apart: Vec<u32> = firsts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let (least, most) = (105 / count as u32 * 10, 105u32.div_ceil(count as u32) * 10);
        assert!(apart.iter().all(|d| (least..=most).contains(d)), "{count}: {firsts:?}");
    }
}

#[test]
fn texts_shorter_than_a_sequence_are_refused() {
    let result = Calibration::new("essay", "text", &[1; 15], 16, 100);
    let error = result.expect_err("15 tokens are no sequence of 16");
    assert!(matches!(&error, QuantizeError::ShortCalibration { found: 15, needed: 16, .. }));
    assert!(error.to_string().contains("essay"), "{error}");
    let exact = Calibration::new("essay", "text", &[1; 16], 16, 100).expect("one sequence");
    assert_eq!((exact.sequences(), exact.tokens.len()), (1, 16));
}

#[test]
fn the_text_is_identified_and_the_built_in_one_is_long() {
    let of = |text: &str| Calibration::new("name", text, &[1; 16], 16, 16).expect("one sequence");
    assert_eq!(of("a").digest, of("a").digest);
    assert_ne!(of("a").digest, of("b").digest);
    let text = Calibration::built_in_text();
    // Even if each token were eight bytes.
    assert!(text.len() >= 8 * Calibration::DEFAULT_TOKENS, "{} bytes", text.len());
}

#[test]
fn a_method_that_looks_at_a_text_needs_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    let recipe = Recipe { calibration: None, ..gptq(CodecId::Q4) };
    let result = quantize(&TestSource::new(true), &recipe, &out, &Metadata::default(), &Silent);
    assert!(matches!(result, Err(QuantizeError::NoCalibration)));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn feedback_is_predicted_to_help_every_matrix() {
    let dir = tempfile::tempdir().expect("a directory");
    for tied in [true, false] {
        let source = TestSource::plausible(spec(tied), 3);
        for codec in [CodecId::Q8, CodecId::Q4, CodecId::Q2] {
            let recipe = gptq(codec).with_override(r"\.v$=bf16").expect("a valid override");
            let out = dir.path().join("model.grist");
            let report = quantize(&source, &recipe, &out, &Metadata::default(), &Silent)
                .expect("a packed file");
            let file = PackedFile::open(&out).expect("a valid file");
            assert_eq!(verify(&file, &Silent), []);
            let mut better = 0;
            for tensor in &report.tensors {
                assert_eq!(tensor.rounding.is_some(), !tensor.codec.is_dense(), "{}", tensor.name);
                let Some(rounding) = &tensor.rounding else { continue };
                let (fed, plain) = (rounding.predicted_kld, rounding.predicted_kld_rtn);
                assert!(fed > 0.0 && fed <= plain, "{}: {rounding:?}", tensor.name);
                assert!(rounding.dead_columns == 0 && rounding.damping > 0.0, "{}", tensor.name);
                better += usize::from(rounding.fallback.is_none());
            }
            let matrices = report.tensors.iter().filter(|t| t.rounding.is_some()).count();
            assert!(better * 10 >= matrices * 9, "{codec}: {better} of {matrices}");
        }
    }
}

/// A model large enough for its products to be shared among threads.
fn larger(tied: bool) -> ModelSpec {
    let mut spec = spec(tied);
    spec.d_model = 192;
    spec.layers.truncate(1);
    for block in spec.layers.iter_mut().flat_map(|layer| &mut layer.blocks) {
        match &mut block.mixer {
            Mixer::Attention(attention) => (attention.heads, attention.kv_heads) = (6, 2),
            Mixer::Mlp(mlp) => mlp.d_ff = 330,
        }
    }
    spec
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().expect("a directory");
    let small = (TestSource::plausible(spec(true), 3), calibration(6, 16));
    let large = (TestSource::plausible(larger(false), 4), calibration(12, 64));
    for (source, calibration) in [small, large] {
        let recipe = Recipe { calibration: Some(calibration), ..gptq(CodecId::Q3) };
        let made = [1, 2, 3].map(|threads| {
            let out = dir.path().join("model.grist");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let quantize = || quantize(&source, &recipe, &out, &Metadata::default(), &Silent);
            let report = pool.expect("a pool").install(quantize).expect("a packed file");
            let predicted: Vec<u64> = report
                .tensors
                .iter()
                .filter_map(|t| Some(t.rounding.as_ref()?.predicted_kld.to_bits()))
                .collect();
            (std::fs::read(&out).expect("the file"), predicted)
        });
        assert!(made[0] == made[1] && made[0] == made[2]);
    }
}
