//! What the commands print and end with, over journals of a few frames.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use super::*;
use crate::cli::EXIT_USAGE;
use crate::ops::journal::tests::{flip, three};
use crate::ops::timeline::tests::key_of;
use crate::settings::Settings;

fn lines(out: &[u8]) -> Result<Vec<Value>> {
    Ok(std::str::from_utf8(out)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn checked(dir: &Path) -> Result<(u8, Vec<Value>, String)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = check::main(dir, Form::Ndjson, &mut out, &mut err)?;
    Ok((code, lines(&out)?, String::from_utf8(err)?))
}

fn dumped(dir: &Path, args: &DumpArgs) -> Result<(u8, Vec<Value>)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = dump::main(dir, args, &mut out, &mut err)?;
    Ok((code, lines(&out)?))
}

fn places(rows: &[Value]) -> Vec<(u64, &str)> {
    rows.iter().map(|row| (row["lsn"].as_u64().unwrap_or_default(), row["kind"].as_str().unwrap_or_default())).collect()
}

#[test]
fn check_tells_sound_from_damaged_by_its_exit_code_and_its_lines() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = three(dir.path())?;
    let (code, all, _) = checked(dir.path())?;
    assert_eq!((code, all.len()), (EXIT_OK, 2));
    assert_eq!(all[0]["frames"], json!({"accepted": 3, "started": 3, "result": 2, "published": 1}));
    assert_eq!((&all[0]["first_lsn"], &all[0]["last_lsn"]), (&json!(1), &json!(9)));
    assert_eq!((&all[0]["keys"], &all[0]["unfinished"], &all[0]["unpublished"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!((&all[1]["sound"], &all[1]["in_use"]), (&json!(true), &json!(false)));

    flip(&paths[0], 4096 + 60)?;
    let (code, all, _) = checked(dir.path())?;
    assert_eq!((code, &all[1]["sound"]), (EXIT_DAMAGED, &json!(false)));
    let finding = &all[0]["findings"][0];
    assert_eq!((&finding["found"], &finding["offset"], &finding["lsn"]), (&json!("damage"), &json!(4096), &json!(1)));
    assert!(finding["file"].as_str().is_some_and(|file| file.ends_with("1/0/0000000001.seg")), "{finding}");
    assert!(finding["cure"].as_str().is_some_and(|cure| cure.contains("from a copy")), "{finding}");

    let mut table = Vec::new();
    check::main(dir.path(), Form::Table, &mut table, &mut Vec::new())?;
    let table = String::from_utf8(table)?;
    assert!(table.contains("DAMAGE: ") && table.contains("at byte 4096, lsn 1: "), "{table}");
    assert!(table.ends_with("not sound: 1 found\n"), "{table}");
    Ok(())
}

#[test]
fn a_folder_without_a_journal_is_a_matter_of_configuration() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (code, all, err) = checked(dir.path())?;
    assert_eq!((code, all.len()), (EXIT_CONFIG, 0));
    assert!(err.contains("there is no journal in it"), "{err}");
    let (code, _, err) = checked(&dir.path().join("missing"))?;
    assert_eq!(code, EXIT_CONFIG);
    assert!(err.contains("No such file"), "{err}");
    Ok(())
}

#[test]
fn checking_and_dumping_change_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = three(dir.path())?;
    let bytes = || paths.iter().map(fs::read).collect::<io::Result<Vec<_>>>();
    let names = || fs::read_dir(dir.path())?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let before = (bytes()?, names()?);
    checked(dir.path())?;
    dumped(dir.path(), &DumpArgs::default())?;
    assert_eq!((bytes()?, names()?), before);
    Ok(())
}

#[test]
fn a_dump_is_filtered_by_shard_lsn_kind_and_tenant() -> Result<()> {
    let dir = tempfile::tempdir()?;
    three(dir.path())?;
    let args = DumpArgs::default;
    let (code, all) = dumped(dir.path(), &args())?;
    assert_eq!((code, all.len()), (EXIT_OK, 9));
    assert_eq!(all[0]["key"], key_of(1).to_string());
    assert_eq!(dumped(dir.path(), &DumpArgs { shard: Some(1), ..args() })?.1.len(), 0);
    let (_, some) = dumped(dir.path(), &DumpArgs { from: Some(4), to: Some(5), ..args() })?;
    assert_eq!(places(&some), [(4, "published"), (5, "accepted")]);
    let (_, some) = dumped(dir.path(), &DumpArgs { kind: vec![Kind::Result, Kind::Published], ..args() })?;
    assert_eq!(places(&some), [(3, "result"), (4, "published"), (7, "result")]);
    // A frame that does not name its tenant belongs to the step that does, also where that stands before the first one.
    let (_, some) = dumped(dir.path(), &DumpArgs { tenant: Some("acme".to_owned()), from: Some(9), ..args() })?;
    assert_eq!(places(&some), [(9, "started")]);
    assert_eq!(dumped(dir.path(), &DumpArgs { tenant: Some("other".to_owned()), ..args() })?.1.len(), 0);
    assert_eq!(dumped(dir.path(), &DumpArgs { from: Some(2), to: Some(1), ..args() })?.0, EXIT_USAGE);
    Ok(())
}

#[test]
fn bodies_are_shown_when_asked_for_and_secrets_never() -> Result<()> {
    let dir = tempfile::tempdir()?;
    three(dir.path())?;
    let (_, plain) = dumped(dir.path(), &DumpArgs::default())?;
    assert_eq!((&plain[0]["message_bytes"], &plain[0]["body"]), (&json!(13), &Value::Null));
    let (_, full) = dumped(dir.path(), &DumpArgs { bodies: true, ..DumpArgs::default() })?;
    assert_eq!((&full[0]["body"], &full[0]["headers"]), (&json!({"private": 1}), &json!({})));
    assert_eq!(full[2]["details"], json!({"token": "[REDACTED]", "line": 3}));
    Ok(())
}

#[test]
fn a_dump_gives_what_can_be_read_and_ends_with_the_code_of_the_damage() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let paths = three(dir.path())?;
    flip(&paths[1], 4096 + 60)?;
    let (code, rest) = dumped(dir.path(), &DumpArgs::default())?;
    assert_eq!(code, EXIT_DAMAGED);
    assert_eq!(places(&rest).iter().map(|(lsn, _)| *lsn).collect::<Vec<_>>(), [1, 2, 3, 4, 8, 9]);
    Ok(())
}

#[test]
fn stat_says_sizes_age_and_how_long_it_will_last() -> Result<()> {
    let dir = tempfile::tempdir()?;
    three(dir.path())?;
    std::fs::write(dir.path().join("1/0/0-9.keys"), [0; 100])?;
    let empty = tempfile::NamedTempFile::new()?;
    let place = dir.path().display().to_string();
    let bounds = [("journal.bytes_max", "1MiB", "--set"), ("journal.horizon_min", "1h", "--set")];
    let flags = [&bounds[..], &[("storage.dir", place.as_str(), "--data")]].concat();
    let settings = Settings::load(Some(empty.path()), std::iter::empty(), &flags)?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(stat::main(&settings, Form::Ndjson, &mut out, &mut err)?, EXIT_OK);
    let all = lines(&out)?;
    let (shard, whole) = (&all[0], &all[1]);
    assert_eq!((&shard["segments"], &shard["frames"], &shard["bytes_max"]), (&json!(3), &json!(9), &json!(1 << 20)));
    assert_eq!(shard["disk_bytes"], json!(4 << 16));
    assert_eq!(shard["oldest"], "2026-01-01T00:00:00.000000Z");
    assert_eq!(shard["frames_per_s"], 9.0);
    assert_eq!((&shard["key_files"], &shard["key_bytes"]), (&json!(1), &json!(100)));
    let number = |name: &str| shard[name].as_f64().unwrap_or_default();
    let lasts_ms = 1_048_576.0 / number("bytes_per_s") * 1000.0;
    assert!((number("horizon_ms") - lasts_ms).abs() < 2.0 && shard["below_horizon_min"] == true, "{shard}");
    assert_eq!((&shard["pinned"][0]["file"], &shard["pinned"][0]["steps"]), (&json!("1/0/0000000002.seg"), &json!(1)));
    assert!(whole["fsync_p99_us"].as_u64() >= whole["fsync_p50_us"].as_u64() && whole["fsync_p50_us"].is_u64(), "{whole}");

    let mut table = Vec::new();
    stat::main(&settings, Form::Table, &mut table, &mut err)?;
    let table = String::from_utf8(table)?;
    assert!(table.contains("shard 0: 3 segments") && table.contains("is held by 1 of them"), "{table}");
    assert!(table.contains("fsync: p50") && table.contains("full in 10m, remembers 10m"), "{table}");
    Ok(())
}
