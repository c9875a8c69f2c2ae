//! Cancels and signals, as they are read and as they are replied to.

use std::rc::Rc;

use prost::Message;
use proto::v1;
use serde_json::{Value, json};
use shards::step::Notice;

use super::sample::{native, read, wire};
use super::*;

const CANCEL: &str = "beamline.worker.cancel.v1.acme";
const SIGNAL: &str = "beamline.worker.signals.v1.acme";
const BINARY: &str = "application/protobuf";

fn on(subject: &'static str, media_type: &'static str, body: impl Into<Bytes>) -> Delivery {
    let (subject, reply) = (Text::from_static(subject), Some(Text::from_static("_INBOX.x")));
    Delivery { subject, reply, ..native(media_type, body) }
}

fn said(arrival: &Arrival) -> String {
    assert!(arrival.asker.is_none(), "a notice is no step");
    match &arrival.content {
        Content::Notice(Notice::Cancel { assignment_id, actor, details }) => {
            let word = |word: &Option<Text>| word.as_deref().unwrap_or("-").to_owned();
            format!("cancel {} by {} {}", word(assignment_id), word(actor), String::from_utf8_lossy(details))
        }
        Content::Notice(Notice::Refused(fault)) => {
            format!("refused {} {}", fault.code.as_str(), String::from_utf8_lossy(&fault.details))
        }
        other => panic!("{other:?}"),
    }
}

fn place() -> v1::BlockContext {
    let context = v1::BlockContext { tenant_id: "acme".into(), run_id: Some("r".into()), ..Default::default() };
    v1::BlockContext { flow_id: Some("f".into()), step_id: Some("s".into()), attempt: Some(2), ..context }
}

#[test]
fn a_cancel_names_a_step_by_its_place_or_its_assignment_in_both_encodings() {
    let salt = Salt([7; 32]);
    let placed = salt.key(Identity::Coordinates { tenant: "acme", run: Some("r"), flow: "f", step: "s", attempt: 2 });
    let assigned = salt.key(Identity::Assignment { tenant: "acme", assignment: "mine" });
    let context = json!({"tenant_id": "acme", "runId": "r", "flow_id": "f", "stepId": "s", "attempt": 2});
    for (text, binary, key, want) in [
        (json!({"context": context}), v1::StepCancel { context: Some(place()), ..Default::default() }, placed, "cancel - by - "),
        (
            json!({"context": context, "assignmentId": "mine", "actor": "ann", "reason": "en\"ough"}),
            v1::StepCancel {
                context: Some(place()),
                assignment_id: Some("mine".into()),
                actor: Some("ann".into()),
                reason: Some("en\"ough".into()),
                cancel_id: Some("c-1".into()),
            },
            placed,
            r#"cancel mine by ann {"reason":"en\"ough"}"#,
        ),
        (
            json!({"assignment_id": "mine", "context": {"flow_id": "f", "step_id": "s"}}),
            v1::StepCancel {
                context: Some(v1::BlockContext { attempt: None, ..place() }),
                assignment_id: Some("mine".into()),
                ..Default::default()
            },
            assigned,
            "cancel mine by - ",
        ),
    ] {
        for arrival in [on(CANCEL, "", text.to_string()), on(CANCEL, BINARY, binary.encode_to_vec())].map(read) {
            assert_eq!(said(&arrival), want);
            assert_eq!((arrival.key, &*arrival.tenant), (key, "acme"));
            assert_eq!(arrival.partition, partition("acme"));
        }
    }
}

#[test]
fn a_cancel_that_cannot_be_read_is_refused_with_the_field_named() {
    for (body, code, field) in [
        (json!([]), "INVALID_FORMAT", ""),
        (json!({}), "MISSING_REQUIRED_FIELD", "/assignment_id"),
        (json!({"context": {"flow_id": "f", "step_id": "s"}}), "MISSING_REQUIRED_FIELD", "/assignment_id"),
        (json!({"context": [], "assignment_id": "a"}), "INVALID_FORMAT", "/context"),
        (json!({"context": {"tenant_id": "other"}, "assignment_id": "a"}), "PERMISSION_DENIED", "/context/tenant_id"),
        (json!({"context": {"attempt": "x"}, "assignment_id": "a"}), "INVALID_FORMAT", "/context/attempt"),
        (json!({"assignment_id": "a b"}), "INVALID_INPUT", "/assignment_id"),
        (json!({"assignment_id": 7}), "INVALID_FORMAT", "/assignment_id"),
        (json!({"assignment_id": "a", "actor": "x".repeat(257)}), "INVALID_INPUT", "/actor"),
        (json!({"assignment_id": "a", "reason": "x".repeat(1025)}), "INVALID_INPUT", "/reason"),
    ] {
        let details = if field.is_empty() { String::new() } else { format!("{{\"field\":\"{field}\"}}") };
        assert_eq!(said(&read(on(CANCEL, "", body.to_string()))), format!("refused {code} {details}"), "{body}");
    }
    let twice = r#"{"assignment_id":"a","assignmentId":"b"}"#;
    assert_eq!(said(&read(on(CANCEL, "", twice))), r#"refused INVALID_FORMAT {"field":"/assignment_id"}"#);
    assert_eq!(said(&read(on(CANCEL, "", "junk"))), "refused INVALID_FORMAT ");
    assert_eq!(said(&read(on(CANCEL, BINARY, "{}"))), "refused INVALID_FORMAT ");
    let mut other = on(CANCEL, "", r#"{"assignment_id":"a"}"#);
    other.headers.push(("tenant_id".into(), "other".into()));
    assert_eq!(said(&read(other)), r#"refused PERMISSION_DENIED {"field":"/context/tenant_id"}"#);
}

fn replied(delivery: Delivery, reply: Reply) -> Option<Parcel> {
    wire().render(&Post { confirm: None, arrival: Rc::new(read(delivery)), letter: Letter::Reply(reply) })
}

#[test]
fn replies_are_written_as_their_notice_was_and_go_where_its_sender_waits() {
    use v1::step_cancel_reply::Disposition;
    let why = || Fault::new(Code::InvalidInput, "a field has a value that its rule forbids").with_details("{\"field\":\"/x\"}");
    for (reply, disposition, status, text, outlet) in [
        (Reply::Cancelled, Disposition::Noted, 0, json!({"disposition": "NOTED"}), Outlet::Reply),
        (Reply::Unknown, Disposition::NotFound, 0, json!({"disposition": "NOT_FOUND"}), Outlet::Doubt),
        (
            Reply::Ended(Status::Timeout),
            Disposition::AlreadyEnded,
            v1::step_result::Status::Timeout as i32,
            json!({"disposition": "ALREADY_ENDED", "status": "TIMEOUT"}),
            Outlet::Reply,
        ),
        (
            Reply::Refused(why()),
            Disposition::Unspecified,
            0,
            json!({"error": {"code": "INVALID_INPUT", "type": "invalid_input", "retryable": false, "effect": "NONE",
                "message": "a field has a value that its rule forbids", "details": {"field": "/x"}}}),
            Outlet::Reply,
        ),
    ] {
        let parcel = replied(on(CANCEL, "application/json", r#"{"assignment_id":"a"}"#), reply.clone()).expect("a reply");
        assert_eq!((&*parcel.subject, parcel.outlet, parcel.confirm), ("_INBOX.x", outlet, None));
        assert_eq!(parcel.headers, [("Content-Type".into(), "application/json".into())]);
        assert_eq!(serde_json::from_slice::<Value>(&parcel.body).ok(), Some(text));
        let binary = replied(on(CANCEL, BINARY, v1::StepCancel::default().encode_to_vec()), reply.clone()).expect("a reply");
        assert_eq!(binary.headers, [("Content-Type".into(), BINARY.into())]);
        let said = v1::StepCancelReply::decode(binary.body).expect("a StepCancelReply");
        assert_eq!(
            (said.disposition(), said.status, said.error.is_some()),
            (disposition, status, matches!(reply, Reply::Refused(_)))
        );
    }
    let unasked = Delivery { reply: None, ..on(CANCEL, "", r#"{"assignment_id":"a"}"#) };
    assert!(replied(unasked, Reply::Cancelled).is_none(), "nobody waits");
}

fn decision() -> Value {
    json!({"context": {"tenant_id": "acme"}, "assignment_id": "a", "name": "approval", "decision": "APPROVED", "actor": "ann"})
}

#[test]
fn a_decision_is_read_alike_in_both_encodings() {
    let digest = "ab".repeat(32);
    let data = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(digest.clone())) };
    let binary = v1::Signal {
        context: Some(place()),
        assignment_id: Some("mine".into()),
        name: "approval".into(),
        decision: v1::signal::Decision::Rejected as i32,
        actor: Some("ann".into()),
        comment: Some("not \"yet\"".into()),
        data: Some(prost_types::Struct { fields: [("plan_digest".to_owned(), data)].into() }),
        signal_id: Some("s-1".into()),
        sent_at: None,
    };
    let context = json!({"tenant_id": "acme", "run_id": "r", "flow_id": "f", "step_id": "s", "attempt": 2});
    let text = json!({
        "context": context, "assignment_id": "mine", "name": "approval", "decision": "rejected", "actor": "ann",
        "comment": "not \"yet\"", "data": {"plan_digest": digest}, "signalId": "s-1",
    });
    let placed = Salt([7; 32]).key(Identity::Coordinates { tenant: "acme", run: Some("r"), flow: "f", step: "s", attempt: 2 });
    for arrival in [on(SIGNAL, "", text.to_string()), on(SIGNAL, BINARY, binary.encode_to_vec())].map(read) {
        assert_eq!(arrival.key, placed);
        let Content::Notice(Notice::Signal { assignment_id, vote }) = arrival.content else { panic!("{:?}", arrival.content) };
        assert_eq!((assignment_id.as_deref(), &*vote.actor, vote.approve), (Some("mine"), "ann", false));
        assert_eq!((&*vote.comment, &*vote.id, &*vote.plan, vote.signed), ("not \"yet\"", "s-1", &*digest, false));
    }
}

#[test]
fn a_decision_that_cannot_be_read_is_refused_with_the_field_named() {
    for (changes, code, field) in [
        (json!({"name": null}), "MISSING_REQUIRED_FIELD", "/name"),
        (json!({"name": "payment"}), "INVALID_INPUT", "/name"),
        (json!({"decision": null}), "MISSING_REQUIRED_FIELD", "/decision"),
        (json!({"decision": "perhaps"}), "INVALID_INPUT", "/decision"),
        (json!({"decision": 3}), "INVALID_INPUT", "/decision"),
        (json!({"decision": 0}), "INVALID_INPUT", "/decision"),
        (json!({"actor": null}), "MISSING_REQUIRED_FIELD", "/actor"),
        (json!({"actor": ""}), "MISSING_REQUIRED_FIELD", "/actor"),
        (json!({"actor": 7}), "INVALID_FORMAT", "/actor"),
        (json!({"comment": "x".repeat(1025)}), "INVALID_INPUT", "/comment"),
        (json!({"data": []}), "INVALID_FORMAT", "/data"),
        (json!({"assignment_id": null}), "MISSING_REQUIRED_FIELD", "/assignment_id"),
        (json!({"context": {"tenant_id": "other"}}), "PERMISSION_DENIED", "/context/tenant_id"),
    ] {
        let mut body = decision();
        for (name, value) in changes.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let Content::Notice(Notice::Refused(fault)) = read(on(SIGNAL, "", body.to_string())).content else { panic!("{changes}") };
        let said = (fault.code.as_str(), String::from_utf8_lossy(&fault.details).into_owned());
        assert_eq!(said, (code, format!("{{\"field\":\"{field}\"}}")), "{changes}");
    }
}

#[test]
fn what_became_of_a_decision_is_told_in_its_own_encoding() {
    use v1::signal::Decision;
    use v1::signal_reply::Disposition;
    let first = shards::gate::Vote {
        actor: "ann".into(),
        approve: true,
        comment: Text::new(),
        id: Text::new(),
        signed: false,
        plan: Text::new(),
        at_ms: 1,
    };
    let told = r#"{"approved":false,"decision":"rejected","overdue":true,"decided_at_ms":3,"votes":[]}"#;
    let outcome = Rc::new(Outcome {
        fault: Some(Fault::new(Code::Rejected, "The request was not approved.").with_details(told)),
        ..super::render_tests::outcome(Status::Error, None)
    });
    for (reply, disposition, decision, text) in [
        (Reply::Noted, Disposition::Noted, Decision::Unspecified, json!({"disposition": "NOTED"})),
        (Reply::Unknown, Disposition::NotFound, Decision::Unspecified, json!({"disposition": "NOT_FOUND"})),
        (
            Reply::Heard(first),
            Disposition::Duplicate,
            Decision::Approved,
            json!({"disposition": "DUPLICATE", "decision": "APPROVED", "actor": "ann"}),
        ),
        (
            Reply::Decided(outcome),
            Disposition::AlreadyEnded,
            Decision::Rejected,
            json!({"disposition": "ALREADY_ENDED", "status": "ERROR", "decision": "REJECTED",
                "decided": serde_json::from_str::<Value>(told).expect("JSON")}),
        ),
    ] {
        let parcel = replied(on(SIGNAL, "", self::decision().to_string()), reply.clone()).expect("a reply");
        assert_eq!(serde_json::from_slice::<Value>(&parcel.body).ok(), Some(text));
        let binary = replied(on(SIGNAL, BINARY, v1::Signal::default().encode_to_vec()), reply).expect("a reply");
        let said = v1::SignalReply::decode(binary.body).expect("a SignalReply");
        assert_eq!((said.disposition(), said.decision()), (disposition, decision));
        assert_eq!(said.decided.is_some(), disposition == Disposition::AlreadyEnded);
    }
}

#[test]
fn a_signal_is_refused_in_its_own_encoding() {
    for (media_type, body) in [
        ("", Bytes::from_static(b"{\"assignment_id\":\"a\",\"name\":\"x\"}")),
        (BINARY, Bytes::from_static(b"\x12\x01a\x1a\x01x")),
    ] {
        let delivery = on(SIGNAL, media_type, body);
        let Content::Notice(Notice::Refused(why)) = read(delivery.clone()).content else { panic!("it is refused") };
        assert_eq!((why.code, &*why.message), (Code::InvalidInput, "no step of this worker waits for such a signal"));
        let parcel = replied(delivery, Reply::Refused(why)).expect("a reply");
        let message = if media_type == BINARY {
            v1::SignalReply::decode(parcel.body).expect("a SignalReply").error.expect("why").message
        } else {
            serde_json::from_slice::<Value>(&parcel.body).expect("JSON")["error"]["message"].as_str().expect("a text").to_owned()
        };
        assert_eq!(message, "no step of this worker waits for such a signal");
    }
}
