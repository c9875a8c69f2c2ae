//! Where a step would go, as its plan says it: blobs, hosts, keys. What an operator could change about a place is part of it, so a
//! plan made before has another digest. A secret stands as its reference. Pure: no name is looked up.

use serde_json::{Value, json};
use shards::outcome::Fault;

use crate::net::egress::{Allow, Host, Target};
use crate::net::tls::TlsFiles;
use crate::ops::logs::redact::{REDACTED, is_secret};
use crate::policy::stores::{AzureLogin, StoreKind};
use crate::policy::{Auth, Route, Scope};
use crate::secrets::SecretRef;

use super::super::Ask;

/// What stands for addresses that nobody looked up.
pub(in crate::blocks) const NOT_LOOKED_UP: &str = "no name was looked up: the addresses of a host are checked when the step runs";

/// See the module. Lives with its plan.
pub(in crate::blocks) struct Place {
    pub(in crate::blocks) says: Value,
    /// What lets the step go there.
    pub(in crate::blocks) rule: Option<String>,
    pub(in crate::blocks) secrets: Vec<SecretRef>,
}

/// The blobs that a step names in its field `pointer`: the worker's own disk, or a store.
///
/// # Errors
/// The rule that denies it.
pub(in crate::blocks) fn store(ask: &Ask<'_>, connector: Option<&str>, pointer: &str) -> Result<Place, Fault> {
    let Some(name) = connector else {
        let (says, rule) = (json!({ "kind": "disk" }), "every tenant has blobs of its own on the worker's disk".to_owned());
        return Ok(Place { says, rule: Some(rule), secrets: Vec::new() });
    };
    let store = ask.policy.store(ask.tenant, name, pointer).map_err(|refused| refused.fault())?;
    let settings = &store.settings;
    let (kind, place, login) = match &settings.kind {
        StoreKind::Memory => ("memory", Value::Null, Vec::new()),
        StoreKind::S3 { endpoint, bucket, region, access_key, secret_key, session_token } => {
            let login = [Some(access_key), Some(secret_key), session_token.as_ref()];
            (
                "s3",
                json!({ "endpoint": endpoint.as_str(), "bucket": bucket, "region": region }),
                login.into_iter().flatten().collect(),
            )
        }
        StoreKind::Gcs { endpoint, bucket, credential } => {
            ("gcs", json!({ "endpoint": endpoint.as_str(), "bucket": bucket }), vec![credential])
        }
        StoreKind::Azblob { endpoint, container, account, login } => {
            let (AzureLogin::Key(secret) | AzureLogin::Signature(secret)) = login;
            ("azblob", json!({ "endpoint": endpoint.as_str(), "container": container, "account": account }), vec![secret])
        }
    };
    let says = json!({
        "kind": kind, "connector": name, "place": place, "prefix": settings.prefix, "allow": list(&settings.allow),
        "tls": tls(&settings.tls), "bytes_max": settings.bytes_max, "if_absent": settings.if_absent,
    });
    let rule = Some(listed("connectors", name, settings.tenants.as_ref()));
    Ok(Place { says, rule, secrets: login.into_iter().cloned().collect() })
}

/// The way of a request by this route to `target`, and whom it would meet there.
pub(in crate::blocks) fn way(ask: &Ask<'_>, route: &Route<'_>, target: &Target) -> Place {
    let address = match target.host() {
        Host::Ip(ip) => json!(ip.to_string()),
        Host::Name(_) => Value::Null,
    };
    let mut says = json!({ "host": target.authority(), "port": target.port(), "address": address });
    let mut secrets = Vec::new();
    if let Some(proxy) = ask.policy.proxy(route, target) {
        says["proxy"] = json!(proxy.target.to_string());
        secrets.extend(proxy.login.as_ref().map(|(_, secret)| secret.clone()));
    }
    let rule = match route.connector {
        None => ask.policy.granted_by(ask.tenant, Scope::Http),
        Some((_, connector)) => {
            let settings = &connector.settings;
            let (who, auth) = match &settings.auth {
                Auth::None => (Value::Null, None),
                Auth::Bearer(token) => (json!({ "bearer": token.to_string() }), Some(token)),
                Auth::Basic { user, password } => (json!({ "user": user, "password": password.to_string() }), Some(password)),
                Auth::Header { name, value } => (json!({ "header": name, "value": value.to_string() }), Some(value)),
            };
            says["connector"] = json!({
                "name": connector.name, "url": settings.url.as_ref().map(Target::as_str), "allow": list(&settings.allow), "auth": who,
                "idempotency_key": settings.idempotency_key, "tls": tls(&settings.tls), "direct": settings.direct,
            });
            secrets.extend(auth.cloned());
            Some(listed("connectors", &connector.name, settings.tenants.as_ref()))
        }
    };
    Place { says, rule, secrets }
}

/// The rule that a section of this kind and name lets a tenant in.
pub(in crate::blocks) fn listed(kind: &str, name: &str, tenants: Option<&Vec<String>>) -> String {
    match tenants {
        Some(_) => format!("{kind}.{name}.tenants lists the tenant"),
        None => format!("{kind}.{name}.tenants is \"*\""),
    }
}

/// A URL as it may be shown: of its query, what goes by a secret's name is hidden.
pub(in crate::blocks) fn shown(target: &Target) -> String {
    let text = target.as_str();
    let Some((before, query)) = text.split_once('?') else { return text.to_owned() };
    let part = |part: &str| match part.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={REDACTED}"),
        _ => part.to_owned(),
    };
    format!("{before}?{}", query.split('&').map(part).collect::<Vec<_>>().join("&"))
}

fn list(allow: &[Allow]) -> Vec<String> {
    allow.iter().map(ToString::to_string).collect()
}

pub(in crate::blocks) fn tls(files: &TlsFiles) -> Value {
    if files.is_plain() {
        return Value::Null;
    }
    json!({ "ca": files.ca, "cert": files.cert, "key": files.key })
}
