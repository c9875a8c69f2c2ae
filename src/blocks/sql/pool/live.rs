//! One session, and the statements that it keeps: how long they take says whether others may join.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Error, Statement};

use crate::net::postgres::Session;

/// Statements that one session keeps prepared.
const STATEMENTS_MAX: usize = 64;
/// Longer ones are prepared anew each time, in bytes.
const STATEMENT_BYTES_MAX: usize = 16 << 10;
/// A statement that takes no longer is quick, in microseconds.
const QUICK_US: u32 = 5_000;

/// A session with what is known of it. Lives on its core.
pub(crate) struct Live {
    pub(crate) session: Session,
    /// By which the server's administrators find it, and we do.
    pub(crate) name: String,
    /// Sessions are numbered as they are opened.
    pub(crate) number: u64,
    statements: RefCell<VecDeque<Rc<Prepared>>>,
    pub(super) since_ms: Cell<u64>,
    /// Steps at work in it.
    pub(super) steps: Cell<u32>,
    /// No other begins in it, and it does not come back.
    pub(super) retired: Cell<bool>,
    /// It was cancelled at the server, at whatever it was.
    pub(super) cut: Cell<bool>,
    /// Others could join since it was idle.
    pub(super) shared: Cell<bool>,
    /// Statements in it whose steps have left.
    pub(super) left: Cell<u32>,
    /// How long a transaction took to begin, the way there and back with it, in microseconds.
    pub(super) begun_in_us: Cell<u64>,
}

/// A statement that a session keeps. Lives on its core.
pub(crate) struct Prepared {
    sql: Box<str>,
    oids: Box<[u32]>,
    pub(crate) statement: Statement,
    /// How long it takes, once it is known, in microseconds.
    took_us: Cell<Option<u32>>,
}

impl Prepared {
    /// Whether it has been quick so far.
    pub(crate) fn is_quick(&self) -> bool {
        self.took_us.get().is_some_and(|us| us <= QUICK_US)
    }

    /// Remembers how long it took this time: one that is slow is believed at once, one that is quick again after a while.
    pub(crate) fn took(&self, us: u64) {
        let us = u32::try_from(us).unwrap_or(u32::MAX);
        self.took_us.set(Some(match self.took_us.get() {
            Some(before) if us <= QUICK_US => ((u64::from(before) * 3 + u64::from(us)) / 4) as u32,
            _ => us,
        }));
    }

    fn is(&self, sql: &str, oids: &[u32]) -> bool {
        *self.sql == *sql && *self.oids == *oids
    }
}

impl Live {
    /// One that was just opened.
    pub(super) fn new(session: Session, name: String, number: u64, now_ms: u64) -> Live {
        Live {
            session,
            name,
            number,
            statements: RefCell::default(),
            since_ms: Cell::new(now_ms),
            steps: Cell::new(0),
            retired: Cell::new(false),
            cut: Cell::new(false),
            shared: Cell::new(false),
            left: Cell::new(0),
            begun_in_us: Cell::new(0),
        }
    }

    /// The statement, prepared now or before.
    pub(crate) async fn prepared(&self, sql: &str, oids: &[u32]) -> Result<Rc<Prepared>, Error> {
        {
            let mut kept = self.statements.borrow_mut();
            let found = kept.iter().position(|one| one.is(sql, oids));
            if let Some(one) = found.and_then(|at| kept.remove(at)) {
                kept.push_front(one.clone());
                return Ok(one);
            }
        }
        let types: Vec<Type> = oids.iter().map(|oid| type_of(*oid)).collect();
        let statement = self.session.client.prepare_typed(sql, &types).await?;
        let prepared = Rc::new(Prepared { sql: sql.into(), oids: oids.into(), statement, took_us: Cell::new(None) });
        if sql.len() <= STATEMENT_BYTES_MAX {
            let mut kept = self.statements.borrow_mut();
            kept.truncate(STATEMENTS_MAX - 1);
            kept.push_front(prepared.clone());
        }
        Ok(prepared)
    }

    /// Nothing that it has prepared holds any more.
    pub(super) fn unprepare(&self) {
        self.statements.borrow_mut().clear();
    }

    /// Whether it keeps this statement, and that is quick.
    pub(super) fn is_quick_at(&self, sql: &str, oids: &[u32]) -> bool {
        self.statements.borrow().iter().any(|one| one.is(sql, oids) && one.is_quick())
    }
}

/// The type of this number; of 0 one that the server makes of the statement.
pub(crate) fn type_of(oid: u32) -> Type {
    Type::from_oid(oid).unwrap_or_else(|| Type::new(String::new(), oid, Kind::Simple, String::new()))
}
