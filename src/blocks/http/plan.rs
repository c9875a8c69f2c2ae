//! What an `http.request` would send, and where: the request as it is rendered, with secrets as their references. A body stands as
//! its size and digest. No name is looked up and nothing is read, a body that lies in a blob included.

use hyper::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use shards::ids::hex;
use shards::outcome::Fault;

use super::super::Ask;
use super::super::sandbox::{Planned, places};
use super::request::{Content, Form, Inline, Request};
use super::{AGENT, decode};
use crate::ops::logs::redact::{REDACTED, is_secret};

pub(in crate::blocks) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let mut request = Request::read(ask.inputs)?;
    request.keep_to(&ask.narrow.guardrails)?;
    let route = ask.policy.route(ask.tenant, request.connector.as_deref()).map_err(|refused| refused.fault())?;
    let target = request.target(&route, &ask.narrow.guardrails.guard(route.guard))?;
    let mut headers = request.headers.clone();
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static(decode::ACCEPTED));
    let body = match &request.content {
        Content::None => Value::Null,
        Content::Bytes(bytes, media_type) => {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(media_type));
            json!({ "bytes": bytes.len(), "sha256": hex(&Sha256::digest(bytes)) })
        }
        Content::Blob { path, .. } => {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
            json!({ "blob": path })
        }
    };
    let mut shown: Map<String, Value> = Map::new();
    for name in headers.keys() {
        shown.insert(name.as_str().to_owned(), header(name, headers.get_all(name)));
    }
    let mut planned = Planned::of(json!({
        "request": {
            "method": request.method.as_str(), "url": places::shown(&target), "headers": shown, "body": body,
            "redirects_max": request.redirects_max, "bytes_max": request.bytes_max,
        },
    }));
    planned = planned.at("to", places::way(ask, &route, &target));
    if let Content::Blob { connector, .. } = &request.content {
        planned = planned.at("body_from", places::store(ask, connector.as_deref(), "blob_connector")?);
    }
    let mut outputs = json!({
        "status": request.expect.usual(), "ok": true, "version": "1.1", "url": target.as_str().split('?').next(), "redirects": 0,
        "headers": {}, "size": 0, "timing_ms": { "dns": 0, "connect": 0, "tls": 0, "first_byte": 0, "body": 0 },
    });
    match &request.form {
        Form::Blob { path, overwrite, connector } => {
            let precondition = if *overwrite { "none: what stands there is replaced" } else { "no other content stands there" };
            planned.does.insert("write_answer".to_owned(), json!({ "path": path, "precondition": precondition }));
            planned = planned.at("write_answer_to", places::store(ask, connector.as_deref(), "response_blob_connector")?);
            outputs["blob"] = json!({ "path": path, "size": 0, "sha256": hex(&Sha256::digest(b"")), "created": true });
        }
        Form::Stream => outputs["streamed"] = 0.into(),
        Form::Inline(Inline::Json | Inline::Auto) => outputs["json"] = json!({}),
        Form::Inline(Inline::Text) => outputs["text"] = "".into(),
        Form::Inline(Inline::Bytes) => outputs["bytes"] = "".into(),
        Form::Inline(Inline::None) => {}
    }
    planned.notes.push(places::NOT_LOOKED_UP);
    Ok(planned.with_outputs(outputs))
}

/// A header as it may be shown: one by a secret's name, or a cookie, is the sender's own business.
fn header<'h>(name: &HeaderName, values: impl IntoIterator<Item = &'h HeaderValue>) -> Value {
    if is_secret(name.as_str()) || name.as_str().contains("cookie") {
        return REDACTED.into();
    }
    let mut texts: Vec<Value> = values.into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
    if texts.len() == 1 { texts.remove(0) } else { Value::Array(texts) }
}
