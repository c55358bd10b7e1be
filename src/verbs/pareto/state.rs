//! What a directory knows of finished steps. Every step's result is written when it is there, complete
//! or not at all, together with what it depends on; a step whose dependencies changed is done again.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gristmill_eval::{Host, Protocol, QualityReport};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::recipes::file_name;
use crate::document;
use crate::error::WithHint;
use crate::render::{self, SCHEMA_VERSION};

/// A directory of results, held by one process at a time.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PointState {
    schema_version: u32,
    /// How the file is being made; what an interrupted run left is of use to the same only.
    pub(super) making: Option<MakeKey>,
    pub(super) made: Option<Made>,
    pub(super) quality: Option<Measured>,
}

/// What a packed file depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MakeKey {
    /// Fingerprint of the model.
    pub(super) source: String,
    /// In the recipe's own words, the digest of its text included.
    pub(super) recipe: String,
    /// Version of this program.
    pub(super) tool: String,
}

/// A file that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Made {
    pub(super) key: MakeKey,
    /// The file's own fingerprint, by which it is known again.
    pub(super) fingerprint: String,
    pub(super) seconds: f64,
}

/// What a quality depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QualityKey {
    pub(super) file: String,
    pub(super) reference: String,
    pub(super) text_blake3: String,
    pub(super) protocol: Protocol,
    pub(super) ctx: usize,
    pub(super) windows: usize,
    pub(super) kv: String,
    pub(super) tool: String,
}

/// A quality that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    pub(super) key: QualityKey,
    pub(super) report: QualityReport,
}

impl Default for PointState {
    fn default() -> Self {
        Self { schema_version: SCHEMA_VERSION, making: None, made: None, quality: None }
    }
}

/// This program, as far as results depend on it.
pub(super) fn tool(host: &Host) -> String {
    match &host.commit {
        Some(commit) => format!("{} ({commit})", host.version),
        None => host.version.clone(),
    }
}

impl Directory {
    /// Makes the directory if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| format!("cannot create {shown}"))?;
        let lock = File::options().create(true).append(true).open(path.join(".lock"));
        let lock = lock.with_context(|| format!("cannot write in {shown}"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.into(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => {
                Err(anyhow::anyhow!("another `gristmill pareto` works in {shown}"))
                    .hint("wait for it, or give another --out")
            }
            // A file system without locks is no reason not to work.
            Err(fs::TryLockError::Error(_)) => Ok(Self { path: path.into(), _lock: lock }),
        }
    }

    /// A file directly in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The packed file of a recipe.
    pub(super) fn packed(&self, model: &str, recipe: &str) -> PathBuf {
        self.path.join(file_name(model)).join(format!("{}.grist", file_name(recipe)))
    }

    fn state(&self, model: &str, recipe: &str) -> PathBuf {
        self.path.join(file_name(model)).join(format!("{}.json", file_name(recipe)))
    }

    /// What is known of a file; nothing if there is nothing.
    pub(super) fn point(&self, model: &str, recipe: &str) -> Result<PointState> {
        let state: Option<PointState> = read(&self.state(model, recipe))?;
        Ok(state.filter(|state| state.schema_version == SCHEMA_VERSION).unwrap_or_default())
    }

    /// Keeps what is known of a file.
    pub(super) fn keep(&self, model: &str, recipe: &str, state: &PointState) -> Result<()> {
        let path = self.state(model, recipe);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create {}", parent.display()))?;
        }
        write(&path, state)
    }
}

/// Removes the work that an interrupted run of another recipe left beside a packed file.
pub(super) fn forget_work(packed: &Path) -> Result<()> {
    let mut name = packed.file_name().unwrap_or_default().to_os_string();
    name.push(".work");
    let work = packed.with_file_name(name);
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", work.display()))
        }
        _ => Ok(()),
    }
}

/// Reads a file of results; `None` when there is none. One that cannot be understood counts as none:
/// its results are measured again.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let shown = path.display();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!(anyhow::Error::new(error).context(format!("cannot read {shown}"))),
    };
    match serde_json::from_slice(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            render::note(format_args!(
                "note: {shown} is not of this version, its steps are done again: {error}"
            ));
            Ok(None)
        }
    }
}

/// Writes a file of results.
pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    document::replace(path, &render::json_text(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = Directory::open(directory.path()).unwrap();
        let error = Directory::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("another `gristmill pareto`"), "{error}");
        drop(first);
        Directory::open(directory.path()).unwrap();
    }

    #[test]
    fn states_are_kept_and_damaged_ones_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let results = Directory::open(directory.path()).unwrap();
        assert_eq!(results.point("m", "r").unwrap(), PointState::default());
        let key = MakeKey { source: "a".into(), recipe: "b".into(), tool: "c".into() };
        let state = PointState { making: Some(key), ..PointState::default() };
        results.keep("m", "r", &state).unwrap();
        assert_eq!(results.point("m", "r").unwrap(), state);
        fs::write(results.state("m", "r"), "{\"schema_version\": 1").unwrap();
        assert_eq!(results.point("m", "r").unwrap(), PointState::default());
    }

    #[test]
    fn work_of_another_recipe_is_removed_and_none_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let packed = directory.path().join("a.grist");
        forget_work(&packed).unwrap();
        let work = directory.path().join("a.grist.work");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("identity"), "x").unwrap();
        forget_work(&packed).unwrap();
        assert!(!work.exists());
    }
}
