//! No descriptor left while the worker works: what needs one is tried again and then says so, everything else goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use crate::router::Assignment;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

/// Sets how many files the worker may have open; gives what it might before.
fn allow(worker: &Worker, files: u64) -> Result<u64> {
    let pid = Pid::from_raw(worker.pid()?.try_into()?).context("a pid is not 0")?;
    // The worker inherited ours, and nobody may raise it.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(files), maximum })?;
    Ok(before.current.unwrap_or(1 << 16))
}

/// The lowest descriptor that is free: with this for a limit, none is.
fn lowest_free(worker: &Worker) -> Result<u64> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", worker.pid()?))?;
    let open: BTreeSet<u64> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    (0..).find(|number| !open.contains(number)).context("numbers do not end")
}

/// CPU time of the worker so far, in ticks of 10 ms.
fn cpu_ticks(worker: &Worker) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.pid()?))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn put(name: &str, tries: u32, backoff_ms: u32) -> Assignment {
    let mut job = Assignment::new("acme", "fs.blob_put", json!({"path": name, "content": name}));
    job.json["options"] = json!({"retry": {"max_attempts": tries, "backoff_ms": backoff_ms}, "deadline_ms": 20_000});
    job
}

#[tokio::test]
async fn without_descriptors_nothing_is_lost_and_nothing_else_fails() -> Result<()> {
    let mut world = World::jetstream(Settings::default()).await?;
    let before = put("before.txt", 2, 100);
    ensure!(world.router.run(&before, PATIENCE).await?.status() == "success");
    let allowed = allow(&world.worker, lowest_free(&world.worker)?)?;

    let failed = world.router.run(&put("during.txt", 2, 100), PATIENCE).await?;
    ensure!((failed.status(), failed.code()) == ("error", "RESOURCE_UNAVAILABLE"), "{:?}", failed.object);
    ensure!(failed.object["effect"] == "none" && failed.object["retries_used"] == 1, "{:?}", failed.object);
    for n in 0..50 {
        let seen = world.router.run(&Assignment::new("other", "echo", json!({"n": n})), PATIENCE).await?;
        ensure!(seen.status() == "success", "{:?}", seen.object);
    }
    // A known key is answered from the journal.
    world.router.send(&before).await?;
    world.router.stream_is_empty().await?;

    // Whoever waits to be let in makes nobody spin.
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(tokio::net::TcpStream::connect(world.worker.ops_address()).await?);
    }
    let ticks = cpu_ticks(&world.worker)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = cpu_ticks(&world.worker)? - ticks;
    ensure!(used < 60, "{used} ticks of CPU in 2 s of nothing to do");
    drop(callers);

    let patient = put("patient.txt", 20, 200);
    world.router.send(&patient).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    allow(&world.worker, allowed)?;
    let seen = world.router.result(&patient.id, PATIENCE).await?;
    ensure!(seen.status() == "success", "its tries lasted until there were some: {:?}", seen.object);
    ensure!(world.worker.get("/_readyz").await?.0 == 200);
    ensure!(world.worker.exited()?.is_none(), "{}", world.worker.log_tail());
    world.finish().await
}
