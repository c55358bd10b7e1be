//! The control group around this process: its limits and what they did. Both versions are read.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Limits from here on are none: version 1 says so with the largest multiple of a page.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// Directory of a control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlGroup {
    dir: PathBuf,
}

/// How often and how long the group's CPU quota held its processes back, since the group was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuThrottling {
    /// Periods in which the quota was used up.
    pub periods: u64,
    /// Time that processes were held back, summed over cores.
    pub throttled_us: u64,
}

impl ControlGroup {
    /// The group that has this process for a controller (`cpu`, `memory`); version 1 first, because where
    /// both are mounted version 2 has no controllers. `root` is `/` but in tests.
    pub(crate) fn of_this_process(root: &Path, controller: &str) -> Option<Self> {
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
        let path_of = |wanted: &str| {
            groups.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let (controllers, path) = (parts.next()?, parts.next()?);
                controllers.split(',').any(|c| c == wanted).then(|| path.to_owned())
            })
        };
        let v1 = path_of(controller).and_then(|path| {
            let mount = mounts.lines().filter_map(Mount::parse).find(|mount| {
                mount.kind == "cgroup" && mount.options.split(',').any(|o| o == controller)
            })?;
            Some(mount.directory_of(root, &path))
        });
        let v2 = || {
            let path = path_of("")?;
            let mount = mounts.lines().filter_map(Mount::parse).find(|m| m.kind == "cgroup2")?;
            Some(mount.directory_of(root, &path))
        };
        Some(Self { dir: v1.or_else(v2)? })
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    /// `None` when there is no limit.
    pub(crate) fn memory_limit_bytes(&self) -> Option<u64> {
        let limit = self.number("memory.max").or_else(|| self.number("memory.limit_in_bytes"));
        limit.filter(|&bytes| bytes < NO_LIMIT_BYTES)
    }

    pub(crate) fn memory_peak_bytes(&self) -> Option<u64> {
        self.number("memory.peak").or_else(|| self.number("memory.max_usage_in_bytes"))
    }

    /// `None` where the group does not count.
    pub(crate) fn cpu_throttling(&self) -> Option<CpuThrottling> {
        let text = fs::read_to_string(self.dir.join("cpu.stat")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line?.trim().parse::<u64>().ok()
        };
        // Version 1 counts nanoseconds.
        let throttled_us =
            field("throttled_usec").or_else(|| Some(field("throttled_time")? / 1000))?;
        Some(CpuThrottling { periods: field("nr_throttled")?, throttled_us })
    }
}

/// A line of `mountinfo`: `id parent major:minor root point options [tags] - type source super-options`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split_whitespace().skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = filesystem.split_whitespace();
        let kind = fields.next()?;
        Some(Self { root, point, kind, options: fields.nth(1).unwrap_or("") })
    }

    /// Where a group's files are. A container may see its own group as the mount's root.
    fn directory_of(&self, root: &Path, group: &str) -> PathBuf {
        let point = root.join(self.point.trim_start_matches('/'));
        let inside = group.strip_prefix(self.root).unwrap_or(group).trim_start_matches('/');
        let dir = point.join(inside);
        if dir.is_dir() { dir } else { point }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree;

    const V2: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_2_is_read() {
        let root = tree(&[
            ("proc/self/cgroup", "0::/user/job\n"),
            ("proc/self/mountinfo", V2),
            (
                "sys/fs/cgroup/user/job/cpu.stat",
                "usage_usec 9\nnr_throttled 7\nthrottled_usec 1500\n",
            ),
            ("sys/fs/cgroup/user/job/memory.max", "1048576\n"),
            ("sys/fs/cgroup/user/job/memory.peak", "900000\n"),
        ]);
        let group = ControlGroup::of_this_process(root.path(), "cpu").expect("a group");
        let throttling = CpuThrottling { periods: 7, throttled_us: 1500 };
        assert_eq!(group.cpu_throttling(), Some(throttling));
        assert_eq!(
            (group.memory_limit_bytes(), group.memory_peak_bytes()),
            (Some(1 << 20), Some(900_000))
        );
        fs::write(root.path().join("sys/fs/cgroup/user/job/memory.max"), "max\n").expect("written");
        assert_eq!(group.memory_limit_bytes(), None);
    }

    #[test]
    fn version_1_is_read_beside_version_2() {
        let root = tree(&[
            ("proc/self/cgroup", "4:memory:/a\n1:cpu,cpuacct:/box/inner\n0::/\n"),
            (
                "proc/self/mountinfo",
                &format!(
                    "{V2}32 31 0:29 /box /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
                ),
            ),
            (
                "sys/fs/cgroup/cpu/inner/cpu.stat",
                "nr_periods 9\nnr_throttled 3\nthrottled_time 2000000\n",
            ),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 9\n"),
        ]);
        let group = ControlGroup::of_this_process(root.path(), "cpu").expect("a group");
        let throttling = CpuThrottling { periods: 3, throttled_us: 2000 };
        assert_eq!(group.cpu_throttling(), Some(throttling));
        // Memory's hierarchy of version 1 is not mounted: version 2 tells nothing of it.
        let memory = ControlGroup::of_this_process(root.path(), "memory").expect("a group");
        assert_eq!(memory.memory_limit_bytes(), None);
    }

    #[test]
    fn without_groups_there_is_none() {
        let root = tree(&[]);
        assert_eq!(ControlGroup::of_this_process(root.path(), "cpu"), None);
    }
}
