//! What a tenant's steps may do: grants, connectors, keys, and the guard that each request passes. Shared, never changes while
//! the process runs.
//!
//! Denied unless something allows it. A tenant reaches the network where its grants say so, and then public addresses only; or
//! through a connector that lists it, and then also what that connector opens. It signs with a key that lists it. A denial names
//! the rule that it follows from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;
use shards::outcome::{Code, Fault};

use crate::net::egress::{Allow, Denial, Guard, Target};
use crate::net::proxy::Proxy;
use crate::net::tls::{self, TlsFiles, Trust};
use crate::secrets::SecretRef;

pub mod databases;
pub mod keys;
pub mod narrow;
pub mod providers;
pub mod signers;
pub mod stores;

use databases::{Database, DatabaseSettings};
use keys::KeySettings;
use providers::ProviderSettings;
use signers::SignerSettings;
use stores::{Store, StoreSettings};

/// The tenant's name that stands for all that have no section of their own.
pub const DEFAULT: &str = "default";

/// What is open besides where a worker runs for development: this machine itself.
const LOOPBACK: [&str; 4] = ["127.0.0.0/8", "[::1]", "localhost", "*.localhost"];

/// What a block needs before it may run. A tenant has [`Scope::Http`] by a grant, every other one by what lists it (a connector, a
/// key), or as its own; a step may be left with fewer. Shared, never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// To send HTTP requests.
    Http,
    /// To ask a model.
    Ai,
    /// To read and write blobs.
    Blob,
    /// To sign and verify.
    Keys,
    /// To read and write databases.
    Sql,
}

impl Scope {
    /// Every scope, by its name.
    pub const NAMES: &'static [(&'static str, Scope)] =
        &[("http", Scope::Http), ("ai", Scope::Ai), ("blob", Scope::Blob), ("keys", Scope::Keys), ("sql", Scope::Sql)];

    /// As written.
    pub fn as_str(self) -> &'static str {
        Scope::NAMES.iter().find(|(_, scope)| *scope == self).map_or("", |(name, _)| name)
    }
}

/// What is written of tenants, connectors and keys, resolved. Crosses cores; becomes a [`Policy`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySettings {
    /// By tenant; [`DEFAULT`] for all others.
    pub grants: BTreeMap<String, Vec<Scope>>,
    /// Whether messages must be signed, by tenant; [`DEFAULT`] for all others.
    pub demands: BTreeMap<String, bool>,
    /// Who may sign messages, by name.
    pub signers: BTreeMap<String, SignerSettings>,
    /// By name.
    pub connectors: BTreeMap<String, ConnectorSettings>,
    /// Connectors that are object stores, by name; none of them is among the others.
    pub stores: BTreeMap<String, StoreSettings>,
    /// Connectors that are databases, by name; none of them is among the others.
    pub databases: BTreeMap<String, DatabaseSettings>,
    /// What steps sign and verify with, by name.
    pub keys: BTreeMap<String, KeySettings>,
    /// Name servers that are asked instead of the system's.
    pub dns: Vec<SocketAddr>,
    /// Through whom everything leaves that does not go straight.
    pub proxy: Option<Proxy>,
    /// What goes straight all the same.
    pub no_proxy: Vec<Allow>,
    /// Where this worker listens, and the servers that it works for: nothing of a tenant's goes there.
    pub own: Vec<SocketAddr>,
}

/// A place that an operator knows. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorSettings {
    /// Who may use it; none named: nobody. `None`: all.
    pub tenants: Option<Vec<String>>,
    /// Where it is; a step's path is put behind it.
    pub url: Option<Target>,
    /// What it opens besides public addresses.
    pub allow: Vec<Allow>,
    /// Who we say we are.
    pub auth: Auth,
    /// Whether the other side runs a request once that comes twice with the same `Idempotency-Key`.
    pub idempotency_key: bool,
    /// Whom we trust, and our own certificate.
    pub tls: TlsFiles,
    /// Whether its requests go straight there, whatever proxy there is.
    pub direct: bool,
    /// What generates there, if something does.
    pub provider: Option<ProviderSettings>,
}

/// Who a request says it comes from. Shared, never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody.
    #[default]
    None,
    /// `Authorization: Bearer …`.
    Bearer(SecretRef),
    /// `Authorization: Basic …`.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: SecretRef,
    },
    /// A header of its own, such as `X-Api-Key`.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: SecretRef,
    },
}

/// A connector as requests use it. Shared, never changes.
pub struct Connector {
    /// Its name.
    pub name: String,
    /// As resolved.
    pub settings: ConnectorSettings,
    /// What requests through it may reach.
    pub guard: Guard,
    /// Whom they trust where it is not the system alone.
    pub trust: Option<Trust>,
}

/// See the module.
pub struct Policy {
    grants: BTreeMap<String, Vec<Scope>>,
    demands: BTreeMap<String, bool>,
    signers: BTreeMap<String, SignerSettings>,
    connectors: Vec<Connector>,
    stores: Vec<Arc<Store>>,
    databases: Vec<Arc<Database>>,
    keys: BTreeMap<String, KeySettings>,
    guard: Guard,
    dns: Vec<SocketAddr>,
    proxy: Option<Proxy>,
    no_proxy: Vec<Allow>,
    open: bool,
}

/// By which door a request leaves. Lives on its core.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// The connector and its position, if it is through one.
    pub connector: Option<(u16, &'a Connector)>,
    /// What it may reach.
    pub guard: &'a Guard,
}

/// A connector that cannot be used as it is written.
#[derive(Debug, thiserror::Error)]
#[error("connectors.{connector}.{field}: {why}")]
pub struct PolicyError {
    /// Which.
    pub connector: String,
    /// Which of its keys.
    pub field: &'static str,
    /// Why.
    pub why: String,
}

impl Policy {
    /// Reads the certificates that connectors name. `open` is for development: every tenant may reach public addresses and this
    /// machine's own.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn new(mut settings: PolicySettings, open: bool) -> Result<Policy, PolicyError> {
        let loopback =
            || if open { LOOPBACK.map(|entry| Allow::parse(entry).expect("as the guard wants it")).to_vec() } else { Vec::new() };
        let mut connectors = Vec::with_capacity(settings.connectors.len());
        for (name, one) in std::mem::take(&mut settings.connectors) {
            let trust = match one.tls.is_plain() {
                true => None,
                false => {
                    let built = tls::of(&one.tls);
                    Some(built.map_err(|(field, why)| PolicyError { connector: name.clone(), field, why })?)
                }
            };
            let allow = one.allow.iter().cloned().chain(loopback()).collect();
            let guard = Guard::new(allow, None, settings.own.iter().copied());
            connectors.push(Connector { name, settings: one, guard, trust });
        }
        let mut stores = Vec::with_capacity(settings.stores.len());
        for (name, one) in std::mem::take(&mut settings.stores) {
            stores.push(Store::new(name, one, loopback(), &settings.own)?);
        }
        let mut databases = Vec::with_capacity(settings.databases.len() + 1);
        for (name, one) in std::mem::take(&mut settings.databases) {
            databases.push(Database::new(name, one, loopback(), &settings.own)?);
        }
        if open && databases.iter().all(|one| one.name != databases::EMBEDDED) {
            databases.push(Database::embedded());
        }
        let guard = Guard::new(loopback(), None, settings.own.iter().copied());
        let PolicySettings { grants, demands, signers, keys, dns, proxy, no_proxy, .. } = settings;
        Ok(Policy { grants, demands, signers, connectors, stores, databases, keys, guard, dns, proxy, no_proxy, open })
    }

    /// Nobody may do anything but what needs no grant: what a worker does that is told nothing.
    pub fn shut() -> Policy {
        Policy::new(PolicySettings::default(), false).expect("there is no file in it to be wrong")
    }

    /// Through whom a request by this route leaves to this target, if not straight there.
    pub fn proxy(&self, route: &Route<'_>, target: &Target) -> Option<&Proxy> {
        let direct = route.connector.is_some_and(|(_, connector)| connector.settings.direct);
        let named = || self.no_proxy.iter().any(|entry| entry.lists(target.host(), target.port()));
        self.proxy.as_ref().filter(|_| !direct && !named())
    }

    /// Name servers that are asked instead of the system's.
    pub fn dns(&self) -> &[SocketAddr] {
        &self.dns
    }

    /// Whether this tenant has this grant.
    ///
    /// # Errors
    /// The rule that denies it.
    pub fn grants(&self, tenant: &str, scope: Scope) -> Result<(), Refused> {
        let section = if self.grants.contains_key(tenant) { tenant } else { DEFAULT };
        let granted = self.grants.get(section).is_some_and(|scopes| scopes.contains(&scope));
        if granted || self.open {
            return Ok(());
        }
        Err(Refused { rule: format!("tenants.{section}.scopes has no {:?}", scope.as_str()), pointer: None })
    }

    /// The rule that gives this tenant this grant; none: it has not.
    pub fn granted_by(&self, tenant: &str, scope: Scope) -> Option<String> {
        let section = if self.grants.contains_key(tenant) { tenant } else { DEFAULT };
        let granted = self.grants.get(section).is_some_and(|scopes| scopes.contains(&scope));
        match (granted, self.open) {
            (true, _) => Some(format!("tenants.{section}.scopes has {:?}", scope.as_str())),
            (false, true) => Some("run and dev let everybody reach public addresses and this machine".to_owned()),
            (false, false) => None,
        }
    }

    /// The door for an HTTP request of this tenant: the connector that it names, or the open network.
    ///
    /// # Errors
    /// The rule that denies it. Whether a connector is there that does not list the tenant, the tenant is not told.
    pub fn route(&self, tenant: &str, connector: Option<&str>) -> Result<Route<'_>, Refused> {
        let Some(name) = connector else {
            self.grants(tenant, Scope::Http)?;
            return Ok(Route { connector: None, guard: &self.guard });
        };
        let position = self.connectors.iter().position(|one| one.name == name && one.lists(tenant));
        match position {
            Some(position) => {
                let connector = &self.connectors[position];
                Ok(Route { connector: Some((position as u16, connector)), guard: &connector.guard })
            }
            None => {
                Err(Refused { rule: format!("no [connectors.{name}] lists the tenant"), pointer: Some("/connector".to_owned()) })
            }
        }
    }
}

impl Policy {
    /// The object store of this name, for this tenant.
    ///
    /// # Errors
    /// As for [`Policy::route`]: the tenant is not told whether there is one. `pointer` is the field that names it.
    pub fn store(&self, tenant: &str, name: &str, pointer: &str) -> Result<&Arc<Store>, Refused> {
        self.stores.iter().find(|one| one.name == name && one.lists(tenant)).ok_or_else(|| Refused {
            rule: format!("no [connectors.{name}] with a store lists the tenant"),
            pointer: Some(format!("/{pointer}")),
        })
    }

    /// Every store.
    pub fn stores(&self) -> &[Arc<Store>] {
        &self.stores
    }
}

impl Connector {
    /// Whether its own URL, where it has one, leads to this target or to what lies above it.
    pub fn holds(&self, target: &Target) -> bool {
        let Some(base) = &self.settings.url else { return true };
        let rest = target.path().strip_prefix(base.path().trim_end_matches('/'));
        target.same_origin(base) && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn lists(&self, tenant: &str) -> bool {
        self.settings.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|one| one == tenant))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connectors: Vec<&str> = self.connectors.iter().map(|one| one.name.as_str()).collect();
        let stores: Vec<&str> = self.stores.iter().map(|one| one.name.as_str()).collect();
        let databases: Vec<&str> = self.databases.iter().map(|one| one.name.as_str()).collect();
        let keys: Vec<&String> = self.keys.keys().collect();
        let signers: Vec<&String> = self.signers.keys().collect();
        let mut shown = f.debug_struct("Policy");
        shown
            .field("grants", &self.grants)
            .field("demands", &self.demands)
            .field("signers", &signers)
            .field("connectors", &connectors)
            .field("stores", &stores)
            .field("databases", &databases)
            .field("keys", &keys)
            .field("open", &self.open)
            .finish()
    }
}

/// A denial and the rule that it follows from. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The rule, as an operator finds it.
    pub rule: String,
    /// The field of the inputs that asked for it.
    pub pointer: Option<String>,
}

impl Refused {
    /// What the guard says of a place that a step names in its field `pointer`.
    pub fn of(denial: &Denial, pointer: &str) -> Refused {
        Refused { rule: format!("egress {}: {}", denial.rule, denial.subject), pointer: Some(pointer.to_owned()) }
    }

    /// As a step's fault.
    pub fn fault(&self) -> Fault {
        let mut details = json!({ "rule": self.rule });
        if let Some(pointer) = &self.pointer {
            details["pointer"] = json!(pointer);
        }
        Fault::new(Code::PermissionDenied, "A policy of this worker forbids it.").with_details(details.to_string())
    }
}
