//! Bytes that outlive the thing they were read from: a cheap, shareable view of a memory map or of a
//! buffer, so that a tensor can be handed around without copying and without a lifetime.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use crate::{FormatError, Result};

/// A reference-counted byte range over memory that does not move.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// Takes ownership of a buffer.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self::from_owner(Arc::new(bytes))
    }

    /// Shares any owner of bytes.
    pub fn from_owner(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let len = owner.as_ref().as_ref().len();
        Self { owner, range: 0..len }
    }

    /// Maps a file read-only. The file must not be changed while it is mapped: packed files and
    /// checkpoints are written once under a temporary name and renamed, never edited in place.
    ///
    /// # Errors
    /// [`FormatError::Io`] when the file cannot be opened or mapped.
    pub fn map_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(FormatError::io(path))?;
        if file.metadata().map_err(FormatError::io(path))?.len() == 0 {
            return Ok(Self::from_vec(Vec::new()));
        }
        // SAFETY: the mapping is read-only and private to this owner. Another process that truncates
        // or rewrites the file in place breaks the contract stated above; every writer of this
        // project writes a new file and renames it.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(FormatError::io(path))?;
        Ok(Self::from_owner(Arc::new(map)))
    }

    /// A sub-range, relative to this one; `None` when it does not fit.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: Arc::clone(&self.owner), range: start..start + range.len() })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.as_ref().as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.range.len())
    }
}
