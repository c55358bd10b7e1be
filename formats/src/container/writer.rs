//! Writing a packed file: tensors stream through, the file appears by rename or not at all.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::header::{Header, SectionEntry, TensorEntry};
use super::reader::PackedFile;
use super::superblock::{QUALITY_DETAILS, Superblock, VERSION};
use crate::codec::Codec;
use crate::limits::{MAX_HEADER_BYTES, PANEL_ALIGN, SECTION_ALIGN};
use crate::output::Output;
use crate::{FormatError, Result};

const ALIGN: u64 = PANEL_ALIGN as u64;

/// Writes `path.partial`, then renames it to `path`. Dropped before [`PackedWriter::finish`], it
/// removes what it wrote.
#[derive(Debug)]
pub struct PackedWriter {
    out: Output,
    tensors: Vec<TensorEntry>,
    open: Option<OpenTensor>,
    tokenizer: Option<SectionEntry>,
}

#[derive(Debug)]
struct OpenTensor {
    entry: TensorEntry,
    hasher: blake3::Hasher,
    written: u64,
}

impl PackedWriter {
    /// Creates the partial file beside `path`.
    ///
    /// # Errors
    /// [`FormatError::Io`] when it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let mut out = Output::create(path)?;
        out.pad_to(SECTION_ALIGN)?;
        Ok(Self { out, tensors: Vec::new(), open: None, tokenizer: None })
    }

    /// Begins a tensor. Tensors are written in the order of `ModelSpec::tensors`, each in one or more
    /// pieces whose sizes add up to what the shape needs.
    ///
    /// # Errors
    /// When the shape is invalid, or writing fails.
    ///
    /// # Panics
    /// When the tensor before is not complete.
    pub fn begin_tensor(&mut self, name: &str, shape: &[u64], codec: &Codec) -> Result<()> {
        assert!(self.open.is_none(), "a tensor is still open");
        self.out.align(ALIGN)?;
        let mut entry = TensorEntry::new(name, shape, codec);
        entry.bytes = codec.tensor_bytes(shape)?;
        entry.offset = self.out.position();
        self.open = Some(OpenTensor { entry, hasher: blake3::Hasher::new(), written: 0 });
        Ok(())
    }

    /// Appends bytes to the open tensor.
    ///
    /// # Errors
    /// When writing fails.
    ///
    /// # Panics
    /// When no tensor is open or it would become too long.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let open = self.open.as_mut().expect("a tensor is open");
        open.written += bytes.len() as u64;
        assert!(open.written <= open.entry.bytes, "tensor `{}` is too long", open.entry.name);
        open.hasher.update(bytes);
        self.out.write(bytes)
    }

    /// Ends the open tensor.
    ///
    /// # Panics
    /// When it is not complete.
    pub fn end_tensor(&mut self) {
        let mut open = self.open.take().expect("a tensor is open");
        assert_eq!(open.written, open.entry.bytes, "tensor `{}` is incomplete", open.entry.name);
        open.entry.blake3 = open.hasher.finalize().to_hex().to_string();
        self.tensors.push(open.entry);
    }

    /// Writes the tokenizer section, after all tensors.
    ///
    /// # Errors
    /// When writing fails.
    pub fn tokenizer(&mut self, section: &[u8]) -> Result<()> {
        self.out.align(ALIGN)?;
        self.tokenizer = Some(SectionEntry {
            offset: self.out.position(),
            bytes: section.len() as u64,
            blake3: blake3::hash(section).to_hex().to_string(),
        });
        self.out.write(section)
    }

    /// The tensors written so far.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// Writes header, footer and superblock, syncs, and renames the file into place. `header.tensors`
    /// and `header.tokenizer` are filled in here; the complete header is returned.
    ///
    /// # Errors
    /// When the header is invalid or writing fails; nothing appears at the path then.
    pub fn finish(mut self, mut header: Header) -> Result<Header> {
        assert!(self.open.is_none(), "a tensor is still open");
        header.tensors = std::mem::take(&mut self.tensors);
        header.tokenizer = self.tokenizer.take();
        self.out.align(ALIGN)?;
        commit(self.out, &header)?;
        Ok(header)
    }
}

/// Writes a copy of a packed file with another header (model, tensors and tokenizer unchanged) and
/// renames it over the original. Used to add figures that only the finished file can be measured for.
///
/// # Errors
/// When the new header describes other tensors, or reading or writing fails; the original is intact.
pub fn rewrite_header(path: &Path, header: &Header) -> Result<()> {
    let old = PackedFile::open(path)?;
    let same = old.header().tensors == header.tensors && old.header().tokenizer == header.tokenizer;
    if !same || old.header().model != header.model {
        return Err(FormatError::Unsupported(
            "a header can be replaced only by one of the same tensors".into(),
        ));
    }
    let mut out = Output::create(path)?;
    let mut source = File::open(path).map_err(FormatError::io(path))?;
    let mut left = old.superblock().header_offset;
    let mut buffer = vec![0u8; 1 << 20];
    while left > 0 {
        let n = buffer.len().min(left as usize);
        source.read_exact(&mut buffer[..n]).map_err(FormatError::io(path))?;
        out.write(&buffer[..n])?;
        left -= n as u64;
    }
    commit(out, header)
}

/// Header, footer, superblock; everything reaches the disk before the name does.
fn commit(mut out: Output, header: &Header) -> Result<()> {
    let bytes = header.to_bytes()?;
    if bytes.len() as u64 > MAX_HEADER_BYTES {
        return Err(FormatError::Unsupported(format!("a header of {} bytes", bytes.len())));
    }
    let header_offset = out.position();
    // A writer that produced what a reader refuses would be found only by the user.
    if Header::parse(&bytes, header_offset)? != *header {
        return Err(FormatError::InvalidHeader(
            "it does not read back as it was written: a number is not finite".into(),
        ));
    }
    out.write(&bytes)?;
    out.align(ALIGN)?;
    let details = header.quality.as_ref().is_some_and(|quality| quality.has_details());
    let superblock = Superblock {
        version: VERSION,
        required_features: if details { QUALITY_DETAILS } else { 0 },
        optional_features: 0,
        header_offset,
        header_bytes: bytes.len() as u64,
        file_bytes: out.position() + super::FOOTER_BYTES as u64,
        header_blake3: *blake3::hash(&bytes).as_bytes(),
    };
    out.write(&superblock.footer())?;
    out.publish(&superblock.to_bytes())
}
