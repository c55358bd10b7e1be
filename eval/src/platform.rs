//! Settings of the machine that change timings.

use std::fs;
use std::path::Path;

/// What the system tells of itself below a root directory; null where it does not.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Platform {
    pub(crate) governor: Option<String>,
    pub(crate) max_mhz: Option<f64>,
    pub(crate) boost: Option<bool>,
    pub(crate) smt: Option<bool>,
    pub(crate) virtualization: Option<String>,
    pub(crate) power_source: Option<String>,
    pub(crate) huge_pages: Option<String>,
}

impl Platform {
    /// Reads `/proc` and `/sys` below `root`.
    pub(crate) fn read(root: &Path) -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(root.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let cpu = |name: &str| read(&format!("sys/devices/system/cpu/{name}"));
        let max_khz = cpu("cpu0/cpufreq/scaling_max_freq").and_then(|khz| khz.parse::<f64>().ok());
        // Intel's driver says that there is no boost, others that there is.
        let no_turbo = cpu("intel_pstate/no_turbo").map(|flag| flag == "0");
        Self {
            governor: cpu("cpu0/cpufreq/scaling_governor"),
            max_mhz: max_khz.map(|khz| khz / 1e3),
            boost: no_turbo.or_else(|| cpu("cpufreq/boost").map(|flag| flag == "1")),
            smt: cpu("smt/active").map(|flag| flag == "1"),
            virtualization: virtualization(root, &read),
            power_source: power_source(root),
            huge_pages: read("sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| {
                let (_, rest) = text.split_once('[')?;
                Some(rest.split_once(']')?.0.to_owned())
            }),
        }
    }
}

/// The hypervisor or the container, both if there are both.
fn virtualization(root: &Path, read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let mut layers = Vec::new();
    let flagged = read("proc/cpuinfo").is_some_and(|text| {
        let flags = text.lines().find(|line| line.starts_with("flags"));
        flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
    });
    let vendor = || read("sys/class/dmi/id/sys_vendor");
    match read("sys/hypervisor/type") {
        Some(kind) => layers.push(kind),
        None if flagged => {
            layers.push(
                vendor()
                    .map_or_else(|| "virtual machine".into(), |v| format!("virtual machine ({v})")),
            );
        }
        None => {}
    }
    for (file, name) in [(".dockerenv", "docker"), ("run/.containerenv", "podman")] {
        if root.join(file).exists() {
            layers.push(format!("container ({name})"));
        }
    }
    (!layers.is_empty()).then(|| layers.join(", "))
}

/// Mains when any supply is online; battery when one discharges.
fn power_source(root: &Path) -> Option<String> {
    let supplies = fs::read_dir(root.join("sys/class/power_supply")).ok()?.flatten();
    let mut discharging = false;
    for supply in supplies {
        let read = |name| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        let kind = read("type");
        if matches!(kind.trim(), "Mains" | "USB") && read("online").trim() == "1" {
            return Some("mains".into());
        }
        discharging |= kind.trim() == "Battery" && read("status").trim() == "Discharging";
    }
    discharging.then(|| "battery".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree;

    #[test]
    fn a_laptop_on_battery_tells_its_settings() {
        let root = tree(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "4700000\n"),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "1\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/class/power_supply/AC/type", "Mains\n"),
            ("sys/class/power_supply/AC/online", "0\n"),
            ("sys/class/power_supply/BAT0/type", "Battery\n"),
            ("sys/class/power_supply/BAT0/status", "Discharging\n"),
            ("proc/cpuinfo", "processor: 0\nflags : fpu sse\n"),
        ]);
        let platform = Platform::read(root.path());
        assert_eq!(
            platform,
            Platform {
                governor: Some("powersave".into()),
                max_mhz: Some(4700.0),
                boost: Some(false),
                smt: Some(true),
                virtualization: None,
                power_source: Some("battery".into()),
                huge_pages: Some("madvise".into()),
            }
        );
    }

    #[test]
    fn a_container_in_a_virtual_machine_tells_both() {
        let root = tree(&[
            ("proc/cpuinfo", "flags : fpu hypervisor sse\n"),
            ("sys/class/dmi/id/sys_vendor", "QEMU\n"),
            (".dockerenv", ""),
            ("sys/devices/system/cpu/cpufreq/boost", "1\n"),
        ]);
        let platform = Platform::read(root.path());
        let expected = "virtual machine (QEMU), container (docker)";
        assert_eq!(platform.virtualization.as_deref(), Some(expected));
        assert_eq!(platform.boost, Some(true));
    }

    #[test]
    fn an_empty_system_tells_nothing() {
        let root = tree(&[]);
        assert_eq!(Platform::read(root.path()), Platform::default());
    }
}
