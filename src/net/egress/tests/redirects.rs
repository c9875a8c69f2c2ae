//! Redirects, one after another.

use super::{super::Scheme, Target, rule, target};

#[test]
fn a_location_is_read_against_the_url_it_came_from() {
    let base = target("https://public.example/a/b?q#f");
    let locations = [
        ("", "https://public.example/a/b?q"),
        ("#x", "https://public.example/a/b?q"),
        ("?r", "https://public.example/a/b?r"),
        ("c", "https://public.example/a/c"),
        ("c?d=http://x/#e", "https://public.example/a/c?d=http://x/"),
        ("/c", "https://public.example/c"),
        ("../c", "https://public.example/c"),
        ("../../../c", "https://public.example/c"),
        ("./", "https://public.example/a/"),
        ("/a@b", "https://public.example/a@b"),
        ("a@b:c", "https://public.example/a/a@b:c"),
        ("/%5c%5cevil.example", "https://public.example/%5c%5cevil.example"),
        ("//other.example", "https://other.example/"),
        ("//OTHER.example.:443/", "https://other.example/"),
        ("https://other.example:8443/x#y", "https://other.example:8443/x"),
        ("HTTPS://other.example", "https://other.example/"),
    ];
    for (location, expected) in locations {
        assert_eq!(base.join(location).as_ref().map(Target::as_str), Ok(expected), "{location:?}");
    }
}

#[test]
fn a_location_is_refused_for_what_a_url_is_refused_for() {
    let base = target("https://public.example/a/b");
    let locations = [
        ("http://public.example/a/b", "downgrade"),
        ("HTTP://other.example/", "downgrade"),
        ("http://127.0.0.1/", "downgrade"),
        ("http://user@other.example/", "userinfo"),
        ("//user@other.example/", "userinfo"),
        ("//@other.example/", "userinfo"),
        ("https:other", "spelling"),
        ("https:/other.example", "spelling"),
        ("https:", "spelling"),
        ("https://", "host"),
        ("//", "host"),
        ("///other.example/", "host"),
        ("/\\other.example/", "spelling"),
        ("\\\\other.example/", "spelling"),
        ("/\t/other.example/", "spelling"),
        (" //other.example/", "spelling"),
        ("c d", "spelling"),
        ("c\0d", "spelling"),
        ("/c\r\nSet-Cookie:a", "spelling"),
        ("file:///etc/passwd", "scheme"),
        ("javascript:alert(1)", "scheme"),
        ("data:,a", "scheme"),
        ("ftp://other.example/", "scheme"),
        ("a:b", "scheme"),
        ("//other.example:0/", "port"),
        ("//host.1/", "name/numeric"),
    ];
    for (location, expected) in locations {
        assert_eq!(rule(base.join(location)), expected, "{location:?}");
    }
}

#[test]
fn http_may_become_https_and_stay_http_and_https_only_stays() {
    let (http, https) = ("http://public.example/", "https://public.example/");
    for (from, to, expected) in
        [(http, http, "passes"), (http, https, "passes"), (https, https, "passes"), (https, http, "downgrade")]
    {
        assert_eq!(rule(target(from).join(to)), expected, "{from} to {to}");
    }
    assert_eq!((target(http).scheme(), target(https).scheme()), (Scheme::Http, Scheme::Https));
}

#[test]
fn an_origin_is_scheme_host_and_port() {
    let base = target("https://public.example/a?b");
    for (url, same) in [
        ("https://public.example/", true),
        ("https://PUBLIC.example.:443/c", true),
        ("https://public.example:8443/", false),
        ("http://public.example:443/", false),
        ("http://public.example/", false),
        ("https://www.public.example/", false),
        ("https://public.example.evil.example/", false),
    ] {
        assert_eq!((base.same_origin(&target(url)), target(url).same_origin(&base)), (same, same), "{url}");
    }
    let spelled = |host: &str| target(&format!("http://{host}/"));
    assert!(spelled("[::ffff:8.8.8.8]").same_origin(&spelled("0x08080808")));
    assert!(!spelled("[64:ff9b::8.8.8.8]").same_origin(&spelled("8.8.8.8")));
}

#[test]
fn the_parts_of_a_target_are_those_of_its_url() {
    let target = target("https://[2606:4700::1111]:8443/a%20b/ü?c=d&e=%26#f");
    assert_eq!((target.port(), target.authority()), (8443, "[2606:4700::1111]:8443"));
    assert_eq!((target.path(), target.query()), ("/a%20b/%C3%BC", Some("c=d&e=%26")));
    assert_eq!(target.path_and_query(), "/a%20b/%C3%BC?c=d&e=%26");
    assert_eq!(target.as_str(), "https://[2606:4700::1111]:8443/a%20b/%C3%BC?c=d&e=%26");
    assert_eq!(target.to_string(), "https://[2606:4700::1111]:8443");
}
