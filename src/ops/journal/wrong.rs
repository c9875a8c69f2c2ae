//! What can be wrong with a journal's files, where, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Value, json};
use shards::ids::Lsn;
use shards::journal::CodecError;
use shards::journal::segment::{Damage, HeadError};

/// Something wrong, and where. Lives on the thread that reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, or the folder where a file is missing.
    pub path: PathBuf,
    /// In the file, in bytes.
    pub offset: u64,
    /// The first frame that cannot be trusted; 0 where that is not known.
    pub lsn: Lsn,
    /// What.
    pub wrong: Wrong,
}

/// What is wrong. Lives on the thread that reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// A segment's content.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// A segment's header.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The file does not have the name that its header gives it.
    #[error("the segment says that it is number {written} of its shard, and the file's name says otherwise")]
    Name {
        /// By its header.
        written: u64,
    },
    /// It belongs to another journal than the newest segment.
    #[error("the segment is of another journal: its {0} differs from that of the newest segment")]
    Stranger(&'static str),
    /// Old segments are gone that nobody let go.
    #[error("the journal begins with lsn {first}, and only what is below lsn {floor} was let go")]
    Beginning {
        /// The oldest frame there is.
        first: u64,
        /// What the journal itself says of it.
        floor: u64,
    },
    /// A shard has no segment though the others were at work.
    #[error("the journal was written by {shards} shards, and there is no segment of this one")]
    NoSegment {
        /// By the headers.
        shards: u16,
    },
    /// The system refused.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// How bad it is, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// It could not be looked at.
    Unread,
    /// A later version wrote it.
    Newer,
    /// It is not as it was written.
    Damaged,
}

const RESTORE: &str = "stop the worker and put this file back from a copy; without one, move the storage folder away whole and \
                       start with an empty one: streams deliver again what was not acked, and what the lost frames had \
                       remembered may be run again";
const NEWER: &str = "use the version that wrote it, here and to run a worker on it";
const SORT: &str = "files of several journals lie in one: put back the copy whole, with each file under its own name";
const MISSING: &str = "put the missing files back from a copy; a worker that starts without them has forgotten what they held";
const UNREAD: &str = "look as the user that the worker runs as; an I/O error is the disk's";

impl Wrong {
    /// How bad it is.
    pub fn grade(&self) -> Grade {
        match self {
            Wrong::Head(HeadError::Newer { .. } | HeadError::Features { .. })
            | Wrong::Damage(Damage::Frame(CodecError::UnknownKind { .. } | CodecError::AuditVersion { .. })) => Grade::Newer,
            Wrong::Unreadable(_) => Grade::Unread,
            _ => Grade::Damaged,
        }
    }

    /// What it is, without what to do about it.
    pub fn what(&self) -> String {
        let text = self.to_string();
        match self {
            // These say what a worker that starts is to do.
            Wrong::Head(_) => text.split_once("; ").map_or(text.clone(), |(what, _)| what.to_owned()),
            _ => text,
        }
    }

    /// What to do about it.
    pub fn cure(&self) -> &'static str {
        match (self.grade(), self) {
            (Grade::Newer, _) => NEWER,
            (Grade::Unread, _) => UNREAD,
            (_, Wrong::Name { .. } | Wrong::Stranger(_) | Wrong::Head(HeadError::Misplaced { .. })) => SORT,
            (_, Wrong::Beginning { .. } | Wrong::NoSegment { .. }) => MISSING,
            _ => RESTORE,
        }
    }
}

impl Finding {
    /// As one object.
    pub fn line(&self) -> Value {
        let grade = match self.wrong.grade() {
            Grade::Unread => "unread",
            Grade::Newer => "newer",
            Grade::Damaged => "damage",
        };
        json!({
            "found": grade, "file": self.path.display().to_string(), "offset": self.offset, "lsn": self.lsn.0,
            "wrong": self.wrong.what(), "cure": self.wrong.cure(),
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { path, offset, lsn, wrong } = self;
        write!(f, "{} at byte {offset}, lsn {}: {}", path.display(), lsn.0, wrong.what())
    }
}
