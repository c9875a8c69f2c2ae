//! Calls: what each is told itself and when, and that load and bad input cost it nothing.

use super::*;
use crate::event::{Post, Reply};
use crate::limits::{CALL_AGAIN_MS, CALLS_PER_KEY_MAX};

fn call(number: u64) -> Origin {
    Origin::Call(number)
}

/// A letter in a word, and whom it goes to: a call's number, or the first letter of another origin.
fn letter(post: &Post) -> Option<(String, String)> {
    let said = match &post.letter {
        Letter::Ack { accepted: true, .. } => "accepted".to_owned(),
        Letter::Ack { accepted: false, .. } => "rejected".to_owned(),
        Letter::Result { outcome, .. } => match &outcome.fault {
            Some(fault) => fault.code.as_str().to_owned(),
            None => "ok".to_owned(),
        },
        Letter::Reply(Reply::Refused(fault)) => format!("refused {}", fault.code.as_str()),
        Letter::DeadLetter { .. } => "dead".to_owned(),
        Letter::Reply(_)
        | Letter::Lifecycle { .. }
        | Letter::ApprovalNeeded { .. }
        | Letter::Copy { .. }
        | Letter::NoCopy
        | Letter::Progress { .. } => return None,
    };
    let to = match post.arrival.delivery.origin {
        Origin::Call(number) => number.to_string(),
        Origin::Stream(_) => "stream".to_owned(),
        Origin::Core => "core".to_owned(),
        Origin::Line(_) => "line".to_owned(),
        Origin::Journal { .. } => "journal".to_owned(),
    };
    Some((to, said))
}

impl Bench {
    /// What was said since the last look, `to: what`; stores it on the other side.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for effect in self.look() {
            let Effect::Post(post) = effect else {
                if matches!(effect, Effect::Run { .. } | Effect::Settle { .. }) {
                    self.did.push(effect);
                }
                continue;
            };
            told.extend(letter(&post).map(|(to, said)| format!("{to}: {said}")));
            if let Some(ticket) = post.confirm {
                self.apply(Event::Confirmed { ticket });
            }
        }
        told
    }

    /// Something that is no step, brought by a call.
    fn bring(&mut self, step: &Step, content: Content) {
        let arrival = (*step.arrival(self.now)).clone();
        let asker = arrival.asker.clone().filter(|_| matches!(content, Content::Refusal(_)));
        let key = SALT.answer_key("t", step.assignment);
        self.apply(Event::Arrived(Rc::new(Arrival { content, asker, key, ..arrival })));
    }

    fn probe(&mut self) {
        let Some(Effect::Probe { key, lsn }) = self.look().pop() else { panic!("the journal is asked") };
        let found = outcome_of(&self.frame(lsn)).map(Rc::new);
        self.apply(Event::Probed { key, found });
    }
}

fn bad() -> Fault {
    Fault::new(Code::InvalidInput, "No.")
}

#[test]
fn a_call_is_told_what_is_durable_and_nothing_before() {
    let mut bench = Bench::new();
    let one = step("k").from(call(7));
    bench.send(&one);
    assert_eq!(bench.told(), [""; 0], "not durable yet");
    let ticket = bench.run();
    bench.sync();
    assert_eq!(bench.told(), ["7: accepted"]);
    bench.done(ticket);
    assert_eq!(bench.told(), [""; 0]);
    bench.sync();
    assert_eq!(bench.told(), ["7: ok"]);
    assert!(bench.shard.is_idle());
    bench.send(&one.clone().from(call(8)));
    bench.probe();
    assert_eq!(bench.told(), ["8: accepted", "8: ok"], "asked again");
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn a_call_that_comes_at_a_bad_time_is_turned_away_and_nothing_is_recorded_of_it() {
    let mut bench = tiny(|limits| (limits.tenant_running_max, limits.tenant_queued_max) = (1, 1));
    let steps = [step("one").by("a"), step("two").by("b"), step("three").by("c")].map(|step| step.from(call(1)));
    steps.iter().for_each(|step| bench.send(step));
    let frames = bench.frames.len();
    let refusal = bench.did.iter().find_map(|effect| match effect {
        Effect::Post(Post { letter: Letter::Reply(Reply::Refused(fault)), .. }) => Some(fault.clone()),
        _ => None,
    });
    let refusal = refusal.expect("the third is too many");
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::QuotaExceeded, Some(CALL_AGAIN_MS)));
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    bench.told();
    let ticket = bench.run();
    bench.send(&steps[2]);
    assert!(bench.frames.len() > frames, "the same call again is taken");
    bench.done(ticket);
    bench.sync();
    bench.told();
    bench.run();

    bench.apply(Event::Disk(DiskNews::Full));
    bench.look();
    bench.send(&step("four").by("d").from(call(2)));
    assert_eq!(bench.told(), ["2: refused SYSTEM_OVERLOAD"]);
    bench.apply(Event::Disk(DiskNews::Room));
    bench.apply(Event::Drain);
    bench.send(&step("five").by("e").from(call(3)));
    assert_eq!(bench.told(), ["3: refused SYSTEM_OVERLOAD"]);
    bench.send(&steps[0]);
    bench.probe();
    assert_eq!(bench.told(), ["1: accepted", "1: ok"], "what is known is answered even then");
}

#[test]
fn bad_input_is_put_aside_and_told_once_durable_and_its_names_stay_free() {
    for garbage in [false, true] {
        let mut bench = Bench::new();
        let one = step("k").from(call(1));
        let brought = || if garbage { Content::Garbage(bad()) } else { Content::Refusal(bad()) };
        bench.bring(&one, brought());
        assert_eq!(bench.told(), [""; 0], "not durable yet");
        bench.sync();
        assert_eq!(bench.told(), ["1: refused INVALID_INPUT", "1: dead"]);
        bench.bring(&one.clone().from(call(2)), brought());
        bench.probe();
        assert_eq!(bench.told(), ["2: refused INVALID_INPUT"], "the same again is the same again");
        bench.send(&one.content(2).from(call(3)));
        bench.sync();
        let ticket = bench.run();
        bench.done(ticket);
        bench.sync();
        assert_eq!(bench.told(), ["3: ok"], "put right it is taken, and its acceptance was told before");
    }
}

#[test]
fn bad_input_whose_record_went_while_it_was_looked_for_is_put_aside_anew() {
    for (garbage, line) in [(false, false), (true, false), (true, true)] {
        let mut bench = tiny(|limits| (limits.journal_bytes_max, limits.horizon_min_ms) = (1, 0));
        let bring = |bench: &mut Bench, number| {
            let origin = if line { Origin::Line(number) } else { call(number) };
            let content = if garbage { Content::Garbage(bad()) } else { Content::Refusal(bad()) };
            bench.bring(&step("k").from(origin), content);
        };
        bring(&mut bench, 1);
        bench.sync();
        bench.told();
        bench.sync();
        bring(&mut bench, 2);
        bring(&mut bench, 3);
        let probed = bench.look().pop();
        let Some(Effect::Probe { key, .. }) = probed else { panic!("the journal is asked: {probed:?}") };
        let to = Lsn(bench.frames.len() as u64);
        bench.apply(Event::Disk(DiskNews::Closed { from: Lsn(1), to, bytes: 10 }));
        bench.apply(Event::Probed { key, found: None });
        bench.sync();
        let expected = if line { ["line: INVALID_INPUT"; 2] } else { ["2: refused INVALID_INPUT", "3: refused INVALID_INPUT"] };
        let told: Vec<_> = bench.told().into_iter().filter(|told| !told.ends_with("dead")).collect();
        assert_eq!(told, expected, "{garbage} {line}");
        assert!(bench.shard.is_idle());
    }
}

#[test]
fn bad_input_does_not_use_up_the_room_of_steps() {
    let mut bench = tiny(|limits| limits.unpublished_max = 4);
    for content in 1..=4 {
        bench.bring(&step("k").content(content).from(call(content.into())), Content::Refusal(bad()));
    }
    bench.sync();
    // Without confirmations, as when there is no server for dead letters.
    let said = bench.look().into_iter().filter_map(|effect| match effect {
        Effect::Post(post) => letter(&post).map(|(to, said)| format!("{to}: {said}")),
        _ => None,
    });
    let said: Vec<_> = said.collect();
    let dead = said.iter().filter(|said| said.ends_with("dead")).count();
    let told = said.iter().filter(|said| said.ends_with("refused INVALID_INPUT")).count();
    assert_eq!((dead, told), (2, 4), "{said:?}");
    bench.send(&step("good").by("b").from(call(9)));
    bench.run();
}

#[test]
fn other_content_under_a_known_key_is_a_conflict_that_the_call_is_told() {
    let mut bench = Bench::new();
    let one = step("k").from(call(1));
    bench.send(&one);
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    bench.told();
    bench.send(&one.clone().content(2).from(call(2)));
    bench.send(&one.clone().content(2).by("b").from(call(3)));
    assert_eq!(bench.told(), [""; 0], "not durable yet");
    bench.sync();
    let told = bench.told();
    assert_eq!(told, ["2: refused KEY_CONFLICT", "2: dead", "3: rejected", "3: KEY_CONFLICT", "3: dead"]);
    assert_eq!(bench.outcomes().iter().filter(|outcome| outcome.status == Status::Ok).count(), 1);
}

#[test]
fn a_step_that_both_a_call_and_a_stream_ask_for_is_told_to_both() {
    for call_first in [true, false] {
        let mut bench = Bench::new();
        let mut origins = [call(1), delivery(5, 1)];
        if !call_first {
            origins.reverse();
        }
        for origin in origins {
            bench.send(&step("k").from(origin));
        }
        let ticket = bench.run();
        bench.sync();
        assert!(bench.told().contains(&"1: accepted".to_owned()));
        bench.done(ticket);
        bench.sync();
        let told = bench.told();
        assert!(told.contains(&"1: ok".to_owned()) && told.contains(&"stream: ok".to_owned()), "{told:?}");
        assert!(matches!(bench.look()[..], [Effect::Settle { how: Settle::Ack, .. }]), "the message is settled");
        assert!(bench.shard.is_idle());
    }
}

#[test]
fn a_message_on_core_is_published_though_a_call_of_the_same_asker_was_first() {
    let mut bench = Bench::new();
    bench.send(&step("k").from(call(1)));
    bench.send(&step("k").from(core()));
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    let told = bench.told();
    assert_eq!(told.iter().filter(|told| told.ends_with("ok")).collect::<Vec<_>>(), ["1: ok", "core: ok"]);
}

#[test]
fn after_a_crash_the_step_goes_on_and_whoever_calls_again_is_told() {
    let mut bench = Bench::new();
    let one = step("k").from(call(1));
    bench.send(&one);
    bench.sync();
    let kept = bench.frames.len();
    let by_call = |bench: &Bench| {
        let message = (1..=kept as u64).find_map(|lsn| match bench.frame(Lsn(lsn)).fact {
            Fact::Accepted(fact) => Some(fact.message.into_delivery()),
            _ => None,
        });
        message.expect("it was accepted").origin
    };
    assert!(matches!(by_call(&bench), Origin::Journal { source: crate::step::Source::Call, .. }));
    bench.restart(kept, &[&one]);
    bench.look();
    bench.sync();
    bench.send(&one.clone().from(call(1)));
    assert_eq!(bench.told(), ["1: accepted"]);
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    assert!(bench.told().contains(&"1: ok".to_owned()));
    assert_eq!(bench.outcomes().len(), 1);
}

#[test]
fn a_stream_that_brings_a_recovered_calls_step_gets_a_letter_of_its_own() {
    let mut bench = Bench::new();
    let one = step("k").from(call(1));
    bench.send(&one);
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    let kept = bench.frames.len();
    bench.restart_by(kept, crate::step::Source::Call, &[&one]);
    // Its outcome is being told, to nobody; the confirmation has not come back yet.
    let confirm = bench.look().into_iter().find_map(|effect| match effect {
        Effect::Post(post) => post.confirm,
        _ => None,
    });
    bench.send(&one.from(delivery(5, 1)));
    assert!(bench.told().contains(&"stream: ok".to_owned()));
    bench.apply(Event::Confirmed { ticket: confirm.expect("an outcome") });
    let settled = bench.look();
    assert!(settled.iter().any(|effect| matches!(effect, Effect::Settle { how: Settle::Ack, .. })), "{settled:?}");
}

#[test]
fn what_riding_calls_brought_counts_as_held() {
    let held = step("k").arrival(Now::default()).held_bytes();
    let mut bench = tiny(|limits| limits.shard_held_bytes_max = 3 * held);
    for number in 1..=4 {
        bench.send(&step("k").from(call(number)));
    }
    let refused: Vec<_> = bench.told().into_iter().filter(|told| told.contains("refused")).collect();
    assert_eq!(refused, ["4: refused SYSTEM_OVERLOAD"]);
}

#[test]
fn of_too_many_calls_for_one_step_the_oldest_rider_makes_way() {
    let mut bench = Bench::new();
    let riders = CALLS_PER_KEY_MAX as u64 + 2;
    for number in 1..=riders {
        bench.send(&step("k").from(call(number)));
    }
    let refused: Vec<_> = bench.told().into_iter().filter(|told| told.contains("refused")).collect();
    assert_eq!(refused, ["2: refused SYSTEM_OVERLOAD"]);
    bench.send(&step("k").from(core()));
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    let told: Vec<_> = bench.told().into_iter().filter(|told| told.ends_with("ok")).collect();
    assert_eq!(told.len() as u64, riders, "and a message on core, whose places are its own: {told:?}");
    assert!(bench.shard.is_idle() && bench.shard.held_bytes == 0, "what they brought is given back");
    assert!(told.contains(&"1: ok".to_owned()) && told.contains(&format!("{riders}: ok")));
}

#[test]
fn who_called_and_asks_on_core_as_well_is_told_on_both_however_many_ask() {
    let mut bench = Bench::new();
    bench.send(&step("k").by("a").from(call(1)));
    for asker in ["b", "c", "d", "e", "f", "g", "h", "i"] {
        bench.send(&step("k").by(asker).from(core()));
    }
    for _ in 0..2 {
        bench.send(&step("k").by("a").from(core()));
    }
    let ticket = bench.run();
    bench.done(ticket);
    let mut told = Vec::new();
    for _ in 0..2 {
        bench.sync();
        told.extend(bench.told());
    }
    let ok = |to: &str| told.iter().filter(|told| **told == format!("{to}: ok")).count();
    assert_eq!((ok("1"), ok("core")), (1, 9), "{told:?}");
}

#[test]
fn a_step_that_ended_untried_was_accepted_however_often_and_under_whatever_name_that_is_told() {
    let mut bench = Bench::new();
    let one = step("k").effect(EffectClass::Unsafe).by("a");
    let Origin::Stream(token) = delivery(1, 1) else { panic!("a stream's") };
    bench.send(&one.clone().from(Origin::Stream(StreamToken { inherited: true, ..token })));
    bench.settle();
    for sequence in 2..=3 {
        bench.send(&one.clone().by("b").from(delivery(sequence, 1)));
        bench.probe();
        bench.sync();
        assert_eq!(bench.told(), ["stream: accepted", "stream: INDETERMINATE"]);
    }
}
