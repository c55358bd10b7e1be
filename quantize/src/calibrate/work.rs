//! The directory in which a calibrated run keeps what it has finished.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

use crate::{QuantizeError, Result};

/// Name of the file that says whose work this is.
const IDENTITY: &str = "identity";

/// A work directory. Every file in it is complete: it got its name when it was written.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    directory: PathBuf,
}

impl Work {
    /// The work directory of an output.
    pub(crate) fn path(out: &Path) -> PathBuf {
        let mut name = out.file_name().unwrap_or_default().to_os_string();
        name.push(".work");
        out.with_file_name(name)
    }

    /// Makes the work directory, or continues in one that an earlier run with the same `identity`
    /// left when `resume` says so.
    ///
    /// # Errors
    /// When there is one already and `resume` is false or it is another run's, or it cannot be made.
    pub(crate) fn open(out: &Path, identity: &str, resume: bool) -> Result<Self> {
        let directory = Self::path(out);
        let work = Self { directory };
        match fs::read_to_string(work.file(IDENTITY)) {
            Ok(found) if found != identity => {
                return Err(
                    work.error("it belongs to a run with another model, recipe or text; delete it")
                );
            }
            Ok(_) if !resume => {
                return Err(
                    work.error("an interrupted run left it; continue with --resume, or delete it")
                );
            }
            Ok(_) => return Ok(work),
            Err(_) => {}
        }
        work.claim().map_err(|e| work.error(&e.to_string()))?;
        work.put(IDENTITY, &[identity.as_bytes()])?;
        Ok(work)
    }

    /// Makes the directory. One that is there already must be empty: all of it is removed in the end.
    fn claim(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if name != *partial(IDENTITY) {
                let reason = "there is such a directory, but no run left it; move it away";
                return Err(std::io::Error::other(reason));
            }
        }
        Ok(())
    }

    /// Removes the directory and all in it.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.directory).map_err(|e| self.error(&e.to_string()))
    }

    /// Whether a file is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.file(name).is_file()
    }

    /// Reads a file that [`Self::write`] wrote; `None` when it is not there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(mut bytes) = self.get(name)? else { return Ok(None) };
        let sealed = bytes.split_last_chunk::<{ blake3::OUT_LEN }>();
        if !sealed.is_some_and(|(bytes, seal)| blake3::hash(bytes) == *seal) {
            return Err(QuantizeError::Damaged { file: name.into() });
        }
        bytes.truncate(bytes.len() - blake3::OUT_LEN);
        Ok(Some(bytes))
    }

    /// Writes a file. A digest after its bytes tells whether they survive: the system may lose part of
    /// a file that was renamed shortly before a crash.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.put(name, &[bytes, blake3::hash(bytes).as_bytes()])
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match fs::read(self.file(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error(&e.to_string())),
        }
    }

    /// Writes the parts of a file under a temporary name and renames it.
    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<()> {
        let write = || {
            let temporary = self.file(&partial(name));
            let mut file = fs::File::create(&temporary)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            fs::rename(&temporary, self.file(name))
        };
        write().map_err(|e: std::io::Error| self.error(&format!("{name}: {e}")))
    }

    /// Writes named vectors.
    pub(crate) fn write_vectors(&self, name: &str, vectors: &[(String, Vec<f32>)]) -> Result<()> {
        let bytes: Vec<Vec<u8>> =
            vectors.iter().map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = vectors.iter().zip(&bytes).map(|((name, v), bytes)| {
            let view = TensorView::new(Dtype::F32, vec![v.len()], bytes);
            (name.as_str(), view.expect("four bytes for each number"))
        });
        let temporary = self.file(&partial(name));
        serialize_to_file(views, None, &temporary)
            .map_err(|e| self.error(&format!("{name}: {e}")))?;
        fs::rename(&temporary, self.file(name)).map_err(|e| self.error(&format!("{name}: {e}")))
    }

    /// Reads named vectors; `None` when the file is not there.
    pub(crate) fn read_vectors(&self, name: &str) -> Result<Option<Vectors>> {
        let Some(bytes) = self.get(name)? else { return Ok(None) };
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| self.error(&format!("{name} is damaged ({e}); delete the directory")))?;
        let decode = |bytes: &[u8]| {
            let words = bytes.as_chunks::<4>().0.iter();
            words.map(|b| f32::from_le_bytes(*b)).collect()
        };
        let vectors =
            tensors.iter().map(|(name, view)| (name.to_owned(), decode(view.data()))).collect();
        Ok(Some(Vectors(vectors)))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn error(&self, reason: &str) -> QuantizeError {
        QuantizeError::Work { directory: self.directory.clone(), reason: reason.into() }
    }
}

/// Name of a file that is not complete yet.
fn partial(name: &str) -> String {
    format!("{name}.partial")
}

/// Named vectors as read.
#[derive(Debug)]
pub(crate) struct Vectors(std::collections::HashMap<String, Vec<f32>>);

impl Vectors {
    /// All of them.
    pub(crate) fn into_map(self) -> std::collections::HashMap<String, Vec<f32>> {
        self.0
    }

    /// Takes a vector out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Vec<f32>> {
        self.0.remove(name)
    }
}
