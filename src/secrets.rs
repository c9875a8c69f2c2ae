//! Secrets by reference: `secret://env/NAME`, `secret://file/PATH[#key]`, `secret://systemd/NAME[#key]`.
//!
//! The configuration holds references and never values. A value is read when it is needed, by the one who sends it, and its
//! memory is wiped when that one is done; nothing that is shown, logged or stored holds it ([`Redaction`] takes it out of what
//! another side echoes).

use std::env::VarError;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

const SCHEME: &str = "secret://";
/// The largest file that a secret is read from, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Shorter ones are not searched for in what comes back: they would be found everywhere.
const NEEDLE_BYTES_MIN: usize = 4;
const HIDDEN: &[u8] = b"[REDACTED]";
/// The most that JSON writes for one byte of a text: `\u0041`.
const ESCAPE_BYTES: usize = 6;

/// Where a secret is. Shared, never changes.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretRef {
    place: Place,
    key: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Env(String),
    File(PathBuf),
    Systemd(String),
}

/// Why a secret could not be read; never says what was read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reference}: {why}")]
pub struct SecretError {
    /// Which.
    pub reference: String,
    /// Why.
    pub why: String,
}

impl SecretRef {
    /// Reads a reference.
    ///
    /// # Errors
    /// The rule that it breaks; the text is not repeated, it may be the secret itself.
    pub fn parse(text: &str) -> Result<SecretRef, String> {
        const RULE: &str = "must be a reference: secret://env/NAME, secret://file/PATH or secret://systemd/NAME, with #key where \
                            the secret is one member of a JSON object";
        let rest = text.strip_prefix(SCHEME).ok_or(RULE)?;
        let (provider, rest) = rest.split_once('/').ok_or(RULE)?;
        let (path, key) = rest.split_once('#').map_or((rest, None), |(path, key)| (path, Some(key)));
        if path.is_empty() || key == Some("") || path.contains('\0') {
            return Err(RULE.to_owned());
        }
        let place = match provider {
            "env" if !path.contains('=') => Place::Env(path.to_owned()),
            // The path is absolute: the slash that ends the provider begins it.
            "file" => Place::File(Path::new("/").join(path)),
            "systemd" if !path.contains('/') && path != ".." => Place::Systemd(path.to_owned()),
            _ => return Err(RULE.to_owned()),
        };
        Ok(SecretRef { place, key: key.map(str::to_owned) })
    }

    /// The secret as it is now. Reads a small file: microseconds.
    ///
    /// # Errors
    /// It is not there, not readable or empty.
    pub fn read(&self) -> Result<Zeroizing<String>, SecretError> {
        self.look().map_err(|why| SecretError { reference: self.to_string(), why })
    }

    /// Whether there is something to read, without opening it: which member of a file it is, and what it says, is not looked at.
    ///
    /// # Errors
    /// It is not there, or not to be read.
    pub fn is_there(&self) -> Result<(), SecretError> {
        let is_file = |path: &Path| {
            let is_file = std::fs::metadata(path).map_err(|error| error.to_string())?.is_file();
            let readable = || rustix::fs::access(path, rustix::fs::Access::READ_OK).map_err(|error| error.to_string());
            if is_file { readable() } else { Err("is not a file".to_owned()) }
        };
        let there = match &self.place {
            Place::Env(name) => std::env::var_os(name).filter(|value| !value.is_empty()).map(drop).ok_or("is not set".to_owned()),
            Place::File(path) => is_file(path),
            Place::Systemd(name) => match std::env::var_os("CREDENTIALS_DIRECTORY") {
                Some(folder) => is_file(&Path::new(&folder).join(name)),
                None => Err("CREDENTIALS_DIRECTORY is not set".to_owned()),
            },
        };
        there.map_err(|why| SecretError { reference: self.to_string(), why })
    }

    fn look(&self) -> Result<Zeroizing<String>, String> {
        let text = match &self.place {
            Place::Env(name) => Zeroizing::new(std::env::var(name).map_err(|error| unset(&error).to_owned())?),
            Place::File(path) => read(path)?,
            Place::Systemd(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or("CREDENTIALS_DIRECTORY is not set")?;
                read(&Path::new(&folder).join(name))?
            }
        };
        let text = match &self.key {
            None => text,
            Some(key) => {
                let members: std::collections::HashMap<String, Member> =
                    serde_json::from_str(&text).map_err(|_| "is not a JSON object")?;
                match members.into_iter().find(|(name, _)| name == key) {
                    Some((_, Member(Some(secret)))) => secret,
                    Some(_) => return Err("the member is not a text".to_owned()),
                    None => return Err("there is no such member".to_owned()),
                }
            }
        };
        // A file ends with a line's end that is no part of the secret.
        let trimmed = text.trim_end_matches(['\r', '\n']);
        if trimmed.is_empty() {
            return Err("is empty".to_owned());
        }
        Ok(if trimmed.len() == text.len() { text } else { Zeroizing::new(trimmed.to_owned()) })
    }
}

/// The error's own words hold the variable's value.
fn unset(error: &VarError) -> &'static str {
    match error {
        VarError::NotPresent => "is not set",
        VarError::NotUnicode(_) => "is not UTF-8",
    }
}

/// A member of a JSON object, kept only if it is a text, and wiped in any case.
struct Member(Option<Zeroizing<String>>);

impl<'de> serde::Deserialize<'de> for Member {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Member(match value {
            serde_json::Value::String(text) => Some(Zeroizing::new(text)),
            _ => None,
        }))
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    // A pipe in its place must not hold up the shard.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(|error| error.to_string())?;
    let is_file = file.metadata().map_err(|error| error.to_string())?.is_file();
    if !is_file {
        return Err("is not a file".to_owned());
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Env(name) => write!(f, "{SCHEME}env/{name}")?,
            Place::File(path) => write!(f, "{SCHEME}file{}", path.display())?,
            Place::Systemd(name) => write!(f, "{SCHEME}systemd/{name}")?,
        }
        match &self.key {
            Some(key) => write!(f, "#{key}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What must not appear in anything that comes back: the secrets that were sent. Lives on its core.
#[derive(Default)]
pub struct Redaction {
    needles: Vec<Zeroizing<Vec<u8>>>,
}

impl Redaction {
    /// Another secret, in a form in which it was sent.
    pub fn add(&mut self, secret: &[u8]) {
        if secret.len() >= NEEDLE_BYTES_MIN {
            self.needles.push(Zeroizing::new(secret.to_vec()));
        }
    }

    /// How many bytes at the end of `bytes` may be the beginning of a secret that goes on in what follows.
    pub fn begun(&self, bytes: &[u8]) -> usize {
        let begun = |needle: &Zeroizing<Vec<u8>>| {
            let from = bytes.len().saturating_sub(needle.len() * ESCAPE_BYTES);
            (from..bytes.len()).find(|at| likeness(&bytes[*at..], needle) == Likeness::Begun).map_or(0, |at| bytes.len() - at)
        };
        self.needles.iter().map(begun).max().unwrap_or(0)
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// `bytes` without the secrets; `None`: there were none in it.
    pub fn apply(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut clean: Option<Vec<u8>> = None;
        for needle in &self.needles {
            let from = clean.as_deref().unwrap_or(bytes);
            if let Some(without) = replaced(from, needle) {
                clean = Some(without);
            }
        }
        clean
    }
}

fn replaced(bytes: &[u8], needle: &[u8]) -> Option<Vec<u8>> {
    let find = |from: usize| {
        let may_begin = |byte: &u8| *byte == needle[0] || *byte == b'\\';
        let mut at = from;
        while let Some(step) = bytes.get(at..).and_then(|rest| rest.iter().position(may_begin)) {
            at += step;
            if let Likeness::Whole(length) = likeness(&bytes[at..], needle) {
                return Some((at, length));
            }
            at += 1;
        }
        None
    };
    let mut next = find(0)?;
    let mut out = Vec::with_capacity(bytes.len());
    let mut done = 0;
    loop {
        let (at, length) = next;
        out.extend_from_slice(&bytes[done..at]);
        out.extend_from_slice(HIDDEN);
        done = at + length;
        match find(done) {
            Some(found) => next = found,
            None => break,
        }
    }
    out.extend_from_slice(&bytes[done..]);
    Some(out)
}

/// How the beginning of what came back compares with a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Likeness {
    Other,
    /// All that came is the beginning of it.
    Begun,
    /// So many bytes are all of it.
    Whole(usize),
}

/// As it was sent, or as a text in JSON has it, whose writer may escape any character and must escape some.
fn likeness(bytes: &[u8], needle: &[u8]) -> Likeness {
    if bytes.starts_with(needle) {
        return Likeness::Whole(needle.len());
    }
    if needle.starts_with(bytes) {
        return Likeness::Begun;
    }
    let (mut at, mut done) = (0, 0);
    while done < needle.len() {
        let (length, character) = match bytes.get(at..) {
            None | Some([]) => return Likeness::Begun,
            Some([b'\\', rest @ ..]) => match unescaped(rest) {
                Escape::Of(length, character) => (1 + length, character),
                Escape::Begun => return Likeness::Begun,
                Escape::None => return Likeness::Other,
            },
            Some([byte, ..]) if *byte == needle[done] => {
                (at, done) = (at + 1, done + 1);
                continue;
            }
            Some(_) => return Likeness::Other,
        };
        let mut buffer = [0; 4];
        let character = character.encode_utf8(&mut buffer).as_bytes();
        if !needle[done..].starts_with(character) {
            return Likeness::Other;
        }
        (at, done) = (at + length, done + character.len());
    }
    Likeness::Whole(at)
}

/// What stands behind a backslash in JSON.
enum Escape {
    /// So many bytes for this character.
    Of(usize, char),
    /// It is cut off.
    Begun,
    None,
}

fn unescaped(rest: &[u8]) -> Escape {
    let unit = |digits: &[u8]| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let character = match rest.first() {
        None => return Escape::Begun,
        Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let Some(digits) = rest.get(1..5) else { return Escape::Begun };
            let Some(first) = unit(digits) else { return Escape::None };
            if let Some(Ok(character)) = char::decode_utf16([first]).next() {
                return Escape::Of(5, character);
            }
            // Half of a character; the other half follows in an escape of its own.
            let Some(more) = rest.get(5..11) else { return Escape::Begun };
            let second = more.strip_prefix(b"\\u").and_then(unit);
            return match second.and_then(|second| char::decode_utf16([first, second]).next()) {
                Some(Ok(character)) => Escape::Of(11, character),
                _ => Escape::None,
            };
        }
        Some(_) => return Escape::None,
    };
    Escape::Of(1, character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_says_where_a_secret_is_and_nothing_else_is_one() {
        for text in ["secret://env/CRM_TOKEN", "secret://file/etc/crm.json#token", "secret://systemd/crm"] {
            assert_eq!(SecretRef::parse(text).expect(text).to_string(), text);
        }
        for text in [
            "hunter2",
            "secret://",
            "secret://env",
            "secret://env/",
            "secret://env/A=B",
            "secret://vault/x",
            "secret://systemd/../x",
            "secret://systemd/..",
            "secret://file/x#",
        ] {
            let rule = SecretRef::parse(text).expect_err(text);
            assert!(rule.starts_with("must be a reference") && !rule.contains("hunter2"), "{rule}");
        }
    }

    #[test]
    fn a_secret_is_read_from_a_file_or_one_member_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.display().to_string()
        };
        let of = |path: &str| SecretRef::parse(&format!("secret://file{path}")).expect("a reference").read();
        let plain = write("plain", "s3cret\n");
        assert_eq!(**of(&plain).expect("there"), *"s3cret");
        let json = write("json", r#"{"token":"t0ken","number":7}"#);
        assert_eq!(**of(&format!("{json}#token")).expect("there"), *"t0ken");
        let there = |path: &str| SecretRef::parse(&format!("secret://file{path}")).expect("a reference").is_there();
        assert!(there(&plain).is_ok() && there(&format!("{json}#other")).is_ok(), "it is there, whatever it says");
        assert!(there(&format!("{plain}.not")).is_err() && there(&folder.path().display().to_string()).is_err());
        for (place, why) in [
            (format!("{json}#number"), "not a text"),
            (format!("{json}#other"), "no such member"),
            (format!("{plain}#token"), "not a JSON object"),
            (write("empty", "\n"), "is empty"),
            (folder.path().display().to_string(), "not a file"),
            (format!("{plain}.not"), "No such file"),
            (write("large", &"x".repeat(70_000)), "larger than"),
        ] {
            let error = of(&place).expect_err(&place).to_string();
            assert!(error.contains(why) && !error.contains("s3cret") && !error.contains("t0ken"), "{place}: {error}");
        }
    }

    #[test]
    fn a_variable_that_is_no_text_is_not_told() {
        let gone = SecretRef::parse("secret://env/ENDSTATION_TEST_NOT_SET").expect("a reference").read().expect_err("not set");
        assert_eq!(gone.to_string(), "secret://env/ENDSTATION_TEST_NOT_SET: is not set");
        let gone =
            SecretRef::parse("secret://env/ENDSTATION_TEST_NOT_SET").expect("a reference").is_there().expect_err("not set");
        assert_eq!(gone.to_string(), "secret://env/ENDSTATION_TEST_NOT_SET: is not set");
        let odd = std::os::unix::ffi::OsStringExt::from_vec(b"hunter2\xff".to_vec());
        assert_eq!(unset(&VarError::NotUnicode(odd)), "is not UTF-8");
    }

    #[test]
    fn what_was_sent_is_taken_out_of_what_comes_back() {
        let mut redaction = Redaction::default();
        assert!(redaction.is_empty());
        redaction.add(b"s3cret");
        redaction.add(b"abc");
        assert_eq!(redaction.apply(b"nothing of it, and abc is too short to tell"), None);
        for (bytes, begun) in [(&b"so far s3c"[..], 3), (b"s3cre", 5), (b"s", 1), (b"s3cret", 0), (b"s3ss3", 2), (b"", 0)] {
            assert_eq!(redaction.begun(bytes), begun, "{bytes:?}");
        }
        let clean = redaction.apply(b"s3crets3cret, ss3crett").expect("three of them");
        assert_eq!(String::from_utf8(clean).expect("text"), "[REDACTED][REDACTED], s[REDACTED]t");
    }

    #[test]
    fn what_comes_back_in_json_is_known_however_it_is_escaped() {
        let mut redaction = Redaction::default();
        redaction.add("p\"w/d\\é<😀".as_bytes());
        for written in [
            r#"p"w/d\é<😀"#,
            r#"p\"w/d\\é<😀"#,
            r#"p\"w\/d\\\u00e9<\ud83d\ude00"#,
            r#"\u0070\u0022w\u002Fd\u005c\u00E9\u003c\uD83D\uDE00"#,
        ] {
            let text = format!("a \\ {written} z");
            let clean = redaction.apply(text.as_bytes()).map(|clean| String::from_utf8(clean).expect("text"));
            assert_eq!(clean.as_deref(), Some("a \\ [REDACTED] z"), "{written}");
            for cut in 1..written.len() {
                assert_eq!(redaction.begun(&written.as_bytes()[..cut]), cut, "{written} cut at {cut}");
                assert_eq!(redaction.begun(&[b"a ", &written.as_bytes()[..cut]].concat()), cut, "{written} cut at {cut}");
            }
        }
        for other in [r#"p\"w/d\x"#, r"p\u0022x", r"\q", r"\uzzzz", r"\ud83dx and more", r"\ud83d\u0041"] {
            assert_eq!((redaction.apply(other.as_bytes()), redaction.begun(other.as_bytes())), (None, 0), "{other}");
        }
    }
}
