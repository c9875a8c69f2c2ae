//! What to do about the system's refusals, in words for the one who runs the worker.

use std::io;

use rustix::io::Errno;

/// Said behind an error on a path of the data directory; empty where there is nothing better to say than the error itself.
pub(super) fn cure(error: &io::Error) -> &'static str {
    let Some(code) = error.raw_os_error() else { return "" };
    match Errno::from_raw_os_error(code) {
        Errno::ACCESS | Errno::PERM => {
            "; this user must be able to read and write storage.dir: change its owner or mode, or name another storage.dir"
        }
        Errno::ROFS => "; it is on a read-only file system: mount that writable, or name another storage.dir",
        Errno::NOTDIR | Errno::EXIST => "; a file stands where a folder is wanted: move it away, or name another storage.dir",
        Errno::ISDIR => "; a folder stands where a file is wanted: move it away, or name another storage.dir",
        Errno::NOENT => "; there is no such place: make the folder above it, or name another storage.dir",
        Errno::NOSPC | Errno::DQUOT => "; free space there, or name another storage.dir",
        Errno::MFILE => {
            "; this process may not open more files: raise its limit (ulimit -n, LimitNOFILE= in a systemd unit) to 4096 or more"
        }
        Errno::NFILE => "; the whole system may not open more files: raise fs.file-max",
        Errno::IO => "; the disk failed: look into the kernel's log (dmesg) before storage.dir is used again",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cure_names_the_key_and_follows_the_error() {
        for errno in [Errno::ACCESS, Errno::ROFS, Errno::NOTDIR, Errno::EXIST, Errno::NOENT, Errno::NOSPC, Errno::IO] {
            let said = cure(&errno.into());
            assert!(said.starts_with("; ") && said.contains("storage.dir"), "{errno}: {said}");
        }
        assert!(cure(&Errno::MFILE.into()).contains("ulimit -n"));
        assert_eq!(cure(&Errno::INTR.into()), "");
        assert_eq!(cure(&io::Error::other("whatever")), "");
    }
}
