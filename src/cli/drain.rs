//! `endstation drain`: a running worker takes nothing more, finishes what is here and ends, and this says when it has.
//!
//! It goes over the admin socket. Where the wait is over first, the worker goes on draining: only a signal cuts it short.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shards::runtime::disk::is_held;

use super::config::Form;
use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, worker_on};
use crate::config::duration_text;
use crate::ops::admin::{self, Request};

/// A worker that said its last word is gone within this.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Asks the worker on `dir` and waits at most `wait`. Progress goes to `out`, what went wrong to `err`. Gives the exit code.
///
/// # Errors
/// `out` or `err` cannot be written.
pub fn main(dir: &Path, wait: Duration, form: Form, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let until = Instant::now() + wait;
    let Some(stream) = worker_on(dir, err)? else { return Ok(EXIT_CONFIG) };
    // A worker that hangs says nothing at all.
    stream.set_read_timeout(Some(wait + Duration::from_secs(1)))?;
    let mut paper = Paper { form, out, left: Value::Null, unwritten: None };
    let done = admin::ask(&stream, Request::Drain, |left| {
        paper.progress(left);
        if paper.unwritten.is_some() || Instant::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    });
    if let Some(error) = paper.unwritten {
        return Err(error);
    }
    let left = text(&paper.left);
    match done {
        Ok(done) if done["drained"] == true => {
            if !gone(&stream, dir) {
                writeln!(err, "error: the worker has drained, and its process has not ended yet")?;
                return Ok(EXIT_FAILED);
            }
            match form {
                Form::Table => writeln!(paper.out, "drained; the worker has ended")?,
                Form::Ndjson => writeln!(paper.out, "{}", json!({"drained": true}))?,
            }
            return Ok(EXIT_OK);
        }
        Ok(_) => writeln!(err, "error: a signal cut the drain short: {left}; that stays in the journal for the next start")?,
        Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            let wait = duration_text(wait.as_millis() as u64);
            writeln!(
                err,
                "error: not drained within {wait}: {left}; the worker goes on draining: ask again to wait on, or send SIGTERM, \
                 which ends it after shutdown.grace and leaves the rest in its journal"
            )?;
        }
        Err(error) => writeln!(err, "error: the worker ended before it had drained ({error}): {left} stays in its journal")?,
    }
    Ok(EXIT_FAILED)
}

/// What is told of the progress, and where.
struct Paper<'a, W> {
    form: Form,
    out: &'a mut W,
    left: Value,
    unwritten: Option<io::Error>,
}

impl<W: Write> Paper<'_, W> {
    /// Says what is left where that has changed.
    fn progress(&mut self, left: Value) {
        if left != self.left {
            let written = match self.form {
                Form::Table => writeln!(self.out, "draining: {}", text(&left)),
                Form::Ndjson => writeln!(self.out, "{left}"),
            };
            self.unwritten = written.and_then(|()| self.out.flush()).err();
            self.left = left;
        }
    }
}

fn text(left: &Value) -> String {
    let count = |name: &str| left[name].as_u64().unwrap_or_default();
    format!("{} running, {} waiting, {} not known to be published", count("running"), count("queued"), count("unpublished"))
}

/// Waits until the process has ended: its connection closes, and another may have the folder.
fn gone(mut stream: &UnixStream, dir: &Path) -> bool {
    let until = Instant::now() + GONE_WITHIN;
    let closed = stream.set_read_timeout(Some(GONE_WITHIN)).is_ok() && matches!(stream.read(&mut [0]), Ok(0));
    while is_held(dir) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    closed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ops::admin::SOCKET;
    use crate::ops::drain::{Drain, End};
    use anyhow::Result;

    fn desk(drain: Arc<Drain>) -> admin::Desk {
        admin::Desk { drain: Some(drain), people: crate::ops::people::People::new(Vec::new()), links: None }
    }

    fn drained(dir: &Path, wait_ms: u64) -> Result<(u8, String, String)> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = main(dir, Duration::from_millis(wait_ms), Form::Ndjson, &mut out, &mut err)?;
        Ok((code, String::from_utf8(out)?, String::from_utf8(err)?))
    }

    #[test]
    fn nobody_listening_is_said_with_the_socket_s_name() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (code, _, err) = drained(dir.path(), 10)?;
        assert_eq!(code, EXIT_CONFIG);
        assert!(err.contains("no worker listens on") && err.contains(SOCKET), "{err}");
        Ok(())
    }

    #[test]
    fn a_wait_that_is_over_says_what_is_left_and_that_the_drain_goes_on() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let gauge = Arc::new(shards::runtime::ports::Gauge::default());
        gauge.running.store(3, std::sync::atomic::Ordering::Relaxed);
        let _worker = admin::spawn(dir.path(), desk(Drain::new(vec![gauge])))?;
        let (code, out, err) = drained(dir.path(), 300)?;
        assert_eq!(code, EXIT_FAILED);
        assert_eq!(out.lines().count(), 1, "told once while nothing changes: {out}");
        assert!(err.contains("not drained within 300ms: 3 running") && err.contains("goes on draining"), "{err}");
        Ok(())
    }

    #[test]
    fn a_drain_that_was_cut_short_is_a_failure() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let drain = Drain::new(Vec::new());
        let _worker = admin::spawn(dir.path(), desk(Arc::clone(&drain)))?;
        let ends = std::thread::spawn(move || drain.ended(End::CutShort));
        let (code, _, err) = drained(dir.path(), 5_000)?;
        assert_eq!(code, EXIT_FAILED);
        assert!(err.contains("cut the drain short"), "{err}");
        assert!(ends.join().is_ok());
        Ok(())
    }
}
