//! What comes of messages, good and bad, as tables.

use serde_json::{Value, json};
use shards::step::{Lane, Needs, Source, StreamToken};

use super::sample::{NOW_MS, assignment, delivery, in_both, native, read, said, step, wire};
use super::*;

const ID: &str = "3f2c9a4e-8d1b-4c6e-9f0a-1b2c3d4e5f60";
const PLAIN: &str = "work 1 prio 50 budget 60000 tries 2 wait 200..60000 note -";
const NATIVE: &str = "work 1 prio 50 budget 60000 tries 3 wait 500..60000 note -";

fn check(body: impl Into<Bytes>, want: &str) {
    let body = body.into();
    let got = said(&read(delivery(Origin::Core, body.clone())));
    assert_eq!(got, want, "{}", String::from_utf8_lossy(&body));
}

fn check_line(body: impl Into<Bytes>, want: &str) {
    let body = body.into();
    let got = said(&read(delivery(Origin::Line(1), body.clone())));
    assert_eq!(got, want, "{}", String::from_utf8_lossy(&body));
}

fn refused(code: &str, field: &str) -> String {
    format!("refused {code} {{\"field\":\"{field}\"}} for {ID}")
}

fn garbage(code: &str, field: &str, tenant: &str) -> String {
    format!("garbage {code} {{\"field\":\"{field}\"}} of '{tenant}' for nobody")
}

fn stream(stored_ms: u64, delivered: u32) -> Origin {
    Origin::Stream(StreamToken {
        consumer: 0,
        sequence: 9,
        stored_ms,
        delivered,
        reply: Text::from_static("$JS.ACK"),
        inherited: false,
    })
}

#[test]
fn good_assignments_are_work() {
    check(assignment(&[]), PLAIN);
    check(assignment(&[("/decision", json!({"a": [1, {"b": "}"}]})), ("/strange", json!([[], {}]))]), PLAIN);
    check(assignment(&[("/job/payload", json!("text"))]), PLAIN);
    check(assignment(&[("/job/payload", json!(0))]), PLAIN);
    check(assignment(&[("/job/payload", json!([]))]), PLAIN);
    check(assignment(&[("/job/name", json!("other keys are fine"))]), PLAIN);
    check(assignment(&[("/request_id", json!("quo\"te é"))]), PLAIN);
    // Absent, said with null.
    let nulls = assignment(&[]).replacen('{', "{\"options\":null,\"run_id\":null,\"attempt\":null,\"not_after\":null,", 1);
    check(nulls, PLAIN);
    check(assignment(&[]).replace("\"payload\":", "\"payload_ref\":null,\"payload\":"), PLAIN);
    check(format!(" \n{}\t", assignment(&[])), PLAIN);
    check(assignment(&[]).replace("tenant_id", "\\u0074enant_id"), PLAIN);
}

#[test]
fn the_older_envelope_is_taken() {
    let wrapped = |data: String| format!(r#"{{"version":"v1","kind":"exec_assign","data":{data}}}"#);
    check(wrapped(assignment(&[])), PLAIN);
    check(wrapped(assignment(&[("/version", json!(null))])), PLAIN);
    check(wrapped(assignment(&[("/version", json!("v1"))])), PLAIN);
    check(wrapped(assignment(&[("/version", json!("2"))])), &refused("INVALID_FORMAT", "/version"));
    check(wrapped(assignment(&[("/request_id", json!(null))])), &refused("MISSING_REQUIRED_FIELD", "/request_id"));
    check(wrapped(assignment(&[])).replace("exec_assign", "exec_cancel"), &refused("INVALID_INPUT", "/kind"));
    check(wrapped(assignment(&[])).replace("\"v1\"", "\"v2\""), &refused("INVALID_FORMAT", "/version"));
    check(wrapped("[]".into()), &garbage("MISSING_REQUIRED_FIELD", "/tenant_id", ""));
    check(wrapped("{}".into()), &garbage("MISSING_REQUIRED_FIELD", "/tenant_id", ""));
    let same = [assignment(&[]), wrapped(assignment(&[]))].map(|body| read(delivery(Origin::Core, body)));
    assert_eq!((same[0].key, same[0].fingerprint), (same[1].key, same[1].fingerprint));
}

#[test]
fn what_cannot_be_read_is_garbage() {
    for body in ["", " ", "{", "not json", "{\"a\":1}}", "{\"a\":01}", "{'a':1}", "{\"a\":\"\t\"}", "nul", "{\"a\":1,}"] {
        check(body, "garbage INVALID_FORMAT  of '' for nobody");
    }
    for body in ["[]", "null", "\"text\"", "12", "[{\"tenant_id\":\"acme\"}]"] {
        check(body, "garbage INVALID_FORMAT  of '' for nobody");
    }
    check(&b"{\"a\":\"\xff\"}"[..], "garbage INVALID_FORMAT  of '' for nobody");
    check(&b"\xef\xbb\xbf{}"[..], "garbage INVALID_FORMAT  of '' for nobody");
    check("{}", &garbage("MISSING_REQUIRED_FIELD", "/tenant_id", ""));
}

#[test]
fn without_ids_to_answer_to_a_message_is_garbage() {
    for (patch, code, field, tenant) in [
        (("/tenant_id", json!(null)), "MISSING_REQUIRED_FIELD", "/tenant_id", ""),
        (("/tenant_id", json!("")), "MISSING_REQUIRED_FIELD", "/tenant_id", ""),
        (("/tenant_id", json!(7)), "INVALID_FORMAT", "/tenant_id", ""),
        (("/tenant_id", json!("a.b")), "INVALID_INPUT", "/tenant_id", ""),
        (("/tenant_id", json!("a b")), "INVALID_INPUT", "/tenant_id", ""),
        (("/tenant_id", json!("*")), "INVALID_INPUT", "/tenant_id", ""),
        (("/tenant_id", json!("über")), "INVALID_INPUT", "/tenant_id", ""),
        (("/tenant_id", json!("x".repeat(257))), "INVALID_INPUT", "/tenant_id", ""),
        (("/assignment_id", json!(null)), "MISSING_REQUIRED_FIELD", "/assignment_id", "acme"),
        (("/assignment_id", json!("")), "MISSING_REQUIRED_FIELD", "/assignment_id", "acme"),
        (("/assignment_id", json!({"a": 1})), "INVALID_FORMAT", "/assignment_id", "acme"),
        (("/assignment_id", json!("a b")), "INVALID_INPUT", "/assignment_id", "acme"),
        (("/assignment_id", json!("é")), "INVALID_INPUT", "/assignment_id", "acme"),
        (("/assignment_id", json!("new\nline")), "INVALID_INPUT", "/assignment_id", "acme"),
        (("/assignment_id", json!("x".repeat(257))), "INVALID_INPUT", "/assignment_id", "acme"),
    ] {
        check(assignment(&[patch]), &garbage(code, field, tenant));
    }
    check(assignment(&[]).replacen('{', "{\"tenant_id\":\"other\",", 1), &garbage("INVALID_FORMAT", "/tenant_id", ""));
    check(assignment(&[]).replacen('{', "{\"assignment_id\":\"other\",", 1), &garbage("INVALID_FORMAT", "/assignment_id", ""));
    check(assignment(&[]).replace("\"acme\"", "\"\\ud800\""), &garbage("INVALID_FORMAT", "/tenant_id", ""));
}

#[test]
fn what_can_be_answered_is_refused_with_the_field_named() {
    for (patch, code, field) in [
        (("/version", json!(null)), "MISSING_REQUIRED_FIELD", "/version"),
        (("/version", json!("2")), "INVALID_FORMAT", "/version"),
        (("/version", json!(1)), "INVALID_FORMAT", "/version"),
        (("/version", json!("v1")), "INVALID_FORMAT", "/version"),
        (("/request_id", json!(null)), "MISSING_REQUIRED_FIELD", "/request_id"),
        (("/request_id", json!("")), "MISSING_REQUIRED_FIELD", "/request_id"),
        (("/request_id", json!(5)), "INVALID_FORMAT", "/request_id"),
        (("/request_id", json!("x".repeat(257))), "INVALID_INPUT", "/request_id"),
        (("/executor", json!(null)), "MISSING_REQUIRED_FIELD", "/executor"),
        (("/executor", json!("prov")), "INVALID_FORMAT", "/executor"),
        (("/executor/provider_id", json!(null)), "MISSING_REQUIRED_FIELD", "/executor/provider_id"),
        (("/executor/provider_id", json!(false)), "INVALID_FORMAT", "/executor/provider_id"),
        (("/job", json!(null)), "MISSING_REQUIRED_FIELD", "/job"),
        (("/job", json!([])), "INVALID_FORMAT", "/job"),
        (("/job/type", json!(null)), "MISSING_REQUIRED_FIELD", "/job/type"),
        (("/job/type", json!(["echo"])), "INVALID_FORMAT", "/job/type"),
        (("/job/type", json!("x".repeat(300))), "INVALID_INPUT", "/job/type"),
        (("/job/type", json!("no.such")), "UNKNOWN_JOB_TYPE", "/job/type"),
        (("/job/type", json!("crash")), "UNKNOWN_JOB_TYPE", "/job/type"),
        (("/job/payload", json!(null)), "MISSING_REQUIRED_FIELD", "/job/payload"),
        (("/job/payload_ref", json!("s3://there")), "INVALID_INPUT", "/payload_ref"),
        (("/run_id", json!(1)), "INVALID_FORMAT", "/run_id"),
        (("/flow_id", json!("x".repeat(257))), "INVALID_INPUT", "/flow_id"),
        (("/correlation/step_id", json!("x".repeat(257))), "INVALID_INPUT", "/step_id"),
        (("/attempt", json!("first")), "INVALID_FORMAT", "/attempt"),
        (("/attempt", json!(-1)), "INVALID_FORMAT", "/attempt"),
        (("/attempt", json!(1.5)), "INVALID_FORMAT", "/attempt"),
        (("/not_after", json!("soon")), "INVALID_FORMAT", "/not_after"),
        (("/not_after", json!("1950-01-01T00:00:00Z")), "INVALID_FORMAT", "/not_after"),
        (("/effect_ceiling", json!("some")), "INVALID_INPUT", "/effect_ceiling"),
        (("/resources", json!("GPU")), "INVALID_FORMAT", "/resources"),
        (("/resources/class", json!("TPU")), "INVALID_INPUT", "/resources/class"),
    ] {
        check(assignment(&[patch]), &refused(code, field));
    }
    let ceiling = |block: &str, class: &str| assignment(&[("/job/type", json!(block)), ("/effect_ceiling", json!(class))]);
    check(ceiling("put", "IDEMPOTENT"), &refused("PERMISSION_DENIED", "/effect_ceiling"));
    check(ceiling("plain", "conditional"), &refused("PERMISSION_DENIED", "/effect_ceiling"));
    check(ceiling("echo", "PURE"), PLAIN);
    check(ceiling("put", "UNSAFE"), &PLAIN.replace("work 1", "work 2"));
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let good = assignment(&[]);
    for (body, field) in [
        (good.replacen('{', "{\"request_id\":null,", 1), "/request_id"),
        (good.replacen('{', "{\"job\":{},", 1), "/job"),
        (good.replace("\"type\":", "\"type\":\"put\",\"type\":"), "/job/type"),
        (good.replace("\"payload\":", "\"payload\":null,\"payload\":"), "/job/payload"),
        (good.replace("{\"a\":1}", "{\"a\":1,\"a\":1}"), "/job/payload/a"),
        (good.replace("{\"a\":1}", "{\"b\":[{\"x\":0,\"\\u0078\":1}]}"), "/job/payload/b/0/x"),
        (good.replace("{\"a\":1}", "\"\\udfff\""), "/job/payload"),
        (good.replace("\"job\":{", "\"job\":{\"k\":1,\"k\":2,"), "/job/k"),
    ] {
        check(body, &refused("INVALID_FORMAT", field));
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let nested = |levels| assignment(&[]).replace("{\"a\":1}", &deep(levels));
    check(nested(62), PLAIN);
    check(nested(63), &format!("refused INVALID_FORMAT  for {ID}"));
    check(nested(100_000), &format!("refused INVALID_FORMAT  for {ID}"));
    check(
        assignment(&[]).replacen('{', &format!("{{\"decision\":{},", deep(64)), 1),
        &format!("refused INVALID_FORMAT  for {ID}"),
    );
    let large = |size: usize| {
        let frame = assignment(&[("/job/payload", json!(""))]).len();
        assignment(&[("/job/payload", json!("x".repeat(size - frame)))])
    };
    check(large(1 << 20), PLAIN);
    let details = format!("{{\"size_bytes\":{},\"payload_bytes_max\":1048576}}", (1 << 20) + 1);
    check(large((1 << 20) + 1), &format!("refused INVALID_INPUT {details} for {ID}"));
}

#[test]
fn options_that_are_junk_fall_back_and_are_noted() {
    let with = |patch: &[(&str, serde_json::Value)]| assignment(patch);
    let noted = |note: &str| PLAIN.replace("note -", &format!("note {note}"));
    for junk in [json!("x"), json!(true), json!([]), json!({}), json!(-1), json!(1.5), json!(1e300), json!("7")] {
        check(with(&[("/options/priority", junk.clone())]), &noted("options.priority"));
        check(with(&[("/options/deadline_ms", junk.clone())]), &noted("options.deadline_ms"));
        check(with(&[("/options/retry/max_attempts", junk.clone())]), &noted("options.retry.max_attempts"));
        check(with(&[("/options/retry/backoff_ms", junk)]), &noted("options.retry.backoff_ms"));
    }
    check(with(&[("/options", json!("fast"))]), &noted("options"));
    check(with(&[("/options", json!([1]))]), &noted("options"));
    check(with(&[("/options/retry", json!(3))]), &noted("options.retry"));
    check(with(&[("/options/priority", json!(101))]), &noted("options.priority"));
    check(with(&[("/options/deadline_ms", json!(0))]), &noted("options.deadline_ms"));
    check(with(&[("/options/deadline_ms", json!(86_400_001))]), &noted("options.deadline_ms"));
    check(with(&[("/options/retry/max_attempts", json!(0))]), &noted("options.retry.max_attempts"));
    check(with(&[("/options/retry/max_attempts", json!(101))]), &noted("options.retry.max_attempts"));
    let both = [("/options/priority", json!("x")), ("/options/retry/max_attempts", json!("y"))];
    check(with(&both), &noted("options.priority, options.retry.max_attempts"));
    check(assignment(&[]).replacen('{', "{\"options\":{\"priority\":null,\"retry\":null},", 1), PLAIN);
    let all = json!({"priority": 100, "deadline_ms": 1, "retry": {"max_attempts": 100, "backoff_ms": 0}, "other": {}});
    check(with(&[("/options", all)]), "work 1 prio 100 budget 1 tries 100 wait 0..60000 note -");
    let slow = json!({"priority": 0, "deadline_ms": 5e3, "retry": {"max_attempts": 1, "backoff_ms": 90000}});
    check(with(&[("/options", slow)]), "work 1 prio 0 budget 5000 tries 1 wait 90000..90000 note -");
}

#[test]
fn junk_in_correlation_and_metadata_harms_nothing() {
    check(assignment(&[("/correlation", json!("x")), ("/metadata", json!([1]))]), PLAIN);
    check(assignment(&[("/metadata", json!({"attempt": "first", "flow_id": 7, "step_id": null, "run_id": {}}))]), PLAIN);
    check(assignment(&[("/correlation", json!({"trace_id": 5}))]), PLAIN);
}

/// The key of an assignment with these members.
fn key(patch: &[(&str, serde_json::Value)]) -> Key {
    read(delivery(Origin::Core, assignment(patch))).key
}

#[test]
fn the_key_is_the_coordinates_where_they_are_complete() {
    let salt = Salt([7; 32]);
    let place = |run, attempt| salt.key(Identity::Coordinates { tenant: "acme", run, flow: "f", step: "s", attempt });
    let alone = salt.key(Identity::Assignment { tenant: "acme", assignment: ID });
    let all = json!({"flow_id": "f", "step_id": "s", "attempt": 2});
    assert_eq!(key(&[("/correlation", all.clone())]), place(None, 2));
    assert_eq!(key(&[("/metadata", all.clone())]), place(None, 2));
    assert_eq!(key(&[("/metadata", all.clone()), ("/run_id", json!("r"))]), place(Some("r"), 2));
    assert_eq!(key(&[("/metadata", all.clone()), ("/attempt", json!("3"))]), place(None, 3));
    assert_eq!(key(&[("/metadata", all.clone()), ("/correlation/attempt", json!(0))]), place(None, 0));
    assert_eq!(key(&[("/metadata", all.clone()), ("/correlation/flow_id", json!(""))]), place(None, 2));
    assert_eq!(key(&[("/metadata", all), ("/assignment_id", json!("another"))]), place(None, 2));
    assert_eq!(key(&[("/flow_id", json!("f")), ("/step_id", json!("s"))]), alone, "without an explicit attempt");
    assert_eq!(key(&[("/flow_id", json!("f")), ("/attempt", json!(1))]), alone);
    assert_eq!(key(&[]), alone);
}

#[test]
fn what_differs_between_honest_resends_is_not_in_the_fingerprint() {
    let of = |patch: &[(&str, serde_json::Value)]| read(delivery(Origin::Core, assignment(patch))).fingerprint;
    let plain = of(&[]);
    for patch in [
        ("/options/priority", json!(1)),
        ("/request_id", json!("other")),
        ("/metadata/x", json!(1)),
        ("/decision/score", json!(0.5)),
        ("/correlation/trace_id", json!("t")),
        ("/executor/provider_id", json!("other")),
    ] {
        assert_eq!(of(std::slice::from_ref(&patch)), plain, "{}", patch.0);
    }
    for patch in [("/job/payload", json!({"a": "1"})), ("/job/extra", json!(1)), ("/job/type", json!("put"))] {
        assert_ne!(of(std::slice::from_ref(&patch)), plain, "{}", patch.0);
    }
    assert_ne!(of(&[("/job/type", json!("old_put"))]), of(&[("/job/type", json!("put"))]), "another name, another meaning");
}

#[test]
fn inputs_are_a_slice_of_the_message_or_what_the_block_table_made_of_them() {
    let spaced = assignment(&[]).replace("{\"a\":1}", " { \"a\" : 1.0 } ");
    let arrival = read(delivery(Origin::Core, spaced));
    let work = arrival.work().expect("work");
    assert_eq!(work.inputs, "{ \"a\" : 1.0 }");
    assert!(arrival.delivery.body.as_ptr_range().contains(&work.inputs.as_ptr()), "no copy");
    let arrival = read(delivery(Origin::Core, assignment(&[("/job/type", json!("old_put"))])));
    assert_eq!(arrival.work().expect("work").inputs, "{\"overwrite\":true,\"a\":1}");
}

#[test]
fn a_refusal_is_kept_under_the_assignment_and_never_touches_the_key() {
    let place = [("/flow_id", json!("f")), ("/step_id", json!("s")), ("/attempt", json!(1))];
    let mut bad = place.to_vec();
    bad.push(("/job/type", json!("no.such")));
    let body = assignment(&bad);
    let arrival = read(delivery(Origin::Core, body.clone()));
    let salt = Salt([7; 32]);
    assert_eq!(arrival.key, salt.answer_key("acme", ID));
    assert_ne!(arrival.key, key(&place));
    assert_eq!(arrival.fingerprint.0, <[u8; 32]>::from(Sha256::digest(&body)));
    let asker = arrival.asker.expect("it can be answered");
    assert_eq!(asker.id, salt.asker(arrival.key, ID));
    assert_eq!((&*asker.job_type, &*asker.request_id, &*asker.provider_id), ("no.such", "req-1", "prov"));
    assert_eq!((asker.flow_id.as_deref(), asker.attempt), (Some("f"), Some(1)));
}

fn with_headers(body: String, headers: &[(&'static str, &'static str)]) -> Delivery {
    let headers = headers.iter().map(|(name, value)| (Text::from_static(name), Text::from_static(value))).collect();
    Delivery { headers, ..delivery(Origin::Core, body) }
}

#[test]
fn two_tenants_in_one_message_quarantine_it() {
    let body = assignment(&[]);
    assert_eq!(said(&read(with_headers(body.clone(), &[("tenant_id", "acme")]))), PLAIN);
    for name in ["tenant_id", "Tenant_ID"] {
        let arrival = read(with_headers(body.clone(), &[(name, "other")]));
        assert_eq!(said(&arrival), garbage("PERMISSION_DENIED", "/tenant_id", ""));
        let headers = &arrival.delivery.headers;
        assert_eq!(arrival.key, Salt([7; 32]).quarantine_key("caf.exec.assign.v1", headers, body.as_bytes()));
    }
}

#[test]
fn the_trace_comes_from_the_best_source_there_is() {
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let trace = |patch: &[(&str, serde_json::Value)], headers: &[(&'static str, &'static str)]| {
        read(with_headers(assignment(patch), headers)).asker.expect("read").trace_id.map(|id| id.to_string())
    };
    let own = [("/correlation/trace_id", json!("own"))];
    assert_eq!(trace(&[], &[]), None);
    assert_eq!(trace(&own, &[("traceparent", parent)]).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
    assert_eq!(trace(&own, &[("traceparent", "00-3030-62-01"), ("trace_id", "head")]).as_deref(), Some("own"));
    assert_eq!(trace(&[], &[("trace_id", "head"), ("X-Trace-Id", "x")]).as_deref(), Some("head"));
    assert_eq!(trace(&[], &[("X-Trace-Id", "x")]).as_deref(), Some("x"));
    assert_eq!(trace(&[("/trace_id", json!("top"))], &[("X-Trace-Id", "x")]).as_deref(), Some("top"));
}

#[test]
fn a_message_is_too_late_after_its_own_time_or_the_horizon() {
    let horizon_ms = Limits::default().horizon_ms;
    let not_after = |origin, patch: &[(&str, serde_json::Value)]| {
        read(delivery(origin, assignment(patch))).work().expect("work").not_after_ms
    };
    assert_eq!(not_after(Origin::Core, &[]), NOW_MS + horizon_ms);
    assert_eq!(not_after(stream(5_000, 3), &[]), 5_000 + horizon_ms);
    assert_eq!(not_after(Origin::Journal { source: Source::Stream, since_ms: 5_000 }, &[]), 5_000 + horizon_ms);
    assert_eq!(not_after(stream(5_000, 1), &[("/not_after", json!(77))]), 77);
    assert_eq!(not_after(Origin::Core, &[("/not_after", json!("77"))]), 77);
    assert_eq!(not_after(Origin::Core, &[("/not_after", json!("2026-01-01T00:00:00.5Z"))]), NOW_MS + 500);
}

#[test]
fn a_message_read_back_from_the_journal_is_the_same_step_and_asker() {
    let same = |first: Delivery, source| {
        let again = Delivery { origin: Origin::Journal { source, since_ms: NOW_MS }, ..first.clone() };
        let (first, again) = (read(first), read(again));
        assert_eq!((first.key, first.fingerprint), (again.key, again.fingerprint));
        assert_eq!(first.asker.map(|asker| asker.id), again.asker.map(|asker| asker.id));
        assert_eq!((first.received_ms, again.received_ms), (NOW_MS, NOW_MS));
    };
    for body in [assignment(&[]), assignment(&[("/job", json!(1))]), "junk".into()] {
        same(delivery(Origin::Core, body.clone()), Source::Core);
        same(delivery(stream(NOW_MS, 1), body.clone()), Source::Stream);
        same(delivery(Origin::Line(3), body), Source::Line);
    }
    same(line(&step(&[]), Some("line-ab-1"), Some("2")), Source::Line);
    same(with_headers(assignment(&[]), &[("endstation-attempt", "2"), ("endstation-assignment-id", "spoofed")]), Source::Core);
}

fn line(body: &str, assignment: Option<&str>, attempt: Option<&str>) -> Delivery {
    let mut line = delivery(Origin::Line(3), body.to_owned());
    for (name, value) in [("endstation-assignment-id", assignment), ("endstation-attempt", attempt)] {
        line.headers.extend(value.map(|value| (Text::from_static(name), Text::from(value))));
    }
    line
}

#[test]
fn native_steps_are_taken_from_lines_and_their_own_subjects_only() {
    check_line(step(&[]), NATIVE);
    check_line(assignment(&[]), PLAIN);
    check_line(step(&[("/context", json!(null))]), NATIVE);
    check_line(step(&[("/inputs", json!(null))]), NATIVE);
    check(step(&[]), &garbage("MISSING_REQUIRED_FIELD", "/tenant_id", ""));
    let on = |subject| said(&read(Delivery { subject: Text::from_static(subject), ..delivery(Origin::Core, step(&[])) }));
    assert_eq!(on("beamline.worker.steps.v1.acme"), NATIVE);
    assert_eq!(on("beamline.worker.steps.v1.other"), garbage("INVALID_INPUT", "/context/tenant_id", ""));
    assert_eq!(on("line steps.jsonl"), garbage("MISSING_REQUIRED_FIELD", "/tenant_id", ""), "a name makes no line");
}

#[test]
fn native_settings_are_read_in_both_spellings() {
    let camel = r#"{"type":"echo","timeoutMs":"5000","notAfter":"2026-01-01T00:00:01Z","effectCeiling":"PURE","priority":9,
        "retry":{"maxAttempts":4,"backoffMs":10,"backoffMaxMs":20},"context":{"tenantId":"acme","flowId":"f","stepId":"s","attempt":1}}"#;
    let snake = r#"{"type":"echo","timeout_ms":5000,"not_after":"2026-01-01T00:00:01Z","effect_ceiling":1,"priority":9,
        "retry":{"max_attempts":4,"backoff_ms":10,"backoff_max_ms":20},"context":{"tenant_id":"acme","flow_id":"f","step_id":"s","attempt":"1"}}"#;
    let want = "work 1 prio 9 budget 5000 tries 4 wait 10..20 note -";
    check_line(camel, want);
    check_line(snake, want);
    let both = [camel, snake].map(|body| read(delivery(Origin::Line(1), body)));
    assert_eq!((both[0].key, both[0].fingerprint), (both[1].key, both[1].fingerprint));
    assert_eq!(both[0].work().map(|work| work.not_after_ms), Some(NOW_MS + 1_000));
    check_line(step(&[("/retry", json!({"budget_ms": 100, "backoff_factor": 2}))]), &NATIVE.replace("60000 tries", "100 tries"));
    check_line(step(&[("/timeout_ms", json!(0))]), NATIVE);
    check_line(
        step(&[("/retry", json!({"codes": []})), ("/guardrails", json!({"max_bytes": 1}))]),
        &NATIVE.replace("-", "retry.codes"),
    );
}

#[test]
fn what_is_not_signed_as_it_must_be_is_nobodys_and_what_is_has_its_signers_scopes() {
    use ed25519_dalek::{Signer as _, SigningKey};

    let key = SigningKey::from_bytes(&[7; 32]);
    let hex: String = key.verifying_key().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!(
        "[tenants.acme]\nrequire_signature = true\n[signers.ci]\ntenants = [\"acme\"]\npublic = \"{hex}\"\nscopes = [\"blob\"]"
    );
    let settings = crate::settings::Settings::of(Some(("e.toml", &text)), std::iter::empty(), &[]).expect("a configuration");
    let policy = std::sync::Arc::new(Policy::new(settings.policy, false).expect("nothing to read"));
    let seen = |query: &Query<'_>| {
        // What the block table is told comes back as a fault.
        let scopes: Vec<&str> = query.step.narrow.scopes.into_iter().flat_map(Scopes::list).map(|scope| scope.as_str()).collect();
        Err(Fault::new(Code::UnknownJobType, "no block has this name").with_details(scopes.join(" ")))
    };
    let wire = EdgeWire::new(WireSettings { policy, ..WireSettings::shipped(Text::from_static("w-1"), Salt([7; 32]), seen) });
    let on = |subject: &'static str, body: &str, signed: bool| {
        let mut pae = Vec::new();
        let kind = if notice::is_notice(subject) { notice::kind(subject) } else { Kind::Step };
        crate::policy::signers::encode(kind, "application/json", body.as_bytes(), &mut pae);
        let signature = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key.sign(&pae).to_bytes());
        let mut delivery = Delivery { subject: Text::from_static(subject), ..delivery(Origin::Core, body.to_owned()) };
        if signed {
            delivery.headers.push((Text::from_static("Endstation-Signature"), Text::from(format!("ci;{signature}"))));
        }
        wire.decode(delivery, Now { mono_us: 1, wall_ms: NOW_MS })
    };
    let native = step(&[("/context/rbac_scopes", json!(["http", "blob"]))]);
    for (subject, body) in [("beamline.worker.steps.v1.acme", &native), ("caf.exec.assign.v1", &assignment(&[]))] {
        let unsigned = on(subject, body, false);
        let Content::Garbage(fault) = &unsigned.content else { panic!("{:?}", unsigned.content) };
        assert_eq!((fault.code, &*unsigned.tenant, unsigned.asker.is_none()), (Code::SignatureInvalid, "acme", true));
        let signed = on(subject, body, true);
        let Content::Refusal(fault) = &signed.content else { panic!("{:?}", signed.content) };
        assert_eq!((fault.code, &fault.details[..]), (Code::UnknownJobType, &b"blob"[..]), "both must have it");
    }
    let cancel = json!({ "context": { "tenant_id": "acme" }, "assignment_id": "a" }).to_string();
    let told = |signed| match on("beamline.worker.cancel.v1.acme", &cancel, signed).content {
        Content::Notice(Notice::Refused(fault)) => Some(fault.code),
        Content::Notice(_) => None,
        other => panic!("{other:?}"),
    };
    assert_eq!((told(false), told(true)), (Some(Code::SignatureInvalid), None));
    // Whoever has to sign is not answered for what is too large to be looked at, either.
    let large = on("caf.exec.assign.v1", &assignment(&[("/metadata", json!({ "x": "y".repeat(2 << 20) }))]), false);
    assert!(matches!(&large.content, Content::Garbage(fault) if fault.code == Code::SignatureInvalid), "{:?}", large.content);
    let nobody = json!({ "assignment_id": "a" }).to_string();
    let Content::Notice(Notice::Refused(fault)) = on("beamline.worker.cancel.v1.acme", &nobody, true).content else {
        panic!("a signed cancel that names no tenant");
    };
    assert_eq!(fault.code, Code::MissingRequiredField);
}

#[test]
fn a_guardrail_or_a_wish_that_cannot_be_kept_is_refused_with_its_field_and_rule() {
    for (patch, field) in [
        (("/guardrails", json!({"max_tokens": 1})), "/guardrails/max_tokens"),
        (("/guardrails", json!({"hosts": ["h", "//"]})), "/guardrails/hosts/1"),
        (("/type", json!("put")), "/cache"),
        (("/payload_ref", json!("blob:a")), "/cache"),
    ] {
        let refused =
            said(&read(delivery(Origin::Line(1), step(&[("/cache", json!({"key": "k", "ttl_ms": 1000})), patch.clone()]))));
        let told = format!(r#"{{"field":"{field}","rule":""#);
        assert!(refused.starts_with("refused INVALID_INPUT") && refused.contains(&told), "{patch:?}: {refused}");
    }
    let wish = |text: Value| read(delivery(Origin::Line(1), step(&[("/cache", text)])));
    let kept = wish(json!({"key": "k", "ttl": "1000"})).work().and_then(|work| work.cache.clone()).expect("a wish");
    assert_eq!((&*kept.key, kept.ttl_ms), ("k", 1_000));
}

#[test]
fn bad_native_steps_are_refused_with_the_field_named() {
    for (patch, code, field) in [
        (("/type", json!(7)), "INVALID_FORMAT", "/type"),
        (("/type", json!("")), "MISSING_REQUIRED_FIELD", "/type"),
        (("/inputs", json!([])), "INVALID_FORMAT", "/inputs"),
        (("/timeout_ms", json!("x")), "INVALID_FORMAT", "/timeout_ms"),
        (("/timeout_ms", json!(86_400_001)), "INVALID_INPUT", "/timeout_ms"),
        (("/priority", json!(101)), "INVALID_INPUT", "/priority"),
        (("/retry", json!(3)), "INVALID_FORMAT", "/retry"),
        (("/retry/max_attempts", json!(101)), "INVALID_INPUT", "/retry/max_attempts"),
        (("/retry/backoff_ms", json!(-1)), "INVALID_FORMAT", "/retry/backoff_ms"),
        (("/context/attempt", json!("x")), "INVALID_FORMAT", "/context/attempt"),
        (("/context/rbac_scopes", json!("http")), "INVALID_FORMAT", "/context/rbac_scopes"),
        (("/context/rbac_scopes", json!(["http", 1])), "INVALID_FORMAT", "/context/rbac_scopes"),
        (("/guardrails", json!("none")), "INVALID_FORMAT", "/guardrails"),
        (("/cache", json!("k")), "INVALID_FORMAT", "/cache"),
        (("/cache", json!({"ttl_ms": 1})), "MISSING_REQUIRED_FIELD", "/cache/key"),
        (("/cache", json!({"key": "k"})), "MISSING_REQUIRED_FIELD", "/cache/ttl_ms"),
        (("/cache", json!({"key": "k", "ttl_ms": 0})), "INVALID_INPUT", "/cache/ttl_ms"),
        (("/cache", json!({"key": "k", "ttl_ms": 86_400_001_u64})), "INVALID_INPUT", "/cache/ttl_ms"),
        (("/context/flow_id", json!(1)), "INVALID_FORMAT", "/context/flow_id"),
        (("/context/sandbox", json!("yes")), "INVALID_FORMAT", "/context/sandbox"),
        (("/payload_ref/uri", json!("s3://there")), "INVALID_INPUT", "/payload_ref"),
        (("/version_req", json!("^2")), "INVALID_INPUT", "/version_req"),
        (("/not_after", json!([])), "INVALID_FORMAT", "/not_after"),
        (("/effect_ceiling", json!(9)), "INVALID_INPUT", "/effect_ceiling"),
    ] {
        let got = said(&read(line(&step(&[patch]), Some("line-1"), None)));
        assert_eq!(got, format!("refused {code} {{\"field\":\"{field}\"}} for line-1"));
    }
    check_line(step(&[("/assignment_id", json!("a b"))]), &garbage("INVALID_INPUT", "/assignment_id", "acme"));
    check_line(step(&[("/context/tenant_id", json!("a.b"))]), &garbage("INVALID_INPUT", "/context/tenant_id", ""));
    check_line("{}", &garbage("MISSING_REQUIRED_FIELD", "/tenant_id", ""));
    check_line(step(&[("/context/sandbox", json!(true))]), NATIVE);
}

#[test]
fn a_dry_run_is_a_pure_step_of_the_same_key_and_another_fingerprint() {
    let dry = ("/context/sandbox", json!(true));
    let place = json!({"tenant_id": "acme", "flow_id": "f", "step_id": "s", "attempt": 1});
    let plain = [("/context", place), ("/type", json!("plain")), ("/resources", json!({"memory_mb": 1}))];
    let [real, told] =
        [step(&plain), step(&[&plain[..], std::slice::from_ref(&dry)].concat())].map(|text| read(line(&text, None, None)));
    assert_eq!((real.key, real.tenant), (told.key, told.tenant.clone()));
    assert_ne!(real.fingerprint, told.fingerprint);
    let (real, work) = match (&real.content, &told.content) {
        (Content::Work(real), Content::Work(work)) => (real, work),
        other => panic!("{other:?}"),
    };
    assert_eq!((real.effect, real.sandbox, real.needs.memory_bytes), (EffectClass::Unsafe, false, 1 << 20));
    assert_eq!((work.effect, work.sandbox, work.needs), (EffectClass::Pure, true, Needs::default()));
    // A ceiling is held against what the step would do.
    let ceiling = step(&[dry, ("/type", json!("plain")), ("/effect_ceiling", json!("PURE")), ("/assignment_id", json!("mine"))]);
    check_line(ceiling, "refused PERMISSION_DENIED {\"field\":\"/effect_ceiling\"} for mine");
    // A line is made dry by its header, whatever its form; a message is not.
    let headed = |mut delivery: Delivery| {
        delivery.headers.push((Text::from_static("endstation-sandbox"), Text::from_static("true")));
        read(delivery).work().expect("work").sandbox
    };
    assert!(headed(line(&step(&[]), None, None)) && headed(delivery(Origin::Line(1), assignment(&[]))));
    assert!(!headed(delivery(Origin::Core, assignment(&[]))));
}

#[test]
fn a_plan_that_is_required_and_is_another_by_now_denies_the_step_and_leaves_its_name_alone() {
    let with = |plan: Value, name: &str, more: (&str, Value)| {
        let text = step(&[("/require_plan", plan), ("/type", json!(name)), more]);
        read(line(&text, Some("line-1"), None))
    };
    let denied = |arrival: &Arrival| match &arrival.content {
        Content::Work(work) => {
            work.changed.as_ref().map(|fault| (fault.code, String::from_utf8_lossy(&fault.details).into_owned()))
        }
        other => panic!("{other:?}"),
    };
    let same = ("/priority", json!(1));
    let free = with(json!(null), "echo", same.clone());
    for good in ["a1".repeat(32), "A1".repeat(32)] {
        let held = with(json!(good), "echo", same.clone());
        assert_eq!((denied(&held), held.fingerprint, held.key), (None, free.fingerprint, free.key), "it is no part of the step");
    }
    let (code, details) = denied(&with(json!("b2".repeat(32)), "echo", same.clone())).expect("another plan");
    assert_eq!(code, Code::PermissionDenied);
    assert!(details.contains(&"b2".repeat(32)) && details.contains(&"a1".repeat(32)), "both digests: {details}");
    assert!(denied(&with(json!("a1".repeat(32)), "plain", same.clone())).is_some(), "what has no plan fulfils none");
    assert!(denied(&with(json!("b2".repeat(32)), "echo", ("/context/sandbox", json!(true)))).is_some(), "a dry run neither");
    for bad in [json!("a1"), json!("g".repeat(64))] {
        let refused = said(&with(bad, "echo", same.clone()));
        assert_eq!(refused, "refused INVALID_INPUT {\"field\":\"/require_plan\"} for line-1");
    }
    assert_eq!(said(&with(json!(7), "echo", same)), "refused INVALID_FORMAT {\"field\":\"/require_plan\"} for line-1");
}

#[test]
fn lines_are_named_by_their_headers_and_a_forced_attempt_is_another_key() {
    let salt = Salt([7; 32]);
    let bare = r#"{"type":"echo"}"#;
    let first = read(line(bare, Some("line-ab-1"), None));
    assert_eq!(first.tenant, "local");
    assert_eq!(first.key, salt.key(Identity::Assignment { tenant: "local", assignment: "line-ab-1" }));
    assert_ne!(read(line(bare, Some("line-ab-2"), None)).key, first.key);
    let forced = read(line(bare, Some("line-ab-1"), Some("2")));
    assert_ne!(forced.key, first.key);
    assert_eq!(forced.asker.and_then(|asker| asker.attempt), Some(2));
    let place = step(&[("/context/flow_id", json!("f")), ("/context/step_id", json!("s")), ("/context/attempt", json!(1))]);
    let at = |attempt| salt.key(Identity::Coordinates { tenant: "acme", run: None, flow: "f", step: "s", attempt });
    assert_eq!(read(line(&place, Some("line-ab-1"), None)).key, at(1));
    assert_eq!(read(line(&place, Some("line-ab-1"), Some("2"))).key, at(2));
    // Without the header a step is named by its place, else by its own bytes.
    let id = |body: &str| read(line(body, None, None)).asker.expect("read").assignment_id;
    assert_eq!(id(&place), format!("step-{}", at(1)));
    assert!(id(bare).starts_with("message-"));
    assert_eq!(id(bare), id(bare));
    assert_ne!(id(bare), id("{\"type\":\"put\"}"));
    // Elsewhere the two headers mean nothing.
    let body = assignment(&[]);
    let spoofed = with_headers(body.clone(), &[("endstation-attempt", "2"), ("endstation-assignment-id", "x")]);
    assert_eq!(read(spoofed).key, read(delivery(Origin::Core, body)).key);
}

#[test]
fn blocks_for_development_are_found_in_development_only() {
    let mut settings = wire().settings;
    settings.dev = true;
    let dev = EdgeWire::new(settings);
    let message = delivery(Origin::Core, assignment(&[("/job/type", json!("crash"))]));
    let arrival = dev.decode(message, Now { mono_us: 0, wall_ms: NOW_MS });
    assert!(arrival.work().is_some());
}

#[test]
fn a_step_is_the_same_in_both_encodings() {
    let place = json!({"tenant_id": "acme", "run_id": "r", "flow_id": "f", "step_id": "s", "attempt": 2, "trace_id": "t"});
    for (patch, want) in [
        (vec![("/inputs", json!({"n": 1}))], NATIVE.to_owned()),
        (
            vec![("/inputs", json!({"z": [1, -2.5, 0, 1e-7], "a": {"b/~": null, "q\"": "é😀\n", "": [true, {}]}}))],
            NATIVE.to_owned(),
        ),
        (vec![("/inputs", json!(null))], NATIVE.to_owned()),
        (vec![("/context", place.clone())], NATIVE.to_owned()),
        (
            vec![
                ("/assignment_id", json!("mine")),
                ("/request_id", json!("req")),
                ("/priority", json!(0)),
                ("/timeout_ms", json!(5_000)),
                ("/not_after", json!("2026-01-01T00:00:01.5Z")),
                ("/effect_ceiling", json!("PURE")),
                (
                    "/retry",
                    json!({"max_attempts": 4, "backoff_ms": 10, "backoff_max_ms": 20, "backoff_factor": 2, "jitter": "FULL"}),
                ),
                ("/resources", json!({"class": "CPU", "memory_mb": 1})),
                ("/context/sandbox", json!(true)),
                ("/context/rbac_scopes", json!(["a", "b"])),
                ("/version_req", json!("*")),
                ("/require_plan", json!("a1".repeat(32))),
            ],
            "work 1 prio 0 budget 5000 tries 4 wait 10..20 note -".to_owned(),
        ),
        (
            vec![
                ("/retry", json!({"codes": ["A"], "backoff_factor": 3, "jitter": "FIXED"})),
                ("/guardrails", json!({"max_bytes": 1, "hosts": ["h.example"]})),
                ("/cache", json!({"key": "k", "ttl_ms": 1_000})),
            ],
            NATIVE.replace('-', "retry.backoff_factor, retry.codes, retry.jitter"),
        ),
    ] {
        let [text, binary] = in_both(&step(&patch)).map(read);
        assert_eq!((said(&text), said(&binary)), (want.clone(), want), "{patch:?}");
        assert_eq!(text.fingerprint, binary.fingerprint, "{patch:?}");
        let (asked, too) = (text.asker.expect("read"), binary.asker.expect("read"));
        // Without a name of its own or a place, a step is named by its bytes.
        if patch.iter().any(|(pointer, _)| matches!(*pointer, "/context" | "/assignment_id")) {
            assert_eq!((text.key, asked.id, &asked.assignment_id), (binary.key, too.id, &too.assignment_id));
        }
        assert_eq!((asked.request_id, asked.trace_id, asked.attempt), (too.request_id, too.trace_id, too.attempt));
        let work = |content: &Content| {
            if let Content::Work(work) = content { Some((work.not_after_ms, work.effect_ceiling)) } else { None }
        };
        assert_eq!(work(&text.content), work(&binary.content));
    }
}

#[test]
fn a_bad_step_has_the_same_fault_in_both_encodings() {
    for (patch, code, field) in [
        (("/type", json!(null)), "MISSING_REQUIRED_FIELD", "/type"),
        (("/type", json!("no.such")), "UNKNOWN_JOB_TYPE", "/job/type"),
        (("/timeout_ms", json!(86_400_001)), "INVALID_INPUT", "/timeout_ms"),
        (("/priority", json!(101)), "INVALID_INPUT", "/priority"),
        (("/retry/max_attempts", json!(101)), "INVALID_INPUT", "/retry/max_attempts"),
        (("/payload_ref/uri", json!("s3://there")), "INVALID_INPUT", "/payload_ref"),
        (("/version_req", json!("^2")), "INVALID_INPUT", "/version_req"),
        (("/resources/class", json!(7)), "INVALID_INPUT", "/resources/class"),
        (("/resources/class", json!(-7)), "INVALID_INPUT", "/resources/class"),
        (("/effect_ceiling", json!(9)), "INVALID_INPUT", "/effect_ceiling"),
        (("/effect_ceiling", json!(-1)), "INVALID_INPUT", "/effect_ceiling"),
        (("/context/flow_id", json!("x".repeat(257))), "INVALID_INPUT", "/context/flow_id"),
    ] {
        let want = format!("refused {code} {{\"field\":\"{field}\"}} for mine");
        let both = in_both(&step(&[("/assignment_id", json!("mine")), patch.clone()])).map(|delivery| said(&read(delivery)));
        assert_eq!(both, [want.clone(), want], "{patch:?}");
    }
    for (patch, code, field, tenant) in [
        (("/context", json!(null)), "MISSING_REQUIRED_FIELD", "/context/tenant_id", ""),
        (("/context/tenant_id", json!("")), "MISSING_REQUIRED_FIELD", "/context/tenant_id", ""),
        (("/context/tenant_id", json!("a.b")), "INVALID_INPUT", "/context/tenant_id", ""),
        (("/context/tenant_id", json!("other")), "INVALID_INPUT", "/context/tenant_id", ""),
        (("/assignment_id", json!("a b")), "INVALID_INPUT", "/assignment_id", "acme"),
    ] {
        let want = garbage(code, field, tenant);
        let both = in_both(&step(std::slice::from_ref(&patch))).map(|delivery| said(&read(delivery)));
        assert_eq!(both, [want.clone(), want], "{patch:?}");
    }
}

#[test]
fn what_json_cannot_say_is_refused_with_a_pointer() {
    use prost::Message;
    use prost_types::{ListValue, Struct, Value, value::Kind};
    let wrapped = |value: Value| {
        let list =
            Value { kind: Some(Kind::ListValue(ListValue { values: vec![Value { kind: Some(Kind::BoolValue(true)) }, value] })) };
        let inputs = Some(Struct { fields: [("a/b".to_owned(), list)].into() });
        let context = Some(proto::v1::BlockContext { tenant_id: "acme".into(), ..Default::default() });
        proto::v1::StepRequest {
            r#type: "echo".into(),
            inputs,
            context,
            assignment_id: Some("mine".into()),
            ..Default::default()
        }
    };
    for kind in [Some(Kind::NumberValue(f64::NAN)), Some(Kind::NumberValue(f64::NEG_INFINITY)), None] {
        let body = wrapped(Value { kind }).encode_to_vec();
        let got = said(&read(native("application/protobuf", body)));
        assert_eq!(got, "refused INVALID_FORMAT {\"field\":\"/inputs/a~1b/1\"} for mine");
    }
}

#[test]
fn the_content_type_says_how_a_native_step_is_written() {
    let [text, binary] = in_both(&step(&[])).map(|delivery| delivery.body);
    let of = |media_type, body: &Bytes| said(&read(native(media_type, body.clone())));
    let garbled = "garbage INVALID_FORMAT  of '' for nobody";
    for media_type in ["", "application/json", "application/json; charset=utf-8", "text/plain"] {
        assert_eq!(of(media_type, &text), NATIVE, "{media_type}");
        assert_eq!(of(media_type, &binary), garbled, "{media_type}");
    }
    for media_type in ["application/protobuf", "Application/Protobuf", " application/protobuf ; messageType=x"] {
        assert_eq!(of(media_type, &binary), NATIVE, "{media_type}");
        assert_eq!(of(media_type, &text), garbled, "{media_type}");
        assert_eq!(of(media_type, &binary.slice(..binary.len() - 1)), garbled, "cut short");
        assert_eq!(of(media_type, &Bytes::from_static(b"\x0a\x01\xff")), garbled, "no UTF-8");
    }
    assert_eq!(of("application/protobuf", &Bytes::new()), garbage("MISSING_REQUIRED_FIELD", "/context/tenant_id", ""));
    // Elsewhere the header means nothing.
    let mut assigned = native("application/protobuf", assignment(&[]));
    assigned.subject = Text::from_static("caf.exec.assign.v1");
    assert_eq!(said(&read(assigned)), PLAIN);
}

#[test]
fn a_binary_step_read_back_from_the_journal_is_the_same_step() {
    for first in in_both(&step(&[("/assignment_id", json!("mine"))])) {
        let again = Delivery { origin: Origin::Journal { source: Source::Core, since_ms: NOW_MS }, ..first.clone() };
        let (first, again) = (read(first), read(again));
        assert_eq!(said(&again), NATIVE);
        assert_eq!((first.key, first.fingerprint), (again.key, again.fingerprint));
        assert_eq!(first.asker.map(|asker| asker.id), again.asker.map(|asker| asker.id));
    }
}

#[test]
fn a_binary_step_is_bounded_by_its_own_size() {
    let large = |size| in_both(&step(&[("/assignment_id", json!("mine")), ("/inputs/a", json!("\u{1}".repeat(size)))]));
    let [_, fits] = large((1 << 20) - 100);
    assert_eq!(said(&read(fits)), NATIVE, "though its JSON is six times as long");
    let [_, larger] = large(1 << 20);
    let details = format!("{{\"size_bytes\":{},\"payload_bytes_max\":1048576}}", larger.body.len());
    assert_eq!(said(&read(larger)), format!("refused INVALID_INPUT {details} for mine"));
}

#[test]
fn what_a_step_needs_is_read_in_every_form_and_what_this_worker_lacks_denies_it() {
    let resources = |value| [("/resources", value)];
    let needs = json!({"class": "CPU", "memory_mb": 3, "concurrency": 2});
    let lacking = json!({"class": "GPU"});
    let all = |value: Value| {
        let origin = Origin::Core;
        let mut all = vec![delivery(origin, assignment(&resources(value.clone())))];
        all.extend(in_both(&step(&resources(value))));
        all.into_iter().map(read)
    };
    for arrival in all(needs) {
        let work = arrival.work().expect("a step");
        assert_eq!(work.needs, Needs { lane: Lane::Cpu, memory_bytes: 3 << 20, concurrency: 2 });
        assert_eq!(work.denied, None);
    }
    for arrival in all(lacking) {
        let denied = arrival.work().expect("it is known if it was accepted before").denied.clone().expect("not here");
        let details = String::from_utf8_lossy(&denied.details).into_owned();
        assert_eq!((denied.code, details.as_str()), (Code::ResourceUnavailable, "{\"field\":\"/resources/class\"}"));
    }
}
