//! The small things that are written on the wire: settlements, and headers as async-nats wants them.

use async_nats::header::{HeaderName, IntoHeaderName, NATS_MESSAGE_ID};
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use shards::runtime::ports::Parcel;
use shards::step::Settle;

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

/// Headers as async-nats wants them. One that NATS cannot carry (a line break in a value) is left out, not sent broken.
pub(crate) fn header_map(parcel: &Parcel) -> HeaderMap {
    const VERSION: HeaderName = HeaderName::from_static("version");
    const TENANT_ID: HeaderName = HeaderName::from_static("tenant_id");
    const TRACE_ID: HeaderName = HeaderName::from_static("trace_id");
    let mut map = HeaderMap::new();
    for (name, value) in &parcel.headers {
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
    fn a_delay_is_told_in_nanoseconds() {
        assert_eq!(&nak_body(1_500)[..], br#"-NAK {"delay":1500000000}"#);
    }
}
