//! What comes back, as outputs: read under the step's limits, decoded, freed of secrets, and written as JSON or into a blob.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::select;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::{Method, Version};
use serde_json::json;
use shards::block::Blobs;
use shards::ids::hex;
use shards::outcome::{Code, Effected, Fault};
use shards::runtime::rt;
use shards::step::EffectClass;

use crate::net::client::{Answer, Timing, is_safe};
use crate::net::decode::{DecodeError, Decoder};
use crate::net::error::NetError;
use crate::secrets::Redaction;

use super::super::outputs::{is_sound, json as json_text, push_base64, push_text};
use super::fault;
use super::request::{Inline, Request};

/// What of an unexpected answer's body its error keeps, in bytes.
const EXCERPT_BYTES: usize = 2 << 10;
/// How long it waits for that.
const EXCERPT_WAIT: Duration = Duration::from_millis(200);
/// Reserved at once for a body that a result carries, in bytes.
const INLINE_RESERVE: u64 = 256 << 10;
/// The longest that another side's wish to be left alone is passed on, in milliseconds.
pub(in crate::blocks) const RETRY_AFTER_MS_MAX: u64 = 24 * 3_600_000;
/// Statuses by which a server says that it has not done what was asked.
const NOT_DONE: [u16; 16] = [400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 417, 421, 425, 426, 428, 429];

/// An answer that a result carries.
pub(super) async fn show(
    mut answer: Answer,
    request: &Request<'_>,
    form: Inline,
    redaction: &Redaction,
    elapsed_us: impl Fn() -> u64,
) -> Result<Bytes, Fault> {
    let body = body(&mut answer, request.bytes_max).await.map_err(|error| fault::of(&error))?;
    let body = redaction.apply(&body).map_or(body, Bytes::from);
    let mut out = head(&answer, body.len() as u64, redaction, elapsed_us());
    out.reserve(body.len() + body.len() / 2);
    match form {
        Inline::None => {}
        Inline::Bytes => push_base64(&mut out, "bytes", &body).await,
        Inline::Text => {
            if !push_text(&mut out, "text", &body).await {
                return Err(unlike("text in UTF-8"));
            }
        }
        Inline::Json => {
            if !push_json(&mut out, &body) {
                return Err(unlike("JSON"));
            }
        }
        Inline::Auto => {
            let shown = (is_json(&answer.headers) && push_json(&mut out, &body)) || push_text(&mut out, "text", &body).await;
            if !shown {
                push_base64(&mut out, "bytes", &body).await;
            }
        }
    }
    out.push(b'}');
    Ok(Bytes::from(out))
}

/// An answer that goes into one of the tenant's blobs, piece by piece.
pub(super) async fn save(
    (blobs, tenant): (&dyn Blobs, &str),
    mut answer: Answer,
    request: &Request<'_>,
    path: &str,
    overwrite: bool,
    redaction: &Redaction,
    elapsed_us: impl Fn() -> u64,
) -> Result<Bytes, Fault> {
    let mut blob = blobs.create(tenant, path, overwrite).await?;
    let mut decoder = decoder(&answer, request.bytes_max).map_err(|error| fault::of(&error.into()))?;
    while let Some(piece) = answer.piece().await.map_err(|error| fault::of(&error))? {
        let piece = decoder.push(piece).await.map_err(|error| fault::of(&error.into()))?;
        if !piece.is_empty() {
            blob.write(piece).await?;
        }
    }
    let rest = decoder.finish().map_err(|error| fault::of(&error.into()))?;
    if !rest.is_empty() {
        blob.write(rest).await?;
    }
    let stored = blob.finish().await?;
    let mut out = head(&answer, stored.size, redaction, elapsed_us());
    let blob = json!({ "path": path, "size": stored.size, "sha256": hex(&stored.sha256), "created": stored.created });
    out.extend_from_slice(format!(",\"blob\":{blob}}}").as_bytes());
    Ok(Bytes::from(out))
}

/// An answer that is not what the step expects, as its fault: with the status and the beginning of what was said.
pub(super) async fn unexpected(
    mut answer: Answer,
    redaction: &Redaction,
    effect: EffectClass,
    method: &Method,
    wall_ms: u64,
) -> Fault {
    let status = answer.status;
    let excerpt = excerpt(&mut answer).await;
    let mut excerpt = redaction.apply(&excerpt).unwrap_or(excerpt);
    // It may end in the middle of a secret.
    excerpt.truncate(excerpt.len() - redaction.begun(&excerpt));
    let mut details = json!({ "status": status.as_u16(), "url": shown_url(&answer) });
    let mut text = String::from_utf8_lossy(&excerpt).into_owned();
    if text.len() > EXCERPT_BYTES {
        text.truncate(text.floor_char_boundary(EXCERPT_BYTES));
    }
    if !text.is_empty() {
        details["body"] = json!(text);
    }
    let (code, sentence) = match status.as_u16() {
        408 | 429 => (Code::ResourceUnavailable, "The host asks to be left alone for now."),
        500.. => (Code::Http5xx, "The host answered with a server error."),
        _ => (Code::HttpError, "The host's answer is not what the step expects."),
    };
    let mut fault = Fault::new(code, sentence);
    if code.retryable() {
        fault.retry_after_ms = answer.headers.get(RETRY_AFTER).and_then(|value| retry_after_ms(value.to_str().ok()?, wall_ms));
        if let Some(ms) = fault.retry_after_ms {
            details["retry_after_ms"] = json!(ms);
        }
    }
    // Behind a redirect it is another server that says so, or the same one of another request.
    let refused = NOT_DONE.contains(&status.as_u16()) && answer.redirects == 0;
    let done = effect != EffectClass::Pure && !is_safe(method) && !refused;
    let effect = if done { Effected::Unknown } else { Effected::None };
    fault.with_details(details.to_string()).with_effect(effect)
}

/// The whole body, decoded; at most `bytes_max`.
pub(in crate::blocks) async fn body(answer: &mut Answer, bytes_max: u64) -> Result<Bytes, NetError> {
    let mut decoder = decoder(answer, bytes_max)?;
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(piece) = answer.piece().await? {
        let piece = decoder.push(piece).await?;
        // Most bodies come in one piece, which is kept as it came.
        if first.is_empty() && all.is_empty() {
            first = piece;
            continue;
        }
        if !first.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&piece);
    }
    let rest = decoder.finish()?;
    if all.is_empty() && rest.is_empty() {
        return Ok(first);
    }
    all.extend_from_slice(&first);
    all.extend_from_slice(&rest);
    Ok(all.freeze())
}

/// What undoes the answer's encoding, at most `bytes_max` of it.
pub(in crate::blocks) fn decoder(answer: &Answer, bytes_max: u64) -> Result<Decoder, DecodeError> {
    // The library undoes `chunked` and nothing else, and takes whatever else is named for none.
    for coding in answer.headers.get_all(TRANSFER_ENCODING) {
        if !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(DecodeError::Unknown(String::from_utf8_lossy(coding.as_bytes()).into_owned()));
        }
    }
    if answer.headers.get_all(TRANSFER_ENCODING).iter().count() > 1 {
        return Err(DecodeError::Unknown("chunked, chunked".to_owned()));
    }
    let mut encodings = answer.headers.get_all(CONTENT_ENCODING).iter();
    let encoding = match (encodings.next(), encodings.next()) {
        (None, _) => None,
        (Some(one), None) => Some(one.to_str().map_err(|_| DecodeError::Unknown(String::new()))?),
        (Some(_), Some(_)) => return Err(DecodeError::Unknown("more than one".to_owned())),
    };
    answer.decoder(encoding, bytes_max)
}

/// The beginning of a body, as far as it comes soon and can be read: what went wrong is told in any case.
pub(in crate::blocks) async fn excerpt(answer: &mut Answer) -> Vec<u8> {
    let Ok(mut decoder) = decoder(answer, 4 * EXCERPT_BYTES as u64) else { return Vec::new() };
    let mut excerpt = Vec::new();
    let reading = async {
        while excerpt.len() < EXCERPT_BYTES {
            let Ok(Some(piece)) = answer.piece().await else { break };
            let end = piece.len().min(2 * EXCERPT_BYTES);
            match decoder.push(piece.slice(..end)).await {
                Ok(piece) => excerpt.extend_from_slice(&piece),
                Err(_) => break,
            }
        }
    };
    select(Box::pin(reading), pin!(rt::sleep(EXCERPT_WAIT))).await;
    excerpt
}

/// The outputs up to the body: status, version, headers, URL, size and timing. The object is left open.
pub(super) fn head(answer: &Answer, size: u64, redaction: &Redaction, elapsed_us: u64) -> Vec<u8> {
    let Timing { dns_us, connect_us, tls_us, first_byte_us } = answer.timing;
    let body_us = elapsed_us.saturating_sub(dns_us + connect_us + tls_us + first_byte_us);
    // In hundredths: a float's own text would have many more digits.
    let ms = |us: u64| format!("{}.{:02}", us / 1_000, us % 1_000 / 10);
    let version = match answer.version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    let mut out = Vec::with_capacity(512 + size.min(INLINE_RESERVE) as usize);
    let (status, ok) = (answer.status.as_u16(), answer.status.is_success());
    let (url, redirects) = (shown_url(answer), answer.redirects);
    out.extend_from_slice(
        format!("{{\"status\":{status},\"ok\":{ok},\"version\":\"{version}\",\"redirects\":{redirects},\"url\":").as_bytes(),
    );
    out.extend_from_slice(&json_text(&url));
    out.extend_from_slice(b",\"headers\":");
    push_headers(&mut out, &answer.headers, redaction);
    let [dns, connect, tls, first_byte, body] = [dns_us, connect_us, tls_us, first_byte_us, body_us].map(ms);
    out.extend_from_slice(
        format!(
            ",\"size\":{size},\"timing_ms\":{{\"dns\":{dns},\"connect\":{connect},\"tls\":{tls},\"first_byte\":{first_byte},\"body\":{body}}}"
        )
        .as_bytes(),
    );
    out
}

/// Where the answer came from. Its query stays away: it may hold what should not be kept.
fn shown_url(answer: &Answer) -> String {
    format!("{}{}", answer.target, answer.target.path())
}

/// Appends the headers as an object by name; one that came more than once is a list.
fn push_headers(out: &mut Vec<u8>, headers: &HeaderMap, redaction: &Redaction) {
    let push = |out: &mut Vec<u8>, value: &hyper::header::HeaderValue| {
        let clean = redaction.apply(value.as_bytes());
        let text = String::from_utf8_lossy(clean.as_deref().unwrap_or(value.as_bytes()));
        out.extend_from_slice(&json_text(&*text));
    };
    out.push(b'{');
    for (number, name) in headers.keys().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&json_text(name.as_str()));
        out.push(b':');
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(one), None) => push(out, one),
            (first, second) => {
                out.push(b'[');
                for (number, value) in first.into_iter().chain(second).chain(values).enumerate() {
                    if number > 0 {
                        out.push(b',');
                    }
                    push(out, value);
                }
                out.push(b']');
            }
        }
    }
    out.push(b'}');
}

/// Appends `,"json":…`, the text as it came, if it is JSON.
fn push_json(out: &mut Vec<u8>, body: &[u8]) -> bool {
    if !is_sound(body) {
        return false;
    }
    out.extend_from_slice(b",\"json\":");
    out.extend_from_slice(body.trim_ascii());
    true
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = media_type(headers);
    media_type == "application/json" || media_type.ends_with("+json")
}

/// The media type without its parameters, in lower case; empty where none can be read.
pub(in crate::blocks) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn unlike(what: &str) -> Fault {
    let fault = Fault::new(Code::ExecutionFailed, "The answer's body is not what the step takes it for.");
    fault.with_details(json!({ "pointer": "/response", "rule": format!("the body is {what}") }).to_string())
}

/// `Retry-After` in milliseconds from now: seconds, or a date.
pub(in crate::blocks) fn retry_after_ms(value: &str, wall_ms: u64) -> Option<u64> {
    let ms = match value.trim().parse::<u64>() {
        Ok(seconds) => seconds.saturating_mul(1_000),
        Err(_) => {
            let at = httpdate::parse_http_date(value.trim()).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            (at.as_millis() as u64).saturating_sub(wall_ms)
        }
    };
    Some(ms.clamp(1, RETRY_AFTER_MS_MAX))
}
