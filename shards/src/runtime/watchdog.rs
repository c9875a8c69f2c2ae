//! A thread that looks after the shards from outside: it prods one that has work and does not turn, and says so of one that does
//! not turn all the same; a step's own code that keeps its core for too long ends the process.
//!
//! glommio 0.9.0 can park an executor that still has runnable tasks: if the preemption timer fires between arming it and the
//! first task, the turn runs nothing and the executor takes that for "nothing to do". Any wake from another thread ends it.
//! The window is microseconds, but a thread that the system takes off its core in that window falls into it.
//!
//! A shard that a prod does not move is stalled. That ends the process only where it would go on for ever: a thread that waits
//! for the disk, that gets no processor time, or that somebody has stopped is let be. The process then dies as any that a step
//! takes with it: the page names the step, and the next start gives it a strike.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::ids::Text;
use crate::limits::STALL_SAID_MS;

use super::ports::{Gauge, Inbound};

/// How often it looks while there is work: the longest a busy shard sleeps over it.
const EVERY: Duration = Duration::from_millis(5);
/// How often it looks at a worker that has been idle for a while: looking costs more than anything else there.
const EVERY_IDLE: Duration = Duration::from_millis(50);
/// Looks without work before a worker counts as idle.
const IDLE_AFTER: u32 = 40;
/// One look adds no more than this to a stall: where this thread slept longer, the shards did, too.
const LOOK_MAX: Duration = Duration::from_millis(100);

/// What it looks after.
#[derive(Debug)]
pub struct Watch {
    /// By shard.
    pub shards: Vec<(Arc<Gauge>, flume::Sender<Inbound>)>,
    /// `name@version` of every block, by id.
    pub block_names: Vec<Text>,
    /// A step's own code that keeps its core for so long ends the process, in milliseconds.
    pub stall_ms_max: u64,
}

/// Starts the thread; it ends when all shards have ended.
///
/// # Errors
/// The thread could not be started.
pub fn watch(watch: Watch) -> std::io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || look_after(&watch))?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "this thread is no shard")]
fn look_after(watch: &Watch) {
    let mut pulses = vec![Pulse::default(); watch.shards.len()];
    let mut idle = 0;
    let mut looked = Instant::now();
    while watch.shards.iter().any(|(_, inbox)| !inbox.is_disconnected()) {
        std::thread::sleep(if idle < IDLE_AFTER { EVERY } else { EVERY_IDLE });
        let passed = looked.elapsed().min(LOOK_MAX);
        looked = Instant::now();
        idle += 1;
        for (index, (gauge, inbox)) in watch.shards.iter().enumerate() {
            let has_work = !inbox.is_disconnected() && (!gauge.idle.load(Relaxed) || !inbox.is_empty());
            let pulse = &mut pulses[index];
            let moved = pulse.turns != gauge.turns.load(Relaxed);
            let stalled_before = pulse.stalled;
            if pulse.look(gauge.turns.load(Relaxed), gauge.beats.load(Relaxed), has_work, passed) {
                gauge.prod.wake();
            }
            if has_work || moved {
                idle = 0;
            }
            // Reading a journal back takes as long as it takes.
            if !gauge.ready.load(Relaxed) {
                pulse.stalled = Duration::ZERO;
            }
            gauge.stall_ms.store(pulse.stalled.as_millis() as u64, Relaxed);
            watch.speak_of(index, gauge, pulse, stalled_before);
        }
    }
}

/// What was last seen of one shard.
#[derive(Clone, Debug, Default)]
struct Pulse {
    turns: u64,
    beats: u64,
    prodded: bool,
    stalled: Duration,
    /// Processor time of its thread when the stall was spoken of, in milliseconds.
    cpu_ms: u64,
    said: bool,
}

impl Pulse {
    /// One look, so long after the one before; whether the shard is to be prodded.
    fn look(&mut self, turns: u64, beats: u64, has_work: bool, passed: Duration) -> bool {
        let still = self.prodded && has_work && beats == self.beats;
        self.stalled = if still { self.stalled + passed } else { Duration::ZERO };
        self.prodded = has_work && turns == self.turns;
        (self.turns, self.beats) = (turns, beats);
        self.prodded
    }
}

impl Watch {
    /// Says once that a shard is stalled and once that it is no longer, and ends the process where it has to.
    fn speak_of(&self, shard: usize, gauge: &Gauge, pulse: &mut Pulse, before: Duration) {
        let stalled_ms = pulse.stalled.as_millis() as u64;
        if pulse.said && stalled_ms == 0 {
            pulse.said = false;
            tracing::warn!(shard, stalled_ms = before.as_millis() as u64, "the shard turns again");
        }
        if stalled_ms < STALL_SAID_MS || (pulse.said && stalled_ms < self.stall_ms_max) {
            return;
        }
        let thread = Thread::read(gauge.thread.load(Relaxed));
        let polled = gauge.page.get().and_then(|page| page.polled_now());
        let (key, block) = match polled {
            Some((key, block)) => {
                let name = self.block_names.get(usize::from(block.0)).map_or("", |name| name);
                (key.to_string(), name)
            }
            None => (String::new(), ""),
        };
        if !std::mem::replace(&mut pulse.said, true) {
            pulse.cpu_ms = thread.cpu_ms;
            tracing::warn!(shard, key, block, stalled_ms, why = thread.why(), "the shard does not turn");
        }
        let since_said_ms = stalled_ms - STALL_SAID_MS.min(stalled_ms);
        if stalled_ms < self.stall_ms_max || thread.may_go_on(thread.cpu_ms.saturating_sub(pulse.cpu_ms), since_said_ms) {
            return;
        }
        tracing::error!(
            shard,
            key,
            block,
            stalled_ms,
            "the shard has not turned for too long: the process ends, and the step whose code keeps its core has a strike"
        );
        std::process::abort();
    }
}

/// What the system says of a shard's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thread {
    /// As /proc has it: R runs or would, S sleeps, D waits for a device, T is stopped; `?` where it does not say.
    state: char,
    /// Processor time used so far, in milliseconds.
    cpu_ms: u64,
}

impl Thread {
    fn read(thread: i32) -> Thread {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
        Thread::parse(&stat).unwrap_or(Thread { state: '?', cpu_ms: 0 })
    }

    fn parse(stat: &str) -> Option<Thread> {
        // The name before may hold anything, brackets too.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // A tick is 10 ms for whoever asks, on every Linux.
        Some(Thread { state: fields.first()?.chars().next()?, cpu_ms: ticks * 10 })
    }

    fn why(self) -> &'static str {
        match self.state {
            'D' => "its thread waits for the disk",
            'T' | 't' => "its thread is stopped",
            'S' => "its thread sleeps in a step's own code",
            _ => "its thread is kept busy",
        }
    }

    /// Whether the stall will end by itself, as far as anybody can tell: `cpu_ms` of the last `of_ms` were its own.
    fn may_go_on(self, cpu_ms: u64, of_ms: u64) -> bool {
        match self.state {
            'D' | 'T' | 't' => true,
            // Ready to run, and hardly ever run: others have the processor.
            'R' => of_ms > 0 && cpu_ms < of_ms / 10,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(5);

    #[test]
    fn a_shard_that_a_prod_moves_is_not_stalled() {
        let mut pulse = Pulse::default();
        for look in 1..1_000 {
            // It sleeps over a long step: no turn, but a prod wakes it.
            assert!(pulse.look(0, look, true, LOOK) || look == 1);
            assert_eq!(pulse.stalled, Duration::ZERO);
        }
    }

    #[test]
    fn a_shard_that_nothing_moves_is_stalled_until_it_moves() {
        let mut pulse = Pulse::default();
        pulse.look(7, 9, true, LOOK);
        for _ in 0..101 {
            pulse.look(7, 9, true, LOOK);
        }
        assert_eq!(pulse.stalled, 100 * LOOK);
        pulse.look(8, 10, true, LOOK);
        assert_eq!(pulse.stalled, Duration::ZERO);
        for _ in 0..10 {
            assert!(!pulse.look(8, 10, false, LOOK), "one without work is let be");
            assert_eq!(pulse.stalled, Duration::ZERO);
        }
    }

    #[test]
    fn who_waits_for_the_disk_or_for_the_processor_may_go_on() {
        let stat = |state: &str, user: u64, system: u64| {
            let line = format!("17 (a (b) c) {state} 1 1 1 0 -1 4194368 5 0 0 0 {user} {system} 0 0 20 0 9 0 1 2 3");
            Thread::parse(&line).expect("a line as the kernel writes it")
        };
        assert_eq!(stat("R", 12, 30), Thread { state: 'R', cpu_ms: 420 });
        assert!(stat("D", 0, 0).may_go_on(0, 9_000) && stat("T", 0, 0).may_go_on(0, 9_000));
        assert!(stat("R", 0, 0).may_go_on(100, 9_000), "starved");
        assert!(!stat("R", 0, 0).may_go_on(4_000, 9_000), "on a shared core");
        assert!(!stat("S", 0, 0).may_go_on(0, 9_000), "asleep in a step's own code");
        assert_eq!(Thread::parse("nonsense"), None);
        assert_eq!(Thread::read(0).state, '?');
    }
}
