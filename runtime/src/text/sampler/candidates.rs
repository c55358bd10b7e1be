//! The tokens that survive the filters, found without sorting the vocabulary.

use std::cmp::Ordering;

use super::SamplerConfig;

/// How many of the largest are sorted at first when it is not known how many `top_p` needs.
const FIRST_SORTED: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Probability relative to that of the largest logit.
    weight: f32,
}

impl Candidate {
    /// Larger logits first, then lower ids. No logit is NaN here, and zeros of both signs are
    /// equal.
    fn order(&self, other: &Self) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal);
        by_logit.then(self.id.cmp(&other.id))
    }
}

/// Tokens still in the draw. Reserved for the whole vocabulary once.
#[derive(Debug)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
}

/// The copy has the same room; what is in the list is between calls nobody's.
impl Clone for Candidates {
    fn clone(&self) -> Self {
        Self::new(self.list.capacity())
    }
}

impl Candidates {
    pub(super) fn new(vocab_size: usize) -> Self {
        Self { list: Vec::with_capacity(vocab_size) }
    }

    /// Applies temperature, `top_k`, `top_p` and `min_p`. `max` is the largest logit and finite.
    pub(super) fn filter(&mut self, config: &SamplerConfig, logits: &[f32], max: f32) {
        assert!(logits.len() <= self.list.capacity(), "more logits than the sampler was built for");
        self.list.clear();
        let k = config.top_k as usize;
        if k > 0 && k < logits.len() {
            self.keep_largest(k, logits);
        } else {
            self.keep_all(logits);
        }
        for candidate in &mut self.list {
            candidate.weight = ((candidate.logit - max) / config.temperature).exp();
        }
        if config.top_p < 1.0 {
            self.keep_mass(config.top_p);
        }
        if config.min_p > 0.0 {
            // The largest has weight 1 and always stays.
            self.list.retain(|candidate| candidate.weight >= config.min_p);
        }
    }

    /// Draws one by weight; `uniform` is in [0, 1).
    pub(super) fn draw(&self, uniform: f64) -> u32 {
        let total: f64 = self.list.iter().map(|candidate| f64::from(candidate.weight)).sum();
        let mut left = uniform * total;
        let mut last = 0;
        for candidate in &self.list {
            // What cannot be drawn is not left over either, should rounding pass the end.
            if candidate.weight > 0.0 {
                last = candidate.id;
                left -= f64::from(candidate.weight);
                if left < 0.0 {
                    break;
                }
            }
        }
        last
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<u32> {
        self.list.iter().map(|candidate| candidate.id).collect()
    }

    #[cfg(test)]
    pub(super) fn buffer(&self) -> (*const u8, usize) {
        (self.list.as_ptr().cast(), self.list.capacity())
    }

    fn keep_all(&mut self, logits: &[f32]) {
        let finite = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let candidates = finite.map(|(id, &logit)| Candidate { id: id as u32, logit, weight: 0.0 });
        self.list.extend(candidates);
    }

    /// The `k` largest, sorted. Collects what beats the k-th of those seen so far and cuts the list
    /// back whenever it doubled, so that most logits cost one comparison.
    fn keep_largest(&mut self, k: usize, logits: &[f32]) {
        let cut_at = (k * 2).max(FIRST_SORTED).min(self.list.capacity());
        let mut beat = f32::NEG_INFINITY;
        for (id, &logit) in logits.iter().enumerate() {
            // A later equal one has a higher id and loses anyway; false for NaN.
            if logit > beat {
                if self.list.len() == cut_at {
                    self.cut(k);
                    beat = self.list[k - 1].logit;
                    if logit <= beat {
                        continue;
                    }
                }
                self.list.push(Candidate { id: id as u32, logit, weight: 0.0 });
            }
        }
        self.cut(k);
        self.list.sort_unstable_by(Candidate::order);
    }

    /// Keeps the `k` largest, the smallest of them last.
    fn cut(&mut self, k: usize) {
        if k < self.list.len() {
            self.list.select_nth_unstable_by(k - 1, Candidate::order);
            self.list.truncate(k);
        }
    }

    /// The largest until their weights sum to the share `p`, sorted: selects and sorts a few, then
    /// four times as many, until the sum is reached.
    fn keep_mass(&mut self, p: f32) {
        let total: f64 = self.list.iter().map(|candidate| f64::from(candidate.weight)).sum();
        let wanted = total * f64::from(p);
        let mut sum = 0.0;
        let mut sorted = 0;
        while sorted < self.list.len() {
            let rest = &mut self.list[sorted..];
            let batch = (sorted * 3).max(FIRST_SORTED).min(rest.len());
            if batch < rest.len() {
                rest.select_nth_unstable_by(batch - 1, Candidate::order);
            }
            rest[..batch].sort_unstable_by(Candidate::order);
            for at in sorted..sorted + batch {
                sum += f64::from(self.list[at].weight);
                // A token stays when those before it do not reach the share; the first always does.
                if sum >= wanted {
                    self.list.truncate(at + 1);
                    return;
                }
            }
            sorted += batch;
        }
    }
}
