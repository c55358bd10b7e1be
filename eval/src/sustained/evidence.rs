//! What the system tells of its clocks, heat and quotas while a run gets slower.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::activity::{CpuTimes, fastest_mhz};
use crate::control_group::{ControlGroup, CpuThrottling};
use crate::stats::median;

/// A clock below this share of what it was explains a lower rate.
const LOWER_CLOCK: f64 = 0.95;
/// Cores that others, or share of time that other machines, must take more than before.
const MORE_OTHERS: f64 = 0.1;
const MORE_STEAL: f64 = 0.01;
/// Share of the CPU time that the process had before, below which it was held up.
const LESS_OWN: f64 = 0.9;

/// The system's counters and gauges at one moment. What it does not tell is `None`.
#[derive(Debug, Clone)]
pub(super) struct Readings {
    at: Instant,
    cpu: CpuTimes,
    pub(super) mhz: Option<f64>,
    pub(super) celsius: Option<f64>,
    thermal_events: Option<u64>,
    group: Option<(ControlGroup, CpuThrottling)>,
}

impl Readings {
    /// Reads them below `root`, which is `/` but in tests.
    pub(super) fn now(root: &Path) -> Self {
        // Looked up anew each time: a process can be moved.
        let group = ControlGroup::of_this_process(root, "cpu");
        Self {
            at: Instant::now(),
            cpu: CpuTimes::now(root),
            mhz: fastest_mhz(root),
            celsius: hottest_zone(root),
            thermal_events: thermal_events(root),
            group: group.and_then(|group| {
                let throttling = group.cpu_throttling()?;
                Some((group, throttling))
            }),
        }
    }

    /// Periods in which the quota of the group held processes back, since the group was made.
    pub(super) fn throttled_periods(&self) -> Option<u64> {
        self.group.as_ref().map(|(_, throttling)| throttling.periods)
    }
}

/// A part of a run, as the system's counters show it. Null where it does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Cores that this process had, on average.
    pub own_cores: Option<f64>,
    /// Cores that other processes kept busy.
    pub others_cores: Option<f64>,
    /// Share of the machine's time that the hypervisor gave to other machines.
    pub steal_share: Option<f64>,
    /// Clock of the fastest core, median.
    pub mhz: Option<f64>,
    /// Temperature of the hottest zone, highest.
    pub celsius: Option<f64>,
    /// Times that the CPU lowered its clock because of heat.
    pub thermal_events: Option<u64>,
    /// What the quota of the control group did.
    pub cgroup: Option<CpuThrottling>,
}

impl Phase {
    /// Between the first of some readings and the last.
    pub(super) fn of(readings: &[Readings]) -> Self {
        let [first, .., last] = readings else { return Self::default() };
        let seconds = (last.at - first.at).as_secs_f64();
        let gauge = |value: &dyn Fn(&Readings) -> Option<f64>| -> Vec<f64> {
            readings.iter().filter_map(value).collect()
        };
        let clocks = gauge(&|r| r.mhz);
        let cgroup = first.group.as_ref().zip(last.group.as_ref()).and_then(|(first, last)| {
            // Counters of two groups have nothing to do with each other.
            (first.0 == last.0).then(|| CpuThrottling {
                periods: last.1.periods.saturating_sub(first.1.periods),
                throttled_us: last.1.throttled_us.saturating_sub(first.1.throttled_us),
            })
        });
        let events = first.thermal_events.zip(last.thermal_events);
        Self {
            own_cores: last.cpu.own_seconds_since(&first.cpu).map(|own| own / seconds),
            others_cores: last.cpu.others_seconds_since(&first.cpu).map(|others| others / seconds),
            steal_share: last.cpu.steal_share_since(&first.cpu),
            mhz: (!clocks.is_empty()).then(|| median(&clocks)),
            celsius: gauge(&|r| r.celsius).into_iter().reduce(f64::max),
            thermal_events: events.map(|(before, after)| after.saturating_sub(before)),
            cgroup,
        }
    }
}

/// What explains that a run was slower in one phase than in an earlier one, as far as counters show.
pub(super) fn causes(before: &Phase, after: &Phase) -> Vec<String> {
    let mut causes = Vec::new();
    if let Some(quota) = after.cgroup.filter(|quota| quota.periods > 0) {
        causes.push(format!(
            "the control group's CPU quota held the process back in {} periods, {:.1} s in all",
            quota.periods,
            quota.throttled_us as f64 / 1e6
        ));
    }
    if let Some(events) = after.thermal_events.filter(|&events| events > 0) {
        causes.push(format!("the CPU lowered its clock {events} times because of heat"));
    }
    if let Some((high, low)) = before.mhz.zip(after.mhz)
        && low < high * LOWER_CLOCK
    {
        causes.push(format!("the clock fell from {high:.0} to {low:.0} MHz"));
    }
    if let Some((then, now)) = before.steal_share.zip(after.steal_share)
        && now > then + MORE_STEAL
    {
        causes.push(format!(
            "the hypervisor gave {:.1} % of the time to other machines, {:.1} % before",
            now * 100.0,
            then * 100.0
        ));
    }
    if let Some((then, now)) = before.others_cores.zip(after.others_cores)
        && now > then + MORE_OTHERS
    {
        causes.push(format!("other processes kept {now:.2} cores busy, {then:.2} before"));
    }
    if let Some((then, now)) = before.own_cores.zip(after.own_cores)
        && now < then * LESS_OWN
    {
        causes.push(format!("the process had {now:.2} cores, {then:.2} before"));
    }
    causes
}

/// Of all thermal zones, in degrees.
fn hottest_zone(root: &Path) -> Option<f64> {
    let zones = fs::read_dir(root.join("sys/class/thermal")).ok()?.flatten();
    let millidegrees = zones.filter_map(|zone| {
        let text = fs::read_to_string(zone.path().join("temp")).ok()?;
        text.trim().parse::<f64>().ok()
    });
    millidegrees.reduce(f64::max).map(|millidegrees| millidegrees / 1e3)
}

/// Of all cores and packages, since the machine was started.
fn thermal_events(root: &Path) -> Option<u64> {
    let cpus = fs::read_dir(root.join("sys/devices/system/cpu")).ok()?.flatten();
    let counts = cpus.flat_map(|cpu| {
        ["core_throttle_count", "package_throttle_count"].map(|name| {
            let text = fs::read_to_string(cpu.path().join("thermal_throttle").join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        })
    });
    counts.flatten().reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::write;

    #[test]
    fn a_hot_machine_with_a_quota_shows_both() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        write(root, "proc/self/cgroup", "0::/job\n");
        write(root, "proc/self/mountinfo", "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let state = |khz: u32, heat: u32, events: u32, periods: u32, own: u32| {
            write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", &khz.to_string());
            write(root, "sys/class/thermal/thermal_zone0/temp", &heat.to_string());
            write(root, "sys/class/thermal/cooling_device0/type", "fan");
            let count = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count";
            write(root, count, &events.to_string());
            let stat = format!("nr_throttled {periods}\nthrottled_usec {}\n", periods * 1000);
            write(root, "sys/fs/cgroup/job/cpu.stat", &stat);
            write(root, "proc/self/stat", &format!("7 (x) R 1 2 3 4 5 6 7 8 9 10 {own} 0 0 0 20"));
        };
        state(3_000_000, 50_000, 0, 0, 0);
        let mut first = Readings::now(root);
        state(3_000_000, 60_000, 0, 0, 100);
        let mut second = Readings::now(root);
        state(1_500_000, 95_000, 4, 30, 120);
        let mut third = Readings::now(root);
        let now = Instant::now();
        first.at = now;
        second.at = now + Duration::from_secs(1);
        third.at = now + Duration::from_secs(2);
        let before = Phase::of(&[first, second.clone()]);
        assert_eq!((before.own_cores, before.celsius), (Some(1.0), Some(60.0)));
        let mut slow = second.clone();
        slow.mhz = Some(1500.0);
        let after = Phase::of(&[slow, third]);
        assert_eq!(after.cgroup, Some(CpuThrottling { periods: 30, throttled_us: 30_000 }));
        let found = causes(&before, &after).join("; ");
        for cause in ["30 periods", "4 times", "from 3000 to 1500 MHz", "0.20 cores, 1.00 before"] {
            assert!(found.contains(cause), "{cause}: {found}");
        }
        assert!(causes(&before, &before).is_empty());
    }

    #[test]
    fn a_silent_system_explains_nothing() {
        let root = tempfile::tempdir().expect("a directory");
        let readings = [Readings::now(root.path()), Readings::now(root.path())];
        let phase = Phase::of(&readings);
        assert_eq!(phase, Phase::default());
        assert!(causes(&phase, &phase).is_empty());
        assert_eq!(Phase::of(&readings[..1]), Phase::default());
    }
}
