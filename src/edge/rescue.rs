//! Gets past a message that breaks the connection: its headers are such that async-nats hangs up, or dies, on reading them.
//!
//! Its sender need not be hostile, a stray byte does it; the server would deliver it for ever, and break us each time. After a
//! break for no visible reason the deliveries that are out are read through the API, where headers come encoded; the
//! unreadable ones are handed to their shard with headers as far as they can be read, and settled there like any other.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use shards::ids::Text;
use shards::step::{Delivery, Headers, Origin};

use super::limits::RESCUE_LOOKS_MAX;
use super::nats::Link;
use super::streams::{self, Consumer, Trouble};
use super::token;

/// The deliveries of this consumer that cannot come over the connection.
pub(crate) async fn search(link: &Link, consumer: &Consumer, index: u16) -> Result<Vec<Delivery>, Trouble> {
    let Some((mut next, last)) = streams::unsettled(link, consumer).await? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for _ in 0..RESCUE_LOOKS_MAX {
        if next > last {
            break;
        }
        let question = json!({ "seq": next, "next_by_subj": consumer.filter.as_deref().unwrap_or(">") });
        let Some(message) = streams::stored(link, &consumer.stream, &question).await? else { break };
        next = message.sequence + 1;
        let headers = STANDARD.decode(&message.headers).unwrap_or_default();
        if headers.is_empty() || readable(&headers) {
            continue;
        }
        let stored_ns: i128 = message.time.parse::<jiff::Timestamp>().map_or(0, |at| at.as_nanosecond());
        // The server finds a delivery by its stream sequence; the other fields are what it would have said, or zero.
        let Consumer { stream, durable, .. } = consumer;
        let reply = format!("$JS.ACK.{stream}.{durable}.2.{}.{}.{stored_ns}.0", message.sequence, message.sequence);
        let Some(token) = token::parse(&reply, index) else { continue };
        tracing::warn!(
            stream,
            sequence = message.sequence,
            subject = message.subject,
            "a message with unreadable headers is fetched by hand"
        );
        found.push(Delivery {
            origin: Origin::Stream(token),
            subject: Text::from(message.subject),
            headers: legible(&headers),
            body: STANDARD.decode(&message.body).unwrap_or_default().into(),
            reply: None,
        });
    }
    Ok(found)
}

/// Whether async-nats 0.51 can read these headers.
fn readable(block: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(block) else { return false };
    let mut lines = text.lines();
    let Some(status) = lines.next().and_then(|line| line.strip_prefix("NATS/1.0")) else { return false };
    let status = status.split_whitespace().next().unwrap_or("100");
    if status.len() != 3 || !status.parse::<u16>().is_ok_and(|code| code >= 100) {
        return false;
    }
    let mut continued = false;
    for line in lines.filter(|line| !line.is_empty()) {
        let folded = continued && line.starts_with(char::is_whitespace);
        continued = true;
        let name_fits = line.split_once(':').is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_graphic()));
        if line.contains('\r') || !(folded || name_fits) {
            return false;
        }
    }
    true
}

/// What can be read of headers: the rest becomes U+FFFD, or is left out.
fn legible(block: &[u8]) -> Headers {
    let text = String::from_utf8_lossy(block);
    let mut headers: Headers = Vec::new();
    for line in text.lines().skip(1) {
        if let Some((name, value)) = line.split_once(':') {
            headers.push((Text::from(name), Text::from(value.trim().replace('\r', "\u{fffd}"))));
        }
    }
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_the_client_is_told_from_what_does_not() {
        for good in [
            "NATS/1.0\r\n\r\n",
            "NATS/1.0\r\nA: b\r\nC:d\r\n\r\n",
            "NATS/1.0 408 x\r\nA: b\r\n  more\r\n\r\n",
            "NATS/1.0\r\n: x\r\n\r\n",
        ] {
            assert!(readable(good.as_bytes()), "{good:?}");
        }
        let bad: [&[u8]; 5] = [
            b"NATS/1.0\r\nX: \xff\r\n\r\n",
            b"NATS/1.0\r\nX: a\rb\r\n\r\n",
            b"NATS/1.0\r\nX Y: b\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0 abc\r\n\r\n",
        ];
        for bad in bad {
            assert!(!readable(bad), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn the_legible_part_is_kept() {
        let headers = legible(b"NATS/1.0\r\ntenant_id: acme\r\nX: \xff\r\nno colon\r\n\r\n");
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(headers, [("X", "\u{fffd}"), ("tenant_id", "acme")]);
    }
}
