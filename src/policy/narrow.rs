//! What a step allows itself less than its tenant may: the scopes that its sender or its signer gives it, and its guardrails.
//! Nothing here opens anything.

use std::borrow::Cow;

use serde_json::{Value, json};
use shards::outcome::{Code, Fault};

use crate::net::egress::{Allow, Guard, Target};

use super::databases::Database;
use super::stores::Store;
use super::{Refused, Scope};

const BYTES_MAX: u64 = 1 << 53;
const REDIRECTS_MAX: u64 = 10;
const HOSTS_MAX: usize = 64;
/// The rule of the guard that a guardrail is.
const HOSTS_RULE: &str = "guardrails.hosts";

/// A set of scopes. Shared, never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// These.
    pub const fn of(list: &[Scope]) -> Scopes {
        let (mut set, mut at) = (0, 0);
        while at < list.len() {
            set |= 1 << list[at] as u8;
            at += 1;
        }
        Scopes(set)
    }

    /// With one more, by its name. A name that we do not know is somebody else's and gives nothing here.
    pub fn with(self, name: &str) -> Scopes {
        let known = Scope::NAMES.iter().find(|(known, _)| *known == name);
        known.map_or(self, |(_, scope)| Scopes(self.0 | Scopes::of(&[*scope]).0))
    }

    /// What either has.
    #[must_use]
    pub fn or(self, other: Scopes) -> Scopes {
        Scopes(self.0 | other.0)
    }

    /// What both have.
    pub fn and(self, other: Scopes) -> Scopes {
        Scopes(self.0 & other.0)
    }

    /// One of the `needed` that this has not.
    pub fn lacks(self, needed: Scopes) -> Option<Scope> {
        Scope::NAMES.iter().map(|(_, scope)| *scope).find(|scope| needed.0 & !self.0 & Scopes::of(&[*scope]).0 != 0)
    }

    /// Each of them.
    pub fn list(self) -> impl Iterator<Item = Scope> {
        Scope::NAMES.iter().map(|(_, scope)| *scope).filter(move |scope| self.0 & Scopes::of(&[*scope]).0 != 0)
    }
}

/// See the module. Lives on its core.
#[derive(Clone, Debug, Default)]
pub struct Narrow {
    /// The scopes that are left to it; none: all that its tenant has.
    pub scopes: Option<Scopes>,
    /// What it keeps to.
    pub guardrails: Guardrails,
}

/// Of a step that says nothing.
pub static NOTHING: Narrow =
    Narrow { scopes: None, guardrails: Guardrails { bytes_max: None, redirects_max: None, hosts: None } };

impl Narrow {
    /// What forbids a block that needs these scopes.
    pub fn denied(&self, needed: Scopes) -> Option<Fault> {
        let scope = self.scopes?.lacks(needed)?;
        let rule = format!("the step's scopes (context.rbac_scopes, and what its signer may give) have no {:?}", scope.as_str());
        Some(Refused { rule, pointer: None }.fault())
    }
}

/// A step's own bounds. Lives on its core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guardrails {
    bytes_max: Option<u64>,
    redirects_max: Option<u32>,
    hosts: Option<Vec<Allow>>,
}

impl Guardrails {
    /// Reads a step's field of that name. One that we do not know cannot be kept, and is refused.
    ///
    /// # Errors
    /// INVALID_INPUT; the details hold `{"field":"/guardrails/…","rule":"…"}`.
    pub fn read(text: &[u8]) -> Result<Guardrails, Fault> {
        let wrong = |name: &str, rule: &str| {
            let details = json!({ "field": format!("/guardrails{name}"), "rule": rule });
            Fault::new(Code::InvalidInput, "A guardrail of the step cannot be kept.").with_details(details.to_string())
        };
        if text.is_empty() {
            return Ok(Guardrails::default());
        }
        let value: Value = serde_json::from_slice(text).map_err(|_| wrong("", "an object"))?;
        let members = value.as_object().ok_or_else(|| wrong("", "an object"))?;
        let mut rails = Guardrails::default();
        let whole = |value: &Value| {
            let double = value.as_f64().filter(|double| double.fract() == 0.0 && (0.0..=BYTES_MAX as f64).contains(double));
            value.as_u64().or(double.map(|double| double as u64))
        };
        for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
            match name.as_str() {
                "max_bytes" => {
                    let most = whole(value).filter(|most| *most <= BYTES_MAX);
                    rails.bytes_max = Some(most.ok_or_else(|| wrong("/max_bytes", "a whole number of bytes"))?);
                }
                "max_redirects" => {
                    let most = whole(value).filter(|most| *most <= REDIRECTS_MAX);
                    rails.redirects_max = Some(most.ok_or_else(|| wrong("/max_redirects", "0 to 10"))? as u32);
                }
                "hosts" => {
                    let list = value.as_array().filter(|list| list.len() <= HOSTS_MAX);
                    let list = list.ok_or_else(|| wrong("/hosts", "a list of at most 64 hosts"))?;
                    let host = |(at, host): (usize, &Value)| {
                        let parsed = host.as_str().and_then(|text| Allow::parse(text).ok());
                        let rule = "a host, *.host, an address or a network, with :port where only that is meant";
                        parsed.ok_or_else(|| wrong(&format!("/hosts/{at}"), rule))
                    };
                    rails.hosts = Some(list.iter().enumerate().map(host).collect::<Result<_, _>>()?);
                }
                other => {
                    let name = format!("/{}", other.replace('~', "~0").replace('/', "~1"));
                    return Err(wrong(&name, "one out of max_bytes, max_redirects, hosts"));
                }
            }
        }
        Ok(rails)
    }

    /// What they say, for a plan: an object, or nothing.
    pub fn told(&self) -> Value {
        if *self == Guardrails::default() {
            return Value::Null;
        }
        let hosts = self.hosts.as_ref().map(|hosts| hosts.iter().map(ToString::to_string).collect::<Vec<_>>());
        json!({ "max_bytes": self.bytes_max, "max_redirects": self.redirects_max, "hosts": hosts })
    }

    /// The smaller of the two bounds on what is sent, received, read or written, in bytes.
    pub fn bytes_max(&self, most: u64) -> u64 {
        self.bytes_max.map_or(most, |bytes_max| bytes_max.min(most))
    }

    /// The smaller of the two.
    pub fn redirects_max(&self, most: u32) -> u32 {
        self.redirects_max.map_or(most, |redirects_max| redirects_max.min(most))
    }

    /// Whether so many bytes may be sent, received, read or written; `pointer` is the field of the inputs that asks for them.
    ///
    /// # Errors
    /// PERMISSION_DENIED with the rule.
    pub fn fits(&self, bytes: u64, pointer: &str) -> Result<(), Fault> {
        match self.bytes_max {
            Some(bytes_max) if bytes > bytes_max => {
                let rule = format!("guardrails.max_bytes is {bytes_max}");
                Err(Refused { rule, pointer: Some(format!("/{pointer}")) }.fault())
            }
            _ => Ok(()),
        }
    }

    /// What may be reached by this guard, and is among the hosts.
    pub fn guard<'g>(&self, guard: &'g Guard) -> Cow<'g, Guard> {
        match &self.hosts {
            Some(hosts) => Cow::Owned(guard.within(HOSTS_RULE, hosts.clone())),
            None => Cow::Borrowed(guard),
        }
    }

    /// Whether a store that the field `pointer` names lies on one of the hosts.
    ///
    /// # Errors
    /// The rule.
    pub fn store(&self, store: &Store, pointer: &str) -> Result<(), Refused> {
        let Some(endpoint) = store.settings.kind.endpoint() else { return Ok(()) };
        self.lists(endpoint).then_some(()).ok_or_else(|| Refused {
            rule: format!("{HOSTS_RULE} does not list the endpoint of connectors.{}", store.name),
            pointer: Some(format!("/{pointer}")),
        })
    }

    /// Whether a database lies on one of the hosts; an embedded one lies on none.
    ///
    /// # Errors
    /// The rule.
    pub fn database(&self, database: &Database) -> Result<(), Refused> {
        let Some(server) = database.server() else { return Ok(()) };
        self.lists(&server.target).then_some(()).ok_or_else(|| Refused {
            rule: format!("{HOSTS_RULE} does not list the host of connectors.{}", database.name),
            pointer: Some("/connector".to_owned()),
        })
    }

    fn lists(&self, target: &Target) -> bool {
        let listed = |hosts: &Vec<Allow>| hosts.iter().any(|host| host.lists(target.host(), target.port()));
        self.hosts.as_ref().is_none_or(listed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_a_set_and_only_become_fewer() {
        let both = Scopes::of(&[Scope::Http, Scope::Blob]);
        assert_eq!(Scopes::default().with("http").with("blob").with("their.own"), both);
        assert_eq!(both.list().collect::<Vec<_>>(), [Scope::Http, Scope::Blob]);
        assert_eq!(both.lacks(Scopes::of(&[Scope::Blob])), None);
        assert_eq!(both.and(Scopes::of(&[Scope::Blob, Scope::Ai])).lacks(both), Some(Scope::Http));
        let narrow = |scopes| Narrow { scopes, ..Narrow::default() };
        assert!(narrow(None).denied(both).is_none());
        assert!(narrow(Some(both)).denied(Scopes::default()).is_none());
        let fault = narrow(Some(Scopes::default())).denied(both).expect("neither is there");
        assert_eq!(fault.code, Code::PermissionDenied);
        assert!(String::from_utf8_lossy(&fault.details).contains("have no \\\"http\\\""), "{fault:?}");
    }

    #[test]
    fn a_guardrail_is_kept_or_the_step_refused() {
        let rails = Guardrails::read(br#"{"max_bytes":100,"max_redirects":2.0,"hosts":["*.example.com"],"other":null}"#);
        let rails = rails.expect("good");
        assert_eq!(
            (rails.bytes_max(1 << 20), rails.bytes_max(5), rails.redirects_max(5), rails.redirects_max(1)),
            (100, 5, 2, 1)
        );
        assert!(rails.fits(100, "content").is_ok());
        let fault = rails.fits(101, "content").expect_err("one too many");
        assert_eq!(&fault.details[..], br#"{"pointer":"/content","rule":"guardrails.max_bytes is 100"}"#);
        let free = Guardrails::read(b"").expect("none");
        assert_eq!((free.bytes_max(7), free.redirects_max(7), free.fits(u64::MAX, "x").is_ok()), (7, 7, true));
        for (text, field) in [
            ("[]", "/guardrails"),
            (r#"{"max_bytes":-1}"#, "/guardrails/max_bytes"),
            (r#"{"max_bytes":"1"}"#, "/guardrails/max_bytes"),
            (r#"{"max_bytes":0.5}"#, "/guardrails/max_bytes"),
            (r#"{"max_redirects":11}"#, "/guardrails/max_redirects"),
            (r#"{"hosts":"h"}"#, "/guardrails/hosts"),
            (r#"{"hosts":["h.example",7]}"#, "/guardrails/hosts/1"),
            (r#"{"hosts":["http://h/"]}"#, "/guardrails/hosts/0"),
            (r#"{"max_tokens":9}"#, "/guardrails/max_tokens"),
            (r#"{"a/b~":9}"#, "/guardrails/a~1b~0"),
        ] {
            let fault = Guardrails::read(text.as_bytes()).expect_err(text);
            let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
            assert_eq!((fault.code, &details["field"]), (Code::InvalidInput, &json!(field)), "{text}");
        }
    }

    #[test]
    fn hosts_narrow_what_a_guard_lets_through_and_open_nothing() {
        let target = |url| crate::net::egress::Target::parse(url).expect("a URL");
        let guard = Guard::default();
        let rails = Guardrails::read(br#"{"hosts":["api.example.com","127.0.0.1"]}"#).expect("good");
        let narrowed = rails.guard(&guard);
        assert!(narrowed.check_target(&target("https://api.example.com/x")).is_ok());
        let rule = |url| narrowed.check_target(&target(url)).expect_err(url).rule;
        assert_eq!(rule("https://other.example.com/"), HOSTS_RULE);
        assert_ne!(rule("http://127.0.0.1/"), HOSTS_RULE, "it is no public address, whatever the step lists");
        assert!(Guardrails::default().guard(&guard).check_target(&target("https://other.example.com/")).is_ok());
        let nothing = Guardrails::read(br#"{"hosts":[]}"#).expect("good");
        assert!(nothing.guard(&guard).check_target(&target("https://api.example.com/")).is_err());
    }
}
