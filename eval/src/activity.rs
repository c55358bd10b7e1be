//! Who else uses the CPU while something is measured: a time says nothing about a file when others take
//! turns with it.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Clock ticks per second in `/proc`: 100 towards programs, whatever the kernel counts in itself.
const TICKS_PER_S: f64 = 100.0;
/// A measurement that is shorter is not judged: ticks are too coarse.
const MIN_SECONDS: f64 = 0.2;
/// Cores that others may keep busy while timings are comparable.
const MAX_OTHERS_CORES: f64 = 0.1;
/// Share of the machine's time that a hypervisor may give to others.
const MAX_STEAL_SHARE: f64 = 0.01;

/// What else the machine did during a measurement. Null where the system does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Cores that other processes kept busy, on average.
    pub others_cores: Option<f64>,
    /// Share of this machine's time that the hypervisor gave to other machines.
    pub steal_share: Option<f64>,
    /// Clock of the fastest core right after the work; idle cores say nothing.
    pub busy_mhz: Option<f64>,
}

impl Activity {
    /// Why timings taken meanwhile are not comparable with others, if so.
    pub fn disturbances(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(cores) = self.others_cores.filter(|&cores| cores > MAX_OTHERS_CORES) {
            found.push(format!(
                "other processes kept {cores:.2} cores busy (more than {MAX_OTHERS_CORES})"
            ));
        }
        if let Some(share) = self.steal_share.filter(|&share| share > MAX_STEAL_SHARE) {
            found.push(format!(
                "the hypervisor gave {:.1} % of the time to other machines (more than {:.0} %)",
                share * 100.0,
                MAX_STEAL_SHARE * 100.0
            ));
        }
        found
    }
}

/// Readings of the CPU's clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTimes {
    at: Instant,
    /// Of the whole machine, in seconds of one core; `None` where there is no `/proc`.
    machine: Option<Machine>,
    /// Of this process and the children it has waited for.
    own_s: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Machine {
    busy_s: f64,
    steal_s: f64,
    total_s: f64,
}

impl CpuTimes {
    /// Reads them below `root`, which is `/` but in tests.
    pub(crate) fn now(root: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(root.join(name)).ok();
        Self {
            at: Instant::now(),
            machine: read("proc/stat").as_deref().and_then(machine_times),
            own_s: read("proc/self/stat").as_deref().and_then(own_seconds),
        }
    }

    /// What happened since.
    pub(crate) fn activity(&self, root: &Path) -> Activity {
        let now = Self::now(root);
        let seconds = (now.at - self.at).as_secs_f64();
        let mut activity = Activity { busy_mhz: fastest_mhz(root), ..Activity::default() };
        if seconds < MIN_SECONDS {
            return activity;
        }
        activity.steal_share = now.steal_share_since(self);
        activity.others_cores = now.others_seconds_since(self).map(|others| others / seconds);
        activity
    }

    /// CPU time of this process since an earlier reading.
    pub(crate) fn own_seconds_since(&self, before: &Self) -> Option<f64> {
        self.own_s.zip(before.own_s).map(|(now, then)| now - then)
    }

    /// CPU time of everybody else since an earlier reading.
    pub(crate) fn others_seconds_since(&self, before: &Self) -> Option<f64> {
        let (before_all, all) = before.machine.zip(self.machine)?;
        let others = all.busy_s - before_all.busy_s - self.own_seconds_since(before)?;
        Some(others.max(0.0))
    }

    /// Share of the machine's time that went to other machines since an earlier reading.
    pub(crate) fn steal_share_since(&self, before: &Self) -> Option<f64> {
        let (before, after) = before.machine.zip(self.machine)?;
        let total = after.total_s - before.total_s;
        (total > 0.0).then(|| ((after.steal_s - before.steal_s) / total).clamp(0.0, 1.0))
    }
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal guest guest_nice, of
/// which guest is within user.
fn machine_times(stat: &str) -> Option<Machine> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    let busy = user + nice + system + irq + softirq;
    Some(Machine {
        busy_s: busy / TICKS_PER_S,
        steal_s: steal / TICKS_PER_S,
        total_s: (busy + idle + iowait + steal) / TICKS_PER_S,
    })
}

/// Fields 14 to 17 of `/proc/self/stat`: utime, stime, cutime, cstime. The program's name before them may
/// hold blanks and parentheses.
fn own_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(4);
    let times: Option<Vec<f64>> = times.map(|word| word.parse().ok()).collect();
    let times = times.filter(|times| times.len() == 4)?;
    Some(times.iter().sum::<f64>() / TICKS_PER_S)
}

/// Clock of the fastest core in MHz, where the kernel scales it.
pub(crate) fn fastest_mhz(root: &Path) -> Option<f64> {
    let cpus = fs::read_dir(root.join("sys/devices/system/cpu")).ok()?.flatten();
    let khz = cpus.filter_map(|cpu| {
        let text = fs::read_to_string(cpu.path().join("cpufreq/scaling_cur_freq")).ok()?;
        text.trim().parse::<f64>().ok()
    });
    khz.reduce(f64::max).map(|khz| khz / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write;

    #[test]
    fn machine_and_own_times_are_parsed() {
        let times = machine_times("cpu  100 20 30 400 50 6 7 80 90 1\ncpu0 1 2\n").expect("whole");
        assert_eq!(times, Machine { busy_s: 1.63, steal_s: 0.8, total_s: 6.93 });
        assert_eq!(machine_times("intr 5"), None);
        let stat = "7 (a) b (c)) R 1 2 3 4 5 6 7 8 9 10 150 50 25 75 20 0 1";
        assert_eq!(own_seconds(stat), Some(3.0));
        assert_eq!(own_seconds("7 (a) R 1 2"), None);
    }

    #[test]
    fn what_others_did_is_what_this_process_did_not() {
        let root = tempfile::tempdir().expect("a directory");
        let state = |busy: u32, steal: u32, own: u32| {
            write(root.path(), "proc/stat", &format!("cpu  {busy} 0 0 1000 0 0 0 {steal} 0 0\n"));
            let stat = format!("7 (x) R 1 2 3 4 5 6 7 8 9 10 {own} 0 0 0 20");
            write(root.path(), "proc/self/stat", &stat);
        };
        state(1000, 0, 500);
        let mut before = CpuTimes::now(root.path());
        // As if two seconds had passed.
        before.at -= std::time::Duration::from_secs(2);
        state(1300, 100, 700);
        write(root.path(), "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "2400000\n");
        write(root.path(), "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "3100000\n");
        let activity = before.activity(root.path());
        let others = activity.others_cores.expect("told");
        assert!((others - 0.5).abs() < 0.01, "{others}");
        assert_eq!(activity.steal_share, Some(0.25));
        assert_eq!(activity.busy_mhz, Some(3100.0));
        let found = activity.disturbances();
        assert!(found[0].contains("0.50 cores") && found[1].contains("25.0 %"), "{found:?}");
        assert!(Activity::default().disturbances().is_empty());
    }

    #[test]
    fn nothing_is_claimed_where_nothing_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        let mut before = CpuTimes::now(root.path());
        before.at -= std::time::Duration::from_secs(2);
        assert_eq!(before.activity(root.path()), Activity::default());
    }
}
