//! The committer: takes what has been appended, one batch at a time, and makes it durable.

use std::rc::Rc;

use super::segment::Segment;
use super::{Counts, DiskError, DiskSettings, Inner, LAZY_MS, MARK_AFTER_MS, News, Pending, next};
use crate::event::DiskNews;
use crate::ids::Lsn;
use crate::journal::batch::{ALIGN_BYTES, seal};
use crate::journal::segment::SEGMENT_HEAD_BYTES;
use crate::limits::BATCH_BYTES_MAX;

/// How long the committer and the tender wait before asking a full disk again, in milliseconds.
pub(super) const FULL_RETRY_MS: u64 = 250;

impl Inner {
    pub(super) async fn commit_all(&self) -> Result<(), DiskError> {
        while let Some(pending) = self.next_batch().await {
            self.commit(pending).await?;
        }
        Ok(())
    }

    /// The next batch when it is due; `None` when there will be none.
    async fn next_batch(&self) -> Option<Pending> {
        loop {
            let (waiting, urgent) = {
                let queue = self.queue.borrow();
                (!queue.is_empty(), queue.len() > 1 || queue.front().is_some_and(|pending| pending.urgent))
            };
            if self.ended.get() {
                return None;
            }
            if urgent || self.closing.get() {
                return self.queue.borrow_mut().pop_front();
            }
            if waiting {
                if !self.work.wait_ms(LAZY_MS).await {
                    return self.queue.borrow_mut().pop_front();
                }
            } else if self.unmarked.get() {
                if !self.work.wait_ms(MARK_AFTER_MS).await {
                    self.unmarked.set(false);
                    self.tell(News::MarkDue);
                }
            } else {
                self.work.wait().await;
            }
        }
    }

    async fn commit(&self, pending: Pending) -> Result<(), DiskError> {
        let Pending { mut buffer, frames, mark, .. } = pending;
        self.usual_bytes.set((buffer.len() + ALIGN_BYTES).clamp(4096, BATCH_BYTES_MAX));
        let size = buffer.len().next_multiple_of(ALIGN_BYTES) as u64;
        let mut segment = self.current();
        if segment.used.get() + size > segment.capacity.get() {
            segment = self.rotate(size).await?;
        }
        let (start, end) = (segment.used.get(), segment.used.get() + size);
        segment.writing_to.set(end);
        while segment.zeroing.get().is_some_and(|(from, to)| from < end && start < to) {
            self.tended.wait().await;
        }
        let durable = self.durable.get();
        seal(segment.id, &mut buffer, frames, segment.batches.get() + 1, durable.next(), durable);
        #[cfg(feature = "failpoints")]
        self.torn_result(&segment, &buffer, start).await?;
        segment.write(buffer, start).await?;

        let counts = self.counts.get();
        self.counts.set(Counts {
            fsyncs: counts.fsyncs + 1,
            bytes: counts.bytes + size,
            frames: counts.frames + u64::from(frames),
        });
        let through = Lsn(durable.0 + u64::from(frames));
        segment.note(durable.next(), start);
        segment.batches.set(segment.batches.get() + 1);
        segment.end.set(through.next());
        segment.used.set(end);
        segment.let_go(end);
        self.durable.set(through);
        self.unmarked.set(!mark);
        self.tell(News::Durable { through });
        if !self.full.get() && segment.wants_tending(self.prepared.borrow().is_some()) {
            self.chores.raise();
        }
        Ok(())
    }

    /// Goes on in the prepared segment, whose header is durable before anything else is in it.
    async fn rotate(&self, size: u64) -> Result<Rc<Segment>, DiskError> {
        let next = loop {
            if let Some(next) = self.prepared.borrow_mut().take() {
                break next;
            }
            if self.full.get()
                && let Some(reserve) = self.take_reserve().await?
            {
                break Rc::new(reserve);
            }
            if self.full.get() && self.closing.get() {
                return Err(DiskError::NoRoom { path: self.folder.clone(), bytes: self.settings.segment_bytes });
            }
            self.wanted.set(true);
            self.chores.raise();
            self.tended.wait_ms(FULL_RETRY_MS).await;
        };
        self.wanted.set(false);
        let bytes = SEGMENT_HEAD_BYTES as u64 + size;
        while next.capacity.get() < bytes {
            match next.reserve(bytes).await {
                Ok(()) => self.cramped.set(false),
                Err(error) if error.is_no_room() && !self.closing.get() => {
                    self.cramped.set(true);
                    self.tell_full(true);
                    self.work.wait_ms(FULL_RETRY_MS).await;
                }
                Err(error) => return Err(error),
            }
        }
        self.rotating.set(true);
        next.begin(&self.settings, self.durable.get().next(), self.boot).await?;
        let old = self.current.replace(next.clone());
        self.rotating.set(false);
        if old.batches.get() > 0 {
            let to = Lsn(old.end.get().0 - 1);
            self.tell(News::Disk(DiskNews::Closed { from: old.from.get(), to, bytes: old.used.get() }));
        }
        self.closed.borrow_mut().push_back(old);
        self.chores.raise();
        Ok(next)
    }

    /// Tells the machine once when room goes and once when it comes back.
    pub(super) fn tell_full(&self, full: bool) {
        if self.full.replace(full) != full {
            self.tell(News::Disk(if full { DiskNews::Full } else { DiskNews::Room }));
        }
    }

    /// C5: the process dies with half a batch on disk that holds a result.
    #[cfg(feature = "failpoints")]
    async fn torn_result(&self, segment: &Segment, batch: &[u8], at: u64) -> Result<(), DiskError> {
        use crate::journal::Kind;
        use crate::journal::batch::BATCH_HEAD_BYTES;
        use crate::journal::view::Frames;

        let torn = (|| {
            let results =
                Frames::new(&batch[BATCH_HEAD_BYTES..]).flatten().filter(|frame| frame[4] == Kind::Result as u8).count();
            fail::fail_point!("C5", results > 0, |_| true);
            false
        })();
        if torn {
            segment.write(batch[..batch.len() / 2].to_vec(), at).await?;
            std::process::abort();
        }
        Ok(())
    }
}

impl Segment {
    /// Makes its header durable: from here on it is part of the journal.
    pub(super) async fn begin(&self, settings: &DiskSettings, first_lsn: Lsn, boot: u32) -> Result<(), DiskError> {
        let head = settings.head(self.id, self.sequence, first_lsn, boot);
        self.write(next::encode(&head), 0).await?;
        self.from.set(first_lsn);
        self.end.set(first_lsn);
        self.used.set(SEGMENT_HEAD_BYTES as u64);
        self.writing_to.set(SEGMENT_HEAD_BYTES as u64);
        Ok(())
    }
}
