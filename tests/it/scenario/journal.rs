//! The journal as operators look at it: checked while a worker writes it, harmed and found out, printed.

use std::io::BufRead as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::router::Assignment;
use crate::worker::Settings;
use crate::world::{PATIENCE, World};

/// Runs `endstation` with these arguments and `--data dir`.
pub(super) async fn endstation(args: &[&str], dir: &Path) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_endstation"));
    command.args(args).arg("--data").arg(dir).env_clear().stdin(Stdio::null());
    command.envs(std::env::vars().filter(|(name, _)| matches!(name.as_str(), "PATH" | "HOME" | "TMPDIR")));
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// Its lines, where it ended with this code.
async fn lines(args: &[&str], dir: &Path, code: i32) -> Result<Vec<Value>> {
    let output = endstation(args, dir).await?;
    let (out, err) = (std::str::from_utf8(&output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{args:?}: {} instead of {code}: {out} {err}", output.status);
    out.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// A copy of the journal as it lies there, and its only segment with frames.
fn copy(storage: &Path) -> Result<(tempfile::TempDir, PathBuf)> {
    let copy = tempfile::Builder::new().prefix("endstation-copy-").tempdir()?;
    let folder = copy.path().join("1").join("0");
    std::fs::create_dir_all(&folder)?;
    let mut used = Vec::new();
    for entry in std::fs::read_dir(storage.join("1").join("0"))? {
        let entry = entry?;
        let to = folder.join(entry.file_name());
        std::fs::copy(entry.path(), &to)?;
        let bytes = std::fs::read(&to)?;
        used.extend(bytes[4096..].iter().any(|byte| *byte != 0).then_some(to));
    }
    ensure!(used.len() == 1, "a small journal has one segment: {used:?}");
    Ok((copy, used.remove(0)))
}

fn change(path: &Path, at: u64, to: impl Fn(u8) -> u8) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[to(byte[0])], at)?)
}

fn echoes(count: u32) -> Vec<Assignment> {
    (0..count).map(|n| Assignment::new("acme", "echo", json!({ "n": n }))).collect()
}

#[tokio::test]
async fn a_running_worker_s_journal_is_checked_dumped_and_measured_while_it_is_written() -> Result<()> {
    let world = World::jetstream(Settings::default()).await?;
    let storage = world.worker.storage();
    let jobs = echoes(2_000);
    let (sent, checked) = tokio::join!(world.router.send_all(&jobs), async {
        for _ in 0..8 {
            let all = lines(&["journal", "check"], &storage, 0).await?;
            let last = all.last().context("a last line")?;
            ensure!(last["sound"] == true && last["in_use"] == true, "{all:?}");
        }
        anyhow::Ok(())
    });
    sent?;
    checked?;
    world.finish().await?;
    let shard = lines(&["journal", "check"], &storage, 0).await?.remove(0);
    ensure!(shard["keys"] == 2_000 && shard["unfinished"] == 0 && shard["unpublished"] == 0, "{shard}");
    ensure!(shard["frames"]["accepted"] == 2_000 && shard["frames"]["result"] == 2_000, "{shard}");
    let results = lines(&["journal", "dump", "--kind", "result", "--tenant", "acme"], &storage, 0).await?;
    ensure!(results.len() == 2_000 && results.iter().all(|row| row["status"] == "success"), "{} results", results.len());
    let stat = lines(&["journal", "stat"], &storage, 0).await?;
    ensure!(stat[0]["frames_per_s"].as_f64() > Some(0.0) && stat[0]["horizon_ms"].as_u64() > Some(0), "{stat:?}");
    ensure!(stat[1]["fsync_p50_us"].as_u64() > Some(0) && stat[1]["in_use"] == true, "{stat:?}");
    world.finish().await
}

#[tokio::test]
async fn a_flipped_bit_is_found_with_its_place_and_a_torn_tail_is_no_damage() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    world.router.send_all(&echoes(20)).await?;
    world.finish().await?;
    world.worker.kill();
    let (dir, segment) = copy(&world.worker.storage())?;
    let sound = lines(&["journal", "check"], dir.path(), 0).await?;
    ensure!(sound[1] == json!({"sound": true, "shards": 1, "findings": 0, "torn": 0, "in_use": false}), "{sound:?}");
    let end = sound[0]["bytes"].as_u64().context("bytes")?;

    change(&segment, end + 3, |_| 7)?;
    let torn = lines(&["journal", "check"], dir.path(), 0).await?;
    let expected = json!([{"file": segment.display().to_string(), "offset": end, "bytes": 4}]);
    ensure!(torn[0]["torn"] == expected && torn[0]["findings"] == json!([]), "{torn:?}");

    change(&segment, 4096 + 90, |byte| byte ^ 1)?;
    let harmed = lines(&["journal", "check"], dir.path(), 4).await?;
    let finding = &harmed[0]["findings"][0];
    ensure!(finding["file"] == segment.display().to_string() && finding["found"] == "damage", "{harmed:?}");
    ensure!(finding["offset"] == 4096 && finding["lsn"] == 1 && finding["cure"].is_string(), "{finding}");

    lines(&["journal", "check"], &dir.path().join("nowhere"), 3).await?;
    lines(&["journal", "dump", "--kind", "nonsense"], dir.path(), 2).await?;
    Ok(())
}

#[tokio::test]
async fn a_dump_ends_quietly_when_its_reader_has_seen_enough() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    world.router.send_all(&echoes(500)).await?;
    world.router.all_answered(PATIENCE).await?;
    world.worker.kill();
    let mut command = Command::new(env!("CARGO_BIN_EXE_endstation"));
    command.args(["journal", "dump", "--bodies", "--data"]).arg(world.worker.storage());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    // The reader is dropped with the one line.
    std::io::BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    ensure!(serde_json::from_str::<Value>(&line)?["lsn"] == 1, "{line}");
    let output = tokio::task::spawn_blocking(|| child.wait_with_output());
    let output = tokio::time::timeout(Duration::from_secs(10), output).await???;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Ok(())
}
