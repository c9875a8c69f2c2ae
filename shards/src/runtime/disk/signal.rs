//! A flag that one local task may wait for.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Raised any number of times, seen once. One waiter. Lives on its core.
#[derive(Default)]
pub(super) struct Signal {
    raised: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    pub(super) fn raise(&self) {
        self.raised.set(true);
        if let Some(waiter) = self.waiter.borrow_mut().take() {
            waiter.wake();
        }
    }

    /// Returns at once if it was raised since the last wait. Dropping the future loses nothing.
    pub(super) async fn wait(&self) {
        poll_fn(|cx| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits at most so long; whether it was raised.
    pub(super) async fn wait_ms(&self, ms: u64) -> bool {
        let timer = glommio::timer::Timer::new(std::time::Duration::from_millis(ms));
        let raised = std::pin::pin!(self.wait());
        matches!(futures_util::future::select(raised, timer).await, futures_util::future::Either::Left(_))
    }
}
