//! What steps need while they run: slots in their lane, memory, a turn among their own kind.

use super::*;

/// Sends steps named by their keys, each by an assignment of its own.
fn send_all<const N: usize>(bench: &mut Bench, steps: [(&str, Step); N]) {
    for (index, (name, step)) in steps.into_iter().enumerate() {
        let key = SALT.key(Identity::Assignment { tenant: "t", assignment: name });
        bench.send(&Step { key, ..step }.from(delivery(index as u64 + 1, 1)));
    }
}

fn memory(bytes: u64) -> Needs {
    Needs { memory_bytes: bytes, ..Needs::default() }
}

fn of_the(lane: Lane) -> Needs {
    Needs { lane, ..Needs::default() }
}

#[test]
fn a_full_lane_holds_up_its_own_steps_and_no_others() {
    let mut bench = tiny(|limits| limits.cpu_running_max = 1);
    let cpu = || step("").needs(of_the(Lane::Cpu));
    send_all(&mut bench, [("a", cpu()), ("b", cpu()), ("c", step("")), ("d", cpu().of("u"))]);
    let runs = bench.runs();
    assert_eq!(runs.len(), 2, "one of the cpu lane, and the one of the io lane");
    assert_eq!((bench.shard.running_in(Lane::Cpu), bench.shard.running_in(Lane::Io)), (1, 1));
    assert_eq!((bench.shard.queued_in(Lane::Cpu), bench.shard.queued_in(Lane::Io)), (2, 0));
    bench.done(runs[0].0);
    let ticket = bench.run();
    bench.done(ticket);
    bench.run();
    assert_eq!(bench.shard.running_in(Lane::Cpu), 1);
}

#[test]
fn steps_that_ask_for_more_memory_than_there_is_run_one_after_the_other() {
    let mut bench = tiny(|limits| limits.tenant_memory_bytes_max = 100);
    send_all(&mut bench, [("a", step("").needs(memory(60))), ("b", step("").needs(memory(60))), ("c", step("").of("u"))]);
    let runs = bench.runs();
    assert_eq!((runs.len(), bench.shard.memory_in_use()), (2, 60));
    bench.done(runs[0].0);
    bench.run();
    assert_eq!(bench.shard.memory_in_use(), 60);
}

#[test]
fn who_lacked_memory_first_has_it_first() {
    let mut bench = tiny(|limits| limits.shard_memory_bytes_max = 100);
    let small = |tenant| step("").of(tenant).needs(memory(40));
    let steps = [("a", small("t")), ("b", small("u")), ("large", small("v").needs(memory(90))), ("c", small("w"))];
    send_all(&mut bench, steps);
    let runs = bench.runs();
    assert_eq!(runs.len(), 2, "c would fit, and does not overtake the large one");
    bench.done(runs[0].0);
    assert!(bench.runs().is_empty(), "not enough yet");
    bench.done(runs[1].0);
    let large = bench.run();
    assert_eq!(bench.shard.memory_in_use(), 90);
    bench.done(large);
    bench.run();
}

#[test]
fn who_stood_behind_the_first_has_what_that_one_leaves() {
    let mut bench = tiny(|limits| limits.shard_memory_bytes_max = 100);
    let needing = |tenant, bytes| step("").of(tenant).needs(memory(bytes));
    // c's is asked first once memory is free, and is not the one that lacked it first.
    let steps = [("known", needing("c", 0)), ("a", needing("a", 95)), ("large", needing("l", 20)), ("c", needing("c", 5))];
    send_all(&mut bench, steps);
    let runs = bench.runs();
    assert_eq!((runs.len(), bench.shard.memory_in_use()), (2, 95));
    bench.done(runs[1].0);
    assert_eq!((bench.runs().len(), bench.shard.memory_in_use()), (2, 25));
}

#[test]
fn who_stood_behind_the_first_goes_on_when_that_one_is_cancelled() {
    let mut bench = tiny(|limits| limits.shard_memory_bytes_max = 100);
    let needing = |tenant, bytes| step("").of(tenant).needs(memory(bytes));
    send_all(&mut bench, [("a", needing("a", 95)), ("large", needing("l", 20)), ("c", needing("c", 5))]);
    bench.run();
    bench.apply(Event::Cancel { key: SALT.key(Identity::Assignment { tenant: "t", assignment: "large" }) });
    bench.run();
    assert_eq!(bench.shard.memory_in_use(), 100);
}

#[test]
fn who_stood_behind_the_first_goes_on_when_that_one_is_out_of_time() {
    let mut bench = tiny(|limits| limits.shard_memory_bytes_max = 100);
    let needing = |tenant, bytes| step("").of(tenant).needs(memory(bytes));
    let large = Step { budget_ms: 500, ..needing("l", 20) };
    send_all(&mut bench, [("a", needing("a", 95)), ("large", large), ("c", needing("c", 5))]);
    bench.run();
    bench.wait_ms(1_000);
    bench.run();
    assert_eq!(bench.shard.memory_in_use(), 100);
}

#[test]
fn who_was_first_and_waits_for_its_lane_keeps_no_memory_from_another_lane() {
    let mut bench = tiny(|limits| (limits.cpu_running_max, limits.shard_memory_bytes_max) = (1, 100));
    let large = step("").of("l").needs(Needs { lane: Lane::Cpu, memory_bytes: 60, concurrency: 0 });
    send_all(
        &mut bench,
        [("a", step("").of("a").needs(memory(60))), ("large", large), ("cpu", step("").of("c").needs(of_the(Lane::Cpu)))],
    );
    let runs = bench.runs();
    assert_eq!(runs.len(), 2, "the large one lacks memory, and another takes its lane's only slot");
    send_all(&mut bench, [("io", step("").of("i").needs(memory(50)))]);
    bench.done(runs[0].0);
    bench.run();
    assert_eq!(bench.shard.memory_in_use(), 50);
    bench.done(runs[1].0);
    assert!(bench.runs().is_empty(), "now it lacks memory again");
}

#[test]
fn a_recovered_step_waits_in_its_lane_whatever_is_said_when_it_is_sent_again() {
    let mut bench = tiny(|limits| limits.tenant_running_max = 1);
    let (first, second) = (step("a"), step("b"));
    bench.send(&first.clone().from(delivery(1, 1)));
    bench.send(&second.clone().from(delivery(2, 1)));
    bench.sync();
    let kept = bench.frames.len();
    bench.restart(kept, &[&first, &second]);
    bench.send(&second.needs(Needs { lane: Lane::Cpu, memory_bytes: 7, concurrency: 0 }).from(delivery(3, 1)));
    assert_eq!((bench.shard.queued_in(Lane::Cpu), bench.shard.memory_in_use()), (0, 0));
    bench.sync();
    let ticket = bench.run();
    bench.done(ticket);
    bench.sync();
    bench.run();
    assert_eq!((bench.shard.running_in(Lane::Io), bench.shard.queued_in(Lane::Io)), (1, 0));
}

#[test]
fn no_lane_takes_every_slot_of_a_core() {
    let mut bench = tiny(|limits| limits.shard_running_max = 2);
    let cpu = || step("").needs(of_the(Lane::Cpu));
    send_all(&mut bench, [("a", cpu()), ("b", cpu()), ("c", cpu()), ("d", cpu()), ("io", step(""))]);
    let runs = bench.runs();
    bench.done(runs[0].0);
    bench.run();
    assert_eq!((bench.shard.running_in(Lane::Cpu), bench.shard.running_in(Lane::Io)), (1, 1));
}

#[test]
fn who_waits_for_its_own_tenant_keeps_no_memory_from_others() {
    let mut bench = tiny(|limits| (limits.tenant_running_max, limits.shard_memory_bytes_max) = (1, 100));
    let busy = step("").of("busy").needs(memory(60));
    send_all(&mut bench, [("a", busy.clone()), ("b", step("").of("u").needs(memory(60))), ("c", busy)]);
    let first = bench.run();
    // u lacks memory first; then it has it, and the busy tenant's second step waits for its slot.
    bench.done(first);
    assert_eq!(bench.runs().len(), 1);
    assert_eq!(bench.shard.memory_in_use(), 60);
}

#[test]
fn a_step_begins_beside_no_more_of_its_kind_than_it_says() {
    let mut bench = Bench::new();
    let two = || step("").needs(Needs { concurrency: 2, ..Needs::default() });
    send_all(&mut bench, [("a", two()), ("b", two()), ("c", two()), ("d", two()), ("free", step("")), ("other", two().of("u"))]);
    let runs = bench.runs();
    assert_eq!(runs.len(), 4, "two, one that does not mind, and another tenant's");
    bench.done(runs[0].0);
    assert!(bench.runs().is_empty(), "two others run still");
    bench.done(runs[1].0);
    assert_eq!(bench.runs().len(), 1);
}

#[test]
fn what_needs_more_than_there_is_runs_alone_where_it_was_accepted_under_another_limit() {
    let mut bench = tiny(|limits| (limits.tenant_memory_bytes_max, limits.shard_memory_bytes_max) = (100, 100));
    send_all(&mut bench, [("a", step("").needs(memory(10))), ("large", step("").needs(memory(1 << 40)))]);
    let small = bench.run();
    bench.done(small);
    bench.run();
    assert_eq!(bench.shard.memory_in_use(), 1 << 40);
}
