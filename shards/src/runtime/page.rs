//! Memory that outlives the process: it names the key whose own code is being polled just now on the shard's core, and those
//! whose pieces compute threads are at.
//!
//! It is a file in the shard's folder, mapped shared. What was stored there is the system's when the process aborts or is
//! killed, so the next start reads which steps it died in. Naming and clearing are five plain stores and a few multiplications,
//! without a system call. A sum over key, boot and the machine's own boot id guards it: a page that is torn, of another life
//! of the machine (after a power loss it may be old), or of another journal names nobody.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::ids::{BlockId, Key, Partition};
use crate::limits::COMPUTE_THREADS_MAX;

const FILE_NAME: &str = "polled";
/// The shard's own line, and one for each compute thread.
const LINES: usize = 1 + COMPUTE_THREADS_MAX;
const PAGE_BYTES: usize = LINES * size_of::<Line>();
const _: () = assert!(PAGE_BYTES.is_multiple_of(4096), "what is mapped are whole pages");
/// What it had when only the shard's own code was named.
const OLDER_PAGE_BYTES: usize = 4096;
/// Different for each life of the machine; the same in every container on it.
const MACHINE_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One of those that the file begins with, in the machine's byte order. Outlives the process.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Line {
    key: [AtomicU64; 2],
    /// Boot, block and partition.
    life: AtomicU64,
    /// Over all of the above; 0 while nothing is polled.
    sum: AtomicU64,
}

/// The page of one shard, mapped for as long as the process lives. Its first line is written on its core, each other one by the
/// compute thread of that number; the watchdog reads along.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    lines: &'static [Line; LINES],
    boot: u32,
    /// Stands for this life of the machine.
    seed: u64,
}

thread_local! {
    /// The page of the shard whose core this is.
    static HERE: Cell<Option<Page>> = const { Cell::new(None) };
}

/// The step whose own code a core polls, for another thread that does a piece of its work. Crosses cores.
#[derive(Clone, Copy, Debug)]
pub struct Deputy {
    page: Page,
    key: Key,
    /// As a line has it.
    life: u64,
}

/// What the page of an earlier life names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The key.
    pub key: Key,
    /// Its partition.
    pub partition: Partition,
    /// Which start of this worker polled it when it died.
    pub boot: u32,
}

/// A key's code is being polled for as long as this lives, be it left by a panic.
#[derive(Debug)]
pub struct Named {
    line: &'static Line,
}

impl Page {
    /// Maps the page in the shard's folder, which only one process may have open, and reads what an earlier life left there.
    /// That stays until something is named, or until [`Page::wipe`].
    ///
    /// # Errors
    /// The system refused the file or the mapping.
    pub fn open(folder: &Path, boot: u32) -> io::Result<(Page, Vec<Polled>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(FILE_NAME))?;
        let page = Page { lines: map(&file)?, boot, seed: machine_seed() };
        Ok((page, left_in(page.lines, page.seed, boot)))
    }

    /// From now on it is the page of the thread that calls this: see [`Deputy::here`].
    pub fn settle(self) {
        HERE.set(Some(self));
    }

    /// What the lives before the start `boot` left in the shard's folder, which is not touched; nothing also where no page is.
    ///
    /// # Errors
    /// The system refused the file.
    pub fn left(folder: &Path, boot: u32) -> io::Result<Vec<Polled>> {
        let bytes = match std::fs::read(folder.join(FILE_NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes?,
        };
        let word = |bytes: &[u8], at: usize| {
            AtomicU64::new(u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes")))
        };
        let line = |bytes: &[u8]| Line { key: [word(bytes, 0), word(bytes, 1)], life: word(bytes, 2), sum: word(bytes, 3) };
        let lines: Vec<Line> = bytes.chunks_exact(size_of::<Line>()).map(line).collect();
        Ok(left_in(&lines, machine_seed(), boot))
    }

    /// A page that does not outlive the process.
    pub fn nowhere(boot: u32) -> Page {
        Page { lines: Box::leak(Box::new(std::array::from_fn(|_| Line::default()))), boot, seed: 0 }
    }

    /// Says that this key's code is polled from now on.
    #[inline]
    pub fn name(&self, key: Key, partition: Partition, block: BlockId) -> Named {
        let life = u64::from(self.boot) << 32 | u64::from(block.0) << 16 | u64::from(partition.0);
        self.lines[0].name(self.seed, key, life)
    }

    /// Forgets what earlier lives left of this key.
    pub fn wipe(&self, key: Key) {
        for line in self.lines {
            if line.polled(self.seed).is_some_and(|(polled, _)| polled.key == key && polled.boot < self.boot) {
                line.sum.store(0, Release);
            }
        }
    }

    /// Whose code is being polled at this moment, and which block's: for another thread that looks at a core which does not
    /// turn. On one that does, the answer is as old as it is late.
    pub fn polled_now(&self) -> Option<(Key, BlockId)> {
        let (polled, block) = self.lines[0].polled(self.seed)?;
        (polled.boot == self.boot).then_some((polled.key, block))
    }
}

impl Deputy {
    /// Of the step whose code this very thread polls just now, where it is a shard's.
    pub fn here() -> Option<Deputy> {
        let page = HERE.get()?;
        let (polled, _) = page.lines[0].polled(page.seed).filter(|(polled, _)| polled.boot == page.boot)?;
        Some(Deputy { page, key: polled.key, life: page.lines[0].life.load(Relaxed) })
    }

    /// Says that the compute thread of this number is at a piece of it from now on.
    ///
    /// # Panics
    /// There are no more than [`COMPUTE_THREADS_MAX`].
    pub fn name(&self, thread: usize) -> Named {
        self.page.lines[1 + thread].name(self.page.seed, self.key, self.life)
    }
}

/// Each key once.
fn left_in(lines: &[Line], seed: u64, boot: u32) -> Vec<Polled> {
    let mut left: Vec<Polled> = Vec::new();
    for (polled, _) in lines.iter().filter_map(|line| line.polled(seed)) {
        if polled.boot < boot && left.iter().all(|other| other.key != polled.key) {
            left.push(polled);
        }
    }
    left
}

impl Line {
    #[inline]
    fn name(&'static self, seed: u64, key: Key, life: u64) -> Named {
        let words = words(key);
        self.key[0].store(words[0], Relaxed);
        self.key[1].store(words[1], Relaxed);
        self.life.store(life, Relaxed);
        self.sum.store(sum(seed, words, life), Release);
        // A killed thread leaves the stores that its program has made: only the compiler could have moved them.
        compiler_fence(SeqCst);
        Named { line: self }
    }

    fn polled(&self, seed: u64) -> Option<(Polled, BlockId)> {
        let words = [self.key[0].load(Relaxed), self.key[1].load(Relaxed)];
        let life = self.life.load(Relaxed);
        if self.sum.load(Relaxed) != sum(seed, words, life) {
            return None;
        }
        let mut key = [0; 16];
        key[..8].copy_from_slice(&words[0].to_le_bytes());
        key[8..].copy_from_slice(&words[1].to_le_bytes());
        let polled = Polled { key: Key(key), partition: Partition(life as u16), boot: (life >> 32) as u32 };
        Some((polled, BlockId((life >> 16) as u16)))
    }
}

impl Drop for Named {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(SeqCst);
        self.line.sum.store(0, Release);
    }
}

/// The file's lines. They are written whole where they are new, so that no later store can meet a full disk.
fn map(file: &File) -> io::Result<&'static [Line; LINES]> {
    let there = file.metadata()?.len();
    if there != PAGE_BYTES as u64 {
        let kept = if there == OLDER_PAGE_BYTES as u64 { OLDER_PAGE_BYTES } else { 0 };
        file.set_len(kept as u64)?;
        file.write_all_at(&[0; PAGE_BYTES][kept..], kept as u64)?;
        file.sync_all()?;
    }
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the system's choosing overlaps nothing of ours.
    let address = unsafe { mmap(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::SHARED, file, 0)? };
    // SAFETY: the mapping is of this size, as aligned as pages are, and is never taken away. `Line` is atomics alone: any bits
    // are a value of it.
    Ok(unsafe { &*address.cast::<[Line; LINES]>() })
}

fn words(key: Key) -> [u64; 2] {
    let whole = u128::from_le_bytes(key.0);
    [whole as u64, (whole >> 64) as u64]
}

/// Never 0, which says that nothing is polled.
#[inline]
fn sum(seed: u64, words: [u64; 2], life: u64) -> u64 {
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    mix(mix(mix(seed, words[0]), words[1]), life) | 1
}

fn machine_seed() -> u64 {
    // Where it cannot be read, a page that a power loss left old is believed.
    let id = std::fs::read(MACHINE_BOOT_ID).unwrap_or_default();
    let digest = blake3::hash(&id);
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([7; 16]);
    const PARTITION: Partition = Partition(200);

    const BLOCK: BlockId = BlockId(4);

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn open(folder: &tempfile::TempDir, boot: u32) -> (Page, Vec<Polled>) {
        Page::open(folder.path(), boot).expect("a page")
    }

    #[test]
    fn the_next_life_reads_what_this_one_polled() {
        let folder = folder();
        let (page, polled) = open(&folder, 3);
        assert_eq!(polled, []);
        // As a process does that dies now.
        std::mem::forget(page.name(KEY, PARTITION, BLOCK));
        let polled = [Polled { key: KEY, partition: PARTITION, boot: 3 }];
        assert_eq!(open(&folder, 4).1, polled);
        assert_eq!(open(&folder, 9).1, polled, "a life that died before it polled anything changes nothing");
        assert_eq!(Page::left(folder.path(), 9).expect("a page"), polled, "without mapping it, too");
        assert_eq!(Page::left(folder.path(), 3).expect("a page"), [], "a life does not find itself dead");
        assert_eq!(Page::left(&folder.path().join("elsewhere"), 9).expect("no page is no error"), []);
        assert_eq!(open(&folder, 3).1, [], "a journal that counts its lives anew knows nothing of it");
    }

    #[test]
    fn what_compute_threads_are_at_is_named_too_until_that_key_is_wiped() {
        let folder = folder();
        let (page, _) = open(&folder, 3);
        assert!(Deputy::here().is_none(), "no shard's thread");
        page.settle();
        assert!(Deputy::here().is_none(), "nothing is polled");
        let named = page.name(KEY, PARTITION, BLOCK);
        let deputy = Deputy::here().expect("it is");
        drop(named);
        let elsewhere = std::thread::spawn(move || {
            drop(deputy.name(0));
            std::mem::forget(deputy.name(COMPUTE_THREADS_MAX - 1));
        });
        elsewhere.join().expect("no panic");
        const OTHER: Key = Key([8; 16]);
        std::mem::forget(page.name(OTHER, PARTITION, BLOCK));
        let polled = [OTHER, KEY].map(|key| Polled { key, partition: PARTITION, boot: 3 });
        assert_eq!(Page::left(folder.path(), 4).expect("a page"), polled);
        let (page, left) = open(&folder, 4);
        assert_eq!(left, polled);
        page.wipe(OTHER);
        assert_eq!(open(&folder, 4).1, polled[1..]);
        page.wipe(KEY);
        assert_eq!(open(&folder, 4).1, []);
    }

    #[test]
    fn a_page_of_an_older_release_is_read_and_grows() {
        let folder = folder();
        let (page, _) = open(&folder, 3);
        std::mem::forget(page.name(KEY, PARTITION, BLOCK));
        let path = folder.path().join(FILE_NAME);
        std::fs::write(&path, &std::fs::read(&path).expect("the file")[..OLDER_PAGE_BYTES]).expect("written");
        assert_eq!(Page::left(folder.path(), 4).expect("a page").len(), 1);
        assert_eq!(open(&folder, 4).1.len(), 1);
        assert_eq!(std::fs::metadata(&path).map(|file| file.len()).ok(), Some(PAGE_BYTES as u64));
    }

    #[test]
    fn what_was_polled_to_its_end_or_panicked_is_not_named() {
        let folder = folder();
        let (page, _) = open(&folder, 1);
        let named = page.name(KEY, PARTITION, BLOCK);
        assert_eq!(page.polled_now(), Some((KEY, BLOCK)));
        drop(named);
        assert_eq!(page.polled_now(), None);
        assert_eq!(open(&folder, 2).1, []);
        let panicked = std::panic::catch_unwind(|| {
            let _named = page.name(KEY, PARTITION, BLOCK);
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err());
        assert_eq!(open(&folder, 2).1, []);
    }

    #[test]
    fn a_torn_page_names_nobody() {
        let folder = folder();
        let (page, _) = open(&folder, 1);
        std::mem::forget(page.name(KEY, PARTITION, BLOCK));
        let path = folder.path().join(FILE_NAME);
        let whole = std::fs::read(&path).expect("the file");
        for at in 0..32 {
            let mut torn = whole.clone();
            torn[at] ^= 2;
            std::fs::write(&path, &torn).expect("written");
            assert_eq!(open(&folder, 2).1, [], "byte {at}");
        }
        std::fs::write(&path, &whole[..100]).expect("written");
        assert_eq!(open(&folder, 2).1, [], "cut short");
        assert_eq!(std::fs::metadata(&path).map(|file| file.len()).ok(), Some(PAGE_BYTES as u64));
    }

    #[test]
    fn a_page_of_another_life_of_the_machine_names_nobody() {
        let folder = folder();
        let (page, _) = open(&folder, 1);
        let before = Page { seed: page.seed ^ 2, ..page };
        std::mem::forget(before.name(KEY, PARTITION, BLOCK));
        assert_eq!(open(&folder, 2).1, []);
    }
}
