//! Frames as inputs, and what must hold of each on its own: reading a little of it and reading it whole agree, and what was
//! read whole is written the same.

use bytes::Bytes;
use shards::audit::{AuditItem, AuditKind};
use shards::gate::Vote;
use shards::ids::{AskerId, Fingerprint, Key, Lsn, Partition, Text};
use shards::journal::view::Frames;
use shards::journal::{Accepted, Answer, Fact, Frame, FrameView, Log, Message, Peek, ResultFact, decode};
use shards::outcome::{Code, Effected, Fault, Outcome, Status};
use shards::step::EffectClass;

const NOW_MS: u64 = 1_767_225_600_000;

/// Checks frames back to back, as far as they can be told apart.
pub fn check(bytes: &[u8]) {
    let mut count = 0;
    for frame in Frames::new(bytes).map_while(Result::ok) {
        count += 1;
        let Ok(view) = FrameView::parse(frame) else { continue };
        let whole = decode(&super::shared(frame));
        let peek = view.peek();
        let Ok(whole) = whole else { continue };
        let peek = peek.unwrap_or_else(|error| panic!("read whole, but {error}: {whole:?}"));
        agree(&whole, &view, &peek);
        let mut log = Log::default();
        log.append(&whole);
        let written = Bytes::from(log.bytes);
        let again = decode(&written);
        // A mark has no key of its own: it is written with zeros, whatever was read.
        let again = if matches!(whole.fact, Fact::Mark { .. }) {
            again.map(|again| Frame { fact: again.fact, ..whole.clone() })
        } else {
            again
        };
        assert_eq!(again.as_ref(), Ok(&whole), "written again it reads differently");
    }
    assert!(count * 28 <= bytes.len(), "{count} frames in {} bytes", bytes.len());
}

fn agree(whole: &Frame, view: &FrameView<'_>, peek: &Peek<'_>) {
    assert_eq!((whole.key, whole.partition, whole.owner_epoch), (view.key(), view.partition(), view.owner_epoch()));
    let same = match (&whole.fact, peek) {
        (Fact::Accepted(fact), Peek::Accepted(seen)) => {
            let message = &fact.message;
            (&*fact.tenant, fact.fingerprint, fact.asker, fact.effect) == (seen.tenant, seen.fingerprint, seen.asker, seen.effect)
                && (fact.deadline_ms, fact.not_after_ms, fact.received_ms)
                    == (seen.deadline_ms, seen.not_after_ms, seen.received_ms)
                && (message.source, message.sequence, message.since_ms) == (seen.source, seen.sequence, seen.since_ms)
        }
        (Fact::Answer(fact), Peek::Answer(seen)) | (Fact::Quarantined(fact), Peek::Quarantined(seen)) => {
            let Answer { tenant, fingerprint, asker, of, outcome, audit, message } = fact;
            (&**tenant, *fingerprint, *asker, *of) == (seen.tenant, seen.fingerprint, seen.asker, seen.of)
                && (outcome.status, outcome.ended_ms, audit.tenant_seq) == (seen.status, seen.ended_ms, seen.tenant_seq)
                && (message.source, message.sequence, message.since_ms) == (seen.source, seen.sequence, seen.since_ms)
        }
        (Fact::Result(fact), Peek::Result(seen)) => {
            let outcome = &fact.outcome;
            (&*fact.tenant, fact.fingerprint, fact.asker) == (seen.tenant, seen.fingerprint, seen.asker)
                && (outcome.status, outcome.ended_ms, fact.audit.tenant_seq) == (seen.status, seen.ended_ms, seen.tenant_seq)
        }
        (Fact::Started { try_number, boot, at_ms }, peek) => {
            *peek == Peek::Started { try_number: *try_number, boot: *boot, at_ms: *at_ms }
        }
        (Fact::RetryAt { try_number, at_ms }, peek) => *peek == Peek::RetryAt { try_number: *try_number, at_ms: *at_ms },
        (Fact::Published { asker, at_ms }, peek) => *peek == Peek::Published { asker: *asker, at_ms: *at_ms },
        (Fact::Mark { wall_ms, floor, watermark_ms }, peek) => {
            *peek == Peek::Mark { wall_ms: *wall_ms, floor: *floor, watermark_ms: *watermark_ms }
        }
        (Fact::Signal(vote), peek) => *peek == Peek::Signal { vote: vote.clone() },
        (Fact::Released { at_ms }, peek) => *peek == Peek::Released { at_ms: *at_ms },
        (Fact::Struck { strikes, boot, at_ms }, peek) => *peek == Peek::Struck { strikes: *strikes, boot: *boot, at_ms: *at_ms },
        (Fact::Unknown(kind), peek) => *peek == Peek::Unknown(*kind),
        _ => false,
    };
    assert!(same, "{whole:?}\n{peek:?}");
}

/// `bytes` with the length of the one frame that they are to be.
pub fn lengthened(bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    let length = (frame.len() as u32).to_le_bytes();
    if let Some(place) = frame.first_chunk_mut() {
        *place = length;
    }
    frame
}

fn vote() -> Vote {
    Vote {
        actor: Text::from_static("ann"),
        approve: true,
        comment: Text::from_static("seen"),
        id: Text::from_static("s-1"),
        signed: true,
        plan: Text::new(),
        at_ms: NOW_MS + 750,
    }
}

/// The life of three keys, in frames.
pub fn story() -> Vec<Frame> {
    let frame = |key: u8, fact| Frame { key: Key([key; 16]), partition: Partition(u16::from(key)), owner_epoch: 0, fact };
    vec![
        frame(1, Fact::Accepted(accepted(1))),
        frame(1, Fact::Started { try_number: 1, boot: 1, at_ms: NOW_MS + 1 }),
        frame(1, Fact::RetryAt { try_number: 2, at_ms: NOW_MS + 500 }),
        frame(2, Fact::Accepted(accepted(3))),
        frame(1, Fact::Started { try_number: 2, boot: 1, at_ms: NOW_MS + 600 }),
        frame(1, Fact::Result(result(Status::Ok))),
        frame(3, Fact::Answer(answer(None))),
        frame(1, Fact::Published { asker: AskerId([9; 16]), at_ms: NOW_MS + 700 }),
        frame(4, Fact::Quarantined(answer(Some(Key([1; 16]))))),
        frame(2, Fact::Signal(vote())),
        frame(2, Fact::Started { try_number: 1, boot: 2, at_ms: NOW_MS + 800 }),
        frame(0, Fact::Mark { wall_ms: NOW_MS + 900, floor: Lsn(1), watermark_ms: 0 }),
        frame(2, Fact::Result(result(Status::Error))),
        frame(5, Fact::Unknown(200)),
        frame(2, Fact::Released { at_ms: NOW_MS + 940 }),
        frame(6, Fact::Struck { strikes: 1, boot: 2, at_ms: NOW_MS + 950 }),
        frame(6, Fact::Accepted(accepted(3))),
    ]
}

/// The story as one input.
pub fn sample() -> Vec<u8> {
    let mut log = Log { bytes: vec![b'f'], ..Log::default() };
    story().iter().for_each(|frame| log.append(frame));
    log.bytes
}

/// Each frame as an input of its own.
pub fn singles() -> impl Iterator<Item = Vec<u8>> {
    story().into_iter().map(|frame| {
        let mut log = Log { bytes: vec![b'F'], ..Log::default() };
        log.append(&frame);
        log.bytes
    })
}

fn message(source: u8) -> Message {
    Message {
        source,
        sequence: 5,
        since_ms: NOW_MS,
        subject: Text::from_static("caf.exec.assign.v1"),
        headers: vec![(Text::from_static("tenant_id"), Text::from_static("acme"))],
        body: Bytes::from_static(b"{\"a\":1}"),
    }
}

fn accepted(source: u8) -> Accepted {
    Accepted {
        tenant: Text::from_static("acme"),
        fingerprint: Fingerprint([8; 32]),
        asker: AskerId([9; 16]),
        effect: EffectClass::Conditional,
        effect_ceiling: Some(EffectClass::Unsafe),
        block: Text::from_static("echo@1.0.0"),
        config_epoch: 1,
        replay_of: None,
        deadline_ms: NOW_MS + 60_000,
        not_after_ms: NOW_MS + 7_200_000,
        received_ms: NOW_MS,
        message: message(source),
    }
}

fn outcome(status: Status) -> Outcome {
    let fault = Fault { retry_after_ms: Some(7), ..Fault::new(Code::Http5xx, "the server failed") };
    Outcome {
        status,
        effect: Effected::Unknown,
        outputs: Bytes::from_static(b"{}"),
        spilled: status == Status::Ok,
        fault: (status != Status::Ok).then(|| fault.with_details("{\"status\":503}")),
        tries: 2,
        received_ms: NOW_MS,
        started_ms: NOW_MS + 1,
        ended_ms: NOW_MS + 2,
        ran_us: 900,
        queue_depth: 3,
        boot: 1,
        owner_epoch: 7,
    }
}

fn audit(kind: AuditKind) -> AuditItem {
    AuditItem {
        kind,
        wall_ms: NOW_MS,
        tenant_seq: 3,
        outcome_digest: [6; 32],
        actor: Text::from_static("worker"),
        config_epoch: 1,
    }
}

fn result(status: Status) -> ResultFact {
    ResultFact {
        tenant: Text::from_static("acme"),
        fingerprint: Fingerprint([8; 32]),
        asker: AskerId([9; 16]),
        block: Text::from_static("echo@1.0.0"),
        outcome: outcome(status),
        audit: audit(AuditKind::Outcome),
    }
}

fn answer(of: Option<Key>) -> Answer {
    Answer {
        tenant: Text::from_static("acme"),
        fingerprint: Fingerprint([8; 32]),
        asker: AskerId([9; 16]),
        of,
        outcome: outcome(Status::Error),
        audit: audit(AuditKind::Answer),
        message: message(2),
    }
}
