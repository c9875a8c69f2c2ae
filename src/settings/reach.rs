//! Tenants, connectors, keys and the way out, from what is written to [`PolicySettings`].
//!
//! Their names are the operator's, so each of their keys is settled under a name that is made here: `connectors.crm.url`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use toml::Value;

use super::resolve::Desk;
use super::{GrpcSettings, NatsSettings};
use crate::config::{Connector, Leaf, Rule, Tenant, Written, flag, path, sockets, text, words};
use crate::net::client::is_ours;
use crate::net::egress::{Allow, Scheme, Target};
use crate::net::proxy::Proxy;
use crate::net::tls::TlsFiles;
use crate::policy::signers::SignerSettings;
use crate::policy::{Auth, ConnectorSettings, DEFAULT, PolicySettings, Scope};
use crate::secrets::SecretRef;

/// Longest name of a connector or a key, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Longest id of a tenant, in bytes: as on the wire.
const TENANT_BYTES_MAX: usize = 256;
/// Stands for every tenant in such a list.
const ALL: &str = "*";

/// Whether the key of this name takes a reference to a secret.
pub(super) fn holds_reference(key: &str) -> bool {
    let ends: &[&str] = match key.split_once('.') {
        Some(("connectors", _)) => &[
            ".bearer",
            ".password",
            ".value",
            ".access_key",
            ".secret_key",
            ".session_token",
            ".credential",
            ".account_key",
            ".sas_token",
        ],
        Some(("keys", _)) => &[".secret"],
        Some(("net", "proxy_password")) => return true,
        _ => &[],
    };
    ends.iter().any(|end| key.ends_with(end))
}

impl Desk {
    /// Everything about what steps may reach.
    pub(super) fn policy(&mut self, nats: &NatsSettings, ops: SocketAddr, grpc: Option<&GrpcSettings>) -> PolicySettings {
        let dns = self.take_from(Cow::Borrowed("net.dns"), |written| Some(&written.net.dns), "", sockets);
        let (proxy, no_proxy) = self.proxy();
        let mut policy = PolicySettings { dns, proxy, no_proxy, own: own(nats, ops, grpc), ..PolicySettings::default() };
        // Whoever says nothing of it for a tenant means what is said for all: it is no grant that a section of its own takes away.
        let tenants = self.section(|written| &written.tenants);
        let all = tenants.contains(DEFAULT)
            && self.of_tenant(DEFAULT, "require_signature", |tenant| &tenant.require_signature, "false", flag);
        for tenant in tenants {
            let rule = is_name(&tenant, TENANT_BYTES_MAX).then_some(()).ok_or("a tenant's id, or default");
            let scopes = self.of_tenant(&tenant, "scopes", |tenant| &tenant.scopes, "", scopes);
            if let Err(rule) = rule {
                self.fault(&format!("tenants.{tenant}.scopes"), format!("must stand under {rule}"));
            }
            let usual = if all { "true" } else { "false" };
            let demanded = match tenant.as_str() {
                DEFAULT => all,
                tenant => self.of_tenant(tenant, "require_signature", |tenant| &tenant.require_signature, usual, flag),
            };
            policy.grants.insert(tenant.clone(), scopes);
            policy.demands.insert(tenant, demanded);
        }
        self.take_from(
            Cow::Borrowed("policy.files"),
            |written| Some(&written.policy.files),
            "",
            |value| words(value).ok_or_else(|| "must be a list of files and folders".to_owned()),
        );
        for name in self.section(|written| &written.signers) {
            if let Some(settled) = self.signer(&name) {
                policy.signers.insert(name, settled);
            }
        }
        let unheard = policy.demands.iter().filter(|(tenant, demanded)| **demanded && !is_heard(&policy.signers, tenant));
        for tenant in unheard.map(|(tenant, _)| tenant.clone()).collect::<Vec<_>>() {
            let rule = "needs a [signers.*] that lists the tenant: nothing of it would be taken".to_owned();
            self.fault(&format!("tenants.{tenant}.require_signature"), rule);
        }
        for name in self.section(|written| &written.connectors) {
            if self.is_database(&name) {
                if let Some(settled) = self.database(&name, policy.proxy.is_some()) {
                    policy.databases.insert(name, settled);
                }
                continue;
            }
            if self.is_store(&name) {
                if let Some(settled) = self.store(&name, policy.proxy.is_some()) {
                    policy.stores.insert(name, settled);
                }
                continue;
            }
            let settled = self.connector(&name);
            policy.connectors.insert(name, settled);
        }
        for name in self.section(|written| &written.keys) {
            if let Some(settled) = self.key_of_steps(&name) {
                policy.keys.insert(name, settled);
            }
        }
        policy
    }

    fn proxy(&mut self) -> (Option<Proxy>, Vec<Allow>) {
        let proxy = self.take_from(Cow::Borrowed("net.proxy"), |written| Some(&written.net.proxy), "", proxy);
        let user = self.take_from(Cow::Borrowed("net.proxy_user"), |written| Some(&written.net.proxy_user), "", text);
        let password =
            self.take_from(Cow::Borrowed("net.proxy_password"), |written| Some(&written.net.proxy_password), "", secret);
        let no_proxy = self.take_from(Cow::Borrowed("net.no_proxy"), |written| Some(&written.net.no_proxy), "", allow);
        match (user.is_empty(), &password) {
            (false, None) => self.fault("net.proxy_user", "needs net.proxy_password beside it".to_owned()),
            (true, Some(_)) => self.fault("net.proxy_password", "needs net.proxy_user beside it".to_owned()),
            (false, Some(_)) if proxy.is_none() => self.fault("net.proxy_user", "needs net.proxy beside it".to_owned()),
            _ => {}
        }
        (proxy.map(|target| Proxy { target, login: password.map(|password| (user, password)) }), no_proxy)
    }

    /// The names in a section, in all layers.
    fn section<T: 'static>(&self, section: fn(&Written) -> &BTreeMap<String, T>) -> BTreeSet<String> {
        self.layers.iter().flat_map(|layer| layer.names(section).cloned().collect::<Vec<_>>()).collect()
    }

    fn of_tenant<T>(
        &mut self,
        tenant: &str,
        field: &str,
        leaf: fn(&Tenant) -> &Leaf,
        default: &str,
        rule: impl Fn(&Value) -> Rule<T>,
    ) -> T {
        let name = Cow::Owned(format!("tenants.{tenant}.{field}"));
        self.take_from(name, |written| written.tenants.get(tenant).map(leaf), default, rule)
    }

    pub(super) fn of_connector<T>(
        &mut self,
        connector: &str,
        field: &str,
        leaf: fn(&Connector) -> &Leaf,
        rule: impl Fn(&Value) -> Rule<T>,
    ) -> T {
        let name = Cow::Owned(format!("connectors.{connector}.{field}"));
        let default = match field {
            "idempotency_key" | "direct" | "pooler" | "trace" | "read_only" => "false",
            "if_absent" => "true",
            "stall" => "30s",
            "currency" => "USD",
            "port" => "5432",
            "tls" => "verify-full",
            "max_connections" => "8",
            "statement_timeout" => "10m",
            "lock_timeout" => "10s",
            _ => "",
        };
        self.take_from(name, |written| written.connectors.get(connector).map(leaf), default, rule)
    }

    /// Notes a section's name that is none; `first` is the first of its keys.
    pub(super) fn named(&mut self, name: &str, first: &str) {
        if !is_name(name, NAME_BYTES_MAX) {
            let rule = format!("must stand under a name of 1 to {NAME_BYTES_MAX} characters out of A-Z, a-z, 0-9, _ and -");
            self.fault(first, rule);
        }
    }

    /// Notes a key of two that is nothing without the other.
    pub(super) fn both(&mut self, one: bool, name: &str, other: bool, beside: &str) {
        match (one, other) {
            (true, false) => self.fault(name, format!("needs {beside} beside it")),
            (false, true) => self.fault(beside, format!("needs {name} beside it")),
            _ => {}
        }
    }

    fn connector(&mut self, name: &str) -> ConnectorSettings {
        let key = |field: &str| format!("connectors.{name}.{field}");
        let tenants = self.of_connector(name, "tenants", |one| &one.tenants, tenants);
        self.named(name, &key("tenants"));
        let url = self.of_connector(name, "url", |one| &one.url, target);
        let allow = self.of_connector(name, "allow", |one| &one.allow, allow);
        let bearer = self.of_connector(name, "bearer", |one| &one.bearer, secret);
        let user = self.of_connector(name, "user", |one| &one.user, text);
        let password = self.of_connector(name, "password", |one| &one.password, secret);
        let header = self.of_connector(name, "header", |one| &one.header, header);
        let value = self.of_connector(name, "value", |one| &one.value, secret);
        let idempotency_key = self.of_connector(name, "idempotency_key", |one| &one.idempotency_key, flag);
        let ca = self.of_connector(name, "ca", |one| &one.ca, path);
        let cert = self.of_connector(name, "cert", |one| &one.cert, path);
        let tls_key = self.of_connector(name, "key", |one| &one.key, path);
        let direct = self.of_connector(name, "direct", |one| &one.direct, flag);
        let provider = self.provider_of(name, url.is_some());
        match (user.is_empty(), &password) {
            (false, None) => self.fault(&key("user"), format!("needs {} beside it", key("password"))),
            (true, Some(_)) => self.fault(&key("password"), format!("needs {} beside it", key("user"))),
            _ => {}
        }
        match (&header, &value) {
            (Some(_), None) => self.fault(&key("header"), format!("needs {} beside it", key("value"))),
            (None, Some(_)) => self.fault(&key("value"), format!("needs {} beside it", key("header"))),
            _ => {}
        }
        self.both(cert.is_some(), &key("cert"), tls_key.is_some(), &key("key"));
        let ways = [bearer.is_some(), password.is_some(), value.is_some()];
        if ways.iter().filter(|way| **way).count() > 1 {
            let last = ["bearer", "password", "value"].iter().zip(ways).rfind(|(_, way)| *way).map_or("", |(field, _)| field);
            self.fault(&key(last), "must be left out where the connector already says who a request comes from".to_owned());
        }
        let auth = match (bearer, password, header.zip(value)) {
            (Some(token), _, _) => Auth::Bearer(token),
            (_, Some(password), _) => Auth::Basic { user, password },
            (_, _, Some((name, value))) => Auth::Header { name, value },
            _ => Auth::None,
        };
        // What proves who we are goes to one place, and not wherever a step's URL leads.
        if auth != Auth::None && url.is_none() {
            self.fault(
                &key("url"),
                "must be set where the connector says who a request comes from: it goes nowhere else".to_owned(),
            );
        }
        self.without(name, super::stores::ONLY_STORES, "only where the connector has a store");
        self.without(name, super::databases::ONLY_DATABASES, "only where the connector has a database");
        let tls = TlsFiles { ca, cert, key: tls_key };
        ConnectorSettings { tenants, url, allow, auth, idempotency_key, tls, direct, provider }
    }
}

/// Where this worker listens and whom it works for, as far as that is known by address.
fn own(nats: &NatsSettings, ops: SocketAddr, grpc: Option<&GrpcSettings>) -> Vec<SocketAddr> {
    let mut own = vec![ops];
    own.extend(grpc.map(|grpc| grpc.bind));
    for server in nats.url.split(',') {
        let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
        let (host, port) = match rest.rsplit_once(':').filter(|(host, _)| !host.ends_with(':') || host.ends_with(']')) {
            Some((host, port)) => (host, port.parse().unwrap_or(4222)),
            None => (rest, 4222),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match host.parse::<IpAddr>() {
            Ok(address) => own.push(SocketAddr::new(address, port)),
            Err(_) if host == "localhost" => {
                own.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
                own.push(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port));
            }
            // Where a name leads is seen when it is resolved; it is denied then if it is no public address.
            Err(_) => {}
        }
    }
    own
}

fn is_name(name: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Whether there is anybody whose signature holds for this tenant; for all that have no section: for anybody at all.
fn is_heard(signers: &BTreeMap<String, SignerSettings>, tenant: &str) -> bool {
    let lists = |signer: &SignerSettings| signer.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|one| one == tenant));
    if tenant == DEFAULT { !signers.is_empty() } else { signers.values().any(lists) }
}

/// Whether it is a text of visible characters, and not too long.
pub(super) fn is_text(text: &str, bytes_max: usize) -> bool {
    (1..=bytes_max).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// What a tenant is granted: every other scope it has by what lists it.
fn scopes(value: &Value) -> Rule<Vec<Scope>> {
    scopes_out_of(&[Scope::Http], value)
}

pub(super) fn scopes_out_of(known: &[Scope], value: &Value) -> Rule<Vec<Scope>> {
    let names: Vec<&str> = known.iter().map(|scope| scope.as_str()).collect();
    let rule = || format!("must be a list out of {}", names.join(", "));
    let named = |word: &String| known.iter().find(|scope| scope.as_str() == word).copied();
    words(value).and_then(|list| list.iter().map(named).collect()).ok_or_else(rule)
}

pub(super) fn tenants(value: &Value) -> Rule<Option<Vec<String>>> {
    let rule = || format!("must be a list of tenants' ids, or {ALL:?} for all");
    let list = words(value).ok_or_else(rule)?;
    if list == [ALL] {
        return Ok(None);
    }
    list.iter().all(|tenant| is_name(tenant, TENANT_BYTES_MAX)).then_some(Some(list)).ok_or_else(rule)
}

pub(super) fn target(value: &Value) -> Rule<Option<Target>> {
    let text = text(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let target = Target::parse(&text).map_err(|denial| format!("must be an http or https URL: {}", denial.rule))?;
    if target.query().is_some() {
        return Err("must be a URL without a query".to_owned());
    }
    Ok(Some(target))
}

fn proxy(value: &Value) -> Rule<Option<Target>> {
    let rule = "must be a proxy's http URL with nothing behind the port, such as \"http://proxy.internal:3128\"";
    let target = target(value).map_err(|_| rule)?;
    let plain = |target: &Target| target.scheme() == Scheme::Http && target.path_and_query() == "/";
    if target.as_ref().is_none_or(plain) { Ok(target) } else { Err(rule.to_owned()) }
}

pub(super) fn allow(value: &Value) -> Rule<Vec<Allow>> {
    let rule = "must be a list of hosts, addresses and networks, such as [\"crm.internal\", \"10.1.2.0/24\", \"[fd00::1]:8443\"]";
    let list = words(value).ok_or(rule)?;
    list.iter().map(|text| Allow::parse(text).map_err(|why| format!("{rule}: {why}"))).collect()
}

pub(super) fn secret(value: &Value) -> Rule<Option<SecretRef>> {
    let text = text(value)?;
    if text.is_empty() { Ok(None) } else { SecretRef::parse(&text).map(Some) }
}

fn header(value: &Value) -> Rule<Option<String>> {
    let text = text(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    match hyper::header::HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) if !is_ours(&name) => Ok(Some(name.as_str().to_owned())),
        _ => Err("must be the name of a header that a request may set, such as \"X-Api-Key\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn settle(text: &str) -> Result<PolicySettings, Vec<String>> {
        let settled = Settings::of(Some(("e.toml", text)), std::iter::empty(), &[]);
        settled.map(|settings| settings.policy).map_err(|error| error.faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn tenants_and_connectors_are_what_the_file_says_by_their_own_names() {
        let policy = settle(
            r#"
            net.dns = ["10.0.0.2:53", "[fd00::2]:5353"]
            [tenants.default]
            scopes = "http"
            [tenants.acme]
            scopes = []
            [connectors.crm]
            tenants = "acme, other"
            url = "https://crm.internal:8443/api/"
            allow = ["crm.internal", "10.1.2.0/24"]
            user = "u"
            password = "secret://file/etc/crm#password"
            idempotency_key = true
            ca = "ca.pem"
            [connectors.open]
            tenants = "*"
            "#,
        )
        .expect("a configuration");
        assert_eq!(policy.dns.len(), 2);
        assert_eq!(policy.grants["default"], [Scope::Http]);
        assert!(policy.grants["acme"].is_empty());
        let crm = &policy.connectors["crm"];
        assert_eq!(crm.tenants, Some(vec!["acme".to_owned(), "other".to_owned()]));
        assert_eq!(crm.url.as_ref().map(Target::as_str), Some("https://crm.internal:8443/api/"));
        assert_eq!((crm.allow.len(), crm.idempotency_key), (2, true));
        assert!(matches!(&crm.auth, Auth::Basic { user, .. } if user == "u"));
        assert_eq!(crm.tls.ca, Some("ca.pem".into()));
        assert_eq!((&policy.connectors["open"].tenants, &policy.connectors["open"].auth), (&None, &Auth::None));
        // What it works for and where it listens: nothing of a tenant's goes there.
        assert_eq!(policy.own, ["127.0.0.1:9091", "127.0.0.1:4222"].map(|own| own.parse().expect("an address")));
    }

    #[test]
    fn variables_and_flags_reach_them_too() {
        let env = [("ENDSTATION__CONNECTORS__CRM__URL".to_owned(), "http://h.example/".to_owned())];
        let flags = [("tenants.acme.scopes", "http", "--set"), ("connectors.crm.tenants", "acme", "--set")];
        let settings = Settings::of(Some(("e.toml", "[connectors.crm]\ntenants = \"x\"\n")), env.into_iter(), &flags);
        let settings = settings.expect("a configuration");
        assert_eq!(settings.policy.connectors["crm"].tenants, Some(vec!["acme".to_owned()]));
        assert!(settings.policy.connectors["crm"].url.is_some());
        assert_eq!(settings.policy.grants["acme"], [Scope::Http]);
        let row = settings.rows().iter().find(|row| row.key == "connectors.crm.url").expect("shown");
        assert_eq!(row.origin.to_string(), "env ENDSTATION__CONNECTORS__CRM__URL");
    }

    #[test]
    fn what_all_tenants_must_sign_one_with_a_section_of_its_own_must_too() {
        let signer = format!(
            "[signers.ci]\ntenants = \"*\"\npublic = \"{}\"\n",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        let policy = settle(&format!(
            "{signer}[tenants.default]\nrequire_signature = true\n[tenants.acme]\nscopes = \"http\"\n[tenants.free]\nrequire_signature = false\n"
        ));
        let demands = policy.expect("a configuration").demands;
        assert_eq!(["acme", "default", "free"].map(|tenant| demands[tenant]), [true, true, false]);
    }

    #[test]
    fn policies_stand_in_files_of_their_own_and_each_section_in_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        write("a.toml", "[tenants.acme]\nscopes = [\"http\"]\n[connectors.crm]\ntenants = \"acme\"\n");
        write("b.toml", "[tenants.other]\nscopes = []\n");
        write("notes.txt", "no policy");
        let main = format!("policy.files = [{:?}]\n[tenants.default]\nscopes = []\n", folder.path());
        let policy = settle(&main).expect("a configuration");
        assert_eq!(policy.grants.keys().collect::<Vec<_>>(), ["acme", "default", "other"]);
        let flags = [("tenants.acme.scopes", "", "--set")];
        let settings = Settings::of(Some(("e.toml", &main)), std::iter::empty(), &flags).expect("a configuration");
        assert!(settings.policy.grants["acme"].is_empty(), "a flag outranks every file");
        let row = settings.rows().iter().find(|row| row.key == "connectors.crm.tenants").expect("shown");
        assert!(row.origin.to_string().ends_with("a.toml:4"), "{}", row.origin);

        write("c.toml", "\n[tenants.other]\nscopes = [\"http\"]\n[tenants.default]\n");
        let faults = settle(&main).expect_err("two say something of one").join("\n");
        let twice = |section: &str, before: &str, line: u32| {
            let told = faults.lines().find(|fault| fault.starts_with(section)).unwrap_or_else(|| panic!("{faults}"));
            assert!(told.contains(before) && told.ends_with(&format!("c.toml:{line})")), "{told}");
        };
        twice("[tenants.other] stands in ", "b.toml, too", 2);
        twice("[tenants.default] stands in ", "e.toml, too", 4);
        write("c.toml", "[limits]\ntenant_running = 1\n");
        let faults = settle(&main).expect_err("no policy").join("\n");
        assert!(faults.contains("limits: no such key") && faults.contains("c.toml:1"), "{faults}");
    }

    #[test]
    fn each_thing_that_is_wrong_names_its_key_and_no_secret() {
        for (text, key, rule) in [
            ("[tenants.acme]\nscopes = \"sql\"", "tenants.acme.scopes", "a list out of http"),
            ("[tenants.acme]\nscope = \"http\"", "tenants.acme.scope", "no such key"),
            ("[tenants.\"a b\"]\nscopes = \"http\"", "tenants.a b.scopes", "a tenant's id"),
            ("[connectors.\"c d\"]\ntenants = \"*\"", "connectors.c d.tenants", "a name of 1 to 64"),
            ("[connectors.crm]\ntenants = \"a b\"", "connectors.crm.tenants", "a list of tenants' ids"),
            ("[connectors.crm]\nurl = \"crm\"", "connectors.crm.url", "an http or https URL: scheme"),
            ("[connectors.crm]\nurl = \"http://u:hunter2@h/\"", "connectors.crm.url", "userinfo"),
            ("[connectors.crm]\nurl = \"http://h.example/?a\"", "connectors.crm.url", "without a query"),
            ("[connectors.crm]\nallow = \"10.0.0.1/8\"", "connectors.crm.allow", "a list of hosts"),
            ("[connectors.crm]\nbearer = \"hunter2\"", "connectors.crm.bearer", "a reference"),
            ("[connectors.crm]\nurl = \"http://h.example\"\npassword = \"hunter2\"", "connectors.crm.password", "a reference"),
            ("[connectors.crm]\nbearer = \"secret://env/A\"", "connectors.crm.url", "must be set"),
            ("[connectors.crm]\nuser = \"u\"", "connectors.crm.user", "needs connectors.crm.password"),
            ("[connectors.crm]\nheader = \"X-Key\"", "connectors.crm.header", "needs connectors.crm.value"),
            ("[connectors.crm]\nheader = \"Host\"", "connectors.crm.header", "the name of a header"),
            ("[connectors.crm]\ncert = \"c\"", "connectors.crm.cert", "needs connectors.crm.key"),
            (
                "[connectors.crm]\nurl = \"http://h.example\"\nbearer = \"secret://env/A\"\nheader = \"X\"\nvalue = \"secret://env/B\"",
                "connectors.crm.value",
                "must be left out",
            ),
            ("[tenants.acme]\nscopes = \"blob\"", "tenants.acme.scopes", "a list out of http"),
            ("[tenants.acme]\nrequire_signature = 1", "tenants.acme.require_signature", "true or false"),
            ("[tenants.acme]\nrequire_signature = true", "tenants.acme.require_signature", "needs a [signers.*]"),
            (
                "[tenants.default]\nrequire_signature = true\n[signers.x]\npublic = \"hunter2\"",
                "tenants.default.require_signature",
                "needs a [signers.*]",
            ),
            ("[signers.ci]\ntenants = \"*\"", "signers.ci.public", "must be set"),
            ("[signers.ci]\npublic = \"hunter2\"", "signers.ci.public", "an Ed25519 public key"),
            ("[signers.ci]\nscopes = \"http, all\"", "signers.ci.scopes", "a list out of http, ai, blob, keys, sql"),
            ("[signers.ci]\nnot_after = \"tomorrow\"", "signers.ci.not_after", "a moment with its zone"),
            ("[signers.ci]\nnot_after = 2027-01-31T00:00:00", "signers.ci.not_after", "a moment with its zone"),
            (
                "[signers.ci]\nnot_after = 2026-01-31T00:00:00Z\nnot_before = 2027-01-31T00:00:00Z",
                "signers.ci.not_after",
                "later than signers.ci.not_before",
            ),
            ("policy.files = 1", "policy.files", "a list of files and folders"),
            ("policy.files = \"nowhere.toml\"", "nowhere.toml", "cannot be read"),
            ("net.dns = \"resolver\"", "net.dns", "addresses with ports"),
            ("net.proxy = \"https://proxy:3128\"", "net.proxy", "a proxy's http URL"),
            ("net.proxy = \"http://u:hunter2@proxy:3128\"", "net.proxy", "a proxy's http URL"),
            ("net.proxy = \"http://proxy:3128\"\nnet.proxy_user = \"u\"", "net.proxy_user", "needs net.proxy_password"),
            ("net.proxy_user = \"u\"\nnet.proxy_password = \"secret://env/P\"", "net.proxy_user", "needs net.proxy beside it"),
            ("net.proxy_password = \"hunter2\"", "net.proxy_password", "a reference"),
            ("net.no_proxy = \"http://h/\"", "net.no_proxy", "a list of hosts"),
        ] {
            let faults = settle(text).expect_err(text);
            assert!(faults.iter().any(|fault| fault.starts_with(key) && fault.contains(rule)), "{text}: {faults:?}");
            assert!(faults.iter().all(|fault| !fault.contains("hunter2")), "{text}: {faults:?}");
        }
    }
}
