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
    paired_ci95(windows.len(), |drawn| mean_of(windows, drawn))
}

/// 95 % interval of a statistic of drawn windows, given by their indices. What two models have on a
/// window is drawn together, so that the text's own variation cancels in their difference.
pub(crate) fn paired_ci95(windows: usize, statistic: impl Fn(&[usize]) -> f64) -> Option<[f64; 2]> {
    let mut draws = Draws::new(windows)?;
    Some(percentile_ci95(|| statistic(draws.next())))
}

/// 95 % interval of the difference of two means as if the windows of one had nothing to do with those
/// of the other: what an interval is worth that does not use the pairs.
pub(crate) fn unpaired_ci95(a: &[f64], b: &[f64]) -> Option<[f64; 2]> {
    let (mut of_a, mut of_b) = Draws::independent(a.len(), b.len())?;
    Some(percentile_ci95(|| mean_of(a, of_a.next()) - mean_of(b, of_b.next())))
}

/// Mean of the drawn windows.
pub(crate) fn mean_of(windows: &[f64], drawn: &[usize]) -> f64 {
    drawn.iter().map(|&i| windows[i]).sum::<f64>() / drawn.len() as f64
}

/// Indices of windows, drawn with replacement.
struct Draws {
    random: SplitMix64,
    indices: Vec<usize>,
}

impl Draws {
    /// `None` for fewer than two windows, of which nothing can be said.
    fn new(windows: usize) -> Option<Self> {
        let draws = || Self { random: SplitMix64::new(SEED), indices: vec![0; windows] };
        (windows >= 2).then(draws)
    }

    /// Of two things that have nothing to do with each other.
    fn independent(a: usize, b: usize) -> Option<(Self, Self)> {
        let (a, mut b) = (Self::new(a)?, Self::new(b)?);
        // Another sequence: with the first's draws they would be pairs.
        b.random = SplitMix64::new(!SEED);
        Some((a, b))
    }

    /// As many as there are windows.
    fn next(&mut self) -> &[usize] {
        let count = self.indices.len();
        self.indices.fill_with(|| self.random.below(count));
        &self.indices
    }
}

/// The 2.5 and 97.5 percentiles of resampled values.
fn percentile_ci95(mut resample: impl FnMut() -> f64) -> [f64; 2] {
    let mut values: Vec<f64> = (0..RESAMPLES).map(|_| resample()).collect();
    values.sort_unstable_by(f64::total_cmp);
    [nearest_rank(&values, 0.025), nearest_rank(&values, 0.975)]
}

/// As [`bootstrap_ci95`], of another statistic than the mean.
pub(crate) fn bootstrap_ci95_of(
    values: &[f64],
    statistic: impl Fn(&[f64]) -> f64,
) -> Option<[f64; 2]> {
    paired_ci95(values.len(), |drawn| statistic(&pick(values, drawn)))
}

/// 95 % interval of the ratio of two medians, each drawn from its own runs. `None` for fewer than two runs
/// of either.
pub(crate) fn bootstrap_ratio_ci95(above: &[f64], below: &[f64]) -> Option<[f64; 2]> {
    let (mut a, mut b) = Draws::independent(above.len(), below.len())?;
    Some(percentile_ci95(|| median(&pick(above, a.next())) / median(&pick(below, b.next()))))
}

/// The drawn values.
fn pick(values: &[f64], drawn: &[usize]) -> Vec<f64> {
    drawn.iter().map(|&i| values[i]).collect()
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

    #[test]
    fn pairs_cancel_what_both_share() {
        // Windows that differ by about 1 among themselves, and two models by 0.01 ± 0.001 on each.
        let mut random = SplitMix64::new(11);
        let a: Vec<f64> = (0..50).map(|_| f64::from(random.symmetric())).collect();
        let b: Vec<f64> =
            a.iter().map(|x| x - 0.01 + 0.001 * f64::from(random.symmetric())).collect();
        let paired = paired_ci95(a.len(), |drawn| mean_of(&a, drawn) - mean_of(&b, drawn));
        let ([low, high], [wide_low, wide_high]) =
            (paired.expect("windows"), unpaired_ci95(&a, &b).expect("windows"));
        assert!(0.0095 < low && low < 0.01 && 0.01 < high && high < 0.0105, "{low} {high}");
        assert!(wide_low < -0.1 && 0.1 < wide_high, "{wide_low} {wide_high}");
        assert!(unpaired_ci95(&a, &[1.0]).is_none() && paired_ci95(1, |_| 0.0).is_none());

        // Equal windows vary all the same when they are not pairs.
        let [low, high] = unpaired_ci95(&a, &a).expect("windows");
        assert!(low < -0.1 && 0.1 < high, "{low} {high}");
    }

    #[test]
    fn a_ratio_of_medians_has_an_interval_around_it() {
        let above = [20.0, 21.0, 19.0, 20.5, 20.2];
        let below = [10.0, 10.1, 9.9, 10.2, 9.8];
        let [low, high] = bootstrap_ratio_ci95(&above, &below).expect("enough runs");
        assert!(1.8 < low && low < 2.02 && 2.02 < high && high < 2.2, "{low} {high}");
        assert_eq!(bootstrap_ratio_ci95(&above, &[10.0]), None);
    }
}
