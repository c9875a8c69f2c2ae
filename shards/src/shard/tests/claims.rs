//! Claims: what must never run twice is run only by the worker that claimed it first.

use super::*;
use crate::event::Claimant;

impl Bench {
    fn claiming() -> Bench {
        let mut bench = Bench::new();
        bench.claims = true;
        bench.shard.settings.claims = true;
        bench
    }

    /// The one claim made since the last look, once what is written is durable, with nothing started.
    fn claim(&mut self) -> Ticket {
        self.sync();
        let did = self.look();
        assert!(!did.iter().any(|effect| matches!(effect, Effect::Run { .. })), "nothing runs unclaimed: {did:?}");
        let claims: Vec<Ticket> = did
            .iter()
            .filter_map(|effect| if let Effect::Claim { ticket, .. } = effect { Some(*ticket) } else { None })
            .collect();
        assert_eq!(claims.len(), 1, "{did:?}");
        claims[0]
    }

    fn claimed(&mut self, ticket: Ticket, by: Claimant) {
        self.apply(Event::Claimed { ticket, by });
    }

    fn holds_nothing(&self) -> bool {
        self.shard.accounts().all(|(_, queued, running)| (queued, running) == (0, 0))
    }
}

fn once() -> Step {
    step("k").effect(EffectClass::Unsafe)
}

#[test]
fn a_claimed_step_runs_once_its_start_is_durable() {
    let mut bench = Bench::claiming();
    bench.send(&once());
    assert!(bench.look().is_empty(), "what is claimed is known in the journal first");
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Ours);
    assert!(bench.runs().is_empty(), "its STARTED is not durable");
    bench.sync();
    let ticket = bench.run();
    bench.done(ticket);
    let (told, settled) = bench.settle();
    assert_eq!((told[0].1.status, settled), (Status::Ok, vec![(1, Settle::Ack)]));
}

#[test]
fn what_another_claimed_is_not_run_and_may_have_happened() {
    let mut bench = Bench::claiming();
    bench.send(&once());
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Another);
    let (told, settled) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("why");
    assert_eq!((fault.code, fault.effect, told[0].1.tries), (Code::Indeterminate, Effected::Unknown, 0));
    assert_eq!(settled, [(1, Settle::Term)]);
    assert!(bench.runs().is_empty() && bench.holds_nothing());
}

#[test]
fn what_was_claimed_in_a_life_that_the_journal_has_forgotten_is_not_run() {
    let mut bench = Bench::claiming();
    bench.send(&once());
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Forgotten);
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("why");
    assert_eq!((fault.code, fault.effect), (Code::Indeterminate, Effected::Unknown));
    assert!(bench.runs().is_empty());
}

#[test]
fn only_what_must_never_run_twice_is_claimed() {
    for class in [EffectClass::Pure, EffectClass::Idempotent, EffectClass::Transactional, EffectClass::Conditional] {
        let mut bench = Bench::claiming();
        bench.send(&step("k").effect(class));
        assert_eq!(bench.runs().len(), 1, "{class:?}");
    }
}

#[test]
fn a_claim_that_is_not_answered_in_time_is_a_timeout_and_may_be_anothers() {
    let mut bench = Bench::claiming();
    bench.send(&once());
    let claim = bench.claim();
    bench.wait_ms(10_100);
    let (told, _) = bench.settle();
    assert_eq!((told[0].1.status, told[0].1.effect), (Status::Timeout, Effected::Unknown));
    bench.claimed(claim, Claimant::Ours);
    bench.sync();
    assert!(bench.runs().is_empty() && bench.holds_nothing());
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn a_cancel_while_the_claim_is_awaited_runs_nothing_and_the_claim_may_be_anothers() {
    let mut bench = Bench::claiming();
    bench.send(&once());
    let claim = bench.claim();
    bench.apply(Event::Cancel { key: once().key });
    bench.claimed(claim, Claimant::Ours);
    let (told, _) = bench.settle();
    assert_eq!((told[0].1.status, told[0].1.effect), (Status::Cancelled, Effected::Unknown));
    assert!(bench.holds_nothing());
}

#[test]
fn where_workers_share_a_claim_without_an_answer_may_be_anothers() {
    for cancelled in [false, true] {
        let mut bench = Bench::claiming();
        bench.shard.settings.shared = true;
        bench.send(&once());
        bench.send(&once().by("b").from(delivery(2, 1)));
        let claim = bench.claim();
        if cancelled {
            bench.apply(Event::Cancel { key: once().key });
        } else {
            bench.wait_ms(10_100);
        }
        let expected = if cancelled { Status::Cancelled } else { Status::Timeout };
        let (told, _) = bench.settle();
        let told: Vec<_> = told.iter().map(|(_, outcome)| (outcome.status, outcome.effect)).collect();
        assert_eq!(told, [(expected, Effected::Unknown); 2], "another may have claimed it, and done it");
        bench.claimed(claim, Claimant::Ours);
        bench.sync();
        assert!(bench.runs().is_empty() && bench.holds_nothing());
    }
}

#[test]
fn where_workers_share_a_step_whose_claim_is_answered_or_not_asked_for_has_done_nothing() {
    for asked in [false, true] {
        let mut bench = Bench::claiming();
        bench.shard.settings.shared = true;
        bench.send(&once());
        if asked {
            let claim = bench.claim();
            bench.claimed(claim, Claimant::Ours);
        }
        bench.wait_ms(10_100);
        let (told, _) = bench.settle();
        assert_eq!((told[0].1.status, told[0].1.effect), (Status::Timeout, Effected::None), "{asked}");
    }
}

#[test]
fn a_step_is_claimed_once_however_many_tries_it_takes() {
    let mut bench = Bench::claiming();
    bench.send(&once());
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Ours);
    bench.sync();
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::None);
    bench.wait_ms(200);
    bench.sync();
    let runs = bench.runs();
    assert_eq!(runs.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [2]);
    bench.claimed(claim, Claimant::Another);
    bench.done(runs[0].0);
    assert_eq!(bench.settle().0[0].1.status, Status::Ok, "an old answer changes nothing");
}

#[test]
fn a_crash_before_the_claim_is_answered_leaves_a_step_that_is_claimed_again_and_run() {
    let mut bench = Bench::claiming();
    let one = once();
    bench.send(&one);
    bench.claim();
    bench.restart(1, &[&one]);
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Ours);
    bench.sync();
    assert_eq!(bench.runs().iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_crash_after_the_start_needs_no_claim_to_be_indeterminate() {
    let mut bench = Bench::claiming();
    let one = once();
    bench.send(&one);
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Ours);
    bench.sync();
    bench.run();
    bench.restart(2, &[&one]);
    assert!(!bench.did.iter().any(|effect| matches!(effect, Effect::Claim { .. } | Effect::Run { .. })));
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::Indeterminate));
}

#[test]
fn where_workers_share_what_is_claimed_runs_and_what_came_before_does_not() {
    let mut bench = Bench::claiming();
    bench.shard.settings.shared = true;
    bench.send(&once());
    let claim = bench.claim();
    bench.claimed(claim, Claimant::Ours);
    bench.sync();
    bench.run();

    // Delivered before, to whomever: that one may have run it, and this is crash point C3 of its class.
    let again = step("again").by("b").effect(EffectClass::Unsafe).from(delivery(2, 2));
    bench.send(&again);
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("why");
    assert_eq!((fault.code, fault.effect), (Code::Indeterminate, Effected::Unknown));
}
