//! One shard's journal read from end to end: every checksum checked, every frame decoded and folded, and what came of it.

use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;
use shards::fold::{Fold, Unfinished};
use shards::ids::Lsn;
use shards::journal::segment::{Damage, SegmentHead};
use shards::journal::{FrameView, Kind, Peek, decode};

use super::{Ending, Finding, Folder, Journal, Place, Segment, Stop, Torn, Wrong};

/// A rate is taken over at most so much of the journal's newest time, in seconds.
const RECENT_S: u64 = 600;

/// What a shard's journal holds. Lives on the thread that reads.
#[derive(Debug, Default)]
pub struct Survey {
    /// Which layout of shards and partitions.
    pub generation: u64,
    /// Whose.
    pub shard: u16,
    /// Segments with a header, oldest first.
    pub spans: Vec<Span>,
    /// Files prepared and not yet begun.
    pub prepared: u64,
    /// Bytes of headers and batches.
    pub bytes: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Frames by the number of their kind; 0 stands for kinds that this version may pass over.
    pub frames: [u64; Kind::ALL.len() + 1],
    /// The oldest frame.
    pub first_lsn: Option<Lsn>,
    /// The newest frame.
    pub last_lsn: Option<Lsn>,
    /// The time of the oldest frame that says one, Unix ms.
    pub oldest_ms: Option<u64>,
    /// The newest time that a frame says, Unix ms.
    pub newest_ms: u64,
    /// How it grew of late.
    pub pace: Pace,
    /// Writes that never finished.
    pub torn: Vec<Torn>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Finished keys that are remembered.
    pub keys: u64,
    /// Keys without an end, oldest first: without an outcome, or with one that is not known to be published.
    pub open: Vec<Unfinished>,
}

/// A segment that was read. Lives on the thread that reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where.
    pub path: PathBuf,
    /// Its first frame's.
    pub from: Lsn,
    /// One after its last frame's.
    pub end: Lsn,
    /// Bytes of header and batches.
    pub bytes: u64,
}

/// How a journal grew of late, second by second. Lives on the thread that reads.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Second, bytes, frames.
    seconds: VecDeque<(u64, u64, u64)>,
}

/// Growth.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Of batches.
    pub bytes_per_s: f64,
    /// In them.
    pub frames_per_s: f64,
}

/// Surveys every shard, and says which shards' journals are not there at all.
pub fn all(journal: &Journal) -> Vec<Survey> {
    let mut buffer = Vec::new();
    let newest = journal.newest();
    let mut surveys: Vec<Survey> = journal.folders.iter().map(|folder| Survey::of(folder, newest, &mut buffer)).collect();
    let Some(newest) = newest else { return surveys };
    // A first start that was killed may have left the later shards without a folder: then there is no work in any.
    let worked = surveys.iter().any(|survey| survey.generation == newest.generation && survey.works());
    for shard in (0..newest.shards).filter(|_| worked) {
        let at = surveys.iter().position(|survey| (survey.generation, survey.shard) == (newest.generation, shard));
        let at = at.unwrap_or_else(|| {
            surveys.push(Survey { generation: newest.generation, shard, ..Survey::default() });
            surveys.len() - 1
        });
        if surveys[at].spans.is_empty() && surveys[at].findings.is_empty() {
            let path = journal.dir.join(newest.generation.to_string()).join(shard.to_string());
            let wrong = Wrong::NoSegment { shards: newest.shards };
            surveys[at].findings.push(Finding { path, offset: 0, lsn: Lsn(0), wrong });
        }
    }
    surveys
}

impl Survey {
    /// Reads a shard's segments. `newest` is the header that the others are held against.
    fn of(folder: &Folder, newest: Option<&SegmentHead>, buffer: &mut Vec<u8>) -> Survey {
        let mut survey = Survey {
            generation: folder.generation,
            shard: folder.shard,
            prepared: folder.prepared,
            disk_bytes: folder.disk_bytes,
            torn: folder.torn.clone(),
            findings: folder.findings.clone(),
            ..Survey::default()
        };
        let mut fold = Fold::default();
        let mut next = None;
        for segment in &folder.segments {
            next = survey.segment(segment, next.filter(|_| segment.follows), newest, &mut fold, buffer);
        }
        let restored = fold.finish();
        let begins = survey.first_lsn.filter(|first| *first > restored.floor.max(Lsn(1)) && survey.findings.is_empty());
        if let Some(first) = begins {
            let wrong = Wrong::Beginning { first: first.0, floor: restored.floor.0 };
            survey.findings.push(Finding { path: folder.path.clone(), offset: 0, lsn: first, wrong });
        }
        survey.keys = restored.known.len() as u64;
        survey.open = restored.unfinished;
        survey
    }

    /// Reads one segment, which should begin with `expected` where that is known; the frame that should follow it.
    fn segment(
        &mut self,
        segment: &Segment,
        expected: Option<Lsn>,
        newest: Option<&SegmentHead>,
        fold: &mut Fold,
        buffer: &mut Vec<u8>,
    ) -> Option<Lsn> {
        let head = &segment.head;
        let finding = |wrong| Finding { path: segment.path.clone(), offset: 0, lsn: head.first_lsn, wrong };
        if let Some(what) = newest.and_then(|newest| stranger(head, newest)) {
            self.findings.push(finding(Wrong::Stranger(what)));
            return None;
        }
        if let Some(expected) = expected.filter(|expected| *expected != head.first_lsn) {
            let damage = Damage::Lsn { expected: expected.0, found: head.first_lsn.0 };
            self.findings.push(finding(damage.into()));
        }
        let mut end = head.first_lsn;
        let read = segment.read(buffer, |place, view| {
            let peek = view.peek()?;
            decode(&Bytes::copy_from_slice(view.raw()))?;
            fold.frame(place.lsn, &view)?;
            self.frame(place, view, peek);
            end = place.lsn.next();
            Ok(())
        });
        let (bytes, next) = match read {
            // It went while we looked: old enough to go.
            Ok(None) => return None,
            Ok(Some(Ending { bytes, next_lsn, torn })) => {
                self.torn.extend(torn);
                (bytes, Some(next_lsn))
            }
            Err(Stop::Wrong(finding)) => {
                let bytes = finding.offset;
                self.findings.push(finding);
                (bytes, None)
            }
            Err(Stop::Taker(_)) => (0, None),
        };
        self.bytes += bytes;
        self.spans.push(Span { path: segment.path.clone(), from: head.first_lsn, end, bytes });
        next
    }

    fn frame(&mut self, place: Place, view: FrameView<'_>, peek: Peek<'_>) {
        self.frames[view.kind().map_or(0, |kind| usize::from(kind as u8))] += 1;
        self.first_lsn.get_or_insert(place.lsn);
        self.last_lsn = Some(place.lsn);
        let at_ms = peek.at_ms();
        self.oldest_ms = self.oldest_ms.or(at_ms);
        self.newest_ms = self.newest_ms.max(at_ms.unwrap_or_default());
        let bytes = if place.lsn == place.batch.first_lsn { place.batch.size() as u64 } else { 0 };
        self.pace.note(self.newest_ms, bytes);
    }

    /// Whether there is more in it than the passing of time.
    fn works(&self) -> bool {
        self.frames.iter().sum::<u64>() > self.frames[Kind::Mark as usize]
    }

    /// Steps that were accepted and have no outcome.
    pub fn unfinished(&self) -> usize {
        self.open.iter().filter(|one| one.result.is_none()).count()
    }

    /// Outcomes that are not known to be published.
    pub fn unpublished(&self) -> usize {
        self.open.len() - self.unfinished()
    }

    /// Closed segments that may not go, each with the open keys whose messages are in it, oldest first.
    pub fn pinned(&self) -> impl Iterator<Item = (&Span, &[Unfinished])> {
        let closed = self.spans.len().saturating_sub(1);
        self.spans[..closed].iter().filter_map(|span| {
            let from = self.open.partition_point(|one| one.message < span.from);
            let to = self.open.partition_point(|one| one.message < span.end);
            (from < to).then(|| (span, &self.open[from..to]))
        })
    }
}

/// What makes the two belong to different journals.
fn stranger(head: &SegmentHead, newest: &SegmentHead) -> Option<&'static str> {
    if head.worker_id != newest.worker_id {
        return Some("worker id");
    }
    if head.salt != newest.salt {
        return Some("key salt");
    }
    (head.generation == newest.generation && head.shards != newest.shards).then_some("number of shards")
}

impl Pace {
    /// One more frame, and the bytes of its batch if it is the first of it.
    fn note(&mut self, at_ms: u64, bytes: u64) {
        let second = at_ms / 1000;
        match self.seconds.back_mut() {
            Some((last, so_far, frames)) if *last == second => (*so_far, *frames) = (*so_far + bytes, *frames + 1),
            _ => self.seconds.push_back((second, bytes, 1)),
        }
        while self.seconds.front().is_some_and(|(first, ..)| first.saturating_add(RECENT_S) < second) {
            self.seconds.pop_front();
        }
    }

    /// Over the last ten minutes before `end_ms` (Unix ms), or less where the journal is younger.
    pub fn rate(&self, end_ms: u64) -> Rate {
        let end = end_ms / 1000;
        let recent = self.seconds.iter().filter(|(second, ..)| second.saturating_add(RECENT_S) >= end);
        let (mut first, mut bytes, mut frames) = (end, 0, 0);
        for (second, more, count) in recent {
            (first, bytes, frames) = (first.min(*second), bytes + more, frames + count);
        }
        let span = (end - first).max(1) as f64;
        Rate { bytes_per_s: bytes as f64 / span, frames_per_s: frames as f64 / span }
    }
}
