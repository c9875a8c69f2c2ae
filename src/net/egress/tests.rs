//! What the guard lets through and what it does not, as a caller sees it.

mod lists;
mod oracle;
mod random;
mod redirects;
mod speed;
mod table;

use std::net::IpAddr;

use super::{
    Denial, Guard, Host, Target, Verdict, judge, name,
    ranges::{RANGES_V4, RANGES_V6},
};
use table::{Comes, TABLE};

/// A public address, to stand beside a denied one.
const PUBLIC: &str = "93.184.215.14";

fn target(url: &str) -> Target {
    Target::parse(url).unwrap_or_else(|denial| panic!("{url:?}: {denial}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// The rule of a denial, or "passes".
fn rule<T>(result: Result<T, Denial>) -> &'static str {
    result.err().map_or("passes", |denial| denial.rule)
}

/// The host that `result` has come to, and the rule by which it, or a guard without lists, denies it.
fn comes_to(result: Result<Target, Denial>) -> (Option<String>, &'static str) {
    match result {
        Err(denial) => (None, denial.rule),
        Ok(target) => {
            let host = match target.host() {
                Host::Name(name) => name.clone(),
                Host::Ip(ip) => ip.to_string(),
            };
            (Some(host), rule(Guard::default().check_target(&target)))
        }
    }
}

#[test]
fn every_spelling_comes_to_the_same_as_a_literal_as_an_answer_and_as_a_redirect() {
    let (victim, base) = (target("https://victim.example/"), target("https://public.example/a/b"));
    let guard = Guard::default();
    let mut wrong = Vec::new();
    let (mut literals, mut answers, mut redirects) = (0, 0, 0);
    for &(spelling, comes) in TABLE {
        let bare = spelling.trim_matches(['[', ']']);
        let (host, denied_by) = match comes {
            Comes::Is(rule) => (Some(ip(bare).to_string()), rule),
            Comes::To(address, rule) => (Some(ip(address).to_string()), rule),
            Comes::Named(name, rule) => (Some(name.to_owned()), rule),
            Comes::Refused(rule) => (None, rule),
        };
        let expected = (host.clone(), denied_by);
        let mut check = |way: &str, got: (Option<String>, &'static str)| {
            if got != expected {
                wrong.push(format!("{spelling:?} as {way}: {got:?}, not {expected:?}"));
            }
        };

        check("a literal", comes_to(Target::parse(&format!("https://{spelling}/x?y#z"))));
        check("a literal in capitals", comes_to(Target::parse(&format!("HTTPS://{spelling}"))));
        literals += 1;

        if let Comes::Is(_) | Comes::To(..) = comes {
            // As spelled, where it is an address as it stands: the IPv4-mapped ones must not be unwrapped by the test.
            let host = host.unwrap_or_default();
            let answer = bare.parse().unwrap_or_else(|_| ip(&host));
            let public = ip(PUBLIC);
            for all in [vec![answer], vec![public, answer], vec![answer, public], vec![public, ip("2600::1"), answer]] {
                check("an answer", (Some(host.clone()), rule(guard.check_addresses(&victim, &all))));
            }
            let judged = match judge(answer) {
                Verdict::Public => "passes",
                Verdict::Denied(rule) => rule,
            };
            check("an address", (Some(host), judged));
            answers += 1;
        }

        check("a redirect", comes_to(base.join(&format!("https://{spelling}/x?y#z"))));
        check("a redirect without a scheme", comes_to(base.join(&format!("//{spelling}/x?y#z"))));
        redirects += 1;
    }
    println!("{literals} spellings as literals, {answers} as answers, {redirects} as redirects");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(literals >= 140);
}

#[test]
fn public_addresses_pass_up_to_the_edges_of_the_ranges() {
    let public = "\
        1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.215.14 100.63.255.255 100.128.0.0 126.255.255.255 \
        128.0.0.0 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 \
        192.0.1.0 192.0.1.255 192.0.3.0 192.31.195.255 192.31.197.0 192.52.192.255 192.52.194.0 192.88.98.255 \
        192.88.100.0 192.167.255.255 192.169.0.0 192.175.47.255 192.175.49.0 198.17.255.255 198.20.0.0 198.51.99.255 \
        198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2000::1 2001:200::1 \
        2001:4860:4860::8888 2001:db7:ffff::1 2001:db9::1 2003::1 2400::1 2600::5efe:8.8.8.8 2606:4700:4700::1111 \
        2620:4f:7fff::1 2620:4f:8001::1 2a00:1450:4001::200e 3ffe::1 3fff:1000::1";
    let public: Vec<&str> = public.split_whitespace().collect();
    for text in &public {
        assert_eq!(judge(ip(text)), Verdict::Public, "{text}");
    }
    println!("{} public addresses", public.len());
}

#[test]
fn ordinary_urls_pass_and_go_out_as_they_are() {
    // The URL, its authority, and its path and query.
    let ordinary = [
        ("http://example.com", "example.com", "/"),
        ("https://example.com/", "example.com", "/"),
        ("HTTPS://EXAMPLE.com:443/A?b=C", "example.com", "/A?b=C"),
        ("http://example.com.:80/", "example.com", "/"),
        ("https://example.com.:8443/x", "example.com:8443", "/x"),
        ("https://example.com:/", "example.com", "/"),
        ("https://example.com?", "example.com", "/?"),
        ("https://example.com#f", "example.com", "/"),
        ("https://example.com/?q=a@b#c@d", "example.com", "/?q=a@b"),
        ("https://example.com/@scope/package", "example.com", "/@scope/package"),
        ("https://example.com/a/../b/./c", "example.com", "/b/c"),
        ("https://example.com/%2e%2e/b", "example.com", "/b"),
        ("https://example.com/a//b", "example.com", "/a//b"),
        ("https://example.com/?redirect=http://127.0.0.1/", "example.com", "/?redirect=http://127.0.0.1/"),
        ("https://example.com/http://[::1]/", "example.com", "/http://[::1]/"),
        ("https://example.com/ü?ö", "example.com", "/%C3%BC?%C3%B6"),
        ("https://example.com/می\u{200c}خواهم", "example.com", "/%D9%85%DB%8C%E2%80%8C%D8%AE%D9%88%D8%A7%D9%87%D9%85"),
        ("https://example.com/%00%0d%0a", "example.com", "/%00%0d%0a"),
        ("https://bücher.example/", "xn--bcher-kva.example", "/"),
        ("https://B%C3%BCCHER.example/", "xn--bcher-kva.example", "/"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "/"),
        ("https://日本語。例え/", "xn--wgv71a119e.xn--r8jz45g", "/"),
        ("https://faß.example/", "xn--fa-hia.example", "/"),
        ("https://ex%61mple.com/", "example.com", "/"),
        ("https://ｅｘａｍｐｌｅ.com/", "example.com", "/"),
        ("https://127.0.0.1.example/", "127.0.0.1.example", "/"),
        ("https://1.2.3.4.nip.example/", "1.2.3.4.nip.example", "/"),
        ("https://0x7f.example/", "0x7f.example", "/"),
        ("https://localhost.example/", "localhost.example", "/"),
        ("https://notlocalhost.com/", "notlocalhost.com", "/"),
        ("https://mylocal.com/", "mylocal.com", "/"),
        ("https://internal.example/", "internal.example", "/"),
        ("https://_dmarc.a--b.example/", "_dmarc.a--b.example", "/"),
        ("https://93.184.215.14/", "93.184.215.14", "/"),
        ("https://0x5d.184.55054:8080/", "93.184.215.14:8080", "/"),
        ("https://[2606:4700:4700:0:0:0:0:1111]/", "[2606:4700:4700::1111]", "/"),
        ("https://[::ffff:93.184.215.14]:444/", "93.184.215.14:444", "/"),
    ];
    for (url, authority, path_and_query) in ordinary {
        let target = target(url);
        assert_eq!((target.authority(), target.path_and_query()), (authority, path_and_query), "{url}");
        assert_eq!(rule(Guard::default().check_target(&target)), "passes", "{url}");
        assert_eq!(rule(Guard::default().check_addresses(&target, &[ip(PUBLIC), ip("2600::1")])), "passes", "{url}");
    }
    println!("{} ordinary URLs", ordinary.len());
}

#[test]
fn every_range_is_denied_from_its_first_address_to_its_last_and_hides_no_later_one() {
    for range in RANGES_V4 {
        for bits in [range.network, range.network | !range.mask] {
            assert_ne!(judge(IpAddr::V4(bits.into())), Verdict::Public, "{}", range.rule);
        }
    }
    for range in RANGES_V6 {
        for bits in [range.network, range.network | !range.mask] {
            assert_ne!(judge(IpAddr::V6(bits.into())), Verdict::Public, "{}", range.rule);
        }
    }
    for (at, wide) in RANGES_V4.iter().enumerate() {
        let hidden =
            RANGES_V4[at + 1..].iter().find(|narrow| narrow.network & wide.mask == wide.network && narrow.mask >= wide.mask);
        assert!(hidden.is_none(), "{} stands before what is inside it", wide.rule);
    }
    for (at, wide) in RANGES_V6.iter().enumerate() {
        let hidden =
            RANGES_V6[at + 1..].iter().find(|narrow| narrow.network & wide.mask == wide.network && narrow.mask >= wide.mask);
        assert!(hidden.is_none(), "{} stands before what is inside it", wide.rule);
    }
}

#[test]
fn a_number_is_no_name_even_if_a_parser_lets_it_through() {
    for name in ["1", "127.0.0.1", "127.0.0.1.", "2130706433", "0x7f.1", "0x", "host.08", "host.0xff", "host.0x."] {
        assert_eq!(name::normal(name), Err("name/numeric"), "{name}");
    }
    for name in ["1.example", "0x7f.example.", "1e1", "0xg", "127-0-0-1"] {
        assert_eq!(name::normal(name), Ok(name.trim_end_matches('.')), "{name}");
    }
    assert_eq!(
        (name::normal("Host.example"), name::normal("h\u{f6}st.example")),
        (Err("name/characters"), Err("name/characters"))
    );
}

#[test]
fn what_is_too_long_is_refused() {
    let name = |length: usize| format!("{}.example", "a.".repeat((length - 9) / 2) + &"b".repeat(1 + (length - 9) % 2));
    for (host, expected) in [(name(253), "passes"), (name(253) + ".", "passes"), (name(254), "name/length")] {
        assert_eq!(comes_to(Target::parse(&format!("https://{host}/"))).1, expected, "{}", host.len());
    }
    for (label, expected) in [(63, "passes"), (64, "name/label")] {
        assert_eq!(comes_to(Target::parse(&format!("https://{}.example/", "a".repeat(label)))).1, expected);
    }
    let long = |rest: &str, length: usize| format!("https://public.example/{}", rest.repeat((length - 23) / rest.len()));
    assert_eq!(rule(Target::parse(&long("a", 8192))), "passes");
    assert_eq!(rule(Target::parse(&long("a", 8193))), "length");
    assert_eq!(rule(Target::parse(&long("ü", 8191))), "length", "once it is percent-encoded");
}

#[test]
fn only_http_and_https_with_two_slashes_are_taken() {
    let texts = [
        ("ftp://public.example/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://127.0.0.1:6379/_", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("data:text/plain,a", "scheme"),
        ("ws://public.example/", "scheme"),
        ("unix:/run/docker.sock", "scheme"),
        ("http+unix://%2frun%2fdocker.sock/", "scheme"),
        ("blob:https://public.example/", "scheme"),
        ("view-source:https://public.example/", "scheme"),
        ("httpss://public.example/", "scheme"),
        ("public.example", "scheme"),
        ("public.example:443", "scheme"),
        ("//public.example/", "scheme"),
        ("/a", "scheme"),
        ("", "scheme"),
        ("http:public.example", "spelling"),
        ("http:/public.example", "spelling"),
        ("http:\\\\public.example", "spelling"),
        ("https:", "spelling"),
        ("http://", "host"),
        ("http:///public.example", "host"),
        ("http://?a", "host"),
        (" http://public.example", "spelling"),
        ("ht\ntp://public.example", "spelling"),
        ("http://public.example/ ", "spelling"),
        ("http://public.example/a b", "spelling"),
        ("http://public.example/a\tb", "spelling"),
        ("http://public.example/\\..\\a", "spelling"),
        ("http://public\u{200b}.example/", "spelling"),
        ("http://public.example/\u{a0}", "spelling"),
        ("http://public.example/#\r\n", "spelling"),
        ("http://public.example/\0", "spelling"),
        ("http://public.example/?\u{1b}[31m", "spelling"),
        ("http://public.example/\u{7f}", "spelling"),
        ("http://public.example/\u{9b}", "spelling"),
    ];
    for (text, expected) in texts {
        assert_eq!(rule(Target::parse(text)), expected, "{text:?}");
    }
}

#[test]
fn a_denial_tells_no_secret() {
    let (base, guard) = (target("https://public.example/a?SECRET"), Guard::default());
    let texts = [
        "https://SECRET@public.example/",
        "https://u:SECRET@public.example/",
        "https://u:SE/SECRET@public.example/",
        "https://u:SE?SECRET@public.example/",
        "https://u:SE#SECRET@public.example/",
        "https://u:SECRET%40public.example/",
        "https://u:SECRET＠public.example/",
        "https://public.example:0/SECRET?SECRET",
        "https://public.example:0?SECRET",
        "https://256.0.0.1?SECRET#SECRET",
        "https://a b/SECRET?SECRET",
        "https://a\\SECRET@b",
        "data:SECRET",
        "mailto:SECRET@a.example",
        "SECRET",
        "SECRET?SECRET",
        "/SECRET?SECRET\\",
        "?SECRET\\",
        "https:/SECRET",
        "https://127.0.0.1/SECRET?SECRET",
        "http://public.example/SECRET?SECRET",
        "//localhost/SECRET?SECRET",
        " https://public.example/SECRET",
        "ht\ntps://SECRET",
        "\u{1b}[31m?SECRET",
    ];
    for text in texts {
        let checked =
            |target: Result<Target, Denial>| target.and_then(|target| guard.check_addresses(&target, &[ip("127.0.0.1")]));
        for denial in [checked(Target::parse(text)), checked(base.join(text))].into_iter().filter_map(Result::err) {
            let said = denial.to_string();
            assert!(!said.contains("SECRET"), "{text:?}: {said}");
            assert!(said.is_ascii() && !said.contains(|char: char| char.is_control()), "{text:?}: {said:?}");
        }
    }
    assert_eq!(format!("{base} {base:?}"), "https://public.example Target(https://public.example)");
    let subject = |result: Result<(), Denial>| result.err().map(|denial| denial.subject);
    assert_eq!(
        subject(guard.check_addresses(&base, &[ip("::ffff:10.0.0.1")])).as_deref(),
        Some("https://public.example at ::ffff:10.0.0.1")
    );
}
