//! Runs with calibration that are interrupted, and what they leave.

use std::path::{Path, PathBuf};

use gristmill_formats::Silent;
use gristmill_formats::codec::CodecId;
use gristmill_quantize::{Metadata, Objective, QuantizeError, Recipe, Report, Result, quantize};

use crate::calibration::{calibration, gptq};
use crate::progress::CancelAfter;
use crate::source::{TestSource, spec};

fn source() -> TestSource {
    TestSource::plausible(spec(false), 5)
}

/// A model, a recipe, and an output that can be tried again and again.
struct Runs {
    source: TestSource,
    recipe: Recipe,
    dir: tempfile::TempDir,
}

impl Runs {
    fn new(recipe: Recipe) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { source: source(), recipe, dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("model.grist")
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("model.grist.work")
    }

    fn run(&self, progress: &CancelAfter) -> Result<Report> {
        quantize(&self.source, &self.recipe, &self.out(), &Metadata::default(), progress)
    }

    fn resume_as(&self, recipe: &Recipe) -> Result<Report> {
        let recipe = Recipe { resume: true, ..recipe.clone() };
        quantize(&self.source, &recipe, &self.out(), &Metadata::default(), &Silent)
    }

    fn resume(&self) -> Result<Report> {
        self.resume_as(&self.recipe)
    }

    /// Interrupts a run after some progress; in which stage.
    fn interrupt(&self, calls: u64) -> String {
        let progress = CancelAfter::calls(calls);
        let result = self.run(&progress);
        assert!(matches!(result, Err(QuantizeError::Cancelled)), "{calls}: {result:?}");
        assert_eq!(names(self.dir.path()), ["model.grist.work"], "nothing but the work is left");
        progress.stage()
    }

    /// Interrupts a run when everything is rounded.
    fn interrupt_late(&self) {
        let (bytes, calls) = self.uninterrupted();
        assert!(!bytes.is_empty());
        self.interrupt(calls);
    }

    /// The file of an uninterrupted run, which is removed again, and how often progress was made.
    fn uninterrupted(&self) -> (Vec<u8>, u64) {
        let progress = CancelAfter::never();
        self.run(&progress).expect("a packed file");
        (self.take(), progress.calls_done())
    }

    /// The file, which is removed.
    fn take(&self) -> Vec<u8> {
        assert_eq!(names(self.dir.path()), ["model.grist"], "the work directory is gone");
        let bytes = std::fs::read(self.out()).expect("the file");
        std::fs::remove_file(self.out()).expect("the file");
        bytes
    }
}

/// Names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name();
    let mut names: Vec<String> = entries.map(|e| name(e).to_string_lossy().into()).collect();
    names.sort();
    names
}

#[test]
fn resumed_runs_make_the_same_file() {
    let sized = Recipe { file_bytes: Some(60_000), ..gptq(CodecId::Q4) };
    let tuned = Recipe { epochs: 2, ..gptq(CodecId::Q4) };
    for (recipe, apart) in [(gptq(CodecId::Q4), 6), (sized, 15), (tuned, 9)] {
        let runs = Runs::new(recipe);
        let (expected, calls) = runs.uninterrupted();
        let mut stages = Vec::new();
        for stop in (0..calls).step_by(apart).chain([calls]) {
            stages.push(runs.interrupt(stop));
            runs.resume().expect("a packed file");
            assert!(runs.take() == expected, "stopped after {stop} of {calls}");
        }
        stages.sort();
        stages.dedup();
        assert!(stages.len() >= 3, "only stopped in {stages:?}");
    }
}

#[test]
fn runs_can_be_interrupted_again_and_again() {
    let runs = Runs::new(gptq(CodecId::Q3));
    let (expected, calls) = runs.uninterrupted();
    let resuming = Recipe { resume: true, ..runs.recipe.clone() };
    for stop in [calls / 4, calls / 2, calls / 2, 1] {
        let progress = CancelAfter::calls(stop);
        let result =
            quantize(&runs.source, &resuming, &runs.out(), &Metadata::default(), &progress);
        assert!(matches!(result, Err(QuantizeError::Cancelled)), "{stop}: {result:?}");
    }
    runs.resume().expect("a packed file");
    assert!(runs.take() == expected);
}

#[test]
fn reports_are_complete_after_resuming() {
    let runs = Runs::new(gptq(CodecId::Q4));
    let whole = runs.run(&CancelAfter::never()).expect("a packed file");
    runs.take();
    runs.interrupt_late();
    let resumed = runs.resume().expect("a packed file");
    for (whole, resumed) in whole.tensors.iter().zip(&resumed.tensors) {
        assert_eq!(whole.rounding.is_some(), resumed.rounding.is_some(), "{}", whole.name);
        let (Some(a), Some(b)) = (&whole.rounding, &resumed.rounding) else { continue };
        assert!((a.predicted_kld - b.predicted_kld).abs() <= 1e-12 * a.predicted_kld);
        assert_eq!(a.fallback, b.fallback);
    }
}

#[test]
fn interrupted_work_is_not_continued_unasked() {
    let runs = Runs::new(gptq(CodecId::Q4));
    runs.interrupt(10);
    let left = names(&runs.work());
    let error = runs.run(&CancelAfter::never()).expect_err("there is unfinished work").to_string();
    assert!(error.contains("model.grist.work") && error.contains("--resume"), "{error}");
    assert_eq!(names(&runs.work()), left, "the work stays");
    assert!(!runs.out().exists());
}

#[test]
fn work_of_another_run_is_not_continued() {
    let runs = Runs::new(gptq(CodecId::Q4));
    let (expected, calls) = runs.uninterrupted();
    runs.interrupt(calls);
    let with = |calibration| Recipe { calibration: Some(calibration), ..gptq(CodecId::Q4) };
    let mut other_text = calibration(6, 16);
    other_text.digest = "another".into();
    let others = [
        ("codec", gptq(CodecId::Q3)),
        ("exception", gptq(CodecId::Q4).with_override("embed=q8").expect("a valid override")),
        ("size", Recipe { file_bytes: Some(60_000), ..gptq(CodecId::Q4) }),
        ("objective", Recipe { objective: Objective::Inputs, ..gptq(CodecId::Q4) }),
        ("tuning", Recipe { epochs: 1, ..gptq(CodecId::Q4) }),
        ("sweeps", Recipe { sweeps: 3, ..gptq(CodecId::Q4) }),
        ("text", with(other_text)),
        ("number of sequences", with(calibration(5, 16))),
        ("length of sequences", with(calibration(12, 8))),
    ];
    for (what, other) in others {
        match runs.resume_as(&other) {
            Err(QuantizeError::Work { directory, reason }) => {
                assert_eq!(directory, runs.work());
                assert!(reason.contains("another"), "{what}: {reason}");
            }
            result => panic!("{what}: {result:?}"),
        }
    }
    runs.resume().expect("its own run");
    assert!(runs.take() == expected);
}

#[test]
fn resuming_without_work_starts() {
    let runs = Runs::new(gptq(CodecId::Q4));
    let (expected, _) = runs.uninterrupted();
    runs.resume().expect("a packed file");
    assert!(runs.take() == expected);
}

#[test]
fn missing_results_are_made_again() {
    let runs = Runs::new(gptq(CodecId::Q4));
    let (expected, calls) = runs.uninterrupted();
    for name in
        ["embed.packed", "head.packed", "layers.0.attn.k.packed", "layers.1.mlp.down.packed"]
    {
        runs.interrupt(calls);
        std::fs::remove_file(runs.work().join(name)).expect("a result");
        runs.resume().expect("a packed file");
        assert!(runs.take() == expected, "without {name}");
    }
}

#[test]
fn damaged_work_is_an_error_that_names_the_file() {
    let runs = Runs::new(gptq(CodecId::Q4));
    runs.interrupt_late();
    let read = |name: String| {
        let bytes = std::fs::read(runs.work().join(&name)).expect("a file");
        (name, bytes)
    };
    let files: Vec<(String, Vec<u8>)> = names(&runs.work()).into_iter().map(read).collect();
    for (name, whole) in &files {
        if name.ends_with(".moments") {
            // They are read only as long as there is something to round.
            let packed = files.iter().filter(|(name, _)| name.ends_with(".packed"));
            packed.for_each(|(name, _)| drop(std::fs::remove_file(runs.work().join(name))));
        }
        for left in [0, whole.len() / 2, whole.len() - 1] {
            std::fs::write(runs.work().join(name), &whole[..left]).expect("a file");
            let Err(error) = runs.resume() else { panic!("{name} is damaged") };
            let text = error.to_string();
            assert!(
                matches!(error, QuantizeError::Work { .. } | QuantizeError::Damaged { .. }),
                "{name}, {left} bytes left: {text}"
            );
            assert!(name == "identity" || text.contains(name), "{name}: {text}");
            assert!(text.contains("delete"), "{text}");
            assert!(!runs.out().exists());
        }
        for (name, bytes) in &files {
            std::fs::write(runs.work().join(name), bytes).expect("a file");
        }
    }
    runs.resume().expect("nothing is damaged any more");
}

#[test]
fn a_directory_that_is_no_work_is_left_alone() {
    let runs = Runs::new(gptq(CodecId::Q4));
    std::fs::create_dir(runs.work()).expect("a directory");
    let precious = runs.work().join("thesis.txt");
    std::fs::write(&precious, "precious").expect("a file");
    for resume in [false, true] {
        let recipe = Recipe { resume, ..runs.recipe.clone() };
        let result = quantize(&runs.source, &recipe, &runs.out(), &Metadata::default(), &Silent);
        assert!(matches!(result, Err(QuantizeError::Work { .. })), "{result:?}");
        assert_eq!(names(&runs.work()), ["thesis.txt"]);
    }
    // An empty one may be left by a run that could not even begin.
    std::fs::remove_file(&precious).expect("a file");
    runs.run(&CancelAfter::never()).expect("a packed file");
    runs.take();
}
