//! When a run got slower and stayed so: a pure function of its rates over time.

use serde::{Deserialize, Serialize};

use crate::stats::median;

/// The length of a run that the times below are meant for; shorter runs have them shorter in proportion.
const FULL_RUN_S: f64 = 600.0;
/// The beginning of a run, whose median rate is the burst.
const BURST_S: f64 = 30.0;
/// Rates are medians over windows of this length, so that a moment's pause is none.
const WINDOW_S: f64 = 10.0;
/// How long the medians must stay low.
const HOLD_S: f64 = 30.0;
/// Neither gets shorter than this, whatever the run: less would take a scheduler's whim for throttling.
const MIN_WINDOW_S: f64 = 2.0;
const MIN_HOLD_S: f64 = 3.0;
/// A run has at least so many windows, or else nothing is ever held for long enough.
const MIN_WINDOWS: f64 = 5.0;
/// Points per window.
const POINTS_PER_WINDOW: f64 = 10.0;
/// Share of the run at its end whose median is the sustained rate, if that is steady.
const LAST_SHARE: f64 = 0.25;
/// The last part is averaged over so many blocks, whose slope is fitted: neighbouring points depend on each
/// other, blocks less.
const BLOCKS: usize = 10;
/// Student's t for 95 % with eight degrees of freedom: ten blocks less slope and level.
const T_95: f64 = 2.306;

/// A rate at a time of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateAt {
    /// Seconds from the start.
    pub t_s: f64,
    /// Tokens per second.
    pub tok_s: f64,
}

/// What counts as throttled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThrottleRule {
    /// The first so many seconds are the burst.
    pub burst_s: f64,
    /// Length of the windows whose medians are taken, centred.
    pub window_s: f64,
    /// How long the medians must stay below.
    pub hold_s: f64,
    /// Share of the burst's rate below which they must be.
    pub below: f64,
}

impl ThrottleRule {
    /// The rule for a run of this length.
    pub fn for_seconds(seconds: f64, below: f64) -> Self {
        let scale = (seconds / FULL_RUN_S).min(1.0);
        let most = seconds / MIN_WINDOWS;
        let hold_s = (HOLD_S * scale).max(MIN_HOLD_S).min(most);
        let window_s = (WINDOW_S * scale).max(MIN_WINDOW_S).min(most);
        Self { burst_s: (BURST_S * scale).max(MIN_HOLD_S).min(most), window_s, hold_s, below }
    }

    /// Time between two points of a trace.
    pub fn point_s(&self) -> f64 {
        self.window_s / POINTS_PER_WINDOW
    }
}

/// What a trace shows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Steadiness {
    /// Median rate of the burst.
    pub burst_tok_s: f64,
    /// Median rate of the last quarter.
    pub last_quarter_tok_s: f64,
    /// How much faster it got per minute in the last quarter, as a share of that median; null for a short
    /// trace.
    pub slope_per_min: Option<f64>,
    /// 95 % interval of the slope.
    pub slope_ci95: Option<[f64; 2]>,
    /// `last_quarter_tok_s` if the interval of the slope contains 0, else null: it was still changing.
    pub sustained_tok_s: Option<f64>,
    /// When the rate fell below the rule's share and stayed there; null when it did not.
    pub throttled_at_s: Option<f64>,
}

impl Steadiness {
    /// Judges a trace, its points in the order of time. `None` without points in the burst and after it.
    pub fn of(trace: &[RateAt], rule: &ThrottleRule) -> Option<Self> {
        let (first, last) = (trace.first()?, trace.last()?);
        let rates = |from: f64, to: f64| -> Vec<f64> {
            let within = trace.iter().filter(|point| point.t_s >= from && point.t_s <= to);
            within.map(|point| point.tok_s).collect()
        };
        let burst = rates(first.t_s, rule.burst_s);
        let quarter_s = last.t_s - LAST_SHARE * last.t_s;
        if burst.is_empty() || quarter_s <= first.t_s {
            return None;
        }
        let burst_tok_s = median(&burst);
        let last_quarter_tok_s = median(&rates(quarter_s, last.t_s));
        let slope = slope(trace, quarter_s, last.t_s);
        let relative = |per_second: f64| per_second * 60.0 / last_quarter_tok_s;
        let slope_ci95 = slope
            .map(|(slope, error)| [relative(slope - T_95 * error), relative(slope + T_95 * error)]);
        let steady = slope_ci95.is_some_and(|[low, high]| low <= 0.0 && 0.0 <= high);
        Some(Self {
            burst_tok_s,
            last_quarter_tok_s,
            slope_per_min: slope.map(|(slope, _)| relative(slope)),
            slope_ci95,
            sustained_tok_s: steady.then_some(last_quarter_tok_s),
            throttled_at_s: throttle_point(trace, rule, burst_tok_s * rule.below),
        })
    }
}

/// The first time from which the medians of windows stay below a limit for long enough. Windows are centred,
/// so that the median falls when the rate does and not half a window later.
fn throttle_point(trace: &[RateAt], rule: &ThrottleRule, limit: f64) -> Option<f64> {
    let half = rule.window_s / 2.0;
    let mut since = None;
    for at in trace {
        let from = trace.partition_point(|point| point.t_s < at.t_s - half);
        let to = trace.partition_point(|point| point.t_s <= at.t_s + half);
        let window: Vec<f64> = trace[from..to].iter().map(|point| point.tok_s).collect();
        if median(&window) < limit {
            let since = *since.get_or_insert(at.t_s);
            if at.t_s - since >= rule.hold_s {
                return Some(since);
            }
        } else {
            since = None;
        }
    }
    None
}

/// Least-squares slope per second over blocks of a part of the trace, with its standard error. `None` when
/// a block is empty.
fn slope(trace: &[RateAt], from: f64, to: f64) -> Option<(f64, f64)> {
    let mut blocks = [(0.0, 0.0, 0usize); BLOCKS];
    for point in trace.iter().filter(|point| point.t_s >= from) {
        let share = (point.t_s - from) / (to - from);
        let block = &mut blocks[((share * BLOCKS as f64) as usize).min(BLOCKS - 1)];
        *block = (block.0 + point.t_s, block.1 + point.tok_s, block.2 + 1);
    }
    if blocks.iter().any(|block| block.2 == 0) {
        return None;
    }
    let points = blocks.map(|(t, rate, count)| (t / count as f64, rate / count as f64));
    let n = BLOCKS as f64;
    let mean_t = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_rate = points.iter().map(|p| p.1).sum::<f64>() / n;
    let spread: f64 = points.iter().map(|p| (p.0 - mean_t).powi(2)).sum();
    let slope = points.iter().map(|p| (p.0 - mean_t) * (p.1 - mean_rate)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|p| (p.1 - mean_rate - slope * (p.0 - mean_t)).powi(2)).sum();
    Some((slope, (rest / (n - 2.0) / spread).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::SplitMix64;

    /// Ten minutes with a point per second, each within 3 % of what `rate` says.
    fn trace(rate: impl Fn(f64) -> f64) -> Vec<RateAt> {
        let mut random = SplitMix64::new(3);
        let mut point = |i: usize| {
            let t_s = i as f64 + 0.5;
            RateAt { t_s, tok_s: rate(t_s) * (1.0 + 0.03 * f64::from(random.symmetric())) }
        };
        (0..600).map(&mut point).collect()
    }

    fn judge(rate: impl Fn(f64) -> f64) -> Steadiness {
        let rule = ThrottleRule::for_seconds(600.0, 0.9);
        Steadiness::of(&trace(rate), &rule).expect("a long trace")
    }

    #[test]
    fn noise_is_not_throttling() {
        let found = judge(|_| 50.0);
        assert_eq!(found.throttled_at_s, None);
        let sustained = found.sustained_tok_s.expect("steady");
        assert!((sustained / found.burst_tok_s - 1.0).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn a_step_is_found_where_it_is() {
        let found = judge(|t| if t < 240.0 { 50.0 } else { 40.0 });
        let at = found.throttled_at_s.expect("throttled");
        assert!((at - 240.0).abs() <= 2.0, "{at}");
        assert!((found.sustained_tok_s.expect("steady") / 40.0 - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_small_step_is_none() {
        assert_eq!(judge(|t| if t < 240.0 { 50.0 } else { 46.5 }).throttled_at_s, None);
    }

    #[test]
    fn a_ramp_is_throttled_where_it_crosses_and_never_steady() {
        // 0.9 of the burst (its middle is at 15 s) is reached at about 134 s.
        let found = judge(|t| 50.0 * (1.0 - t / 1200.0));
        let at = found.throttled_at_s.expect("throttled");
        assert!((at - 134.0).abs() < 20.0, "{at}");
        assert_eq!(found.sustained_tok_s, None);
        let [_, high] = found.slope_ci95.expect("long enough");
        assert!(high < 0.0 && found.slope_per_min.is_some_and(|s| (-0.12..-0.05).contains(&s)));
    }

    #[test]
    fn a_dip_is_not_throttling_and_a_long_one_is() {
        let dip = |from: f64, to: f64| {
            judge(move |t| if t >= from && t < to { 20.0 } else { 50.0 }).throttled_at_s
        };
        assert_eq!(dip(200.0, 204.0), None);
        assert_eq!(dip(200.0, 225.0), None);
        let at = dip(200.0, 240.0).expect("longer than is held");
        assert!((at - 200.0).abs() <= 2.0, "{at}");
    }

    #[test]
    fn what_ends_too_soon_is_not_held() {
        assert_eq!(judge(|t| if t < 580.0 { 50.0 } else { 20.0 }).throttled_at_s, None);
    }

    #[test]
    fn prompts_leave_holes() {
        let rule = ThrottleRule::for_seconds(600.0, 0.9);
        let mut points = trace(|t| if t < 300.0 { 50.0 } else { 25.0 });
        points.retain(|point| point.t_s % 8.0 < 3.0);
        let at = Steadiness::of(&points, &rule).expect("a trace").throttled_at_s;
        assert!(at.is_some_and(|at| (at - 300.0).abs() <= 8.0), "{at:?}");
    }

    #[test]
    fn short_runs_have_short_windows_but_not_too_short() {
        let rule = ThrottleRule::for_seconds(600.0, 0.9);
        assert_eq!((rule.burst_s, rule.window_s, rule.hold_s), (30.0, 10.0, 30.0));
        assert_eq!(rule.point_s(), 1.0);
        assert_eq!(ThrottleRule::for_seconds(3600.0, 0.9), rule);
        let rule = ThrottleRule::for_seconds(20.0, 0.9);
        assert_eq!((rule.burst_s, rule.window_s, rule.hold_s), (3.0, 2.0, 3.0));
        let rule = ThrottleRule::for_seconds(5.0, 0.9);
        assert_eq!((rule.burst_s, rule.window_s, rule.hold_s), (1.0, 1.0, 1.0));
    }

    #[test]
    fn a_trace_that_is_too_short_says_nothing() {
        let rule = ThrottleRule::for_seconds(600.0, 0.9);
        assert_eq!(Steadiness::of(&[], &rule), None);
        assert_eq!(Steadiness::of(&[RateAt { t_s: 0.5, tok_s: 1.0 }], &rule), None);
        let few: Vec<_> = (0..5).map(|i| RateAt { t_s: f64::from(i), tok_s: 9.0 }).collect();
        let found = Steadiness::of(&few, &rule).expect("points");
        assert_eq!((found.sustained_tok_s, found.slope_ci95), (None, None));
    }
}
