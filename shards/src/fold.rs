//! What a journal means: [`Fold`] reads its frames in order and ends with what a shard must know to go on.
//!
//! The fold is pure and reads each frame once. It keeps bodies nowhere: of a step without an end it remembers which frame
//! holds its message, and the driver reads that frame again.

use hashbrown::HashMap;

use crate::dedup::{Home, Known};
use crate::event::Role;
use crate::gate::Vote;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use crate::journal::{CodecError, FrameView, Peek, SOURCE_STREAM};
use crate::planted::{Bug, planted};
use crate::strike::Strikes;

/// A journal being read. Lives on its core.
#[derive(Debug, Default)]
pub struct Fold {
    known: Known,
    open: HashMap<Key, Open>,
    tenants: HashMap<Text, u64>,
    strikes: Strikes,
    released: HashMap<Key, Released>,
    owner_epoch: u32,
    wall_ms: u64,
    floor: Lsn,
    watermark_ms: u64,
    /// (frame, newest stream timestamp up to it), one entry a second of stream time at most.
    newest: Vec<(Lsn, u64)>,
}

/// A key without an end.
#[derive(Debug, Clone)]
struct Open {
    message: Lsn,
    fingerprint: Fingerprint,
    asker: AskerId,
    tries: u32,
    interrupted: bool,
    retry_at_ms: Option<u64>,
    deadline_ms: u64,
    votes: Vec<Vote>,
    result: Option<Lsn>,
    role: Role,
    owned: Owned,
}

/// A step that another owner has had. Lives on its core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Released {
    /// F, as it was accepted here.
    pub fingerprint: Fingerprint,
    /// Who asked for it here: that assignment's one answer is the step's, whoever gives it.
    pub asker: AskerId,
    /// The frame that says so.
    pub lsn: Lsn,
}

/// Under whose eyes a key came. Lives on its core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// The key's partition.
    pub partition: Partition,
    /// The epoch of ownership it was accepted under; 0 where nobody owned.
    pub epoch: u32,
    /// It came from a stream, which hands it to the next owner if this one does not settle it.
    pub streamed: bool,
}

/// What a shard goes on from. Lives on its core.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Every finished key.
    pub known: Known,
    /// Keys without an end, oldest first.
    pub unfinished: Vec<Unfinished>,
    /// The newest audit number of each tenant.
    pub tenants: Vec<(Text, u64)>,
    /// The strikes of keys without an outcome; such a key may be unknown otherwise.
    pub strikes: Strikes,
    /// Steps that another owner has had, and that have no outcome here.
    pub released: HashMap<Key, Released>,
    /// The newest epoch of ownership that the journal has seen.
    pub owner_epoch: u32,
    /// The newest moment the journal has seen, Unix ms.
    pub wall_ms: u64,
    /// Frames below this one are gone or may be.
    pub floor: Lsn,
    /// Unknown keys not newer than this may have been forgotten, Unix ms.
    pub watermark_ms: u64,
    /// (frame, newest stream timestamp up to it).
    pub newest: Vec<(Lsn, u64)>,
}

/// A key without an end, and where to find what is needed to end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The key.
    pub key: Key,
    /// F, as it was accepted.
    pub fingerprint: Fingerprint,
    /// Who asked, as it was accepted.
    pub asker: AskerId,
    /// The frame with its message.
    pub message: Lsn,
    /// The frame with its outcome, if it has one.
    pub result: Option<Lsn>,
    /// Tries started.
    pub tries: u32,
    /// The last try has no verdict.
    pub interrupted: bool,
    /// When the next try is due, Unix ms.
    pub retry_at_ms: Option<u64>,
    /// When the budget ends, Unix ms.
    pub deadline_ms: u64,
    /// What people have said to it, in order.
    pub votes: Vec<Vote>,
    /// What kind of key it is.
    pub role: Role,
    /// Under whose eyes it came.
    pub owned: Owned,
}

impl Fold {
    /// Goes on from what all frames up to some moment came to, and the finished keys of which lie elsewhere.
    pub fn resume(past: Restored) -> Fold {
        let Restored { mut known, mut unfinished, tenants, strikes, released, owner_epoch, wall_ms, floor, watermark_ms, newest } =
            past;
        // Whoever still has to be told must be found, too.
        unfinished.sort_by_key(|one| one.result);
        for one in &unfinished {
            if let Some(lsn) = one.result {
                known.finish(one.key, &one.fingerprint, &one.asker, lsn, one.role != Role::Step, Home::UNKNOWN);
            }
        }
        let open = unfinished.into_iter().map(|one| {
            let Unfinished {
                key,
                message,
                fingerprint,
                asker,
                tries,
                interrupted,
                retry_at_ms,
                deadline_ms,
                votes,
                result,
                role,
                owned,
            } = one;
            (key, Open { message, fingerprint, asker, tries, interrupted, retry_at_ms, deadline_ms, votes, result, role, owned })
        });
        Fold {
            known,
            open: open.collect(),
            tenants: tenants.into_iter().collect(),
            strikes,
            released,
            owner_epoch,
            wall_ms,
            floor,
            watermark_ms,
            newest,
        }
    }

    /// Takes in the next frame.
    ///
    /// # Errors
    /// The frame cannot be read, or is of a kind this version may not skip.
    pub fn frame(&mut self, lsn: Lsn, frame: &FrameView<'_>) -> Result<(), CodecError> {
        let key = frame.key();
        self.owner_epoch = self.owner_epoch.max(frame.owner_epoch());
        let owned = |source| Owned {
            partition: frame.partition(),
            epoch: frame.owner_epoch(),
            streamed: source == SOURCE_STREAM && !planted(Bug::KeepSuperseded),
        };
        match frame.peek()? {
            Peek::Accepted(fact) => {
                self.stamp(lsn, fact.received_ms, (fact.source == SOURCE_STREAM).then_some(fact.since_ms));
                self.released.remove(&key);
                // Carried forward: its tries stand in older frames until they have been written again behind this one.
                let carried = self.open.remove(&key).filter(|open| open.result.is_none() && open.fingerprint == fact.fingerprint);
                let (tries, interrupted, retry_at_ms, votes) = carried
                    .map_or((0, false, None, Vec::new()), |open| (open.tries, open.interrupted, open.retry_at_ms, open.votes));
                self.open.insert(
                    key,
                    Open {
                        message: lsn,
                        fingerprint: fact.fingerprint,
                        asker: fact.asker,
                        tries,
                        interrupted,
                        retry_at_ms,
                        deadline_ms: fact.deadline_ms,
                        votes,
                        result: None,
                        role: Role::Step,
                        owned: owned(fact.source),
                    },
                );
            }
            Peek::Started { try_number, at_ms, .. } => {
                self.wall_ms = self.wall_ms.max(at_ms);
                if let Some(open) = self.open.get_mut(&key) {
                    open.tries = try_number;
                    open.interrupted = true;
                    open.retry_at_ms = None;
                }
            }
            Peek::RetryAt { at_ms, .. } => {
                if let Some(open) = self.open.get_mut(&key) {
                    open.interrupted = false;
                    open.retry_at_ms = Some(at_ms);
                }
            }
            Peek::Result(fact) => {
                self.audited(fact.tenant, fact.tenant_seq, fact.ended_ms);
                self.known.finish(key, &fact.fingerprint, &fact.asker, lsn, false, Home::UNKNOWN);
                self.strikes.forget(&key);
                if let Some(open) = self.open.get_mut(&key) {
                    open.result = Some(lsn);
                }
            }
            peek @ (Peek::Answer(fact) | Peek::Quarantined(fact)) => {
                self.stamp(lsn, fact.ended_ms, (fact.source == SOURCE_STREAM).then_some(fact.since_ms));
                self.audited(fact.tenant, fact.tenant_seq, fact.ended_ms);
                self.known.finish(key, &fact.fingerprint, &fact.asker, lsn, true, Home::UNKNOWN);
                let role = match peek {
                    Peek::Quarantined(_) => Role::Aside,
                    _ if fact.of.is_some() => Role::Shared,
                    _ => Role::Refusal,
                };
                let open = Open {
                    message: lsn,
                    fingerprint: fact.fingerprint,
                    asker: fact.asker,
                    tries: 0,
                    interrupted: false,
                    retry_at_ms: None,
                    deadline_ms: 0,
                    votes: Vec::new(),
                    result: Some(lsn),
                    role,
                    owned: owned(fact.source),
                };
                self.open.insert(key, open);
            }
            Peek::Published { asker, .. } => {
                if self.open.get(&key).is_some_and(|open| open.result.is_some() && open.asker == asker) {
                    self.open.remove(&key);
                }
            }
            Peek::Signal { vote } => {
                self.wall_ms = self.wall_ms.max(vote.at_ms);
                // What was carried forward behind its message stands twice.
                if let Some(open) = self.open.get_mut(&key).filter(|open| !open.votes.contains(&vote)) {
                    open.votes.push(vote);
                }
            }
            Peek::Released { at_ms } => {
                self.wall_ms = self.wall_ms.max(at_ms);
                if let Some(open) = self.open.remove(&key) {
                    self.released.insert(key, Released { fingerprint: open.fingerprint, asker: open.asker, lsn });
                }
            }
            Peek::Mark { wall_ms, floor, watermark_ms } => {
                self.wall_ms = self.wall_ms.max(wall_ms);
                self.floor = self.floor.max(floor);
                self.watermark_ms = self.watermark_ms.max(watermark_ms);
            }
            Peek::Struck { strikes, boot, at_ms } => {
                self.wall_ms = self.wall_ms.max(at_ms);
                self.strikes.recall(key, strikes, boot, lsn);
            }
            // A later version's; the codec has refused those that may not be passed over.
            Peek::Unknown(_) => {}
        }
        Ok(())
    }

    fn stamp(&mut self, lsn: Lsn, wall_ms: u64, streamed_ms: Option<u64>) {
        self.wall_ms = self.wall_ms.max(wall_ms);
        let Some(since_ms) = streamed_ms else { return };
        match self.newest.last() {
            Some((_, newest)) if since_ms < *newest => {}
            // Rounded up to the second, so that the list stays short and errs towards "may be forgotten".
            _ => self.newest.push((lsn, (since_ms - since_ms % 1000).saturating_add(1000))),
        }
    }

    fn audited(&mut self, tenant: &str, seq: u64, at_ms: u64) {
        self.wall_ms = self.wall_ms.max(at_ms);
        match self.tenants.get_mut(tenant) {
            Some(newest) => *newest = (*newest).max(seq),
            None => {
                self.tenants.insert(Text::from(tenant.to_string()), seq);
            }
        }
    }

    /// What all frames together mean.
    pub fn finish(mut self) -> Restored {
        while self.known.forget_below(self.floor, 4096) {}
        self.strikes.forget_below(self.floor);
        self.released.retain(|_, released| released.lsn >= self.floor);
        let mut unfinished: Vec<Unfinished> = self
            .open
            .drain()
            .filter(|(_, open)| open.message >= self.floor)
            .filter(|(_, open)| !(open.result.is_some() && planted(Bug::DropUnpublished)))
            .filter(|(_, open)| !(open.result.is_none() && planted(Bug::DropOpenOnRecovery)))
            .map(|(key, open)| Unfinished {
                key,
                fingerprint: open.fingerprint,
                asker: open.asker,
                message: open.message,
                result: open.result,
                tries: if planted(Bug::ResetTries) { 0 } else { open.tries },
                interrupted: open.interrupted && !planted(Bug::ResetTries),
                retry_at_ms: open.retry_at_ms,
                deadline_ms: open.deadline_ms,
                votes: open.votes,
                role: open.role,
                owned: open.owned,
            })
            .collect();
        unfinished.sort_by_key(|one| one.message);
        // In an order of their own, not the table's: the same journal gives the same shard in every process.
        let mut tenants: Vec<_> = self.tenants.into_iter().collect();
        tenants.sort_unstable();
        Restored {
            known: self.known,
            unfinished,
            tenants,
            strikes: self.strikes,
            released: self.released,
            owner_epoch: self.owner_epoch,
            wall_ms: self.wall_ms,
            floor: self.floor,
            watermark_ms: self.watermark_ms,
            newest: self.newest,
        }
    }
}
