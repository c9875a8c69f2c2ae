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
        let mut sound = Sound { files: Vec::new(), batches: Vec::new(), frames: Vec::new() };
        let story = story();
        let mut left = story.iter().cycle();
        let mut next = Lsn(1);
        for (file, batches) in SHAPE.iter().enumerate() {
            let id = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(file as u64 + 1);
            let mut bytes = head(file as u64 + 1, id, next).encode();
            for (number, frames) in batches.iter().enumerate() {
                let durable = Lsn(next.0 - 1);
                let mut log = Log { bytes: vec![0; BATCH_HEAD_BYTES], ..Log::default() };
                left.by_ref().take(*frames).for_each(|frame| sound.frames.push(append(&mut log, frame)));
                seal(id, &mut log.bytes, log.frames, number as u64 + 1, next, durable);
                let place = bytes.len()..bytes.len() + log.bytes.len();
                sound.batches.push(Place { file, bytes: place, first_lsn: next, durable });
                bytes.extend_from_slice(&log.bytes);
                next = Lsn(next.0 + *frames as u64);
            }
            sound.files.push(bytes);
        }
        assert!(sound.files.iter().all(|file| file.len() > SEGMENT_HEAD_BYTES));
        sound
    }
}

fn append(log: &mut Log, frame: &Frame) -> Vec<u8> {
    let before = log.bytes.len();
    log.append(frame);
    log.bytes[before..].to_vec()
}
