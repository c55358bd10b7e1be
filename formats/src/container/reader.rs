//! Opening a packed file: metadata is checked and parsed, tensors stay where they are.

use std::collections::HashMap;
use std::path::Path;

use super::header::{Header, TensorEntry};
use super::superblock::{FOOTER_BYTES, Superblock};
use crate::bytes::SharedBytes;
use crate::model::ModelSpec;
use crate::source::{GenerationDefaults, Layout, ModelSource, TensorData, TextAssets};
use crate::tokenizer::TokenizerData;
use crate::{FormatError, Result};

/// A packed file whose metadata has been checked. Tensor digests are checked by
/// [`super::verify`], not here.
#[derive(Debug)]
pub struct PackedFile {
    bytes: SharedBytes,
    superblock: Superblock,
    header: Header,
    by_name: HashMap<String, usize>,
}

impl PackedFile {
    /// Maps and opens a file.
    ///
    /// # Errors
    /// When it cannot be mapped, is truncated, damaged in its metadata, or of an unknown version.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(SharedBytes::map_file(path)?)
    }

    /// Opens bytes that are already in memory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: SharedBytes) -> Result<Self> {
        let superblock = Superblock::parse(&bytes)?;
        let len = bytes.len() as u64;
        if len < superblock.file_bytes {
            return Err(FormatError::Truncated {
                what: "the file",
                start: 0,
                end: superblock.file_bytes,
                len,
            });
        }
        let corrupt = |what: &str, detail: &str| {
            Err(FormatError::Corrupt { what: what.into(), detail: detail.into() })
        };
        if len > superblock.file_bytes {
            return corrupt("end of file", "bytes follow the footer");
        }
        let footer = superblock.footer_offset() as usize;
        if bytes[footer..footer + FOOTER_BYTES] != superblock.footer() {
            return corrupt("footer", "it differs from the superblock or has no commit mark");
        }
        let start = superblock.header_offset as usize;
        let header = &bytes[start..start + superblock.header_bytes as usize];
        if blake3::hash(header).as_bytes() != &superblock.header_blake3 {
            return corrupt("header", "it does not match its digest");
        }
        let header = Header::parse(header, superblock.header_offset)?;
        let by_name = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { bytes, superblock, header, by_name })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The whole file.
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// Bits per weight of the whole file, everything counted.
    pub fn bits_per_weight(&self) -> f64 {
        self.superblock.file_bytes as f64 * 8.0 / self.header.model.parameter_count() as f64
    }

    /// Bytes of a tensor of the table. The layout check put every tensor inside the file.
    pub(super) fn tensor_bytes(&self, entry: &TensorEntry) -> SharedBytes {
        let start = entry.offset as usize;
        self.bytes.slice(start..start + entry.bytes as usize).expect("the layout was checked")
    }
}

impl ModelSource for PackedFile {
    fn spec(&self) -> &ModelSpec {
        &self.header.model
    }

    fn tensor(&self, name: &str) -> Result<TensorData> {
        let index =
            *self.by_name.get(name).ok_or_else(|| FormatError::MissingTensor(name.into()))?;
        let entry = &self.header.tensors[index];
        Ok(TensorData {
            shape: entry.shape.clone(),
            codec: entry.codec()?,
            layout: if entry.shape.len() == 1 { Layout::RowMajor } else { Layout::Panels },
            bytes: self.tensor_bytes(entry),
        })
    }

    fn tokenizer(&self) -> Result<Option<TokenizerData>> {
        let Some(entry) = &self.header.tokenizer else { return Ok(None) };
        let start = entry.offset as usize;
        let section = &self.bytes[start..start + entry.bytes as usize];
        if blake3::hash(section).to_hex().as_str() != entry.blake3 {
            return Err(FormatError::Corrupt {
                what: "tokenizer section".into(),
                detail: "it does not match its digest".into(),
            });
        }
        TokenizerData::from_section(section).map(Some)
    }

    fn text(&self) -> &TextAssets {
        &self.header.text
    }

    fn generation(&self) -> &GenerationDefaults {
        &self.header.generation
    }

    fn file_bytes(&self) -> u64 {
        self.superblock.file_bytes
    }

    fn fingerprint(&self) -> String {
        // The header holds every tensor's digest, so its own digest identifies the whole file.
        blake3::Hash::from_bytes(self.superblock.header_blake3).to_hex().as_str()[..32].into()
    }
}
