//! The egress guard: which URLs and network addresses a tenant's step may reach. Pure: it opens no socket and resolves no name.
//!
//! A URL becomes a [`Target`] or is refused for its spelling. A [`Guard`] checks the target before its name is resolved, and
//! all answers of the resolution after. The caller then dials one of exactly those addresses, never the name again, and takes
//! a redirect only through [`Target::join`] and both checks.
//!
//! Invariant: only what is known to be public passes, unless an [`Allow`] entry names it; the worker's own ports never pass.

mod allow;
mod judge;
mod name;
mod ranges;
mod target;

#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    net::{IpAddr, SocketAddr},
};

pub use self::{
    allow::Allow,
    judge::{Verdict, judge},
    target::{Host, Scheme, Target},
};

/// Why something may not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The rule that was broken; stable, for metrics and tests:
    /// - of the URL: `spelling`, `length`, `scheme`, `userinfo`, `host`, `port`; of a redirect also `downgrade`;
    /// - of a name's form: `name/length`, `name/label`, `name/characters`, `name/numeric`;
    /// - of a name that is not public: `name/metadata`, `name/localhost`, `name/local`, `name/internal`, `name/private`,
    ///   `name/cluster`, `name/single-label`;
    /// - of an address: what [`Verdict::Denied`] holds; of a resolution without answers: `no-address`;
    /// - of the guard: `own-port`, `not-listed`, and what [`Guard::within`] was told.
    pub rule: &'static str,
    /// What broke it: an origin, with the address where one was judged. Never holds a userinfo, a path, a query, or a control
    /// character.
    pub subject: String,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "may not be reached, by rule {}: {}", self.rule, self.subject)
    }
}

impl Error for Denial {}

/// What one connector may reach. Shared, never changes. A check that passes allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    allow: Vec<Allow>,
    /// Each with the rule that it is: a target must be in all of them.
    only: Vec<(&'static str, Vec<Allow>)>,
    own: Vec<SocketAddr>,
}

impl Guard {
    /// A guard that
    /// - opens what `allow` names, of what would be denied: its names for the name rules, its addresses for the address
    ///   rules. A name that is opened does not open the addresses that it resolves to;
    /// - where `only` is given, denies every target whose host, as a name or as a literal address, is in none of its entries.
    ///   It opens nothing;
    /// - denies `own` whatever the lists say: the ports on which this worker and its NATS server listen. An unspecified
    ///   address there stands for all addresses, for the guard does not know the machine's: who lists those one by one denies
    ///   less.
    pub fn new(allow: Vec<Allow>, only: Option<Vec<Allow>>, own: impl IntoIterator<Item = SocketAddr>) -> Self {
        let own = own.into_iter().map(|own| SocketAddr::new(own.ip().to_canonical(), own.port())).collect();
        Self { allow, only: only.map(|only| ("not-listed", only)).into_iter().collect(), own }
    }

    /// The same, and besides it denies by `rule` every target whose host is in none of these entries.
    #[must_use]
    pub fn within(&self, rule: &'static str, hosts: Vec<Allow>) -> Self {
        let mut narrower = self.clone();
        narrower.only.push((rule, hosts));
        narrower
    }

    /// Checks what is known before a name is resolved: the name, or the literal address, and the port.
    ///
    /// # Errors
    /// The first rule that the target breaks.
    pub fn check_target(&self, target: &Target) -> Result<(), Denial> {
        let (host, port) = (target.host(), target.port());
        let broken = match host {
            Host::Ip(ip) => self.address_rule(*ip, port),
            Host::Name(name) => name::rule(name).filter(|_| !self.allow.iter().any(|entry| entry.lists(host, port))),
        };
        let unlisted =
            || self.only.iter().find(|(_, only)| !only.iter().any(|entry| entry.lists(host, port))).map(|(rule, _)| *rule);
        match broken.or_else(unlisted) {
            Some(rule) => Err(Denial { rule, subject: target.to_string() }),
            None => Ok(()),
        }
    }

    /// Checks all answers of one resolution of the target's name: one bad address fails them all, for whoever mixes a bad one
    /// in has control of the zone. Asks [`Guard::check_target`] again, so that a caller who forgot to is not open.
    ///
    /// # Errors
    /// The first rule that the target or an address breaks; `no-address` when there is none.
    pub fn check_addresses(&self, target: &Target, addresses: &[IpAddr]) -> Result<(), Denial> {
        self.check_target(target)?;
        if addresses.is_empty() {
            return Err(Denial { rule: "no-address", subject: target.to_string() });
        }
        for &ip in addresses {
            if let Some(rule) = self.address_rule(ip, target.port()) {
                return Err(Denial { rule, subject: format!("{target} at {ip}") });
            }
        }
        Ok(())
    }

    /// The rule that keeps this connector from `ip` at `port`.
    fn address_rule(&self, ip: IpAddr, port: u16) -> Option<&'static str> {
        let ip = ip.to_canonical();
        if self.own.iter().any(|own| own.port() == port && leads_to(ip, own.ip())) {
            return Some("own-port");
        }
        let bar = judge::bar(ip)?;
        (!self.allow.iter().any(|entry| entry.opens(ip, port, bar.key))).then_some(bar.rule)
    }
}

/// Whether a connection to `ip` may arrive at a listener on `own`, by itself or by an IPv4 address inside it. Both canonical.
fn leads_to(ip: IpAddr, own: IpAddr) -> bool {
    // Linux takes the unspecified address for the loopback, and what listens on one loopback address often listens on the
    // others.
    let arrives =
        |ip: IpAddr| ip == own || own.is_unspecified() || ip.is_unspecified() || (ip.is_loopback() && own.is_loopback());
    arrives(ip) || matches!(ip, IpAddr::V6(ip) if judge::within(ip).any(|inner| arrives(inner.into())))
}
