//! What is refused before anything is sent, and by which connector a step goes.

use super::super::super::tests::checks::{Case, bad, good};
use super::*;

const INVALID: Code = Code::InvalidInput;
const MISSING: Code = Code::MissingRequiredField;

/// Every case that needs no policy.
pub(in crate::blocks) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for inputs in [
        r#"{"prompt":""}"#,
        r#"{"prompt":"p","messages":null,"operation":"completion","stream":true,"unknown":[]}"#,
        r#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[]},{"role":"tool","content":[]}]}"#,
        r#"{"messages":[{"role":"assistant","content":null}],"temperature":2,"top_p":0.0,"max_tokens":1.0}"#,
        r#"{"input":"t","dimensions":3,"stream":false}"#,
        r#"{"input":["t","u"],"operation":"embedding"}"#,
        r#"{"prompt":"p","stop":"x","seed":0,"response_format":"text","tools":[{}],"tool_choice":"auto","extra":{"top_k":1}}"#,
        r#"{"prompt":"p","stop":["x","y"],"response_format":{"type":"json_schema"},"tool_choice":{"type":"any"},"attempt_ms":5}"#,
    ] {
        cases.push(good("ai.generate", inputs));
    }
    for (inputs, code, at) in [
        ("[]", INVALID, ""),
        ("{}", MISSING, "/messages"),
        ("null", MISSING, "/messages"),
        (r#"{"prompt":"p","input":"t"}"#, INVALID, "/input"),
        (r#"{"prompt":"p","messages":[{"role":"user","content":"x"}]}"#, INVALID, "/prompt"),
        (r#"{"prompt":7}"#, INVALID, "/prompt"),
        (r#"{"prompt":"p","operation":"chat "}"#, INVALID, "/operation"),
        (r#"{"prompt":"p","operation":"embedding"}"#, MISSING, "/input"),
        (r#"{"input":"t","operation":"chat"}"#, INVALID, "/input"),
        (r#"{"input":"t","stream":true}"#, INVALID, "/stream"),
        (r#"{"input":[]}"#, INVALID, "/input"),
        (r#"{"input":[1]}"#, INVALID, "/input"),
        (r#"{"input":{}}"#, INVALID, "/input"),
        (r#"{"messages":[]}"#, INVALID, "/messages"),
        (r#"{"messages":"hi"}"#, INVALID, "/messages"),
        (r#"{"messages":[{"role":"user","content":"x"}],"operation":"completion"}"#, MISSING, "/prompt"),
        (r#"{"messages":["hi"]}"#, INVALID, "/messages/0"),
        (r#"{"messages":[{"role":"user","content":"x"},{"role":"robot","content":"x"}]}"#, INVALID, "/messages/1/role"),
        (r#"{"messages":[{"content":"x"}]}"#, INVALID, "/messages/0/role"),
        (r#"{"messages":[{"role":"user"}]}"#, INVALID, "/messages/0/content"),
        (r#"{"messages":[{"role":"user","content":null}]}"#, INVALID, "/messages/0/content"),
        (r#"{"messages":[{"role":"assistant","content":7}]}"#, INVALID, "/messages/0/content"),
        (r#"{"prompt":"p","temperature":2.1}"#, INVALID, "/temperature"),
        (r#"{"prompt":"p","temperature":"1"}"#, INVALID, "/temperature"),
        (r#"{"prompt":"p","top_p":-0.1}"#, INVALID, "/top_p"),
        (r#"{"prompt":"p","max_tokens":0}"#, INVALID, "/max_tokens"),
        (r#"{"prompt":"p","stop":""}"#, INVALID, "/stop"),
        (r#"{"prompt":"p","stop":[]}"#, INVALID, "/stop"),
        (r#"{"prompt":"p","seed":-1}"#, INVALID, "/seed"),
        (r#"{"prompt":"p","stream":"yes"}"#, INVALID, "/stream"),
        (r#"{"prompt":"p","response_format":"xml"}"#, INVALID, "/response_format"),
        (r#"{"prompt":"p","tools":[]}"#, INVALID, "/tools"),
        (r#"{"prompt":"p","tools":["t"]}"#, INVALID, "/tools"),
        (r#"{"prompt":"p","tool_choice":1}"#, INVALID, "/tool_choice"),
        (r#"{"prompt":"p","extra":{"model":"x"}}"#, INVALID, "/extra/model"),
        (r#"{"prompt":"p","extra":[]}"#, INVALID, "/extra"),
        (r#"{"prompt":"p","model":""}"#, INVALID, "/model"),
        (r#"{"prompt":"p","connector":""}"#, INVALID, "/connector"),
        (r#"{"prompt":"p","stall_ms":0}"#, INVALID, "/stall_ms"),
        (r#"{"input":"t","dimensions":0}"#, INVALID, "/dimensions"),
    ] {
        cases.push(bad("ai.generate", inputs, code, at));
    }
    cases
}

#[test]
fn bad_inputs_are_refused_with_pointer_and_rule() {
    let (_, entry) = find("ai.generate", false).expect("there");
    for case in cases() {
        let checked = super::super::super::tests::check(entry, case.name, &case.inputs);
        match (checked, case.refused) {
            // Nobody lists the tenant there: its inputs are good all the same.
            (Ok(checked), None) => assert!(checked.denied.is_some(), "{}", case.inputs),
            (Err(fault), Some((code, at))) => {
                assert_presentable(&fault);
                assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (code, Some(&*at)), "{}", case.inputs);
            }
            (said, _) => panic!("{}: {said:?}", case.inputs),
        }
    }
}

#[test]
fn a_step_goes_by_its_connector_or_its_executor_or_the_only_one() {
    let one = |kind| connector(kind, "http://127.0.0.1:1/v1", Auth::None);
    let listed = |tenants: &[&str], kind| ConnectorSettings {
        tenants: Some(tenants.iter().map(|tenant| (*tenant).to_owned()).collect()),
        ..one(kind)
    };
    let crm = ConnectorSettings { provider: None, ..one(Kind::OpenAi) };
    let policy = policy([
        ("big", one(Kind::OpenAi)),
        ("claude", one(Kind::Anthropic)),
        ("crm", crm),
        ("theirs", listed(&["other"], Kind::Ollama)),
    ]);
    let (_, entry) = find("chat", false).expect("there");
    for (tenant, inputs, provider, wanted) in [
        ("acme", json!({ "connector": "big" }), "claude", Ok("big")),
        ("acme", json!({}), "claude", Ok("claude")),
        ("acme", json!({ "provider_id": "big" }), "claude", Ok("big")),
        ("acme", json!({}), "anthropic", Ok("claude")),
        ("acme", json!({}), "openai", Ok("big")),
        ("acme", json!({}), "ollama", Err("no [connectors.*] with provider \"ollama\" lists the tenant")),
        (
            "acme",
            json!({}),
            "router-1",
            Err("several [connectors.*] with a provider list the tenant: the step must name its own"),
        ),
        ("acme", json!({ "connector": "theirs" }), "", Err("no [connectors.theirs] lists the tenant")),
        ("acme", json!({}), "theirs", Err("several [connectors.*] with a provider list the tenant: the step must name its own")),
        ("acme", json!({ "connector": "crm" }), "", Err("connectors.crm.provider is not set")),
        ("other", json!({}), "router-1", Ok("theirs")),
        ("nobody", json!({}), "big", Err("no [connectors.*] with a provider lists the tenant")),
    ] {
        let mut inputs = inputs;
        inputs["prompt"] = json!("p");
        inputs["model"] = json!("m");
        let text = inputs.to_string();
        let ask = Ask { policy: &policy, tenant, name: "chat", inputs: text.as_bytes(), provider, narrow: &NOTHING };
        let checked = entry.check(&ask).expect("good inputs");
        let spelled: Value = serde_json::from_slice(checked.inputs.as_deref().unwrap_or(text.as_bytes())).expect("JSON");
        match wanted {
            Ok(name) => {
                assert_eq!(checked.denied, None, "{tenant} {inputs} {provider}");
                let part = |name: &str| spelled[name].as_str();
                let served = policy.provider(tenant, part("connector"), part("provider_id")).expect("served");
                assert_eq!(served.connector.name, name, "{tenant} {inputs} {provider}");
            }
            Err(rule) => {
                let denied = checked.denied.expect("denied");
                assert_presentable(&denied);
                assert_eq!((denied.code, details(&denied)["rule"].as_str()), (Code::PermissionDenied, Some(rule)));
            }
        }
    }
}

#[test]
fn a_model_is_one_that_the_connector_lists() {
    let mut one = connector(Kind::Ollama, "http://127.0.0.1:1", Auth::None);
    let none = policy([("llm", one.clone())]);
    one.provider.as_mut().expect("there").models = vec!["a".to_owned(), "b".to_owned()];
    let some = policy([("llm", one)]);
    let (_, entry) = find("ai.generate", false).expect("there");
    let check = |policy, inputs: &str| {
        entry.check(&Ask {
            policy,
            tenant: "acme",
            name: "ai.generate",
            inputs: inputs.as_bytes(),
            provider: "",
            narrow: &NOTHING,
        })
    };
    for inputs in [r#"{"prompt":"p"}"#, r#"{"prompt":"p","model":"b"}"#] {
        assert_eq!(check(&some, inputs).expect("good").denied, None);
    }
    let denied = check(&some, r#"{"prompt":"p","model":"c"}"#).expect("good").denied.expect("not listed");
    assert_eq!(details(&denied), json!({ "pointer": "/model", "rule": "connectors.llm.models does not list it" }));
    let fault = check(&none, r#"{"prompt":"p"}"#).expect("good").denied.expect("no model");
    assert_eq!((fault.code, details(&fault)["pointer"].as_str()), (MISSING, Some("/model")));
}
