//! What this shard remembers of keys: [`Known`], one small entry a key, for as long as the journal has its outcome.
//!
//! An entry says where the journal keeps the outcome, or which job is on its way to one. Bodies are not here: they are read
//! back from the journal when somebody asks. Entries hold 64 bits of the fingerprint and of the asker; the full values are
//! in the journal.

use std::collections::VecDeque;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use crate::ids::{AskerId, Fingerprint, Key, Lsn};

/// The keys of one shard. Lives on its core.
#[derive(Debug, Default)]
pub struct Known {
    table: HashTable<Entry>,
    /// Finished keys, oldest outcome first.
    finished: VecDeque<Key>,
    /// Entries that are answers of assignments, not steps: while there are none, nobody needs to look for one.
    answers: usize,
}

/// One key. 48 bytes: a million of them are part of the promise on memory.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: Key,
    fingerprint: u64,
    asker: u64,
    lsn: Lsn,
    state: u32,
}

const _: () = assert!(size_of::<Entry>() == 48);

const IN_FLIGHT: u32 = 1 << 31;
const ANSWER: u32 = 1 << 30;
const SLOT_MASK: u32 = ANSWER - 1;

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

impl Known {
    /// What is remembered of `key`.
    pub fn get(&self, key: &Key) -> Option<Memory> {
        self.table.find(hash(key), |entry| entry.key == *key).map(|entry| Memory {
            place: if entry.state & IN_FLIGHT != 0 { Place::Job(entry.state & SLOT_MASK) } else { Place::Journal(entry.lsn) },
            fingerprint: entry.fingerprint,
            asker: entry.asker,
        })
    }

    /// Remembers that the job at `slot` works on `key`; where the entry lies, for [`Known::finish`].
    pub fn begin(&mut self, key: Key, fingerprint: &Fingerprint, asker: &AskerId, slot: u32, answer: bool) -> Home {
        let entry = Entry {
            key,
            fingerprint: short_fingerprint(fingerprint),
            asker: short_asker(asker),
            lsn: Lsn(0),
            state: IN_FLIGHT | (slot & SLOT_MASK) | if answer { ANSWER } else { 0 },
        };
        self.put(entry)
    }

    /// Remembers that the outcome of `key` is in frame `lsn`. `home` is what [`Known::begin`] gave, if it was called.
    pub fn finish(&mut self, key: Key, fingerprint: &Fingerprint, asker: &AskerId, lsn: Lsn, answer: bool, home: Home) {
        let entry = Entry {
            key,
            fingerprint: short_fingerprint(fingerprint),
            asker: short_asker(asker),
            lsn,
            state: if answer { ANSWER } else { 0 },
        };
        // By its place the entry takes one look into memory that is long out of the caches, by its key two in a row.
        match self.table.get_bucket_mut(home.0).filter(|old| old.key == key) {
            Some(old) => {
                self.answers = self.answers + usize::from(answer) - usize::from(old.state & ANSWER != 0);
                *old = entry;
            }
            None => _ = self.put(entry),
        }
        self.finished.push_back(key);
    }

    fn put(&mut self, new: Entry) -> Home {
        self.answers += usize::from(new.state & ANSWER != 0);
        match self.table.entry(hash(&new.key), |entry| entry.key == new.key, |entry| hash(&entry.key)) {
            Slot::Occupied(mut old) => {
                self.answers -= usize::from(old.get().state & ANSWER != 0);
                *old.get_mut() = new;
                Home(old.bucket_index())
            }
            Slot::Vacant(place) => Home(place.insert(new).bucket_index()),
        }
    }

    /// Forgets a key altogether.
    pub fn forget(&mut self, key: &Key) {
        if let Ok(old) = self.table.find_entry(hash(key), |entry| entry.key == *key) {
            self.answers -= usize::from(old.get().state & ANSWER != 0);
            old.remove();
        }
    }

    /// Forgets finished keys whose outcome stands below `floor`, at most `most` of them; true if some may be left.
    pub fn forget_below(&mut self, floor: Lsn, most: usize) -> bool {
        for _ in 0..most {
            let Some(key) = self.finished.front() else { return false };
            if let Ok(entry) = self.table.find_entry(hash(key), |entry| entry.key == *key)
                && entry.get().state & IN_FLIGHT == 0
            {
                if entry.get().lsn >= floor {
                    return false;
                }
                self.answers -= usize::from(entry.get().state & ANSWER != 0);
                entry.remove();
            }
            self.finished.pop_front();
        }
        true
    }

    /// Whether any assignment was answered without a step of its own.
    pub fn has_answers(&self) -> bool {
        self.answers > 0
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
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
}
