//! Journals from a seed: frames of some keys in any order, pages, and files that are none of the journal's.

use super::*;
use crate::audit::{AuditItem, AuditKind};
use crate::gate::Vote;
use crate::ids::BlockId;
use crate::journal::{Accepted, Answer, Fact, Frame, ResultFact};
use crate::outcome::{Effected, Outcome, Status};
use crate::step::EffectClass;

/// Numbers from a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    pub(super) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

fn message(number: u8, at_ms: u64) -> Message {
    Message {
        source: 1 + number % 4,
        sequence: u64::from(number),
        since_ms: at_ms - 5,
        subject: Text::from_static("a.subject"),
        headers: vec![(Text::from_static("tenant_id"), tenant(number))],
        body: bytes::Bytes::from(vec![number; 1 + usize::from(number) * 7]),
    }
}

fn outcome(number: u8, at_ms: u64) -> Outcome {
    Outcome {
        status: Status::Ok,
        effect: Effected::Applied,
        outputs: bytes::Bytes::from(vec![b'o'; usize::from(number)]),
        spilled: false,
        fault: None,
        tries: 1,
        received_ms: at_ms - 2,
        started_ms: at_ms - 1,
        ended_ms: at_ms,
        ran_us: 10,
        queue_depth: 0,
        boot: BOOT,
        owner_epoch: 0,
    }
}

fn audit(seq: u64, at_ms: u64) -> AuditItem {
    AuditItem {
        kind: AuditKind::Outcome,
        wall_ms: at_ms,
        tenant_seq: seq,
        outcome_digest: [5; 32],
        actor: Text::from_static("worker"),
        config_epoch: 0,
    }
}

/// The next frame of a key, as likely to be an odd one as not.
pub(super) fn fact(dice: &mut Dice, number: u8, at_ms: u64) -> Fact {
    let fingerprint = Fingerprint([number; 32]);
    let name = if is_unowned(number) { Text::new() } else { tenant(number) };
    let answer = |dice: &mut Dice| Answer {
        tenant: name.clone(),
        fingerprint,
        asker: asker(number),
        of: dice.one_in(2).then(|| key(200)),
        outcome: outcome(number, at_ms),
        audit: audit(at_ms, at_ms),
        message: message(number, at_ms),
    };
    if is_unowned(number) {
        return if dice.one_in(2) { Fact::Quarantined(answer(dice)) } else { Fact::Published { asker: asker(number), at_ms } };
    }
    match dice.below(16) {
        0..=3 => Fact::Accepted(Accepted {
            tenant: name,
            fingerprint,
            asker: asker(number),
            effect: EffectClass::Unsafe,
            effect_ceiling: None,
            block: Text::from_static("echo@1"),
            config_epoch: 0,
            replay_of: None,
            deadline_ms: at_ms + 1000,
            not_after_ms: at_ms + 2000,
            received_ms: at_ms,
            message: message(number, at_ms),
        }),
        4..=6 => Fact::Started { try_number: dice.below(4) as u32 + 1, boot: BOOT, at_ms },
        7 | 8 => Fact::RetryAt { try_number: 2, at_ms: at_ms + 90_000 },
        9 | 10 => Fact::Result(ResultFact {
            tenant: name,
            fingerprint,
            asker: asker(number),
            block: Text::from_static("echo@1"),
            outcome: outcome(number, at_ms),
            audit: audit(at_ms, at_ms),
        }),
        11 | 12 => Fact::Published { asker: asker(number), at_ms },
        13 if dice.one_in(2) => Fact::Signal(vote(at_ms)),
        13 => Fact::Released { at_ms },
        14 => Fact::Struck { strikes: dice.below(3) as u32 + 1, boot: BOOT - 1, at_ms },
        _ if dice.one_in(2) => Fact::Answer(answer(dice)),
        _ => Fact::Unknown(99),
    }
}

fn vote(at_ms: u64) -> Vote {
    let empty = Text::new();
    Vote {
        actor: Text::from_static("ann"),
        approve: true,
        comment: empty.clone(),
        id: empty.clone(),
        signed: false,
        plan: empty,
        at_ms,
    }
}

/// A journal of `shards` shards with a page in some of them, and a name.
pub(super) fn write(dir: &Path, generation: u64, shards: u16, dice: &mut Dice) {
    let make = |shard: u16| {
        let folder = dir.join(generation.to_string()).join(shard.to_string());
        Target::create(folder, wanted(dir, shards).settings(generation, shards, shard), Lsn(1), BOOT).unwrap()
    };
    let mut targets: Vec<Target> = (0..shards).map(make).collect();
    let mut log = Log::default();
    for at_ms in 1_000_000..1_000_600 {
        let number = dice.below(u64::from(KEYS)) as u8;
        let (fact, partition) = (fact(dice, number, at_ms), map::partition(&tenant(number)));
        let shard = if is_unowned(number) { unowned(&message(number, at_ms), shards) } else { map::shard(partition, shards) };
        let partition = if is_unowned(number) { map::partition("") } else { partition };
        log.append(&Frame { key: key(number), partition, owner_epoch: dice.below(3) as u32, fact });
        let target = &mut targets[usize::from(shard)];
        target.push(&log.bytes).unwrap();
        log.clear();
        if dice.one_in(4) {
            target.flush().unwrap();
        }
        if dice.one_in(60) {
            log.mark(at_ms, Lsn(dice.below(20)), if dice.one_in(2) { at_ms - 70 } else { 0 });
            target.push(&log.bytes).unwrap();
            log.clear();
        }
    }
    for target in targets {
        log.mark(1_000_600, Lsn(0), 0);
        target.end(&log.bytes).unwrap();
        log.clear();
    }
    fs::write(dir.join(generation.to_string()).join("name"), b"its name").unwrap();
    for shard in (0..shards).filter(|_| dice.one_in(2)) {
        let folder = dir.join(generation.to_string()).join(shard.to_string());
        let number =
            (0..KEYS).find(|number| !is_unowned(*number) && map::shard(map::partition(&tenant(*number)), shards) == shard);
        let Some(number) = number else { continue };
        let (page, _) = Page::open(&folder, BOOT).unwrap();
        std::mem::forget(page.name(key(number), map::partition(&tenant(number)), BlockId(0)));
        fs::write(folder.join("0000000001.keys"), b"derived").unwrap();
    }
}
