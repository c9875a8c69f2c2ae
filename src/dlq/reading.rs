//! The store's files read from outside, beside a running worker or as a copy. Nothing is changed.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::FOLDER;
use super::record::Head;
use super::shelf::{Contents, letters_path, numbers};

/// A letter of the store. Lives with its reader.
#[derive(Clone, Debug)]
pub struct Found {
    /// What is known of it.
    pub head: Head,
    /// It need not be sent any more.
    pub sent: bool,
    /// Bytes of its body.
    pub body_bytes: u64,
}

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// A newer version wrote this file.
    Newer(PathBuf, u32),
    /// From this byte on something is no letter.
    Damaged(PathBuf, u64),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unread::Newer(path, version) => {
                write!(f, "{}: written in form {version} by a newer version; read it with that one", path.display())
            }
            Unread::Damaged(path, at) => {
                write!(f, "{}: from byte {at} on something is not as it was written; the other letters are shown", path.display())
            }
        }
    }
}

/// Gives every letter under `storage_dir` to `each`, the oldest first, each id once, with its body; what could not be read is
/// returned. `each` says whether it wants more.
///
/// # Errors
/// A file cannot be read.
pub fn read(storage_dir: &Path, mut each: impl FnMut(Found, &[u8]) -> bool) -> io::Result<Vec<Unread>> {
    let folder = storage_dir.join(FOLDER);
    let (mut unread, mut seen, mut read) = (Vec::new(), HashSet::new(), HashSet::new());
    loop {
        let fresh: Vec<u32> = numbers(&folder)?.into_iter().filter(|number| !read.contains(number)).collect();
        let mut went = false;
        for number in fresh {
            read.insert(number);
            let contents = match Contents::read(&folder, number) {
                // Everything in it was sent meanwhile, or moved to a newer file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    went = true;
                    continue;
                }
                contents => contents?,
            };
            let path = letters_path(&folder, number);
            unread.extend(contents.newer.map(|version| Unread::Newer(path.clone(), version)));
            unread.extend(contents.damage.iter().map(|at| Unread::Damaged(path.clone(), *at)));
            for letter in &contents.letters {
                let body = contents.body(letter);
                let found = Found { head: letter.head.clone(), sent: letter.sent, body_bytes: body.len() as u64 };
                if seen.insert(letter.head.id.clone()) && !each(found, body) {
                    return Ok(unread);
                }
            }
        }
        if !went {
            return Ok(unread);
        }
    }
}

/// Whether there is a store at all.
pub fn exists(storage_dir: &Path) -> bool {
    storage_dir.join(FOLDER).is_dir()
}
