//! The sessions of one shard with one server: at most its share of what the connector allows, handed out in turn.
//!
//! A session comes back clean or not at all: a step's transaction is over, and what a session keeps beyond a transaction is reset.
//! One that was given up at anything is cancelled at the server first, and holds its place until its connection has ended.
//!
//! Where all are in use, a read whose statement has been quick so far joins others of that kind in one session: what it sends goes
//! behind theirs without a wait for their answers. Only reads do that, as a read may run twice: the session of a step that is
//! cancelled at the server is closed, and who shared it runs again, alone ([`Lease::was_cut`]).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::net::dial::within;
use crate::net::error::Phase;
use crate::net::postgres::{Dialer, Login};
use crate::policy::databases::{Database, PostgresSettings};
use crate::secrets::Redaction;
use crate::worker::random_name;
use shards::outcome::Fault;
use shards::runtime::rt::{Clock, sleep, spawn};

use super::fault;

mod live;

pub(crate) use live::{Live, Prepared, type_of};

/// How long a session waits for its next step.
const IDLE_MS_MAX: u64 = 60_000;
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// How long a step waits for a session, in milliseconds.
const WAIT_MS_MAX: u64 = 10_000;
/// Between two requests to cancel what a session is at.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);
/// Reads that may be under way in one session.
const SHARERS_MAX: u32 = 16;
/// A server is near where a transaction begins within so long, in microseconds: all before a read in its session, and the way, take
/// less than it waits there.
const NEAR_US: u64 = 20_000;
/// A session that is idle in its transaction for so long is ended by the server: the worker has gone.
pub(crate) const IDLE_IN_TRANSACTION_MS: u64 = 30_000;

/// See the module. Lives on its core.
pub(crate) struct Pool {
    pub(crate) database: Arc<Database>,
    pub(crate) dialer: Rc<Dialer>,
    clock: Clock,
    most: u32,
    /// Makes the names of this shard's sessions its own.
    nonce: String,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    idle: Vec<Rc<Live>>,
    /// Those in which quick reads are under way, and nothing else.
    shared: Vec<Rc<Live>>,
    open: u32,
    waiting: VecDeque<(u64, Waker)>,
    next: u64,
    sessions: u64,
    sweeping: bool,
}

/// Whom a step takes a session from.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// From nobody: it is alone in it, unless it says otherwise ([`Lease::share`]).
    Any,
    /// As before, and those up to this number lead to a server that is not what it was.
    Fresh(u64),
    /// It joins others where all are in use.
    Shared(&'a str, &'a [u32]),
}

/// Room for one session; given back when its connection has ended.
struct Place(Weak<Pool>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.database.counts.sessions.fetch_sub(1, Relaxed);
            pool.state.borrow_mut().open -= 1;
            pool.call();
        }
    }
}

/// What becomes of a session behind a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is as good as new.
    Keep,
    /// It is once what a transaction that was committed may have left in it is gone.
    Reset(&'static str),
    /// It is but for what it keeps prepared.
    Unprepare,
    /// It is over once those are that are in it: what comes of this step's statement is nobody's.
    Retire,
    /// It may be at something still, or be broken.
    GiveUp,
}

/// A session at work for one step: dropped before it is given back, it is given up. Lives on its core.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    live: Option<Rc<Live>>,
    /// It has been used before: what fails at once may be its age.
    pub(crate) used: bool,
    /// Others were at work in it before.
    pub(crate) joined: bool,
    /// It may be at something.
    busy: Cell<bool>,
    /// What is before this step is done.
    begun: Cell<bool>,
}

impl Pool {
    /// The connections of shard `place.0` of `place.1`.
    pub(crate) fn new(database: Arc<Database>, dialer: Rc<Dialer>, clock: Clock, place: (u16, u16)) -> Pool {
        let most = database.server().map_or(0, |server| share(server.connections_max, place));
        let nonce = random_name()[..8].to_owned();
        Pool { database, dialer, clock, most, nonce, state: RefCell::default() }
    }

    /// A session: one that waits, a new one where there is room for it, or one that others are at work in.
    pub(crate) async fn take(
        self: &Rc<Self>,
        server: &PostgresSettings,
        left_ms: u64,
        wanted: Wanted<'_>,
    ) -> Result<Lease, Fault> {
        let free = self.state.borrow().waiting.is_empty();
        let got = match free.then(|| self.try_take(wanted)).flatten() {
            Some(got) => got,
            None => {
                let turn = Turn::new(self);
                let got = within(left_ms.min(WAIT_MS_MAX), Phase::Connect, turn.wait(wanted)).await;
                got.map_err(|_| fault::crowded(&self.database.name))?
            }
        };
        let (live, used, joined) = match got {
            Got::Idle(live) => (live, true, false),
            Got::Room(place) => (Rc::new(self.open(server, place).await?), false, false),
            Got::Shared(live) => {
                self.database.counts.joined.fetch_add(1, Relaxed);
                (live, true, true)
            }
        };
        live.steps.set(live.steps.get() + 1);
        Ok(Lease { pool: self.clone(), live: Some(live), used, joined, busy: Cell::new(false), begun: Cell::new(false) })
    }

    /// What there is at once.
    fn try_take(self: &Rc<Self>, wanted: Wanted<'_>) -> Option<Got> {
        let mut dead = Vec::new();
        let mut state = self.state.borrow_mut();
        if let Wanted::Fresh(old) = wanted {
            dead.extend(state.idle.extract_if(.., |live| live.number <= old));
        }
        let idle = loop {
            match state.idle.pop() {
                Some(live) if live.session.client.is_closed() => dead.push(live),
                other => break other,
            }
        };
        let got = match (idle, wanted) {
            (Some(live), _) => Some(Got::Idle(live)),
            (None, _) if state.open < self.most => {
                state.open += 1;
                self.database.counts.sessions.fetch_add(1, Relaxed);
                Some(Got::Room(Place(Rc::downgrade(self))))
            }
            (None, Wanted::Shared(sql, oids)) => {
                let fits = |live: &&Rc<Live>| {
                    live.steps.get() < SHARERS_MAX && !live.session.client.is_closed() && live.is_quick_at(sql, oids)
                };
                let live = state.shared.iter().filter(fits).min_by_key(|live| live.steps.get()).cloned();
                live.map(Got::Shared)
            }
            (None, _) => None,
        };
        drop(state);
        // Their ends give back their places.
        drop(dead);
        got
    }

    async fn open(self: &Rc<Self>, server: &PostgresSettings, place: Place) -> Result<Live, Fault> {
        let mut redaction = Redaction::default();
        let secret = server.password.as_ref().map(|secret| secret.read()).transpose();
        let secret = secret.map_err(|error| {
            let error = crate::net::error::NetError::Secret(error.to_string());
            fault::no_session(&error.into(), &redaction)
        })?;
        if let Some(secret) = &secret {
            redaction.add(secret.as_bytes());
        }
        let number = {
            let mut state = self.state.borrow_mut();
            state.sessions += 1;
            state.sessions
        };
        let name = format!("endstation/{}-{number}", self.nonce);
        let login = Login { user: &server.user, password: secret.as_ref().map(|secret| secret.as_str()) };
        let options = if server.pooler { String::new() } else { self.options() };
        let opened = self.dialer.open(&self.database, server, login, &name, &options, place).await;
        let session = opened.map_err(|error| fault::no_session(&error, &redaction))?;
        self.database.counts.opened.fetch_add(1, Relaxed);
        Ok(Live::new(session, name, number, self.now_ms()))
    }

    /// What holds in a session unless a transaction says otherwise: nothing is written by accident, nothing hangs, and text means
    /// the same everywhere.
    fn options(&self) -> String {
        let settings = &self.database.settings;
        format!(
            "-c default_transaction_read_only=on -c statement_timeout={} -c lock_timeout={} \
             -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS} -c TimeZone=UTC -c DateStyle=ISO \
             -c client_min_messages=error",
            settings.statement_ms, settings.lock_ms,
        )
    }

    /// Milliseconds, by the shard's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now().mono_us / 1_000
    }

    /// Microseconds, by the shard's clock.
    pub(crate) fn now_us(&self) -> u64 {
        self.clock.now().mono_us
    }

    /// Lets the first that waits look again.
    fn call(&self) {
        if let Some((_, waker)) = self.state.borrow().waiting.front() {
            waker.wake_by_ref();
        }
    }

    /// Closes what waits: it leads to a server that is not what it was.
    pub(crate) fn forget(&self) {
        let idle = std::mem::take(&mut self.state.borrow_mut().idle);
        drop(idle);
    }

    /// A step leaves a session; whether it was the last one in it.
    fn leave(&self, live: &Rc<Live>) -> bool {
        live.steps.set(live.steps.get() - 1);
        let last = live.steps.get() == 0;
        if last {
            self.unshare(live);
        } else {
            self.call();
        }
        last
    }

    fn unshare(&self, live: &Live) {
        self.state.borrow_mut().shared.retain(|other| !std::ptr::eq(&raw const **other, live));
    }

    fn keep(self: &Rc<Self>, live: Rc<Live>) {
        live.since_ms.set(self.now_ms());
        live.shared.set(false);
        let mut state = self.state.borrow_mut();
        state.idle.push(live);
        let sweeping = std::mem::replace(&mut state.sweeping, true);
        drop(state);
        self.call();
        if sweeping {
            return;
        }
        let pool = Rc::downgrade(self);
        spawn("a sweep of idle database sessions", async move {
            loop {
                sleep(SWEEP_EVERY).await;
                let Some(pool) = pool.upgrade() else { return };
                let now_ms = pool.now_ms();
                let mut state = pool.state.borrow_mut();
                let (kept, old): (Vec<Rc<Live>>, Vec<Rc<Live>>) = std::mem::take(&mut state.idle)
                    .into_iter()
                    .partition(|live| now_ms - live.since_ms.get() < IDLE_MS_MAX && !live.session.client.is_closed());
                state.idle = kept;
                state.sweeping = !state.idle.is_empty();
                let done = !state.sweeping;
                drop(state);
                drop(old);
                if done {
                    return;
                }
            }
        });
    }
}

/// This shard's share of the connections: the first shards have what does not divide.
pub(crate) fn share(connections_max: u32, (shard, shards): (u16, u16)) -> u32 {
    let (shard, shards) = (u32::from(shard), u32::from(shards.max(1)));
    connections_max / shards + u32::from(shard < connections_max % shards)
}

/// What a turn brings.
enum Got {
    Idle(Rc<Live>),
    Room(Place),
    Shared(Rc<Live>),
}

/// A place in the queue; dropped, it is left.
struct Turn<'a> {
    pool: &'a Rc<Pool>,
    number: Cell<Option<u64>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pool.database.counts.waiting.fetch_sub(1, Relaxed);
        if let Some(number) = self.number.take() {
            self.pool.state.borrow_mut().waiting.retain(|(other, _)| *other != number);
        }
        self.pool.call();
    }
}

impl<'a> Turn<'a> {
    fn new(pool: &'a Rc<Pool>) -> Turn<'a> {
        pool.database.counts.waiting.fetch_add(1, Relaxed);
        Turn { pool, number: Cell::new(None) }
    }

    async fn wait(&self, wanted: Wanted<'_>) -> Got {
        poll_fn(|cx| {
            let first = |state: &State| state.waiting.front().is_none_or(|(number, _)| Some(*number) == self.number.get());
            if first(&self.pool.state.borrow())
                && let Some(got) = self.pool.try_take(wanted)
            {
                return Poll::Ready(got);
            }
            let mut state = self.pool.state.borrow_mut();
            match self.number.get() {
                Some(number) => {
                    if let Some((_, waker)) = state.waiting.iter_mut().find(|(other, _)| *other == number) {
                        waker.clone_from(cx.waker());
                    }
                }
                None => {
                    let number = state.next;
                    state.next += 1;
                    self.number.set(Some(number));
                    state.waiting.push_back((number, cx.waker().clone()));
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Lease {
    /// The session.
    pub(crate) fn live(&self) -> &Live {
        self.live.as_ref().expect("it is taken only when the lease ends")
    }

    /// Lets other quick reads join: what this one does in the session is one, too.
    pub(crate) fn share(&self) {
        let live = self.live.as_ref().expect("it is taken only when the lease ends");
        // Where the server is far, those who wait behind others could not tell that from a slow one before them.
        if self.joined || live.retired.get() || live.begun_in_us.get() > NEAR_US {
            return;
        }
        live.shared.set(true);
        self.pool.state.borrow_mut().shared.push(live.clone());
        self.pool.call();
    }

    /// From here on it may be at something, until it says that it is not.
    pub(crate) fn busy(&self, busy: bool) {
        self.busy.set(busy);
    }

    /// What was before this step in the session is done, and its own transaction has begun, so long after it was sent.
    pub(crate) fn begin(&self, us: u64) {
        self.begun.set(true);
        if !self.joined {
            self.live().begun_in_us.set(us);
        }
    }

    /// Whether what was before it is done.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Whether the session was cancelled at the server on another's account: what failed in it says nothing then.
    pub(crate) fn was_cut(&self) -> bool {
        self.live().cut.get()
    }

    /// Whether others could join: what broke it may have been theirs.
    pub(crate) fn was_shared(&self) -> bool {
        self.live().shared.get()
    }

    /// Ends it: whatever it may be at is over, unless it is given up.
    pub(crate) fn end(mut self, ending: Ending) {
        let reset = match ending {
            Ending::GiveUp => return,
            Ending::Retire => {
                self.live().retired.set(true);
                self.pool.unshare(self.live());
                None
            }
            Ending::Reset(reset) => Some(reset),
            Ending::Keep => None,
            Ending::Unprepare => {
                self.live().unprepare();
                None
            }
        };
        let Some(live) = self.live.take() else { return };
        let pool = self.pool.clone();
        if !pool.leave(&live) || live.session.client.is_closed() {
            return;
        }
        if live.retired.get() {
            // Statements of those who left may be to come in it.
            return cancel(pool, live);
        }
        let Some(reset) = reset else { return pool.keep(live) };
        // The step does not wait for that.
        spawn("a database session that is reset", async move {
            let done = within(WAIT_MS_MAX, Phase::Stall, live.session.client.batch_execute(reset)).await;
            match done {
                Ok(Ok(())) if !live.session.client.is_closed() => pool.keep(live),
                _ => live.session.abandon(),
            }
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        live.retired.set(true);
        self.pool.unshare(&live);
        let last = self.pool.leave(&live);
        if !last && !self.begun.get() {
            // What it sent nobody waits for; whoever is the last one in the session ends it.
            live.left.set(live.left.get() + 1);
            return;
        }
        if !self.busy.get() || live.session.client.is_closed() {
            return live.session.abandon();
        }
        cancel(self.pool.clone(), live);
    }
}

/// Ends a session: whatever it is at ends at the server too, and only then is there room for another.
fn cancel(pool: Rc<Pool>, live: Rc<Live>) {
    live.cut.set(true);
    pool.database.counts.cancelled.fetch_add(1, Relaxed);
    spawn("a statement that is cancelled", async move {
        let Some(server) = pool.database.server() else { return };
        // A request ends one statement, and none where it comes between two of them.
        for again in (0..=live.left.get()).rev() {
            if let Err(error) = pool.dialer.cancel(&pool.database, server, &live.session.token).await {
                tracing::warn!(
                    connector = pool.database.name,
                    ?error,
                    "a statement could not be cancelled; its time limit ends it"
                );
                break;
            }
            if again > 0 {
                sleep(CANCEL_AGAIN).await;
            }
        }
        match live.steps.get() {
            0 => live.session.abandon(),
            // They run elsewhere.
            _ => live.session.close(),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn connections_are_shared_out_over_shards_to_the_last_one() {
        for (most, shards) in [(8, 1), (8, 3), (3, 3), (100, 7)] {
            let shares: Vec<u32> = (0..shards).map(|shard| share(most, (shard, shards))).collect();
            assert_eq!(shares.iter().sum::<u32>(), most);
            assert!(shares.iter().all(|share| *share >= 1), "{shares:?}");
        }
        assert_eq!(share(2, (2, 3)), 0, "which is refused at the start");
    }
}
