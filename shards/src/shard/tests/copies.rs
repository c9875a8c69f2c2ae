//! Copies of steps that wait: what is told before they hold it, and how another worker goes on from them.

use super::gates::{HOUR_MS, asking, gate, vote};
use super::*;
use crate::event::Reply;
use crate::step::Adopted;

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.shard.settings.copies = true;
    bench
}

/// The writings of copies among what was done, as frames, and who is to confirm them.
fn copies(did: &[Effect]) -> Vec<(Ticket, Vec<Frame>)> {
    let copy = |effect: &Effect| match effect {
        Effect::Post(Post { confirm: Some(ticket), letter: Letter::Copy { frames }, .. }) => {
            let (frames, tag) = frames.split_last_chunk::<16>().expect("a tag");
            assert_eq!(SALT.copy_tag(frames), *tag);
            let frame = |raw: Result<&[u8], _>| decode(&Bytes::copy_from_slice(raw.expect("whole"))).expect("a frame");
            Some((*ticket, Frames::new(frames).map(frame).collect()))
        }
        _ => None,
    };
    did.iter().filter_map(copy).collect()
}

fn acks(did: &[Effect]) -> usize {
    did.iter().filter(|effect| matches!(effect, Effect::Settle { how: Settle::Ack, .. })).count()
}

/// What the next owner makes of a copy.
fn adopted(frames: &[Frame]) -> Adopted {
    let Fact::Accepted(accepted) = &frames[0].fact else { panic!("{frames:?}") };
    let vote = |frame: &Frame| match &frame.fact {
        Fact::Signal(vote) => Some(vote.clone()),
        _ => None,
    };
    let outcome = |frame: &Frame| match &frame.fact {
        Fact::Result(fact) => Some(Rc::new(fact.outcome.clone())),
        _ => None,
    };
    Adopted {
        deadline_ms: accepted.deadline_ms,
        votes: frames.iter().filter_map(vote).collect(),
        outcome: frames.iter().find_map(outcome),
    }
}

fn adopt(bench: &mut Bench, step: &Step, adopted: Adopted) {
    let origin = Origin::Journal { source: crate::step::Source::Stream, since_ms: START_MS };
    let arrival = step.clone().from(origin).arrival(bench.now);
    bench.apply(Event::Arrived(Rc::new(Arrival { adopted: Some(Rc::new(adopted)), ..(*arrival).clone() })));
}

#[test]
fn a_delivery_is_settled_once_its_copy_is_stored_and_not_held_any_longer() {
    let mut bench = bench();
    let one = asking(gate(&["ann"], 1));
    bench.send(&one);
    assert!(copies(&bench.look()).is_empty(), "nothing leaves before it is durable");
    bench.sync();
    let did = bench.look();
    let (written, ticket) = (copies(&did), copies(&did)[0].0);
    assert_eq!((written.len(), written[0].1.len(), acks(&did)), (1, 1, 0));
    bench.apply(Event::Confirmed { ticket });
    assert_eq!(acks(&bench.look()), 1);
    bench.wait_ms(600_000);
    assert!(!bench.look().iter().any(|effect| matches!(effect, Effect::Settle { .. })), "no server holds it");
    bench.send(&one.clone().from(delivery(1, 2)));
    assert_eq!(acks(&bench.look()), 1, "its ack was lost");
}

#[test]
fn what_people_say_and_decide_is_told_once_the_copy_has_it() {
    let mut bench = bench();
    let one = asking(gate(&["ann", "ben"], 2));
    bench.send(&one);
    bench.settle();
    bench.say(one.key, vote("ann", true));
    bench.sync();
    let did = bench.look();
    let written = copies(&did);
    assert_eq!((written.len(), written[0].1.len()), (1, 2), "the message and one word");
    let replied = |did: &[Effect]| did.iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::Reply(_), .. })));
    assert!(!replied(&did));
    bench.apply(Event::Confirmed { ticket: written[0].0 });
    assert!(replied(&bench.look()));
    bench.say(one.key, vote("ben", true));
    bench.sync();
    let did = bench.look();
    let written = copies(&did);
    assert_eq!((written.len(), written[0].1.len()), (1, 4), "the message, two words, and the outcome");
    let told =
        |did: &[Effect]| did.iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::Result { .. }, .. })));
    assert!(!told(&did) && !replied(&did));
    bench.apply(Event::Confirmed { ticket: written[0].0 });
    let did = bench.look();
    assert!(told(&did) && replied(&did));
    bench.apply(Event::Confirmed { ticket: written[0].0 });
    let leaves = |did: &[Effect]| did.iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::NoCopy, .. })));
    assert!(leaves(&bench.look()), "the result is stored: the copy goes");
    assert!(!bench.shard.is_idle());
    bench.apply(Event::Confirmed { ticket: written[0].0 });
    assert!(bench.shard.is_idle());
}

#[test]
fn another_worker_goes_on_with_the_words_and_the_time_that_are_left() {
    let one = asking(gate(&["ann", "ben"], 2));
    let mut first = bench();
    first.send(&one);
    first.settle();
    first.wait_ms(HOUR_MS / 2);
    first.say(one.key, vote("ann", true));
    first.sync();
    let left = adopted(&copies(&first.look())[0].1);

    let mut second = bench();
    second.shard.settings.events = true;
    (second.now.wall_ms, second.now.mono_us) = (START_MS + HOUR_MS / 2, 1);
    adopt(&mut second, &one, left.clone());
    second.sync();
    assert_eq!(second.asked(), [(crate::event::Asking::First, HOUR_MS)]);
    adopt(&mut second, &one, left.clone());
    assert!(second.look().is_empty(), "it is known");
    second.say(one.key, vote("ann", false));
    assert!(matches!(&second.replies().0[..], [Reply::Heard(word)] if word.approve));
    second.say(one.key, vote("ben", true));
    let (told, _) = second.settle();
    assert_eq!((told.len(), told[0].1.status), (1, Status::Ok));
    assert_eq!(second.actor().as_deref(), Some("ann, ben"));
    // And where nobody says anything more, its time is over when it would have been.
    let mut third = bench();
    third.now.wall_ms = START_MS + HOUR_MS / 2;
    adopt(&mut third, &one, left);
    third.settle();
    third.wait_ms(HOUR_MS / 2);
    assert_eq!(third.outcomes().len(), 1);
}

#[test]
fn a_decision_that_nobody_was_told_is_told_by_another_worker_and_not_made_again() {
    let one = asking(gate(&["ann"], 1));
    let mut first = bench();
    first.send(&one);
    first.settle();
    first.say(one.key, vote("ann", false));
    first.sync();
    let did = first.look();
    let left = adopted(&copies(&did).last().expect("the outcome's").1);
    assert!(left.outcome.is_some());

    let mut second = bench();
    adopt(&mut second, &one, left);
    let (told, _) = second.settle();
    assert_eq!((told.len(), told[0].1.status), (1, Status::Error));
    assert_eq!(told[0].1.fault, first.outcomes()[0].fault);
    assert_eq!((second.outcomes().len(), second.shard.parked()), (1, 0));
}

#[test]
fn a_copy_is_taken_away_after_a_crash_too() {
    let one = asking(gate(&["ann"], 1));
    let mut bench = bench();
    bench.send(&one);
    bench.settle();
    bench.say(one.key, vote("ann", true));
    bench.sync();
    let kept = bench.frames.len();
    bench.restart(kept, &[&one]);
    let (_, leaves) = (0..4).fold((0, 0), |(_, leaves), _| {
        bench.sync();
        let did = bench.look();
        for effect in &did {
            if let Effect::Post(Post { confirm: Some(ticket), .. }) = effect {
                bench.apply(Event::Confirmed { ticket: *ticket });
            }
        }
        let gone = did.iter().filter(|effect| matches!(effect, Effect::Post(Post { letter: Letter::NoCopy, .. }))).count();
        (0, leaves + gone)
    });
    assert_eq!(leaves, 1);
    assert!(bench.shard.is_idle());
}

#[test]
fn after_a_restart_only_those_copies_are_written_that_are_missing_or_behind() {
    let steps = ["a", "b", "c"].map(|id| Step { key: step(id).key, assignment: id, ..asking(gate(&["ann", "ben"], 2)) });
    let mut bench = bench();
    steps.iter().for_each(|one| bench.send(one));
    bench.settle();
    // What the others' copies hold; the third step has none. The second one's lacks what was said since.
    let left: Vec<Adopted> =
        steps.iter().map(|_| Adopted { deadline_ms: START_MS + HOUR_MS, votes: vec![], outcome: None }).collect();
    bench.say(steps[1].key, vote("ann", true));
    bench.settle();
    let kept = bench.frames.len();
    let all: Vec<&Step> = steps.iter().collect();
    bench.restart(kept, &all);
    bench.sync();
    assert!(copies(&bench.look()).is_empty(), "which are there is not known yet");
    adopt(&mut bench, &steps[0], left[0].clone());
    adopt(&mut bench, &steps[1], left[1].clone());
    assert!(copies(&bench.look()).is_empty());
    bench.apply(Event::CopiesRead);
    let written = copies(&bench.look());
    let keys: Vec<Key> = written.iter().map(|(_, frames)| frames[0].key).collect();
    assert_eq!(keys, [steps[1].key, steps[2].key]);
    assert_eq!(written[0].1.len(), 2, "with what was said");
    bench.apply(Event::CopiesRead);
    assert!(copies(&bench.look()).is_empty(), "they are on their way");
}

#[test]
fn what_was_said_before_a_restart_is_told_once_the_copy_is_known_to_have_it() {
    let one = asking(gate(&["ann", "ben"], 2));
    let mut bench = bench();
    bench.send(&one);
    bench.settle();
    bench.say(one.key, vote("ann", true));
    bench.sync();
    // It is durable, its copy is not stored yet, and nobody was told.
    let kept = bench.frames.len();
    bench.restart(kept, &[&one]);
    bench.sync();
    bench.look();
    bench.say(one.key, vote("ann", true));
    bench.sync();
    let did = bench.look();
    assert!(!did.iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::Reply(_), .. }))), "{did:?}");
    let written = copies(&did);
    assert!(matches!(&written[..], [(_, frames)] if frames.len() == 2), "with the word: {written:?}");
    bench.apply(Event::Confirmed { ticket: written[0].0 });
    assert!(matches!(&bench.replies().0[..], [Reply::Heard(word)] if word.approve));
}

#[test]
fn no_older_writing_follows_a_newer_one() {
    let mut bench = bench();
    let one = asking(gate(&["ann", "ben", "cyd"], 3));
    bench.send(&one);
    bench.sync();
    let ticket = copies(&bench.look())[0].0;
    bench.say(one.key, vote("ann", true));
    bench.sync();
    bench.say(one.key, vote("ben", true));
    bench.sync();
    assert!(copies(&bench.look()).is_empty(), "the first one is on its way still");
    bench.apply(Event::Confirmed { ticket });
    let did = bench.look();
    let written = copies(&did);
    assert_eq!((written.len(), written[0].1.len(), acks(&did)), (1, 3, 0), "one, with both words, and nobody is told yet");
    bench.apply(Event::Confirmed { ticket });
    let did = bench.look();
    let replies = did.iter().filter(|effect| matches!(effect, Effect::Post(Post { letter: Letter::Reply(Reply::Noted), .. })));
    assert_eq!((replies.count(), acks(&did)), (2, 1));
}

#[test]
fn a_cancel_is_told_once_the_copy_has_it() {
    let mut bench = bench();
    let one = asking(gate(&["ann"], 1));
    bench.send(&one);
    bench.settle();
    bench.cancel(one.key, None);
    bench.sync();
    let did = bench.look();
    let written = copies(&did);
    let replied = |did: &[Effect]| did.iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::Reply(_), .. })));
    assert!(written.len() == 1 && !replied(&did));
    let left = adopted(&written[0].1);
    assert_eq!(left.outcome.as_ref().map(|outcome| outcome.status), Some(Status::Cancelled));
    bench.apply(Event::Confirmed { ticket: written[0].0 });
    assert!(replied(&bench.look()));
}

#[test]
fn a_conflict_that_is_told_after_a_crash_leaves_the_copy_of_the_step_alone() {
    let one = asking(gate(&["ann"], 1));
    let other = one.clone().content(2).by("b").from(delivery(2, 1));
    let mut bench = bench();
    bench.send(&one);
    bench.settle();
    bench.send(&other);
    bench.sync();
    let kept = bench.frames.len();
    bench.restart(kept, &[&one, &other]);
    bench.sync();
    let gone = bench.look().into_iter().any(|effect| matches!(effect, Effect::Post(Post { letter: Letter::NoCopy, .. })));
    assert!(!gone);
    assert_eq!(bench.shard.parked(), 1);
}

#[test]
fn a_step_that_is_decided_at_boot_takes_its_copy_along() {
    let one = asking(gate(&["ann"], 1));
    let mut bench = bench();
    bench.send(&one);
    bench.settle();
    bench.now.wall_ms += 2 * HOUR_MS;
    let kept = bench.frames.len();
    bench.restart(kept, &[&one]);
    bench.sync();
    let written = copies(&bench.look());
    assert!(matches!(&written[..], [(_, frames)] if frames.len() == 2), "with its outcome: {written:?}");
}
