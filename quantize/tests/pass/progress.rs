//! Watching a pass, and stopping it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use gristmill_formats::Progress;

/// Counts what is done and cancels when it is enough.
#[derive(Debug)]
pub(crate) struct CancelAfter {
    units: AtomicU64,
    calls: AtomicU64,
    most_units: u64,
    most_calls: u64,
    stages: Mutex<Vec<String>>,
    notes: Mutex<Vec<String>>,
}

impl CancelAfter {
    fn new(most_units: u64, most_calls: u64) -> Self {
        Self {
            units: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            most_units,
            most_calls,
            stages: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// Cancels once so many units are done.
    pub(crate) fn units(most: u64) -> Self {
        Self::new(most, u64::MAX)
    }

    /// Cancels once progress was made so many times.
    pub(crate) fn calls(most: u64) -> Self {
        Self::new(u64::MAX, most)
    }

    /// Never cancels.
    pub(crate) fn never() -> Self {
        Self::new(u64::MAX, u64::MAX)
    }

    pub(crate) fn units_done(&self) -> u64 {
        self.units.load(Ordering::Relaxed)
    }

    pub(crate) fn calls_done(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The last stage that began.
    pub(crate) fn stage(&self) -> String {
        self.stages.lock().expect("no panic").last().cloned().unwrap_or_default()
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().expect("no panic").clone()
    }
}

impl Progress for CancelAfter {
    fn begin(&self, stage: &str, _: u64, _: &str) {
        self.stages.lock().expect("no panic").push(stage.into());
    }

    fn advance(&self, units: u64) {
        self.units.fetch_add(units, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, message: &str) {
        self.notes.lock().expect("no panic").push(message.into());
    }

    fn cancelled(&self) -> bool {
        self.units_done() >= self.most_units || self.calls_done() >= self.most_calls
    }
}
