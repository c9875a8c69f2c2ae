//! The judgement of one address: public or not, by itself and by every IPv4 address inside it, to which a gateway, a relay or
//! the host's own tunnel may deliver. What leads to a denied address is denied by that address's rule.
//!
//! Only what can be told from the address is unwrapped. A network's own translation prefix (RFC 6052, section 2.2) and a
//! provider's 6rd prefix (RFC 5969) look like any other global address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ranges::{self, METADATA_V4, METADATA_V6, NAT64_LOCAL_USE};

/// The rule of every address at which a cloud hands out credentials or configuration.
const METADATA: &str = "metadata";

/// Most IPv4 addresses that one IPv6 address holds: four readings of a local-use NAT64 address, and an ISATAP interface id.
const READINGS_MAX: usize = LOCAL_USE_PLACES.len() + 1;

/// In which octets of a local-use NAT64 address the IPv4 address stands, for prefixes of 48, 56, 64 and 96 bits: all that RFC
/// 6052, section 2.2, has of at least the range's own 48.
const LOCAL_USE_PLACES: [[usize; 4]; 4] = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];

/// What an address is to a guard without lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Of the public internet, as far as an address can tell.
    Public,
    /// Not, by this rule: `metadata`, or what `ranges.rs` calls the range that the address or an IPv4 address inside it lies
    /// in, such as `loopback`, `private/10.0.0.0/8` or `unique-local`.
    Denied(&'static str),
}

/// Judges `ip`. An IPv4-mapped IPv6 address is the IPv4 address.
pub fn judge(ip: IpAddr) -> Verdict {
    bar(ip).map_or(Verdict::Public, |bar| Verdict::Denied(bar.rule))
}

/// What stands before an address that is not public.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar {
    pub(super) rule: &'static str,
    pub(super) key: Key,
}

/// What kind of allow entry opens a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A network that holds the address, or the address itself.
    Network,
    /// Only the address itself: who opened a network did not think of this.
    Exact,
}

/// The bar before `ip`, or `None` before a public address.
pub(super) fn bar(ip: IpAddr) -> Option<Bar> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => bar_v4(ip),
        IpAddr::V6(ip) => bar_v6(ip),
    }
}

fn bar_v4(ip: Ipv4Addr) -> Option<Bar> {
    if METADATA_V4.contains(&ip) {
        return Some(Bar { rule: METADATA, key: Key::Exact });
    }
    ranges::rule_v4(ip).map(|rule| Bar { rule, key: Key::Network })
}

fn bar_v6(ip: Ipv6Addr) -> Option<Bar> {
    // Before the other readings: metadata is what an operator must see in the log.
    if METADATA_V6.contains(&ip) || within(ip).any(|inner| METADATA_V4.contains(&inner)) {
        return Some(Bar { rule: METADATA, key: Key::Exact });
    }
    let outer = ranges::rule_v6(ip);
    // Denied as a whole. Which of its readings the gateway has is unknown, so their rules would be guesses.
    if outer == Some(NAT64_LOCAL_USE) {
        return Some(Bar { rule: NAT64_LOCAL_USE, key: Key::Exact });
    }
    match within(ip).find_map(ranges::rule_v4) {
        Some(rule) => Some(Bar { rule, key: Key::Exact }),
        None => outer.map(|rule| Bar { rule, key: Key::Network }),
    }
}

/// Every IPv4 address that `ip` may lead to. IPv4-mapped addresses (RFC 4291, section 2.5.5.2) are not among them: sockets
/// treat them as the IPv4 address itself, and so does whoever calls this, by `to_canonical`.
pub(super) fn within(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let mut found = [None; READINGS_MAX];
    let segments = ip.segments();
    match segments {
        // The unspecified and the loopback address stand for themselves.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => {}
        // IPv4-compatible, RFC 4291, section 2.5.5.1; IPv4-translated, RFC 2765, section 2.1; NAT64, RFC 6052, section 2.1.
        [0, 0, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            found[0] = Some(joined(high, low));
        }
        // Local-use NAT64, RFC 8215. Which prefix of the range its network uses is not to be seen.
        [0x64, 0xff9b, 1, ..] => {
            let octets = ip.octets();
            for (found, [a, b, c, d]) in found.iter_mut().zip(LOCAL_USE_PLACES) {
                *found = Some(Ipv4Addr::new(octets[a], octets[b], octets[c], octets[d]));
            }
        }
        // Teredo, RFC 4380, section 4: the server, and the client's address with its bits inverted.
        [0x2001, 0, server_high, server_low, _, _, client_high, client_low] => {
            found[0] = Some(joined(server_high, server_low));
            found[1] = Some(joined(!client_high, !client_low));
        }
        // 6to4, RFC 3056, section 2.
        [0x2002, high, low, ..] => found[0] = Some(joined(high, low)),
        _ => {}
    }
    // ISATAP, RFC 5214, section 6.1, under any prefix: the interface id ug00:5efe:a.b.c.d, whatever its bits u and g say.
    if let [.., 0x0000 | 0x0100 | 0x0200 | 0x0300, 0x5efe, high, low] = segments {
        found[READINGS_MAX - 1] = Some(joined(high, low));
    }
    found.into_iter().flatten()
}

fn joined(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}
