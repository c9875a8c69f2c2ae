//! `sql.query`: one statement on a database that the operator names, embedded (SQLite) or on a server (PostgreSQL).
//!
//! A statement that reads is pure: the database itself keeps it from writing. One that writes commits together with the record of
//! its step, found again by whoever tries again, where the connector has the table for that; where it has not, it is unsafe. Rows
//! that go into a blob make a step conditional, or idempotent where the blob may be replaced.
//!
//! [`wish`] reads the inputs, [`param`] the parameters; [`postgres`] and [`lite`] run the statement; [`sheet`] makes outputs of
//! rows; [`fault`] says what failed and what may have happened by then.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local, Stored};
use shards::ids::hex;
use shards::outcome::{Code, Fault};
use shards::runtime::rt::Clock;
use shards::step::EffectClass;

use crate::net::postgres::Dialer;
use crate::offload::Offload;
use crate::offload::sqlite::Sqlite;
use crate::policy::databases::Database;
use crate::policy::narrow::Guardrails;

use super::inputs::forbidden;
use super::{Ask, BLOBS, Checked, NO_SCOPES, Reach};

mod column;
mod fault;
mod lead;
mod lite;
pub(crate) mod param;
pub(super) mod plan;
pub(crate) mod pool;
pub(crate) mod postgres;
pub(crate) mod sheet;
#[cfg(test)]
pub(in crate::blocks) mod tests;
mod wish;

use pool::Pool;
pub(crate) use wish::DEDUP;
use wish::Wish;

pub(super) static INFO: BlockInfo =
    BlockInfo { name: "sql.query", aliases: &["sql"], version: "1.0.0", effect: EffectClass::Unsafe };

/// The databases that this shard's steps have used. Lives on its core.
pub struct Databases {
    dir: PathBuf,
    sqlite: Sqlite,
    dialer: Rc<Dialer>,
    clock: Clock,
    /// This shard, and of how many.
    place: (u16, u16),
    pools: RefCell<HashMap<String, Rc<Pool>>>,
}

impl Databases {
    /// With embedded databases beneath `dir`; `place` is this shard, and of how many.
    pub fn new(dir: PathBuf, sqlite: Sqlite, offload: Offload, clock: Clock, place: (u16, u16)) -> Databases {
        let dialer = Rc::new(Dialer::new(offload, clock));
        Databases { dir, sqlite, dialer, clock, place, pools: RefCell::default() }
    }

    /// The connections to this server.
    pub(crate) fn pool(&self, database: &Arc<Database>) -> Rc<Pool> {
        let new = || Rc::new(Pool::new(database.clone(), self.dialer.clone(), self.clock, self.place));
        self.pools.borrow_mut().entry(database.name.clone()).or_insert_with(new).clone()
    }
}

/// See the module. Lives on its core.
pub(super) struct Sql {
    reach: Reach,
}

/// A step before acceptance: its inputs, and which databases its tenant may use.
pub(super) fn check(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let wish = Wish::read(ask.inputs)?;
    let (database, mut denied) = match ask.policy.database_for(ask.tenant, wish.connector.as_deref(), wish.writes) {
        Ok(database) => (Some(database), None),
        Err(refused) => (None, Some(refused.fault())),
    };
    if let Some(database) = database {
        lite::check(database, &wish)?;
        denied = ask.narrow.guardrails.database(database).err().map(|refused| refused.fault());
    }
    if let Some(blob) = &wish.blob {
        denied = denied.or_else(|| ask.store_denied(blob.connector.as_deref(), "to_connector"));
        if !blob.overwrite && denied.is_none() && !ask.refuses_to_replace(blob.connector.as_deref(), "to_connector") {
            denied = Some(forbidden("overwrite", "true: this store cannot refuse to replace what is there"));
        }
    }
    let scopes = if wish.blob.is_some() { BLOBS } else { NO_SCOPES };
    let effect = effect(&wish, database.is_some_and(|database| database.settings.dedup));
    Ok(Checked { scopes, denied, ..Checked::as_sent(effect) })
}

fn effect(wish: &Wish<'_>, dedup: bool) -> EffectClass {
    match (&wish.blob, wish.writes) {
        (_, true) if dedup => EffectClass::Transactional,
        (_, true) => EffectClass::Unsafe,
        (Some(blob), false) if blob.overwrite => EffectClass::Idempotent,
        (Some(_), false) => EffectClass::Conditional,
        (None, false) => EffectClass::Pure,
    }
}

impl Sql {
    pub(super) fn new(reach: &Reach) -> Self {
        Sql { reach: reach.clone() }
    }

    async fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let mut wish = Wish::read(&cx.inputs)?;
        let database = self.reach.policy.database_for(&cx.tenant, wish.connector.as_deref(), wish.writes);
        let database = database.map_err(|refused| refused.fault())?;
        let guardrails = Guardrails::read(&cx.guardrails)?;
        guardrails.database(database).map_err(|refused| refused.fault())?;
        lite::check(database, &wish)?;
        wish.keep_to(&guardrails);
        // What could not be kept is not asked for.
        let blobs = match &wish.blob {
            Some(blob) => Some(self.reach.blobs(cx, blob.connector.as_deref(), "to_connector")?),
            None => None,
        };
        let writer = match (&blobs, &wish.blob) {
            (Some(blobs), Some(blob)) => Some(blobs.create(&cx.tenant, &blob.path, blob.overwrite).await?),
            _ => None,
        };
        match database.server() {
            Some(server) => postgres::run(&self.reach.sql.pool(database), server, cx, &wish, writer).await,
            None => lite::run(&self.reach.sql, database, cx, &wish, writer).await,
        }
    }
}

/// The outputs of a step whose rows went into a blob.
fn saved(wish: &Wish<'_>, rows: u64, columns: &[u8], stored: &Stored) -> Bytes {
    let path = wish.blob.as_ref().map_or("", |blob| &blob.path);
    let blob = serde_json::json!({
        "path": path, "size": stored.size, "sha256": hex(&stored.sha256), "created": stored.created,
    });
    let mut out = format!("{{\"row_count\":{rows},\"columns\":").into_bytes();
    out.extend_from_slice(columns);
    out.extend_from_slice(format!(",\"blob\":{blob}}}").as_bytes());
    Bytes::from(out)
}

impl Block for Sql {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx).await })
    }
}

/// What a key that stands for another statement is told.
fn conflict() -> Fault {
    Fault::new(Code::KeyConflict, "The step's key stands for another statement.").with_details(r#"{"pointer":"/sql"}"#)
}
