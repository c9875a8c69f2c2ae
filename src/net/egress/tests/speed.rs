//! How long a check takes. Informs, does not gate.

use std::{hint::black_box, net::IpAddr, time::Instant};

use super::{
    super::{Allow, Guard, Target, judge},
    ip, target,
};

const CHECKS: u32 = 2_000_000;

/// Run by `cargo test --release -- --ignored --nocapture speed`.
#[test]
#[ignore = "prints times, checks nothing"]
fn ns_per_check() {
    let entries = ["api.example", "*.api.example", "10.1.2.0/24", "10.9.9.9:8080", "[fd00::1]"];
    let allow: Vec<Allow> = entries.iter().map(|text| Allow::parse(text).expect("an entry")).collect();
    let own = || ["127.0.0.1:9100", "0.0.0.0:50051", "[::1]:9101", "10.0.0.4:4222"].map(|text| text.parse().expect("an address"));
    let plain = Guard::new(Vec::new(), None, own());
    let listed = Guard::new(allow.clone(), Some(allow), own());
    let public = ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "2a00:1450::200e"].map(ip);
    let private = ["10.1.2.3", "10.1.2.4", "10.1.2.5", "10.9.9.9"].map(ip);

    time("parse", || Target::parse(black_box("https://api.example/v1/things?limit=10")).is_ok());
    time("judge, IPv4", || judge(black_box(public[0])) == judge(black_box(public[1])));
    time("judge, IPv6", || judge(black_box(public[2])) == judge(black_box(public[3])));
    checks("no lists, 4 public addresses", &plain, "https://www.shop.example/a", &public);
    checks("lists, 4 public addresses", &listed, "https://v1.eu.api.example/a", &public);
    checks("lists, 4 opened addresses", &listed, "https://v1.eu.api.example:8080/a", &private);
}

fn checks(what: &str, guard: &Guard, url: &str, addresses: &[IpAddr]) {
    let target = target(url);
    time(what, || {
        let (target, addresses) = (black_box(&target), black_box(addresses));
        guard.check_target(target).is_ok() && guard.check_addresses(target, addresses).is_ok()
    });
}

/// Prints the time that one call of `check` takes; it must be true.
fn time(what: &str, check: impl Fn() -> bool) {
    assert!(check(), "{what}");
    let start = Instant::now();
    for _ in 0..CHECKS {
        black_box(check());
    }
    println!("{what}: {:.0} ns", start.elapsed().as_secs_f64() * 1e9 / f64::from(CHECKS));
}
