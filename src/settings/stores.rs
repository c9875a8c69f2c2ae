//! Connectors with a store, from what is written to [`StoreSettings`].

use toml::Value;

use super::reach::{allow, secret, target, tenants};
use super::resolve::Desk;
use crate::blocks::path_rule;
use crate::config::{Connector, Leaf, Rule, choice, duration, flag, path, size, text};
use crate::net::egress::Target;
use crate::net::tls::TlsFiles;
use crate::policy::stores::{AzureLogin, StoreKind, StoreSettings};

/// Longest name of a bucket, a container or an account, in bytes.
const BUCKET_BYTES_MAX: usize = 255;
/// Longest prefix, in bytes: with a tenant's own and its path it fits in what stores take.
const PREFIX_BYTES_MAX: usize = 256;
// S3 takes names of 1024 bytes; a tenant's folder takes 34 with its slash, so its longest paths are refused by rule there.
const STALL_MS: std::ops::RangeInclusive<u64> = 100..=600_000;
const BYTES: std::ops::RangeInclusive<u64> = 0..=1 << 50;

pub(super) type Named = (&'static str, fn(&Connector) -> &Leaf);

/// Keys that mean nothing where a connector has a store.
const ONLY_HTTP: &[Named] = &[
    ("url", |one| &one.url),
    ("bearer", |one| &one.bearer),
    ("user", |one| &one.user),
    ("password", |one| &one.password),
    ("header", |one| &one.header),
    ("value", |one| &one.value),
    ("idempotency_key", |one| &one.idempotency_key),
];

/// Keys that mean nothing where it has none.
pub(super) const ONLY_STORES: &[Named] = &[
    ENDPOINT,
    BUCKET,
    REGION,
    ("prefix", |one| &one.prefix),
    ACCESS_KEY,
    SECRET_KEY,
    SESSION_TOKEN,
    CREDENTIAL,
    ACCOUNT,
    ACCOUNT_KEY,
    SAS_TOKEN,
    ("bytes_max", |one| &one.bytes_max),
    ("stall", |one| &one.stall),
    ("if_absent", |one| &one.if_absent),
];

const ENDPOINT: Named = ("endpoint", |one| &one.endpoint);
const BUCKET: Named = ("bucket", |one| &one.bucket);
const REGION: Named = ("region", |one| &one.region);
const ACCESS_KEY: Named = ("access_key", |one| &one.access_key);
const SECRET_KEY: Named = ("secret_key", |one| &one.secret_key);
const SESSION_TOKEN: Named = ("session_token", |one| &one.session_token);
const CREDENTIAL: Named = ("credential", |one| &one.credential);
const ACCOUNT: Named = ("account", |one| &one.account);
const ACCOUNT_KEY: Named = ("account_key", |one| &one.account_key);
const SAS_TOKEN: Named = ("sas_token", |one| &one.sas_token);

#[derive(Clone, Copy)]
enum Kind {
    S3,
    Gcs,
    Azblob,
    Memory,
}

const KINDS: &[(&str, Kind)] = &[("s3", Kind::S3), ("gcs", Kind::Gcs), ("azblob", Kind::Azblob), ("memory", Kind::Memory)];

/// Keys that a kind of store has no use for.
fn useless(kind: Kind) -> &'static [Named] {
    match kind {
        Kind::S3 => &[CREDENTIAL, ACCOUNT, ACCOUNT_KEY, SAS_TOKEN],
        Kind::Gcs => &[REGION, ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, ACCOUNT, ACCOUNT_KEY, SAS_TOKEN],
        Kind::Azblob => &[REGION, ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, CREDENTIAL],
        Kind::Memory => {
            &[ENDPOINT, BUCKET, REGION, ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, CREDENTIAL, ACCOUNT, ACCOUNT_KEY, SAS_TOKEN]
        }
    }
}

impl Desk {
    /// Whether a connector has a store.
    pub(super) fn is_store(&self, name: &str) -> bool {
        self.says(name, |one| &one.store)
    }

    pub(super) fn says(&self, name: &str, leaf: fn(&Connector) -> &Leaf) -> bool {
        let written = |layer: &crate::config::Layer| layer.find(|written| written.connectors.get(name).map(leaf)).is_some();
        self.layers.iter().any(written)
    }

    /// Notes the keys of these that a connector has and must not have.
    pub(super) fn without(&mut self, name: &str, keys: &[Named], why: &str) {
        for (field, leaf) in keys {
            if self.says(name, *leaf) {
                self.of_connector(name, field, *leaf, |_| Ok(()));
                self.fault(&format!("connectors.{name}.{field}"), format!("must be left out: {why}"));
            }
        }
    }

    /// One store; none where something is wrong with it, which is noted.
    pub(super) fn store(&mut self, name: &str, proxied: bool) -> Option<StoreSettings> {
        let key = |field: &str| format!("connectors.{name}.{field}");
        let tenants = self.of_connector(name, "tenants", |one| &one.tenants, tenants);
        self.named(name, &key("tenants"));
        let kind = self.of_connector(name, "store", |one| &one.store, kind)?;
        self.without(name, ONLY_HTTP, "a connector with a store takes no requests");
        self.without(name, useless(kind), "this kind of store has no such thing");
        self.without(name, super::databases::ONLY_DATABASES, "only where the connector has a database");
        let prefix = self.of_connector(name, "prefix", |one| &one.prefix, prefix);
        let allow = self.of_connector(name, "allow", |one| &one.allow, allow);
        let bytes_max = self.of_connector(name, "bytes_max", |one| &one.bytes_max, bytes);
        let stall_ms = self.of_connector(name, "stall", |one| &one.stall, duration(STALL_MS));
        let if_absent = self.of_connector(name, "if_absent", |one| &one.if_absent, flag);
        let ca = self.of_connector(name, "ca", |one| &one.ca, path);
        let cert = self.of_connector(name, "cert", |one| &one.cert, path);
        let tls_key = self.of_connector(name, "key", |one| &one.key, path);
        self.both(cert.is_some(), &key("cert"), tls_key.is_some(), &key("key"));
        let direct = self.of_connector(name, "direct", |one| &one.direct, flag);
        let reached = !matches!(kind, Kind::Memory);
        if proxied && reached && !direct {
            let rule = "must be true where net.proxy is set: stores are reached straight and by no proxy";
            self.fault(&key("direct"), rule.to_owned());
        }
        let kind = match kind {
            Kind::Memory => Some(StoreKind::Memory),
            Kind::S3 => self.s3(name),
            Kind::Gcs => self.gcs(name),
            Kind::Azblob => self.azblob(name),
        }?;
        let tls = TlsFiles { ca, cert, key: tls_key };
        Some(StoreSettings { tenants, kind, prefix, allow, tls, bytes_max, stall_ms, if_absent })
    }

    fn s3(&mut self, name: &str) -> Option<StoreKind> {
        let bucket = self.needed(name, BUCKET, bucket);
        let region = self.needed(name, REGION, label);
        let endpoint = self.endpoint(name, region.as_deref().map(|region| format!("https://s3.{region}.amazonaws.com")));
        let access_key = self.needed(name, ACCESS_KEY, secret);
        let secret_key = self.needed(name, SECRET_KEY, secret);
        let session_token = self.of_connector(name, SESSION_TOKEN.0, SESSION_TOKEN.1, secret);
        Some(StoreKind::S3 {
            endpoint: endpoint?,
            bucket: bucket?,
            region: region?,
            access_key: access_key?,
            secret_key: secret_key?,
            session_token,
        })
    }

    fn gcs(&mut self, name: &str) -> Option<StoreKind> {
        let bucket = self.needed(name, BUCKET, bucket);
        let endpoint = self.endpoint(name, Some("https://storage.googleapis.com".to_owned()));
        let credential = self.needed(name, CREDENTIAL, secret);
        Some(StoreKind::Gcs { endpoint: endpoint?, bucket: bucket?, credential: credential? })
    }

    fn azblob(&mut self, name: &str) -> Option<StoreKind> {
        let container = self.needed(name, BUCKET, bucket);
        let account = self.needed(name, ACCOUNT, label);
        let endpoint = self.endpoint(name, account.as_deref().map(|account| format!("https://{account}.blob.core.windows.net")));
        let account_key = self.of_connector(name, ACCOUNT_KEY.0, ACCOUNT_KEY.1, secret);
        let signature = self.of_connector(name, SAS_TOKEN.0, SAS_TOKEN.1, secret);
        let login = match (account_key, signature) {
            (Some(key), None) => Some(AzureLogin::Key(key)),
            (None, Some(signature)) => Some(AzureLogin::Signature(signature)),
            (Some(_), Some(_)) => {
                self.fault(&format!("connectors.{name}.sas_token"), "must be left out where there is an account_key".to_owned());
                None
            }
            (None, None) => {
                let key = format!("connectors.{name}.account_key");
                if !self.is_faulty(&key) && !self.is_faulty(&format!("connectors.{name}.sas_token")) {
                    self.fault(&key, "must be set, or sas_token".to_owned());
                }
                None
            }
        };
        Some(StoreKind::Azblob { endpoint: endpoint?, container: container?, account: account?, login: login? })
    }

    /// Where it is: as written, or where everybody's is.
    fn endpoint(&mut self, name: &str, usual: Option<String>) -> Option<Target> {
        let key = format!("connectors.{name}.endpoint");
        match self.of_connector(name, ENDPOINT.0, ENDPOINT.1, target) {
            Some(endpoint) if endpoint.path() != "/" => {
                self.fault(&key, "must be a URL with nothing behind the host and its port".to_owned());
                None
            }
            Some(endpoint) => Some(endpoint),
            None if self.is_faulty(&key) => None,
            None => match Target::parse(&usual?) {
                Ok(endpoint) => Some(endpoint),
                Err(_) => {
                    self.fault(&key, "must be set: the usual one is no URL here".to_owned());
                    None
                }
            },
        }
    }

    fn needed<T>(&mut self, name: &str, (field, leaf): Named, rule: impl Fn(&Value) -> Rule<Option<T>>) -> Option<T> {
        let value = self.of_connector(name, field, leaf, rule);
        let key = format!("connectors.{name}.{field}");
        if value.is_none() && !self.is_faulty(&key) {
            self.fault(&key, "must be set for this kind of store".to_owned());
        }
        value
    }
}

fn kind(value: &Value) -> Rule<Option<Kind>> {
    if value.as_str() == Some("") { Ok(None) } else { choice(KINDS)(value).map(Some) }
}

fn bytes(value: &Value) -> Rule<Option<u64>> {
    if value.as_str() == Some("") { Ok(None) } else { size(BYTES)(value).map(Some) }
}

/// The name of a bucket or a container.
fn bucket(value: &Value) -> Rule<Option<String>> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'$');
    word(value, fits, "must be a name of letters, digits, hyphens, dots and underscores")
}

/// What stands in a host's name.
fn label(value: &Value) -> Rule<Option<String>> {
    word(value, |byte| byte.is_ascii_alphanumeric() || byte == b'-', "must be a name of letters, digits and hyphens")
}

fn word(value: &Value, fits: impl Fn(u8) -> bool, rule: &str) -> Rule<Option<String>> {
    let text = text(value)?;
    match text.len() {
        0 => Ok(None),
        ..=BUCKET_BYTES_MAX if text.bytes().all(fits) && !matches!(text.as_str(), "." | "..") => Ok(Some(text)),
        _ => Err(rule.to_owned()),
    }
}

/// What stands before the tenants' own prefixes, with a slash at its end.
fn prefix(value: &Value) -> Rule<String> {
    let text = text(value)?;
    let bare = text.strip_suffix('/').unwrap_or(&text);
    match bare.len() {
        0 if text.is_empty() => Ok(String::new()),
        1..=PREFIX_BYTES_MAX if path_rule(bare).is_ok() && bare.trim() == bare => Ok(format!("{bare}/")),
        _ => Err(format!("must be a path of at most {PREFIX_BYTES_MAX} bytes, such as \"endstation/blobs\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use crate::policy::PolicySettings;
    use crate::policy::stores::{AzureLogin, StoreKind};

    fn settle(text: &str) -> Result<PolicySettings, Vec<String>> {
        let settled = Settings::of(Some(("e.toml", text)), std::iter::empty(), &[]);
        settled.map(|settings| settings.policy).map_err(|error| error.faults.iter().map(ToString::to_string).collect())
    }

    const S3: &str = "[connectors.archive]\nstore = \"s3\"\nbucket = \"b\"\nregion = \"eu-central-1\"\n\
                      access_key = \"secret://env/A\"\nsecret_key = \"secret://env/B\"\n";

    #[test]
    fn a_store_of_each_kind_is_what_the_file_says() {
        let policy = settle(&format!(
            "{S3}prefix = \"a/b/\"\nbytes_max = \"10GiB\"\nstall = \"5s\"\ntenants = \"acme\"\n\
             [connectors.google]\nstore = \"gcs\"\nbucket = \"g\"\ncredential = \"secret://file/etc/g.json\"\n\
             [connectors.azure]\nstore = \"azblob\"\nbucket = \"c\"\naccount = \"acct\"\nsas_token = \"secret://env/S\"\n\
             [connectors.scratch]\nstore = \"memory\"\ntenants = \"*\"\nif_absent = false\n"
        ))
        .expect("a configuration");
        assert!(policy.connectors.is_empty());
        let archive = &policy.stores["archive"];
        assert_eq!((archive.prefix.as_str(), archive.bytes_max, archive.stall_ms), ("a/b/", Some(10 << 30), 5_000));
        assert_eq!((archive.tenants.as_deref(), archive.if_absent), (Some(&["acme".to_owned()][..]), true));
        let StoreKind::S3 { endpoint, session_token, .. } = &archive.kind else { panic!("{archive:?}") };
        assert_eq!((endpoint.as_str(), session_token), ("https://s3.eu-central-1.amazonaws.com/", &None));
        let StoreKind::Gcs { endpoint, .. } = &policy.stores["google"].kind else { panic!("no gcs") };
        assert_eq!(endpoint.as_str(), "https://storage.googleapis.com/");
        let StoreKind::Azblob { endpoint, login, .. } = &policy.stores["azure"].kind else { panic!("no azblob") };
        assert_eq!(endpoint.as_str(), "https://acct.blob.core.windows.net/");
        assert!(matches!(login, AzureLogin::Signature(_)));
        let scratch = &policy.stores["scratch"];
        assert_eq!((&scratch.kind, &scratch.tenants, scratch.if_absent), (&StoreKind::Memory, &None, false));
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_store_names_its_key_and_no_secret() {
        let s3 = |more: &str| format!("{S3}{more}\n");
        for (text, key, rule) in [
            ("[connectors.a]\nstore = \"ftp\"".to_owned(), "store", "s3"),
            ("[connectors.a]\nstore = \"s3\"".to_owned(), "bucket", "must be set"),
            ("[connectors.a]\nstore = \"s3\"".to_owned(), "region", "must be set"),
            ("[connectors.a]\nstore = \"s3\"".to_owned(), "access_key", "must be set"),
            ("[connectors.a]\nstore = \"s3\"\nsecret_key = \"hunter2\"".to_owned(), "secret_key", "a reference"),
            ("[connectors.a]\nstore = \"gcs\"\nbucket = \"b\"".to_owned(), "credential", "must be set"),
            ("[connectors.a]\nstore = \"azblob\"\nbucket = \"b\"\naccount = \"a\"".to_owned(), "account_key", "or sas_token"),
            ("[connectors.a]\nstore = \"memory\"\nbucket = \"b\"".to_owned(), "bucket", "left out"),
            ("[connectors.a]\nbucket = \"b\"".to_owned(), "bucket", "left out"),
            ("[connectors.a]\nbytes_max = \"1GiB\"".to_owned(), "bytes_max", "left out"),
            (s3("url = \"http://h.example/\""), "url", "takes no requests"),
            (s3("bearer = \"secret://env/A\""), "bearer", "takes no requests"),
            (s3("account = \"a\""), "account", "no such thing"),
            (s3("endpoint = \"s3\""), "endpoint", "URL"),
            (s3("endpoint = \"http://u:hunter2@h/\""), "endpoint", "userinfo"),
            (s3("endpoint = \"http://h.example/b\""), "endpoint", "nothing behind"),
            (s3("prefix = \"../x\""), "prefix", "a path"),
            (s3("prefix = \"/\""), "prefix", "a path"),
            (s3("prefix = \"a/$b\""), "prefix", "a path"),
            (s3("bytes_max = \"many\""), "bytes_max", "a byte size"),
            (s3("stall = \"5\""), "stall", "a duration"),
            (s3("if_absent = \"perhaps\""), "if_absent", "true or false"),
            (s3("cert = \"c\""), "cert", "beside it"),
            (s3("[net]\nproxy = \"http://proxy:3128\""), "direct", "must be true"),
        ] {
            let faults = settle(&text).expect_err(&text);
            let named = |fault: &String| fault.contains(&format!(".{key}")) && fault.contains(rule);
            assert!(faults.iter().any(named), "{text}: {faults:?}");
            assert!(faults.iter().all(|fault| !fault.contains("hunter2")), "{text}: {faults:?}");
        }
    }
}
