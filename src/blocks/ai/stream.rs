//! A streamed answer: its text told as progress events in order while it comes, with a mark at the end; all of it in the result.
//!
//! What comes at once is told at once. A stream without the mark of its own end is no answer. A try that follows another begins
//! anew; its events carry its number.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use serde_json::json;
use shards::block::BlockCx;
use shards::outcome::Fault;
use shards::runtime::rt;

use crate::net::client::Answer;
use crate::policy::narrow::Guardrails;
use crate::policy::providers::Kind;
use crate::secrets::Redaction;

use super::super::http::answer::decoder;
use super::super::http::sse::Splitter;
use super::refusal::Asked;
use super::reply::{Reply, Step, Wrong};

/// The largest piece of text that one event carries, in bytes.
const PIECE_BYTES_MAX: usize = 48 << 10;
/// The largest stream, decoded, in bytes: each token has its own event around it.
const STREAM_BYTES_MAX: u64 = 256 << 20;
/// The longest line of a stream of lines, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// How long a connection is waited for that ends after the mark, so that it can serve again.
const END_WAIT: Duration = Duration::from_millis(50);

/// Takes a stream apart and gathers what it says. Lives on its core.
pub(super) struct Reader {
    kind: Kind,
    frames: Frames,
    pub(super) reply: Reply,
    /// Text that nobody was told yet.
    pub(super) fresh: String,
    pub(super) ended: bool,
}

enum Frames {
    Events(Splitter),
    /// JSON, one a line.
    Lines(Vec<u8>),
}

impl Reader {
    pub(super) fn new(kind: Kind) -> Self {
        let frames = match kind {
            Kind::OpenAi | Kind::Anthropic => Frames::Events(Splitter::default()),
            Kind::Ollama => Frames::Lines(Vec::new()),
        };
        Reader { kind, frames, reply: Reply::default(), fresh: String::new(), ended: false }
    }

    /// Takes the next piece, wherever it is cut. What follows the end is not looked at.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Wrong> {
        match &mut self.frames {
            Frames::Events(splitter) => {
                let events = splitter.push(piece).map_err(|_| Wrong::TooLarge)?;
                for event in events {
                    self.take(&event.data)?;
                }
            }
            Frames::Lines(rest) => {
                rest.extend_from_slice(piece);
                let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
                    return if rest.len() > LINE_BYTES_MAX { Err(Wrong::TooLarge) } else { Ok(()) };
                };
                let whole: Vec<u8> = rest.drain(..=end).collect();
                for line in whole.split(|byte| *byte == b'\n') {
                    self.take(&String::from_utf8_lossy(line))?;
                }
            }
        }
        Ok(())
    }

    /// There is no more: a last line needs no end of its own.
    pub(super) fn finish(&mut self) -> Result<(), Wrong> {
        let Frames::Lines(rest) = &mut self.frames else { return Ok(()) };
        let rest = std::mem::take(rest);
        match serde_json::from_slice::<serde::de::IgnoredAny>(&rest) {
            Ok(_) => self.take(&String::from_utf8_lossy(&rest)),
            // Half of one says nothing.
            Err(_) => Ok(()),
        }
    }

    fn take(&mut self, data: &str) -> Result<(), Wrong> {
        if self.ended || data.trim().is_empty() {
            return Ok(());
        }
        self.ended = self.reply.event(self.kind, data, &mut self.fresh)? == Step::End;
        Ok(())
    }
}

/// Tells the answer as it comes and gives what it said, with how many pieces were told.
pub(super) async fn tell(cx: &BlockCx, mut answer: Answer, kind: Kind, asked: &Asked<'_>) -> Result<(Reply, u64), Fault> {
    let bytes_max = Guardrails::read(&cx.guardrails)?.bytes_max(STREAM_BYTES_MAX);
    let mut decoder = decoder(&answer, bytes_max).map_err(|error| asked.network(&error.into()))?;
    let mut reader = Reader::new(kind);
    let mut teller = Teller { cx, redaction: asked.redaction, rest: Vec::new(), told: 0, size: 0 };
    while !reader.ended {
        let piece = match answer.piece().await.map_err(|error| asked.network(&error))? {
            Some(piece) => decoder.push(piece).await.map_err(|error| asked.network(&error.into()))?,
            None => break,
        };
        let pushed = reader.push(&piece);
        teller.take(&std::mem::take(&mut reader.fresh)).await;
        pushed.map_err(|wrong| asked.wrong(&wrong))?;
    }
    if !reader.ended {
        let rest = decoder.finish().map_err(|error| asked.network(&error.into()))?;
        reader.push(&rest).and_then(|()| reader.finish()).map_err(|wrong| asked.wrong(&wrong))?;
        teller.take(&std::mem::take(&mut reader.fresh)).await;
    }
    if !reader.ended {
        return Err(asked.cut(reader.reply.text.len()));
    }
    // Whoever keeps the line open after the end is hung up on.
    let rest = async { while let Ok(Some(_)) = answer.piece().await {} };
    select(pin!(rest), pin!(rt::sleep(END_WAIT))).await;
    let told = teller.end().await;
    reader.reply.finish.get_or_insert(super::reply::Finish::Other);
    Ok((reader.reply, told))
}

/// Tells the text of an answer that came whole although a stream was asked for.
pub(super) async fn tell_whole(cx: &BlockCx, text: &str, redaction: &Redaction) -> u64 {
    let mut teller = Teller { cx, redaction, rest: Vec::new(), told: 0, size: 0 };
    teller.take(text).await;
    teller.end().await
}

/// Cuts the text and tells it. Lives on its core.
struct Teller<'a> {
    cx: &'a BlockCx,
    redaction: &'a Redaction,
    /// What may be the beginning of a secret.
    rest: Vec<u8>,
    told: u64,
    size: u64,
}

impl Teller<'_> {
    async fn take(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.rest.extend_from_slice(text.as_bytes());
        // A secret may come in two pieces: it is looked for in all that is here, and what could be its beginning waits.
        if let Some(clean) = self.redaction.apply(&self.rest) {
            self.rest = clean;
        }
        self.flush(self.redaction.begun(&self.rest)).await;
    }

    /// Tells all but the last `kept` bytes.
    async fn flush(&mut self, kept: usize) {
        while self.rest.len() > kept {
            let end = (self.rest.len() - kept).min(PIECE_BYTES_MAX);
            let whole = match std::str::from_utf8(&self.rest[..end]) {
                Ok(_) => end,
                Err(error) if error.valid_up_to() > 0 => error.valid_up_to(),
                Err(_) => return,
            };
            let piece: Vec<u8> = self.rest.drain(..whole).collect();
            let text = String::from_utf8_lossy(&piece);
            self.size += text.len() as u64;
            let chunk = json!({ "text": text });
            self.told += u64::from(self.cx.tell(Bytes::from(chunk.to_string())).await);
        }
    }

    /// Tells what is left, and the end. How many pieces there were.
    async fn end(mut self) -> u64 {
        self.flush(0).await;
        let (told, size) = (self.told, self.size);
        let end = json!({ "fraction": 1.0, "message": "end", "data": { "pieces": told, "size": size } });
        self.cx.tell(Bytes::from(end.to_string())).await;
        told
    }
}

/// Races work against a bound in milliseconds; `None`: it was late.
pub(super) async fn bounded<T>(work: impl Future<Output = T>, ms: Option<u64>) -> Option<T> {
    let work = pin!(work);
    let Some(ms) = ms else { return Some(work.await) };
    match select(work, pin!(rt::sleep(Duration::from_millis(ms)))).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}
