//! Steps without an end whose segment is to go.

use super::*;

fn short() -> Bench {
    tiny(|limits| (limits.horizon_ms, limits.horizon_min_ms) = (2_000, 1_000))
}

impl Bench {
    /// Closes the segment being written and lets it become older than the horizon; which frame is the oldest to stay, if any go.
    fn outlive(&mut self) -> Option<Lsn> {
        self.sync();
        let to = Lsn(self.frames.len() as u64);
        self.apply(Event::Disk(DiskNews::Closed { from: Lsn(1), to, bytes: 1 }));
        for _ in 0..8 {
            self.wait_ms(400);
            self.sync();
        }
        let prune = |effect: &Effect| if let Effect::Prune { below } = effect { Some(*below) } else { None };
        self.did.iter().find_map(prune)
    }

    /// What the frames from `from` up to `upto` say of steps without an end.
    fn left(&self, from: Lsn, upto: usize) -> Vec<crate::fold::Unfinished> {
        let mut fold = Fold::default();
        for (index, raw) in self.frames.iter().enumerate().take(upto).skip(from.0 as usize - 1) {
            fold.frame(Lsn(index as u64 + 1), &FrameView::parse(raw).expect("a frame")).expect("readable");
        }
        fold.finish().unfinished
    }
}

#[test]
fn a_segment_goes_and_the_steps_in_it_stay_as_they_were() {
    let mut bench = short();
    bench.send(&step("runs"));
    bench.run();
    bench.send(&step("waits").by("b").from(delivery(2, 1)));
    let waits = bench.run();
    bench.fail(waits, Code::NetworkError, Effected::None);
    bench.send(&step("polled").by("c").from(delivery(3, 1)));
    bench.run();
    bench.sync();
    let (kept, polled) = (bench.frames.len(), step("polled").by("c"));
    bench.restart_after(kept, Some((&polled, 1)), &[&step("runs"), &step("waits").by("b"), &polled]);
    let before = bench.left(Lsn(1), bench.frames.len());
    let below = bench.outlive().expect("it goes");
    assert!(below.0 > kept as u64, "{below:?}");
    let after = bench.left(below, bench.frames.len());
    assert_eq!(after.len(), 3);
    for was in before {
        let is = after.iter().find(|one| one.key == was.key).expect("carried");
        let of = |one: &crate::fold::Unfinished| (one.fingerprint, one.asker, one.deadline_ms, one.role);
        assert_eq!(of(is), of(&was));
        assert!(is.tries >= was.tries && is.message >= below, "{is:?}");
    }
    let mut fold = Fold::default();
    for (index, raw) in bench.frames.iter().enumerate().skip(below.0 as usize - 1) {
        fold.frame(Lsn(index as u64 + 1), &FrameView::parse(raw).expect("a frame")).expect("readable");
    }
    assert_eq!(fold.finish().strikes.of(&polled.key), 1, "the strike is carried too");
    assert_eq!(bench.shard.tally().carried, 3);
}

#[test]
fn a_crash_between_the_frames_of_what_is_carried_forgets_no_try() {
    let mut bench = short();
    bench.send(&step("k").effect(EffectClass::Unsafe));
    bench.sync();
    bench.run();
    let before = bench.frames.len();
    bench.outlive().expect("it goes");
    for upto in before..=bench.frames.len() {
        let left = bench.left(Lsn(1), upto);
        assert_eq!((left.len(), left[0].tries, left[0].interrupted), (1, 1, true), "with {upto} frames");
    }
    bench.restart(bench.frames.len(), &[&step("k").effect(EffectClass::Unsafe)]);
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::Indeterminate), "it is not run again");
}

#[test]
fn a_step_of_a_dead_connection_is_carried_as_the_stream_s_that_delivered_it_since() {
    let mut bench = short();
    let one = step("k");
    bench.send(&one.clone().from(core()));
    bench.run();
    bench.sync();
    bench.restart_by(bench.frames.len(), crate::step::Source::Core, &[&one]);
    assert!(!bench.left(Lsn(1), bench.frames.len())[0].owned.streamed);
    bench.send(&one.from(delivery(7, 1)));
    let below = bench.outlive().expect("it goes");
    assert!(bench.left(below, bench.frames.len())[0].owned.streamed, "whoever owns the stream next is handed it");
}

#[test]
fn an_outcome_that_nobody_has_been_told_stays_where_it_is() {
    let mut bench = short();
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.done(ticket);
    assert_eq!(bench.outlive(), None);
    assert_eq!(bench.shard.tally().carried, 0);
    assert_eq!(bench.settle().0.len(), 1);
    bench.wait_ms(1_001);
    bench.sync();
    assert!(bench.look().iter().any(|effect| matches!(effect, Effect::Prune { .. })), "then it goes");
}

#[test]
fn many_steps_are_carried_a_few_at_a_time() {
    let mut bench = short();
    let count = 3 * crate::limits::CARRY_MAX;
    let names: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    for (n, name) in names.iter().enumerate() {
        bench.send(&step(name).from(delivery(n as u64 + 1, 1)));
    }
    bench.sync();
    let to = Lsn(bench.frames.len() as u64);
    bench.apply(Event::Disk(DiskNews::Closed { from: Lsn(1), to, bytes: 1 }));
    bench.wait_ms(1_990);
    assert_eq!(bench.shard.tally().carried, 0, "it is not old enough");
    let mut rounds = 0;
    while bench.shard.tally().carried < count as u64 {
        let before = bench.shard.tally().carried;
        bench.wait_ms(25);
        assert!(bench.shard.tally().carried - before <= crate::limits::CARRY_MAX as u64);
        rounds += 1;
        assert!(rounds < 60, "{} of {count}", bench.shard.tally().carried);
    }
}
