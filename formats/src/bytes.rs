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
    /// The mapping, when the owner is one.
    map: Option<Arc<MappedFile>>,
}

/// A mapped file, kept open for advice on its pages.
struct MappedFile {
    map: memmap2::Mmap,
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "advice is Linux's"))]
    file: File,
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl SharedBytes {
    /// Takes ownership of a buffer.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self::from_owner(Arc::new(bytes))
    }

    /// Shares any owner of bytes.
    pub fn from_owner(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let len = owner.as_ref().as_ref().len();
        Self { owner, range: 0..len, map: None }
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
        let map = Arc::new(MappedFile { map, file });
        Ok(Self { map: Some(Arc::clone(&map)), ..Self::from_owner(map) })
    }

    /// Whether this is part of a mapped file.
    pub fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// Tells the system that mapped bytes will be read soon, so that it fetches them in large pieces.
    /// Nothing happens when they are not mapped, or where the system takes no such advice.
    pub fn will_need(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // Advice: that it is not taken changes no result.
            let _ =
                map.map.advise_range(memmap2::Advice::WillNeed, self.range.start, self.range.len());
        }
    }

    /// Tells the system that mapped bytes will not be read for long, so that it drops their pages first.
    /// Nothing happens when they are not mapped, or where the system takes no such advice.
    pub fn done_with(&self) {
        self.release();
        #[cfg(target_os = "linux")]
        if let Some(MappedFile { file, .. }) = self.map.as_deref() {
            // Pages that nobody has mapped leave the file cache at once: left to itself, the system
            // would rather drop what was fetched ahead and not yet read.
            let (start, len) = (self.range.start as u64, self.range.len() as u64);
            let len = std::num::NonZeroU64::new(len);
            let _ = rustix::fs::fadvise(file, start, len, rustix::fs::Advice::DontNeed);
        }
    }

    /// Gives mapped pages back to the file cache, so that they no longer count as this process's.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Some(mapped) = self.map.as_deref() {
            let (start, len) = (self.range.start, self.range.len());
            // SAFETY: the mapping is read-only and of a file, so bytes that are read again come from
            // there unchanged.
            let _ = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                mapped.map.unchecked_advise_range(advice, start, len)
            };
        }
    }

    /// A sub-range, relative to this one; `None` when it does not fit.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { range: start..start + range.len(), ..self.clone() })
    }
}

/// Anonymous memory to copy into, in huge pages where the system has them to give.
#[derive(Debug)]
pub struct HugeBuffer(memmap2::MmapMut);

impl HugeBuffer {
    /// Reserves memory; pages are taken as they are written.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let map = memmap2::MmapOptions::new().len(len.max(1)).map_anon()?;
        #[cfg(target_os = "linux")]
        // Advice: without huge pages reading is slower, not wrong.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self(map))
    }

    /// The memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// No longer to be written.
    pub fn share(self) -> SharedBytes {
        SharedBytes::from_owner(Arc::new(self.0))
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
