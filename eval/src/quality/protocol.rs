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

/// How the model computes the tokens of a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPath {
    /// Many at a time, as a prompt.
    #[default]
    Prefill,
    /// One after the other, as generated tokens.
    Decode,
}

impl TokenPath {
    /// All paths.
    pub const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl std::fmt::Display for TokenPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
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
    /// Tokens of the text that precede each window as context and are not scored. Windows lie where they
    /// lie without it; those that have too little text before them are left out.
    pub depth: usize,
    /// How the model computes the tokens of a window; those of the depth are always a prompt.
    pub path: TokenPath,
}

impl QualityConfig {
    /// A protocol with its usual window length, over the whole text, nothing before the windows.
    pub fn new(protocol: Protocol) -> Self {
        let (ctx, path) = (protocol.default_ctx(), TokenPath::Prefill);
        Self { protocol, ctx, windows: None, depth: 0, path }
    }

    /// Protocol, tokens of a window and windows in short, as packed files store it.
    pub fn label(&self, windows: usize) -> String {
        format!("{} {} x {windows}", self.protocol, self.ctx)
    }

    /// What [`Self::label`] says.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn from_label(label: &str) -> Result<Self> {
        let unreadable =
            || EvalError::Config(format!("`{label}` is not of the form `chunk 512 x 40`"));
        let words: Vec<_> = label.split(' ').collect();
        let &[protocol, ctx, "x", windows] = words.as_slice() else { return Err(unreadable()) };
        let protocol: Protocol = protocol.parse().map_err(|_| unreadable())?;
        let number = |text: &str| text.parse().map_err(|_| unreadable());
        let (ctx, windows) = (number(ctx)?, Some(number(windows)?));
        Ok(Self { ctx, windows, ..Self::new(protocol) })
    }

    /// Positions that an engine needs: the depth and a window.
    pub fn context(&self) -> usize {
        self.depth.saturating_add(self.ctx)
    }

    /// The first window of the text that has enough text before it.
    pub fn first_window(&self) -> usize {
        self.depth.div_ceil(self.ctx.max(1))
    }

    /// Positions whose logits are scored, counted from the start of the depth.
    pub(crate) fn scored_positions(&self) -> Range<usize> {
        let Range { start, end } = self.protocol.scored_positions(self.ctx);
        self.depth + start..self.depth + end
    }

    /// Positions that are reported together: eight equal parts, or, where the first position is scored,
    /// parts that double, because predictions change fast while there is little context.
    pub(crate) fn position_bins(&self) -> Vec<Range<usize>> {
        const PARTS: usize = 8;
        const FIRST: usize = 16;
        let Range { start, end } = self.scored_positions();
        let mut bounds: Vec<usize> = if start == 0 {
            let doubled = std::iter::successors(Some(FIRST), |bound| bound.checked_mul(2));
            std::iter::once(0).chain(doubled.take_while(|&bound| bound < end)).collect()
        } else {
            (0..PARTS).map(|part| start + part * (end - start) / PARTS).collect()
        };
        bounds.push(end);
        bounds.dedup();
        bounds.windows(2).map(|pair| pair[0]..pair[1]).collect()
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
        let first = config.first_window();
        let fit = (self.ids.len() / config.ctx).saturating_sub(first);
        if fit == 0 {
            let needed = first.saturating_add(1).saturating_mul(config.ctx);
            return Err(EvalError::TextTooShort { tokens: self.ids.len(), needed });
        }
        match config.windows {
            Some(0) => Err(EvalError::Config("no windows were asked for".into())),
            asked => Ok(asked.map_or(fit, |n| n.min(fit))),
        }
    }

    /// The tokens of all windows, with what precedes the first.
    pub(crate) fn used(&self, windows: usize, config: &QualityConfig) -> &[u32] {
        let first = config.first_window();
        &self.ids[first * config.ctx - config.depth..(first + windows) * config.ctx]
    }

    /// The tokens of a window as the models see them, those of the depth first.
    pub(crate) fn window(&self, index: usize, config: &QualityConfig) -> Cow<'_, [u32]> {
        let start = (config.first_window() + index) * config.ctx;
        let tokens = &self.ids[start - config.depth..start + config.ctx];
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
        let mut config = QualityConfig { ctx: 8, ..QualityConfig::new(Protocol::Chunk) };
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
            let config = QualityConfig { ctx, ..QualityConfig::new(protocol) };
            let result = text(100, None).window_count(&config);
            assert!(matches!(result, Err(EvalError::Config(_))), "{protocol} {ctx}");
        }
        let config = QualityConfig::new(Protocol::Chunk);
        let result = text(511, None).window_count(&config);
        assert!(matches!(result, Err(EvalError::TextTooShort { tokens: 511, needed: 512 })));
    }

    #[test]
    fn a_depth_moves_no_window() {
        let mut config = QualityConfig { ctx: 8, depth: 11, ..QualityConfig::new(Protocol::Chunk) };
        let mut text = text(40, Some(99));
        // Windows 0 and 1 have fewer than 11 tokens before them.
        assert_eq!(text.window_count(&config).expect("fits"), 3);
        let window = text.window(0, &config);
        assert_eq!((window[0], window[1], window[18]), (99, 6, 23));
        assert_eq!(config.scored_positions(), 15..18);
        let shallow = QualityConfig { depth: 0, ..config };
        assert_eq!(window[15..], text.window(2, &shallow)[4..]);
        assert_eq!((text.used(3, &config)[0], text.used(3, &config).len()), (5, 35));
        config.depth = 16;
        assert_eq!(config.first_window(), 2);
        text.ids.truncate(23);
        let result = text.window_count(&config);
        assert!(matches!(result, Err(EvalError::TextTooShort { tokens: 23, needed: 24 })));
    }

    #[test]
    fn bins_tile_the_scored_positions() {
        let bins = |protocol, ctx, depth| {
            let config = QualityConfig { ctx, depth, ..QualityConfig::new(protocol) };
            let bins = config.position_bins();
            assert_eq!(bins[0].start, config.scored_positions().start);
            assert_eq!(bins.last().expect("one").end, config.scored_positions().end);
            assert!(bins.windows(2).all(|pair| pair[0].end == pair[1].start), "{bins:?}");
            assert!(bins.iter().all(|bin| !bin.is_empty()), "{bins:?}");
            bins
        };
        assert_eq!(bins(Protocol::Window, 70, 0), [0..16, 16..32, 32..64, 64..69]);
        assert_eq!(bins(Protocol::Window, 9, 0).len(), 1);
        let equal = bins(Protocol::Chunk, 512, 0);
        assert_eq!((equal.len(), equal[0].clone(), equal[7].clone()), (8, 256..287, 479..511));
        assert_eq!(bins(Protocol::Window, 2048, 100)[1], 355..611);
        assert_eq!(bins(Protocol::Chunk, 8, 0), [4..5, 5..6, 6..7]);
    }

    #[test]
    fn labels_round_trip() {
        let config = QualityConfig::from_label("chunk 512 x 40").expect("a label");
        let expected = QualityConfig { windows: Some(40), ..QualityConfig::new(Protocol::Chunk) };
        assert_eq!((config, config.label(40).as_str()), (expected, "chunk 512 x 40"));
        for bad in ["", "chunk", "chunk 512 40", "chunks 512 x 40", "chunk x x 40", "chunk 5 x -1"]
        {
            assert!(QualityConfig::from_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_round_trip() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
        }
        assert!("chunks".parse::<Protocol>().is_err());
    }
}
