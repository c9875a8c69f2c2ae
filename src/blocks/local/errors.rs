//! What the disk may say, as faults: fixed sentences, the figures in the details.

use rustix::io::Errno;
use shards::outcome::{Code, Fault};

use super::super::inputs::{fault, forbidden};

/// Makes the faults of the local blob store. None of them has changed anything unless it says so.
pub(super) enum Refusal {}

impl Refusal {
    /// A path that breaks a rule.
    pub(super) fn path(rule: &str) -> Fault {
        forbidden("path", rule)
    }

    /// No blob there.
    pub(super) fn nothing_there() -> Fault {
        fault(Code::InvalidInput, "There is no blob at this path.", "path", "names a stored blob")
    }

    /// Another content stands there and may not be replaced.
    pub(super) fn taken() -> Fault {
        let sentence = "Another content stands at this path and may not be replaced.";
        fault(Code::ExecutionFailed, sentence, "path", "free, or holding the same content")
    }

    /// The disk took the data but did not confirm it; another sync could confirm what is lost, so this is not tried again.
    pub(super) fn unsynced(error: Errno) -> Fault {
        // No descriptor for the sync: nobody has asked the disk yet, so another try may.
        if matches!(error, Errno::MFILE | Errno::NFILE) {
            return Refusal::from(error);
        }
        Fault::new(Code::ExecutionFailed, "The disk did not confirm a write.").with_details(errno(error))
    }

    /// Any other word of the kernel.
    pub(super) fn from(error: Errno) -> Fault {
        match error {
            Errno::LOOP | Errno::XDEV => forbidden("path", "passes no link"),
            Errno::NOTDIR | Errno::ISDIR => forbidden("path", "names a blob, and only folders before it"),
            Errno::NAMETOOLONG => forbidden("path", "short enough for the disk"),
            Errno::NOSPC | Errno::DQUOT => {
                Fault::new(Code::ResourceUnavailable, "The disk has no room for the blob.").with_details(errno(error))
            }
            _ => Fault::new(Code::ResourceUnavailable, "The blob store does not answer now.").with_details(errno(error)),
        }
    }
}

fn errno(error: Errno) -> String {
    format!(r#"{{"errno":{}}}"#, error.raw_os_error())
}
