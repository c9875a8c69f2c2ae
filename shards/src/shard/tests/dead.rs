//! What becomes of a message that was not done: its dead letter is stored before its delivery is settled, and then for good.

use super::*;
use crate::limits::{TRIED_MAX, TRIED_MESSAGE_BYTES_MAX};
use crate::outcome::Tried;

/// The letters that want confirming, and how deliveries are settled.
fn told(bench: &mut Bench) -> (Vec<(Letter, Ticket)>, Vec<Settle>) {
    let (mut letters, mut settled) = (Vec::new(), Vec::new());
    for effect in bench.look() {
        match effect {
            Effect::Post(post) => letters.extend(post.confirm.map(|ticket| (post.letter, ticket))),
            Effect::Settle { how, .. } => settled.push(how),
            _ => {}
        }
    }
    (letters, settled)
}

#[test]
fn a_step_that_failed_for_good_is_terminated_once_result_and_dead_letter_are_stored() {
    let mut bench = Bench::new();
    bench.send(&step("k").from(delivery(1, 1)));
    let ticket = bench.run();
    bench.fail(ticket, Code::ExecutionFailed, Effected::None);
    assert!(told(&mut bench).0.is_empty(), "nothing before it is durable");
    bench.sync();
    let (letters, settled) = told(&mut bench);
    assert!(matches!(letters[..], [(Letter::Result { .. }, _), (Letter::DeadLetter { .. }, _)]), "{letters:?}");
    assert!(settled.is_empty());
    bench.apply(Event::Confirmed { ticket: letters[0].1 });
    assert!(told(&mut bench).1.is_empty(), "the dead letter is still on its way");
    bench.apply(Event::Confirmed { ticket: letters[1].1 });
    assert_eq!(told(&mut bench).1, [Settle::Term]);
    bench.send(&step("k").from(delivery(1, 2)));
    let (_, settled) = bench.settle();
    assert_eq!(settled, [(1, Settle::Term)], "nor is it wanted again where the server forgot");
}

#[test]
fn a_step_that_went_well_or_was_cancelled_is_acked() {
    let mut bench = Bench::new();
    bench.send(&step("k").from(delivery(1, 1)));
    let ticket = bench.run();
    bench.done(ticket);
    assert_eq!(bench.settle().1, [(1, Settle::Ack)]);
    let step = step("l").from(delivery(2, 1));
    bench.send(&step);
    bench.apply(Event::Cancel { key: step.arrival(bench.now).key });
    assert_eq!(bench.settle().1, [(2, Settle::Ack)]);
}

#[test]
fn a_line_that_cannot_be_read_is_told_to_its_reader_and_is_a_dead_letter_once() {
    let mut bench = Bench::new();
    let garbage = |line: u64, bench: &Bench| {
        let arrival = step("g").from(Origin::Line(line)).arrival(bench.now);
        let fault = Fault::new(Code::InvalidFormat, "the message is not JSON");
        Rc::new(Arrival { asker: None, content: Content::Garbage(fault), ..(*arrival).clone() })
    };
    let arrival = garbage(1, &bench);
    bench.apply(Event::Arrived(arrival));
    bench.sync();
    let (letters, _) = told(&mut bench);
    assert!(matches!(letters[..], [(Letter::Result { .. }, _), (Letter::DeadLetter { .. }, _)]), "{letters:?}");
    for (_, ticket) in letters {
        bench.apply(Event::Confirmed { ticket });
    }
    let arrival = garbage(2, &bench);
    bench.apply(Event::Arrived(arrival));
    let probe = bench.look().into_iter().find_map(|effect| match effect {
        Effect::Probe { key, lsn } => Some((key, lsn)),
        _ => None,
    });
    let (key, lsn) = probe.expect("the journal is asked");
    let found = outcome_of(&bench.frame(lsn)).map(Rc::new);
    bench.apply(Event::Probed { key, found });
    let (letters, _) = told(&mut bench);
    assert!(matches!(letters[..], [(Letter::Result { replayed: true, .. }, _)]), "the same line again: {letters:?}");
}

/// The tries before the last, as the dead letter says them.
fn earlier(bench: &mut Bench) -> Vec<Tried> {
    bench.sync();
    let letters = told(bench).0.into_iter();
    let dead =
        letters.filter_map(|(letter, _)| if let Letter::DeadLetter { earlier, .. } = letter { Some(earlier) } else { None });
    dead.flatten().collect()
}

#[test]
fn a_dead_letter_tells_of_the_newest_tries_each_by_itself() {
    let tries_max = TRIED_MAX as u32 + 3;
    let mut bench = Bench::new();
    bench.send(&Step { tries_max, budget_ms: 3_600_000, ..step("k") });
    let mut began_ms = Vec::new();
    for number in 1..=tries_max {
        let ticket = bench.run();
        began_ms.push(bench.now.wall_ms);
        let message = if number == 5 { "\u{e4}".repeat(TRIED_MESSAGE_BYTES_MAX) } else { format!("no {number}") };
        let fault = Fault { message: message.into(), ..Fault::new(Code::NetworkError, "") };
        bench.apply(Event::Ended { ticket, verdict: crate::event::Verdict::Failed(fault), ran_us: u64::from(number) });
        if number < tries_max {
            bench.wait_ms(5_000);
        }
    }
    let tried = earlier(&mut bench);
    let numbers: Vec<u32> = tried.iter().map(|one| one.number).collect();
    assert_eq!(numbers, (tries_max - TRIED_MAX as u32 + 1..tries_max).collect::<Vec<_>>(), "with the last as many as are kept");
    for one in &tried {
        assert_eq!((one.code, one.ran_us), (Code::NetworkError, u64::from(one.number)));
        assert_eq!(one.started_ms, began_ms[one.number as usize - 1]);
        let want = if one.number == 5 { "\u{e4}".repeat(TRIED_MESSAGE_BYTES_MAX / 2) } else { format!("no {}", one.number) };
        assert_eq!(&*one.message, want);
    }
}

#[test]
fn a_step_that_failed_at_once_and_one_that_was_started_again_know_of_no_earlier_try() {
    let mut bench = Bench::new();
    bench.send(&Step { tries_max: 1, ..step("k") });
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::None);
    assert_eq!(earlier(&mut bench), []);
    let mut bench = Bench::new();
    let one = Step { tries_max: 2, ..step("k") };
    bench.send(&one);
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::None);
    bench.restart(bench.frames.len(), &[&one]);
    bench.wait_ms(5_000);
    bench.sync();
    let ticket = bench.run();
    bench.fail(ticket, Code::NetworkError, Effected::None);
    assert_eq!(earlier(&mut bench), [], "the journal does not say what they came to");
}
