//! The model judged by itself: good messages it must take, and one bad message for each thing a worker can get wrong.

use serde_json::{Value, json};

use super::rules::Headers;
use super::{Assignment, Model, Owed, Rule, Strictness, Subjects};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ULID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
const UUID: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

/// A model that has sent one assignment, and that assignment.
fn sent(owed: Owed) -> (Model, Assignment) {
    let mut assignment = Assignment::new("acme", "echo", json!({"n": 1}));
    assignment.json["correlation"]["trace_id"] = json!(TRACE);
    let mut model = Model::new(Subjects::default(), Strictness::default());
    model.assigned(&assignment.id, assignment.echo(), owed);
    (model, assignment)
}

fn ack(of: &Assignment) -> Value {
    json!({
        "version": "1", "assignment_id": of.id, "status": "accepted", "message": "queued", "reason": "queued",
        "request_id": of.json["request_id"], "tenant_id": "acme", "trace_id": TRACE,
        "acknowledged_at": 1_790_000_000_000_u64, "overload_status": "healthy",
    })
}

fn result(of: &Assignment) -> Value {
    json!({
        "version": "1", "assignment_id": of.id, "request_id": of.json["request_id"], "status": "success",
        "provider_id": "endstation", "job": {"type": "echo"}, "latency_ms": 3, "cost": 0.0, "tenant_id": "acme",
        "timestamp": 1_790_000_000_001_u64, "trace_id": TRACE, "run_id": UUID, "flow_id": ULID, "step_id": UUID,
        "outputs": {"n": 1}, "retries_used": 0, "worker_id": "w", "queue_depth": 0, "timing": {"run_us": 5},
    })
}

fn failed(of: &Assignment, code: &str, kind: &str, message: &str) -> Value {
    let mut value = result(of);
    value["status"] = json!("error");
    value["error_code"] = json!(code);
    value["error_type"] = json!(kind);
    value["error_message"] = json!(message);
    value["effect"] = json!("none");
    value
}

fn headers(kind: char) -> Headers {
    let hex = if kind == 'r' { "11" } else { "22" }.repeat(16);
    vec![
        ("version".into(), "1".into()),
        ("tenant_id".into(), "acme".into()),
        ("trace_id".into(), TRACE.into()),
        ("Nats-Msg-Id".into(), format!("{kind}-{hex}")),
    ]
}

fn see(model: &mut Model, subject: &str, headers: &Headers, value: &Value) -> Result<(), Rule> {
    model.observe(subject, headers, value.to_string().as_bytes()).map_err(|violation| violation.rule)
}

const ACK: &str = "caf.exec.assign.v1.ack";
const RESULT: &str = "caf.exec.result.v1";
const DLQ: &str = "caf.exec.dlq.v1";
const HEARTBEAT: &str = "caf.worker.heartbeat.v1";
const EVENT: &str = "beamline.worker.events.acme";

/// The verdict on one result, after a good ack.
fn judge(change: impl FnOnce(&mut Value, &mut Headers)) -> Result<(), Rule> {
    let (mut model, assignment) = sent(Owed::Answer);
    see(&mut model, ACK, &headers('a'), &ack(&assignment)).expect("the ack is good");
    let (mut value, mut head) = (result(&assignment), headers('r'));
    change(&mut value, &mut head);
    see(&mut model, RESULT, &head, &value)
}

/// The verdict on one failed result, after a good ack.
fn judge_failed(code: &str, kind: &str, message: &str) -> Result<(), Rule> {
    judge(|value, _| {
        for (key, text) in [("error_code", code), ("error_type", kind), ("error_message", message)] {
            value[key] = json!(text);
        }
        value["status"] = json!("error");
        value["effect"] = json!("none");
    })
}

fn judge_ack(change: impl FnOnce(&mut Value, &mut Headers)) -> Result<(), Rule> {
    let (mut model, assignment) = sent(Owed::Answer);
    let (mut value, mut head) = (ack(&assignment), headers('a'));
    change(&mut value, &mut head);
    see(&mut model, ACK, &head, &value)
}

macro_rules! results {
    ($($name:ident: $rule:ident, $change:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(judge($change), Err(Rule::$rule));
        }
    )*};
}

macro_rules! acks {
    ($($name:ident: $rule:ident, $change:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!(judge_ack($change), Err(Rule::$rule));
        }
    )*};
}

fn set(key: &'static str, to: Value) -> impl FnOnce(&mut Value, &mut Headers) {
    move |value, _| value[key] = to
}

fn drop_key(key: &'static str) -> impl FnOnce(&mut Value, &mut Headers) {
    move |value, _| {
        value.as_object_mut().expect("an object").remove(key);
    }
}

fn set_header(name: &'static str, to: &'static str) -> impl FnOnce(&mut Value, &mut Headers) {
    move |_, headers| {
        headers.retain(|(key, _)| key != name);
        headers.push((name.to_owned(), to.to_owned()));
    }
}

results! {
    a_numeric_version_is_refused: Version, set("version", json!(1));
    a_dotted_version_is_refused: Version, set("version", json!("1.0"));
    a_missing_version_is_refused: Version, drop_key("version");
    a_result_without_tenant_is_refused: Missing, drop_key("tenant_id");
    a_result_for_another_tenant_is_refused: HeaderDisagrees, set("tenant_id", json!("evil"));
    a_result_without_request_id_is_refused: Missing, drop_key("request_id");
    a_result_with_another_request_id_is_refused: Echo, set("request_id", json!("x"));
    a_result_from_another_provider_is_refused: Echo, set("provider_id", json!("other"));
    a_result_without_job_is_refused: Missing, drop_key("job");
    a_result_for_another_job_type_is_refused: Echo, set("job", json!({"type": "sleep"}));
    an_unknown_assignment_is_refused: UnknownAssignment, set("assignment_id", json!(UUID));
    canceled_with_one_l_is_refused: Status, set("status", json!("canceled"));
    progress_on_the_result_subject_is_refused: Status, set("status", json!("running"));
    a_fractional_latency_is_refused: Type, set("latency_ms", json!(1.5));
    a_negative_latency_is_refused: Type, set("latency_ms", json!(-1));
    a_textual_cost_is_refused: Type, set("cost", json!("0"));
    a_missing_cost_is_refused: Missing, drop_key("cost");
    a_timestamp_in_seconds_is_refused: Type, set("timestamp", json!(1_790_000_000));
    a_timestamp_as_text_is_refused: Type, set("timestamp", json!("2026-01-01T00:00:00Z"));
    a_null_trace_id_is_refused: Null, set("trace_id", json!(null));
    a_null_run_id_is_refused: Null, set("run_id", json!(null));
    a_null_error_code_on_success_is_refused: Null, set("error_code", json!(null));
    a_trace_id_of_another_form_is_refused: TraceId, set("trace_id", json!("trace-1"));
    a_uuid_of_version_one_is_no_trace_id: TraceId, set("trace_id", json!("7c9e6679-7425-10de-944b-e07fc1f90ae7"));
    a_trace_id_that_was_never_sent_is_refused: HeaderDisagrees, set("trace_id", json!("f".repeat(32)));
    two_of_three_flow_ids_are_refused: Ids, drop_key("step_id");
    one_of_three_flow_ids_is_refused: Ids, |value, _| {
        value.as_object_mut().expect("an object").retain(|key, _| key != "step_id" && key != "run_id");
    };
    a_lower_case_ulid_is_refused: Ids, set("flow_id", json!(ULID.to_lowercase()));
    a_flow_id_of_another_form_is_refused: Ids, set("flow_id", json!("flow-1"));
    an_envelope_is_refused: Envelope, |value, _| *value = json!({"version": "1", "kind": "exec_result", "data": value});
    a_success_with_an_error_code_is_refused: ErrorFields, set("error_code", json!("TIMEOUT"));
    an_error_without_effect_is_refused: Effect, set("status", json!("error"));
    an_unknown_effect_word_is_refused: Effect, set("effect", json!("maybe"));
    headers_without_a_message_id_are_refused: MsgIdMissing, |_, headers| headers.retain(|(key, _)| key != "Nats-Msg-Id");
    no_headers_over_a_stream_are_refused: MsgIdMissing, |_, headers| headers.clear();
    an_ack_s_message_id_on_a_result_is_refused: MsgIdForm, set_header("Nats-Msg-Id", "a-22222222222222222222222222222222");
    a_message_id_of_another_form_is_refused: MsgIdForm, set_header("Nats-Msg-Id", "r-1");
    a_tenant_header_that_disagrees_is_refused: HeaderDisagrees, set_header("tenant_id", "other");
    a_version_header_that_disagrees_is_refused: HeaderDisagrees, set_header("version", "v1");
    a_trace_header_that_disagrees_is_refused: HeaderDisagrees, set_header("trace_id", "ffffffffffffffffffffffffffffffff");
    outputs_over_the_inline_limit_are_refused: Outputs, set("outputs", json!("x".repeat(300 << 10)));
    a_megabyte_is_refused: Size, set("outputs", json!("x".repeat(1 << 20)));
    a_reference_beside_outputs_is_refused: Outputs,
        set("outputs_ref", json!({"uri": "blob://x", "sha256": "0".repeat(64), "size": 1}));
    a_short_digest_is_refused: Outputs, |value, _| {
        value["outputs"].take();
        value["outputs_ref"] = json!({"uri": "blob://x", "sha256": "abc", "size": 1});
    };
}

acks! {
    an_ack_of_unknown_status_is_refused: Status, set("status", json!("ok"));
    an_ack_whose_reason_differs_is_refused: AckReason, set("reason", json!("other"));
    an_ack_without_overload_status_is_refused: Missing, drop_key("overload_status");
    an_ack_with_a_textual_time_is_refused: Type, set("acknowledged_at", json!("now"));
    an_ack_without_message_is_refused: Missing, drop_key("message");
    an_ack_with_a_bad_trace_id_is_refused: TraceId, set("trace_id", json!("t"));
    an_ack_under_a_result_s_message_id_is_refused: MsgIdForm, set_header("Nats-Msg-Id", "r-22222222222222222222222222222222");
}

#[test]
fn a_good_ack_and_a_good_result_are_taken() {
    assert_eq!(judge(|_, _| {}), Ok(()));
}

#[test]
fn a_result_without_any_optional_field_is_taken() {
    let optional = ["trace_id", "run_id", "flow_id", "step_id", "retries_used", "worker_id", "queue_depth", "timing", "outputs"];
    assert_eq!(
        judge(|value, _| value.as_object_mut().expect("an object").retain(|key, _| !optional.contains(&key.as_str()))),
        Ok(())
    );
}

#[test]
fn extra_keys_are_taken() {
    assert_eq!(judge(set("context", json!({"flow_id": "mine", "none": null}))), Ok(()));
}

#[test]
fn errors_are_judged_by_code_type_and_sentence() {
    let fixed = "the job names a block that does not exist";
    assert_eq!(judge_failed("UNKNOWN_JOB_TYPE", "unknown_job_type", fixed), Ok(()));
    assert_eq!(judge_failed("HTTP_5XX", "http_5xx", "answered 503"), Ok(()));
    assert_eq!(judge_failed("OOPS", "oops", fixed), Err(Rule::ErrorCode));
    assert_eq!(judge_failed("INVALID_INPUT", "", fixed), Err(Rule::ErrorFields));
    assert_eq!(judge_failed("INVALID_INPUT", "timeout", fixed), Err(Rule::ErrorFields));
    assert_eq!(judge_failed("INVALID_INPUT", "invalid_input", "field 5 is bad"), Err(Rule::ErrorMessage));
    assert_eq!(judge_failed("INVALID_INPUT", "invalid_input", "Connection refused"), Err(Rule::ErrorMessage));
    assert_eq!(judge_failed("QUOTA_EXCEEDED", "quota_exceeded", "service unavailable"), Err(Rule::ErrorMessage));
    assert_eq!(judge_failed("EXPIRED", "expired", "too late"), Err(Rule::Expired));
}

#[test]
fn an_error_without_code_or_type_is_refused() {
    for key in ["error_code", "error_type"] {
        let (mut model, assignment) = sent(Owed::Answer);
        see(&mut model, ACK, &headers('a'), &ack(&assignment)).expect("the ack is good");
        let mut value = failed(&assignment, "INVALID_INPUT", "invalid_input", "bad");
        value.as_object_mut().expect("an object").remove(key);
        assert_eq!(see(&mut model, RESULT, &headers('r'), &value), Err(Rule::ErrorFields), "without {key}");
    }
}

#[test]
fn the_same_bytes_again_are_taken_and_counted() {
    let (mut model, assignment) = sent(Owed::Answer);
    see(&mut model, ACK, &headers('a'), &ack(&assignment)).expect("the ack is good");
    assert_eq!(model.unanswered(), [assignment.id.as_str()]);
    for _ in 0..3 {
        see(&mut model, RESULT, &headers('r'), &result(&assignment)).expect("the same bytes");
    }
    assert_eq!((model.counts().results, model.counts().repeats, model.open()), (3, 2, 0));
}

#[test]
fn a_second_result_that_differs_is_refused() {
    let (mut model, assignment) = sent(Owed::Answer);
    see(&mut model, ACK, &headers('a'), &ack(&assignment)).expect("the ack is good");
    see(&mut model, RESULT, &headers('r'), &result(&assignment)).expect("the first");
    let mut other = result(&assignment);
    other["latency_ms"] = json!(4);
    assert_eq!(see(&mut model, RESULT, &headers('r'), &other), Err(Rule::SecondResult));
    let mut head = headers('r');
    head[3].1 = format!("r-{}", "33".repeat(16));
    assert_eq!(see(&mut model, RESULT, &head, &result(&assignment)), Err(Rule::SecondResult));
}

#[test]
fn one_message_id_for_two_assignments_is_refused() {
    let (mut model, first) = sent(Owed::Answer);
    let second = first.as_another();
    model.assigned(&second.id, second.echo(), Owed::Answer);
    see(&mut model, ACK, &headers('a'), &ack(&first)).expect("the ack is good");
    assert_eq!(see(&mut model, ACK, &headers('a'), &ack(&second)), Err(Rule::MsgIdReused));
}

#[test]
fn acks_come_first_and_stay_true() {
    let (mut model, assignment) = sent(Owed::Answer);
    assert_eq!(see(&mut model, RESULT, &headers('r'), &result(&assignment)), Err(Rule::AckOrder));
    see(&mut model, ACK, &headers('a'), &ack(&assignment)).expect("the first ack");
    let mut other = ack(&assignment);
    other["status"] = json!("rejected");
    assert_eq!(see(&mut model, ACK, &headers('a'), &other), Err(Rule::AckContradicts));
}

#[test]
fn a_success_after_a_refusal_is_refused() {
    let (mut model, assignment) = sent(Owed::Answer);
    let mut refusal = ack(&assignment);
    refusal["status"] = json!("rejected");
    see(&mut model, ACK, &headers('a'), &refusal).expect("a refusal is fine");
    assert_eq!(see(&mut model, RESULT, &headers('r'), &result(&assignment)), Err(Rule::AckOrder));
}

#[test]
fn an_answer_where_silence_is_owed_is_refused() {
    let (mut model, assignment) = sent(Owed::Silence);
    assert_eq!(see(&mut model, ACK, &headers('a'), &ack(&assignment)), Err(Rule::Silence));
    assert_eq!(see(&mut model, RESULT, &headers('r'), &result(&assignment)), Err(Rule::Silence));
}

#[test]
fn white_space_between_tokens_is_refused() {
    let (mut model, assignment) = sent(Owed::Answer);
    let text = ack(&assignment).to_string().replacen(':', ": ", 1);
    let verdict = model.observe(ACK, &headers('a'), text.as_bytes()).map_err(|violation| violation.rule);
    assert_eq!(verdict, Err(Rule::Compact));
}

#[test]
fn what_is_no_json_object_is_refused() {
    let (mut model, _) = sent(Owed::Answer);
    for text in ["", "{", "[]", "\"x\"", "null"] {
        assert_eq!(model.observe(RESULT, &headers('r'), text.as_bytes()).map_err(|v| v.rule), Err(Rule::Json), "{text:?}");
    }
}

#[test]
fn headerless_answers_are_taken_on_core_nats_only() {
    let assignment = Assignment::new("acme", "echo", json!({}));
    let mut model = Model::new(Subjects::default(), Strictness { message_ids: false, order: true, owners: false });
    model.assigned(&assignment.id, assignment.echo(), Owed::Answer);
    let mut value = ack(&assignment);
    value.as_object_mut().expect("an object").remove("trace_id");
    assert_eq!(see(&mut model, ACK, &Vec::new(), &value), Ok(()));
    assert_eq!(see(&mut model, ACK, &vec![("version".into(), "1".into())], &value), Err(Rule::MsgIdMissing));
}

#[test]
fn a_second_result_is_another_owner_s_or_none() {
    let (_, assignment) = sent(Owed::Answer);
    let by = |worker: &str, epoch: u64| {
        let mut value = result(&assignment);
        (value["worker_id"], value["owner_epoch"]) = (json!(worker), json!(epoch));
        value
    };
    let owners = || {
        let mut model = Model::new(Subjects::default(), Strictness { message_ids: true, order: false, owners: true });
        model.assigned(&assignment.id, assignment.echo(), Owed::Answer);
        model
    };
    let told = |model: &mut Model, worker, epoch| see(model, RESULT, &headers('r'), &by(worker, epoch));
    let mut model = owners();
    assert_eq!((told(&mut model, "a", 1), told(&mut model, "b", 2)), (Ok(()), Ok(())), "a later one decides again");
    assert_eq!(told(&mut model, "a", 1), Ok(()), "the first again");
    assert!(model.told_by_nobody().is_empty());

    let mut model = owners();
    assert_eq!((told(&mut model, "a", 0), told(&mut model, "b", 0)), (Ok(()), Ok(())), "where nobody owns, another worker");

    let mut model = owners();
    assert_eq!((told(&mut model, "b", 2), told(&mut model, "a", 1)), (Ok(()), Ok(())));
    assert_eq!(model.told_by_nobody(), [assignment.id.as_str()], "it owns nothing any more");
    assert_eq!(told(&mut model, "a", 3), Ok(()));
    assert!(model.told_by_nobody().is_empty(), "it owns the work again, and its journal has that outcome");

    let mut model = owners();
    let mut other = by("b", 2);
    other["latency_ms"] = json!(77);
    assert_eq!(told(&mut model, "b", 2), Ok(()));
    assert_eq!(see(&mut model, RESULT, &headers('r'), &other), Err(Rule::SecondResult), "the same owner");
}

#[test]
fn other_subjects_are_refused() {
    let (mut model, assignment) = sent(Owed::Answer);
    assert_eq!(see(&mut model, "caf.exec.progress.v1", &Vec::new(), &result(&assignment)), Err(Rule::Subject));
}

#[test]
fn heartbeats_are_judged() {
    let (mut model, _) = sent(Owed::Answer);
    let good = json!({
        "version": "1", "worker_id": "w", "timestamp": "2026-01-01T00:00:00.000000Z", "status": "ready",
        "resources": {"cpu": 0.1, "gpu": 0, "mem_bytes": 1, "jobs_in_flight": 0},
        "metadata": {"load": 0.0, "queue_depth": 0, "shards": 1},
    });
    assert_eq!(see(&mut model, HEARTBEAT, &Vec::new(), &good), Ok(()));
    for (path, to, rule) in [
        ("/status", json!("idle"), Rule::Status),
        ("/timestamp", json!("yesterday"), Rule::Heartbeat),
        ("/timestamp", json!(1), Rule::Type),
        ("/resources/cpu", json!("low"), Rule::Heartbeat),
        ("/worker_id", json!(""), Rule::Heartbeat),
        ("/version", json!("v1"), Rule::Version),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).expect("the path exists") = to;
        assert_eq!(see(&mut model, HEARTBEAT, &Vec::new(), &bad), Err(rule), "{path}");
    }
}

#[test]
fn dead_letters_are_judged() {
    let (mut model, assignment) = sent(Owed::Silence);
    let head: Headers = [
        ("x-dlq-reason", "tenant mismatch".to_owned()),
        ("x-original-subject", "caf.exec.assign.v1".to_owned()),
        ("Nats-Msg-Id", format!("d-{}", "44".repeat(16))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    let good = json!({
        "version": "1", "assignment_id": assignment.id, "reason": "tenant mismatch", "error_code": "PERMISSION_DENIED",
        "subject": "caf.exec.assign.v1", "headers": {}, "tries": [], "message": assignment.json,
    });
    assert_eq!(see(&mut model, DLQ, &head, &good), Ok(()));
    for key in ["reason", "error_code", "subject", "message", "tries"] {
        let mut bad = good.clone();
        bad.as_object_mut().expect("an object").remove(key);
        assert!(see(&mut model, DLQ, &head, &bad).is_err(), "without {key}");
    }
    for name in ["x-dlq-reason", "x-original-subject", "Nats-Msg-Id"] {
        let less: Headers = head.iter().filter(|(key, _)| key != name).cloned().collect();
        assert_eq!(see(&mut model, DLQ, &less, &good), Err(Rule::DeadLetter), "without {name}");
    }
}

#[test]
fn events_are_judged() {
    let (mut model, assignment) = sent(Owed::Answer);
    let head: Headers = vec![
        ("Content-Type".into(), "application/cloudevents+json".into()),
        ("Nats-Msg-Id".into(), format!("e-{}-completed-1", "55".repeat(16))),
    ];
    let good = json!({
        "specversion": "1.0", "id": "1", "source": "endstation/w", "type": "beamline.worker.completed",
        "time": "2026-01-01T00:00:00.000Z", "data": {"tenant_id": "acme", "assignment_id": assignment.id},
    });
    assert_eq!(see(&mut model, EVENT, &head, &good), Ok(()));
    assert_eq!(model.events_of("completed"), 1);
    assert_eq!(see(&mut model, "beamline.worker.events.other", &head, &good), Err(Rule::Event));
    assert_eq!(see(&mut model, "beamline.worker.events.a.b", &head, &good), Err(Rule::Event));
    for (key, to) in [("specversion", json!("0.3")), ("type", json!("beamline.worker.exploded")), ("id", json!(""))] {
        let mut bad = good.clone();
        bad[key] = to;
        assert_eq!(see(&mut model, EVENT, &head, &bad), Err(Rule::Event), "{key}");
    }
}

#[test]
fn ids_are_told_apart() {
    use super::rules::{is_tenant, is_ulid, is_uuid4};
    assert!(is_uuid4(&super::assignment::uuid4()) && is_uuid4(UUID) && is_ulid(ULID) && is_tenant("a-B_9"));
    assert!(!is_ulid("81ARZ3NDEKTSV4RRFFQ69G5FAV") && !is_ulid("01ARZ3NDEKTSV4RRFFQ69G5FAU"));
    assert!(!is_tenant("") && !is_tenant("a.b") && !is_tenant("a*") && !is_tenant(&"x".repeat(257)));
}
