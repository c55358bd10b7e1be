//! Which tokens of a text are scored, and in which context.

use std::borrow::Cow;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};

/// How a text is cut into windows and which predictions count. Windows are independent: each starts
/// with an empty cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// llama.cpp's: the first token of a window becomes BOS where the tokenizer prepends one, and the
    /// predictions made at positions `ctx/2 ..= ctx-2` count.
    Chunk,
    /// Hugging Face's and GPTQ's for fixed-length models: all `ctx - 1` predictions count.
    Window,
}

/// A name that is no protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol `{0}`; known: chunk, window")]
pub struct UnknownProtocol(String);

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 2] = [Self::Chunk, Self::Window];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Window => "window",
        }
    }

    /// Tokens of a window when nothing else is asked: what published figures use.
    pub fn default_ctx(self) -> usize {
        match self {
            Self::Chunk => 512,
            Self::Window => 2048,
        }
    }

    /// Positions of a window whose logits are scored; each predicts the token after it.
    pub fn scored_positions(self, ctx: usize) -> Range<usize> {
        match self {
            Self::Chunk => ctx / 2..ctx.saturating_sub(1),
            Self::Window => 0..ctx.saturating_sub(1),
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        let known = Self::ALL.into_iter().find(|p| p.name() == name);
        known.ok_or_else(|| UnknownProtocol(name.into()))
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QualityConfig {
    /// Cutting and scoring.
    pub protocol: Protocol,
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows from the start of the text; `None` for all that fit.
    pub windows: Option<usize>,
}

impl QualityConfig {
    /// A protocol with its usual window length, over the whole text.
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, ctx: protocol.default_ctx(), windows: None }
    }
}

/// A tokenized text. The whole text is tokenized at once, with what the tokenizer itself adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTokens {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The beginning-of-sequence token, when the tokenizer prepends it.
    pub bos: Option<u32>,
    /// BLAKE3 of the text's bytes, hexadecimal.
    pub text_blake3: String,
}

impl TextTokens {
    /// Tokens of a text, whose digest is computed here.
    pub fn new(text: &[u8], ids: Vec<u32>, bos: Option<u32>) -> Self {
        Self { ids, bos, text_blake3: blake3::hash(text).to_hex().to_string() }
    }

    /// Windows that a measurement covers.
    ///
    /// # Errors
    /// When the text does not fill one, none is asked for, or a window would score nothing.
    pub(crate) fn window_count(&self, config: &QualityConfig) -> Result<usize> {
        if config.protocol.scored_positions(config.ctx).is_empty() {
            return Err(EvalError::Config(format!(
                "a context of {} scores no token under the {} protocol",
                config.ctx, config.protocol
            )));
        }
        let fit = self.ids.len() / config.ctx;
        if fit == 0 {
            return Err(EvalError::TextTooShort { tokens: self.ids.len(), needed: config.ctx });
        }
        match config.windows {
            Some(0) => Err(EvalError::Config("no windows were asked for".into())),
            asked => Ok(asked.map_or(fit, |n| n.min(fit))),
        }
    }

    /// The tokens of a window as the models see them.
    pub(crate) fn window(&self, index: usize, config: &QualityConfig) -> Cow<'_, [u32]> {
        let tokens = &self.ids[index * config.ctx..(index + 1) * config.ctx];
        match (config.protocol, self.bos) {
            (Protocol::Chunk, Some(bos)) => {
                let mut tokens = tokens.to_vec();
                tokens[0] = bos;
                tokens.into()
            }
            _ => tokens.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tokens: u32, bos: Option<u32>) -> TextTokens {
        TextTokens::new(b"text", (0..tokens).collect(), bos)
    }

    #[test]
    fn scored_positions_of_a_window_of_eight() {
        // Logits at 4, 5, 6 predict tokens 5, 6, 7.
        assert_eq!(Protocol::Chunk.scored_positions(8).collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(Protocol::Window.scored_positions(8).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(Protocol::Chunk.scored_positions(512).len(), 255);
        assert_eq!(Protocol::Window.scored_positions(2048).len(), 2047);
    }

    #[test]
    fn a_partial_window_is_dropped_and_bos_replaces_the_first_token_of_chunks() {
        let mut config = QualityConfig { protocol: Protocol::Chunk, ctx: 8, windows: None };
        let text = text(23, Some(99));
        assert_eq!(text.window_count(&config).expect("fits"), 2);
        assert_eq!(*text.window(1, &config), [99, 9, 10, 11, 12, 13, 14, 15]);
        config.windows = Some(1);
        assert_eq!(text.window_count(&config).expect("fits"), 1);
        config.windows = Some(9);
        assert_eq!(text.window_count(&config).expect("fits"), 2);
        config.protocol = Protocol::Window;
        assert_eq!(text.window(1, &config)[0], 8);
        config.windows = Some(0);
        assert!(matches!(text.window_count(&config), Err(EvalError::Config(_))));
    }

    #[test]
    fn windows_that_score_nothing_and_short_texts_are_refused() {
        for (protocol, ctx) in [(Protocol::Chunk, 2), (Protocol::Window, 1), (Protocol::Chunk, 0)] {
            let config = QualityConfig { protocol, ctx, windows: None };
            let result = text(100, None).window_count(&config);
            assert!(matches!(result, Err(EvalError::Config(_))), "{protocol} {ctx}");
        }
        let config = QualityConfig::new(Protocol::Chunk);
        let result = text(511, None).window_count(&config);
        assert!(matches!(result, Err(EvalError::TextTooShort { tokens: 511, needed: 512 })));
    }

    #[test]
    fn names_round_trip() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
        }
        assert!("chunks".parse::<Protocol>().is_err());
    }
}
