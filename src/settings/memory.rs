//! How much memory the control groups of this process allow: bounds that nobody chose must fit into that.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const ROOT: &str = "/sys/fs/cgroup";
/// What "no limit" is in the first version of control groups: the largest multiple of a page that fits.
const UNLIMITED: u64 = 1 << 60;

/// The least limit of this process's control groups, in bytes, as it was when first asked for.
pub(super) fn limit() -> Option<u64> {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        least(&groups, |path| std::fs::read_to_string(path).ok())
    })
}

/// A part of the limit for what one of `shards` shards may hold, where `default` is more: bodies are in memory a few times over,
/// as messages, in the journal's batches and in answers, and there is more than bodies.
pub(super) fn part(default: u64, limit: u64, shards: usize) -> u64 {
    const LEAST: u64 = 4 << 20;
    (limit / 16 / shards.max(1) as u64).max(LEAST).min(default)
}

/// The least limit in what `/proc/self/cgroup` names; a group is bound by all above it.
fn least(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => (PathBuf::from(ROOT), "memory.max"),
            named if named.split(',').any(|name| name == "memory") => (Path::new(ROOT).join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = root.join(group.trim_start_matches('/'));
        for folder in group.ancestors().take_while(|folder| folder.starts_with(&root)) {
            let limit = read(&folder.join(file)).and_then(|text| text.trim().parse().ok());
            least = limit.into_iter().chain(least).filter(|limit| *limit < UNLIMITED).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "314572800\n"),
            ("/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
        ];
        let read = |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned());
        assert_eq!(least("0::/a/b\n", read), Some(300 << 20));
        assert_eq!(least("4:cpu,memory:/c\n1:name=systemd:/a\n0::/\n", read), Some(1 << 30));
        assert_eq!(least("0::/elsewhere\n", read), None);
        assert_eq!(least("no group\n", read), None);
    }

    #[test]
    fn a_small_limit_makes_a_small_part_and_a_large_one_none() {
        assert_eq!(part(1 << 30, 300 << 20, 1), (300 << 20) / 16);
        assert_eq!(part(1 << 30, 300 << 20, 64), 4 << 20);
        assert_eq!(part(1 << 30, 64 << 30, 4), 1 << 30);
    }
}
