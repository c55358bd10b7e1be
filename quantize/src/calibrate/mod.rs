//! Calibrated rounding: what the layers see on a text decides how their weights are rounded.
//!
//! Two passes over the model, one block at a time, so that memory holds one block's weights and moments
//! and the calibration tokens' residual stream:
//!
//! 1. [`statistics`]: the model as it is, forwards and backwards, gives every linear layer's moments of
//!    inputs and of output gradients.
//! 2. [`rounding`]: forwards again through blocks already rounded. Each block's inputs are captured as
//!    the rounded model will produce them, its matrices are rounded, and its output is computed anew.
//!
//! What a pass has finished is kept in a [`work`] directory beside the output, so that an interrupted
//! run continues where it stopped.

mod matrix;
mod prediction;
mod rounding;
mod statistics;
mod swaps;
mod target;
mod work;

pub use matrix::RoundedTensor;
pub(crate) use prediction::predict;
pub(crate) use rounding::{packed_file, round_model};
pub(crate) use statistics::{Statistics, Wanted, collect, forward_model, load_blocks, put};
pub use swaps::Swap;
pub(crate) use swaps::{correction, measure_swaps};
pub(crate) use target::{GgufTarget, PackedTarget, pack_panels};
pub(crate) use work::Work;

use std::fmt;

use crate::{QuantizeError, Result};

/// The text that calibration looks at, as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Whole sequences, one after the other.
    pub tokens: Vec<u32>,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// What the text is called in reports.
    pub name: String,
    /// BLAKE3 of the text.
    pub digest: String,
}

impl Calibration {
    /// Tokens of a sequence that is not told otherwise.
    pub const DEFAULT_SEQUENCE: usize = 512;
    /// Tokens that are used when it is not said how many.
    pub const DEFAULT_TOKENS: usize = 10_240;

    /// Takes sequences of a text, spread evenly over it, until there are about `budget` tokens.
    /// `tokens` are those of the whole text.
    ///
    /// # Errors
    /// When the text is shorter than one sequence.
    pub fn new(
        name: &str,
        text: &str,
        tokens: &[u32],
        sequence: usize,
        budget: usize,
    ) -> Result<Self> {
        let available = tokens.len() / sequence;
        if available == 0 {
            let (found, name) = (tokens.len(), name.to_owned());
            return Err(QuantizeError::ShortCalibration { name, found, needed: sequence });
        }
        let count = (budget / sequence).clamp(1, available);
        let spread = (0..count).flat_map(|i| {
            let first = i * available / count * sequence;
            &tokens[first..first + sequence]
        });
        Ok(Self {
            tokens: spread.copied().collect(),
            sequence,
            name: name.into(),
            digest: blake3::hash(text.as_bytes()).to_hex().to_string(),
        })
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.tokens.len() / self.sequence
    }

    /// The text that comes with this crate: prose, conversations, code and other languages, written
    /// for it or in the public domain.
    pub fn built_in_text() -> String {
        BUILT_IN.concat()
    }
}

/// Tokens and digest of the text: what a run can be repeated with.
impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: usize = 16;
        let digest = self.digest.get(..DIGITS).unwrap_or(&self.digest);
        write!(f, "{}x{}:{digest}", self.sequences(), self.sequence)
    }
}

const BUILT_IN: [&str; 5] = [
    include_str!("../../data/calibration/encyclopedia.txt"),
    include_str!("../../data/calibration/prose.txt"),
    include_str!("../../data/calibration/chat.txt"),
    include_str!("../../data/calibration/code.txt"),
    include_str!("../../data/calibration/languages.txt"),
];

/// Tokens computed together: products large enough for full speed, activations small enough to hold.
const BATCH_TOKENS: usize = 4096;

/// Ranges of tokens, each of whole sequences and about [`BATCH_TOKENS`] long.
pub(crate) fn batches(
    tokens: usize,
    sequence: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let batch = (BATCH_TOKENS / sequence).max(1) * sequence;
    (0..tokens).step_by(batch).map(move |first| first..tokens.min(first + batch))
}
