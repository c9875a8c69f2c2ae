//! One open file of SQLite and one order at a time on it. Blocks.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, OpenFlags, OptionalExtension, Statement, ffi, params};

use super::judge::judge;
use super::{Done, Failed, Order, PIECE_BYTES};
use crate::blocks::sql::param::Given;
use crate::blocks::sql::sheet::{Column, Excess, Sheet, push_float, push_quoted};

/// The longest value, in bytes.
const VALUE_BYTES_MAX: i32 = 16 << 20;
const SQL_BYTES_MAX: i32 = 256 << 10;
/// What all open files together may keep in memory, in bytes: sorting goes on there, and nothing is ever written beside a file.
const HEAP_BYTES_MAX: i64 = 256 << 20;
/// A disk with this much left is not what was full, in bytes.
const DISK_BYTES_SPARE: u64 = 4 << 20;
/// How often a statement looks whether it should go on, in SQLite's own instructions: well under a millisecond.
const LOOK_EVERY: std::ffi::c_int = 2_000;
/// Records are kept for so long: far longer than a journal remembers, which is 30 days at most.
const RECORDS_MS: i64 = 40 * 86_400_000;
/// Old records that a write takes away beside its own work.
const PRUNE_MAX: u32 = 16;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS endstation_dedup (
        key BLOB PRIMARY KEY NOT NULL, fingerprint BLOB NOT NULL, outcome TEXT NOT NULL, created_at INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS endstation_dedup_created_at ON endstation_dedup (created_at);";
const FIND: &str = "SELECT fingerprint, outcome FROM endstation_dedup WHERE key = ?1";
const KEEP: &str = "INSERT INTO endstation_dedup (key, fingerprint, outcome, created_at) VALUES (?1, ?2, ?3, ?4)";
const PRUNE: &str = "DELETE FROM endstation_dedup WHERE key IN
    (SELECT key FROM endstation_dedup WHERE created_at < ?1 ORDER BY created_at LIMIT ?2)";

/// See the module.
pub(super) struct Open {
    connection: Connection,
    /// Whether what is prepared or run is a tenant's.
    theirs: Arc<AtomicBool>,
    bytes_max: u64,
    /// The table for records is there.
    keeps: bool,
}

/// While it lives, what is prepared and run is a tenant's.
struct Theirs<'a>(&'a AtomicBool);

impl<'a> Theirs<'a> {
    fn begin(flag: &'a AtomicBool) -> Self {
        flag.store(true, Relaxed);
        Theirs(flag)
    }
}

impl Drop for Theirs<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl Open {
    /// Opens the file, making it and its folders where they are not there.
    pub(super) fn new(path: &Path) -> Result<Open, Failed> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let unusable = |error: std::io::Error| Failed::Sqlite {
            code: ffi::SQLITE_CANTOPEN,
            message: error.kind().to_string(),
            offset: None,
        };
        let new = !path.exists();
        if new {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(told)?;
        let theirs = Arc::new(AtomicBool::new(false));
        settle(&mut connection, &theirs).map_err(told)?;
        if new {
            // A file whose entry is not durable is no file after a power cut, whatever was synced into it.
            for above in folder.ancestors().take(3) {
                File::open(above).and_then(|above| above.sync_all()).map_err(unusable)?;
            }
        }
        Ok(Open { connection, theirs, bytes_max: 0, keeps: false })
    }

    /// One order, from its beginning to what came of it. Whatever it is, no transaction is open after it.
    pub(super) fn perform(&mut self, order: Order, until: Instant, wanted: &Arc<AtomicBool>) -> Result<Done, Failed> {
        let (watched, late) = (wanted.clone(), Arc::new(AtomicBool::new(false)));
        let told_late = late.clone();
        let look = move || {
            if Instant::now() >= until {
                told_late.store(true, Relaxed);
            }
            told_late.load(Relaxed) || !watched.load(Relaxed)
        };
        self.connection.progress_handler(LOOK_EVERY, Some(look)).map_err(told)?;
        let done = match order.writes {
            true => self.write(&order, until),
            false => self.read(&order, until),
        };
        self.connection.progress_handler(0, None::<fn() -> bool>).map_err(told)?;
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").map_err(|error| Failed::Unknown(error.to_string()))?;
        }
        match done {
            Err(Failed::Sqlite { code: ffi::SQLITE_INTERRUPT, .. }) if late.load(Relaxed) => Err(Failed::Late),
            Err(Failed::Sqlite { code: ffi::SQLITE_INTERRUPT, .. }) => Err(Failed::Unwanted),
            Err(Failed::Sqlite { code: ffi::SQLITE_FULL, .. }) if self.is_full() => Err(Failed::NoRoom),
            done => done,
        }
    }

    fn read(&mut self, order: &Order, until: Instant) -> Result<Done, Failed> {
        self.wait_at_most(order, until)?;
        self.run(order, false).map(|(done, _)| done)
    }

    fn write(&mut self, order: &Order, until: Instant) -> Result<Done, Failed> {
        self.wait_at_most(order, until)?;
        self.limit(order.bytes_max)?;
        if order.record.is_some() && !self.keeps {
            self.connection.execute_batch(SCHEMA).map_err(told)?;
            self.keeps = true;
        }
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(told)?;
        if let Some((key, fingerprint)) = &order.record {
            let found = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?));
            let known = self.connection.query_row(FIND, params![key], found).optional().map_err(told)?;
            match known {
                Some((theirs, outcome)) if theirs == fingerprint => return Ok(Done::Outputs(outcome.into())),
                Some(_) => return Err(Failed::Conflict),
                None => {}
            }
        }
        let (done, outputs) = self.run(order, true)?;
        if let Some((key, fingerprint)) = &order.record {
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
            self.connection.execute(KEEP, params![key, fingerprint, outputs, now_ms]).map_err(told)?;
            self.connection.execute(PRUNE, params![now_ms - RECORDS_MS, PRUNE_MAX]).map_err(told)?;
        }
        match self.connection.execute_batch("COMMIT").map_err(told) {
            Ok(()) => {}
            // Nothing of these reached the file's log.
            Err(failed @ Failed::Sqlite { code: ffi::SQLITE_FULL | ffi::SQLITE_BUSY | ffi::SQLITE_INTERRUPT, .. }) => {
                return Err(failed);
            }
            Err(failed @ Failed::Sqlite { code, .. }) if code & 0xff == ffi::SQLITE_CONSTRAINT => return Err(failed),
            Err(failed) => return Err(Failed::Unknown(format!("{failed:?}"))),
        }
        fail::fail_point!("C3", |_| std::process::abort());
        Ok(done)
    }

    /// The statement itself; beside what comes of it the outputs as text, where it writes.
    fn run(&self, order: &Order, writes: bool) -> Result<(Done, String), Failed> {
        let theirs = Theirs::begin(&self.theirs);
        let before = self.connection.total_changes();
        let mut statement = self.connection.prepare(&order.sql).map_err(told)?;
        if !writes && !statement.readonly() {
            return Err(Failed::Writes);
        }
        bind(&mut statement, &order.params)?;
        let columns = statement.columns();
        let of = |column: &rusqlite::Column<'_>| Column {
            name: column.name().to_owned(),
            of: column.decl_type().unwrap_or_default().to_ascii_lowercase(),
        };
        let columns: Vec<Column> = columns.map(|column| of(&column)).collect();
        let mut sheet = Sheet::new(order.form, order.bounds, columns)?;
        let odd = |at: usize, sheet: &Sheet| Failed::Excess(sheet.odd(at, "it is no text in UTF-8"));
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(told)? {
            let mut broken = None;
            let written = sheet.row::<Failed>(|at, out, left| {
                let value = row.get_ref(at).map_err(told)?;
                if !push(value, out, left, order.bounds.bytes_max)? {
                    broken = Some(at);
                }
                Ok(())
            });
            written?;
            if let Some(at) = broken {
                return Err(odd(at, &sheet));
            }
            if let Some(pieces) = order.pieces.as_ref().filter(|_| sheet.pending() >= PIECE_BYTES) {
                pieces.blocking_send(sheet.take()).map_err(|_| Failed::Unwanted)?;
            }
        }
        drop(rows);
        drop(statement);
        drop(theirs);
        if let Some(pieces) = &order.pieces {
            if sheet.pending() > 0 {
                pieces.blocking_send(sheet.take()).map_err(|_| Failed::Unwanted)?;
            }
            return Ok((Done::Sent { rows: sheet.rows(), columns: sheet.columns_json() }, String::new()));
        }
        if !writes {
            return Ok((Done::Outputs(sheet.outputs("")), String::new()));
        }
        // What a statement that changes nothing leaves of an earlier one's count is not its own.
        let changed = self.connection.total_changes() != before;
        let affected = if changed { self.connection.changes() } else { 0 };
        let outputs = sheet.outputs(&format!("\"affected\":{affected},\"dedup\":{},", order.record.is_some()));
        let text = String::from_utf8_lossy(&outputs).into_owned();
        Ok((Done::Outputs(outputs), text))
    }

    fn wait_at_most(&self, order: &Order, until: Instant) -> Result<(), Failed> {
        let left = until.saturating_duration_since(Instant::now());
        self.connection.busy_timeout(left.min(Duration::from_millis(order.lock_ms))).map_err(told)
    }

    /// Bounds the file.
    fn limit(&mut self, bytes_max: u64) -> Result<(), Failed> {
        if self.bytes_max != bytes_max {
            let page: i64 = self.connection.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(told)?;
            let pages = (bytes_max as i64 / page.max(1)).max(1);
            let set = self.connection.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0));
            set.map_err(told)?;
            self.bytes_max = bytes_max;
        }
        Ok(())
    }

    /// Whether a file that takes no more has all that it may have, and not the disk.
    fn is_full(&self) -> bool {
        free_bytes(self.connection.path()) > DISK_BYTES_SPARE
    }
}

/// What the disk of this file has left, in bytes.
fn free_bytes(path: Option<&str>) -> u64 {
    let stat = path.and_then(|path| rustix::fs::statvfs(path).ok());
    stat.map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Settings that hold for as long as the file is open.
fn settle(connection: &mut Connection, theirs: &Arc<AtomicBool>) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, SQL_BYTES_MAX)?;
    connection.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    debug_assert_eq!(mode, "wal");
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -2_048)?;
    connection.pragma_update_and_check(None, "hard_heap_limit", HEAP_BYTES_MAX, |row| row.get::<_, i64>(0))?;
    connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |row| row.get::<_, i64>(0))?;
    let theirs = theirs.clone();
    connection.authorizer(Some(
        move |context: rusqlite::hooks::AuthContext<'_>| {
            if theirs.load(Relaxed) { judge(&context) } else { rusqlite::hooks::Authorization::Allow }
        },
    ))
}

/// Parameters by their numbers, however they are written: `?`, `?2` or `$2`.
fn bind(statement: &mut Statement<'_>, given: &[Given]) -> Result<(), Failed> {
    let wanted = statement.parameter_count();
    let mut most = 0;
    for at in 1..=wanted {
        let number = match statement.parameter_name(at) {
            Some(name) if name.starts_with('$') => name[1..].parse::<usize>().ok().filter(|number| *number > 0),
            Some(name) if name.starts_with('?') => Some(at),
            Some(_) => None,
            None => Some(at),
        };
        let number = number.ok_or(Failed::Named)?;
        most = most.max(number);
        if let Some(given) = given.get(number - 1) {
            bind_one(statement, at, given).map_err(told)?;
        }
    }
    if most == given.len() { Ok(()) } else { Err(Failed::Params(most)) }
}

fn bind_one(statement: &mut Statement<'_>, at: usize, given: &Given) -> rusqlite::Result<()> {
    match given {
        Given::Null => statement.raw_bind_parameter(at, rusqlite::types::Null),
        Given::Bool(flag) => statement.raw_bind_parameter(at, flag),
        Given::Number(text) => match text.parse::<i64>() {
            Ok(whole) => statement.raw_bind_parameter(at, whole),
            Err(_) => statement.raw_bind_parameter(at, text.parse::<f64>().unwrap_or(f64::NAN)),
        },
        Given::Text(text) | Given::List(text) => statement.raw_bind_parameter(at, text),
        Given::Bytes(bytes) => statement.raw_bind_parameter(at, bytes),
    }
}

/// A value as JSON. False: it is a text that is none.
fn push(value: ValueRef<'_>, out: &mut Vec<u8>, left: u64, most: u64) -> Result<bool, Excess> {
    let fits = |bytes: &[u8]| if bytes.len() as u64 <= left { Ok(()) } else { Err(Excess::Bytes(most)) };
    match value {
        ValueRef::Null => out.extend_from_slice(b"null"),
        ValueRef::Integer(whole) => out.extend_from_slice(whole.to_string().as_bytes()),
        ValueRef::Real(float) => push_float(out, float),
        ValueRef::Text(text) => {
            fits(text)?;
            let Ok(text) = std::str::from_utf8(text) else { return Ok(false) };
            push_quoted(out, text);
        }
        ValueRef::Blob(bytes) => {
            use base64::Engine as _;
            fits(bytes)?;
            push_quoted(out, &base64::engine::general_purpose::STANDARD.encode(bytes));
        }
    }
    Ok(true)
}

/// SQLite's own errors as what a step is told.
fn told(error: Error) -> Failed {
    match error {
        Error::MultipleStatement => Failed::Several,
        Error::SqlInputError { error, msg, offset, .. } => {
            Failed::Sqlite { code: error.extended_code, message: msg, offset: usize::try_from(offset).ok() }
        }
        Error::SqliteFailure(error, message) => {
            Failed::Sqlite { code: error.extended_code, message: message.unwrap_or_else(|| error.to_string()), offset: None }
        }
        Error::InvalidQuery => Failed::Nothing,
        other => Failed::Sqlite { code: ffi::SQLITE_ERROR, message: other.to_string(), offset: None },
    }
}
