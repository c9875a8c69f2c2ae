//! How a shard spawns, sleeps and reads the clock: each of these has a trap in glommio, shut here once. (The disk arms raw
//! timers of its own, inside its own task.)
//!
//! - A `Task` that is cancelled or dropped leaks, so tasks are detached and end by themselves ([`spawn`], [`Stop`]).
//! - A panic in a task kills the executor, so every future is wrapped; what is not a block's own code ends the process, and
//!   the journal recovers.
//! - Timers are raced inside the task, never cancelled from outside ([`sleep`]).

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::CatchUnwind;

use crate::ids::Now;

/// Where a process's monotonic time starts. Shared, never changes.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[expect(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn start() -> Self {
        Clock { base: Instant::now() }
    }

    /// The present moment.
    #[expect(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A first microsecond, so that zero stays free to mean "never".
        Now { mono_us: self.base.elapsed().as_micros() as u64 + 1, wall_ms: wall.as_millis() as u64 }
    }
}

/// Runs a future of the runtime's own to its end. A panic in it ends the process: a shard is never continued in an unknown
/// state.
#[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
pub fn spawn(name: &'static str, future: impl Future<Output = ()> + 'static) {
    let guarded = async move {
        if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
            die(name, panic.as_ref());
        }
    };
    glommio::spawn_local(guarded).detach();
}

/// Ends the process because the runtime's own code panicked.
fn die(name: &str, panic: &(dyn Any + Send)) -> ! {
    tracing::error!(task = name, panic = panic_text(panic), "a runtime task panicked; the process ends, the journal recovers");
    std::process::abort()
}

/// A future whose panics are values.
pub fn caught<F: Future>(future: F) -> CatchUnwind<AssertUnwindSafe<F>> {
    AssertUnwindSafe(future).catch_unwind()
}

/// What a panic said.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

/// Waits. Dropping the future is fine: the timer lives inside the task.
pub async fn sleep(duration: Duration) {
    glommio::timer::Timer::new(duration).await;
}

/// Lets the other tasks of this shard run.
pub async fn yield_now() {
    glommio::executor().yield_task_queue_now().await;
}

/// Lets the other tasks of this shard run, and then looks at the ring before this task goes on: what was asked of the kernel is
/// handed over, what has come back is delivered. [`yield_now`] does that only where the preemption timer has fired.
pub async fn look_at_ring() {
    // Timers are looked at where the ring is; until then this task is not runnable.
    glommio::timer::Timer::new(Duration::ZERO).await;
}

/// Yields only if this task has used up its share. Costs nothing otherwise; belongs in every long loop.
pub async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// Asks a task on the same core to end. Lives on its core.
#[derive(Clone, Debug, Default)]
pub struct Stop(Rc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    asked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Stop {
    /// Asks; the task ends at its next await.
    pub fn ask(&self) {
        self.0.asked.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether it is the same as this one.
    pub fn is(&self, other: &Stop) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Runs a future until it ends or somebody asks to stop; `None` then, and the future is dropped here, in its own task.
    pub fn race<F: Future>(&self, future: F) -> Race<F> {
        Race { stop: self.clone(), future: Some(Box::pin(future)) }
    }
}

/// See [`Stop::race`].
pub struct Race<F: Future> {
    stop: Stop,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Race<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.stop.0.asked.get() {
            self.future = None;
            return Poll::Ready(None);
        }
        let Some(future) = self.future.as_mut() else { return Poll::Ready(None) };
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => {
                // What it holds is dropped here and not by whoever holds this.
                self.future = None;
                Poll::Ready(Some(value))
            }
            Poll::Pending => {
                match &mut *self.stop.0.waker.borrow_mut() {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}
