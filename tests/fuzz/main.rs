//! Fuzzing on stable Rust: samples of every kind of input bent at random from a seed, and what must hold of each.
//!
//! `cargo test --test fuzz` runs a short fixed budget; `FUZZ=n FUZZ_TARGET=name cargo test --release --test fuzz long --
//! --ignored --nocapture` a long one, `FUZZ_SEED=` the same one again, `FUZZ_RECORD=file` appends what it did as JSON.
//!
//! Why our own loop: on stable `bolero` and `proptest` only generate, they do not bend samples, and cost tens of microseconds
//! an input; `fuzzcheck` and libFuzzer need nightly; `mutatis` bends typed values, where these inputs are bytes. What stands
//! for coverage is what an input came to ([`run::Seen`]): the first to come to something new is kept and bent further.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test with a command line")]

mod config;
mod dice;
mod failure;
mod journal;
mod memory;
mod mutation;
mod record;
mod run;
mod subjects;
mod watch;
mod wire;

use run::{Target, run};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

type Make = fn() -> Box<dyn Target>;

/// Every target by its name, with the executions of a short run.
const TARGETS: &[(&str, Make, u64)] = &[
    ("wire", || Box::new(wire::Messages::beamline()), 60_000),
    ("native", || Box::new(wire::Messages::native()), 60_000),
    ("journal", || Box::new(journal::Journal::default()), 20_000),
    ("subjects", || Box::new(subjects::Patterns::default()), 20_000),
    ("config", || Box::new(config::Texts), 5_000),
];

/// A short run from a fixed seed.
fn short(name: &str) {
    let (name, make, executions) = target(name);
    let report = run(name, make, 2026, executions).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(report.distinct >= 16, "hardly anything was met: {report:?}");
}

fn target(name: &str) -> (&'static str, Make, u64) {
    let names: Vec<&str> = TARGETS.iter().map(|(name, ..)| *name).collect();
    *TARGETS.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("no target {name:?}; there are {names:?}"))
}

#[test]
fn bent_assignments_are_read_the_same_twice_and_answered_by_the_contract() {
    short("wire");
}

#[test]
fn bent_native_steps_are_read_the_same_twice_and_answered_by_the_contract() {
    short("native");
}

#[test]
fn a_damaged_journal_is_reported_or_cut_and_never_read_wrong() {
    short("journal");
}

#[test]
fn subject_arithmetic_agrees_with_trying_every_subject() {
    short("subjects");
}

#[test]
fn bent_configurations_are_refused_with_a_place_or_keep_their_rules() {
    short("config");
}

/// `FUZZ=n`: each target, or those that `FUZZ_TARGET` names with commas, n times.
#[test]
#[ignore = "asks for a budget: FUZZ=1000000 FUZZ_TARGET=wire cargo test --release --test fuzz long -- --ignored --nocapture"]
fn long_run_from_the_environment() {
    let number = |name| {
        std::env::var(name).ok().map(|text: String| text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let executions = number("FUZZ").expect("FUZZ=n");
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = number("FUZZ_SEED").unwrap_or(clock);
    let names = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let chosen = |name: &str| names.is_empty() || names.split(',').any(|chosen| chosen == name);
    names.split(',').filter(|name| !name.is_empty()).for_each(|name| _ = target(name));
    let mut failures = 0;
    for (name, make, _) in TARGETS.iter().filter(|(name, ..)| chosen(name)) {
        println!("{name}: {executions} executions from FUZZ_SEED={seed}");
        match run(name, *make, seed, executions) {
            Ok(report) => record::summary(name, seed, &report),
            Err(failure) => {
                println!("{failure}");
                failures += 1;
            }
        }
    }
    assert_eq!(failures, 0, "properties that do not hold, see above");
}
