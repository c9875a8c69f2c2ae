//! The deployment's secret: kept in a KV bucket where JetStream exists, made once, the same for every worker.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use shards::ids::{Salt, hex, unhex};

use super::nats::{options, servers};
use crate::settings::{NatsMode, NatsSettings};

const BUCKET: &str = "endstation";
const STREAM: &str = "KV_endstation";
const SUBJECT: &str = "$KV.endstation.key_salt";
const TRY_EVERY: Duration = Duration::from_secs(1);

/// What the deployment says of its secret.
#[derive(Debug)]
pub enum Shared {
    /// It has this one: `ours`, if there was none before.
    Salt(Salt),
    /// There is no JetStream, so nothing is shared.
    Nothing,
    /// The server could not be asked, and `ours` is known anyway.
    Unknown,
}

/// Asks the deployment for its secret, and gives it `ours`, or a new one, if it has none.
///
/// Waits for a server where `ours` is not known: without the secret no key can be computed.
pub async fn shared(settings: &NatsSettings, worker_id: &str, ours: Option<&Salt>, fresh: impl Fn() -> Salt) -> Shared {
    if settings.mode == NatsMode::Core {
        return Shared::Nothing;
    }
    let mut said = false;
    loop {
        match ask(settings, worker_id, ours, &fresh).await {
            Ok(shared) => return shared,
            Err(error) if ours.is_some() => {
                tracing::warn!(%error, "the deployment's key salt could not be compared with this journal's");
                return Shared::Unknown;
            }
            Err(error) => {
                if !said {
                    tracing::warn!(%error, url = %settings.url, "waiting for NATS: the deployment's key salt is there");
                    said = true;
                }
                tokio::time::sleep(TRY_EVERY).await;
            }
        }
    }
}

async fn ask(
    settings: &NatsSettings,
    worker_id: &str,
    ours: Option<&Salt>,
    fresh: &impl Fn() -> Salt,
) -> Result<Shared, async_nats::Error> {
    let client = options(settings, worker_id).await?.connect(servers(&settings.url)?).await?;
    if !client.server_info().jetstream {
        return Ok(Shared::Nothing);
    }
    let Some(found) = read(&client).await? else {
        create_bucket(&client, settings.replicas).await?;
        let salt = ours.cloned().unwrap_or_else(fresh);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        // Another worker may be first, and this one refused: then its salt is the one. Whoever it is, what is read counts.
        client.request_with_headers(SUBJECT, headers, hex(&salt.0).into()).await?;
        let found = read(&client).await?.ok_or("the key salt could not be stored in the bucket endstation")?;
        return Ok(Shared::Salt(found));
    };
    Ok(Shared::Salt(found))
}

/// The salt in the bucket. JetStream is spoken as plain JSON: the client's own types want fields that older servers leave out.
async fn read(client: &Client) -> Result<Option<Salt>, async_nats::Error> {
    let question = json!({ "last_by_subj": SUBJECT });
    let answer = request(client, format!("STREAM.MSG.GET.{STREAM}"), &question).await?;
    match answer.pointer("/error/code").and_then(Value::as_u64) {
        // No such bucket, or nothing in it.
        Some(404) => return Ok(None),
        Some(_) => return Err(answer["error"].to_string().into()),
        None => {}
    }
    let text = answer.pointer("/message/data").and_then(Value::as_str).unwrap_or_default();
    let bytes = BASE64.decode(text)?;
    let salt = std::str::from_utf8(&bytes).ok().and_then(unhex);
    Ok(Some(Salt(salt.ok_or("the bucket endstation holds a key_salt that is not 64 hexadecimal digits")?)))
}

/// A bucket is a stream of this form to every NATS client.
async fn create_bucket(client: &Client, replicas: usize) -> Result<(), async_nats::Error> {
    let config = json!({
        "name": STREAM, "description": "what the endstation workers of this deployment share",
        "subjects": [format!("$KV.{BUCKET}.>")], "retention": "limits", "storage": "file", "discard": "new",
        "max_msgs_per_subject": 1, "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1, "max_age": 0,
        "num_replicas": replicas, "duplicate_window": 120_000_000_000_u64, "allow_rollup_hdrs": true, "deny_delete": true,
        "allow_direct": true,
    });
    let answer = request(client, format!("STREAM.CREATE.{STREAM}"), &config).await?;
    match answer.get("error") {
        None => Ok(()),
        // Somebody else made it a moment ago.
        Some(error) if error["err_code"] == 10058 => Ok(()),
        Some(error) => Err(format!("the bucket endstation cannot be made: {error}").into()),
    }
}

async fn request(client: &Client, what: String, body: &Value) -> Result<Value, async_nats::Error> {
    let answer = client.request(format!("$JS.API.{what}"), body.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}
