//! What this shard remembers of keys: [`Known`], one small entry a key, for as long as the journal has its outcome.
//!
//! An entry says where the journal keeps the outcome, or which job is on its way to one. Bodies are not here: they are read
//! back from the journal when somebody asks. Entries hold 64 bits of the fingerprint and of the asker; the full values are
//! in the journal.
//!
//! The entries lie in many small tables, because a table that grows moves everything it holds at once: a million entries in
//! one would hold up a core for tens of milliseconds.

use std::collections::VecDeque;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use crate::ids::{AskerId, Fingerprint, Key, Lsn};

/// Tables that entries are spread over by a byte of their key.
const TABLES: usize = 256;
/// A table may have room for so many more than four times what it holds.
const TABLE_SPARE: usize = 1024;
/// Finished keys are queued in pieces of so many, which are never copied to make room for more.
const PIECE: usize = 4096;

/// The keys of one shard. Lives on its core.
#[derive(Clone, Debug)]
pub struct Known {
    tables: Box<[HashTable<Entry>]>,
    len: usize,
    /// Finished keys that lie in no key file, in the order they were finished.
    finished: VecDeque<Vec<Entry>>,
    /// How many of the first piece have been taken.
    taken: usize,
    /// Entries that are answers of assignments, not steps: while there are none, nobody needs to look for one.
    answers: usize,
    /// The next table that may shrink.
    look_at: usize,
}

/// One key. 40 bytes, in memory and in key files: a million of them are part of the promise on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Itself.
    pub key: Key,
    fingerprint: u64,
    asker: u64,
    /// A slot of the job table with [`IN_FLIGHT`], else the outcome's frame; with [`ANSWER`] or not.
    place: u64,
}

const _: () = assert!(size_of::<Entry>() == Entry::BYTES);

const IN_FLIGHT: u64 = 1 << 63;
const ANSWER: u64 = 1 << 62;
const PLACE_MASK: u64 = ANSWER - 1;

impl Entry {
    /// What one takes in a key file.
    pub const BYTES: usize = 40;

    /// A key whose outcome stands in frame `lsn`.
    pub fn finished(key: Key, fingerprint: &Fingerprint, asker: &AskerId, lsn: Lsn, answer: bool) -> Entry {
        let place = (lsn.0 & PLACE_MASK) | if answer { ANSWER } else { 0 };
        Entry { key, fingerprint: short_fingerprint(fingerprint), asker: short_asker(asker), place }
    }

    /// As it stands in a key file.
    pub fn encode(&self) -> [u8; Entry::BYTES] {
        let mut bytes = [0; Entry::BYTES];
        bytes[..16].copy_from_slice(&self.key.0);
        for (at, number) in [self.fingerprint, self.asker, self.place].into_iter().enumerate() {
            bytes[16 + at * 8..24 + at * 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads one.
    pub fn decode(bytes: &[u8; Entry::BYTES]) -> Entry {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let mut key = Key([0; 16]);
        key.0.copy_from_slice(&bytes[..16]);
        Entry { key, fingerprint: u64_at(16), asker: u64_at(24), place: u64_at(32) }
    }

    /// Entries with the same number lie near each other in memory.
    pub fn table(&self) -> usize {
        table_of(&self.key)
    }

    /// The frame with the outcome of a finished key.
    pub fn lsn(&self) -> Lsn {
        Lsn(self.place & PLACE_MASK)
    }

    /// What is remembered of the key.
    pub fn memory(&self) -> Memory {
        Memory { place: self.place(), fingerprint: self.fingerprint, asker: self.asker }
    }

    fn place(&self) -> Place {
        match self.place & PLACE_MASK {
            slot if self.place & IN_FLIGHT != 0 => Place::Job(slot as u32),
            lsn => Place::Journal(Lsn(lsn)),
        }
    }

    /// Whether it is an assignment's answer, not a step.
    pub fn is_answer(&self) -> bool {
        self.place & ANSWER != 0
    }
}

/// What is remembered of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Where its job or its outcome is.
    pub place: Place,
    /// 64 bits of F.
    pub fingerprint: u64,
    /// 64 bits of the first asker.
    pub asker: u64,
}

/// Where a key's entry lay when it was begun: it may have moved since, if the table has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(usize);

impl Home {
    /// Nowhere known.
    pub const UNKNOWN: Home = Home(usize::MAX);
}

/// Where a key's job or outcome is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the job table, at this slot.
    Job(u32),
    /// In the journal, in this frame.
    Journal(Lsn),
}

/// The 64 bits of a fingerprint that entries hold.
pub fn short_fingerprint(fingerprint: &Fingerprint) -> u64 {
    u64::from_le_bytes(fingerprint.0[..8].try_into().expect("eight bytes"))
}

/// The 64 bits of an asker that entries hold.
pub fn short_asker(asker: &AskerId) -> u64 {
    u64::from_le_bytes(asker.0[..8].try_into().expect("eight bytes"))
}

/// Keys are salted hashes already: any eight bytes of them are a good hash.
fn hash(key: &Key) -> u64 {
    u64::from_le_bytes(key.0[..8].try_into().expect("eight bytes"))
}

/// Which table holds `key`: by a byte that the table's own hash does not use.
fn table_of(key: &Key) -> usize {
    usize::from(key.0[15])
}

impl Default for Known {
    fn default() -> Self {
        let tables = (0..TABLES).map(|_| HashTable::new()).collect();
        Known { tables, len: 0, finished: VecDeque::new(), taken: 0, answers: 0, look_at: 0 }
    }
}

impl Known {
    /// What is remembered of `key`.
    pub fn get(&self, key: &Key) -> Option<Memory> {
        let entry = self.tables[table_of(key)].find(hash(key), |entry| entry.key == *key)?;
        Some(entry.memory())
    }

    /// Everything that is remembered here, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.tables.iter().flat_map(HashTable::iter)
    }

    /// Remembers that the job at `slot` works on `key`; where the entry lies, for [`Known::finish`].
    pub fn begin(&mut self, key: Key, fingerprint: &Fingerprint, asker: &AskerId, slot: u32, answer: bool) -> Home {
        let entry = Entry {
            key,
            fingerprint: short_fingerprint(fingerprint),
            asker: short_asker(asker),
            place: IN_FLIGHT | u64::from(slot) | if answer { ANSWER } else { 0 },
        };
        self.put(entry)
    }

    /// Remembers that the outcome of `key` is in frame `lsn`. `home` is what [`Known::begin`] gave, if it was called.
    pub fn finish(&mut self, key: Key, fingerprint: &Fingerprint, asker: &AskerId, lsn: Lsn, answer: bool, home: Home) {
        let entry = Entry::finished(key, fingerprint, asker, lsn, answer);
        // By its place the entry takes one look into memory that is long out of the caches, by its key two in a row.
        match self.tables[table_of(&key)].get_bucket_mut(home.0).filter(|old| old.key == key) {
            Some(old) => {
                self.answers = self.answers + usize::from(answer) - usize::from(old.is_answer());
                *old = entry;
            }
            None => _ = self.put(entry),
        }
        match self.finished.back_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(entry),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(entry);
                self.finished.push_back(piece);
            }
        }
    }

    /// Remembers a finished key that lies in a key file.
    pub fn recall(&mut self, entry: Entry) {
        self.put(entry);
    }

    /// Hands over the finished keys that lie in no key file, for one. They are remembered here until they are forgotten.
    pub fn take_finished(&mut self) -> Vec<Vec<Entry>> {
        let taken = std::mem::take(&mut self.taken);
        if let Some(first) = self.finished.front_mut() {
            first.drain(..taken);
        }
        std::mem::take(&mut self.finished).into()
    }

    /// Takes back, oldest outcome first, what could not be put into a key file.
    pub fn put_back(&mut self, entries: Vec<Entry>) {
        let taken = std::mem::take(&mut self.taken);
        if let Some(first) = self.finished.front_mut() {
            first.drain(..taken);
        }
        if !entries.is_empty() {
            self.finished.push_front(entries);
        }
    }

    fn put(&mut self, new: Entry) -> Home {
        self.answers += usize::from(new.is_answer());
        let table = &mut self.tables[table_of(&new.key)];
        match table.entry(hash(&new.key), |entry| entry.key == new.key, |entry| hash(&entry.key)) {
            Slot::Occupied(mut old) => {
                self.answers -= usize::from(old.get().is_answer());
                *old.get_mut() = new;
                Home(old.bucket_index())
            }
            Slot::Vacant(place) => {
                self.len += 1;
                Home(place.insert(new).bucket_index())
            }
        }
    }

    /// Forgets a key altogether.
    pub fn forget(&mut self, key: &Key) {
        if let Ok(old) = self.tables[table_of(key)].find_entry(hash(key), |entry| entry.key == *key) {
            self.answers -= usize::from(old.get().is_answer());
            self.len -= 1;
            old.remove();
        }
    }

    /// Forgets a finished key, if this is what is remembered of it.
    pub fn forget_entry(&mut self, entry: &Entry) {
        let same = |old: &Entry| old.key == entry.key && old.place() == entry.place();
        if let Ok(old) = self.tables[entry.table()].find_entry(hash(&entry.key), same) {
            self.answers -= usize::from(old.get().is_answer());
            self.len -= 1;
            old.remove();
        }
    }

    /// Gives back memory of one table that has grown far beyond what it holds; each call looks at the next.
    pub fn shrink_next(&mut self) {
        let table = &mut self.tables[self.look_at];
        self.look_at = (self.look_at + 1) % TABLES;
        if table.capacity() > TABLE_SPARE + 4 * table.len() {
            table.shrink_to(2 * table.len(), |entry| hash(&entry.key));
        }
    }

    /// Forgets finished keys whose outcome stands below `floor`, at most `most` of them; true if some may be left.
    pub fn forget_below(&mut self, floor: Lsn, most: usize) -> bool {
        for _ in 0..most {
            let Some(piece) = self.finished.front() else { return false };
            let Some(entry) = piece.get(self.taken).copied() else {
                self.finished.pop_front();
                self.taken = 0;
                continue;
            };
            if entry.lsn() >= floor {
                return false;
            }
            self.forget_entry(&entry);
            self.taken += 1;
        }
        true
    }

    /// Whether any assignment was answered without a step of its own.
    pub fn has_answers(&self) -> bool {
        self.answers > 0
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        Key(bytes)
    }

    #[test]
    fn keys_are_forgotten_oldest_first_and_only_below_the_floor() {
        let mut known = Known::default();
        let (f, a) = (Fingerprint([1; 32]), AskerId([2; 16]));
        for number in 1..=100 {
            let home = known.begin(key(number), &f, &a, number as u32, false);
            let home = if number % 3 == 0 { Home::UNKNOWN } else { home };
            known.finish(key(number), &f, &a, Lsn(number), number % 2 == 0, home);
        }
        known.begin(key(500), &f, &a, 9, false);
        assert!(known.has_answers());
        while known.forget_below(Lsn(51), 7) {}
        assert_eq!(known.len(), 51);
        assert_eq!(known.get(&key(50)), None);
        assert_eq!(known.get(&key(51)).map(|memory| memory.place), Some(Place::Journal(Lsn(51))));
        assert_eq!(known.get(&key(500)).map(|memory| memory.place), Some(Place::Job(9)));
        while known.forget_below(Lsn(1000), 7) {}
        assert!(!known.has_answers());
        assert_eq!(known.len(), 1);
    }

    #[test]
    fn keys_beyond_one_piece_of_the_queue_are_forgotten_in_order_too() {
        let mut known = Known::default();
        let (f, a) = (Fingerprint([1; 32]), AskerId([2; 16]));
        let count = 2 * PIECE as u64 + 10;
        for number in 1..=count {
            known.finish(key(number), &f, &a, Lsn(number), false, Home::UNKNOWN);
        }
        for floor in [1, PIECE as u64, PIECE as u64 + 1, PIECE as u64 + 2, count, count + 1] {
            while known.forget_below(Lsn(floor), 1000) {}
            assert_eq!(known.len() as u64, count + 1 - floor);
            assert_eq!(known.get(&key(floor)).is_some(), floor <= count);
        }
        known.finish(key(1), &f, &a, Lsn(count + 1), false, Home::UNKNOWN);
        assert_eq!(known.len(), 1);
    }
}
