//! Whether a text is JSON: one pass, no tree, no recursion. It takes exactly what serde_json takes when it is told to ignore
//! the value, in a fraction of the time; a test holds the two against each other. Who wants to know more than that is told
//! of every value on the way: a [`Witness`].

use std::borrow::Cow;

use super::{byte, hex4, space_end};

/// Open containers, innermost last: a bit each, set for an object. Nesting within the usual bound takes no memory.
#[derive(Default)]
struct Open {
    bits: u64,
    depth: usize,
    outer: Vec<u64>,
}

impl Open {
    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        self.bits = self.bits << 1 | u64::from(object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.bits >>= 1;
        if self.depth > 0
            && self.depth.is_multiple_of(64)
            && let Some(bits) = self.outer.pop()
        {
            self.bits = bits;
        }
    }

    fn in_object(&self) -> bool {
        self.bits & 1 == 1
    }
}

/// The name of an object's member, between its quotes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Name {
    start: u32,
    end: u32,
    plain: bool,
}

impl Name {
    /// The name in the `text` that it was found in, if nothing in it is escaped.
    #[inline]
    pub(super) fn plain(self, text: &str) -> Option<&str> {
        if self.plain { text.get(self.start as usize..self.end as usize) } else { None }
    }

    /// The name in the `text` that it was found in, unescaped; empty if it cannot be, for it is no name of ours then.
    #[cold]
    pub(super) fn unescaped(self, text: &str) -> Cow<'_, str> {
        let quoted = text.get((self.start as usize).saturating_sub(1)..self.end as usize + 1);
        quoted.and_then(super::string).unwrap_or_default()
    }
}

/// Who is told of every value that the check comes by. `depth` containers are open around it; `name` says nothing of what
/// lies in an array.
pub(super) trait Witness {
    /// A string, number or literal between two places; `plain` if it is a string without escapes.
    fn leaf(&mut self, depth: usize, name: Name, start: usize, end: usize, plain: bool);
    /// A container begins.
    fn open(&mut self, depth: usize, name: Name, start: usize, object: bool);
    /// It ends before `end`.
    fn close(&mut self, depth: usize, end: usize);
}

/// Nobody: all that is asked is whether the text is valid.
impl Witness for () {
    fn leaf(&mut self, _: usize, _: Name, _: usize, _: usize, _: bool) {}
    fn open(&mut self, _: usize, _: Name, _: usize, _: bool) {}
    fn close(&mut self, _: usize, _: usize) {}
}

/// Walks `text` if it is exactly one JSON value; `None` from where on it is not.
pub(super) fn walk(text: &str, witness: &mut impl Witness) -> Option<()> {
    let bytes = text.as_bytes();
    let mut open = Open::default();
    let mut name = Name::default();
    let mut at = space_end(bytes, 0);
    loop {
        // A value begins here.
        let start = at;
        let first = byte(bytes, at);
        match first {
            b'"' => {
                let plain;
                (at, plain) = string(bytes, at + 1)?;
                witness.leaf(open.depth, name, start, at, plain);
            }
            b'{' | b'[' => {
                let object = first == b'{';
                witness.open(open.depth, name, start, object);
                open.push(object);
                at = space_end(bytes, at + 1);
                if byte(bytes, at) != if object { b'}' } else { b']' } {
                    if object {
                        (name, at) = key(bytes, at)?;
                    }
                    continue;
                }
            }
            _ => {
                at = match first {
                    b't' => literal(bytes, at, b"true")?,
                    b'f' => literal(bytes, at, b"false")?,
                    b'n' => literal(bytes, at, b"null")?,
                    _ => number(bytes, at)?,
                };
                witness.leaf(open.depth, name, start, at, false);
            }
        }
        // And ends here, and containers with it.
        loop {
            at = space_end(bytes, at);
            if open.depth == 0 {
                return (at == bytes.len()).then_some(());
            }
            match (byte(bytes, at), open.in_object()) {
                (b',', true) => {
                    (name, at) = key(bytes, space_end(bytes, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at = space_end(bytes, at + 1);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    open.pop();
                    at += 1;
                    witness.close(open.depth, at);
                }
                _ => return None,
            }
        }
    }
}

/// The key that begins at `at`, and where the value behind its colon begins.
fn key(bytes: &[u8], at: usize) -> Option<(Name, usize)> {
    if byte(bytes, at) != b'"' {
        return None;
    }
    let (end, plain) = string(bytes, at + 1)?;
    let name = Name { start: (at + 1) as u32, end: (end - 1) as u32, plain };
    let at = space_end(bytes, end);
    (byte(bytes, at) == b':').then(|| (name, space_end(bytes, at + 1)))
}

/// Behind the string whose text begins at `at`, and whether it is free of escapes.
#[inline]
fn string(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    let at = special(bytes, at);
    if byte(bytes, at) == b'"' {
        return Some((at + 1, true));
    }
    escaped(bytes, at)
}

/// As [`string`], for one that has something else than a quote at `at`.
fn escaped(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    loop {
        match bytes.get(at)? {
            b'"' => return Some((at + 1, false)),
            b'\\' => match bytes.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                b'u' => {
                    hex4(bytes, at + 2)?;
                    at += 6;
                }
                _ => return None,
            },
            _ => return None,
        }
        at = special(bytes, at);
    }
}

/// The first quote, backslash or control character from `at` on, or the end: eight bytes at a time.
fn special(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Each marks the bytes of `word` below a bound; only marks above the first such byte may be wrong.
    let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word & (ONES << 7);
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        let marks = below(word, 0x20) | below(word ^ (ONES * b'"' as u64), 1) | below(word ^ (ONES * b'\\' as u64), 1);
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|byte| *byte >= 0x20 && !matches!(byte, b'"' | b'\\')) {
        at += 1;
    }
    at
}

fn literal(bytes: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    (bytes.get(at..at + word.len()) == Some(word)).then_some(at + word.len())
}

/// Behind the number that begins at `at`.
fn number(bytes: &[u8], mut at: usize) -> Option<usize> {
    if byte(bytes, at) == b'-' {
        at += 1;
    }
    at = match byte(bytes, at) {
        b'0' => at + 1,
        _ => digits(bytes, at)?,
    };
    if byte(bytes, at) == b'.' {
        at = digits(bytes, at + 1)?;
    }
    if matches!(byte(bytes, at), b'e' | b'E') {
        at += 1;
        if matches!(byte(bytes, at), b'+' | b'-') {
            at += 1;
        }
        at = digits(bytes, at)?;
    }
    Some(at)
}

/// Behind the digits at `at`, of which there must be one.
fn digits(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    while byte(bytes, end).is_ascii_digit() {
        end += 1;
    }
    (end > at).then_some(end)
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;

    use crate::edge::json::valid;

    fn agree(text: &str) {
        assert_eq!(valid(text), serde_json::from_str::<IgnoredAny>(text).is_ok(), "{text:?}");
    }

    const GOOD: [&str; 12] = [
        r#" { "a" : [ 1 , -2.5e+10 , 0 , -0.0 , 1E3 ] , "b" : { } , "c" : [ ] } "#,
        r#"{"k\"\\\/\b\f\n\r\té\ud800":"tail of more than eight bytes, é😀 and "}"#,
        r#"[true,false,null,"",{"":{"":[[],[{}]]}}]"#,
        "\"text\u{7f}\"",
        "0",
        "-1",
        "10.25",
        "1e9",
        "null",
        "\t[\r\n]",
        r#"{"version":"1","assignment_id":"5e5e","options":{"priority":50,"retry":{"max_attempts":2}}}"#,
        r#"[1,[2,[3,[4]]],{"a":{"b":{"c":[{}]}}}]"#,
    ];

    #[test]
    fn it_takes_what_serde_json_takes_and_nothing_else() {
        // Every good text, each of its beginnings, and each with one byte left out, doubled or put in another's place.
        let swaps = ["\"", "\\", "{", "}", "[", "]", ",", ":", " ", "0", "-", ".", "e", "u", "t", "\u{1}", "\u{1f}", "é", "\0"];
        for good in GOOD {
            assert!(valid(good), "{good}");
            let marks: Vec<usize> = good.char_indices().map(|(at, _)| at).chain([good.len()]).collect();
            for pair in marks.windows(2) {
                let (head, one, tail) = (&good[..pair[0]], &good[pair[0]..pair[1]], &good[pair[1]..]);
                agree(head);
                agree(tail);
                agree(&format!("{head}{tail}"));
                agree(&format!("{head}{one}{one}{tail}"));
                for swap in swaps {
                    agree(&format!("{head}{swap}{tail}"));
                    agree(&format!("{head}{swap}{one}{tail}"));
                }
            }
        }
        for odd in
            ["", " ", "01", "-", "1.", ".5", "1e", "+1", "tru", "nul", "\"\\u12\"", "\"\\x\"", "{\"a\"}", "[1 2]", "{,}", "[,]"]
        {
            assert!(!valid(odd), "{odd}");
            agree(odd);
        }
    }

    #[test]
    fn nesting_is_remembered_over_every_depth() {
        for depth in [1, 2, 63, 64, 65, 127, 128, 129, 130, 1000] {
            let mut text = String::new();
            let object = |level: usize| level.is_multiple_of(3) || level.is_multiple_of(64);
            (0..depth).for_each(|level| text.push_str(if object(level) { "{\"a\":" } else { "[" }));
            text.push('1');
            (0..depth).rev().for_each(|level| text.push(if object(level) { '}' } else { ']' }));
            assert!(valid(&text), "{depth}");
            for at in 0..depth {
                let mut wrong = text.clone().into_bytes();
                let last = wrong.len() - 1 - at;
                wrong[last] = if wrong[last] == b'}' { b']' } else { b'}' };
                assert!(!valid(std::str::from_utf8(&wrong).expect("ASCII")), "{depth} {at}");
            }
        }
    }
}
