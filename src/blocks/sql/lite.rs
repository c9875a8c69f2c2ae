//! A statement on an embedded database: handed to the threads that may block, its rows taken in piece by piece.

use std::cmp::min;

use bytes::Bytes;
use rusqlite::ffi;
use serde_json::json;
use shards::block::{BlobWriter, BlockCx};
use shards::outcome::{Code, Effected, Fault};
use tokio::sync::mpsc;

use crate::offload::sqlite::{Done, Failed, Order, PIECES_MAX};
use crate::policy::databases::{Database, DatabaseKind};

use super::super::inputs::{fault, forbidden};
use super::super::local::folder_of;
use super::param::Given;
use super::wish::Wish;
use super::{Databases, conflict, fault as told, saved};

/// What an embedded database has no form for.
pub(super) fn check(database: &Database, wish: &Wish<'_>) -> Result<(), Fault> {
    if database.server().is_some() {
        return Ok(());
    }
    match wish.params.iter().position(|param| matches!(param.given, Given::List(_))) {
        Some(at) => Err(forbidden(&format!("params/{at}"), "no list: an embedded database has none")),
        None => Ok(()),
    }
}

pub(super) async fn run(
    databases: &Databases,
    database: &Database,
    cx: &BlockCx,
    wish: &Wish<'_>,
    writer: Option<Box<dyn BlobWriter>>,
) -> Result<Bytes, Fault> {
    let DatabaseKind::Sqlite { bytes_max } = database.settings.kind else { return Err(told::gone()) };
    // A file of the tenant's own: no statement names another.
    let path = databases.dir.join(&database.name).join(format!("{}.sqlite", folder_of(&cx.tenant)));
    let (pieces, arriving) = writer.as_ref().map(|_| mpsc::channel(PIECES_MAX)).unzip();
    let order = Order {
        path,
        bytes_max,
        sql: wish.sql.to_string(),
        params: wish.params.iter().map(|param| param.given.clone()).collect(),
        writes: wish.writes,
        record: (wish.writes && database.settings.dedup).then(|| (cx.key.0, wish.fingerprint())),
        form: wish.form,
        bounds: wish.bounds,
        within_ms: min(min(wish.timeout_ms, database.settings.statement_ms), cx.left_ms),
        lock_ms: database.settings.lock_ms,
        pieces,
    };
    let under_way = databases.sqlite.ask(order).map_err(|failed| of(failed, wish))?;
    let Some((mut writer, mut arriving)) = writer.zip(arriving) else {
        return match under_way.done().await.map_err(|failed| of(failed, wish))? {
            Done::Outputs(outputs) => Ok(outputs),
            Done::Sent { .. } => Err(told::gone()),
        };
    };
    while let Some(piece) = arriving.recv().await {
        writer.write(piece).await?;
    }
    match under_way.done().await.map_err(|failed| of(failed, wish))? {
        Done::Sent { rows, columns } => {
            let stored = writer.finish().await?;
            Ok(saved(wish, rows, &columns, &stored))
        }
        Done::Outputs(_) => Err(told::gone()),
    }
}

/// What failed, as the step's fault. Whatever it is, nothing of the step is in the file, but where that is not known.
fn of(failed: Failed, wish: &Wish<'_>) -> Fault {
    let (code, message, offset) = match failed {
        Failed::Sqlite { code, message, offset } => (code, message, offset),
        Failed::Several => return forbidden("sql", "one statement"),
        Failed::Nothing => return forbidden("sql", "a statement"),
        Failed::Writes => return forbidden("mode", "write, for a statement that writes"),
        Failed::Params(wanted) => return told::count(wanted, wish.params.len()),
        Failed::Named => return forbidden("sql", "parameters by number: $1, $2 or ?"),
        Failed::Excess(excess) => return told::excess(&excess),
        Failed::Conflict => return conflict(),
        Failed::Late => return told::late(),
        // Whoever is told this has gone.
        Failed::Unwanted => return Fault::new(Code::CancelledByUser, "Nobody wants the statement any more."),
        Failed::Full => return Fault::new(Code::ResourceUnavailable, "Too many statements wait for embedded databases."),
        Failed::NoRoom => {
            let rule = "at most bytes_max of its connector, for a tenant's file";
            return fault(Code::QuotaExceeded, "The tenant's database is full.", "sql", rule);
        }
        Failed::Gone => return told::gone(),
        Failed::Unknown(why) => {
            let fault = Fault::new(Code::ResourceUnavailable, "The database's disk failed while it committed.");
            return fault.with_details(json!({ "cause": why }).to_string()).with_effect(Effected::Unknown);
        }
    };
    let details = json!({ "sqlite_code": code, "cause": told::cut(&message), "position": offset });
    let (fault_code, sentence) = match code & 0xff {
        ffi::SQLITE_AUTH => {
            let mut details = details;
            details["pointer"] = json!("/sql");
            details["rule"] =
                json!("nothing outside the tenant's own file: no other file, no setting, no transaction, nothing temporary");
            return Fault::new(Code::InvalidInput, "The statement is not one that a step may send.")
                .with_details(details.to_string());
        }
        ffi::SQLITE_ERROR | ffi::SQLITE_RANGE | ffi::SQLITE_MISMATCH => {
            let mut details = details;
            details["pointer"] = json!("/sql");
            details["rule"] = json!("a statement that the database takes");
            return Fault::new(Code::InvalidInput, "The database does not take the statement.").with_details(details.to_string());
        }
        ffi::SQLITE_CONSTRAINT => (Code::ExecutionFailed, "A constraint of the database forbids it."),
        ffi::SQLITE_TOOBIG => (Code::ExecutionFailed, "A value is larger than the database takes."),
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => (Code::ResourceUnavailable, "Another process holds the database."),
        ffi::SQLITE_NOMEM => (Code::ResourceUnavailable, "The statement needs more memory than there is for it."),
        ffi::SQLITE_FULL => (Code::ResourceUnavailable, "The disk is full."),
        ffi::SQLITE_CANTOPEN | ffi::SQLITE_IOERR | ffi::SQLITE_READONLY => {
            (Code::ResourceUnavailable, "The disk does not give the database.")
        }
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => (Code::ExecutionFailed, "The tenant's file is no database any more."),
        _ => (Code::ExecutionFailed, "The database could not do it."),
    };
    Fault::new(fault_code, sentence).with_details(details.to_string())
}
