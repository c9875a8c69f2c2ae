//! Outputs as JSON text, written piece by piece where they are large, so that others run in between.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

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

/// Whether `text` is JSON that every reader can read: not deeper than most go, every number and every character one.
pub(super) fn is_sound(text: &[u8]) -> bool {
    serde_json::from_slice::<Sound>(text).is_ok()
}

/// Any JSON value, looked at as a whole and kept nowhere.
struct Sound;

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Look).map(|()| Sound)
    }
}

struct Look;

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
        while list.next_element::<Sound>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_entry::<Sound, Sound>()?.is_some() {}
        Ok(())
    }
}

/// A value as JSON text.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("plain fields always serialise"))
}
