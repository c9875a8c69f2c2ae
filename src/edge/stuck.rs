//! Gets a consumer going that stands still though it has something to hand out: by asking more often.
//!
//! nats-server 2.9.10, killed, may count deliveries as out whose messages its stream has no more. When one of them is due again
//! it stops handing out until something wakes it, which on a quiet consumer is the next pull request, seconds later; whatever
//! else is due waits behind all of them. A short request for each brings it past them.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use super::limits::{NUDGES_MAX, STILL_LOOK_MS, STILL_SLACK_MS};
use super::nats::Link;
use super::streams::{self, Consumer, Trouble};

/// How a consumer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Deliveries it has made, over all its life.
    pub(crate) deliveries: u64,
    /// Deliveries nobody has settled.
    pub(crate) out: u64,
    /// Messages it has not handed out at all.
    pub(crate) pending: u64,
    /// Requests it could serve.
    pub(crate) waiting: u64,
}

/// Ends with what the server says of a consumer.
type Look = Pin<Box<dyn Future<Output = Result<Standing, Trouble>>>>;

/// How long a consumer has been standing still. Lives on the edge's thread.
pub(crate) struct Stillness {
    /// A delivery that nobody settles comes again after this.
    ack_wait: Duration,
    deliveries: u64,
    since: Instant,
    next_look: Instant,
    pub(crate) look: Option<Look>,
    /// Short requests that are still to go out.
    nudges: u32,
}

impl Stillness {
    pub(crate) fn new(ack_wait: Duration, now: Instant) -> Stillness {
        Stillness { ack_wait, deliveries: 0, since: now, next_look: now, look: None, nudges: 0 }
    }

    /// Something came of it. What is left of a round goes out all the same: more may wait behind.
    pub(crate) fn moved(&mut self, now: Instant) {
        self.since = now;
    }

    /// Asks the server for its side, where nothing has come for so long that what is out should have come again.
    pub(crate) fn look(&mut self, link: &Link, consumer: &Consumer, now: Instant) {
        if self.look.is_some() || self.nudges > 0 || now < self.next_look || now.duration_since(self.since) < self.patience() {
            return;
        }
        self.next_look = now + Duration::from_millis(STILL_LOOK_MS).max(self.ack_wait / 4);
        let (link, consumer) = (link.clone(), consumer.clone());
        self.look = Some(Box::pin(async move { streams::standing(&link, &consumer).await }));
    }

    /// What the server says of it; `held` of its deliveries we have ourselves, and they are out by right.
    pub(crate) fn seen(&mut self, standing: Standing, held: u64, now: Instant) {
        if standing.deliveries != self.deliveries {
            self.deliveries = standing.deliveries;
            return self.moved(now);
        }
        // Without a request it has nobody to hand anything to; without a message, nothing.
        let due = standing.out.saturating_sub(held) + standing.pending;
        if standing.waiting == 0 || due == 0 || now.duration_since(self.since) < self.patience() {
            return;
        }
        self.nudges = u32::try_from(due).unwrap_or(u32::MAX).min(NUDGES_MAX);
        self.since = now;
    }

    /// Whether one more short request should go out now.
    pub(crate) fn nudge(&mut self) -> bool {
        let due = self.nudges > 0;
        self.nudges = self.nudges.saturating_sub(1);
        due
    }

    /// Whether more of them are to follow.
    pub(crate) fn nudging(&self) -> bool {
        self.nudges > 0
    }

    fn patience(&self) -> Duration {
        self.ack_wait + Duration::from_millis(STILL_SLACK_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK_WAIT: Duration = Duration::from_secs(5);
    const STILL: Standing = Standing { deliveries: 9, out: 3, pending: 1, waiting: 2 };

    fn nudges_after(still_for: Duration, standing: Standing, held: u64) -> u32 {
        let start = Instant::now();
        let mut stillness = Stillness::new(ACK_WAIT, start);
        stillness.seen(STILL, 0, start);
        stillness.seen(standing, held, start + still_for);
        std::iter::from_fn(|| stillness.nudge().then_some(())).count() as u32
    }

    #[test]
    fn a_consumer_that_stands_still_is_asked_once_for_each_message_it_should_hand_out() {
        let long = ACK_WAIT + Duration::from_millis(STILL_SLACK_MS);
        assert_eq!(nudges_after(long, STILL, 0), 4);
        assert_eq!(nudges_after(long, Standing { out: 1 << 40, ..STILL }, 0), NUDGES_MAX);
        assert_eq!(nudges_after(ACK_WAIT, STILL, 0), 0, "what is out is not due yet");
        assert_eq!(nudges_after(long, Standing { deliveries: 10, ..STILL }, 0), 0, "it moves");
        assert_eq!(nudges_after(long, Standing { waiting: 0, ..STILL }, 0), 0, "nobody asks");
        assert_eq!(nudges_after(long, Standing { out: 0, pending: 0, ..STILL }, 0), 0, "there is nothing");
        assert_eq!(nudges_after(long, STILL, 2), 2, "what we work at is not late");
        assert_eq!(nudges_after(long, Standing { pending: 0, ..STILL }, 5), 0);
    }

    #[test]
    fn one_round_is_followed_by_another_only_after_the_same_patience() {
        let start = Instant::now();
        let long = ACK_WAIT + Duration::from_millis(STILL_SLACK_MS);
        let mut stillness = Stillness::new(ACK_WAIT, start);
        stillness.seen(STILL, 0, start);
        for round in 1..4 {
            stillness.seen(STILL, 0, start + long * round);
            let mut count = 0;
            while stillness.nudge() {
                count += 1;
            }
            assert_eq!((round, count), (round, 4));
            stillness.seen(STILL, 0, start + long * round + ACK_WAIT);
            assert!(!stillness.nudging());
        }
    }
}
