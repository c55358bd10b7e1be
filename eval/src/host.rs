//! Where a measurement was made, and what memory the process holds.

use std::fs;

use gristmill_runtime::Isa;
use serde::{Deserialize, Serialize};

/// The machine and the build. Fields that cannot be read are null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The CPU's name.
    pub cpu: Option<String>,
    /// Threads this process may run at once: affinity and control group are honoured.
    pub cores: usize,
    /// Most capable instruction-set class of the CPU.
    pub isa_detected: String,
    /// Processor architecture of the build.
    pub arch: String,
    /// Operating system and kernel release.
    pub os: String,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Size of the last-level cache. In a virtual machine others may share it.
    pub last_level_cache_bytes: Option<u64>,
    /// Load average over 1, 5 and 15 minutes before the measurement.
    pub load_average: Option<[f64; 3]>,
    /// Version of gristmill.
    pub version: String,
    /// Commit it was built from, where the build stated it.
    pub commit: Option<String>,
}

impl Host {
    /// Reads what the system tells.
    pub fn detect() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let os = std::env::consts::OS;
        Self {
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa_detected: Isa::detect().name().into(),
            arch: std::env::consts::ARCH.into(),
            os: release.map_or_else(|| os.into(), |r| format!("{os} {}", r.trim())),
            memory_bytes: kib_field("/proc/meminfo", "MemTotal:"),
            last_level_cache_bytes: last_level_cache_bytes(),
            load_average: load_average(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("GRISTMILL_COMMIT").filter(|c| !c.is_empty()).map(Into::into),
        }
    }

    /// Why timings of this moment are not comparable with others, if they are not: others use the CPU.
    pub(crate) fn busy(&self) -> Option<String> {
        let load = self.load_average?[0];
        let limit = 0.5 * self.cores as f64;
        (load > limit).then(|| {
            format!(
                "the load average was {load:.2} on {} cores at the start (more than {limit:.1}): \
                 these timings are not comparable with others",
                self.cores
            )
        })
    }

    /// Why timings with so many threads are not those of as many cores, if there are fewer.
    pub(crate) fn oversubscribed(&self, threads: usize) -> Option<String> {
        (threads > self.cores).then(|| format!("{threads} threads share {} cores", self.cores))
    }

    /// One line for tables.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}, {} cores, {}, {}; gristmill {}{}",
            self.cpu.as_deref().unwrap_or("unknown CPU"),
            self.cores,
            self.isa_detected,
            self.os,
            self.version,
            self.commit.as_ref().map_or(String::new(), |c| format!(" ({c})")),
        )
    }
}

fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    // x86 says "model name" per CPU; Arm boards, when they say anything, "Model" or "Hardware" once.
    ["model name", "Model", "Hardware"].into_iter().find_map(|key| {
        let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    })
}

fn last_level_cache_bytes() -> Option<u64> {
    caches().map(|(_, bytes)| bytes).max()
}

/// Size of a core's second-level cache.
pub(crate) fn second_level_cache_bytes() -> Option<u64> {
    caches().find(|&(level, _)| level == 2).map(|(_, bytes)| bytes)
}

/// Level and size of the first CPU's caches.
fn caches() -> impl Iterator<Item = (u32, u64)> {
    let entries = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").into_iter().flatten();
    entries.flatten().filter_map(|entry| {
        let read = |name| fs::read_to_string(entry.path().join(name)).ok();
        Some((read("level")?.trim().parse().ok()?, parse_size(read("size")?.trim())?))
    })
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

fn load_average() -> Option<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let mut fields = text.split_whitespace().map(str::parse);
    let mut next = || fields.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// A field of a `name: value kB` file, in bytes.
fn kib_field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Memory of this process. The peaks of the two kinds are the largest of samples taken after each stage
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
    /// Why fields are null.
    pub reason: Option<String>,
}

impl Memory {
    /// Takes a sample and keeps the larger of each figure.
    pub(crate) fn sample(&mut self) {
        let status = |name| kib_field("/proc/self/status", name);
        self.anonymous_peak_bytes = self.anonymous_peak_bytes.max(status("RssAnon:"));
        self.file_peak_bytes = self.file_peak_bytes.max(status("RssFile:"));
        self.resident_peak_bytes = self.resident_peak_bytes.max(peak_memory());
        let missing = self.anonymous_peak_bytes.is_none() || self.resident_peak_bytes.is_none();
        self.reason = missing.then(|| {
            format!("{} does not tell resident memory in /proc/self/status", std::env::consts::OS)
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_parsed() {
        assert_eq!(parse_size("32K"), Some(32 << 10));
        assert_eq!(parse_size("266240K"), Some(260 << 20));
        assert_eq!(parse_size("1M"), Some(1 << 20));
        assert_eq!(parse_size("5"), None);
        assert_eq!(parse_size("x"), None);
    }

    #[test]
    fn a_busy_machine_is_named() {
        let mut host = Host::detect();
        host.cores = 4;
        host.load_average = Some([2.5, 0.0, 0.0]);
        assert!(host.busy().is_some_and(|w| w.contains("2.50")));
        host.load_average = Some([2.0, 9.0, 9.0]);
        assert_eq!(host.busy(), None);
        host.load_average = None;
        assert_eq!(host.busy(), None);
    }

    #[test]
    fn memory_is_sampled_or_explained() {
        let mut memory = Memory::default();
        memory.sample();
        assert_eq!(memory.reason.is_none(), memory.anonymous_peak_bytes.is_some());
        let before = memory.clone();
        memory.sample();
        assert!(memory.anonymous_peak_bytes >= before.anonymous_peak_bytes);
    }
}
