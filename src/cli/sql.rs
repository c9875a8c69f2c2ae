//! `endstation sql`: the table in which a database keeps the records of writes. `init` makes it, `prune` takes old records away.
//!
//! A record is what keeps a write from being done twice, so none goes that a journal may still ask for.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use glommio::{LocalExecutorBuilder, Placement};
use shards::runtime::rt::Clock;

use crate::net::postgres::{Dialer, Login, NoSession};
use crate::offload::Offload;
use crate::policy::Policy;
use crate::policy::databases::Database;
use crate::secrets::SecretRef;
use crate::settings::Settings;

use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_USAGE};

const EXAMPLES: &str = "\
Examples:
  endstation sql init crm                    make the table, as the connector's own user
  endstation sql init crm --as-user postgres --as-password secret://env/PGPASSWORD
                                             as somebody who may, and give the connector's user what it needs
  endstation sql init crm --print            only show what would be run
  endstation sql prune crm --older-than 3d   take old records away, a few at a time

An embedded database makes its table by itself and takes old records away as it goes.

Exit codes: 0 done, 1 the database would not, 2 usage, 3 configuration";

/// Records that are taken away at once.
const PRUNE_AT_ONCE: u32 = 1_000;
/// How much longer than a journal remembers a record is kept at least.
const SPARE: Duration = Duration::from_secs(3_600);

/// `endstation sql`
#[derive(Debug, Subcommand)]
pub enum SqlCommand {
    /// Make the table for the records of writes, and grant what the connector's user needs
    #[command(after_help = EXAMPLES)]
    Init(InitArgs),
    /// Take old records away
    #[command(after_help = EXAMPLES)]
    Prune(PruneArgs),
}

/// `endstation sql init`
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// The connector
    #[arg(value_name = "CONNECTOR")]
    pub connector: String,
    /// Only show what would be run
    #[arg(long)]
    pub print: bool,
    /// Who runs it, if not the connector's own user
    #[arg(long, value_name = "ROLE", requires = "as_password")]
    pub as_user: Option<String>,
    /// That one's password, as a reference
    #[arg(long, value_name = "REFERENCE", requires = "as_user")]
    pub as_password: Option<String>,
}

/// `endstation sql prune`
#[derive(Clone, Debug, Args)]
pub struct PruneArgs {
    /// The connector
    #[arg(value_name = "CONNECTOR")]
    pub connector: String,
    /// Records that are older go
    #[arg(long, value_name = "DURATION", default_value = "3d", value_parser = super::duration)]
    pub older_than: Duration,
}

/// What makes the table, and lets `user` keep records in it. May be run again.
pub fn script(user: &str) -> String {
    let role = user.replace('"', "\"\"");
    format!(
        "CREATE TABLE IF NOT EXISTS public.endstation_dedup (\n\
         \x20   key bytea PRIMARY KEY,\n\
         \x20   fingerprint bytea NOT NULL,\n\
         \x20   outcome text,\n\
         \x20   created_at timestamptz NOT NULL DEFAULT now()\n\
         );\n\
         CREATE INDEX IF NOT EXISTS endstation_dedup_created_at ON public.endstation_dedup (created_at);\n\
         GRANT USAGE ON SCHEMA public TO \"{role}\";\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON public.endstation_dedup TO \"{role}\";\n"
    )
}

/// Does what the command line says. Gives the exit code.
///
/// # Errors
/// Where `out` cannot be written.
pub fn main(command: &SqlCommand, settings: &Settings, out: &mut impl Write) -> io::Result<u8> {
    let connector = match command {
        SqlCommand::Init(args) => &args.connector,
        SqlCommand::Prune(args) => &args.connector,
    };
    let policy = match Policy::new(settings.policy.clone(), false) {
        Ok(policy) => policy,
        Err(error) => {
            writeln!(io::stderr(), "error: {error}")?;
            return Ok(EXIT_CONFIG);
        }
    };
    let Some(database) = policy.databases().iter().find(|one| one.name == *connector) else {
        writeln!(io::stderr(), "error: there is no [connectors.{connector}] with a database (kind)")?;
        return Ok(EXIT_CONFIG);
    };
    let Some(server) = database.server() else {
        writeln!(out, "connectors.{connector} is embedded: it looks after its records by itself")?;
        return Ok(EXIT_OK);
    };
    let (sql, login) = match command {
        SqlCommand::Init(args) => {
            let sql = script(&server.user);
            if args.print {
                write!(out, "{sql}")?;
                return Ok(EXIT_OK);
            }
            (sql, args.as_user.clone().zip(args.as_password.clone()))
        }
        SqlCommand::Prune(args) => {
            let least = Duration::from_millis(settings.limits.horizon_ms) + SPARE;
            if args.older_than < least {
                let hours = least.as_secs().div_ceil(3_600);
                writeln!(
                    io::stderr(),
                    "error: --older-than must be {hours}h or more: journal.horizon is so long, and an hour beside it"
                )?;
                return Ok(EXIT_USAGE);
            }
            let seconds = args.older_than.as_secs();
            let sql = format!(
                "DELETE FROM public.endstation_dedup WHERE key IN (SELECT key FROM public.endstation_dedup \
                 WHERE created_at < now() - interval '{seconds} seconds' ORDER BY created_at LIMIT {PRUNE_AT_ONCE} FOR UPDATE SKIP LOCKED)"
            );
            (sql, None)
        }
    };
    let (user, reference) = match login {
        Some((user, reference)) => match SecretRef::parse(&reference) {
            Ok(reference) => (user, Some(reference)),
            Err(rule) => {
                writeln!(io::stderr(), "error: --as-password {rule}")?;
                return Ok(EXIT_USAGE);
            }
        },
        None => (server.user.clone(), server.password.clone()),
    };
    let repeat = matches!(command, SqlCommand::Prune(_));
    match run(&policy, database.clone(), user, reference, sql, repeat) {
        Ok(rows) if repeat => writeln!(out, "{rows} records taken away")?,
        Ok(_) => writeln!(out, "public.endstation_dedup is there; set connectors.{connector}.dedup = true")?,
        Err(why) => {
            writeln!(io::stderr(), "error: {why}")?;
            return Ok(EXIT_FAILED);
        }
    }
    Ok(EXIT_OK)
}

/// Runs `sql` there; `repeat`: until it changes nothing more. How many rows it changed.
fn run(
    policy: &Policy,
    database: Arc<Database>,
    user: String,
    password: Option<SecretRef>,
    sql: String,
    repeat: bool,
) -> Result<u64, String> {
    let password = password.map(|secret| secret.read()).transpose().map_err(|error| error.to_string())?;
    let offload = Offload::new(policy.dns().to_vec());
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(64 << 10).make().map_err(|error| error.to_string())?;
    executor.run(async move {
        let Some(server) = database.server() else { return Err("it is no server".to_owned()) };
        let dialer = Dialer::new(offload, Clock::start());
        let login = Login { user: &user, password: password.as_ref().map(|secret| secret.as_str()) };
        let session = dialer.open(&database, server, login, "endstation sql", "", ()).await.map_err(|error| said(&error))?;
        let told = |error: tokio_postgres::Error| said(&NoSession::Server(error));
        let mut rows = 0;
        loop {
            if !repeat {
                session.client.batch_execute(&sql).await.map_err(told)?;
                break;
            }
            let gone = session.client.execute_typed(&sql, &[]).await.map_err(told)?;
            rows += gone;
            if gone < u64::from(PRUNE_AT_ONCE) {
                break;
            }
        }
        session.abandon();
        Ok(rows)
    })
}

fn said(error: &NoSession) -> String {
    match error {
        NoSession::Net(error) => error.to_string(),
        NoSession::Server(error) => match error.as_db_error() {
            Some(said) => format!("{} ({})", said.message(), said.code().code()),
            None => error.to_string(),
        },
    }
}
