//! The error type of this crate.

use std::path::PathBuf;

/// Everything that can be wrong with a packed file or with a request to write one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file is not a gristmill file at all.
    #[error(
        "not a gristmill file: it starts with {found:02x?}, expected {expected:02x?}; \
         `gristmill quantize` makes one from a Hugging Face directory"
    )]
    BadMagic {
        /// First bytes of the file.
        found: [u8; 8],
        /// The magic of a gristmill file.
        expected: [u8; 8],
    },
    /// Written by a later major version.
    #[error(
        "file format {major}.{minor} is newer than this reader ({supported}.x); use a newer gristmill"
    )]
    UnsupportedVersion {
        /// Major version in the file.
        major: u16,
        /// Minor version in the file.
        minor: u16,
        /// Major version this reader knows.
        supported: u16,
    },
    /// A required feature that this reader does not implement.
    #[error(
        "the file requires feature `{0}`, which this gristmill does not have; use a newer gristmill"
    )]
    UnknownFeature(String),
    /// Fewer bytes than the file says it has.
    #[error(
        "truncated file: {what} needs bytes {start}..{end}, the file has {len}; copy or download it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// First byte needed.
        start: u64,
        /// One past the last byte needed.
        end: u64,
        /// Bytes present.
        len: u64,
    },
    /// A part of the file does not match its digest or its twin.
    #[error("damaged file: {what}: {detail}; copy or download it again")]
    Corrupt {
        /// The damaged part.
        what: String,
        /// What was expected and found.
        detail: String,
    },
    /// The header is well formed but says something impossible.
    #[error("invalid header: {0}")]
    InvalidHeader(String),
    /// A tensor that the model needs is not there.
    #[error("tensor `{0}` is missing")]
    MissingTensor(String),
    /// A tensor does not have the shape that the model description implies.
    #[error("tensor `{name}`: expected shape {expected:?}, found {found:?}")]
    ShapeMismatch {
        /// Tensor name.
        name: String,
        /// Shape implied by the model description.
        expected: Vec<u64>,
        /// Shape found.
        found: Vec<u64>,
    },
    /// A request that the format cannot express.
    #[error("{0}")]
    Unsupported(String),
    /// Not enough room for the file that is about to be written.
    #[error("not enough space for {path}: needs {needed} bytes, {available} are free")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes the file will have.
        needed: u64,
        /// Bytes free on its filesystem.
        available: u64,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Result with [`FormatError`].
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

impl FormatError {
    /// Wraps a system error with the path it concerns.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
