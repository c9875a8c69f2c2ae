//! What a step allows itself less than its tenant may, kept by every block: at the bound it runs, one beyond it is denied.

use std::net::SocketAddr;

use super::*;
use crate::edge::wire::Query;
use crate::policy::narrow::{Guardrails, Narrow, Scopes};
use crate::policy::providers::{Kind, ProviderSettings};
use crate::policy::{Auth, ConnectorSettings, PolicySettings};
use crate::worker::{lookup, lookup_reference};

/// What a step is left with: its scopes, and its guardrails as JSON text.
type Left<'a> = (Option<&'a [&'a str]>, &'a str);

/// A step as the edge has it looked up and a shard runs it.
async fn narrowed(
    reach: &Reach,
    blobs: &Rc<LocalBlobs>,
    name: &str,
    inputs: &Value,
    referred: bool,
    (scopes, guardrails): Left<'_>,
) -> Result<Value, Fault> {
    let text = inputs.to_string();
    let scopes = scopes.map(|names| names.iter().fold(Scopes::default(), |scopes, name| scopes.with(name)));
    let narrow = Narrow { scopes, guardrails: Guardrails::read(guardrails.as_bytes())? };
    let step = Ask { policy: &reach.policy, tenant: "acme", name, inputs: text.as_bytes(), provider: "", narrow: &narrow };
    let query = Query { step, cached: false, sandbox: false, plan: false, dev: false };
    let found = if referred { lookup_reference(&query)? } else { lookup(&query)? };
    if let Some(denied) = found.denied {
        return Err(denied);
    }
    let Demand { lane, memory_bytes, .. } = found.demand;
    let cx = BlockCx {
        tenant: Text::from_static("acme"),
        key: Key([0; 16]),
        try_number: 1,
        left_ms: 60_000,
        needs: Needs { lane, memory_bytes, concurrency: 0 },
        inputs: found.inputs.unwrap_or_else(|| Bytes::from(text.clone())),
        blobs: blobs.clone(),
        guardrails: Bytes::copy_from_slice(guardrails.as_bytes()),
        cache: None,
        trace_id: None,
        observers: None,
    };
    let outputs = build_all(reach)[usize::from(found.block.0)].execute(cx).await?;
    Ok(serde_json::from_slice(&outputs).expect("outputs are JSON"))
}

/// Answers every request with a hundred bytes of text, but `/away`, which leads to another name of the same place.
fn server() -> SocketAddr {
    answering(|request, here| match request.contains("/away") {
        true => format!(
            "HTTP/1.1 302 Found\r\nlocation: http://localhost:{}/\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            here.port()
        ),
        false => format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{}",
            "x".repeat(100)
        ),
    })
}

/// Where everybody may reach this machine, and one connector generates.
fn open(server: SocketAddr) -> Reach {
    let mut settings = PolicySettings::default();
    let url = crate::net::egress::Target::parse(&format!("http://{server}/v1")).expect("a URL");
    let provider =
        ProviderSettings { kind: Kind::OpenAi, models: vec!["m".to_owned()], prices: None, currency: "USD".to_owned() };
    let connector = ConnectorSettings {
        tenants: None,
        url: Some(url),
        allow: Vec::new(),
        auth: Auth::None,
        idempotency_key: false,
        tls: Default::default(),
        direct: false,
        provider: Some(provider),
    };
    settings.connectors.insert("llm".to_owned(), connector);
    reach(Policy::new(settings, true).expect("no file in it"))
}

#[test]
fn every_bound_on_bytes_is_kept_by_every_block() {
    on_a_shard(|blobs, _| async move {
        let server = server();
        let reach = open(server);
        let put = |path: &str, content: &str| json!({ "path": path, "content": content, "overwrite": true });
        for (path, content) in [("ten", "0123456789".to_owned()), ("step", r#"{"text":"a"}"#.to_owned())] {
            run(&blobs, "fs.put", put(path, &content)).await.expect("put");
        }
        let url = format!("http://{server}/");
        let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
        run(&blobs, "fs.put", json!({ "path": "dot.png", "bytes": png, "overwrite": true })).await.expect("put");
        let dot = 70;
        let mut seen = 0;
        for (name, inputs, referred, most, pointer) in [
            ("fs.put", put("a", "0123456789"), false, 10, "/content"),
            ("fs.put", json!({ "path": "a", "bytes": "AAAAAAAAAAAAAA==", "overwrite": true }), false, 10, "/bytes"),
            ("fs.put", json!({ "path": "b", "blob": "ten", "overwrite": true }), false, 10, "/blob"),
            ("fs.get", json!({ "path": "ten" }), false, 10, "/path"),
            ("fs.get", json!({ "path": "ten", "offset": 4, "length": 3 }), false, 3, "/path"),
            ("crypto.hash", json!({ "path": "ten" }), false, 10, "/path"),
            ("echo", json!("blob:step"), true, 12, "/payload_ref"),
            (
                "media.render",
                json!({ "path": "dot.png", "format": "png", "to": "c.png", "overwrite": true }),
                false,
                dot,
                "/path",
            ),
            ("http.request", json!({ "url": url, "method": "POST", "text": "0123456789" }), false, 100, "/bytes_max"),
            ("http.request", json!({ "url": url }), false, 100, "/bytes_max"),
            ("http.request", json!({ "url": url, "response": "blob", "response_blob": "d" }), false, 100, "/bytes_max"),
            ("sql.query", json!({ "sql": "SELECT 'xxxxxxx' AS a", "rows": "lists" }), false, 10, "/bytes_max"),
        ] {
            let bound = |most: u64| format!(r#"{{"max_bytes":{most}}}"#);
            let at = narrowed(&reach, &blobs, name, &inputs, referred, (None, &bound(most))).await;
            // What an encoder makes of a dot is not ours to know.
            if name != "media.render" {
                at.unwrap_or_else(|fault| panic!("{name} {inputs}: {fault:?}"));
            }
            let fault = narrowed(&reach, &blobs, name, &inputs, referred, (None, &bound(most - 1))).await;
            let fault = fault.expect_err(&format!("{name} {inputs}"));
            let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
            assert_eq!(details["pointer"], pointer, "{name} {inputs}: {details}");
            seen += 1;
        }
        for (name, inputs) in
            [("http.request", json!({ "url": url, "method": "POST", "text": "0123456789" })), ("chat", json!({ "prompt": "p" }))]
        {
            let sent = narrowed(&reach, &blobs, name, &inputs, false, (None, r#"{"max_bytes":9}"#)).await;
            assert_eq!(sent.expect_err("more is sent").code, Code::PermissionDenied, "{name}");
        }
        eprintln!("{} bounds on bytes", seen + 2);
    });
}

#[test]
fn only_the_hosts_that_a_step_names_are_reached_over_every_redirect() {
    on_a_shard(|blobs, _| async move {
        let server = server();
        let reach = open(server);
        let get = |path: &str| json!({ "url": format!("http://{server}{path}") });
        let chat = json!({ "prompt": "p" });
        for (name, inputs, guardrails, rule) in [
            ("http.request", get("/"), r#"{"hosts":["127.0.0.1"]}"#, None),
            ("http.request", get("/away"), r#"{"hosts":["127.0.0.1","localhost"]}"#, None),
            ("http.request", get("/away"), r#"{"hosts":["127.0.0.1"]}"#, Some("guardrails.hosts")),
            ("http.request", get("/"), r#"{"hosts":["localhost"]}"#, Some("guardrails.hosts")),
            ("http.request", get("/"), r#"{"hosts":[]}"#, Some("guardrails.hosts")),
            ("http.request", get("/away"), r#"{"max_redirects":1}"#, None),
            ("http.request", get("/away"), r#"{"max_redirects":0}"#, Some("302")),
            ("chat", chat.clone(), r#"{"hosts":["api.example.com"]}"#, Some("guardrails.hosts")),
        ] {
            let done = narrowed(&reach, &blobs, name, &inputs, false, (None, guardrails)).await;
            match (done, rule) {
                (Ok(_), None) => {}
                (Err(fault), Some(rule)) => {
                    let details = String::from_utf8_lossy(&fault.details);
                    assert!(
                        details.contains(rule) || fault.code == Code::HttpError,
                        "{inputs} {guardrails}: {fault:?} {details}"
                    );
                }
                (done, _) => panic!("{name} {inputs} {guardrails}: {done:?}"),
            }
        }
    });
}

#[test]
fn a_step_that_is_left_without_a_scope_does_nothing_that_needs_it() {
    on_a_shard(|blobs, _| async move {
        let server = server();
        let reach = open(server);
        run(&blobs, "fs.put", json!({ "path": "a", "content": r#"{"text":"a"}"#, "overwrite": true })).await.expect("put");
        let url = format!("http://{server}/");
        let mut seen = 0;
        for (name, inputs, referred, needed) in [
            ("fs.get", json!({ "path": "a" }), false, &["blob"][..]),
            ("fs.put", json!({ "path": "a", "content": "x", "overwrite": true }), false, &["blob"]),
            ("crypto.hash", json!({ "path": "a" }), false, &["blob"]),
            ("echo", json!("blob:a"), true, &["blob"]),
            ("http.request", json!({ "url": url }), false, &["http"]),
            ("http.request", json!({ "url": url, "method": "POST", "blob": "a" }), false, &["http", "blob"]),
            ("http.request", json!({ "url": url, "response": "blob", "response_blob": "b" }), false, &["http", "blob"]),
            ("chat", json!({ "prompt": "p" }), false, &["ai"]),
            ("crypto.sign", json!({ "key": "k", "text": "x" }), false, &["keys"]),
            ("media.render", json!({ "bytes": "AAAA" }), false, &["blob"]),
            ("sql.query", json!({ "sql": "SELECT 1" }), false, &["sql"]),
            ("sql.query", json!({ "sql": "SELECT 1", "to": "rows", "overwrite": true }), false, &["sql", "blob"]),
        ] {
            let all = ["http", "ai", "blob", "keys", "sql", "theirs"];
            let lacks = |fault: &Fault, scope: &str| {
                let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
                details["rule"].as_str().is_some_and(|rule| rule.ends_with(&format!("have no {scope:?}")))
            };
            if let Err(fault) = narrowed(&reach, &blobs, name, &inputs, referred, (Some(&all), "")).await {
                assert!(!all.iter().any(|scope| lacks(&fault, scope)), "{name} {inputs}: {fault:?}");
            }
            for scope in needed {
                let left: Vec<&str> = all.iter().copied().filter(|other| other != scope).collect();
                let fault = narrowed(&reach, &blobs, name, &inputs, referred, (Some(&left), "")).await.expect_err(name);
                assert!(fault.code == Code::PermissionDenied && lacks(&fault, scope), "{name} {inputs} {scope}: {fault:?}");
                seen += 1;
            }
        }
        for (name, inputs) in [("echo", json!({})), ("crypto.hash", json!({ "text": "x" }))] {
            narrowed(&reach, &blobs, name, &inputs, false, (Some(&[]), "")).await.expect("needs none");
        }
        eprintln!("{seen} scopes that a step lacks");
    });
}
