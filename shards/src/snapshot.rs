//! A snapshot: all that a fold of every frame before a moment would hold, but for the finished keys, which lie in key files.
//!
//! A shard takes one from what it has at hand whenever a segment has closed, so that a boot reads key files' filters and the
//! frames from there on, however long the journal is. Like the key files it is derived from the journal: one that is damaged,
//! of another format, another's, or does not fit what lies on the disk is passed over, and all segments are read.

use crate::dedup::Entry;
use crate::event::Role;
use crate::fold::{Owned, Released, Restored, Unfinished};
use crate::gate::Vote;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use crate::keys::{Facts, Owner, Unfit};
use crate::strike::Strikes;

const MAGIC: &[u8; 8] = b"ENDSTSNP";
const FORMAT: u16 = 2;
/// The shortest element of any list, in bytes: a count that the rest of the file cannot hold is not believed.
const ELEMENT_BYTES_MIN: usize = 16;

/// What a shard hands over to be kept. Crosses cores.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Where the last one ended.
    pub from: Lsn,
    /// Every frame before this one is in it, and durable.
    pub before: Lsn,
    /// Finished keys that lie in no key file yet.
    pub finished: Vec<Vec<Entry>>,
    /// Everything else; no key is known in it.
    pub rest: Restored,
}

/// A snapshot as it lies on disk. Lives on the thread that reads it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Every frame before this one is in it.
    pub before: Lsn,
    /// The segment that holds the last of them.
    pub segment: u64,
    /// The key files it stands on, oldest first.
    pub files: Vec<Facts>,
    /// Everything else; no key is known in it.
    pub rest: Restored,
}

/// A snapshot's bytes.
pub fn encode(owner: &Owner, before: Lsn, segment: u64, files: &[Facts], rest: &Restored) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&owner.mark());
    let put = |out: &mut Vec<u8>, numbers: &[u64]| numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    put(&mut out, &[before.0, segment, u64::from(rest.owner_epoch), rest.wall_ms, rest.floor.0, rest.watermark_ms]);
    put(&mut out, &[files.len() as u64]);
    for Facts { from, to, count, answers, newest } in files {
        put(&mut out, &[from.0, to.0, *count, *answers, newest.0]);
    }
    put(&mut out, &[rest.newest.len() as u64]);
    for (lsn, newest_ms) in &rest.newest {
        put(&mut out, &[lsn.0, *newest_ms]);
    }
    put(&mut out, &[rest.tenants.len() as u64]);
    for (name, seq) in &rest.tenants {
        put(&mut out, &[*seq, name.len() as u64]);
        out.extend_from_slice(name.as_bytes());
    }
    put(&mut out, &[rest.strikes.iter().count() as u64]);
    for (key, count, boot, lsn) in rest.strikes.iter() {
        out.extend_from_slice(&key.0);
        put(&mut out, &[u64::from(count), u64::from(boot), lsn.0]);
    }
    put(&mut out, &[rest.released.len() as u64]);
    for (key, Released { fingerprint, asker, lsn }) in &rest.released {
        out.extend_from_slice(&key.0);
        out.extend_from_slice(&fingerprint.0);
        out.extend_from_slice(&asker.0);
        put(&mut out, &[lsn.0]);
    }
    put(&mut out, &[rest.unfinished.len() as u64]);
    for one in &rest.unfinished {
        out.extend_from_slice(&one.key.0);
        out.extend_from_slice(&one.fingerprint.0);
        out.extend_from_slice(&one.asker.0);
        let flags = u64::from(one.interrupted) | u64::from(one.owned.streamed) << 1;
        put(&mut out, &[one.message.0, one.result.map_or(0, |lsn| lsn.0), u64::from(one.tries), flags]);
        // No retry is due at the beginning of time.
        put(&mut out, &[one.retry_at_ms.map_or(0, |at_ms| at_ms.saturating_add(1)), one.deadline_ms, code(one.role)]);
        put(&mut out, &[u64::from(one.owned.partition.0), u64::from(one.owned.epoch), one.votes.len() as u64]);
        for vote in &one.votes {
            put(&mut out, &[vote.at_ms, u64::from(vote.approve) | u64::from(vote.signed) << 1]);
            for text in [&vote.actor, &vote.comment, &vote.id, &vote.plan] {
                put(&mut out, &[text.len() as u64]);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Reads a snapshot.
///
/// # Errors
/// It is damaged, of another format, or another's.
pub fn decode(bytes: &[u8], owner: &Owner) -> Result<Snapshot, Unfit> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or(DAMAGED)?;
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(DAMAGED);
    }
    let mut rest = Rest(body);
    if rest.array::<8>()? != *MAGIC {
        return Err(DAMAGED);
    }
    if rest.array::<2>()? != FORMAT.to_le_bytes() {
        return Err(Unfit("the snapshot is of another format"));
    }
    if rest.array::<16>()? != owner.mark() {
        return Err(Unfit("the snapshot is another worker's or shard's"));
    }
    let (before, segment) = (rest.lsn()?, rest.u64()?);
    let mut restored = Restored {
        owner_epoch: rest.u32()?,
        wall_ms: rest.u64()?,
        floor: rest.lsn()?,
        watermark_ms: rest.u64()?,
        ..Restored::default()
    };
    let files = rest.list(|rest| {
        let (from, to, count, answers) = (rest.lsn()?, rest.lsn()?, rest.u64()?, rest.u64()?);
        Ok(Facts { from, to, count, answers, newest: rest.lsn()? })
    })?;
    restored.newest = rest.list(|rest| Ok((rest.lsn()?, rest.u64()?)))?;
    restored.tenants = rest.list(|rest| {
        let seq = rest.u64()?;
        Ok((rest.text()?, seq))
    })?;
    let mut strikes = Strikes::default();
    for (key, count, boot, lsn) in rest.list(|rest| Ok((Key(rest.array()?), rest.u32()?, rest.u32()?, rest.lsn()?)))? {
        strikes.recall(key, count, boot, lsn);
    }
    restored.strikes = strikes;
    let released = rest.list(|rest| {
        let (key, fingerprint, asker) = (Key(rest.array()?), Fingerprint(rest.array()?), AskerId(rest.array()?));
        Ok((key, Released { fingerprint, asker, lsn: rest.lsn()? }))
    })?;
    restored.released = released.into_iter().collect();
    restored.unfinished = rest.list(Rest::unfinished)?;
    if !rest.0.is_empty() {
        return Err(DAMAGED);
    }
    Ok(Snapshot { before, segment, files, rest: restored })
}

/// For invariants: in what a shard's own picture of its journal differs from what a fold of the same frames gives.
///
/// A shard knows more of the past than the frames that are left: tenants, epochs, time. It must not know less.
pub fn difference(own: &Restored, folded: &Restored) -> Option<String> {
    let short = |one: &Unfinished| format!("{one:?}");
    let theirs = folded.unfinished.iter().map(short);
    let mut pairs = own.unfinished.iter().map(short).map(Some).chain(std::iter::repeat(None)).zip(theirs.map(Some).chain([None]));
    if let Some((own, theirs)) = pairs.find(|(own, theirs)| own != theirs) {
        return Some(format!("unfinished: {own:?}, by its frames {theirs:?}"));
    }
    let missing = folded.tenants.iter().find(|tenant| !own.tenants.contains(tenant));
    if let Some(tenant) = missing {
        return Some(format!("tenant {tenant:?} is not in {:?}", own.tenants));
    }
    let sorted = |strikes: &Strikes| {
        let mut list: Vec<_> = strikes.iter().collect();
        list.sort_unstable_by_key(|(key, ..)| *key);
        list
    };
    if sorted(&own.strikes) != sorted(&folded.strikes) {
        return Some(format!("strikes: {:?}, by its frames {:?}", own.strikes, folded.strikes));
    }
    // The acceptance of what was released may be gone, and only a shard that read it knows.
    let known = |(key, released): (&Key, &Released)| own.released.get(key) == Some(released);
    let more = own.released.len() > folded.released.len() && folded.floor <= Lsn(1);
    if more || !folded.released.iter().all(known) {
        return Some(format!("released: {:?}, by its frames {:?}", own.released, folded.released));
    }
    if (own.floor, own.watermark_ms) != (folded.floor, folded.watermark_ms) {
        let (floor, watermark_ms) = (folded.floor, folded.watermark_ms);
        return Some(format!("floor {:?} at {}, by its frames {floor:?} at {watermark_ms}", own.floor, own.watermark_ms));
    }
    if own.owner_epoch < folded.owner_epoch || own.wall_ms < folded.wall_ms {
        return Some(format!("epoch {} or wall {} is behind its frames", own.owner_epoch, own.wall_ms));
    }
    // A fold rounds up to the next second; what the watermark covers is of no further use.
    let newest = |of: &Restored| of.newest.last().map_or(0, |(_, newest_ms)| *newest_ms).max(of.watermark_ms);
    if newest(own).saturating_add(1000) < newest(folded) {
        return Some(format!("newest stream time {}, by its frames {}", newest(own), newest(folded)));
    }
    None
}

const DAMAGED: Unfit = Unfit("the snapshot is damaged");

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Unfit> {
        let (now, later) = self.0.split_at_checked(length).ok_or(DAMAGED)?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unfit> {
        self.bytes(N)?.try_into().map_err(|_| DAMAGED)
    }

    fn u64(&mut self) -> Result<u64, Unfit> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Unfit> {
        self.u64()?.try_into().map_err(|_| DAMAGED)
    }

    fn lsn(&mut self) -> Result<Lsn, Unfit> {
        Ok(Lsn(self.u64()?))
    }

    fn text(&mut self) -> Result<Text, Unfit> {
        let length = self.u64()? as usize;
        let text = std::str::from_utf8(self.bytes(length)?).map_err(|_| DAMAGED)?;
        Ok(Text::from(text.to_owned()))
    }

    fn list<T>(&mut self, each: impl Fn(&mut Self) -> Result<T, Unfit>) -> Result<Vec<T>, Unfit> {
        let count = self.u64()?;
        if count > (self.0.len() / ELEMENT_BYTES_MIN) as u64 {
            return Err(DAMAGED);
        }
        (0..count).map(|_| each(self)).collect()
    }

    fn unfinished(&mut self) -> Result<Unfinished, Unfit> {
        let (key, fingerprint, asker) = (Key(self.array()?), Fingerprint(self.array()?), AskerId(self.array()?));
        let (message, result, tries, flags) = (self.lsn()?, self.lsn()?, self.u32()?, self.u64()?);
        let (retry, deadline_ms, role) = (self.u64()?, self.u64()?, role(self.u64()?)?);
        let (partition, epoch) = (self.u64()?.try_into().map_err(|_| DAMAGED)?, self.u32()?);
        let votes = self.list(|rest| {
            let (at_ms, flags) = (rest.u64()?, rest.u64()?);
            let (actor, comment, id, plan) = (rest.text()?, rest.text()?, rest.text()?, rest.text()?);
            Ok(Vote { actor, approve: flags & 1 != 0, comment, id, signed: flags & 2 != 0, plan, at_ms })
        })?;
        Ok(Unfinished {
            key,
            fingerprint,
            asker,
            message,
            result: Some(result).filter(|lsn| *lsn > Lsn(0)),
            tries,
            interrupted: flags & 1 != 0,
            retry_at_ms: retry.checked_sub(1),
            deadline_ms,
            votes,
            role,
            owned: Owned { partition: Partition(partition), epoch, streamed: flags & 2 != 0 },
        })
    }
}

fn code(role: Role) -> u64 {
    match role {
        Role::Step => 1,
        Role::Refusal => 2,
        Role::Shared => 3,
        Role::Aside => 4,
        Role::Replay => 5,
    }
}

fn role(code: u64) -> Result<Role, Unfit> {
    [Role::Step, Role::Refusal, Role::Shared, Role::Aside].into_iter().find(|role| self::code(*role) == code).ok_or(DAMAGED)
}
