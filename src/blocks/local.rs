//! The tenants' blobs on a local disk: [`LocalBlobs`], one per shard, all over the same root.
//!
//! `<root>/t-<hex128 of sha256(tenant)>/<path>`; `$tmp` in a tenant's folder holds what is being written. Every path is
//! opened beneath the tenant's folder by `openat2`, which passes no link, so nothing outside is ever reached (I24).
//! A blob appears whole, by one rename, after its data is synced; a try that is dropped midway removes its temporary file.
//!
//! Data and syncs go through the ring. Opening, making folders, renaming and unlinking are short metadata calls and
//! block the shard's thread for microseconds.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use shards::block::{Blob, BlobWriter, Blobs, Local, Stored};
use shards::ids::hex;
use shards::outcome::{Effected, Fault};

mod errors;
mod file;

use super::path;
use errors::Refusal;
use file::{OpenBlob, Temporary, sync};

/// Where a tenant's unfinished files are.
const TMP: &str = "$tmp";
/// Hashed between two chances for others to run, in bytes.
const STRIDE_BYTES: usize = 64 << 10;
/// Compared or written at once, in bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// How many folders are remembered as durable before all are forgotten; forgetting only costs syncs.
const SETTLED_MAX: usize = 65_536;

/// The tenants' blobs under one root. Lives on its core; shards share the root but no tenant.
pub struct LocalBlobs {
    root: Rc<OwnedFd>,
    /// Makes this shard's temporary names its own.
    shard: u16,
    written: Cell<u64>,
    /// Folders (device, inode) whose own entry is known to be durable, and that of every folder above them.
    settled: RefCell<HashSet<(u64, u64)>>,
}

impl LocalBlobs {
    /// Opens `root`, making it if it is not there. Blocks: for start-up.
    ///
    /// # Errors
    /// Where the folder can neither be opened nor made, or the kernel does not let us use `openat2`.
    pub fn open(root: &Path, shard: u16) -> io::Result<Self> {
        if !root.is_dir() {
            std::fs::create_dir_all(root)?;
            // What cannot be opened up there was not made here.
            for folder in root.canonicalize()?.ancestors().skip(1).map_while(|above| File::open(above).ok()) {
                folder.sync_all()?;
            }
        }
        let root = OwnedFd::from(File::open(root)?);
        open_beneath(&root, ".", OFlags::DIRECTORY)?;
        Ok(LocalBlobs { root: Rc::new(root), shard, written: Cell::new(0), settled: RefCell::default() })
    }

    async fn put(&self, tenant: &str, path: &str, content: Bytes, overwrite: bool) -> Result<Stored, Fault> {
        path::check_ours(path).map_err(Refusal::path)?;
        let sha256 = digest(&content).await;
        let stored = |created| Stored { size: content.len() as u64, created, sha256 };
        let (home, parent, name) = self.make_way(tenant, path).await?;

        // What stands there is looked at before anything is written: a try after a crash finds its own work.
        if !overwrite && exists(&parent, name)? {
            agree(&parent, name, &content).await?;
            return Ok(stored(false));
        }
        let temporary = self.write(&home, &content).await?;
        // From here to the end of `place` nothing is awaited: the blob appears, or the temporary file goes.
        match place(temporary, &parent, name, overwrite)? {
            Placed::New => settle(&parent).await.map(|()| stored(true)),
            Placed::Over => settle(&parent).await.map(|()| stored(false)),
            Placed::Taken => agree(&parent, name, &content).await.map(|()| stored(false)),
        }
    }

    /// The tenant's folder, the folder that `path` names a file in, and that file's name; durable as far as they are new.
    async fn make_way<'p>(&self, tenant: &str, path: &'p str) -> Result<(Rc<OwnedFd>, Rc<OwnedFd>, &'p str), Fault> {
        let home = self.enter(&self.root, &folder_of(tenant)).await?;
        let Some((folders, name)) = path.rsplit_once('/') else { return Ok((home.clone(), home, path)) };
        if let Ok(folder) = open_beneath(&home, folders, OFlags::DIRECTORY)
            && self.is_settled(&folder)
        {
            return Ok((home, Rc::new(folder), name));
        }
        let mut folder = home.clone();
        for component in folders.split('/') {
            folder = self.enter(&folder, component).await?;
        }
        Ok((home, folder, name))
    }

    /// The folder `name` in `parent`, made if needed, its entry durable.
    async fn enter(&self, parent: &OwnedFd, name: &str) -> Result<Rc<OwnedFd>, Fault> {
        let (folder, made) = open_or_make(parent, name)?;
        if made || !self.is_settled(&folder) {
            sync(parent).await.map_err(Refusal::unsynced)?;
            let mut settled = self.settled.borrow_mut();
            if settled.len() >= SETTLED_MAX {
                settled.clear();
            }
            settled.extend(identity(&folder));
        }
        Ok(Rc::new(folder))
    }

    fn is_settled(&self, folder: &OwnedFd) -> bool {
        identity(folder).is_some_and(|identity| self.settled.borrow().contains(&identity))
    }

    /// Writes `content` under a temporary name and syncs it.
    async fn write(&self, home: &OwnedFd, content: &Bytes) -> Result<Temporary, Fault> {
        let temporary = self.temporary(home)?;
        temporary.append(content, 0, CHUNK_BYTES).await?;
        temporary.sync().await?;
        Ok(temporary)
    }

    /// An empty file under a name that nobody else has.
    fn temporary(&self, home: &OwnedFd) -> Result<Temporary, Fault> {
        let folder = Rc::new(open_or_make(home, TMP)?.0);
        loop {
            let number = self.written.get();
            self.written.set(number + 1);
            // A name that a killed predecessor left behind is passed over.
            match Temporary::create(&folder, format!("{}-{}-{number}", self.shard, std::process::id())) {
                Err(Errno::EXIST) => {}
                other => return other.map_err(Refusal::from),
            }
        }
    }

    async fn create(&self, tenant: &str, path: &str, overwrite: bool) -> Result<Growing, Fault> {
        path::check_ours(path).map_err(Refusal::path)?;
        let (home, parent, name) = self.make_way(tenant, path).await?;
        // What cannot be a blob is told before anything is written.
        exists(&parent, name)?;
        let temporary = self.temporary(&home)?;
        Ok(Growing { temporary, parent, name: name.to_owned(), overwrite, size: 0, hasher: Sha256::new() })
    }

    async fn open_blob(&self, tenant: &str, path: &str) -> Result<OpenBlob, Fault> {
        path::check_ours(path).map_err(Refusal::path)?;
        let opened = open_beneath(&self.root, &folder_of(tenant), OFlags::DIRECTORY)
            .and_then(|home| open_beneath(&home, path, OFlags::NONBLOCK | OFlags::NOCTTY));
        match opened {
            Ok(file) => OpenBlob::of(file),
            Err(Errno::NOENT) => Err(Refusal::nothing_there()),
            Err(error) => Err(Refusal::from(error)),
        }
    }
}

impl Blobs for LocalBlobs {
    fn put<'a>(&'a self, tenant: &'a str, path: &'a str, content: Bytes, overwrite: bool) -> Local<'a, Result<Stored, Fault>> {
        Box::pin(self.put(tenant, path, content, overwrite))
    }

    fn create<'a>(&'a self, tenant: &'a str, path: &'a str, overwrite: bool) -> Local<'a, Result<Box<dyn BlobWriter>, Fault>> {
        Box::pin(async move { Ok(Box::new(self.create(tenant, path, overwrite).await?) as Box<dyn BlobWriter>) })
    }

    fn open<'a>(&'a self, tenant: &'a str, path: &'a str) -> Local<'a, Result<Box<dyn Blob>, Fault>> {
        Box::pin(async move { Ok(Box::new(self.open_blob(tenant, path).await?) as Box<dyn Blob>) })
    }
}

/// A blob whose content comes in pieces. Lives on its core.
struct Growing {
    temporary: Temporary,
    parent: Rc<OwnedFd>,
    name: String,
    overwrite: bool,
    size: u64,
    hasher: Sha256,
}

impl BlobWriter for Growing {
    fn write<'a>(&'a mut self, piece: Bytes) -> Local<'a, Result<(), Fault>> {
        Box::pin(async move {
            self.temporary.append(&piece, self.size, CHUNK_BYTES).await?;
            self.size += piece.len() as u64;
            for stride in piece.chunks(STRIDE_BYTES) {
                self.hasher.update(stride);
                glommio::yield_if_needed().await;
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> Local<'static, Result<Stored, Fault>> {
        Box::pin(async move {
            let Growing { temporary, parent, name, overwrite, size, hasher } = *self;
            let sha256: [u8; 32] = hasher.finalize().into();
            let stored = |created| Stored { size, created, sha256 };
            temporary.sync().await?;
            match place(temporary, &parent, &name, overwrite)? {
                Placed::New => settle(&parent).await.map(|()| stored(true)),
                Placed::Over => settle(&parent).await.map(|()| stored(false)),
                Placed::Taken => agree_by_digest(&parent, &name, size, &sha256).await.map(|()| stored(false)),
            }
        })
    }
}

/// The name of a tenant's folder: tenant ids may be longer than a file name.
pub fn folder_of(tenant: &str) -> String {
    format!("t-{}", hex(&Sha256::digest(tenant)[..16]))
}

/// Removes what killed predecessors left unfinished under `root`, and says how many files that were. Blocks, and must be
/// called before any shard starts: it knows no difference between a left-over and a file being written.
///
/// # Errors
/// Where the folders cannot be read; a root that is not there holds no left-overs.
pub fn sweep(root: &Path) -> io::Result<u64> {
    let root = match File::open(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => OwnedFd::from(other?),
    };
    let mut removed = 0;
    for home in Dir::read_from(&root)? {
        let home = home?;
        if !home.file_name().to_bytes().starts_with(b"t-") {
            continue;
        }
        let opened =
            open_beneath(&root, home.file_name(), OFlags::DIRECTORY).and_then(|home| open_beneath(&home, TMP, OFlags::DIRECTORY));
        let Ok(folder) = opened else { continue };
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                rustix::fs::unlinkat(&folder, entry.file_name(), AtFlags::empty())?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

enum Placed {
    New,
    Over,
    Taken,
}

/// Gives a written file its name, in one step.
fn place(mut temporary: Temporary, parent: &OwnedFd, name: &str, overwrite: bool) -> Result<Placed, Fault> {
    match temporary.rename(parent, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Placed::New),
        Err(Errno::EXIST) if !overwrite => Ok(Placed::Taken),
        Err(Errno::EXIST) => {
            // A link would be replaced, not followed; but a path that passes one is refused throughout.
            exists(parent, name)?;
            temporary.rename(parent, name, RenameFlags::empty()).map_err(Refusal::from)?;
            Ok(Placed::Over)
        }
        Err(error) => Err(Refusal::from(error)),
    }
}

/// Ok if exactly `content` stands under `name`, durably.
async fn agree(parent: &OwnedFd, name: &str, content: &Bytes) -> Result<(), Fault> {
    let file = open_beneath(parent, name, OFlags::NONBLOCK | OFlags::NOCTTY).map_err(Refusal::from)?;
    let blob = OpenBlob::of(file)?;
    if blob.size() != content.len() as u64 {
        return Err(Refusal::taken());
    }
    let mut compared = 0;
    while compared < content.len() {
        let chunk = blob.read(compared as u64, CHUNK_BYTES.min(content.len() - compared)).await?;
        if chunk.is_empty() || content[compared..compared + chunk.len()] != chunk {
            return Err(Refusal::taken());
        }
        compared += chunk.len();
    }
    // The one who wrote it may have been killed before its syncs.
    sync(blob.file()).await.map_err(Refusal::unsynced)?;
    settle(parent).await
}

/// As [`agree`], for a content of which only size and digest are left.
async fn agree_by_digest(parent: &OwnedFd, name: &str, size: u64, sha256: &[u8; 32]) -> Result<(), Fault> {
    let file = open_beneath(parent, name, OFlags::NONBLOCK | OFlags::NOCTTY).map_err(Refusal::from)?;
    let blob = OpenBlob::of(file)?;
    if blob.size() != size {
        return Err(Refusal::taken());
    }
    let (mut hasher, mut read) = (Sha256::new(), 0);
    while read < size {
        let chunk = blob.read(read, CHUNK_BYTES.min((size - read) as usize)).await?;
        if chunk.is_empty() {
            return Err(Refusal::taken());
        }
        hasher.update(&chunk);
        read += chunk.len() as u64;
        glommio::yield_if_needed().await;
    }
    if hasher.finalize()[..] != sha256[..] {
        return Err(Refusal::taken());
    }
    // The one who wrote it may have been killed before its syncs.
    sync(blob.file()).await.map_err(Refusal::unsynced)?;
    settle(parent).await
}

/// Makes a folder's entries durable after one of them was changed. A failed sync is not tried again: a second one could
/// succeed without having written anything.
async fn settle(parent: &OwnedFd) -> Result<(), Fault> {
    sync(parent).await.map_err(|error| Refusal::unsynced(error).with_effect(Effected::Unknown))
}

/// Whether a blob stands under `name`; anything else that does is refused.
fn exists(parent: &OwnedFd, name: &str) -> Result<bool, Fault> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(true),
            FileType::Symlink => Err(Refusal::from(Errno::LOOP)),
            _ => Err(Refusal::from(Errno::ISDIR)),
        },
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(Refusal::from(error)),
    }
}

fn open_or_make(parent: &OwnedFd, name: &str) -> Result<(OwnedFd, bool), Fault> {
    match open_beneath(parent, name, OFlags::DIRECTORY) {
        Ok(folder) => return Ok((folder, false)),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(Refusal::from(error)),
    }
    match rustix::fs::mkdirat(parent, name, Mode::RWXU | Mode::RGRP | Mode::XGRP) {
        Ok(()) | Err(Errno::EXIST) => {
            open_beneath(parent, name, OFlags::DIRECTORY).map(|folder| (folder, true)).map_err(Refusal::from)
        }
        Err(error) => Err(Refusal::from(error)),
    }
}

/// Opens for reading what lies beneath `folder`, passing no link of any kind.
fn open_beneath<P: rustix::path::Arg + Copy>(folder: impl AsFd, path: P, flags: OFlags) -> Result<OwnedFd, Errno> {
    const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
    file::persist(|| rustix::fs::openat2(folder.as_fd(), path, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), RESOLVE))
}

fn identity(folder: &OwnedFd) -> Option<(u64, u64)> {
    rustix::fs::fstat(folder).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

async fn digest(content: &Bytes) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for stride in content.chunks(STRIDE_BYTES) {
        hasher.update(stride);
        glommio::yield_if_needed().await;
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests;
