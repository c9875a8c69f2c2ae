//! Whether a text is JSON: one pass, no tree, no recursion. It takes exactly what serde_json takes when it is told to ignore
//! the value, in a fraction of the time; a test holds the two against each other.

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

/// Whether `text` is exactly one JSON value.
pub(super) fn valid(text: &str) -> bool {
    walk(text.as_bytes()).is_some()
}

fn walk(bytes: &[u8]) -> Option<()> {
    let mut open = Open::default();
    let mut at = space_end(bytes, 0);
    loop {
        // A value begins here.
        match byte(bytes, at) {
            b'"' => at = string(bytes, at + 1)?,
            b'{' => {
                at = space_end(bytes, at + 1);
                if byte(bytes, at) != b'}' {
                    open.push(true);
                    at = key(bytes, at)?;
                    continue;
                }
                at += 1;
            }
            b'[' => {
                at = space_end(bytes, at + 1);
                if byte(bytes, at) != b']' {
                    open.push(false);
                    continue;
                }
                at += 1;
            }
            b't' => at = literal(bytes, at, b"true")?,
            b'f' => at = literal(bytes, at, b"false")?,
            b'n' => at = literal(bytes, at, b"null")?,
            _ => at = number(bytes, at)?,
        }
        // And ends here, and containers with it.
        loop {
            at = space_end(bytes, at);
            if open.depth == 0 {
                return (at == bytes.len()).then_some(());
            }
            match (byte(bytes, at), open.in_object()) {
                (b',', true) => {
                    at = key(bytes, space_end(bytes, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at = space_end(bytes, at + 1);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    open.pop();
                    at += 1;
                }
                _ => return None,
            }
        }
    }
}

/// Behind the key and colon that begin at `at`, where the value begins.
fn key(bytes: &[u8], at: usize) -> Option<usize> {
    if byte(bytes, at) != b'"' {
        return None;
    }
    let at = space_end(bytes, string(bytes, at + 1)?);
    (byte(bytes, at) == b':').then(|| space_end(bytes, at + 1))
}

/// Behind the string whose text begins at `at`.
fn string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at = special(bytes, at);
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
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
    use super::*;
    use serde::de::IgnoredAny;

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
