//! Connections that wait for their next request. Lives on its core.
//!
//! A connection serves one tenant, one connector and one place: what a server says on it reaches nobody else, whatever it
//! does to its framing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use shards::ids::Text;
use shards::runtime::rt::{Clock, sleep, spawn};

use super::egress::Host;
use super::limits::{IDLE_MAX, IDLE_MS_MAX, IDLE_PER_PLACE_MAX};
use super::link::Link;

/// Whom a connection serves, and where it leads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    pub(super) tenant: Text,
    /// By the connector's position; `None`: without one.
    pub(super) connector: Option<u16>,
    pub(super) tls: bool,
    pub(super) host: Host,
    pub(super) port: u16,
}

/// How often what waits is looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

struct Idle {
    link: Link,
    since_ms: u64,
}

/// See the module.
pub(super) struct Pool {
    clock: Clock,
    idle: RefCell<State>,
}

#[derive(Default)]
struct State {
    places: HashMap<Place, Vec<Idle>>,
    count: usize,
    sweeping: bool,
}

impl Pool {
    pub(super) fn new(clock: Clock) -> Self {
        Pool { clock, idle: RefCell::default() }
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().mono_us / 1_000
    }

    /// A connection to `place` that was open a moment ago: the one that was used last, since it is the least likely to be closed.
    pub(super) fn take(&self, place: &Place) -> Option<Link> {
        let now_ms = self.now_ms();
        let state = &mut *self.idle.borrow_mut();
        let waiting = state.places.get_mut(place)?;
        let before = waiting.len();
        waiting.retain(|idle| !idle.link.is_closed() && now_ms - idle.since_ms < IDLE_MS_MAX);
        let link = match waiting.last() {
            Some(idle) if idle.link.is_shared() => idle.link.share(),
            Some(_) => waiting.pop().map(|idle| idle.link),
            None => None,
        };
        state.count -= before - waiting.len();
        if waiting.is_empty() {
            state.places.remove(place);
        }
        link
    }

    /// Keeps a connection for its next request. One of HTTP/2 is kept from its first request on, by a hold of its own.
    pub(super) fn keep(self: &Rc<Self>, place: &Place, link: Link) {
        if link.is_closed() {
            return;
        }
        let since_ms = self.now_ms();
        self.idle.borrow_mut().keep(place, Idle { link, since_ms });
        self.sweep_from_now_on();
    }

    /// Closes what waits to go there: it leads nowhere. Requests that are under way keep their own hold.
    pub(super) fn forget(&self, place: &Place) {
        let state = &mut *self.idle.borrow_mut();
        state.count -= state.places.remove(place).map_or(0, |waiting| waiting.len());
    }

    /// Closes what has waited too long or has ended, for as long as anything waits.
    fn sweep_from_now_on(self: &Rc<Self>) {
        if std::mem::replace(&mut self.idle.borrow_mut().sweeping, true) {
            return;
        }
        let pool = Rc::downgrade(self);
        spawn("a sweep of idle connections", async move {
            loop {
                sleep(SWEEP_EVERY).await;
                let Some(pool) = pool.upgrade() else { return };
                let now_ms = pool.now_ms();
                let state = &mut *pool.idle.borrow_mut();
                state.sweep(now_ms);
                if state.count == 0 {
                    state.sweeping = false;
                    return;
                }
            }
        });
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.idle.borrow().count
    }
}

impl State {
    fn keep(&mut self, place: &Place, idle: Idle) {
        if self.count >= IDLE_MAX {
            self.sweep(idle.since_ms);
        }
        let waiting = self.places.entry(place.clone()).or_default();
        if idle.link.is_shared() {
            // One is enough for all; the newest stands.
            self.count -= waiting.len();
            waiting.clear();
        }
        if self.count < IDLE_MAX && waiting.len() < IDLE_PER_PLACE_MAX {
            waiting.push(idle);
            self.count += 1;
        }
        if waiting.is_empty() {
            self.places.remove(place);
        }
    }

    fn sweep(&mut self, now_ms: u64) {
        self.places.retain(|_, waiting| {
            waiting.retain(|idle| !idle.link.is_closed() && now_ms - idle.since_ms < IDLE_MS_MAX);
            !waiting.is_empty()
        });
        self.count = self.places.values().map(Vec::len).sum();
    }
}
