//! A drain that is asked for from outside: how the one who serves hears of it, and how those who asked hear of its end.
//!
//! It decides nothing. Whoever serves waits for [`Drain::asked`], carries the drain out and tells [`Drain::ended`]; whoever
//! answers the admin socket calls [`Drain::follow`].

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shards::runtime::ports::Gauge;
use tokio::sync::Notify;

/// Those who follow hear something at least this often.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// A worker that has ended waits at most this long until those who follow have been told.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// Shared by the thread that serves and those that answer the admin socket.
#[derive(Debug)]
pub struct Drain {
    gauges: Vec<Arc<Gauge>>,
    asked: Notify,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    followers: u32,
    end: Option<End>,
}

/// How it ended. Crosses threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All that was here is done and told.
    Drained,
    /// The grace after a signal was over first; the rest stays in the journal.
    CutShort,
}

impl Drain {
    /// For a worker of the shards that show these gauges.
    pub fn new(gauges: Vec<Arc<Gauge>>) -> Arc<Drain> {
        Arc::new(Drain { gauges, asked: Notify::new(), state: Mutex::default(), changed: Condvar::new() })
    }

    /// Resolves once somebody has asked. For one waiter.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// The worker has ended but for its last words; returns when those who follow have heard it.
    pub fn ended(&self, end: End) {
        let mut state = self.lock();
        state.end = Some(end);
        self.changed.notify_all();
        let until = Instant::now() + TOLD_WITHIN;
        while state.followers > 0 {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks for the drain and gives every line about it to `each`, the last of which says `done`.
    ///
    /// # Errors
    /// Those of `each`. The drain goes on without its follower.
    pub fn follow(&self, mut each: impl FnMut(Value) -> io::Result<()>) -> io::Result<()> {
        self.lock().followers += 1;
        let _leaves = Follower(self);
        self.asked.notify_one();
        loop {
            let end = self.lock().end;
            if let Some(end) = end {
                return each(json!({"done": true, "drained": end == End::Drained}));
            }
            each(self.progress())?;
            let state = self.lock();
            if state.end.is_none() {
                drop(self.changed.wait_timeout(state, TELL_EVERY).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// What is still here.
    fn progress(&self) -> Value {
        let sum = |of: fn(&Gauge) -> &AtomicU32| self.gauges.iter().map(|gauge| u64::from(of(gauge).load(Relaxed))).sum::<u64>();
        json!({
            "running": sum(|gauge| &gauge.running), "queued": sum(|gauge| &gauge.queued),
            "unpublished": sum(|gauge| &gauge.unpublished),
        })
    }

    /// Nothing that holds the lock can panic half way.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that follows; leaves when dropped.
struct Follower<'a>(&'a Drain);

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.lock().followers -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_hears_how_far_it_is_and_how_it_ended_before_the_worker_goes() {
        let gauge = Arc::new(Gauge::default());
        gauge.running.store(2, Relaxed);
        let drain = Drain::new(vec![gauge]);
        let (lines_to, lines) = flume::unbounded();
        let follows = Arc::clone(&drain);
        let follower = std::thread::spawn(move || follows.follow(|line| lines_to.send(line).map_err(io::Error::other)));
        assert_eq!(lines.recv().unwrap(), json!({"running": 2, "queued": 0, "unpublished": 0}));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(drain.asked());
        drain.ended(End::Drained);
        assert_eq!(drain.lock().followers, 0, "told before the worker goes");
        assert_eq!(lines.try_iter().last(), Some(json!({"done": true, "drained": true})));
        follower.join().unwrap().unwrap();
        let mut late = Vec::new();
        drain
            .follow(|line| {
                late.push(line);
                Ok(())
            })
            .unwrap();
        assert_eq!(late, [json!({"done": true, "drained": true})]);
    }

    #[test]
    fn a_follower_that_breaks_off_holds_nobody_up() {
        let drain = Drain::new(Vec::new());
        assert!(drain.follow(|_| Err(io::ErrorKind::BrokenPipe.into())).is_err());
        let began = Instant::now();
        drain.ended(End::CutShort);
        assert!(began.elapsed() < TOLD_WITHIN);
    }
}
