//! The deployment's secret: kept in a KV bucket where JetStream exists, made once, the same for every worker.

use std::time::Duration;

use async_nats::jetstream::{self, kv};
use shards::ids::{Salt, hex, unhex};

use super::nats::{options, servers};
use crate::settings::{NatsMode, NatsSettings};

const BUCKET: &str = "endstation";
const ENTRY: &str = "key_salt";
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
    let context = jetstream::new(client.clone());
    if !client.server_info().jetstream {
        return Ok(Shared::Nothing);
    }
    let config = kv::Config {
        bucket: BUCKET.to_owned(),
        description: "what the endstation workers of this deployment share".to_owned(),
        num_replicas: settings.replicas,
        ..kv::Config::default()
    };
    let store = match context.get_key_value(BUCKET).await {
        Ok(store) => store,
        Err(_) => context.create_key_value(config).await?,
    };
    if store.entry(ENTRY).await?.is_none() {
        let salt = ours.cloned().unwrap_or_else(fresh);
        // Another worker may be first: then its salt is the one.
        let _ = store.create(ENTRY, hex(&salt.0).into()).await;
    }
    let value = store.get(ENTRY).await?.ok_or("the salt was removed while it was read")?;
    let text = std::str::from_utf8(&value)?;
    let salt = unhex(text).ok_or("the bucket endstation holds a key_salt that is not 64 hexadecimal digits")?;
    Ok(Shared::Salt(Salt(salt)))
}
