//! The tape of a message: where its members stand, written down while the message is checked, so that nothing that reads
//! it afterwards looks for a quote or a bracket again.
//!
//! Only members of objects that lie in objects alone are on it, and only those of the outermost [`LEVELS`] levels: nothing
//! that is read by name lies deeper or in an array, and a large payload does not make a long tape.

use std::borrow::Cow;

use super::byte;
use super::check::{self, Name, Witness};

/// Levels of objects whose members are on the tape: an envelope, its `data`, the `options` in it, their `retry`.
const LEVELS: usize = 4;
/// The memory for more entries than these is given back after the message that needed it.
const KEPT_ENTRIES_MAX: usize = 4_096;

// The places of every message fit an entry.
const _: () = assert!(shards::limits::MESSAGE_BYTES_MAX <= u32::MAX as usize);

/// What checking a message leaves behind; kept from message to message for its memory. Lives on its core.
#[derive(Debug, Default)]
pub(in crate::edge) struct Tape {
    /// The message itself, and behind every object its members in order, each with what lies in it.
    entries: Vec<Entry>,
    /// While the message is checked: the entry of the innermost container that has one and is open.
    open: u32,
    /// While the message is checked: how many of the open containers have their members on the tape.
    levels: usize,
    /// How deeply the message nests arrays and objects.
    depth: usize,
}

/// A member of an object; the message itself is one without a name.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    start: u32,
    end: u32,
    /// The entry behind everything that lies in this one; while this one is open, the container around it.
    next: u32,
    /// Whether it is a string without escapes.
    plain: bool,
}

impl Tape {
    /// The message that `text` is, or `None` if it is not exactly one JSON value.
    pub(in crate::edge) fn read<'a>(&'a mut self, text: &'a str) -> Option<Doc<'a>> {
        *self = Tape { entries: std::mem::take(&mut self.entries), ..Tape::default() };
        self.entries.clear();
        check::walk(text, self)?;
        Some(Doc { text, entries: &self.entries, depth: self.depth })
    }

    /// Gives memory back that only an unusual message needs.
    pub(in crate::edge) fn trim(&mut self) {
        if self.entries.capacity() > KEPT_ENTRIES_MAX {
            self.entries = Vec::new();
        }
    }
}

impl Witness for Tape {
    #[inline]
    fn leaf(&mut self, depth: usize, name: Name, start: usize, end: usize, plain: bool) {
        if depth == self.levels {
            let next = self.entries.len() as u32 + 1;
            self.entries.push(Entry { name, start: start as u32, end: end as u32, next, plain });
        }
    }

    #[inline]
    fn open(&mut self, depth: usize, name: Name, start: usize, object: bool) {
        self.depth = self.depth.max(depth + 1);
        if depth == self.levels {
            let around = std::mem::replace(&mut self.open, self.entries.len() as u32);
            self.entries.push(Entry { name, start: start as u32, end: 0, next: around, plain: false });
            if object && depth < LEVELS {
                self.levels += 1;
            }
        }
    }

    #[inline]
    fn close(&mut self, depth: usize, end: usize) {
        if depth > self.levels {
            return;
        }
        self.levels = depth;
        let next = self.entries.len() as u32;
        if let Some(entry) = self.entries.get_mut(self.open as usize) {
            entry.end = end as u32;
            self.open = std::mem::replace(&mut entry.next, next);
        }
    }
}

/// A message that was checked, with its tape.
#[derive(Debug)]
pub(in crate::edge) struct Doc<'a> {
    text: &'a str,
    entries: &'a [Entry],
    depth: usize,
}

impl Doc<'_> {
    /// The message as a value.
    pub(in crate::edge) fn top(&self) -> Value<'_> {
        Value { doc: self, at: 0 }
    }

    /// How deeply it nests arrays and objects.
    pub(in crate::edge) fn depth(&self) -> usize {
        self.depth
    }
}

/// A value on the tape.
#[derive(Clone, Copy, Debug)]
pub(in crate::edge) struct Value<'a> {
    doc: &'a Doc<'a>,
    at: u32,
}

impl<'a> Value<'a> {
    /// Its text.
    #[inline]
    pub(in crate::edge) fn raw(self) -> &'a str {
        let found = self.entry().and_then(|entry| self.doc.text.get(entry.start as usize..entry.end as usize));
        found.unwrap_or_default()
    }

    /// Whether it is an object.
    #[inline]
    pub(in crate::edge) fn is_object(self) -> bool {
        self.first() == b'{'
    }

    /// Whether it is `null`.
    #[inline]
    pub(in crate::edge) fn is_null(self) -> bool {
        self.first() == b'n'
    }

    /// The string that it is; `None` for another value or half a surrogate pair.
    #[inline]
    pub(in crate::edge) fn string(self) -> Option<Cow<'a, str>> {
        let entry = self.entry()?;
        if entry.plain {
            return self.doc.text.get(entry.start as usize + 1..entry.end as usize - 1).map(Cow::Borrowed);
        }
        super::string(self.raw())
    }

    /// Its members if it is an object whose members are on the tape; none of any other value.
    #[inline]
    pub(in crate::edge) fn members(self) -> Members<'a> {
        let end = self.entry().map_or(0, |entry| entry.next);
        Members { doc: self.doc, at: self.at + 1, end }
    }

    /// What `look` finds for the name that it has as a member, unescaped.
    #[inline]
    pub(in crate::edge) fn named<T>(self, look: impl Fn(&str) -> T) -> T {
        let name = self.entry().map(|entry| entry.name).unwrap_or_default();
        match name.plain(self.doc.text) {
            Some(name) => look(name),
            None => look(&name.unescaped(self.doc.text)),
        }
    }

    /// Its first byte, which tells what kind of value it is.
    #[inline]
    fn first(self) -> u8 {
        self.entry().map_or(0, |entry| byte(self.doc.text.as_bytes(), entry.start as usize))
    }

    #[inline]
    fn entry(self) -> Option<&'a Entry> {
        self.doc.entries.get(self.at as usize)
    }
}

/// Where the members that a struct made by `fields!` picks from an object stand on the tape, by their slots.
#[derive(Debug)]
pub(in crate::edge) struct Picked<'a, const N: usize> {
    doc: Option<&'a Doc<'a>>,
    /// 0, where the message itself stands, is absent.
    entries: [u32; N],
    /// The first name that came twice.
    pub(in crate::edge) twice: Option<&'static str>,
}

impl<'a, const N: usize> Picked<'a, N> {
    /// Picks the members for whose names there is a slot, nothing from what is no object; `names` are those of the slots.
    #[inline]
    pub(in crate::edge) fn from(
        object: Option<Value<'a>>,
        names: [&'static str; N],
        slot: impl Fn(&str) -> Option<usize> + Copy,
    ) -> Self {
        const { assert!(N <= 64, "each slot has a bit") };
        let mut found = Picked { doc: object.map(|object| object.doc), entries: [0; N], twice: None };
        // A bit for each slot that came: a name counts as there even where its value is null.
        let mut seen = 0_u64;
        for value in object.map(Value::members).into_iter().flatten() {
            let Some(slot) = value.named(slot) else { continue };
            if seen & (1 << slot) != 0 {
                found.twice.get_or_insert(names[slot]);
            }
            seen |= 1 << slot;
            found.entries[slot] = if value.is_null() { 0 } else { value.at };
        }
        found
    }

    /// The value that was picked for `slot`.
    #[inline]
    pub(in crate::edge) fn value(&self, slot: usize) -> Option<Value<'a>> {
        let at = self.entries[slot];
        (at > 0).then_some(Value { doc: self.doc?, at })
    }
}

/// Walks an object's members in order.
pub(in crate::edge) struct Members<'a> {
    doc: &'a Doc<'a>,
    at: u32,
    end: u32,
}

impl<'a> Iterator for Members<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        if self.at >= self.end {
            return None;
        }
        let value = Value { doc: self.doc, at: self.at };
        self.at = value.entry()?.next;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names on the tape of `text`, outermost first, each with its value's text.
    fn taped(tape: &mut Tape, text: &str) -> Vec<String> {
        fn walk(value: Value<'_>, found: &mut Vec<String>) {
            for member in value.members() {
                found.push(format!("{}={}", member.named(str::to_owned), member.raw()));
                walk(member, found);
            }
        }
        let doc = tape.read(text).expect("valid");
        let mut found = Vec::new();
        assert_eq!(doc.top().raw(), text.trim());
        walk(doc.top(), &mut found);
        found
    }

    #[test]
    fn members_stand_behind_what_they_lie_in() {
        let mut tape = Tape::default();
        let want = ["a={\"b\":1 , \"c\":{}}", "b=1", "c={}", "d=\"x\"", "e={ \"f\":[] }", "f=[]"];
        let text = " {\"a\":{\"b\":1 , \"c\":{}},\"d\":\"x\" , \"\\u0065\" : { \"f\":[] } } ";
        assert_eq!(taped(&mut tape, text), want);
        assert!(tape.read("{\"a\":{\"b\":[{").is_none());
        assert_eq!(taped(&mut tape, text), want, "a tape leaves no trace");
        assert!(taped(&mut tape, "{}").is_empty());
        assert!(taped(&mut tape, "[{\"a\":1}]").is_empty());
    }

    #[test]
    fn what_lies_in_arrays_or_too_deep_is_passed_over() {
        let mut tape = Tape::default();
        assert_eq!(taped(&mut tape, r#"{"a":[{"b":[1]},[[]]],"c":2}"#), [r#"a=[{"b":[1]},[[]]]"#, "c=2"]);
        let text = r#"{"1":{"2":{"3":{"4":{"5":{"6":[]}},"x":0}}},"y":1}"#;
        let names: Vec<_> = taped(&mut tape, text).iter().filter_map(|member| member.chars().next()).collect();
        assert_eq!(names, ['1', '2', '3', '4', 'x', 'y']);
        assert_eq!(tape.read(text).map(|doc| doc.depth()), Some(7));
        assert_eq!(tape.read("[[],[[ ]],{}]").map(|doc| doc.depth()), Some(3));
        assert_eq!(tape.read("1").map(|doc| doc.depth()), Some(0));
    }

    #[test]
    fn a_long_tape_is_given_back() {
        let mut tape = Tape::default();
        let text = format!("{{{}\"z\":0}}", "\"a\":0,".repeat(KEPT_ENTRIES_MAX));
        assert!(tape.read(&text).is_some());
        tape.trim();
        assert_eq!(tape.entries.capacity(), 0);
        assert!(tape.read("{\"a\":0}").is_some());
        tape.trim();
        assert!(tape.entries.capacity() > 0, "a short one is kept");
    }
}
