//! Text in and out: tokenizer, streaming detokeniser, chat templates and the sampler.

pub mod chat;
pub mod sampler;
pub mod stream;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use sampler::{Sampler, SamplerConfig};
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

/// What can be wrong with a tokenizer, a chat template or a sampling configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer cannot be built from what the model carries.
    #[error("invalid tokenizer: {0}")]
    InvalidTokenizer(String),
    /// An added token would get another id than the tokenizer declares.
    #[error(
        "invalid tokenizer: added token `{text}` is declared with id {declared}, but the vocabulary gives it {actual}"
    )]
    AddedTokenId {
        /// The token.
        text: String,
        /// Its id in `added_tokens`.
        declared: u32,
        /// The id that it has in the vocabulary, or the next free one.
        actual: u32,
    },
    /// The tokenizer refused a text.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// The tokenizer refused a sequence of ids.
    #[error("cannot decode the tokens: {0}")]
    Decode(String),
    /// The model carries no chat template.
    #[error("the model has no chat template; use a raw prompt")]
    NoChatTemplate,
    /// The chat template is not valid or failed on these messages.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The chat template itself refused the messages with `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    ChatRefused(String),
    /// The sampling configuration is out of range.
    #[error("sampling: {0}")]
    InvalidSampling(String),
}
