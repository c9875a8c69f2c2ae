//! A block's inputs as a flat object, read field by field, with one fault for every way to be wrong.
//!
//! Absent and `null` are the same. Keys that a block does not know are ignored, as the platform's older worker did.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT as BASE64;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use shards::outcome::{Code, Fault};

/// The top-level fields of a step's inputs, values unread.
pub(super) struct Inputs<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Inputs<'a> {
    /// Reads the outer object; empty text and `null` count as `{}`.
    pub(super) fn read(json: &'a [u8]) -> Result<Self, Fault> {
        if absent(json) {
            return Ok(Inputs { fields: Vec::new() });
        }
        serde_json::from_slice(json).map_err(|_| forbidden("", "an object"))
    }

    /// The text under `name`.
    pub(super) fn text(&self, name: &str) -> Result<Option<Cow<'a, str>>, Fault> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        match serde_json::from_str(raw) {
            Ok(Text(text)) => Ok(Some(text)),
            Err(_) => Err(forbidden(name, "a string")),
        }
    }

    /// The text under `name`, which must be there.
    pub(super) fn text_needed(&self, name: &str) -> Result<Cow<'a, str>, Fault> {
        self.text(name)?.ok_or_else(|| missing(name, "required"))
    }

    /// The bytes that the base64 text under `name` stands for: standard alphabet, padding optional.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        BASE64.decode(text.as_bytes()).map(Some).map_err(|_| forbidden(name, "base64, standard alphabet"))
    }

    /// The whole number under `name`, or `default`. `100.0` is one too: protobuf's Struct knows only doubles.
    pub(super) fn integer(&self, name: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, Fault> {
        let Some(raw) = self.raw(name) else { return Ok(default) };
        let number = raw.parse::<u64>().ok().or_else(|| whole(raw.parse().ok()?));
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| forbidden(name, &format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// The truth value under `name`.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.raw(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(forbidden(name, "true or false")),
        }
    }

    /// The JSON text under `name`.
    pub(super) fn json(&self, name: &str) -> Option<&'a str> {
        self.raw(name)
    }

    /// The members of the object under `name`.
    pub(super) fn object(&self, name: &str) -> Result<Vec<(Cow<'a, str>, &'a str)>, Fault> {
        let Some(raw) = self.raw(name) else { return Ok(Vec::new()) };
        let inner: Inputs<'a> = serde_json::from_str(raw).map_err(|_| forbidden(name, "an object"))?;
        Ok(inner.fields.into_iter().map(|(member, value)| (member, value.get())).collect())
    }

    /// All members, in the order in which they came.
    pub(super) fn members(self) -> Vec<(Cow<'a, str>, &'a str)> {
        self.fields.into_iter().map(|(name, value)| (name, value.get())).collect()
    }

    /// Which of `names` is there, if one is; two are a fault.
    pub(super) fn at_most_one<'n>(&self, names: &[&'n str]) -> Result<Option<&'n str>, Fault> {
        let mut there = names.iter().filter(|name| self.raw(name).is_some());
        match (there.next(), there.next()) {
            (first, None) => Ok(first.copied()),
            (_, Some(second)) => Err(forbidden(second, &format!("at most one of {}", names.join(", ")))),
        }
    }

    /// Whether exactly one of `names` is there.
    pub(super) fn exactly_one(&self, names: &[&str]) -> Result<(), Fault> {
        let rule = || format!("exactly one of {}", names.join(", "));
        let mut there = names.iter().filter(|name| self.raw(name).is_some());
        match (there.next(), there.next()) {
            (Some(_), None) => Ok(()),
            (None, _) => Err(missing(names[0], &rule())),
            (Some(_), Some(second)) => Err(forbidden(second, &rule())),
        }
    }

    fn raw(&self, name: &str) -> Option<&'a str> {
        let (_, raw) = self.fields.iter().find(|(field, _)| field == name)?;
        Some(raw.get()).filter(|raw| *raw != "null")
    }
}

/// Whether inputs are not there at all.
pub(super) fn absent(json: &[u8]) -> bool {
    matches!(json.trim_ascii(), b"" | b"null")
}

/// A text as JSON writes it, if `raw` is one.
pub(super) fn text_of(raw: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(raw).ok().map(|Text(text)| text)
}

/// A value that its rule forbids; `field` is empty for the inputs as a whole.
pub(super) fn forbidden(field: &str, rule: &str) -> Fault {
    fault(Code::InvalidInput, "An input has a value that its rule forbids.", field, rule)
}

/// A value that had to be there.
pub(super) fn missing(field: &str, rule: &str) -> Fault {
    fault(Code::MissingRequiredField, "A required input is missing.", field, rule)
}

/// A fault about one field, with `{"pointer":…,"rule":…}` as its details.
pub(super) fn fault(code: Code, sentence: &'static str, field: &str, rule: &str) -> Fault {
    let pointer = if field.is_empty() { String::new() } else { format!("/{field}") };
    let details = serde_json::json!({ "pointer": pointer, "rule": rule });
    Fault::new(code, sentence).with_details(details.to_string())
}

fn whole(number: f64) -> Option<u64> {
    const EXACT_MAX: f64 = (1_u64 << 53) as f64;
    ((0.0..=EXACT_MAX).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// Borrows where the text has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Inputs<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Inputs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            fields.push((name, value));
        }
        Ok(Inputs { fields })
    }
}
