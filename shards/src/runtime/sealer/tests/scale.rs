//! A hundred million keys: what they take, how soon a shard is ready, and how long it takes to say that a key is unknown.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::event::Effects;
use crate::fold::Fold;
use crate::ids::{Now, Partition};
use crate::journal::{Head, Log};
use crate::keys::KeyMap;
use crate::limits::{Limits, RECALLED_MAX};
use crate::runtime::disk::{Disk, DiskSettings};
use crate::runtime::launch::{Past, read};
use crate::runtime::{drive, rt};
use crate::shard::{Shard, ShardSettings};
use crate::step::{Arrival, Content, Delivery, Origin};

const RSS_BYTES_MAX: u64 = 512 << 20;
const READY_MAX: Duration = Duration::from_secs(3);
const UNKNOWN_P99_MAX: Duration = Duration::from_micros(20);
/// So many files as there may be, grown as merges let them grow.
const FILES: [u64; KEY_FILES_MAX] = [42_000_000, 24_000_000, 14_000_000, 9_000_000, 6_000_000, 3_000_000, 1_500_000, 500_000];
const KEYS: u64 = 100_000_000;
const SEGMENTS: u64 = 64;
const LOOKS: u64 = 100_000;

/// A stream of numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn key(&mut self) -> Key {
        key_of(self.roll(), self.roll())
    }
}

fn key_of(start: u64, end: u64) -> Key {
    Key((u128::from(start) << 64 | u128::from(end)).to_be_bytes())
}

/// `count` keys in order, as far apart as random ones are.
fn in_order(file: u64, count: u64) -> impl Iterator<Item = Key> {
    let mut dice = Dice(file);
    // A little closer, so that the last one is not beyond the end.
    let apart = u64::MAX as f64 / count as f64 * 0.99;
    let mut start = 0_u64;
    (0..count).map(move |_| {
        let chance = (dice.roll() >> 11) as f64 / (1_u64 << 53) as f64;
        start = start.saturating_add((-(1.0 - chance).ln() * apart) as u64);
        key_of(start, dice.roll())
    })
}

fn disk(dir: &Path) -> DiskSettings {
    let Owner { worker_id, generation, shard, salt } = owner();
    DiskSettings { dir: dir.to_owned(), generation, shard, shards: 1, worker_id, salt, segment_bytes: 2 << 20 }
}

/// A journal of some full segments, and the key files and the snapshot that stand for it.
fn make(dir: &Path) {
    let settings = disk(dir);
    let segment_and_next = on_a_core({
        let settings = settings.clone();
        async move {
            let opened = Disk::open(settings, |_, _| Ok(())).await.unwrap();
            rt::spawn("journal", opened.disk.clone().run());
            for _ in 0..SEGMENTS * 2 {
                let mut log = Log::default();
                for _ in 0..13_000 {
                    let head = Head { key: Key([1; 16]), partition: Partition(0), owner_epoch: 0 };
                    log.published(head, &AskerId([1; 16]), 1);
                }
                opened.disk.append(&mut log);
            }
            opened.disk.close().await;
            let next = opened.disk.next_lsn();
            (opened.disk.segment_of(Lsn(next.0 - 1)).unwrap(), next)
        }
    });
    let (segment, next) = segment_and_next;
    let mut files = Vec::new();
    let shelf = Shelf::new(settings.folder(), owner(), Vec::new());
    for (nth, count) in FILES.into_iter().enumerate() {
        let span = (Lsn(nth as u64), Lsn(nth as u64 + 1));
        let entries = in_order(nth as u64, count).enumerate().map(|(at, key)| {
            Ok(Entry::finished(key, &Fingerprint([1; 32]), &AskerId([1; 16]), Lsn(1 + at as u64 % (next.0 - 1)), false))
        });
        files.push(shelf.write(span, count, entries, &GO_ON).unwrap().facts());
    }
    shelf.keep_snapshot(next, segment, &files, &Fold::default().finish()).unwrap();
}

fn on_a_core<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    glommio::LocalExecutorBuilder::default().make().unwrap().run(async {
        #[allow(clippy::disallowed_methods, reason = "as in the journal's tests: without a timer it may sleep for ever")]
        glommio::spawn_local(async {
            loop {
                glommio::timer::sleep(Duration::from_millis(5)).await;
            }
        })
        .detach();
        work.await
    })
}

fn percentiles(mut took: Vec<Duration>) -> (Duration, Duration) {
    took.sort_unstable();
    (took[took.len() / 2], took[took.len() * 99 / 100])
}

fn rss_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[allow(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

/// An arrival of nothing but a key.
fn arrival(key: Key) -> Rc<Arrival> {
    let delivery =
        Delivery { origin: Origin::Core, subject: Text::new(), headers: Vec::new(), body: bytes::Bytes::new(), reply: None };
    let content = Content::Garbage(crate::outcome::Fault::new(crate::outcome::Code::InvalidFormat, "No."));
    let (tenant, partition, fingerprint) = (Text::from_static("t"), Partition(0), Fingerprint([1; 32]));
    Rc::new(Arrival { delivery, tenant, partition, key, fingerprint, asker: None, content, received_ms: 0, adopted: None })
}

/// Boots as a shard does, in a process of its own, and looks.
#[allow(clippy::print_stdout, reason = "its figures are what it is for")]
fn boot_and_look(dir: &Path) {
    let settings = disk(dir);
    on_a_core(async move {
        let begun = now();
        let Past { opened, restored, before, files } = read(settings, &owner()).await.unwrap();
        let settings = ShardSettings {
            shard: 0,
            boot: opened.boot,
            limits: Limits::default(),
            salt: owner().salt,
            blocks: Vec::new(),
            events: false,
            progress_us: 1_000_000,
            config_epoch: 0,
            owner_epoch: 0,
            shared: false,
            claims: false,
            copies: false,
        };
        let mut shard = Shard::new(settings, opened.next_lsn);
        shard.restore(restored, &opened.segments, Now { mono_us: 0, wall_ms: 1 });
        shard.keep_sealed(before, files.clone(), false, RECALLED_MAX);
        let ready = begun.elapsed();
        let keys: u64 = files.iter().map(|map| map.facts().count).sum();
        assert_eq!(keys, KEYS);
        assert!(opened.segments.len() as u64 >= SEGMENTS && opened.records < 50_000, "only the last segment is read");
        let files: Rc<RefCell<Vec<Arc<KeyMap>>>> = Rc::new(RefCell::new(files));
        let mut fx = Effects::default();
        let mut dice = Dice(99);
        let (mut unknown, mut read_a_page) = (Vec::new(), 0);
        for _ in 0..LOOKS {
            let arrival = arrival(dice.key());
            let begun = now();
            if shard.must_look(arrival.key, &arrival, &mut fx) {
                read_a_page += 1;
                assert_eq!(drive::look(&opened.disk, &files, arrival.key).await.unwrap(), None);
            }
            unknown.push(begun.elapsed());
        }
        let mut known = Vec::new();
        for (nth, count) in FILES.into_iter().enumerate() {
            for key in in_order(nth as u64, count).step_by((count / 2_000) as usize) {
                let begun = now();
                assert!(shard.must_look(key, &arrival(key), &mut fx));
                assert!(drive::look(&opened.disk, &files, key).await.unwrap().is_some());
                known.push(begun.elapsed());
            }
        }
        let rss = rss_bytes();
        let ((unknown_p50, unknown_p99), (known_p50, known_p99)) = (percentiles(unknown), percentiles(known));
        println!(
            "{keys} keys in {} files, {} segments: ready in {ready:?}, {} MiB resident; unknown: p50 {unknown_p50:?}, p99 \
             {unknown_p99:?}, {:.2} % read a page; known: p50 {known_p50:?}, p99 {known_p99:?}",
            FILES.len(),
            opened.segments.len(),
            rss >> 20,
            f64::from(read_a_page) * 100.0 / LOOKS as f64
        );
        assert!(rss <= RSS_BYTES_MAX, "{} MiB are resident", rss >> 20);
        assert!(ready <= READY_MAX, "ready after {ready:?}");
        assert!(unknown_p99 <= UNKNOWN_P99_MAX, "an unknown key takes {unknown_p99:?}");
    });
}

/// 4 GB of key files in the temporary folder (`TMPDIR`), a minute or two.
#[test]
#[ignore = "cargo test -p shards --release a_hundred_million -- --ignored --nocapture"]
fn a_hundred_million_keys_fit_and_unknown_ones_are_told_at_once() {
    const DIR: &str = "ENDSTATION_KEYS_DIR";
    assert_eq!(FILES.iter().sum::<u64>(), KEYS);
    if let Some(dir) = std::env::var_os(DIR) {
        return boot_and_look(&PathBuf::from(dir));
    }
    let dir = TempDir::new().unwrap();
    make(dir.path());
    // What making them took is not to be counted: a process of its own.
    let name = std::thread::current().name().unwrap().to_owned();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&name, "--exact", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .status();
    assert!(child.unwrap().success());
}
