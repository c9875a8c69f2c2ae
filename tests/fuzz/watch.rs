//! A watch over a run: an input that never comes to an end cannot be caught, only told of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A batch takes milliseconds; one that takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Says which input hangs and ends the process. One thread a run.
pub struct Watch(Arc<Progress>);

#[derive(Default)]
struct Progress {
    seed: AtomicU64,
    number: AtomicU64,
    over: AtomicBool,
}

impl Watch {
    pub fn start(name: &'static str) -> Self {
        let progress = Arc::new(Progress::default());
        let seen = progress.clone();
        std::thread::spawn(move || {
            let state = || (seen.seed.load(Ordering::Relaxed), seen.number.load(Ordering::Relaxed));
            let (mut last, mut still) = (state(), Duration::ZERO);
            while !seen.over.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK_EVERY);
                still = if state() == last { still + LOOK_EVERY } else { Duration::ZERO };
                last = state();
                if still >= PATIENCE {
                    let (seed, number) = last;
                    eprintln!("{name}: hangs in the batch that begins with execution {number} from FUZZ_SEED={seed}");
                    std::process::abort();
                }
            }
        });
        Watch(progress)
    }

    pub fn round(&self, seed: u64) {
        self.0.seed.store(seed, Ordering::Relaxed);
    }

    pub fn reached(&self, number: u64) {
        self.0.number.store(number, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}
