//! Deterministic simulation: whole worlds (two shards, disks, a NATS server, an edge, blocks with their own ledger) in virtual
//! time from one seed, with faults, until rest, and then the oracles.
//!
//! `SEED=n` replays one seed with a readable trace; `SEEDS=from..to` runs many and prints what was met.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test with a command line")]

mod asks;
mod blocks;
mod disk;
mod edge;
mod faults;
mod job;
mod oracles;
mod owners;
mod plan;
mod rng;
mod seals;
mod server;
mod truth;
mod watch;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use world::{Report, World};

/// Lives one world; a panic of the machine is a violation like any other.
fn live(seed: u64, loud: bool) -> Report {
    match catch_unwind(AssertUnwindSafe(|| World::new(seed, loud).live())) {
        Ok(report) => report,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Report { violation: Some(format!("panic: {}", text.unwrap_or_default())), ..Report::default() }
        }
    }
}

fn demand_no_violation(seed: u64, report: &Report) {
    if let Some(violation) = &report.violation {
        panic!("seed {seed}: {violation}\nSEED={seed} cargo test --test sim one_seed -- --ignored --nocapture");
    }
}

#[test]
fn sixty_four_worlds_keep_every_promise() {
    for seed in 1..=64 {
        demand_no_violation(seed, &live(seed, false));
    }
}

/// The child of the test below.
const TELLS_TRACES: &str = "traces_from_the_environment";

/// Two processes tell each world alike, to the last number: in another one memory lies elsewhere and hash tables have another
/// order.
#[test]
fn the_same_seed_lives_the_same_world_in_every_process() {
    let mut child = Command::new(std::env::current_exe().expect("this program has a path"));
    child.args([TELLS_TRACES, "--exact", "--ignored", "--nocapture"]).env("SEEDS", format!("1..{}", TRACED + 1));
    let child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("this program runs");
    let mine: Vec<String> = (1..=TRACED).map(trace).collect();
    let told = child.wait_with_output().expect("it ends");
    let told = String::from_utf8(told.stdout).expect("it tells text");
    let other: Vec<&str> = told.lines().filter(|line| line.starts_with("seed ")).collect();
    assert_eq!(other.len(), mine.len(), "{told}");
    for (mine, other) in mine.iter().zip(other) {
        assert_eq!(mine, other);
    }
}

/// `SEEDS=from..to`: one line a world, to compare with another process's.
#[test]
#[ignore = "asks for seeds: SEEDS=from..to cargo test --test sim traces -- --ignored --nocapture"]
fn traces_from_the_environment() {
    let (from, to) = seeds_from_the_environment();
    println!();
    for seed in from..to {
        println!("{}", trace(seed));
    }
}

/// How many worlds are lived in two processes.
const TRACED: u64 = 128;

fn trace(seed: u64) -> String {
    let report = live(seed, false);
    assert!(report.steps >= 200, "seed {seed} has only {} steps", report.steps);
    format!("seed {seed}: {:016x}, {} happenings", report.hash, report.happenings)
}

fn seeds_from_the_environment() -> (u64, u64) {
    let range = std::env::var("SEEDS").expect("SEEDS=from..to");
    let (from, to) = range.split_once("..").expect("SEEDS=from..to");
    (from.parse().expect("a number"), to.parse().expect("a number"))
}

/// `SEED=n`: one world, told aloud.
#[test]
#[ignore = "asks for a seed: SEED=n cargo test --test sim one_seed -- --ignored --nocapture"]
fn one_seed_from_the_environment() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).expect("SEED=n");
    let report = live(seed, true);
    println!("{report:#?}");
    demand_no_violation(seed, &report);
}

/// `SEEDS=from..to`: many worlds, counted.
#[test]
#[ignore = "asks for seeds: SEEDS=from..to cargo test --test sim many_seeds -- --ignored --nocapture"]
#[allow(clippy::disallowed_methods, reason = "it says how long it took; in the worlds nobody reads a clock")]
fn many_seeds_from_the_environment() {
    let (from, to) = seeds_from_the_environment();
    let (mut steps, mut happenings) = (0, 0);
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut broken = Vec::new();
    let began = std::time::Instant::now();
    for seed in from..to {
        let report = live(seed, false);
        steps += report.steps;
        happenings += report.happenings;
        for (fault, count) in &report.faults {
            *faults.entry(fault).or_default() += count;
        }
        if let Some(violation) = report.violation {
            println!("seed {seed}: {violation}");
            broken.push(seed);
        }
    }
    let took = began.elapsed().as_secs_f64();
    let seeds = (to - from) as f64;
    println!("{seeds} seeds in {took:.2} s: {:.0} seeds/s, {steps} steps, {happenings} happenings", seeds / took);
    for (fault, count) in faults {
        println!("{count:>9} {fault}");
    }
    assert!(broken.is_empty(), "{} broken seeds, the first is {}", broken.len(), broken[0]);
}

/// Every planted bug is found by some oracle.
#[cfg(feature = "planted")]
#[test]
fn every_planted_bug_is_caught() {
    use shards::planted::{Bug, arm};
    const SEEDS_MAX: u64 = 10_000;
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for bug in Bug::ALL {
        arm(Some(*bug));
        let caught = (1..=SEEDS_MAX).find_map(|seed| live(seed, false).violation.map(|violation| (seed, violation)));
        arm(None);
        match caught {
            Some((seed, violation)) => println!("{bug:?}: seed {seed}: {violation}"),
            None => survivors.push(*bug),
        }
    }
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "not caught in {SEEDS_MAX} seeds: {survivors:?}");
}
