//! Where a checkpoint came from: its name, revision, licence and the digests of its files.

use std::path::{Component, Path};

use gristmill_formats::container::{Provenance, SourceFile};
use gristmill_formats::{Progress, SharedBytes};

use super::files::{file_size, read_optional, read_prefix};
use super::weights::Weights;
use crate::limits::{MAX_FRONT_MATTER_BYTES, MAX_LICENCE_BYTES};
use crate::{ConvertError, Result};

const LICENCE_FILES: &[&str] =
    &["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING"];
const README_FILE: &str = "README.md";
/// Longest value taken from a README's front matter.
const MAX_FRONT_MATTER_VALUE_CHARS: usize = 200;
/// Bytes hashed between two reports of progress.
const HASH_CHUNK_BYTES: usize = 16 << 20;

/// Pieces of each weight file that enter the fingerprint.
const FINGERPRINT_SAMPLES: usize = 16;
/// Bytes of each piece.
const FINGERPRINT_SAMPLE_BYTES: usize = 4096;
/// Hexadecimal digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 32;

/// The licence of the weights, as the checkpoint states it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Licence {
    /// `license` of the README's front matter, usually an SPDX identifier in lower case.
    pub id: Option<String>,
    /// `license_name` of the front matter.
    pub name: Option<String>,
    /// `license_link` of the front matter.
    pub link: Option<String>,
    /// The licence file's name and text.
    pub text: Option<(String, String)>,
}

impl Licence {
    /// Everything known in one string; `None` when nothing is.
    pub fn statement(&self) -> Option<String> {
        let mut parts: Vec<String> = Vec::new();
        for part in [&self.id, &self.name, &self.link].into_iter().flatten() {
            parts.push(part.clone());
        }
        let heading = parts.join(", ");
        match (&self.text, heading.is_empty()) {
            (None, true) => None,
            (None, false) => Some(heading),
            (Some((_, text)), true) => Some(text.clone()),
            (Some((_, text)), false) => Some(format!("{heading}\n\n{text}")),
        }
    }

    /// Reads the licence file and the README's front matter.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let mut licence = Self::default();
        for name in LICENCE_FILES {
            let path = dir.join(name);
            // A directory or a device of that name is no licence.
            if file_size(&path).is_none() {
                continue;
            }
            if let Some(bytes) = read_optional(&path, MAX_LICENCE_BYTES)? {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                licence.text = Some(((*name).into(), text));
                break;
            }
        }
        let readme = dir.join(README_FILE);
        if file_size(&readme).is_some() {
            let bytes = read_prefix(&readme, MAX_FRONT_MATTER_BYTES)?;
            let text = String::from_utf8_lossy(&bytes);
            licence.id = front_matter(&text, "license");
            licence.name = front_matter(&text, "license_name");
            licence.link = front_matter(&text, "license_link");
        }
        Ok(licence)
    }
}

/// A plain value at the top level of a README's front matter.
fn front_matter(readme: &str, key: &str) -> Option<String> {
    let readme = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let mut lines = readme.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    lines.take_while(|line| line.trim_end() != "---").find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix(':')?.trim();
        let value = value.trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.chars().take(MAX_FRONT_MATTER_VALUE_CHARS).collect())
    })
}

/// Name and revision of a checkpoint from its place: `models--org--name/snapshots/revision` in the hub
/// cache, else the directory's name.
pub(super) fn source_name(dir: &Path) -> (String, Option<String>) {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.into());
    let parts: Vec<_> = dir
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    if let [.., repo, snapshots, revision] = parts.as_slice()
        && snapshots == "snapshots"
        && let Some(repo) = repo.strip_prefix("models--")
    {
        return (repo.replacen("--", "/", 1), Some(revision.clone()));
    }
    (parts.last().cloned().unwrap_or_default(), None)
}

/// Hashes every file of the checkpoint that was used.
pub(super) fn provenance(
    dir: &Path,
    names: &[String],
    licence: &Licence,
    progress: &dyn Progress,
) -> Result<Provenance> {
    let mut files = Vec::new();
    for name in names {
        let path = dir.join(name);
        if file_size(&path).is_some() {
            files.push((name.clone(), SharedBytes::map_file(&path)?));
        }
    }
    let total = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    progress.begin("hashing the source", total, "bytes");
    let mut hashed = Vec::new();
    for (name, bytes) in files {
        let mut hasher = blake3::Hasher::new();
        for chunk in bytes.chunks(HASH_CHUNK_BYTES) {
            if progress.cancelled() {
                return Err(ConvertError::Cancelled);
            }
            hasher.update(chunk);
            progress.advance(chunk.len() as u64);
        }
        let blake3 = hasher.finalize().to_hex().to_string();
        hashed.push(SourceFile { name, bytes: bytes.len() as u64, blake3 });
    }
    let (source, revision) = source_name(dir);
    Ok(Provenance {
        source,
        revision,
        files: hashed,
        licence: licence.statement(),
        ..Provenance::default()
    })
}

/// BLAKE3 over `config.json` and, of every weight file, its length, its header and a few pieces of its
/// data at even distances, so that checkpoints of one training run differ too. Reads kilobytes, not the
/// weights.
pub(super) fn fingerprint(config: &[u8], weights: &Weights) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(config);
    for shard in &weights.shards {
        part(&(shard.bytes.len() as u64).to_le_bytes());
        part(shard.header());
        let data = &shard.bytes[shard.data_start..];
        let step = (data.len() / FINGERPRINT_SAMPLES).max(FINGERPRINT_SAMPLE_BYTES);
        for piece in data.chunks(step) {
            part(&piece[..piece.len().min(FINGERPRINT_SAMPLE_BYTES)]);
        }
    }
    let mut digits = hasher.finalize().to_hex().to_string();
    digits.truncate(FINGERPRINT_DIGITS);
    digits
}
