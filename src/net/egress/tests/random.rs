//! Properties, over random input from fixed seeds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    super::{Allow, Guard, Host, Target, Verdict, judge, ranges},
    ip,
    oracle::{self, Reading, inet_aton},
    rule, target,
};

const SEEDS: [u64; 3] = [1, 0x5eed, 0x9e37_79b9_7f4a_7c15];
const ROUNDS: usize = 10_000;

/// Marsaglia's xorshift, 64 bits.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn bits(&mut self) -> u128 {
        u128::from(self.roll()) << 64 | u128::from(self.roll())
    }

    /// From a denied range, a metadata service, or anywhere.
    fn v4(&mut self) -> Ipv4Addr {
        let random = self.roll() as u32;
        match self.below(4) {
            0 => *self.one(&ranges::METADATA_V4),
            1 => random.into(),
            _ => {
                let range = self.one(ranges::RANGES_V4);
                (range.network | random & !range.mask).into()
            }
        }
    }
}

#[test]
fn an_ipv4_address_is_as_denied_inside_any_ipv6_address_as_by_itself() {
    let victim = target("https://victim.example/");
    let open = Guard::new(["0.0.0.0/0", "[::/0]"].map(|text| Allow::parse(text).expect("an entry")).into(), None, []);
    let (mut denied, mut public) = ([0_usize; oracle::WAYS], 0);
    for seed in SEEDS {
        let mut dice = Dice(seed);
        for round in 0..ROUNDS {
            let (inner, way) = (dice.v4(), round % oracle::WAYS);
            let (name, outer) = oracle::embed(way, inner, dice.bits());
            let (alone, inside) = (judge(inner.into()), judge(outer.into()));
            let told = format!("{inner} as {name}: {outer} is {inside:?}, alone {alone:?}, seed {seed}");
            if name == "IPv4-mapped" {
                assert_eq!(inside, alone, "{told}");
                assert_eq!(
                    rule(open.check_addresses(&victim, &[outer.into()])),
                    rule(open.check_addresses(&victim, &[inner.into()]))
                );
                continue;
            }
            if alone == Verdict::Public {
                public += 1;
                // The NAT64 prefix is the one that opens to the public by what is inside.
                assert!(name != "NAT64" || inside == Verdict::Public, "{told}");
                continue;
            }
            // `::` and `::1` are judged as what they are; that is denied too.
            assert_ne!(inside, Verdict::Public, "{told}");
            assert!(alone != Verdict::Denied("metadata") || inside == alone, "{told}");
            if outer != Ipv6Addr::UNSPECIFIED && outer != Ipv6Addr::LOCALHOST {
                assert_ne!(rule(open.check_addresses(&victim, &[outer.into()])), "passes", "no network opens it: {told}");
            }
            denied[way] += 1;
        }
    }
    println!("denied inside, by way: {denied:?}; public inside: {public}");
    assert!(denied[1..].iter().all(|count| *count > 1000) && public > 1000);
}

#[test]
fn an_own_port_is_found_inside_any_ipv6_address() {
    let mut dice = Dice(SEEDS[1]);
    for round in 0..ROUNDS {
        let (own, port) = (dice.v4(), 1 + dice.roll() as u16 % 999);
        let (name, outer) = oracle::embed(round % oracle::WAYS, own, dice.bits());
        if outer == Ipv6Addr::LOCALHOST {
            continue;
        }
        let allow = vec![Allow::parse(&format!("[{outer}]")).or_else(|_| Allow::parse(&own.to_string())).expect("an entry")];
        let guard = Guard::new(allow, None, [(IpAddr::from(own), port).into()]);
        let found = |port| rule(guard.check_addresses(&target(&format!("http://victim.example:{port}")), &[outer.into()]));
        assert_eq!((found(port), found(port + 1)), ("own-port", "passes"), "{own} as {name}: {outer}");
    }
}

#[test]
fn nothing_passes_that_the_standard_library_knows_to_be_special() {
    let mut dice = Dice(SEEDS[2]);
    let mut public = 0;
    for _ in 0..ROUNDS * 3 {
        let v4 = dice.v4();
        let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast();
        if special || v4.is_documentation() || v4.is_unspecified() {
            assert_ne!(judge(v4.into()), Verdict::Public, "{v4}");
        }
        let v6 = Ipv6Addr::from_bits(dice.bits() >> dice.below(2));
        let special = v6.is_loopback() || v6.is_multicast() || v6.is_unique_local() || v6.is_unicast_link_local();
        let global = v6.segments()[0] & 0xe000 == 0x2000;
        if special || !global {
            assert_ne!(judge(v6.into()), Verdict::Public, "{v6}");
        }
        public += usize::from(judge(v6.into()) == Verdict::Public);
    }
    assert!(public > 1000, "{public}");
}

/// What numeric hosts are made of.
#[rustfmt::skip]
const PLAIN: &[&str] = &[
    "0", "1", "7", "8", "9", "12", "127", "255", "256", "0177", "2130706433", "0x", "0X", "7f", "f", "e", "a", "00", "000",
    "-", "_", ".", ".", ".", ".", "..",
];

/// What disguises them, and what does not belong.
#[rustfmt::skip]
const DISGUISES: &[&str] = &[
    "%2e", "。", "．", "｡", "%30", "%31", "%78", "%58", "％", "１", "７", "ｘ", "²", "①", "𝟏", "%EF%BC%91", "%C2%AD", "٣", "xn--",
    "l", "o", "@", ":", "[", "]", "::", "%25", "%", "%00", "/", "\\", " ", "\u{ad}", "\u{200d}", "localhost", "example",
];

#[test]
fn no_name_is_an_address_to_inet_aton_and_every_address_is_the_same_to_it() {
    let (mut names, mut addresses, mut refused) = (0, 0, 0);
    for seed in SEEDS {
        let mut dice = Dice(seed);
        for round in 0..ROUNDS {
            // Every third is disguised, with every third of its pieces.
            let mut piece = || if round % 3 == 0 && dice.below(3) == 0 { *dice.one(DISGUISES) } else { *dice.one(PLAIN) };
            let count = 1 + round % 9;
            let text: String = (0..count).map(|_| piece()).collect();
            let Ok(target) = Target::parse(&format!("http://{text}")) else {
                refused += 1;
                continue;
            };
            match target.host() {
                Host::Name(name) => {
                    for spelling in [name.clone(), format!("{name}."), target.authority().to_owned()] {
                        for reading in [Reading::Strict, Reading::Kind] {
                            assert_eq!(inet_aton(&spelling, reading), None, "{text:?} is the name {name:?}");
                        }
                    }
                    assert!(
                        name.parse::<IpAddr>().is_err() && !name.ends_with('.') && !name.contains(char::is_uppercase),
                        "{text:?}"
                    );
                    names += 1;
                }
                Host::Ip(IpAddr::V4(address)) => {
                    if let Some(read) = inet_aton(&text, Reading::Strict) {
                        assert_eq!(read, *address, "{text:?}");
                        addresses += 1;
                    }
                }
                Host::Ip(IpAddr::V6(address)) => assert_eq!(address.to_ipv4_mapped(), None),
            }
            // What was parsed is said in one way only.
            assert_eq!(Target::parse(target.as_str()).as_ref(), Ok(&target), "{text:?}");
            assert_eq!(target.join("").as_ref(), Ok(&target), "{text:?}");
        }
    }
    println!("{names} names, {addresses} addresses as inet_aton reads them, {refused} refused");
    assert!(names > 1000 && addresses > 1000 && refused > 1000);
}

#[test]
fn what_inet_aton_reads_never_passes_as_anything_else() {
    let mut dice = Dice(SEEDS[0]);
    for _ in 0..ROUNDS {
        let address = dice.v4();
        let octets = address.octets().map(u32::from);
        // One to four parts, each in a radix of its own, with zeros in front or without.
        let parts = 1 + dice.below(4);
        let mut spelled: Vec<String> = Vec::new();
        for at in 0..parts {
            let end = if at + 1 < parts { at + 1 } else { octets.len() };
            let value = octets[at..end].iter().fold(0, |value, octet| value << 8 | octet);
            let zeros = "0".repeat(dice.below(3));
            spelled.push(match dice.below(4) {
                0 => format!("0{zeros}{value:o}"),
                1 => format!("0x{zeros}{value:x}"),
                2 => format!("0X{zeros}{value:X}"),
                _ => value.to_string(),
            });
        }
        let text = spelled.join(".");
        assert_eq!(inet_aton(&text, Reading::Strict), Some(address), "{text}");
        for host in [text.clone(), format!("{text}."), text.replace('.', "%2e"), text.replace('.', "。"), wide(&text)] {
            let parsed = target(&format!("http://{host}/"));
            assert_eq!(parsed.host(), &Host::Ip(address.into()), "{host}");
            assert_eq!(parsed, target("http://victim.example/").join(&format!("//{host}/")).expect("a redirect"));
        }
    }
    assert_eq!(target("http://0").host(), &Host::Ip(ip("0.0.0.0")));
}

/// `text` in full-width digits and letters.
fn wide(text: &str) -> String {
    text.chars().map(|char| char::from_u32(u32::from(char) + 0xfee0).unwrap_or(char)).collect()
}
