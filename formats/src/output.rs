//! A file that appears complete or not at all: written under another name, synced, renamed.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{FormatError, Result};

/// The partial file and the position in it. Dropped before it is published, it removes what it wrote.
#[derive(Debug)]
pub(crate) struct Output {
    file: Option<BufWriter<File>>,
    partial: PathBuf,
    path: PathBuf,
    position: u64,
}

impl Output {
    /// Creates `path.partial` beside `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&partial)
            .map_err(FormatError::io(&partial))?;
        let file = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { file, partial, path: path.into(), position: 0 })
    }

    /// Bytes written so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("open until published");
        file.write_all(bytes).map_err(FormatError::io(&self.partial))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes zeros up to a position.
    pub(crate) fn pad_to(&mut self, position: u64) -> Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let n = ZEROS.len().min((position - self.position) as usize);
            self.write(&ZEROS[..n])?;
        }
        Ok(())
    }

    /// Writes zeros up to a multiple of `align`.
    pub(crate) fn align(&mut self, align: u64) -> Result<()> {
        self.pad_to(self.position.next_multiple_of(align))
    }

    /// Brings everything to the disk, then `front`, which replaces the file's first bytes, then the
    /// name.
    pub(crate) fn publish(mut self, front: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("open until published");
        file.flush()
            .and_then(|()| file.get_ref().sync_data())
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(front))
            .and_then(|()| file.flush())
            .and_then(|()| file.get_ref().sync_all())
            .map_err(FormatError::io(&self.partial))?;
        std::fs::rename(&self.partial, &self.path).map_err(FormatError::io(&self.path))?;
        // Only now is there nothing left for `drop` to remove.
        self.file = None;
        if let Some(directory) = self.path.parent() {
            // Not every filesystem lets a directory be synced; the file itself is safe either way.
            let directory =
                if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            let _ = File::open(directory).and_then(|d| d.sync_all());
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
