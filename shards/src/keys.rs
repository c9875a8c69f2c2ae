//! Key files as bytes: the finished keys of some closed segments, sorted, with what is kept of each file in memory, a [`KeyMap`].
//!
//! Where the bytes lie is not known here. Key files are derived from the journal: whatever is wrong with one, the segments
//! still hold the truth. All numbers are little-endian.
//!
//! | key file | bytes |
//! |---|---|
//! | pages of up to 102 entries of 40 bytes ([`Entry`]) in the order of their keys; how many, u16 at 4080; crc32c, last | 4096 each |
//! | the first eight bytes of each page's first key, as a big-endian number | u64 each |
//! | filter ([`Filter`]), in blocks | 64 each |
//! | footer: magic `ENDSTKEY`, format, whose it is, [`Facts`], pages, blocks, crc32c of index and filter; crc32c, last | 4096 |

mod filter;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::dedup::Entry;
use crate::ids::{Key, Lsn, Salt};
use crate::planted::{Bug, planted};

pub use filter::Filter;

/// Bytes of a page, and of the footer.
pub const PAGE_BYTES: usize = 4096;
/// Entries in a full page.
const PAGE_ENTRIES: usize = 102;
const COUNT_AT: usize = PAGE_ENTRIES * Entry::BYTES;
const CRC_AT: usize = PAGE_BYTES - 4;
const FORMAT: u16 = 1;
const MAGIC: &[u8; 8] = b"ENDSTKEY";
/// Index and filter are written and read in pieces of this size, in bytes.
pub const PIECE_BYTES: usize = 64 << 10;

const _: () = assert!(COUNT_AT + 2 <= CRC_AT);
const _: () = assert!(PIECE_BYTES.is_multiple_of(8));

/// Whose keys they are. A file of another's is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The worker.
    pub worker_id: String,
    /// Which layout of shards and partitions.
    pub generation: u64,
    /// Whose journal.
    pub shard: u16,
    /// What keys are salted with.
    pub salt: Salt,
}

impl Owner {
    /// Stands for all of it.
    pub fn mark(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        for field in [&self.salt.0[..], &self.generation.to_le_bytes(), &self.shard.to_le_bytes(), self.worker_id.as_bytes()] {
            hasher.update(field);
        }
        let mut mark = [0; 16];
        mark.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        mark
    }
}

/// What a key file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Facts {
    /// Its keys were finished by frames from here…
    pub from: Lsn,
    /// …up to before here.
    pub to: Lsn,
    /// How many there are.
    pub count: u64,
    /// How many of them are assignments' answers.
    pub answers: u64,
    /// The newest outcome: once that is gone, so is the file's use.
    pub newest: Lsn,
}

impl Facts {
    /// The file's name.
    pub fn name(&self) -> String {
        format!("{:020}-{:020}.keys", self.from.0, self.to.0)
    }
}

/// What is wrong with a key file, or a snapshot: never more than a reason to read the segments instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub &'static str);

/// What is kept in memory of a key file: where a key would stand in it, and whether it may. Shared, never changes.
pub struct KeyMap {
    facts: Facts,
    /// The first eight bytes of each page's first key.
    firsts: Vec<u64>,
    filter: Filter,
}

impl fmt::Debug for KeyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyMap").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl KeyMap {
    /// What the file says of itself.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// Whether the file may hold `key`.
    #[inline]
    pub fn may_hold(&self, key: &Key) -> bool {
        self.filter.may_hold(key)
    }

    /// The pages that may hold `key`: one, but for keys that begin alike.
    pub fn pages_for(&self, key: &Key) -> std::ops::Range<u64> {
        let start = start_of(key);
        let from = self.firsts.partition_point(|first| *first < start).saturating_sub(1);
        let to = self.firsts.partition_point(|first| *first <= start);
        from as u64..to as u64
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.firsts.len() as u64
    }

    /// What it takes in memory, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.pages() * 8 + self.filter.bytes()
    }

    /// Gives what follows the pages, piece by piece.
    pub fn tail<E>(&self, owner: &Owner, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut crc = 0;
        for word in self.firsts.iter().copied().chain(self.filter.words()) {
            piece.extend_from_slice(&word.to_le_bytes());
            if piece.len() == PIECE_BYTES {
                crc = crc32c::crc32c_append(crc, &piece);
                each(&piece)?;
                piece.clear();
            }
        }
        crc = crc32c::crc32c_append(crc, &piece);
        each(&piece)?;
        each(&Footer { facts: self.facts, pages: self.pages(), blocks: self.filter.blocks(), crc }.encode(owner))
    }
}

fn start_of(key: &Key) -> u64 {
    u64::from_be_bytes(key.0[..8].try_into().expect("eight bytes"))
}

/// The end of a key file. Lives on the thread that reads it.
#[derive(Clone, Copy, Debug)]
pub struct Footer {
    facts: Facts,
    pages: u64,
    blocks: u64,
    crc: u32,
}

impl Footer {
    fn encode(&self, owner: &Owner) -> [u8; PAGE_BYTES] {
        let Footer { facts, pages, blocks, crc } = self;
        let mut out = [0; PAGE_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..32].copy_from_slice(&owner.mark());
        let numbers = [facts.from.0, facts.to.0, facts.count, facts.answers, facts.newest.0, *pages, *blocks];
        for (at, number) in numbers.into_iter().enumerate() {
            out[32 + at * 8..40 + at * 8].copy_from_slice(&number.to_le_bytes());
        }
        out[88..92].copy_from_slice(&crc.to_le_bytes());
        let whole = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&whole.to_le_bytes());
        out
    }

    /// Reads the last page of a file of `length` bytes.
    ///
    /// # Errors
    /// It is damaged, of another format, another's, or does not fit the file.
    pub fn decode(bytes: &[u8], owner: &Owner, length: u64) -> Result<Footer, Unfit> {
        let bytes: &[u8; PAGE_BYTES] = bytes.try_into().map_err(|_| Unfit("a key file is too short"))?;
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let u32_at = |at: usize| u64_at(at) as u32;
        if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() != bytes[CRC_AT..] {
            return Err(Unfit("a key file's footer is damaged"));
        }
        if bytes[8..10] != FORMAT.to_le_bytes() {
            return Err(Unfit("a key file is of another format"));
        }
        if bytes[16..32] != owner.mark() {
            return Err(Unfit("a key file is another worker's or shard's"));
        }
        let facts =
            Facts { from: Lsn(u64_at(32)), to: Lsn(u64_at(40)), count: u64_at(48), answers: u64_at(56), newest: Lsn(u64_at(64)) };
        let footer = Footer { facts, pages: u64_at(72), blocks: u64_at(80), crc: u32_at(88) };
        if footer.blocks == 0 || footer.map_at() + footer.map_bytes() + PAGE_BYTES as u64 != length {
            return Err(Unfit("a key file is not as long as it says"));
        }
        Ok(footer)
    }

    /// Where index and filter begin, in bytes.
    pub fn map_at(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// Bytes of index and filter.
    pub fn map_bytes(&self) -> u64 {
        self.pages * 8 + self.blocks * filter::BLOCK_BYTES as u64
    }

    /// Reads index and filter from pieces that `next` fills, one after the other.
    ///
    /// # Errors
    /// They are damaged, or `next` failed.
    pub fn read_map<E: From<Unfit>>(&self, mut next: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<KeyMap, E> {
        let mut firsts = Vec::with_capacity(self.pages as usize);
        let mut filter = Filter::with_blocks(self.blocks);
        let (mut left, mut at, mut crc) = (self.map_bytes(), 0, 0);
        let mut piece = vec![0; PIECE_BYTES];
        while left > 0 {
            let length = left.min(PIECE_BYTES as u64) as usize;
            next(&mut piece[..length])?;
            crc = crc32c::crc32c_append(crc, &piece[..length]);
            for word in piece[..length].chunks_exact(8) {
                let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
                if firsts.len() < self.pages as usize {
                    firsts.push(word);
                } else {
                    filter.set_word(at, word);
                    at += 1;
                }
            }
            left -= length as u64;
        }
        if crc != self.crc {
            return Err(Unfit("a key file's index or filter is damaged").into());
        }
        Ok(KeyMap { facts: self.facts, firsts, filter })
    }
}

/// Makes a key file of entries that come in the order of their keys. Lives on the thread that writes it.
#[derive(Debug)]
pub struct Writer {
    map: KeyMap,
    page: Vec<u8>,
}

impl Writer {
    /// Of keys finished by the frames from..to, at most `most` of them.
    pub fn new(from: Lsn, to: Lsn, most: u64) -> Self {
        let facts = Facts { from, to, ..Facts::default() };
        let map = KeyMap { facts, firsts: Vec::new(), filter: Filter::for_keys(most) };
        Writer { map, page: Vec::with_capacity(PAGE_BYTES) }
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.map.facts.name()
    }

    /// Takes the next entry; gives a page to `each` when one is full.
    pub fn push<E>(&mut self, entry: &Entry, each: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if self.page.is_empty() {
            self.map.firsts.push(start_of(&entry.key));
        }
        self.page.extend_from_slice(&entry.encode());
        self.map.filter.add(&entry.key);
        let facts = &mut self.map.facts;
        facts.count += 1;
        facts.answers += u64::from(entry.is_answer());
        facts.newest = facts.newest.max(entry.lsn());
        if self.page.len() == COUNT_AT { self.end_page(each) } else { Ok(()) }
    }

    fn end_page<E>(&mut self, each: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let count = (self.page.len() / Entry::BYTES) as u16;
        self.page.resize(PAGE_BYTES, 0);
        self.page[COUNT_AT..COUNT_AT + 2].copy_from_slice(&count.to_le_bytes());
        let crc = page_crc(&self.page, self.map.pages() - 1);
        self.page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        each(&self.page)?;
        self.page.clear();
        Ok(())
    }

    /// Ends the last page; what follows is [`KeyMap::tail`].
    pub fn finish<E>(mut self, each: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<KeyMap, E> {
        if !self.page.is_empty() {
            self.end_page(each)?;
        }
        Ok(self.map)
    }
}

/// Over a page without its own checksum, and where it belongs.
fn page_crc(page: &[u8], number: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), &page[..CRC_AT])
}

/// The entries of page `number`.
///
/// # Errors
/// It is damaged.
pub fn entries(page: &[u8], number: u64) -> Result<&[[u8; Entry::BYTES]], Unfit> {
    let page: &[u8; PAGE_BYTES] = page.try_into().map_err(|_| Unfit("a key file is too short"))?;
    let count = usize::from(u16::from_le_bytes([page[COUNT_AT], page[COUNT_AT + 1]]));
    if page_crc(page, number).to_le_bytes() != page[CRC_AT..] || count > PAGE_ENTRIES {
        return Err(Unfit("a page of a key file is damaged"));
    }
    Ok(&page[..count * Entry::BYTES].as_chunks().0[..count])
}

/// The entry of `key` in page `number`, if it stands there.
///
/// # Errors
/// The page is damaged.
pub fn find(page: &[u8], number: u64, key: &Key) -> Result<Option<Entry>, Unfit> {
    let entries = entries(page, number)?;
    let at = entries.binary_search_by(|entry| entry[..16].cmp(&key.0));
    Ok(at.ok().map(|at| Entry::decode(&entries[at])))
}

/// The entry at a place in a page that was found sound, if so many stand in it.
pub fn nth(page: &[u8], at: usize) -> Option<Entry> {
    let count = usize::from(u16::from_le_bytes([page[COUNT_AT], page[COUNT_AT + 1]]));
    let entry = page.get(at * Entry::BYTES..)?.first_chunk()?;
    (at < count).then(|| Entry::decode(entry))
}

/// Puts entries into the order of a key file; of two of one key the newer stays.
pub fn sort(entries: &mut Vec<Entry>) {
    entries.sort_unstable_by_key(|entry| (entry.key, std::cmp::Reverse(entry.lsn())));
    entries.dedup_by_key(|entry| entry.key);
}

/// Key files as one: of the entries of one key the newest file's stays, and none whose outcome stands below `floor`.
#[expect(missing_debug_implementations, reason = "what it reads from need not have it")]
pub struct Merge<I: Iterator> {
    /// The oldest file's first.
    files: Vec<std::iter::Peekable<I>>,
    floor: Lsn,
}

impl<E, I: Iterator<Item = Result<Entry, E>>> Merge<I> {
    /// Of the entries of all `files`, the oldest first, each in the order of their keys.
    pub fn new(files: impl IntoIterator<Item = I>, floor: Lsn) -> Self {
        Merge { files: files.into_iter().map(Iterator::peekable).collect(), floor }
    }
}

impl<E, I: Iterator<Item = Result<Entry, E>>> Iterator for Merge<I> {
    type Item = Result<Entry, E>;

    fn next(&mut self) -> Option<Result<Entry, E>> {
        loop {
            let mut first: Option<(usize, Key)> = None;
            for (at, file) in self.files.iter_mut().enumerate() {
                match file.peek() {
                    Some(Err(_)) => return file.next(),
                    Some(Ok(entry)) if first.is_none_or(|(_, key)| entry.key <= key) => first = Some((at, entry.key)),
                    _ => {}
                }
            }
            let (at, key) = first?;
            let entry = self.files[at].next()?;
            for file in &mut self.files[..at] {
                file.next_if(|older| older.as_ref().is_ok_and(|older| older.key == key));
            }
            let lost = |entry: &Entry| planted(Bug::MergeForgets) && entry.lsn().0.is_multiple_of(2);
            if !matches!(&entry, Ok(entry) if entry.lsn() < self.floor || lost(entry)) {
                return Some(entry);
            }
        }
    }
}

/// From which on the newest files become one, if there are more than `most`: as many as it takes until the one before is as large
/// as they are together. So files grow as they grow old, and a key is moved a few times only.
pub fn to_merge(counts: &[u64], most: usize) -> Option<usize> {
    let newest_alone = counts.len().checked_sub(1).filter(|_| counts.len() > most)?;
    let mut together = counts[newest_alone];
    let older = counts[..newest_alone].iter().enumerate().rev();
    let mut from = newest_alone;
    for (at, count) in older {
        // At least two become one.
        if from < newest_alone && *count >= together {
            break;
        }
        (from, together) = (at, together + count);
    }
    Some(from)
}
