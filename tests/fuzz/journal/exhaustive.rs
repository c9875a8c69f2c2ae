//! Not bent at random but all of it: a journal of 256 KiB cut at every byte, and every bit of 64 KiB of it flipped.
//!
//! A cut in the last segment is what a crash leaves: exactly the batches before it are read. A cut with a later segment behind it
//! is damage. A flipped bit is damage, but in the last batch of all, of which nothing says that it was ever acknowledged: there
//! it is a write that never finished.

use std::time::Instant;

use serde_json::json;
use shards::ids::Lsn;
use shards::journal::scan::Scan;
use shards::journal::segment::{SEGMENT_HEAD_BYTES, SegmentHead};

use super::recovery::recover;
use super::sound::{Place, Sound};
use crate::record::line;

const SEGMENT_BYTES: usize = 64 << 10;

/// One segment and what is known of it.
struct Part<'a> {
    head: SegmentHead,
    bytes: &'a [u8],
    batches: Vec<&'a Place>,
    /// What a segment behind it would prove.
    proven: Lsn,
}

fn parts(sound: &Sound) -> Vec<Part<'_>> {
    let part = |(index, bytes): (usize, &'_ Vec<u8>)| {
        let batches: Vec<&Place> = sound.batches().iter().filter(|batch| batch.file == index).collect();
        let behind = sound.batches().iter().find(|batch| batch.file > index).map(|batch| batch.first_lsn.0);
        let proven = Lsn(behind.unwrap_or(sound.frames().len() as u64 + 1) - 1);
        Part { head: SegmentHead::decode(bytes).expect("just written"), bytes: sound.files()[index].as_slice(), batches, proven }
    };
    sound.files().iter().enumerate().map(part).collect()
}

#[test]
fn a_journal_cut_at_any_byte_is_read_up_to_there_or_refused() {
    let began = Instant::now();
    let sound = Sound::large(4, SEGMENT_HEAD_BYTES + SEGMENT_BYTES);
    let (mut cuts, mut torn, mut clean, mut refused) = (0_u64, 0_u64, 0_u64, 0_u64);
    for part in parts(&sound) {
        let mut bytes = part.bytes.to_vec();
        for cut in (SEGMENT_HEAD_BYTES..part.bytes.len()).rev() {
            let lost = std::mem::take(&mut bytes[cut]);
            cuts += 1;
            // What a writer prepares is zeros, so a cut file ends in zeros.
            let before = part.batches.partition_point(|batch| batch.bytes.end <= cut);
            let cut_in_padding =
                part.batches.get(before).filter(|batch| part.bytes[batch.bytes.clone()] == bytes[batch.bytes.clone()]);
            let count = before + usize::from(cut_in_padding.is_some());
            let end = count.checked_sub(1).map_or(SEGMENT_HEAD_BYTES, |newest| part.batches[newest].bytes.end);
            let tail = Scan::new(&part.head, &bytes, Lsn(0)).finish().unwrap_or_else(|fault| panic!("cut at {cut}: {fault:?}"));
            assert_eq!((tail.batches, tail.offset), (count as u64, end as u64), "cut at {cut}");
            assert_eq!(tail.torn, bytes[end..].iter().any(|byte| *byte != 0), "cut at {cut}");
            *if tail.torn { &mut torn } else { &mut clean } += 1;
            let behind = Scan::new(&part.head, &bytes, part.proven).finish();
            let same = count == part.batches.len();
            assert_eq!(behind.is_ok(), same, "cut at {cut} with a segment behind it, {lost} lost: {behind:?}");
            refused += u64::from(!same);
        }
    }
    assert!(cuts >= 256 << 10, "{cuts} cuts");
    line(
        "journal-cut",
        &json!({ "cuts": cuts, "torn": torn, "clean": clean, "refused_with_a_segment_behind": refused, "seconds": began.elapsed().as_secs() }),
    );
}

#[test]
fn what_is_left_of_a_cut_journal_is_read_whole_and_means_the_same_twice() {
    let sound = Sound::large(4, SEGMENT_BYTES);
    for (index, part) in parts(&sound).iter().enumerate() {
        // Beside and in every batch; between them nothing else can happen.
        let cuts = part.batches.iter().flat_map(|batch| [batch.bytes.start, batch.bytes.start + 1, batch.bytes.end - 1]);
        for cut in cuts.step_by(7) {
            let mut files = sound.files()[..=index].to_vec();
            files[index].truncate(cut);
            let found = recover(&files).unwrap_or_else(|why| panic!("cut at {cut} of {index}: {why:?}"));
            let before = found.summary();
            let again = recover(&found.gone_on(found.left(&files))).unwrap_or_else(|why| panic!("again: {why:?}"));
            assert!(before == again.summary(), "cut at {cut} of {index}: what was left means something else");
        }
    }
}

#[test]
fn any_flipped_bit_is_found_unless_nothing_says_that_it_was_acknowledged() {
    let began = Instant::now();
    let sound = Sound::large(2, SEGMENT_BYTES / 2);
    let (mut flips, mut found, mut tail_only) = (0_u64, 0_u64, 0_u64);
    let last = sound.files().len() - 1;
    for (index, part) in parts(&sound).iter().enumerate() {
        let (unacknowledged, _) = part.batches.last().map(|batch| (batch.bytes.start, batch.bytes.end)).expect("batches");
        let mut bytes = part.bytes.to_vec();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                flips += 1;
                if at < SEGMENT_HEAD_BYTES {
                    let mut files = sound.files().to_vec();
                    files[index].clone_from(&bytes);
                    assert!(recover(&files).is_err(), "bit {bit} of byte {at} in the header of {index}");
                    found += 1;
                } else {
                    let proven = if index == last { Lsn(0) } else { part.proven };
                    match Scan::new(&part.head, &bytes, proven).finish() {
                        Err(_) => found += 1,
                        Ok(tail) => {
                            let harmless = index == last && at >= unacknowledged && tail.offset as usize == unacknowledged;
                            assert!(harmless, "bit {bit} of byte {at} of {index}: {tail:?}");
                            tail_only += 1;
                        }
                    }
                }
                bytes[at] ^= 1 << bit;
            }
        }
    }
    assert!(flips >= 64 * 1024 * 8, "{flips} flips");
    line(
        "journal-flip",
        &json!({ "flips": flips, "refused": found, "in_the_unacknowledged_tail": tail_only, "seconds": began.elapsed().as_secs() }),
    );
}
