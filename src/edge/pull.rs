//! The arithmetic of pulling: how much has been asked of a consumer, how much more may be. Pure.
//!
//! The server serves waiting pull requests in turn, so a message cannot be told to belong to one of them: only the sum is
//! kept. A request that ends says how much of it was left, which brings the sum back to the truth; one that ends in silence
//! is caught by [`Credit::stalled`].
//!
//! After a break the next request asks for one message, and for one more with each that comes. A message whose headers break
//! the connection takes with it whatever was on its way behind it; the server delivers those again together, in the same
//! order, so asking for many at once would break for ever, and nothing behind that message would get through.

use std::time::{Duration, Instant};

use super::limits::{OUTSTANDING_MAX, PULL_BATCH_MAX, PULL_STALLED_MS};

/// What one consumer owes us. Lives on the edge's thread.
#[derive(Debug)]
pub(crate) struct Credit {
    /// Deliveries asked for and not yet here.
    outstanding: u32,
    /// As much may be outstanding at once.
    window: u32,
    /// Requests that have not ended, as far as we know: number and batch. Satisfied ones linger until they would have ended.
    live: Vec<(u64, u32, Instant)>,
    next: u64,
    /// The last sign of life while something was outstanding.
    heard: Instant,
    /// What may be on its way, in bytes.
    bytes_max: u64,
    /// How large messages have been of late, in bytes: the largest, forgotten little by little.
    size: u64,
}

impl Credit {
    /// `careful`: after a break.
    pub(crate) fn new(now: Instant, careful: bool, bytes_max: u64) -> Credit {
        let window = if careful { 1 } else { OUTSTANDING_MAX };
        Credit { outstanding: 0, window, live: Vec::new(), next: 0, heard: now, bytes_max, size: 0 }
    }

    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// The number the next request goes by.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// A request for `batch` went out.
    pub(crate) fn asked(&mut self, batch: u32, now: Instant) {
        if self.outstanding == 0 {
            self.heard = now;
        }
        self.outstanding += batch;
        self.live.push((self.next, batch, now));
        self.next += 1;
    }

    /// A message of so many bytes came.
    pub(crate) fn came(&mut self, bytes: usize, now: Instant) {
        self.heard = now;
        self.size = (self.size - self.size / 64).max(bytes as u64);
        self.outstanding = self.outstanding.saturating_sub(1);
        self.window = (self.window + 1).min(OUTSTANDING_MAX);
        if self.outstanding == 0 {
            self.live.clear();
        }
    }

    /// Request `number` ended with `left` of its batch unserved (`None`: it did not say).
    pub(crate) fn ended(&mut self, number: u64, left: Option<u32>, now: Instant) {
        self.heard = now;
        let Some(index) = self.live.iter().position(|(live, ..)| *live == number) else { return };
        let (_, batch, _) = self.live.swap_remove(index);
        self.outstanding = self.outstanding.saturating_sub(left.unwrap_or(batch).min(batch));
        if self.live.is_empty() {
            self.outstanding = 0;
        }
    }

    /// Whether something is outstanding and nothing at all has come for longer than any request lives.
    pub(crate) fn stalled(&mut self, now: Instant) -> bool {
        let lifetime = Duration::from_millis(PULL_STALLED_MS);
        self.live.retain(|(_, _, since)| now.duration_since(*since) < lifetime);
        if self.outstanding > 0 && self.live.is_empty() {
            // Whatever was asked has ended, by a status that never came or by messages that were lost on the way.
            self.outstanding = 0;
            return now.duration_since(self.heard) >= lifetime;
        }
        false
    }

    /// Nothing is outstanding any more: the consumer is gone.
    pub(crate) fn forget(&mut self) {
        self.outstanding = 0;
        self.live.clear();
    }

    /// Nothing is outstanding any more: the connection is gone, and a message may have broken it.
    pub(crate) fn broken(&mut self) {
        self.forget();
        self.window = 1;
    }

    /// How much to ask for where the shards have `free` places and would hold `free_bytes`; 0: not worth a request.
    pub(crate) fn top_up(&self, free: u32, free_bytes: u64) -> u32 {
        // One more than fits would only be handed back.
        if free_bytes < self.size.clamp(1, self.bytes_max) {
            return 0;
        }
        let fit = (self.bytes_max.min(free_bytes) / self.size.max(1)).max(1);
        let goal = free.min(self.window).min(u32::try_from(fit).unwrap_or(u32::MAX));
        if self.outstanding.saturating_mul(2) >= goal {
            return 0;
        }
        (goal - self.outstanding).min(PULL_BATCH_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top_up(free: u32, outstanding: u32) -> u32 {
        let mut credit = Credit::new(Instant::now(), false, u64::MAX);
        credit.asked(outstanding, Instant::now());
        credit.top_up(free, u64::MAX)
    }

    #[test]
    fn nothing_is_asked_for_without_a_place_to_put_it() {
        assert_eq!(top_up(0, 0), 0);
        assert_eq!(top_up(1, 0), 1);
        assert_eq!(top_up(10, 10), 0);
        assert_eq!(top_up(10, 4_000), 0);
    }

    #[test]
    fn requests_are_topped_up_below_half_and_bounded() {
        assert_eq!(top_up(100, 50), 0);
        assert_eq!(top_up(100, 49), 51);
        assert_eq!(top_up(1_000_000, 0), PULL_BATCH_MAX);
        assert_eq!(top_up(1_000_000, OUTSTANDING_MAX / 2), 0);
    }

    #[test]
    fn after_a_break_messages_are_asked_for_one_by_one_at_first() {
        let now = Instant::now();
        let mut credit = Credit::new(now, false, u64::MAX);
        credit.asked(500, now);
        credit.broken();
        for already in 0..3 {
            let batch = credit.top_up(1_000, u64::MAX);
            assert_eq!(batch, already + 1);
            credit.asked(batch, now);
            credit.came(100, now);
            credit.forget();
        }
    }

    #[test]
    fn messages_and_ends_give_the_credit_back() {
        let now = Instant::now();
        let mut credit = Credit::new(now, false, u64::MAX);
        credit.asked(10, now);
        credit.asked(5, now);
        credit.came(100, now);
        assert_eq!(credit.outstanding(), 14);
        credit.ended(0, Some(9), now);
        assert_eq!(credit.outstanding(), 5);
        credit.ended(0, Some(9), now);
        assert_eq!(credit.outstanding(), 5, "a second end of the same request means nothing");
        credit.ended(1, None, now);
        assert_eq!(credit.outstanding(), 0);
    }

    #[test]
    fn the_end_of_the_last_request_clears_what_was_miscounted() {
        let now = Instant::now();
        let mut credit = Credit::new(now, false, u64::MAX);
        credit.asked(10, now);
        credit.ended(0, Some(3), now);
        assert_eq!(credit.outstanding(), 0);
    }

    #[test]
    fn large_messages_are_asked_for_a_few_at_a_time() {
        let now = Instant::now();
        let mut credit = Credit::new(now, false, 1 << 20);
        assert_eq!(credit.top_up(1_000, u64::MAX), 1_000, "nothing is known of their size");
        credit.asked(1, now);
        credit.came(300_000, now);
        assert_eq!(credit.top_up(1_000, u64::MAX), 3);
        credit.asked(1, now);
        credit.came(8 << 20, now);
        assert_eq!(credit.top_up(1_000, u64::MAX), 1, "one at least");
        assert_eq!(credit.top_up(1_000, (1 << 20) - 1), 0, "and none that the shards would not hold");
        assert_eq!(credit.top_up(1_000, 1 << 20), 1, "but one larger than that is asked for, too");
        for _ in 0..1_000 {
            credit.asked(1, now);
            credit.came(100, now);
        }
        assert_eq!(credit.top_up(1_000, u64::MAX), 1_000, "what was large once is forgotten");
    }

    #[test]
    fn silence_past_the_end_is_a_stall() {
        let start = Instant::now();
        let mut credit = Credit::new(start, false, u64::MAX);
        credit.asked(10, start);
        assert!(!credit.stalled(start + Duration::from_millis(PULL_STALLED_MS - 1)));
        assert!(credit.stalled(start + Duration::from_millis(PULL_STALLED_MS)));
        assert_eq!(credit.outstanding(), 0);
        assert!(!credit.stalled(start + Duration::from_millis(2 * PULL_STALLED_MS)), "an idle consumer owes nothing");
    }

    #[test]
    fn messages_lost_on_the_way_are_written_off_without_a_stall() {
        let start = Instant::now();
        let mut credit = Credit::new(start, false, u64::MAX);
        credit.asked(10, start);
        let later = start + Duration::from_millis(PULL_STALLED_MS);
        credit.came(100, later - Duration::from_millis(1));
        assert!(!credit.stalled(later));
        assert_eq!(credit.outstanding(), 0);
    }
}
