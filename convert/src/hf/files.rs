//! Reading the small files of a checkpoint, each with a bound.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{ConvertError, Result};

/// The whole file; `None` when there is none.
pub(super) fn read_optional(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    let bytes = match fs::metadata(path) {
        // Opening a pipe or a device could wait for ever.
        Ok(meta) if !meta.is_file() => {
            let source = std::io::Error::new(ErrorKind::InvalidInput, "not a regular file");
            return Err(ConvertError::Io { path: path.into(), source });
        }
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConvertError::Io { path: path.into(), source }),
    };
    if bytes > max {
        return Err(ConvertError::TooLarge { path: path.into(), bytes, max });
    }
    Ok(Some(read_prefix(path, max)?))
}

/// The first `max` bytes of a file.
pub(super) fn read_prefix(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(ConvertError::io(path))?;
    file.take(max).read_to_end(&mut content).map_err(ConvertError::io(path))?;
    Ok(content)
}

/// A regular file's size; `None` when there is none.
pub(super) fn file_size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
}

/// Parses JSON; `file` names it in the error.
pub(super) fn parse_json<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| ConvertError::Json { file: file.into(), source })
}
