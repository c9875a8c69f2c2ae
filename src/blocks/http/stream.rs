//! An answer told piece by piece, as progress events in order, and an end marker: server-sent events one each, any other text in
//! pieces that are whole characters, anything else in base64. The result then holds how much there was, and not the body.
//!
//! The last piece is told before the step ends. A try that follows another begins anew; its events carry its number.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};
use shards::block::BlockCx;
use shards::outcome::{Code, Fault};

use crate::net::client::Answer;
use crate::secrets::Redaction;

use super::answer;
use super::fault;
use super::request::Request;
use super::sse::Splitter;

/// The largest piece that one event carries, in bytes: as JSON or base64 it stays well below what a server takes.
const PIECE_BYTES_MAX: usize = 48 << 10;

/// What the pieces of a body are.
enum Kind {
    Events(Splitter),
    Text,
    Bytes,
}

/// Tells the body and gives the outputs.
pub(super) async fn tell(
    cx: &BlockCx,
    mut answer: Answer,
    request: &Request<'_>,
    redaction: Redaction,
    elapsed_us: impl Fn() -> u64,
) -> Result<Bytes, Fault> {
    let mut decoder = answer::decoder(&answer, request.bytes_max).map_err(|error| fault::of(&error.into()))?;
    let mut teller = Teller { cx, kind: kind(&answer), redaction: &redaction, rest: Vec::new(), told: 0, size: 0 };
    while let Some(piece) = answer.piece().await.map_err(|error| fault::of(&error))? {
        let piece = decoder.push(piece).await.map_err(|error| fault::of(&error.into()))?;
        teller.take(&piece).await?;
    }
    let rest = decoder.finish().map_err(|error| fault::of(&error.into()))?;
    teller.take(&rest).await?;
    let (told, size) = teller.end().await;
    let mut out = answer::head(&answer, size, &redaction, elapsed_us());
    out.extend_from_slice(format!(",\"streamed\":{told}}}").as_bytes());
    Ok(Bytes::from(out))
}

fn kind(answer: &Answer) -> Kind {
    match answer::media_type(&answer.headers).as_str() {
        "text/event-stream" => Kind::Events(Splitter::default()),
        "application/json" | "application/x-ndjson" | "application/jsonl" | "application/xml" => Kind::Text,
        other if other.starts_with("text/") || other.ends_with("+json") || other.ends_with("+xml") => Kind::Text,
        _ => Kind::Bytes,
    }
}

/// Cuts the body and tells it. Lives on its core.
struct Teller<'a> {
    cx: &'a BlockCx,
    kind: Kind,
    redaction: &'a Redaction,
    /// What cannot be told yet: the beginning of a character or, maybe, of a secret.
    rest: Vec<u8>,
    told: u64,
    size: u64,
}

impl Teller<'_> {
    async fn take(&mut self, piece: &[u8]) -> Result<(), Fault> {
        self.size += piece.len() as u64;
        self.rest.extend_from_slice(piece);
        // A secret may stand across two pieces: it is looked for in all that is here, and what could be its beginning waits.
        if let Some(clean) = self.redaction.apply(&self.rest) {
            self.rest = clean;
        }
        let kept = self.redaction.begun(&self.rest);
        if let Kind::Events(_) = self.kind {
            return self.events(self.rest.len() - kept).await;
        }
        while self.rest.len() > kept {
            let end = (self.rest.len() - kept).min(PIECE_BYTES_MAX);
            if !self.piece(end).await {
                break;
            }
        }
        Ok(())
    }

    /// Tells the first `end` bytes, as far as they are whole. Whether anything was.
    async fn piece(&mut self, end: usize) -> bool {
        let whole = match self.kind {
            Kind::Text => match std::str::from_utf8(&self.rest[..end]) {
                Ok(_) => end,
                // The beginning of a character waits for its end; what is none is shown as such.
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                Err(_) => end,
            },
            _ => end,
        };
        if whole == 0 {
            return false;
        }
        let piece: Vec<u8> = self.rest.drain(..whole).collect();
        let chunk = match self.kind {
            Kind::Text => json!({ "text": String::from_utf8_lossy(&piece) }),
            _ => json!({ "data": { "bytes": BASE64.encode(&piece) } }),
        };
        self.tell(chunk).await;
        true
    }

    async fn events(&mut self, ready: usize) -> Result<(), Fault> {
        let piece: Vec<u8> = self.rest.drain(..ready).collect();
        let Kind::Events(splitter) = &mut self.kind else { return Ok(()) };
        let events = splitter.push(&piece).map_err(|_| {
            let details = json!({ "pointer": "/response", "rule": "server-sent events of at most 1 MiB" });
            Fault::new(Code::ExecutionFailed, "An event of the answer is larger than any may be.")
                .with_details(details.to_string())
        })?;
        for event in events {
            let mut data = json!({ "event": event.kind, "data": event.data });
            if let Some(id) = event.id {
                data["id"] = json!(id);
            }
            self.tell(json!({ "data": data })).await;
        }
        Ok(())
    }

    async fn tell(&mut self, chunk: Value) {
        self.cx.tell(Bytes::from(chunk.to_string())).await;
        self.told += 1;
    }

    /// Tells what is left, and the end. How many pieces there were, and how many bytes.
    async fn end(mut self) -> (u64, u64) {
        if let Kind::Events(_) = self.kind {
            // An event without its end is none, as the standard has it.
            self.rest.clear();
        }
        while !self.rest.is_empty() {
            let end = self.rest.len().min(PIECE_BYTES_MAX);
            if !self.piece(end).await {
                // Cut in the middle of a character: it is shown as what it is.
                let lost: Vec<u8> = self.rest.drain(..).collect();
                self.tell(json!({ "text": String::from_utf8_lossy(&lost) })).await;
            }
        }
        let (told, size) = (self.told, self.size);
        self.tell(json!({ "fraction": 1.0, "message": "end", "data": { "pieces": told, "size": size } })).await;
        (told, size)
    }
}
