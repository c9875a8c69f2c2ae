//! One entry of a list that a connector brings along: a name, the names under one, an address, or a network, each with a port
//! or with all of them.
//!
//! Entries are read strictly, in the one spelling that people read without mistake: what an operator opens by accident stays
//! open.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Host, judge::Key, name, target::is_unseen};

/// One entry, written as
/// - `host.example`: this name;
/// - `*.host.example`: all names under it, at any depth, without itself;
/// - `10.1.2.3`, `[fd00::1]`: this address. Only such an entry opens a metadata service, an IPv6 address with a denied IPv4
///   address inside, or one of the local-use NAT64 range;
/// - `10.1.2.0/24`, `[fd00::/8]`: every other address of this network. A network of one address is still a network;
///
/// and `:port` behind it, or all ports. An IPv4 entry holds the IPv4-mapped IPv6 addresses too, and no IPv6 entry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    what: What,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// In normal form.
    Name(String),
    /// The zone, in normal form, without `*.`.
    Under(String),
    /// Canonical.
    Ip(IpAddr),
    /// Network and prefix length; no bits outside the prefix.
    NetV4(Ipv4Addr, u8),
    NetV6(Ipv6Addr, u8),
}

impl Allow {
    /// Parses one entry.
    ///
    /// # Errors
    /// What the entry, or the part of it that is wrong, has to be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("not empty");
        }
        if text.chars().any(is_unseen) {
            return Err("no control characters, whitespace or invisible characters");
        }
        if text.contains("//") || text.contains(['@', '?', '#', '%', '\\']) {
            return Err("a host, not a URL");
        }
        let (what, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (inside, port) = rest.split_once(']').ok_or("an IPv6 address closed by ]")?;
                (what_v6(inside)?, port)
            }
            None => {
                let (host, port) = text.find(':').map_or((text, ""), |colon| text.split_at(colon));
                if port.matches(':').count() > 1 {
                    return Err("an IPv6 address in brackets");
                }
                (what_else(host)?, port)
            }
        };
        Ok(Self { what, port: port_of(port)? })
    }

    /// Whether `host` at `port` is in this entry as it is: a name by name, an address by address.
    pub fn lists(&self, host: &Host, port: u16) -> bool {
        self.has(port)
            && match (host, &self.what) {
                (Host::Name(name), What::Name(own)) => name == own,
                (Host::Name(name), What::Under(zone)) => name::is_under(name, zone),
                (Host::Name(_), _) => false,
                (Host::Ip(ip), what) => what.holds(*ip),
            }
    }

    /// Whether this entry opens a bar with this `key` before `ip`, which is canonical.
    pub(super) fn opens(&self, ip: IpAddr, port: u16, key: Key) -> bool {
        let fits = match key {
            Key::Exact => matches!(self.what, What::Ip(_)),
            Key::Network => true,
        };
        fits && self.has(port) && self.what.holds(ip)
    }

    fn has(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }
}

impl What {
    fn holds(&self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::Ip(own), ip) => *own == ip,
            (Self::NetV4(network, prefix), IpAddr::V4(ip)) => ip.to_bits() & mask_v4(*prefix) == network.to_bits(),
            (Self::NetV6(network, prefix), IpAddr::V6(ip)) => ip.to_bits() & mask_v6(*prefix) == network.to_bits(),
            _ => false,
        }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Name(name) => write!(f, "{name}")?,
            What::Under(zone) => write!(f, "*.{zone}")?,
            What::Ip(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            What::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            What::NetV4(network, prefix) => write!(f, "{network}/{prefix}")?,
            What::NetV6(network, prefix) => write!(f, "[{network}/{prefix}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// What stands between brackets.
fn what_v6(inside: &str) -> Result<What, &'static str> {
    const ADDRESS: &str = "an IPv6 address or network, without a zone";
    let (address, prefix) = match inside.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (inside, None),
    };
    let ip: Ipv6Addr = address.parse().map_err(|_| ADDRESS)?;
    if ip.to_ipv4_mapped().is_some() {
        return Err("an IPv4-mapped address written as IPv4");
    }
    let Some(prefix) = prefix else { return Ok(What::Ip(ip.into())) };
    let prefix = prefix_of(prefix, 128)?;
    if ip.to_bits() & !mask_v6(prefix) != 0 {
        return Err("a network without bits outside its prefix");
    }
    Ok(What::NetV6(ip, prefix))
}

/// What stands without brackets: IPv4, or a name.
fn what_else(host: &str) -> Result<What, &'static str> {
    if let Some((address, prefix)) = host.split_once('/') {
        let ip: Ipv4Addr = address.parse().map_err(|_| "a network as a.b.c.d/prefix or [address/prefix]")?;
        let prefix = prefix_of(prefix, 32)?;
        if ip.to_bits() & !mask_v4(prefix) != 0 {
            return Err("a network without bits outside its prefix");
        }
        return Ok(What::NetV4(ip, prefix));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(What::Ip(ip.into()));
    }
    match host.strip_prefix("*.") {
        Some(zone) => normal(zone).map(What::Under),
        None => normal(host).map(What::Name),
    }
}

/// A name in normal form, by the same way as a target's.
fn normal(text: &str) -> Result<String, &'static str> {
    const NAME: &str = "a host name: labels of letters, digits, - and _ with dots between, * only as the whole first one";
    match url::Host::parse(text).map_err(|_| NAME)? {
        url::Host::Domain(domain) => name::normal(&domain).map(str::to_owned).map_err(|_| NAME),
        url::Host::Ipv4(_) | url::Host::Ipv6(_) => Err("an IPv4 address as four decimal numbers"),
    }
}

/// What stands behind the host: nothing, or a colon and a port.
fn port_of(text: &str) -> Result<Option<u16>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.strip_prefix(':').and_then(number) {
        Some(port @ 1..) => Ok(Some(port)),
        _ => Err("a port from 1 to 65535 after a colon"),
    }
}

fn prefix_of(text: &str, max: u8) -> Result<u8, &'static str> {
    let prefix = number(text).and_then(|prefix| u8::try_from(prefix).ok()).filter(|prefix| *prefix <= max);
    prefix.ok_or("a prefix length of at most 32 bits for IPv4, 128 for IPv6")
}

/// Decimal digits, without a sign and without zeros in front.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}
