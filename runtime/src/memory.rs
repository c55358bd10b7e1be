//! What memory there is.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can be allocated without swapping: the system's estimate, or what a control group of this
/// process leaves if that is less; file pages that can be dropped count as free. `None` where neither can
/// be read.
pub fn available_memory_bytes() -> Option<u64> {
    let groups = groups().into_iter().filter_map(|group| group.available());
    let system = field("/proc/meminfo".as_ref(), "MemAvailable:").map(|kib| kib * 1024);
    groups.chain(system).min()
}

/// A control group's directory, and the names of its files.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    directory: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: pages of files.
    file_pages: &'static str,
}

impl Group {
    const V1: [&'static str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "cache"];
    const V2: [&'static str; 3] = ["memory.max", "memory.current", "file"];

    fn available(&self) -> Option<u64> {
        let limit = read_u64(&self.directory.join(self.limit))?;
        let used = read_u64(&self.directory.join(self.usage))?;
        let file_pages = field(&self.directory.join("memory.stat"), self.file_pages).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(file_pages)))
    }
}

fn groups() -> Vec<Group> {
    fs::read_to_string("/proc/self/cgroup").map_or_else(|_| vec![], |text| groups_of(&text))
}

/// The groups that limit this process's memory, with their parents: each of them may be the narrowest.
fn groups_of(proc_self_cgroup: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, [limit, usage, file_pages]) = match controllers {
            "" => ("/sys/fs/cgroup", Group::V2),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", Group::V1)
            }
            _ => continue,
        };
        for part in Path::new(path.trim_start_matches('/')).ancestors() {
            groups.push(Group { directory: Path::new(root).join(part), limit, usage, file_pages });
        }
    }
    groups
}

/// The number after a name at the start of a line.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok()))?
}

fn read_u64(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_are_found_with_their_parents() {
        let text = "12:cpu,cpuacct:/a\n4:memory:/x/y\n0::/user/z\nnonsense\n";
        let found = groups_of(text);
        let directories: Vec<_> = found.iter().map(|g| g.directory.to_str().unwrap()).collect();
        let v1 = ["/sys/fs/cgroup/memory/x/y", "/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory/"];
        let v2 = ["/sys/fs/cgroup/user/z", "/sys/fs/cgroup/user", "/sys/fs/cgroup/"];
        assert_eq!(directories, [v1, v2].concat());
        assert_eq!(found[0].limit, "memory.limit_in_bytes");
        assert_eq!(found[3].limit, "memory.max");
    }

    #[test]
    fn file_pages_count_as_free() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("memory.max", "1000\n"),
            ("memory.current", "900\n"),
            ("memory.stat", "anon 1\nfile 700\n"),
        ] {
            fs::write(dir.path().join(name), text).expect("a file");
        }
        let [limit, usage, file_pages] = Group::V2;
        let group = Group { directory: dir.path().into(), limit, usage, file_pages };
        assert_eq!(group.available(), Some(800));
        fs::write(dir.path().join("memory.max"), "max\n").expect("a file");
        assert_eq!(group.available(), None, "no limit");
    }
}
