//! The floor: a bare pull consumer that answers and acks, and does nothing else. A process of its own, so that its
//! processor time is measured like the worker's.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;

use crate::message::{ASSIGN, RESULT, id_in};

/// Where the bare consumer works.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FloorArgs {
    /// The server.
    #[arg(long)]
    url: String,
    /// How results are sent.
    #[arg(long, value_enum)]
    results: Results,
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
        match args.results {
            Results::Core => {
                client.publish(RESULT, body).await?;
                client.publish(reply, "+ACK".into()).await?;
            }
            Results::Stream => {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("r-{id}"));
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

/// A result of about the size that the contract makes it.
fn result(id: &str) -> String {
    format!(
        concat!(
            r#"{{"version":"1","assignment_id":"{id}","request_id":"{id}","status":"success","provider_id":"endstation","#,
            r#""job":{{"type":"echo"}},"latency_ms":0,"cost":0,"tenant_id":"tenant-0","timestamp":1790000000000,"#,
            r#""outputs":{{"text":"the quick brown fox jumps"}},"retries_used":0,"effect":"none","worker_id":"floor","queue_depth":0}}"#
        ),
        id = id
    )
}
