//! Dead letters in the server's streams, read through a consumer that acks nothing and is gone with the connection.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, context::GetStreamByNameErrorKind};
use futures_util::StreamExt;
use serde_json::json;

use crate::edge::native::OWN_PATTERNS;
use crate::edge::nats::{options, servers};
use crate::settings::{NatsMode, NatsSettings};

/// A server that does not answer is none.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Messages asked for at once.
const BATCH: usize = 500;
/// A batch that does not come in this time is taken for the end of a stream that lost messages meanwhile.
const BATCH_WITHIN: Duration = Duration::from_secs(5);

/// What is wanted of the streams.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// With bodies.
    pub(super) bodies: bool,
    /// Stored since then, Unix ms.
    pub(super) since_ms: Option<u64>,
}

/// A letter in a stream.
#[derive(Debug)]
pub(super) struct Found {
    /// Its id.
    pub(super) id: String,
    /// Its headers.
    pub(super) headers: HeaderMap,
    /// Where.
    pub(super) stream: String,
    /// And where there.
    pub(super) sequence: u64,
    /// When the stream stored it, Unix ms.
    pub(super) stored_ms: u64,
    /// Bytes of its body.
    pub(super) body_bytes: u64,
    /// It, where bodies are wanted.
    pub(super) body: Vec<u8>,
}

impl Found {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }
}

/// Gives every dead letter of every stream that takes some to `each`; how many such streams there are.
///
/// # Errors
/// Why the server could not be read, in words.
pub(super) fn read(nats: &NatsSettings, wanted: &Wanted, each: impl FnMut(Found)) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(look(nats, wanted, each))
}

async fn look(nats: &NatsSettings, wanted: &Wanted, mut each: impl FnMut(Found)) -> Result<usize, String> {
    if nats.mode == NatsMode::Core {
        return Ok(0);
    }
    let servers = servers(&nats.url).map_err(|error| error.to_string())?;
    let connecting = options(nats, "endstation-dlq").await.map_err(|error| error.to_string())?.connect(servers);
    let client = match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
        Ok(client) => client.map_err(|error| error.to_string())?,
        Err(_) => return Err("the server does not answer".to_owned()),
    };
    if !client.server_info().jetstream {
        return Ok(0);
    }
    let context = jetstream::new(client);
    let (mut count, mut names) = (0, Vec::new());
    for subject in [nats.dlq_subject.as_str(), OWN_PATTERNS[1]] {
        let name = match context.stream_by_subject(subject).await {
            Ok(name) => name,
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => continue,
            Err(error) => return Err(error.to_string()),
        };
        count += 1;
        names.push((name, subject.to_owned()));
    }
    for (name, subject) in names {
        read_stream(&context, &name, &subject, wanted, &mut each).await.map_err(|error| format!("stream {name}: {error}"))?;
    }
    Ok(count)
}

async fn read_stream(
    context: &jetstream::Context,
    name: &str,
    subject: &str,
    wanted: &Wanted,
    each: &mut impl FnMut(Found),
) -> Result<(), async_nats::Error> {
    let stream = context.get_stream(name).await?;
    // Where the server is asked for all, the caller leaves out what is older.
    let since = wanted.since_ms.and_then(|ms| {
        let at = jiff::Timestamp::from_millisecond(ms as i64).ok()?.to_string();
        serde_json::from_value(json!({"deliver_policy": "by_start_time", "opt_start_time": at})).ok()
    });
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        deliver_policy: since.unwrap_or(DeliverPolicy::All),
        filter_subject: subject.to_owned(),
        headers_only: !wanted.bodies,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let mut left = consumer.cached_info().num_pending;
    while left > 0 {
        let mut batch = consumer.fetch().max_messages(BATCH).expires(BATCH_WITHIN).messages().await?;
        let before = left;
        while let Some(message) = batch.next().await {
            let message = message?;
            left = left.saturating_sub(1);
            let info = message.info()?;
            let (sequence, stored_ms) = (info.stream_sequence, (info.published.unix_timestamp_nanos() / 1_000_000) as u64);
            let headers = message.headers.clone().unwrap_or_default();
            let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
            let size = text("Nats-Msg-Size").and_then(|size| size.parse().ok());
            let id = text("Nats-Msg-Id").unwrap_or_else(|| format!("{name}-{sequence}"));
            each(Found {
                id,
                stream: name.to_owned(),
                sequence,
                stored_ms,
                body_bytes: size.unwrap_or(message.payload.len() as u64),
                body: message.payload.to_vec(),
                headers,
            });
        }
        if left == before {
            break;
        }
    }
    Ok(())
}
