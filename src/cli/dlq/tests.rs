use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use serde_json::Value;

use super::*;
use crate::cli::{EXIT_OK, EXIT_USAGE};
use crate::dlq::record::{Head, Why};
use crate::dlq::store::Store;

/// Three letters of two tenants, an hour apart.
fn stored(dir: &Path) -> Result<()> {
    let mut store = Store::open(&dir.join(crate::dlq::FOLDER), 1 << 20, std::sync::Arc::default())?;
    let letter = |n: u64, tenant: &str, reason: &str| {
        let id = format!("d-{n}{n}-{reason}");
        let pairs = [("Nats-Msg-Id", id.as_str()), ("tenant_id", tenant), ("x-dlq-reason", reason), ("x-original-subject", "s")];
        let headers = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let stored_ms = 1_700_000_000_000 + n * 3_600_000;
        let body = r#"{"headers":[["X-Api-Key","k1"],["a","b"]],"message":{"password":"p1","n":1}}"#;
        let head = Head { id, subject: "caf.exec.dlq.v1".into(), headers, stored_ms, why: Why::NoStream, told: true };
        (head, Bytes::from_static(body.as_bytes()))
    };
    let letters = [letter(1, "acme", "POISON"), letter(2, "other", "TIMEOUT"), letter(3, "acme", "TIMEOUT")];
    anyhow::ensure!(store.keep(&letters).iter().all(std::result::Result::is_ok));
    Ok(())
}

fn settings(dir: &Path) -> Settings {
    let dir = dir.display().to_string();
    Settings::of(None, std::iter::empty(), &[("storage.dir", &dir, "--data")]).expect("a folder is all it takes")
}

fn offline() -> PlaceArgs {
    PlaceArgs { offline: true, ..PlaceArgs::default() }
}

fn ids(dir: &Path, args: LsArgs) -> Result<(u8, Vec<String>, String)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = ls::main(&LsArgs { place: offline(), ..args }, &settings(dir), Form::Ndjson, &mut out, &mut err)?;
    let rows = String::from_utf8(out)?;
    let ids = rows.lines().map(|row| Ok(serde_json::from_str::<Value>(row)?["id"].as_str().unwrap_or_default().to_owned()));
    Ok((code, ids.collect::<Result<_>>()?, String::from_utf8(err)?))
}

fn shown(dir: &Path, id: &str, secrets: bool) -> Result<(u8, String, String)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = ShowArgs { id: id.to_owned(), place: offline(), secrets };
    let code = show::main(&args, &settings(dir), Form::Ndjson, &mut out, &mut err)?;
    Ok((code, String::from_utf8(out)?, String::from_utf8(err)?))
}

#[test]
fn letters_are_listed_by_tenant_reason_and_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    stored(dir.path())?;
    let of = |args: LsArgs| ids(dir.path(), args).map(|(_, ids, _)| ids);
    let (poison, other, timeout) = ("d-11-POISON", "d-22-TIMEOUT", "d-33-TIMEOUT");
    assert_eq!(of(LsArgs::default())?, [poison, other, timeout]);
    assert_eq!(of(LsArgs { tenant: Some("acme".into()), ..LsArgs::default() })?, [poison, timeout]);
    assert_eq!(of(LsArgs { reason: Some("timeout".into()), ..LsArgs::default() })?, [other, timeout]);
    assert_eq!(of(LsArgs { since: Some(1_700_000_000_000 + 2 * 3_600_000), ..LsArgs::default() })?, [other, timeout]);
    let (code, newest, err) = ids(dir.path(), LsArgs { limit: 1, ..LsArgs::default() })?;
    assert_eq!((code, newest), (EXIT_OK, vec![timeout.to_owned()]));
    assert!(err.contains("2 older letters"), "{err}");
    Ok(())
}

#[test]
fn a_letter_is_shown_whole_and_secrets_only_when_asked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    stored(dir.path())?;
    let (code, out, _) = shown(dir.path(), "d-1", false)?;
    let letter: Value = serde_json::from_str(&out)?;
    assert_eq!((code, &letter["id"], &letter["letter"]["message"]["n"]), (EXIT_OK, &"d-11-POISON".into(), &1.into()));
    assert_eq!(letter["found_in"][0]["store"]["why"], "no_stream");
    assert!(!out.contains("p1") && !out.contains("k1"), "{out}");
    let (_, out, _) = shown(dir.path(), "d-11-POISON", true)?;
    assert!(out.contains("p1") && out.contains("k1"), "{out}");
    Ok(())
}

#[test]
fn unknown_and_ambiguous_ids_a_missing_store_and_damage_have_their_own_codes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    assert_eq!(ids(dir.path(), LsArgs::default())?.0, EXIT_CONFIG);
    stored(dir.path())?;
    assert_eq!(shown(dir.path(), "d-9", false)?.0, EXIT_FAILED);
    let (code, _, err) = shown(dir.path(), "d-", false)?;
    assert_eq!(code, EXIT_USAGE);
    assert!(err.contains("d-11-POISON, d-22-TIMEOUT"), "{err}");
    let path = crate::dlq::shelf::letters_path(&dir.path().join(crate::dlq::FOLDER), 1);
    let mut bytes = std::fs::read(&path)?;
    bytes[40] ^= 1;
    std::fs::write(&path, bytes)?;
    let (code, left, err) = ids(dir.path(), LsArgs::default())?;
    assert_eq!((code, left.len()), (EXIT_DAMAGED, 2));
    assert!(err.contains("from byte 16 on"), "{err}");
    Ok(())
}
