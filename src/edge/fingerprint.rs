//! **F**, the fingerprint: SHA-256 over a block's canonical name and the canonical form of what it is asked to do.
//!
//! Canonical form: object keys sorted by bytes, strings unescaped, numbers as their literal text, white space gone, every
//! part tagged and length-prefixed, so that two different contents never give the same bytes. One pass over text that is
//! already valid JSON, into buffers that are kept from message to message.
//! A key that comes twice in one object has no canonical form: it is refused, with a pointer to it. So is a number that no
//! double holds: a block would fail on it, or pass it on in a result that the router's reader refuses.

use sha2::{Digest, Sha256};
use shards::ids::Fingerprint;
use shards::limits::JSON_DEPTH_MAX;
use shards::outcome::{Code, Fault};

use crate::edge::json::{byte, hex4, literal_end, plain_end, space_end};
use crate::edge::pen::Pen;

/// Buffers above this are given back after a large message, in bytes.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// What a step is asked to do, as raw JSON text of the message.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A native step's inputs.
    Inputs(&'a str),
    /// A Beamline assignment's `job`: everything in it but its `type`, and but a payload or reference that is `null`.
    Job(&'a str),
}

/// The buffers a fingerprint is made in. Lives on its core.
#[derive(Debug, Default)]
pub struct Canon {
    out: Vec<u8>,
    spare: Vec<u8>,
    members: Vec<Member>,
}

/// A member of an object that is being read: `out[at..end]`, its key's bytes up to `key_end`.
#[derive(Clone, Copy, Debug)]
struct Member {
    at: usize,
    key_end: usize,
    end: usize,
}

/// Tag and length before a string's bytes.
const HEAD: usize = 5;

impl Canon {
    /// F of `content` for `block`; `rewritten` are the inputs as the block table changed them, if it did.
    ///
    /// # Errors
    /// INVALID_FORMAT with a pointer: a key twice in one object, half a surrogate pair, a number that no double holds, nesting
    /// too deep.
    pub fn fingerprint(&mut self, block: &str, content: Content<'_>, rewritten: Option<&str>) -> Result<Fingerprint, Fault> {
        self.out.clear();
        self.members.clear();
        self.out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        self.out.extend_from_slice(block.as_bytes());
        let (base, text, job) = match content {
            Content::Inputs(text) => ("/inputs", text, false),
            Content::Job(text) => ("/job", text, true),
        };
        self.whole(text, job).map_err(|refused| refused.fault(base))?;
        if let Some(text) = rewritten {
            self.whole(text, false).map_err(|refused| refused.fault("/inputs"))?;
        }
        let digest = Sha256::digest(&self.out);
        if self.out.capacity() + self.spare.capacity() > KEPT_BYTES_MAX {
            *self = Canon::default();
        }
        Ok(Fingerprint(digest.into()))
    }

    fn whole(&mut self, text: &str, job: bool) -> Result<(), Refused> {
        let bytes = text.as_bytes();
        self.value(bytes, space_end(bytes, 0), 0, job).map(drop)
    }

    /// Writes the value at `at`; where it ends. `depth` containers are open around it.
    fn value(&mut self, bytes: &[u8], at: usize, depth: usize, job: bool) -> Result<usize, Refused> {
        match byte(bytes, at) {
            b'"' => self.string(bytes, at),
            b'{' | b'[' if depth >= JSON_DEPTH_MAX => Err(Refused::new("the message is nested too deeply")),
            b'{' => self.object(bytes, at, depth + 1, job),
            b'[' => self.array(bytes, at, depth + 1),
            tag @ (b't' | b'f' | b'n') => {
                self.out.push(tag);
                Ok(literal_end(bytes, at))
            }
            _ => {
                let end = literal_end(bytes, at);
                let literal = bytes.get(at..end).unwrap_or_default();
                if !fits_double(literal) {
                    return Err(Refused::new("a number is larger than JSON readers take"));
                }
                self.out.push(b'd');
                self.out.extend_from_slice(&(literal.len() as u32).to_le_bytes());
                self.out.extend_from_slice(literal);
                Ok(end.max(at + 1))
            }
        }
    }

    fn array(&mut self, bytes: &[u8], at: usize, depth: usize) -> Result<usize, Refused> {
        self.out.push(b'a');
        let mut at = space_end(bytes, at + 1);
        let mut index = 0_usize;
        while at < bytes.len() && bytes[at] != b']' {
            at = self.value(bytes, at, depth, false).map_err(|refused| refused.under(&index.to_string()))?;
            at = space_end(bytes, at);
            if byte(bytes, at) == b',' {
                at = space_end(bytes, at + 1);
            }
            index += 1;
        }
        self.out.push(b']');
        Ok(at + 1)
    }

    fn object(&mut self, bytes: &[u8], at: usize, depth: usize, job: bool) -> Result<usize, Refused> {
        self.out.push(b'o');
        let body = self.out.len();
        let first = self.members.len();
        let mut sorted = true;
        let mut at = space_end(bytes, at + 1);
        while at < bytes.len() && bytes[at] != b'}' {
            let start = self.out.len();
            at = self.string(bytes, at)?;
            let key_end = self.out.len();
            // Over the colon.
            at = space_end(bytes, space_end(bytes, at) + 1);
            let value_at = at;
            at = self.value(bytes, at, depth, false).map_err(|refused| refused.under(&self.key(start, key_end)))?;
            if job && self.left_out(start, key_end, byte(bytes, value_at)) {
                self.out.truncate(start);
            } else {
                let member = Member { at: start, key_end, end: self.out.len() };
                if sorted && let Some(before) = self.members[first..].last() {
                    sorted = self.out[before.at + HEAD..before.key_end] < self.out[start + HEAD..key_end];
                }
                self.members.push(member);
            }
            at = space_end(bytes, at);
            if byte(bytes, at) == b',' {
                at = space_end(bytes, at + 1);
            }
        }
        if !sorted {
            self.sort(first, body)?;
        }
        self.members.truncate(first);
        self.out.push(b'}');
        Ok(at + 1)
    }

    /// Brings the members from `first` on, which fill `out` from `body` on, into the order of their keys.
    fn sort(&mut self, first: usize, body: usize) -> Result<(), Refused> {
        let Canon { out, spare, members } = self;
        let members = &mut members[first..];
        let key = |member: &Member| &out[member.at + HEAD..member.key_end];
        members.sort_unstable_by(|one, other| key(one).cmp(key(other)));
        if let Some(pair) = members.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            let name = String::from_utf8_lossy(key(&pair[0])).into_owned();
            return Err(Refused::new("a key comes twice in one object").under(&name));
        }
        spare.clear();
        for member in members {
            spare.extend_from_slice(&out[member.at..member.end]);
        }
        out.truncate(body);
        out.extend_from_slice(spare);
        Ok(())
    }

    /// Whether a member of `job` is not part of the content: its type is hashed as the block's name, null is absent.
    fn left_out(&self, start: usize, key_end: usize, value: u8) -> bool {
        match &self.out[start + HEAD..key_end] {
            b"type" => true,
            b"payload" | b"payload_ref" => value == b'n',
            _ => false,
        }
    }

    fn key(&self, start: usize, key_end: usize) -> String {
        String::from_utf8_lossy(self.out.get(start + HEAD..key_end).unwrap_or_default()).into_owned()
    }

    /// Writes the string that opens at `at`, unescaped; where it ends.
    fn string(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refused> {
        let start = self.out.len();
        self.out.extend_from_slice(b"s\0\0\0\0");
        let mut at = at + 1;
        loop {
            let end = plain_end(bytes, at);
            self.out.extend_from_slice(bytes.get(at..end).unwrap_or_default());
            at = end;
            if byte(bytes, at) != b'\\' {
                break;
            }
            at = self.escape(bytes, at + 1)?;
        }
        let length = (self.out.len() - start - HEAD) as u32;
        self.out[start + 1..start + HEAD].copy_from_slice(&length.to_le_bytes());
        Ok(at + 1)
    }

    /// Writes what the escape behind the backslash before `at` stands for; where it ends.
    fn escape(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refused> {
        let plain = match byte(bytes, at) {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let half = || Refused::new("a string has half a surrogate pair");
                let mut code = hex4(bytes, at + 1).ok_or_else(half)?;
                let mut end = at + 5;
                if (0xd800..0xdc00).contains(&code) && bytes.get(end..end + 2) == Some(b"\\u") {
                    let low = hex4(bytes, end + 2).filter(|low| (0xdc00..0xe000).contains(low)).ok_or_else(half)?;
                    code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    end += 6;
                }
                let found = char::from_u32(code).ok_or_else(half)?;
                self.out.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(end);
            }
            other => other,
        };
        self.out.push(plain);
        Ok(at + 1)
    }
}

/// Whether a double can hold a number about as large as this literal: most JSON readers refuse any other.
pub(super) fn fits_double(literal: &[u8]) -> bool {
    // So few digits without an exponent always fit, and that is nearly every number.
    let plain = literal.len() < 300 && !literal.iter().any(|byte| matches!(byte, b'e' | b'E'));
    let value = || std::str::from_utf8(literal).ok().and_then(|text| text.parse::<f64>().ok());
    plain || value().is_some_and(f64::is_finite)
}

/// Why there is no canonical form, and where.
struct Refused {
    why: &'static str,
    pointer: String,
}

impl Refused {
    fn new(why: &'static str) -> Self {
        Refused { why, pointer: String::new() }
    }

    /// The same, one container further out.
    fn under(mut self, segment: &str) -> Self {
        self.pointer.insert_str(0, &format!("/{}", segment.replace('~', "~0").replace('/', "~1")));
        self
    }

    fn fault(self, base: &str) -> Fault {
        Fault::new(Code::InvalidFormat, self.why).with_details(field(&format!("{base}{}", self.pointer)))
    }
}

/// A fault's details that point at a field.
pub(super) fn field(pointer: &str) -> Vec<u8> {
    let mut pen = Pen::with_capacity(pointer.len() + 16);
    pen.raw("{\"field\":").text(pointer).raw("}");
    pen.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Fingerprint, Fault> {
        assert!(crate::edge::json::valid(text), "the test's own text: {text}");
        Canon::default().fingerprint("echo", Content::Inputs(text), None)
    }

    #[test]
    fn contents_that_mean_the_same_have_one_fingerprint() {
        for same in [
            &["{}", " { } ", "{\n}"][..],
            &[r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#, "{ \"b\" : 2 ,\t\"a\"\r\n: 1 }", r#"{"\u0062":2,"\u0061":1}"#],
            &[r#""é""#, r#""\u00e9""#, r#""\u00E9""#],
            &[r#""😀""#, r#""\ud83d\ude00""#],
            &[r#""/\"\\""#, r#""\/\u0022\u005c""#],
            &[r#""\b\f\n\r\t""#, r#""\u0008\u000c\u000a\u000d\u0009""#],
            &[r#"{"x":{"d":[1,{"k":0,"j":1}],"c":3},"a":0}"#, r#"{"a":0,"x":{"c":3,"d":[1,{"j":1,"k":0}]}}"#],
            &["[1,2]", "[ 1 , 2 ]"],
            &[r#"{"c":{"z":1,"y":[]},"b":{},"a":{"q":{},"p":0}}"#, r#"{"a":{"p":0,"q":{}},"b":{},"c":{"y":[],"z":1}}"#],
        ] {
            for other in same {
                assert_eq!(of(same[0]), of(other), "{} and {other}", same[0]);
            }
        }
    }

    #[test]
    fn contents_that_differ_have_different_fingerprints() {
        let all = [
            "1",
            "1.0",
            "1e0",
            "10",
            "\"1\"",
            "-1",
            "{}",
            "[]",
            "[[]]",
            "[{}]",
            "[[],[]]",
            "null",
            "true",
            "false",
            "\"null\"",
            "\"\"",
            "[null]",
            "[1,2]",
            "[12]",
            "[2,1]",
            "[\"1,2\"]",
            "[\"1\",\"2\"]",
            r#"{"a":1}"#,
            r#"{"a":2}"#,
            r#"{"a":"1"}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":{"b":2}}"#,
            r#"{"a":{},"b":2}"#,
            r#"{"ab":2}"#,
            r#"{"a":[1]}"#,
            r#"{"":1}"#,
            r#"{"A":1}"#,
            r#"["a",1]"#,
            r#"{"a":"b"}"#,
            r#"["a","b"]"#,
            r#"{"a\u0000":1}"#,
            r#"[{"a":1},{"b":2}]"#,
            r#"[{"a":1,"b":2}]"#,
        ];
        for (index, one) in all.iter().enumerate() {
            for other in &all[index + 1..] {
                assert_ne!(of(one), of(other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn what_has_no_canonical_form_is_refused_with_a_pointer() {
        for (text, pointer) in [
            (r#"{"a":1,"a":1}"#, "/inputs/a"),
            (r#"{"a":1,"b":0,"\u0061":2}"#, "/inputs/a"),
            (r#"{"x":[0,{"b/c":{"~":1,"~":2}}]}"#, "/inputs/x/1/b~1c/~0"),
            (r#"{"q\"":{"a":null,"a":null}}"#, r#"/inputs/q\"/a"#),
            (r#"["\ud800"]"#, "/inputs/0"),
            (r#"{"k":"\udc00"}"#, "/inputs/k"),
            (r#"{"k":"\ud800\u0041"}"#, "/inputs/k"),
            (r#"{"k":[0,1e999]}"#, "/inputs/k/1"),
            (r#"{"k":-1E+309}"#, "/inputs/k"),
        ] {
            let fault = of(text).expect_err(text);
            assert_eq!(fault.code, Code::InvalidFormat, "{text}");
            assert_eq!(fault.details, format!(r#"{{"field":"{pointer}"}}"#), "{text}");
        }
        assert!(of(r#"[1e308,-1.5E-999,0e999,12345678901234567890]"#).is_ok());
        assert!(of(&"9".repeat(400)).is_err());
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(of(&deep(JSON_DEPTH_MAX)).is_ok());
        assert_eq!(of(&deep(JSON_DEPTH_MAX + 1)).map_err(|fault| fault.code), Err(Code::InvalidFormat));
    }

    #[test]
    fn a_job_counts_without_its_type_and_without_null_references() {
        let of =
            |name: &str, text: &str| Canon::default().fingerprint(name, Content::Job(text), None).map_err(|fault| fault.code);
        let plain = of("echo", r#"{"type":"echo","payload":{"a":1}}"#);
        assert!(plain.is_ok());
        assert_eq!(of("echo", r#"{"payload_ref":null,"payload":{"a":1},"type":"ECHO"}"#), plain);
        assert_ne!(of("hash", r#"{"type":"echo","payload":{"a":1}}"#), plain);
        assert_ne!(of("echo", r#"{"type":"echo","payload":{"a":1},"version":2}"#), plain);
        assert_ne!(of("echo", r#"{"type":"echo","payload":{"a":1,"type":"echo"}}"#), of("echo", r#"{"payload":{"a":1}}"#));
    }

    #[test]
    fn the_block_and_its_rewritten_inputs_count() {
        let mut canon = Canon::default();
        let mut of = |name, rewritten| canon.fingerprint(name, Content::Inputs("{}"), rewritten).expect("valid");
        assert_eq!(of("a", None), of("a", None), "buffers leave no trace");
        assert_ne!(of("a", None), of("b", None));
        assert_ne!(of("a", None), of("a", Some("{}")));
        assert_ne!(of("a", Some("{\"o\":true}")), of("a", Some("{}")));
    }
}
