//! Every kind survives the way to bytes and back, and no damaged byte goes unnoticed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;

use super::batch::{self, BATCH_HEAD_BYTES};
use super::codec::{FRAME_HEAD_BYTES, SKIPPABLE};
use super::scan::{Scan, Tail};
use super::segment::{Damage, Expected, FORMAT, HeadError, SEGMENT_HEAD_BYTES, SegmentHead};
use super::view::Frames;
use super::*;
use crate::audit::AuditKind;
use crate::gate::Vote;
use crate::ids::Salt;
use crate::outcome::{Code, Effected, Fault, Status};

fn outcome(fault: Option<Fault>) -> Outcome {
    Outcome {
        status: if fault.is_some() { Status::Error } else { Status::Ok },
        effect: Effected::Applied,
        outputs: Bytes::from_static(br#"{"echo":1}"#),
        fault,
        tries: 2,
        received_ms: 1,
        started_ms: 2,
        ended_ms: 1_700_000_000_003,
        ran_us: 4,
        spilled: false,
        queue_depth: 5,
        boot: 6,
        owner_epoch: 9,
    }
}

fn audit(seq: u64) -> AuditItem {
    AuditItem {
        kind: AuditKind::Outcome,
        wall_ms: 7,
        tenant_seq: seq,
        outcome_digest: [8; 32],
        actor: Text::from_static("worker"),
        config_epoch: 9,
    }
}

fn message(body: &'static str) -> Message {
    Message {
        source: SOURCE_STREAM,
        sequence: 10,
        since_ms: 11,
        subject: Text::from_static("work.acme"),
        headers: vec![
            (Text::from_static("Traceparent"), Text::from_static("00-ab")),
            (Text::from_static("empty"), Text::from_static("")),
            (Text::from_static("long"), Text::from("x".repeat(300))),
        ],
        body: Bytes::from_static(body.as_bytes()),
    }
}

fn answer() -> Answer {
    Answer {
        tenant: Text::from_static("acme"),
        fingerprint: Fingerprint([1; 32]),
        asker: AskerId([2; 16]),
        of: Some(Key([3; 16])),
        outcome: outcome(Some(
            Fault::new(Code::KeyConflict, "no").with_details(Bytes::from_static(b"{}")).with_effect(Effected::Unknown),
        )),
        audit: audit(3),
        message: message("x"),
    }
}

fn vote(comment: &'static str, approve: bool) -> Vote {
    Vote {
        actor: Text::from_static("ann"),
        approve,
        comment: Text::from_static(comment),
        id: Text::from_static(if approve { "s-1" } else { "" }),
        signed: approve,
        plan: Text::from_static(if approve { "" } else { "p" }),
        at_ms: 8,
    }
}

/// One frame of every kind that has a fact, in several shapes.
fn frames() -> Vec<Frame> {
    let retry = Fault { retry_after_ms: Some(1500), ..Fault::new(Code::Http5xx, "later") };
    let accepted = Accepted {
        tenant: Text::from_static("acme"),
        fingerprint: Fingerprint([4; 32]),
        asker: AskerId([5; 16]),
        effect: EffectClass::Unsafe,
        effect_ceiling: None,
        block: Text::from_static("echo@1.0.0"),
        config_epoch: 1,
        replay_of: None,
        deadline_ms: 20,
        not_after_ms: 21,
        received_ms: 22,
        message: message(r#"{"inputs":{}}"#),
    };
    let result = |fault| ResultFact {
        tenant: Text::from_static("acme"),
        fingerprint: Fingerprint([4; 32]),
        asker: AskerId([5; 16]),
        block: Text::from_static("echo@1.0.0"),
        outcome: outcome(fault),
        audit: audit(1 << 40),
    };
    let facts = vec![
        Fact::Accepted(accepted.clone()),
        Fact::Accepted(Accepted {
            effect_ceiling: Some(EffectClass::Pure),
            replay_of: Some(Key([9; 16])),
            message: Message { headers: Vec::new(), body: Bytes::from(vec![b'b'; 70_000]), ..accepted.message.clone() },
            ..accepted
        }),
        Fact::Started { try_number: 1, boot: 2, at_ms: 3 },
        Fact::RetryAt { try_number: 2, at_ms: u64::MAX },
        Fact::Result(result(None)),
        Fact::Result(result(Some(retry))),
        Fact::Answer(answer()),
        Fact::Answer(Answer { of: None, ..answer() }),
        Fact::Quarantined(answer()),
        Fact::Published { asker: AskerId([5; 16]), at_ms: 4 },
        Fact::Mark { wall_ms: 1, floor: Lsn(2), watermark_ms: 3 },
        Fact::Signal(vote("a comment", true)),
        Fact::Signal(vote("", false)),
        Fact::Released { at_ms: 7 },
        Fact::Struck { strikes: 2, boot: 5, at_ms: 6 },
    ];
    facts
        .into_iter()
        .map(|fact| match fact {
            Fact::Mark { .. } => Frame { key: Key([0; 16]), partition: Partition(0), owner_epoch: 0, fact },
            fact => Frame { key: Key([7; 16]), partition: Partition(255), owner_epoch: 1, fact },
        })
        .collect()
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut log = Log::default();
    log.append(frame);
    assert_eq!(log.frames, 1);
    log.bytes
}

/// Sets the length a frame says to the length it has.
fn relength(raw: &mut [u8]) {
    let length = (raw.len() as u32).to_le_bytes();
    raw[..4].copy_from_slice(&length);
}

fn head() -> SegmentHead {
    SegmentHead {
        worker_id: "w-1".to_owned(),
        generation: 1,
        shard: 1,
        shards: 2,
        features: 0,
        id: 0x1234_5678_9abc_def0,
        sequence: 3,
        first_lsn: Lsn(100),
        salt: Salt([6; 32]),
        created_ms: 5,
        boot: 4,
    }
}

/// A segment of small batches, the last of them a mark, then zeros. With it the end offset and next lsn of each batch.
fn segment() -> (Vec<u8>, Vec<(usize, Lsn)>) {
    let mut bytes = head().encode();
    let mut ends = vec![(SEGMENT_HEAD_BYTES, Lsn(100))];
    let mut next = Lsn(100);
    for number in 1..=4u64 {
        let mut log = Log::default();
        match number {
            4 => log.mark(1, Lsn(1), 0),
            _ => (0..number).for_each(|_| {
                let fact = Fact::Published { asker: AskerId([5; 16]), at_ms: number };
                log.append(&Frame { key: Key([7; 16]), partition: Partition(1), owner_epoch: 0, fact });
            }),
        }
        let mut buffer = vec![0; BATCH_HEAD_BYTES];
        buffer.extend_from_slice(&log.bytes);
        batch::seal(head().id, &mut buffer, log.frames, number, next, Lsn(next.0 - 1));
        bytes.extend_from_slice(&buffer);
        next = Lsn(next.0 + u64::from(log.frames));
        ends.push((bytes.len(), next));
    }
    bytes.resize(bytes.len() + 128, 0);
    (bytes, ends)
}

fn scan(bytes: &[u8], durable_elsewhere: u64) -> Result<Tail, scan::Fault> {
    Scan::new(&head(), bytes, Lsn(durable_elsewhere)).finish()
}

#[test]
fn every_kind_survives_the_way_to_bytes_and_back() {
    for frame in frames() {
        let raw = Bytes::from(encode(&frame));
        assert_eq!(decode(&raw).unwrap(), frame);
    }
}

#[test]
fn a_log_of_many_frames_splits_into_the_same_frames() {
    let mut log = Log::default();
    for frame in frames() {
        log.append(&frame);
    }
    let bytes = Bytes::from(log.bytes);
    let read: Vec<Frame> = Frames::new(&bytes).map(|raw| decode(&bytes.slice_ref(raw.unwrap())).unwrap()).collect();
    assert_eq!(read, frames());
}

#[test]
fn peeking_sees_what_decoding_sees() {
    for frame in frames() {
        let raw = encode(&frame);
        let view = FrameView::parse(&raw).unwrap();
        assert_eq!((view.key(), view.partition(), view.owner_epoch()), (frame.key, frame.partition, frame.owner_epoch));
        match (view.peek().unwrap(), &frame.fact) {
            (Peek::Accepted(peek), Fact::Accepted(fact)) => {
                assert_eq!(peek.tenant, &*fact.tenant);
                assert_eq!((peek.fingerprint, peek.asker, peek.effect), (fact.fingerprint, fact.asker, fact.effect));
                let times = (peek.deadline_ms, peek.not_after_ms, peek.received_ms, peek.since_ms);
                assert_eq!(times, (fact.deadline_ms, fact.not_after_ms, fact.received_ms, fact.message.since_ms));
                assert_eq!((peek.source, peek.sequence), (fact.message.source, fact.message.sequence));
            }
            (Peek::Result(peek), Fact::Result(fact)) => {
                assert_eq!((peek.tenant, peek.fingerprint, peek.asker), (&*fact.tenant, fact.fingerprint, fact.asker));
                assert_eq!((peek.status, peek.ended_ms), (fact.outcome.status, fact.outcome.ended_ms));
                assert_eq!(peek.tenant_seq, fact.audit.tenant_seq);
            }
            (Peek::Answer(peek), Fact::Answer(fact)) | (Peek::Quarantined(peek), Fact::Quarantined(fact)) => {
                assert_eq!((peek.of, peek.status, peek.tenant_seq), (fact.of, fact.outcome.status, fact.audit.tenant_seq));
                assert_eq!((peek.source, peek.since_ms), (fact.message.source, fact.message.since_ms));
            }
            (Peek::Started { try_number, boot, at_ms }, fact) => assert_eq!(*fact, Fact::Started { try_number, boot, at_ms }),
            (Peek::RetryAt { try_number, at_ms }, fact) => assert_eq!(*fact, Fact::RetryAt { try_number, at_ms }),
            (Peek::Published { asker, at_ms }, fact) => assert_eq!(*fact, Fact::Published { asker, at_ms }),
            (Peek::Mark { wall_ms, floor, watermark_ms }, fact) => {
                assert_eq!(*fact, Fact::Mark { wall_ms, floor, watermark_ms });
            }
            (Peek::Signal { vote }, fact) => assert_eq!(*fact, Fact::Signal(vote)),
            (Peek::Released { at_ms }, fact) => assert_eq!(*fact, Fact::Released { at_ms }),
            (Peek::Struck { strikes, boot, at_ms }, fact) => assert_eq!(*fact, Fact::Struck { strikes, boot, at_ms }),
            (peek, fact) => panic!("{peek:?} is not a view of {fact:?}"),
        }
    }
}

#[test]
fn cutting_a_frame_anywhere_is_an_error_and_never_a_panic() {
    for frame in frames().into_iter().filter(|frame| encode(frame).len() < 4096) {
        let raw = encode(&frame);
        for length in 0..raw.len() {
            let mut cut = raw[..length].to_vec();
            assert!(decode(&Bytes::from(cut.clone())).is_err());
            if length >= FRAME_HEAD_BYTES {
                relength(&mut cut);
                let _ = decode(&Bytes::from(cut));
            }
        }
    }
}

#[test]
fn only_a_strike_may_be_passed_over_by_versions_from_before_it() {
    for frame in frames() {
        let skippable = encode(&frame)[5] & SKIPPABLE != 0;
        assert_eq!(skippable, matches!(frame.fact, Fact::Struck { .. }), "{:?}", frame.fact);
    }
}

#[test]
fn an_unknown_kind_is_an_error_unless_it_may_be_skipped() {
    let mut raw = encode(&Frame {
        key: Key([7; 16]),
        partition: Partition(3),
        owner_epoch: 0,
        fact: Fact::Started { try_number: 1, boot: 1, at_ms: 1 },
    });
    for kind in [Kind::Parked as u8, 200] {
        raw[4] = kind;
        raw[5] = 0;
        assert_eq!(decode(&Bytes::from(raw.clone())), Err(CodecError::UnknownKind { kind }));
        raw[5] = SKIPPABLE;
        assert_eq!(decode(&Bytes::from(raw.clone())).unwrap().fact, Fact::Unknown(kind));
        assert_eq!(FrameView::parse(&raw).unwrap().peek(), Ok(Peek::Unknown(kind)));
    }
}

#[test]
fn unknown_tags_are_passed_over_and_missing_fields_named() {
    let frame = Frame {
        key: Key([7; 16]),
        partition: Partition(3),
        owner_epoch: 0,
        fact: Fact::Published { asker: AskerId([5; 16]), at_ms: 4 },
    };
    for tag in [60, 250] {
        let mut raw = encode(&frame);
        raw.extend_from_slice(&[tag, 3, 1, 2, 3]);
        relength(&mut raw);
        assert_eq!(decode(&Bytes::from(raw)).unwrap(), frame);
    }
    let mut raw = encode(&frame);
    raw.truncate(raw.len() - 10);
    relength(&mut raw);
    assert_eq!(decode(&Bytes::from(raw)), Err(CodecError::Missing { kind: Kind::Published as u8, tag: tag::AT_MS }));
}

#[test]
fn a_sound_segment_ends_cleanly_and_yields_every_batch() {
    let (bytes, ends) = segment();
    let offsets: Vec<u64> = Scan::new(&head(), &bytes, Lsn(0)).map(|batch| batch.offset).collect();
    assert_eq!(offsets, ends[..4].iter().map(|(offset, _)| *offset as u64).collect::<Vec<_>>());
    let (end, next_lsn) = ends[4];
    assert_eq!(scan(&bytes, 0), Ok(Tail { offset: end as u64, next_lsn, batches: 4, torn: false }));
}

#[test]
fn every_flipped_bit_is_reported_or_lies_in_the_torn_tail() {
    let (bytes, ends) = segment();
    let (last_start, last_lsn) = ends[3];
    let (end, _) = ends[4];
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            if at < SEGMENT_HEAD_BYTES {
                assert!(SegmentHead::decode(&bytes).is_err(), "header byte {at}");
            } else if at < last_start {
                let (offset, lsn) = ends[ends.iter().rposition(|(offset, _)| *offset <= at).unwrap()];
                let fault = scan::Fault { offset: offset as u64, lsn, damage: Damage::Checksum };
                assert_eq!(scan(&bytes, 0), Err(fault), "byte {at}");
            } else {
                let (offset, lsn) = if at < end { (last_start, last_lsn) } else { ends[4] };
                let tail = scan(&bytes, 0).unwrap();
                assert_eq!((tail.offset, tail.next_lsn, tail.torn), (offset as u64, lsn, true), "byte {at}");
                if at < end {
                    assert!(scan(&bytes, last_lsn.0).is_err(), "a later segment proves that it was durable");
                }
            }
        }
    }
}

#[test]
fn every_truncation_gives_the_prefix_that_was_durable() {
    let (bytes, ends) = segment();
    for length in SEGMENT_HEAD_BYTES..bytes.len() {
        let (offset, next_lsn) = ends[ends.iter().rposition(|(offset, _)| *offset <= length).unwrap()];
        let tail = scan(&bytes[..length], 0).unwrap();
        assert_eq!((tail.offset, tail.next_lsn), (offset as u64, next_lsn));
    }
}

#[test]
fn a_missing_batch_is_a_gap_and_never_a_tail() {
    let (mut bytes, ends) = segment();
    bytes.drain(ends[1].0..ends[2].0);
    let fault = scan(&bytes, 0).unwrap_err();
    assert_eq!(fault.damage, Damage::Gap { expected: 2, found: 3 });
    assert_eq!((fault.offset, fault.lsn), (ends[1].0 as u64, ends[1].1));
}

#[test]
fn bytes_of_another_segment_are_no_batches_of_this_one() {
    let (bytes, _) = segment();
    let other = SegmentHead { id: 99, ..head() };
    let tail = Scan::new(&other, &bytes, Lsn(0)).finish().unwrap();
    assert_eq!((tail.batches, tail.torn), (0, true));
}

#[test]
fn a_header_says_why_it_cannot_be_used() {
    let head = head();
    assert_eq!(SegmentHead::decode(&head.encode()), Ok(head.clone()));
    let salt = head.salt.clone();
    let good = Expected { worker_id: "w-1", generation: 1, shard: 1, shards: 2, salt: &salt };
    assert_eq!(head.check(&good), Ok(()));
    assert_eq!(head.check(&Expected { shards: 4, ..good }), Err(HeadError::Shards { written: 2, now: 4 }));
    assert_eq!(head.check(&Expected { salt: &Salt([1; 32]), ..good }), Err(HeadError::Salt));
    assert!(matches!(head.check(&Expected { worker_id: "w-2", ..good }), Err(HeadError::Worker { .. })));
    assert!(matches!(head.check(&Expected { shard: 0, ..good }), Err(HeadError::Misplaced { .. })));
    assert_eq!(SegmentHead::decode(&[0; SEGMENT_HEAD_BYTES]), Err(HeadError::NotOurs));

    let reseal = |mut bytes: Vec<u8>| {
        let at = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let mut newer = head.encode();
    newer[8..10].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    assert_eq!(SegmentHead::decode(&reseal(newer.clone())), Ok(head.clone()), "a newer format may still be readable");
    newer[10..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
    assert_eq!(SegmentHead::decode(&reseal(newer)), Err(HeadError::Newer { format: FORMAT + 1 }));
    let mut features = head.encode();
    features[24] = 2;
    assert_eq!(SegmentHead::decode(&reseal(features)), Err(HeadError::Features { features: 2 }));
    let unnumbered = SegmentHead { first_lsn: Lsn(0), ..head };
    assert_eq!(SegmentHead::decode(&unnumbered.encode()), Err(HeadError::Damaged), "frames count from 1");
}

#[test]
fn numbers_at_their_end_are_read_without_a_panic() {
    let last = SegmentHead { first_lsn: Lsn(u64::MAX), ..head() };
    let mut batch = vec![0; BATCH_HEAD_BYTES];
    let old = Message { since_ms: u64::MAX, ..message("{}") };
    let mut log = Log::default();
    log.append(&Frame {
        key: Key([7; 16]),
        partition: Partition(1),
        owner_epoch: 0,
        fact: Fact::Quarantined(Answer { message: old, ..answer() }),
    });
    batch.extend_from_slice(&log.bytes);
    batch::seal(last.id, &mut batch, 1, 1, last.first_lsn, Lsn(0));
    let mut bytes = last.encode();
    bytes.extend_from_slice(&batch);
    let tail = Scan::new(&last, &bytes, Lsn(0)).finish();
    assert_eq!(tail.map(|tail| tail.next_lsn), Ok(Lsn(u64::MAX)));
    let mut fold = crate::fold::Fold::default();
    fold.frame(Lsn(u64::MAX).next(), &FrameView::parse(&log.bytes).unwrap()).unwrap();
    assert_eq!(fold.finish().newest, [(Lsn(u64::MAX), u64::MAX)]);
}
