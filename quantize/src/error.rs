//! The error type of this crate.

use std::path::PathBuf;

use gristmill_formats::FormatError;
use gristmill_formats::codec::CodecId;

/// Everything that can go wrong while a packed file is made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// Reading the source or writing the file failed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The caller asked to stop.
    #[error("cancelled; nothing was written")]
    Cancelled,
    /// A weight is NaN or infinite.
    #[error(
        "tensor `{tensor}`: the weight at row {row}, column {col} is {value}; the checkpoint is \
         damaged or its training diverged"
    )]
    NotFinite {
        /// Tensor name.
        tensor: String,
        /// Row; 0 for vectors.
        row: usize,
        /// Column.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A weight is too large for the codec.
    #[error(
        "tensor `{tensor}`: the weight {value} at row {row}, column {col} is beyond the range of \
         {codec}; store the tensor as f32 with `--codec {tensor}=f32`"
    )]
    OutOfRange {
        /// Tensor name.
        tensor: String,
        /// Row; 0 for vectors.
        row: usize,
        /// Column.
        col: usize,
        /// The weight.
        value: f32,
        /// The codec.
        codec: CodecId,
    },
    /// No codec has this width.
    #[error("no codec has {bits} bits; available: {available}")]
    UnknownBits {
        /// Bits asked for.
        bits: u32,
        /// The widths there are, with their codecs.
        available: String,
    },
    /// An override cannot be understood.
    #[error("`{text}`: {reason}; expected REGEX=CODEC, e.g. `mlp\\.down$=q8`")]
    InvalidOverride {
        /// The override.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An override names no tensor of the model.
    #[error("`{pattern}` matches no tensor; names look like {examples}")]
    UnmatchedOverride {
        /// The pattern.
        pattern: String,
        /// Some names of the model.
        examples: String,
    },
    /// A vector cannot have a block codec.
    #[error(
        "tensor `{tensor}` is a vector and cannot be {codec}; narrow `{pattern}` to matrices or use a \
         dense codec (f32, bf16, f16)"
    )]
    VectorCodec {
        /// Tensor name.
        tensor: String,
        /// The codec asked for.
        codec: CodecId,
        /// The pattern that asked for it, or the recipe's own choice.
        pattern: String,
    },
    /// The file cannot be created where it should be.
    #[error("cannot write {path}: {reason}")]
    Output {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// A calibrated method was given no text.
    #[error("this method needs a calibration text")]
    NoCalibration,
    /// Tuning was asked for without a calibrated method.
    #[error("tuning needs a calibrated method, {0} is not; use --method gptq")]
    TuningNeedsCalibration(crate::Method),
    /// No choice of codecs makes the file small enough.
    #[error("a file of {wanted} bytes is not possible; the smallest of this model has {smallest}")]
    SizeTooSmall {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes with the smallest codecs.
        smallest: u64,
    },
    /// The calibration text is too short.
    #[error("calibration text {name} has {found} tokens; at least {needed} are needed")]
    ShortCalibration {
        /// Name of the text.
        name: String,
        /// Its tokens.
        found: usize,
        /// Tokens of one sequence.
        needed: usize,
    },
    /// The directory of unfinished work cannot be used.
    #[error("work directory {directory}: {reason}")]
    Work {
        /// The directory.
        directory: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of unfinished work is not what was written.
    #[error(
        "the work file `{file}` is missing or damaged; delete the work directory and start again"
    )]
    Damaged {
        /// The file.
        file: String,
    },
    /// Writing the file would destroy what it is made from.
    #[error("{path} is part of the source; choose another output")]
    OutputIsSource {
        /// The file.
        path: PathBuf,
    },
}

/// Result with [`QuantizeError`].
pub type Result<T, E = QuantizeError> = std::result::Result<T, E>;
