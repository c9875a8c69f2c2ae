//! One shard of the old generation: [`Checked`] from end to end as a normal boot does it, then a [`Source`] of its batches.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use bytes::Bytes;

use super::super::open::{Found, find, numbered, read_whole};
use super::super::{DiskError, DiskSettings};
use crate::dedup::Place;
use crate::fold::Fold;
use crate::ids::{AskerId, Key, Lsn, Partition};
use crate::journal::batch::{self, BATCH_HEAD_BYTES, BatchHead};
use crate::journal::codec::CodecError;
use crate::journal::scan::Scan;
use crate::journal::segment::{Damage, SEGMENT_HEAD_BYTES, SegmentHead};
use crate::journal::view::Frames;
use crate::journal::{Fact, FrameView, Message, Peek, decode};
use crate::runtime::page::Polled;

/// Read ahead at once, in bytes.
const AHEAD_BYTES: usize = 1 << 20;

/// A shard whose journal is sound, and what it says as a whole.
pub(super) struct Checked {
    segments: Vec<Sound>,
    /// Frames below it are forgotten.
    floor: Lsn,
    pub(super) next_lsn: Lsn,
    /// Its newest start; 0 where there is no segment.
    pub(super) boot: u32,
    pub(super) wall_ms: u64,
    pub(super) watermark_ms: u64,
    pub(super) owner_epoch: u32,
    /// What is copied of it at most.
    pub(super) bytes: u64,
    /// The keys in which the process died last and which have no outcome, with their strikes by now.
    pub(super) died: Vec<(Polled, u32)>,
}

/// A segment up to its last sound batch.
struct Sound {
    path: PathBuf,
    head: SegmentHead,
    end_lsn: Lsn,
    end: u64,
}

impl Checked {
    /// Reads all of it; nothing is changed.
    pub(super) fn read(settings: &DiskSettings) -> Result<Checked, DiskError> {
        let folder = settings.folder();
        let Found { heads, .. } = find(numbered(&folder, ".seg")?, settings)?;
        let boot = heads.iter().map(|(_, head)| head.boot).max().unwrap_or(0);
        let mut next_lsn = heads.first().map_or(Lsn(1), |(_, head)| head.first_lsn);
        let firsts: Vec<Lsn> = heads.iter().skip(1).map(|(_, head)| head.first_lsn).collect();
        let (mut fold, mut buffer, mut segments) = (Fold::default(), Vec::new(), Vec::new());
        for (at, (path, head)) in heads.into_iter().enumerate() {
            let durable_elsewhere = firsts.get(at).map_or(Lsn(0), |first| Lsn(first.0 - 1));
            if head.first_lsn != next_lsn {
                let damage = Damage::Lsn { expected: next_lsn.0, found: head.first_lsn.0 };
                return Err(DiskError::Damaged { path, offset: 0, lsn: next_lsn, damage });
            }
            read_whole(&path, &mut buffer)?;
            let sound = fold_in(path, head, &buffer, durable_elsewhere, &mut fold)?;
            next_lsn = sound.end_lsn;
            segments.push(sound);
        }
        let mut restored = fold.finish();
        segments.retain(|segment| segment.end_lsn > restored.floor);
        let died = super::polled(&folder, boot.saturating_add(1)).into_iter().filter_map(|polled| {
            let place = restored.known.get(&polled.key).map(|memory| memory.place);
            let decided = matches!(place, Some(Place::Journal(lsn)) if lsn >= restored.floor);
            let strikes = restored.strikes.add(polled.key, polled.boot, next_lsn);
            strikes.filter(|_| !decided).map(|strikes| (polled, strikes))
        });
        let died = died.collect();
        Ok(Checked {
            floor: restored.floor,
            next_lsn,
            boot,
            wall_ms: restored.wall_ms,
            watermark_ms: restored.watermark_ms,
            owner_epoch: restored.owner_epoch,
            bytes: segments.iter().map(|segment| segment.end).sum(),
            died,
            segments,
        })
    }
}

/// Checks one segment as [`super::super::Disk::open`] does.
fn fold_in(path: PathBuf, head: SegmentHead, bytes: &[u8], durable_elsewhere: Lsn, fold: &mut Fold) -> Result<Sound, DiskError> {
    let damaged = |offset, lsn, damage| DiskError::Damaged { path: path.clone(), offset, lsn, damage };
    let mut scan = Scan::new(&head, bytes, durable_elsewhere);
    for batch in scan.by_ref() {
        let mut lsn = batch.head.first_lsn;
        for frame in Frames::new(batch.frames) {
            let folded = frame.and_then(FrameView::parse).and_then(|view| fold.frame(lsn, &view));
            folded.map_err(|error| damaged(batch.offset, lsn, error.into()))?;
            lsn = lsn.next();
        }
        if lsn != batch.head.end_lsn() {
            return Err(damaged(batch.offset, lsn, CodecError::Short.into()));
        }
    }
    let tail = scan.finish().map_err(|fault| damaged(fault.offset, fault.lsn, fault.damage))?;
    Ok(Sound { path, head, end_lsn: tail.next_lsn, end: tail.offset })
}

/// A checked shard, read once more, one batch in memory at a time.
pub(super) struct Source {
    /// Those that are still to be opened, newest first.
    waiting: Vec<Sound>,
    open: Option<(Sound, BufReader<File>)>,
    floor: Lsn,
    /// Where the next batch begins in the segment.
    at: u64,
    /// The batch to be taken next, as it lies on disk; empty at the end.
    batch: Vec<u8>,
    first_lsn: Lsn,
    moment_ms: u64,
}

/// A frame to be copied.
pub(super) struct Copied<'a> {
    pub(super) raw: &'a [u8],
    pub(super) key: Key,
    pub(super) partition: Partition,
    /// The message it holds, if that names no tenant.
    pub(super) unowned: Option<Box<Message>>,
    /// It says that a message put aside has been told of.
    pub(super) told_aside: bool,
}

impl Source {
    /// Stands at the first batch.
    pub(super) fn open(checked: Checked) -> Result<Source, DiskError> {
        let Checked { mut segments, floor, .. } = checked;
        segments.reverse();
        let mut source =
            Source { waiting: segments, open: None, floor, at: 0, batch: Vec::new(), first_lsn: Lsn(0), moment_ms: 0 };
        source.advance()?;
        Ok(source)
    }

    /// Whether there is a batch.
    pub(super) fn is_there(&self) -> bool {
        !self.batch.is_empty()
    }

    /// The newest moment that this shard has told of up to this batch, Unix ms.
    pub(super) fn moment_ms(&self) -> u64 {
        self.moment_ms
    }

    /// The frames of this batch that are still of use.
    pub(super) fn frames(&self) -> impl Iterator<Item = Result<Copied<'_>, DiskError>> {
        let floor = self.floor;
        let frames = Frames::new(self.payload()).zip(self.first_lsn.0..);
        frames
            .filter(move |(_, lsn)| Lsn(*lsn) >= floor)
            .filter_map(|(raw, lsn)| raw.and_then(copied).map_err(|error| self.damaged(Lsn(lsn), error.into())).transpose())
    }

    fn payload(&self) -> &[u8] {
        let length = self.open.as_ref().and_then(|(sound, _)| BatchHead::read(sound.head.id, &self.batch));
        length.map_or(&[], |head| &self.batch[BATCH_HEAD_BYTES..BATCH_HEAD_BYTES + head.length as usize])
    }

    /// Goes to the next batch.
    pub(super) fn advance(&mut self) -> Result<(), DiskError> {
        self.at += self.batch.len() as u64;
        self.batch.clear();
        while self.open.as_ref().is_none_or(|(sound, _)| self.at >= sound.end) {
            let Some(next) = self.waiting.pop() else { return Ok(()) };
            let file = File::open(&next.path).and_then(|mut file| {
                file.seek(SeekFrom::Start(SEGMENT_HEAD_BYTES as u64))?;
                Ok(BufReader::with_capacity(AHEAD_BYTES, file))
            });
            let file = file.map_err(DiskError::io("reading", &next.path))?;
            self.at = SEGMENT_HEAD_BYTES as u64;
            self.open = Some((next, file));
        }
        let Some((sound, file)) = &mut self.open else { return Ok(()) };
        let mut read = |batch: &mut Vec<u8>, from: usize, to: usize| {
            batch.resize(to, 0);
            file.read_exact(&mut batch[from..]).map_err(DiskError::io("reading", &sound.path))
        };
        read(&mut self.batch, 0, BATCH_HEAD_BYTES)?;
        let head = BatchHead::read(sound.head.id, &self.batch);
        if let Some(head) = head {
            read(&mut self.batch, BATCH_HEAD_BYTES, head.size())?;
        }
        // It was sound a moment ago.
        let sound_still = head.filter(|_| batch::read(sound.head.id, &self.batch, self.at).is_some());
        let Some(head) = sound_still else { return Err(self.damaged(self.first_lsn, Damage::Checksum)) };
        self.first_lsn = head.first_lsn;
        let newest =
            Frames::new(self.payload()).flatten().filter_map(|raw| FrameView::parse(raw).ok()?.peek().ok()?.at_ms()).max();
        self.moment_ms = self.moment_ms.max(newest.unwrap_or(0));
        Ok(())
    }

    fn damaged(&self, lsn: Lsn, damage: Damage) -> DiskError {
        let path = self.open.as_ref().map(|(sound, _)| sound.path.clone()).unwrap_or_default();
        DiskError::Damaged { path, offset: self.at, lsn, damage }
    }
}

/// What is to be copied of a frame; `None` for a MARK, which speaks of its own shard only.
fn copied(raw: &[u8]) -> Result<Option<Copied<'_>>, CodecError> {
    let view = FrameView::parse(raw)?;
    let peek = view.peek()?;
    let told_aside = matches!(peek, Peek::Published { asker, .. } if asker == AskerId([0; 16]));
    let unowned = match peek {
        Peek::Mark { .. } => return Ok(None),
        Peek::Quarantined(fact) if fact.tenant.is_empty() => match decode(&Bytes::copy_from_slice(raw))?.fact {
            Fact::Quarantined(whole) => Some(Box::new(whole.message)),
            _ => None,
        },
        _ => None,
    };
    Ok(Some(Copied { raw, key: view.key(), partition: view.partition(), unowned, told_aside }))
}
