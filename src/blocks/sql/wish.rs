//! The inputs of a step, read and checked: which database, which statement, what comes of its rows.

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use shards::outcome::Fault;

use crate::policy::narrow::Guardrails;

use super::super::inputs::{Inputs, forbidden};
use super::super::path;
use super::lead::{self, Lead};
use super::param::{self, PARAMS_MAX, Param};
use super::sheet::{Bounds, Form};

/// The longest statement, in bytes.
const SQL_BYTES_MAX: usize = 256 << 10;
/// Rows of a result.
const ROWS: (u64, u64) = (10_000, 1_000_000);
/// Rows of a blob.
const BLOB_ROWS: (u64, u64) = (1 << 53, 1 << 53);
/// The bytes of a result's rows: unless told, and at most.
const BYTES: (u64, u64) = (1 << 20, 8 << 20);
/// Those of a blob's.
const BLOB_BYTES: (u64, u64) = (1 << 30, 16 << 30);
const _: () = assert!(BYTES.1 * 2 <= shards::limits::MESSAGE_BYTES_MAX as u64);
/// The longest time that a statement may be given, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 86_400_000;
/// Longest name of a connector, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// The worker's own table: no statement names it.
pub(crate) const DEDUP: &str = "endstation_dedup";
/// What says where a database is and as whom: the operator's alone.
const OPERATORS: [&str; 10] =
    ["url", "uri", "dsn", "connection", "connection_string", "host", "port", "database", "user", "password"];

/// What a step asks for. Lives on its core.
pub(super) struct Wish<'a> {
    pub(super) connector: Option<Cow<'a, str>>,
    pub(super) sql: Cow<'a, str>,
    pub(super) params: Vec<Param>,
    pub(super) writes: bool,
    pub(super) isolation: Isolation,
    pub(super) form: Form,
    pub(super) bounds: Bounds,
    pub(super) blob: Option<Blob<'a>>,
    /// How long the statement may take, in milliseconds.
    pub(super) timeout_ms: u64,
}

/// Where rows go that are no part of the result.
pub(super) struct Blob<'a> {
    pub(super) path: Cow<'a, str>,
    pub(super) connector: Option<Cow<'a, str>>,
    pub(super) overwrite: bool,
}

/// How much a transaction sees of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    /// As SQL has it.
    pub(super) fn as_sql(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "READ COMMITTED",
            Isolation::RepeatableRead => "REPEATABLE READ",
            Isolation::Serializable => "SERIALIZABLE",
        }
    }

    /// How a transaction of its kind begins that reads.
    pub(super) fn read_only(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "ISOLATION LEVEL READ COMMITTED READ ONLY",
            Isolation::RepeatableRead => "ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Isolation::Serializable => "ISOLATION LEVEL SERIALIZABLE READ ONLY",
        }
    }

    /// How one begins that writes.
    pub(super) fn read_write(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "ISOLATION LEVEL READ COMMITTED READ WRITE",
            Isolation::RepeatableRead => "ISOLATION LEVEL REPEATABLE READ READ WRITE",
            Isolation::Serializable => "ISOLATION LEVEL SERIALIZABLE READ WRITE",
        }
    }
}

impl<'a> Wish<'a> {
    /// Reads the inputs.
    ///
    /// # Errors
    /// INVALID_INPUT or MISSING_REQUIRED_FIELD, with the field and its rule; nothing that was written is repeated.
    pub(super) fn read(inputs: &'a [u8]) -> Result<Wish<'a>, Fault> {
        let inputs = Inputs::read(inputs)?;
        for name in OPERATORS {
            if inputs.json(name).is_some() {
                return Err(forbidden(name, "left out: where a database is and who asks it, its connector says"));
            }
        }
        let connector = inputs.text("connector")?;
        if let Some(name) = &connector {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(fits) {
                return Err(forbidden("connector", "the name of a connector, and nothing that one is made of"));
            }
        }
        let sql = inputs.text_needed("sql")?;
        let writes = match inputs.text("mode")?.as_deref() {
            None | Some("read") => false,
            Some("write") => true,
            Some(_) => return Err(forbidden("mode", "read or write")),
        };
        check_sql(&sql, writes)?;
        let isolation = match inputs.text("isolation")?.as_deref() {
            None | Some("read_committed") => Isolation::ReadCommitted,
            Some("repeatable_read") => Isolation::RepeatableRead,
            Some("serializable") => Isolation::Serializable,
            Some(_) => return Err(forbidden("isolation", "read_committed, repeatable_read or serializable")),
        };
        let blob = read_blob(&inputs, writes)?;
        let rows = inputs.text("rows")?;
        let form = match (blob.is_some(), rows.as_deref()) {
            (false, None | Some("objects")) => Form::Objects,
            (false, Some("lists")) => Form::Lists,
            (true, None | Some("ndjson")) => Form::Ndjson,
            (true, Some("csv")) => Form::Csv,
            (false, Some(_)) => return Err(forbidden("rows", "objects or lists; in a blob ndjson or csv")),
            (true, Some(_)) => return Err(forbidden("rows", "ndjson or csv, in a blob")),
        };
        let (rows, bytes) = if blob.is_some() { (BLOB_ROWS, BLOB_BYTES) } else { (ROWS, BYTES) };
        let bounds = Bounds {
            rows_max: inputs.integer("rows_max", 1..=rows.1, rows.0)?,
            bytes_max: inputs.integer("bytes_max", 1..=bytes.1, bytes.0)?,
        };
        let timeout_ms = inputs.integer("timeout_ms", 1..=TIMEOUT_MS_MAX, TIMEOUT_MS_MAX)?;
        let params = read_params(&inputs)?;
        Ok(Wish { connector, sql, params, writes, isolation, form, bounds, blob, timeout_ms })
    }

    /// Keeps to what the step allows itself.
    pub(super) fn keep_to(&mut self, guardrails: &Guardrails) {
        self.bounds.bytes_max = guardrails.bytes_max(self.bounds.bytes_max);
    }

    /// What the record of a write is compared by: another statement, or other values, under one key is another step.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(self.sql.as_bytes());
        part(self.isolation.as_sql().as_bytes());
        part(&[self.form as u8]);
        for param in &self.params {
            part(&param.oid.to_le_bytes());
            match param.given.text() {
                Some(text) => part(text.as_bytes()),
                None => part(b"\0"),
            }
        }
        hasher.finalize().into()
    }
}

fn check_sql(sql: &str, writes: bool) -> Result<(), Fault> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(forbidden("sql", "a statement of at most 256 KiB; values go into params"));
    }
    if sql.contains('\0') {
        return Err(forbidden("sql", "a statement without U+0000"));
    }
    match lead::of(sql) {
        Lead::Neither => {
            let rule = "one statement that reads or writes; transactions, sessions and copies to files are not a step's";
            return Err(forbidden("sql", rule));
        }
        Lead::Write if !writes => return Err(forbidden("mode", "write, for a statement that writes")),
        Lead::Write | Lead::Read => {}
    }
    if sql.to_ascii_lowercase().contains(DEDUP) {
        return Err(forbidden("sql", "a statement without endstation_dedup, which is the worker's own"));
    }
    Ok(())
}

fn read_blob<'a>(inputs: &Inputs<'a>, writes: bool) -> Result<Option<Blob<'a>>, Fault> {
    let Some(to) = inputs.text("to")? else {
        for name in ["to_connector", "overwrite"] {
            if inputs.json(name).is_some() {
                return Err(forbidden(name, "only beside to"));
            }
        }
        return Ok(None);
    };
    if writes {
        return Err(forbidden("to", "only where the statement reads"));
    }
    path::check(&to).map_err(|rule| forbidden("to", rule))?;
    let overwrite = inputs.flag("overwrite")?.unwrap_or(false);
    Ok(Some(Blob { path: to, connector: inputs.text("to_connector")?, overwrite }))
}

fn read_params(inputs: &Inputs<'_>) -> Result<Vec<Param>, Fault> {
    let Some(raw) = inputs.json("params") else { return Ok(Vec::new()) };
    let list: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| forbidden("params", "a list"))?;
    if list.len() > PARAMS_MAX {
        return Err(forbidden("params", "at most 65535 of them"));
    }
    let one = |(at, raw): (usize, &&RawValue)| {
        param::read(raw.get()).map_err(|(below, rule)| forbidden(&format!("params/{at}{below}"), &rule))
    };
    list.iter().enumerate().map(one).collect()
}
