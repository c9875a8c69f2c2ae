//! The loop: draw a sample, bend it, check it, keep it if it came to something new; and what is said of a run.
//!
//! A run is a row of rounds. A round follows from its seed alone, so what a round finds is found again from that seed in a
//! second or two. The checks panic where something does not hold; a batch of executions shares one `catch_unwind`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::dice::Dice;
use crate::failure::{self, Failure};
use crate::mutation::{Grammar, bend};
use crate::watch::Watch;

/// Executions of one round.
pub const ROUND: u64 = 1_000_000;
/// Executions that share one `catch_unwind`.
const BATCH: u64 = 1_000;
/// Bent inputs that a round keeps to bend further.
const KEPT_MAX: usize = 4_096;
/// A thorough check every so many executions, where the quick one finds nothing rare.
const THOROUGH_EVERY: u64 = 8;

/// How much of an input is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What costs little.
    Quick,
    /// One of the costly properties too, by the number.
    Thorough(u64),
    /// Everything.
    Whole,
}

/// What an input came to: how far the check got, told apart as finely as is cheap. It stands for coverage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Its kind, for people.
    pub what: &'static str,
    /// Tells more within the kind.
    pub detail: u64,
}

/// Something to be fuzzed, with what must hold of it.
pub trait Target {
    /// What its inputs look like.
    fn grammar(&self) -> Grammar;

    /// Good inputs to bend.
    fn samples(&self) -> Vec<Vec<u8>>;

    /// Checks one input; panics where a property does not hold.
    fn check(&mut self, input: &[u8], depth: Depth) -> Seen;
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Report {
    pub executions: u64,
    pub seconds: f64,
    pub outcomes: BTreeMap<&'static str, u64>,
    pub distinct: usize,
}

/// Runs `executions` inputs from `seed` on.
#[expect(clippy::result_large_err, reason = "the error ends the run, and is made once")]
pub fn run(name: &'static str, make: fn() -> Box<dyn Target>, seed: u64, executions: u64) -> Result<Report, Failure> {
    let watch = Watch::start(name);
    let began = Instant::now();
    let mut report = Report::default();
    let mut distinct = HashSet::new();
    let mut seed_of_round = seed;
    while report.executions < executions {
        watch.round(seed_of_round);
        let most = ROUND.min(executions - report.executions);
        let mut round = Round::new(make(), seed_of_round);
        while round.number < most {
            let until = most.min(round.number + BATCH);
            let outcome = failure::listening(|| catch_unwind(AssertUnwindSafe(|| round.batch(until, &watch))));
            if outcome.is_err() {
                return Err(failure::of(name, make, seed_of_round, round.number, &round.input));
            }
        }
        report.executions += most;
        for (seen, count) in round.seen {
            *report.outcomes.entry(seen.what).or_default() += count;
            distinct.insert(seen);
        }
        seed_of_round = Dice::new(seed_of_round).next();
    }
    report.distinct = distinct.len();
    report.seconds = began.elapsed().as_secs_f64();
    Ok(report)
}

/// One round's state, which outlives a panic of the check.
struct Round {
    target: Box<dyn Target>,
    grammar: Grammar,
    dice: Dice,
    samples: Vec<Vec<u8>>,
    /// Bent inputs that were the first to come to what they came to.
    kept: Vec<Vec<u8>>,
    seen: HashMap<Seen, u64>,
    input: Vec<u8>,
    /// The execution that is next or on its way, from 0.
    number: u64,
}

impl Round {
    fn new(target: Box<dyn Target>, seed: u64) -> Self {
        let (grammar, samples) = (target.grammar(), target.samples());
        let (dice, seen) = (Dice::new(seed), HashMap::new());
        Round { target, grammar, dice, samples, kept: Vec::new(), seen, input: Vec::new(), number: 0 }
    }

    fn batch(&mut self, until: u64, watch: &Watch) {
        watch.reached(self.number);
        while self.number < until {
            self.draw();
            let turn = self.number / THOROUGH_EVERY;
            let depth = if self.number.is_multiple_of(THOROUGH_EVERY) { Depth::Thorough(turn) } else { Depth::Quick };
            let seen = self.target.check(&self.input, depth);
            let count = self.seen.entry(seen).or_default();
            *count += 1;
            if *count == 1 {
                self.target.check(&self.input, Depth::Whole);
                self.keep();
            }
            self.number += 1;
        }
    }

    /// Makes the next input: the samples as they are, then bent ones.
    fn draw(&mut self) {
        let Round { dice, samples, kept, input, .. } = self;
        input.clear();
        if let Some(sample) = samples.get(self.number as usize) {
            return input.extend_from_slice(sample);
        }
        let from_kept = !kept.is_empty() && dice.once_in(2);
        let base = if from_kept { &kept[dice.below(kept.len())] } else { &samples[dice.below(samples.len())] };
        input.extend_from_slice(base);
        let other = &samples[dice.below(samples.len())];
        bend(dice, &self.grammar, input, other);
    }

    fn keep(&mut self) {
        if self.kept.len() < KEPT_MAX {
            self.kept.push(self.input.clone());
        } else {
            let at = self.dice.below(KEPT_MAX);
            self.kept[at].clone_from(&self.input);
        }
    }
}
