//! A journal that was written by another number of shards, rewritten once at boot: the next *generation*, in which every frame
//! lies with the shard that owns its partition now. Blocks: to be called before any executor runs, with the directory held.
//!
//! The old generation is read and checked whole before anything is written, and only read. The new one is written beside it as
//! `<generation>.rewriting`, synced, and becomes the journal by one rename; then the old one goes. So whenever the process dies, one
//! of the two is there whole, and what is left of the other is swept away by the next start.
//!
//! Frames go along byte for byte, of several shards in the order of their time: none but a MARK names a lsn. The new frames are
//! numbered above all old ones, so that a lsn that somebody kept outside (a claim) stands for no other frame, ever. The MARKs
//! are not copied: each new shard ends with one of its own, with the newest watermark of those whose partitions it takes over.
//! A page that names the key in which the process died becomes that key's STRUCK frame.
//!
//! Builds from before there was more than one generation look into the first alone, and would begin an empty journal there. So
//! a *marker* stays in its place: one segment with a header that says to them that a newer version wrote it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::open::{inspect, numbered, read_start};
use super::{DiskError, DiskSettings, next};
use crate::ids::{Key, Lsn, Partition, Salt};
use crate::journal::segment::{FEATURES, FORMAT, HeadError, SEGMENT_HEAD_BYTES, SegmentHead};
use crate::journal::{Head, Log, Message};
use crate::limits::PARTITIONS;
use crate::map;
use crate::runtime::page::{Page, Polled};
use crate::runtime::rt::Clock;

mod source;
mod target;
#[cfg(test)]
mod tests;

use source::{Checked, Source};
use target::Target;

/// The first layout of shards and partitions, and so the folder it lies in.
pub const FIRST_GENERATION: u64 = 1;
/// How often a long rewrite says how far it is, in microseconds.
const SAY_EVERY_US: u64 = 5_000_000;
/// A generation that is being written, and one that is being removed: neither is a number, so neither is read as a journal.
const NEW: &str = ".rewriting";
const OLD: &str = ".replaced";
/// In the marker's folder; tells people.
const MARKER_FILE: &str = "replaced";
const MARKER_TEXT: &str = "The journal has been rewritten for another number of shards and lies in the folder with the highest number.\nThis one only keeps earlier builds of endstation from beginning an empty journal here.\n";

/// How the journal should lie. Lives on the thread that starts the worker.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The data directory.
    pub dir: &'a Path,
    /// How many shards there are now.
    pub shards: u16,
    /// Who reads and writes.
    pub worker_id: &'a str,
    /// What keys are salted with.
    pub salt: &'a Salt,
    /// The size of a segment, in bytes.
    pub segment_bytes: u64,
    /// Files beside the shards' folders that belong to the journal and go along.
    pub along: &'a [&'a str],
    /// The shard, of so many, that gets a message without a readable tenant: such a message has no partition of its own.
    pub unowned: fn(&Message, u16) -> u16,
}

/// A rewrite that the next start begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// How many shards wrote the journal.
    pub was: u16,
    /// Bytes that it may need on the disk at most.
    pub needed: u64,
    /// Bytes that are free there.
    pub free: u64,
}

/// Whether a start with so many shards would rewrite the journal in `dir`; nothing is changed, and nobody kept out.
///
/// # Errors
/// It cannot be listed or read.
pub fn due(dir: &Path, shards: u16) -> Result<Option<Due>, DiskError> {
    let Some(generation) = newest(dir)? else { return Ok(None) };
    let Some(was) = written_by(dir, generation)?.filter(|was| *was != shards) else { return Ok(None) };
    let mut written = 0;
    for (_, shard) in numbered(&dir.join(generation.to_string()), "")? {
        for (_, path) in numbered(&shard, ".seg")? {
            written += fs::metadata(&path).map_or(0, |about| about.len());
        }
    }
    let needed = target::bytes_max(written, shards, DiskSettings::SEGMENT_BYTES_DEFAULT);
    Ok(Some(Due { was, needed, free: free(dir) }))
}

impl Wanted<'_> {
    /// The generation to open; rewrites the journal first if another number of shards wrote it.
    ///
    /// # Errors
    /// The old journal is damaged or not ours, or there is no room for the new one. The old one is as it was then.
    pub fn settle(&self) -> Result<u64, DiskError> {
        let Some(generation) = newest(self.dir)? else { return Ok(FIRST_GENERATION) };
        self.sweep(generation)?;
        let Some(was) = written_by(self.dir, generation)? else { return Ok(generation) };
        if was == self.shards {
            return Ok(generation);
        }
        self.rewrite(generation, was)?;
        Ok(generation + 1)
    }

    /// Removes what an earlier rewrite, or its end, left behind.
    fn sweep(&self, generation: u64) -> Result<(), DiskError> {
        if generation > FIRST_GENERATION {
            // A process that died right after the rename has not seen it reach the disk, and its predecessor goes below.
            sync(self.dir)?;
        }
        for (_, half) in numbered(self.dir, NEW)? {
            fs::remove_dir_all(&half).map_err(DiskError::io("removing", &half))?;
        }
        for (_, aside) in numbered(self.dir, OLD)? {
            remove(&aside);
        }
        for (number, path) in numbered(self.dir, "")? {
            if number < generation && is_generation(&path)? && !path.join(MARKER_FILE).exists() {
                self.retire(number);
            }
        }
        if generation > FIRST_GENERATION {
            self.mark_first()?;
        }
        Ok(())
    }

    /// Puts the marker where the first generation was.
    fn mark_first(&self) -> Result<(), DiskError> {
        let place = self.dir.join(FIRST_GENERATION.to_string());
        if place.exists() {
            return Ok(());
        }
        let new = self.dir.join(format!("{FIRST_GENERATION}{NEW}"));
        let shard = new.join("0");
        let head = SegmentHead {
            worker_id: self.worker_id.to_owned(),
            generation: FIRST_GENERATION,
            shard: 0,
            shards: self.shards,
            features: FEATURES,
            id: 0,
            sequence: 1,
            first_lsn: Lsn(1),
            salt: self.salt.clone(),
            created_ms: 0,
            boot: 0,
        };
        let write = |path: PathBuf, bytes: &[u8]| {
            let mut file = File::create(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        let made = step(|| fs::create_dir_all(&shard))
            .and_then(|()| step(|| write(segment_path(&shard, 1), &head.encode_as(FORMAT + 1, u16::MAX))))
            .and_then(|()| step(|| write(new.join(MARKER_FILE), MARKER_TEXT.as_bytes())))
            .and_then(|()| step(|| fs::rename(&new, &place)));
        made.map_err(DiskError::io("writing", &place))?;
        sync(self.dir)
    }

    /// Removes a generation that a newer one has replaced. What cannot be removed is in nobody's way but the disk's.
    fn retire(&self, generation: u64) {
        let old = self.dir.join(generation.to_string());
        let aside = self.dir.join(format!("{generation}{OLD}"));
        match step(|| fs::rename(&old, &aside)) {
            Ok(()) => remove(&aside),
            Err(error) => not_removed(&old, &error),
        }
    }

    fn rewrite(&self, generation: u64, was: u16) -> Result<(), DiskError> {
        let clock = Clock::start();
        tracing::info!(
            was,
            now = self.shards,
            "another number of shards wrote this journal: it is checked, and then rewritten once"
        );
        let old = (0..was).map(|shard| self.check(generation, was, shard)).collect::<Result<Vec<_>, _>>()?;
        self.refuse_strays(generation, was)?;
        let plan = Plan::of(&old, self, was)?;
        let new = self.dir.join(format!("{}{NEW}", generation + 1));
        let free_now = free(self.dir);
        let no_room =
            |free| DiskError::NoRoomToReshard { path: self.dir.to_owned(), was, now: self.shards, needed: plan.bytes, free };
        if plan.bytes > free_now {
            return Err(no_room(free_now));
        }
        let copied = match self.copy(&plan, old, generation, &new, &clock) {
            Ok(copied) => copied,
            Err(error) => {
                // Half a journal is nobody's; where it stays, the next start removes it.
                let _ = fs::remove_dir_all(&new);
                return Err(if error.is_no_room() { no_room(free(self.dir)) } else { error });
            }
        };
        self.retire(generation);
        sync(self.dir)?;
        if let Err(error) = self.mark_first() {
            tracing::warn!(%error, "earlier builds are not kept from this journal's old place; the next start tries again");
        }
        let ms = clock.now().mono_us / 1000;
        let Copied { frames, bytes } = copied;
        tracing::info!(was, now = self.shards, generation = generation + 1, frames, bytes, ms, "the journal is rewritten");
        Ok(())
    }

    fn settings(&self, generation: u64, shards: u16, shard: u16) -> DiskSettings {
        DiskSettings {
            dir: self.dir.to_owned(),
            generation,
            shard,
            shards,
            worker_id: self.worker_id.to_owned(),
            salt: self.salt.clone(),
            segment_bytes: self.segment_bytes,
        }
    }

    fn check(&self, generation: u64, was: u16, shard: u16) -> Result<Checked, DiskError> {
        Checked::read(&self.settings(generation, was, shard))
    }

    /// Shards beyond the number that the journal has: a start with more shards, which was refused, may have left empty ones.
    fn refuse_strays(&self, generation: u64, was: u16) -> Result<(), DiskError> {
        let folder = self.dir.join(generation.to_string());
        for (_, shard) in numbered(&folder, "")?.into_iter().filter(|(shard, _)| *shard >= u64::from(was)) {
            for (_, path) in numbered(&shard, ".seg")? {
                let bytes = fs::read(&path).map_err(DiskError::io("reading", &path))?;
                if bytes.iter().skip(SEGMENT_HEAD_BYTES).all(|byte| *byte == 0) {
                    continue;
                }
                let head = next::decode(&bytes).map_err(|error| DiskError::Head { path: path.clone(), error })?;
                let error = HeadError::Shards { written: head.shards, now: was };
                return Err(DiskError::Head { path, error });
            }
        }
        Ok(())
    }

    /// Writes the new generation into `new`, whole and durable, and makes it the journal.
    fn copy(&self, plan: &Plan, old: Vec<Checked>, generation: u64, new: &Path, clock: &Clock) -> Result<Copied, DiskError> {
        let mut targets = Vec::new();
        for shard in 0..self.shards {
            let settings = self.settings(generation + 1, self.shards, shard);
            targets.push(Target::create(new.join(shard.to_string()), settings, plan.first_lsn, plan.boot)?);
        }
        let mut sources = old.into_iter().map(Source::open).collect::<Result<Vec<_>, _>>()?;
        // Where a message without a tenant goes, all that is said of it later goes.
        let mut unowned: HashMap<Key, u16> = HashMap::new();
        let mut said_us = clock.now().mono_us;
        let mut copied = Copied::default();
        while let Some(source) = oldest(&mut sources) {
            for frame in source.frames() {
                let frame = frame?;
                let target = match frame.unowned {
                    Some(message) => {
                        let shard = (self.unowned)(&message, self.shards);
                        unowned.insert(frame.key, shard);
                        shard
                    }
                    None => match unowned.get(&frame.key) {
                        Some(shard) => *shard,
                        // Its message is gone, so it says nothing; with another shard it might once come to say something.
                        None if frame.told_aside && frame.partition == map::partition("") => continue,
                        None => map::shard(frame.partition, self.shards),
                    },
                };
                targets[usize::from(target)].push(frame.raw)?;
                copied.frames += 1;
                copied.bytes += frame.raw.len() as u64;
            }
            source.advance()?;
            let now_us = clock.now().mono_us;
            if now_us - said_us > SAY_EVERY_US {
                said_us = now_us;
                tracing::info!(
                    frames = copied.frames,
                    bytes = copied.bytes,
                    of = plan.bytes,
                    ms = now_us / 1000,
                    "rewriting the journal"
                );
            }
        }
        for (shard, mut target) in targets.into_iter().enumerate() {
            let mut last = Log::default();
            for struck in plan.struck.iter().filter(|struck| map::shard(struck.head.partition, self.shards) as usize == shard) {
                last.struck(struck.head, struck.strikes, struck.boot, plan.wall_ms);
                target.push(&last.bytes)?;
                last.clear();
            }
            last.mark(plan.wall_ms, plan.first_lsn, plan.watermarks[shard]);
            target.end(&last.bytes)?;
        }
        self.take_along(generation, new)?;
        sync(new)?;
        let whole = self.dir.join((generation + 1).to_string());
        step(|| fs::rename(new, &whole)).map_err(DiskError::io("renaming to", &whole))?;
        sync(self.dir)?;
        Ok(copied)
    }

    fn take_along(&self, generation: u64, new: &Path) -> Result<(), DiskError> {
        let old = self.dir.join(generation.to_string());
        for name in self.along {
            let to = new.join(name);
            match step(|| fs::copy(old.join(name), &to)) {
                Ok(_) => step(|| File::open(&to)?.sync_all()).map_err(DiskError::io("syncing", &to))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(DiskError::io("writing", &to)(error)),
            }
        }
        Ok(())
    }
}

fn remove(aside: &Path) {
    if let Err(error) = step(|| fs::remove_dir_all(aside)) {
        not_removed(aside, &error);
    }
}

fn not_removed(old: &Path, error: &io::Error) {
    tracing::warn!(path = %old.display(), %error, "the journal as it was before it was rewritten cannot be removed; the next start tries again");
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default)]
struct Copied {
    frames: u64,
    bytes: u64,
}

/// What the old shards together say to the new ones.
struct Plan {
    /// Above every lsn that any of them has given.
    first_lsn: Lsn,
    /// Their newest start.
    boot: u32,
    wall_ms: u64,
    /// By new shard.
    watermarks: Vec<u64>,
    struck: Vec<Struck>,
    /// The new generation's size at most.
    bytes: u64,
}

/// A key in which the process died.
struct Struck {
    head: Head,
    strikes: u32,
    boot: u32,
}

impl Plan {
    fn of(old: &[Checked], wanted: &Wanted<'_>, was: u16) -> Result<Plan, DiskError> {
        let most = |of: fn(&Checked) -> u64| old.iter().map(of).max().unwrap_or(0);
        let mut watermarks = vec![0; usize::from(wanted.shards)];
        for partition in (0..PARTITIONS).map(Partition) {
            let of = old[usize::from(map::shard(partition, was))].watermark_ms;
            let its = &mut watermarks[usize::from(map::shard(partition, wanted.shards))];
            *its = of.max(*its);
        }
        let first_lsn = Lsn(most(|shard| shard.next_lsn.0).max(1));
        let boot = old.iter().map(|shard| shard.boot).max().unwrap_or(0);
        let owner_epoch = old.iter().map(|shard| shard.owner_epoch).max().unwrap_or(0);
        let mut struck = Vec::new();
        for shard in old {
            for &(Polled { key, partition, boot }, strikes) in &shard.died {
                tracing::warn!(%key, boot, "the process died in this step's own code: it gets a strike, and runs last and alone");
                struck.push(Struck { head: Head { key, partition, owner_epoch }, strikes, boot });
            }
        }
        let written = old.iter().map(|shard| shard.bytes).sum::<u64>();
        let bytes = target::bytes_max(written, wanted.shards, wanted.segment_bytes);
        Ok(Plan { first_lsn, boot, wall_ms: most(|shard| shard.wall_ms), watermarks, struck, bytes })
    }
}

/// The source whose next batch is the oldest.
fn oldest(sources: &mut [Source]) -> Option<&mut Source> {
    sources.iter_mut().filter(|source| source.is_there()).min_by_key(|source| source.moment_ms())
}

/// The newest generation that holds a segment.
fn newest(dir: &Path) -> Result<Option<u64>, DiskError> {
    for (generation, path) in numbered(dir, "")?.into_iter().rev() {
        if is_generation(&path)? {
            return Ok(Some(generation));
        }
    }
    Ok(None)
}

fn is_generation(path: &Path) -> Result<bool, DiskError> {
    if !path.is_dir() {
        return Ok(false);
    }
    for (_, shard) in numbered(path, "")? {
        if shard.is_dir() && !numbered(&shard, ".seg")?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many shards wrote a generation. The first of them knows: there is one in every layout, and a start with another number
/// that was refused changed nothing in it.
fn written_by(dir: &Path, generation: u64) -> Result<Option<u16>, DiskError> {
    let first = dir.join(generation.to_string()).join("0");
    let mut bytes = Vec::new();
    for (_, path) in numbered(&first, ".seg")?.into_iter().rev() {
        read_start(&path, &mut bytes)?;
        // What is wrong with a header is found and told when it is opened.
        if let Ok(head) = next::decode(&bytes) {
            return Ok(Some(head.shards));
        }
    }
    Ok(inspect(dir)?.filter(|head: &SegmentHead| head.generation == generation).map(|head| head.shards))
}

/// What this process may still write there, in bytes.
fn free(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn sync(folder: &Path) -> Result<(), DiskError> {
    step(|| File::open(folder)?.sync_all()).map_err(DiskError::io("syncing", folder))
}

/// One change on the disk. Tests end the process's life before any of them.
fn step<T>(change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    tests::before_a_step()?;
    fail::fail_point!("reshard-step", |_| std::process::abort());
    change()
}

/// The page that an earlier life left in this shard's folder.
fn polled(folder: &Path, boot: u32) -> Vec<Polled> {
    Page::left(folder, boot).unwrap_or_else(|error| {
        tracing::warn!(folder = %folder.display(), %error, "no page for strikes: a step that ended the process is not known for it");
        Vec::new()
    })
}

/// Where a segment lies.
fn segment_path(folder: &Path, sequence: u64) -> PathBuf {
    folder.join(super::segment::file_name(sequence))
}
