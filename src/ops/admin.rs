//! The admin socket: a Unix socket in the storage folder that answers what became of a step.
//!
//! One JSON object a line, both ways. Only the worker's own user may connect (mode 0600). A request is
//! `{"cmd":"step", …}` with the fields of [`Wanted`]; the answer is one line a frame ([`super::timeline::Row`]) and a last
//! line `{"done":true, …}`, or one line `{"error": …}`. Journals are read from their files, never through a shard.

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::timeline::{self, Wanted};

/// The socket's name in the storage folder.
pub const SOCKET: &str = "admin.sock";
/// Connections at once; more are closed.
const CONNECTIONS_MAX: usize = 8;
/// A client that says or takes nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 16 << 10;
/// Longest path that fits into a socket's address, in bytes.
const PATH_BYTES_MAX: usize = 100;

/// The running socket; it ends, and its file goes, when this is dropped.
#[derive(Debug)]
pub struct AdminHandle {
    dir: PathBuf,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        // Only a connection wakes a thread that waits for one.
        let woken = connect(&self.dir).is_ok();
        let _ = fs::remove_file(self.dir.join(SOCKET));
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

/// Opens the socket in `dir`, replacing one that a killed worker left. The caller holds the folder's lock.
///
/// # Errors
/// The socket cannot be made, or the thread not started.
pub fn spawn(dir: &Path) -> io::Result<AdminHandle> {
    let folder = Folder::open(dir)?;
    // Made under another name: nobody can connect before the mode is set, and the old one is replaced in one move.
    let (fresh, path) = (folder.path(".admin.sock.new"), folder.path(SOCKET));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    fs::rename(&fresh, &path)?;
    let ended = Arc::new(AtomicBool::new(false));
    let (over, at) = (Arc::clone(&ended), dir.to_owned());
    let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || listen(&listener, &at, &over))?;
    Ok(AdminHandle { dir: dir.to_owned(), ended, thread: Some(thread) })
}

/// Connects to the worker that runs on `dir`, if one does.
///
/// # Errors
/// There is no socket, or nobody behind it.
pub fn connect(dir: &Path) -> io::Result<UnixStream> {
    let folder = Folder::open(dir)?;
    let stream = UnixStream::connect(folder.path(SOCKET))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks a connected worker. `each` gets every line but the last, which is returned.
///
/// # Errors
/// The connection broke, or the worker answered with an error.
pub fn ask(stream: UnixStream, wanted: &Wanted, mut each: impl FnMut(Value) -> io::Result<()>) -> io::Result<Value> {
    let mut request = serde_json::to_value(wanted).map_err(io::Error::other)?;
    request["cmd"] = Value::from("step");
    (&stream).write_all(format!("{request}\n").as_bytes())?;
    for line in BufReader::new(stream).lines() {
        let line: Value = serde_json::from_str(&line?).map_err(io::Error::other)?;
        if line.get("done").is_some() {
            return Ok(line);
        }
        if let Some(error) = line.get("error") {
            return Err(io::Error::other(error.as_str().unwrap_or("the worker answered with an error").to_owned()));
        }
        each(line)?;
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the worker broke off its answer"))
}

/// The storage folder by a path that is short enough for a socket.
struct Folder {
    short: PathBuf,
    _open: Option<File>,
}

impl Folder {
    fn open(dir: &Path) -> io::Result<Folder> {
        if dir.as_os_str().len() + SOCKET.len() + 8 < PATH_BYTES_MAX {
            return Ok(Folder { short: dir.to_owned(), _open: None });
        }
        let open = File::open(dir)?;
        Ok(Folder { short: PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())), _open: Some(open) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.short.join(name)
    }
}

fn listen(listener: &UnixListener, dir: &Path, ended: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if ended.load(SeqCst) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.load(SeqCst) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, SeqCst);
        let (dir, counted) = (dir.to_owned(), Arc::clone(&open));
        let started = std::thread::Builder::new().name("admin-client".to_owned()).spawn(move || {
            // A client that breaks off is its own business.
            let _ = serve(&stream, &dir);
            counted.fetch_sub(1, SeqCst);
        });
        if started.is_err() {
            open.fetch_sub(1, SeqCst);
        }
    }
}

#[derive(Deserialize)]
struct Command {
    cmd: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

fn serve(stream: &UnixStream, dir: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let mut out = BufWriter::new(stream);
        if line.last() != Some(&b'\n') && line.len() as u64 == REQUEST_BYTES_MAX {
            writeln!(out, "{}", json!({"error": "the request is too long"}))?;
            return out.flush();
        }
        if let Err(error) = answer(&line, dir, &mut out)? {
            writeln!(out, "{}", json!({ "error": error }))?;
        }
        out.flush()?;
    }
}

/// The outer error is the client's connection, the inner one is for the client.
fn answer(line: &[u8], dir: &Path, out: &mut impl Write) -> io::Result<Result<(), String>> {
    let wanted = match command(line) {
        Ok(wanted) => wanted,
        Err(error) => return Ok(Err(error)),
    };
    let timeline = match timeline::read(dir, &wanted) {
        Ok(timeline) => timeline,
        Err(error) => return Ok(Err(error.to_string())),
    };
    for row in &timeline.rows {
        serde_json::to_writer(&mut *out, row).map_err(io::Error::other)?;
        out.write_all(b"\n")?;
    }
    let frames = timeline.rows.len();
    writeln!(out, "{}", json!({"done": true, "frames": frames, "segments": timeline.segments, "damage": timeline.damage}))?;
    Ok(Ok(()))
}

fn command(line: &[u8]) -> Result<Wanted, String> {
    let command: Command = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if command.cmd != "step" {
        return Err(format!("unknown cmd {:?}; there is: step", command.cmd));
    }
    let wanted: Wanted = serde_json::from_value(Value::Object(command.rest)).map_err(|error| error.to_string())?;
    wanted.check()?;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::{coordinates, write};
    use super::*;
    use anyhow::Result;

    #[test]
    fn a_worker_answers_its_own_user_and_cleans_up_after_a_killed_one() -> Result<()> {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        drop(UnixListener::bind(dir.path().join(SOCKET))?);
        assert!(connect(dir.path()).is_err(), "a stale socket has nobody behind it");
        let handle = spawn(dir.path())?;
        assert_eq!(fs::metadata(dir.path().join(SOCKET))?.permissions().mode() & 0o777, 0o600);

        let mut lines = Vec::new();
        let done = ask(connect(dir.path())?, &coordinates(), |line| {
            lines.push(line);
            Ok(())
        })?;
        assert_eq!((&done["frames"], &done["segments"]), (&json!(4), &json!(1)));
        assert_eq!(lines.iter().map(|line| &line["kind"]).collect::<Vec<_>>(), ["accepted", "started", "result", "published"]);

        let mut stream = connect(dir.path())?;
        let mut reader = BufReader::new(stream.try_clone()?);
        for request in ["junk", r#"{"cmd":"stop"}"#, r#"{"cmd":"step"}"#, r#"{"cmd":"step","key":"1","x":1}"#] {
            writeln!(stream, "{request}")?;
            let mut line = String::new();
            reader.read_line(&mut line)?;
            assert!(line.starts_with(r#"{"error":"#), "{request}: {line}");
        }
        drop(handle);
        assert!(!dir.path().join(SOCKET).exists() && connect(dir.path()).is_err());
        Ok(())
    }

    #[test]
    fn a_folder_with_a_long_name_has_a_socket_too() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let long = dir.path().join("a".repeat(120));
        fs::create_dir(&long)?;
        let handle = spawn(&long)?;
        let done = ask(connect(&long)?, &coordinates(), |_| Ok(()))?;
        assert_eq!(done["frames"], 0);
        drop(handle);
        Ok(())
    }
}
