//! Every method, from a source to a file.

use gristmill_formats::Silent;
use gristmill_formats::codec::CodecId;
use gristmill_formats::container::{PackedFile, verify};
use gristmill_formats::source::check_tensors;
use gristmill_quantize::{Metadata, Method, Recipe, Report, quantize};

use crate::calibration::calibration;
use crate::source::{TestSource, spec};

fn run(method: Method, default: CodecId) -> (Report, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    let recipe = Recipe { method, calibration: Some(calibration(6, 16)), ..Recipe::new(default) };
    let recipe = recipe.with_override(r"^layers\.1\.attn\.o$=bf16").expect("a valid override");
    let source = TestSource::plausible(spec(true), 3);
    let report = quantize(&source, &recipe, &out, &Metadata::default(), &Silent)
        .unwrap_or_else(|e| panic!("{method} {default}: {e}"));
    let file = PackedFile::open(&out).expect("the file opens");
    check_tensors(&file).expect("all tensors in their shapes");
    assert_eq!(verify(&file, &Silent), []);
    (report, std::fs::read(&out).expect("the file is there"))
}

#[test]
fn names_are_those_of_reports() {
    let names = ["absmax", "rtn", "gptq", "awq", "awq+gptq", "auto"];
    assert_eq!(Method::ALL.map(Method::name), names);
    for method in Method::ALL {
        let json = serde_json::to_string(&method).expect("a name");
        assert_eq!(json, format!("\"{method}\""));
        assert_eq!(serde_json::from_str::<Method>(&json).expect("the same name"), method);
        assert_eq!(method.is_calibrated(), !matches!(method, Method::Absmax | Method::Rtn));
    }
}

#[test]
fn every_method_makes_a_file_and_says_how() {
    for codec in [CodecId::Q4, CodecId::Q2] {
        for method in Method::ALL {
            let (report, bytes) = run(method, codec);
            assert_eq!(bytes, run(method, codec).1, "{method}: the same again");
            assert!(report.recipe.starts_with(method.name()));
            let rounded: Vec<_> =
                report.tensors.iter().filter_map(|t| Some((t, t.rounding.as_ref()?))).collect();
            let matrices = report.tensors.iter().filter(|t| !t.codec.is_dense()).count();
            let expected = if method.is_calibrated() { matrices } else { 0 };
            assert_eq!(rounded.len(), expected, "{method}");
            for (tensor, rounding) in rounded {
                let name = &tensor.name;
                let possible: &[Method] = match method {
                    Method::Awq => &[Method::Rtn, Method::Awq],
                    Method::Gptq => &[Method::Rtn, Method::Gptq],
                    _ => &[Method::Rtn, Method::Gptq, Method::Awq, Method::AwqGptq],
                };
                assert!(possible.contains(&rounding.method), "{name}: {}", rounding.method);
                assert!(rounding.predicted_kld <= rounding.predicted_kld_rtn, "{name}");
            }
        }
    }
}

#[test]
fn scaled_channels_are_predicted_to_lose_less() {
    let total = |method| -> f64 {
        let (report, _) = run(method, CodecId::Q3);
        report.tensors.iter().filter_map(|t| Some(t.rounding.as_ref()?.predicted_kld)).sum()
    };
    let plain: f64 = {
        let (report, _) = run(Method::Gptq, CodecId::Q3);
        report.tensors.iter().filter_map(|t| Some(t.rounding.as_ref()?.predicted_kld_rtn)).sum()
    };
    let awq = total(Method::Awq);
    // Inputs come from a model that is rounded otherwise, so sums may differ by a little.
    assert!(awq < 1.02 * plain, "{awq}, without scales {plain}");
}
