//! Finished keys that lie in key files alone: looked up before anything is said or done, and known as before.

use std::convert::Infallible;
use std::sync::Arc;

use super::*;
use crate::event::Sealed;
use crate::keys::{self, KeyMap, Writer};
use crate::snapshot::Seal;

/// A key file in memory: its filter is all that the machine sees of it.
fn map(list: &[Entry], to: Lsn) -> Arc<KeyMap> {
    let mut writer = Writer::new(Lsn(0), to, list.len() as u64);
    for entry in list {
        let Ok(()) = writer.push(entry, |_| Ok::<(), Infallible>(()));
    }
    let Ok(map) = writer.finish(|_| Ok::<(), Infallible>(()));
    Arc::new(map)
}

impl Bench {
    fn close_segment(&mut self) {
        let to = Lsn(self.frames.len() as u64);
        self.apply(Event::Disk(DiskNews::Closed { from: Lsn(1), to, bytes: 1 }));
    }

    /// The seal that has gone out since the last look.
    fn seal(&mut self) -> Option<Box<Seal>> {
        self.look().into_iter().find_map(|effect| if let Effect::Seal(seal) = effect { Some(seal) } else { None })
    }

    /// Closes a segment, has what is finished put into a key file, and lets it leave the memory.
    fn put_away(&mut self) {
        self.shard.keep_sealed(Lsn(0), Vec::new(), false, 0);
        self.close_segment();
        self.sync();
        let seal = self.seal().expect("a seal");
        self.kept(&seal);
    }

    fn kept(&mut self, seal: &Seal) {
        let mut entries = seal.finished.concat();
        keys::sort(&mut entries);
        self.sealed.extend(entries.iter().map(|entry| (entry.key, *entry)));
        let all: Vec<Entry> = self.sealed.values().copied().collect();
        self.apply(Event::Sealed(Sealed { entries, files: Some(vec![map(&all, seal.before)]) }));
        while self.sealed.keys().any(|key| self.shard.known.get(key).is_some()) {
            self.shard.forget_sealed();
        }
    }

    /// Who is looked for, and answers from the key files.
    fn answer_looks(&mut self) -> Vec<Key> {
        let mut looked = Vec::new();
        while let Some(at) = self.did.iter().position(|effect| matches!(effect, Effect::Look { .. })) {
            let Effect::Look { key } = self.did.remove(at) else { continue };
            looked.push(key);
            self.apply(Event::Looked { key, found: self.sealed.get(&key).copied() });
        }
        looked
    }
}

fn finished(steps: &[&Step]) -> Bench {
    let mut bench = Bench::new();
    for step in steps {
        bench.send(step);
        let ticket = bench.run();
        bench.done(ticket);
        bench.settle();
    }
    bench.put_away();
    bench
}

#[test]
fn a_step_in_a_key_file_is_looked_up_and_answered_and_nothing_runs() {
    let mut bench = finished(&[&step("k")]);
    bench.send(&step("k").from(delivery(9, 1)));
    bench.send(&step("k").from(delivery(10, 1)));
    assert!(matches!(bench.did[..], [Effect::Look { key }] if key == step("k").key), "{:?}", bench.did);
    assert!(!bench.shard.is_idle());
    assert_eq!(bench.answer_looks(), [step("k").key]);
    let (told, settled) = bench.settle();
    assert_eq!((told.len(), settled), (2, vec![(9, Settle::Ack), (10, Settle::Ack)]));
    assert!(bench.shard.is_idle());
}

#[test]
fn other_content_under_a_key_in_a_key_file_is_a_conflict() {
    let mut bench = finished(&[&step("k")]);
    bench.send(&step("k").content(2).by("b").from(delivery(9, 1)));
    bench.answer_looks();
    let (told, _) = bench.settle();
    assert_eq!(told[0].1.fault.as_ref().map(|fault| fault.code), Some(Code::KeyConflict));
}

#[test]
fn a_key_that_only_looks_known_is_looked_for_once_and_runs() {
    let mut bench = finished(&[&step("k")]);
    bench.shard.stand(vec![map(
        &[Entry::finished(step("new").key, &Fingerprint([1; 32]), &crate::ids::AskerId([0; 16]), Lsn(1), false)],
        Lsn(5),
    )]);
    bench.send(&step("new").from(delivery(9, 1)));
    assert!(bench.runs().is_empty(), "it waits");
    bench.apply(Event::Looked { key: step("new").key, found: None });
    let ticket = bench.run();
    bench.done(ticket);
    assert_eq!(bench.settle().0.len(), 1);
}

#[test]
fn what_was_found_absent_is_looked_for_again_once_other_files_stand() {
    let mut bench = finished(&[&step("k")]);
    let other = Entry::finished(step("new").key, &Fingerprint([1; 32]), &SALT.asker(step("new").key, "a"), Lsn(1), false);
    bench.shard.stand(vec![map(&[other], Lsn(5))]);
    let arrival = step("new").from(delivery(9, 1)).arrival(bench.now);
    let asked = bench.shard.asked(arrival);
    bench.shard.stand(vec![map(&[other], Lsn(6))]);
    let arrival = bench.shard.take_up(asked);
    assert!(bench.shard.must_look(arrival.key, &arrival, &mut Effects::default()));
}

#[test]
fn an_entry_below_the_floor_is_forgotten() {
    let mut bench = finished(&[&step("k")]);
    bench.shard.retain.raise_floor(Lsn(bench.frames.len() as u64));
    let mut fx = Effects::default();
    let arrival = step("k").from(core()).arrival(bench.now);
    bench.shard.apply(bench.now, Event::Arrived(arrival), &mut fx);
    let found = bench.sealed.get(&step("k").key).copied();
    bench.shard.apply(bench.now, Event::Looked { key: step("k").key, found }, &mut fx);
    assert!(fx.list.iter().any(|effect| matches!(effect, Effect::Run { .. })), "{:?}", fx.list);
}

#[test]
fn a_seal_goes_out_once_its_frames_are_durable_and_one_at_a_time() {
    let mut bench = Bench::new();
    bench.shard.keep_sealed(Lsn(0), Vec::new(), false, 0);
    bench.send(&step("k"));
    bench.close_segment();
    assert!(bench.seal().is_none(), "its frames are not durable");
    bench.sync();
    let first = bench.seal().expect("now they are");
    assert_eq!((first.rest.unfinished.len(), first.finished.len()), (1, 0));
    bench.send(&step("l").from(delivery(2, 1)));
    bench.sync();
    bench.close_segment();
    assert!(bench.seal().is_none(), "one is on its way");
    bench.kept(&first);
    let second = bench.seal().expect("its turn");
    assert_eq!((second.from, second.rest.unfinished.len()), (first.before, 2));
}

#[test]
fn keys_whose_seal_failed_stay_and_are_in_the_next() {
    let mut bench = Bench::new();
    bench.shard.keep_sealed(Lsn(0), Vec::new(), false, 0);
    bench.send(&step("k"));
    let ticket = bench.run();
    bench.done(ticket);
    bench.settle();
    bench.close_segment();
    bench.sync();
    let first = bench.seal().expect("a seal");
    bench.apply(Event::Sealed(Sealed { entries: first.finished.concat(), files: None }));
    bench.send(&step("k").from(delivery(9, 1)));
    assert_eq!(bench.settle().0.len(), 1, "it is known as before");
    bench.close_segment();
    bench.sync();
    let second = bench.seal().expect("another");
    assert_eq!(second.finished.concat(), first.finished.concat());
}
