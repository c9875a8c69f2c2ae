//! A sound journal of three segments, as a writer leaves it that has one batch in flight at a time; and what of it is what.

use std::ops::Range;

use shards::ids::Lsn;
use shards::journal::batch::{BATCH_HEAD_BYTES, seal};
use shards::journal::segment::SEGMENT_HEAD_BYTES;
use shards::journal::{Frame, Log};

use super::frames::story;
use super::recovery::head;

/// How many frames each batch holds, segment by segment.
const SHAPE: [&[usize]; 3] = [&[1, 3, 2, 1], &[2, 1], &[1, 4, 1, 1]];

/// Where one batch lies.
#[derive(Clone, Debug)]
pub struct Place {
    pub file: usize,
    pub bytes: Range<usize>,
    pub first_lsn: Lsn,
    /// What was durable when it was written.
    pub durable: Lsn,
}

/// The journal and its parts.
pub struct Sound {
    files: Vec<Vec<u8>>,
    batches: Vec<Place>,
    frames: Vec<Vec<u8>>,
}

impl Sound {
    pub fn files(&self) -> &[Vec<u8>] {
        &self.files
    }

    pub fn batches(&self) -> &[Place] {
        &self.batches
    }

    /// Every frame in order; the first has lsn 1.
    pub fn frames(&self) -> &[Vec<u8>] {
        &self.frames
    }
}

impl Default for Sound {
    fn default() -> Self {
        let mut sound = Sound::nothing();
        let mut writer = Writer::new();
        for batches in SHAPE {
            sound.file(&mut writer, batches.iter().copied());
        }
        sound
    }
}

impl Sound {
    fn nothing() -> Sound {
        Sound { files: Vec::new(), batches: Vec::new(), frames: Vec::new() }
    }

    /// A journal of so many segments of at least so many bytes each, in batches of one to nine frames.
    pub fn large(segments: usize, bytes: usize) -> Sound {
        let (mut sound, mut writer) = (Sound::nothing(), Writer::new());
        let mut frames = (0..).map(|batch: usize| 1 + batch * 7 % 9);
        for _ in 0..segments {
            sound.file(&mut writer, std::iter::empty());
            while sound.files.last().is_some_and(|file| file.len() < bytes) {
                let count = frames.next().unwrap_or(1);
                sound.batch(&mut writer, count);
            }
        }
        sound
    }

    fn file(&mut self, writer: &mut Writer, batches: impl Iterator<Item = usize>) {
        let sequence = self.files.len() as u64 + 1;
        (writer.id, writer.number) = (0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(sequence), 0);
        self.files.push(head(sequence, writer.id, writer.next).encode());
        for frames in batches {
            self.batch(writer, frames);
        }
        assert!(self.files.iter().all(|file| file.len() >= SEGMENT_HEAD_BYTES));
    }

    fn batch(&mut self, writer: &mut Writer, frames: usize) {
        let (first_lsn, durable) = (writer.next, Lsn(writer.next.0 - 1));
        let mut log = Log { bytes: vec![0; BATCH_HEAD_BYTES], ..Log::default() };
        for _ in 0..frames {
            let frame = &writer.story[writer.told % writer.story.len()];
            writer.told += 1;
            self.frames.push(append(&mut log, frame));
        }
        writer.number += 1;
        seal(writer.id, &mut log.bytes, log.frames, writer.number, first_lsn, durable);
        writer.next = Lsn(first_lsn.0 + frames as u64);
        let file = self.files.len() - 1;
        let bytes = &mut self.files[file];
        self.batches.push(Place { file, bytes: bytes.len()..bytes.len() + log.bytes.len(), first_lsn, durable });
        bytes.extend_from_slice(&log.bytes);
    }
}

/// Where a writer is.
struct Writer {
    story: Vec<Frame>,
    told: usize,
    next: Lsn,
    id: u64,
    number: u64,
}

impl Writer {
    fn new() -> Writer {
        Writer { story: story(), told: 0, next: Lsn(1), id: 0, number: 0 }
    }
}

fn append(log: &mut Log, frame: &Frame) -> Vec<u8> {
    let before = log.bytes.len();
    log.append(frame);
    log.bytes[before..].to_vec()
}
