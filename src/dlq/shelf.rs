//! One file of the store and the marks beside it, as they stand on disk. Reading takes a file that is being written to.
//!
//! `<number>.letters` holds letters one after the other; `<number>.sent` names those that need not be sent any more. Both go
//! together, so that a mark never outlives its letter nor a letter its mark.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::record::{self, Broken, FILE_HEAD_BYTES, FRAME_BYTES, Frame, Head};

const LETTERS: &str = "letters";
const MARKS: &str = "sent";

/// Where the letters of this number are.
pub fn letters_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.{LETTERS}"))
}

/// Where its marks are.
pub fn marks_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.{MARKS}"))
}

/// The numbers of all files in the folder, in order. A folder that is not there has none.
///
/// # Errors
/// It cannot be listed.
pub fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let number: Option<u32> = name.to_str().and_then(|name| name.strip_suffix(LETTERS)?.strip_suffix('.')?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A letter in its file. Lives with its [`Contents`].
#[derive(Clone, Debug)]
pub struct Letter {
    /// Where it begins.
    pub at: u64,
    /// Bytes of all of it.
    pub bytes: u64,
    /// What is known of it.
    pub head: Head,
    /// Where its body is among [`Contents::raw`].
    pub body: Range<usize>,
    /// It need not be sent any more.
    pub sent: bool,
}

/// A file as it was read. Lives with its reader.
#[derive(Debug, Default)]
pub struct Contents {
    /// The letters that are whole.
    pub letters: Vec<Letter>,
    /// All its bytes.
    pub raw: Vec<u8>,
    /// Bytes of its marks.
    pub marks_bytes: u64,
    /// Where something is that is no letter, though letters follow: damage, not the torn end that a crash leaves.
    pub damage: Vec<u64>,
    /// A newer version wrote it: nothing of it is read.
    pub newer: Option<u32>,
}

impl Contents {
    /// Reads the file of this number.
    ///
    /// # Errors
    /// It cannot be read; one that went meanwhile is [`io::ErrorKind::NotFound`].
    pub fn read(folder: &Path, number: u32) -> io::Result<Contents> {
        let raw = fs::read(letters_path(folder, number))?;
        // Read after the letters: what was sent meanwhile is marked, and a mark of a letter not seen is of no harm.
        let marks = match fs::read(marks_path(folder, number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            marks => marks?,
        };
        Ok(Contents::of(raw, &marks))
    }

    fn of(raw: Vec<u8>, marks: &[u8]) -> Contents {
        let sent: HashSet<u64> = record::marks(marks).collect();
        let mut contents = Contents { marks_bytes: marks.len() as u64, ..Contents::default() };
        match record::check_file_head(&raw) {
            Ok(()) => {}
            Err(Broken::Newer(version)) => contents.newer = Some(version),
            Err(Broken::Foreign) => contents.damage.push(0),
            // Killed while it was made.
            Err(Broken::Short) => {}
        }
        if contents.newer.is_none() && contents.damage.is_empty() {
            let (mut at, mut lost) = (FILE_HEAD_BYTES, None);
            while at < raw.len() {
                match letter(&raw, at) {
                    Some(letter) => {
                        contents.damage.extend(lost.take());
                        at += letter.bytes as usize;
                        contents.letters.push(Letter { sent: sent.contains(&letter.at), ..letter });
                    }
                    None => {
                        lost.get_or_insert(at as u64);
                        at += 1;
                    }
                }
            }
        }
        Contents { raw, ..contents }
    }

    /// A letter's body.
    pub fn body(&self, letter: &Letter) -> &[u8] {
        self.raw.get(letter.body.clone()).unwrap_or_default()
    }
}

/// The whole letter that begins at this byte.
fn letter(raw: &[u8], at: usize) -> Option<Letter> {
    let rest = raw.get(at..)?;
    let frame = Frame::read(rest).ok()?;
    let text = FRAME_BYTES..FRAME_BYTES + frame.head_bytes as usize;
    let body = text.end..text.end + frame.body_bytes as usize;
    let head = frame.head(rest.get(text)?).ok()?;
    frame.body_holds(rest.get(body.clone())?).then(|| Letter {
        at: at as u64,
        bytes: frame.bytes(),
        head,
        body: at + body.start..at + body.end,
        sent: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::head;
    use super::*;

    fn file(ids: &[&str]) -> (Vec<u8>, Vec<usize>) {
        let mut raw = record::file_head().to_vec();
        let mut ends = Vec::new();
        for id in ids {
            record::write(&mut raw, &head(id), id.as_bytes());
            ends.push(raw.len());
        }
        (raw, ends)
    }

    fn ids(contents: &Contents) -> Vec<&str> {
        contents.letters.iter().map(|letter| letter.head.id.as_str()).collect()
    }

    #[test]
    fn a_torn_end_is_left_out_and_is_no_damage() {
        let (raw, ends) = file(&["a", "b", "c"]);
        for end in 0..raw.len() {
            let contents = Contents::of(raw[..end].to_vec(), &[]);
            let whole = ends.iter().filter(|at| **at <= end).count();
            assert_eq!((contents.letters.len(), contents.damage.len()), (whole, 0), "cut at {end}");
        }
    }

    #[test]
    fn damage_is_found_and_costs_its_own_letter_alone() {
        let (raw, ends) = file(&["a", "b", "c"]);
        for byte in ends[0]..ends[1] {
            let mut bent = raw.clone();
            bent[byte] ^= 0x10;
            let contents = Contents::of(bent, &[]);
            assert_eq!((ids(&contents), contents.damage.as_slice()), (vec!["a", "c"], &[ends[0] as u64][..]), "byte {byte}");
        }
    }

    #[test]
    fn marks_belong_to_their_letters() {
        let (raw, ends) = file(&["a", "b"]);
        let contents = Contents::of(raw, &record::mark(ends[0] as u64));
        let sent: Vec<bool> = contents.letters.iter().map(|letter| letter.sent).collect();
        assert_eq!(sent, [false, true]);
        assert_eq!(contents.body(&contents.letters[1]), b"b");
    }

    #[test]
    fn nothing_of_a_newer_or_foreign_file_is_read() {
        let (mut raw, _) = file(&["a"]);
        raw[0] ^= 1;
        let contents = Contents::of(raw, &[]);
        assert_eq!((contents.letters.len(), contents.damage.as_slice()), (0, &[0][..]));
    }
}
