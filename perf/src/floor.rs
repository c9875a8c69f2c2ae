//! The floor: a pull consumer that keeps nothing. It sends the messages that the worker sends for each step, an ack message
//! and a result, and settles the delivery; bare, it sends the result alone. A process of its own, so that its processor time
//! is measured like the worker's.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;

use crate::message::{ACK, ASSIGN, RESULT, id_in};

/// Where the bare consumer works.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FloorArgs {
    /// The server.
    #[arg(long)]
    url: String,
    /// How results are sent.
    #[arg(long, value_enum)]
    results: Results,
    /// No ack message and no headers but a message id where a stream wants one.
    #[arg(long)]
    bare: bool,
}

/// How results are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Results {
    /// A core publish, nothing awaited, then the ack.
    Core,
    /// Into a stream with a message id; the ack follows the PubAck, many on their way at once.
    Stream,
}

/// PubAcks on their way at once.
const PUBACKS_IN_FLIGHT: usize = 1_024;

/// Pulls, answers and acks until it is killed.
pub(crate) async fn work(args: &FloorArgs) -> Result<()> {
    let client = async_nats::ConnectOptions::new().subscription_capacity(1 << 18).connect(&args.url).await?;
    let context = jetstream::new(client.clone());
    let name = context.stream_by_subject(ASSIGN).await.context("no stream over the assignments")?;
    let config = pull::Config {
        durable_name: Some("floor".into()),
        ack_wait: Duration::from_secs(30),
        max_ack_pending: 100_000,
        ..pull::Config::default()
    };
    let consumer = context.get_stream(&name).await?.create_consumer(config).await?;
    let mut messages = consumer.stream().max_messages_per_batch(1_000).messages().await?;
    let (settle, mut settled) =
        tokio::sync::mpsc::channel::<(jetstream::context::PublishAckFuture, async_nats::Subject)>(PUBACKS_IN_FLIGHT);
    let acker = client.clone();
    let acks = tokio::spawn(async move {
        while let Some((stored, reply)) = settled.recv().await {
            stored.await?;
            acker.publish(reply, "+ACK".into()).await?;
        }
        anyhow::Ok(())
    });
    while let Some(message) = messages.next().await {
        let message = message?;
        let id = id_in(&message.payload).context("an assignment without an id")?;
        let id = std::str::from_utf8(id)?;
        let reply = message.reply.clone().context("a delivery without a reply subject")?;
        let body = result(id).into();
        if !args.bare {
            client.publish_with_headers(ACK, message_id('a', id), ack(id).into()).await?;
        }
        match args.results {
            Results::Core if args.bare => {
                client.publish(RESULT, body).await?;
                client.publish(reply, "+ACK".into()).await?;
            }
            Results::Core => {
                client.publish_with_headers(RESULT, headers('r', id), body).await?;
                client.publish(reply, "+ACK".into()).await?;
            }
            Results::Stream => {
                let headers = if args.bare { message_id('r', id) } else { headers('r', id) };
                let stored = context.publish_with_headers(RESULT, headers, body).await?;
                if settle.send((stored, reply)).await.is_err() {
                    break;
                }
            }
        }
    }
    drop(settle);
    acks.await?
}

fn message_id(kind: char, id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // As long as the worker's own.
    headers.insert("Nats-Msg-Id", &*format!("{kind}-{}", id.replace('-', "")));
    headers
}

/// The headers that the contract gives an answer.
fn headers(kind: char, id: &str) -> HeaderMap {
    let mut headers = message_id(kind, id);
    headers.insert("version", "1");
    headers.insert("tenant_id", "tenant-0");
    headers.insert("trace_id", "0af7651916cd43dd8448eb2100000000");
    headers
}

/// An ack message as the contract makes it.
fn ack(id: &str) -> String {
    format!(
        concat!(
            r#"{{"version":"1","assignment_id":"{id}","status":"accepted","message":"accepted","reason":"accepted","#,
            r#""request_id":"{id}","tenant_id":"tenant-0","trace_id":"0af7651916cd43dd8448eb2100000000","#,
            r#""acknowledged_at":1790000000000,"overload_status":"healthy"}}"#
        ),
        id = id
    )
}

/// A result as the contract makes it.
fn result(id: &str) -> String {
    format!(
        concat!(
            r#"{{"version":"1","assignment_id":"{id}","request_id":"{id}","status":"success","provider_id":"endstation","#,
            r#""job":{{"type":"echo"}},"latency_ms":0,"cost":0,"tenant_id":"tenant-0","timestamp":1790000000000,"#,
            r#""trace_id":"0af7651916cd43dd8448eb2100000000","retries_used":0,"effect":"none","worker_id":"floor","queue_depth":0,"#,
            r#""timing":{{"received_ms":1790000000000,"started_ms":1790000000000,"ended_ms":1790000000000,"ran_us":0}},"#,
            r#""outputs":{{"text":"the quick brown fox jumps"}}}}"#
        ),
        id = id
    )
}
