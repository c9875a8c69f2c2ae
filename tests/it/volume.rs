//! A disk of a worker's own: a small ext4 on a loop device, which a test can fill, freeze, or let die.
//!
//! Needs the right to mount; where there is none, [`Volume::mount`] says so and the test is skipped.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// `FIFREEZE`: writes wait until the thaw.
const FREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
/// `FITHAW`
const THAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;
/// `EXT4_IOC_SHUTDOWN`: from now on the file system answers EIO.
const SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;
/// Not even what is in its log reaches the disk.
const NO_LOG_FLUSH: u32 = 2;

/// A mounted file system. Unmounted when this value goes.
#[derive(Debug)]
pub(crate) struct Volume {
    at: PathBuf,
    root: Option<File>,
    /// Where its bytes really are; of a thin one, a file system that is too small for them.
    image: PathBuf,
    store: tempfile::TempDir,
    thin: bool,
}

impl Volume {
    /// Makes a file system of so many MiB and mounts it at this folder; `None`, said aloud, where that is not permitted.
    pub(crate) fn mount(at: &Path, mib: u64) -> Result<Option<Volume>> {
        let store = tempfile::Builder::new().prefix("endstation-disk-").tempdir()?;
        Volume::mount_from(store, false, at, mib)
    }

    /// The same on a device that only has so many MiB of what it claims; see [`Volume::starve`].
    pub(crate) fn mount_thin(at: &Path, mib: u64, really_mib: u64) -> Result<Option<Volume>> {
        let store = tempfile::Builder::new().prefix("endstation-disk-").tempdir()?;
        let size = format!("size={really_mib}m");
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(store.path()).output();
        if !made.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: this test mounts a disk of its own, and that is not possible here: {made:?}");
            return Ok(None);
        }
        Volume::mount_from(store, true, at, mib)
    }

    fn mount_from(store: tempfile::TempDir, thin: bool, at: &Path, mib: u64) -> Result<Option<Volume>> {
        let image = store.path().join("image");
        File::create(&image)?.set_len(mib << 20)?;
        std::fs::create_dir_all(at)?;
        let run = |program: &str, args: &[&str], path: &Path| {
            let output = Command::new(program).args(args).arg(&image).arg(path).output();
            output.map_err(|error| error.to_string()).and_then(|output| {
                if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
            })
        };
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "lazy_itable_init=0"]).arg(&image).output();
        ensure!(made.as_ref().is_ok_and(|output| output.status.success()) || !is_root(), "mkfs.ext4: {made:?}");
        if let Err(why) = run("mount", &["-o", "loop"], at) {
            eprintln!("SKIPPED: this test mounts a disk of its own, and that is not possible here: {}", why.trim());
            return Ok(None);
        }
        let root = Some(File::open(at)?);
        Ok(Some(Volume { at: at.to_owned(), root, image, store, thin }))
    }

    /// Takes all the room there is.
    pub(crate) fn fill(&self) -> Result<()> {
        Volume::fill_at(&self.ballast())
    }

    /// From now on a thin device has nothing for what it has not been given yet: the file system takes writes and cannot keep
    /// them, as their sync finds out.
    pub(crate) fn starve(&self) -> Result<()> {
        ensure!(self.thin, "only a thin one can be starved");
        Volume::fill_at(&self.store.path().join("ballast"))
    }

    fn fill_at(ballast: &Path) -> Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(ballast)?;
        let mut at = file.metadata()?.len();
        for piece in [1 << 20, 4096] {
            let zeros = vec![1; piece];
            while let Ok(written @ 1..) = file.write_at(&zeros, at) {
                at += written as u64;
            }
        }
        let _as_far_as_it_goes = file.sync_all();
        Ok(())
    }

    /// Gives it back.
    pub(crate) fn empty(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }

    /// From now on every write and every sync on it waits.
    pub(crate) fn freeze(&self) -> Result<()> {
        self.ioctl(FREEZE, 0).context("freezing")
    }

    /// No longer.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.ioctl(THAW, 0).context("thawing")
    }

    /// From now on every write and every sync on it fails with EIO.
    pub(crate) fn die(&self) -> Result<()> {
        self.ioctl(SHUTDOWN, NO_LOG_FLUSH).context("shutting the file system down")
    }

    /// Mounts it anew, as after a start of the machine: what its log has is there again. Nobody may be using it.
    pub(crate) fn revive(&mut self) -> Result<()> {
        self.root = None;
        let run = |command: &mut Command| -> Result<()> {
            let output = command.output()?;
            ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(Command::new("umount").arg(&self.at))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))?;
        self.root = Some(File::open(&self.at)?);
        Ok(())
    }

    fn ioctl(&self, request: libc::Ioctl, mut argument: u32) -> Result<()> {
        let root = self.root.as_ref().context("mounted")?;
        // SAFETY: the descriptor is open, and each of these requests reads at most the one number it is given.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), request, &raw mut argument) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Whoever waits for it must be able to go.
        let _not_frozen = self.thaw();
        self.root = None;
        let _gone = Command::new("umount").arg("-l").arg(&self.at).status();
        if self.thin {
            let _gone = Command::new("umount").arg("-l").arg(self.store.path()).status();
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
