//! Choosing the next token from logits.
//!
//! In this order, which is that of transformers' logits processors:
//!
//! 1. Repetition penalty: a positive logit of a token seen among the last `repeat_last_n` is
//!    divided by it, a negative one multiplied, once per token (Keskar et al. 2019, section 4.1).
//! 2. Temperature 0 takes the largest logit; otherwise logits are divided by it.
//! 3. `top_k`: the k largest stay.
//! 4. `top_p`: of the probabilities over those, the largest stay until they sum to p (Holtzman et
//!    al. 2020, section 3.1).
//! 5. `min_p`: what is less likely than this share of the most likely token goes (Nguyen et al.
//!    2024).
//! 6. One of the rest is drawn by its probability.
//!
//! Between equal logits the lowest id is the larger one; so exactly k tokens stay where
//! transformers keeps all that tie with the k-th. NaN counts as minus infinity. Without any logit
//! above minus infinity, the token is 0.
//!
//! Draws come from SplitMix64 (Steele, Lea and Flood 2014) over a counter: the n-th draw depends on
//! seed and n alone, so a run can be repeated from any point. After construction nothing is
//! allocated.

mod candidates;
mod config;
mod history;

pub use config::SamplerConfig;

use candidates::Candidates;
use history::History;

use super::TextError;

/// Chooses tokens for one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    history: History,
    candidates: Candidates,
    draws: u64,
}

impl Sampler {
    /// A sampler for logits of `vocab_size` tokens; reserves all it will ever need.
    ///
    /// # Errors
    /// [`TextError::InvalidSampling`] when the configuration is out of range.
    pub fn new(config: SamplerConfig, vocab_size: usize) -> Result<Self, TextError> {
        config.check()?;
        let remembers = if config.repetition_penalty == 1.0 { 0 } else { config.repeat_last_n };
        let history = History::new(remembers, vocab_size);
        let candidates = Candidates::new(if config.temperature == 0.0 { 0 } else { vocab_size });
        Ok(Self { config, history, candidates, draws: 0 })
    }

    /// The configuration.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// How many of the largest logits the next token depends on; `usize::MAX` for all. Others may be minus
    /// infinity.
    ///
    /// A penalty above 1 only lowers logits: what is among the k largest after it was among the k + m
    /// largest before, m tokens having been seen. One below 1 may raise any.
    pub fn reach(&self) -> usize {
        let SamplerConfig { temperature, top_k, repetition_penalty, .. } = self.config;
        let kept = match (temperature, top_k) {
            (0.0, _) => 1,
            (_, 0) => return usize::MAX,
            (_, k) => k as usize,
        };
        if repetition_penalty < 1.0 { usize::MAX } else { kept + self.history.distinct().len() }
    }

    /// Chooses a token. Logits of seen tokens are changed in place by the repetition penalty.
    ///
    /// # Panics
    /// When there are more logits than the `vocab_size` of construction.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        self.penalize(logits);
        let Some((best, max)) = largest(logits) else { return 0 };
        if self.config.temperature == 0.0 {
            return best;
        }
        self.draws = self.draws.wrapping_add(1);
        // An infinite logit leaves no finite share to the others.
        if max == f32::INFINITY {
            return best;
        }
        let uniform = uniform(self.config.seed, self.draws);
        self.candidates.filter(&self.config, logits, max);
        self.candidates.draw(uniform)
    }

    /// Tells the sampler that `id` is now part of the sequence: prompt tokens as well as chosen
    /// ones.
    pub fn accept(&mut self, id: u32) {
        self.history.push(id);
    }

    /// Forgets the sequence and returns to the first draw.
    pub fn reset(&mut self) {
        self.history.clear();
        self.draws = 0;
    }

    fn penalize(&self, logits: &mut [f32]) {
        let penalty = self.config.repetition_penalty;
        for &id in self.history.distinct() {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            }
        }
    }
}

/// The largest logit above minus infinity and the lowest id that has it.
fn largest(logits: &[f32]) -> Option<(u32, f32)> {
    // Independent lanes, so that the compiler can compare a whole vector at a time. A comparison
    // with NaN is false and leaves the lane as it is.
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in logits.chunks(lanes.len()) {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == max).map(|id| (id as u32, max))
}

/// The `n`-th number in [0, 1) of a seed, with 53 random bits.
fn uniform(seed: u64, n: u64) -> f64 {
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
