//! The admin socket: a Unix socket in the storage folder that answers what became of a step, and takes the word to drain.
//!
//! One JSON object a line, both ways. Only the worker's own user may connect (mode 0600). To every request the answer is some
//! lines and a last one `{"done":true, …}`, or one line `{"error": …}`.
//! `{"cmd":"step", …}` with the fields of [`Wanted`]: one line a frame ([`super::timeline::Row`]). Journals are read from
//! their files, never through a shard.
//! `{"cmd":"waiting","rows_max":…,"key":…}`: one line a step that waits for people ([`super::people::row`]), or the one of this key.
//! `{"cmd":"signal","tenant":…,"headers":{…},"body":"…"}` hands a Signal over; the last line holds the `reply`.
//! `{"cmd":"link","key":…,"actor":…,"for_ms":…}`: the last line holds a `link` to the approval page, by which that person decides.
//! `{"cmd":"drain"}`: a few lines a second `{"running":…,"queued":…,"unpublished":…}` until the worker has nothing left, and
//! then `"drained"` in the last line; the connection closes with the process. Who breaks off stops listening, not the drain.

use std::collections::BTreeMap;
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
use shards::ids::{Key, Text, unhex};
use shards::limits::{GATE_MS_MAX, ID_BYTES_MAX};

use super::drain::Drain;
use super::page::{Link, Links, PATH};
use super::people::{self, People};
use super::timeline::{self, Wanted, time};
use crate::policy::signers::HEADER;

/// The socket's name in the storage folder.
pub const SOCKET: &str = "admin.sock";
/// Connections at once; more are closed.
const CONNECTIONS_MAX: usize = 8;
/// A client that says or takes nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 16 << 10;
/// Most rows of one answer.
const ROWS_MAX: usize = 10_000;
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

/// What can be asked.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// What became of a step.
    Step(&'a Wanted),
    /// Take nothing more, finish what is here, and end.
    Drain,
    /// Which steps wait for people.
    Waiting {
        /// At most so many.
        rows_max: usize,
        /// This one alone.
        key: Option<&'a str>,
    },
    /// A link by which somebody decides one.
    Link {
        /// Its key.
        key: &'a str,
        /// Who.
        actor: &'a str,
        /// For so long, in milliseconds.
        for_ms: u64,
    },
    /// Somebody decides one.
    Signal {
        /// Whose it is.
        tenant: &'a str,
        /// The header that signs it, where it is signed.
        signature: Option<&'a str>,
        /// The Signal, in JSON.
        body: &'a str,
    },
}

impl Request<'_> {
    fn line(&self) -> io::Result<Value> {
        let (cmd, mut request) = match self {
            Request::Step(wanted) => ("step", serde_json::to_value(wanted).map_err(io::Error::other)?),
            Request::Drain => ("drain", json!({})),
            Request::Link { key, actor, for_ms } => ("link", json!({ "key": key, "actor": actor, "for_ms": for_ms })),
            Request::Waiting { rows_max, key } => ("waiting", json!({ "rows_max": rows_max, "key": key })),
            Request::Signal { tenant, signature, body } => {
                let mut request = json!({ "tenant": tenant, "body": body, "headers": {} });
                if let Some(signature) = signature {
                    request["headers"][HEADER] = Value::from(*signature);
                }
                ("signal", request)
            }
        };
        request["cmd"] = Value::from(cmd);
        Ok(request)
    }
}

/// What a worker can be asked for. Crosses threads.
#[derive(Clone, Debug)]
pub struct Desk {
    /// Where a drain is asked for, which the caller carries out; none: the worker ends by itself.
    pub drain: Option<Arc<Drain>>,
    /// Steps that wait for people.
    pub people: People,
    /// Links to the approval page, where it is shown.
    pub links: Option<LinkDesk>,
}

/// Makes links to the approval page. Crosses threads.
#[derive(Clone)]
pub struct LinkDesk {
    /// The links.
    pub links: Links,
    /// Where people reach the worker's ops address: a URL without a slash at its end.
    pub url: String,
}

impl std::fmt::Debug for LinkDesk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkDesk").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Opens the socket in `dir`, replacing one that a killed worker left. The caller holds the folder's lock.
///
/// # Errors
/// The socket cannot be made, or the thread not started.
pub fn spawn(dir: &Path, desk: Desk) -> io::Result<AdminHandle> {
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
    let thread = std::thread::Builder::new().name("admin".to_owned()).spawn(move || listen(&listener, &at, &desk, &over))?;
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
pub fn ask(stream: &UnixStream, request: Request<'_>, mut each: impl FnMut(Value) -> io::Result<()>) -> io::Result<Value> {
    let mut writer = stream;
    writer.write_all(format!("{}\n", request.line()?).as_bytes())?;
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

fn listen(listener: &UnixListener, dir: &Path, desk: &Desk, ended: &AtomicBool) {
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
        let (dir, desk, counted) = (dir.to_owned(), desk.clone(), Arc::clone(&open));
        let started = std::thread::Builder::new().name("admin-client".to_owned()).spawn(move || {
            // A client that breaks off is its own business.
            let _ = serve(&stream, &dir, &desk);
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

fn serve(stream: &UnixStream, dir: &Path, desk: &Desk) -> io::Result<()> {
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
        if let Err(error) = answer(&line, dir, desk, &mut out)? {
            writeln!(out, "{}", json!({ "error": error }))?;
        }
        out.flush()?;
    }
}

/// The outer error is the client's connection, the inner one is for the client.
fn answer(line: &[u8], dir: &Path, desk: &Desk, out: &mut impl Write) -> io::Result<Result<(), String>> {
    match command(line) {
        Ok(Asked::Step(wanted)) => step(&wanted, dir, out),
        Ok(Asked::Waiting { rows_max, key }) => waiting(&desk.people, key, rows_max, out),
        Ok(Asked::Link(wanted)) => link(desk, &wanted, out),
        Ok(Asked::Signal(signal)) => said(&desk.people, signal, out),
        Ok(Asked::Drain) => {
            let Some(drain) = &desk.drain else {
                return Ok(Err("this worker ends by itself when its file is done".to_owned()));
            };
            tracing::info!("asked to drain over the admin socket");
            drain.follow(|line| {
                writeln!(out, "{line}")?;
                out.flush()
            })?;
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(error)),
    }
}

fn step(wanted: &Wanted, dir: &Path, out: &mut impl Write) -> io::Result<Result<(), String>> {
    let timeline = match timeline::read(dir, wanted) {
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

fn waiting(people: &People, key: Option<Key>, rows_max: usize, out: &mut impl Write) -> io::Result<Result<(), String>> {
    let rows = match people.waiting(key, rows_max.min(ROWS_MAX)) {
        Ok(rows) => rows,
        Err(error) => return Ok(Err(error.to_string())),
    };
    for row in &rows {
        writeln!(out, "{}", people::row(row))?;
    }
    writeln!(out, "{}", json!({"done": true, "rows": rows.len()}))?;
    Ok(Ok(()))
}

fn link(desk: &Desk, wanted: &LinkWanted, out: &mut impl Write) -> io::Result<Result<(), String>> {
    let Some(LinkDesk { links, url }) = &desk.links else {
        return Ok(Err("this worker shows no approval page: ops.approvals is false".to_owned()));
    };
    let Some(key) = unhex(&wanted.key).map(Key) else { return Ok(Err("key: 32 hexadecimal digits are needed".to_owned())) };
    if !(1..=ID_BYTES_MAX).contains(&wanted.actor.len()) || wanted.actor.contains(char::is_control) {
        return Ok(Err("actor: a name of 1 to 256 bytes is needed".to_owned()));
    }
    if wanted.for_ms > GATE_MS_MAX {
        return Ok(Err("for: at most 90 days, as no step waits longer".to_owned()));
    }
    let now_ms = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    let until_ms = now_ms.saturating_add(wanted.for_ms);
    let token = links.write(&Link { key, actor: wanted.actor.clone(), until_ms });
    writeln!(out, "{}", json!({"done": true, "link": format!("{url}{PATH}{token}"), "until": time(until_ms)}))?;
    Ok(Ok(()))
}

/// A link as it is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkWanted {
    key: String,
    actor: String,
    for_ms: u64,
}

fn said(people: &People, signal: Said, out: &mut impl Write) -> io::Result<Result<(), String>> {
    let headers = signal.headers.into_iter().map(|(name, value)| (Text::from(name), Text::from(value))).collect();
    match people.say(&signal.tenant, headers, signal.body.into()) {
        Ok(reply) => {
            let reply: Value = serde_json::from_slice(&reply).map_err(io::Error::other)?;
            writeln!(out, "{}", json!({"done": true, "reply": reply}))?;
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// A Signal as it is handed over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    tenant: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: String,
}

/// A request as it came in.
enum Asked {
    Step(Wanted),
    Drain,
    Waiting { rows_max: usize, key: Option<Key> },
    Signal(Said),
    Link(LinkWanted),
}

fn command(line: &[u8]) -> Result<Asked, String> {
    let command: Command = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    match command.cmd.as_str() {
        "step" => {
            let wanted: Wanted = serde_json::from_value(Value::Object(command.rest)).map_err(|error| error.to_string())?;
            wanted.check()?;
            Ok(Asked::Step(wanted))
        }
        "drain" => match command.rest.keys().next() {
            None => Ok(Asked::Drain),
            Some(field) => Err(format!("drain has no field {field:?}")),
        },
        "waiting" => {
            let rows_max = command.rest.get("rows_max").and_then(Value::as_u64).ok_or("rows_max: a number is needed")?;
            let key = match command.rest.get("key") {
                None | Some(Value::Null) => None,
                Some(key) => {
                    let key = key.as_str().and_then(unhex);
                    Some(Key(key.ok_or("key: 32 hexadecimal digits are needed")?))
                }
            };
            Ok(Asked::Waiting { rows_max: rows_max as usize, key })
        }
        "signal" => serde_json::from_value(Value::Object(command.rest)).map(Asked::Signal).map_err(|error| error.to_string()),
        "link" => serde_json::from_value(Value::Object(command.rest)).map(Asked::Link).map_err(|error| error.to_string()),
        other => Err(format!("unknown cmd {other:?}; there are: step, drain, waiting, signal, link")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::drain::End;
    use super::super::timeline::tests::{coordinates, write};
    use super::*;
    use anyhow::Result;

    fn desk(drain: Arc<Drain>) -> Desk {
        Desk { drain: Some(drain), people: People::new(Vec::new()), links: None }
    }

    #[test]
    fn a_worker_answers_its_own_user_and_cleans_up_after_a_killed_one() -> Result<()> {
        let dir = tempfile::tempdir()?;
        write(dir.path())?;
        drop(UnixListener::bind(dir.path().join(SOCKET))?);
        assert!(connect(dir.path()).is_err(), "a stale socket has nobody behind it");
        let handle = spawn(dir.path(), desk(Drain::new(Vec::new())))?;
        assert_eq!(fs::metadata(dir.path().join(SOCKET))?.permissions().mode() & 0o777, 0o600);

        let mut lines = Vec::new();
        let done = ask(&connect(dir.path())?, Request::Step(&coordinates()), |line| {
            lines.push(line);
            Ok(())
        })?;
        assert_eq!((&done["frames"], &done["segments"]), (&json!(4), &json!(1)));
        assert_eq!(lines.iter().map(|line| &line["kind"]).collect::<Vec<_>>(), ["accepted", "started", "result", "published"]);

        let mut stream = connect(dir.path())?;
        let mut reader = BufReader::new(stream.try_clone()?);
        for request in
            ["junk", r#"{"cmd":"stop"}"#, r#"{"cmd":"step"}"#, r#"{"cmd":"step","key":"1","x":1}"#, r#"{"cmd":"drain","now":1}"#]
        {
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
    fn a_drain_is_asked_for_and_told_to_its_end() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let drain = Drain::new(vec![Arc::default()]);
        let _handle = spawn(dir.path(), desk(Arc::clone(&drain)))?;
        let stream = connect(dir.path())?;
        let mut progress = 0;
        let done = ask(&stream, Request::Drain, |line| {
            progress += 1;
            assert_eq!(line, json!({"running": 0, "queued": 0, "unpublished": 0}));
            if progress == 2 {
                let drain = Arc::clone(&drain);
                std::thread::spawn(move || drain.ended(End::CutShort));
            }
            Ok(())
        })?;
        assert_eq!(done, json!({"done": true, "drained": false}));
        assert!(progress >= 2, "it is told more than once");
        Ok(())
    }

    #[test]
    fn a_folder_with_a_long_name_has_a_socket_too() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let long = dir.path().join("a".repeat(120));
        fs::create_dir(&long)?;
        let handle = spawn(&long, desk(Drain::new(Vec::new())))?;
        let done = ask(&connect(&long)?, Request::Step(&coordinates()), |_| Ok(()))?;
        assert_eq!(done["frames"], 0);
        drop(handle);
        Ok(())
    }
}
