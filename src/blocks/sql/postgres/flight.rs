//! What is sent at once, and how long its answer is waited for where others are before it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use shards::runtime::rt;

use super::super::pool::Lease;

/// How long a read waits for those before it in its session.
const PATIENCE: Duration = Duration::from_millis(100);
/// And then, where this core itself may have been busy meanwhile and the answer lies there.
const GRACE: Duration = Duration::from_millis(20);

/// Polls `work` to its end, and `next` once behind its first poll, so that what both send goes in one flight.
pub(super) async fn ahead_of<W: Future, N: Future>(work: W, mut next: Pin<&mut N>) -> W::Output {
    let mut work = pin!(work);
    let mut sent = false;
    poll_fn(|cx| {
        let done = work.as_mut().poll(cx);
        if !std::mem::replace(&mut sent, true) {
            // It waits for what is before it: it is not done at its first poll, unless the session is over, and then it says so again.
            let _ = next.as_mut().poll(cx).is_ready();
        }
        match done {
            Poll::Ready(value) => Poll::Ready(value),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Polls `work` to its end; none where others are before it in its session for too long.
pub(super) async fn behind_others<W: Future>(lease: &Lease, work: W) -> Option<W::Output> {
    if !lease.joined {
        return Some(work.await);
    }
    let patience = async {
        rt::sleep(PATIENCE).await;
        rt::sleep(GRACE).await;
    };
    let (mut work, mut patience) = (pin!(work), pin!(patience));
    let mut waiting = true;
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        if waiting && patience.as_mut().poll(cx).is_ready() {
            waiting = false;
            if !lease.has_begun() {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    })
    .await
}
