//! The MODEL argument: a packed file, a checkpoint directory, or a name in the hub cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use gristmill_convert::HfCheckpoint;
use gristmill_formats::container::{PackedFile, Provenance};
use gristmill_formats::source::ModelSource;
use gristmill_formats::{FormatError, Progress};
use gristmill_runtime::text::Tokenizer;
use gristmill_runtime::{Head, Model, Residency, default_threads};

use crate::error::WithHint;
use crate::{knobs, render};

/// What makes a directory a checkpoint.
const CONFIG: &str = "config.json";
/// Longest `refs` file that is read: it holds one commit.
const MAX_REF_BYTES: u64 = 256;

/// An opened model.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) kind: Kind,
}

/// The two things a model can be.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// A packed file.
    Packed(Arc<PackedFile>),
    /// A checkpoint directory.
    Checkpoint(Arc<HfCheckpoint>),
}

impl Source {
    /// Finds and opens what the user named. Notes of the import go to standard error.
    pub(crate) fn open(model: &str) -> Result<Self> {
        let source = Self::open_path(&locate(model)?)?;
        if let Kind::Checkpoint(checkpoint) = &source.kind {
            for note in checkpoint.notes() {
                render::note(format_args!("note: {note}"));
            }
        }
        Ok(source)
    }

    /// Opens a file or a directory.
    pub(crate) fn open_path(path: &Path) -> Result<Self> {
        let kind = if path.is_dir() {
            Kind::Checkpoint(Arc::new(open_checkpoint(path)?))
        } else {
            Kind::Packed(Arc::new(open_packed(path)?))
        };
        Ok(Self { path: path.into(), kind })
    }

    /// The model's source.
    pub(crate) fn model_source(&self) -> Arc<dyn ModelSource> {
        match &self.kind {
            Kind::Packed(file) => file.clone(),
            Kind::Checkpoint(checkpoint) => checkpoint.clone(),
        }
    }

    /// Where the weights came from. Of a checkpoint this reads them in full.
    pub(crate) fn provenance(&self, progress: &dyn Progress) -> Result<Provenance> {
        match &self.kind {
            Kind::Packed(file) => Ok(file.header().provenance.clone()),
            Kind::Checkpoint(checkpoint) => Ok(checkpoint.provenance(progress)?),
        }
    }

    /// Every file it is made of.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match &self.kind {
            Kind::Packed(_) => vec![self.path.clone()],
            Kind::Checkpoint(checkpoint) => {
                checkpoint.files().iter().map(|name| self.path.join(name)).collect()
            }
        }
    }

    /// Its tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let source = self.model_source();
        match source.tokenizer().context("tokenizer")? {
            Some(data) => Ok(Tokenizer::from_data(&data, source.text())?),
            None => Err(anyhow::anyhow!("{} has no tokenizer", self.path.display()))
                .hint("put the checkpoint's tokenizer.json beside its config.json"),
        }
    }

    /// Binds the tensors where they are.
    pub(crate) fn load(&self) -> Result<Arc<Model>> {
        self.load_as(Residency::Map, Head::Full, None)
    }

    /// Binds the tensors, puts them where a policy wants them, and makes what the head needs, with some
    /// threads or with all.
    pub(crate) fn load_as(
        &self,
        residency: Residency,
        head: Head,
        threads: Option<usize>,
    ) -> Result<Arc<Model>> {
        let mut model = Model::load(self.model_source())?;
        let threads = threads.unwrap_or_else(default_threads);
        model.place(residency, threads)?;
        model.set_head(head, threads)?;
        Ok(Arc::new(model))
    }
}

fn open_checkpoint(path: &Path) -> Result<HfCheckpoint> {
    let opened = HfCheckpoint::open(path);
    let opened = opened.with_context(|| format!("cannot open checkpoint {}", path.display()));
    match packed_files(path).first() {
        Some(file) if !path.join(CONFIG).exists() => {
            opened.hint(format!("the directory has a packed file: {}", file.display()))
        }
        _ => opened,
    }
}

/// Opens a packed file.
pub(crate) fn open_packed(path: &Path) -> Result<PackedFile> {
    let opened = PackedFile::open(path);
    let foreign = matches!(opened, Err(FormatError::BadMagic { .. }));
    let opened = opened.map_err(|error| name_file(path, error));
    match path.parent().filter(|dir| dir.join(CONFIG).exists()) {
        Some(dir) if foreign => {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            opened.hint(format!("give the checkpoint's directory: {}", dir.display()))
        }
        _ => opened,
    }
}

/// Adds the file to an error that does not name it itself.
pub(crate) fn name_file(path: &Path, error: FormatError) -> anyhow::Error {
    match error {
        FormatError::Io { .. } => error.into(),
        _ => anyhow::Error::new(error).context(format!("cannot open {}", path.display())),
    }
}

/// The path of what the user named.
pub(crate) fn locate(model: &str) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    if path.exists() {
        return Ok(path);
    }
    match HubName::parse(model) {
        Some(name) => name.locate(knobs::hub_cache().as_deref()),
        None => Err(anyhow::anyhow!("{model}: no such file or directory")).hint(
            "MODEL is a .grist file, a Hugging Face directory, or org/name of a downloaded model",
        ),
    }
}

/// The packed files directly in a directory, by name.
fn packed_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "grist"))
        .collect();
    files.sort();
    files
}

/// `org/name[@revision]`.
#[derive(Debug, PartialEq)]
struct HubName<'a> {
    org: &'a str,
    name: &'a str,
    revision: Option<&'a str>,
}

impl<'a> HubName<'a> {
    /// `None` for what can only be meant as a path.
    fn parse(text: &'a str) -> Option<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (org, name) = id.split_once('/')?;
        let valid = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
        };
        // A revision becomes part of a path below the cache and must not lead out of it.
        let revision_is_valid = revision.is_none_or(|r| r.split('/').all(valid));
        (valid(org) && valid(name) && revision_is_valid).then_some(Self { org, name, revision })
    }

    /// The snapshot's directory.
    fn locate(&self, cache: Option<&Path>) -> Result<PathBuf> {
        let Self { org, name, revision } = self;
        let download = match revision {
            Some(revision) => format!("hf download {org}/{name} --revision {revision}"),
            None => format!("hf download {org}/{name}"),
        };
        let Some(cache) = cache else {
            bail!("{org}/{name}: no such file, and no hub cache: HF_HUB_CACHE and HOME are not set")
        };
        let repo = cache.join(format!("models--{org}--{name}"));
        if !repo.is_dir() {
            return Err(anyhow::anyhow!(
                "{org}/{name}: no such file, and not in the hub cache {}",
                cache.display()
            ))
            .hint(format!("gristmill does not download; `{download}` does"));
        }
        let revision = revision.unwrap_or("main");
        let commit = read_ref(&repo.join("refs").join(revision))?;
        let snapshots = repo.join("snapshots");
        let snapshot = snapshots.join(commit.as_deref().unwrap_or(revision));
        if snapshot.is_dir() {
            return Ok(snapshot);
        }
        let present = directory_names(&snapshots);
        let present = if present.is_empty() { "none".into() } else { present.join(", ") };
        Err(anyhow::anyhow!(
            "{org}/{name}: revision `{revision}` is not in the hub cache; downloaded: {present}"
        ))
        .hint(format!("`{download}` gets it, or name one with {org}/{name}@REVISION"))
    }
}

/// The commit that a reference stands for; `None` when there is no such reference.
fn read_ref(path: &Path) -> Result<Option<String>> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.is_file() && meta.len() <= MAX_REF_BYTES);
    if meta.is_none() {
        return Ok(None);
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let commit = text.trim();
    // It becomes part of a path.
    if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
        bail!("{}: it holds `{commit:.64}`, expected a commit", path.display());
    }
    Ok(Some(commit.to_owned()))
}

fn directory_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> =
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_told_from_paths() {
        let name = |org, name, revision| Some(HubName { org, name, revision });
        assert_eq!(HubName::parse("org/m-1.5_x"), name("org", "m-1.5_x", None));
        assert_eq!(HubName::parse("org/m@v2"), name("org", "m", Some("v2")));
        assert_eq!(HubName::parse("org/m@refs/pr/1"), name("org", "m", Some("refs/pr/1")));
        for path in
            ["m.grist", "./org/m", "../m", "a/b/c", "/a/b", "org/", "org/m@", "org/m@../x", "o g/m"]
        {
            assert_eq!(HubName::parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_snapshot_is_found_by_reference_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--m");
        let snapshot = repo.join("snapshots").join("c0ffee");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), "c0ffee\n").unwrap();
        let locate = |text: &str| HubName::parse(text).unwrap().locate(Some(cache.path()));
        assert_eq!(locate("org/m").unwrap(), snapshot);
        assert_eq!(locate("org/m@c0ffee").unwrap(), snapshot);
        let missing = locate("org/m@v9").unwrap_err().to_string();
        assert!(missing.contains("`v9`") && missing.contains("c0ffee"), "{missing}");
        let unknown = locate("org/other").unwrap_err().to_string();
        assert!(unknown.contains("not in the hub cache"), "{unknown}");
    }

    #[test]
    fn a_reference_cannot_lead_out_of_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--m");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), "../../..").unwrap();
        let error = HubName::parse("org/m").unwrap().locate(Some(cache.path())).unwrap_err();
        assert!(error.to_string().contains("expected a commit"), "{error}");
    }
}
