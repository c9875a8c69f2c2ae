//! One page of memory that outlives the process: it names the key whose own code is being polled just now.
//!
//! It is a file in the shard's folder, mapped shared. What was stored there is the system's when the process aborts or is
//! killed, so the next start reads which step it died in. Naming and clearing are five plain stores and a few multiplications,
//! without a system call. A sum over key, boot and the machine's own boot id guards it: a page that is torn, of another life
//! of the machine (after a power loss it may be old), or of another journal names nobody.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence};

use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::ids::{BlockId, Key, Partition};

const FILE_NAME: &str = "polled";
const PAGE_BYTES: usize = 4096;
/// Different for each life of the machine; the same in every container on it.
const MACHINE_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What lies at the start of the file, in the machine's byte order. Outlives the process.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Line {
    key: [AtomicU64; 2],
    /// Boot, block and partition.
    life: AtomicU64,
    /// Over all of the above; 0 while nothing is polled.
    sum: AtomicU64,
}

/// The page of one shard, mapped for as long as the process lives. Written on its core; the watchdog reads along.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    line: &'static Line,
    boot: u32,
    /// Stands for this life of the machine.
    seed: u64,
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
    pub fn open(folder: &Path, boot: u32) -> io::Result<(Page, Option<Polled>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(FILE_NAME))?;
        let page = Page { line: map(&file)?, boot, seed: machine_seed() };
        Ok((page, page.read()))
    }

    /// What the lives before the start `boot` left in the shard's folder, which is not touched; `None` also where no page is.
    ///
    /// # Errors
    /// The system refused the file.
    pub fn left(folder: &Path, boot: u32) -> io::Result<Option<Polled>> {
        let bytes = match std::fs::read(folder.join(FILE_NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let Some(bytes) = bytes.first_chunk::<{ size_of::<u64>() * 4 }>() else { return Ok(None) };
        let word = |at: usize| AtomicU64::new(u64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes")));
        let line = Line { key: [word(0), word(1)], life: word(2), sum: word(3) };
        Ok(line.polled(machine_seed()).map(|(polled, _)| polled).filter(|polled| polled.boot < boot))
    }

    /// A page that does not outlive the process.
    pub fn nowhere(boot: u32) -> Page {
        Page { line: Box::leak(Box::default()), boot, seed: 0 }
    }

    /// Says that this key's code is polled from now on.
    #[inline]
    pub fn name(&self, key: Key, partition: Partition, block: BlockId) -> Named {
        let life = u64::from(self.boot) << 32 | u64::from(block.0) << 16 | u64::from(partition.0);
        let words = words(key);
        self.line.key[0].store(words[0], Relaxed);
        self.line.key[1].store(words[1], Relaxed);
        self.line.life.store(life, Relaxed);
        self.line.sum.store(sum(self.seed, words, life), Release);
        // A killed thread leaves the stores that its program has made: only the compiler could have moved them.
        compiler_fence(SeqCst);
        Named { line: self.line }
    }

    /// Forgets what an earlier life left.
    pub fn wipe(&self) {
        self.line.sum.store(0, Release);
    }

    fn read(&self) -> Option<Polled> {
        self.line().map(|(polled, _)| polled).filter(|polled| polled.boot < self.boot)
    }

    /// Whose code is being polled at this moment, and which block's: for another thread that looks at a core which does not
    /// turn. On one that does, the answer is as old as it is late.
    pub fn polled_now(&self) -> Option<(Key, BlockId)> {
        self.line().filter(|(polled, _)| polled.boot == self.boot).map(|(polled, block)| (polled.key, block))
    }

    fn line(&self) -> Option<(Polled, BlockId)> {
        self.line.polled(self.seed)
    }
}

impl Line {
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

/// The file's first page. It is written whole where it is new, so that no later store can meet a full disk.
fn map(file: &File) -> io::Result<&'static Line> {
    if file.metadata()?.len() != PAGE_BYTES as u64 {
        file.set_len(0)?;
        file.write_all_at(&[0; PAGE_BYTES], 0)?;
        file.sync_all()?;
    }
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the system's choosing overlaps nothing of ours.
    let address = unsafe { mmap(std::ptr::null_mut(), PAGE_BYTES, protection, MapFlags::SHARED, file, 0)? };
    // SAFETY: the mapping is a whole page, as aligned as pages are, and is never taken away. `Line` is atomics alone: any bits
    // are a value of it.
    Ok(unsafe { &*address.cast::<Line>() })
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

    fn open(folder: &tempfile::TempDir, boot: u32) -> (Page, Option<Polled>) {
        Page::open(folder.path(), boot).expect("a page")
    }

    #[test]
    fn the_next_life_reads_what_this_one_polled() {
        let folder = folder();
        let (page, polled) = open(&folder, 3);
        assert_eq!(polled, None);
        // As a process does that dies now.
        std::mem::forget(page.name(KEY, PARTITION, BLOCK));
        let polled = Some(Polled { key: KEY, partition: PARTITION, boot: 3 });
        assert_eq!(open(&folder, 4).1, polled);
        assert_eq!(open(&folder, 9).1, polled, "a life that died before it polled anything changes nothing");
        assert_eq!(Page::left(folder.path(), 9).expect("a page"), polled, "without mapping it, too");
        assert_eq!(Page::left(folder.path(), 3).expect("a page"), None, "a life does not find itself dead");
        assert_eq!(Page::left(&folder.path().join("elsewhere"), 9).expect("no page is no error"), None);
        assert_eq!(open(&folder, 3).1, None, "a journal that counts its lives anew knows nothing of it");
    }

    #[test]
    fn what_was_polled_to_its_end_or_panicked_is_not_named() {
        let folder = folder();
        let (page, _) = open(&folder, 1);
        let named = page.name(KEY, PARTITION, BLOCK);
        assert_eq!(page.polled_now(), Some((KEY, BLOCK)));
        drop(named);
        assert_eq!(page.polled_now(), None);
        assert_eq!(open(&folder, 2).1, None);
        let panicked = std::panic::catch_unwind(|| {
            let _named = page.name(KEY, PARTITION, BLOCK);
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err());
        assert_eq!(open(&folder, 2).1, None);
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
            assert_eq!(open(&folder, 2).1, None, "byte {at}");
        }
        std::fs::write(&path, &whole[..100]).expect("written");
        assert_eq!(open(&folder, 2).1, None, "cut short");
        assert_eq!(std::fs::metadata(&path).map(|file| file.len()).ok(), Some(PAGE_BYTES as u64));
    }

    #[test]
    fn a_page_of_another_life_of_the_machine_names_nobody() {
        let folder = folder();
        let (page, _) = open(&folder, 1);
        let before = Page { seed: page.seed ^ 2, ..page };
        std::mem::forget(before.name(KEY, PARTITION, BLOCK));
        assert_eq!(open(&folder, 2).1, None);
    }
}
