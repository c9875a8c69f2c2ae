//! The ranges that are not public, and the addresses at which clouds hand out credentials.
//!
//! Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190), the IANA IPv4 Multicast and IPv6
//! Address Space registries, and the clouds' own manuals. Stricter than IANA on purpose: a special range is denied even where
//! the registry calls it globally reachable, for nothing that a step has to reach is there. The well-known NAT64 prefix is
//! the exception: a worker on an IPv6-only network reaches every IPv4 service through it.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The rule of the local-use NAT64 range, whose addresses have several readings.
pub(super) const NAT64_LOCAL_USE: &str = "nat64/local-use";

/// The rule of what is assigned to nobody.
const RESERVED: &str = "reserved";

/// One range: IPv4 in `u32`, IPv6 in `u128`.
pub(super) struct Range<Bits> {
    pub(super) network: Bits,
    pub(super) mask: Bits,
    pub(super) rule: &'static str,
}

/// The IPv4 ranges. The first that holds an address names it, so what is inside another stands before it.
#[rustfmt::skip]
pub(super) static RANGES_V4: &[Range<u32>] = &[
    v4([0, 0, 0, 0], 32, "unspecified"),                // RFC 1122, section 3.2.1.3
    v4([0, 0, 0, 0], 8, "this-network"),                // RFC 791, section 3.2
    v4([10, 0, 0, 0], 8, "private/10.0.0.0/8"),         // RFC 1918
    v4([100, 64, 0, 0], 10, "shared/100.64.0.0/10"),    // RFC 6598: carrier-grade NAT, and many an overlay network
    v4([127, 0, 0, 0], 8, "loopback"),                  // RFC 1122, section 3.2.1.3
    v4([169, 254, 0, 0], 16, "link-local"),             // RFC 3927
    v4([172, 16, 0, 0], 12, "private/172.16.0.0/12"),   // RFC 1918
    v4([192, 0, 0, 0], 24, "protocol-assignments"),     // RFC 6890: DS-Lite, PCP and TURN anycast, DNS64 discovery
    v4([192, 0, 2, 0], 24, "documentation"),            // RFC 5737, TEST-NET-1
    v4([192, 31, 196, 0], 24, "as112"),                 // RFC 7535
    v4([192, 52, 193, 0], 24, "amt"),                   // RFC 7450
    v4([192, 88, 99, 0], 24, "6to4-relay"),             // RFC 7526; 6a44 relays too, RFC 6751
    v4([192, 168, 0, 0], 16, "private/192.168.0.0/16"), // RFC 1918
    v4([192, 175, 48, 0], 24, "as112"),                 // RFC 7534
    v4([198, 18, 0, 0], 15, "benchmark"),               // RFC 2544
    v4([198, 51, 100, 0], 24, "documentation"),         // RFC 5737, TEST-NET-2
    v4([203, 0, 113, 0], 24, "documentation"),          // RFC 5737, TEST-NET-3
    v4([224, 0, 0, 0], 4, "multicast"),                 // RFC 5771
    v4([255, 255, 255, 255], 32, "broadcast"),          // RFC 919, section 7
    v4([240, 0, 0, 0], 4, RESERVED),                    // RFC 1112, section 4
];

/// The IPv6 ranges, in the same order. Whatever else is outside `GLOBAL_UNICAST` is reserved.
#[rustfmt::skip]
pub(super) static RANGES_V6: &[Range<u128>] = &[
    v6(&[], 128, "unspecified"),                                 // RFC 4291, section 2.5.2
    v6(&[0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback"),              // RFC 4291, section 2.5.3
    v6(&[], 96, "ipv4-compatible"),                              // RFC 4291, section 2.5.5.1: deprecated
    v6(&[0, 0, 0, 0, 0xffff], 96, "ipv4-translated"),            // RFC 2765, section 2.1; SIIT has other prefixes now, RFC 7915
    v6(&[0x64, 0xff9b, 1], 48, NAT64_LOCAL_USE),                 // RFC 8215
    v6(&[0x100], 64, "discard-only"),                            // RFC 6666
    v6(&[0x100, 0, 0, 1], 64, "dummy"),                          // RFC 9780
    v6(&[0x2001, 0], 32, "teredo"),                              // RFC 4380
    v6(&[0x2001, 2], 48, "benchmark"),                           // RFC 5180, erratum 1752
    v6(&[0x2001, 3], 32, "amt"),                                 // RFC 7450
    v6(&[0x2001, 4, 0x112], 48, "as112"),                        // RFC 7535
    v6(&[0x2001, 0x10], 28, "orchid"),                           // RFC 4843: deprecated
    v6(&[0x2001, 0x20], 28, "orchid-v2"),                        // RFC 7343
    v6(&[0x2001, 0x30], 28, "drone-id"),                         // RFC 9374
    v6(&[0x2001], 23, "protocol-assignments"),                   // RFC 2928: PCP, TURN and SRP anycast among them
    v6(&[0x2001, 0xdb8], 32, "documentation"),                   // RFC 3849
    v6(&[0x2002], 16, "6to4"),                                   // RFC 3056; its relays are gone, RFC 7526
    v6(&[0x2620, 0x4f, 0x8000], 48, "as112"),                    // RFC 7534
    v6(&[0x3fff], 20, "documentation"),                          // RFC 9637
    v6(&[0x5f00], 16, "srv6"),                                   // RFC 9602
    v6(&[0xfc00], 7, "unique-local"),                            // RFC 4193
    v6(&[0xfe80], 10, "link-local"),                             // RFC 4291, section 2.5.6
    v6(&[0xfec0], 10, "site-local"),                             // RFC 3879: deprecated
    v6(&[0xff00], 8, "multicast"),                               // RFC 4291, section 2.7
];

/// All that IANA hands out for unicast: RFC 4291, section 2.4, and the IPv6 Address Space registry.
static GLOBAL_UNICAST: Range<u128> = v6(&[0x2000], 3, "");

/// The well-known NAT64 prefix, RFC 6052, section 2.1: as public as the IPv4 address inside.
static NAT64: Range<u128> = v6(&[0x64, 0xff9b], 96, "");

/// Where clouds hand out credentials and configuration, IPv4.
pub(super) static METADATA_V4: [Ipv4Addr; 11] = [
    Ipv4Addr::new(169, 254, 169, 254), // AWS, Google, Azure, Oracle, IBM, DigitalOcean, Hetzner, OpenStack and most others
    Ipv4Addr::new(169, 254, 169, 252), // GKE's metadata server, to which a node redirects the former
    Ipv4Addr::new(169, 254, 169, 250), // Rancher
    Ipv4Addr::new(169, 254, 170, 2),   // AWS: ECS task roles
    Ipv4Addr::new(169, 254, 170, 23),  // AWS: EKS pod identities
    Ipv4Addr::new(168, 63, 129, 16),   // Azure: WireServer, an address that looks public
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle Cloud Classic
    Ipv4Addr::new(169, 254, 0, 23),    // Tencent
    Ipv4Addr::new(169, 254, 10, 10),   // Tencent
    Ipv4Addr::new(169, 254, 42, 42),   // Scaleway
];

/// Where clouds hand out credentials and configuration, IPv6.
pub(super) static METADATA_V6: [Ipv6Addr; 8] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),      // AWS
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),       // AWS: EKS pod identities
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),       // Google
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe), // Oracle
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),  // Alibaba
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),        // Scaleway
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),    // Akamai
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),    // OpenStack
];

/// The rule of the range that `ip` lies in, or `None`.
pub(super) fn rule_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let bits = ip.to_bits();
    RANGES_V4.iter().find(|range| bits & range.mask == range.network).map(|range| range.rule)
}

/// The same for IPv6, for the address as a whole.
pub(super) fn rule_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let bits = ip.to_bits();
    let inside = |range: &Range<u128>| bits & range.mask == range.network;
    match RANGES_V6.iter().find(|range| inside(range)) {
        Some(range) => Some(range.rule),
        None => (!inside(&GLOBAL_UNICAST) && !inside(&NAT64)).then_some(RESERVED),
    }
}

/// `octets/prefix_bits`; does not compile with bits outside the prefix.
const fn v4(octets: [u8; 4], prefix_bits: u32, rule: &'static str) -> Range<u32> {
    let (network, mask) = (u32::from_be_bytes(octets), u32::MAX << (32 - prefix_bits));
    assert!(network & mask == network, "the network has bits outside its prefix");
    Range { network, mask, rule }
}

/// `head::/prefix_bits`; does not compile with bits outside the prefix.
const fn v6(head: &[u16], prefix_bits: u32, rule: &'static str) -> Range<u128> {
    let (mut network, mut at) = (0, 0);
    while at < head.len() {
        network |= (head[at] as u128) << (112 - 16 * at);
        at += 1;
    }
    let mask = u128::MAX << (128 - prefix_bits);
    assert!(network & mask == network, "the network has bits outside its prefix");
    Range { network, mask, rule }
}
