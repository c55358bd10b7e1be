//! Models with layers that calibration can learn little or nothing from.

use gristmill_formats::Silent;
use gristmill_formats::codec::CodecId;
use gristmill_formats::container::{PackedFile, verify};
use gristmill_formats::source::ModelSource;
use gristmill_quantize::{
    Fallback, Metadata, QuantizeError, Recipe, Report, RoundedTensor, quantize,
};

use crate::calibration::gptq;
use crate::progress::CancelAfter;
use crate::source::{TestSource, spec};

/// Quantizes a model that was changed, in one go and interrupted; the file is sound and no
/// predictions are lost on the way.
fn made(change: impl Fn(&mut TestSource)) -> (Report, Vec<String>) {
    let mut source = TestSource::plausible(spec(false), 6);
    change(&mut source);
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    let recipe = gptq(CodecId::Q4);
    let progress = CancelAfter::never();
    let metadata = Metadata::default();
    let report = quantize(&source, &recipe, &out, &metadata, &progress).expect("a packed file");
    let file = PackedFile::open(&out).expect("a valid file");
    assert_eq!(verify(&file, &Silent), []);
    let bytes = std::fs::read(&out).expect("the file");
    for tensor in &report.tensors {
        // Feedback may well move weights that hardly matter, but not out of their range.
        assert!(tensor.relative_error < 0.25, "{}: {}", tensor.name, tensor.relative_error);
        let Some(rounding) = &tensor.rounding else { continue };
        assert!(rounding.damping.is_finite(), "{}: {rounding:?}", tensor.name);
    }

    let stop = CancelAfter::calls(progress.calls_done());
    let result = quantize(&source, &recipe, &out, &metadata, &stop);
    assert!(matches!(result, Err(QuantizeError::Cancelled)), "{result:?}");
    let resuming = Recipe { resume: true, ..recipe.clone() };
    quantize(&source, &resuming, &out, &metadata, &Silent).expect("a packed file");
    assert!(bytes == std::fs::read(&out).expect("the file"), "resumed, it is another file");

    // A size can be asked for as well.
    let sized = Recipe { file_bytes: Some(report.file_bytes), ..recipe };
    let sized = quantize(&source, &sized, &out, &metadata, &Silent).expect("a packed file");
    assert!(sized.file_bytes <= report.file_bytes);
    (report, progress.notes())
}

fn rounding<'a>(report: &'a Report, name: &str) -> &'a RoundedTensor {
    let tensor = report.tensors.iter().find(|t| t.name == name).expect("a tensor");
    tensor.rounding.as_ref().expect("it was rounded")
}

/// Changes all weights of a tensor.
fn map(source: &mut TestSource, name: &str, change: impl Fn(usize, f32) -> f32) {
    let values = source.values(name).to_vec();
    values.iter().enumerate().for_each(|(i, &x)| source.set(name, i, change(i, x)));
}

fn fallbacks(report: &Report) -> Vec<(&str, Fallback)> {
    let of = |r: &RoundedTensor| r.fallback.filter(|f| *f != Fallback::WorseThanRtn);
    let tensors = report.tensors.iter();
    tensors.filter_map(|t| Some((t.name.as_str(), of(t.rounding.as_ref()?)?))).collect()
}

#[test]
fn dead_channels_are_reported() {
    let (report, _) = made(|source| {
        source.set("layers.0.attn.norm", 5, 0.0);
        source.set("layers.1.mlp.norm", 7, 0.0);
        source.set("layers.1.mlp.norm", 8, 0.0);
    });
    assert_eq!(fallbacks(&report), []);
    for tensor in &report.tensors {
        let Some(rounding) = &tensor.rounding else { continue };
        let dead = match tensor.name.as_str() {
            "layers.0.attn.q" | "layers.0.attn.k" | "layers.0.attn.v" => 1,
            "layers.1.mlp.gate" | "layers.1.mlp.up" => 2,
            _ => 0,
        };
        assert_eq!(rounding.dead_columns, dead, "{}", tensor.name);
    }
}

#[test]
fn channels_that_the_embedding_leaves_out_are_survived() {
    let (report, _) = made(|source| map(source, "embed", |i, x| if i % 48 < 16 { 0.0 } else { x }));
    assert_eq!(fallbacks(&report), []);
}

#[test]
fn layers_that_nothing_reaches_are_rounded_plainly() {
    let (report, notes) = made(|source| map(source, "layers.0.mlp.norm", |_, _| 0.0));
    let silent = ["layers.0.mlp.gate", "layers.0.mlp.up", "layers.0.mlp.down"];
    let expected = silent.map(|name| (name, Fallback::NoActivations));
    assert_eq!(fallbacks(&report), expected);
    for name in silent {
        let rounding = rounding(&report, name);
        assert_eq!(rounding.predicted_kld, 0.0, "{name}: nothing depends on it");
        let reason = Fallback::NoActivations.to_string();
        assert!(notes.iter().any(|n| n.contains(name) && n.contains(&reason)), "{notes:?}");
    }
}

#[test]
fn layers_that_do_not_matter_are_rounded() {
    // Nothing that comes after depends on these layers' outputs: there are no gradients.
    for name in ["layers.0.attn.o", "layers.1.mlp.down", "head"] {
        made(|source| map(source, name, |_, _| 0.0));
    }
    made(|source| source.spec().tensors().iter().for_each(|t| map(source, &t.name, |_, _| 0.0)));
}

#[test]
fn large_gains_are_survived() {
    let (report, _) = made(|source| source.set("layers.1.mlp.norm", 3, 100.0));
    assert_eq!(fallbacks(&report), []);
    for (name, gain) in [
        ("layers.0.attn.norm", 1e6),
        ("layers.1.mlp.norm", 1e18),
        ("final_norm", 1e20),
        ("layers.0.attn.norm", 1e30),
        ("layers.1.mlp.norm", f32::MAX),
        ("final_norm", f32::MAX),
    ] {
        made(|source| source.set(name, 3, gain));
    }
}

#[test]
fn tiny_models_are_survived() {
    for gain in [1e-6f32, 1e-20, 1e-38] {
        made(|source| {
            for tensor in source.spec().tensors() {
                map(source, &tensor.name, |_, x| x * gain);
            }
        });
    }
}
