//! A journal of several segments over restarts: finished steps are known from key files, and from the segments where those are
//! damaged or gone.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cli::{Place, exits, objects, step};

/// One shard whose segments are of 12 MiB.
const FLAGS: [&str; 6] = ["--set", "journal.bytes_max=48MiB", "--set", "journal.horizon_min=10s", "--set", "cores.shards=0"];
const STEPS: usize = 12_000;

fn args() -> Vec<&'static str> {
    [&["run", "steps"][..], &FLAGS[..]].concat()
}

fn beside(place: &Place) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(place.path().join("endstation-data/1/0"))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.ends_with("snapshot") || path.extension().is_some_and(|is| is == "keys")).collect())
}

#[test]
fn finished_steps_are_known_from_key_files_and_without_them() -> Result<()> {
    let place = Place::new()?;
    let filling = "x".repeat(900);
    let steps: Vec<Value> = (0..STEPS).map(|n| step(&n.to_string(), "echo", json!({"n": n, "filling": filling}))).collect();
    place.file("steps", &steps)?;

    let mut child = place.command(&args()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().context("its output")?);
    let (mut line, mut before) = (String::new(), 0);
    while output.read_line(&mut line)? > 0 {
        line.clear();
        before += 1;
        if before == STEPS * 3 / 4 {
            // They are written beside the work, at leisure.
            let begun = Instant::now();
            while beside(&place)?.len() < 2 && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.kill()?;
        }
    }
    child.wait()?;
    ensure!(beside(&place)?.len() >= 2, "a snapshot and key files: {:?}", beside(&place)?);

    let replayed = |output| -> Result<usize> {
        exits(&output, 0)?;
        let results = objects(&output)?;
        ensure!(results.len() == STEPS, "{} results", results.len());
        Ok(results.iter().filter(|result| result["replayed"] == true).count())
    };
    let again = replayed(place.run(&args())?)?;
    ensure!(again >= STEPS * 3 / 4, "{again} were known of {before}");
    let known = replayed(place.run(&args())?)?;
    ensure!(known == STEPS, "{known} are known from key files");

    for path in beside(&place)? {
        let mut bytes = std::fs::read(&path)?;
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes)?;
    }
    let known = replayed(place.run(&args())?)?;
    ensure!(known == STEPS, "{known} are known where key files are damaged");
    for path in beside(&place)? {
        std::fs::remove_file(path)?;
    }
    let known = replayed(place.run(&args())?)?;
    ensure!(known == STEPS, "{known} are known where there are none");
    Ok(())
}
