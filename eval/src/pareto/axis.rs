//! Scales and their ticks.

/// How values become lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Equal differences are equal lengths.
    Linear,
    /// Equal ratios are equal lengths.
    Log,
}

/// A range of values along a length, and its ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    /// Pixels of the two ends.
    ends: [f64; 2],
    /// Values that have a line and a label.
    pub(super) ticks: Vec<Tick>,
}

/// A value on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

/// Share of the range that is left free at either end.
const PADDING: f64 = 0.06;
/// Steps of linear ticks, times a power of ten.
const STEPS: [f64; 4] = [1.0, 2.0, 2.5, 5.0];

impl Axis {
    /// An axis that shows all values, with ticks at least `spacing` pixels apart. On a logarithmic one
    /// values that are not above 0 have no place.
    pub(super) fn new(
        scale: Scale,
        values: impl Iterator<Item = f64>,
        ends: [f64; 2],
        spacing: f64,
    ) -> Self {
        let usable = |v: &f64| v.is_finite() && (scale == Scale::Linear || *v > 0.0);
        let (mut low, mut high) = values
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (low, high) = (1.0, 2.0);
        }
        let (from, to) = (scale.of(low), scale.of(high));
        // A single value stands in the middle of something.
        let spread = if to > from { to - from } else { from.abs().max(1.0) * 0.2 };
        let (from, to) = (from - PADDING * spread, to + PADDING * spread);
        // Nothing that is shown can be negative.
        let from = if scale == Scale::Linear && low >= 0.0 { from.max(0.0) } else { from };
        (low, high) = (scale.inverse(from), scale.inverse(to));
        let mut axis = Self { scale, low, high, ends, ticks: Vec::new() };
        axis.ticks = axis.choose_ticks(spacing);
        axis
    }

    /// The pixel of a value; `None` when it is not on the axis.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        (value >= self.low && value <= self.high).then(|| self.pixel(value))
    }

    /// The pixel of a value, or that of the end beyond which it lies.
    pub(super) fn clamped(&self, value: f64) -> f64 {
        self.pixel(value.clamp(self.low, self.high))
    }

    fn pixel(&self, value: f64) -> f64 {
        let (from, to) = (self.scale.of(self.low), self.scale.of(self.high));
        let share = (self.scale.of(value) - from) / (to - from);
        self.ends[0] + share * (self.ends[1] - self.ends[0])
    }

    fn choose_ticks(&self, spacing: f64) -> Vec<Tick> {
        let room = ((self.ends[1] - self.ends[0]).abs() / spacing).max(2.0);
        let decades = (self.high / self.low).log10();
        if self.scale == Scale::Log && decades > 1.0 {
            // Every 1, 2 and 5 where there is room, else fewer, else not every power of ten.
            let sets: [&[f64]; 3] = [&[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
            let fits = |set: &&&[f64]| set.len() as f64 * decades <= room;
            let set = sets.iter().find(fits).unwrap_or(&sets[2]);
            let every = (decades / room).ceil() as usize;
            let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            return self.ticks_at(
                powers
                    .step_by(every)
                    .flat_map(|power| set.iter().map(move |m| m * 10f64.powi(power))),
            );
        }
        let step = nice_step((self.high - self.low) / room);
        let first = (self.low / step).ceil();
        let count = ((self.high - self.low) / step) as usize + 1;
        let mut ticks = self.ticks_at((0..=count).map(|i| (first + i as f64) * step));
        if self.scale == Scale::Log {
            // Equal steps crowd towards the upper end.
            let mut last = f64::NEG_INFINITY;
            ticks.retain(|tick| {
                let at = (self.pixel(tick.value) - self.ends[0]).abs();
                let keep = at - last >= spacing;
                last = if keep { at } else { last };
                keep
            });
        }
        ticks
    }

    fn ticks_at(&self, values: impl Iterator<Item = f64>) -> Vec<Tick> {
        values
            .filter(|value| self.place(*value).is_some())
            .map(|value| Tick { value, label: label(value) })
            .collect()
    }
}

impl Scale {
    fn of(self, value: f64) -> f64 {
        if self == Self::Log { value.log10() } else { value }
    }

    fn inverse(self, value: f64) -> f64 {
        if self == Self::Log { 10f64.powf(value) } else { value }
    }
}

/// The smallest step of a kind that people count in that is not below this.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let step = STEPS.into_iter().map(|s| s * power).find(|&s| s >= least * (1.0 - 1e-9));
    step.unwrap_or(10.0 * power)
}

/// A tick's value without digits that say nothing.
fn label(value: f64) -> String {
    // Ticks have few digits; what lies beyond is the error of a sum.
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if value != 0.0 && text.trim_matches(['-', '0', '.']).is_empty() {
        return format!("{value:.0e}");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_inside() {
        let axis = Axis::new(Scale::Linear, [41.0, 139.5].into_iter(), [0.0, 600.0], 80.0);
        assert_eq!(labels(&axis), ["40", "60", "80", "100", "120", "140"]);
        assert!(axis.place(41.0).is_some_and(|x| x > 0.0 && x < 60.0));
        assert_eq!(axis.place(200.0), None);
        assert_eq!(axis.clamped(200.0), 600.0);
        let axis = Axis::new(Scale::Linear, [0.0, 1.0].into_iter(), [0.0, 300.0], 100.0);
        assert_eq!(labels(&axis), ["0", "0.5", "1"]);
    }

    #[test]
    fn log_ticks_thin_out_over_many_decades() {
        let axis = Axis::new(Scale::Log, [0.0002, 1.2].into_iter(), [300.0, 0.0], 40.0);
        assert_eq!(labels(&axis), ["0.001", "0.01", "0.1", "1"]);
        let axis = Axis::new(Scale::Log, [0.0002, 1.2].into_iter(), [600.0, 0.0], 40.0);
        assert!(labels(&axis).starts_with(&["0.0002", "0.0005", "0.001"]), "{axis:?}");
        // Upwards on the page is a smaller pixel.
        assert!(axis.place(1.0) < axis.place(0.001));
    }

    #[test]
    fn log_ticks_within_a_decade_are_round_and_apart() {
        let axis = Axis::new(Scale::Log, [23.5, 82.8].into_iter(), [300.0, 0.0], 30.0);
        let pixels: Vec<f64> =
            axis.ticks.iter().map(|t| axis.place(t.value).expect("on the axis")).collect();
        assert!(pixels.windows(2).all(|pair| pair[0] - pair[1] >= 30.0), "{axis:?}");
        assert!(axis.ticks.len() >= 4, "{axis:?}");
        assert!(axis.ticks.iter().all(|t| t.value % 5.0 == 0.0), "{axis:?}");
    }

    #[test]
    fn odd_values_do_no_harm() {
        for scale in [Scale::Linear, Scale::Log] {
            for values in [&[][..], &[5.0], &[f64::NAN, 3.0], &[0.0, -1.0], &[0.0], &[1e-9, 1e9]] {
                let axis = Axis::new(scale, values.iter().copied(), [0.0, 300.0], 40.0);
                assert!(axis.ticks.len() < 20, "{scale:?} {values:?} {axis:?}");
                let pixels = axis.ticks.iter().map(|t| axis.place(t.value));
                assert!(pixels.flatten().all(|x| (0.0..=300.0).contains(&x)), "{axis:?}");
            }
        }
        let axis = Axis::new(Scale::Log, [0.0, 1.0, 10.0].into_iter(), [0.0, 300.0], 40.0);
        assert_eq!(axis.place(0.0), None);
    }

    #[test]
    fn labels_have_no_idle_digits() {
        for (value, text) in
            [(0.1 + 0.2, "0.3"), (2.5, "2.5"), (100.0, "100"), (0.0, "0"), (2e-7, "2e-7")]
        {
            assert_eq!(label(value), text);
        }
    }
}
