//! Reading JSON text without building a tree: [`Tape`] checks a whole message in one walk and writes down where its members
//! stand, [`fields!`] picks them by name. The rest here looks at texts that are already known to be valid.
//!
//! Nothing here fails or panics on text that is not valid; it only finds nothing useful in it. Values are slices of the
//! message, so an id that is read here shares the message's bytes.

mod check;
mod tape;

use std::borrow::Cow;

use shards::limits::JSON_DEPTH_MAX;

pub(super) use tape::{Doc, Picked, Tape, Value};

/// Whether `text` is exactly one JSON value. Takes any depth of nesting without recursion.
pub(super) fn valid(text: &str) -> bool {
    check::walk(text, &mut ()).is_some()
}

/// Whether valid `text` nests arrays and objects deeper than [`JSON_DEPTH_MAX`].
pub(super) fn too_deep(text: &str) -> bool {
    let bytes = text.as_bytes();
    value_end(bytes, space_end(bytes, 0)).1 > JSON_DEPTH_MAX
}

/// Whether valid `text` has a `\u` escape that is half a surrogate pair: strict readers refuse it.
pub(super) fn has_lone_surrogate(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        if byte(bytes, at + 1) != b'u' {
            at += 2;
            continue;
        }
        match hex4(bytes, at + 2) {
            Some(0xd800..0xdc00) => {
                let low = if bytes.get(at + 6..at + 8) == Some(b"\\u") { hex4(bytes, at + 8) } else { None };
                if !matches!(low, Some(0xdc00..0xe000)) {
                    return true;
                }
                at += 12;
            }
            Some(0xdc00..0xe000) => return true,
            _ => at += 6,
        }
    }
    false
}

/// The string that the value `raw` is; `None` for another value or half a surrogate pair.
pub(super) fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.as_bytes().contains(&b'\\') {
        return serde_json::from_str::<String>(raw).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// The whole number, zero or more, that the value `raw` is; `2.0` and `2e0` are whole numbers too.
pub(super) fn integer(raw: &str) -> Option<u64> {
    if raw.bytes().all(|byte| byte.is_ascii_digit()) {
        return raw.parse().ok();
    }
    if !raw.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let value: f64 = raw.parse().ok()?;
    // Above 2^53 a double no longer says which whole number was meant.
    (value.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&value)).then_some(value as u64)
}

/// As [`integer`], and a string of digits too: protobuf's JSON mapping writes 64-bit numbers so.
pub(super) fn integer_or_digits(raw: &str) -> Option<u64> {
    match string(raw) {
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        Some(_) => None,
        None => integer(raw),
    }
}

/// The byte at `at`, 0 past the end.
#[inline]
pub(super) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// The first place from `at` that is not white space.
#[inline]
pub(super) fn space_end(bytes: &[u8], mut at: usize) -> usize {
    // Most messages have none.
    if byte(bytes, at) > b' ' {
        return at;
    }
    while matches!(byte(bytes, at), b' ' | b'\n' | b'\r' | b'\t') {
        at += 1;
    }
    at
}

/// The first quote or backslash from `at` on, or the end: eight bytes at a time.
pub(super) fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Marks the bytes of `word` that are zero; only marks above the first such byte may be wrong.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        let marks = zeros(word ^ (ONES * b'"' as u64)) | zeros(word ^ (ONES * b'\\' as u64));
        if marks != 0 {
            return at + marks.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while !matches!(bytes.get(at), None | Some(b'"' | b'\\')) {
        at += 1;
    }
    at.min(bytes.len())
}

/// Where the string that opens at `at` ends (behind its quote), and whether it is free of escapes.
pub(super) fn string_end(bytes: &[u8], at: usize) -> (usize, bool) {
    let mut at = plain_end(bytes, at + 1);
    let mut plain = true;
    while byte(bytes, at) == b'\\' {
        plain = false;
        at = plain_end(bytes, at + 2);
    }
    if at < bytes.len() { (at + 1, plain) } else { (bytes.len(), false) }
}

/// Where the value that begins at `at` ends, always beyond `at` while there is text; and how deeply it nests.
fn value_end(bytes: &[u8], mut at: usize) -> (usize, usize) {
    match byte(bytes, at) {
        b'"' => (string_end(bytes, at).0, 0),
        b'{' | b'[' => {
            let (mut depth, mut deepest) = (0_usize, 0);
            while at < bytes.len() {
                match bytes[at] {
                    b'"' => {
                        at = string_end(bytes, at).0;
                        continue;
                    }
                    b'{' | b'[' => {
                        depth += 1;
                        deepest = deepest.max(depth);
                    }
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return (at + 1, deepest);
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
            (bytes.len(), deepest)
        }
        _ => (literal_end(bytes, at), 0),
    }
}

/// Where the number, `true`, `false` or `null` that begins at `at` ends.
pub(super) fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at + 1..).unwrap_or_default();
    let length = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
    (at + 1 + length.unwrap_or(rest.len())).min(bytes.len())
}

/// Four hexadecimal digits.
pub(super) fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 4)?;
    digits.iter().try_fold(0, |sum, digit| Some(sum << 4 | (*digit as char).to_digit(16)?))
}

/// A struct of values picked from an object by name, each behind a method of its own. `null` is absent; a name that comes
/// twice is remembered.
macro_rules! fields {
    ($(#[$doc:meta])* $vis:vis $name:ident { $($field:ident: $first:literal $(| $key:literal)*),* $(,)? }) => {
        $(#[$doc])*
        $vis struct $name<'a> {
            $vis picked: $crate::edge::json::Picked<'a, { [$($first),*].len() }>,
        }

        const _: () = {
            /// The fields by their places.
            #[allow(non_camel_case_types)]
            enum Slot { $($field),* }

            impl<'a> $name<'a> {
                /// Picks them from an object; nothing from any other value.
                $vis fn read(object: Option<$crate::edge::json::Value<'a>>) -> Self {
                    let slot = |name: &str| Some(match name {
                        $($first $(| $key)* => Slot::$field as usize,)*
                        _ => return None,
                    });
                    $name { picked: $crate::edge::json::Picked::from(object, [$($first),*], slot) }
                }

                $(
                    #[inline]
                    $vis fn $field(&self) -> Option<$crate::edge::json::Value<'a>> {
                        self.picked.value(Slot::$field as usize)
                    }
                )*
            }
        };
    };
}
pub(super) use fields;

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Option<Vec<(Cow<'static, str>, &str)>> {
        let mut tape = Tape::default();
        let doc = tape.read(text).expect("valid");
        let member = |value: Value<'_>| {
            let (start, length) = (value.raw().as_ptr().addr() - text.as_ptr().addr(), value.raw().len());
            (Cow::Owned(value.named(str::to_owned)), &text[start..start + length])
        };
        doc.top().is_object().then(|| doc.top().members().map(member).collect())
    }

    #[test]
    fn members_are_found_between_any_white_space() {
        let text = " { \"a\" : 1 ,\n\"b\\u0063\":[1,{\"x\":\"}\"}] , \"\":null}";
        let found: Vec<_> = members(text).into_iter().flatten().map(|(key, value)| (key.into_owned(), value)).collect();
        let want = [("a", "1"), ("bc", "[1,{\"x\":\"}\"}]"), ("", "null")];
        assert_eq!(found, want.map(|(key, value)| (key.to_owned(), value)));
        assert!(members("[]").is_none());
        assert_eq!(members("{}").into_iter().flatten().count(), 0);
    }

    #[test]
    fn whole_numbers_are_told_from_everything_else() {
        for (raw, want) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("2.0", Some(2)),
            ("2e3", Some(2000)),
            ("2.5", None),
            ("-1", None),
            ("1e300", None),
            ("true", None),
            ("\"7\"", None),
            ("{}", None),
        ] {
            assert_eq!(integer(raw), want, "{raw}");
        }
        assert_eq!(integer_or_digits("\"7\""), Some(7));
        assert_eq!(integer_or_digits("\"\""), None);
        assert_eq!(integer_or_digits("\"-7\""), None);
    }

    #[test]
    fn depth_ignores_brackets_in_strings() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!too_deep(&deep(JSON_DEPTH_MAX)));
        assert!(too_deep(&deep(JSON_DEPTH_MAX + 1)));
        assert!(!too_deep(&format!("[\"{}\"]", "[".repeat(500))));
        assert!(!too_deep(&format!("[{}1]", "[],".repeat(500))));
        assert!(valid(&deep(200_000)), "validity does not recurse");
    }

    #[test]
    fn strings_end_at_their_own_quote_wherever_it_lies() {
        for filler in 0..40 {
            let text = "x".repeat(filler);
            let quoted = format!("\"{text}\"rest, \\ and \"more\"");
            assert_eq!(string_end(quoted.as_bytes(), 0), (filler + 2, true));
            for escape in ["\\\"", "\\\\", "\\u0022"] {
                for at in 0..=filler {
                    let quoted = format!("\"{}{escape}{}\", \"", &text[..at], &text[at..]);
                    assert_eq!(string_end(quoted.as_bytes(), 0), (filler + escape.len() + 2, false), "{quoted}");
                }
            }
            // Not valid, but must not run past the end.
            assert_eq!(string_end(format!("\"{text}").as_bytes(), 0), (filler + 1, false));
            assert_eq!(string_end(format!("\"{text}\\").as_bytes(), 0), (filler + 2, false));
            let odd = "\u{a2}\u{dc}\u{22a2}".repeat(filler);
            assert_eq!(string_end(format!("\"{odd}\"").as_bytes(), 0), (odd.len() + 2, true), "high bytes are no quotes");
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_seen() {
        for (text, want) in [
            (r#""\ud83d\ude00""#, false),
            (r#""\ud83d""#, true),
            (r#""\ude00""#, true),
            (r#""\ud83dx""#, true),
            (r#""\\ud83d""#, false),
            (r#""A\n""#, false),
        ] {
            assert_eq!(has_lone_surrogate(text), want, "{text}");
        }
    }
}
