//! What was scored, and the statistics of it.

use super::divergence::TokenComparison;
use super::protocol::QualityConfig;
use super::report::{Difference, Divergence, Estimate, PositionQuality, Ratio, WindowQuality};
use crate::stats::{
    bootstrap_ci95, mean, mean_of, nearest_rank, paired_ci95, standard_error, unpaired_ci95,
};

/// All that was scored.
#[derive(Debug, Default)]
pub(super) struct Tally {
    tokens: Vec<TokenComparison>,
    /// Tokens of each window; the same for all.
    window: usize,
}

impl Tally {
    pub(super) fn add(&mut self, window: Vec<TokenComparison>) {
        self.window = window.len();
        self.tokens.extend(window);
    }

    /// Tokens scored.
    pub(super) fn count(&self) -> u64 {
        self.tokens.len() as u64
    }

    /// Means of a figure over each window.
    pub(super) fn by_window(&self, figure: impl Fn(&TokenComparison) -> f64) -> Vec<f64> {
        let windows = self.tokens.chunks(self.window);
        windows.map(|w| w.iter().map(&figure).sum::<f64>() / w.len() as f64).collect()
    }

    /// `exp` of the mean loss. Its standard error is that of the mean loss times the perplexity: the
    /// first term of the exponential's expansion.
    pub(super) fn perplexity(&self, nll: impl Fn(&TokenComparison) -> f64) -> Estimate {
        let tokens: Vec<f64> = self.tokens.iter().map(&nll).collect();
        let value = mean(&tokens).exp();
        let ci95 = bootstrap_ci95(&self.by_window(nll)).map(|ci95| ci95.map(f64::exp));
        Estimate { value, stderr: value * standard_error(&tokens), ci95 }
    }

    pub(super) fn divergence(&self) -> Divergence {
        let windows = self.by_window(|t| t.kld);
        let mut sorted: Vec<f64> = self.tokens.iter().map(|t| t.kld).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Divergence {
            mean: mean(&windows),
            ci95: bootstrap_ci95(&windows),
            median: nearest_rank(&sorted, 0.5),
            p90: nearest_rank(&sorted, 0.9),
            p99: nearest_rank(&sorted, 0.99),
            p999: nearest_rank(&sorted, 0.999),
            max: nearest_rank(&sorted, 1.0),
        }
    }

    /// Perplexity over the reference's.
    pub(super) fn ratio(&self) -> Ratio {
        Ratio::of(&self.by_window(|t| t.nll), &self.by_window(|t| t.reference_nll))
    }

    /// Perplexity less the reference's.
    pub(super) fn difference(&self) -> Difference {
        let (nll, reference) = (self.by_window(|t| t.nll), self.by_window(|t| t.reference_nll));
        let of = |drawn: &[usize]| mean_of(&nll, drawn).exp() - mean_of(&reference, drawn).exp();
        Difference {
            value: mean(&nll).exp() - mean(&reference).exp(),
            ci95: paired_ci95(nll.len(), of),
        }
    }

    /// Share of tokens at which both find the same token likeliest, and its interval.
    pub(super) fn same_top1(&self) -> (f64, Option<[f64; 2]>) {
        let windows = self.by_window(|t| f64::from(u8::from(t.same_top1)));
        (mean(&windows), bootstrap_ci95(&windows))
    }

    /// Root mean square of the difference of probabilities, and its interval.
    pub(super) fn delta_p_rms(&self) -> (f64, Option<[f64; 2]>) {
        let windows = self.by_window(|t| t.delta_p * t.delta_p);
        (mean(&windows).sqrt(), bootstrap_ci95(&windows).map(|ci95| ci95.map(f64::sqrt)))
    }

    pub(super) fn per_window(&self, paired: bool) -> Vec<WindowQuality> {
        let nll = self.by_window(|t| t.nll);
        let reference = self.by_window(|t| t.reference_nll);
        let kld = self.by_window(|t| t.kld);
        (0..nll.len())
            .map(|w| WindowQuality {
                nll: nll[w],
                reference_nll: paired.then_some(reference[w]),
                kld: paired.then_some(kld[w]),
            })
            .collect()
    }

    /// Means by position.
    pub(super) fn by_position(&self, config: &QualityConfig, paired: bool) -> Vec<PositionQuality> {
        let first = config.scored_positions().start;
        let bins = config.position_bins().into_iter();
        let bin = |positions: std::ops::Range<usize>| {
            let part = positions.start - first..positions.end - first;
            let windows: Vec<_> =
                self.tokens.chunks(self.window).map(|w| &w[part.clone()]).collect();
            let by_window = |figure: fn(&TokenComparison) -> f64| -> Vec<f64> {
                let mean =
                    |w: &&[TokenComparison]| w.iter().map(figure).sum::<f64>() / w.len() as f64;
                windows.iter().map(mean).collect()
            };
            let kld = by_window(|t| t.kld);
            PositionQuality {
                from: positions.start,
                to: positions.end,
                tokens: (part.len() * windows.len()) as u64,
                nll: mean(&by_window(|t| t.nll)),
                reference_nll: paired.then(|| mean(&by_window(|t| t.reference_nll))),
                kld: paired.then(|| mean(&kld)),
                kld_ci95: if paired { bootstrap_ci95(&kld) } else { None },
                same_top1: paired.then(|| mean(&by_window(|t| f64::from(u8::from(t.same_top1))))),
            }
        };
        bins.map(bin).collect()
    }
}

impl Ratio {
    /// Of two models' perplexities, given the mean losses of the same windows: the exponential of the
    /// mean difference of the losses.
    pub(super) fn of(nll: &[f64], other: &[f64]) -> Self {
        let exp = |ci95: [f64; 2]| ci95.map(f64::exp);
        let differences: Vec<f64> = nll.iter().zip(other).map(|(a, b)| a - b).collect();
        let ci95 = bootstrap_ci95(&differences).map(exp);
        let unpaired_ci95 = unpaired_ci95(nll, other).map(exp);
        let width = |[low, high]: [f64; 2]| high - low;
        let times_tighter = ci95.zip(unpaired_ci95).and_then(|(paired, unpaired)| {
            (width(paired) > 0.0).then(|| width(unpaired) / width(paired))
        });
        Self { value: mean(&differences).exp(), ci95, unpaired_ci95, times_tighter }
    }
}
