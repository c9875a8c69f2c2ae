//! The small things that are written on the wire: settlements, and headers as async-nats wants them.

use async_nats::header::{HeaderName, IntoHeaderName, NATS_MESSAGE_ID};
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use shards::runtime::ports::Parcel;
use shards::step::Settle;

use super::limits::REPLY_BYTES_MAX;
use super::native::CREATE_ONLY;

/// The body that settles a delivery so.
pub(crate) fn settlement(how: Settle) -> Bytes {
    match how {
        Settle::Ack => Bytes::from_static(b"+ACK"),
        Settle::Nak { delay_ms } => nak_body(delay_ms),
        // With a reason behind it 2.9 servers ignore it.
        Settle::Term => Bytes::from_static(b"+TERM"),
        Settle::Progress => Bytes::from_static(b"+WPI"),
    }
}

/// The body that hands a delivery back.
pub(crate) fn nak_body(delay_ms: u32) -> Bytes {
    Bytes::from(format!("-NAK {{\"delay\":{}}}", u64::from(delay_ms) * 1_000_000))
}

/// Whether an answer may go to the reply subject of a message: a literal subject under the inboxes that NATS clients make for
/// their questions, and not one of `ours`, where it would look like a confirmation. Whoever could make us publish on any other
/// subject would have our permissions.
pub(crate) fn is_inbox(reply: &str, ours: &str) -> bool {
    let literal =
        |token: &str| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) && !matches!(token, "*" | ">");
    let inbox = reply.strip_prefix("_INBOX.").is_some_and(|rest| rest.split('.').all(literal));
    inbox
        && reply.len() <= REPLY_BYTES_MAX
        && reply.strip_prefix(ours).is_none_or(|rest| !rest.is_empty() && !rest.starts_with('.'))
}

/// Headers as async-nats wants them. One that NATS cannot carry (a line break in a value) is left out, not sent broken; one that
/// only a stream heeds goes to a stream alone.
pub(crate) fn header_map(parcel: &Parcel, streamed: bool) -> HeaderMap {
    const VERSION: HeaderName = HeaderName::from_static("version");
    const TENANT_ID: HeaderName = HeaderName::from_static("tenant_id");
    const TRACE_ID: HeaderName = HeaderName::from_static("trace_id");
    let mut map = HeaderMap::new();
    for (name, value) in &parcel.headers {
        if !streamed && name == CREATE_ONLY {
            continue;
        }
        let known = match &**name {
            "Nats-Msg-Id" => Ok(NATS_MESSAGE_ID),
            "version" => Ok(VERSION),
            "tenant_id" => Ok(TENANT_ID),
            "trace_id" => Ok(TRACE_ID),
            other => other.parse::<HeaderName>(),
        };
        match (known, value.parse::<HeaderValue>()) {
            // Ours never repeat a name; `insert` hashes it once where `append` hashes it twice.
            (Ok(name), Ok(value)) => map.insert(name.into_header_name(), value),
            _ => tracing::warn!(%name, subject = %parcel.subject, "a header that NATS cannot carry is left out"),
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_to_inboxes_of_others_only() {
        let ours = "_INBOX.own";
        for good in ["_INBOX.a", "_INBOX.a.b.c", "_INBOX.owner.1", "_INBOX.other.own"] {
            assert!(is_inbox(good, ours), "{good}");
        }
        let long = format!("_INBOX.{}", "x".repeat(REPLY_BYTES_MAX));
        for bad in [
            "",
            "_INBOX",
            "_INBOX.",
            "_INBOX..a",
            "_INBOX.a.",
            "_INBOX.*",
            "_INBOX.a.>",
            "_INBOX.a b",
            "_INBOX.é",
            "_inbox.a",
            "_INBOXES.a",
            "caf.exec.result.v1",
            "$JS.ACK.s.c.1.2.3.4.5",
            "$JS.API.STREAM.DELETE.S",
            "_INBOX.own",
            "_INBOX.own.c.7",
            &long,
        ] {
            assert!(!is_inbox(bad, ours), "{bad}");
        }
    }

    #[test]
    fn only_a_stream_is_told_to_expect_nothing() {
        use shards::ids::Key;
        use shards::runtime::ports::{About, Outlet};
        let about =
            About { line: 0, call: 0, by_call: false, key: Key([0; 16]), status: None, replayed: false, boot: 0, tries: 0 };
        let headers = vec![("Nats-Msg-Id".into(), "r-1".into()), (CREATE_ONLY.into(), "0".into())];
        let (subject, body) = ("r".into(), Bytes::new());
        let parcel = Parcel { outlet: Outlet::Result, subject, headers, body, reply: None, confirm: None, about };
        for streamed in [true, false] {
            let map = header_map(&parcel, streamed);
            assert_eq!(map.get(CREATE_ONLY).map(HeaderValue::as_str), streamed.then_some("0"));
            assert_eq!(map.get("Nats-Msg-Id").map(HeaderValue::as_str), Some("r-1"));
        }
    }

    #[test]
    fn a_delay_is_told_in_nanoseconds() {
        assert_eq!(&nak_body(1_500)[..], br#"-NAK {"delay":1500000000}"#);
    }
}
