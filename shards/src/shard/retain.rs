//! How long the journal remembers: which closed segments may go, and what must be durable before they do.
//!
//! A segment goes when it is older than the horizon, or earlier when the journal is over its budget; what it says of steps
//! without an end is carried forward first, and never before `horizon_min`. Before an early one goes, its newest stream timestamp becomes the watermark:
//! an unknown key below it may have been forgotten, so it is not run.

use std::collections::VecDeque;

use super::carry::Carried;
use super::{Held, Shard, State};
use crate::event::{DiskNews, Effects};
use crate::ids::{Lsn, Now};
use crate::limits::CARRY_AGAIN_US;
use crate::limits::FORGET_MAX;
use crate::planted::{Bug, planted};

const LOOK_EVERY_US: u64 = 1_000_000;

/// A closed segment: the frames from..=to and its bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its oldest frame.
    pub from: Lsn,
    /// Its newest frame.
    pub to: Lsn,
    /// Bytes on disk.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Retain {
    closed: VecDeque<Closed>,
    bytes: u64,
    floor: Lsn,
    watermark_ms: u64,
    /// The newest stream timestamp in the segment being written.
    newest_ms: u64,
    next_look_us: u64,
    at_floor: bool,
}

#[derive(Clone, Copy, Debug)]
struct Closed {
    span: Span,
    closed_ms: u64,
    newest_ms: u64,
}

impl Retain {
    pub(super) fn restore(&mut self, spans: &[Span], newest: &[(Lsn, u64)], floor: Lsn, watermark_ms: u64, now: Now) {
        self.floor = floor;
        self.watermark_ms = watermark_ms;
        // The newest of all, whether its segment is closed or goes on being written.
        self.newest_ms = newest.last().map_or(0, |(_, newest_ms)| *newest_ms);
        for span in spans {
            let upto = newest.partition_point(|(lsn, _)| *lsn <= span.to);
            let newest_ms = if upto == 0 { 0 } else { newest[upto - 1].1 };
            self.bytes += span.bytes;
            self.closed.push_back(Closed { span: *span, closed_ms: now.wall_ms, newest_ms });
        }
    }

    /// A message with this stream timestamp went into the segment being written.
    pub(super) fn stamp(&mut self, since_ms: u64) {
        self.newest_ms = self.newest_ms.max(since_ms);
    }

    pub(super) fn watermark_ms(&self) -> u64 {
        self.watermark_ms
    }

    pub(super) fn floor(&self) -> Lsn {
        self.floor
    }

    #[cfg(test)]
    pub(super) fn raise_floor(&mut self, floor: Lsn) {
        self.floor = floor;
    }

    /// The budget is used up and nothing may go yet: new work waits.
    pub(super) fn at_floor(&self) -> bool {
        self.at_floor
    }

    /// (frame, newest stream timestamp from it on until the next), as a fold tells it, but for the frames: a segment's first
    /// stands for all of it. What is being written may be closed on the disk already, unknown to us, at any of its frames.
    pub(super) fn newest(&self) -> Vec<(Lsn, u64)> {
        let closed = self.closed.iter().map(|closed| (closed.span.from, closed.newest_ms));
        let current = self.closed.back().map_or(self.floor, |closed| closed.span.to.next());
        let mut newest: Vec<(Lsn, u64)> = Vec::new();
        for (lsn, newest_ms) in closed.chain([(current, self.newest_ms)]) {
            if newest_ms > newest.last().map_or(0, |(_, before)| *before) {
                newest.push((lsn, newest_ms));
            }
        }
        newest
    }

    pub(super) fn next_look_us(&self) -> Option<u64> {
        (!self.closed.is_empty()).then_some(self.next_look_us)
    }
}

impl Shard {
    pub(super) fn disk(&mut self, now: Now, news: DiskNews, fx: &mut Effects) {
        match news {
            DiskNews::Full => self.disk_room(now, false),
            DiskNews::Room => self.disk_room(now, true),
            DiskNews::Closed { from, to, bytes } => {
                let newest_ms = std::mem::take(&mut self.retain.newest_ms);
                self.retain.bytes += bytes;
                let closed = Closed { span: Span { from, to, bytes }, closed_ms: now.wall_ms, newest_ms };
                self.retain.closed.push_back(closed);
                self.retain.next_look_us = 0;
                self.look_at_segments(now, fx);
                self.seal_soon(fx);
            }
        }
    }

    /// The oldest frame that a step without an end still needs.
    fn oldest_needed(&mut self) -> Lsn {
        while let Some((lsn, slot)) = self.unfinished.front() {
            let job = &self.jobs[*slot as usize];
            if job.state != State::Free && job.accepted == *lsn {
                return *lsn;
            }
            self.unfinished.pop_front();
        }
        self.next_lsn
    }

    pub(super) fn look_at_segments(&mut self, now: Now, fx: &mut Effects) {
        // One old step at the front must not keep all that came after it.
        if self.unfinished.len() > 4096 + 2 * self.live as usize {
            let jobs = &self.jobs;
            self.unfinished.retain(|(lsn, slot)| {
                let job = &jobs[*slot as usize];
                job.state != State::Free && job.accepted == *lsn
            });
        }
        if self.retain.closed.is_empty() || now.mono_us < self.retain.next_look_us {
            return;
        }
        self.retain.next_look_us = now.mono_us + LOOK_EVERY_US;
        let mut needed = if planted(Bug::PruneLive) { self.next_lsn } else { self.oldest_needed() };
        let (horizon_ms, min_ms) = (self.settings.limits.horizon_ms, self.settings.limits.horizon_min_ms);
        let budget = self.settings.limits.journal_bytes_max;
        let mut below = None;
        self.retain.at_floor = false;
        while let Some(oldest) = self.retain.closed.front() {
            let Closed { span, closed_ms, newest_ms } = *oldest;
            let age_ms = now.wall_ms.saturating_sub(closed_ms);
            let over = self.retain.bytes + self.sealing.bytes() > budget;
            let due = age_ms > horizon_ms;
            if !due && !over {
                break;
            }
            if !due && age_ms < min_ms {
                self.retain.at_floor = over;
                break;
            }
            if span.to >= needed {
                match self.carry(now, span.to, fx) {
                    Carried::All => needed = self.oldest_needed(),
                    Carried::Some => {
                        self.retain.next_look_us = now.mono_us + CARRY_AGAIN_US;
                        break;
                    }
                    Carried::Stuck => {
                        self.retain.at_floor = over;
                        break;
                    }
                }
            }
            // Also where it is only old: a sender may have named a time far beyond the horizon.
            if !planted(Bug::NoWatermark) {
                self.retain.watermark_ms = self.retain.watermark_ms.max(newest_ms);
            }
            self.retain.bytes -= span.bytes;
            below = Some(span.to.next());
            self.retain.closed.pop_front();
        }
        if let Some(below) = below {
            // A crash may have left segments below a floor that is durable already.
            let below = below.max(self.retain.floor);
            self.retain.floor = below;
            let lsn = self.log_mark(now, fx);
            fx.log.urgent = true;
            self.held.push_back((lsn, Held::Prune(below)));
        }
    }

    /// Forgets keys whose outcome is gone or that lie in key files, a bounded number at a time.
    pub(super) fn forget_finished(&mut self) {
        let floor = self.retain.floor;
        if floor > Lsn(0) {
            self.known.forget_below(floor, FORGET_MAX);
        }
        self.forget_sealed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_was_closed_unknown_to_a_snapshot_is_as_new_as_what_was_written_by_then() {
        let mut retain = Retain::default();
        retain.stamp(5_000);
        let newest = retain.newest();
        // The disk closed it at its fourth frame, and more were written before the snapshot.
        let span = Span { from: Lsn(1), to: Lsn(4), bytes: 1 };
        let mut restored = Retain::default();
        restored.restore(&[span], &newest, Lsn(0), 0, Now::default());
        assert_eq!(restored.closed[0].newest_ms, 5_000, "else its keys are forgotten and the watermark does not say so");
    }
}
