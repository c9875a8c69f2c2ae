//! Tries, time and restarts: what is run again, what is not, and what is said of the effect.

use super::*;

#[test]
fn a_timed_out_try_keeps_its_slot_until_its_work_has_ended() {
    let mut bench = tiny(|limits| limits.tenant_running_max = 1);
    bench.send(&step("one"));
    let ticket = bench.run();
    bench.send(&step("two").by("b").from(delivery(2, 1)));
    bench.wait_ms(10_100);
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.status, Status::Timeout, "the answer does not wait");
    assert_eq!(bench.shard.running(), 1);
    bench.end(ticket, crate::event::Verdict::Stopped);
    assert_eq!(bench.outcomes()[0].status, Status::Timeout, "the late verdict changes nothing");
    assert_eq!(bench.shard.running(), 0);
}

#[test]
fn an_unsafe_step_waits_for_its_started_frame() {
    let mut bench = Bench::new();
    bench.send(&step("k").effect(EffectClass::Unsafe));
    assert!(bench.runs().is_empty());
    bench.sync();
    bench.run();
}

#[test]
fn a_step_whose_start_waits_for_the_disk_till_its_budget_is_over_has_done_nothing() {
    for class in [EffectClass::Unsafe, EffectClass::Idempotent] {
        let mut bench = Bench::new();
        bench.send(&step("k").effect(class).from(core()));
        bench.wait_ms(10_100);
        let (told, _) = bench.settle();
        assert_eq!((told[0].1.status, told[0].1.effect), (Status::Timeout, Effected::None), "{class:?}");
        assert!(bench.runs().is_empty());
    }
}

#[test]
fn a_step_that_ended_in_time_is_no_timeout_however_long_its_outcome_waits_for_the_disk() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.wait_ms(9_900);
    bench.done(ticket);
    bench.wait_ms(60_000);
    assert!(bench.look().iter().any(|did| matches!(did, Effect::Settle { how: Settle::Progress, .. })), "its delivery is kept");
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.status, Status::Ok);
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn outputs_that_wait_for_the_disk_take_of_the_memory_that_steps_may_hold() {
    let mut bench = Bench::with(Limits { shard_held_bytes_max: 1_000, ..Limits::default() });
    bench.send(&step("one"));
    let ticket = bench.run();
    let outputs = Bytes::from(vec![b'x'; 1_000]);
    bench.end(ticket, crate::event::Verdict::Done(outputs));
    assert_eq!(bench.shard.free_slots(), 0, "nothing more is pulled meanwhile");
    bench.settle();
    assert!(bench.shard.free_slots() > 0);
}

#[test]
fn a_core_step_with_effects_waits_for_its_started_frame() {
    let mut bench = Bench::new();
    bench.send(&step("k").effect(EffectClass::Idempotent).from(core()));
    assert!(bench.runs().is_empty());
    bench.sync();
    bench.run();
}

#[test]
fn an_interrupted_unsafe_step_is_indeterminate() {
    let mut bench = Bench::new();
    let unsafe_step = step("k").effect(EffectClass::Unsafe);
    bench.send(&unsafe_step);
    bench.sync();
    bench.run();
    bench.restart(2, &[&unsafe_step]);
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::Indeterminate));
    assert_eq!(told[0].1.effect, Effected::Unknown);
    assert!(bench.runs().is_empty());
}

#[test]
fn an_interrupted_idempotent_step_is_made_again_under_its_own_number() {
    let mut bench = Bench::new();
    let one = step("k").effect(EffectClass::Idempotent);
    bench.send(&one);
    bench.run();
    bench.restart(2, &[&one]);
    assert!(bench.runs().is_empty(), "its start is durable first");
    bench.sync();
    assert_eq!(bench.runs().iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1]);
}

#[test]
fn tries_hold_over_restarts() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::None);
    bench.restart(3, &[&one]);
    bench.wait_ms(200);
    bench.sync();
    assert_eq!(bench.runs().iter().map(|(_, number)| *number).collect::<Vec<_>>(), [2]);
}

#[test]
fn the_deadline_holds_over_restarts() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    bench.now.wall_ms += 9_000;
    bench.restart(2, &[&one]);
    bench.sync();
    bench.run();
    bench.wait_ms(1_100);
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.status, Status::Timeout);
}

#[test]
fn an_unpublished_outcome_is_sent_again_after_a_restart() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    let ticket = bench.run();
    bench.done(ticket);
    bench.restart(3, &[&one]);
    let (told, settled) = bench.settle();
    assert_eq!((told.len(), settled.len()), (1, 0), "the old delivery is not ours to settle");
    bench.restart(4, &[&one]);
    assert!(bench.look().is_empty(), "published is recorded");
}

#[test]
fn a_failed_try_is_made_again_after_its_delay_and_the_last_failure_is_the_outcome() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    for number in 1..=3 {
        let runs = bench.runs();
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].1, number);
        bench.fail(runs[0].0, Code::NetworkError, Effected::None);
        bench.wait_ms(1_100);
    }
    let (told, _) = bench.settle();
    assert_eq!((told[0].1.status, told[0].1.tries), (Status::Error, 3));
}

#[test]
fn effect_none_is_not_said_when_an_earlier_try_may_have_had_its_effect() {
    let mut bench = Bench::new();
    bench.send(&step("k").effect(EffectClass::Idempotent));
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::Unknown);
    bench.wait_ms(1_100);
    let ticket = bench.run();
    bench.fail(ticket, Code::InvalidInput, Effected::None);
    assert_eq!(bench.outcomes()[0].effect, Effected::Unknown);
}

#[test]
fn an_unsafe_try_that_may_have_happened_is_not_made_again() {
    let mut bench = Bench::new();
    bench.send(&step("k").effect(EffectClass::Unsafe));
    bench.sync();
    let ticket = bench.run();
    bench.fail(ticket, Code::ConnectionError, Effected::Unknown);
    let outcomes = bench.outcomes();
    assert_eq!((outcomes.len(), outcomes[0].effect), (1, Effected::Unknown));
}

#[test]
fn a_try_reported_twice_gives_back_its_charge_once() {
    let mut bench = Bench::new();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::None);
    bench.fail(ticket, Code::NetworkError, Effected::None);
    assert_eq!((bench.shard.queued(), bench.shard.running()), (1, 0));
    bench.wait_ms(1_100);
    bench.run();
}

#[test]
fn a_cancelled_step_in_the_queue_never_runs() {
    let mut bench = tiny(|limits| limits.tenant_running_max = 1);
    bench.send(&step("one"));
    let first = bench.run();
    let two = step("two").by("b").from(delivery(2, 1));
    bench.send(&two);
    bench.apply(Event::Cancel { key: two.key });
    bench.done(first);
    assert!(bench.runs().is_empty());
    let outcome = &bench.outcomes()[0];
    assert_eq!((outcome.status, outcome.effect), (Status::Cancelled, Effected::None));
}

#[test]
fn a_step_that_is_over_leaves_nothing_of_its_message_in_memory() {
    let mut bench = Bench::new();
    let arrival = step("k").arrival(bench.now);
    let left = Rc::downgrade(&arrival);
    bench.apply(Event::Arrived(arrival));
    let ticket = bench.run();
    bench.done(ticket);
    bench.settle();
    bench.look();
    assert!(bench.shard.is_idle());
    assert_eq!(left.strong_count(), 0);
}

#[test]
fn what_a_try_says_is_told_in_order_after_its_start_and_never_after_its_end() {
    let mut bench = Bench::new();
    bench.shard.settings.events = true;
    let under_way = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let say = |bench: &mut Bench, ticket, text: &'static str| {
        let chunk = Chunk { text: Bytes::from_static(text.as_bytes()), hold: Hold::take(&under_way, text.len() as u64) };
        bench.apply(Event::Progressed { ticket, chunk });
    };
    let said = |bench: &mut Bench| -> Vec<(u32, String)> {
        let letter = |effect| match effect {
            Effect::Post(Post { letter: Letter::Lifecycle { stage, sequence, .. }, .. }) => {
                Some((sequence, format!("{stage:?}")))
            }
            Effect::Post(Post { letter: Letter::Progress { chunk, sequence, .. }, .. }) => {
                Some((sequence, String::from_utf8_lossy(&chunk.text).into_owned()))
            }
            _ => None,
        };
        bench.look().into_iter().filter_map(letter).collect()
    };
    bench.send(&step("k"));
    let ticket = bench.run();
    say(&mut bench, ticket, "one");
    assert!(said(&mut bench).is_empty(), "it is told after the step itself");
    bench.sync();
    let wanted = [(0, "Accepted"), (1, "Started"), (2, "one")].map(|(sequence, what)| (sequence, what.to_owned()));
    assert_eq!(said(&mut bench), wanted);
    say(&mut bench, ticket, "two");
    assert_eq!(said(&mut bench), [(3, "two".to_owned())]);
    assert_eq!(under_way.load(std::sync::atomic::Ordering::Relaxed), 0, "what is told is given back");
    bench.send(&step("other").from(delivery(2, 1)));
    say(&mut bench, ticket, "last, while other frames are on their way");
    bench.done(ticket);
    say(&mut bench, ticket, "after the end");
    bench.sync();
    let told: Vec<String> = said(&mut bench).into_iter().map(|(_, what)| what).collect();
    let last = told.iter().position(|what| what.starts_with("last")).expect("told");
    let end = told.iter().position(|what| what == "Completed").expect("told");
    assert!(last < end && !told.iter().any(|what| what == "after the end"), "{told:?}");
    assert_eq!(under_way.load(std::sync::atomic::Ordering::Relaxed), 0);
    // Nobody listens: nothing is kept of it.
    bench.shard.settings.events = false;
    bench.send(&step("quiet").from(delivery(3, 1)));
    let tickets = bench.runs();
    say(&mut bench, tickets[0].0, "unheard");
    bench.sync();
    assert!(said(&mut bench).is_empty());
    assert_eq!(under_way.load(std::sync::atomic::Ordering::Relaxed), 0);
}
