//! Files of a size that was asked for.

use gristmill_formats::Silent;
use gristmill_formats::codec::CodecId;
use gristmill_quantize::{Metadata, QuantizeError, Recipe, Report, Result, quantize};

use crate::calibration::gptq;
use crate::source::{TestSource, spec};

/// Makes the file of a recipe and checks that it is as large as reported.
fn made(tied: bool, recipe: &Recipe) -> Result<Report> {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    let source = TestSource::plausible(spec(tied), 8);
    let report = quantize(&source, recipe, &out, &Metadata::default(), &Silent)?;
    assert_eq!(std::fs::metadata(&out).expect("the file").len(), report.file_bytes);
    Ok(report)
}

fn sized(bytes: u64) -> Recipe {
    Recipe { file_bytes: Some(bytes), ..gptq(CodecId::Q4) }
}

fn smallest(tied: bool, recipe: &Recipe) -> u64 {
    match made(tied, recipe) {
        Err(QuantizeError::SizeTooSmall { wanted, smallest }) => {
            assert_eq!(Some(wanted), recipe.file_bytes);
            smallest
        }
        other => panic!("too small a file: {other:?}"),
    }
}

#[test]
fn the_size_is_kept_and_used() {
    for tied in [true, false] {
        let (least, most) = (smallest(tied, &sized(1)), made(tied, &gptq(CodecId::Q8)));
        let most = most.expect("a packed file").file_bytes;
        let mut predicted = Vec::new();
        for step in 1..=6 {
            let budget = least + (most - least) * step / 6;
            let report = made(tied, &sized(budget)).expect("a packed file");
            let used = report.file_bytes as f64 / budget as f64;
            assert!((0.97..=1.0).contains(&used), "{used} of {budget} bytes");
            predicted.push(report.predicted_kld.expect("a prediction"));
        }
        assert!(predicted.is_sorted_by(|a, b| a >= b), "more bytes are better: {predicted:?}");
        // More than can be used.
        let report = made(tied, &sized(2 * most)).expect("a packed file");
        assert!(report.file_bytes.abs_diff(most) < 256);
        let matrices = report.tensors.iter().filter(|t| t.shape.len() == 2);
        assert!(matrices.clone().all(|t| t.codec == CodecId::Q8));
        assert!(matrices.count() > 0);
    }
}

#[test]
fn the_limit_is_exact() {
    // A file fits where it fitted, and where it does not, another does.
    let mut budget = made(true, &gptq(CodecId::Q3)).expect("a packed file").file_bytes;
    for _ in 0..4 {
        let report = made(true, &sized(budget)).expect("a packed file");
        assert!(report.file_bytes <= budget, "{} of {budget} bytes", report.file_bytes);
        let again = made(true, &sized(report.file_bytes)).expect("it was possible");
        assert!(again.file_bytes <= report.file_bytes);
        budget = report.file_bytes - 1;
    }
}

#[test]
fn what_is_too_small_names_the_smallest() {
    for recipe in [sized(1000), sized(1000).with_override("^embed$=q8").expect("valid")] {
        let least = smallest(true, &recipe);
        let error = made(true, &recipe).expect_err("too small").to_string();
        assert!(error.contains(&least.to_string()) && error.contains("1000"), "{error}");
        let with = |bytes| Recipe { file_bytes: Some(bytes), ..recipe.clone() };
        let report = made(true, &with(least)).expect("the smallest is possible");
        assert!(report.file_bytes <= least);
        assert_eq!(smallest(true, &with(report.file_bytes - 1)), least);
    }
}

#[test]
fn exceptions_stay_as_asked() {
    let exceptions = |r: Recipe| {
        let r = r.with_override("^embed$=q8").and_then(|r| r.with_override(r"\.v$=bf16"));
        r.expect("valid overrides")
    };
    let largest = made(false, &exceptions(gptq(CodecId::Q8))).expect("a packed file").file_bytes;
    let least = smallest(false, &exceptions(sized(1)));
    for budget in [least, (least + largest) / 2, largest] {
        let report = made(false, &exceptions(sized(budget))).expect("a packed file");
        for tensor in &report.tensors {
            match tensor.name.as_str() {
                "embed" => assert_eq!(tensor.codec, CodecId::Q8),
                name if name.ends_with(".v") => assert_eq!(tensor.codec, CodecId::Bf16),
                _ if tensor.shape.len() == 1 => assert_eq!(tensor.codec, CodecId::F32),
                _ => assert!(tensor.rounding.is_some() && !tensor.codec.is_dense()),
            }
        }
        assert!(report.file_bytes <= budget);
    }
}

#[test]
fn every_role_is_swapped_and_measured() {
    for (tied, ends) in [(true, ["embed"].as_slice()), (false, &["embed", "head"])] {
        let report = made(tied, &sized(60_000)).expect("a packed file");
        let mut roles: Vec<&str> = report.swaps.iter().map(|s| s.role.as_str()).collect();
        let blocks = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"];
        let mut expected: Vec<&str> = blocks.iter().chain(ends).copied().collect();
        roles.sort_unstable();
        expected.sort_unstable();
        assert_eq!(roles, expected);
        for swap in &report.swaps {
            assert!(swap.measured > 0.0 && swap.predicted > 0.0, "{swap:?}");
            // Of the same order, though the model is tiny and the text short.
            assert!((0.1..10.0).contains(&(swap.measured / swap.predicted)), "{swap:?}");
        }
    }
}

#[test]
fn a_choice_is_no_worse_than_one_codec_for_all() {
    for codec in [CodecId::Q5, CodecId::Q4, CodecId::Q3] {
        let uniform = made(true, &gptq(codec)).expect("a packed file");
        let chosen = made(true, &sized(uniform.file_bytes)).expect("a packed file");
        let predicted = |report: &Report| -> f64 {
            let matrices = report.tensors.iter().filter_map(|t| Some((t, t.rounding.as_ref()?)));
            let corrected = matrices.map(|(tensor, rounding)| {
                let swap = chosen.swaps.iter().find(|swap| tensor.name.ends_with(&swap.role));
                swap.expect("every role was measured").correction() * rounding.predicted_kld
            });
            corrected.sum()
        };
        let (uniform, total) = (predicted(&uniform), predicted(&chosen));
        let reported = chosen.predicted_kld.expect("a prediction");
        assert!((total - reported).abs() < 1e-9 * total, "{total}, reported {reported}");
        let chosen = total;
        assert!(chosen <= 1.05 * uniform, "{codec}: {chosen} with a choice, {uniform} without");
    }
}
