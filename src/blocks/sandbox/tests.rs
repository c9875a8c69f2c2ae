//! Dry runs as a shard has them: every block's, and that none of them reaches anything.

use shards::block::{Blob, BlobWriter, Blobs, Stored};
use shards::ids::{Key, Text};
use shards::outcome::Effected;
use shards::step::Needs;

use super::super::tests::manifests::validator;
use super::super::tests::{checks, pointer};
use super::super::{build_all as build_every, find};
use super::*;
use crate::settings::Settings;

mod opened;

use opened::Watch;

/// What an operator has set up here: a connector of each kind, stores, keys, and what they need.
const CONFIGURATION: &str = r#"
[tenants.acme]
scopes = "http"
[connectors.crm]
tenants = "acme"
url = "https://crm.example/api"
allow = ["crm.example"]
bearer = "secret://env/PATH"
idempotency_key = true
[connectors.llm]
tenants = "acme"
url = "https://llm.example/v1"
provider = "openai"
models = ["small-1"]
price_in = 1.0
price_out = 2.0
currency = "USD"
[connectors.archive]
tenants = "*"
store = "s3"
endpoint = "https://s3.example"
bucket = "b"
region = "r"
access_key = "secret://env/PATH"
secret_key = "secret://env/PATH"
[connectors.db]
tenants = "acme"
kind = "sqlite"
[connectors.ledger]
tenants = "acme"
kind = "postgres"
host = "db.internal"
allow = ["db.internal"]
database = "ledger"
user = "worker"
password = "secret://env/PATH"
dedup = true
[keys.release]
tenants = "acme"
algorithm = "ed25519"
secret = "secret://env/PATH"
"#;

fn policy_of(text: &str) -> Arc<Policy> {
    let settings =
        Settings::of(Some(("e.toml", text)), std::iter::empty(), &[]).unwrap_or_else(|error| panic!("{:?}", error.faults));
    Arc::new(Policy::new(settings.policy, false).expect("there is nothing to read"))
}

/// Blobs that nobody may touch.
struct Untouchable;

impl Blobs for Untouchable {
    fn put<'a>(&'a self, _: &'a str, path: &'a str, _: Bytes, _: bool) -> Local<'a, Result<Stored, Fault>> {
        panic!("a dry run writes {path}")
    }

    fn create<'a>(&'a self, _: &'a str, path: &'a str, _: bool) -> Local<'a, Result<Box<dyn BlobWriter>, Fault>> {
        panic!("a dry run writes {path}")
    }

    fn open<'a>(&'a self, _: &'a str, path: &'a str) -> Local<'a, Result<Box<dyn Blob>, Fault>> {
        panic!("a dry run reads {path}")
    }
}

/// One dry run of the block that goes by `name`, as the edge would have it and a shard would run it.
fn dry(policy: &Arc<Policy>, name: &str, inputs: &str, guardrails: &str) -> Result<Value, Fault> {
    let (id, entry) = find(name, true).expect(name);
    let narrow = Narrow { scopes: None, guardrails: Guardrails::read(guardrails.as_bytes())? };
    let ask = Ask { policy, tenant: "acme", name, inputs: inputs.as_bytes(), provider: "", narrow: &narrow };
    let checked = entry.check(&ask)?;
    if let Some(denied) = checked.denied {
        return Err(denied);
    }
    let blocks = build_all(policy);
    let cx = BlockCx {
        tenant: Text::from_static("acme"),
        key: Key([0; 16]),
        try_number: 1,
        trace_id: None,
        left_ms: 60_000,
        inputs: checked.inputs.unwrap_or_else(|| Bytes::copy_from_slice(inputs.as_bytes())),
        needs: Needs::default(),
        guardrails: Bytes::copy_from_slice(guardrails.as_bytes()),
        cache: None,
        blobs: Rc::new(Untouchable),
        observers: None,
    };
    let outputs = blocks[usize::from(id.0)].instant(&cx).expect("a plan is made at once")?;
    Ok(serde_json::from_slice(&outputs).expect("JSON"))
}

/// Inputs to plan with, for every block there is.
fn steps() -> Vec<(&'static str, String)> {
    let mut steps: Vec<(&str, String)> = Vec::new();
    for entry in TABLE {
        for example in &entry.manifest().examples {
            steps.push((entry.info.name, example.inputs.get().to_owned()));
        }
    }
    let all = checks::cases().into_iter().filter(|case| case.refused.is_none());
    steps.extend(all.map(|case| (case.name, case.inputs)));
    for (name, inputs) in [
        (
            "http.request",
            r#"{"url":"http://93.184.216.34:8080/x?token=t0ken&a=b","headers":{"authorization":"Basic x","x-a":"b"}}"#,
        ),
        ("http.request", r#"{"connector":"crm","path":"/people","json":{"name":"Ada"}}"#),
        ("http.request", r#"{"url":"https://h.example/","blob":"a","blob_connector":"archive","response_blob":"b"}"#),
        ("graphql", r#"{"connector":"crm","query":"{ a }"}"#),
        ("ai.generate", r#"{"prompt":"What is a bolt?","max_tokens":100}"#),
        ("embedding", r#"{"input":["a","b"]}"#),
        ("fs.blob_put", r#"{"connector":"archive","path":"a","content":"x"}"#),
        ("fs_blob_put", r#"{"path":"a","content":"x"}"#),
        ("fs.blob_get", r#"{"connector":"archive","path":"a"}"#),
        ("crypto.hash", r#"{"connector":"archive","path":"a","algorithm":"sha512"}"#),
        ("crypto.sign", r#"{"key":"release","text":"abc"}"#),
        ("sql.query", r#"{"connector":"ledger","sql":"SELECT * FROM orders WHERE id = ?","params":[7]}"#),
        ("sql.query", r#"{"connector":"ledger","sql":"DELETE FROM orders","mode":"write"}"#),
        ("sql", r#"{"connector":"db","sql":"SELECT 1 AS one","to":"rows.csv"}"#),
        ("crypto.verify", r#"{"key":"release","text":"abc","signature":"AAAA"}"#),
    ] {
        steps.push((name, inputs.to_owned()));
    }
    steps
}

#[test]
fn a_dry_run_of_any_block_opens_no_socket_and_no_file() {
    let policy = policy_of(CONFIGURATION);
    // On a thread of its own, at which the kernel counts whatever would be opened, and refuses it.
    let (planned, opened, control) = std::thread::spawn(move || {
        let steps = steps();
        let watch = Watch::begin()?;
        let mut planned: Vec<&str> = Vec::new();
        for (name, inputs) in &steps {
            match dry(&policy, name, inputs, "") {
                Ok(told) => {
                    assert!(told["plan"].is_object() && told["outputs"] != Value::Null, "{name} {inputs}: {told}");
                    planned.push(find(name, true).expect(name).1.info.name);
                }
                // What nobody may do, or cannot be done, has no plan.
                Err(fault) => assert_eq!(fault.effect, Effected::None, "{name} {inputs}: {fault:?}"),
            }
        }
        let opened = watch.opened();
        // The watch sees what it is for.
        let file = std::fs::File::open("/proc/self/status").is_err();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").is_err();
        let control = (file && socket, watch.opened() - opened);
        planned.sort_unstable();
        planned.dedup();
        Some((planned.len(), opened, control))
    })
    .join()
    .expect("a thread")
    .unwrap_or_else(|| panic!("this kernel does not let a thread be watched (seccomp): nothing is proved here"));
    assert_eq!(opened, 0, "sockets and files opened");
    assert!(control.0, "what is opened is refused");
    assert!(control.1 >= 2, "and counted: {}", control.1);
    assert_eq!(planned, TABLE.len(), "every block was planned");
}

#[test]
fn mock_outputs_are_what_the_blocks_schemas_describe() {
    let policy = policy_of(CONFIGURATION);
    // Of a block that ends the process nothing can be described.
    let never = |outputs: &serde_json::value::RawValue| outputs.get().contains("\"not\": {}");
    let mut seen = 0;
    for (name, inputs) in steps() {
        let Ok(told) = dry(&policy, name, &inputs, "") else { continue };
        let manifest = find(name, true).expect(name).1.manifest();
        if never(manifest.outputs) {
            continue;
        }
        assert!(validator(manifest.outputs.get()).is_valid(&told["outputs"]), "{name} {inputs}: {}", told["outputs"]);
        assert_eq!(dry(&policy, name, &inputs, "").as_ref(), Ok(&told), "the same every time");
        seen += 1;
    }
    for entry in TABLE {
        let manifest = entry.manifest();
        if never(manifest.outputs) {
            continue;
        }
        let least = mock::of_schema(manifest.outputs);
        assert!(validator(manifest.outputs.get()).is_valid(&least), "{}: {least}", entry.info.name);
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn a_plan_says_what_would_be_sent_and_hides_what_is_secret() {
    let policy = policy_of(CONFIGURATION);
    let told = dry(
        &policy,
        "http.request",
        r#"{"connector":"crm","path":"/people?api_key=k3y","json":{"name":"Ada"},"headers":{"X-Api-Key":"k3y","cookie":"k3y","x-a":"b"}}"#,
        "",
    );
    let told = told.expect("a plan");
    let (plan, does) = (&told["plan"], &told["plan"]["does"]);
    assert_eq!(
        (&plan["block"], &plan["effect"], &plan["tenant"]),
        (&json!("http.request@1.0.0"), &json!("idempotent"), &json!("acme"))
    );
    assert_eq!(does["request"]["method"], "POST");
    assert_eq!(does["request"]["url"], "https://crm.example/api/people?api_key=[REDACTED]");
    assert_eq!(
        (&does["request"]["headers"]["x-api-key"], &does["request"]["headers"]["x-a"]),
        (&json!("[REDACTED]"), &json!("b"))
    );
    assert_eq!(does["request"]["body"], json!({ "bytes": 14, "sha256": hex(&Sha256::digest(r#"{"name":"Ada"}"#)) }));
    assert_eq!((&does["to"]["host"], &does["to"]["address"]), (&json!("crm.example"), &Value::Null));
    assert_eq!(does["to"]["connector"]["auth"], json!({ "bearer": "secret://env/PATH" }));
    assert_eq!(
        (&plan["rules"], &plan["secrets"]),
        (&json!(["connectors.crm.tenants lists the tenant"]), &json!(["secret://env/PATH"]))
    );
    assert!(told["notes"].to_string().contains("no name was looked up"), "{told}");
    assert!(!told.to_string().contains("k3y") && !told.to_string().contains(&std::env::var("PATH").expect("set")), "{told}");

    let literal = dry(&policy, "http.request", r#"{"url":"http://93.184.216.34:8080/"}"#, "").expect("a plan");
    assert_eq!(literal["plan"]["does"]["to"]["address"], "93.184.216.34");
    assert_eq!(literal["plan"]["rules"], json!(["tenants.acme.scopes has \"http\""]));

    let asked = dry(&policy, "ai.generate", r#"{"prompt":"Why?","max_tokens":1000}"#, "").expect("a plan");
    let bytes = asked["plan"]["does"]["request"]["body"]["bytes"].as_f64().expect("a size");
    assert_eq!(asked["plan"]["cost"]["at_most"], format!("{:.6}", (bytes + 2.0 * 1000.0) / 1e6));
    assert_eq!((&asked["plan"]["does"]["model"], &asked["plan"]["cost"]["currency"]), (&json!("small-1"), &json!("USD")));
    let unbounded = dry(&policy, "ai.generate", r#"{"prompt":"Why?"}"#, "").expect("a plan");
    assert!(unbounded["plan"]["cost"].is_null() && unbounded["notes"].to_string().contains("max_tokens"), "{unbounded}");

    let put = dry(&policy, "fs.blob_put", r#"{"path":"a","content":"x","connector":"archive"}"#, "").expect("a plan");
    assert_eq!(put["plan"]["does"]["put"]["precondition"], "no other content stands there");
    assert_eq!(
        (&put["plan"]["does"]["put_to"]["kind"], put["plan"]["secrets"].as_array().map(Vec::len)),
        (&json!("s3"), Some(2))
    );
    let echo = dry(&policy, "echo", r#"{"n":1.50}"#, "").expect("a plan");
    assert_eq!((&echo["outputs"], &echo["outputs_from"]), (&json!({ "n": 1.5 }), &json!("plan")));
}

#[test]
fn a_digest_changes_with_whatever_the_step_would_do_otherwise_and_with_nothing_else() {
    let request = r#"{"connector":"crm","path":"/people","json":{"name":"Ada"}}"#;
    let of = |configuration: &str, inputs: &str, guardrails: &str| {
        let told = dry(&policy_of(configuration), "http.request", inputs, guardrails).expect("a plan");
        let plan: String = told["plan_digest"].as_str().expect("a digest").to_owned();
        // Anybody can compute it from what was told.
        let mut text = String::new();
        canonical(&told["plan"].to_string(), &mut text);
        assert_eq!(plan, hex(&Sha256::digest(text)));
        plan
    };
    let digest = of(CONFIGURATION, request, "");
    for (inputs, why) in [
        (r#"{ "json" : {"name":"Ada"}, "path":"/people" ,"connector":"\u0063rm"}"#, "another spelling of the same inputs"),
        (request, "the same"),
    ] {
        assert_eq!(of(CONFIGURATION, inputs, ""), digest, "{why}");
    }
    let other_tenant = format!("{CONFIGURATION}\n[tenants.other]\nscopes = \"http\"\n");
    assert_eq!(of(&other_tenant, request, ""), digest, "what is another tenant's");
    let changed = [
        ("url = \"https://crm.example/api\"", "url = \"https://crm2.example/api\""),
        ("allow = [\"crm.example\"]", "allow = [\"crm.example\", \"10.0.0.0/8\"]"),
        ("bearer = \"secret://env/PATH\"", "bearer = \"secret://env/HOME\""),
        ("idempotency_key = true", "idempotency_key = false"),
    ];
    let mut all = vec![digest.clone()];
    for (from, to) in changed {
        assert!(CONFIGURATION.contains(from));
        all.push(of(&CONFIGURATION.replacen(from, to, 1), request, ""));
    }
    all.push(of(CONFIGURATION, r#"{"connector":"crm","path":"/people","json":{"name":"Eva"}}"#, ""));
    all.push(of(
        CONFIGURATION,
        r#"{"connector":"crm","path":"/people","json":{"name":"Ada"},"headers":{"x-token":"hidden"}}"#,
        "",
    ));
    all.push(of(
        CONFIGURATION,
        r#"{"connector":"crm","path":"/people","json":{"name":"Ada"},"headers":{"x-token":"other"}}"#,
        "",
    ));
    all.push(of(CONFIGURATION, request, r#"{"max_bytes":1000}"#));
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "each of them is another plan");
}

#[test]
fn what_would_fail_has_no_plan_and_says_why() {
    let policy = policy_of(CONFIGURATION);
    let fails = |name: &str, inputs: &str| dry(&policy, name, inputs, "").expect_err(inputs);
    for (name, inputs, code) in [
        ("http.request", r#"{"url":"http://10.0.0.1/"}"#, Code::PermissionDenied),
        ("http.request", r#"{"connector":"other","path":"/"}"#, Code::PermissionDenied),
        ("fs.blob_put", r#"{"connector":"other","path":"a","content":"x"}"#, Code::PermissionDenied),
        ("crypto.sign", r#"{"key":"other","text":"x"}"#, Code::PermissionDenied),
        ("ai.generate", r#"{"prompt":"x","model":"large-1"}"#, Code::PermissionDenied),
        ("sleep", r#"{"ms":-1}"#, Code::InvalidInput),
    ] {
        assert_eq!(fails(name, inputs).code, code, "{inputs}");
    }
    let unlike = format!(r#"{{"path":"a","content":"x","sha256":"{}"}}"#, "0".repeat(64));
    let fault = fails("fs.blob_put", &unlike);
    assert_eq!((fault.code, pointer(&fault)), (Code::ExecutionFailed, "/sha256".to_owned()));

    let gone = policy_of(&CONFIGURATION.replacen("bearer = \"secret://env/PATH\"", "bearer = \"secret://env/NOT_SET_HERE\"", 1));
    let fault = dry(&gone, "http.request", r#"{"connector":"crm","path":"/"}"#, "").expect_err("no secret");
    let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
    assert_eq!((fault.code, details["secret"].as_str()), (Code::ExecutionFailed, Some("secret://env/NOT_SET_HERE")));
    assert!(!fault.code.retryable(), "another try looks at the same");
}

#[test]
fn inputs_by_reference_are_named_and_not_read() {
    let policy = policy_of(CONFIGURATION);
    let narrow = Narrow { scopes: None, guardrails: Guardrails::default() };
    let of = |reference: Value| {
        let (_, entry) = find("http.request", true).expect("there");
        let text = reference.to_string();
        let ask =
            Ask { policy: &policy, tenant: "acme", name: "http.request", inputs: text.as_bytes(), provider: "", narrow: &narrow };
        let inputs = super::super::reference::check(entry, &ask).expect("a reference").inputs.expect("rewritten");
        Plan::by_reference(entry, &Ask { inputs: &inputs, ..ask }).expect("a plan")
    };
    let bound = of(json!({ "uri": "blob://archive/a", "sha256": "a".repeat(64) }));
    assert!(bound.digest.is_some() && bound.text.contains("s3.example"), "{}", bound.text);
    assert_eq!(of(json!("blob:a")).digest, None, "what is there may be another thing each time");
    assert_ne!(of(json!({ "uri": "blob://archive/a", "sha256": "b".repeat(64) })).digest, bound.digest);
}

#[test]
fn the_forms_of_a_block_stand_where_their_ids_say() {
    let reach = super::super::tests::shut();
    let (all, names) = (build_every(&reach), super::super::names());
    assert_eq!((all.len(), names.len()), (5 * TABLE.len(), 5 * TABLE.len()));
    for (at, entry) in TABLE.iter().enumerate() {
        for id in [id_of(BlockId(at as u16)), id_of_referred(BlockId(at as u16))] {
            assert_eq!(all[usize::from(id.0)].info().name, entry.info.name);
            assert_eq!(&*names[usize::from(id.0)], format!("{}@{}+dry", entry.info.name, entry.info.version));
        }
    }
}

#[test]
fn texts_are_brought_into_one_form() {
    for (text, form) in [
        (r#" { "b" : 1.50, "a" : [ 1 , {"d":2,"c":"\u0041"} ] } "#, r#"{"a":[1,{"c":"A","d":2}],"b":1.50}"#),
        ("null", "null"),
        (r#""a\/b""#, r#""a/b""#),
        ("[]", "[]"),
    ] {
        let mut out = String::new();
        canonical(text, &mut out);
        assert_eq!(out, form);
    }
}
