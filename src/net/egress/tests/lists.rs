//! What a connector's lists open and close, and what nothing opens.

use std::net::SocketAddr;

use super::{super::Allow, Guard, ip, rule, target};

fn entries(texts: &[&str]) -> Vec<Allow> {
    texts.iter().map(|text| Allow::parse(text).unwrap_or_else(|rule| panic!("{text:?}: {rule}"))).collect()
}

fn allowing(texts: &[&str]) -> Guard {
    Guard::new(entries(texts), None, [])
}

fn owning(texts: &[&str], allow: &[&str]) -> Guard {
    let own: Vec<SocketAddr> = texts.iter().map(|text| text.parse().expect("an address and a port")).collect();
    Guard::new(entries(allow), None, own)
}

/// The rule of a URL before its name is resolved.
fn before(guard: &Guard, url: &str) -> &'static str {
    rule(guard.check_target(&target(url)))
}

/// The rule of a URL whose name resolves to this.
fn after(guard: &Guard, url: &str, address: &str) -> &'static str {
    rule(guard.check_addresses(&target(url), &[ip(address)]))
}

#[test]
fn a_name_opens_its_name_rule_and_no_address() {
    let guard = allowing(&["db.internal", "localhost:8080", "*.svc.cluster.local"]);
    for (url, expected) in [
        ("http://db.internal/", "passes"),
        ("http://DB.internal.:1234/", "passes"),
        ("http://x.db.internal/", "name/internal"),
        ("http://xdb.internal/", "name/internal"),
        ("http://localhost:8080/", "passes"),
        ("http://localhost/", "name/localhost"),
        ("http://a.svc.cluster.local/", "passes"),
        ("http://a.b.svc.cluster.local/", "passes"),
        ("http://svc.cluster.local/", "name/local"),
        ("http://asvc.cluster.local/", "name/local"),
    ] {
        assert_eq!(before(&guard, url), expected, "{url}");
    }
    assert_eq!(after(&guard, "http://db.internal/", "10.1.2.3"), "private/10.0.0.0/8");
    assert_eq!(after(&guard, "http://localhost:8080/", "127.0.0.1"), "loopback");
    assert_eq!(after(&guard, "http://db.internal/", "8.8.8.8"), "passes");
    assert_eq!(after(&guard, "http://nats/", "8.8.8.8"), "name/single-label", "asked of the answers alone");
}

#[test]
fn an_address_opens_itself_and_a_network_what_is_in_it() {
    let guard = allowing(&["10.1.2.0/24", "10.9.9.9:8080", "[fd00::1]", "[fd01::/16]:443", "0.0.0.0/32"]);
    for (url, expected) in [
        ("http://10.1.2.0/", "passes"),
        ("http://10.1.2.255:99/", "passes"),
        ("http://[::ffff:10.1.2.3]/", "passes"),
        ("http://0xa.1.515/", "passes"),
        ("http://10.1.3.0/", "private/10.0.0.0/8"),
        ("http://10.9.9.9:8080/", "passes"),
        ("http://10.9.9.9/", "private/10.0.0.0/8"),
        ("http://[fd00::1]/", "passes"),
        ("http://[fd00::2]/", "unique-local"),
        ("https://[fd01:ffff::1]/", "passes"),
        ("http://[fd01:ffff::1]/", "unique-local"),
        ("http://0/", "passes"),
        ("http://0.0.0.1/", "this-network"),
        ("http://[::]/", "unspecified"),
        // What carries an opened address is not that address.
        ("http://[64:ff9b::10.1.2.3]/", "private/10.0.0.0/8"),
        ("http://[2002:a01:203::]/", "private/10.0.0.0/8"),
        ("http://[::10.1.2.3]/", "private/10.0.0.0/8"),
        ("http://[fd01::5efe:10.1.2.3]:443/", "private/10.0.0.0/8"),
    ] {
        assert_eq!(before(&guard, url), expected, "{url}");
        let literal = target(url);
        if let super::Host::Ip(ip) = literal.host() {
            let named = target(&format!("http://victim.example:{}/", literal.port()));
            assert_eq!(rule(guard.check_addresses(&named, &[*ip])), expected, "an answer: {url}");
        }
    }
    assert_eq!(
        rule(guard.check_addresses(&target("http://a.example/"), &["10.1.2.3", "10.1.3.3"].map(ip))),
        "private/10.0.0.0/8"
    );
    assert_eq!(before(&guard, "http://db.internal/"), "name/internal", "an address opens no name");
}

#[test]
fn metadata_and_what_carries_a_denied_address_open_to_the_exact_address_only() {
    let networks = &[
        "0.0.0.0/0",
        "169.254.169.254/32",
        "168.63.129.16/32",
        "[::/0]",
        "[fd00:ec2::254/128]",
        "[64:ff9b::/96]",
        "[64:ff9b:1::/48]",
    ];
    let exact = &[
        "169.254.169.254:80",
        "168.63.129.16",
        "[fd00:ec2::254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[64:ff9b:1::808:808]",
        "[2600::5efe:a00:1]",
        "[::a9fe:a9fe]",
    ];
    for (address, denied_by) in [
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("168.63.129.16", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("2002:7f00:1::", "loopback"),
        ("64:ff9b:1::808:808", "nat64/local-use"),
        ("2600::5efe:a00:1", "private/10.0.0.0/8"),
        ("::a9fe:a9fe", "metadata"),
    ] {
        assert_eq!(after(&allowing(networks), "http://a.example/", address), denied_by, "{address}");
        assert_eq!(after(&allowing(exact), "http://a.example/", address), "passes", "{address}");
    }
    assert_eq!(after(&allowing(exact), "http://a.example:8080/", "169.254.169.254"), "metadata", "at another port");
    assert_eq!(after(&allowing(exact), "http://a.example/", "64:ff9b::a83f:8110"), "metadata", "inside another");
    let names = allowing(&["metadata.google.internal", "*.internal"]);
    assert_eq!(before(&names, "http://metadata.google.internal/"), "passes");
    assert_eq!(after(&names, "http://metadata.google.internal/", "169.254.169.254"), "metadata");
    for (address, expected) in
        [("10.0.0.1", "passes"), ("127.0.0.1", "passes"), ("fc00::1", "passes"), ("2002:808:808::", "passes")]
    {
        assert_eq!(after(&allowing(networks), "http://a.example/", address), expected, "{address}");
    }
}

#[test]
fn own_ports_stay_closed_whatever_the_lists_say() {
    let wide = &[
        "0.0.0.0/0",
        "[::/0]",
        "127.0.0.1",
        "[::1]",
        "0.0.0.0",
        "[::]",
        "10.0.0.4",
        "localhost",
        "[64:ff9b::10.0.0.4]",
        "[2002:7f00:1::]",
    ];
    let guard = owning(&["127.0.0.1:9100", "10.0.0.4:4222", "[2600::4]:4222", "[::1]:9200", "[::ffff:10.0.0.5]:4222"], wide);
    for (address, port, expected) in [
        ("127.0.0.1", 9100, "own-port"),
        ("127.9.9.9", 9100, "own-port"),
        ("::1", 9100, "own-port"),
        ("127.0.0.1", 9200, "own-port"),
        ("0.0.0.0", 9100, "own-port"),
        ("::", 9100, "own-port"),
        ("::", 9200, "own-port"),
        ("0.0.0.0", 4222, "own-port"),
        ("::ffff:127.0.0.1", 9100, "own-port"),
        ("2002:7f00:1::", 9100, "own-port"),
        ("2002::", 9100, "own-port"),
        ("10.0.0.4", 4222, "own-port"),
        ("::ffff:10.0.0.4", 4222, "own-port"),
        ("64:ff9b::10.0.0.4", 4222, "own-port"),
        ("2001:0:808:808::f5ff:fffb", 4222, "own-port"),
        ("10.0.0.5", 4222, "own-port"),
        ("2600::4", 4222, "own-port"),
        ("127.0.0.1", 9101, "passes"),
        ("10.0.0.4", 9100, "passes"),
        ("10.0.0.6", 4222, "passes"),
        ("64:ff9b::10.0.0.4", 80, "passes"),
        ("8.8.8.8", 4222, "passes"),
    ] {
        assert_eq!(after(&guard, &format!("http://a.example:{port}/"), address), expected, "{address} at {port}");
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        assert_eq!(before(&guard, &format!("http://{host}:{port}/")), expected, "{host}:{port}");
    }
    for own in ["0.0.0.0:9100", "[::]:9100", "[::ffff:0.0.0.0]:9100"] {
        for address in ["127.0.0.1", "::1", "10.1.1.1", "8.8.8.8", "2600::1", "::"] {
            assert_eq!(after(&owning(&[own], wide), "http://a.example:9100/", address), "own-port", "{own} at {address}");
        }
        assert_eq!(after(&owning(&[own], wide), "http://a.example:9101/", "8.8.8.8"), "passes");
    }
}

#[test]
fn where_only_is_given_a_host_has_to_be_in_it() {
    let only = |texts: &[&str], allow: &[&str]| Guard::new(entries(allow), Some(entries(texts)), []);
    let guard = only(&["api.example:443", "*.cdn.example", "93.184.215.0/24", "[2600::1]:8443", "db.internal", "10.0.0.1"], &[]);
    for (url, expected) in [
        ("https://api.example/", "passes"),
        ("http://api.example:443/", "passes"),
        ("http://api.example/", "not-listed"),
        ("https://x.cdn.example/", "passes"),
        ("https://cdn.example/", "not-listed"),
        ("https://evilcdn.example/", "not-listed"),
        ("https://other.example/", "not-listed"),
        ("https://93.184.215.14/", "passes"),
        ("https://[::ffff:93.184.215.14]/", "passes"),
        ("https://93.184.216.14/", "not-listed"),
        ("https://[2600::1]:8443/", "passes"),
        ("https://[2600::1]/", "not-listed"),
        ("https://[64:ff9b::93.184.215.14]/", "not-listed"),
        // Being listed opens nothing.
        ("https://db.internal/", "name/internal"),
        ("https://10.0.0.1/", "private/10.0.0.0/8"),
    ] {
        assert_eq!(before(&guard, url), expected, "{url}");
    }
    assert_eq!(after(&guard, "https://other.example/", "93.184.215.14"), "not-listed", "a name is not listed by its address");
    assert_eq!(after(&guard, "https://api.example/", "8.8.8.8"), "passes", "an address is not listed by its name");
    assert_eq!(before(&only(&[], &[]), "https://api.example/"), "not-listed");
    assert_eq!(before(&only(&["db.internal"], &["db.internal"]), "http://db.internal/"), "passes");
    assert_eq!(before(&only(&["api.example"], &["db.internal"]), "http://db.internal/"), "not-listed");
}

#[test]
fn no_answer_is_a_denial() {
    assert_eq!(rule(Guard::default().check_addresses(&target("https://public.example/"), &[])), "no-address");
    assert_eq!(
        rule(allowing(&["0.0.0.0/0", "public.example"]).check_addresses(&target("https://public.example/"), &[])),
        "no-address"
    );
}

#[test]
fn an_entry_is_said_again_as_it_was_meant() {
    for (text, said) in [
        ("host.example", "host.example"),
        ("Host.Example.:8443", "host.example:8443"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("*.bücher.example:1", "*.xn--bcher-kva.example:1"),
        ("*.internal", "*.internal"),
        ("localhost:65535", "localhost:65535"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.0/24:80", "10.1.2.0/24:80"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.1.2.3/32", "10.1.2.3/32"),
        ("[fd00:0::1]", "[fd00::1]"),
        ("[fd00::1]:443", "[fd00::1]:443"),
        ("[fd00::/8]:443", "[fd00::/8]:443"),
        ("[::/0]", "[::/0]"),
        ("[::1/128]", "[::1/128]"),
    ] {
        let entry = Allow::parse(text).unwrap_or_else(|rule| panic!("{text:?}: {rule}"));
        assert_eq!(entry.to_string(), said);
        assert_eq!(Allow::parse(said), Ok(entry));
    }
}

#[test]
fn an_entry_that_could_be_misread_is_refused() {
    const NAME: &str = "a host name: labels of letters, digits, - and _ with dots between, * only as the whole first one";
    const URL: &str = "a host, not a URL";
    const PORT: &str = "a port from 1 to 65535 after a colon";
    const PREFIX: &str = "a prefix length of at most 32 bits for IPv4, 128 for IPv6";
    const OUTSIDE: &str = "a network without bits outside its prefix";
    const V4: &str = "an IPv4 address as four decimal numbers";
    const V6: &str = "an IPv6 address or network, without a zone";
    const UNSEEN: &str = "no control characters, whitespace or invisible characters";
    for (text, expected) in [
        ("", "not empty"),
        ("http://host.example", URL),
        ("user@host.example", URL),
        ("host.example?", URL),
        ("host%2eexample", URL),
        ("host.example/a", "a network as a.b.c.d/prefix or [address/prefix]"),
        (" host.example", UNSEEN),
        ("host\u{ad}.example", UNSEEN),
        ("*", NAME),
        ("*.", NAME),
        ("a*.example", NAME),
        ("*.*.example", NAME),
        ("a.*.example", NAME),
        ("a..example", NAME),
        ("host.1", NAME),
        (".example", NAME),
        ("127.1", V4),
        ("0x7f.0.0.1", V4),
        ("010.0.0.1", V4),
        ("2130706433", V4),
        ("10.1.2.3.", V4),
        ("*.127.0.0.1", V4),
        ("１０.1.2.3", V4),
        ("10.1.2.3/24", OUTSIDE),
        ("10.1.2.0/33", PREFIX),
        ("10.1.2.0/", PREFIX),
        ("10.1.2.0/+8", PREFIX),
        ("10.0.0.0/08", PREFIX),
        ("10.1/16", "a network as a.b.c.d/prefix or [address/prefix]"),
        ("10.1.2.3:", PORT),
        ("10.1.2.3:0", PORT),
        ("10.1.2.3:080", PORT),
        ("10.1.2.3:65536", PORT),
        ("host.example:http", PORT),
        ("[fd00::1]443", PORT),
        ("[fd00::1]:", PORT),
        ("fd00::1", "an IPv6 address in brackets"),
        ("fd00::/8", "an IPv6 address in brackets"),
        ("::1", "an IPv6 address in brackets"),
        ("[fd00::1", "an IPv6 address closed by ]"),
        ("[fe80::1%eth0]", URL),
        ("[10.1.2.3]", V6),
        ("[host.example]", V6),
        ("[fd00::1/64]", OUTSIDE),
        ("[fd00::/129]", PREFIX),
        ("[::ffff:10.1.2.3]", "an IPv4-mapped address written as IPv4"),
        ("[::ffff:0.0.0.0/96]", "an IPv4-mapped address written as IPv4"),
    ] {
        assert_eq!(Allow::parse(text).map(|entry| entry.to_string()), Err(expected), "{text:?}");
    }
}
