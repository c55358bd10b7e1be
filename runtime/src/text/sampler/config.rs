//! What a user may choose about sampling.

use gristmill_formats::source::GenerationDefaults;
use serde::{Deserialize, Serialize};

use crate::text::TextError;

/// How tokens are chosen. The defaults are those of transformers when it samples: temperature 1 and
/// the 50 most likely tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Softmax temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens with this much probability; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the most likely one; 0 drops none.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of seen tokens by this; 1 does nothing.
    pub repetition_penalty: f32,
    /// How many of the last tokens count as seen; [`WHOLE_SEQUENCE`](Self::WHOLE_SEQUENCE) for all.
    pub repeat_last_n: u32,
    /// Seed of the draws.
    pub seed: u64,
}

impl SamplerConfig {
    /// A `repeat_last_n` that reaches back to the beginning, as transformers does.
    pub const WHOLE_SEQUENCE: u32 = u32::MAX;

    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, ..Self::default() }
    }

    /// What the checkpoint asks for; [`Default`] where it asks nothing.
    ///
    /// `do_sample: false` means greedy, whatever else is given.
    pub fn from_defaults(defaults: &GenerationDefaults) -> Self {
        let mut config = Self::default();
        if let Some(penalty) = defaults.repetition_penalty {
            config.repetition_penalty = penalty;
        }
        if defaults.do_sample == Some(false) {
            return Self { temperature: 0.0, top_k: 0, ..config };
        }
        config.temperature = defaults.temperature.unwrap_or(config.temperature);
        config.top_k = defaults.top_k.unwrap_or(config.top_k);
        config.top_p = defaults.top_p.unwrap_or(config.top_p);
        config.min_p = defaults.min_p.unwrap_or(config.min_p);
        config
    }

    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks that every value is in range.
    ///
    /// # Errors
    /// [`TextError::InvalidSampling`] naming the first that is not.
    pub fn check(&self) -> Result<(), TextError> {
        let ranges = [
            ("temperature", self.temperature, 0.0, f32::MAX, "at least 0"),
            ("top_p", self.top_p, 0.0, 1.0, "between 0 and 1"),
            ("min_p", self.min_p, 0.0, 1.0, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, f32::MAX, "above 0"),
        ];
        for (name, value, low, high, expected) in ranges {
            if !(low..=high).contains(&value) {
                let message = format!("{name} is {value}, expected a number {expected}");
                return Err(TextError::InvalidSampling(message));
            }
        }
        Ok(())
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repeat_last_n: Self::WHOLE_SEQUENCE,
            seed: 0,
        }
    }
}
