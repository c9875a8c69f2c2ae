//! A control group with a memory limit, for a worker to run in.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A control group of our own, gone with this value.
pub(crate) struct Group(PathBuf);

impl Group {
    /// `None`, and said aloud, where none can be made.
    pub(crate) fn with_memory(limit: u64) -> Option<Group> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("endstation-it-{}-{}", std::process::id(), MADE.fetch_add(1, Relaxed));
        let made = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")].map(|(root, file)| {
            let group = Group(Path::new(root).join(&name));
            fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(file), limit.to_string())).map(|()| group)
        });
        let why = made.iter().filter_map(|made| made.as_ref().err().map(ToString::to_string)).collect::<Vec<_>>().join(", ");
        let group = made.into_iter().find_map(Result::ok);
        if group.is_none() {
            eprintln!("SKIPPED: this test needs a control group with a memory limit, and none can be made here: {why}");
        }
        group
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The most memory that was in use, where the kernel says it.
    pub(crate) fn peak(&self) -> Option<u64> {
        let read = |file: &str| fs::read_to_string(self.0.join(file)).ok()?.trim().parse().ok();
        read("memory.max_usage_in_bytes").or_else(|| read("memory.peak"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _still_in_use = fs::remove_dir(&self.0);
    }
}
