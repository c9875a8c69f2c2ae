//! The contract's rules for every kind of letter, with the model of the router that the integration tests judge by.

#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../../it/router/letters.rs"]
mod letters;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../../it/router/rules.rs"]
mod rules;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../../it/router/violation.rs"]
mod violation;

use prost::Message;
use proto::v1;
use serde_json::{Map, Value};
use shards::runtime::ports::{Outlet, Parcel};
use shards::step::{Arrival, Asker, Origin, Profile};

pub(crate) use rules::is_tenant;
use violation::{Rule, Violation, broken};

/// Headers as the router sees them.
type Headers = Vec<(String, String)>;
type Object = Map<String, Value>;

/// A letter keeps every rule for its kind.
pub fn check(arrival: &Arrival, parcel: &Parcel) {
    if parcel.about.call != 0 {
        return told(arrival, parcel);
    }
    let headers: Headers = parcel.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    for (name, value) in &headers {
        assert!(!value.contains(['\r', '\n']), "header {name} with a line break: {value:?}");
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'), "header name {name:?}");
    }
    // What a sender wrote is passed on as it was written; all else is compact.
    let compact = !rules::is_compact(&arrival.delivery.body) || rules::is_compact(&parcel.body);
    assert!(compact, "white space of our own: {}", parcel.body.escape_ascii());
    let judged = match &arrival.asker {
        _ if headers.is_empty() => line(parcel),
        Some(asker) if parcel.outlet == Outlet::Ack => ack(&headers, arrival, asker, &parcel.body),
        Some(asker) if parcel.outlet == Outlet::Result && asker.profile == Profile::Beamline => {
            result(&headers, arrival, asker, &parcel.body)
        }
        Some(_) if parcel.outlet == Outlet::Result => step_result(&headers, arrival, parcel),
        _ => body_of(&headers, &parcel.body).and_then(|object| match parcel.outlet {
            Outlet::DeadLetter => letters::dead_letter(&with_subject(arrival, headers.clone()), &object, |_| None)
                .and_then(|()| whole(arrival, &object)),
            _ => event(&headers, &object, &parcel.subject),
        }),
    };
    if let Err(violation) = judged {
        panic!("{violation}\n  {:?} on {} {headers:?}\n  {}", parcel.outlet, parcel.subject, parcel.body.escape_ascii());
    }
}

/// A line's subject is its file's name; one with a line break in it can be no header, and is left out.
fn with_subject(arrival: &Arrival, mut headers: Headers) -> Headers {
    const NAME: &str = "x-original-subject";
    if arrival.delivery.subject.contains(['\r', '\n']) {
        assert!(headers.iter().all(|(name, _)| name != NAME));
        headers.push((NAME.to_owned(), arrival.delivery.subject.to_string()));
    }
    headers
}

/// What a call is told: its own, in protobuf, for no subject.
fn told(arrival: &Arrival, parcel: &Parcel) {
    let own = matches!(arrival.delivery.origin, Origin::Call(call) if call == parcel.about.call);
    assert!(own && parcel.subject.is_empty() && parcel.headers.is_empty() && parcel.reply.is_none(), "{parcel:?}");
    let body = &parcel.body[..];
    match parcel.outlet {
        Outlet::Ack => assert!(v1::StepAccepted::decode(body).is_ok(), "{parcel:?}"),
        Outlet::Result => {
            // Outputs nested more deeply than protobuf reads are the one thing that cannot be told.
            let Ok(result) = v1::StepResult::decode(body) else { return };
            assert_eq!(result.assignment_id.as_deref(), arrival.asker.as_ref().map(|asker| &*asker.assignment_id));
        }
        Outlet::Reply => {
            let error = v1::StepError::decode(body).is_ok();
            assert!(
                error || v1::StepCancelReply::decode(body).is_ok() || serde_json::from_slice::<Value>(body).is_ok(),
                "{parcel:?}"
            );
        }
        outlet => panic!("a call is told of {outlet:?}"),
    }
}

/// An answer to whoever reads a file's answers: an object with a status.
fn line(parcel: &Parcel) -> Result<(), Violation> {
    let object: Object = match serde_json::from_slice(&parcel.body) {
        Ok(object) => object,
        Err(error) => return broken(Rule::Json, error.to_string()),
    };
    rules::no_nulls(&object)?;
    rules::string(&object, "status")?;
    match object.get("replayed") {
        Some(Value::Bool(_)) => Ok(()),
        other => broken(Rule::Type, format!("replayed is {other:?}")),
    }
}

/// The payload as an object: what the router takes of any letter, white space apart.
fn body_of(headers: &Headers, payload: &[u8]) -> Result<Object, Violation> {
    match rules::body(headers, payload) {
        Err(Violation { rule: Rule::Compact, .. }) => {
            let object: Object = serde_json::from_slice(payload).expect("read once already");
            let envelope = object.contains_key("kind") && object.contains_key("data");
            if envelope { broken(Rule::Envelope, "has kind and data") } else { Ok(object) }
        }
        judged => judged,
    }
}

fn ack(headers: &Headers, arrival: &Arrival, asker: &Asker, body: &[u8]) -> Result<(), Violation> {
    let object = body_of(headers, body)?;
    common(headers, &object, arrival, asker, 'a')?;
    let status = rules::string(&object, "status")?;
    if !matches!(status, "accepted" | "rejected" | "error") {
        return broken(Rule::Status, status);
    }
    if rules::string(&object, "message")? != rules::string(&object, "reason")? {
        return broken(Rule::AckReason, "message and reason differ");
    }
    rules::unix_ms(&object, "acknowledged_at")?;
    rules::string(&object, "overload_status").map(drop)
}

fn result(headers: &Headers, arrival: &Arrival, asker: &Asker, body: &[u8]) -> Result<(), Violation> {
    let object = body_of(headers, body)?;
    common(headers, &object, arrival, asker, 'r')?;
    let status = rules::string(&object, "status")?;
    if !matches!(status, "success" | "error" | "timeout" | "cancelled") {
        return broken(Rule::Status, status);
    }
    let provider = rules::string(&object, "provider_id")?;
    let kind = rules::string(rules::object(&object, "job")?, "type")?;
    for (name, was, is) in [("provider_id", &asker.provider_id, provider), ("job.type", &asker.job_type, kind)] {
        if !was.is_empty() && *was != is {
            return broken(Rule::Echo, format!("{name} is {is:?}, read was {was:?}"));
        }
    }
    rules::whole(&object, "latency_ms")?;
    rules::unix_ms(&object, "timestamp")?;
    rules::flow_ids(&object)?;
    rules::error_fields(&object, status == "success")?;
    letters::extras(&object)
}

/// What acks and results have in common.
fn common(headers: &Headers, object: &Object, arrival: &Arrival, asker: &Asker, kind: char) -> Result<(), Violation> {
    rules::version(object)?;
    rules::no_nulls(object)?;
    let tenant = rules::string(object, "tenant_id")?;
    let trace = rules::trace_id(object)?;
    rules::agrees(headers, "version", Some("1"))?;
    rules::agrees(headers, "tenant_id", Some(tenant))?;
    rules::agrees(headers, "trace_id", trace)?;
    if *tenant != *arrival.tenant || rules::string(object, "assignment_id")? != &*asker.assignment_id {
        return broken(Rule::Echo, "another tenant or assignment");
    }
    let request = rules::string(object, "request_id")?;
    if !asker.request_id.is_empty() && asker.request_id != request {
        return broken(Rule::Echo, format!("request_id is {request:?}"));
    }
    match rules::header(headers, "Nats-Msg-Id").as_slice() {
        [one] => rules::message_id(one, kind),
        many => broken(Rule::MsgIdForm, format!("{} message ids", many.len())),
    }
}

fn step_result(headers: &Headers, arrival: &Arrival, parcel: &Parcel) -> Result<(), Violation> {
    let object = body_of(headers, &parcel.body)?;
    rules::no_nulls(&object)?;
    let status = rules::string(&object, "status")?;
    if !matches!(status, "OK" | "ERROR" | "TIMEOUT" | "CANCELED") {
        return broken(Rule::Status, status);
    }
    for name in ["latency_ms", "retries_used"] {
        rules::whole(&object, name)?;
    }
    rules::object(&object, "timing")?;
    if rules::string(rules::object(&object, "context")?, "tenant_id")? != &*arrival.tenant {
        return broken(Rule::Echo, "another tenant");
    }
    if status == "OK" && object.contains_key("error") {
        return broken(Rule::ErrorFields, "a success with an error");
    }
    let wanted = format!("beamline.worker.results.v1.{}.{}", arrival.tenant, arrival.key);
    if *parcel.subject != wanted { broken(Rule::Subject, &*parcel.subject) } else { Ok(()) }
}

fn event(headers: &Headers, object: &Object, subject: &str) -> Result<(), Violation> {
    let Some(tenant) = subject.strip_prefix("beamline.worker.events.") else { return broken(Rule::Subject, subject) };
    letters::event(tenant, headers, object).map(drop)
}

/// A dead letter carries the whole message, as long as one message has room for it.
fn whole(arrival: &Arrival, object: &Object) -> Result<(), Violation> {
    let body = &arrival.delivery.body;
    let found = match object.get("message") {
        Some(message) => serde_json::from_slice::<Value>(body).is_ok_and(|body| body == *message),
        None => object.get("message_base64").is_some_and(|text| letters::carries(text, body)),
    };
    if found { Ok(()) } else { broken(Rule::DeadLetter, "the original message is not in it") }
}
