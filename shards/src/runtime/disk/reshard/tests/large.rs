//! How long the rewrite of a large journal takes.

use super::random::{Dice, fact};
use super::*;
use crate::journal::{Fact, Frame};

/// `cargo test --release -p shards --lib reshard -- --ignored --nocapture`: a million steps, 2 GB.
#[test]
#[ignore = "measures: writes 2 GB three times"]
#[allow(clippy::print_stdout, reason = "its figures are for who runs it")]
fn how_long_a_large_journal_takes() {
    const STEPS: u64 = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let wanted = |shards| Wanted { segment_bytes: DiskSettings::SEGMENT_BYTES_DEFAULT, ..wanted(dir.path(), shards) };
    let folder = dir.path().join("1").join("0");
    let mut target = Target::create(folder, wanted(1).settings(1, 1, 0), Lsn(1), BOOT).unwrap();
    let mut log = Log::default();
    let mut dice = Dice(1);
    for step in 0..STEPS {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&dice.below(u64::MAX).to_le_bytes());
        bytes[8..].copy_from_slice(&step.to_le_bytes());
        let (key, number, at_ms) = (Key(bytes), (step % 7) as u8, 1_000_000 + step / 10);
        let partition = map::partition(&tenant((step % 17) as u8));
        let mut accepted = loop {
            if let Fact::Accepted(accepted) = fact(&mut dice, number, at_ms) {
                break accepted;
            }
        };
        accepted.message.body = bytes::Bytes::from(vec![b'b'; 1_300]);
        let result = loop {
            if let Fact::Result(result) = fact(&mut dice, number, at_ms) {
                break result;
            }
        };
        let started = Fact::Started { try_number: 1, boot: BOOT, at_ms };
        let published = Fact::Published { asker: asker(number), at_ms };
        for fact in [Fact::Accepted(accepted), started, Fact::Result(result), published] {
            log.append(&Frame { key, partition, owner_epoch: 1, fact });
        }
        for frame in Frames::new(&log.bytes) {
            target.push(frame.unwrap()).unwrap();
        }
        log.clear();
    }
    log.mark(2_000_000, Lsn(0), 0);
    target.end(&log.bytes).unwrap();
    let size: u64 = numbered(&dir.path().join("1").join("0"), ".seg")
        .unwrap()
        .iter()
        .map(|(_, path)| fs::metadata(path).unwrap().len())
        .sum();
    for shards in [2, 1] {
        let clock = Clock::start();
        wanted(shards).settle().unwrap();
        let seconds = clock.now().mono_us as f64 / 1e6;
        println!("{STEPS} steps, {size} bytes, to {shards} shards: {seconds:.2} s, {:.0} MB/s", size as f64 / 1e6 / seconds);
    }
}
