//! The tender: keeps the reserve, prepares the next segment, keeps zeros written ahead of the commits, shortens and removes old segments.

use std::rc::Rc;
use std::time::Duration;

use glommio::timer::Timer;

use super::commit::FULL_RETRY_MS;
use super::segment::{Segment, fresh_id, sync_folder};
use super::{DiskError, Inner};
use crate::journal::segment::SEGMENT_HEAD_BYTES;

/// Zeros are kept written so far ahead of the commits, in bytes.
const RUNWAY_BYTES: u64 = 4 << 20;
/// Zeros are written in pieces of this size, in bytes.
const CHUNK_BYTES: u64 = 512 << 10;
/// One piece at most in this time, in milliseconds. Commits that use up more in it have no runway: they would pay for every
/// byte twice.
const CHUNK_EVERY_MS: u64 = 5;

impl Inner {
    pub(super) async fn tend_all(&self) -> Result<(), DiskError> {
        let mut seen = (0, 0);
        while !self.ended.get() {
            self.prune_now().await?;
            self.shorten_closed().await?;
            self.look_for_room().await?;
            if self.full.get() {
                self.chores.wait_ms(FULL_RETRY_MS).await;
            } else if self.lengthen_runway(&mut seen).await? {
                Timer::new(Duration::from_millis(CHUNK_EVERY_MS)).await;
            } else {
                self.chores.wait().await;
            }
        }
        Ok(())
    }

    /// Keeps a reserve and, in time, the next segment; tells the machine when there is no room for either.
    async fn look_for_room(&self) -> Result<(), DiskError> {
        if self.tending.replace(true) {
            return Ok(());
        }
        let room = match self.refill().await {
            // Also without a reserve: whatever there is room for is of use to what runs.
            Ok(refilled) => self.prepare().await.map(|prepared| refilled && prepared),
            failed => failed,
        };
        self.tending.set(false);
        self.tell_full(!room? || self.cramped.get());
        self.tended.raise();
        Ok(())
    }

    /// Creates the next segment once the current one is half full, so that what runs has room to finish if there is none;
    /// false if there is none.
    async fn prepare(&self) -> Result<bool, DiskError> {
        let current = self.current();
        let half = current.used.get() * 2 >= current.capacity.get();
        // While the next one is being begun, the old one is still the current.
        if self.prepared.borrow().is_some() || self.rotating.get() || !(half || self.wanted.get()) {
            return Ok(true);
        }
        let bytes = self.settings.segment_bytes;
        if !self.may_fit(bytes) {
            return Ok(false);
        }
        let sequence = self.sequence.get() + 1;
        let id = fresh_id(&self.settings.salt, self.settings.shard, sequence);
        let segment = match Segment::create(&self.folder, sequence, id, bytes).await {
            Err(error) if error.is_no_room() => return Ok(false),
            segment => segment?,
        };
        self.sequence.set(sequence);
        while segment.runway.get() < RUNWAY_BYTES.min(segment.capacity.get()) {
            let from = segment.runway.get();
            segment.zero(from, (from + CHUNK_BYTES).min(segment.capacity.get())).await?;
        }
        *self.prepared.borrow_mut() = Some(Rc::new(segment));
        Ok(true)
    }

    /// Writes one more piece of zeros, unless commits are too fast for it; whether more are wanted.
    async fn lengthen_runway(&self, seen: &mut (u64, u64)) -> Result<bool, DiskError> {
        let segment = self.current();
        let at = segment.writing_to.get();
        let moved = if seen.0 == segment.sequence { at - seen.1 } else { 0 };
        *seen = (segment.sequence, at);
        if !segment.runway_short() {
            return Ok(false);
        }
        if moved > CHUNK_BYTES {
            return Ok(true);
        }
        // Where commits have overtaken the zeros, leave them some way, so that they need not wait for this piece.
        let overtaken = segment.runway.get() < at;
        let from = if overtaken { (at + CHUNK_BYTES).next_multiple_of(4096) } else { segment.runway.get() };
        let to = (from + CHUNK_BYTES).min(segment.capacity.get());
        if from >= to {
            return Ok(false);
        }
        segment.zero(from, to).await?;
        self.tended.raise();
        Ok(true)
    }

    /// Gives back what closed segments did not use.
    async fn shorten_closed(&self) -> Result<(), DiskError> {
        let long: Vec<Rc<Segment>> =
            self.closed.borrow().iter().filter(|segment| segment.files.borrow().is_some()).cloned().collect();
        for segment in long {
            let files = segment.files();
            files.tend.truncate(segment.used.get()).await.map_err(DiskError::ring("shortening", &segment.path))?;
            segment.capacity.set(segment.used.get());
            *segment.files.borrow_mut() = None;
        }
        Ok(())
    }

    /// Removes whole segments below the floor.
    async fn prune_now(&self) -> Result<(), DiskError> {
        let below = self.prune_below.get();
        let mut removed = false;
        loop {
            let oldest = {
                let mut closed = self.closed.borrow_mut();
                match closed.front() {
                    Some(oldest) if oldest.end.get() <= below => closed.pop_front(),
                    _ => None,
                }
            };
            let Some(oldest) = oldest else { break };
            glommio::io::remove(&oldest.path).await.map_err(DiskError::ring("removing", &oldest.path))?;
            removed = true;
        }
        if removed {
            sync_folder(&self.folder).await?;
        }
        Ok(())
    }
}

impl Segment {
    /// Whether a commit leaves something to tend.
    pub(super) fn wants_tending(&self, prepared: bool) -> bool {
        (!prepared && self.used.get() * 2 >= self.capacity.get()) || self.runway_short()
    }

    /// Half the runway is used up.
    fn runway_short(&self) -> bool {
        let wanted = (self.writing_to.get() + RUNWAY_BYTES / 2).min(self.capacity.get());
        self.runway.get() < wanted
    }
}

const _: () = assert!(CHUNK_BYTES < RUNWAY_BYTES / 2);
const _: () = assert!(SEGMENT_HEAD_BYTES < CHUNK_BYTES as usize);
