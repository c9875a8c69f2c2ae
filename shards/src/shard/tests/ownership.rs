//! Owners that come after one another: what an earlier one may have done is not done again, and what a later one has done since
//! is no longer ours.

use super::*;
use crate::event::{Post, Untold};

fn inherited(sequence: u64) -> Origin {
    match delivery(sequence, 1) {
        Origin::Stream(token) => Origin::Stream(StreamToken { inherited: true, ..token }),
        other => other,
    }
}

impl Bench {
    /// Another worker has owned the stream: the process starts again with the frames it has, and is told so of its unfinished keys.
    fn superseded(&mut self) {
        let kept = self.frames.len();
        let mut fold = Fold::default();
        for (index, raw) in self.frames.iter().enumerate() {
            fold.frame(Lsn(index as u64 + 1), &FrameView::parse(raw).expect("a frame")).expect("readable");
        }
        let restored = fold.finish();
        let unfinished = restored.unfinished.clone();
        self.did.clear();
        self.boot += 1;
        self.shard = shard(&self.limits, Lsn(kept as u64 + 1), self.boot);
        self.shard.restore(restored, &[], self.now);
        for one in unfinished {
            assert!(one.owned.streamed && one.owned.epoch == EPOCH, "{:?}", one.owned);
            let untold = one.result.map(|decided| Untold { accepted: one.message, decided, role: one.role });
            let (key, fingerprint, asker, partition) = (one.key, one.fingerprint, one.asker, one.owned.partition);
            self.apply(Event::Superseded { key, fingerprint, asker, partition, untold });
        }
    }

    /// The same assignment asks for something that is no step.
    fn refuse(&mut self, step: &Step) {
        let arrival = (*step.arrival(self.now)).clone();
        let key = SALT.answer_key("t", step.assignment);
        let asker = arrival.asker.clone().map(|asker| crate::step::Asker { id: SALT.asker(key, step.assignment), ..asker });
        let content = Content::Refusal(Fault::new(Code::UnknownJobType, "No."));
        self.apply(Event::Arrived(Rc::new(Arrival { content, asker, key, ..arrival })));
    }

    fn is_released(&self, key: Key) -> bool {
        (1..=self.frames.len())
            .map(|lsn| self.frame(Lsn(lsn as u64)))
            .any(|frame| frame.key == key && frame.owner_epoch == EPOCH && matches!(frame.fact, Fact::Released { .. }))
    }
}

#[test]
fn an_inherited_step_that_must_never_run_twice_is_not_run() {
    let mut bench = Bench::new();
    bench.send(&step("k").effect(EffectClass::Unsafe).from(inherited(1)));
    let (told, settled) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("why");
    assert_eq!((fault.code, fault.effect), (Code::Indeterminate, Effected::Unknown));
    assert_eq!((settled, bench.outcomes()[0].tries), (vec![(1, Settle::Term)], 0));
    let accounts: Vec<_> = bench.shard.accounts().map(|(_, queued, running)| (queued, running)).collect();
    assert_eq!(accounts, [(0, 0)], "what it was charged is back");
}

#[test]
fn an_inherited_step_of_another_class_runs_as_one_that_may_have_run() {
    for class in [EffectClass::Pure, EffectClass::Idempotent, EffectClass::Transactional, EffectClass::Conditional] {
        let mut bench = Bench::new();
        bench.send(&step("k").effect(class).from(inherited(1)));
        // Its STARTED is durable first.
        assert_eq!(bench.runs().len(), 0, "{class:?}");
        bench.sync();
        let ticket = bench.run();
        bench.fail(ticket, Code::ExecutionFailed, Effected::None);
        let effect = bench.settle().0[0].1.effect;
        let expected = if class == EffectClass::Pure { Effected::None } else { Effected::Unknown };
        assert_eq!(effect, expected, "{class:?}: an earlier owner's run may have done it");
    }
}

#[test]
fn what_the_journal_knows_is_answered_however_it_comes() {
    let mut bench = Bench::new();
    let one = step("k").effect(EffectClass::Unsafe);
    bench.send(&one);
    bench.sync();
    let ticket = bench.run();
    bench.done(ticket);
    let first = bench.settle().0.remove(0);
    bench.send(&one.from(inherited(1)));
    assert_eq!(bench.settle().0, [first]);
}

#[test]
fn a_superseded_step_is_not_run() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    bench.sync();
    let before = bench.frames.len();
    bench.superseded();
    bench.sync();
    bench.wait_ms(20_000);
    assert!(bench.look().iter().all(|effect| !matches!(effect, Effect::Run { .. } | Effect::Post(_))));
    assert!(bench.is_released(one.key));
    assert_eq!((bench.frames.len(), bench.shard.is_idle()), (before + 1, true));
    // Released once is released for good.
    bench.superseded();
    assert_eq!(bench.frames.len(), before + 1);

    // Who asks for it under this owner starts it as any other.
    bench.send(&one.from(inherited(1)));
    bench.sync();
    let ticket = bench.run();
    bench.done(ticket);
    assert_eq!(bench.settle().0.len(), 1);
}

#[test]
fn a_superseded_step_stays_known_as_one_that_another_may_have_run() {
    let mut bench = Bench::new();
    let (once, other) = (step("once").effect(EffectClass::Unsafe), step("other").by("b").from(delivery(2, 1)));
    bench.send(&once);
    bench.send(&other);
    bench.superseded();
    bench.sync();
    for later in 0..2 {
        if later == 1 {
            bench.superseded();
        }
        // A new message, which nobody can have had.
        bench.send(&other.clone().by("c").content(2).from(delivery(10 + later, 1)));
        let (told, _) = bench.settle();
        assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::KeyConflict), "{later}");
    }
    bench.send(&once.by("d").from(delivery(20, 1)));
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("why");
    assert_eq!((fault.code, fault.effect), (Code::Indeterminate, Effected::Unknown));
}

#[test]
fn a_superseded_step_keeps_its_assignment() {
    // Twice: as this life was told, and as the next reads it from the journal.
    for lives in 1..=2 {
        let mut bench = Bench::new();
        let one = step("a").by("a");
        bench.send(&one);
        for _ in 0..lives {
            bench.superseded();
            bench.sync();
        }
        let dead = |bench: &Bench| {
            let letter = |effect: &&Effect| matches!(effect, Effect::Post(Post { letter: Letter::DeadLetter { .. }, .. }));
            bench.did.iter().filter(letter).count()
        };
        // Another owner has it, and has answered this assignment or will: nobody else may.
        bench.send(&one.clone().content(2).from(delivery(10, 1)));
        bench.sync();
        assert_eq!(dead(&bench), 1, "{lives}");
        assert_eq!(bench.settle().0, [], "{lives}: other content");
        bench.refuse(&one.clone().content(3).from(delivery(11, 1)));
        bench.sync();
        assert_eq!(dead(&bench), 1, "{lives}");
        assert_eq!(bench.settle().0, [], "{lives}: a message that is refused");
        // The step itself is not shut out by any of that.
        bench.send(&one.from(inherited(1)));
        bench.sync();
        let ticket = bench.run();
        bench.done(ticket);
        assert_eq!(bench.settle().0[0].1.status, Status::Ok, "{lives}");
    }
}

#[test]
fn a_superseded_outcome_is_told_with_all_its_letters_once_the_stream_asks_for_it() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    let ticket = bench.run();
    bench.fail(ticket, Code::ExecutionFailed, Effected::None);
    let outcome = bench.outcomes().remove(0);
    for _ in 0..2 {
        bench.superseded();
        bench.sync();
        bench.wait_ms(20_000);
        assert!(bench.look().is_empty(), "nobody has asked");
        assert!(!bench.is_released(one.key) && bench.shard.is_idle());
    }
    bench.send(&one.clone().from(inherited(1)));
    let probes = bench.look();
    let [Effect::Probe { key, lsn }] = probes[..] else { panic!("{probes:?}") };
    let found = outcome_of(&bench.frame(lsn)).map(Rc::new);
    bench.apply(Event::Probed { key, found });
    let letters = |bench: &mut Bench| {
        let name = |effect: &Effect| match effect {
            Effect::Post(Post { letter: Letter::Result { outcome, .. }, .. }) => Some(("result", Some(outcome.as_ref().clone()))),
            Effect::Post(Post { letter: Letter::DeadLetter { .. }, .. }) => Some(("dead letter", None)),
            _ => None,
        };
        bench.did.iter().filter_map(name).collect::<Vec<_>>()
    };
    assert_eq!(letters(&mut bench), [("result", Some(outcome.clone())), ("dead letter", None)]);
    assert_eq!(bench.settle().1, [(1, Settle::Term)]);
    assert_eq!(bench.shard.unpublished(), 0);

    // Now it is published, and no longer untold.
    bench.superseded();
    assert_eq!(bench.shard.tally().superseded, 0);
    bench.send(&one.from(inherited(1)));
    let (told, _) = bench.settle();
    assert_eq!((told.len(), told[0].1.as_ref()), (1, &outcome));
}

#[test]
fn a_superseded_refusal_that_is_asked_for_in_another_way_is_told_and_over() {
    let mut bench = Bench::new();
    let one = step("k").effect(EffectClass::Unsafe);
    bench.shard.settings.shared = true;
    bench.send(&one);
    assert_eq!(bench.outcomes().len(), 1, "it is refused");
    bench.superseded();
    bench.sync();
    bench.look();
    // The same assignment, and this time the message is no step: it has another key, and so its asker another number.
    bench.refuse(&one);
    let (told, _) = bench.settle();
    assert_eq!((told.len(), told[0].1.fault.as_ref().map(|fault| fault.code)), (1, Some(Code::PermissionDenied)));
    assert_eq!((bench.shard.unpublished(), bench.fold().unfinished), (0, vec![]));
}

#[test]
fn where_workers_share_nothing_unsafe_runs() {
    let mut bench = Bench::new();
    bench.shard.settings.shared = true;
    bench.send(&step("k").effect(EffectClass::Unsafe));
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("why");
    assert_eq!((fault.code, fault.effect), (Code::PermissionDenied, Effected::None));
    bench.send(&step("other").by("b").effect(EffectClass::Conditional).from(delivery(2, 1)));
    bench.run();
}

#[test]
fn a_step_in_flight_that_an_earlier_owner_was_handed_too_is_not_said_to_have_done_nothing() {
    let mut bench = tiny(|limits| limits.tenant_running_max = 1);
    bench.send(&step("first").by("b"));
    let first = bench.run();
    // It came on core NATS, and waits; the earlier owner was handed a message of the stream that asks for the same.
    let one = step("k").effect(EffectClass::Unsafe);
    bench.send(&one.clone().from(core()));
    bench.send(&one.from(inherited(7)));
    bench.wait_ms(20_000);
    let ended: Vec<_> = bench.outcomes().iter().map(|outcome| (outcome.status, outcome.effect)).collect();
    assert_eq!(ended, [(Status::Timeout, Effected::None), (Status::Timeout, Effected::Unknown)]);
    bench.done(first);
}
