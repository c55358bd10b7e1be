//! Tuning: what it may move, and that it helps.

use gristmill_formats::Silent;
use gristmill_formats::codec::CodecId;
use gristmill_formats::container::{PackedFile, verify};
use gristmill_formats::source::{ModelSource, check_tensors};
use gristmill_quantize::network::{BlockParams, Head, Matrix, embed, forward};
use gristmill_quantize::{Metadata, Method, Recipe, Report, quantize};

use crate::calibration::{calibration, gptq};
use crate::source::{TestSource, spec};

fn recipe(epochs: usize) -> Recipe {
    let calibration = Some(calibration(16, 64));
    let recipe = Recipe { epochs, calibration, ..gptq(CodecId::Q2) };
    recipe.with_override(r"^layers\.1\.attn\.o$=f32").expect("a valid override")
}

/// Makes a file on as many threads; its report and bytes.
fn run(recipe: &Recipe, tied: bool, threads: usize) -> (Report, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    let source = TestSource::plausible(spec(tied), 3);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let report = pool
        .install(|| quantize(&source, recipe, &out, &Metadata::default(), &Silent))
        .expect("a packed file");
    let file = PackedFile::open(&out).expect("the file opens");
    check_tensors(&file).expect("all tensors in their shapes");
    assert_eq!(verify(&file, &Silent), []);
    let norm = file.tensor("final_norm").expect("a norm");
    let mut gains = vec![0.0; norm.cols()];
    norm.decode_row(0, &mut gains);
    let before = source.tensor("final_norm").expect("a norm");
    let mut untuned = vec![0.0; before.cols()];
    before.decode_row(0, &mut untuned);
    assert_eq!(gains == untuned, report.tuning.as_ref().is_none_or(|t| t.kept == 0));
    (report, std::fs::read(&out).expect("the file is there"))
}

#[test]
fn tuning_lowers_the_divergence_over_text_that_it_did_not_see() {
    for tied in [false, true] {
        let (plain, plain_bytes) = run(&recipe(0), tied, 2);
        assert_eq!(plain.tuning, None);
        let (report, bytes) = run(&recipe(4), tied, 2);
        let tuning = report.tuning.expect("it was asked for");
        assert_eq!((tuning.epochs, tuning.tokens, tuning.held_out), (4, 14 * 64, 2 * 64));
        assert_eq!(tuning.divergence.len(), 5);
        let best = tuning.divergence.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(tuning.kept > 0, "{:?}", tuning.divergence);
        assert_eq!(tuning.divergence[tuning.kept].to_bits(), best.to_bits());
        assert!(best < 0.997 * tuning.divergence[0], "{:?}", tuning.divergence);
        // Nothing but numbers in the header may become longer.
        assert!(bytes.len() <= plain_bytes.len() + 4096);
        assert_ne!(bytes, plain_bytes);
    }
}

/// The network of a source over some sequences: the head and the stream before it.
fn hidden(source: &dyn ModelSource, tokens: &[u32], sequence: usize) -> (Head, Matrix) {
    let mut x = embed(source, tokens).expect("an embedding");
    for (layer, spec) in source.spec().layers.iter().enumerate() {
        for block in 0..spec.blocks.len() {
            let block = BlockParams::load(source, layer, block).expect("a block");
            forward(&block, &mut x, sequence, &mut |_, _| ());
        }
    }
    (Head::load(source).expect("a head"), x)
}

/// What tuning measured is measured again in the file that was written, whatever else was done to the
/// weights.
#[test]
fn the_file_is_the_model_that_was_tuned() {
    for (tied, method) in [(true, Method::Gptq), (false, Method::Gptq), (true, Method::AwqGptq)] {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("model.grist");
        let source = TestSource::plausible(spec(tied), 3);
        let recipe = Recipe { method, ..recipe(3) };
        let report = quantize(&source, &recipe, &out, &Metadata::default(), &Silent);
        let tuning = report.expect("a packed file").tuning.expect("it was asked for");
        let calibration = recipe.calibration.expect("a text");
        let sequences = calibration.tokens.chunks(calibration.sequence).enumerate();
        let held: Vec<u32> =
            sequences.filter(|(i, _)| i % 8 == 4).flat_map(|(_, s)| s).copied().collect();
        assert_eq!(held.len(), tuning.held_out);
        let file = PackedFile::open(&out).expect("the file opens");
        let (head, x) = hidden(&file, &held, calibration.sequence);
        let (teacher, taught) = hidden(&source, &held, calibration.sequence);
        let (found, said) =
            (head.divergence(&x, &teacher, &taught), tuning.divergence[tuning.kept]);
        assert!(tuning.kept > 0, "{:?}", tuning.divergence);
        assert!((found - said).abs() < 1e-4 * said, "{method}: {found}, reported {said}");
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let (_, one) = run(&recipe(2), true, 1);
    let (_, three) = run(&recipe(2), true, 3);
    assert_eq!(one, three);
}

/// Tables that move change the length of the header.
#[test]
fn a_size_that_was_asked_for_is_kept() {
    for bytes in [54_000, 60_000, 70_000] {
        let (report, file) = run(&Recipe { file_bytes: Some(bytes), ..recipe(2) }, true, 2);
        assert_eq!(file.len() as u64, report.file_bytes);
        assert!(report.file_bytes <= bytes, "{} of {bytes} bytes", report.file_bytes);
    }
}
