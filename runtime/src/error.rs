//! The error type of this crate.

use gristmill_formats::FormatError;

/// What can go wrong when a model is loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The model's source cannot be read or is not what its description says.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The requested instruction set is not on this CPU.
    #[error("this CPU has no {requested}; available: {available}")]
    IsaUnavailable {
        /// What was asked for.
        requested: &'static str,
        /// What there is.
        available: String,
    },
    /// The sequence does not fit the context.
    #[error(
        "{needed} positions do not fit the context of {context}; use a larger context (`--ctx`)"
    )]
    ContextFull {
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        context: usize,
    },
    /// A token id that the model does not have.
    #[error("token id {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: u32,
    },
    /// A call that needs at least one token got none.
    #[error("there are no tokens to run; the prompt is empty")]
    NoTokens,
    /// Positions to go back to are no longer in the cache.
    #[error("cannot go back to position {position}: a sliding window has dropped what it needs")]
    Rewind {
        /// The position.
        position: usize,
    },
    /// A configuration that cannot be built.
    #[error("{0}")]
    Config(String),
    /// A copy of the weights does not fit.
    #[error(
        "a copy of the weights takes {needed_mib} MiB, {available_mib} MiB are available; use \
         `--residency map` or `--residency stream`"
    )]
    Residency {
        /// Needed for the copy.
        needed_mib: u64,
        /// Available now.
        available_mib: u64,
    },
    /// The system gives no memory.
    #[error(
        "the system refuses {bytes} bytes for a copy of weights; use `--residency map` and \
         `--head full`: {error}"
    )]
    Memory {
        /// Asked for.
        bytes: u64,
        /// What it says.
        error: std::io::Error,
    },
    /// The plan needs more memory than there is.
    #[error(
        "not enough memory: {needed_mib} MiB for a context of {context}, {available_mib} MiB are \
         available; {advice}"
    )]
    OutOfMemory {
        /// Needed for caches and buffers.
        needed_mib: u64,
        /// Available now.
        available_mib: u64,
        /// The context asked for.
        context: usize,
        /// What would fit.
        advice: String,
    },
}

/// Result with [`RuntimeError`].
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;
