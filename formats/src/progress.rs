//! How long jobs tell their caller what they do. Libraries never print.

/// Receives the progress of a long job.
pub trait Progress: Sync {
    /// A stage begins that has `total` units of work (`unit` names one, in the plural).
    fn begin(&self, stage: &str, total: u64, unit: &str);
    /// Some units are done.
    fn advance(&self, units: u64);
    /// Something the user should know, such as a fall-back.
    fn note(&self, message: &str);
    /// Whether the user asked to stop. Jobs poll this between blocks.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
}
