//! Outputs as JSON text, written piece by piece where they are large, so that others run in between.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Encoded between two chances for others to run, in bytes; a multiple of three, so that base64 pieces join.
const STRIDE_BYTES: usize = 48 << 10;
const _: () = assert!(STRIDE_BYTES.is_multiple_of(3));

/// Appends `,"<name>":"…"` if `content` is UTF-8, else nothing. Whether it is.
pub(super) async fn push_text(out: &mut Vec<u8>, name: &str, content: &[u8]) -> bool {
    let start = out.len();
    out.extend_from_slice(format!(",\"{name}\":\"").as_bytes());
    let mut rest = content;
    while !rest.is_empty() {
        let stride = &rest[..rest.len().min(STRIDE_BYTES)];
        let text = match std::str::from_utf8(stride) {
            Ok(text) => text,
            // A character that this stride cuts in two belongs to the next.
            Err(error) if error.error_len().is_none() && stride.len() < rest.len() => {
                std::str::from_utf8(&stride[..error.valid_up_to()]).expect("valid up to there")
            }
            Err(_) => {
                out.truncate(start);
                return false;
            }
        };
        let quoted = json(text);
        out.extend_from_slice(&quoted[1..quoted.len() - 1]);
        rest = &rest[text.len()..];
        glommio::yield_if_needed().await;
    }
    out.push(b'"');
    true
}

/// Appends `,"<name>":"…"`, the content in base64.
pub(super) async fn push_base64(out: &mut Vec<u8>, name: &str, content: &[u8]) {
    out.extend_from_slice(format!(",\"{name}\":\"").as_bytes());
    for stride in content.chunks(STRIDE_BYTES) {
        let start = out.len();
        out.resize(start + stride.len().div_ceil(3) * 4, 0);
        let written = BASE64.encode_slice(stride, &mut out[start..]).expect("four characters for three bytes fit");
        out.truncate(start + written);
        glommio::yield_if_needed().await;
    }
    out.push(b'"');
}

/// How deep JSON may go: most readers stop at 128 levels, and what we say puts some of its own around it.
const DEPTH_MAX: u32 = 100;

/// Whether `text` is JSON that every reader can read: not deeper than most go, every number and every character one.
pub(super) fn is_sound(text: &[u8]) -> bool {
    let mut reader = serde_json::Deserializer::from_slice(text);
    Look { left: DEPTH_MAX }.deserialize(&mut reader).and_then(|()| reader.end()).is_ok()
}

/// Looks at any JSON value as a whole, so many levels deep, and keeps nothing of it.
#[derive(Clone, Copy)]
struct Look {
    left: u32,
}

impl Look {
    fn inside<E: serde::de::Error>(self) -> Result<Look, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("too deep"))?;
        Ok(Look { left })
    }
}

impl<'de> DeserializeSeed<'de> for Look {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inside = self.inside()?;
        while list.next_element_seed(inside)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inside = self.inside()?;
        while members.next_key_seed(inside)?.is_some() {
            members.next_value_seed(inside)?;
        }
        Ok(())
    }
}

/// A value as JSON text.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("plain fields always serialise"))
}
