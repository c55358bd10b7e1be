//! The error type of this crate.

use std::path::PathBuf;

use gristmill_formats::FormatError;

/// Everything that can be wrong with a foreign checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The path is not a checkpoint directory.
    #[error(
        "{path}: not a directory; expected a Hugging Face directory with config.json and *.safetensors"
    )]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// A file that the checkpoint needs is not there.
    #[error("{path}: no such file; {remedy}")]
    MissingFile {
        /// The file.
        path: PathBuf,
        /// What to do next.
        remedy: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that is read into memory is larger than anything sensible.
    #[error("{path}: {bytes} bytes, at most {max} are read; this is not the file it claims to be")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit from [`crate::limits`].
        max: u64,
    },
    /// A file is not the JSON it should be.
    #[error("{file}: {source}; copy or download it again")]
    Json {
        /// The file.
        file: String,
        /// What the parser met, with line and column.
        source: serde_json::Error,
    },
    /// A key has a value of the wrong type or out of range.
    #[error("{file}: `{key}` is {found}, expected {expected}")]
    InvalidValue {
        /// The file.
        file: String,
        /// The key; nested keys are joined by dots.
        key: String,
        /// Its value as JSON, shortened.
        found: String,
        /// What can stand there.
        expected: String,
    },
    /// A key that this importer does not know and that could change the result.
    #[error(
        "{file}: unknown key `{key}` with value {value}; it could change the result, so it is not \
         ignored. Use a newer gristmill, or remove the key if it has no effect on inference"
    )]
    UnknownKey {
        /// The file.
        file: String,
        /// The key; nested keys are joined by dots.
        key: String,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// A known key with a value that would change the result and is not implemented.
    #[error("{file}: `{key}` is {value}, which gristmill does not support; supported: {supported}")]
    UnsupportedValue {
        /// The file.
        file: String,
        /// The key; nested keys are joined by dots.
        key: String,
        /// Its value as JSON, shortened.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// A model type or class that no importer handles.
    #[error("config.json: {key} `{found}` is not supported; supported: {supported}")]
    UnsupportedArchitecture {
        /// `model_type` or `architectures`.
        key: &'static str,
        /// What the file says.
        found: String,
        /// The supported names.
        supported: String,
    },
    /// Keys that contradict each other.
    #[error("{file}: {detail}")]
    Contradiction {
        /// The file.
        file: String,
        /// Which keys, what they say, what to do.
        detail: String,
    },
    /// A safetensors file is damaged.
    #[error("{path}: {detail}; copy or download it again")]
    InvalidSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The index of a sharded checkpoint is damaged.
    #[error("{file}: {detail}; copy or download the checkpoint again")]
    InvalidIndex {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The index names a file that is not directly in the checkpoint's directory.
    #[error(
        "{file}: `{name}` is not the name of a file in the same directory; refusing to follow it"
    )]
    UnsafePath {
        /// The index file.
        file: String,
        /// The name.
        name: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor `{hf_name}` ({name}) is in none of the checkpoint's files; {remedy}")]
    MissingTensor {
        /// Canonical name.
        name: String,
        /// Name in the checkpoint.
        hf_name: String,
        /// What to do next.
        remedy: String,
    },
    /// A tensor that the model would not use.
    #[error(
        "{path}: tensor `{hf_name}` is not used by model type `{model_type}`{more}; it could change the \
         result, so it is not ignored. The checkpoint is of another architecture than its config.json says"
    )]
    UnusedTensor {
        /// The file it is in.
        path: PathBuf,
        /// Name in the checkpoint.
        hf_name: String,
        /// The model type of config.json.
        model_type: String,
        /// ` (and 3 others)`, or empty.
        more: String,
    },
    /// Two files have a tensor of one name.
    #[error(
        "tensor `{hf_name}` is in {first} and in {second}; remove the file that does not belong here"
    )]
    DuplicateTensor {
        /// Name in the checkpoint.
        hf_name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor does not have the shape that config.json implies.
    #[error(
        "{path}: tensor `{hf_name}` ({name}): expected shape {expected:?} by config.json, found {found:?}; \
         config.json and weights are of different models"
    )]
    ShapeMismatch {
        /// The file it is in.
        path: PathBuf,
        /// Canonical name.
        name: String,
        /// Name in the checkpoint.
        hf_name: String,
        /// Shape implied by the configuration.
        expected: Vec<u64>,
        /// Shape found.
        found: Vec<u64>,
    },
    /// A tensor whose elements are not floating-point numbers that the runtime knows.
    #[error(
        "{path}: tensor `{hf_name}` has dtype {dtype}; supported: BF16, F16, F32. Quantized checkpoints \
         cannot be read: use the full-precision original"
    )]
    UnsupportedDtype {
        /// The file it is in.
        path: PathBuf,
        /// Name in the checkpoint.
        hf_name: String,
        /// Its dtype as safetensors spells it.
        dtype: String,
    },
    /// Something that llama.cpp does not have, or does in another way.
    #[error("llama.cpp cannot run this model: it has nothing for {what}")]
    NotInGguf {
        /// What the model needs.
        what: String,
    },
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The model description or the tokenizer was refused.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Result with [`ConvertError`].
pub type Result<T, E = ConvertError> = std::result::Result<T, E>;

impl ConvertError {
    /// Wraps a system error with the path it concerns.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// The traits of `formats` speak its error type; the message survives the change.
impl From<ConvertError> for FormatError {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::Format(error) => error,
            ConvertError::Io { path, source } => Self::Io { path, source },
            other => Self::Unsupported(other.to_string()),
        }
    }
}
