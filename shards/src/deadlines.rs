//! One timer per step: a hashed wheel with constant-time arming and disarming.
//!
//! Most steps end long before their deadline, so disarming must be as cheap as arming; a heap would fill with the dead.
//! Due times are rounded up to [`TICK_US`].

/// The wheel's resolution, in microseconds.
pub const TICK_US: u64 = 4_096;
const BUCKETS: usize = 4_096;
const WORDS: usize = BUCKETS / 64;
const NOWHERE: u32 = u32::MAX;

/// The timers of one shard's jobs, by slot. Lives on its core.
#[derive(Debug)]
pub struct Deadlines {
    buckets: Vec<Vec<Armed>>,
    occupied: [u64; WORDS],
    /// Per slot: which bucket, and where in it.
    places: Vec<(u32, u32)>,
    /// The last tick that was looked at.
    tick: u64,
    armed: usize,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    slot: u32,
    due_tick: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines { buckets: vec![Vec::new(); BUCKETS], occupied: [0; WORDS], places: Vec::new(), tick: 0, armed: 0 }
    }
}

impl Deadlines {
    /// Arms (or moves) the timer of `slot` to `due_us`, never earlier than the next tick.
    pub fn arm(&mut self, slot: u32, due_us: u64) {
        self.disarm(slot);
        if slot as usize >= self.places.len() {
            self.places.resize(slot as usize + 1, (NOWHERE, 0));
        }
        let due_tick = due_us.div_ceil(TICK_US).max(self.tick + 1);
        let bucket = (due_tick as usize) % BUCKETS;
        self.places[slot as usize] = (bucket as u32, self.buckets[bucket].len() as u32);
        self.buckets[bucket].push(Armed { slot, due_tick });
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.armed += 1;
    }

    /// Disarms the timer of `slot`, if it is armed.
    pub fn disarm(&mut self, slot: u32) {
        let Some(place) = self.places.get_mut(slot as usize) else { return };
        let (bucket, index) = *place;
        if bucket == NOWHERE {
            return;
        }
        place.0 = NOWHERE;
        let entries = &mut self.buckets[bucket as usize];
        entries.swap_remove(index as usize);
        if let Some(moved) = entries.get(index as usize) {
            self.places[moved.slot as usize].1 = index;
        }
        if entries.is_empty() {
            self.occupied[bucket as usize / 64] &= !(1 << (bucket % 64));
        }
        self.armed -= 1;
    }

    /// Disarms every timer due by `now_us` and appends its slot to `due`.
    pub fn expire(&mut self, now_us: u64, due: &mut Vec<u32>) {
        let now_tick = now_us / TICK_US;
        if now_tick <= self.tick {
            return;
        }
        let first = self.tick + 1;
        // After a long pause every bucket is looked at once, not once for every missed tick.
        let last = now_tick.min(self.tick + BUCKETS as u64);
        for tick in first..=last {
            let bucket = (tick as usize) % BUCKETS;
            if self.occupied[bucket / 64] & (1 << (bucket % 64)) == 0 {
                continue;
            }
            let found = due.len();
            due.extend(self.buckets[bucket].iter().filter(|armed| armed.due_tick <= now_tick).map(|armed| armed.slot));
            for slot in &due[found..] {
                self.disarm(*slot);
            }
        }
        self.tick = now_tick;
    }

    /// When [`Deadlines::expire`] is worth calling next, in microseconds; `None` if nothing is armed.
    ///
    /// It may be early for timers more than one turn of the wheel away.
    pub fn next_us(&self) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let start = ((self.tick + 1) as usize) % BUCKETS;
        let mut word = start / 64;
        let mut bits = self.occupied[word] & (u64::MAX << (start % 64));
        for _ in 0..=WORDS {
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (bucket + BUCKETS - start) % BUCKETS;
                return Some((self.tick + 1 + ahead as u64) * TICK_US);
            }
            word = (word + 1) % WORDS;
            bits = self.occupied[word];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Deadlines, now_us: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.expire(now_us, &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn timers_come_due_once_in_time_and_not_before() {
        let mut wheel = Deadlines::default();
        wheel.arm(1, 10_000);
        wheel.arm(2, 10_000);
        wheel.arm(3, 3600 * 1_000_000);
        wheel.disarm(2);
        assert_eq!(due(&mut wheel, 9_000), []);
        assert_eq!(due(&mut wheel, 20_000), [1]);
        assert_eq!(due(&mut wheel, 40_000_000), []);
        assert_eq!(due(&mut wheel, 3599 * 1_000_000), []);
        assert_eq!(due(&mut wheel, 3601 * 1_000_000), [3]);
        assert_eq!(wheel.next_us(), None);
    }

    #[test]
    fn next_is_never_later_than_the_soonest_timer() {
        let mut wheel = Deadlines::default();
        for slot in 0..1000u32 {
            wheel.arm(slot, u64::from(slot) * 7_919_000 % 60_000_000);
        }
        let mut now = 0;
        let mut seen = 0;
        while let Some(next) = wheel.next_us() {
            assert!(next > now, "time stands still");
            now = next;
            seen += due(&mut wheel, now).len();
        }
        assert_eq!(seen, 1000);
    }
}
