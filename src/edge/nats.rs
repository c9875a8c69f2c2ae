//! The connection: how it is made, and what it says about itself afterwards.
//!
//! async-nats reconnects by itself for ever. What was written and not answered when a connection broke is lost; whoever waits
//! for an answer compares [`Link::epoch`] with the one it asked under. Its task can also die (0.51 panics on a carriage return
//! inside a header value, which any sender may put there): then the link is [`Link::closed`] for good and another is made.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, ServerAddr, Statistics};

use super::limits::{ANSWER_WITHIN_MS, API_WITHIN_MS, COMPLAINT_EVERY_MS, CONNECT_WITHIN_MS, CONNECTION_QUEUE, PING_EVERY_MS};
use super::status::EdgeStatus;
use super::thread::{EdgeError, Halt, Phase};
use crate::settings::{NatsAuth, NatsSettings};

/// A connection to NATS, present or coming. Lives on the edge's thread; cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: Client,
    statistics: Arc<Statistics>,
    inbox: Arc<str>,
    /// Counts clients, one after the other.
    generation: u64,
    closed: Rc<Cell<bool>>,
}

impl Link {
    /// Whether there is a connection now.
    pub(crate) fn connected(&self) -> bool {
        !self.closed.get() && self.client.connection_state() == State::Connected
    }

    /// How many clients there were before this one.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the client is dead. Whoever reads the end of a subscription that was not given up says so with
    /// [`Link::close`].
    pub(crate) fn closed(&self) -> bool {
        self.closed.get()
    }

    /// The client is dead.
    pub(crate) fn close(&self) {
        if !self.closed.replace(true) {
            tracing::error!("the NATS client is dead, perhaps by a malformed message; making another");
        }
    }

    /// Counts connections: what was sent under an older number may be lost.
    pub(crate) fn epoch(&self) -> u64 {
        (self.generation << 32) + self.statistics.connects.load(Ordering::Relaxed)
    }

    /// The prefix of this process's own reply subjects.
    pub(crate) fn inbox(&self) -> &str {
        &self.inbox
    }

    /// Gives the connection up if nothing comes back over it. What still comes may hide that nothing goes out: the client asks
    /// whether the server is there only when it is silent.
    pub(crate) async fn doubt(&self) {
        let (within, epoch) = (Duration::from_millis(ANSWER_WITHIN_MS), self.epoch());
        // Nobody listens there, and a server that hears us says so.
        let asked = self.client.request(format!("{}.there", self.inbox), "".into());
        let answered = match tokio::time::timeout(within, asked).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.kind() == RequestErrorKind::NoResponders,
            Err(_) => false,
        };
        if !answered && self.epoch() == epoch && self.connected() {
            tracing::warn!("nothing comes back from the NATS server: connecting again");
            let _ = tokio::time::timeout(within, self.client.force_reconnect()).await;
        }
    }

    /// Hands a message to the connection if it takes one at once.
    pub(crate) fn offer(&self, subject: async_nats::Subject, reply: Option<async_nats::Subject>, body: bytes::Bytes) -> bool {
        use futures_util::FutureExt;
        let sent = match reply {
            Some(reply) => self.client.publish_with_reply(subject, reply, body).now_or_never(),
            None => self.client.publish(subject, body).now_or_never(),
        };
        matches!(sent, Some(Ok(())))
    }
}

/// Connects, waiting for a server as long as it takes; `None`: told to stop before there was one.
pub(crate) async fn connect(
    settings: &NatsSettings,
    worker_id: &str,
    status: &Arc<EdgeStatus>,
    phase: &mut Phase,
    generation: u64,
) -> Result<Option<Link>, EdgeError> {
    let servers = servers(&settings.url)?;
    let shown = servers.iter().map(|at| format!("{}:{}", at.host(), at.port())).collect::<Vec<_>>().join(",");
    let watcher = Arc::new(Watcher {
        status: status.clone(),
        seen: AtomicU64::new(generation),
        said: AtomicU64::new(0),
        since: Instant::now(),
    });
    let options = options(settings, worker_id)
        .await?
        .retry_on_initial_connect()
        .client_capacity(CONNECTION_QUEUE)
        .ping_interval(Duration::from_millis(PING_EVERY_MS))
        .reconnect_delay_callback(|attempts| Duration::from_millis((attempts.saturating_sub(1) as u64 * 50).min(2_000)))
        .event_callback(move |event| {
            watcher.saw(&event);
            std::future::ready(())
        });
    let client = options.connect(servers).await.map_err(|error| EdgeError::Connect(error.to_string()))?;
    let (statistics, inbox) = (client.statistics(), client.new_inbox().into());
    let link = Link { client, statistics, inbox, generation, closed: Rc::default() };
    let mut said = Instant::now() - Duration::from_secs(4);
    while !link.connected() {
        if said.elapsed() >= Duration::from_secs(5) {
            tracing::warn!(servers = shown, "waiting for a NATS server");
            said = Instant::now();
        }
        if phase.wait(Duration::from_millis(20)).await == Halt::Stop {
            return Ok(None);
        }
    }
    status.connected.store(true, Ordering::Relaxed);
    let info = link.client.server_info();
    tracing::info!(servers = shown, version = info.version, jetstream = info.jetstream, "connected to NATS");
    Ok(Some(link))
}

/// How every connection of this worker identifies itself and secures itself.
pub(crate) async fn options(settings: &NatsSettings, name: &str) -> Result<ConnectOptions, EdgeError> {
    let options = identify(ConnectOptions::new(), &settings.auth).await?;
    let mut options = options
        .name(name)
        .request_timeout(Some(Duration::from_millis(API_WITHIN_MS)))
        .connection_timeout(Duration::from_millis(CONNECT_WITHIN_MS));
    if settings.tls.required {
        options = options.require_tls(true);
    }
    if let Some(ca) = &settings.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&settings.tls.cert, &settings.tls.key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options)
}

/// The servers of a comma-separated list.
pub(crate) fn servers(urls: &str) -> Result<Vec<ServerAddr>, EdgeError> {
    let parse = |url: &str| url.parse().map_err(|error| EdgeError::Url(format!("{error}")));
    let servers: Vec<ServerAddr> =
        urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(parse).collect::<Result<_, _>>()?;
    if servers.is_empty() {
        return Err(EdgeError::Url("it names no server".into()));
    }
    Ok(servers)
}

async fn identify(options: ConnectOptions, auth: &NatsAuth) -> Result<ConnectOptions, EdgeError> {
    let unreadable = |path: &std::path::Path, error: std::io::Error| EdgeError::Credentials(path.to_owned(), error.to_string());
    Ok(match auth {
        NatsAuth::Anonymous => options,
        NatsAuth::Creds(path) => options.credentials_file(path).await.map_err(|error| unreadable(path, error))?,
        NatsAuth::Nkey(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, error))?;
            // An nkey file may carry comments and armour; the seed is the line that begins with S.
            let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
            let missing = || EdgeError::Credentials(path.clone(), "there is no nkey seed in it".into());
            options.nkey(seed.ok_or_else(missing)?.to_owned())
        }
        NatsAuth::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
        NatsAuth::Token(token) => options.token(token.clone()),
    })
}

/// Counts and tells what async-nats reports. Shared with its task.
struct Watcher {
    status: Arc<EdgeStatus>,
    /// Connections made.
    seen: AtomicU64,
    /// When a repeated complaint was last told, milliseconds after `since`.
    said: AtomicU64,
    since: Instant,
}

impl Watcher {
    fn saw(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.status.connected.store(true, Ordering::Relaxed);
                if self.seen.fetch_add(1, Ordering::Relaxed) > 0 {
                    self.status.reconnects.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("connected to NATS again");
                }
            }
            Event::Disconnected => {
                self.status.connected.store(false, Ordering::Relaxed);
                tracing::warn!("the connection to NATS is lost");
            }
            Event::SlowConsumer(subscription) => {
                self.status.lost();
                if self.may_say(1_000) {
                    let lost = self.status.slow_lost.load(Ordering::Relaxed);
                    tracing::error!(subscription, lost, "messages are lost: the edge cannot keep up");
                }
            }
            Event::LameDuckMode => tracing::warn!("the NATS server is about to shut down"),
            // Permissions violations come this way.
            Event::ServerError(error) if self.may_say(1_000) => tracing::error!(%error, "the NATS server refuses something"),
            Event::ClientError(error) if self.may_say(COMPLAINT_EVERY_MS) => tracing::warn!(%error, "NATS"),
            _ => {}
        }
    }

    /// A repeated complaint only if none was told for so long.
    fn may_say(&self, every_ms: u64) -> bool {
        let now = self.since.elapsed().as_millis() as u64 + COMPLAINT_EVERY_MS;
        let last = self.said.load(Ordering::Relaxed);
        now - last >= every_ms && self.said.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_may_be_named() {
        assert_eq!(servers("nats://a:4222, tls://b:4443").map(|list| list.len()).ok(), Some(2));
        assert!(servers(" , ").is_err());
    }
}
