//! What goes wrong leaves nothing behind and says what to do.

use std::path::Path;

use gristmill_formats::codec::CodecId;
use gristmill_formats::{FormatError, Silent};
use gristmill_quantize::{Metadata, QuantizeError, Recipe, quantize};

use crate::calibration::gptq;
use crate::progress::CancelAfter;
use crate::source::TestSource;

fn q4() -> Recipe {
    Recipe::for_bits(4).expect("a width")
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).expect("a directory").count()
}

#[test]
fn unusable_weights_are_named_by_position() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut source = TestSource::new(true);
        // Two of them: the first is reported whatever the threads do.
        source.set("layers.1.mlp.up", 70 * 48 + 5, value);
        source.set("layers.1.mlp.up", 20 * 48 + 7, value);
        for recipe in [q4(), Recipe::for_bits(16).expect("a width"), gptq(CodecId::Q4)] {
            match quantize(&source, &recipe, &out, &Metadata::default(), &Silent) {
                Err(QuantizeError::NotFinite { tensor, row, col, .. }) => {
                    assert_eq!((tensor.as_str(), row, col), ("layers.1.mlp.up", 20, 7));
                }
                other => panic!("{value}: {other:?}"),
            }
            assert_eq!(entries(dir.path()), 0);
        }
    }
    for (tensor, value, codec) in
        [("final_norm", 1e5, "=f16"), ("embed", 2e38, "=q4"), ("embed", 1e5, "=f16")]
    {
        let mut source = TestSource::new(true);
        source.set(tensor, 3, value);
        let recipe = q4().with_override(&format!("{tensor}{codec}")).expect("a valid override");
        let result = quantize(&source, &recipe, &out, &Metadata::default(), &Silent);
        assert!(
            matches!(&result, Err(QuantizeError::OutOfRange { row: 0, col: 3, .. })),
            "{tensor}{codec}: {result:?}"
        );
        assert_eq!(entries(dir.path()), 0);
    }
}

#[test]
fn cancelling_leaves_nothing_and_keeps_the_old_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    std::fs::write(&out, "old").expect("a file");
    let source = TestSource::new(true);
    let all: u64 = {
        use gristmill_formats::source::ModelSource;
        source.spec().parameter_count()
    };
    for limit in [0, 1, 5_000, all - 1, all] {
        let progress = CancelAfter::units(limit);
        let result = quantize(&source, &q4(), &out, &Metadata::default(), &progress);
        assert!(matches!(result, Err(QuantizeError::Cancelled)), "{limit}: {result:?}");
        assert_eq!(entries(dir.path()), 1);
        assert_eq!(std::fs::read(&out).expect("the old file"), b"old");
    }
    // Every weight is counted once.
    let progress = CancelAfter::never();
    quantize(&source, &q4(), &out, &Metadata::default(), &progress).expect("a packed file");
    assert_eq!(progress.units_done(), all);
}

#[test]
fn outputs_that_cannot_be_written_are_refused_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = TestSource::new(true);
    let original = dir.path().join("source.grist");
    std::fs::write(&original, "precious").expect("a file");
    std::fs::write(dir.path().join("new.partial"), "precious").expect("a file");
    let metadata = Metadata {
        source_paths: vec![original.clone(), dir.path().join("new.partial")],
        ..Metadata::default()
    };
    let attempt = |out: &Path| quantize(&source, &q4(), out, &metadata, &Silent);
    let text = |out: &Path| match attempt(out) {
        Err(QuantizeError::Output { reason, .. }) => reason,
        other => panic!("{}: {other:?}", out.display()),
    };
    assert!(text(&dir.path().join("none/model.grist")).contains("does not exist"));
    assert!(text(&original.join("model.grist")).contains("irectory"));
    assert!(text(dir.path()).contains("is a directory"));
    assert!(text(Path::new("/")).contains("file"));

    // Named differently, it is still the source.
    let alias = dir.path().join(".").join("source.grist");
    assert!(matches!(attempt(&alias), Err(QuantizeError::OutputIsSource { .. })));
    // The temporary name counts as well.
    let partial = dir.path().join("new");
    assert!(matches!(attempt(&partial), Err(QuantizeError::OutputIsSource { .. })));
    assert_eq!(std::fs::read(&original).expect("the source"), b"precious");
    assert_eq!(entries(dir.path()), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    // The partial file is the device that is always full; removing it removes only the link.
    std::os::unix::fs::symlink("/dev/full", dir.path().join("model.grist.partial"))
        .expect("a link");
    let result = quantize(&TestSource::new(true), &q4(), &out, &Metadata::default(), &Silent);
    match result {
        Err(QuantizeError::Format(FormatError::Io { source, .. })) => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(entries(dir.path()), 0);
}

#[test]
fn a_missing_tensor_is_found_before_any_work() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("model.grist");
    let mut source = TestSource::new(false);
    source.remove("head");
    let result = quantize(&source, &q4(), &out, &Metadata::default(), &Silent);
    assert!(
        matches!(&result, Err(QuantizeError::Format(FormatError::MissingTensor(t))) if t == "head")
    );
    assert_eq!(entries(dir.path()), 0);
}
