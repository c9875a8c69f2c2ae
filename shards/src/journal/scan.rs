//! Walking a segment's batches, and telling a write that never finished from damage.

use super::batch::{self, ALIGN_BYTES, Batch};
use super::segment::{Damage, SEGMENT_HEAD_BYTES, SegmentHead};
use crate::ids::Lsn;

/// Walks the batches of one segment. Lives on its core.
#[derive(Debug)]
pub struct Scan<'a> {
    id: u64,
    bytes: &'a [u8],
    at: usize,
    next_number: u64,
    next_lsn: Lsn,
    durable_elsewhere: Lsn,
    tail: Option<Result<Tail, Fault>>,
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where its last sound batch ends, in bytes.
    pub offset: u64,
    /// The frame that would come next.
    pub next_lsn: Lsn,
    /// How many batches it holds.
    pub batches: u64,
    /// Whether something else than zeros follows: a write that never finished, to be cut at `offset`.
    pub torn: bool,
}

/// Damage, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In the segment's file, in bytes.
    pub offset: u64,
    /// The first frame that cannot be trusted.
    pub lsn: Lsn,
    /// What is wrong.
    pub damage: Damage,
}

impl<'a> Scan<'a> {
    /// Starts behind the header of a segment; `bytes` is its whole file. `durable_elsewhere` is what later segments prove to
    /// have been durable: one before the first lsn of the next segment, or 0 for the last.
    pub fn new(head: &SegmentHead, bytes: &'a [u8], durable_elsewhere: Lsn) -> Self {
        Scan {
            id: head.id,
            bytes,
            at: SEGMENT_HEAD_BYTES.min(bytes.len()),
            next_number: 1,
            next_lsn: head.first_lsn,
            durable_elsewhere,
            tail: None,
        }
    }

    /// How the segment ends; call it once [`Iterator::next`] gave `None`.
    pub fn finish(mut self) -> Result<Tail, Fault> {
        while self.next().is_some() {}
        self.tail.unwrap_or_else(|| Ok(self.tail_here(false)))
    }

    fn tail_here(&self, torn: bool) -> Tail {
        Tail { offset: self.at as u64, next_lsn: self.next_lsn, batches: self.next_number - 1, torn }
    }

    fn fault(&self, damage: Damage) -> Fault {
        Fault { offset: self.at as u64, lsn: self.next_lsn, damage }
    }

    /// No sound batch stands at `at`: the end, a torn one, or damage.
    fn end(&self) -> Result<Tail, Fault> {
        let rest = &self.bytes[self.at..];
        let zeros = rest.iter().all(|byte| *byte == 0);
        if self.durable_elsewhere >= self.next_lsn {
            let gap = Damage::Lsn { expected: self.next_lsn.0, found: self.durable_elsewhere.next().0 };
            return Err(self.fault(if zeros { gap } else { Damage::Checksum }));
        }
        if zeros {
            return Ok(self.tail_here(false));
        }
        // What follows proves that this was durable, if a later batch says so. The magic is the segment's own secret, so
        // that this search meets few candidates.
        let mut ahead = ALIGN_BYTES;
        while ahead < rest.len() {
            match batch::read(self.id, &rest[ahead..], 0) {
                Some(later) if later.head.durable_lsn >= self.next_lsn => return Err(self.fault(Damage::Checksum)),
                Some(later) => ahead += later.head.size(),
                None => ahead += ALIGN_BYTES,
            }
        }
        Ok(self.tail_here(true))
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Batch<'a>;

    fn next(&mut self) -> Option<Batch<'a>> {
        if self.tail.is_some() {
            return None;
        }
        let Some(batch) = batch::read(self.id, &self.bytes[self.at..], self.at as u64) else {
            self.tail = Some(self.end());
            return None;
        };
        if batch.head.number != self.next_number {
            let damage = Damage::Gap { expected: self.next_number, found: batch.head.number };
            self.tail = Some(Err(self.fault(damage)));
            return None;
        }
        if batch.head.first_lsn != self.next_lsn {
            let damage = Damage::Lsn { expected: self.next_lsn.0, found: batch.head.first_lsn.0 };
            self.tail = Some(Err(self.fault(damage)));
            return None;
        }
        self.at += batch.head.size();
        self.next_number += 1;
        self.next_lsn = batch.head.end_lsn();
        Some(batch)
    }
}
