//! Independent opinions: how C reads an IPv4 address, and how IPv4 addresses are put inside IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};

/// How kind an `inet_aton` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// POSIX and glibc.
    Strict,
    /// All that any has been known to take: a dot at the end, `0x` alone, and the digits 8 and 9 in octal.
    Kind,
}

/// The address that `text` is to `inet_aton`: one to four numbers, the last of which fills what the others leave.
pub(super) fn inet_aton(text: &str, reading: Reading) -> Option<Ipv4Addr> {
    let text = if reading == Reading::Kind { text.strip_suffix('.').unwrap_or(text) } else { text };
    let numbers: Vec<u64> = text.split('.').map(|part| number(part, reading)).collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    if first.len() > 3 || first.iter().any(|number| *number > 255) || *last >= 1 << (8 * (4 - first.len())) {
        return None;
    }
    let mut bits = *last;
    for (at, number) in first.iter().enumerate() {
        bits |= number << (24 - 8 * at);
    }
    u32::try_from(bits).ok().map(Ipv4Addr::from_bits)
}

fn number(text: &str, reading: Reading) -> Option<u64> {
    let kind = reading == Reading::Kind;
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some("") => return kind.then_some(0),
        Some(digits) => (digits, 16),
        None if lower.len() > 1 && lower.starts_with('0') => (&lower[1..], 8),
        None => (&lower[..], 10),
    };
    let digit_radix = if kind && radix == 8 { 10 } else { radix };
    if digits.is_empty() {
        return None;
    }
    digits.chars().try_fold(0_u64, |value, char| {
        Some(value.saturating_mul(radix.into()).saturating_add(char.to_digit(digit_radix)?.into()))
    })
}

/// How many ways `embed` knows.
pub(super) const WAYS: usize = 16;

/// `inner` put inside an IPv6 address in the given way, which is told; whatever the way leaves open is taken from `fill`.
pub(super) fn embed(way: usize, inner: Ipv4Addr, fill: u128) -> (&'static str, Ipv6Addr) {
    let v4 = u128::from(inner.to_bits());
    let keep = |low_bits: u32| fill & ((1 << low_bits) - 1);
    // RFC 6052, section 2.2: around the octet in bits 64 to 71, which is zero.
    let split = |before: u32| (v4 >> (32 - before)) << 64 | (v4 & ((1 << (32 - before)) - 1)) << (56 - (32 - before));
    let isatap = |prefix: u128, flags: u128| prefix << 64 | flags << 48 | 0x5efe << 32 | v4;
    let (name, bits) = match way {
        0 => ("IPv4-mapped", 0xffff << 32 | v4),
        1 => ("IPv4-compatible", v4),
        2 => ("IPv4-translated", 0xffff << 48 | v4),
        3 => ("NAT64", 0x64_ff9b << 96 | v4),
        4 => ("NAT64 local-use, /96", 0x64_ff9b_0001 << 80 | (keep(80) >> 32) << 32 | v4),
        5 => ("NAT64 local-use, /48", 0x64_ff9b_0001 << 80 | split(16) | keep(40)),
        6 => ("NAT64 local-use, /56", 0x64_ff9b_0001 << 80 | (keep(80) >> 72) << 72 | split(8) | keep(32)),
        7 => ("NAT64 local-use, /64", 0x64_ff9b_0001 << 80 | (keep(80) >> 64) << 64 | v4 << 24 | keep(24)),
        8 => ("6to4", 0x2002 << 112 | v4 << 80 | keep(80)),
        9 => ("Teredo server", 0x2001 << 112 | v4 << 64 | keep(64)),
        10 => ("Teredo client", 0x2001 << 112 | (keep(96) >> 32) << 32 | (v4 ^ 0xffff_ffff)),
        11 => ("ISATAP, local", isatap(fill >> 64, 0)),
        12 => ("ISATAP, universal", isatap(fill >> 64, 0x200)),
        13 => ("ISATAP, group", isatap(fill >> 64, 0x100)),
        14 => ("ISATAP, global unicast", isatap(0x2000 << 48 | (fill >> 64 & ((1 << 61) - 1)), 0x200)),
        _ => ("ISATAP, unique-local", isatap(0xfd << 56 | (fill >> 64 & ((1 << 56) - 1)), 0)),
    };
    (name, Ipv6Addr::from_bits(bits))
}

#[test]
fn the_oracles_themselves_are_right() {
    let home = Some(Ipv4Addr::LOCALHOST);
    for text in ["127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0177.1", "017700000001", "0X7f.0.0.01"] {
        assert_eq!((inet_aton(text, Reading::Strict), inet_aton(text, Reading::Kind)), (home, home), "{text}");
    }
    for text in ["", ".", "1.", "0x", "08", "256.1.1.1", "1.2.3.256", "1.2.3.4.5", "4294967296", "1..2", "a", "1e1", "-1", "+1"] {
        assert_eq!(inet_aton(text, Reading::Strict), None, "{text}");
    }
    assert_eq!(inet_aton("0x.08.", Reading::Kind), Some(Ipv4Addr::new(0, 0, 0, 8)));
    // RFC 6052, section 2.4, with the local-use prefix in the place of the documentation's.
    let example = Ipv4Addr::new(192, 0, 2, 33);
    for (way, text) in [
        (5, "64:ff9b:1:c000:2:2100::"),
        (6, "64:ff9b:1:c0:0:221::"),
        (7, "64:ff9b:1:0:c0:2:2100:0"),
        (4, "64:ff9b:1::192.0.2.33"),
        (0, "::ffff:192.0.2.33"),
        (2, "::ffff:0:192.0.2.33"),
        (3, "64:ff9b::192.0.2.33"),
        (8, "2002:c000:221::"),
        (10, "2001::3fff:fdde"),
        (12, "::200:5efe:192.0.2.33"),
    ] {
        assert_eq!(embed(way, example, 0).1.to_string(), text.parse::<Ipv6Addr>().expect("an address").to_string(), "{way}");
    }
}
