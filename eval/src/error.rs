//! The error type of this crate.

use gristmill_runtime::RuntimeError;
use gristmill_runtime::text::TextError;

/// Why a measurement was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The model to be measured could not be opened.
    #[error("{0}")]
    Open(String),
    /// A configuration that measures nothing or does not fit the model.
    #[error("{0}")]
    Config(String),
    /// The text does not fill one window.
    #[error(
        "the text has {tokens} tokens, one window needs {needed}; use a longer text or a smaller \
         context (`--ctx`)"
    )]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of one window.
        needed: usize,
    },
    /// Student and reference do not share a vocabulary.
    #[error(
        "the model has {student} tokens in its vocabulary and the reference {reference}: their \
         distributions cannot be compared"
    )]
    VocabularyMismatch {
        /// Vocabulary of the model.
        student: u32,
        /// Vocabulary of the reference.
        reference: u32,
    },
    /// The model computed no usable logits.
    #[error("the logits of {model} are not finite at token {position} of window {window}")]
    NotFinite {
        /// Which of the two models.
        model: &'static str,
        /// Window, from 0.
        window: usize,
        /// Token within the window, from 0.
        position: usize,
    },
    /// A question that cannot be asked.
    #[error("line {line}: {what}")]
    Question {
        /// Line of the file, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A text cannot be tokenized.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// Result with [`EvalError`].
pub type Result<T, E = EvalError> = std::result::Result<T, E>;
