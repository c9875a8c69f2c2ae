//! Segments that no writer wrote but whose checksums hold: only so do odd numbers get past the first check.

use shards::ids::Lsn;
use shards::journal::batch::{ALIGN_BYTES, BATCH_HEAD_BYTES, BatchHead, seal};
use shards::journal::segment::SEGMENT_HEAD_BYTES;
use shards::journal::view::Frames;

use super::recovery::head;
use super::sound::Sound;

const ID: u64 = 0x0123_4567_89ab_cdef;
/// Before a segment's batches: its length (u16), id and first lsn.
const NUMBERS_BYTES: usize = 2 + 8 + 8;

/// One segment with one sound batch of these frames.
pub fn one_batch(frames: &[u8]) -> Vec<Vec<u8>> {
    let mut batch = vec![0; BATCH_HEAD_BYTES];
    batch.extend_from_slice(frames);
    let count = Frames::new(frames).filter(Result::is_ok).count();
    seal(ID, &mut batch, count as u32, 1, Lsn(1), Lsn(0));
    let mut file = head(1, ID, Lsn(1)).encode();
    file.extend_from_slice(&batch);
    vec![file]
}

/// Files as they are, each behind its length (u32).
pub fn split(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (file, after) = after.split_at(after.len().min(u32::from_le_bytes(*length) as usize));
        files.push(file.to_vec());
        rest = after;
    }
    files
}

/// Files as an input of [`split`].
pub fn raw(files: &[Vec<u8>]) -> Vec<u8> {
    let mut input = vec![b's'];
    for file in files {
        input.extend_from_slice(&(file.len() as u32).to_le_bytes());
        input.extend_from_slice(file);
    }
    input
}

/// Segments out of a few numbers and batches whose checksums are set right.
pub fn repaired(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    while let Some((numbers, after)) = rest.split_first_chunk::<NUMBERS_BYTES>() {
        let u64_at = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight bytes"));
        let length = usize::from(u16::from_le_bytes([numbers[0], numbers[1]]));
        let (batches, after) = after.split_at(after.len().min(length));
        let (id, first_lsn) = (u64_at(2), Lsn(u64_at(10)));
        let mut file = head(files.len() as u64 + 1, id, first_lsn).encode();
        file.extend_from_slice(batches);
        reseal(id, &mut file);
        files.push(file);
        rest = after;
    }
    files
}

fn reseal(id: u64, file: &mut [u8]) {
    let mut at = SEGMENT_HEAD_BYTES;
    while let Some(head) = file.get(at..).and_then(|rest| BatchHead::read(id, rest)) {
        let Some(place) = file.get_mut(at..at.saturating_add(head.size())) else { return };
        let mut batch = vec![0; BATCH_HEAD_BYTES];
        batch.extend_from_slice(&place[BATCH_HEAD_BYTES..BATCH_HEAD_BYTES + head.length as usize]);
        seal(id, &mut batch, head.frames, head.number, head.first_lsn, head.durable_lsn);
        place.copy_from_slice(&batch);
        at += head.size().max(ALIGN_BYTES);
    }
}

/// The sound journal as an input of [`repaired`].
pub fn sample(sound: &Sound) -> Vec<u8> {
    let mut input = vec![b'S'];
    for file in sound.files() {
        let batches = &file[SEGMENT_HEAD_BYTES..];
        input.extend_from_slice(&(batches.len() as u16).to_le_bytes());
        // The id and the first lsn, where a header has them.
        input.extend_from_slice(&file[32..40]);
        input.extend_from_slice(&file[48..56]);
        input.extend_from_slice(batches);
    }
    input
}
