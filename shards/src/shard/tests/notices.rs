//! Cancels: what becomes of the step, and when its sender is told what.

use super::*;
use crate::event::Reply;
use crate::step::Notice;

impl Bench {
    /// Says "stop" to a step by its key, or by an assignment.
    pub(super) fn cancel(&mut self, key: Key, assignment: Option<&'static str>) {
        let notice = Notice::Cancel {
            assignment_id: assignment.map(Text::from_static),
            actor: Some(Text::from_static("ann")),
            details: Bytes::from_static(b"{\"reason\":\"enough\"}"),
        };
        let arrival = Arrival {
            key,
            fingerprint: Fingerprint([0; 32]),
            asker: None,
            content: Content::Notice(notice),
            ..(*step("any").from(core()).arrival(self.now)).clone()
        };
        self.apply(Event::Arrived(Rc::new(arrival)));
    }

    /// What was replied since the last look, and whether something was told to stop; forgets everything else.
    pub(super) fn replies(&mut self) -> (Vec<Reply>, bool) {
        let all = self.look();
        let stops = all.iter().any(|effect| matches!(effect, Effect::Stop { .. }));
        let reply = |effect| match effect {
            Effect::Post(crate::event::Post { letter: Letter::Reply(reply), .. }) => Some(reply),
            _ => None,
        };
        (all.into_iter().filter_map(reply).collect(), stops)
    }
}

#[test]
fn a_running_step_is_stopped_and_that_is_told_once_durable() {
    let mut bench = Bench::new();
    let one = step("k").effect(EffectClass::Conditional);
    bench.send(&one);
    let ticket = bench.run();
    bench.cancel(one.key, None);
    assert_eq!(bench.replies(), (vec![], true), "not before it is durable");
    bench.sync();
    assert_eq!(bench.replies(), (vec![Reply::Cancelled], false));
    bench.end(ticket, crate::event::Verdict::Stopped);
    let outcomes = bench.outcomes();
    assert_eq!((outcomes.len(), outcomes[0].status, outcomes[0].effect), (1, Status::Cancelled, Effected::Unknown));
    let fault = outcomes[0].fault.as_ref().expect("why");
    assert_eq!((fault.code, &fault.details[..]), (Code::CancelledByUser, &b"{\"reason\":\"enough\"}"[..]));
    let audited = (1..=bench.frames.len() as u64).find_map(|lsn| match bench.frame(Lsn(lsn)).fact {
        Fact::Result(fact) => Some(fact.audit.actor),
        _ => None,
    });
    assert_eq!(audited.as_deref(), Some("ann"));
}

#[test]
fn a_queued_step_and_one_between_two_tries_never_run_again() {
    let mut bench = tiny(|limits| limits.tenant_running_max = 1);
    let one = step("one").by("a");
    bench.send(&one);
    let first = bench.run();
    let two = step("two").by("b").from(delivery(2, 1));
    bench.send(&two);
    bench.cancel(two.key, None);
    bench.fail(first, Code::NetworkError, Effected::None);
    bench.cancel(one.key, None);
    bench.sync();
    assert_eq!(bench.replies(), (vec![Reply::Cancelled, Reply::Cancelled], false));
    bench.wait_ms(5_000);
    assert!(bench.runs().is_empty());
    let kept = bench.frames.len();
    bench.restart(kept, &[&one, &two]);
    assert!(bench.runs().is_empty(), "nor after a crash");
}

#[test]
fn who_cancels_too_late_is_told_how_it_ended() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    let ticket = bench.run();
    bench.done(ticket);
    bench.cancel(one.key, None);
    assert_eq!(bench.replies().0, [], "its end is not durable yet");
    bench.sync();
    bench.cancel(one.key, None);
    let (replies, _) = {
        let letters = bench.look();
        let confirm = letters.iter().find_map(|effect| match effect {
            Effect::Post(post) => post.confirm,
            _ => None,
        });
        bench.did = letters;
        let replies = bench.replies();
        bench.apply(Event::Confirmed { ticket: confirm.expect("a result") });
        replies
    };
    assert_eq!(replies, [Reply::Ended(Status::Ok), Reply::Ended(Status::Ok)]);
    bench.look();
    bench.cancel(one.key, None);
    let probes = bench.look();
    let [Effect::Probe { key, lsn }] = probes[..] else { panic!("the journal is asked: {probes:?}") };
    let found = outcome_of(&bench.frame(lsn)).map(Rc::new);
    bench.apply(Event::Probed { key, found });
    assert_eq!(bench.replies().0, [Reply::Ended(Status::Ok)]);
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn what_nobody_knows_is_said_to_be_unknown_and_not_remembered() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.cancel(one.key, Some("a"));
    assert_eq!(bench.replies().0, [Reply::Unknown]);
    bench.send(&one);
    bench.run();
}

#[test]
fn a_step_on_its_way_is_found_by_its_assignment_too() {
    let mut bench = Bench::new();
    let placed =
        Step { key: SALT.key(Identity::Coordinates { tenant: "t", run: None, flow: "f", step: "s", attempt: 1 }), ..step("k") };
    bench.send(&placed.clone().by("mine"));
    bench.run();
    bench.send(&placed.by("yours").from(delivery(2, 1)));
    let other = SALT.key(Identity::Assignment { tenant: "t", assignment: "yours" });
    bench.cancel(other, Some("yours"));
    bench.sync();
    assert_eq!(bench.replies(), (vec![Reply::Cancelled], true));
    assert_eq!(bench.outcomes()[0].status, Status::Cancelled);
}

#[test]
fn one_that_waits_for_room_is_answered_and_never_let_in() {
    let mut bench = Bench::with(Limits { tenant_running_max: 1, tenant_queued_max: 1, ..Limits::default() });
    let steps = [step("one").by("a"), step("two").by("b"), step("three").by("c")].map(|step| step.from(core()));
    steps.iter().for_each(|step| bench.send(step));
    let first = bench.run();
    bench.cancel(steps[2].key, None);
    let (told, _) = bench.settle();
    let want = (Text::from_static("c"), Status::Cancelled);
    assert_eq!(told.iter().map(|(who, outcome)| (who.clone(), outcome.status)).collect::<Vec<_>>(), [want]);
    bench.done(first);
    let second = bench.run();
    bench.done(second);
    bench.settle();
    bench.wait_ms(1_000);
    assert!(bench.runs().is_empty(), "the third one is over");
    assert!(bench.shard.is_idle());
}

#[test]
fn one_that_waits_while_its_step_ends_is_told_that_end() {
    let mut bench = Bench::with(Limits { tenant_running_max: 1, tenant_queued_max: 1, ..Limits::default() });
    let [one, two, three, four] = ["a", "b", "c", "d"].map(|name| step(name).by(name).from(core()));
    [&one, &two, &three, &four, &three].into_iter().for_each(|step| bench.send(step));
    for _ in 0..2 {
        let ticket = bench.run();
        bench.done(ticket);
    }
    let third = bench.run();
    // Until there is room again nobody comes in who waits.
    bench.apply(Event::Disk(DiskNews::Full));
    bench.done(third);
    bench.settle();
    bench.cancel(step("what the assignment asks for is not said").key, Some("c"));
    let told = bench.settle().0;
    assert!(told.iter().all(|(_, outcome)| outcome.status == Status::Ok), "{told:?}");
    assert!(bench.outcomes().iter().all(|outcome| outcome.status == Status::Ok), "{:?}", bench.outcomes());
    assert_eq!(bench.outcomes().len(), 3);
}

#[test]
fn a_refused_notice_is_answered_and_touches_nothing() {
    let mut bench = Bench::new();
    let fault = Fault::new(Code::InvalidInput, "No.");
    let arrival = Arrival {
        asker: None,
        content: Content::Notice(Notice::Refused(fault.clone())),
        ..(*step("k").arrival(bench.now)).clone()
    };
    bench.apply(Event::Arrived(Rc::new(arrival)));
    assert_eq!(bench.replies().0, [Reply::Refused(fault)]);
    assert!(bench.frames.is_empty());
}

#[test]
fn a_message_put_aside_under_an_assignment_is_not_what_a_cancel_of_it_means() {
    let mut bench = Bench::new();
    let placed =
        Step { key: SALT.key(Identity::Coordinates { tenant: "t", run: None, flow: "f", step: "s", attempt: 1 }), ..step("k") };
    let named = SALT.key(Identity::Assignment { tenant: "t", assignment: "a" });
    // Its job takes the first slot: that of a step that is over.
    let before = step("before").by("b");
    bench.send(&before);
    bench.send(&placed.clone().from(delivery(2, 1)));
    let runs = bench.runs();
    bench.done(runs[0].0);
    bench.settle();
    bench.send(&placed.content(2).from(delivery(3, 1)));
    bench.cancel(named, Some("a"));
    bench.sync();
    assert_eq!(bench.replies(), (vec![Reply::Cancelled], true));
    let statuses: Vec<_> = bench.outcomes().iter().map(|outcome| outcome.status).collect();
    assert_eq!(statuses, [Status::Ok, Status::Quarantined, Status::Cancelled]);
}
