//! Journals of a few frames, written as the worker writes them, and what is read from them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};
use shards::audit::{AuditItem, AuditKind, outcome_digest};
use shards::ids::{Fingerprint, Lsn, Partition, Text};
use shards::journal::batch::{BATCH_HEAD_BYTES, seal};
use shards::journal::segment::{SEGMENT_HEAD_BYTES, SegmentHead};
use shards::journal::{Accepted, Fact, Frame, Log, Message, ResultFact, SOURCE_CORE};
use shards::outcome::{Code, Effected, Fault, Outcome, Status};
use shards::step::EffectClass;

use super::*;

pub(crate) const SALT: Salt = Salt([7; 32]);
pub(crate) const AT_MS: u64 = 1_767_225_600_000;

pub(crate) fn coordinates() -> Wanted {
    let named = |text: &str| Some(text.to_owned());
    Wanted { tenant: named("acme"), flow: named("f"), step: named("s"), attempt: Some(1), ..Wanted::default() }
}

fn assignment(id: &str) -> Wanted {
    Wanted { tenant: Some("acme".to_owned()), assignment: Some(id.to_owned()), ..Wanted::default() }
}

pub(crate) fn key_of(attempt: u64) -> Key {
    SALT.key(Identity::Coordinates { tenant: "acme", run: None, flow: "f", step: "s", attempt })
}

pub(crate) fn step_frames(key: Key) -> [Frame; 4] {
    let text = Text::from_static;
    let asker = SALT.asker(key, "a-1");
    let frame = |fact| Frame { key, partition: Partition(3), owner_epoch: 0, fact };
    let fault = Fault::new(Code::ExecutionFailed, "It failed.").with_details(r#"{"token":"hush","line":3}"#);
    let outcome = Outcome {
        status: Status::Error,
        effect: Effected::Unknown,
        outputs: Bytes::new(),
        fault: Some(fault),
        tries: 1,
        received_ms: AT_MS,
        started_ms: AT_MS + 1,
        ended_ms: AT_MS + 2,
        ran_us: 900,
        spilled: false,
        queue_depth: 0,
        boot: 1,
        owner_epoch: 0,
    };
    let audit = AuditItem {
        kind: AuditKind::Outcome,
        wall_ms: AT_MS + 2,
        tenant_seq: 1,
        outcome_digest: outcome_digest(&outcome),
        actor: text("worker"),
        config_epoch: 0,
    };
    let message = Message {
        source: SOURCE_CORE,
        sequence: 0,
        since_ms: AT_MS,
        subject: text("caf.exec.assign.v1"),
        headers: Vec::new(),
        body: Bytes::from_static(b"{\"private\":1}"),
    };
    let accepted = Accepted {
        tenant: text("acme"),
        fingerprint: Fingerprint([1; 32]),
        asker,
        effect: EffectClass::Unsafe,
        effect_ceiling: None,
        block: text("echo@1.0.0"),
        config_epoch: 0,
        replay_of: None,
        deadline_ms: AT_MS + 60_000,
        not_after_ms: AT_MS + 60_000,
        received_ms: AT_MS,
        message,
    };
    let tenant = text("acme");
    let result = ResultFact { tenant, fingerprint: Fingerprint([1; 32]), asker, block: text("echo@1.0.0"), outcome, audit };
    [
        frame(Fact::Accepted(accepted)),
        frame(Fact::Started { try_number: 1, boot: 1, at_ms: AT_MS + 1 }),
        frame(Fact::Result(result)),
        frame(Fact::Published { asker, at_ms: AT_MS + 3 }),
    ]
}

/// Two steps of one flow (attempts 1 and 2), two frames a batch; the file is as long as a prepared segment. Gives the path.
pub(crate) fn write(dir: &Path) -> Result<PathBuf> {
    let head = SegmentHead {
        worker_id: "w-1".to_owned(),
        generation: 1,
        shard: 0,
        shards: 1,
        features: 0,
        id: 42,
        sequence: 1,
        first_lsn: Lsn(1),
        salt: SALT.clone(),
        created_ms: AT_MS,
        boot: 1,
    };
    let mut bytes = head.encode();
    let (mut lsn, mut number) = (1, 1);
    for frames in [step_frames(key_of(1)), step_frames(key_of(2))].concat().chunks(2) {
        let mut log = Log::default();
        frames.iter().for_each(|frame| log.append(frame));
        let mut batch = vec![0; BATCH_HEAD_BYTES];
        batch.extend_from_slice(&log.bytes);
        seal(head.id, &mut batch, log.frames, number, Lsn(lsn), Lsn(lsn - 1));
        bytes.extend_from_slice(&batch);
        (lsn, number) = (lsn + u64::from(log.frames), number + 1);
    }
    bytes.resize(1 << 16, 0);
    let folder = dir.join("1").join("0");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("0000000002.seg"), vec![0; 1 << 16])?;
    let path = folder.join("0000000001.seg");
    fs::write(&path, bytes)?;
    Ok(path)
}

fn kinds(timeline: &Timeline) -> Vec<(&'static str, u64)> {
    timeline.rows.iter().map(|row| (row.kind, row.lsn)).collect()
}

#[test]
fn a_step_is_found_by_key_by_coordinates_and_by_assignment() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path())?;
    let by_key = Wanted { key: Some(key_of(1).to_string()), ..Wanted::default() };
    for wanted in [by_key, coordinates()] {
        let timeline = read(dir.path(), &wanted)?;
        assert_eq!(kinds(&timeline), [("accepted", 1), ("started", 2), ("result", 3), ("published", 4)]);
        assert_eq!((timeline.segments, timeline.damage.len()), (1, 0));
    }
    // The assignment asked for both attempts: each has its own key, and both are its story.
    assert_eq!(read(dir.path(), &assignment("a-1"))?.rows.len(), 8);
    assert_eq!(read(dir.path(), &assignment("a-2"))?.rows.len(), 0);
    assert_eq!(read(dir.path(), &Wanted { attempt: Some(3), ..coordinates() })?.rows.len(), 0);
    assert_eq!(read(&dir.path().join("nothing"), &coordinates())?.segments, 0);
    Ok(())
}

#[test]
fn a_row_says_when_and_what_and_neither_bodies_nor_secrets() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path())?;
    let rows = read(dir.path(), &coordinates())?.rows;
    assert_eq!(rows[2].at.as_deref(), Some("2026-01-01T00:00:00.002000Z"));
    let lines: Vec<Value> = rows.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    assert_eq!((&lines[0]["effect_class"], &lines[0]["message_bytes"]), (&json!("unsafe"), &json!(13)));
    assert_eq!((&lines[1]["try"], &lines[1]["boot"]), (&json!(1), &json!(1)));
    assert_eq!((&lines[2]["status"], &lines[2]["code"]), (&json!("error"), &json!("EXECUTION_FAILED")));
    assert_eq!((&lines[2]["effect"], &lines[2]["details"]["line"]), (&json!("unknown"), &json!(3)));
    let all = serde_json::to_string(&lines)?;
    assert!(!all.contains("hush") && !all.contains("private"), "{all}");
    Ok(())
}

#[test]
fn a_half_written_tail_ends_the_story_and_is_no_damage() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = write(dir.path())?;
    let mut bytes = fs::read(&path)?;
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or_default();
    bytes[end - 40] ^= 1;
    fs::write(&path, &bytes)?;
    let second = Wanted { attempt: Some(2), ..coordinates() };
    let timeline = read(dir.path(), &second)?;
    assert_eq!(kinds(&timeline), [("accepted", 5), ("started", 6)]);
    assert_eq!(timeline.damage, Vec::<String>::new());

    bytes[SEGMENT_HEAD_BYTES + 60] ^= 1;
    fs::write(&path, &bytes)?;
    assert_eq!(read(dir.path(), &second)?.damage.len(), 1, "damage in the middle is told");
    Ok(())
}

#[test]
fn a_question_that_names_no_step_is_refused() {
    let tenant = Wanted { tenant: Some("acme".to_owned()), ..Wanted::default() };
    let short = Wanted { key: Some("abc".to_owned()), ..Wanted::default() };
    let both = Wanted { assignment: Some("a".to_owned()), ..coordinates() };
    let mixed = Wanted { key: Some("0".repeat(32)), ..coordinates() };
    for wanted in [Wanted::default(), tenant, short, both, mixed, Wanted { attempt: None, ..coordinates() }] {
        assert!(wanted.check().is_err(), "{wanted:?}");
    }
    assert_eq!(coordinates().check(), Ok(()));
}
