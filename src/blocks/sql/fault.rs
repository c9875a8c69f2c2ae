//! From what a database says to a step's [`Fault`]: which code, and what may have happened there.
//!
//! Sentences are fixed; the server's own words stand in the details, cut and without the connector's secrets.

use serde_json::{Value, json};
use shards::outcome::{Code, Effected, Fault};
use tokio_postgres::error::{DbError, ErrorPosition, SqlState};

use crate::net::link;
use crate::net::postgres::{NoSession, TOO_LONG};
use crate::secrets::Redaction;

use super::super::http;
use super::super::inputs::{fault, forbidden};
use super::sheet::Excess;

/// How much of a database's own words is told, in bytes.
const WORDS_BYTES_MAX: usize = 512;

/// No more of a text than is told.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(WORDS_BYTES_MAX)]
}

/// Rows that do not fit.
pub(super) fn excess(excess: &Excess) -> Fault {
    let told = |details: Value| {
        let fault = Fault::new(Code::ExecutionFailed, "There is more than the step takes; a blob takes more.");
        fault.with_details(details.to_string())
    };
    match excess {
        Excess::Rows(most) => told(json!({ "pointer": "/rows_max", "rows_max": most })),
        Excess::Bytes(most) => told(json!({ "pointer": "/bytes_max", "bytes_max": most })),
        Excess::Twice(column) => {
            let rule = format!("a name of its own for each column (two are {:?}), or lists for rows", cut(column));
            forbidden("sql", &rule)
        }
        Excess::Odd { column, of, why } => {
            let details = json!({ "pointer": "/sql", "column": cut(column), "type": cut(of), "rule": why });
            Fault::new(Code::ExecutionFailed, "A column's value has no form in a result.").with_details(details.to_string())
        }
    }
}

/// A statement that wants another number of parameters.
pub(super) fn count(wanted: usize, given: usize) -> Fault {
    let mut fault = forbidden("params", "as many as the statement has");
    let details = json!({ "pointer": "/params", "rule": "as many as the statement has", "wanted": wanted, "given": given });
    fault.details = details.to_string().into();
    fault
}

/// It took too long and was stopped.
pub(super) fn late() -> Fault {
    Fault::new(Code::Timeout, "The statement took longer than it may, and was stopped.")
        .with_details(r#"{"pointer":"/timeout_ms"}"#)
}

/// The worker's own part of it is gone.
pub(super) fn gone() -> Fault {
    Fault::new(Code::InternalError, "The threads of embedded databases have gone.")
}

/// No connection came free.
pub(super) fn crowded(connector: &str) -> Fault {
    let details = json!({ "rule": format!("connectors.{connector}.max_connections") });
    Fault::new(Code::ResourceUnavailable, "All that this worker may have open to the database is in use.")
        .with_details(details.to_string())
}

/// The connector writes records, and the table for them is not there as it should be.
pub(super) fn no_table(connector: &str, error: &DbError) -> Fault {
    let details = json!({
        "rule": format!("endstation sql init {connector}, by whoever may create tables there; or connectors.{connector}.dedup = false"),
        "sqlstate": error.code().code(),
        "cause": cut(error.message()),
    });
    Fault::new(Code::ExecutionFailed, "The table for the records of writes is not there.").with_details(details.to_string())
}

/// What a commit came to could not be found out.
pub(super) fn unknown(cause: &Fault) -> Fault {
    let details: Value = serde_json::from_slice(&cause.details).unwrap_or_default();
    let details = json!({ "phase": "commit", "lookup": { "code": cause.code.as_str(), "details": details } });
    let fault = Fault::new(Code::ConnectionError, "Contact was lost while the database committed.");
    fault.with_details(details.to_string()).with_effect(Effected::Unknown)
}

/// The contact broke; `committing`: while it may have been committed.
pub(super) fn broken(why: &str, committing: bool) -> Fault {
    let details = json!({ "phase": if committing { "commit" } else { "statement" }, "cause": cut(why) });
    let fault = Fault::new(Code::ConnectionError, "Contact with the database was lost.").with_details(details.to_string());
    fault.with_effect(if committing { Effected::Unknown } else { Effected::None })
}

/// There is no session.
pub(super) fn no_session(error: &NoSession, redaction: &Redaction) -> Fault {
    match error {
        NoSession::Net(error) => {
            let mut fault = http::fault::of(error);
            // It is the connector's host and not one that the step names.
            if let Ok(mut details) = serde_json::from_slice::<Value>(&fault.details) {
                details["pointer"] = json!("/connector");
                fault.details = details.to_string().into();
            }
            fault
        }
        NoSession::Server(error) => match error.as_db_error() {
            Some(said) => {
                let (code, sentence) = match class(said.code()) {
                    "53" => (Code::ResourceUnavailable, "The database takes no more clients."),
                    "57" => (Code::ResourceUnavailable, "The database takes no clients now."),
                    // Whoever keeps the secret may just be changing it.
                    "28" => (Code::ResourceUnavailable, "The database does not let this worker in."),
                    "3D" => (Code::ExecutionFailed, "There is no such database."),
                    _ => (Code::ResourceUnavailable, "The database takes no session."),
                };
                Fault::new(code, sentence).with_details(clean(words(said), redaction))
            }
            None => {
                let why = json!({ "cause": cut(&link::text(error)) }).to_string();
                Fault::new(Code::ConnectionError, "No session with the database could be opened.")
                    .with_details(clean(why, redaction))
            }
        },
    }
}

/// What the server says of a statement of the step's own; it rolls back whatever the transaction did.
pub(super) fn said(error: &DbError, writes: bool) -> Fault {
    let code = error.code();
    let mut details = details_of(error);
    let mut input = |field: &str, rule: &str, sentence: &'static str| {
        details["pointer"] = json!(format!("/{field}"));
        details["rule"] = json!(rule);
        Fault::new(Code::InvalidInput, sentence).with_details(details.to_string())
    };
    match class(code) {
        _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION && !writes => {
            return input("mode", "write, for a statement that writes", "The statement writes, and its step does not say so.");
        }
        "42" if *code != SqlState::INSUFFICIENT_PRIVILEGE => {
            return input("sql", "a statement that the database takes", "The database does not take the statement.");
        }
        "22" if IS_OF_PARAMS.contains(code) => {
            return input("params", "values that the statement takes", "The database does not take a value of the step.");
        }
        "25" if *code != SqlState::READ_ONLY_SQL_TRANSACTION => {
            return input("sql", "a statement that a transaction may hold", "The statement cannot run in a step's transaction.");
        }
        "0A" => return input("sql", "a statement that the database knows how to do", "The database does not do that."),
        _ => {}
    }
    let (code, sentence) = match class(code) {
        _ if *code == SqlState::QUERY_CANCELED && error.message().contains("statement timeout") => return late(),
        _ if *code == SqlState::QUERY_CANCELED => (Code::ExecutionFailed, "Somebody cancelled the statement at the database."),
        _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION => (Code::ResourceUnavailable, "The database takes no writes now."),
        _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            (Code::PermissionDenied, "The database does not let this worker do that.")
        }
        _ if *code == SqlState::LOCK_NOT_AVAILABLE => {
            (Code::ResourceUnavailable, "Another transaction holds what the statement needs.")
        }
        "40" => (Code::ResourceUnavailable, "The transaction met another one and was taken back; it may be tried again."),
        "53" => (Code::ResourceUnavailable, "The database has not what the statement needs."),
        "57" | "08" => (Code::ConnectionError, "The database ended the session."),
        "58" => (Code::ResourceUnavailable, "The database cannot do it now."),
        "23" => (Code::ExecutionFailed, "A constraint of the database forbids it."),
        _ => (Code::ExecutionFailed, "The database could not do it."),
    };
    Fault::new(code, sentence).with_details(details.to_string())
}

/// A transaction that writes could not begin: a standby takes none.
pub(super) fn not_begun(error: &DbError) -> Fault {
    let takes_none = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::READ_ONLY_SQL_TRANSACTION].contains(error.code());
    match takes_none {
        true => Fault::new(Code::ResourceUnavailable, "The database takes no writes now.").with_details(words(error)),
        false => said(error, true),
    }
}

/// Whether a prepared statement does not hold any more: prepared anew it may.
pub(super) fn is_stale(error: &DbError) -> bool {
    *error.code() == SqlState::INVALID_SQL_STATEMENT_NAME
        || (*error.code() == SqlState::FEATURE_NOT_SUPPORTED && error.message().contains("cached plan"))
}

/// Data that is none, as opposed to what a statement makes of it.
const IS_OF_PARAMS: [SqlState; 8] = [
    SqlState::INVALID_TEXT_REPRESENTATION,
    SqlState::INVALID_DATETIME_FORMAT,
    SqlState::DATETIME_FIELD_OVERFLOW,
    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
    SqlState::CHARACTER_NOT_IN_REPERTOIRE,
    SqlState::UNTRANSLATABLE_CHARACTER,
    SqlState::INVALID_BINARY_REPRESENTATION,
    SqlState::INVALID_TIME_ZONE_DISPLACEMENT_VALUE,
];

fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or("")
}

fn details_of(error: &DbError) -> Value {
    let mut details = json!({ "sqlstate": error.code().code(), "cause": cut(error.message()) });
    let mut also = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            details[name] = json!(cut(value));
        }
    };
    also("constraint", error.constraint());
    also("table", error.table());
    also("column", error.column());
    also("hint", error.hint());
    if let Some(ErrorPosition::Original(at)) = error.position() {
        details["position"] = json!(at);
    }
    details
}

fn words(error: &DbError) -> String {
    details_of(error).to_string()
}

fn clean(details: String, redaction: &Redaction) -> Vec<u8> {
    redaction.apply(details.as_bytes()).unwrap_or_else(|| details.into_bytes())
}

/// A row that was longer than one may be broke the contact: it would do so again.
pub(super) fn too_long(why: &str) -> Option<Fault> {
    why.contains(TOO_LONG).then(|| {
        let rule = "rows of at most 16 MiB";
        fault(Code::ExecutionFailed, "A row is larger than the worker takes.", "sql", rule)
    })
}
