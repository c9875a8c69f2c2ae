//! Steps that end the process: a strike for each death in their own code, run last and alone, and after three not at all.

use super::*;

impl Bench {
    /// The process dies in this step's own code, with everything durable, and starts again.
    fn die_in(&mut self, step: &Step, steps: &[&Step]) {
        let (kept, boot) = (self.frames.len(), self.boot);
        self.restart_after(kept, Some((step, boot)), steps);
    }

    fn strikes(&self) -> usize {
        (1..=self.frames.len()).filter(|lsn| matches!(self.frame(Lsn(*lsn as u64)).fact, Fact::Struck { .. })).count()
    }

    /// How often the page was wiped since the last look.
    fn wipes(&mut self) -> usize {
        self.look().iter().filter(|effect| matches!(effect, Effect::WipePage { .. })).count()
    }

    /// Lets the disk do its work: a strike, the STARTED that waited for it, and what follows.
    fn sync_all(&mut self) {
        for _ in 0..3 {
            self.sync();
        }
    }

    /// Lets pass what a struck step leaves to others, and the disk do its work before and after.
    fn turn(&mut self) {
        self.sync_all();
        self.wait_ms(COURTESY_MS);
        self.sync_all();
    }

    /// Everything becomes durable and is told; which tries start meanwhile.
    fn tell_all(&mut self) -> Vec<Ticket> {
        let mut started = Vec::new();
        for _ in 0..4 {
            self.sync();
            for effect in self.look() {
                match effect {
                    Effect::Post(post) => post.confirm.into_iter().for_each(|ticket| self.apply(Event::Confirmed { ticket })),
                    Effect::Run { ticket, .. } => started.push(ticket),
                    _ => {}
                }
            }
        }
        started
    }

    fn code(&self) -> Option<Code> {
        self.outcomes().first().and_then(|outcome| outcome.fault.as_ref().map(|fault| fault.code))
    }
}

fn other(name: &str, sequence: u64) -> Step {
    step(name).by("b").from(delivery(sequence, 1))
}

#[test]
fn a_step_in_which_the_process_died_three_times_is_poison() {
    for (effect, said) in [(EffectClass::Pure, Effected::None), (EffectClass::Conditional, Effected::Unknown)] {
        let mut bench = Bench::new();
        let one = step("k").effect(effect);
        bench.send(&one);
        for deaths in 1..=2 {
            bench.turn();
            bench.run();
            bench.die_in(&one, &[&one]);
            assert_eq!((bench.strikes(), bench.outcomes().len()), (deaths, 0));
        }
        bench.turn();
        bench.run();
        bench.die_in(&one, &[&one]);
        assert_eq!(bench.code(), Some(Code::Poison));
        assert_eq!(bench.outcomes()[0].effect, said);
        bench.sync_all();
        let did = bench.look();
        let is_dead_letter =
            |effect: &Effect| matches!(effect, Effect::Post(post) if matches!(post.letter, Letter::DeadLetter { .. }));
        assert!(did.iter().any(is_dead_letter));
        assert!(!did.iter().any(|effect| matches!(effect, Effect::Run { .. })));
    }
}

#[test]
fn a_step_that_was_merely_in_flight_gets_no_strike() {
    let mut bench = Bench::new();
    let (one, bystander) = (step("k"), other("b", 2));
    bench.send(&one);
    bench.send(&bystander);
    for _ in 0..3 {
        bench.sync_all();
        bench.die_in(&one, &[&one, &bystander]);
    }
    assert_eq!(bench.code(), Some(Code::Poison));
    for _ in 0..5 {
        bench.restart(bench.frames.len(), &[&one, &bystander]);
        bench.sync_all();
    }
    let runs = bench.runs().len();
    assert_eq!((runs, bench.strikes(), bench.outcomes().len()), (1, 3, 1), "it is run again, as often as need be");
}

#[test]
fn a_death_before_anything_was_recorded_counts_too() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    // Its ACCEPTED never reached the disk.
    bench.restart_after(0, Some((&one, 1)), &[]);
    bench.send(&one.clone().from(delivery(1, 1)));
    assert!(bench.runs().is_empty(), "now its start is durable first");
    bench.turn();
    bench.run();
    bench.die_in(&one, &[&one]);
    bench.turn();
    bench.run();
    bench.die_in(&one, &[&one]);
    assert_eq!((bench.code(), bench.strikes()), (Some(Code::Poison), 3));
}

#[test]
fn nothing_runs_before_the_strike_is_durable() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    // What died had no other trace: its delivery comes again later.
    bench.restart_after(0, Some((&one, 1)), &[]);
    bench.send(&other("new", 2));
    assert!(bench.runs().is_empty());
    bench.sync();
    bench.run();
}

#[test]
fn a_death_counts_once_however_often_its_page_is_read() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    bench.die_in(&one, &[&one]);
    for _ in 0..5 {
        bench.restart_after(bench.frames.len(), Some((&one, 1)), &[&one]);
    }
    assert_eq!((bench.strikes(), bench.outcomes().len()), (1, 0));
}

#[test]
fn a_decided_step_gets_no_strike() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    let ticket = bench.run();
    bench.done(ticket);
    bench.die_in(&one, &[&one]);
    assert_eq!((bench.strikes(), bench.wipes()), (0, 1));
}

#[test]
fn the_page_is_wiped_once_its_strike_is_durable_and_not_before() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    bench.die_in(&one, &[&one]);
    assert_eq!(bench.wipes(), 0);
    bench.sync();
    assert_eq!(bench.wipes(), 1);
}

#[test]
fn a_struck_step_waits_for_those_that_were_recovered_with_it() {
    let mut bench = Bench::new();
    let (one, two, three) = (step("k"), other("two", 2), other("three", 3));
    bench.send(&one);
    bench.send(&two);
    bench.send(&three);
    assert_eq!(bench.runs().len(), 3);
    bench.die_in(&one, &[&one, &two, &three]);
    bench.sync_all();
    let runs = bench.runs();
    assert_eq!(runs.len(), 2, "not the struck one");
    bench.done(runs[0].0);
    bench.wait_ms(COURTESY_MS);
    assert!(bench.tell_all().is_empty(), "one of them has no outcome yet");
    bench.done(runs[1].0);
    assert_eq!(bench.tell_all().len(), 1);
    let facts: Vec<Fact> = (1..=bench.frames.len() as u64).map(|lsn| bench.frame(Lsn(lsn)).fact).collect();
    let result = facts.iter().rposition(|fact| matches!(fact, Fact::Result(_)));
    let started = facts.iter().rposition(|fact| matches!(fact, Fact::Started { .. }));
    assert!(result.is_some() && result < started, "what ended is durable before it starts");
}

#[test]
fn a_step_struck_in_an_earlier_life_waits_for_those_that_are_recovered_after_it() {
    let mut bench = Bench::new();
    let (one, two) = (step("k"), other("two", 2));
    bench.send(&one);
    bench.run();
    bench.die_in(&one, &[&one]);
    bench.send(&two);
    bench.sync();
    bench.restart(bench.frames.len(), &[&one, &two]);
    assert_eq!(bench.shard.next_tick_us(), Some(bench.now.mono_us), "nothing else need happen for it to start");
    bench.wait_ms(1);
    bench.sync_all();
    let ticket = bench.run();
    bench.done(ticket);
    assert_eq!(bench.outcomes().len(), 1);
    bench.wait_ms(COURTESY_MS);
    assert_eq!(bench.tell_all().len(), 1);
}

#[test]
fn a_struck_step_holds_up_the_others_for_a_moment_only() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    bench.die_in(&one, &[&one]);
    bench.turn();
    let struck = bench.run();
    bench.send(&other("new", 2));
    bench.sync();
    assert!(bench.runs().is_empty(), "it is alone at first");
    assert_eq!(bench.shard.next_tick_us(), Some((COURTESY_MS + HUSH_MS_MAX) * 1000));
    bench.wait_ms(HUSH_MS_MAX);
    let new = bench.run();
    bench.done(new);
    bench.done(struck);
    bench.send(&other("newer", 3));
    bench.run();
    assert_eq!(bench.outcomes().len(), 2);
}

#[test]
fn struck_steps_run_one_at_a_time_and_wait_for_an_empty_shard_for_a_moment_only() {
    let mut bench = Bench::new();
    let (one, two) = (step("k"), other("two", 2));
    bench.send(&one);
    bench.send(&two);
    bench.runs();
    bench.die_in(&one, &[&one, &two]);
    bench.sync_all();
    bench.die_in(&two, &[&one, &two]);
    bench.turn();
    let first = bench.run();
    bench.wait_ms(HUSH_MS_MAX);
    bench.send(&other("new", 3));
    bench.run();
    bench.done(first);
    bench.sync_all();
    assert!(bench.runs().is_empty(), "the new one is at work");
    bench.wait_ms(COURTESY_MS);
    bench.send(&other("newer", 4));
    assert!(bench.runs().is_empty(), "and no other starts");
    bench.wait_ms(HUSH_MS_MAX);
    bench.sync_all();
    bench.run();
}

#[test]
fn a_struck_unsafe_step_is_indeterminate_as_before() {
    let mut bench = Bench::new();
    let one = step("k").effect(EffectClass::Unsafe);
    bench.send(&one);
    bench.sync();
    bench.run();
    bench.die_in(&one, &[&one]);
    assert_eq!((bench.code(), bench.outcomes()[0].effect), (Some(Code::Indeterminate), Effected::Unknown));
}

#[test]
fn a_struck_step_that_ends_well_is_like_any_other() {
    let mut bench = Bench::new();
    let one = step("k");
    bench.send(&one);
    bench.run();
    bench.die_in(&one, &[&one]);
    bench.turn();
    let ticket = bench.run();
    bench.done(ticket);
    let (told, _) = bench.settle();
    assert_eq!((told[0].1.status, told[0].1.tries), (Status::Ok, 1));
    bench.restart(bench.frames.len(), &[&one]);
    assert_eq!(bench.shard.queued() + bench.shard.running(), 0);
}

#[test]
fn a_struck_step_that_is_cancelled_leaves_its_place() {
    let mut bench = Bench::new();
    let (one, two) = (step("k"), other("two", 2));
    bench.send(&one);
    bench.send(&two);
    bench.runs();
    bench.die_in(&one, &[&one, &two]);
    bench.sync_all();
    let ticket = bench.run();
    bench.apply(Event::Cancel { key: one.key });
    bench.done(ticket);
    bench.sync_all();
    bench.look();
    bench.send(&other("new", 3));
    bench.run();
}

/// A struck step waits; what ran beside it has ended, and its outcome is durable and not told.
fn struck_behind_an_untold_outcome() -> Bench {
    let mut bench = Bench::new();
    let (one, bystander) = (step("k"), other("b", 2));
    bench.send(&one);
    bench.send(&bystander);
    bench.sync_all();
    bench.die_in(&one, &[&one, &bystander]);
    bench.sync_all();
    let ticket = bench.run();
    bench.done(ticket);
    bench.turn();
    bench
}

#[test]
fn a_struck_step_waits_until_what_others_came_to_is_told() {
    let mut bench = struck_behind_an_untold_outcome();
    assert!(!bench.did.iter().any(|effect| matches!(effect, Effect::Run { .. })), "the other's answer is on its way");
    assert_eq!(bench.tell_all().len(), 1);
}

#[test]
fn a_struck_step_waits_no_longer_than_it_may_for_an_answer_that_nobody_takes() {
    let mut bench = struck_behind_an_untold_outcome();
    bench.wait_ms(HUSH_MS_MAX);
    bench.sync_all();
    bench.run();
}

#[test]
fn what_the_stream_brings_with_a_struck_step_goes_first_whatever_the_order() {
    let mut bench = tiny(|limits| limits.tenant_running_max = 1);
    let one = step("k");
    bench.send(&one);
    bench.run();
    // Nothing had reached the disk: the stream brings it again, and others behind it.
    bench.restart_after(0, Some((&one, 1)), &[]);
    bench.sync_all();
    bench.send(&one.clone().from(delivery(1, 2)));
    bench.send(&other("b", 2));
    bench.send(&other("c", 3));
    bench.sync_all();
    let first = bench.run();
    bench.done(first);
    let second = bench.tell_all();
    assert_eq!(second.len(), 1, "then the other that waited");
    bench.wait_ms(COURTESY_MS);
    bench.send(&other("d", 4));
    assert!(bench.tell_all().is_empty(), "the second is at work, and no more is started");
    bench.done(second[0]);
    assert_eq!(bench.tell_all().len(), 1, "and then the struck one");
    assert_eq!(bench.outcomes().len(), 2);
}

#[test]
fn a_struck_step_with_little_time_left_is_not_too_polite_to_run() {
    let mut bench = Bench::new();
    let one = Step { budget_ms: 500, ..step("k") };
    bench.send(&one);
    bench.run();
    bench.die_in(&one, &[&one]);
    bench.sync_all();
    assert!(bench.runs().is_empty());
    assert_eq!(bench.shard.next_tick_us(), Some(250_000));
    bench.wait_ms(250);
    bench.sync_all();
    bench.run();
}

#[test]
fn a_step_struck_in_an_earlier_life_has_been_polite_and_goes_at_once_before_one_struck_since() {
    let mut bench = Bench::new();
    let (one, two) = (step("k"), other("two", 2));
    bench.send(&one);
    bench.send(&two);
    bench.runs();
    bench.die_in(&one, &[&one, &two]);
    bench.sync_all();
    bench.die_in(&two, &[&two, &one]);
    bench.sync_all();
    let ticket = bench.run();
    assert_eq!(bench.shard.jobs[ticket.slot as usize].key, one.key);
    bench.done(ticket);
    assert!(bench.tell_all().is_empty(), "others have their second");
    bench.wait_ms(COURTESY_MS);
    assert_eq!(bench.tell_all().len(), 1);
}
