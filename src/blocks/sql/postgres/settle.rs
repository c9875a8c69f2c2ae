//! A commit whose answer was lost: whether it was made, asked of the database itself before anything is told.

use std::time::Duration;

use bytes::Bytes;
use shards::outcome::Fault;
use shards::runtime::rt;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

use super::super::fault;
use super::super::pool::{Ending, Wanted};
use super::{Errand, INSERT, ROLLBACK, Trouble, is_there};

/// How long it is tried to find out what a commit came to, in milliseconds.
const SETTLE_MS_MAX: u64 = 15_000;
const SETTLE_EVERY: Duration = Duration::from_millis(250);
/// Ends the session of this name, if it still is: what it had not committed it never will.
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE application_name = $1 AND usename = current_user AND pid <> pg_backend_pid()";

/// Finds out what a commit came to whose answer was lost. The row is inserted anew, in a transaction that is taken back: where the
/// old one is not over, that waits for its end; where it was committed, the row is there with what came of it; and where it can be
/// inserted, the old one can never be committed any more, and nothing happened.
pub(super) async fn settle(errand: &Errand<'_>, (number, old): (u64, &str), why: &str) -> Result<Bytes, Fault> {
    let until = errand.left_ms().min(SETTLE_MS_MAX);
    let begun_ms = errand.pool.now_ms();
    tracing::info!(connector = errand.pool.database.name, "contact was lost during a commit; its record is looked for");
    loop {
        let cause = match look(errand, number, old).await {
            Ok(Some(found)) => return found,
            Ok(None) => return Err(fault::broken(why, false)),
            Err(cause) => cause,
        };
        if errand.pool.now_ms() - begun_ms + SETTLE_EVERY.as_millis() as u64 >= until {
            return Err(fault::unknown(&cause));
        }
        rt::sleep(SETTLE_EVERY).await;
    }
}

/// One look: what the record says; none, there is none and never will be.
async fn look(errand: &Errand<'_>, number: u64, old: &str) -> Result<Option<Result<Bytes, Fault>>, Fault> {
    let lease = errand.pool.take(errand.server, errand.left_ms(), Wanted::Fresh(number)).await?;
    lease.busy(true);
    let client = &lease.live().session.client;
    let fault_of = |error: &Error| match errand.no_record(error) {
        Trouble::Fault(fault) | Trouble::Own(fault) => fault,
        Trouble::Broken(why) | Trouble::Ambiguous(why) => fault::broken(&why, false),
        Trouble::Stale | Trouble::Elsewhere => fault::broken("what was prepared does not hold", false),
    };
    if !errand.server.pooler {
        // Whether it may and whether it is needed does not matter: what it does not end, is waited for.
        let _ = client.query_typed(TERMINATE, &[(&old, Type::TEXT)]).await;
    }
    let key = &errand.cx.key.0[..];
    let fingerprint = errand.wish.fingerprint();
    client.batch_execute(&errand.begin("READ WRITE")).await.map_err(|error| fault_of(&error))?;
    let inserted = client.execute_typed(INSERT, &[(&key, Type::BYTEA), (&&fingerprint[..], Type::BYTEA)]).await;
    client.batch_execute(ROLLBACK).await.map_err(|error| fault_of(&error))?;
    let found = match inserted {
        Ok(_) => None,
        Err(error) if error.as_db_error().is_some_and(is_there) => {
            Some(errand.found(client).await.map_err(|error| fault_of(&error))?)
        }
        Err(error) => return Err(fault_of(&error)),
    };
    lease.end(Ending::Keep);
    Ok(found)
}
