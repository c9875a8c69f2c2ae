//! A disk as the journal meets it: real segments, batches and frames as bytes; what was not synced may be gone, torn at any
//! byte, or there with holes; what was synced is there.

use bytes::Bytes;
use shards::event::DiskNews;
use shards::ids::Lsn;
use shards::journal::batch::{self, BATCH_HEAD_BYTES};
use shards::journal::scan::Scan;
use shards::journal::segment::{Expected, SEGMENT_HEAD_BYTES, SegmentHead};
use shards::journal::view::Frames;
use shards::journal::{Frame, Log, decode};
use shards::shard::Span;

use crate::job::{SALT, SHARDS};
use crate::rng::Rng;

const SECTOR: usize = 512;
pub const WORKER: &str = "w";

/// One segment file.
#[derive(Debug)]
pub struct Segment {
    pub head: SegmentHead,
    pub bytes: Vec<u8>,
    /// Where each frame lies: (offset, length).
    frames: Vec<(u32, u32)>,
    batches: u64,
}

#[derive(Debug)]
struct InFlight {
    batch: Vec<u8>,
    through: Lsn,
}

/// One shard's journal on disk, and the writer's buffer before it. The disk outlives the process.
#[derive(Debug)]
pub struct Disk {
    shard: u16,
    pub segments: Vec<Segment>,
    pending: Vec<u8>,
    pending_frames: u32,
    pub urgent: bool,
    in_flight: Option<InFlight>,
    next_lsn: Lsn,
    pub durable: Lsn,
    sequence: u64,
    segment_bytes: usize,
    /// While it is full: what may still be written, in bytes.
    pub room: Option<usize>,
    /// A checksum of every frame that was ever said to be durable, by lsn from 1.
    pub promised: Vec<u32>,
    /// Key files and the snapshot.
    pub beside: crate::seals::Shelf,
}

impl Disk {
    pub fn new(shard: u16, segment_bytes: usize) -> Self {
        Disk {
            shard,
            segments: Vec::new(),
            pending: Vec::new(),
            pending_frames: 0,
            urgent: false,
            in_flight: None,
            next_lsn: Lsn(1),
            durable: Lsn(0),
            sequence: 0,
            segment_bytes,
            room: None,
            promised: Vec::new(),
            beside: crate::seals::Shelf::new(),
        }
    }

    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Takes over what the machine logged.
    pub fn append(&mut self, log: &mut Log) {
        if log.frames == 0 {
            return;
        }
        if self.pending.is_empty() {
            self.pending.resize(BATCH_HEAD_BYTES, 0);
        }
        self.pending.extend_from_slice(&log.bytes);
        self.pending_frames += log.frames;
        self.urgent |= log.urgent;
        log.clear();
    }

    pub fn is_pending(&self) -> bool {
        self.pending_frames > 0
    }

    pub fn is_writing(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Starts writing what is pending, unless a batch is on its way already or there is no room for it.
    pub fn start_write(&mut self) -> bool {
        if self.in_flight.is_some() || self.pending_frames == 0 {
            return false;
        }
        if let Some(room) = &mut self.room {
            let Some(left) = room.checked_sub(self.pending.len()) else { return false };
            *room = left;
        }
        let segment = self.segments.last_mut().expect("open after boot");
        let mut batch = std::mem::take(&mut self.pending);
        let number = segment.batches + 1;
        batch::seal(segment.head.id, &mut batch, self.pending_frames, number, self.next_lsn, self.durable);
        let through = Lsn(self.next_lsn.0 + u64::from(self.pending_frames) - 1);
        self.next_lsn = through.next();
        self.pending_frames = 0;
        self.urgent = false;
        self.in_flight = Some(InFlight { batch, through });
        true
    }

    /// The batch in flight is synced: the newest durable frame, and the segment that was closed by it.
    pub fn finish_write(&mut self, boot: u32, wall_ms: u64) -> Option<(Lsn, Option<DiskNews>)> {
        let InFlight { batch, through } = self.in_flight.take()?;
        let segment = self.segments.last_mut().expect("open after boot");
        segment.bytes.extend_from_slice(&batch);
        self.durable = through;
        self.index_tail();
        let segment = self.segments.last().expect("open after boot");
        let mut news = None;
        if segment.bytes.len() - SEGMENT_HEAD_BYTES >= self.segment_bytes {
            let span = self.span(self.segments.len() - 1);
            news = Some(DiskNews::Closed { from: span.from, to: span.to, bytes: span.bytes });
            self.open_segment(boot, wall_ms);
        }
        Some((through, news))
    }

    /// Notes the frames of the batch that was appended last.
    fn index_tail(&mut self) {
        let segment = self.segments.last_mut().expect("open after boot");
        let mut known = segment.frames.last().map_or(SEGMENT_HEAD_BYTES, |(at, length)| (at + length) as usize);
        known = known.next_multiple_of(batch::ALIGN_BYTES);
        let found = batch::read(segment.head.id, &segment.bytes[known..], known as u64).expect("just written");
        segment.batches += 1;
        let mut at = known + BATCH_HEAD_BYTES;
        for frame in Frames::new(found.frames) {
            let frame = frame.expect("just written");
            segment.frames.push((at as u32, frame.len() as u32));
            at += frame.len();
            self.promised.push(sum_of(frame));
        }
    }

    fn open_segment(&mut self, boot: u32, wall_ms: u64) {
        self.sequence += 1;
        let head = SegmentHead {
            worker_id: WORKER.to_owned(),
            generation: 1,
            shard: self.shard,
            shards: SHARDS,
            features: 0,
            id: self.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.shard),
            sequence: self.sequence,
            first_lsn: self.durable.next(),
            salt: SALT,
            created_ms: wall_ms,
            boot,
        };
        let bytes = head.encode();
        self.segments.push(Segment { head, bytes, frames: Vec::new(), batches: 0 });
    }

    fn span(&self, index: usize) -> Span {
        let segment = &self.segments[index];
        let from = segment.head.first_lsn;
        Span { from, to: Lsn(from.0 + segment.frames.len() as u64 - 1), bytes: segment.bytes.len() as u64 }
    }

    /// The process died, or with `power` the machine: what becomes of the batch in flight is chance.
    pub fn crash(&mut self, rng: &mut Rng, power: bool) {
        self.pending.clear();
        self.pending_frames = 0;
        self.urgent = false;
        let Some(InFlight { mut batch, .. }) = self.in_flight.take() else { return };
        let segment = self.segments.last_mut().expect("open while writing");
        match rng.below(4) {
            0 => {}
            1 => segment.bytes.extend_from_slice(&batch),
            2 => {
                let torn = rng.below(batch.len() as u64) as usize;
                segment.bytes.extend_from_slice(&batch[..torn]);
            }
            _ => {
                // The page cache survives the process; without power sectors arrive in any order.
                if power {
                    for sector in batch.chunks_mut(SECTOR) {
                        if rng.chance(400) {
                            sector.fill(0);
                        }
                    }
                }
                segment.bytes.extend_from_slice(&batch);
            }
        }
    }

    /// Reads everything again, cuts a torn tail, and opens a new segment: the closed ones.
    pub fn boot(&mut self, boot: u32, wall_ms: u64) -> Result<Vec<Span>, String> {
        let shards = SHARDS;
        let expected = Expected { worker_id: WORKER, generation: 1, shard: self.shard, shards, salt: &SALT };
        let mut next_lsn = self.segments.first().map_or(Lsn(1), |segment| segment.head.first_lsn);
        for index in 0..self.segments.len() {
            let elsewhere = self.segments.get(index + 1).map_or(Lsn(0), |next| Lsn(next.head.first_lsn.0 - 1));
            let segment = &mut self.segments[index];
            segment.head = SegmentHead::decode(&segment.bytes).map_err(|error| error.to_string())?;
            segment.head.check(&expected).map_err(|error| error.to_string())?;
            segment.frames.clear();
            let mut scan = Scan::new(&segment.head, &segment.bytes, elsewhere);
            for batch in scan.by_ref() {
                let mut at = batch.offset as usize + BATCH_HEAD_BYTES;
                for frame in Frames::new(batch.frames) {
                    let frame = frame.map_err(|error| error.to_string())?;
                    segment.frames.push((at as u32, frame.len() as u32));
                    at += frame.len();
                }
            }
            let tail = scan.finish().map_err(|fault| format!("I17/I18: damage where none was done: {fault:?}"))?;
            segment.batches = tail.batches;
            segment.bytes.truncate(tail.offset as usize);
            next_lsn = tail.next_lsn;
        }
        if next_lsn.0 <= self.durable.0 {
            return Err(format!("I17: {:?} was durable, now {next_lsn:?} comes next", self.durable));
        }
        self.durable = Lsn(next_lsn.0 - 1);
        self.next_lsn = next_lsn;
        if self.segments.last().is_some_and(|segment| segment.frames.is_empty()) {
            self.segments.pop();
        }
        let spans = (0..self.segments.len()).map(|index| self.span(index)).collect();
        self.open_segment(boot, wall_ms);
        Ok(spans)
    }

    /// Every durable frame in order.
    pub fn frames(&self) -> impl Iterator<Item = (Lsn, &[u8])> {
        self.segments.iter().flat_map(|segment| {
            let first = segment.head.first_lsn.0;
            let slice = |(at, length): &(u32, u32)| &segment.bytes[*at as usize..(*at + *length) as usize];
            segment.frames.iter().enumerate().map(move |(index, place)| (Lsn(first + index as u64), slice(place)))
        })
    }

    /// One frame, if its segment is still there.
    pub fn read(&self, lsn: Lsn) -> Option<Frame> {
        let index = self.segments.partition_point(|segment| segment.head.first_lsn <= lsn).checked_sub(1)?;
        let segment = &self.segments[index];
        let (at, length) = *segment.frames.get((lsn.0 - segment.head.first_lsn.0) as usize)?;
        decode(&Bytes::copy_from_slice(&segment.bytes[at as usize..(at + length) as usize])).ok()
    }

    /// Deletes the segments that hold only frames below this one.
    pub fn prune(&mut self, below: Lsn) {
        let keep = self.segments.partition_point(|segment| {
            !segment.frames.is_empty() && segment.head.first_lsn.0 + segment.frames.len() as u64 <= below.0
        });
        self.segments.drain(..keep);
    }

    /// Frames that a crash left whole although nobody was told: from now on they count.
    pub fn adopt_survivors(&mut self) {
        let known = self.promised.len() as u64;
        let new: Vec<u32> = self.frames().filter(|(lsn, _)| lsn.0 > known).map(|(_, frame)| sum_of(frame)).collect();
        self.promised.extend(new);
    }
}

/// Of a frame: enough to see that it is the same.
pub fn sum_of(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
