//! Finds a message's tenant, only to choose its shard. Everything else is read on the shard, by the wire.
//!
//! A native message's subject ends in its tenant, with which the payload must agree. Elsewhere the body is looked into. Not a
//! validator: it walks the JSON just far enough to tell the message's own `tenant_id` from one inside a payload, and
//! stops at the first. A message that it cannot read goes to shard 0, which will find out why.

use std::borrow::Cow;

use shards::map;

use super::native::tenant_of;

/// The shard that owns the message's tenant, and whether a tenant could be read at all.
pub(crate) fn shard(subject: &str, body: &[u8], header: Option<&str>, shards: u16) -> (u16, bool) {
    if shards <= 1 {
        return (0, true);
    }
    let named = tenant_of(subject).map(Cow::Borrowed);
    match named.or_else(|| tenant(body)).or_else(|| header.map(Cow::Borrowed)) {
        Some(tenant) => (map::shard(map::partition(&tenant), shards), true),
        None => (0, false),
    }
}

/// The `tenant_id` of the bare object, else that of the older worker's `data`.
fn tenant(body: &[u8]) -> Option<Cow<'_, str>> {
    let mut walk = Walk { body, at: 0 };
    let mut in_data = None;
    walk.object(|walk, key| {
        if key == "tenant_id" {
            return walk.text().map(Some);
        }
        if key == "data" && walk.peek()? == b'{' {
            in_data = walk.object(|walk, key| match key {
                "tenant_id" if walk.peek()? == b'"' => walk.text().map(Some),
                _ => walk.skip().map(|()| None),
            })?;
            // Leaving early left us inside `data`: climb out again.
            if in_data.is_some() {
                walk.climb()?;
            }
            return Some(None);
        }
        walk.skip().map(|()| None)
    })
    .flatten()
    .or(in_data)
}

/// A position in a JSON text.
struct Walk<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.body.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                _ => return Some(*byte),
            }
        }
        None
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Calls `each` with every key, standing at its value, until one call finds something. Outer `None`: unreadable.
    fn object<T>(&mut self, mut each: impl FnMut(&mut Self, &str) -> Option<Option<T>>) -> Option<Option<T>> {
        self.eat(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(None);
        }
        loop {
            let key = self.text()?;
            self.eat(b':')?;
            if let Some(found) = each(self, &key)? {
                return Some(Some(found));
            }
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Some(None);
                }
                _ => return None,
            }
        }
    }

    /// A string's value.
    fn text(&mut self) -> Option<Cow<'a, str>> {
        let start = self.string()?;
        let raw = &self.body[start..self.at - 1];
        if raw.contains(&b'\\') {
            return serde_json::from_slice::<String>(&self.body[start - 1..self.at]).ok().map(Cow::Owned);
        }
        std::str::from_utf8(raw).ok().map(Cow::Borrowed)
    }

    /// Steps over a string; gives where its content starts.
    fn string(&mut self) -> Option<usize> {
        self.eat(b'"')?;
        let start = self.at;
        loop {
            match *self.body.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(start);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Steps over any value.
    fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(|_| ()),
            b'{' | b'[' => {
                self.at += 1;
                self.climb()
            }
            _ => {
                while !matches!(*self.body.get(self.at)?, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r') {
                    self.at += 1;
                }
                Some(())
            }
        }
    }

    /// Steps out of the object or array we stand in.
    fn climb(&mut self) -> Option<()> {
        let mut depth = 1usize;
        while depth > 0 {
            match *self.body.get(self.at)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Option<&str>) {
        assert_eq!(tenant(body.as_bytes()).as_deref(), expected, "{body}");
    }

    #[test]
    fn the_messages_own_tenant_is_found_wherever_it_stands() {
        check(r#"{"tenant_id":"acme"}"#, Some("acme"));
        check(r#" { "a" : [1,{"b":"}"}] , "tenant_id" : "acme" , broken"#, Some("acme"));
        check(r#"{"version":"1","n":-1.5e3,"x":null,"y":"q\"\\","tenant_id":"t-1"}"#, Some("t-1"));
    }

    #[test]
    fn a_tenant_inside_a_payload_is_not_the_messages_own() {
        check(r#"{"job":{"payload":{"tenant_id":"evil"}},"tenant_id":"acme"}"#, Some("acme"));
        check(r#"{"job":{"tenant_id":"evil"}}"#, None);
        check(r#"{"x":"\"tenant_id\":\"evil\""}"#, None);
    }

    #[test]
    fn the_older_envelope_carries_it_in_data() {
        check(r#"{"version":"v1","kind":"exec_assign","data":{"a":{},"tenant_id":"acme","z":[{}]}}"#, Some("acme"));
        check(r#"{"data":{"tenant_id":"inner","n":{"m":1}},"tenant_id":"outer"}"#, Some("outer"));
        check(r#"{"data":{},"tenant_id":"acme"}"#, Some("acme"));
        check(r#"{"data":"text","tenant_id":"acme"}"#, Some("acme"));
    }

    #[test]
    fn escapes_are_read_as_the_wire_reads_them() {
        check(r#"{"tenant\u005fid":"\u0061cme"}"#, Some("acme"));
    }

    #[test]
    fn the_unreadable_has_no_tenant_and_goes_to_shard_0() {
        for body in ["", "{", "[]", "null", r#"{"tenant_id":7}"#, r#"{"tenant_id":"#, r#"{"tenant_id":"a"#, r#"{"a\"#, "\u{1}{}"]
        {
            check(body, None);
            assert_eq!(shard("s", body.as_bytes(), None, 8), (0, false));
        }
        assert_eq!(shard("s", b"", Some("acme"), 8).0, map::shard(map::partition("acme"), 8));
    }

    #[test]
    fn a_native_subject_names_the_tenant_whatever_the_body_is() {
        let own = map::shard(map::partition("acme"), 8);
        for body in [&b"\x0a\x04echo"[..], br#"{"context":{"tenant_id":"acme"}}"#, br#"{"tenant_id":"other"}"#, b""] {
            assert_eq!(shard("beamline.worker.steps.v1.acme", body, None, 8), (own, true));
        }
    }
}
