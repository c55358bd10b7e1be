//! What memory the process holds.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control_group::ControlGroup;
use crate::host::kib_field;

/// Memory of this process. The peaks of the kinds are the largest of samples taken after each stage
/// (the engine allocates everything when it is built, so nothing is missed between them).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Private memory: caches, buffers, tokenizer. This much must be free.
    pub anonymous_peak_bytes: Option<u64>,
    /// Resident pages of mapped files: weights and the program. The system can drop and reread them.
    pub file_peak_bytes: Option<u64>,
    /// Largest resident size of all kinds together, as the kernel recorded it.
    pub resident_peak_bytes: Option<u64>,
    /// Whether the kernel's record was reset before the measurement; if not, it may be of earlier work.
    pub resident_peak_was_reset: bool,
    /// What the system cannot take back: anonymous memory, and pages of files that are locked into memory.
    #[serde(default)]
    pub must_have_bytes: Option<u64>,
    /// Of these, locked.
    #[serde(default)]
    pub locked_bytes: Option<u64>,
    /// What it can drop and read again: pages of files that are not locked.
    #[serde(default)]
    pub mapped_bytes: Option<u64>,
    /// Pages that had to be fetched from storage while memory was sampled.
    #[serde(default)]
    pub major_faults: Option<u64>,
    /// Limit of the control group; null when there is none.
    #[serde(default)]
    pub cgroup_limit_bytes: Option<u64>,
    /// Most memory that the control group ever held, file cache and other processes in it included; null
    /// without a limit.
    #[serde(default)]
    pub cgroup_peak_bytes: Option<u64>,
    /// Why fields are null.
    pub reason: Option<String>,
}

impl Memory {
    /// Begins a measurement.
    pub(crate) fn begin() -> Self {
        Self {
            resident_peak_was_reset: reset_peak_memory(),
            // Replaced by the difference at the end.
            major_faults: major_faults(),
            ..Self::default()
        }
    }

    /// Takes a sample and keeps the larger of each figure.
    pub(crate) fn sample(&mut self) {
        let status = |name| kib_field("/proc/self/status", name);
        let locked = status("VmLck:").max(status("VmPin:"));
        let (anonymous, file) = (status("RssAnon:"), status("RssFile:"));
        self.anonymous_peak_bytes = self.anonymous_peak_bytes.max(anonymous);
        self.file_peak_bytes = self.file_peak_bytes.max(file);
        self.locked_bytes = self.locked_bytes.max(locked);
        // Locking anonymous memory adds nothing to it: only what exceeds it can be pages of files.
        let locked_file = |anonymous| locked.unwrap_or(0).saturating_sub(anonymous);
        self.must_have_bytes =
            self.must_have_bytes.max(anonymous.map(|a| a.saturating_add(locked_file(a))));
        let mapped = file.zip(anonymous).map(|(f, a)| f.saturating_sub(locked_file(a)));
        self.mapped_bytes = self.mapped_bytes.max(mapped);
        self.resident_peak_bytes = self.resident_peak_bytes.max(peak_memory());
        let missing = self.anonymous_peak_bytes.is_none() || self.resident_peak_bytes.is_none();
        self.reason = missing.then(|| {
            format!("{} does not tell resident memory in /proc/self/status", std::env::consts::OS)
        });
    }

    /// Ends the measurement.
    pub(crate) fn end(&mut self) {
        let before = self.major_faults;
        self.major_faults = major_faults().zip(before).map(|(now, then)| now.saturating_sub(then));
        let group = ControlGroup::of_this_process(Path::new("/"), "memory");
        self.cgroup_limit_bytes = group.as_ref().and_then(ControlGroup::memory_limit_bytes);
        let capped = group.filter(|_| self.cgroup_limit_bytes.is_some());
        self.cgroup_peak_bytes = capped.and_then(|group| group.memory_peak_bytes());
    }
}

/// Largest resident size of this process, mapped files included, in bytes; `None` where the system does
/// not tell. See [`reset_peak_memory`].
pub fn peak_memory() -> Option<u64> {
    kib_field("/proc/self/status", "VmHWM:")
}

/// Asks the kernel to forget the process's largest resident size; whether it did.
pub fn reset_peak_memory() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Pages that this process had to wait for storage for, so far.
pub fn major_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // Field 12; the program's name before it may hold blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(9)?.parse().ok()
}

/// Bytes that this process had fetched from storage so far, file cache misses of mapped files included.
pub fn storage_read_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/io").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_sampled_or_explained() {
        let mut memory = Memory::begin();
        memory.sample();
        assert_eq!(memory.reason.is_none(), memory.anonymous_peak_bytes.is_some());
        let before = memory.clone();
        memory.sample();
        assert!(memory.anonymous_peak_bytes >= before.anonymous_peak_bytes);
        memory.end();
        // Nothing is locked here.
        assert_eq!(memory.must_have_bytes, memory.anonymous_peak_bytes);
        assert!(memory.cgroup_peak_bytes.is_none() || memory.cgroup_limit_bytes.is_some());
    }
}
