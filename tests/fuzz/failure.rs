//! An input for which a property does not hold: found again, made small, and said so that it can be replayed.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::run::{Depth, Target};

/// Checks spent on making an input smaller.
const TRIES_MAX: u32 = 20_000;

thread_local! {
    static LISTENING: Cell<bool> = const { Cell::new(false) };
    static HEARD: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A property that does not hold, and for what.
#[derive(Debug)]
pub struct Failure {
    name: &'static str,
    seed: u64,
    number: u64,
    why: String,
    input: Vec<u8>,
    small: Vec<u8>,
    small_why: String,
}

/// Runs `work`; what panics of this thread say in it is kept rather than printed.
pub fn listening<T>(work: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if LISTENING.get() {
                HEARD.set(panic.to_string());
            } else {
                before(panic);
            }
        }));
    });
    LISTENING.set(true);
    let result = work();
    LISTENING.set(false);
    result
}

/// The failure that execution `number` of the round from `seed` met with `input`; what it said was heard last.
pub fn of(name: &'static str, make: fn() -> Box<dyn Target>, seed: u64, number: u64, input: &[u8]) -> Failure {
    let why = HEARD.take();
    let (small, small_why) = smaller(make, input);
    Failure { name, seed, number, why, input: input.to_vec(), small, small_why }
}

/// Leaves out chunks as long as the input still fails, larger ones first.
fn smaller(make: fn() -> Box<dyn Target>, input: &[u8]) -> (Vec<u8>, String) {
    let fails = |input: &[u8]| listening(|| catch_unwind(AssertUnwindSafe(|| make().check(input, Depth::Whole)))).is_err();
    let mut small = input.to_vec();
    if !fails(&small) {
        return (small, "it does not fail alone: it needs what came before it".to_owned());
    }
    let mut why = HEARD.take();
    let (mut size, mut tries) = (small.len().next_power_of_two(), 0);
    while size > 0 {
        let mut at = 0;
        while at < small.len() && tries < TRIES_MAX {
            let mut shorter = small.clone();
            drop(shorter.drain(at..(at + size).min(small.len())));
            tries += 1;
            if fails(&shorter) {
                small = shorter;
                why = HEARD.take();
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    (small, why)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { name, seed, number, why, input, small, small_why } = self;
        writeln!(f, "{name}: execution {number} from seed {seed}: {why}")?;
        writeln!(f, "  input, {} bytes: b\"{}\"", input.len(), input.escape_ascii())?;
        writeln!(f, "  smaller, {} bytes: b\"{}\"", small.len(), small.escape_ascii())?;
        writeln!(f, "  which says: {small_why}")?;
        let executions = number + 1;
        write!(f, "  FUZZ_TARGET={name} FUZZ_SEED={seed} FUZZ={executions} cargo test --test fuzz long -- --ignored --nocapture")
    }
}
