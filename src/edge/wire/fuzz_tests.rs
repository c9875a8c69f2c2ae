//! Messages bent at random, from a fixed seed: nothing panics, and what comes out is what a reader can take.

use std::rc::Rc;

use serde_json::{Value, json};
use shards::event::{Overload, Stage};

use super::render_tests::outcome;
use super::sample::{NOW_MS, assignment, delivery, step, wire};
use super::*;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "null",
    "true",
    "0",
    "-1",
    "1e9",
    "\"\"",
    "\\ud800",
    "\\u0000",
    "{\"a\":1}",
    "[[[[",
    "\"tenant_id\":\"other\",",
    "\"attempt\":3,",
    "\"run_id\":\"r\",",
    "\"flow_id\":null,",
    "\"job\":",
    "\"type\":\"echo\",",
    "é",
    "\u{0}",
    " ",
    "\"payload_ref\":1,",
    "\"data\":{",
    "\"options\":{\"retry\":7},",
    "\n",
];

fn bent(dice: &mut Dice, seeds: &[String]) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].clone().into_bytes();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = dice.next() as u8,
            2 if at < bytes.len() => _ = bytes.remove(at),
            3 => {
                let end = (at + dice.below(20)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = dice.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            4 => {
                let end = (at + dice.below(20)).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            _ => drop(bytes.splice(at..at, PIECES[dice.below(PIECES.len())].bytes())),
        }
    }
    bytes
}

/// Every optional id of a payload, wherever it stands, is absent or a string.
fn no_null(value: &Value, body: &str) {
    match value {
        Value::Object(members) => members.iter().filter(|(name, _)| *name != "message").for_each(|(name, value)| {
            assert!(!value.is_null() || name == "a", "null in {name}: {body}");
            no_null(value, body);
        }),
        Value::Array(items) => items.iter().for_each(|value| no_null(value, body)),
        _ => {}
    }
}

#[test]
fn bent_messages_never_panic_and_are_always_answered_in_good_json() {
    let place = json!({"run_id": "r\"1", "flow_id": "f", "step_id": "s", "attempt": 1, "trace_id": "t"});
    let seeds = [
        assignment(&[("/correlation", place.clone()), ("/options/retry/max_attempts", json!(3))]),
        assignment(&[("/flow_id", json!("f\\é")), ("/metadata", place.clone())]),
        format!(r#"{{"version":"v1","kind":"exec_assign","data":{}}}"#, assignment(&[])),
        step(&[("/context/flow_id", json!("f")), ("/timeout_ms", json!("5"))]),
        step(&[("/context", place), ("/retry/max_attempts", json!(3))]),
    ];
    let wire = wire();
    let mut dice = Dice(2026);
    let (mut works, mut refusals, mut garbages) = (0, 0, 0);
    for round in 0..60_000_u64 {
        let body = bent(&mut dice, &seeds);
        let origin = if round % 3 == 0 { Origin::Line(round) } else { Origin::Core };
        let arrival = wire.decode(delivery(origin, body.clone()), Now { mono_us: round, wall_ms: NOW_MS });
        match &arrival.content {
            Content::Work(work) => {
                works += 1;
                assert!(serde_json::from_slice::<Value>(&work.inputs).is_ok(), "{}", String::from_utf8_lossy(&body));
                assert!(arrival.asker.is_some());
            }
            Content::Refusal(_) => {
                refusals += 1;
                assert!(arrival.asker.is_some());
            }
            Content::Notice(notice) => panic!("no message here is one: {notice:?}"),
            Content::Garbage(_) => {
                garbages += 1;
                assert!(arrival.asker.is_none());
            }
        }
        if round % 4 != 0 {
            continue;
        }
        let outcome = Rc::new(match &arrival.content {
            Content::Work(_) => outcome(Status::Ok, None),
            Content::Refusal(fault) => outcome(Status::Error, Some(fault.clone())),
            Content::Notice(notice) => panic!("no message here is one: {notice:?}"),
            Content::Garbage(fault) => outcome(Status::Quarantined, Some(fault.clone())),
        });
        let letters = [
            Letter::Ack { accepted: true, fault: None, overload: Overload::Healthy, at_ms: NOW_MS },
            Letter::Result { outcome: outcome.clone(), replayed: false, under: arrival.key },
            Letter::Lifecycle { stage: Stage::Failed, outcome: Some(outcome.clone()), sequence: 2, at_ms: NOW_MS },
            Letter::DeadLetter { outcome, earlier: Vec::new() },
        ];
        let arrival = Rc::new(arrival);
        for letter in letters {
            let Some(parcel) = wire.render(&Post { confirm: None, arrival: arrival.clone(), letter }) else { continue };
            let text = String::from_utf8_lossy(&parcel.body);
            let value: Value = serde_json::from_slice(&parcel.body).unwrap_or_else(|error| panic!("{error}: {text}"));
            no_null(&value, &text);
        }
    }
    assert!(works > 1_000 && refusals > 1_000 && garbages > 1_000, "{works} works, {refusals} refusals, {garbages} garbage");
}
