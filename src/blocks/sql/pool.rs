//! The sessions of one shard with one server: at most its share of what the connector allows, handed out in turn.
//!
//! A session comes back clean or not at all: a step's transaction is over, and what a session keeps beyond a transaction is reset.
//! One that was given up at anything is cancelled at the server first, and holds its place until its connection has ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use shards::outcome::Fault;
use shards::runtime::rt::{Clock, sleep, spawn};
use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Error, Statement};

use crate::net::dial::within;
use crate::net::error::Phase;
use crate::net::postgres::{Dialer, Login, Session};
use crate::policy::databases::{Database, PostgresSettings};
use crate::secrets::Redaction;
use crate::worker::random_name;

use super::fault;

/// Statements that one session keeps prepared.
const STATEMENTS_MAX: usize = 64;
/// Longer ones are prepared anew each time, in bytes.
const STATEMENT_BYTES_MAX: usize = 16 << 10;
/// How long a session waits for its next step.
const IDLE_MS_MAX: u64 = 60_000;
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// How long a step waits for a session, in milliseconds.
const WAIT_MS_MAX: u64 = 10_000;
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
    idle: Vec<Live>,
    open: u32,
    waiting: VecDeque<(u64, Waker)>,
    next: u64,
    sessions: u64,
    sweeping: bool,
}

/// A session with what is known of it. Lives on its core.
pub(crate) struct Live {
    pub(crate) session: Session,
    /// By which the server's administrators find it, and we do.
    pub(crate) name: String,
    statements: RefCell<VecDeque<Prepared>>,
    since_ms: u64,
}

struct Prepared {
    sql: Box<str>,
    oids: Box<[u32]>,
    statement: Statement,
}

/// Room for one session; given back when its connection has ended.
struct Place(Weak<Pool>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
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
    /// It may be at something still, or be broken.
    GiveUp,
}

/// A session at work for one step: dropped before it is given back, it is given up. Lives on its core.
pub(crate) struct Lease {
    pool: Rc<Pool>,
    live: Option<Live>,
    /// It has been used before: what fails at once may be its age.
    pub(crate) used: bool,
    /// It may be at something.
    busy: Cell<bool>,
}

impl Pool {
    /// The connections of shard `place.0` of `place.1`.
    pub(crate) fn new(database: Arc<Database>, dialer: Rc<Dialer>, clock: Clock, place: (u16, u16)) -> Pool {
        let most = database.server().map_or(0, |server| share(server.connections_max, place));
        let nonce = random_name()[..8].to_owned();
        Pool { database, dialer, clock, most, nonce, state: RefCell::default() }
    }

    /// A session: one that waits, or a new one where there is room for it.
    pub(crate) async fn take(self: &Rc<Self>, server: &PostgresSettings, left_ms: u64, fresh: bool) -> Result<Lease, Fault> {
        let turn = Turn { pool: self, number: Cell::new(None) };
        let got = within(left_ms.min(WAIT_MS_MAX), Phase::Connect, turn.wait(fresh)).await;
        let got = got.map_err(|_| fault::crowded(&self.database.name))?;
        drop(turn);
        let (live, used) = match got {
            Got::Idle(live) => (live, true),
            Got::Room(place) => (self.open(server, place).await?, false),
        };
        Ok(Lease { pool: self.clone(), live: Some(live), used, busy: Cell::new(false) })
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
        let name = {
            let mut state = self.state.borrow_mut();
            state.sessions += 1;
            format!("endstation/{}-{}", self.nonce, state.sessions)
        };
        let login = Login { user: &server.user, password: secret.as_ref().map(|secret| secret.as_str()) };
        let options = if server.pooler { String::new() } else { self.options() };
        let opened = self.dialer.open(&self.database, server, login, &name, &options, place).await;
        let session = opened.map_err(|error| fault::no_session(&error, &redaction))?;
        Ok(Live { session, name, statements: RefCell::default(), since_ms: self.now_ms() })
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

    fn keep(self: &Rc<Self>, mut live: Live) {
        live.since_ms = self.now_ms();
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
                let (kept, old): (Vec<Live>, Vec<Live>) = std::mem::take(&mut state.idle)
                    .into_iter()
                    .partition(|live| now_ms - live.since_ms < IDLE_MS_MAX && !live.session.client.is_closed());
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
    Idle(Live),
    Room(Place),
}

/// A place in the queue; dropped, it is left.
struct Turn<'a> {
    pool: &'a Rc<Pool>,
    number: Cell<Option<u64>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number.take() {
            self.pool.state.borrow_mut().waiting.retain(|(other, _)| *other != number);
        }
        self.pool.call();
    }
}

impl Turn<'_> {
    async fn wait(&self, fresh: bool) -> Got {
        poll_fn(|cx| {
            let mut state = self.pool.state.borrow_mut();
            let first = state.waiting.front().is_none_or(|(number, _)| Some(*number) == self.number.get());
            if first {
                let dead: Vec<Live> = match fresh {
                    true => std::mem::take(&mut state.idle),
                    false => {
                        let (dead, idle) =
                            std::mem::take(&mut state.idle).into_iter().partition(|live: &Live| live.session.client.is_closed());
                        state.idle = idle;
                        dead
                    }
                };
                let got = match state.idle.pop() {
                    Some(live) => Some(Got::Idle(live)),
                    None if state.open < self.pool.most => {
                        state.open += 1;
                        Some(Got::Room(Place(Rc::downgrade(self.pool))))
                    }
                    None => None,
                };
                if let Some(got) = got {
                    if let Some(number) = self.number.take() {
                        state.waiting.retain(|(other, _)| *other != number);
                    }
                    drop(state);
                    drop(dead);
                    return Poll::Ready(got);
                }
                drop(state);
                drop(dead);
                state = self.pool.state.borrow_mut();
            }
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

    /// From here on it may be at something, until it says that it is not.
    pub(crate) fn busy(&self, busy: bool) {
        self.busy.set(busy);
    }

    /// Ends it: whatever it may be at is over, unless it is given up.
    pub(crate) fn end(mut self, ending: Ending) {
        let reset = match ending {
            Ending::GiveUp => return,
            Ending::Reset(reset) => Some(reset),
            Ending::Keep => None,
            Ending::Unprepare => {
                self.live().statements.borrow_mut().clear();
                None
            }
        };
        let Some(live) = self.live.take().filter(|live| !live.session.client.is_closed()) else { return };
        let pool = self.pool.clone();
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
        if !self.busy.get() || live.session.client.is_closed() {
            return live.session.abandon();
        }
        // Whatever it is at ends at the server too, and only then is there room for another.
        let pool = self.pool.clone();
        spawn("a statement that is cancelled", async move {
            if let Some(server) = pool.database.server()
                && let Err(error) = pool.dialer.cancel(&pool.database, server, &live.session.token).await
            {
                tracing::warn!(
                    connector = pool.database.name,
                    ?error,
                    "a statement could not be cancelled; its time limit ends it"
                );
            }
            live.session.abandon();
        });
    }
}

impl Live {
    /// The statement, prepared now or before.
    pub(crate) async fn prepared(&self, sql: &str, oids: &[u32]) -> Result<Statement, Error> {
        let found = {
            let mut kept = self.statements.borrow_mut();
            let at = kept.iter().position(|one| &*one.sql == sql && &*one.oids == oids);
            at.and_then(|at| kept.remove(at)).map(|one| {
                let statement = one.statement.clone();
                kept.push_front(one);
                statement
            })
        };
        if let Some(statement) = found {
            return Ok(statement);
        }
        let types: Vec<Type> = oids.iter().map(|oid| type_of(*oid)).collect();
        let statement = self.session.client.prepare_typed(sql, &types).await?;
        if sql.len() <= STATEMENT_BYTES_MAX {
            let mut kept = self.statements.borrow_mut();
            kept.truncate(STATEMENTS_MAX - 1);
            kept.push_front(Prepared { sql: sql.into(), oids: oids.into(), statement: statement.clone() });
        }
        Ok(statement)
    }
}

/// The type of this number; of 0 one that the server makes of the statement.
pub(crate) fn type_of(oid: u32) -> Type {
    Type::from_oid(oid).unwrap_or_else(|| Type::new(String::new(), oid, Kind::Simple, String::new()))
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
