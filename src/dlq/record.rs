//! The bytes of the store: a file's head, a letter with its head and body, and the marks beside it. Pure.
//!
//! A letter's head is JSON text, so that a later version may add to it and a person can read it; its body is the letter as it
//! is sent. Head and body have a checksum each, so that a list needs no bodies. Integers are little-endian.

use serde::{Deserialize, Serialize};

/// The version of files that this code writes, and the newest it reads.
pub const VERSION: u32 = 1;
/// Bytes before a file's first letter.
pub const FILE_HEAD_BYTES: usize = 16;
/// Bytes of a letter before its head's text.
pub const FRAME_BYTES: usize = 20;
/// Bytes of one mark.
pub const MARK_BYTES: usize = 16;
/// The largest head's text, in bytes: NATS takes no headers larger than this.
pub const HEAD_BYTES_MAX: u32 = 1 << 20;
/// The largest body, in bytes: a message of the journal's largest size in base64, and what stands around it.
pub const BODY_BYTES_MAX: u32 = 128 << 20;

const FILE_MAGIC: [u8; 8] = *b"endstdlq";
const LETTER_MAGIC: [u8; 4] = *b"LETR";

/// What is known of a letter without its body. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its message id: the same wherever the letter is.
    pub id: String,
    /// Where it is to be published.
    pub subject: String,
    /// Its headers, as they are published.
    pub headers: Vec<(String, String)>,
    /// When it came here, Unix ms.
    pub stored_ms: u64,
    /// Why it is here.
    pub why: Why,
    /// It has been published where nothing confirms it, or its reader has been told otherwise.
    pub told: bool,
}

/// Why a letter is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No stream takes its subject.
    NoStream,
    /// The stream does not take it.
    Refused,
    /// The server takes no message of this size: a shorter one without the original went out under the same id.
    TooLarge,
    /// There is no server (`endstation run`, and calls while there is no connection).
    NoServer,
    /// A reason of a newer version.
    #[serde(other)]
    Other,
}

impl Head {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// They end too soon: a crash leaves that at a file's end.
    Short,
    /// They are something else.
    Foreign,
    /// A newer version wrote them.
    Newer(u32),
}

/// The first bytes of a file.
pub fn file_head() -> [u8; FILE_HEAD_BYTES] {
    let mut head = [0; FILE_HEAD_BYTES];
    head[..8].copy_from_slice(&FILE_MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c::crc32c(&head[..12]);
    head[12..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Whether these are the first bytes of a file that can be read.
///
/// # Errors
/// They are not.
pub fn check_file_head(bytes: &[u8]) -> Result<(), Broken> {
    let head = bytes.get(..FILE_HEAD_BYTES).ok_or(Broken::Short)?;
    if head[..8] != FILE_MAGIC || word(head, 12) != crc32c::crc32c(&head[..12]) {
        return Err(Broken::Foreign);
    }
    match word(head, 8) {
        version if version > VERSION => Err(Broken::Newer(version)),
        _ => Ok(()),
    }
}

/// The lengths of a letter's parts, from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of its head's text.
    pub head_bytes: u32,
    /// Bytes of its body.
    pub body_bytes: u32,
    head_crc: u32,
    body_crc: u32,
}

impl Frame {
    /// Reads a letter's first [`FRAME_BYTES`].
    ///
    /// # Errors
    /// They are not that.
    pub fn read(bytes: &[u8]) -> Result<Frame, Broken> {
        let bytes = bytes.get(..FRAME_BYTES).ok_or(Broken::Short)?;
        let (head_bytes, body_bytes) = (word(bytes, 4), word(bytes, 8));
        if bytes[..4] != LETTER_MAGIC || head_bytes > HEAD_BYTES_MAX || body_bytes > BODY_BYTES_MAX {
            return Err(Broken::Foreign);
        }
        Ok(Frame { head_bytes, body_bytes, head_crc: word(bytes, 12), body_crc: word(bytes, 16) })
    }

    /// Bytes of the whole letter.
    pub fn bytes(&self) -> u64 {
        FRAME_BYTES as u64 + u64::from(self.head_bytes) + u64::from(self.body_bytes)
    }

    /// Reads the head's text.
    ///
    /// # Errors
    /// It is not as it was written.
    pub fn head(&self, text: &[u8]) -> Result<Head, Broken> {
        // The lengths are under the head's checksum too.
        if salted(self.head_bytes, self.body_bytes, text) != self.head_crc {
            return Err(Broken::Foreign);
        }
        serde_json::from_slice(text).map_err(|_| Broken::Foreign)
    }

    /// Whether the body is as it was written.
    pub fn body_holds(&self, body: &[u8]) -> bool {
        body.len() == self.body_bytes as usize && crc32c::crc32c(body) == self.body_crc
    }
}

/// Writes a letter behind what is in `out`.
pub fn write(out: &mut Vec<u8>, head: &Head, body: &[u8]) {
    let text = serde_json::to_vec(head).expect("texts and numbers are JSON");
    let lengths = (text.len() as u32, body.len() as u32);
    out.extend(LETTER_MAGIC);
    out.extend(lengths.0.to_le_bytes());
    out.extend(lengths.1.to_le_bytes());
    out.extend(salted(lengths.0, lengths.1, &text).to_le_bytes());
    out.extend(crc32c::crc32c(body).to_le_bytes());
    out.extend(text);
    out.extend(body);
}

/// The mark that the letter at this place in its file need not be sent any more.
pub fn mark(at: u64) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..8].copy_from_slice(&at.to_le_bytes());
    let crc = crc32c::crc32c(&mark[..12]);
    mark[12..].copy_from_slice(&crc.to_le_bytes());
    mark
}

/// The places that marks name. A torn last one is none.
pub fn marks(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let whole = bytes.chunks_exact(MARK_BYTES).filter(|mark| crc32c::crc32c(&mark[..12]) == word(mark, 12));
    whole.filter_map(|mark| mark[..8].try_into().ok().map(u64::from_le_bytes))
}

fn salted(head_bytes: u32, body_bytes: u32, text: &[u8]) -> u32 {
    let lengths = crc32c::crc32c_append(crc32c::crc32c(&head_bytes.to_le_bytes()), &body_bytes.to_le_bytes());
    crc32c::crc32c_append(lengths, text)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn head(id: &str) -> Head {
        let headers = vec![("Nats-Msg-Id".to_owned(), id.to_owned()), ("tenant_id".to_owned(), "acme".to_owned())];
        let (subject, stored_ms) = ("caf.exec.dlq.v1".to_owned(), 1_700_000_000_000);
        Head { id: id.to_owned(), subject, headers, stored_ms, why: Why::NoStream, told: true }
    }

    #[test]
    fn what_is_written_is_read_and_every_changed_bit_is_seen() {
        let mut bytes = Vec::new();
        write(&mut bytes, &head("d-1"), b"{\"a\":1}");
        let read = |bytes: &[u8]| -> Result<(Head, Vec<u8>), Broken> {
            let frame = Frame::read(bytes)?;
            let (from, to) = (FRAME_BYTES, FRAME_BYTES + frame.head_bytes as usize);
            let head = frame.head(bytes.get(from..to).ok_or(Broken::Short)?)?;
            let body = bytes.get(to..).unwrap_or_default();
            if frame.body_holds(body) { Ok((head, body.to_vec())) } else { Err(Broken::Foreign) }
        };
        assert_eq!(read(&bytes), Ok((head("d-1"), b"{\"a\":1}".to_vec())));
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bent).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_file_of_a_newer_version_is_told_from_a_foreign_one() {
        assert_eq!(check_file_head(&file_head()), Ok(()));
        let mut newer = file_head();
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[..12]);
        newer[12..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(check_file_head(&newer), Err(Broken::Newer(2)));
        newer[0] = b'E';
        assert_eq!(check_file_head(&newer), Err(Broken::Foreign));
        assert_eq!(check_file_head(&newer[..5]), Err(Broken::Short));
    }

    #[test]
    fn torn_and_bent_marks_are_none() {
        let mut bytes = [mark(16), mark(4_000)].concat();
        assert_eq!(marks(&bytes).collect::<Vec<_>>(), [16, 4_000]);
        bytes[0] ^= 1;
        bytes.truncate(31);
        assert_eq!(marks(&bytes).count(), 0);
    }

    #[test]
    fn a_reason_of_a_newer_version_is_no_damage() {
        let mut text = serde_json::to_value(head("d-1")).expect("JSON");
        text["why"] = "because".into();
        text["more"] = 1.into();
        let read: Head = serde_json::from_value(text).expect("a head");
        assert_eq!(read.why, Why::Other);
    }
}
