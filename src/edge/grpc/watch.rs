//! Who watches: a tenant's lifecycle events as the shards write them, from the moment a watch is opened.
//!
//! One that cannot keep up is ended with an error, so that nobody takes a gap for silence.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::Stream;
use proto::v1::{LifecycleEvent, WatchRequest};
use shards::runtime::ports::Parcel;
use tokio::sync::mpsc;
use tonic::Status;

use super::calls::Closed;
use super::refusal;
use crate::edge::limits::{WATCH_EVENTS_MAX, WATCHES_MAX};
use crate::edge::protobuf;

/// The watches that are open. Shared by the tasks of the edge's thread.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    list: Vec<Watch>,
    closed: bool,
}

#[derive(Debug)]
struct Watch {
    wanted: WatchRequest,
    tell: mpsc::Sender<LifecycleEvent>,
    /// It missed something.
    slow: Arc<AtomicBool>,
}

impl Watches {
    /// Everything wanted from now on, until the client goes; ends with an error only.
    pub(super) fn open(
        &self,
        wanted: WatchRequest,
    ) -> Result<impl Stream<Item = Result<LifecycleEvent, Status>> + Send + use<>, Closed> {
        let mut open = self.lock();
        open.list.retain(|watch| !watch.tell.is_closed());
        if open.closed {
            return Err(Closed::Ending);
        }
        if open.list.len() >= WATCHES_MAX {
            return Err(Closed::Full);
        }
        let (tell, told) = mpsc::channel(WATCH_EVENTS_MAX);
        let slow = Arc::<AtomicBool>::default();
        open.list.push(Watch { wanted, tell, slow: slow.clone() });
        Ok(futures_util::stream::unfold(Some((told, slow)), |state| async {
            let (mut told, slow) = state?;
            match told.recv().await {
                Some(event) => Some((Ok(event), Some((told, slow)))),
                None if slow.load(Ordering::Relaxed) => {
                    Some((Err(Status::resource_exhausted("events came faster than they were taken, and some are missed")), None))
                }
                None => Some((Err(refusal::ended()), None)),
            }
        }))
    }

    /// Shows an event to those who want it.
    pub(super) fn saw(&self, event: &Parcel) {
        let mut open = self.lock();
        let tenant = event.headers.iter().find(|(name, _)| &**name == "tenant_id").map(|(_, tenant)| &**tenant);
        let theirs = |watch: &Watch| Some(&*watch.wanted.tenant_id) == tenant;
        if !open.list.iter().any(theirs) {
            return;
        }
        let Some(said) = protobuf::lifecycle(&event.body) else { return };
        open.list.retain(|watch| {
            if !theirs(watch) || !wants(&watch.wanted, &said) {
                return true;
            }
            match watch.tell.try_send(said.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    watch.slow.store(true, Ordering::Relaxed);
                    false
                }
            }
        });
    }

    /// Ends all of them.
    pub(super) fn close(&self) {
        let mut open = self.lock();
        open.closed = true;
        open.list.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an event of its tenant is one that a watch asked for.
fn wants(wanted: &WatchRequest, event: &LifecycleEvent) -> bool {
    let context = event.context.as_ref();
    let same = |wanted: &Option<String>, has: Option<&String>| wanted.is_none() || wanted.as_ref() == has;
    same(&wanted.run_id, context.and_then(|context| context.run_id.as_ref()))
        && same(&wanted.flow_id, context.and_then(|context| context.flow_id.as_ref()))
        && same(&wanted.step_id, context.and_then(|context| context.step_id.as_ref()))
        && (wanted.kinds.is_empty() || wanted.kinds.contains(&event.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::StreamExt;
    use proto::v1::lifecycle_event::Kind;
    use shards::ids::Key;
    use shards::runtime::ports::{About, Outlet};

    fn event(tenant: &'static str, kind: &str, flow: &str) -> Parcel {
        let body = format!(
            r#"{{"id":"e","data":{{"event_id":"e","kind":"{kind}","context":{{"tenant_id":"{tenant}","flow_id":"{flow}"}},"sequence":0}}}}"#
        );
        let about =
            About { line: 0, call: 0, by_call: false, key: Key([0; 16]), status: None, replayed: false, boot: 0, tries: 0 };
        Parcel {
            outlet: Outlet::Event,
            subject: "s".into(),
            headers: vec![("tenant_id".into(), tenant.into())],
            body: Bytes::from(body),
            reply: None,
            confirm: None,
            about,
        }
    }

    fn wanted(tenant: &str) -> WatchRequest {
        WatchRequest { tenant_id: tenant.into(), ..Default::default() }
    }

    #[tokio::test]
    async fn a_watch_sees_what_it_asked_for_of_its_own_tenant() {
        let watches = Watches::default();
        let mut all = Box::pin(watches.open(wanted("acme")).expect("room"));
        let ends = WatchRequest { kinds: vec![Kind::Completed as i32], flow_id: Some("f".into()), ..wanted("acme") };
        let mut ends = Box::pin(watches.open(ends).expect("room"));
        for event in [
            event("acme", "ACCEPTED", "f"),
            event("other", "COMPLETED", "f"),
            event("acme", "COMPLETED", "g"),
            event("acme", "COMPLETED", "f"),
        ] {
            watches.saw(&event);
        }
        watches.close();
        let kinds: Vec<_> = all.by_ref().map(|event| event.map(|event| event.kind())).collect().await;
        assert!(matches!(kinds[..], [Ok(Kind::Accepted), Ok(Kind::Completed), Ok(Kind::Completed), Err(_)]), "{kinds:?}");
        let said: Vec<_> = ends.by_ref().collect().await;
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[1].as_ref().err().map(Status::code), Some(tonic::Code::Unavailable));
        assert!(watches.open(wanted("acme")).is_err(), "closed");
    }

    #[tokio::test]
    async fn one_that_is_too_slow_is_told_that_it_missed_something() {
        let watches = Watches::default();
        let slow = watches.open(wanted("acme")).expect("room");
        for _ in 0..=WATCH_EVENTS_MAX {
            watches.saw(&event("acme", "STARTED", "f"));
        }
        let said: Vec<_> = slow.collect().await;
        assert_eq!(said.len(), WATCH_EVENTS_MAX + 1);
        assert_eq!(said.last().and_then(|last| last.as_ref().err()).map(Status::code), Some(tonic::Code::ResourceExhausted));
    }

    #[test]
    fn watches_are_bounded_and_those_that_are_gone_make_room() {
        let watches = Watches::default();
        let all: Vec<_> = (0..WATCHES_MAX).map(|_| watches.open(wanted("acme")).expect("room")).collect();
        assert_eq!(watches.open(wanted("acme")).err(), Some(Closed::Full));
        drop(all);
        assert!(watches.open(wanted("acme")).is_ok());
    }
}
