//! One safetensors file: eight bytes of header length, a JSON header, and the tensors.

use std::path::{Path, PathBuf};

use gristmill_formats::SharedBytes;
use safetensors::tensor::TensorInfo;
use safetensors::{SafeTensorError, SafeTensors};

use super::files::file_size;
use crate::limits::MAX_SAFETENSORS_HEADER_BYTES;
use crate::{ConvertError, Result};

/// Bytes of the header length.
const LENGTH_BYTES: usize = 8;

/// A mapped file whose header has been checked: tensors tile the data without overlap, and their sizes
/// follow from dtype and shape.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// The whole file.
    pub(super) bytes: SharedBytes,
    /// First byte of the tensors.
    pub(super) data_start: usize,
}

impl Shard {
    /// Maps a file and returns it with its tensors, sorted by name.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<(String, TensorInfo)>)> {
        let invalid =
            |detail: String| ConvertError::InvalidSafetensors { path: path.into(), detail };
        // Also keeps pipes and devices from being opened.
        let Some(len) = file_size(path) else {
            return Err(ConvertError::MissingFile {
                path: path.into(),
                remedy: "the checkpoint is incomplete: download it again".into(),
            });
        };
        if len < LENGTH_BYTES as u64 {
            return Err(invalid(format!(
                "truncated: {len} bytes, the header length alone needs 8"
            )));
        }
        let bytes = SharedBytes::map_file(path)?;
        let Some(&length) = bytes.first_chunk::<LENGTH_BYTES>() else {
            return Err(invalid("truncated while it was opened".into()));
        };
        let header = u64::from_le_bytes(length);
        if header > MAX_SAFETENSORS_HEADER_BYTES {
            return Err(invalid(format!(
                "header of {header} bytes, at most {MAX_SAFETENSORS_HEADER_BYTES} are allowed; not a \
                 safetensors file"
            )));
        }
        if header > len - LENGTH_BYTES as u64 {
            return Err(invalid(format!(
                "truncated: the header needs {header} bytes, the file has {len} in all"
            )));
        }
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| invalid(explain(&e, len)))?;
        let mut tensors: Vec<_> =
            metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        // The map has no order; errors should name the same tensor every time.
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok((Self { path: path.into(), data_start: LENGTH_BYTES + header, bytes }, tensors))
    }

    /// The header with its length.
    pub(super) fn header(&self) -> &[u8] {
        &self.bytes[..self.data_start]
    }
}

fn explain(error: &SafeTensorError, len: u64) -> String {
    match error {
        SafeTensorError::InvalidOffset(name) => {
            format!("tensor `{name}` overlaps another or leaves a hole before it")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!(
                "truncated or extended: the tensors do not end where the file does ({len} bytes)"
            )
        }
        SafeTensorError::TensorInvalidInfo => {
            "the bytes of a tensor do not follow from its dtype and shape".into()
        }
        other => other.to_string(),
    }
}
