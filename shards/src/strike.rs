//! How often the process died while a key's own code was being polled: [`Strikes`], as the journal holds them.
//!
//! Only a death at which the shard's page named the key counts; a key that was merely in flight gets none. The key need not
//! be known otherwise: a first try of harmless work runs before its ACCEPTED frame is on the disk, and if it ends the process
//! there, the strike is all that is left of it.

use hashbrown::HashMap;

use crate::ids::{Key, Lsn};

/// The struck keys of one shard; at most one more with each start of the worker. Lives on its core.
#[derive(Clone, Debug, Default)]
pub struct Strikes {
    by_key: HashMap<Key, Strike>,
}

#[derive(Clone, Copy, Debug)]
struct Strike {
    count: u32,
    /// The newest life that ended so: each counts once, however often its page is read.
    boot: u32,
    lsn: Lsn,
}

impl Strikes {
    /// The life `boot` ended while it polled `key`, and frame `lsn` will say so. Gives the key's strikes with this one; none
    /// where that life has been counted before.
    pub fn add(&mut self, key: Key, boot: u32, lsn: Lsn) -> Option<u32> {
        let strike = self.by_key.entry(key).or_insert(Strike { count: 0, boot: 0, lsn });
        if boot <= strike.boot {
            return None;
        }
        *strike = Strike { count: strike.count + 1, boot, lsn };
        Some(strike.count)
    }

    /// Frame `lsn` says that `key` has `count` strikes, the newest for life `boot`.
    pub fn recall(&mut self, key: Key, count: u32, boot: u32, lsn: Lsn) {
        self.by_key.insert(key, Strike { count, boot, lsn });
    }

    /// All of them, in no order: key, count, newest life, frame, as [`Strikes::recall`] takes them.
    pub fn iter(&self) -> impl Iterator<Item = (Key, u32, u32, Lsn)> {
        self.by_key.iter().map(|(key, strike)| (*key, strike.count, strike.boot, strike.lsn))
    }

    /// The strikes of a key.
    pub fn of(&self, key: &Key) -> u32 {
        // Asked for each step that is queued; hardly ever is there one.
        if self.by_key.is_empty() { 0 } else { self.by_key.get(key).map_or(0, |strike| strike.count) }
    }

    /// The strikes of a key and the newest life that ended so, if it has any.
    pub fn newest(&self, key: &Key) -> Option<(u32, u32)> {
        if self.by_key.is_empty() { None } else { self.by_key.get(key).map(|strike| (strike.count, strike.boot)) }
    }

    /// The key is decided.
    pub fn forget(&mut self, key: &Key) {
        if !self.by_key.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Frames below `floor` are gone, and with them what they say; each key's newest tells all of its strikes.
    pub fn forget_below(&mut self, floor: Lsn) {
        self.by_key.retain(|_, strike| strike.lsn >= floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([1; 16]);

    #[test]
    fn each_life_counts_once() {
        let mut strikes = Strikes::default();
        assert_eq!(strikes.add(KEY, 1, Lsn(1)), Some(1));
        assert_eq!(strikes.add(KEY, 1, Lsn(2)), None);
        assert_eq!(strikes.add(KEY, 4, Lsn(3)), Some(2));
        assert_eq!((strikes.of(&KEY), strikes.of(&Key([2; 16]))), (2, 0));
    }

    #[test]
    fn a_strike_goes_with_its_frame() {
        let mut strikes = Strikes::default();
        strikes.recall(KEY, 1, 3, Lsn(7));
        strikes.forget_below(Lsn(7));
        assert_eq!(strikes.of(&KEY), 1);
        strikes.forget_below(Lsn(8));
        assert_eq!(strikes.of(&KEY), 0);
    }
}
