//! A data directory that cannot be used, or a system that allows too little: the worker ends at once with exit code 3, and says
//! path, key and cure.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Nobody's user id.
const NOBODY: u32 = 65_534;
/// A directory in use is asked for again for 2 s.
const SAYS_SO_WITHIN: Duration = Duration::from_secs(5);

/// Starts a worker on this directory, without a server to talk to, until it ends.
fn serve(dir: &Path, user: Option<u32>) -> Result<Output> {
    serve_limited(dir, user, "true")
}

/// The same after a word to the shell.
fn serve_limited(dir: &Path, user: Option<u32>, limit: &str) -> Result<Output> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{limit} && exec {} serve", env!("CARGO_BIN_EXE_endstation"))).current_dir("/");
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("ENDSTATION__STORAGE__DIR", dir).env("ENDSTATION__OPS__BIND", "127.0.0.1:0");
    command.env("NATS_URL", "nats://127.0.0.1:1").env("ENDSTATION__WORKER__KEY_SALT", "it").env("WORKER_ID", "it");
    command.env("ENDSTATION__CORES__SHARDS", "0");
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let mut child = command.spawn().context("the endstation binary does not start")?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > SAYS_SO_WITHIN {
            child.kill()?;
            let output = child.wait_with_output()?;
            anyhow::bail!("it runs, and says {}{}", text(&output.stdout), text(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child.wait_with_output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It ends with code 3 and one line that names all of this.
fn refused(dir: &Path, user: Option<u32>, named: &[&str]) -> Result<()> {
    refuses(&serve(dir, user)?, &[named, &["storage.dir"]].concat())
}

fn refuses(output: &Output, named: &[&str]) -> Result<()> {
    let said = text(&output.stdout) + &text(&output.stderr);
    ensure!(output.status.code() == Some(3), "{:?}: {said}", output.status);
    ensure!(!said.contains("panicked"), "{said}");
    let errors: Vec<Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|line: &Value| line["level"] == "ERROR").collect();
    ensure!(errors.len() == 1, "one line says it: {said}");
    let error = errors[0]["context"]["error"].as_str().context("the error")?;
    for part in named {
        ensure!(error.contains(part), "{part:?} is not in {error:?}");
    }
    Ok(())
}

#[test]
fn a_file_where_a_directory_is_wanted_is_named_with_the_cure() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    fs::write(&file, "")?;
    refused(&file, None, &["/file:", "move it away"])?;
    refused(&file.join("below"), None, &["/file/below:", "move it away"])?;
    fs::create_dir_all(dir.path().join("data/1"))?;
    fs::write(dir.path().join("data/1/0"), "")?;
    refused(&dir.path().join("data"), None, &["/data/1/0:", "move it away"])?;
    fs::create_dir_all(dir.path().join("locked/lock"))?;
    refused(&dir.path().join("locked"), None, &["/locked/lock:", "a folder stands where a file"])
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_the_cure() -> Result<()> {
    refused(Path::new("/proc/nowhere/data"), None, &["/proc/nowhere/data:", "make the folder above it"])
}

#[test]
fn a_missing_directory_is_made() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("not/there/yet");
    let Err(error) = serve(&data, None) else { anyhow::bail!("it serves until it is told to end") };
    ensure!(error.to_string().contains("it runs") && data.join("lock").exists(), "{error}");
    Ok(())
}

#[test]
fn a_directory_of_somebody_else_is_named_with_the_cure() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: this test starts the worker as another user, which only root may");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("1/0"))?;
    refused(&data, Some(NOBODY), &["/data/lock:", "change its owner or mode"])?;
    refused(&data.join("more"), Some(NOBODY), &["/data/more:", "change its owner or mode"])?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777))?;
    fs::set_permissions(data.join("1"), fs::Permissions::from_mode(0o700))?;
    refused(&data, Some(NOBODY), &["/data/1", "change its owner or mode"])
}

#[test]
fn a_read_only_file_system_is_named_with_the_cure() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none"]).arg(dir.path()).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this test mounts a read-only file system, and that is not possible here: {mounted:?}");
        return Ok(());
    }
    let verdict = refused(dir.path(), None, &["/lock:", "mount that writable"]).and_then(|()| {
        let below = dir.path().join("data");
        refused(&below, None, &["/data:", "mount that writable"])
    });
    let _gone = Command::new("umount").arg("-l").arg(dir.path()).status();
    verdict
}

#[test]
fn a_directory_in_use_is_refused_after_two_seconds_and_its_holder_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(dir.path().join("lock"))?;
    fs::write(dir.path().join("lock"), "4711\n")?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    let begun = Instant::now();
    refused(dir.path(), None, &["process 4711", "one process per data directory"])?;
    let took = begun.elapsed();
    ensure!((Duration::from_secs(2)..SAYS_SO_WITHIN).contains(&took), "{took:?}: its predecessor may be ending");
    let soon = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1_000));
        drop(file);
    });
    ensure!(serve(dir.path(), None).is_err(), "one that ends in time is waited for");
    soon.join().map_err(|_| anyhow::anyhow!("the thread panicked"))
}

#[test]
fn too_few_open_files_are_told_with_the_cure() -> Result<()> {
    for limit in [10, 14, 18, 24, 40] {
        let dir = tempfile::tempdir()?;
        refuses(&serve_limited(dir.path(), None, &format!("ulimit -n {limit}"))?, &["ulimit -n", "LimitNOFILE="])?;
    }
    Ok(())
}

#[test]
fn a_soft_limit_of_open_files_is_raised_as_far_as_it_may_be() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Err(error) = serve_limited(dir.path(), None, "ulimit -S -n 40") else {
        anyhow::bail!("it serves until it is told to end")
    };
    ensure!(error.to_string().contains("it runs"), "{error}");
    Ok(())
}

#[test]
fn too_little_locked_memory_is_told_with_the_cure() -> Result<()> {
    for kib in [0, 64] {
        let dir = tempfile::tempdir()?;
        refuses(&serve_limited(dir.path(), None, &format!("ulimit -l {kib}"))?, &["ulimit -l", "LimitMEMLOCK="])?;
    }
    Ok(())
}
