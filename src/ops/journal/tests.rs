//! Journals of a few frames, written as the worker writes them, and then harmed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::Result;
use shards::ids::{Key, Partition};
use shards::journal::batch::seal;
use shards::journal::{Fact, Frame, Kind, Log};

use super::survey::{Survey, all};
use super::wrong::Grade;
use super::*;
use crate::ops::timeline::tests::{AT_MS, SALT, key_of, step_frames};

/// Bytes of a segment file here.
const FILE_BYTES: usize = 1 << 16;

fn head(shard: u16, sequence: u64, first_lsn: u64) -> SegmentHead {
    SegmentHead {
        worker_id: "w-1".to_owned(),
        generation: 1,
        shard,
        shards: 1,
        features: 0,
        id: 40 + sequence,
        sequence,
        first_lsn: Lsn(first_lsn),
        salt: SALT.clone(),
        created_ms: AT_MS,
        boot: 1,
    }
}

fn batch(id: u64, frames: &[Frame], number: u64, first: u64) -> Vec<u8> {
    let mut log = Log::default();
    frames.iter().for_each(|frame| log.append(frame));
    let mut bytes = vec![0; BATCH_HEAD_BYTES];
    bytes.extend_from_slice(&log.bytes);
    seal(id, &mut bytes, log.frames, number, Lsn(first), Lsn(first - 1));
    bytes
}

/// A segment with one batch for each item of `batches`; the lsn after it.
fn segment(dir: &Path, head: &SegmentHead, batches: &[&[Frame]]) -> Result<(PathBuf, u64)> {
    let mut bytes = head.encode();
    let mut next = head.first_lsn.0;
    for (frames, number) in batches.iter().zip(1..) {
        bytes.extend(batch(head.id, frames, number, next));
        next += frames.len() as u64;
    }
    bytes.resize(FILE_BYTES, 0);
    let folder = dir.join("1").join(head.shard.to_string());
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{:010}.seg", head.sequence));
    fs::write(&path, bytes)?;
    Ok((path, next))
}

/// Three segments: a step that is done, one that is unpublished, and one without an outcome; and a prepared file.
pub(crate) fn three(dir: &Path) -> Result<[PathBuf; 3]> {
    let [first, second, third] = [1, 2, 3].map(|attempt| step_frames(key_of(attempt)));
    let (one, next) = segment(dir, &head(0, 1, 1), &[&first[..2], &first[2..]])?;
    let (two, next) = segment(dir, &head(0, 2, next), &[&second[..2], &second[2..3]])?;
    let (three, _) = segment(dir, &head(0, 3, next), &[&third[..1], &third[1..2]])?;
    fs::write(dir.join("1/0/0000000004.seg"), vec![0; FILE_BYTES])?;
    Ok([one, two, three])
}

fn mark(floor: u64) -> Frame {
    let fact = Fact::Mark { wall_ms: AT_MS + 9, floor: Lsn(floor), watermark_ms: 0 };
    Frame { key: Key([0; 16]), partition: Partition(0), owner_epoch: 0, fact }
}

pub(crate) fn flip(path: &Path, at: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 4], at)?)
}

fn surveyed(dir: &Path) -> Result<Vec<Survey>> {
    Ok(all(&Journal::open(dir)?))
}

fn findings(dir: &Path) -> Result<Vec<Finding>> {
    Ok(surveyed(dir)?.into_iter().flat_map(|survey| survey.findings).collect())
}

/// The only finding.
fn found(dir: &Path) -> Result<Finding> {
    let mut all = findings(dir)?;
    assert_eq!(all.len(), 1, "{all:?}");
    Ok(all.remove(0))
}

/// Bytes of a segment's first batch.
fn first_batch_bytes(path: &Path) -> Result<u64> {
    let bytes = fs::read(path)?;
    let id = SegmentHead::decode(&bytes)?.id;
    Ok(BatchHead::read(id, &bytes[SEGMENT_HEAD_BYTES..]).map_or(0, |head| head.size() as u64))
}

#[test]
fn a_sound_journal_is_counted_and_folded() -> Result<()> {
    let dir = tempfile::tempdir()?;
    three(dir.path())?;
    let surveys = surveyed(dir.path())?;
    let [survey] = &surveys[..] else { panic!("one shard") };
    assert_eq!((survey.findings.len(), survey.torn.len(), survey.spans.len(), survey.prepared), (0, 0, 3, 1));
    let count = |kind: Kind| survey.frames[kind as usize];
    assert_eq!([Kind::Accepted, Kind::Started, Kind::Result, Kind::Published].map(count), [3, 3, 2, 1]);
    assert_eq!((survey.first_lsn, survey.last_lsn), (Some(Lsn(1)), Some(Lsn(9))));
    assert_eq!((survey.keys, survey.unfinished(), survey.unpublished()), (2, 1, 1));
    assert_eq!((survey.oldest_ms, survey.newest_ms), (Some(AT_MS), AT_MS + 3));
    let pinned: Vec<_> = survey.pinned().map(|(span, open)| (span.from, open.len())).collect();
    assert_eq!(pinned, [(Lsn(5), 1)], "the newest segment cannot go anyway");
    Ok(())
}

#[test]
fn every_flipped_bit_that_had_been_durable_is_found_where_it_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = three(dir.path())?;
    let first = SEGMENT_HEAD_BYTES as u64;
    let (second, end) = (first + first_batch_bytes(&paths[1])?, used(&fs::read(&paths[1])?));
    for at in (first..end).step_by(7) {
        flip(&paths[1], at)?;
        let finding = found(dir.path())?;
        let (offset, lsn) = if at < second { (first, 5) } else { (second, 7) };
        assert_eq!((&finding.path, finding.offset, finding.lsn), (&paths[1], offset, Lsn(lsn)), "byte {at}");
        assert_eq!(finding.wrong, Damage::Checksum.into());
        flip(&paths[1], at)?;
    }
    for at in [0, 9, 20, 40, 80, 400, 4095] {
        flip(&paths[1], at)?;
        let finding = found(dir.path())?;
        assert_eq!((&finding.path, finding.offset, finding.wrong.grade()), (&paths[1], 0, Grade::Damaged), "byte {at}");
        flip(&paths[1], at)?;
    }
    assert_eq!(findings(dir.path())?, []);
    Ok(())
}

#[test]
fn a_write_that_never_finished_is_a_torn_tail_and_not_damage() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [_, _, last] = three(dir.path())?;
    let second = SEGMENT_HEAD_BYTES as u64 + first_batch_bytes(&last)?;
    let end = used(&fs::read(&last)?);
    OpenOptions::new().write(true).open(&last)?.write_all_at(&vec![0; (end - second - 21) as usize], second + 21)?;
    let survey = surveyed(dir.path())?.remove(0);
    assert_eq!(survey.findings, []);
    assert_eq!(survey.torn.len(), 1);
    let Torn { path, offset, bytes } = &survey.torn[0];
    assert_eq!((path, *offset), (&last, second));
    assert!((1..=21).contains(bytes), "{bytes}");
    assert_eq!(survey.last_lsn, Some(Lsn(8)), "what stands before it counts");

    // A header that was being written when the process died.
    let next = dir.path().join("1/0/0000000004.seg");
    fs::write(&next, [&head(0, 4, 10).encode()[..600], &vec![0; FILE_BYTES - 600]].concat())?;
    let survey = surveyed(dir.path())?.remove(0);
    assert_eq!((survey.findings.len(), survey.torn.len(), survey.prepared), (0, 2, 0));
    Ok(())
}

#[test]
fn files_that_are_gone_are_missed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = three(dir.path())?;
    fs::rename(&paths[1], dir.path().join("aside"))?;
    let finding = found(dir.path())?;
    assert_eq!((&finding.path, finding.lsn), (&paths[0], Lsn(5)));
    assert_eq!(finding.wrong, Damage::Lsn { expected: 5, found: 8 }.into());

    fs::rename(dir.path().join("aside"), &paths[1])?;
    fs::remove_file(&paths[0])?;
    assert_eq!(found(dir.path())?.wrong, Wrong::Beginning { first: 5, floor: 0 });

    // The journal let it go itself.
    segment(dir.path(), &head(0, 4, 10), &[&[mark(5)]])?;
    assert_eq!(findings(dir.path())?, []);
    Ok(())
}

#[test]
fn files_of_another_journal_or_under_another_name_are_found() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = three(dir.path())?;
    let frames = step_frames(key_of(1));
    let other = SegmentHead { worker_id: "w-2".to_owned(), boot: 0, ..head(0, 1, 1) };
    segment(dir.path(), &other, &[&frames])?;
    assert_eq!(found(dir.path())?.wrong, Wrong::Stranger("worker id"));

    segment(dir.path(), &head(0, 1, 1), &[&frames])?;
    fs::rename(&paths[2], dir.path().join("1/0/0000000007.seg"))?;
    assert_eq!(found(dir.path())?.wrong, Wrong::Name { written: 3 });

    let dir = tempfile::tempdir()?;
    segment(dir.path(), &SegmentHead { shards: 2, ..head(0, 1, 1) }, &[&frames])?;
    let finding = found(dir.path())?;
    assert_eq!((finding.path, finding.wrong), (dir.path().join("1/1"), Wrong::NoSegment { shards: 2 }));
    Ok(())
}

#[test]
fn a_newer_version_is_told_apart_from_damage() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [_, _, last] = three(dir.path())?;
    let kept = fs::read(&last)?;
    let mut bytes = kept.clone();
    bytes[8..12].copy_from_slice(&[9, 0, 9, 0]);
    let crc = crc32c(&bytes[..SEGMENT_HEAD_BYTES - 4]);
    bytes[SEGMENT_HEAD_BYTES - 4..SEGMENT_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    fs::write(&last, &bytes)?;
    let finding = found(dir.path())?;
    assert_eq!((finding.wrong.grade(), &finding.path), (Grade::Newer, &last));
    assert!(finding.wrong.what().starts_with("written by a newer endstation (format 9"), "{finding}");

    // A kind that may not be skipped, in a sound batch.
    let mut log = Log::default();
    log.append(&mark(0));
    log.bytes[4] = 200;
    log.bytes[5] = 0;
    let mut batch = vec![0; BATCH_HEAD_BYTES];
    batch.extend_from_slice(&log.bytes);
    seal(43, &mut batch, 1, 3, Lsn(10), Lsn(9));
    fs::write(&last, &kept)?;
    let first = first_batch_bytes(&last)?;
    let second = BatchHead::read(43, &kept[SEGMENT_HEAD_BYTES + first as usize..]).map_or(0, |head| head.size() as u64);
    let end = SEGMENT_HEAD_BYTES as u64 + first + second;
    OpenOptions::new().write(true).open(&last)?.write_all_at(&batch, end)?;
    let finding = found(dir.path())?;
    assert_eq!((finding.wrong.grade(), finding.lsn), (Grade::Newer, Lsn(10)));
    assert_eq!(finding.offset, end + BATCH_HEAD_BYTES as u64, "the frame's own place");
    Ok(())
}

/// CRC-32C, bit by bit: it is needed once.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)));
    !bytes.iter().fold(!0, step)
}

#[test]
fn a_journal_that_is_written_while_it_is_read_is_sound() -> Result<()> {
    const LONG_BYTES: u64 = 32 << 20;
    let dir = tempfile::tempdir()?;
    let head = head(0, 1, 1);
    let (path, _) = segment(dir.path(), &head, &[])?;
    let frames: Vec<Frame> = (0..40).flat_map(|attempt| step_frames(key_of(attempt))).collect();
    OpenOptions::new().write(true).open(&path)?.set_len(LONG_BYTES)?;
    let write = || -> Result<()> {
        let file = OpenOptions::new().write(true).open(&path)?;
        let (mut at, mut lsn) = (SEGMENT_HEAD_BYTES as u64, 1);
        for number in 1.. {
            let bytes = batch(head.id, &frames, number, lsn);
            if at + bytes.len() as u64 > LONG_BYTES {
                break;
            }
            // In pieces, so that a reader meets half of it often.
            for (index, piece) in bytes.chunks(512).enumerate() {
                file.write_all_at(piece, at + index as u64 * 512)?;
            }
            (at, lsn) = (at + bytes.len() as u64, lsn + frames.len() as u64);
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(write);
        // A slow reader may see the writer end during its first look: the second is then at a journal that rests.
        let mut looks = 0;
        while looks < 2 || !writer.is_finished() {
            assert_eq!(findings(dir.path())?, []);
            looks += 1;
        }
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })
}

#[test]
fn the_pace_is_that_of_the_last_ten_minutes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    three(dir.path())?;
    let survey = surveyed(dir.path())?.remove(0);
    let bytes = survey.bytes - 3 * SEGMENT_HEAD_BYTES as u64;
    let rate = |after_ms: u64| survey.pace.rate(AT_MS + after_ms);
    assert_eq!((rate(0).frames_per_s, rate(0).bytes_per_s), (9.0, bytes as f64));
    assert_eq!(rate(90_000).frames_per_s, 0.1);
    assert_eq!(rate(900_000).frames_per_s, 0.0);
    Ok(())
}
