//! A thread that looks after the shards from outside: it prods one that has work and does not turn.
//!
//! glommio 0.9.0 can park an executor that still has runnable tasks: if the preemption timer fires between arming it and the
//! first task, the turn runs nothing and the executor takes that for "nothing to do". Any wake from another thread ends it.
//! The window is microseconds, but a thread that the system takes off its core in that window falls into it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::ports::{Gauge, Inbound};

/// How often it looks while there is work: the longest a busy shard sleeps over it.
const EVERY: Duration = Duration::from_millis(5);
/// How often it looks at a worker that has been idle for a while: looking costs more than anything else there.
const EVERY_IDLE: Duration = Duration::from_millis(50);
/// Looks without work before a worker counts as idle.
const IDLE_AFTER: u32 = 40;

/// Starts the thread; it ends when all shards have ended.
///
/// # Errors
/// The thread could not be started.
pub fn watch(shards: Vec<(Arc<Gauge>, flume::Sender<Inbound>)>) -> std::io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || look_after(&shards))?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "this thread is no shard")]
fn look_after(shards: &[(Arc<Gauge>, flume::Sender<Inbound>)]) {
    let mut seen = vec![u64::MAX; shards.len()];
    let mut idle = 0;
    while shards.iter().any(|(_, inbox)| !inbox.is_disconnected()) {
        std::thread::sleep(if idle < IDLE_AFTER { EVERY } else { EVERY_IDLE });
        idle += 1;
        for ((gauge, inbox), seen) in shards.iter().zip(&mut seen) {
            let turns = gauge.turns.load(Relaxed);
            let has_work = !gauge.idle.load(Relaxed) || !inbox.is_empty();
            if turns == *seen && has_work {
                gauge.waker.wake();
            }
            if has_work || turns != *seen {
                idle = 0;
            }
            *seen = turns;
        }
    }
}
