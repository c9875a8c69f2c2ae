//! Where work comes in: a subscription, and for a stream's consumer the pulling that feeds it and the care it needs.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_nats::{Message, StatusCode, Subject, Subscriber};
use shards::ids::Text;
use shards::step::{Delivery, Headers};

use super::limits::{CHECK_PAUSE_MS, PULL_PAUSE_MS};
use super::nats::Link;
use super::pull::Credit;
use super::rescue;
use super::status::EdgeStatus;
use super::streams::{self, Consumer};
use super::stuck::Stillness;
use super::thread::EdgeSettings;

/// One subscription that work comes through.
pub(crate) struct Well {
    pub(crate) subscriber: Subscriber,
    /// The subject of the last message: nearly always that of the next, whose copy is saved.
    pub(crate) subject: Text,
    pub(crate) pull: Option<Pull>,
}

/// The pulling side of a well that is a consumer.
pub(crate) struct Pull {
    pub(crate) consumer: Consumer,
    pub(crate) index: u16,
    /// Up to this sequence an earlier owner may have had a message.
    pub(crate) inherited: u64,
    pub(crate) request: Subject,
    pub(crate) inbox: String,
    pub(crate) credit: Credit,
    /// Nothing is asked for before this.
    pub(crate) not_before: Instant,
    /// The consumer is being looked after; nothing is asked for meanwhile.
    pub(crate) check: Option<Check>,
    pub(crate) stillness: Stillness,
}

/// Ends when the consumer is as it should be, with the deliveries that cannot come over the connection.
pub(crate) type Check = Pin<Box<dyn Future<Output = Vec<Delivery>>>>;

impl Pull {
    /// A pull request ended with a status; `true`: its consumer may be gone.
    pub(crate) fn ended(&mut self, status: StatusCode, message: &Message, now: Instant) -> bool {
        if status == StatusCode::IDLE_HEARTBEAT {
            return false;
        }
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let left = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
        let left = left.and_then(|left| left.as_str().parse().ok());
        if let Some(number) = number {
            self.credit.ended(number, left, now);
        }
        // Its bytes are used up: that is what they are for.
        let used_up = message.description.as_deref().is_some_and(|said| said.contains("MaxBytes"));
        if status == StatusCode::TIMEOUT || used_up {
            return false;
        }
        self.not_before = now + Duration::from_millis(PULL_PAUSE_MS);
        if status == StatusCode::NOT_FOUND {
            return false;
        }
        let said = message.description.as_deref().unwrap_or_default();
        tracing::warn!(stream = self.consumer.stream, status = status.as_u16(), said, "the stream ended a pull request");
        status == StatusCode::NO_RESPONDERS || said.to_ascii_lowercase().contains("consumer")
    }
}

/// Looks after a consumer until it is as it should be: makes it again where the server lost it.
pub(crate) fn check(
    link: &Link,
    settings: &Rc<EdgeSettings>,
    status: &Arc<EdgeStatus>,
    consumer: &Consumer,
    index: u16,
    after: Duration,
    suspicious: bool,
) -> Check {
    let (link, settings, status, consumer) = (link.clone(), settings.clone(), status.clone(), consumer.clone());
    Box::pin(async move {
        let mut wait = after;
        loop {
            tokio::time::sleep(wait).await;
            match streams::ensure(&link, &consumer, &settings.nats).await {
                Ok(()) => break,
                // Not the end even where it would have been at the start: whoever broke it may mend it.
                Err(trouble) => {
                    status.consumers_ok.store(false, Relaxed);
                    tracing::error!(
                        stream = consumer.stream,
                        durable = consumer.durable,
                        ?trouble,
                        "the consumer cannot be used yet"
                    );
                }
            }
            wait = Duration::from_millis(CHECK_PAUSE_MS);
        }
        status.consumers_ok.store(true, Relaxed);
        if !suspicious {
            return Vec::new();
        }
        rescue::search(&link, &consumer, index).await.unwrap_or_else(|trouble| {
            tracing::warn!(?trouble, "deliveries could not be looked through");
            Vec::new()
        })
    })
}

/// Headers, by name: async-nats keeps no order, and the same message must look the same every time.
pub(crate) fn headers(map: Option<&async_nats::HeaderMap>) -> Headers {
    let Some(map) = map else { return Vec::new() };
    let mut list = Vec::with_capacity(map.len());
    for (name, values) in map.iter() {
        let name = Text::from(AsRef::<str>::as_ref(name));
        for value in values {
            list.push((name.clone(), Text::from(value.as_str())));
        }
    }
    list.sort_by(|(a, _), (b, _)| a.cmp(b));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_headers_look_the_same_every_time() {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in [("version", "1"), ("tenant_id", "acme"), ("Nats-Msg-Id", "x"), ("X", "2")] {
            map.insert(name, value);
        }
        map.append("X", "1");
        let names: Vec<_> = headers(Some(&map)).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(names, ["Nats-Msg-Id=x", "X=2", "X=1", "tenant_id=acme", "version=1"]);
    }
}
