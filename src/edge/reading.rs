//! What both profiles read out of a message: a [`Reading`], with who asks and, unless something forbids it, the [`Ask`].
//!
//! The first fault found wins; everything that an answer echoes is read whether or not there was one.

use std::borrow::Cow;

use shards::block::CacheWish;
use shards::ids::Text;
use shards::limits::{ID_BYTES_MAX, JSON_DEPTH_MAX, Limits};
use shards::outcome::{Code, Fault};
use shards::step::{EffectClass, Headers, Profile, RetryPolicy};

use crate::edge::fingerprint::{Content, field};
use crate::edge::json::{self, Doc, Value};
use crate::edge::needs::Asked;
use crate::policy::narrow::Scopes;

/// A message, about to be read.
pub(super) struct Mail<'a> {
    /// The whole body.
    pub(super) body: &'a Text,
    /// The JSON that it is.
    pub(super) doc: &'a Doc<'a>,
    /// The subject it came on.
    pub(super) subject: &'a str,
    /// The headers that matter.
    pub(super) heads: Heads<'a>,
    /// Whether it is a line of a file or pipe.
    pub(super) line: bool,
    /// What is wrong with the message as a whole, if anything.
    pub(super) fault: Option<Fault>,
    /// The worker's bounds.
    pub(super) limits: &'a Limits,
}

/// The headers that matter, by name in any case.
#[derive(Default)]
pub(super) struct Heads<'a> {
    pub(super) tenant: Option<&'a Text>,
    pub(super) trace: Option<&'a Text>,
    pub(super) x_trace: Option<&'a Text>,
    pub(super) traceparent: Option<&'a Text>,
    pub(super) assignment: Option<&'a Text>,
    pub(super) attempt: Option<&'a Text>,
    pub(super) sandbox: Option<&'a Text>,
}

/// Who asks, and for what.
pub(super) struct Reading<'a> {
    pub(super) profile: Profile,
    pub(super) tenant: Text,
    /// Empty where a native step has none: its key will do.
    pub(super) assignment_id: Text,
    pub(super) request_id: Text,
    pub(super) trace_id: Option<Text>,
    pub(super) provider_id: Text,
    pub(super) job_type: Text,
    pub(super) run_id: Option<Text>,
    pub(super) flow_id: Option<Text>,
    pub(super) step_id: Option<Text>,
    pub(super) attempt: Option<u64>,
    /// The most that its signer leaves to it.
    pub(super) ceiling: Option<Scopes>,
    pub(super) ask: Result<Ask<'a>, Fault>,
}

/// What is asked for, valid but for what only the block table knows.
pub(super) struct Ask<'a> {
    /// What the fingerprint covers.
    pub(super) content: Content<'a>,
    /// The block's inputs, a part of the body; absent: an empty object.
    pub(super) inputs: Option<&'a str>,
    /// Where the inputs are instead, a part of the body; it wins over them.
    pub(super) reference: Option<&'a str>,
    pub(super) priority: u8,
    pub(super) budget_ms: u64,
    pub(super) not_after_ms: Option<u64>,
    pub(super) retry: RetryPolicy,
    pub(super) note: Option<Text>,
    pub(super) effect_ceiling: Option<EffectClass>,
    pub(super) needs: Asked,
    /// The scopes that its sender leaves to it.
    pub(super) scopes: Option<Scopes>,
    /// An object, a part of the body.
    pub(super) guardrails: Option<&'a str>,
    /// Which outputs of earlier steps will do.
    pub(super) cache: Option<CacheWish>,
    /// It is only to say what it would do.
    pub(super) sandbox: bool,
    /// The digest of what it must be about to do, in lower case.
    pub(super) require_plan: Option<String>,
}

/// A message that nobody can be answered for.
pub(super) struct Unreadable {
    /// Empty where none could be read, or two that disagree.
    pub(super) tenant: Text,
    pub(super) fault: Fault,
}

impl Unreadable {
    /// No tenant either.
    pub(super) fn new(fault: Fault) -> Self {
        Unreadable { tenant: Text::new(), fault }
    }
}

impl<'a> Heads<'a> {
    /// Picks them; the first of a name counts.
    pub(super) fn read(headers: &'a Headers) -> Self {
        let mut heads = Heads::default();
        for (name, value) in headers {
            let slot = match name.len() {
                8 if name.eq_ignore_ascii_case("trace_id") => &mut heads.trace,
                9 if name.eq_ignore_ascii_case("tenant_id") => &mut heads.tenant,
                10 if name.eq_ignore_ascii_case("x-trace-id") => &mut heads.x_trace,
                11 if name.eq_ignore_ascii_case("traceparent") => &mut heads.traceparent,
                18 if name.eq_ignore_ascii_case(super::wire::HEADER_ATTEMPT) => &mut heads.attempt,
                18 if name.eq_ignore_ascii_case(super::wire::HEADER_SANDBOX) => &mut heads.sandbox,
                24 if name.eq_ignore_ascii_case(super::wire::HEADER_ASSIGNMENT) => &mut heads.assignment,
                _ => continue,
            };
            slot.get_or_insert(value);
        }
        heads
    }

    /// The trace: a well-formed `traceparent`, else what the payload says, else the plain headers.
    pub(super) fn trace_id(&self, payload: Option<Text>) -> Option<Text> {
        let parent = self.traceparent.and_then(|parent| traceparent(parent).map(|trace| parent.slice_ref(trace)));
        let plain = || [self.trace, self.x_trace].into_iter().flatten().find(|id| is_id(id)).cloned();
        parent.or(payload).or_else(plain)
    }
}

impl Mail<'_> {
    /// The text of a string value, sharing the body's bytes where it has no escapes.
    pub(super) fn text(&self, value: Option<Value<'_>>) -> Option<Text> {
        Some(match value?.string()? {
            Cow::Borrowed(text) => self.body.slice_ref(text),
            Cow::Owned(text) => Text::from(text),
        })
    }

    /// The text of a string value, if it can stand as an id.
    pub(super) fn id(&self, value: Option<Value<'_>>) -> Option<Text> {
        self.text(value).filter(|text| is_id(text))
    }

    /// A string that must be there, 1 to 256 bytes.
    pub(super) fn required(&self, value: Option<Value<'_>>, pointer: &str) -> Result<Text, Fault> {
        let value = value.ok_or_else(|| missing(pointer))?;
        let text = self.text(Some(value)).ok_or_else(|| wrong_form(pointer))?;
        match text.len() {
            0 => Err(missing(pointer)),
            1..=ID_BYTES_MAX => Ok(text),
            _ => Err(wrong_value(pointer)),
        }
    }

    /// The tenant, if the payload's is valid and the header's is the same.
    pub(super) fn tenant(&self, value: Option<Value<'_>>, pointer: &str) -> Result<Text, Unreadable> {
        let tenant = self.required(value, pointer).map_err(Unreadable::new)?;
        if !is_tenant(&tenant) {
            return Err(Unreadable::new(wrong_value(pointer)));
        }
        self.same_tenant(tenant)
    }

    /// `tenant`, if the header names no other.
    pub(super) fn same_tenant(&self, tenant: Text) -> Result<Text, Unreadable> {
        if self.heads.tenant.is_some_and(|header| *header != tenant) {
            let fault = Fault::new(Code::PermissionDenied, "header and payload name different tenants");
            return Err(Unreadable::new(fault.with_details(field("/tenant_id"))));
        }
        Ok(tenant)
    }
}

/// Keeps the first fault of a message.
pub(super) struct Faults(pub(super) Option<Fault>);

impl Faults {
    /// Notes nesting that is deeper than a message may have.
    pub(super) fn depth(&mut self, depth: usize) {
        if depth > JSON_DEPTH_MAX {
            self.add(Fault::new(Code::InvalidFormat, "the message is nested too deeply"));
        }
    }

    /// The value, or none after noting the fault.
    pub(super) fn take<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                self.add(fault);
                None
            }
        }
    }

    /// Notes a fault.
    pub(super) fn add(&mut self, fault: Fault) {
        self.0.get_or_insert(fault);
    }
}

/// Optional settings that were not usable.
#[derive(Default)]
pub(super) struct Notes(Vec<&'static str>);

impl Notes {
    /// The value if `usable`; notes the setting if something else is there.
    pub(super) fn integer(
        &mut self,
        value: Option<Value<'_>>,
        usable: std::ops::RangeInclusive<u64>,
        name: &'static str,
    ) -> Option<u64> {
        let found = json::integer(value?.raw()).filter(|value| usable.contains(value));
        if found.is_none() {
            self.0.push(name);
        }
        found
    }

    /// Notes a setting.
    pub(super) fn add(&mut self, name: &'static str) {
        self.0.push(name);
    }

    /// The sentence for the ack.
    pub(super) fn sentence(&self) -> Option<Text> {
        if self.0.is_empty() {
            return None;
        }
        Some(format!("not usable, so left at the default: {}", self.0.join(", ")).into())
    }
}

/// A required field is absent.
pub(super) fn missing(pointer: &str) -> Fault {
    Fault::new(Code::MissingRequiredField, "a required field is missing").with_details(field(pointer))
}

/// A field is of the wrong type or form.
pub(super) fn wrong_form(pointer: &str) -> Fault {
    Fault::new(Code::InvalidFormat, "a field does not have the form it must have").with_details(field(pointer))
}

/// A field has a value that its rule forbids.
pub(super) fn wrong_value(pointer: &str) -> Fault {
    Fault::new(Code::InvalidInput, "a field has a value that its rule forbids").with_details(field(pointer))
}

/// A field asks for what this worker does not do.
pub(super) fn unsupported(pointer: &str) -> Fault {
    Fault::new(Code::InvalidInput, "this worker does not support a field of the message").with_details(field(pointer))
}

/// A field is there twice.
pub(super) fn twice(pointer: &str) -> Fault {
    Fault::new(Code::InvalidFormat, "a key comes twice in one object").with_details(field(pointer))
}

/// 1 to 256 bytes.
pub(super) fn is_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
}

/// 1 to 256 of `[A-Za-z0-9_-]`: one subject token.
pub(crate) fn is_tenant(text: &str) -> bool {
    is_id(text) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// 1 to 256 visible ASCII characters.
pub(super) fn is_assignment(text: &str) -> bool {
    // Without leaving early: so it is a few steps of many bytes each.
    is_id(text) && text.bytes().fold(true, |graphic, byte| graphic & byte.is_ascii_graphic())
}

/// The trace of a W3C `traceparent`, if that is well formed.
fn traceparent(text: &str) -> Option<&str> {
    let lower_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    let last = parts.next().is_none() || version != "00";
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let sound = lengths && last && version != "ff" && [version, trace, span, flags].into_iter().all(lower_hex);
    (sound && !zero(trace) && !zero(span)).then_some(trace)
}

/// A moment in Unix milliseconds: a number, its digits, or an RFC 3339 time.
pub(super) fn moment(raw: &str) -> Option<u64> {
    json::integer_or_digits(raw).or_else(|| {
        let time: jiff::Timestamp = json::string(raw)?.parse().ok()?;
        time.as_millisecond().try_into().ok()
    })
}

/// An effect class by its name or protobuf number; the inner `None` is "unspecified".
pub(super) fn effect_class(raw: &str) -> Option<Option<EffectClass>> {
    let Some(name) = json::string(raw) else {
        return match json::integer(raw)? {
            0 => Some(None),
            code => EffectClass::from_code(u8::try_from(code).ok()?).map(Some),
        };
    };
    Some(match name.to_ascii_lowercase().trim_start_matches("effect_class_") {
        "" | "unspecified" => None,
        "pure" => Some(EffectClass::Pure),
        "idempotent" => Some(EffectClass::Idempotent),
        "transactional" => Some(EffectClass::Transactional),
        "conditional" => Some(EffectClass::Conditional),
        "unsafe" => Some(EffectClass::Unsafe),
        _ => return None,
    })
}

/// A whole number within `usable`.
pub(super) fn number(
    value: Option<Value<'_>>,
    usable: std::ops::RangeInclusive<u64>,
    pointer: &str,
) -> Result<Option<u64>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let value = json::integer_or_digits(value.raw()).ok_or_else(|| wrong_form(pointer))?;
    if usable.contains(&value) { Ok(Some(value)) } else { Err(wrong_value(pointer)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_traceparent_names_a_trace() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for (text, want) in [
            (format!("00-{trace}-b7ad6b7169203331-01"), true),
            (format!("01-{trace}-b7ad6b7169203331-01-more"), true),
            (format!("00-{trace}-b7ad6b7169203331-01-more"), false),
            (format!("ff-{trace}-b7ad6b7169203331-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()), false),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
            (format!("00-{trace}-{}-01", "0".repeat(16)), false),
            // Hex of hex, as the router sends it.
            (format!("00-{}-{}-01", "30".repeat(32), "62".repeat(16)), false),
            (format!("00-{trace}-b7ad6b7169203331"), false),
            (String::new(), false),
        ] {
            assert_eq!(traceparent(&text).is_some(), want, "{text}");
        }
    }

    #[test]
    fn effect_classes_are_read_by_name_and_number() {
        for (raw, want) in [
            ("\"PURE\"", Some(Some(EffectClass::Pure))),
            ("\"EFFECT_CLASS_UNSAFE\"", Some(Some(EffectClass::Unsafe))),
            ("\"conditional\"", Some(Some(EffectClass::Conditional))),
            ("3", Some(Some(EffectClass::Transactional))),
            ("0", Some(None)),
            ("\"\"", Some(None)),
            ("6", None),
            ("256", None),
            ("\"mostly harmless\"", None),
            ("[]", None),
        ] {
            assert_eq!(effect_class(raw), want, "{raw}");
        }
    }
}
