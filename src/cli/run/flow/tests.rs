//! Flows as they are read: good ones with what follows from them, and bad ones with every fault, its pointer and its rule.

use serde_json::{Value, json};

use super::read::{Look, read};
use super::*;
use crate::policy::{Policy, PolicySettings};

fn look(text: &str, dry: bool) -> Result<Flow, Vec<Wrong>> {
    let policy = Policy::new(PolicySettings::default(), true).expect("there is nothing to read");
    read(text.as_bytes(), Look { policy: &policy, tenant: "acme", dry })
}

fn good(flow: &Value) -> Flow {
    look(&flow.to_string(), false).unwrap_or_else(|wrong| panic!("{flow}: {wrong:?}"))
}

/// Every fault as `pointer: rule`.
fn faults(text: &str) -> Vec<String> {
    let wrong = look(text, false).expect_err(text);
    wrong.into_iter().map(|Wrong { pointer, rule }| format!("{pointer}: {rule}")).collect()
}

/// Four steps: `a` before `b` and `c`, both before `d`, which takes from `a`.
fn diamond() -> Value {
    json!({
        "id": "diamond", "version": "1.0.0",
        "steps": [
            { "id": "a", "type": "echo", "inputs": { "n": 1 } },
            { "id": "b", "type": "sleep", "inputs": { "ms": 1 } },
            { "id": "c", "type": "echo", "inputs": { "n": "${steps.a.outputs.n}" } },
            { "id": "d", "type": "echo", "inputs": { "text": "n is ${steps.a.outputs./n}" } },
        ],
        "edges": [{ "from": "a", "to": "b" }, { "from": "a", "to": "c" }, { "from": "b", "to": "d" }, { "from": "c", "to": "d" }],
    })
}

/// The diamond with `value` at `pointer`.
fn with(pointer: &str, value: Value) -> Value {
    let mut flow = diamond();
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    match flow.pointer_mut(parent) {
        Some(Value::Object(members)) => _ = members.insert(name.to_owned(), value),
        Some(Value::Array(list)) if name == "-" => list.push(value),
        Some(Value::Array(list)) => list[name.parse::<usize>().expect("an index")] = value,
        _ => panic!("nothing at {parent}"),
    }
    flow
}

fn without(pointer: &str) -> Value {
    let mut flow = diamond();
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    flow.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").remove(name).expect("it was there");
    flow
}

#[test]
fn a_good_flow_is_read_with_its_order_and_what_its_steps_ask_for() {
    let flow = good(&diamond());
    assert_eq!((&*flow.id, &*flow.version, flow.steps.len()), ("diamond", "1.0.0", 4));
    assert_eq!((flow.order.waits_for, flow.order.after[0].clone()), (vec![0, 1, 1, 2], vec![1, 2]));
    let mut all = with("/steps/0/retry", json!({ "attempts": 5, "backoff_ms": 10 }));
    all["steps"][0]["timeout_ms"] = json!(1_000);
    all["steps"][0]["resources"] = json!({ "class": "CPU", "memory_mb": 64, "concurrency": 2 });
    all["steps"][0]["guardrails"] = json!({ "max_bytes": 100 });
    all["steps"][0]["require_plan"] = json!("a".repeat(64));
    let asks = good(&all).steps.swap_remove(0).asks;
    let asked: Value = serde_json::from_str(&format!("{{\"type\":\"echo\"{asks}}}")).expect("members of a step");
    let step = json!({
        "type": "echo", "retry": { "max_attempts": 5, "backoff_ms": 10 }, "timeout_ms": 1_000, "guardrails": { "max_bytes": 100 },
        "resources": { "class": "CPU", "memory_mb": 64, "concurrency": 2 }, "require_plan": "a".repeat(64),
    });
    assert_eq!(asked, step);
}

#[test]
fn inputs_stand_on_one_line_however_the_file_is_written() {
    let spaced = serde_json::to_string_pretty(&diamond()).expect("JSON");
    let flow = look(&spaced, false).expect("good");
    let outputs = |_: &str| Some("{\"n\":1.50}");
    assert_eq!(flow.steps[0].inputs.fill(99, outputs), Ok("{\"n\":1}".to_owned()));
    assert_eq!(flow.steps[3].inputs.fill(99, outputs), Ok("{\"text\":\"n is 1.50\"}".to_owned()));
    let fixtures = dry::Fixtures::read(b"{\n \"a\": { \"n\": 1.50,\n \"t\": \"x  y\" }\n}", &flow).expect("good");
    assert_eq!(fixtures.of("a"), Some(r#"{"n":1.50,"t":"x  y"}"#));
}

#[test]
fn what_a_flow_may_leave_out_it_may_leave_out() {
    for flow in [
        json!({ "id": "f", "version": 1, "steps": [{ "id": "a", "type": "echo" }] }),
        json!({ "id": "f.g", "version": "v1+x", "steps": [{ "id": "a", "type": "echo", "inputs": null }], "edges": null }),
        with("/steps/0/retry", json!({})),
        with("/steps/0/resources", json!({ "class": "GPU" })),
        with("/steps/0/guardrails", json!({})),
        // What a policy says of it, it says when it runs.
        with("/steps/0", json!({ "id": "a", "type": "http.request", "inputs": { "connector": "crm" } })),
    ] {
        good(&flow);
    }
}

#[test]
fn a_run_goes_by_the_flows_content_unless_it_is_named() {
    let id = good(&diamond()).run_id();
    assert!(id.starts_with("diamond-1.0.0-") && is_run_id(&id), "{id}");
    let spaced = serde_json::to_string_pretty(&diamond()).expect("JSON");
    assert_eq!(look(&spaced, false).expect("good").run_id(), id, "blanks change nothing");
    assert_ne!(good(&with("/steps/1/inputs/ms", json!(2))).run_id(), id);
    assert!(!is_run_id("") && !is_run_id("a b") && !is_run_id(&"x".repeat(257)));
}

#[test]
fn a_dry_run_looks_at_blocks_step_by_step_and_at_the_rest_as_a_whole() {
    let unknown = with("/steps/0/type", json!("no.such")).to_string();
    assert!(look(&unknown, true).is_ok() && look(&unknown, false).is_err());
    let inputs = with("/steps/1/inputs/ms", json!(-1)).to_string();
    assert!(look(&inputs, true).is_ok() && look(&inputs, false).is_err());
    assert!(look(&with("/edges/0/to", json!("x")).to_string(), true).is_err());
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_its_rule() {
    let long = "x".repeat(129);
    let deep = serde_json::from_str::<Value>(&format!("{}{}", "[".repeat(70), "]".repeat(70))).expect("JSON");
    let name = "a string of 1 to 128 letters, digits, _ and -";
    let flow_name = "a string of 1 to 128 letters, digits, ._ and -";
    let version = "a whole number of at most 9 digits, or a string of 1 to 64 letters, digits, . + _ and -";
    let form =
        "a reference is ${steps.ID.outputs}, ${steps.ID.outputs./a/0} or ${steps.ID.outputs.a.0}; write $${ for the text itself";
    let cases: Vec<(Value, &str, String)> = vec![
        (json!([]), "", "an object".into()),
        (without("/id"), "/id", "required".into()),
        (with("/id", json!(7)), "/id", flow_name.into()),
        (with("/id", json!("a b")), "/id", flow_name.into()),
        (with("/id", json!("")), "/id", flow_name.into()),
        (with("/id", json!(long)), "/id", flow_name.into()),
        (without("/version"), "/version", "required".into()),
        (with("/version", json!(1.5)), "/version", version.into()),
        (with("/version", json!(-1)), "/version", version.into()),
        (with("/version", json!("1 0")), "/version", version.into()),
        (with("/name", json!("x")), "/name", "no such field: a flow has id, version, steps, edges".into()),
        (with("/a~b", json!("x")), "/a~0b", "no such field: a flow has id, version, steps, edges".into()),
        (with("/steps", json!(null)), "/steps", "required".into()),
        (with("/steps", json!({})), "/steps", "a list".into()),
        (with("/steps/0", json!("a")), "/steps/0", "an object".into()),
        (without("/steps/0/type"), "/steps/0/type", "required".into()),
        (with("/steps/0/type", json!("no.such")), "/steps/0/type", "unknown block type: no.such".into()),
        (with("/steps/0/type", json!(3)), "/steps/0/type", "a string of 1 to 256 bytes".into()),
        (with("/steps/0/type", json!("")), "/steps/0/type", "a string of 1 to 256 bytes".into()),
        (with("/steps/1/id", json!(["b"])), "/steps/1/id", name.into()),
        (with("/steps/1/id", json!("b.c")), "/steps/1/id", name.into()),
        (with("/steps/1/id", json!("a")), "/steps/1/id", "the id of /steps/0 already".into()),
        (
            with("/steps/0/after", json!(["b"])),
            "/steps/0/after",
            "no such field: a step has id, type, inputs, retry, timeout_ms, resources, guardrails, require_plan".into(),
        ),
        (with("/steps/0/inputs", json!([1])), "/steps/0/inputs", "an object".into()),
        (with("/steps/1/inputs/ms", json!(-1)), "/steps/1/inputs/ms", "a whole number from 0 to 86400000".into()),
        (
            with("/steps/0", json!({ "id": "a", "type": "fs.blob_put", "inputs": { "path": "../x", "content": "" } })),
            "/steps/0/inputs/path",
            "no component . or ..".into(),
        ),
        (with("/steps/0/retry", json!(3)), "/steps/0/retry", "an object".into()),
        (with("/steps/0/retry", json!({ "attempts": 0 })), "/steps/0/retry/attempts", "a whole number from 1 to 100".into()),
        (with("/steps/0/retry", json!({ "attempts": 101 })), "/steps/0/retry/attempts", "a whole number from 1 to 100".into()),
        (with("/steps/0/retry", json!({ "attempts": "3" })), "/steps/0/retry/attempts", "a whole number from 1 to 100".into()),
        (
            with("/steps/0/retry", json!({ "backoff_ms": -1 })),
            "/steps/0/retry/backoff_ms",
            "a whole number from 0 to 86400000".into(),
        ),
        (
            with("/steps/0/retry", json!({ "max_attempts": 1 })),
            "/steps/0/retry/max_attempts",
            "no such field: retry has attempts, backoff_ms".into(),
        ),
        (with("/steps/0/timeout_ms", json!(0)), "/steps/0/timeout_ms", "a whole number from 1 to 86400000".into()),
        (with("/steps/0/timeout_ms", json!(86_400_001)), "/steps/0/timeout_ms", "a whole number from 1 to 86400000".into()),
        (with("/steps/0/timeout_ms", json!(1.0)), "/steps/0/timeout_ms", "a whole number from 1 to 86400000".into()),
        (with("/steps/0/resources", json!("CPU")), "/steps/0/resources", "an object".into()),
        (with("/steps/0/resources", json!({ "class": "TPU" })), "/steps/0/resources/class", "CPU, GPU or IO".into()),
        (
            with("/steps/0/resources", json!({ "memory_mb": -1 })),
            "/steps/0/resources/memory_mb",
            "a whole number from 0 to 4294967295".into(),
        ),
        (
            with("/steps/0/resources", json!({ "gpus": 1 })),
            "/steps/0/resources/gpus",
            "no such field: resources has class, memory_mb, concurrency".into(),
        ),
        (
            with("/steps/0/guardrails", json!({ "max_tokens": 9 })),
            "/steps/0/guardrails/max_tokens",
            "one out of max_bytes, max_redirects, hosts".into(),
        ),
        (with("/steps/0/guardrails", json!([])), "/steps/0/guardrails", "an object".into()),
        (
            with("/steps/0/guardrails", json!({ "hosts": ["http://h/"] })),
            "/steps/0/guardrails/hosts/0",
            "a host, *.host, an address or a network, with :port where only that is meant".into(),
        ),
        (with("/steps/0/require_plan", json!("abc")), "/steps/0/require_plan", "a plan's digest: 64 hexadecimal digits".into()),
        (with("/edges", json!({})), "/edges", "a list".into()),
        (with("/edges/0", json!(["a", "b"])), "/edges/0", "an object".into()),
        (without("/edges/0/to"), "/edges/0/to", "required".into()),
        (with("/edges/1/from", json!("x")), "/edges/1/from", "there is no step \"x\"".into()),
        (with("/edges/1/from", json!(0)), "/edges/1/from", "the id of a step".into()),
        (with("/edges/0/when", json!("ok")), "/edges/0/when", "no such field: an edge has from, to".into()),
        (with("/edges/-", json!({ "from": "a", "to": "b" })), "/edges/4", "the same edge as /edges/0".into()),
        (with("/edges/-", json!({ "from": "b", "to": "b" })), "/edges/4", "closes a cycle: b → b".into()),
        (with("/edges/-", json!({ "from": "d", "to": "a" })), "/edges/4", "closes a cycle: a → b → d → a".into()),
        (
            with("/steps/1/inputs", json!({ "ms": "${steps.c.outputs.n}" })),
            "/steps/1/inputs/ms",
            "${steps.c.outputs.n}: no edges lead from step \"c\" to this one, so it need not have ended".into(),
        ),
        (
            with("/steps/0/inputs", json!({ "x": ["${steps.d.outputs}"] })),
            "/steps/0/inputs/x/0",
            "${steps.d.outputs}: no edges lead from step \"d\" to this one, so it need not have ended".into(),
        ),
        (
            with("/steps/0/inputs/n", json!("${steps.a.outputs}")),
            "/steps/0/inputs/n",
            "${steps.a.outputs}: a step cannot refer to itself".into(),
        ),
        (
            with("/steps/3/inputs/text", json!("x${steps.e.outputs}")),
            "/steps/3/inputs/text",
            "${steps.e.outputs}: there is no step \"e\"".into(),
        ),
        (with("/steps/3/inputs/text", json!("${HOME}")), "/steps/3/inputs/text", form.into()),
        (with("/steps/3/inputs/text", json!("${steps.a.outputs")), "/steps/3/inputs/text", form.into()),
        (
            with("/steps/3/inputs", json!({ "${steps.a.outputs}": 1 })),
            "/steps/3/inputs/${steps.a.outputs}",
            "references stand in values, not in names".into(),
        ),
        (with("/steps/0/inputs/n", deep), "", "the message is nested too deeply".into()),
    ];
    assert!(cases.len() >= 55, "{}", cases.len());
    for (flow, pointer, rule) in cases {
        let told = faults(&flow.to_string());
        let fault = format!("{pointer}: {rule}");
        // Nesting is told with the place where it became too much.
        let is = |told: &String| *told == fault || (pointer.is_empty() && told.ends_with(&rule));
        assert!(told.iter().any(is), "{flow}: {told:?} and not {fault}");
    }
}

#[test]
fn what_is_no_json_or_comes_twice_is_told_before_anything_else() {
    for (text, told) in [
        ("", ": JSON: EOF while parsing a value at line 1 column 0"),
        ("{\"id\":}", ": JSON: expected value at line 1 column 7"),
        ("{} {}", ": JSON: trailing characters at line 1 column 4"),
        ("{\"id\":\"a\",\"id\":\"b\"}", "/id: a key comes twice in one object"),
        (r#"{"steps":[{"inputs":{"a":1,"a":2}}]}"#, "/steps/0/inputs/a: a key comes twice in one object"),
        (r#"{"steps":[{"inputs":{"a":1e999}}]}"#, "/steps/0/inputs/a: a number is larger than JSON readers take"),
    ] {
        assert_eq!(faults(text), [told], "{text}");
    }
    let policy = Policy::shut();
    let wrong = read(b"\xff", Look { policy: &policy, tenant: "t", dry: false }).expect_err("no text");
    assert_eq!(wrong, [Wrong::new("", "UTF-8 text")]);
    let large = read(&vec![b' '; FLOW_BYTES_MAX + 1], Look { policy: &policy, tenant: "t", dry: false }).expect_err("too large");
    assert_eq!(large, [Wrong::new("", "at most 4194304 bytes")]);
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_no_more_than_a_screen_of_it() {
    let mut flow = with("/steps/0/type", json!("no.such"));
    flow["steps"][1]["inputs"] = json!({ "ms": -1 });
    flow["edges"][0]["from"] = json!("x");
    flow["colour"] = json!("red");
    let told = faults(&flow.to_string());
    // Without its edge, `c` has no way from... `a` is still before it; `b` takes nothing.
    assert_eq!(told.len(), 4, "{told:?}");
    let steps: Vec<Value> = (0..1_000).map(|n| json!({ "id": n.to_string(), "type": "no.such" })).collect();
    assert_eq!(faults(&json!({ "id": "f", "version": 1, "steps": steps }).to_string()).len(), WRONG_MAX);
    let steps: Vec<Value> = (0..1_001).map(|n| json!({ "id": n.to_string(), "type": "echo" })).collect();
    assert_eq!(
        faults(&json!({ "id": "f", "version": 1, "steps": steps }).to_string()),
        ["/steps: at most 1000 of them, and there are 1001"]
    );
}

#[test]
fn fixtures_name_steps_of_the_flow_and_nothing_else() {
    let flow = good(&diamond());
    let fixtures = dry::Fixtures::read(br#"{"a":{"n":1.50},"b":[]}"#, &flow).expect("good");
    assert_eq!((fixtures.of("a"), fixtures.of("b"), fixtures.of("c")), (Some(r#"{"n":1.50}"#), Some("[]"), None));
    for (text, pointer) in [("[]", ""), ("{", ""), (r#"{"e":{}}"#, "/e"), (r#"{"a":1,"a":2}"#, "/a")] {
        let wrong = dry::Fixtures::read(text.as_bytes(), &flow).expect_err(text);
        assert_eq!(wrong[0].pointer, pointer, "{text}");
    }
}
