//! Random journals rewritten from n to m shards, with real files: they mean the same, whole or not at all, whenever the
//! process dies or the disk is full.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tempfile::TempDir;

use super::*;
use crate::event::Role;
use crate::fold::{Fold, Owned, Restored};
use crate::ids::{AskerId, Fingerprint, Text};
use crate::journal::scan::Scan;
use crate::journal::segment::Damage;
use crate::journal::view::Frames;
use crate::journal::{FrameView, Peek};
use crate::runtime::disk::open::read_whole;

mod large;
mod random;

use random::{Dice, write};

/// Small, so that a journal of some hundred frames has many segments.
const SEGMENT_BYTES: u64 = 8 << 10;
const SALT: Salt = Salt([3; 32]);
const WORKER: &str = "w-1";
const KEYS: u8 = 60;
const BOOT: u32 = 7;

/// What happens before a step.
#[derive(Clone, Copy)]
enum Fate {
    /// The process's life ends.
    Dies,
    /// There is no room.
    Full,
}

thread_local! {
    /// After so many steps more.
    static FATE: Cell<Option<(u64, Fate)>> = const { Cell::new(None) };
}

/// What unwinds where a life ends.
struct Died;

pub(super) fn before_a_step() -> io::Result<()> {
    match FATE.get() {
        Some((0, Fate::Dies)) => {
            FATE.set(None);
            std::panic::resume_unwind(Box::new(Died))
        }
        Some((0, Fate::Full)) => {
            FATE.set(None);
            Err(rustix::io::Errno::NOSPC.into())
        }
        Some((left, fate)) => {
            FATE.set(Some((left - 1, fate)));
            Ok(())
        }
        None => Ok(()),
    }
}

fn wanted(dir: &Path, shards: u16) -> Wanted<'_> {
    Wanted { dir, shards, worker_id: WORKER, salt: &SALT, segment_bytes: SEGMENT_BYTES, along: &["name"], unowned }
}

fn unowned(message: &Message, shards: u16) -> u16 {
    message.body[0] as u16 % shards
}

fn key(number: u8) -> Key {
    Key([number + 1; 16])
}

fn asker(number: u8) -> AskerId {
    if is_unowned(number) { AskerId([0; 16]) } else { AskerId([number + 1; 16]) }
}

fn tenant(number: u8) -> Text {
    Text::from(format!("tenant-{}", number % 17))
}

/// Every ninth key is of a message that names no tenant.
fn is_unowned(number: u8) -> bool {
    number % 9 == 8
}

/// A key as it lies in the journal, without its places: short F, short asker, the frame with the outcome.
type KnownKey = (u64, u64, Vec<u8>);

/// An open key, without its places.
#[derive(Debug, PartialEq)]
struct OpenKey {
    fingerprint: Fingerprint,
    asker: AskerId,
    message: Vec<u8>,
    result: Option<Vec<u8>>,
    tries: u32,
    interrupted: bool,
    retry_at_ms: Option<u64>,
    deadline_ms: u64,
    role: Role,
    owned: Owned,
}

/// What all shards together say.
#[derive(Debug, Default, PartialEq)]
struct Picture {
    known: BTreeMap<[u8; 16], KnownKey>,
    open: BTreeMap<[u8; 16], OpenKey>,
    /// Of each tenant, its open keys, oldest first.
    order: BTreeMap<u16, Vec<[u8; 16]>>,
    strikes: BTreeMap<[u8; 16], u32>,
    released: BTreeMap<[u8; 16], Fingerprint>,
    tenants: BTreeMap<String, u64>,
    wall_ms: u64,
    owner_epoch: u32,
    name: String,
}

/// A journal read back.
struct Heard {
    generation: u64,
    picture: Picture,
    /// By partition.
    watermarks: Vec<u64>,
    lsns: (Lsn, Lsn),
    boot: u32,
}

fn hear(dir: &Path) -> Heard {
    let generation = newest(dir).unwrap().unwrap();
    let shards = written_by(dir, generation).unwrap().unwrap();
    let mut picture = Picture::default();
    let (mut low, mut high, mut boot) = (Lsn(u64::MAX), Lsn(0), 0);
    let mut watermarks = vec![0; usize::from(PARTITIONS)];
    for shard in 0..shards {
        let settings = wanted(dir, shards).settings(generation, shards, shard);
        let (restored, frames, newest_boot) = fold(&settings);
        boot = boot.max(newest_boot);
        low = low.min(*frames.keys().next().unwrap());
        high = high.max(*frames.keys().last().unwrap());
        for partition in (0..PARTITIONS).filter(|partition| map::shard(Partition(*partition), shards) == shard) {
            watermarks[usize::from(partition)] = restored.watermark_ms;
        }
        look(&mut picture, &restored, &frames);
        let mut strikes = restored.strikes;
        for polled in Page::left(&settings.folder(), newest_boot + 1).unwrap() {
            if restored.known.get(&polled.key).is_none()
                && let Some(count) = strikes.add(polled.key, polled.boot, high)
            {
                picture.strikes.insert(polled.key.0, count);
            }
        }
    }
    picture.name = fs::read_to_string(dir.join(generation.to_string()).join("name")).unwrap();
    Heard { generation, picture, watermarks, lsns: (low, high), boot }
}

/// A shard's frames above its floor, and what they mean.
fn fold(settings: &DiskSettings) -> (Restored, BTreeMap<Lsn, Vec<u8>>, u32) {
    let found = super::super::open::find(numbered(&settings.folder(), ".seg").unwrap(), settings).unwrap();
    let (mut floor, mut boot, mut frames) = (Lsn(0), 0, BTreeMap::new());
    let mut bytes = Vec::new();
    for (path, head) in &found.heads {
        boot = boot.max(head.boot);
        read_whole(path, &mut bytes).unwrap();
        for batch in Scan::new(head, &bytes, Lsn(0)) {
            for (raw, lsn) in Frames::new(batch.frames).zip(batch.head.first_lsn.0..) {
                let view = FrameView::parse(raw.unwrap()).unwrap();
                if let Peek::Mark { floor: its, .. } = view.peek().unwrap() {
                    floor = floor.max(its);
                }
                frames.insert(Lsn(lsn), raw.unwrap().to_vec());
            }
        }
    }
    let mut fold = Fold::default();
    for (lsn, raw) in &frames {
        let view = FrameView::parse(raw).unwrap();
        // What stands below the floor is gone, or would be with the next look at segments.
        if *lsn >= floor || matches!(view.peek().unwrap(), Peek::Mark { .. }) {
            fold.frame(*lsn, &view).unwrap();
        }
    }
    (fold.finish(), frames, boot)
}

fn look(picture: &mut Picture, restored: &Restored, frames: &BTreeMap<Lsn, Vec<u8>>) {
    for number in 0..KEYS {
        let key = key(number);
        if let Some(memory) = restored.known.get(&key) {
            let crate::dedup::Place::Journal(lsn) = memory.place else { panic!("nothing runs") };
            let known = (memory.fingerprint, memory.asker, frames[&lsn].clone());
            assert!(picture.known.insert(key.0, known).is_none(), "{key} is known to two shards");
        }
        let strikes = restored.strikes.of(&key);
        if strikes > 0 {
            picture.strikes.insert(key.0, strikes);
        }
    }
    for one in &restored.unfinished {
        picture.order.entry(one.owned.partition.0).or_default().push(one.key.0);
        let open = OpenKey {
            fingerprint: one.fingerprint,
            asker: one.asker,
            message: frames[&one.message].clone(),
            result: one.result.map(|lsn| frames[&lsn].clone()),
            tries: one.tries,
            interrupted: one.interrupted,
            retry_at_ms: one.retry_at_ms,
            deadline_ms: one.deadline_ms,
            role: one.role,
            owned: one.owned,
        };
        assert!(picture.open.insert(one.key.0, open).is_none(), "{} is open in two shards", one.key);
    }
    picture.released.extend(restored.released.iter().map(|(key, released)| (key.0, released.fingerprint)));
    for (tenant, seq) in &restored.tenants {
        let newest = picture.tenants.entry(tenant.to_string()).or_default();
        *newest = (*newest).max(*seq);
    }
    picture.wall_ms = picture.wall_ms.max(restored.wall_ms);
    picture.owner_epoch = picture.owner_epoch.max(restored.owner_epoch);
}

/// Without what a message that belongs to nobody adds: which of them comes first depends on the shard it is given to.
fn same(before: &Heard, after: &Heard, what: &str) {
    assert_eq!(before.picture.known, after.picture.known, "{what}");
    assert_eq!(before.picture.open, after.picture.open, "{what}");
    assert_eq!(before.picture.strikes, after.picture.strikes, "{what}");
    let owned = |heard: &Heard| {
        let mut order = heard.picture.order.clone();
        order.remove(&map::partition("").0);
        order
    };
    assert_eq!(owned(before), owned(after), "{what}");
    assert_eq!(before.picture.released, after.picture.released, "{what}");
    assert_eq!(before.picture.tenants, after.picture.tenants, "{what}");
    assert_eq!(before.picture.wall_ms, after.picture.wall_ms, "{what}");
    assert_eq!(before.picture.owner_epoch, after.picture.owner_epoch, "{what}");
    assert_eq!(before.picture.name, after.picture.name, "{what}");
    assert_eq!(before.boot, after.boot, "{what}");
    for (was, is) in before.watermarks.iter().zip(&after.watermarks) {
        assert!(was <= is, "{what}: what may be forgotten is no longer known to be");
    }
}

/// Every file and its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Only this generation is there, and of nobody's derived data anything.
fn is_tidy(dir: &Path, generation: u64) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names == [generation.to_string()] || names == ["1", &*generation.to_string()], "{names:?}");
    if generation > 1 {
        // What a build does that knows of one generation only.
        let refused = Checked::read(&wanted(dir, 1).settings(1, 1, 0)).err().unwrap();
        assert!(matches!(refused, DiskError::Head { error: HeadError::Newer { .. }, .. }), "{refused}");
        assert_eq!(inspect(dir).unwrap().map(|head| head.generation), Some(generation), "and nobody else minds");
    }
}

fn written(shards: u16, seed: u64) -> (TempDir, Heard) {
    // In memory where there is such a place: nothing here depends on what a sync costs.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    write(dir.path(), 1, shards, &mut Dice(seed));
    let heard = hear(dir.path());
    (dir, heard)
}

#[test]
fn a_journal_means_the_same_under_any_number_of_shards_and_back_again() {
    let mut seed = 1;
    let mut seen = BTreeSet::new();
    for n in 1..=8 {
        for m in 1..=8 {
            seed += 1;
            let (dir, before) = written(n, seed);
            assert_eq!(wanted(dir.path(), n).settle().unwrap(), 1, "the same number changes nothing");
            assert_eq!(wanted(dir.path(), m).settle().unwrap(), if n == m { 1 } else { 2 });
            let there = hear(dir.path());
            same(&before, &there, &format!("{n} to {m}, seed {seed}"));
            is_tidy(dir.path(), there.generation);
            if n != m {
                assert!(there.lsns.0 > before.lsns.1, "no lsn is given twice");
                assert!(contents(dir.path()).keys().all(|path| !path.ends_with("0000000001.keys")));
            }
            assert_eq!(wanted(dir.path(), n).settle().unwrap(), if n == m { 1 } else { 3 });
            same(&there, &hear(dir.path()), &format!("{n} to {m} and back, seed {seed}"));
            seen.extend(
                before.picture.open.values().map(|open| (open.interrupted, open.result.is_some(), open.retry_at_ms.is_some())),
            );
            seen.extend(before.picture.strikes.values().map(|strikes| (true, true, *strikes > 1)));
        }
    }
    assert!(seen.len() >= 6, "the journals are worth it: {seen:?}");
}

#[test]
fn a_watermark_holds_for_the_partitions_that_had_it() {
    let (dir, before) = written(4, 5);
    assert!(before.watermarks.iter().collect::<BTreeSet<_>>().len() > 1);
    wanted(dir.path(), 8).settle().unwrap();
    assert_eq!(hear(dir.path()).watermarks, before.watermarks, "each new shard comes out of one old one");
    wanted(dir.path(), 1).settle().unwrap();
    assert_eq!(hear(dir.path()).watermarks, vec![*before.watermarks.iter().max().unwrap(); usize::from(PARTITIONS)]);
}

#[test]
fn frames_of_several_shards_lie_in_the_order_of_their_time() {
    // Else the oldest segment would hold new messages, and its going would raise the watermark over all that still wait.
    let (dir, _) = written(4, 11);
    wanted(dir.path(), 1).settle().unwrap();
    let (_, frames, _) = fold(&wanted(dir.path(), 1).settings(2, 1, 0));
    let (mut newest_ms, mut late_ms) = (0, 0);
    for raw in frames.values() {
        let at_ms = FrameView::parse(raw).unwrap().peek().unwrap().at_ms().unwrap_or(newest_ms);
        newest_ms = at_ms.max(newest_ms);
        late_ms = late_ms.max(newest_ms - at_ms);
    }
    assert!(newest_ms == 1_000_600 && late_ms < 150, "a frame comes {late_ms} ms late, more than a batch takes");
}

#[test]
fn wherever_the_process_dies_the_next_start_finds_one_whole_journal() {
    for (n, m, next_count) in [(1, 2, 1), (2, 1, 1), (3, 2, 3), (2, 3, 3)] {
        let mut steps = 0;
        loop {
            let (dir, before) = written(n, 77);
            FATE.set(Some((steps, Fate::Dies)));
            let ended = catch_unwind(AssertUnwindSafe(|| wanted(dir.path(), m).settle()));
            FATE.set(None);
            same(&before, &hear(dir.path()), &format!("{n} to {m}, dead after {steps} steps"));
            let generation = wanted(dir.path(), next_count).settle().unwrap();
            same(&before, &hear(dir.path()), &format!("{n} to {m}, dead after {steps} steps, then {next_count}"));
            is_tidy(dir.path(), generation);
            match ended {
                Ok(done) => break assert_eq!(done.unwrap(), 2),
                Err(panic) => assert!(panic.is::<Died>()),
            }
            steps += 1;
        }
        assert!(steps > 12, "{steps}");
    }
}

#[test]
fn without_room_the_old_journal_stays_as_it_was() {
    let mut steps = 0;
    loop {
        let (dir, _) = written(2, 9);
        let before = contents(dir.path());
        FATE.set(Some((steps, Fate::Full)));
        let ended = wanted(dir.path(), 3).settle();
        FATE.set(None);
        if newest(dir.path()).unwrap() == Some(2) {
            break;
        }
        let error = ended.unwrap_err();
        let DiskError::NoRoomToReshard { was: 2, now: 3, needed, free, .. } = error else { panic!("{error}") };
        assert!(
            needed
                > before
                    .iter()
                    .filter(|(path, _)| path.extension().is_some_and(|end| end == "seg"))
                    .map(|(_, bytes)| bytes.len() as u64)
                    .sum()
        );
        assert!(free > 0);
        let said = error.to_string();
        assert!(said.contains("cores.shards back to 2") && said.contains(&needed.to_string()), "{said}");
        assert_eq!(contents(dir.path()), before, "after {steps} steps");
        is_tidy(dir.path(), 1);
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}

#[test]
fn what_is_written_is_never_more_than_was_said_to_be_needed() {
    for (n, m) in [(1, 8), (8, 1), (3, 5)] {
        let (dir, _) = written(n, 21);
        let old = (0..n).map(|shard| wanted(dir.path(), n).check(1, n, shard).unwrap()).collect::<Vec<_>>();
        let needed = Plan::of(&old, &wanted(dir.path(), m), n).unwrap().bytes;
        wanted(dir.path(), m).settle().unwrap();
        let took: u64 = contents(dir.path()).values().map(|bytes| (bytes.len() as u64).next_multiple_of(4096)).sum();
        assert!(took <= needed, "{took} of {needed}");
    }
}

#[test]
fn a_damaged_journal_is_refused_and_not_touched() {
    let (dir, _) = written(2, 3);
    let folder = dir.path().join("1").join("1");
    let path = numbered(&folder, ".seg").unwrap()[1].1.clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[SEGMENT_HEAD_BYTES + 60] ^= 1;
    fs::write(&path, bytes).unwrap();
    let before = contents(dir.path());
    let error = wanted(dir.path(), 1).settle().unwrap_err();
    let DiskError::Damaged { path: found, damage: Damage::Checksum, .. } = error else { panic!("{error}") };
    assert_eq!(found, path);
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn another_workers_journal_is_not_rewritten() {
    let (dir, _) = written(2, 3);
    let before = contents(dir.path());
    let other = Wanted { worker_id: "w-2", ..wanted(dir.path(), 1) };
    let error = other.settle().unwrap_err();
    assert!(matches!(error, DiskError::Head { error: HeadError::Worker { .. }, .. }), "{error}");
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn the_empty_shards_of_a_start_that_was_refused_are_no_obstacle() {
    // As versions before this one left them, with more starts than the journal itself.
    let (dir, before) = written(1, 3);
    let folder = dir.path().join("1").join("1");
    Target::create(folder, wanted(dir.path(), 2).settings(1, 2, 1), Lsn(1), BOOT + 1).unwrap();
    assert_eq!(wanted(dir.path(), 2).settle().unwrap(), 2);
    same(&before, &hear(dir.path()), "with an empty second shard");
}

#[test]
fn shards_that_the_journal_should_not_have_are_refused_where_they_hold_something() {
    let (dir, _) = written(2, 3);
    fs::rename(dir.path().join("1").join("1"), dir.path().join("1").join("2")).unwrap();
    let before = contents(dir.path());
    let error = wanted(dir.path(), 1).settle().unwrap_err();
    assert!(matches!(error, DiskError::Head { error: HeadError::Shards { written: 2, .. }, .. }), "{error}");
    assert_eq!(contents(dir.path()), before);
}
