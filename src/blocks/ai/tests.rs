//! `ai.generate`: adapters as tables, and the block against stubs that answer as each provider does, and worse.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use serde_json::{Value, json};
use shards::block::{BlockCx, Local, Observers};
use shards::ids::{Key, Text};
use shards::outcome::{Code, Effected, Fault};

use super::super::http::tests::server::{Act, Server};
use super::super::local::LocalBlobs;
use super::super::tests::{assert_presentable, drop_after, on_a_shard, reach};
use super::super::{Ask, Reach, build_all, find};
use crate::net::egress::{Allow, Target};
use crate::policy::narrow::NOTHING;
use crate::policy::providers::{Kind, Prices, ProviderSettings};
use crate::policy::{Auth, ConnectorSettings, Policy, PolicySettings};
use crate::secrets::SecretRef;

mod adapters;
pub(in crate::blocks) mod checks;
mod exchanges;
mod troubles;

/// The key that nobody may see.
const KEY: &str = "sk-test-4f9a1c77e0b2";

const KINDS: [Kind; 3] = [Kind::OpenAi, Kind::Anthropic, Kind::Ollama];

fn connector(kind: Kind, url: &str, auth: Auth) -> ConnectorSettings {
    ConnectorSettings {
        tenants: Some(vec!["acme".to_owned()]),
        url: Some(Target::parse(url).expect("a URL")),
        allow: vec![Allow::parse("127.0.0.0/8").expect("a network")],
        auth,
        idempotency_key: false,
        tls: Default::default(),
        direct: false,
        provider: Some(ProviderSettings {
            kind,
            models: Vec::new(),
            prices: Some(Prices { input: 1_000_000, output: 3_000_000 }),
            currency: "USD".to_owned(),
        }),
    }
}

fn policy(connectors: impl IntoIterator<Item = (&'static str, ConnectorSettings)>) -> Policy {
    let mut settings = PolicySettings::default();
    settings.connectors.extend(connectors.into_iter().map(|(name, one)| (name.to_owned(), one)));
    Policy::new(settings, false).expect("nothing to read")
}

/// Tenant `acme` has one provider: this server, with the key in a file beneath `root`.
fn with(kind: Kind, server: &Server, root: &std::path::Path) -> Reach {
    let path = root.join("key");
    std::fs::write(&path, KEY).expect("written");
    let secret = SecretRef::parse(&format!("secret://file{}", path.display())).expect("a reference");
    let auth = match kind {
        Kind::Anthropic => Auth::Header { name: "x-api-key".to_owned(), value: secret },
        _ => Auth::Bearer(secret),
    };
    reach(policy([("llm", connector(kind, &server.url("/v1"), auth))]))
}

#[derive(Default)]
struct Heard(RefCell<Vec<Value>>);

impl Observers for Heard {
    fn tell<'a>(&'a self, text: Bytes) -> Local<'a, ()> {
        Box::pin(async move {
            self.0.borrow_mut().push(serde_json::from_slice(&text).expect("JSON"));
        })
    }
}

/// Runs a step as sent under this name, and gives what observers heard, too.
async fn ask_as(reach: &Reach, blobs: &Rc<LocalBlobs>, name: &str, inputs: Value) -> (Result<Value, Fault>, Vec<Value>) {
    let (id, entry) = find(name, false).expect("there");
    let inputs = inputs.to_string();
    let ask = Ask { policy: &reach.policy, tenant: "acme", name, inputs: inputs.as_bytes(), provider: "", narrow: &NOTHING };
    let checked = entry.check(&ask).expect("good inputs");
    assert_eq!(checked.denied, None);
    let heard = Rc::new(Heard::default());
    let cx = BlockCx {
        tenant: Text::from_static("acme"),
        key: Key([0; 16]),
        try_number: 1,
        left_ms: 60_000,
        needs: shards::step::Needs::default(),
        inputs: checked.inputs.unwrap_or_else(|| Bytes::from(inputs)),
        blobs: blobs.clone(),
        guardrails: Bytes::new(),
        cache: None,
        trace_id: None,
        observers: Some(heard.clone()),
    };
    let outputs = build_all(reach)[usize::from(id.0)].execute(cx).await;
    let outputs = outputs.map(|outputs| serde_json::from_slice(&outputs).expect("JSON"));
    if let Ok(outputs) = &outputs {
        super::super::tests::manifests::assert_described(entry, outputs);
    }
    let told = heard.0.borrow().clone();
    (outputs, told)
}

async fn ask(reach: &Reach, blobs: &Rc<LocalBlobs>, inputs: Value) -> (Result<Value, Fault>, Vec<Value>) {
    ask_as(reach, blobs, "ai.generate", inputs).await
}

fn details(fault: &Fault) -> Value {
    serde_json::from_slice(&fault.details).expect("details are JSON")
}

/// How a provider of this kind streams these pieces of a text, with its mark of the end.
fn stream_of(kind: Kind, pieces: &[&str]) -> Vec<String> {
    let mut events = Vec::new();
    match kind {
        Kind::OpenAi => {
            let chunk = |delta: Value, finish: Value| {
                let choices = json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
                format!("data: {}\n\n", json!({ "id": "c-1", "model": "m-1", "choices": choices, "usage": null }))
            };
            events.push(chunk(json!({ "role": "assistant", "content": "" }), Value::Null));
            events.extend(pieces.iter().map(|piece| chunk(json!({ "content": piece }), Value::Null)));
            events.push(chunk(json!({}), json!("stop")));
            let usage = json!({ "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14 });
            events.push(format!("data: {}\n\n", json!({ "id": "c-1", "model": "m-1", "choices": [], "usage": usage })));
            events.push("data: [DONE]\n\n".to_owned());
        }
        Kind::Anthropic => {
            let event = |value: Value| format!("event: {}\ndata: {value}\n\n", value["type"].as_str().expect("a type"));
            let usage = json!({ "input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 1 });
            events.push(event(json!({ "type": "message_start", "message": { "id": "c-1", "model": "m-1", "usage": usage } })));
            events.push(event(
                json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
            ));
            events.push(event(json!({ "type": "ping" })));
            for piece in pieces {
                let delta = json!({ "type": "text_delta", "text": piece });
                events.push(event(json!({ "type": "content_block_delta", "index": 0, "delta": delta })));
            }
            events.push(event(json!({ "type": "content_block_stop", "index": 0 })));
            let delta = json!({ "stop_reason": "end_turn", "stop_sequence": null });
            events.push(event(json!({ "type": "message_delta", "delta": delta, "usage": { "output_tokens": 4 } })));
            events.push(event(json!({ "type": "message_stop" })));
        }
        Kind::Ollama => {
            for piece in pieces {
                let message = json!({ "role": "assistant", "content": piece });
                events.push(format!("{}\n", json!({ "model": "m-1", "message": message, "done": false })));
            }
            let end = json!({
                "model": "m-1", "message": { "role": "assistant", "content": "" }, "done": true, "done_reason": "stop",
                "prompt_eval_count": 10, "eval_count": 4,
            });
            events.push(format!("{end}\n"));
        }
    }
    events
}

fn media_type(kind: Kind) -> &'static str {
    if kind == Kind::Ollama { "application/x-ndjson" } else { "text/event-stream" }
}

/// A head whose body comes in chunks.
fn head(kind: Kind) -> Act {
    Act::say(format!("HTTP/1.1 200 OK\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n", media_type(kind)))
}

fn chunk(text: &str) -> Act {
    Act::say(format!("{:x}\r\n{text}\r\n", text.len()))
}

/// A whole exchange in which each event comes by itself.
fn streams(kind: Kind, pieces: &[&str]) -> Vec<Act> {
    let mut script = vec![Act::Hear, head(kind)];
    for event in stream_of(kind, pieces) {
        script.extend([chunk(&event), Act::Wait(2)]);
    }
    script.extend([Act::say("0\r\n\r\n"), Act::Last]);
    script
}
