//! Who is told what, and when: durability, duplicates, conflicts, refusals.

use super::*;

#[test]
fn nothing_leaves_before_it_is_durable() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.done(ticket);
    assert!(bench.look().is_empty(), "neither ack nor result");
    bench.sync();
    let letters = bench.look().into_iter().filter(|effect| matches!(effect, Effect::Post(_))).count();
    assert_eq!(letters, 2, "the ack and the result");
}

#[test]
fn a_delivery_is_acked_only_after_its_result_was_stored() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    assert!(!bench.look().iter().any(|effect| matches!(effect, Effect::Settle { .. })));
    bench.apply(Event::Confirmed { ticket });
    assert!(matches!(bench.look()[..], [Effect::Settle { how: Settle::Ack, .. }]));
    assert!(bench.shard.is_idle());
}

#[test]
fn duplicate_attempt_returns_the_stored_result() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.done(ticket);
    let (first, _) = bench.settle();
    bench.send(&step("k").from(delivery(2, 1)));
    let (again, settled) = bench.settle();
    assert_eq!(first, again);
    assert_eq!(settled, [(2, Settle::Ack)]);
    assert_eq!(bench.outcomes().len(), 1, "nothing new is recorded");
}

#[test]
fn a_redelivery_of_a_step_in_flight_starts_no_second_run() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.send(&step("k").from(delivery(1, 2)));
    assert!(bench.runs().is_empty());
    bench.done(ticket);
    let (told, settled) = bench.settle();
    assert_eq!((told.len(), settled), (1, vec![(1, Settle::Ack)]));
}

#[test]
fn another_assignment_of_the_same_step_gets_the_same_outcome() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.send(&step("k").by("b").from(delivery(2, 1)));
    bench.done(ticket);
    let (told, settled) = bench.settle();
    let askers: Vec<&str> = told.iter().map(|(asker, _)| asker.as_ref()).collect();
    assert_eq!(askers, ["a", "b"]);
    assert_eq!(told[0].1, told[1].1);
    assert_eq!(settled.len(), 2);
}

#[test]
fn other_content_under_another_assignment_is_a_key_conflict() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.send(&step("k").by("b").content(2).from(delivery(2, 1)));
    assert!(bench.runs().is_empty(), "it never runs");
    bench.done(ticket);
    let (told, _) = bench.settle();
    let conflict = told.iter().find(|(asker, _)| asker == "b").expect("b is answered");
    assert_eq!(conflict.1.fault.as_ref().map(|fault| fault.code), Some(Code::KeyConflict));
}

#[test]
fn other_content_under_the_same_assignment_is_a_dead_letter_and_never_answered() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.done(ticket);
    bench.settle();
    for delivered in [1, 2] {
        bench.send(&step("k").content(2).from(delivery(2, delivered)));
        let (told, settled) = bench.settle();
        assert_eq!((told.len(), settled), (0, vec![(2, Settle::Term)]), "delivery {delivered}");
    }
}

#[test]
fn an_assignment_that_rode_along_is_not_answered_twice_when_it_sends_other_content() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.send(&step("k").by("b").from(delivery(2, 1)));
    bench.send(&step("k").by("b").content(2).from(delivery(3, 1)));
    bench.done(ticket);
    let (told, _) = bench.settle();
    assert_eq!(told.iter().filter(|(asker, _)| asker == "b").count(), 1);
}

#[test]
fn a_refused_assignment_keeps_its_refusal_when_another_one_runs_the_step() {
    let mut bench = tiny(|limits| (limits.tenant_running_max, limits.tenant_queued_max) = (1, 1));
    bench.send(&step("one"));
    let first = bench.run();
    bench.send(&step("two").by("c"));
    bench.send(&step("k").by("b").from(core()));
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::QuotaExceeded));
    bench.done(first);
    let second = bench.run();
    bench.send(&step("k").from(delivery(9, 1)));
    bench.done(second);
    let third = bench.run();
    bench.done(third);
    bench.settle();
    bench.send(&step("k").by("b").from(core()));
    let (told, _) = bench.settle();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::QuotaExceeded));
}

#[test]
fn a_delivery_over_the_tenants_queue_is_handed_back_for_longer_each_time() {
    let mut bench = tiny(|limits| (limits.tenant_running_max, limits.tenant_queued_max) = (1, 1));
    bench.send(&step("one"));
    bench.send(&step("two"));
    bench.look();
    let mut delays = Vec::new();
    for delivered in [1, 2, 3, 9] {
        bench.send(&step("three").from(delivery(3, delivered)));
        for effect in bench.look() {
            if let Effect::Settle { how: Settle::Nak { delay_ms }, .. } = effect {
                delays.push(delay_ms);
            }
        }
    }
    assert_eq!(delays, [1_000, 2_000, 4_000, 30_000]);
}

#[test]
fn a_message_past_its_time_is_refused_and_never_run() {
    let mut bench = Bench::new();
    bench.send(&Step { not_after_ms: START_MS - 1, ..step("k") });
    assert!(bench.runs().is_empty());
    bench.settle();
    assert_eq!(bench.outcomes()[0].fault.as_ref().map(|fault| fault.code), Some(Code::Expired));
}

#[test]
fn a_drain_refuses_what_waits_on_core_and_hands_back_the_rest() {
    let mut bench = tiny(|limits| {
        (limits.tenant_running_max, limits.tenant_queued_max) = (1, 1);
        limits.on_overload = OnOverload::Delay;
    });
    for (name, assignment) in [("one", "x"), ("two", "y"), ("three", "z")] {
        bench.send(&step(name).by(assignment).from(core()));
    }
    bench.apply(Event::Drain);
    let (told, _) = bench.settle();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].0.as_ref(), told[0].1.fault.as_ref().map(|fault| fault.code)), ("z", Some(Code::SystemOverload)));
    bench.send(&step("four").by("w").from(delivery(4, 1)));
    let (_, settled) = bench.settle();
    assert!(matches!(settled[..], [(4, Settle::Nak { .. })]));
}

#[test]
fn a_clock_far_ahead_stops_admission_and_expires_nothing() {
    let mut bench = Bench::new();
    bench.send(&step("before"));
    let ticket = bench.run();
    bench.now.wall_ms += 24 * 3_600_000;
    bench.apply(Event::Tick);
    assert!(bench.shard.clock_jumped());
    bench.send(&step("k").by("b").from(delivery(2, 1)));
    assert!(matches!(bench.look()[..], [Effect::Settle { how: Settle::Nak { .. }, .. }]));
    bench.done(ticket);
    bench.settle();
    bench.now.wall_ms -= 24 * 3_600_000;
    bench.send(&step("k").by("b").from(delivery(2, 2)));
    bench.sync();
    bench.run();
}

#[test]
fn a_line_whose_recovered_outcome_is_already_being_told_gets_its_own_result() {
    let mut bench = Bench::new();
    let step = step("k").from(Origin::Line(1));
    bench.send(&step);
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    let kept = bench.frames.len();
    bench.restart(kept, &[&step]);
    bench.look();
    bench.send(&step);
    let told = bench.look().into_iter().filter(|effect| match effect {
        Effect::Post(post) => {
            matches!(post.letter, Letter::Result { .. }) && matches!(post.arrival.delivery.origin, Origin::Line(1))
        }
        _ => false,
    });
    assert_eq!(told.count(), 1);
}

#[test]
fn everybody_who_waits_under_an_inbox_of_their_own_gets_a_letter() {
    let mut bench = Bench::new();
    let asks = |bench: &mut Bench, reply: Option<&'static str>| {
        let mut arrival = (*step("k").from(core()).arrival(bench.now)).clone();
        arrival.delivery.reply = reply.map(Text::from_static);
        bench.apply(Event::Arrived(Rc::new(arrival)));
    };
    asks(&mut bench, Some("_INBOX.1"));
    let ticket = bench.run();
    for reply in [None, Some("_INBOX.1"), Some("_INBOX.2")] {
        asks(&mut bench, reply);
    }
    bench.done(ticket);
    bench.sync();
    asks(&mut bench, Some("_INBOX.3"));
    let result = |effect: &Effect| match effect {
        Effect::Post(post) if matches!(post.letter, Letter::Result { .. }) => Some(post.arrival.delivery.reply.clone()),
        _ => None,
    };
    let told: Vec<_> = bench.look().iter().filter_map(result).map(|reply| reply.map(|reply| reply.to_string())).collect();
    assert_eq!(told, ["_INBOX.1", "_INBOX.2", "_INBOX.3"].map(|reply| Some(reply.to_owned())));
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn one_that_waited_too_long_is_not_refused_once_its_key_is_known() {
    for finished in [true, false] {
        let mut bench = Bench::new();
        bench.apply(Event::Disk(DiskNews::Full));
        let asked = Step { budget_ms: 50, ..step("k") };
        bench.send(&asked.clone().from(core()));
        bench.apply(Event::Disk(DiskNews::Room));
        // The same assignment comes by a stream, with time of its own, before anybody looks at the one that waits.
        let again = Step { budget_ms: 10_000, ..asked }.from(delivery(1, 1));
        bench.send(&again);
        let ticket = bench.run();
        let mut told = Vec::new();
        if finished {
            bench.done(ticket);
            told.extend(bench.settle().0);
        }
        bench.wait_ms(150);
        told.extend(bench.settle().0);
        if !finished {
            bench.done(ticket);
            told.extend(bench.settle().0);
        }
        assert!(!told.is_empty());
        assert!(told.iter().all(|(_, outcome)| outcome.status == Status::Ok), "one outcome for one assignment: {told:?}");
    }
}

#[test]
fn a_refused_assignment_is_told_under_its_own_key_and_leaves_the_steps_alone() {
    let mut bench = Bench::new();
    let (one, other) = (step("k"), step("k").by("b").content(2).from(delivery(2, 1)));
    bench.send(&one);
    let ticket = bench.run();
    bench.send(&other);
    bench.sync();
    let under = |bench: &mut Bench| {
        let mut found = Vec::new();
        for effect in bench.look() {
            let Effect::Post(post) = effect else { continue };
            if let Letter::Result { under, .. } = post.letter {
                found.push(under);
            }
            if let Some(ticket) = post.confirm {
                bench.apply(Event::Confirmed { ticket });
            }
        }
        bench.look();
        assert_eq!(found.len(), 1, "one result, not {found:?}");
        found[0]
    };
    let refused = under(&mut bench);
    assert_eq!(refused, SALT.answer_key("t", "b"), "while the step still runs");
    bench.done(ticket);
    bench.sync();
    assert_eq!(under(&mut bench), one.key);
    // And so again, when it is told again.
    bench.send(&other);
    bench.sync();
    let probes = bench.look();
    let [Effect::Probe { key, lsn }] = probes[..] else { panic!("{probes:?}") };
    let found = outcome_of(&bench.frame(lsn)).map(Rc::new);
    bench.apply(Event::Probed { key, found });
    assert_eq!(under(&mut bench), refused);
}

#[test]
fn who_asks_on_core_for_a_step_that_too_many_ask_for_is_refused_and_told_so() {
    const ASKERS: [&str; 9] = ["b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    for asker in ASKERS {
        bench.send(&step("k").by(asker).from(core()));
    }
    // Whoever rides along is told by what it sent before.
    bench.send(&step("k").by("b").from(core()));
    let (told, _) = bench.settle();
    let told: Vec<_> = told.iter().map(|(who, outcome)| (&**who, outcome.fault.as_ref().map(|fault| fault.code))).collect();
    assert_eq!(told, [("j", Some(Code::SystemOverload))]);
    bench.done(ticket);
    let (told, _) = bench.settle();
    let ok = told.iter().filter(|(_, outcome)| outcome.status == Status::Ok).count();
    assert_eq!((told.len(), ok), (9, 9), "the first and eight more");
}

#[test]
fn what_the_journal_has_forgotten_meanwhile_and_was_asked_for_anew_has_one_outcome_for_both() {
    let mut bench = Bench::new();
    let one = step("k").from(core());
    bench.send(&one);
    let ticket = bench.run();
    bench.done(ticket);
    bench.settle();
    bench.send(&one);
    let probes = bench.look();
    let [Effect::Probe { key, .. }] = probes[..] else { panic!("{probes:?}") };
    bench.shard.known.forget(&key);
    bench.send(&one);
    let ticket = bench.run();
    bench.apply(Event::Probed { key, found: None });
    bench.done(ticket);
    let told = bench.settle().0;
    assert!(!told.is_empty() && told.iter().all(|(_, outcome)| outcome.status == Status::Ok), "{told:?}");
    assert_eq!(bench.outcomes().len(), 2);
}

#[test]
fn a_denied_step_is_answered_without_a_run_and_its_key_stays_free() {
    let mut bench = Bench::new();
    bench.send(&step("k").by("a").denied());
    assert!(bench.runs().is_empty());
    let (told, settled) = bench.settle();
    let fault = told[0].1.fault.as_ref().expect("a fault");
    assert_eq!((told.len(), fault.code, told[0].1.effect, told[0].1.tries), (1, Code::PermissionDenied, Effected::None, 0));
    assert_eq!(settled, [(1, Settle::Term)]);
    // Allowed since, and asked for by another assignment: it runs.
    bench.send(&step("k").by("b").from(delivery(2, 1)));
    let ticket = bench.run();
    bench.done(ticket);
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.status, Status::Ok);
    // The assignment that was denied keeps its one answer.
    bench.send(&step("k").by("a").from(delivery(3, 1)));
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::PermissionDenied));
}

#[test]
fn what_is_known_of_a_step_is_told_though_it_would_be_denied_now() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.send(&step("k").from(delivery(1, 2)).denied());
    bench.done(ticket);
    let (first, _) = bench.settle();
    bench.send(&step("k").from(delivery(2, 1)).denied());
    let (again, _) = bench.settle();
    assert_eq!((first.len(), &first), (1, &again));
    assert_eq!(first[0].1.status, Status::Ok);
}

#[test]
fn a_step_that_would_do_something_else_than_is_required_is_not_begun_nor_begun_again() {
    let mut bench = Bench::new();
    bench.send(&Step { changed: true, ..step("k") });
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.as_ref().map(|fault| (fault.code, fault.effect));
    assert_eq!((fault, bench.runs().len()), (Some((Code::PermissionDenied, Effected::None)), 0));
    // It was accepted as planned; a start later, the worker is set up otherwise.
    for (effect, ran, known) in [
        (EffectClass::Pure, true, Effected::None),
        (EffectClass::Idempotent, true, Effected::Unknown),
        (EffectClass::Idempotent, false, Effected::None),
    ] {
        let mut bench = Bench::new();
        let step = step("k").effect(effect).from(delivery(1, 2));
        bench.send(&step);
        bench.sync();
        let kept = if ran { bench.frames.len() } else { 1 };
        bench.restart(kept, &[&Step { changed: true, ..step }]);
        let (told, _) = bench.settle();
        let fault = told[0].1.fault.as_ref().map(|fault| fault.code);
        assert_eq!((told.len(), fault, told[0].1.effect), (1, Some(Code::PermissionDenied), known), "{effect:?}, ran: {ran}");
        assert!(bench.runs().is_empty(), "{effect:?}");
    }
}

#[test]
fn a_step_that_ran_and_cannot_be_read_any_more_may_have_had_its_effect() {
    for (ran, effect) in [(true, Effected::Unknown), (false, Effected::None)] {
        let mut bench = Bench::new();
        let step = step("k").effect(EffectClass::Idempotent).from(delivery(1, 2));
        bench.send(&step);
        bench.sync();
        let kept = if ran { bench.frames.len() } else { 1 };
        bench.restart(kept, &[&Step { unknown: true, ..step }]);
        let (told, _) = bench.settle();
        assert_eq!((told.len(), told[0].1.effect), (1, effect), "ran: {ran}");
    }
}
