//! A figure that was measured several times.

use serde::{Deserialize, Serialize};

use crate::stats::{bootstrap_ci95_of, median};

/// Least number of runs for an interval: the bootstrap draws nothing beyond what was seen, and the range
/// of fewer than five values contains the true median too rarely (15 in 16 times for five).
pub const MIN_RUNS: usize = 5;

/// Median of a figure over runs, with its interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median over the runs.
    pub median: f64,
    /// 95 % interval of the median by bootstrap over runs; null for fewer than [`MIN_RUNS`].
    pub ci95: Option<[f64; 2]>,
    /// The value of each run, in order.
    pub by_run: Vec<f64>,
}

impl Spread {
    /// `None` without values.
    pub fn of(by_run: Vec<f64>) -> Option<Self> {
        if by_run.is_empty() {
            return None;
        }
        let ci95 = (by_run.len() >= MIN_RUNS).then(|| bootstrap_ci95_of(&by_run, median)).flatten();
        Some(Self { median: median(&by_run), ci95, by_run })
    }
}

/// What a ratio of two speeds says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is above 1.
    Faster,
    /// The whole interval is below 1.
    Slower,
    /// The interval contains 1, or there were too few runs for one.
    NotDistinguishable,
    /// Circumstances differed or were disturbed: the ratio says nothing about the models.
    NotComparable,
}

impl Verdict {
    /// Of a ratio of rates (more is faster) with its interval.
    pub fn of(ci95: Option<[f64; 2]>) -> Self {
        match ci95 {
            Some([low, _]) if low > 1.0 => Self::Faster,
            Some([_, high]) if high < 1.0 => Self::Slower,
            _ => Self::NotDistinguishable,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NotDistinguishable => "not distinguishable",
            Self::NotComparable => "not comparable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_needs_runs() {
        assert_eq!(Spread::of(vec![]), None);
        let few = Spread::of(vec![3.0, 1.0, 2.0, 4.0]).expect("values");
        assert_eq!((few.median, few.ci95), (2.5, None));
        let enough = Spread::of(vec![5.0, 1.0, 2.0, 3.0, 4.0]).expect("values");
        let [low, high] = enough.ci95.expect("five runs");
        assert!(low < 3.0 && 3.0 < high && (1.0..=5.0).contains(&low), "{low} {high}");
    }

    #[test]
    fn a_verdict_follows_the_interval() {
        assert_eq!(Verdict::of(Some([1.01, 1.2])), Verdict::Faster);
        assert_eq!(Verdict::of(Some([0.8, 0.99])), Verdict::Slower);
        assert_eq!(Verdict::of(Some([0.9, 1.1])), Verdict::NotDistinguishable);
        assert_eq!(Verdict::of(None), Verdict::NotDistinguishable);
        let json = serde_json::to_value(Verdict::NotDistinguishable).expect("a word");
        assert_eq!(json, "not_distinguishable");
    }
}
