//! Profile A, outbound: the ack, the result and the dead letter, as the Beamline router checks them.
//!
//! Everything here is a pure rendering: the same outcome for the same asker gives the same bytes. An optional id that is
//! not valid for the router is left out, never `null`; originals go under `context`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use shards::event::Overload;
use shards::ids::{Text, hex};
use shards::outcome::{Code, Fault, Outcome, Status, Tried};
use shards::step::{Arrival, Asker};

use crate::blocks::is_paid_for;
use crate::edge::fingerprint::fits_double;
use crate::edge::json;
use crate::edge::pen::Pen;
use crate::edge::wire::WireSettings;

/// What stands where a required echo could not be read.
const UNREAD: &str = "unknown";

/// An ExecAssignmentAck.
pub(super) fn ack(
    pen: &mut Pen,
    arrival: &Arrival,
    asker: &Asker,
    accepted: bool,
    fault: Option<&Fault>,
    overload: Overload,
    at_ms: u64,
) {
    let note = arrival.work().and_then(|work| work.note.as_ref());
    let message = match (accepted, fault, note) {
        (true, _, Some(note)) => Text::from(format!("accepted; {note}")),
        (true, _, None) => Text::from_static("accepted"),
        (false, Some(fault), _) => sentence(fault).map_or_else(|| fault.message.clone(), Text::from_static),
        (false, None, _) => Text::from_static("rejected"),
    };
    pen.raw("{\"version\":\"1\",\"assignment_id\":").text(&asker.assignment_id);
    pen.raw(if accepted { ",\"status\":\"accepted\"" } else { ",\"status\":\"rejected\"" });
    pen.raw(",\"message\":").text(&message).raw(",\"reason\":").text(&message);
    pen.raw(",\"request_id\":").text(read_or_unread(&asker.request_id));
    pen.raw(",\"tenant_id\":").text(&arrival.tenant);
    if let Some(trace) = payload_trace(asker) {
        pen.raw(",\"trace_id\":").text(trace);
    }
    pen.raw(",\"acknowledged_at\":").int(at_ms);
    pen.raw(match overload {
        Overload::Healthy => ",\"overload_status\":\"healthy\"}",
        Overload::Degraded => ",\"overload_status\":\"degraded\"}",
        Overload::Overloaded => ",\"overload_status\":\"overloaded\"}",
        Overload::Critical => ",\"overload_status\":\"critical\"}",
    });
}

/// An ExecResult; `replayed` only where the reader sees deliveries, not answers.
pub(super) fn result(
    pen: &mut Pen,
    settings: &WireSettings,
    arrival: &Arrival,
    asker: &Asker,
    outcome: &Outcome,
    replayed: Option<bool>,
) {
    pen.raw("{\"version\":\"1\"");
    result_fields(pen, settings, arrival, Some(asker), outcome);
    if outcome.status == Status::Ok {
        outputs(pen, outcome);
    }
    if let Some(replayed) = replayed {
        pen.raw(if replayed { ",\"replayed\":true" } else { ",\"replayed\":false" });
    }
    pen.raw("}");
}

/// The outputs as a result carries them, or the reference to where they are.
pub(super) fn outputs(pen: &mut Pen, outcome: &Outcome) {
    let text: &[u8] = if outcome.outputs.is_empty() { b"{}" } else { &outcome.outputs };
    pen.raw(if outcome.spilled { ",\"outputs_ref\":" } else { ",\"outputs\":" }).raw_bytes(text);
}

/// A dead letter: the whole message as it came, with why it was not done.
pub(super) fn dead_letter(pen: &mut Pen, settings: &WireSettings, arrival: &Arrival, outcome: &Outcome, earlier: &[Tried]) {
    let delivery = &arrival.delivery;
    let code = dead_code(outcome);
    pen.raw("{\"version\":\"1\",\"reason\":").text(&code.to_ascii_lowercase());
    result_fields(pen, settings, arrival, arrival.asker.as_ref(), outcome);
    pen.raw(",\"tries\":[");
    for one in earlier {
        tried(pen, one.number, one.started_ms, one.ran_us, one.code.as_str());
        pen.raw(",\"error_message\":").text(&one.message).raw("},");
    }
    if outcome.tries > 0 {
        tried(pen, outcome.tries, outcome.started_ms, outcome.ran_us, code);
        pen.raw("}");
    }
    pen.raw("],\"first_at\":").time(arrival.since_ms().min(outcome.received_ms));
    pen.raw(",\"last_at\":").time(outcome.ended_ms);
    pen.raw(",\"subject\":").text(&delivery.subject);
    pen.raw(",\"headers\":[");
    for (index, (name, value)) in delivery.headers.iter().enumerate() {
        pen.raw(if index == 0 { "[" } else { ",[" }).text(name).raw(",").text(value).raw("]");
    }
    pen.raw("]");
    match embeddable(&delivery.body) {
        Some(text) => pen.raw(",\"message\":").raw(text).raw("}"),
        None => pen.raw(",\"message_base64\":\"").raw(&STANDARD.encode(&delivery.body)).raw("\"}"),
    };
}

/// One try, open for more to be said of it.
fn tried(pen: &mut Pen, number: u32, started_ms: u64, ran_us: u64, code: &str) {
    pen.raw("{\"number\":").int(u64::from(number)).raw(",\"started_at\":").time(started_ms);
    pen.raw(",\"ran_us\":").int(ran_us).raw(",\"error_code\":").text(code);
}

/// A dead letter with the message's size and hash in the message's place, where a server takes none of its size: whoever reads
/// it finds the whole in the worker's own store, or in its journal.
pub(super) fn shortened(letter: &Bytes) -> Bytes {
    let Ok(mut members) = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(letter) else { return letter.clone() };
    let (size, digest) = match (members.remove("message_base64"), members.remove("message")) {
        (Some(text), _) => {
            let body = STANDARD.decode(text.get().trim_matches('"')).unwrap_or_default();
            (body.len(), Sha256::digest(&body))
        }
        (None, Some(text)) => {
            // The last member, with the blanks that stood around it in the message.
            let at = text.get().as_ptr() as usize - letter.as_ptr() as usize;
            let blanks = letter[..at].iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
            let body = &letter[at - blanks..letter.len() - 1];
            (body.len(), Sha256::digest(body))
        }
        (None, None) => return letter.clone(),
    };
    let mut pen = Pen::with_capacity(1_024);
    pen.raw("{\"message_size\":").int(size as u64).raw(",\"message_sha256\":").text(&hex(&digest));
    for (name, value) in members {
        pen.raw(",").text(name).raw(":").raw(value.get());
    }
    pen.raw("}");
    pen.done().into()
}

/// The body as text, if every JSON reader can take it inside another document.
fn embeddable(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    (json::valid(text) && !json::too_deep(text) && !json::has_lone_surrogate(text) && numbers_fit(text)).then_some(text)
}

/// Whether no number of valid `text` is larger than its readers take.
fn numbers_fit(text: &str) -> bool {
    // Strings stand between every second pair of quotes that are not escaped.
    let (mut inside, mut escaped) = (false, false);
    let outside = move |byte: char| {
        let was = inside;
        match byte {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => inside = !inside,
            _ => {}
        }
        was || !matches!(byte, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')
    };
    let numbers = text.split(outside).filter(|part| part.starts_with(|first: char| first == '-' || first.is_ascii_digit()));
    numbers.into_iter().all(|number| fits_double(number.as_bytes()))
}

/// The reason on a dead letter.
pub(super) fn dead_code(outcome: &Outcome) -> &'static str {
    match (&outcome.fault, outcome.status) {
        (Some(fault), _) => fault.code.as_str(),
        (None, Status::Timeout) => Code::Timeout.as_str(),
        (None, Status::Cancelled) => Code::CancelledByUser.as_str(),
        (None, _) => Code::InternalError.as_str(),
    }
}

/// The members of an ExecResult but its version and outputs, each with a comma before it. Without an asker, those that
/// need none.
fn result_fields(pen: &mut Pen, settings: &WireSettings, arrival: &Arrival, asker: Option<&Asker>, outcome: &Outcome) {
    if let Some(asker) = asker {
        pen.raw(",\"assignment_id\":").text(&asker.assignment_id);
        pen.raw(",\"request_id\":").text(read_or_unread(&asker.request_id));
    }
    pen.raw(",\"status\":").text(status(outcome.status));
    if let Some(asker) = asker {
        pen.raw(",\"provider_id\":").text(read_or_unread(&asker.provider_id));
        pen.raw(",\"job\":{\"type\":").text(read_or_unread(&asker.job_type)).raw("}");
    }
    pen.raw(",\"latency_ms\":").int(outcome.ended_ms.saturating_sub(outcome.received_ms));
    pen.raw(",\"cost\":").raw(&cost(asker, outcome));
    if !arrival.tenant.is_empty() {
        pen.raw(",\"tenant_id\":").text(&arrival.tenant);
    }
    pen.raw(",\"timestamp\":").int(outcome.ended_ms);
    if let Some(asker) = asker {
        if let Some(trace) = payload_trace(asker) {
            pen.raw(",\"trace_id\":").text(trace);
        }
        ids(pen, asker);
    }
    if outcome.status != Status::Ok {
        failure(pen, outcome);
    }
    pen.raw(",\"retries_used\":").int(u64::from(outcome.tries.saturating_sub(1)));
    pen.raw(",\"effect\":").text(outcome.effect.as_str());
    pen.raw(",\"worker_id\":").text(&settings.worker_id);
    if outcome.owner_epoch > 0 {
        pen.raw(",\"owner_epoch\":").int(u64::from(outcome.owner_epoch));
    }
    pen.raw(",\"queue_depth\":").int(u64::from(outcome.queue_depth));
    pen.raw(",\"timing\":{\"received_ms\":").int(outcome.received_ms);
    if outcome.started_ms > 0 {
        pen.raw(",\"started_ms\":").int(outcome.started_ms);
    }
    pen.raw(",\"ended_ms\":").int(outcome.ended_ms).raw(",\"ran_us\":").int(outcome.ran_us).raw("}");
}

/// What a block that is paid for says that it cost, in the unit of its connector's prices; of any other block outputs are its
/// senders' own words. Outputs that lie in a blob say it there.
fn cost(asker: Option<&Asker>, outcome: &Outcome) -> String {
    #[derive(Deserialize)]
    struct Paid {
        cost: Option<serde_json::Number>,
    }
    let paid = outcome.status == Status::Ok && !outcome.spilled && asker.is_some_and(|asker| is_paid_for(&asker.job_type));
    let told = paid.then(|| serde_json::from_slice::<Paid>(&outcome.outputs).ok()?.cost).flatten();
    told.map_or_else(|| "0".to_owned(), |cost| cost.to_string())
}

/// run, flow and step id: all three where the router takes them, otherwise what there is, under `context`.
fn ids(pen: &mut Pen, asker: &Asker) {
    let ids = [("\"run_id\":", &asker.run_id), ("\"flow_id\":", &asker.flow_id), ("\"step_id\":", &asker.step_id)];
    let valid = ids.iter().all(|(_, id)| id.as_ref().is_some_and(|id| is_uuid_v4(id) || is_ulid(id)));
    let mut separator = if valid { "," } else { ",\"context\":{" };
    let mut any = false;
    for (name, id) in ids {
        if let Some(id) = id {
            pen.raw(separator).raw(name).text(id);
            separator = ",";
            any = true;
        }
    }
    if any && !valid {
        pen.raw("}");
    }
}

/// Why, in words the router's circuit breaker reads rightly.
fn failure(pen: &mut Pen, outcome: &Outcome) {
    let Some(fault) = &outcome.fault else {
        let code = dead_code(outcome);
        pen.raw(",\"error_code\":").text(code).raw(",\"error_type\":").text(&code.to_ascii_lowercase());
        pen.raw(",\"error_message\":\"the step did not end well\"");
        return;
    };
    pen.raw(",\"error_code\":").text(fault.code.as_str());
    pen.raw(",\"error_type\":").text(&fault.code.as_str().to_ascii_lowercase());
    pen.raw(",\"error_message\":").text(sentence(fault).unwrap_or(&fault.message));
    details(pen, ",\"error_details\":", fault, fault.retry_after_ms);
}

/// Writes a fault's details behind `key`, with the wait the other side asked for; nothing where there is neither.
pub(super) fn details(pen: &mut Pen, key: &str, fault: &Fault, retry_after_ms: Option<u64>) {
    let given = std::str::from_utf8(&fault.details).unwrap_or_default().trim();
    let given = if given.starts_with('{') && json::valid(given) { given } else { "" };
    match retry_after_ms {
        None if given.is_empty() => {}
        None => _ = pen.raw(key).raw(given),
        Some(ms) => {
            pen.raw(key).raw("{\"retry_after_ms\":").int(ms);
            let members = given.get(1..).unwrap_or("}").trim_start();
            pen.raw(if members.starts_with('}') { "" } else { "," }).raw(members);
        }
    }
}

/// A sentence to stand for the fault's own, where the router would read that one as a provider's failure.
///
/// The router counts certain codes as such; for every other code it looks for these words and digits in the message.
fn sentence(fault: &Fault) -> Option<&'static str> {
    if matches!(fault.code, Code::Timeout | Code::ConnectionError | Code::ProviderUnavailable | Code::Http5xx) {
        return None;
    }
    let message = fault.message.to_ascii_lowercase();
    let misread = message.bytes().any(|byte| byte.is_ascii_digit())
        || ["timeout", "connection", "unavailable"].iter().any(|word| message.contains(word));
    if !misread && !message.is_empty() {
        return None;
    }
    Some(match fault.code {
        Code::InvalidInput => "a field has a value that its rule forbids",
        Code::MissingRequiredField => "a required field is missing",
        Code::InvalidFormat => "the message does not have the form it must have",
        Code::UnknownJobType => "no block has this name",
        Code::PermissionDenied => "a policy forbids it",
        Code::QuotaExceeded => "the tenant's quota is used up",
        Code::ResourceUnavailable => "something that the step needs is not there now",
        Code::ExecutionFailed => "the block failed",
        Code::NetworkError => "the network failed",
        Code::HttpError => "the server answered with an error",
        Code::SystemOverload => "the worker is full",
        Code::CancelledByUser => "the step was stopped",
        Code::Expired => "the step came after its time",
        Code::KeyConflict => "the same key stands for other content",
        Code::Indeterminate => "the step may have had its effect and is not run again",
        Code::Poison => "the step ends whoever runs it",
        Code::SignatureInvalid => "the signature does not hold",
        Code::Rejected => "people were asked and did not approve",
        Code::InternalError | Code::Timeout | Code::ConnectionError | Code::ProviderUnavailable | Code::Http5xx => {
            "the worker itself failed"
        }
    })
}

/// A status as the router spells it.
fn status(status: Status) -> &'static str {
    match status {
        Status::Ok => "success",
        Status::Error | Status::Quarantined => "error",
        Status::Timeout => "timeout",
        Status::Cancelled => "cancelled",
    }
}

fn read_or_unread(echo: &Text) -> &str {
    if echo.is_empty() { UNREAD } else { echo }
}

/// The trace, if the router takes it in a payload.
pub(super) fn payload_trace(asker: &Asker) -> Option<&Text> {
    asker.trace_id.as_ref().filter(|id| is_uuid_v4(id) || (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())))
}

/// A UUID of version 4, as RFC 9562 writes it.
fn is_uuid_v4(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            14 => byte == b'4',
            19 => matches!(byte, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'),
            _ => byte.is_ascii_hexdigit(),
        })
}

/// An upper-case ULID: 26 characters of Crockford's alphabet that fit 128 bits.
fn is_ulid(text: &str) -> bool {
    let letter = |byte: u8| matches!(byte, b'0'..=b'9' | b'A'..=b'H' | b'J' | b'K' | b'M' | b'N' | b'P'..=b'T' | b'V'..=b'Z');
    text.len() == 26 && text.as_bytes()[0] <= b'7' && text.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routers_ids_are_told_from_others() {
        for (text, uuid, ulid) in [
            ("3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60", true, false),
            ("3F2C9A4E-8D1B-4C6E-9F0A-1B2C3D4E5F60", true, false),
            ("3f2c9a4e-8d1b-1c6e-9f0a-1b2c3d4e5f60", false, false),
            ("3f2c9a4e-8d1b-4c6e-cf0a-1b2c3d4e5f60", false, false),
            ("3f2c9a4e8d1b4c6e9f0a1b2c3d4e5f600000", false, false),
            ("01ARZ3NDEKTSV4RRFFQ69G5FAV", false, true),
            ("01arz3ndektsv4rrffq69g5fav", false, false),
            ("81ARZ3NDEKTSV4RRFFQ69G5FAV", false, false),
            ("01ARZ3NDEKTSV4RRFFQ69G5FAI", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_uuid_v4(text), is_ulid(text)), (uuid, ulid), "{text}");
        }
    }

    #[test]
    fn client_faults_never_read_as_a_providers() {
        for code in Code::ALL.iter().copied() {
            for message in ["host 5 is down", "Connection refused", "service UNAVAILABLE", "timeout", ""] {
                let fault = Fault { message: Text::from_static(message), ..Fault::new(code, "") };
                let said = sentence(&fault).unwrap_or(message).to_ascii_lowercase();
                let provider = matches!(code, Code::Timeout | Code::ConnectionError | Code::ProviderUnavailable | Code::Http5xx);
                let misread = said.is_empty()
                    || said.bytes().any(|byte| byte.is_ascii_digit())
                    || ["timeout", "connection", "unavailable"].iter().any(|word| said.contains(word));
                assert!(provider || !misread, "{code:?}: {said}");
            }
        }
    }

    #[test]
    fn details_carry_the_wait_beside_their_own_members() {
        for (given, wait, want) in [
            ("", None, ""),
            ("{\"field\":\"/a\"}", None, ",\"d\":{\"field\":\"/a\"}"),
            ("{\"field\":\"/a\"}", Some(7), ",\"d\":{\"retry_after_ms\":7,\"field\":\"/a\"}"),
            ("{ }", Some(7), ",\"d\":{\"retry_after_ms\":7}"),
            ("", Some(7), ",\"d\":{\"retry_after_ms\":7}"),
            ("not json", None, ""),
            ("[1]", Some(7), ",\"d\":{\"retry_after_ms\":7}"),
        ] {
            let fault = Fault::new(Code::QuotaExceeded, "over quota").with_details(given);
            let mut pen = Pen::with_capacity(0);
            details(&mut pen, ",\"d\":", &fault, wait);
            assert_eq!(pen.done(), want.as_bytes(), "{given}");
        }
    }
}
