//! What is refused before anything is sent, and what running a step twice may do.

use super::super::super::tests::checks::{Case, bad, good};
use super::*;

fn refused(inputs: &str) -> (Code, String, String) {
    let (_, entry) = find("http.request", false).expect("there");
    let policy = Policy::new(PolicySettings::default(), true).expect("nothing to read");
    let checked = entry.check(&Ask {
        policy: &policy,
        tenant: "acme",
        name: "http.request",
        inputs: inputs.as_bytes(),
        provider: "",
        narrow: &NOTHING,
    });
    let fault = match checked {
        Ok(checked) => checked.denied.unwrap_or_else(|| panic!("taken: {inputs}")),
        Err(fault) => fault,
    };
    let details = details(&fault);
    let part = |name: &str| details[name].as_str().unwrap_or_default().to_owned();
    (fault.code, part("pointer"), part("rule"))
}

/// Inputs, and how they are refused: with which code, where, and by which rule.
fn refusals() -> Vec<(String, Code, &'static str, &'static str)> {
    let long = format!(r#"{{"url":"http://h.example/","headers":{{"a":"{}"}}}}"#, "x".repeat(40_000));
    let many: Vec<String> = (0..70).map(|at| format!(r#""h{at}":"x""#)).collect();
    let many = format!(r#"{{"url":"http://h.example/","headers":{{{}}}}}"#, many.join(","));
    let far = format!(r#"{{"url":"http://h.example/{}"}}"#, "x".repeat(9_000));
    let cases = [
        (r#"[]"#, Code::InvalidInput, "", "an object"),
        (r#"{}"#, Code::MissingRequiredField, "/url", "required"),
        (r#"{"url":7}"#, Code::InvalidInput, "/url", "a string"),
        (r#"{"url":"h.example"}"#, Code::InvalidInput, "/url", "scheme"),
        (r#"{"url":"ftp://h.example/"}"#, Code::InvalidInput, "/url", "scheme"),
        (r#"{"url":"http://u:p@h.example/"}"#, Code::InvalidInput, "/url", "userinfo"),
        (r#"{"url":"http://h.example/\r\nX: y"}"#, Code::InvalidInput, "/url", "spelling"),
        (r#"{"url":"http:///x"}"#, Code::InvalidInput, "/url", "host"),
        (&far, Code::InvalidInput, "/url", "8192 bytes"),
        (r#"{"url":"http://h.example/","path":"/x"}"#, Code::InvalidInput, "/path", "at most one of url, path"),
        (r#"{"path":"/x"}"#, Code::InvalidInput, "/path", "only with a connector"),
        (r#"{"connector":"crm"}"#, Code::PermissionDenied, "/connector", "no [connectors.crm] lists the tenant"),
        (r#"{"url":"http://h.example/","method":"TRACE"}"#, Code::InvalidInput, "/method", "GET, HEAD"),
        (r#"{"url":"http://h.example/","method":"GET","text":"x"}"#, Code::InvalidInput, "/method", "sends a body"),
        (r#"{"url":"http://h.example/","text":"x","json":1}"#, Code::InvalidInput, "/text", "at most one of json"),
        (r#"{"url":"http://h.example/","bytes":"%"}"#, Code::InvalidInput, "/bytes", "base64"),
        (r#"{"url":"http://h.example/","blob":"../x"}"#, Code::InvalidInput, "/blob", "no component"),
        (r#"{"url":"http://h.example/","form":[1]}"#, Code::InvalidInput, "/form", "an object"),
        (r#"{"url":"http://h.example/","form":{"a":{}}}"#, Code::InvalidInput, "/form/a", "a string, a number"),
        (r#"{"url":"http://h.example/","query":{"a/b":[[1]]}}"#, Code::InvalidInput, "/query/a~1b", "a string, a number"),
        (r#"{"url":"http://h.example/","headers":{"a b":"x"}}"#, Code::InvalidInput, "/headers/a b", "a name of letters"),
        (r#"{"url":"http://h.example/","headers":{"a":"x\r\nb: c"}}"#, Code::InvalidInput, "/headers/a", "visible"),
        (r#"{"url":"http://h.example/","headers":{"a\r\nb":"x"}}"#, Code::InvalidInput, "/headers/a\r\nb", "a name of letters"),
        (r#"{"url":"http://h.example/","headers":{"Host":"x"}}"#, Code::InvalidInput, "/headers/Host", "not one that"),
        (
            r#"{"url":"http://h.example/","headers":{"content-length":"1"}}"#,
            Code::InvalidInput,
            "/headers/content-length",
            "not one that",
        ),
        (
            r#"{"url":"http://h.example/","headers":{"Transfer-Encoding":"x"}}"#,
            Code::InvalidInput,
            "/headers/Transfer-Encoding",
            "not one that",
        ),
        (
            r#"{"url":"http://h.example/","headers":{"Connection":"x"}}"#,
            Code::InvalidInput,
            "/headers/Connection",
            "not one that",
        ),
        (&long, Code::InvalidInput, "/headers", "at most 64"),
        (&many, Code::InvalidInput, "/headers", "at most 64"),
        (r#"{"url":"http://h.example/","response":"xml"}"#, Code::InvalidInput, "/response", "auto, json"),
        (
            r#"{"url":"http://h.example/","response":"stream","response_blob":"a"}"#,
            Code::InvalidInput,
            "/response_blob",
            "only where",
        ),
        (r#"{"url":"http://h.example/","response":"stream","overwrite":true}"#, Code::InvalidInput, "/overwrite", "only where"),
        (r#"{"url":"http://h.example/","response":"blob"}"#, Code::MissingRequiredField, "/response_blob", "required"),
        (
            r#"{"url":"http://h.example/","response":"json","response_blob":"a"}"#,
            Code::InvalidInput,
            "/response_blob",
            "only where",
        ),
        (r#"{"url":"http://h.example/","response_blob":"/a"}"#, Code::InvalidInput, "/response_blob", "relative"),
        (r#"{"url":"http://h.example/","method":"HEAD","response_blob":"a"}"#, Code::InvalidInput, "/response_blob", "no body"),
        (r#"{"url":"http://h.example/","overwrite":true}"#, Code::InvalidInput, "/overwrite", "only where"),
        (r#"{"url":"http://h.example/","expect":[]}"#, Code::InvalidInput, "/expect", "a status"),
        (r#"{"url":"http://h.example/","expect":"6xx"}"#, Code::InvalidInput, "/expect", "a status"),
        (r#"{"url":"http://h.example/","expect":[100]}"#, Code::InvalidInput, "/expect", "a status"),
        (r#"{"url":"http://h.example/","redirects":11}"#, Code::InvalidInput, "/redirects", "from 0 to 10"),
        (r#"{"url":"http://h.example/","connect_ms":0}"#, Code::InvalidInput, "/connect_ms", "from 1"),
        (r#"{"url":"http://h.example/","attempt_ms":"1s"}"#, Code::InvalidInput, "/attempt_ms", "a whole number"),
        (r#"{"url":"http://h.example/","bytes_max":9000000}"#, Code::InvalidInput, "/bytes_max", "from 0 to 8388608"),
        (r#"{"url":"http://10.0.0.1/"}"#, Code::PermissionDenied, "/url", "egress private"),
        (r#"{"url":"http://0x0a.1/"}"#, Code::PermissionDenied, "/url", "egress private"),
        (r#"{"url":"http://169.254.169.254/latest"}"#, Code::PermissionDenied, "/url", "egress metadata"),
        (r#"{"url":"http://crm/"}"#, Code::PermissionDenied, "/url", "egress name/single-label"),
    ];
    cases.map(|(inputs, code, pointer, rule)| (inputs.to_owned(), code, pointer, rule)).to_vec()
}

#[test]
fn each_bad_input_names_its_field_and_its_rule() {
    let cases = refusals();
    for (inputs, code, pointer, rule) in &cases {
        let (said_code, said_pointer, said_rule) = refused(inputs);
        assert_eq!((said_code, said_pointer.as_str()), (*code, *pointer), "{inputs}: {said_rule}");
        assert!(said_rule.contains(rule), "{inputs}: {said_rule}");
    }
    println!("{} bad inputs, each refused with its field and rule", cases.len());
}

/// Inputs that are taken.
const TAKEN: [&str; 15] = [
    r#"{"url":"http://h.example/"}"#,
    r#"{"url":"https://h.example/","path":null,"connector":null,"method":"get"}"#,
    r#"{"url":"http://h.example/","method":"Delete","text":"x"}"#,
    r#"{"url":"http://h.example/","query":{"a":[1,true,null,"x"],"b":null,"c":1.5}}"#,
    r#"{"url":"http://h.example/","headers":{"X-A":["1",2],"x-b":"\t ~"}}"#,
    r#"{"url":"http://h.example/","json":{"a":null},"text":null}"#,
    r#"{"url":"http://h.example/","json":false}"#,
    r#"{"url":"http://h.example/","form":{"a":"ü"}}"#,
    r#"{"url":"http://h.example/","bytes":"AAE","method":"PUT"}"#,
    r#"{"url":"http://h.example/","body":[1]}"#,
    r#"{"url":"http://h.example/","response":"blob","response_blob":"a/b","overwrite":false,"bytes_max":17179869184}"#,
    r#"{"url":"http://h.example/","response_blob":"a","method":"POST","blob":"b/c"}"#,
    r#"{"url":"http://h.example/","response":"stream","bytes_max":17179869184}"#,
    r#"{"url":"http://h.example/","expect":[200,"3xx",404.0],"redirects":0,"bytes_max":0}"#,
    r#"{"url":"http://h.example/","connect_ms":1,"first_byte_ms":3600000,"stall_ms":5,"attempt_ms":null,"expect":"4XX"}"#,
];

#[test]
fn good_inputs_are_taken() {
    let (_, entry) = find("http.request", false).expect("there");
    let policy = Policy::new(PolicySettings::default(), true).expect("nothing to read");
    for inputs in TAKEN {
        let checked = entry.check(&Ask {
            policy: &policy,
            tenant: "acme",
            name: "http",
            inputs: inputs.as_bytes(),
            provider: "",
            narrow: &NOTHING,
        });
        assert!(checked.is_ok_and(|checked| checked.denied.is_none()), "{inputs}");
    }
}

/// The same as cases for the schema; what a policy denies is as it should be.
pub(in crate::blocks) fn cases() -> Vec<Case> {
    let refused = refusals().into_iter().map(|(inputs, code, pointer, rule)| {
        if code == Code::PermissionDenied {
            return good("http.request", inputs);
        }
        let apart = match (pointer, rule) {
            ("/url", "scheme" | "userinfo" | "spelling" | "host") => Some("what a URL is, the URL standard says and no pattern"),
            ("/headers", "at most 64") if inputs.len() > 40_000 => Some("a schema does not add up what headers hold"),
            _ => None,
        };
        Case { apart, ..bad("http.request", inputs, code, pointer) }
    });
    refused.chain(TAKEN.map(|inputs| good("http.request", inputs))).collect()
}

#[test]
fn the_effect_class_follows_the_method_and_where_the_answer_goes() {
    let (_, entry) = find("http.request", false).expect("there");
    let policy = Policy::new(PolicySettings::default(), true).expect("nothing to read");
    for (method, more, class) in [
        ("GET", "", EffectClass::Pure),
        ("HEAD", "", EffectClass::Pure),
        ("OPTIONS", "", EffectClass::Pure),
        ("PUT", "", EffectClass::Idempotent),
        ("DELETE", "", EffectClass::Idempotent),
        ("POST", "", EffectClass::Unsafe),
        ("PATCH", "", EffectClass::Unsafe),
        ("GET", r#","response_blob":"a""#, EffectClass::Conditional),
        ("GET", r#","response_blob":"a","overwrite":true"#, EffectClass::Idempotent),
        ("POST", r#","response_blob":"a""#, EffectClass::Unsafe),
    ] {
        let inputs = format!(r#"{{"url":"http://h.example/","method":"{method}"{more}}}"#);
        let ask =
            Ask { policy: &policy, tenant: "acme", name: "http", inputs: inputs.as_bytes(), provider: "", narrow: &NOTHING };
        let checked = entry.check(&ask).expect(method);
        assert_eq!((checked.effect, checked.denied), (class, None), "{inputs}");
    }
}

#[test]
fn nobody_is_let_out_who_was_not_granted_it() {
    on_a_shard(|blobs, _| async move {
        let server = Server::always(Act::answer("200 OK", "", "x"));
        let fault = ask(&super::super::super::tests::shut(), &blobs, json!({ "url": server.url("/") })).await.expect_err("shut");
        assert_eq!(fault.code, Code::PermissionDenied);
        assert_eq!(details(&fault)["rule"], r#"tenants.default.scopes has no "http""#);
        let mut settings = PolicySettings::default();
        settings.grants.insert("acme".to_owned(), vec![Scope::Http]);
        settings.grants.insert("other".to_owned(), vec![]);
        let reach = reach(Policy::new(settings, false).expect("nothing to read"));
        // Granted, but this machine is no public place.
        let fault = ask(&reach, &blobs, json!({ "url": server.url("/") })).await.expect_err("loopback");
        assert!(details(&fault)["rule"].as_str().is_some_and(|rule| rule.starts_with("egress loopback")), "{fault:?}");
        let inputs = json!({ "url": "http://h.example/" }).to_string();
        let fault = run_with(&reach, &blobs, "other", "http.request", &inputs, 1).await.expect_err("not granted");
        assert_eq!(details(&fault)["rule"], r#"tenants.other.scopes has no "http""#);
        assert_eq!(server.connections(), 0);
    });
}
