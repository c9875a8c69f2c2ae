//! A statement on a PostgreSQL server, in a transaction of the worker's own.
//!
//! What reads goes in one flight: begin, statement, roll back; the server keeps it from writing. What writes goes in two: begin,
//! the record's row, the statement; then the record's outcome and the commit. The row is inserted first, so that of two tries one
//! waits for the other and then finds what it did; where it is there already nothing of the statement runs, for the transaction
//! has failed by then.
//!
//! Where all sessions are in use, quick reads go several to a session, one flight behind the other. One that waits for others too
//! long, or whose session was cancelled on another's account, goes elsewhere and shares no more.
//!
//! Contact that is lost before the commit was sent leaves nothing. Lost after that, the row is looked for before anything else, in
//! a way that waits until the old transaction is over ([`settle`]).

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write as _;
use std::pin::pin;
use std::rc::Rc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::join;
use shards::block::{BlobWriter, BlockCx};
use shards::outcome::{Code, Fault};
use shards::runtime::rt;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, Error, RowStream};

use crate::net::link;
use crate::policy::databases::PostgresSettings;

use super::column::{Raw, Reader};
use super::param::Param;
use super::pool::{Ending, IDLE_IN_TRANSACTION_MS, Lease, Pool, Prepared, Wanted, type_of};
use super::sheet::{Column, Excess, Sheet};
use super::wish::Wish;
use super::{conflict, fault, saved};

mod flight;
mod settle;

use flight::{ahead_of, behind_others};

/// How much of rows is collected before it goes into a blob, in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// A transaction that is taken back takes back every setting; what it does not take back are locks of the session. In one message,
/// so that a pooler takes the session away behind both.
const ROLLBACK: &str = "ROLLBACK;SELECT pg_advisory_unlock_all()";
/// What a transaction that is committed may leave in a session; statements stay prepared.
const RESET: &str = "CLOSE ALL;UNLISTEN *;SET SESSION AUTHORIZATION DEFAULT;RESET ALL;DISCARD SEQUENCES;DISCARD TEMP;\
                     SELECT pg_advisory_unlock_all()";
const INSERT: &str = "INSERT INTO public.endstation_dedup (key, fingerprint) VALUES ($1, $2)";
const OUTCOME: &str = "UPDATE public.endstation_dedup SET outcome = $2 WHERE key = $1";
const FIND: &str = "SELECT fingerprint, outcome FROM public.endstation_dedup WHERE key = $1";

/// A parameter on its way: as text, which the server reads as what it takes it for.
#[derive(Debug)]
struct Text<'a>(Option<Cow<'a, str>>);

impl ToSql for Text<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        Ok(match &self.0 {
            Some(text) => {
                out.put_slice(text.as_bytes());
                IsNull::No
            }
            None => IsNull::Yes,
        })
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Why a flight came to nothing.
enum Trouble {
    /// The step's fault; the session is in order.
    Fault(Fault),
    /// A fault of our own making: more of the answer may be on its way.
    Own(Fault),
    /// The contact broke before anything could be committed.
    Broken(String),
    /// It broke while it may have been.
    Ambiguous(String),
    /// What was prepared does not hold any more.
    Stale,
    /// Nothing that is its own: others are in its way.
    Elsewhere,
}

impl From<Excess> for Trouble {
    fn from(excess: Excess) -> Self {
        Trouble::Own(fault::excess(&excess))
    }
}

/// One step on one server.
struct Errand<'a> {
    pool: &'a Rc<Pool>,
    server: &'a PostgresSettings,
    cx: &'a BlockCx,
    wish: &'a Wish<'a>,
    sql: Cow<'a, str>,
    oids: Vec<u32>,
    /// Nothing is prepared.
    unnamed: Cell<bool>,
    /// It is in nobody's session, and nobody in its own.
    alone: Cell<bool>,
    /// When it began, by the pool's clock.
    begun_ms: u64,
}

pub(super) async fn run(
    pool: &Rc<Pool>,
    server: &PostgresSettings,
    cx: &BlockCx,
    wish: &Wish<'_>,
    mut writer: Option<Box<dyn BlobWriter>>,
) -> Result<Bytes, Fault> {
    let trace = cx.trace_id.as_deref().filter(|_| server.trace);
    let parent = trace.and_then(|trace| super::super::http::traceparent(trace, &cx.key, cx.try_number));
    let sql = match parent.as_ref().and_then(|parent| parent.to_str().ok()) {
        // On a line of its own: the statement may end with a comment.
        Some(parent) => Cow::Owned(format!("{}\n/*traceparent='{parent}'*/", wish.sql)),
        None => Cow::Borrowed(&*wish.sql),
    };
    let unnamed = server.pooler || matches!(sql, Cow::Owned(_));
    let oids = wish.params.iter().map(|param: &Param| param.oid).collect();
    let alone = Cell::new(wish.writes || unnamed || writer.is_some());
    let unnamed = Cell::new(unnamed);
    let errand = Errand { pool, server, cx, wish, sql, oids, unnamed, alone, begun_ms: pool.now_ms() };
    // A session that has waited may have been cut off meanwhile: that is found out by using it, once.
    let mut again = true;
    let mut fresh = None;
    loop {
        let wanted = match fresh {
            Some(old) => Wanted::Fresh(old),
            None if errand.alone.get() => Wanted::Any,
            None => Wanted::Shared(&errand.sql, &errand.oids),
        };
        let lease = pool.take(server, errand.left_ms(), wanted).await?;
        let (used, number, ended) = (lease.used, lease.live().number, lease.live().session.ended.clone());
        let name = if wish.writes { lease.live().name.clone() } else { String::new() };
        let done = match wish.writes {
            true => errand.write(lease).await,
            false => errand.read(lease, &mut writer).await,
        };
        let trouble = match done {
            Ok(outputs) => return Ok(outputs),
            Err(trouble) => trouble,
        };
        match trouble {
            Trouble::Fault(fault) | Trouble::Own(fault) => return Err(fault),
            Trouble::Elsewhere => errand.alone.set(true),
            // Other sessions have prepared it as long ago as this one.
            Trouble::Stale if std::mem::take(&mut again) => {
                errand.alone.set(true);
                errand.unnamed.set(true);
            }
            Trouble::Stale => return Err(fault::broken("what was prepared does not hold", false)),
            Trouble::Broken(why) => {
                let why = ended.borrow().clone().unwrap_or(why);
                if let Some(fault) = fault::too_long(&why) {
                    return Err(fault);
                }
                // Nothing of it may have gone into a blob.
                if !(used && writer.is_none() && std::mem::take(&mut again)) {
                    return Err(fault::broken(&why, false));
                }
                fresh = Some(number);
            }
            Trouble::Ambiguous(why) if pool.database.settings.dedup => {
                return settle::settle(&errand, (number, &name), &why).await;
            }
            Trouble::Ambiguous(why) => return Err(fault::broken(&why, true)),
        }
    }
}

impl Errand<'_> {
    fn left_ms(&self) -> u64 {
        self.cx.left_ms.saturating_sub(self.pool.now_ms() - self.begun_ms)
    }

    /// What begins a transaction: its own limits where they are not the session's, and the moment at which the server ends it if
    /// nobody else does.
    fn begin(&self, how: &str) -> String {
        let settings = &self.pool.database.settings;
        let left_ms = self.left_ms();
        let statement_ms = settings.statement_ms.min(self.wish.timeout_ms).min(left_ms).max(1);
        let lock_ms = settings.lock_ms.min(statement_ms).max(1);
        let mut text = format!("BEGIN {how}");
        // What is left of the step's own time is the worker's to keep to; the server's limit is there for when it cannot.
        let by_the_session = !self.server.pooler
            && self.wish.timeout_ms >= settings.statement_ms
            && left_ms >= settings.lock_ms
            && left_ms >= settings.statement_ms / 2;
        if !by_the_session {
            let _ = write!(text, ";SET LOCAL statement_timeout={statement_ms};SET LOCAL lock_timeout={lock_ms}");
        }
        if self.server.pooler {
            let _ = write!(
                text,
                ";SET LOCAL idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS};SET LOCAL TimeZone='UTC';SET LOCAL DateStyle='ISO'"
            );
        }
        text
    }

    fn params(&self) -> Vec<Text<'_>> {
        self.wish.params.iter().map(|param| Text(param.given.text())).collect()
    }

    /// The statement as it is sent: prepared, or none where nothing is.
    async fn statement(&self, lease: &Lease) -> Result<Option<Rc<Prepared>>, Trouble> {
        if self.unnamed.get() {
            return Ok(None);
        }
        let prepared = lease.live().prepared(&self.sql, &self.oids).await;
        let prepared = prepared.map_err(|error| self.trouble(&error))?;
        let (wanted, given) = (prepared.statement.params().len(), self.wish.params.len());
        if wanted != given {
            return Err(Trouble::Fault(fault::count(wanted, given)));
        }
        Ok(Some(prepared))
    }

    async fn send<'t>(&self, client: &Client, prepared: Option<&Prepared>, params: &'t [Text<'t>]) -> Result<RowStream, Error> {
        let borrowed = params.iter().map(|param| param as &(dyn ToSql + Sync));
        match prepared {
            Some(prepared) => client.query_raw(&prepared.statement, borrowed).await,
            None => client.query_typed_raw(&self.sql, borrowed.zip(self.oids.iter().map(|oid| type_of(*oid)))).await,
        }
    }

    /// What the server says of the step's statement, or that it says nothing any more.
    fn trouble(&self, error: &Error) -> Trouble {
        match error.as_db_error() {
            Some(said) if is_fatal(said) => Trouble::Broken(format!("{}: {}", said.code().code(), said.message())),
            Some(said) if fault::is_stale(said) => Trouble::Stale,
            Some(said) => Trouble::Fault(fault::said(said, self.wish.writes)),
            None => Trouble::Broken(link::text(error)),
        }
    }

    /// One flight there and back.
    async fn read(&self, lease: Lease, writer: &mut Option<Box<dyn BlobWriter>>) -> Result<Bytes, Trouble> {
        lease.busy(true);
        let (done, ending) = self.read_on(&lease, writer).await;
        let (cut, shared) = (lease.was_cut(), lease.was_shared());
        lease.end(ending);
        match done {
            Err(_) if cut => Err(Trouble::Elsewhere),
            Err(Trouble::Broken(_)) if shared => Err(Trouble::Elsewhere),
            done => self.outputs_of(done?, writer).await,
        }
    }

    async fn read_on(&self, lease: &Lease, writer: &mut Option<Box<dyn BlobWriter>>) -> (Result<Sheet, Trouble>, Ending) {
        let statement = match self.statement(lease).await {
            Ok(statement) => statement,
            Err(trouble) => return in_order(trouble),
        };
        if let Some(prepared) = &statement
            && prepared.is_quick()
            && !self.alone.get()
        {
            lease.share();
        }
        let statement = statement.as_deref();
        let client = &lease.live().session.client;
        let begin = self.begin(self.wish.isolation.read_only());
        let params = self.params();
        let (sent_us, begun_us) = (self.pool.now_us(), Cell::new(0));
        let begin = async {
            let begun = client.batch_execute(&begin).await;
            begun_us.set(self.pool.now_us());
            lease.begin(begun_us.get() - sent_us);
            begun
        };
        let mut end = pin!(client.batch_execute(ROLLBACK));
        let sent = match self.server.pooler {
            // Behind a pooler nothing keeps a statement from writing whose transaction could not begin.
            true => match begin.await {
                Ok(()) => self.send(client, statement, &params).await,
                Err(error) => Err(error),
            },
            false => {
                let both = ahead_of(join(begin, self.send(client, statement, &params)), end.as_mut());
                match behind_others(lease, both).await {
                    Some((Ok(()), sent)) => sent,
                    // The statement ran without a transaction: what it left in the session, nothing takes back.
                    Some((Err(error), _)) => return (Err(self.trouble(&error)), Ending::GiveUp),
                    None => return (Err(Trouble::Elsewhere), Ending::GiveUp),
                }
            }
        };
        let done = match sent {
            Ok(rows) => self.rows(rows, statement, writer).await.map(|(sheet, _)| sheet),
            Err(error) => Err(self.trouble(&error)),
        };
        if let (Some(prepared), Ok(_), None) = (statement, &done, &writer) {
            prepared.took(self.pool.now_us() - begun_us.get());
        }
        match done {
            // More rows than the step takes may still be on their way.
            Err(trouble @ Trouble::Own(_)) => (Err(trouble), Ending::Retire),
            Err(trouble @ Trouble::Broken(_)) => (Err(trouble), Ending::GiveUp),
            done => match end.await {
                Ok(()) => done.map_or_else(in_order, |sheet| (Ok(sheet), Ending::Keep)),
                Err(_) => (done, Ending::GiveUp),
            },
        }
    }

    async fn outputs_of(&self, mut sheet: Sheet, writer: &mut Option<Box<dyn BlobWriter>>) -> Result<Bytes, Trouble> {
        let Some(mut writer) = writer.take() else { return Ok(sheet.outputs("")) };
        if sheet.pending() > 0 {
            writer.write(sheet.take()).await.map_err(Trouble::Fault)?;
        }
        let stored = writer.finish().await.map_err(Trouble::Fault)?;
        Ok(saved(self.wish, sheet.rows(), &sheet.columns_json(), &stored))
    }

    /// All rows of a statement, and how many it changed.
    async fn rows(
        &self,
        rows: RowStream,
        prepared: Option<&Prepared>,
        writer: &mut Option<Box<dyn BlobWriter>>,
    ) -> Result<(Sheet, u64), Trouble> {
        let new = |columns: &[tokio_postgres::Column]| {
            let of =
                |column: &tokio_postgres::Column| Column { name: column.name().to_owned(), of: column.type_().name().to_owned() };
            let readers: Vec<Reader> = columns.iter().map(|column| Reader::of(column.type_())).collect();
            let sheet = Sheet::new(self.wish.form, self.wish.bounds, columns.iter().map(of).collect());
            sheet.map(|sheet| (sheet, readers))
        };
        let mut made = prepared.map(|prepared| new(prepared.statement.columns())).transpose()?;
        let mut rows = pin!(rows);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|error| self.trouble(&error))?;
            let (sheet, readers) = match &mut made {
                Some(made) => made,
                None => made.insert(new(row.columns())?),
            };
            let mut odd = None;
            sheet.row::<Trouble>(|at, out, left| {
                let Raw(raw) = row.try_get(at).map_err(|error| Trouble::Broken(link::text(&error)))?;
                if raw.is_some_and(|raw| raw.len() as u64 > left) {
                    return Err(Excess::Bytes(self.wish.bounds.bytes_max).into());
                }
                if let Err(why) = readers[at].write(raw, out) {
                    odd = Some((at, why));
                    out.extend_from_slice(b"null");
                }
                Ok(())
            })?;
            if let Some((at, why)) = odd {
                return Err(sheet.odd(at, why).into());
            }
            if let Some(writer) = writer.as_mut().filter(|_| sheet.pending() >= PIECE_BYTES) {
                writer.write(sheet.take()).await.map_err(Trouble::Own)?;
            }
            rt::yield_if_needed().await;
        }
        let affected = rows.rows_affected().unwrap_or(0);
        let (sheet, _) = match made {
            Some(made) => made,
            None => new(&[])?,
        };
        Ok((sheet, affected))
    }

    /// Takes a transaction back.
    async fn roll_back(&self, client: &Client, trouble: Trouble) -> (Result<Bytes, Trouble>, Ending) {
        if matches!(trouble, Trouble::Broken(_) | Trouble::Own(_)) {
            return (Err(trouble), Ending::GiveUp);
        }
        match client.batch_execute(ROLLBACK).await {
            Ok(()) => in_order(trouble),
            // Without its session a transaction is taken back as well.
            Err(_) => (Err(trouble), Ending::GiveUp),
        }
    }

    /// Two flights, the second of which commits.
    async fn write(&self, lease: Lease) -> Result<Bytes, Trouble> {
        lease.busy(true);
        let (done, ending) = self.write_on(&lease).await;
        lease.end(ending);
        done
    }

    async fn write_on(&self, lease: &Lease) -> (Result<Bytes, Trouble>, Ending) {
        let dedup = self.pool.database.settings.dedup;
        let prepared = async { Ok((self.statement(lease).await?, self.record(lease, dedup).await?)) };
        let (statement, record) = match prepared.await {
            Ok(prepared) => prepared,
            Err(trouble) => return in_order(trouble),
        };
        let client = &lease.live().session.client;
        let begin = self.begin(self.wish.isolation.read_write());
        let params = self.params();
        let (key, fingerprint) = (&self.cx.key.0[..], self.wish.fingerprint());
        let fingerprint = &fingerprint[..];
        let insert = async {
            let prepared = record.as_ref().map(|(insert, _)| &**insert);
            match dedup {
                true => run_own(client, prepared, INSERT, &[(&key, Type::BYTEA), (&fingerprint, Type::BYTEA)]).await.map(drop),
                false => Ok(()),
            }
        };
        let begun = client.batch_execute(&begin);
        // A session's own default is that nothing is written: if the transaction does not begin, neither of the others does
        // anything. Behind a pooler there is no such default, and each waits for the one before it.
        let (begun, inserted, sent) = if self.server.pooler {
            match begun.await {
                Err(error) => (Err(error), Ok(()), None),
                Ok(()) => match insert.await {
                    Err(error) => (Ok(()), Err(error), None),
                    Ok(()) => (Ok(()), Ok(()), Some(self.send(client, statement.as_deref(), &params).await)),
                },
            }
        } else {
            let (begun, (inserted, sent)) = join(begun, join(insert, self.send(client, statement.as_deref(), &params))).await;
            (begun, inserted, Some(sent))
        };
        if let Err(error) = begun {
            let trouble = match error.as_db_error() {
                Some(said) if !is_fatal(said) => {
                    // Another server writes by now; these sessions lead to one that does not.
                    self.pool.forget();
                    Trouble::Fault(fault::not_begun(said))
                }
                _ => self.trouble(&error),
            };
            return self.roll_back(client, trouble).await;
        }
        if let Err(error) = inserted {
            drop(sent);
            return self.not_inserted(client, &error).await;
        }
        let rows = match sent {
            Some(Ok(rows)) => self.rows(rows, statement.as_deref(), &mut None).await,
            Some(Err(error)) => Err(self.trouble(&error)),
            None => Err(Trouble::Broken("the statement was not sent".to_owned())),
        };
        let (sheet, affected) = match rows {
            Ok(done) => done,
            Err(trouble) => return self.roll_back(client, trouble).await,
        };
        let outputs = sheet.outputs(&format!("\"affected\":{affected},\"dedup\":{dedup},"));
        let told = std::str::from_utf8(&outputs).unwrap_or_default();
        let update = async {
            let prepared = record.as_ref().map(|(_, update)| &**update);
            match dedup {
                true => run_own(client, prepared, OUTCOME, &[(&key, Type::BYTEA), (&told, Type::TEXT)]).await.map(Some),
                false => Ok(None),
            }
        };
        // From here on it may be committed, whatever we hear of it.
        let (updated, committed) = join(update, client.batch_execute("COMMIT")).await;
        fail::fail_point!("C3", |_| std::process::abort());
        let refused = |error: &Error| error.as_db_error().is_some_and(|said| !is_fatal(said));
        match (updated, committed) {
            (Ok(kept), Ok(())) => {
                if kept == Some(0) {
                    tracing::warn!(connector = self.pool.database.name, "a statement removed the record of its own step");
                }
                (Ok(outputs), if self.server.pooler { Ending::Keep } else { Ending::Reset(RESET) })
            }
            // The commit found a transaction that had failed, and took it back; or it failed itself, and nothing of it stays.
            (Err(error), Ok(())) | (_, Err(error)) if refused(&error) => in_order(self.trouble(&error)),
            (Err(error), _) | (_, Err(error)) => (Err(Trouble::Ambiguous(link::text(&error))), Ending::GiveUp),
        }
    }

    /// The worker's own statements, prepared where anything is.
    async fn record(&self, lease: &Lease, dedup: bool) -> Result<Option<(Rc<Prepared>, Rc<Prepared>)>, Trouble> {
        if !dedup || self.server.pooler {
            return Ok(None);
        }
        let live = lease.live();
        let both = async { Ok::<_, Error>((live.prepared(INSERT, &[17, 17]).await?, live.prepared(OUTCOME, &[17, 25]).await?)) };
        both.await.map(Some).map_err(|error| self.no_record(&error))
    }

    /// What the server says of one of these.
    fn no_record(&self, error: &Error) -> Trouble {
        match error.as_db_error() {
            Some(said) if is_missing(said.code()) => Trouble::Fault(fault::no_table(&self.pool.database.name, said)),
            _ => self.trouble(error),
        }
    }

    /// The record's row could not be inserted: it is there already, or there is no table for it.
    async fn not_inserted(&self, client: &Client, error: &Error) -> (Result<Bytes, Trouble>, Ending) {
        if !error.as_db_error().is_some_and(is_there) {
            return self.roll_back(client, self.no_record(error)).await;
        }
        let found = async {
            client.batch_execute(ROLLBACK).await?;
            self.found(client).await
        };
        match found.await {
            Ok(found) => (found.map_err(Trouble::Fault), Ending::Keep),
            Err(error) => in_order(self.no_record(&error)),
        }
    }

    /// What the record of this step's key says.
    async fn found(&self, client: &Client) -> Result<Result<Bytes, Fault>, Error> {
        let key = &self.cx.key.0[..];
        let rows = client.query_typed(FIND, &[(&key, Type::BYTEA)]).await?;
        let Some(row) = rows.first() else {
            // Whoever had inserted it took it back in this moment.
            let fault = Fault::new(Code::ResourceUnavailable, "Another try of the step was taken back meanwhile.");
            return Ok(Err(fault));
        };
        let (theirs, outcome): (Vec<u8>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(match outcome {
            _ if theirs != self.wish.fingerprint() => Err(conflict()),
            Some(outcome) => Ok(Bytes::from(outcome)),
            None => Err(fault::broken("the record has no outcome", true)),
        })
    }
}

/// Runs one of the worker's own statements; how many rows it changed.
async fn run_own(
    client: &Client,
    prepared: Option<&Prepared>,
    sql: &str,
    params: &[(&(dyn ToSql + Sync), Type)],
) -> Result<u64, Error> {
    match prepared {
        Some(prepared) => client.execute_raw(&prepared.statement, params.iter().map(|(param, _)| *param)).await,
        None => client.execute_typed(sql, params).await,
    }
}

/// A session that is in order in spite of a trouble.
fn in_order<T>(trouble: Trouble) -> (Result<T, Trouble>, Ending) {
    let ending = match &trouble {
        Trouble::Fault(_) => Ending::Keep,
        Trouble::Stale => Ending::Unprepare,
        Trouble::Own(_) | Trouble::Broken(_) | Trouble::Ambiguous(_) | Trouble::Elsewhere => Ending::GiveUp,
    };
    (Err(trouble), ending)
}

/// The server has ended the session, or is about to.
fn is_fatal(said: &DbError) -> bool {
    matches!(said.severity(), "FATAL" | "PANIC")
        || said.code().code().starts_with("57P")
        || said.code().code().starts_with("08") && *said.code() != SqlState::PROTOCOL_VIOLATION
}

fn is_there(said: &DbError) -> bool {
    *said.code() == SqlState::UNIQUE_VIOLATION && said.table() == Some(super::DEDUP)
}

fn is_missing(code: &SqlState) -> bool {
    [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN, SqlState::INSUFFICIENT_PRIVILEGE, SqlState::INVALID_SCHEMA_NAME]
        .contains(code)
}
