//! How far a run is, and how long the rest will take.

use std::time::{Duration, Instant};

use gristmill_formats::Progress;

use crate::progress::TerminalProgress;

/// What steps are, as far as their time is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Round,
    RoundWithCalibration,
    Quality,
    Speed,
}

const KINDS: [Kind; 4] = [Kind::Round, Kind::RoundWithCalibration, Kind::Quality, Kind::Speed];

/// The steps of a run.
#[derive(Debug)]
pub(super) struct Pace {
    total: usize,
    done: usize,
    left: [usize; KINDS.len()],
    /// Number and duration of those that were done in this run.
    taken: [(u32, Duration); KINDS.len()],
}

impl Pace {
    /// Of the steps that are to be done.
    pub(super) fn new(steps: impl Iterator<Item = Kind>) -> Self {
        let mut left = [0; KINDS.len()];
        steps.for_each(|kind| left[kind as usize] += 1);
        Self { total: left.iter().sum(), done: 0, left, taken: Default::default() }
    }

    /// Corrects how many steps of a kind are left.
    pub(super) fn expect(&mut self, kind: Kind, count: usize) {
        self.total = self.total - self.left[kind as usize] + count;
        self.left[kind as usize] = count;
    }

    /// Does a step. Its progress says which it is, and how long the rest will take.
    pub(super) fn step<T, E>(
        &mut self,
        kind: Kind,
        what: &str,
        inner: &TerminalProgress,
        work: impl FnOnce(&dyn Progress) -> Result<T, E>,
    ) -> Result<T, E> {
        let remaining = self.remaining().map_or_else(String::new, |(time, whole)| {
            format!(", {} {} left", if whole { "about" } else { "over" }, in_words(time))
        });
        let (number, total) = (self.done + 1, self.total.max(self.done + 1));
        let prefix = format!("[{number}/{total}{remaining}] {what}");
        let start = Instant::now();
        let result = work(&Prefixed { inner, prefix })?;
        self.done += 1;
        self.left[kind as usize] = self.left[kind as usize].saturating_sub(1);
        let (count, time) = &mut self.taken[kind as usize];
        (*count, *time) = (*count + 1, *time + start.elapsed());
        Ok(result)
    }

    /// What the steps that are left will take at the pace so far, and whether that is all of them: of
    /// some kinds none may have been done. `None` when nothing can be said.
    fn remaining(&self) -> Option<(Duration, bool)> {
        let mut time = Duration::ZERO;
        let mut whole = true;
        for (&left, &(count, taken)) in self.left.iter().zip(&self.taken) {
            match (left, count) {
                (0, _) => {}
                (_, 0) => whole = false,
                _ => time += taken / count * u32::try_from(left).unwrap_or(u32::MAX),
            }
        }
        (!time.is_zero()).then_some((time, whole))
    }
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..100 => format!("{seconds} s"),
        seconds @ ..6000 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

/// Says in front of each stage which step it is part of.
struct Prefixed<'a> {
    inner: &'a TerminalProgress,
    prefix: String,
}

impl Progress for Prefixed<'_> {
    fn begin(&self, stage: &str, total: u64, unit: &str) {
        self.inner.begin(&format!("{}: {stage}", self.prefix), total, unit);
    }

    fn advance(&self, units: u64) {
        self.inner.advance(units);
    }

    fn note(&self, message: &str) {
        self.inner.note(message);
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_estimated_by_kind() {
        let steps = [Kind::Round, Kind::Quality, Kind::Quality, Kind::Quality];
        let mut pace = Pace::new(steps.into_iter());
        assert_eq!(pace.remaining(), None);
        pace.left = [1, 0, 2, 0];
        pace.taken[Kind::Quality as usize] = (2, Duration::from_secs(60));
        assert_eq!(pace.remaining(), Some((Duration::from_secs(60), false)));
        pace.taken[Kind::Round as usize] = (1, Duration::from_secs(5));
        assert_eq!(pace.remaining(), Some((Duration::from_secs(65), true)));
    }

    #[test]
    fn a_failed_step_is_not_done() {
        let mut pace = Pace::new([Kind::Speed].into_iter());
        let progress = TerminalProgress::new();
        let failed: Result<(), ()> = pace.step(Kind::Speed, "x", &progress, |_| Err(()));
        assert!(failed.is_err() && pace.done == 0 && pace.left[Kind::Speed as usize] == 1);
        let done: Result<(), ()> = pace.step(Kind::Speed, "x", &progress, |_| Ok(()));
        assert!(done.is_ok() && pace.done == 1 && pace.left[Kind::Speed as usize] == 0);
    }

    #[test]
    fn times_are_said_in_a_unit_that_fits() {
        for (seconds, words) in [(5, "5 s"), (100, "2 min"), (600, "10 min"), (9000, "2.5 h")] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }
}
