//! Databases as connectors: what is written of them, resolved, and whom they are open to.
//!
//! A step names a database and never a place in the network, a file or a login: these are the operator's alone. An embedded
//! database is a file of each tenant's own; a server's is shared by all tenants that its connector lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::net::egress::{Allow, Guard, Target};
use crate::net::tls::{self, TlsFiles, Trust};
use crate::secrets::SecretRef;

use super::{Policy, PolicyError, Refused};

/// The database that there is where a worker runs for development and the step names none.
pub const EMBEDDED: &str = "embedded";
/// What one tenant's embedded database may take, in bytes, where the operator says nothing.
pub const FILE_BYTES_DEFAULT: u64 = 1 << 30;

/// A database as resolved. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSettings {
    /// Who may use it; none named: nobody. `None`: all.
    pub tenants: Option<Vec<String>>,
    /// What it is, and where.
    pub kind: DatabaseKind,
    /// Whether a write and the record of its step commit together: the table for these records is there.
    pub dedup: bool,
    /// Nothing is written there, whatever a step asks for.
    pub read_only: bool,
    /// No statement takes longer, in milliseconds.
    pub statement_ms: u64,
    /// No statement waits longer for what another one holds, in milliseconds.
    pub lock_ms: u64,
}

/// What a database is. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// SQLite, in a file for each tenant beneath the worker's storage.
    Sqlite {
        /// What one tenant's file may take, in bytes.
        bytes_max: u64,
    },
    /// A PostgreSQL server.
    Postgres(PostgresSettings),
}

/// A server as resolved. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Host and port, as the guard judges them.
    pub target: Target,
    /// Which database there.
    pub database: String,
    /// As whom.
    pub user: String,
    /// Its password, where it needs one.
    pub password: Option<SecretRef>,
    /// Whether the server proves who it is and nobody else can read along; only where it is not, anything goes in the clear.
    pub tls: bool,
    /// Whom we trust, and our own certificate.
    pub files: TlsFiles,
    /// What it opens besides public addresses.
    pub allow: Vec<Allow>,
    /// Connections of this process, all shards together.
    pub connections_max: u32,
    /// A pooler stands before it: nothing is kept in a session.
    pub pooler: bool,
    /// Whether statements carry their trace.
    pub trace: bool,
}

/// What is open to a server, and what came of it. Shared; shards count, the metrics read.
#[derive(Debug, Default)]
pub struct DatabaseCounts {
    /// Sessions that are open or being opened.
    pub sessions: AtomicU32,
    /// Steps that wait for one.
    pub waiting: AtomicU32,
    /// Sessions opened.
    pub opened: AtomicU64,
    /// Reads that joined others in a session.
    pub joined: AtomicU64,
    /// Statements given up and cancelled at the server.
    pub cancelled: AtomicU64,
}

/// A database as shards and the offload threads use it. Shared, and but for its counts it never changes.
#[derive(Debug)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// As resolved.
    pub settings: DatabaseSettings,
    /// What connections to it may reach.
    pub guard: Guard,
    /// Whom they trust, where they are under TLS.
    pub trust: Option<Trust>,
    /// What its sessions are at.
    pub counts: DatabaseCounts,
}

impl Database {
    /// Reads the certificates that it names.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub(super) fn new(
        name: String,
        settings: DatabaseSettings,
        more: Vec<Allow>,
        own: &[std::net::SocketAddr],
    ) -> Result<Arc<Database>, PolicyError> {
        let (trust, allow) = match &settings.kind {
            DatabaseKind::Postgres(server) => {
                let built = server.tls.then(|| tls::of_postgres(&server.files)).transpose();
                let trust = built.map_err(|(field, why)| PolicyError { connector: name.clone(), field, why })?;
                (trust, server.allow.iter().cloned().chain(more).collect())
            }
            DatabaseKind::Sqlite { .. } => (None, Vec::new()),
        };
        let guard = Guard::new(allow, None, own.iter().copied());
        Ok(Arc::new(Database { name, settings, guard, trust, counts: DatabaseCounts::default() }))
    }

    /// The embedded database of a worker for development.
    pub(super) fn embedded() -> Arc<Database> {
        let settings = DatabaseSettings {
            tenants: None,
            kind: DatabaseKind::Sqlite { bytes_max: FILE_BYTES_DEFAULT },
            dedup: true,
            read_only: false,
            statement_ms: 600_000,
            lock_ms: 10_000,
        };
        let (guard, counts) = (Guard::default(), DatabaseCounts::default());
        Arc::new(Database { name: EMBEDDED.to_owned(), settings, guard, trust: None, counts })
    }

    /// The server that it is, if it is one.
    pub fn server(&self) -> Option<&PostgresSettings> {
        match &self.settings.kind {
            DatabaseKind::Postgres(server) => Some(server),
            DatabaseKind::Sqlite { .. } => None,
        }
    }

    fn lists(&self, tenant: &str) -> bool {
        self.settings.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|one| one == tenant))
    }
}

impl Policy {
    /// The database of this name, for this tenant; of none, where the worker runs for development: the embedded one.
    ///
    /// # Errors
    /// As for [`Policy::route`]: the tenant is not told whether there is one.
    pub fn database(&self, tenant: &str, name: Option<&str>) -> Result<&Arc<Database>, Refused> {
        let wanted = name.unwrap_or(EMBEDDED);
        let found = self.databases.iter().find(|one| one.name == wanted && one.lists(tenant));
        let rule = || match name {
            Some(name) => format!("no [connectors.{name}] with a database lists the tenant"),
            None => {
                "a step names its database's connector; only where a worker runs for development there is one without".to_owned()
            }
        };
        found.ok_or_else(|| Refused { rule: rule(), pointer: Some("/connector".to_owned()) })
    }

    /// The same, for a step that writes or reads.
    ///
    /// # Errors
    /// As above; and where the operator lets nobody write there.
    pub fn database_for(&self, tenant: &str, name: Option<&str>, writes: bool) -> Result<&Arc<Database>, Refused> {
        let database = self.database(tenant, name)?;
        match writes && database.settings.read_only {
            true => Err(Refused {
                rule: format!("connectors.{}.read_only is true", database.name),
                pointer: Some("/mode".to_owned()),
            }),
            false => Ok(database),
        }
    }

    /// Every database.
    pub fn databases(&self) -> &[Arc<Database>] {
        &self.databases
    }

    /// Whether each shard has a connection to each server.
    ///
    /// # Errors
    /// A connector that allows fewer.
    pub fn share_out(&self, shards: usize) -> Result<(), PolicyError> {
        for database in &self.databases {
            if let Some(server) = database.server().filter(|server| (server.connections_max as usize) < shards) {
                let why = format!("is {}, fewer than one for each of the {shards} shards", server.connections_max);
                return Err(PolicyError { connector: database.name.clone(), field: "max_connections", why });
            }
        }
        Ok(())
    }
}
