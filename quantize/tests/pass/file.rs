//! What a pass writes and reports.

use gristmill_formats::Silent;
use gristmill_formats::codec::CodecId;
use gristmill_formats::container::{PackedFile, Provenance, verify};
use gristmill_formats::source::{ModelSource, TensorData};
use gristmill_quantize::{Metadata, Recipe, Report, plan, plan_source, quantize};

use crate::source::TestSource;

fn rows(data: &TensorData) -> Vec<f32> {
    let mut all = vec![0.0f32; data.rows() * data.cols()];
    for (r, row) in all.chunks_exact_mut(data.cols()).enumerate() {
        data.decode_row(r, row);
    }
    all
}

fn relative_error(original: &[f32], stored: &[f32]) -> f64 {
    let error: f64 =
        original.iter().zip(stored).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    error / original.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
}

fn recipes() -> Vec<Recipe> {
    let mut recipes: Vec<_> =
        [4, 8, 16, 32].map(|bits| Recipe::for_bits(bits).expect("a width")).into();
    let mixed = Recipe::for_bits(4).and_then(|r| r.with_override(r"^embed$|\.down$=q8"));
    recipes.push(mixed.and_then(|r| r.with_override("norm=bf16")).expect("valid overrides"));
    recipes
}

#[test]
fn file_and_report_agree_with_the_stored_weights() {
    let dir = tempfile::tempdir().expect("a directory");
    for tied in [true, false] {
        let source = TestSource::new(tied);
        for recipe in recipes() {
            let out = dir.path().join("model.grist");
            let metadata = Metadata {
                provenance: Provenance { source: "made/up".into(), ..Provenance::default() },
                ..Metadata::default()
            };
            let report =
                quantize(&source, &recipe, &out, &metadata, &Silent).expect("a packed file");
            let file = PackedFile::open(&out).expect("a valid file");
            assert_eq!(verify(&file, &Silent), []);
            assert_eq!(file.tokenizer().ok().flatten(), source.tokenizer().ok().flatten());
            assert_eq!(file.spec(), source.spec());
            assert_eq!(file.text(), source.text());
            check_report(&report, &file, &out);
            for tensor in &report.tensors {
                let stored = rows(&file.tensor(&tensor.name).expect("a tensor"));
                let error = relative_error(source.values(&tensor.name), &stored);
                assert!((error - tensor.relative_error).abs() <= 1e-9, "{}", tensor.name);
                let limit = match tensor.codec {
                    CodecId::F32 => 0.0,
                    CodecId::Bf16 => 4e-6,
                    CodecId::Q8 => 1e-4,
                    _ => 1e-2,
                };
                assert!(error <= limit, "{} in {}: {error}", tensor.name, tensor.codec);
            }
            let provenance = &file.header().provenance;
            assert_eq!(provenance.recipe, recipe.to_string());
            assert!(provenance.tool.starts_with("gristmill "));
            assert_eq!(provenance.source, "made/up");
        }
    }
}

fn check_report(report: &Report, file: &PackedFile, path: &std::path::Path) {
    let len = std::fs::metadata(path).expect("a file").len();
    assert_eq!(report.file_bytes, len);
    assert_eq!(report.bytes.total(), len, "the parts are the file");
    assert_eq!(report.bits_per_weight, file.bits_per_weight());
    assert_eq!(report.bytes.header, file.superblock().header_bytes);
    let quality = file.header().quality.as_ref().expect("a quality report");
    assert!((quality.bits_per_weight - report.bits_per_weight).abs() < 1e-3);
    assert_eq!(quality.bytes_per_token, report.bytes_per_token);
    let lossy = report.tensors.iter().filter(|t| t.codec != CodecId::F32).count();
    assert_eq!(quality.tensors.len(), lossy);
    let all: u64 = report.tensors.iter().map(|t| t.bytes).sum();
    if file.spec().tied_head {
        assert_eq!(report.bytes_per_token, all);
        assert_eq!(report.bytes.head, 0);
    } else {
        let embed = report.tensors[0].bytes;
        // 75 rows are 5 panels of 16.
        assert_eq!(report.bytes_per_token, all - embed + embed / 80);
        assert!(report.bytes.head > 0);
    }
    let json = serde_json::to_value(report).expect("a report is JSON");
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["tensors"][0]["name"], "embed");
    assert_eq!(json["bytes"]["container"], report.bytes.container);
}

#[test]
fn plan_foretells_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = TestSource::new(false);
    for recipe in recipes() {
        let out = dir.path().join("model.grist");
        let metadata = Metadata::default();
        let planned = plan_source(&source, &recipe, &metadata).expect("a plan");
        let report = quantize(&source, &recipe, &out, &metadata, &Silent).expect("a packed file");
        assert_eq!(planned.bytes_per_token, report.bytes_per_token);
        assert_eq!(planned.bytes.linears, report.bytes.linears);
        assert_eq!(planned.bytes.scales, report.bytes.scales);
        assert_eq!(planned.bytes.tokenizer, report.bytes.tokenizer);
        let off = planned.file_bytes.abs_diff(report.file_bytes);
        assert!(off <= 512, "planned {}, made {}", planned.file_bytes, report.file_bytes);
        let alone = plan(source.spec(), &recipe).expect("a plan");
        assert_eq!(alone.bytes.tokenizer, 0);
        assert_eq!(alone.tensors, planned.tensors);
        assert_eq!(alone.bytes.total(), alone.file_bytes);
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = TestSource::new(true);
    for recipe in recipes() {
        let files: Vec<Vec<u8>> = [1, 2, 5]
            .into_iter()
            .map(|threads| {
                let out = dir.path().join(format!("{threads}.grist"));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.expect("a pool").install(|| {
                    quantize(&source, &recipe, &out, &Metadata::default(), &Silent)
                        .expect("a packed file");
                });
                std::fs::read(&out).expect("the file")
            })
            .collect();
        assert!(files.windows(2).all(|pair| pair[0] == pair[1]), "{recipe}");
    }
}

#[test]
fn packed_files_can_be_packed_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (dir.path().join("8.grist"), dir.path().join("4.grist"));
    let source = TestSource::new(true);
    let metadata = Metadata::default();
    let q8 = Recipe::for_bits(8).expect("a width");
    quantize(&source, &q8, &first, &metadata, &Silent).expect("a packed file");
    let packed = PackedFile::open(&first).expect("a valid file");
    let q4 = Recipe::for_bits(4).expect("a width");
    quantize(&packed, &q4, &second, &metadata, &Silent).expect("a packed file");
    let file = PackedFile::open(&second).expect("a valid file");
    let name = "layers.1.mlp.gate";
    let stored = rows(&file.tensor(name).expect("a tensor"));
    assert!(relative_error(source.values(name), &stored) < 1e-2);
}
