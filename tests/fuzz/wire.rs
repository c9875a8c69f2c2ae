//! Messages through the real wire and the real block table: any bytes, headers and subjects, in both profiles.
//!
//! What must hold: nothing panics; the same message is the same step every time it is read, also back from the journal; what
//! is work has a valid tenant, an assignment and figures inside their bounds, and is JSON to others too; and every letter
//! that is rendered for it passes the contract's own rules.

mod contract;
mod letters;
mod message;

use bytes::Bytes;
use endstation::blocks;
use endstation::edge::wire::{EdgeWire, WireSettings};
use endstation::worker::lookup;
use serde::de::IgnoredAny;
use shards::ids::{Now, Salt, Text};
use shards::journal::codec::{AnswerRef, Head, MessageRef};
use shards::journal::{Fact, Log, decode};
use shards::limits::{BUDGET_MS_MAX, GATE_MS_MAX, ID_BYTES_MAX, TRIES_MAX};
use shards::map::partition;
use shards::outcome::Fault;
use shards::runtime::ports::Wire;
use shards::step::{Arrival, Asker, Content, Delivery, Notice, Profile, Work};

use crate::mutation::Grammar;
use crate::run::{Depth, Seen, Target};

/// When everything is received, Unix ms.
const NOW: Now = Now { mono_us: 1, wall_ms: 1_767_225_600_000 };
/// Small, so that messages over it are met.
const PAYLOAD_BYTES_MAX: u64 = 3 << 9;

/// The wire with samples of one profile.
pub struct Messages {
    wire: EdgeWire,
    samples: fn() -> Vec<Vec<u8>>,
}

impl Messages {
    pub fn beamline() -> Self {
        Messages { wire: wire(), samples: message::assignments }
    }

    pub fn native() -> Self {
        Messages { wire: wire(), samples: message::steps }
    }
}

fn wire() -> EdgeWire {
    let mut settings = WireSettings::shipped(Text::from_static("w-1"), Salt([7; 32]), lookup);
    settings.limits.payload_bytes_max = PAYLOAD_BYTES_MAX;
    settings.dev = true;
    EdgeWire::new(settings)
}

impl Target for Messages {
    fn grammar(&self) -> Grammar {
        message::GRAMMAR
    }

    fn samples(&self) -> Vec<Vec<u8>> {
        (self.samples)()
    }

    fn check(&mut self, input: &[u8], depth: Depth) -> Seen {
        let delivery = message::read(input);
        let arrival = self.wire.decode(delivery, NOW);
        let seen = sound(&arrival);
        let turn = match depth {
            Depth::Quick => return seen,
            Depth::Thorough(turn) => turn,
            Depth::Whole => 0,
        };
        let whole = depth == Depth::Whole;
        if whole || turn.is_multiple_of(3) {
            let again = self.wire.decode(arrival.delivery.clone(), NOW);
            assert_eq!(identity(&again), identity(&arrival), "read twice");
        }
        if whole || turn % 3 == 1 {
            let back = self.wire.decode(read_back(&arrival), Now { mono_us: 9, wall_ms: NOW.wall_ms + 3_600_000 });
            assert_eq!(identity(&back), identity(&arrival), "read back from the journal");
        }
        others_agree(&arrival);
        if whole || turn % 3 == 2 {
            letters::check(&self.wire, arrival, if whole { None } else { Some(turn as usize / 3) });
        }
        seen
    }
}

/// What must hold of every arrival; what it came to.
fn sound(arrival: &Arrival) -> Seen {
    assert_eq!(arrival.partition, partition(&arrival.tenant), "partition of its tenant");
    match (&arrival.content, &arrival.asker) {
        (Content::Work(work), Some(asker)) => {
            answerable(arrival, asker);
            bounded(work);
            let body = &arrival.delivery.body;
            assert!(serde_json::from_slice::<IgnoredAny>(body).is_ok(), "work that is not JSON to serde_json");
            let bits = [&asker.run_id, &asker.flow_id, &asker.step_id, &asker.trace_id, &work.note];
            let bits = bits.iter().fold(0, |bits, id| bits << 1 | u64::from(id.is_some()));
            let bits = bits << 2 | u64::from(asker.attempt.is_some()) << 1 | u64::from(work.effect_ceiling.is_some());
            let note = work.note.as_ref().map_or(0, |note| fold(0, note.as_bytes()));
            Seen { what: "work", detail: fold(note, &[work.block.0 as u8, work.effect as u8]) ^ bits << 48 }
        }
        (Content::Refusal(fault), Some(asker)) => {
            answerable(arrival, asker);
            faulty(fault, 1)
        }
        (Content::Garbage(fault), None) => {
            assert!(arrival.tenant.is_empty() || contract::is_tenant(&arrival.tenant), "garbage of an impossible tenant");
            faulty(fault, 2)
        }
        (Content::Notice(notice), None) => match notice {
            Notice::Cancel { .. } => Seen { what: "cancel", detail: 0 },
            Notice::Signal { vote, .. } => {
                assert!((1..=ID_BYTES_MAX).contains(&vote.actor.len()) && vote.comment.len() <= 1_024, "{vote:?}");
                Seen { what: "signal", detail: u64::from(vote.approve) }
            }
            Notice::Refused(fault) => faulty(fault, 3),
        },
        (content, asker) => panic!("{content:?} asked for by {asker:?}"),
    }
}

/// What an answer needs.
fn answerable(arrival: &Arrival, asker: &Asker) {
    assert!(contract::is_tenant(&arrival.tenant), "tenant {:?}", arrival.tenant);
    let id = &asker.assignment_id;
    assert!((1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()), "assignment {id:?}");
    for id in [&asker.run_id, &asker.flow_id, &asker.step_id, &asker.trace_id].into_iter().flatten() {
        assert!(id.len() <= ID_BYTES_MAX, "an id of {} bytes", id.len());
    }
    for echo in [&asker.request_id, &asker.provider_id, &asker.job_type] {
        assert!(echo.len() <= ID_BYTES_MAX, "an echo of {} bytes", echo.len());
    }
}

/// Figures inside their bounds, and inputs that a block can read.
fn bounded(work: &Work) {
    let Work { block, inputs, priority, budget_ms, retry, effect, effect_ceiling, .. } = work;
    assert!(usize::from(block.0) < blocks::names().len(), "{block:?}");
    let budget_ms_max = if work.gate.is_some() { GATE_MS_MAX } else { BUDGET_MS_MAX };
    assert!(*priority <= 100 && (1..=budget_ms_max).contains(budget_ms), "priority {priority}, budget {budget_ms}");
    assert!((1..=TRIES_MAX).contains(&retry.tries_max), "{retry:?}");
    assert!(retry.backoff_ms <= retry.backoff_ms_max && retry.backoff_ms_max <= BUDGET_MS_MAX, "{retry:?}");
    assert!(effect_ceiling.is_none_or(|ceiling| *effect <= ceiling), "{effect:?} above {effect_ceiling:?}");
    assert!(inputs.len() as u64 <= PAYLOAD_BYTES_MAX * 2, "{} bytes of inputs", inputs.len());
}

/// What a fault tells of how far reading got: its code and the first part of the field it points at.
fn faulty(fault: &Fault, kind: u64) -> Seen {
    let details = &fault.details[..];
    let pointer = details.iter().position(|byte| *byte == b'/').map_or(&[][..], |at| &details[at + 1..]);
    let first = pointer.iter().position(|byte| matches!(byte, b'/' | b'"')).map_or(pointer, |end| &pointer[..end]);
    let parts = details.iter().filter(|byte| **byte == b'/').count().min(4) as u64;
    let detail = fold(fold(kind << 8 | parts, fault.message.as_bytes()), &first[..first.len().min(16)]);
    Seen { what: fault.code.as_str(), detail }
}

/// What costs a parse by somebody else's parser.
fn others_agree(arrival: &Arrival) {
    match &arrival.content {
        Content::Work(work) => {
            let inputs = serde_json::from_slice::<serde_json::Value>(&work.inputs);
            assert!(inputs.is_ok(), "inputs that no block can read: {inputs:?}");
        }
        Content::Garbage(fault) if fault.message == "the message is not JSON" => {
            assert!(serde_json::from_slice::<IgnoredAny>(&arrival.delivery.body).is_err(), "JSON to serde_json, not to us");
        }
        Content::Notice(Notice::Cancel { details, .. }) => {
            assert!(details.is_empty() || serde_json::from_slice::<IgnoredAny>(details).is_ok(), "a reason that is no JSON");
        }
        Content::Notice(Notice::Signal { .. }) => {}
        Content::Garbage(fault) | Content::Refusal(fault) | Content::Notice(Notice::Refused(fault)) => {
            let details = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&fault.details);
            assert!(fault.details.is_empty() || details.is_ok(), "details that are no object: {fault:?}");
        }
    }
}

/// The message as the journal gives it back after a crash.
fn read_back(arrival: &Arrival) -> Delivery {
    let mut log = Log::default();
    let head = Head { key: arrival.key, partition: arrival.partition, owner_epoch: 0 };
    let outcome = letters::outcome(shards::outcome::Status::Quarantined, None);
    let audit = letters::audit();
    let asker = arrival.asker.as_ref().map_or(shards::ids::AskerId([0; 16]), |asker| asker.id);
    let message = MessageRef::of(arrival);
    let (tenant, fingerprint) = (&*arrival.tenant, &arrival.fingerprint);
    log.quarantined(head, &AnswerRef { tenant, fingerprint, asker: &asker, of: None, outcome: &outcome, audit: &audit, message });
    match decode(&Bytes::from(log.bytes)).expect("a frame just written").fact {
        Fact::Quarantined(answer) => answer.message.into_delivery(),
        other => panic!("{other:?}"),
    }
}

/// Everything of an arrival that must be the same every time.
fn identity(arrival: &Arrival) -> impl PartialEq + std::fmt::Debug + use<> {
    let asker = arrival.asker.as_ref().map(|asker| {
        let native = asker.profile == Profile::Native;
        let ids = [&asker.trace_id, &asker.run_id, &asker.flow_id, &asker.step_id].map(Clone::clone);
        (asker.id, native, asker.assignment_id.clone(), asker.request_id.clone(), ids, asker.attempt)
    });
    let content = match &arrival.content {
        Content::Work(work) => format!("{work:?}"),
        Content::Refusal(fault) | Content::Garbage(fault) => format!("{fault:?}"),
        Content::Notice(notice) => format!("{notice:?}"),
    };
    (
        arrival.tenant.clone(),
        arrival.partition,
        arrival.key,
        arrival.fingerprint,
        asker,
        content,
        arrival.delivery.headers.clone(),
    )
}

/// FNV-1a, for telling outcomes apart.
fn fold(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
