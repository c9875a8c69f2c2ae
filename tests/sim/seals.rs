//! Key files and snapshots as a worker's sealer keeps them beside the segments, one file operation at a time, so that a death may
//! come between any two; and what is looked up in them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use shards::dedup::Entry;
use shards::event::{Event, Sealed};
use shards::fold::{Fold, Restored};
use shards::ids::{Key, Lsn};
use shards::journal::FrameView;
use shards::keys::{self, Footer, KeyMap, Merge, Owner, PAGE_BYTES, Unfit, Writer};
use shards::planted::{Bug, planted};
use shards::snapshot::{self, Seal, Snapshot};

use crate::disk::{Disk, WORKER};
use crate::job::SALT;
use crate::oracles;
use crate::world::{Happening, World};

/// Fewer than a real sealer has, so that files are merged in most worlds.
const FILES_MAX: usize = 2;
/// So many looked up keys stay in memory.
pub const RECALLED_MAX: usize = 3;
const SNAPSHOT: &str = "snapshot";

/// The files beside a shard's segments, by name. They outlive the process.
pub type Shelf = BTreeMap<String, Vec<u8>>;
type Maps = Vec<Arc<KeyMap>>;

/// A seal on its way. What it has not written yet dies with the process.
#[derive(Debug)]
pub enum Stage {
    /// The keys go into a file of their own.
    Keys(Box<Seal>),
    /// Files become one, if they are too many.
    Merge(Box<Seal>, Vec<Entry>, Maps),
    /// The snapshot takes the place of the one before.
    Snapshot(Box<Seal>, Vec<Entry>, Maps),
    /// The shard is told, and what nobody names any more is removed.
    Tell(Sealed),
}

fn owner(shard: usize) -> Owner {
    Owner { worker_id: WORKER.to_owned(), generation: 1, shard: shard as u16, salt: SALT }
}

/// Makes a key file.
fn write(shelf: &mut Shelf, shard: usize, span: (Lsn, Lsn), most: u64, entries: impl Iterator<Item = Entry>) -> Arc<KeyMap> {
    let mut bytes = Vec::new();
    let mut take = |piece: &[u8]| -> Result<(), Infallible> {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let mut writer = Writer::new(span.0, span.1, most);
    for entry in entries {
        let Ok(()) = writer.push(&entry, &mut take);
    }
    let Ok(map) = writer.finish(&mut take);
    let Ok(()) = map.tail(&owner(shard), &mut take);
    shelf.insert(map.facts().name(), bytes);
    Arc::new(map)
}

fn page(bytes: &[u8], number: u64) -> &[u8] {
    &bytes[number as usize * PAGE_BYTES..][..PAGE_BYTES]
}

fn all(shelf: &Shelf, map: &KeyMap) -> Result<Vec<Entry>, Unfit> {
    let bytes = shelf.get(&map.facts().name()).ok_or(Unfit("a key file is gone"))?;
    let mut found = Vec::new();
    for number in 0..map.pages() {
        found.extend(keys::entries(page(bytes, number), number)?.iter().map(Entry::decode));
    }
    Ok(found)
}

fn find(shelf: &Shelf, maps: &Maps, key: &Key) -> Result<Option<Entry>, Unfit> {
    for map in maps.iter().rev().filter(|map| map.may_hold(key)) {
        let bytes = shelf.get(&map.facts().name()).ok_or(Unfit("a key file is gone"))?;
        for number in map.pages_for(key) {
            if let Some(entry) = keys::find(page(bytes, number), number, key)? {
                return Ok(Some(entry));
            }
        }
    }
    Ok(None)
}

fn open(shelf: &Shelf, shard: usize) -> Result<Option<(Snapshot, Maps)>, Unfit> {
    let Some(bytes) = shelf.get(SNAPSHOT) else { return Ok(None) };
    let snapshot = snapshot::decode(bytes, &owner(shard))?;
    let maps = snapshot.files.iter().map(|facts| {
        let bytes = shelf.get(&facts.name()).ok_or(Unfit("a key file is gone"))?;
        let last = bytes.len().saturating_sub(PAGE_BYTES);
        let footer = Footer::decode(&bytes[last..], &owner(shard), bytes.len() as u64)?;
        let mut rest = &bytes[footer.map_at() as usize..];
        let map = footer.read_map::<Unfit>(|piece| {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from_slice(now);
            rest = later;
            Ok(())
        })?;
        Ok(Arc::new(map))
    });
    let maps = maps.collect::<Result<_, _>>()?;
    Ok(Some((snapshot, maps)))
}

/// The segment that holds a frame.
fn segment_of(disk: &Disk, lsn: Lsn) -> Option<u64> {
    let at = disk.segments.partition_point(|segment| segment.head.first_lsn <= lsn).checked_sub(1)?;
    (lsn <= disk.durable).then(|| disk.segments[at].head.id)
}

/// Some planted bugs sit where a journal is folded: those are for other oracles to find.
fn folds_wrong() -> bool {
    [Bug::DropUnpublished, Bug::ResetTries, Bug::DropOpenOnRecovery, Bug::KeepSuperseded].into_iter().any(planted)
}

/// Each key that the whole journal knows is known, from its file or from the frames behind it, and each in the same way.
fn same_keys(whole: &Restored, shelf: &Shelf, maps: &Maps, rest: impl Fn(&Key) -> Option<Entry>) -> Result<(), String> {
    for entry in whole.known.entries() {
        let found = match rest(&entry.key) {
            None => find(shelf, maps, &entry.key).map_err(|why| why.to_string())?,
            found => found,
        };
        if found != Some(*entry) {
            return Err(format!("seals: {} is {found:?}, by the journal {entry:?}", entry.key));
        }
    }
    Ok(())
}

impl World {
    /// What a boot goes on from: the newest snapshot and the frames behind it, where that can be had; from which frame on; the key files.
    pub fn resume(&mut self, shard: usize, whole: &Restored) -> Result<(Restored, Lsn, Maps), String> {
        if self.rng.chance(30) {
            // Something has happened to a file that is only derived.
            let names: Vec<String> = self.disks[shard].beside.keys().cloned().collect();
            if !names.is_empty() {
                self.count("a key file or snapshot is damaged");
                let name = names[self.rng.below(names.len() as u64) as usize].clone();
                if self.rng.chance(300) {
                    self.disks[shard].beside.remove(&name);
                } else if let Some(bytes) = self.disks[shard].beside.get_mut(&name) {
                    // Where it is found at boot: pages are found out when they are read.
                    let from = if name == SNAPSHOT { 0 } else { bytes.len() - PAGE_BYTES };
                    let at = from + self.rng.below((bytes.len() - from) as u64) as usize;
                    bytes[at] ^= 1 << self.rng.below(8);
                }
            }
        }
        let disk = &self.disks[shard];
        let kept = open(&disk.beside, shard).ok().flatten();
        let fits = |snapshot: &Snapshot| {
            snapshot.before <= disk.next_lsn() && segment_of(disk, Lsn(snapshot.before.0 - 1)) == Some(snapshot.segment)
        };
        let Some((snapshot, maps)) = kept.filter(|(snapshot, _)| fits(snapshot)) else {
            self.disks[shard].beside.clear();
            return Ok((oracles::fold(self.disks[shard].frames())?, Lsn(0), Vec::new()));
        };
        let mut fold = Fold::resume(snapshot.rest);
        for (lsn, raw) in disk.frames().filter(|(lsn, _)| *lsn >= snapshot.before) {
            let view = FrameView::parse(raw).map_err(|error| error.to_string())?;
            fold.frame(lsn, &view).map_err(|error| error.to_string())?;
        }
        let restored = fold.finish();
        if let Some(difference) = snapshot::difference(&restored, whole).filter(|_| !folds_wrong()) {
            return Err(format!("seals: a boot from a snapshot differs: {difference}"));
        }
        let known: BTreeMap<Key, Entry> = restored.known.entries().map(|entry| (entry.key, *entry)).collect();
        same_keys(whole, &disk.beside, &maps, |key| known.get(key).copied())?;
        self.count("boot from a snapshot");
        Ok((restored, snapshot.before, maps))
    }

    /// What is durable is to be put away: a snapshot says what a fold of these frames would.
    pub fn seal(&mut self, shard: usize, seal: &Seal) {
        self.count("seal");
        let verdict = self.judge(shard, seal);
        self.check(verdict);
        let stage = if self.rng.chance(100) {
            self.count("seal fails");
            Stage::Tell(Sealed { entries: seal.finished.concat(), files: None })
        } else {
            Stage::Keys(Box::new(seal.clone()))
        };
        self.seal_on(shard, stage);
    }

    fn judge(&self, shard: usize, seal: &Seal) -> Result<(), String> {
        let disk = &self.disks[shard];
        if seal.before.0 - 1 > disk.durable.0 {
            return Err(format!("seals: {:?} is kept and {:?} is durable", seal.before, disk.durable));
        }
        let whole = oracles::fold(disk.frames().take_while(|(lsn, _)| *lsn < seal.before))?;
        if let Some(difference) = snapshot::difference(&seal.rest, &whole).filter(|_| !folds_wrong()) {
            return Err(format!("seals: a snapshot differs: {difference}"));
        }
        // What has an outcome and is not told yet is found by its frames.
        let mut sealed: BTreeMap<Key, Entry> = BTreeMap::new();
        for entry in seal.finished.iter().flatten() {
            sealed.insert(entry.key, *entry);
        }
        let resumed = Fold::resume(seal.rest.clone()).finish();
        sealed.extend(resumed.known.entries().map(|entry| (entry.key, *entry)));
        let Some(seat) = self.worker.as_ref().and_then(|worker| worker.seats.get(shard)) else { return Ok(()) };
        same_keys(&whole, &disk.beside, &seat.maps, |key| sealed.get(key).copied())
    }

    fn seal_on(&mut self, shard: usize, stage: Stage) {
        let (boot, wait_us) = (self.boot, self.rng.range(10, 30_000));
        self.at(wait_us, Happening::Seal { boot, shard, stage });
    }

    /// The next file operation of a seal.
    pub fn sealing(&mut self, shard: usize, stage: Stage) {
        let Some(maps) = self.worker.as_ref().and_then(|worker| Some(worker.seats.get(shard)?.maps.clone())) else { return };
        let shelf = &mut self.disks[shard].beside;
        let next = match stage {
            Stage::Keys(seal) => {
                let mut entries = seal.finished.concat();
                keys::sort(&mut entries);
                let floor = seal.rest.floor;
                let alive = maps.into_iter().filter(|map| map.facts().newest >= floor);
                let span = (seal.from, seal.before);
                let new = write(shelf, shard, span, entries.len() as u64, entries.iter().copied());
                Stage::Merge(seal, entries, alive.chain([new]).collect())
            }
            Stage::Merge(seal, entries, mut maps) => {
                let counts: Vec<u64> = maps.iter().map(|map| map.facts().count).collect();
                if let Some(at) = keys::to_merge(&counts, FILES_MAX) {
                    let some = maps.split_off(at);
                    let span = (some[0].facts().from, seal.before);
                    let lists: Result<Vec<_>, Unfit> = some.iter().map(|map| all(shelf, map)).collect();
                    let lists = match lists {
                        Ok(lists) => lists,
                        Err(why) => return self.violate(format!("seals: {why}")),
                    };
                    let lists = lists.into_iter().map(|list| list.into_iter().map(Ok::<Entry, Infallible>));
                    let merged = Merge::new(lists, seal.rest.floor).map(|Ok(entry)| entry);
                    maps.push(write(shelf, shard, span, counts[at..].iter().sum(), merged));
                    self.count("key files are merged");
                }
                Stage::Snapshot(seal, entries, maps)
            }
            Stage::Snapshot(seal, entries, maps) => {
                // It may have been pruned meanwhile: then the snapshot fits nothing, and the next boot reads what is left.
                let segment = segment_of(&self.disks[shard], Lsn(seal.before.0 - 1)).unwrap_or(0);
                let facts: Vec<_> = maps.iter().map(|map| map.facts()).collect();
                let bytes = snapshot::encode(&owner(shard), seal.before, segment, &facts, &seal.rest);
                self.disks[shard].beside.insert(SNAPSHOT.to_owned(), bytes);
                Stage::Tell(Sealed { entries, files: Some(maps) })
            }
            Stage::Tell(sealed) => {
                if let Some(seat) = self.worker.as_mut().and_then(|worker| worker.seats.get_mut(shard))
                    && let Some(files) = &sealed.files
                {
                    seat.maps.clone_from(files);
                    let names: Vec<String> = files.iter().map(|map| map.facts().name()).collect();
                    shelf.retain(|name, _| name == SNAPSHOT || names.contains(name));
                }
                return self.apply(shard, Event::Sealed(sealed));
            }
        };
        self.seal_on(shard, next);
    }

    /// What the key files hold of a key.
    pub fn look(&mut self, shard: usize, key: Key) {
        let Some(seat) = self.worker.as_ref().and_then(|worker| worker.seats.get(shard)) else { return };
        match find(&self.disks[shard].beside, &seat.maps, &key) {
            Ok(found) => {
                self.count(if found.is_some() { "look: found" } else { "look: not there" });
                self.apply(shard, Event::Looked { key, found });
            }
            Err(why) => self.violate(format!("seals: {why}")),
        }
    }
}
