//! Letters as their readers get them, byte for byte.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use shards::event::{Chunk, Overload, Stage};
use shards::ids::Ticket;
use shards::outcome::{Effected, Tried};

use super::sample::{NOW_MS, assignment, delivery, in_both, read, step, wire};
use super::*;

/// What every result here stands under.
const UNDER: Key = Key([7; 16]);

/// An outcome with all its figures set.
pub(super) fn outcome(status: Status, fault: Option<Fault>) -> Outcome {
    Outcome {
        status,
        effect: fault.as_ref().map_or(Effected::Applied, |fault| fault.effect),
        outputs: if status == Status::Ok { Bytes::from_static(b"{\"a\":1.0}") } else { Bytes::new() },
        fault,
        tries: 2,
        received_ms: NOW_MS,
        started_ms: NOW_MS + 5,
        ended_ms: NOW_MS + 12,
        ran_us: 6_500,
        spilled: false,
        queue_depth: 4,
        boot: 3,
        owner_epoch: 6,
    }
}

fn ok() -> Letter {
    Letter::Result { outcome: Rc::new(outcome(Status::Ok, None)), replayed: true, under: UNDER }
}

fn failed(fault: Fault) -> Letter {
    Letter::Result { outcome: Rc::new(outcome(Status::Error, Some(fault))), replayed: false, under: UNDER }
}

fn render(delivery: Delivery, letter: Letter) -> Option<Parcel> {
    let confirm = Some(Ticket { slot: 1, generation: 2 });
    wire().render(&Post { confirm, arrival: Rc::new(read(delivery)), letter })
}

fn sent(body: String, letter: Letter) -> Parcel {
    render(delivery(Origin::Core, body), letter).expect("a parcel")
}

fn text(parcel: &Parcel) -> &str {
    std::str::from_utf8(&parcel.body).expect("UTF-8")
}

fn header<'a>(parcel: &'a Parcel, name: &str) -> Option<&'a str> {
    parcel.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
}

const UUIDS: [&str; 3] =
    ["0b9f6a52-6d3e-4a8b-8f51-3c2d1e0f9a8b", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "7c1d2e3f-4a5b-4c6d-ae7f-8a9b0c1d2e3f"];

fn placed() -> String {
    assignment(&[
        ("/correlation/trace_id", json!("0af7651916cd43dd8448eb211c80319c")),
        ("/run_id", json!(UUIDS[0])),
        ("/flow_id", json!(UUIDS[1])),
        ("/step_id", json!(UUIDS[2])),
    ])
}

#[test]
fn a_result_is_what_the_router_checks() {
    let parcel = sent(placed(), ok());
    assert_eq!(
        text(&parcel),
        concat!(
            r#"{"version":"1","assignment_id":"3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60","request_id":"req-1","status":"success","#,
            r#""provider_id":"prov","job":{"type":"echo"},"latency_ms":12,"cost":0,"tenant_id":"acme","timestamp":1767225600012,"#,
            r#""trace_id":"0af7651916cd43dd8448eb211c80319c","run_id":"0b9f6a52-6d3e-4a8b-8f51-3c2d1e0f9a8b","#,
            r#""flow_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","step_id":"7c1d2e3f-4a5b-4c6d-ae7f-8a9b0c1d2e3f","retries_used":1,"#,
            r#""effect":"applied","worker_id":"w-1","owner_epoch":6,"queue_depth":4,"timing":{"received_ms":1767225600000,"#,
            r#""started_ms":1767225600005,"ended_ms":1767225600012,"ran_us":6500},"outputs":{"a":1.0}}"#
        )
    );
    let arrival = read(delivery(Origin::Core, placed()));
    let id = format!("r-{}", arrival.asker.as_ref().expect("read").id);
    let want = [("Nats-Msg-Id", &*id), ("version", "1"), ("tenant_id", "acme"), ("trace_id", "0af7651916cd43dd8448eb211c80319c")];
    assert_eq!(parcel.headers.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>(), want);
    assert_eq!((parcel.outlet, &*parcel.subject), (Outlet::Result, "caf.exec.result.v1"));
    assert_eq!(parcel.confirm, Some(Ticket { slot: 1, generation: 2 }));
    let about = parcel.about;
    assert_eq!((about.line, about.key, about.status), (0, arrival.key, Some(Status::Ok)));
    assert_eq!((about.replayed, about.boot, about.tries), (true, 3, 2));
}

#[test]
fn a_result_costs_what_a_block_that_is_paid_for_says_and_nothing_else_does() {
    let spoken = Bytes::from_static(br#"{"text":"x","cost":0.25}"#);
    let cost = |name: &str, outcome: Outcome| {
        let letter = Letter::Result { outcome: Rc::new(outcome), replayed: false, under: UNDER };
        let parcel = sent(assignment(&[("/job/type", json!(name))]), letter);
        serde_json::from_str::<Value>(text(&parcel)).expect("JSON")["cost"].clone()
    };
    let done = Outcome { outputs: spoken.clone(), ..outcome(Status::Ok, None) };
    for (name, wanted) in [("ai.generate", json!(0.25)), ("chat", json!(0.25)), ("echo", json!(0)), ("chat.x", json!(0))] {
        assert_eq!(cost(name, done.clone()), wanted, "{name}");
    }
    // Where it lies in a blob, where there is none, and where it is no number.
    assert_eq!(cost("chat", Outcome { spilled: true, ..done.clone() }), json!(0));
    for outputs in [&br#"{"text":"x"}"#[..], br#"{"cost":"much"}"#, br#"{"cost":null}"#] {
        assert_eq!(cost("chat", Outcome { outputs: Bytes::from_static(outputs), ..done.clone() }), json!(0));
    }
    let failed = Outcome { outputs: spoken, ..outcome(Status::Error, Some(Fault::new(Code::NetworkError, "no"))) };
    assert_eq!(cost("chat", failed), json!(0));
}

#[test]
fn a_failed_result_says_why_in_words_that_blame_nobody_else() {
    let fault = Fault::new(Code::HttpError, "status 405 from the server").with_details("{\"status\":405}");
    let fault = Fault { retry_after_ms: Some(900), effect: Effected::Unknown, ..fault };
    let parcel = sent(assignment(&[]), failed(fault));
    let want = concat!(
        r#""timestamp":1767225600012,"error_code":"HTTP_ERROR","error_type":"http_error","#,
        r#""error_message":"the server answered with an error","error_details":{"retry_after_ms":900,"status":405},"#,
        r#""retries_used":1,"effect":"unknown","worker_id""#
    );
    assert!(text(&parcel).contains(want), "{}", text(&parcel));
    assert!(text(&parcel).contains("\"status\":\"error\"") && !text(&parcel).contains("\"outputs\""));
    for (status, spelled) in [(Status::Timeout, "timeout"), (Status::Cancelled, "cancelled")] {
        let letter = Letter::Result { outcome: Rc::new(outcome(status, None)), replayed: false, under: UNDER };
        let value: Value = serde_json::from_slice(&sent(assignment(&[]), letter).body).expect("JSON");
        assert_eq!(value["status"], spelled);
        assert!(value["error_code"].is_string() && value["error_type"].is_string());
    }
}

#[test]
fn ids_that_the_router_would_refuse_go_under_context_or_stay_out() {
    let value = |patch: &[(&str, Value)]| -> Value { serde_json::from_str(text(&sent(assignment(patch), ok()))).expect("JSON") };
    for ids in [
        json!({"flow_id": "flow-1"}),
        json!({"run_id": UUIDS[0], "flow_id": UUIDS[1]}),
        json!({"run_id": UUIDS[0], "flow_id": UUIDS[1], "step_id": "s\"te\\p é\n"}),
    ] {
        let value = value(&[("/correlation", ids.clone())]);
        assert_eq!(value["context"], ids);
        for name in ["run_id", "flow_id", "step_id"] {
            assert!(value.get(name).is_none(), "{name} of {ids}");
        }
    }
    assert!(value(&[]).get("context").is_none());
    for (trace, in_payload) in [
        ("0AF7651916CD43DD8448EB211C80319C", true),
        (UUIDS[0], true),
        ("trace-7", false),
        ("0af7651916cd43dd8448eb211c80319", false),
    ] {
        let parcel = sent(assignment(&[("/correlation/trace_id", json!(trace))]), ok());
        let value: Value = serde_json::from_slice(&parcel.body).expect("JSON");
        assert_eq!(value.get("trace_id").is_some(), in_payload, "{trace}");
        assert_eq!(header(&parcel, "trace_id"), Some(trace));
    }
    let parcel = sent(assignment(&[("/correlation/trace_id", json!("a\r\nb: c"))]), ok());
    assert_eq!(header(&parcel, "trace_id"), None, "nothing can be smuggled into headers");
}

#[test]
fn echoes_are_escaped_and_what_could_not_be_read_is_unknown() {
    let odd = "q\"uo\\te é 😀\u{1}";
    let body = assignment(&[("/request_id", json!(odd)), ("/executor/provider_id", json!(odd)), ("/job/type", json!(odd))]);
    let fault = Fault::new(Code::UnknownJobType, "no block has this name");
    let value: Value = serde_json::from_slice(&sent(body, failed(fault.clone())).body).expect("JSON");
    assert_eq!((&value["request_id"], &value["provider_id"], &value["job"]["type"]), (&json!(odd), &json!(odd), &json!(odd)));
    let bare = assignment(&[("/request_id", json!(null)), ("/executor", json!(null)), ("/job", json!(null))]);
    let value: Value = serde_json::from_slice(&sent(bare, failed(fault)).body).expect("JSON");
    assert_eq!((&value["request_id"], &value["provider_id"]), (&json!("unknown"), &json!("unknown")));
    assert_eq!(value["job"]["type"], "unknown");
}

#[test]
fn one_asker_gets_one_answer_and_another_gets_the_same_under_its_own_ids() {
    let first = sent(placed(), ok());
    let Letter::Result { outcome, .. } = ok() else { unreachable!("ok() is a result") };
    assert_eq!(first.body, sent(placed(), Letter::Result { outcome, replayed: false, under: UNDER }).body);
    let place = [("/flow_id", json!("f")), ("/step_id", json!("s")), ("/attempt", json!(1))];
    let mut other = place.to_vec();
    other.push(("/assignment_id", json!("another")));
    let (one, other) = (sent(assignment(&place), ok()), sent(assignment(&other), ok()));
    assert_eq!(one.about.key, other.about.key);
    assert_ne!(header(&one, "Nats-Msg-Id"), header(&other, "Nats-Msg-Id"));
    assert_eq!(text(&one).replace("3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60", "another"), text(&other));
}

#[test]
fn acks_say_whether_and_why() {
    let ack = |fault: Option<Fault>, overload| Letter::Ack { accepted: fault.is_none(), fault, overload, at_ms: NOW_MS };
    let parcel = sent(placed(), ack(None, Overload::Degraded));
    assert_eq!(
        text(&parcel),
        concat!(
            r#"{"version":"1","assignment_id":"3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60","status":"accepted","message":"accepted","#,
            r#""reason":"accepted","request_id":"req-1","tenant_id":"acme","trace_id":"0af7651916cd43dd8448eb211c80319c","#,
            r#""acknowledged_at":1767225600000,"overload_status":"degraded"}"#
        )
    );
    assert_eq!((parcel.outlet, &*parcel.subject), (Outlet::Ack, "caf.exec.assign.v1.ack"));
    assert!(header(&parcel, "Nats-Msg-Id").is_some_and(|id| id.starts_with("a-") && id.len() == 34));
    assert_eq!(parcel.about.status, None);
    let noted = sent(assignment(&[("/options/priority", json!("high"))]), ack(None, Overload::Healthy));
    assert!(text(&noted).contains(r#""message":"accepted; not usable, so left at the default: options.priority","#));
    let full = Fault::new(Code::QuotaExceeded, "the tenant's queue is full");
    let parcel = sent(assignment(&[]), ack(Some(full), Overload::Critical));
    let want = r#""status":"rejected","message":"the tenant's queue is full","reason":"the tenant's queue is full","#;
    assert!(text(&parcel).contains(want) && text(&parcel).ends_with(r#""overload_status":"critical"}"#));
}

#[test]
fn events_are_cloud_events() {
    let event = |stage, outcome: Option<Outcome>, sequence| Letter::Lifecycle {
        stage,
        outcome: outcome.map(Rc::new),
        sequence,
        at_ms: NOW_MS,
    };
    let parcel = sent(assignment(&[("/flow_id", json!("f"))]), event(Stage::Started, None, 1));
    let id = header(&parcel, "Nats-Msg-Id").expect("an id");
    assert!(id.starts_with("e-") && id.ends_with("-started-1"), "{id}");
    let want = concat!(
        r#"{"specversion":"1.0","id":"ID","source":"/endstation/w-1","type":"beamline.worker.step.started","#,
        r#""subject":"3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60","time":"2026-01-01T00:00:00.000000Z","#,
        r#""datacontenttype":"application/json","data":{"event_id":"ID","kind":"STARTED","#,
        r#""context":{"tenant_id":"acme","flow_id":"f"},"assignment_id":"3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60","#,
        r#""request_id":"req-1","type":"echo","sequence":1,"at":"2026-01-01T00:00:00.000000Z","worker_id":"w-1","boot":1}}"#
    );
    assert_eq!(text(&parcel), want.replace("ID", id));
    assert_eq!((parcel.outlet, &*parcel.subject), (Outlet::Event, "beamline.worker.events.acme"));
    assert_eq!(header(&parcel, "Content-Type"), Some("application/cloudevents+json"));
    let fault = Fault::new(Code::ExecutionFailed, "it broke");
    let parcel = sent(assignment(&[]), event(Stage::Failed, Some(outcome(Status::Error, Some(fault))), 4));
    let value: Value = serde_json::from_slice(&parcel.body).expect("JSON");
    assert_eq!(value["data"]["result"]["error"]["code"], "EXECUTION_FAILED");
    assert_eq!((&value["data"]["result"]["status"], &value["data"]["result"]["effect"]), (&json!("ERROR"), &json!("none")));
    let nobody = sent("junk".into(), event(Stage::DeadLettered, None, 0));
    assert_eq!(&*nobody.subject, "beamline.worker.events.$quarantine");
    let mut settings = wire().settings;
    settings.events = false;
    let arrival = Rc::new(read(delivery(Origin::Core, assignment(&[]))));
    let post = Post { confirm: None, arrival, letter: event(Stage::Accepted, None, 0) };
    assert!(EdgeWire::new(settings).render(&post).is_none());
}

#[test]
fn what_a_try_says_is_an_event_of_its_own_and_gives_its_credit_back_once_nobody_holds_it() {
    let under_way = Arc::new(AtomicU64::new(0));
    let text = Bytes::from_static(br#"{"text":"piece"}"#);
    let chunk = Chunk { hold: Hold::take(&under_way, 16), text };
    let letter = Letter::Progress { chunk, try_number: 2, sequence: 5, at_ms: NOW_MS };
    let parcel = sent(assignment(&[]), letter);
    let id = header(&parcel, "Nats-Msg-Id").expect("an id");
    assert!(id.starts_with("e-") && id.ends_with("-progress-1-5"), "{id}");
    assert_eq!((parcel.outlet, &*parcel.subject), (Outlet::Event, "beamline.worker.events.acme"));
    let value: Value = serde_json::from_slice(&parcel.body).expect("JSON");
    assert_eq!(value["type"], "beamline.worker.step.progress");
    let data = &value["data"];
    assert_eq!((&data["kind"], &data["sequence"], &data["try_number"]), (&json!("PROGRESS"), &json!(5), &json!(2)));
    assert_eq!(data["progress"], json!({ "text": "piece" }));
    let watched = protobuf::lifecycle(&parcel.body).expect("an event");
    let progress = watched.progress.expect("progress");
    assert_eq!((watched.try_number, progress.chunk), (Some(2), Some(proto::v1::progress::Chunk::Text("piece".to_owned()))));
    let copy = parcel.body.clone();
    drop(parcel);
    assert_eq!(under_way.load(Ordering::Relaxed), 16);
    drop(copy);
    assert_eq!(under_way.load(Ordering::Relaxed), 0);
}

#[test]
fn a_dead_letter_holds_the_whole_message() {
    let letter = |fault| Letter::DeadLetter { outcome: Rc::new(outcome(Status::Error, Some(fault))), earlier: Vec::new() };
    let broke = || Fault::new(Code::ExecutionFailed, "it broke");
    let body = format!(" {}\n", assignment(&[]));
    let headers: Headers = vec![("Nats-Msg-Id".into(), "their-1".into()), ("x".into(), "a\"b".into())];
    let parcel = render(Delivery { headers, ..delivery(Origin::Core, body.clone()) }, letter(broke())).expect("a parcel");
    let value: Value = serde_json::from_slice(&parcel.body).expect("JSON");
    assert!(text(&parcel).ends_with(&format!("\"message\":{body}}}")), "verbatim");
    for (name, want) in [
        ("reason", json!("execution_failed")),
        ("error_code", json!("EXECUTION_FAILED")),
        ("error_type", json!("execution_failed")),
        ("error_message", json!("it broke")),
        ("assignment_id", json!("3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60")),
        ("status", json!("error")),
        ("subject", json!("caf.exec.assign.v1")),
        ("headers", json!([["Nats-Msg-Id", "their-1"], ["x", "a\"b"]])),
        ("first_at", json!("2026-01-01T00:00:00.000000Z")),
        ("last_at", json!("2026-01-01T00:00:00.012000Z")),
    ] {
        assert_eq!(value[name], want, "{name}");
    }
    assert_eq!((&value["tries"][0]["number"], &value["tries"][0]["error_code"]), (&json!(2), &json!("EXECUTION_FAILED")));
    assert_eq!((parcel.outlet, &*parcel.subject), (Outlet::DeadLetter, "caf.exec.dlq.v1"));
    assert_eq!(header(&parcel, "x-dlq-reason"), Some("EXECUTION_FAILED"));
    assert_eq!(header(&parcel, "x-original-msg-id"), Some("their-1"));
    assert_eq!(header(&parcel, "x-original-subject"), Some("caf.exec.assign.v1"));
    assert!(header(&parcel, "Nats-Msg-Id").is_some_and(|id| id.starts_with("d-") && id.ends_with("-EXECUTION_FAILED")));

    for body in [&b"junk \xff"[..], b"{\"a\":\"\\ud800\"}", "[".repeat(99).as_bytes(), b"{\"a\":[\"1\\\"\",-1e999]}"] {
        let parcel = render(delivery(Origin::Core, body.to_vec()), letter(broke())).expect("a parcel");
        let value: Value = serde_json::from_slice(&parcel.body).expect("JSON");
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD.encode(body);
        assert_eq!(value["message_base64"], encoded);
        assert!(value.get("message").is_none() && value.get("assignment_id").is_none() && value.get("tenant_id").is_none());
        let key = Salt([7; 32]).quarantine_key("caf.exec.assign.v1", &[], body);
        assert_eq!(header(&parcel, "Nats-Msg-Id"), Some(&*format!("d-{key}-EXECUTION_FAILED")));
    }
}

#[test]
fn a_dead_letter_says_what_is_known_of_each_try() {
    let fault = || Fault::new(Code::ExecutionFailed, "it broke");
    let earlier = vec![Tried::new(1, NOW_MS, 7, &Fault::new(Code::SystemOverload, "slow \"down\""))];
    let letter = Letter::DeadLetter { outcome: Rc::new(outcome(Status::Error, Some(fault()))), earlier };
    let parcel = render(delivery(Origin::Core, assignment(&[])), letter).expect("a parcel");
    let value: Value = serde_json::from_slice(&parcel.body).expect("JSON");
    let tries = value["tries"].as_array().expect("a list");
    let first = json!({
        "number": 1, "started_at": "2026-01-01T00:00:00.000000Z", "ran_us": 7,
        "error_code": "SYSTEM_OVERLOAD", "error_message": "slow \"down\"",
    });
    assert_eq!((tries.len(), &tries[0]), (2, &first));
    assert_eq!((&tries[1]["number"], &tries[1]["error_code"]), (&json!(2), &json!("EXECUTION_FAILED")));
}

#[test]
fn a_message_id_that_no_header_can_hold_is_left_out_of_the_dead_letter() {
    let mut message = delivery(Origin::Core, "{}");
    message.headers.push((Text::from_static("Nats-Msg-Id"), Text::from_static("their-1\r\nversion: 2")));
    let fault = Fault::new(Code::ExecutionFailed, "it broke");
    let letter = Letter::DeadLetter { outcome: Rc::new(outcome(Status::Error, Some(fault))), earlier: Vec::new() };
    let parcel = render(message, letter).expect("a parcel");
    assert_eq!(header(&parcel, "x-original-msg-id"), None);
    assert!(text(&parcel).contains(r#"["Nats-Msg-Id","their-1\r\nversion: 2"]"#), "{}", text(&parcel));
}

#[test]
fn an_expired_assignment_gets_no_result_unless_it_is_a_line() {
    let expired = || failed(Fault::new(Code::Expired, "the step came after its time"));
    let journal = Origin::Journal { source: Source::Stream, since_ms: 1 };
    assert!(render(delivery(Origin::Core, assignment(&[])), expired()).is_none());
    assert!(render(delivery(journal, assignment(&[])), expired()).is_none());
    assert!(render(delivery(Origin::Line(1), assignment(&[])), expired()).is_some());
    assert!(render(delivery(Origin::Line(1), step(&[])), expired()).is_some());
}

#[test]
fn a_file_gets_results_in_its_own_form_and_nothing_else() {
    let line = |body: String, letter| render(delivery(Origin::Line(41), body), letter);
    let body = step(&[("/context/flow_id", json!("f")), ("/context/attempt", json!(2)), ("/assignment_id", json!("mine"))]);
    let parcel = line(body.clone(), ok()).expect("a result");
    assert_eq!(
        text(&parcel),
        concat!(
            r#"{"status":"OK","outputs":{"a":1.0},"latency_ms":12,"retries_used":1,"owner_epoch":6,"timing":{"#,
            r#""received_at":"2026-01-01T00:00:00.000000Z","started_at":"2026-01-01T00:00:00.005000Z","#,
            r#""ended_at":"2026-01-01T00:00:00.012000Z","queued_ms":5,"ran_us":6500},"#,
            r#""context":{"tenant_id":"acme","flow_id":"f","attempt":2},"assignment_id":"mine","type":"echo","replayed":true}"#
        )
    );
    assert_eq!((parcel.outlet, parcel.about.line, parcel.headers.len()), (Outlet::Result, 41, 0));
    let fault = Fault::new(Code::NetworkError, "the network failed").with_effect(Effected::Unknown);
    let parcel = line(body.clone(), failed(fault)).expect("a result");
    let want = concat!(
        r#"{"status":"ERROR","error":{"code":"NETWORK_ERROR","type":"network_error","message":"the network failed","#,
        r#""retryable":true,"effect":"UNKNOWN"},"latency_ms":12,"#
    );
    assert!(text(&parcel).starts_with(want), "{}", text(&parcel));
    let routed = line(assignment(&[]), ok()).expect("a result");
    assert!(text(&routed).starts_with(r#"{"version":"1","assignment_id""#) && text(&routed).ends_with(r#","replayed":true}"#));

    let quarantined = || {
        let fault = Fault::new(Code::InvalidFormat, "the message is not JSON");
        Rc::new(outcome(Status::Quarantined, Some(fault)))
    };
    let letter = Letter::Result { outcome: quarantined(), replayed: false, under: UNDER };
    let told = line("junk".into(), letter).expect("its reader is told");
    assert!(text(&told).starts_with(r#"{"status":"ERROR","error":{"code":"INVALID_FORMAT""#));
    assert_eq!((told.outlet, told.about.line, told.about.status), (Outlet::Result, 41, Some(Status::Quarantined)));
    for letter in [
        Letter::Ack { accepted: true, fault: None, overload: Overload::Healthy, at_ms: 1 },
        Letter::Lifecycle { stage: Stage::Accepted, outcome: None, sequence: 0, at_ms: 1 },
    ] {
        assert!(line(body.clone(), letter).is_none());
    }
    let dead =
        line("junk".into(), Letter::DeadLetter { outcome: quarantined(), earlier: Vec::new() }).expect("a letter for the store");
    assert_eq!((dead.outlet, &*dead.subject, dead.about.line), (Outlet::DeadLetter, "caf.exec.dlq.v1", 41));
    let failed = || Letter::DeadLetter {
        outcome: Rc::new(outcome(Status::Error, Some(Fault::new(Code::ExecutionFailed, "no")))),
        earlier: Vec::new(),
    };
    let native = line(body.clone(), failed()).expect("a letter for the store");
    assert_eq!(&*native.subject, "beamline.worker.dlq.v1.acme");
    let journal = Origin::Journal { source: Source::Line, since_ms: 1 };
    assert!(render(delivery(journal, body), failed()).is_some(), "whether its reader is still there or not");
}

#[test]
fn a_letter_that_is_too_large_says_size_and_hash_of_the_very_bytes_that_came() {
    let expired = || Letter::DeadLetter {
        outcome: Rc::new(outcome(Status::Error, Some(Fault::new(Code::Expired, "late")))),
        earlier: Vec::new(),
    };
    let with_blanks = format!(" {}\n", assignment(&[]));
    for body in [assignment(&[]), with_blanks, "junk \"message\": {".to_owned()] {
        let whole = render(delivery(Origin::Core, body.clone()), expired()).expect("a letter");
        let short: Value = serde_json::from_slice(&answer::shortened(&whole.body)).expect("JSON");
        let hash = shards::ids::hex(&sha2::Sha256::digest(body.as_bytes()));
        assert_eq!((&short["message_size"], &short["message_sha256"]), (&json!(body.len()), &json!(hash)), "{body}");
        assert_eq!((&short["reason"], short.get("message"), short.get("message_base64")), (&json!("expired"), None, None));
    }
}

#[test]
fn a_native_result_on_nats_goes_to_the_subject_of_its_key() {
    let subject = Text::from_static("beamline.worker.steps.v1.acme");
    let parcel = render(Delivery { subject, ..delivery(Origin::Core, step(&[])) }, ok()).expect("a parcel");
    assert_eq!(&*parcel.subject, format!("beamline.worker.results.v1.acme.{UNDER}"));
    assert!(!text(&parcel).contains("replayed"), "same asker, same bytes");
}

#[test]
fn a_native_answer_is_written_as_its_question_was() {
    use prost::Message;
    use prost_types::value::Kind;
    use proto::v1;
    let place = json!({"tenant_id": "acme", "trace_id": "t", "flow_id": "f", "step_id": "s", "attempt": 2});
    let body = step(&[("/context", place), ("/assignment_id", json!("mine")), ("/request_id", json!("req"))]);
    let both = |letter: fn() -> Letter| in_both(&body).map(|delivery| render(delivery, letter()).expect("a parcel"));
    let [text, binary] = both(ok);
    assert_eq!(header(&text, "Content-Type"), Some("application/json"));
    assert_eq!(header(&binary, "Content-Type"), Some("application/protobuf"));
    assert_eq!((&text.subject, header(&text, "Nats-Msg-Id")), (&binary.subject, header(&binary, "Nats-Msg-Id")));
    let result = v1::StepResult::decode(binary.body.clone()).expect("a StepResult");
    assert_eq!(result.status(), v1::step_result::Status::Ok);
    let outputs = result.outputs.expect("outputs").fields;
    assert_eq!(outputs["a"].kind, Some(Kind::NumberValue(1.0)));
    let context = result.context.expect("its context");
    assert_eq!((&*context.tenant_id, context.flow_id.as_deref(), context.attempt), ("acme", Some("f"), Some(2)));
    assert_eq!((context.run_id, context.trace_id.as_deref()), (None, Some("t")));
    assert_eq!(
        (result.assignment_id.as_deref(), result.request_id.as_deref(), &*result.r#type),
        (Some("mine"), Some("req"), "echo")
    );
    assert_eq!((result.latency_ms, result.retries_used, result.owner_epoch, result.error), (12, 1, 6, None));
    let timing = result.timing.expect("its timing");
    assert_eq!((timing.queued_ms, timing.ran_us, timing.received_at.map(|at| at.seconds)), (5, 6_500, Some(1_767_225_600)));

    let [_, binary] = both(|| {
        let fault = Fault::new(Code::HttpError, "status 405").with_details("{\"status\":405}").with_effect(Effected::Unknown);
        failed(Fault { retry_after_ms: Some(900), ..fault })
    });
    let result = v1::StepResult::decode(binary.body).expect("a StepResult");
    assert_eq!((result.status(), result.outputs), (v1::step_result::Status::Error, None));
    let error = result.error.expect("an error");
    assert_eq!((&*error.code, &*error.r#type, &*error.message), ("HTTP_ERROR", "http_error", "status 405"));
    assert_eq!((error.effect(), error.retryable, error.retry_after_ms), (v1::step_error::Effect::Unknown, false, Some(900)));
    assert_eq!(error.details.expect("details").fields["status"].kind, Some(Kind::NumberValue(405.0)));

    let [_, binary] = both(|| {
        let mut spilled = outcome(Status::Ok, None);
        spilled.spilled = true;
        spilled.outputs = Bytes::from(format!(r#"{{"uri":"blob:x","sha256":"{}","size":7}}"#, "0a".repeat(32)));
        Letter::Result { outcome: Rc::new(spilled), replayed: false, under: UNDER }
    });
    let result = v1::StepResult::decode(binary.body).expect("a StepResult");
    let there = result.outputs_ref.expect("a reference");
    assert_eq!((result.outputs, &*there.uri, there.sha256, there.size_bytes), (None, "blob:x", vec![10; 32], 7));
}
