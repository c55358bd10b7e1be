//! Where a measurement was made.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use gristmill_runtime::Isa;
use serde::{Deserialize, Serialize};

use crate::activity::fastest_mhz;
use crate::platform::Platform;

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
    /// The same after it, the measurement's own load included.
    #[serde(default)]
    pub load_average_after: Option<[f64; 3]>,
    /// How the kernel chooses the CPU's clock (`scaling_governor`).
    #[serde(default)]
    pub governor: Option<String>,
    /// Clock of the fastest core before the measurement.
    #[serde(default)]
    pub current_mhz: Option<f64>,
    /// Highest clock that the kernel may choose.
    #[serde(default)]
    pub max_mhz: Option<f64>,
    /// Whether clocks above the nominal one are allowed.
    #[serde(default)]
    pub boost: Option<bool>,
    /// Whether two threads share a core.
    #[serde(default)]
    pub smt: Option<bool>,
    /// The virtual machine or container around this process, as far as it shows; null when nothing does.
    #[serde(default)]
    pub virtualization: Option<String>,
    /// `mains` or `battery`; null without a power supply that tells.
    #[serde(default)]
    pub power_source: Option<String>,
    /// Who gets huge pages unasked (`transparent_hugepage`): `always`, `madvise` or `never`.
    #[serde(default)]
    pub huge_pages: Option<String>,
    /// Version of gristmill.
    pub version: String,
    /// Commit it was built from, where the build stated it.
    pub commit: Option<String>,
    /// Compiler that built it.
    #[serde(default)]
    pub compiler: Option<String>,
    /// Its flags and the optimisation level.
    #[serde(default)]
    pub compiler_flags: Option<String>,
}

impl Host {
    /// Reads what the system tells.
    pub fn detect() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let os = std::env::consts::OS;
        let root = Path::new("/");
        let platform = Platform::read(root);
        Self {
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa_detected: Isa::detect().name().into(),
            arch: std::env::consts::ARCH.into(),
            os: release.map_or_else(|| os.into(), |r| format!("{os} {}", r.trim())),
            memory_bytes: kib_field("/proc/meminfo", "MemTotal:"),
            last_level_cache_bytes: last_level_cache_bytes(),
            load_average: load_average(),
            load_average_after: None,
            governor: platform.governor,
            current_mhz: fastest_mhz(root),
            max_mhz: platform.max_mhz,
            boost: platform.boost,
            smt: platform.smt,
            virtualization: platform.virtualization,
            power_source: platform.power_source,
            huge_pages: platform.huge_pages,
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("GRISTMILL_COMMIT").filter(|c| !c.is_empty()).map(Into::into),
            compiler: option_env!("GRISTMILL_BUILT_BY").map(Into::into),
            compiler_flags: option_env!("GRISTMILL_BUILT_WITH").map(Into::into),
        }
    }

    /// Adds what is known only after a measurement.
    pub(crate) fn finish(&mut self) {
        self.load_average_after = load_average();
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

    /// Settings that change timings, as one line for tables.
    pub(crate) fn settings(&self) -> String {
        let mut parts = Vec::new();
        if let Some(virtualization) = &self.virtualization {
            parts.push(virtualization.clone());
        }
        parts.push(match &self.governor {
            Some(governor) => format!("governor {governor}"),
            None => "no governor to be seen".into(),
        });
        if let Some(mhz) = self.current_mhz {
            let most = self.max_mhz.map_or(String::new(), |most| format!(" of {most:.0}"));
            parts.push(format!("{mhz:.0}{most} MHz"));
        }
        let flag = |on: bool| if on { "on" } else { "off" };
        parts.extend(self.boost.map(|on| format!("boost {}", flag(on))));
        parts.extend(self.smt.map(|on| format!("SMT {}", flag(on))));
        parts.extend(self.power_source.as_ref().map(|source| format!("power from {source}")));
        parts.extend(self.huge_pages.as_ref().map(|pages| format!("huge pages {pages}")));
        if let Some([before, ..]) = self.load_average {
            let after =
                self.load_average_after.map_or(String::new(), |a| format!(", then {:.2}", a[0]));
            parts.push(format!("load {before:.2}{after}"));
        }
        parts.extend(self.compiler.clone());
        parts.join(", ")
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

/// Seconds since 1970.
pub fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn load_average() -> Option<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    let mut fields = text.split_whitespace().map(str::parse);
    let mut next = || fields.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// A field of a `name: value kB` file, in bytes.
pub(crate) fn kib_field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
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
}
