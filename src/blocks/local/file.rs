//! Single files of the local blob store: an [`OpenBlob`] being read, a [`Temporary`] being written, and syncs.
//!
//! All three may be dropped at any await: glommio keeps the buffers of an operation that the kernel still works on, and
//! closes a file after everything that was queued for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;

use bytes::Bytes;
use glommio::GlommioError;
use glommio::io::BufferedFile;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use shards::block::{Blob, Local};
use shards::outcome::Fault;

use super::errors::Refusal;

/// Largest single read, in bytes.
const READ_BYTES_MAX: usize = 1 << 20;
/// How often a call is repeated that the kernel asks to repeat.
const PERSISTENCE: u32 = 100;

/// A blob being read: one open file, whatever its name comes to stand for.
pub(super) struct OpenBlob {
    file: BufferedFile,
    size: u64,
}

impl OpenBlob {
    /// Takes an opened file if it is a regular one.
    pub(super) fn of(file: OwnedFd) -> Result<Self, Fault> {
        let stat = rustix::fs::fstat(&file).map_err(Refusal::from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Refusal::from(Errno::ISDIR));
        }
        // It was opened without waiting, lest it was a pipe; the ring must be allowed to wait.
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(Refusal::from)?;
        Ok(OpenBlob { file: on_ring(file), size: stat.st_size as u64 })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        borrow(&self.file)
    }
}

impl Blob for OpenBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read<'a>(&'a self, offset: u64, bytes_max: usize) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let mut attempts = 0;
            loop {
                match self.file.read_at(offset, bytes_max.min(READ_BYTES_MAX)).await {
                    Ok(chunk) => return Ok(Bytes::copy_from_slice(&chunk)),
                    Err(error) => again(&error, &mut attempts).map_err(Refusal::from)?,
                }
            }
        })
    }
}

/// A file under a temporary name, which goes with it unless it is renamed.
pub(super) struct Temporary {
    folder: Rc<OwnedFd>,
    name: String,
    file: BufferedFile,
    renamed: bool,
}

impl Temporary {
    /// A new empty file; EEXIST if the name is taken.
    pub(super) fn create(folder: &Rc<OwnedFd>, name: String) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
        let file = persist(|| rustix::fs::openat(&**folder, name.as_str(), flags, mode))?;
        Ok(Temporary { folder: folder.clone(), name, file: on_ring(file), renamed: false })
    }

    /// Writes all of `content` from `offset` on.
    pub(super) async fn append(&self, content: &Bytes, offset: u64, chunk_bytes: usize) -> Result<(), Fault> {
        let mut written = 0;
        let mut attempts = 0;
        while written < content.len() {
            let chunk = content[written..content.len().min(written + chunk_bytes)].to_vec();
            match self.file.write_at(chunk, offset + written as u64).await {
                // A short write is taken as far as it went; the next one tells why.
                Ok(0) => return Err(Refusal::from(Errno::NOSPC)),
                Ok(bytes) => written += bytes,
                Err(error) => again(&error, &mut attempts).map_err(Refusal::from)?,
            }
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) async fn sync(&self) -> Result<(), Fault> {
        match self.file.fdatasync().await {
            Ok(()) => Ok(()),
            Err(error) => match errno(&error) {
                full @ (Errno::NOSPC | Errno::DQUOT) => Err(Refusal::from(full)),
                other => Err(Refusal::unsynced(other)),
            },
        }
    }

    /// Moves it to `name` in `parent`. Nothing is awaited.
    pub(super) fn rename(&mut self, parent: &OwnedFd, name: &str, flags: RenameFlags) -> Result<(), Errno> {
        match persist(|| rustix::fs::renameat_with(&*self.folder, self.name.as_str(), parent, name, flags)) {
            Ok(()) => {
                self.renamed = true;
                fail::fail_point!("C3", |_| std::process::abort());
                Ok(())
            }
            // A file system that knows no flags: a second name is given only if it is free, and the first goes with `self`.
            Err(Errno::INVAL | Errno::NOSYS) if flags == RenameFlags::NOREPLACE => {
                rustix::fs::linkat(&*self.folder, self.name.as_str(), parent, name, AtFlags::empty())
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed is swept at the next start.
            _ = rustix::fs::unlinkat(&*self.folder, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// Syncs a file's data, or a folder's entries.
pub(super) async fn sync(file: impl AsFd) -> Result<(), Errno> {
    let own = file.as_fd().try_clone_to_owned().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    on_ring(own).fdatasync().await.map_err(|error| errno(&error))
}

/// Repeats a call that was interrupted or raced, within bounds.
pub(super) fn persist<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut attempts = 0;
    loop {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) if attempts < PERSISTENCE => attempts += 1,
            other => return other,
        }
    }
}

fn again(error: &GlommioError<()>, attempts: &mut u32) -> Result<(), Errno> {
    match errno(error) {
        Errno::INTR | Errno::AGAIN if *attempts < PERSISTENCE => {
            *attempts += 1;
            Ok(())
        }
        other => Err(other),
    }
}

fn errno(error: &GlommioError<()>) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

fn on_ring(file: OwnedFd) -> BufferedFile {
    // SAFETY: the descriptor is open and handed over: nothing else owns it any more.
    unsafe { BufferedFile::from_raw_fd(file.into_raw_fd()) }
}

fn borrow(file: &BufferedFile) -> BorrowedFd<'_> {
    // SAFETY: `file` keeps its descriptor open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) }
}
