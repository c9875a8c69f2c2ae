//! Effects counted where they happen: files in the tenants' folders, looked at from outside the worker.
//!
//! A file that changes its inode or its modification time between two looks was written twice.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// One file as seen at the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    modified_ns: (i64, i64),
    size: u64,
}

/// The files under a worker's folder, and what was wrong with them so far.
#[derive(Debug)]
pub(crate) struct Ledger {
    root: PathBuf,
    seen: BTreeMap<PathBuf, Mark>,
    rewritten: Vec<PathBuf>,
}

/// The folder of a tenant: `t-` and half of the SHA-256 of its id.
pub(crate) fn tenant_folder(tenant: &str) -> String {
    let digest = Sha256::digest(tenant.as_bytes());
    let half: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("t-{half}")
}

impl Ledger {
    /// Watches everything under this folder.
    pub(crate) fn new(root: &Path) -> Self {
        Ledger { root: root.to_owned(), seen: BTreeMap::new(), rewritten: Vec::new() }
    }

    /// Looks again at every file of every tenant.
    pub(crate) fn look(&mut self) -> Result<()> {
        for (path, mark) in files(&self.root)? {
            let inside = path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("t-"));
            // A file that is still being written may be seen twice on its way; it counts once it has its name.
            let unfinished = path.components().any(|part| part.as_os_str() == "$tmp");
            if !inside || unfinished {
                continue;
            }
            if self.seen.insert(path.clone(), mark.clone()).is_some_and(|was| was != mark) {
                self.rewritten.push(path);
            }
        }
        Ok(())
    }

    /// This tenant's file was written exactly once, in its own folder, with this content, and nothing was left beside it.
    pub(crate) fn written_once(&mut self, tenant: &str, name: &str, content: &[u8]) -> Result<()> {
        self.look()?;
        let found: Vec<&PathBuf> = self.seen.keys().filter(|path| path.ends_with(name)).collect();
        ensure!(found.len() == 1, "{name} of {tenant} is there {} times: {found:?}", found.len());
        let folder = tenant_folder(tenant);
        let inside = found[0].components().any(|part| part.as_os_str() == folder.as_str());
        ensure!(inside, "{} is not in {folder}", found[0].display());
        ensure!(fs::read(found[0])? == content, "{} has other content", found[0].display());
        self.never_rewritten()
    }

    /// No file was written twice, as far as the looks could tell.
    pub(crate) fn never_rewritten(&self) -> Result<()> {
        match self.rewritten.first() {
            None => Ok(()),
            Some(path) => bail!("{} was written twice, {} more too", path.display(), self.rewritten.len() - 1),
        }
    }

    /// How many files this tenant has whose path ends so.
    pub(crate) fn count(&mut self, tenant: &str, ending: &str) -> Result<usize> {
        self.look()?;
        let folder = tenant_folder(tenant);
        let its = |path: &&PathBuf| {
            path.components().any(|part| part.as_os_str() == folder.as_str()) && path.to_string_lossy().ends_with(ending)
        };
        Ok(self.seen.keys().filter(its).count())
    }
}

fn files(root: &Path) -> Result<Vec<(PathBuf, Mark)>> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            let Ok(data) = fs::symlink_metadata(&path) else { continue };
            if data.is_dir() {
                folders.push(path);
            } else {
                let modified_ns = (data.mtime(), data.mtime_nsec());
                found.push((path, Mark { inode: data.ino(), modified_ns, size: data.size() }));
            }
        }
    }
    Ok(found)
}
