//! The deployment's secret: kept in a KV bucket where JetStream exists, made once, the same for every worker.

use std::time::Duration;

use async_nats::Client;
use shards::ids::{Salt, hex, unhex};

use super::bucket::SHARED;
use super::nats::{options, servers};
use crate::settings::{NatsMode, NatsSettings};

const KEY: &str = "key_salt";
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
    if let Some(found) = read(&client).await? {
        return Ok(Shared::Salt(found));
    }
    SHARED.create(&client, settings.replicas, Duration::ZERO).await?;
    let salt = ours.cloned().unwrap_or_else(fresh);
    // Another worker may be first, and this one beaten: then its salt is the one. Whoever it is, what is read counts.
    SHARED.write(&client, KEY, hex(&salt.0).into_bytes(), 0).await?;
    let found = read(&client).await?.ok_or("the key salt could not be stored in the bucket endstation")?;
    Ok(Shared::Salt(found))
}

async fn read(client: &Client) -> Result<Option<Salt>, async_nats::Error> {
    let Some((_, bytes)) = SHARED.read(client, KEY).await? else { return Ok(None) };
    let salt = std::str::from_utf8(&bytes).ok().and_then(unhex);
    Ok(Some(Salt(salt.ok_or("the bucket endstation holds a key_salt that is not 64 hexadecimal digits")?)))
}
