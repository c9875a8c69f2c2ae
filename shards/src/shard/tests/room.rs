//! A full disk as its users see it: who is known is answered, who is new waits, what runs ends.

use super::*;
use crate::limits::{FULL_LOOKS_PER_S, FULL_NAK_MS};

fn naks(did: &[Effect]) -> Vec<u32> {
    let nak = |effect: &Effect| match effect {
        Effect::Settle { how: Settle::Nak { delay_ms }, .. } => Some(*delay_ms),
        _ => None,
    };
    did.iter().filter_map(nak).collect()
}

#[test]
fn while_the_disk_is_full_known_keys_are_answered_and_new_ones_go_back_for_a_second() {
    let mut bench = Bench::new();
    bench.send(&step("known"));
    let ticket = bench.run();
    bench.done(ticket);
    bench.settle();
    bench.send(&step("runs").by("b"));
    let runs = bench.run();
    bench.apply(Event::Disk(DiskNews::Full));
    assert!(bench.shard.disk_full());
    bench.look();
    bench.send(&step("new").by("c").from(delivery(7, 9)));
    assert_eq!(naks(&bench.look()), [FULL_NAK_MS], "however often it went back before");
    bench.send(&step("known").content(2).from(delivery(8, 1)));
    assert_eq!(naks(&bench.look()), [FULL_NAK_MS], "a conflict would need a record, too");
    let frames = bench.frames.len();
    bench.send(&step("known").by("d").from(delivery(9, 1)));
    assert!(bench.settle().0.is_empty(), "the first answer to another assignment is a record, too");
    bench.send(&step("known").from(delivery(10, 2)));
    let (told, _) = bench.settle();
    assert_eq!(told.len(), 1, "the same asker is told the same");
    assert_eq!(bench.frames.len(), frames, "and nothing is written for that");
    bench.done(runs);
    assert_eq!(bench.settle().0.len(), 1, "what ran ends");
    bench.apply(Event::Disk(DiskNews::Room));
    bench.send(&step("new").by("c").from(delivery(7, 10)));
    bench.sync();
    bench.run();
}

#[test]
fn while_the_disk_is_full_a_few_deliveries_a_second_are_looked_at() {
    let mut bench = Bench::new();
    bench.apply(Event::Disk(DiskNews::Full));
    assert_eq!(bench.shard.free_slots(), FULL_LOOKS_PER_S);
    for sequence in 0..u64::from(FULL_LOOKS_PER_S) {
        bench.send(&step("new").from(delivery(sequence, 1)));
    }
    assert_eq!(bench.shard.free_slots(), 0);
    bench.wait_ms(1_001);
    assert_eq!(bench.shard.free_slots(), FULL_LOOKS_PER_S, "looked at again in a second");
    bench.apply(Event::Disk(DiskNews::Room));
    assert_eq!(bench.shard.free_slots(), bench.limits.unpublished_max);
}

#[test]
fn who_waited_for_a_full_disk_till_the_end_is_told_so() {
    let mut bench = Bench::new();
    bench.apply(Event::Disk(DiskNews::Full));
    bench.send(&Step { budget_ms: 50, ..step("k") }.from(core()));
    bench.wait_ms(150);
    let (told, _) = bench.settle();
    let fault = told[0].1.fault.clone().expect("a refusal");
    assert_eq!(fault.code, Code::SystemOverload);
    assert!(fault.message.contains("disk"), "{}", fault.message);
}

#[test]
fn a_clock_that_jumps_ends_nobody_s_wait() {
    for by_ms in [-600_000, 240_000_i64] {
        let mut bench = Bench::new();
        bench.apply(Event::Disk(DiskNews::Full));
        bench.wait_ms(1_000);
        bench.send(&step("k").from(core()));
        bench.now.wall_ms = bench.now.wall_ms.saturating_add_signed(by_ms);
        bench.wait_ms(5_000);
        bench.send(&step("after").by("b").from(core()));
        bench.wait_ms(1_000);
        assert!(bench.settle().0.is_empty(), "both have 10 s, whatever the clock says ({by_ms} ms)");
        bench.apply(Event::Disk(DiskNews::Room));
        bench.wait_ms(150);
        assert_eq!(bench.runs().len(), 2);
    }
}
