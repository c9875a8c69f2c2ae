//! Steps that wait for people: who is heard, what is told and when, and what a crash leaves of it.

use super::*;
use crate::event::{Asking, Reply};
use crate::gate::{Round, Vote};
use crate::step::Notice;

pub(super) const HOUR_MS: u64 = 3_600_000;

pub(super) fn gate(approvers: &[&str], quorum: u32) -> Gate {
    let approvers = approvers.iter().map(|name| Text::from(*name)).collect();
    let first = Round { approvers, quorum, wait_ms: HOUR_MS };
    Gate { first, escalation: None, approve_overdue: false, remind_ms: None, signed: false, plan: None }
}

pub(super) fn asking(gate: Gate) -> Step {
    let budget_ms = gate.wait_ms();
    Step { gate: Some(Rc::new(gate)), budget_ms, ..step("asks") }
}

pub(super) fn vote(actor: &str, approve: bool) -> Vote {
    let empty = Text::new();
    Vote { actor: Text::from(actor), approve, comment: empty.clone(), id: empty.clone(), signed: false, plan: empty, at_ms: 0 }
}

impl Bench {
    pub(super) fn say(&mut self, key: Key, vote: Vote) {
        let arrival = Arrival {
            key,
            fingerprint: Fingerprint([0; 32]),
            asker: None,
            content: Content::Notice(Notice::Signal { assignment_id: None, vote }),
            ..(*step("any").from(core()).arrival(self.now)).clone()
        };
        self.apply(Event::Arrived(Rc::new(arrival)));
    }

    /// What people are told of steps that wait for them, since the last look; forgets everything else.
    pub(super) fn asked(&mut self) -> Vec<(Asking, u64)> {
        let asked = |effect| match effect {
            Effect::Post(Post { letter: Letter::ApprovalNeeded { why, until_ms, .. }, .. }) => Some((why, until_ms - START_MS)),
            _ => None,
        };
        self.look().into_iter().filter_map(asked).collect()
    }

    /// Who decided, by the audit item.
    pub(super) fn actor(&self) -> Option<Text> {
        (1..=self.frames.len() as u64).find_map(|lsn| match self.frame(Lsn(lsn)).fact {
            Fact::Result(fact) => Some(fact.audit.actor),
            _ => None,
        })
    }
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("JSON")
}

#[test]
fn a_waiting_step_holds_no_place_and_people_are_told_once_it_is_durable() {
    let mut bench = tiny(|limits| (limits.tenant_running_max, limits.tenant_queued_max) = (1, 1));
    bench.shard.settings.events = true;
    bench.send(&asking(gate(&["ann"], 1)));
    assert_eq!(bench.asked(), [], "not before it is durable");
    bench.sync();
    assert_eq!(bench.asked(), [(Asking::First, HOUR_MS)]);
    assert_eq!((bench.shard.running(), bench.shard.queued(), bench.shard.parked()), (0, 0, 1));
    assert!(bench.shard.is_idle(), "a worker that drains does not wait for people");
    bench.send(&step("works").by("b").from(delivery(2, 1)));
    bench.run();
}

#[test]
fn an_approval_is_told_once_durable_and_names_who_decided() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann", "ben"], 2));
    bench.send(&one);
    bench.sync();
    bench.say(one.key, Vote { comment: Text::from_static("fine"), ..vote("ann", true) });
    assert_eq!(bench.replies().0, [], "not before it is durable");
    bench.sync();
    assert_eq!(bench.replies().0, [Reply::Noted]);
    assert!(bench.outcomes().is_empty(), "one of two");
    bench.say(one.key, vote("ben", true));
    let (told, settled) = bench.settle();
    assert_eq!((told.len(), settled), (1, vec![(1, Settle::Ack)]));
    let outcome = &told[0].1;
    assert_eq!((outcome.status, outcome.tries), (Status::Ok, 0));
    let outputs = text(&outcome.outputs);
    assert!(outputs.contains(r#""votes":[{"actor":"ann","decision":"approved","comment":"fine","#), "{outputs}");
    assert_eq!(bench.actor().as_deref(), Some("ann, ben"));
    assert_eq!(bench.shard.parked(), 0);
}

#[test]
fn one_rejection_ends_it_and_makes_no_dead_letter() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann", "ben"], 2));
    bench.send(&one);
    bench.sync();
    bench.say(one.key, vote("ben", false));
    bench.sync();
    let effects = bench.look();
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::DeadLetter { .. }, .. }))));
    let outcomes = bench.outcomes();
    let fault = outcomes[0].fault.as_ref().expect("why");
    assert_eq!((outcomes[0].status, fault.code, outcomes[0].effect), (Status::Error, Code::Rejected, Effected::None));
    assert!(text(&fault.details).starts_with(r#"{"approved":false,"decision":"rejected","overdue":false,"#));
}

#[test]
fn strangers_and_second_words_change_nothing() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann", "ben"], 2));
    bench.send(&one);
    bench.settle();
    bench.say(one.key, vote("eve", true));
    let [Reply::Refused(fault)] = &bench.replies().0[..] else { panic!("a stranger is told so at once") };
    assert_eq!(fault.code, Code::PermissionDenied);
    bench.say(one.key, vote("ann", true));
    bench.say(one.key, vote("ann", false));
    assert_eq!(bench.replies().0, [], "the first word is not durable yet, and that is what both are told of");
    bench.sync();
    let first = Vote { at_ms: bench.now.wall_ms, ..vote("ann", true) };
    assert_eq!(bench.replies().0, [Reply::Noted, Reply::Heard(first)]);
    assert!(bench.outcomes().is_empty());
    bench.say(SALT.key(Identity::Assignment { tenant: "t", assignment: "other" }), vote("ann", true));
    assert_eq!(bench.replies().0, [Reply::Unknown], "a word for another key");
    let runs = step("runs").by("r").from(delivery(7, 1));
    bench.send(&runs);
    bench.say(runs.key, vote("ann", true));
    let replies = bench.replies().0;
    assert!(matches!(&replies[..], [Reply::Refused(fault)] if fault.code == Code::InvalidInput), "{replies:?}");
}

#[test]
fn who_comes_late_is_told_what_was_decided() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann", "ben"], 1));
    bench.send(&one);
    bench.sync();
    bench.say(one.key, vote("ann", true));
    bench.say(one.key, vote("ben", false));
    assert_eq!(bench.replies().0, []);
    bench.sync();
    let replies = bench.replies().0;
    assert!(matches!(&replies[..], [Reply::Noted, Reply::Decided(outcome)] if outcome.status == Status::Ok), "{replies:?}");
}

#[test]
fn who_comes_when_all_is_told_hears_it_from_the_journal() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann", "ben"], 1));
    bench.send(&one);
    bench.say(one.key, vote("ann", true));
    bench.settle();
    bench.say(one.key, vote("ben", false));
    let probes: Vec<_> = bench.look().into_iter().collect();
    let [Effect::Probe { key, lsn }] = probes[..] else { panic!("{probes:?}") };
    let found = outcome_of(&bench.frame(lsn)).map(Rc::new);
    bench.apply(Event::Probed { key, found });
    let replies = bench.replies().0;
    assert!(matches!(&replies[..], [Reply::Decided(outcome)] if outcome.status == Status::Ok), "{replies:?}");
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn time_decides_as_it_was_asked_to() {
    for (approve_overdue, status) in [(false, Status::Error), (true, Status::Ok)] {
        let mut bench = Bench::new();
        let one = asking(Gate { approve_overdue, ..gate(&["ann", "ben"], 2) });
        bench.send(&one);
        bench.sync();
        bench.say(one.key, vote("ann", true));
        bench.wait_ms(HOUR_MS - 1);
        assert!(bench.outcomes().is_empty());
        bench.wait_ms(1);
        let outcomes = bench.outcomes();
        assert_eq!((outcomes.len(), outcomes[0].status), (1, status));
        assert_eq!(bench.actor().as_deref(), Some("worker"), "nobody decided it");
        bench.say(one.key, vote("ben", true));
        bench.sync();
        assert!(matches!(bench.replies().0.last(), Some(Reply::Decided(_))));
    }
}

#[test]
fn a_word_that_comes_when_time_is_over_finds_it_decided() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann"], 1));
    bench.send(&one);
    bench.sync();
    (bench.now.mono_us, bench.now.wall_ms) = (HOUR_MS * 1_000, START_MS + HOUR_MS);
    bench.say(one.key, vote("ann", true));
    bench.sync();
    let replies = bench.replies().0;
    assert!(matches!(&replies[..], [Reply::Decided(outcome)] if outcome.status == Status::Error), "{replies:?}");
}

#[test]
fn people_are_reminded_and_others_asked() {
    let mut bench = Bench::new();
    bench.shard.settings.events = true;
    let escalation = Some(Round { approvers: vec![Text::from("boss")], quorum: 1, wait_ms: HOUR_MS });
    bench.send(&asking(Gate { escalation, remind_ms: Some(60_000), ..gate(&["ann"], 1) }));
    bench.sync();
    assert_eq!(bench.asked(), [(Asking::First, HOUR_MS)]);
    bench.wait_ms(HOUR_MS - 60_000);
    assert_eq!(bench.asked(), [(Asking::Reminder, HOUR_MS)]);
    bench.wait_ms(60_000);
    assert_eq!(bench.asked(), [(Asking::Escalation, 2 * HOUR_MS)]);
    let key = step("asks").key;
    bench.say(key, vote("ann", true));
    assert!(matches!(&bench.replies().0[..], [Reply::Refused(_)]), "it is no longer theirs to decide");
    bench.say(key, vote("boss", true));
    bench.sync();
    assert_eq!(bench.outcomes()[0].status, Status::Ok);
}

#[test]
fn a_crash_loses_no_durable_word_and_asks_again() {
    let one = asking(gate(&["ann", "ben"], 2));
    let mut bench = Bench::new();
    bench.shard.settings.events = true;
    bench.send(&one);
    bench.settle();
    bench.say(one.key, vote("ann", true));
    bench.settle();
    bench.now.wall_ms += HOUR_MS / 2;
    let kept = bench.frames.len();
    bench.restart(kept, &[&one]);
    assert_eq!(bench.asked(), [(Asking::First, HOUR_MS)], "with the time that is left");
    bench.say(one.key, vote("ann", false));
    assert!(matches!(&bench.replies().0[..], [Reply::Heard(first)] if first.approve), "the first word stands");
    bench.say(one.key, vote("ben", true));
    let (told, _) = bench.settle();
    assert_eq!((told.len(), told[0].1.status), (1, Status::Ok));
    assert_eq!(bench.actor().as_deref(), Some("ann, ben"));
}

#[test]
fn a_word_whose_decision_was_lost_decides_at_boot() {
    let one = asking(gate(&["ann"], 1));
    let mut bench = Bench::new();
    bench.send(&one);
    bench.settle();
    bench.say(one.key, vote("ann", true));
    let signal = (1..=bench.frames.len()).find(|lsn| matches!(bench.frame(Lsn(*lsn as u64)).fact, Fact::Signal(_)));
    bench.restart(signal.expect("said"), &[&one]);
    assert_eq!(bench.outcomes().len(), 1);
    let (told, _) = bench.settle();
    assert_eq!((told.len(), told[0].1.status), (1, Status::Ok));
}

#[test]
fn time_goes_on_while_the_worker_is_down() {
    let one = asking(gate(&["ann"], 1));
    let mut bench = Bench::new();
    bench.send(&one);
    bench.settle();
    bench.now.wall_ms += 2 * HOUR_MS;
    let kept = bench.frames.len();
    bench.restart(kept, &[&one]);
    assert_eq!((bench.outcomes().len(), bench.outcomes()[0].status), (1, Status::Error));
}

#[test]
fn a_cancel_ends_the_wait() {
    let mut bench = Bench::new();
    let one = asking(gate(&["ann"], 1));
    bench.send(&one);
    bench.sync();
    bench.cancel(one.key, None);
    bench.settle();
    assert_eq!((bench.outcomes()[0].status, bench.outcomes()[0].effect), (Status::Cancelled, Effected::None));
    assert_eq!(bench.shard.parked(), 0);
    assert_eq!(bench.shard.next_tick_us(), Bench::new().shard.next_tick_us(), "no timer is left");
}

#[test]
fn what_waits_keeps_nothing_of_the_buffer_in_which_it_came() {
    // As much as a connection reads at once, most of it other messages.
    let read = Bytes::from(vec![b'x'; 65_536]);
    let step = asking(gate(&["ann", "bob"], 2));
    let mut bench = Bench::new();
    let lies_in_it = |bench: &Bench, step: &Step| {
        let mut arrival = Rc::unwrap_or_clone(step.arrival(bench.now));
        arrival.delivery.body = read.slice(100..103);
        Rc::new(arrival)
    };
    bench.apply(Event::Arrived(lies_in_it(&bench, &step)));
    bench.settle();
    assert_eq!(bench.shard.parked(), 1);
    assert!(read.is_unique(), "as it began to wait");
    bench.apply(Event::Arrived(lies_in_it(&bench, &Step { origin: delivery(1, 2), ..step.clone() })));
    bench.settle();
    assert!(read.is_unique(), "as it was delivered again");
    let comment = Text::try_from(read.slice(200..300)).expect("letters");
    bench.say(step.key, Vote { comment, ..vote("ann", true) });
    bench.settle();
    assert_eq!(bench.shard.parked(), 1, "one more is to decide");
    assert!(read.is_unique(), "as somebody decided");
}

#[test]
fn what_waits_leaves_half_of_the_memory_to_what_does_not() {
    let first = asking(gate(&["ann"], 1));
    let held = first.arrival(Now::default()).held_bytes();
    let mut bench = tiny(|limits| limits.shard_held_bytes_max = held * 3 / 2);
    bench.send(&first);
    bench.settle();
    assert_eq!(bench.shard.parked(), 1, "there was nothing yet");
    let second = Step { key: step("two").key, ..asking(gate(&["ann"], 1)) };
    bench.send(&second.clone().by("b").from(delivery(2, 1)));
    let (told, settled) = bench.settle();
    assert!(told.is_empty() && matches!(settled[..], [(2, Settle::Nak { .. })]), "the stream keeps it: {settled:?}");
    bench.send(&second.by("c").from(core()));
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("there is no room");
    assert_eq!(fault.code, Code::SystemOverload, "no rule of the tenant's: {fault:?}");
    assert!(String::from_utf8_lossy(&fault.details).contains("limits.shard_held_bytes"), "{fault:?}");
}

#[test]
fn no_more_wait_than_a_tenant_may_have() {
    let mut bench = tiny(|limits| limits.tenant_parked_max = 1);
    bench.send(&asking(gate(&["ann"], 1)));
    bench.settle();
    let second = Step { key: step("two").key, ..asking(gate(&["ann"], 1)) };
    bench.send(&second.clone().by("b").from(delivery(2, 1)));
    let (told, settled) = bench.settle();
    assert!(told.is_empty() && matches!(settled[..], [(2, Settle::Nak { .. })]), "the stream keeps it: {settled:?}");
    bench.send(&second.by("c").from(core()));
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::QuotaExceeded));
    bench.say(step("asks").key, vote("ann", true));
    bench.settle();
    bench.send(&Step { key: step("three").key, ..asking(gate(&["ann"], 1)) }.by("d").from(delivery(3, 1)));
    bench.settle();
    assert_eq!(bench.shard.parked(), 1);
}
