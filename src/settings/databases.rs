//! Connectors with a database, from what is written to [`DatabaseSettings`].

use std::net::IpAddr;

use toml::Value;

use super::reach::{allow, is_text, secret, tenants};
use super::resolve::Desk;
use super::stores::{Named, ONLY_STORES};
use crate::config::{Rule, choice, duration, flag, number, path, size, text};
use crate::net::egress::Target;
use crate::net::tls::TlsFiles;
use crate::policy::databases::{DatabaseKind, DatabaseSettings, FILE_BYTES_DEFAULT, PostgresSettings};

/// Longest name of a database or a role, in bytes: what PostgreSQL takes.
const NAME_BYTES_MAX: usize = 63;
const CONNECTIONS: std::ops::RangeInclusive<u32> = 1..=10_000;
const STATEMENT_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;
const LOCK_MS: std::ops::RangeInclusive<u64> = 10..=3_600_000;
/// The smallest file holds its own schema.
const FILE_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 40);

#[derive(Clone, Copy)]
enum Kind {
    Postgres,
    Sqlite,
}

const KINDS: &[(&str, Kind)] = &[("postgres", Kind::Postgres), ("sqlite", Kind::Sqlite)];
const TLS: &[(&str, bool)] = &[("verify-full", true), ("disable", false)];

const KIND: Named = ("kind", |one| &one.kind);
const HOST: Named = ("host", |one| &one.host);
const PORT: Named = ("port", |one| &one.port);
const DATABASE: Named = ("database", |one| &one.database);
const USER: Named = ("user", |one| &one.user);
const PASSWORD: Named = ("password", |one| &one.password);
const TLS_KEY: Named = ("tls", |one| &one.tls);
const CONNECTIONS_KEY: Named = ("max_connections", |one| &one.max_connections);
const POOLER: Named = ("pooler", |one| &one.pooler);
const TRACE: Named = ("trace", |one| &one.trace);
const BYTES_MAX: Named = ("bytes_max", |one| &one.bytes_max);

/// Keys that mean nothing where a connector has no database.
pub(super) const ONLY_DATABASES: &[Named] = &[
    HOST,
    PORT,
    DATABASE,
    TLS_KEY,
    CONNECTIONS_KEY,
    POOLER,
    TRACE,
    ("dedup", |one| &one.dedup),
    ("read_only", |one| &one.read_only),
    ("statement_timeout", |one| &one.statement_timeout),
    ("lock_timeout", |one| &one.lock_timeout),
];

/// Keys that mean nothing where it has one.
const ONLY_OTHERS: &[Named] = &[
    ("url", |one| &one.url),
    ("bearer", |one| &one.bearer),
    ("header", |one| &one.header),
    ("value", |one| &one.value),
    ("idempotency_key", |one| &one.idempotency_key),
    ("store", |one| &one.store),
    ("provider", |one| &one.provider),
    ("models", |one| &one.models),
    ("price_in", |one| &one.price_in),
    ("price_out", |one| &one.price_out),
    ("currency", |one| &one.currency),
];

/// Keys of servers.
const ONLY_SERVERS: &[Named] = &[
    HOST,
    PORT,
    DATABASE,
    USER,
    PASSWORD,
    TLS_KEY,
    CONNECTIONS_KEY,
    POOLER,
    TRACE,
    ("allow", |one| &one.allow),
    ("ca", |one| &one.ca),
    ("cert", |one| &one.cert),
    ("key", |one| &one.key),
    ("direct", |one| &one.direct),
];

/// Whether the key of this name takes a part of what others write as a connection string.
pub(super) fn is_word_of_one(key: &str) -> bool {
    key.starts_with("connectors.") && [".host", ".database", ".user"].iter().any(|end| key.ends_with(end))
}

impl Desk {
    /// Whether a connector has a database.
    pub(super) fn is_database(&self, name: &str) -> bool {
        self.says(name, KIND.1)
    }

    /// One database; none where something is wrong with it, which is noted.
    pub(super) fn database(&mut self, name: &str, proxied: bool) -> Option<DatabaseSettings> {
        let key = |field: &str| format!("connectors.{name}.{field}");
        let tenants = self.of_connector(name, "tenants", |one| &one.tenants, tenants);
        self.named(name, &key("tenants"));
        let kind = self.of_connector(name, KIND.0, KIND.1, kind);
        self.without(name, ONLY_OTHERS, "a connector with a database takes no requests and keeps no blobs");
        let others: Vec<Named> = ONLY_STORES.iter().filter(|(field, _)| *field != BYTES_MAX.0).copied().collect();
        self.without(name, &others, "a connector with a database takes no requests and keeps no blobs");
        let dedup = self.of_connector(name, "dedup", |one| &one.dedup, |value| optional(value, flag));
        let read_only = self.of_connector(name, "read_only", |one| &one.read_only, flag);
        let statement_ms = self.of_connector(name, "statement_timeout", |one| &one.statement_timeout, duration(STATEMENT_MS));
        let lock_ms = self.of_connector(name, "lock_timeout", |one| &one.lock_timeout, duration(LOCK_MS));
        let (kind, by_itself) = match kind? {
            Kind::Sqlite => {
                self.without(name, ONLY_SERVERS, "an embedded database has no server");
                let bytes_max = self.of_connector(name, BYTES_MAX.0, BYTES_MAX.1, |value| optional(value, size(FILE_BYTES)));
                (DatabaseKind::Sqlite { bytes_max: bytes_max.unwrap_or(FILE_BYTES_DEFAULT) }, true)
            }
            Kind::Postgres => {
                self.without(name, &[BYTES_MAX], "only for an embedded database");
                (DatabaseKind::Postgres(self.postgres(name, proxied)?), false)
            }
        };
        Some(DatabaseSettings { tenants, kind, dedup: dedup.unwrap_or(by_itself), read_only, statement_ms, lock_ms })
    }

    fn postgres(&mut self, name: &str, proxied: bool) -> Option<PostgresSettings> {
        let key = |field: &str| format!("connectors.{name}.{field}");
        let host = self.given(name, HOST, host);
        let port = self.of_connector(name, PORT.0, PORT.1, number(1..=65_535));
        let database = self.given(name, DATABASE, word);
        let user = self.given(name, USER, word);
        let password = self.of_connector(name, PASSWORD.0, PASSWORD.1, secret);
        let tls = self.of_connector(name, TLS_KEY.0, TLS_KEY.1, choice(TLS));
        let allow = self.of_connector(name, "allow", |one| &one.allow, allow);
        let ca = self.of_connector(name, "ca", |one| &one.ca, path);
        let cert = self.of_connector(name, "cert", |one| &one.cert, path);
        let tls_key = self.of_connector(name, "key", |one| &one.key, path);
        self.both(cert.is_some(), &key("cert"), tls_key.is_some(), &key("key"));
        for (field, set) in [("ca", ca.is_some()), ("cert", cert.is_some())] {
            if set && !tls {
                self.fault(&key(field), format!("must be left out where {} is disable", key("tls")));
            }
        }
        let connections_max = self.of_connector(name, CONNECTIONS_KEY.0, CONNECTIONS_KEY.1, number(CONNECTIONS));
        let pooler = self.of_connector(name, POOLER.0, POOLER.1, flag);
        let trace = self.of_connector(name, TRACE.0, TRACE.1, flag);
        let direct = self.of_connector(name, "direct", |one| &one.direct, flag);
        if proxied && !direct {
            let rule = "must be true where net.proxy is set: databases are reached straight and by no proxy";
            self.fault(&key("direct"), rule.to_owned());
        }
        let host = host?;
        let target = match Target::parse(&format!("https://{host}:{port}/")) {
            Ok(target) => target,
            Err(denial) => {
                self.fault(&key("host"), format!("must be a host's name or address: {}", denial.rule));
                return None;
            }
        };
        let files = TlsFiles { ca, cert, key: tls_key };
        Some(PostgresSettings {
            target,
            database: database?,
            user: user?,
            password,
            tls,
            files,
            allow,
            connections_max,
            pooler,
            trace,
        })
    }

    /// A key that a server's connector must have.
    fn given<T>(&mut self, name: &str, (field, leaf): Named, rule: impl Fn(&Value) -> Rule<Option<T>>) -> Option<T> {
        let value = self.of_connector(name, field, leaf, rule);
        let key = format!("connectors.{name}.{field}");
        if value.is_none() && !self.is_faulty(&key) {
            self.fault(&key, "must be set for a PostgreSQL server".to_owned());
        }
        value
    }
}

fn kind(value: &Value) -> Rule<Option<Kind>> {
    optional(value, choice(KINDS))
}

/// An empty text is nothing said.
fn optional<T>(value: &Value, rule: impl Fn(&Value) -> Rule<T>) -> Rule<Option<T>> {
    if value.as_str() == Some("") { Ok(None) } else { rule(value).map(Some) }
}

/// A name or an address, without a port; a connection string is none, and is not repeated.
fn host(value: &Value) -> Rule<Option<String>> {
    let text = text(value)?;
    let rule = || "must be a host's name or address, without a port".to_owned();
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Some(if address.is_ipv6() { format!("[{address}]") } else { text }));
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.bytes().all(fits) { Ok(Some(text)) } else { Err(rule()) }
}

fn word(value: &Value) -> Rule<Option<String>> {
    let text = text(value)?;
    match text.is_empty() {
        true => Ok(None),
        false if is_text(&text, NAME_BYTES_MAX) => Ok(Some(text)),
        false => Err(format!("must be a name of at most {NAME_BYTES_MAX} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;
    use crate::policy::PolicySettings;

    const SERVER: &str = "[connectors.a]\nkind = \"postgres\"\nhost = \"db.internal\"\ndatabase = \"crm\"\nuser = \"worker\"\n";

    fn settle(text: &str) -> Result<PolicySettings, Vec<String>> {
        let settled = Settings::of(Some(("e.toml", text)), std::iter::empty(), &[]);
        settled.map(|settings| settings.policy).map_err(|error| error.faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn databases_are_what_the_file_says_and_are_no_other_connectors() {
        let policy = settle(
            r#"
            [connectors.crm]
            kind = "postgres"
            tenants = "acme"
            host = "db.internal"
            port = 6432
            database = "crm"
            user = "worker"
            password = "secret://file/etc/crm#password"
            tls = "verify-full"
            ca = "ca.pem"
            allow = ["db.internal", "10.1.2.0/24"]
            max_connections = 16
            pooler = true
            trace = true
            dedup = true
            read_only = true
            statement_timeout = "30s"
            lock_timeout = "2s"
            [connectors.six]
            kind = "postgres"
            host = "fd00::1"
            database = "d"
            user = "u"
            tls = "disable"
            [connectors.scratch]
            kind = "sqlite"
            tenants = "*"
            bytes_max = "16MiB"
            "#,
        )
        .expect("a configuration");
        assert!(policy.connectors.is_empty() && policy.stores.is_empty());
        let crm = &policy.databases["crm"];
        let DatabaseKind::Postgres(server) = &crm.kind else { panic!("{crm:?}") };
        assert_eq!((server.target.to_string(), server.target.port()), ("https://db.internal:6432".to_owned(), 6_432));
        assert_eq!((server.connections_max, server.pooler, server.trace, crm.dedup), (16, true, true, true));
        assert_eq!((crm.statement_ms, crm.lock_ms, server.tls), (30_000, 2_000, true));
        let DatabaseKind::Postgres(six) = &policy.databases["six"].kind else { panic!("no server") };
        assert_eq!((six.target.port(), six.tls, six.connections_max), (5_432, false, 8));
        assert!(!policy.databases["six"].dedup && !policy.databases["six"].read_only && crm.read_only);
        let scratch = &policy.databases["scratch"];
        assert_eq!((&scratch.kind, scratch.dedup), (&DatabaseKind::Sqlite { bytes_max: 16 << 20 }, true));
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_database_names_its_key_and_no_secret() {
        let server = |more: &str| format!("{SERVER}{more}\n");
        for (text, key, rule) in [
            ("[connectors.a]\nkind = \"mysql\"".to_owned(), "kind", "one of postgres, sqlite"),
            ("[connectors.a]\nkind = \"postgres\"".to_owned(), "host", "must be set"),
            ("[connectors.a]\nkind = \"postgres\"".to_owned(), "database", "must be set"),
            ("[connectors.a]\nkind = \"postgres\"".to_owned(), "user", "must be set"),
            ("[connectors.a]\nhost = \"h\"".to_owned(), "host", "left out"),
            ("[connectors.a]\nstore = \"memory\"\ndedup = true".to_owned(), "dedup", "left out"),
            ("[connectors.a]\nkind = \"sqlite\"\nhost = \"h\"".to_owned(), "host", "no server"),
            ("[connectors.a]\nkind = \"sqlite\"\nbytes_max = \"1KiB\"".to_owned(), "bytes_max", "a byte size"),
            ("[connectors.a]\nkind = \"postgres\"\nhost = \"postgres://u:hunter2@h/d\"".to_owned(), "host", "without a port"),
            ("[connectors.a]\nkind = \"postgres\"\nhost = \"host=h password=hunter2\"".to_owned(), "host", "without a port"),
            (server("password = \"hunter2\""), "password", "a reference"),
            (server("url = \"http://h.example/\""), "url", "takes no requests"),
            (server("bucket = \"b\""), "bucket", "takes no requests"),
            (server("bytes_max = \"1GiB\""), "bytes_max", "embedded"),
            (server("port = 0"), "port", "a whole number"),
            (server("tls = \"prefer\""), "tls", "one of verify-full, disable"),
            (server("tls = \"disable\"\nca = \"c\""), "ca", "left out"),
            (server("cert = \"c\""), "cert", "beside it"),
            (server("max_connections = 0"), "max_connections", "a whole number"),
            (server("statement_timeout = \"5\""), "statement_timeout", "a duration"),
            (server("dedup = \"perhaps\""), "dedup", "true or false"),
            (server("[net]\nproxy = \"http://proxy:3128\""), "direct", "must be true"),
        ] {
            let faults = settle(&text).expect_err(&text);
            let named = |fault: &String| fault.contains(&format!(".{key}")) && fault.contains(rule);
            assert!(faults.iter().any(named), "{text}: {faults:?}");
            assert!(faults.iter().all(|fault| !fault.contains("hunter2")), "{text}: {faults:?}");
        }
    }
}
