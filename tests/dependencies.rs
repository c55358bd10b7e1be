//! The house keeps its shape: which crate may use which, what stays out of the lean ones, and where
//! `unsafe` may stand.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// What each crate may use of the project, closed under the arrows of the architecture. An edge that is
/// not here is forbidden; the runtime and the importers meet only in the traits of `formats`.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("gristmill-formats", &[]),
    ("gristmill-kernels", &["gristmill-formats"]),
    ("gristmill-convert", &["gristmill-formats"]),
    ("gristmill-runtime", &["gristmill-formats", "gristmill-kernels"]),
    ("gristmill-quantize", &["gristmill-formats", "gristmill-kernels", "gristmill-runtime"]),
    ("gristmill-eval", &["gristmill-formats", "gristmill-kernels", "gristmill-runtime"]),
    (
        "gristmill",
        &[
            "gristmill-convert",
            "gristmill-eval",
            "gristmill-formats",
            "gristmill-kernels",
            "gristmill-quantize",
            "gristmill-runtime",
        ],
    ),
];

/// Crates that must be fit for a phone.
const LEAN: [&str; 3] = ["gristmill-formats", "gristmill-kernels", "gristmill-runtime"];
/// What they must not pull in, not even through others.
const HEAVY: [&str; 11] = [
    "anyhow",
    "axum",
    "candle-core",
    "candle-nn",
    "clap",
    "ctrlc",
    "faer",
    "indicatif",
    "rayon",
    "reqwest",
    "tokio",
];

/// Crates that only one of ours may use: calibration's linear algebra.
const EXCLUSIVE: [(&str, &str); 2] =
    [("faer", "gristmill-quantize"), ("pulp", "gristmill-quantize")];

/// Heavy crates that cannot be left out: tokenizers encodes batches with rayon and has no feature to do
/// without. Single texts, which is all the runtime encodes, start no threads.
const TOLERATED: [(&str, &str); 2] = [("tokenizers", "rayon"), ("tokenizers", "rayon-cond")];

/// Where `unsafe` may stand: kernels, the thread pool, the memory map.
const UNSAFE_PLACES: [&str; 3] =
    ["runtime/kernels/src/", "runtime/src/pool.rs", "formats/src/bytes.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> Metadata {
    let mut command = MetadataCommand::new();
    // What only other platforms need is not here, and need not be.
    let options = ["--offline".to_owned(), "--filter-platform".to_owned(), host()];
    command.manifest_path(root().join("Cargo.toml")).other_options(options);
    command.exec().expect("cargo metadata")
}

/// The target triple of this machine.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.expect("rustc names its host").to_owned()
}

#[test]
fn crates_depend_one_way() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some(allowed) = allowed.get(name) else { panic!("{name} has no place in this test") };
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        for dependency in normal.filter(|d| d.path.is_some()) {
            let used = dependency.name.as_str();
            assert!(allowed.contains(&used), "{name} must not depend on {used}");
        }
        for (used, user) in EXCLUSIVE {
            let uses = package.dependencies.iter().any(|d| d.name == used);
            assert!(!uses || name == user, "{name} must not depend on {used}");
        }
    }
    assert_eq!(metadata.workspace_packages().len(), ALLOWED.len());
}

#[test]
fn lean_crates_stay_lean() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("a resolved graph");
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let edges: BTreeMap<_, Vec<_>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let normal = node.deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            });
            (&node.id, normal.map(|dependency| &dependency.pkg).collect())
        })
        .collect();
    for package in metadata.workspace_packages() {
        if !LEAN.contains(&package.name.as_str()) {
            continue;
        }
        // Each crate that is reached, with the one it was reached from.
        let mut seen = BTreeSet::from([&package.id]);
        let mut open = vec![&package.id];
        while let Some(id) = open.pop() {
            for &next in edges.get(id).into_iter().flatten() {
                if TOLERATED.contains(&(names[id], names[next])) {
                    continue;
                }
                assert!(
                    !HEAVY.contains(&names[next]),
                    "{} pulls in {} through {}",
                    package.name,
                    names[next],
                    names[id]
                );
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
    }
}

/// Every Rust file below the `src` of a crate, relative to the root.
fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.strip_prefix(root()).expect("below the root").into());
            }
        }
    }
    let mut files = Vec::new();
    for package in metadata().workspace_packages() {
        let manifest = package.manifest_path.as_std_path();
        walk(&manifest.parent().expect("a directory").join("src"), &mut files);
    }
    files.sort();
    files
}

/// Whether a line of code has the keyword outside of comments and attributes.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(|c| !word(c)).any(|w| w == "unsafe")
}

#[test]
fn unsafe_stands_only_where_it_is_documented() {
    let places = |file: &Path| {
        let file = file.to_string_lossy().replace('\\', "/");
        UNSAFE_PLACES.iter().any(|place| file.starts_with(place))
    };
    let sources = sources();
    assert!(sources.len() > 50, "the sources were not found");
    for file in sources.iter().filter(|file| !places(file)) {
        let text = fs::read_to_string(root().join(file)).expect("UTF-8");
        let found = text.lines().position(has_unsafe);
        assert_eq!(found, None, "unsafe in {}, line number from 0", file.display());
    }
}

#[test]
fn crates_without_unsafe_forbid_it() {
    let roots = ["convert/src/lib.rs", "quantize/src/lib.rs", "eval/src/lib.rs", "src/main.rs"];
    for file in roots {
        let text = fs::read_to_string(root().join(file)).expect("UTF-8");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{file}");
    }
}
