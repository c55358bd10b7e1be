//! What memory there is.

use std::fs;

/// Bytes that can be allocated without swapping: the system's estimate, or what a control group leaves
/// if that is less. `None` where neither can be read.
pub fn available_memory_bytes() -> Option<u64> {
    let system = field_kib("/proc/meminfo", "MemAvailable:");
    let limit = read_u64("/sys/fs/cgroup/memory.max");
    let used = read_u64("/sys/fs/cgroup/memory.current");
    let group = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    match (system, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn field_kib(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn read_u64(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
