//! Statistics of samples and of paired windows.

/// Resamples of a bootstrap: enough for the 2.5 and 97.5 percentiles to be stable in two digits.
pub(crate) const RESAMPLES: usize = 2000;
/// Seed of every bootstrap, so that a report can be reproduced.
const SEED: u64 = 0x6772_6973_746d_696c;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): small, seedable and good enough to draw indices.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`. The bias of the multiplication is below `n / 2⁶⁴`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in -1..1.
    pub(crate) fn symmetric(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// So many random bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> impl Iterator<Item = u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next_u64().to_le_bytes()).take(count)
    }
}

/// Percentile by nearest rank: the smallest value that at least the share `p` does not exceed.
///
/// # Panics
/// When there are no values.
pub(crate) fn nearest_rank(sorted: &[f64], p: f64) -> f64 {
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Sorts and returns the percentile by nearest rank.
pub(crate) fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    nearest_rank(values, p)
}

/// The middle value, or the mean of the two middle ones.
///
/// # Panics
/// When there are no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    } else {
        sorted[middle]
    }
}

/// Arithmetic mean.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard error of a mean: the deviation with `n - 1` over the square root of `n`. 0 below two values.
pub(crate) fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
    (squares / (n - 1.0) / n).sqrt()
}

/// 95 % interval of the mean of windows, by the percentile bootstrap (Efron and Tibshirani 1993,
/// section 13.3): tokens within a window depend on each other, windows much less, so windows are what
/// is drawn. `None` for fewer than two windows.
pub(crate) fn bootstrap_ci95(windows: &[f64]) -> Option<[f64; 2]> {
    if windows.len() < 2 {
        return None;
    }
    let mut random = SplitMix64::new(SEED);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draws = (0..windows.len()).map(|_| windows[random.below(windows.len())]);
            draws.sum::<f64>() / windows.len() as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    Some([nearest_rank(&means, 0.025), nearest_rank(&means, 0.975)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sorted = [15.0, 20.0, 35.0, 40.0, 50.0];
        for (p, expected) in
            [(0.0, 15.0), (0.05, 15.0), (0.3, 20.0), (0.4, 20.0), (0.5, 35.0), (1.0, 50.0)]
        {
            assert_eq!(nearest_rank(&sorted, p), expected, "{p}");
        }
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 0.99), 3.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn standard_error_of_known_values() {
        // Deviation with n - 1 of 1, 2, 3, 4 is sqrt(5/3).
        let expected = (5.0f64 / 3.0).sqrt() / 2.0;
        assert!((standard_error(&[1.0, 2.0, 3.0, 4.0]) - expected).abs() < 1e-15);
        assert_eq!(standard_error(&[1.0]), 0.0);
    }

    #[test]
    fn bootstrap_covers_the_mean_at_about_its_rate_and_repeats_itself() {
        // Sums of uniform numbers with mean 0: about 95 % of the intervals must contain 0. The
        // percentile interval of 40 values is a little narrow, hence the lower bound.
        let mut random = SplitMix64::new(7);
        let mut normal =
            move || (0..12).map(|_| random.next_u64() as f64 / u64::MAX as f64).sum::<f64>() - 6.0;
        let trials = 400;
        let covered = (0..trials)
            .filter(|_| {
                let windows: Vec<f64> = (0..40).map(|_| normal()).collect();
                let [low, high] = bootstrap_ci95(&windows).expect("enough windows");
                low < 0.0 && 0.0 < high
            })
            .count();
        assert!((360..=396).contains(&covered), "{covered} of {trials}");
        assert_eq!(bootstrap_ci95(&[1.0, 2.0, 5.0]), bootstrap_ci95(&[1.0, 2.0, 5.0]));
        assert_eq!(bootstrap_ci95(&[1.5, 1.5]), Some([1.5, 1.5]));
        assert_eq!(bootstrap_ci95(&[1.0]), None);
    }
}
