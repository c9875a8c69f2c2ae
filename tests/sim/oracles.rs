//! The oracles: each invariant of the promises is a named function over what an observer can see.
//!
//! Those that judge a single durable frame or stored letter (I1, I2, I7, expiry, same asker) stand in [`crate::truth`]; I17 is
//! checked where the disk is read at boot.

use std::collections::BTreeMap;

use bytes::Bytes;

use shards::audit::outcome_digest;
use shards::event::Letter;
use shards::fold::{Fold, Restored};
use shards::ids::{AskerId, Key, Lsn, Text};
use shards::journal::batch::BATCH_HEAD_BYTES;
use shards::journal::scan::Scan;
use shards::journal::segment::SEGMENT_HEAD_BYTES;
use shards::journal::view::Frames;
use shards::journal::{Fact, FrameView, Kind, decode};
use shards::limits::{COURTESY_MS, Limits, STRIKES_MAX};
use shards::outcome::{Code, Effected, Status};
use shards::shard::Shard;
use shards::step::{Arrival, EffectClass, Lane, Origin, Source};

use crate::blocks::Ledger;
use crate::disk::Disk;
use crate::job::{Job, SALT};
use crate::rng::Rng;
use crate::server::MessageId;
use crate::truth::{Decided, Story, Truth, dead_letter_id};
use crate::worker::Before;
use crate::world::AtWork;

type Verdict = Result<(), String>;

fn answer_key(arrival: &Arrival) -> Key {
    let assignment = arrival.asker.as_ref().map_or("", |asker| asker.assignment_id.as_ref());
    SALT.answer_key(&arrival.tenant, assignment)
}

fn own_hash(arrival: &Arrival) -> Key {
    let delivery = &arrival.delivery;
    SALT.quarantine_key(&delivery.subject, &delivery.headers, &delivery.body)
}

/// I3: published ⇒ durable before. Gives the frame that a result or dead letter tells of.
pub fn i3_nothing_leaves_before_it_is_durable(
    truth: &Truth,
    arrival: &Arrival,
    letter: &Letter,
) -> Result<Option<Decided>, String> {
    let story = |key: Key| truth.stories.get(&key);
    let outcome = match letter {
        Letter::Result { outcome, .. } | Letter::DeadLetter { outcome, .. } => outcome,
        Letter::Ack { accepted: true, .. } => {
            let taken = story(arrival.key).is_some_and(|story| story.taken.is_some());
            let shared = story(answer_key(arrival)).is_some_and(|story| story.answer.is_some());
            return if taken || shared { Ok(None) } else { Err(format!("I3: {} accepted before it is durable", arrival.key)) };
        }
        Letter::Lifecycle { outcome: Some(outcome), .. } => outcome,
        Letter::Ack { .. }
        | Letter::Lifecycle { .. }
        | Letter::ApprovalNeeded { .. }
        | Letter::Copy { .. }
        | Letter::NoCopy
        | Letter::Progress { .. }
        | Letter::Reply(_) => return Ok(None),
    };
    let digest = outcome_digest(outcome);
    let own = story(arrival.key).and_then(|story| story.result);
    let places = [answer_key(arrival), arrival.key, own_hash(arrival)].map(|key| story(key).and_then(|story| story.answer));
    let found = std::iter::once(own).chain(places).flatten().find(|one| one.digest == digest);
    let Some(found) = found else {
        return Err(format!("I3: {} tells of {:?} before it is durable", arrival.key, outcome.status));
    };
    if found.status == Status::Ok && found.fingerprint != arrival.fingerprint {
        return Err(format!("I7: {} is told the outcome of other content", arrival.key));
    }
    let line = matches!(arrival.delivery.origin, Origin::Line(_) | Origin::Journal { source: Source::Line, .. });
    if matches!(letter, Letter::Result { .. }) && found.status == Status::Quarantined && !line {
        return Err(format!("{}: a message put aside is answered", arrival.key));
    }
    Ok(Some(found))
}

/// I4: acked ⇒ durable; and more: the answer, or the dead letter of what has none, has been stored.
pub fn i4_acked_only_once_answered(truth: &Truth, arrival: &Arrival) -> Verdict {
    let told = arrival.asker.as_ref().is_some_and(|asker| truth.told.contains_key(&asker.id));
    let dead = truth.dead_letters.contains(&dead_letter_id(&arrival.delivery.subject, &arrival.delivery.body));
    // A refusal for lateness and a message put aside have only a dead letter; it may be on its way for another delivery.
    let silent = [answer_key(arrival), arrival.key, own_hash(arrival)].iter().any(|key| {
        let answer = truth.stories.get(key).and_then(|story| story.answer);
        answer.is_some_and(|answer| answer.status == Status::Quarantined || answer.code == Some(Code::Expired))
    });
    if told || dead || silent {
        Ok(())
    } else {
        Err(format!("I4: the delivery of {} is acked, its answer was not stored", arrival.key))
    }
}

/// What a try that starts must not break: a decided key (I2), other content (I7), the tries and deadline of earlier lives
/// (I9), and that unsafe work waits for its STARTED frame (I5).
pub fn i9_a_try_may_start(truth: &Truth, arrival: &Arrival, try_number: u32, boot: u32, now_ms: u64) -> Verdict {
    let key = arrival.key;
    let Some(work) = arrival.work() else { return Err(format!("{key}: something that is no work is run")) };
    if try_number > work.retry.tries_max {
        return Err(format!("I9: {key} starts try {try_number} of {}", work.retry.tries_max));
    }
    if truth.stories.get(&key).is_some_and(|story| story.strikes.len() >= STRIKES_MAX as usize) {
        return Err(format!("poison: {key} runs although it has all its strikes"));
    }
    let story = truth.remembered(&key);
    let taken = story.and_then(|story| story.taken);
    if work.effect == EffectClass::Unsafe && story.is_none_or(|story| taken.is_none() || story.started < try_number) {
        return Err(format!("I5: unsafe {key} runs before STARTED {try_number} is durable"));
    }
    let (Some(story), Some(taken)) = (story, taken) else { return Ok(()) };
    if story.result.is_some() {
        return Err(format!("I2: {key} runs again although its outcome is durable"));
    }
    if taken.fingerprint != arrival.fingerprint {
        return Err(format!("I7: {key} runs with other content"));
    }
    if try_number < story.retry {
        return Err(format!("I9: {key} starts try {try_number}, try {} is due", story.retry));
    }
    if taken.boot != boot && now_ms > taken.deadline_ms + 50 {
        return Err(format!("I9: {key} starts {} ms after its deadline", now_ms - taken.deadline_ms));
    }
    Ok(())
}

/// A step with a strike starts only when all others that were recovered with it have their outcome.
pub fn a_struck_step_runs_last(truth: &Truth, key: Key, open: &[Key], boot: u32) -> Verdict {
    let strikes = |key: &Key| truth.stories.get(key).map_or(0, |story| story.strikes.len());
    if strikes(&key) == 0 {
        return Ok(());
    }
    // One that this life has accepted anew had ended and was forgotten.
    let decided = |key: &Key| {
        // Nor one that waits for people: that may be for long, and none of it can end the process.
        truth
            .stories
            .get(key)
            .is_some_and(|story| story.result.is_some() || story.taken.is_some_and(|taken| taken.boot == boot || taken.asks))
    };
    match open.iter().find(|other| **other != key && strikes(other) == 0 && !decided(other)) {
        None => Ok(()),
        Some(other) => Err(format!("poison: {key} starts with a strike before the recovered {other} has ended")),
    }
}

/// What the strike's death kept waiting may come again behind the step: others had their time to start since this life began,
/// as far as the step's budget allowed; once, in the life after that death. `had_ms` is what it had left of that then, at most;
/// `age_ms` how old this life is.
pub fn a_struck_step_lets_others_start(truth: &Truth, key: Key, had_ms: u64, age_ms: u64, boot: u32) -> Verdict {
    let struck = truth.struck.contains(&(key, boot - 1));
    // Its budget ends by the wall, within the tolerance that I9 has.
    let least_ms = COURTESY_MS.min(had_ms.saturating_sub(50) / 2);
    if struck && age_ms < least_ms {
        return Err(format!("poison: {key} starts with a strike {age_ms} ms after the start, not {least_ms}"));
    }
    Ok(())
}

/// I5: effects per (K, F) within the bound of their class, counted at their own server. What must never run twice does not,
/// whatever the journal has forgotten: its claim stands.
pub fn i5_effects_within_their_class(truth: &Truth, ledger: &Ledger, claims: bool) -> Verdict {
    let lives = |key: &Key| truth.stories.get(key).map_or(1, |story| story.lives.max(1));
    let most = |key: &Key, class| if class == EffectClass::Unsafe && claims { 1 } else { lives(key) };
    match ledger.all().find(|((key, _), done)| done.applied > most(key, done.class)) {
        None => Ok(()),
        Some(((key, _), done)) => {
            Err(format!("I5: {:?} effect of {key} happened {} times in {} lives", done.class, done.applied, lives(key)))
        }
    }
}

/// I6: ok ⇒ the effect happened; `none` ⇒ it did not.
pub fn i6_outcomes_say_what_happened(truth: &Truth, ledger: &Ledger) -> Verdict {
    for (key, story) in &truth.stories {
        let (Some(taken), Some(result)) = (story.taken, story.result) else { continue };
        let applied = ledger.applied(*key, &taken.fingerprint);
        if result.status == Status::Ok && taken.class != EffectClass::Pure && applied == 0 {
            return Err(format!("I6: {key} is ok and its effect did not happen"));
        }
        // What we had decided and could not ack, a later owner decides again: README says so.
        let before_another = truth.done_elsewhere.get(key).is_some_and(|boot| result.boot <= *boot);
        // What we asked for among workers that share is answered, or may be another's.
        let asked = truth.asked.get(key) == Some(&result.boot);
        let excused = before_another || truth.ghosts.contains(key);
        let judged = story.lives == 1 && (asked || !excused);
        if result.effect == Effected::None && applied > 0 && judged {
            return Err(format!("I6: {key} ({:?}) says effect none and it happened", taken.class));
        }
    }
    Ok(())
}

/// What a machine that knows its disk to be full writes is only of steps that it has.
pub fn nothing_new_on_a_full_disk(full: bool, frames: &[u8]) -> Verdict {
    let views = Frames::new(frames).flatten().filter_map(|frame| FrameView::parse(frame).ok());
    match views.filter(|_| full).find(|view| view.kind() == Some(Kind::Accepted)) {
        Some(view) => Err(format!("full disk: {} is accepted", view.key())),
        None => Ok(()),
    }
}

/// A job with a time of its own is late only by a clock that may be believed: a jump expires nobody.
pub fn nobody_expires_for_a_jump(latest_ms: u64, frames: &[u8]) -> Verdict {
    for frame in Frames::new(frames).flatten() {
        if FrameView::parse(frame).ok().and_then(|view| view.kind()) != Some(Kind::Answer) {
            continue;
        }
        let Ok(Fact::Answer(fact)) = decode(&Bytes::copy_from_slice(frame)).map(|frame| frame.fact) else { continue };
        let late = fact.outcome.fault.as_ref().is_some_and(|fault| fault.code == Code::Expired);
        let not_after_ms = Job::decode(&fact.message.body).not_after_ms;
        if late && fact.of.is_none() && not_after_ms > latest_ms {
            return Err(format!("clock: a job is expired {} ms before its time", not_after_ms - latest_ms));
        }
    }
    Ok(())
}

/// I10 (and I12): no tenant and no shard runs more than it may; queues are bounded.
pub fn i10_quotas_are_exact(shard: &Shard, at_work: &BTreeMap<Text, u32>, limits: &Limits, recovered: u32) -> Verdict {
    for (name, queued, running) in shard.accounts() {
        let really = at_work.get(name).copied().unwrap_or(0);
        if running > limits.tenant_running_max || really > limits.tenant_running_max {
            return Err(format!("I10: {name} runs {running}, really {really}, of {}", limits.tenant_running_max));
        }
        if queued > limits.tenant_queued_max + limits.tenant_running_max + recovered {
            return Err(format!("I12: {name} has {queued} queued of {}", limits.tenant_queued_max));
        }
    }
    let (running, most) = (shard.running(), limits.shard_running_max);
    if running > most { Err(format!("I10: the shard runs {running} of {most}")) } else { Ok(()) }
}

/// I10: what really runs on a shard keeps to its lanes, to the memory there is, and to what it said of its own kind.
pub fn i10_needs_are_kept<'a>(works: impl Iterator<Item = &'a AtWork>, limits: &Limits) -> Verdict {
    let (mut by_lane, mut by_kind) = ([0; Lane::ALL.len()], BTreeMap::new());
    // How many steps have memory, and how much; by tenant, and all of them.
    let (mut memory, mut all) = (BTreeMap::new(), (0, 0));
    for AtWork { tenant, kind, needs, .. } in works {
        by_lane[needs.lane as usize] += 1;
        let alike: &mut u32 = by_kind.entry((tenant, kind.0)).or_default();
        *alike += 1;
        if needs.concurrency > 0 && *alike > needs.concurrency {
            return Err(format!("I10: {alike} steps of {tenant} of kind {} run, {} may", kind.0, needs.concurrency));
        }
        if needs.memory_bytes > 0 {
            for (steps, bytes) in [memory.entry(tenant).or_insert((0, 0)), &mut all] {
                *steps += 1;
                *bytes += needs.memory_bytes;
            }
        }
    }
    for lane in Lane::ALL {
        let (running, most) = (by_lane[lane as usize], limits.lane_running_max(lane));
        if running > most {
            return Err(format!("I10: {running} steps of the {} lane run, {most} may", lane.as_str()));
        }
    }
    // What was accepted though it needs more than there is has it when no other has any.
    let over = |(steps, bytes): (u32, u64), most: u64| steps > 1 && bytes > most;
    let most = limits.tenant_memory_bytes_max;
    if memory.values().any(|kept| over(*kept, most)) || over(all, limits.shard_memory_bytes_max) {
        return Err(format!("I10: steps run together that need too much: {memory:?} steps and bytes of {most} a tenant"));
    }
    Ok(())
}

/// At rest nothing is held: every charge has returned.
pub fn i10_everything_returns(shard: &Shard) -> Verdict {
    for (name, queued, running) in shard.accounts() {
        if queued + running > 0 {
            return Err(format!("I10: {name} still holds {queued} queued and {running} running at rest"));
        }
    }
    if shard.held_bytes() > 0 {
        return Err(format!("I12: {} bytes are held at rest", shard.held_bytes()));
    }
    if shard.running() + shard.queued() + shard.unpublished() > 0 {
        let (running, queued, unpublished) = (shard.running(), shard.queued(), shard.unpublished());
        return Err(format!("I10: at rest {running} running, {queued} queued, {unpublished} unpublished"));
    }
    Ok(())
}

/// I1: every accepted key has exactly one outcome (that it is not two is seen when the second is written).
pub fn i1_every_accepted_key_has_its_outcome(truth: &Truth) -> Verdict {
    match truth.stories.iter().find(|(_, story)| story.taken.is_some() && story.result.is_none()) {
        None => Ok(()),
        Some((key, story)) => Err(format!("I1: {key} was accepted ({:?}) and has no outcome", story.taken)),
    }
}

/// Promise 3: every outcome was told to its asker, and to everybody who was told "accepted".
pub fn every_asker_is_answered(truth: &Truth) -> Verdict {
    // Riding along with another's step gives no frame of one's own: after a crash and a horizon it may be too late.
    for (key, story) in &truth.stories {
        for decided in [story.result, story.answer].into_iter().flatten() {
            let silent = decided.status == Status::Quarantined || decided.code == Some(Code::Expired);
            let let_go = truth.untold.contains(key) && decided.lsn < truth.floors[story.shard];
            let told = answered_somehow(truth, &decided.asker);
            if !silent && !told && !let_go {
                return Err(format!("unanswered: the outcome of {key} at {:?} never reached its asker", decided.lsn));
            }
        }
    }
    let answered = |asker: &AskerId| answered_somehow(truth, asker) || truth.expired.contains(asker);
    match truth.promised.iter().find(|(asker, _)| !answered(asker)) {
        None => Ok(()),
        Some((_, key)) => Err(format!("unanswered: an asker of {key} was told accepted and never the outcome")),
    }
}

fn answered_somehow(truth: &Truth, asker: &AskerId) -> bool {
    truth.told.contains_key(asker) || truth.told_directly.contains_key(asker) || truth.elsewhere.contains(asker)
}

/// Who asked on core NATS in a life that did not end has its answer, or there is a dead letter that says why not. That letter is
/// of the message which came first under the assignment; the same assignment again, in other words, is only refused again.
/// What came too late is told to nobody on NATS, nor is a message that is refused under the same assignment afterwards.
pub fn core_askers_of_this_life_are_answered(truth: &Truth) -> Verdict {
    let late = |story: &Story| story.answer.is_some_and(|answer| answer.code == Some(Code::Expired));
    let silent = |(asker, key, id): &&(AskerId, Key, MessageId)| {
        let late = truth.expired.contains(asker) || truth.stories.get(key).is_some_and(late);
        !truth.told.contains_key(asker) && !truth.dead_letters.contains(id) && !late
    };
    match truth.heard.iter().find(silent) {
        None => Ok(()),
        Some((_, key, _)) => Err(format!("unanswered: {key} was asked for on core NATS and nobody was told")),
    }
}

/// I21: a dead letter at least once for everything that failed, was refused or put aside.
pub fn i21_failures_leave_dead_letters(truth: &Truth) -> Verdict {
    for (key, story) in &truth.stories {
        for decided in [story.result, story.answer].into_iter().flatten() {
            // An outcome that another owner's may have come before keeps no message in the journal.
            let floor = truth.floors[story.shard];
            let let_go = truth.untold.contains(key) && story.taken.is_none_or(|taken| taken.lsn < floor);
            if decided.dead_letter.is_some_and(|id| !truth.dead_letters.contains(&id)) && !let_go {
                return Err(format!("I21: {key} ended as {:?} and left no dead letter", decided.status));
            }
        }
    }
    Ok(())
}

/// Folds frames; the bytes must all be readable.
pub fn fold<'a>(frames: impl Iterator<Item = (Lsn, &'a [u8])>) -> Result<Restored, String> {
    let mut fold = Fold::default();
    for (lsn, raw) in frames {
        let view = FrameView::parse(raw).map_err(|error| error.to_string())?;
        fold.frame(lsn, &view).map_err(|error| error.to_string())?;
    }
    Ok(fold.finish())
}

/// I16: recover(recover(x)) = recover(x): what recovery itself writes changes nothing but what it decided.
pub fn i16_recovery_is_idempotent(disk: &Disk, before: &Before, log: &[u8], since: u32) -> Verdict {
    let next = disk.durable.0 + 1;
    let written = Frames::new(log).map(|frame| frame.expect("just written"));
    let written = written.enumerate().map(|(index, raw)| (Lsn(next + index as u64), raw));
    let again = fold(disk.frames())?;
    if again.unfinished != before.unfinished || again.tenants.len() != before.tenants {
        return Err("I16: the same frames fold to something else".to_owned());
    }
    let after = fold(disk.frames().chain(written))?;
    for old in &before.unfinished {
        let new = after.unfinished.iter().find(|new| new.key == old.key);
        let kept = match new {
            None if old.owned.streamed && old.owned.epoch < since => true,
            None => after.known.get(&old.key).is_some(),
            Some(new) if new.result.is_some() => true,
            Some(new) => new.message == old.message && new.deadline_ms == old.deadline_ms && new.tries >= old.tries,
        };
        if !kept {
            return Err(format!("I16: recovery changed {old:?} to {new:?}"));
        }
    }
    let born = after.unfinished.iter().find(|new| !before.unfinished.iter().any(|old| old.key == new.key));
    match born {
        None => Ok(()),
        Some(new) => Err(format!("I16: recovery invented {new:?}")),
    }
}

/// I17: the durable prefix survives, byte for byte.
pub fn i17_the_durable_prefix_survives(disk: &Disk) -> Verdict {
    for (lsn, frame) in disk.frames() {
        if let Some(promised) = disk.promised.get(lsn.0 as usize - 1)
            && *promised != crate::disk::sum_of(frame)
        {
            return Err(format!("I17: frame {lsn:?} is not what was written"));
        }
    }
    Ok(())
}

/// I18: damage inside the durable part is reported, a torn tail is cut.
pub fn i18_damage_is_reported_and_torn_tails_are_cut(disk: &Disk, rng: &mut Rng) -> Verdict {
    for (index, segment) in disk.segments.iter().enumerate() {
        let elsewhere = disk.segments.get(index + 1).map_or(Lsn(0), |next| Lsn(next.head.first_lsn.0 - 1));
        let batches: Vec<(usize, usize)> =
            Scan::new(&segment.head, &segment.bytes, elsewhere).map(|batch| (batch.offset as usize, batch.head.size())).collect();
        let Some((last_at, last_size)) = batches.last().copied() else { continue };
        let last_segment = index + 1 == disk.segments.len();
        let proven = if last_segment { last_at } else { last_at + last_size };
        if proven > SEGMENT_HEAD_BYTES {
            let at = SEGMENT_HEAD_BYTES + rng.below((proven - SEGMENT_HEAD_BYTES) as u64) as usize;
            let mut bytes = segment.bytes.clone();
            bytes[at] ^= 1 << rng.below(8);
            if Scan::new(&segment.head, &bytes, elsewhere).finish().is_ok() {
                return Err(format!("I18: byte {at} of segment {index} was changed and nobody noticed"));
            }
        }
        if last_segment {
            let cut = last_at + rng.below(last_size as u64) as usize;
            let mut torn = segment.bytes[..cut].to_vec();
            torn.resize(segment.bytes.len() + BATCH_HEAD_BYTES, 0);
            let tail = Scan::new(&segment.head, &torn, Lsn(0)).finish();
            // A cut inside the zero padding loses nothing.
            let whole = last_at + last_size;
            if !tail.is_ok_and(|tail| tail.offset as usize == last_at || tail.offset as usize == whole) {
                return Err(format!("I18: a tail torn at {cut} was not cut at {last_at}"));
            }
        }
    }
    Ok(())
}
