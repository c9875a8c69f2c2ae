//! `endstation dev`: a NATS server of our own on this machine, and a worker on it with its streams made and all local blocks
//! open.
//!
//! The server lives in a process group of its own, so that Ctrl-C drains the worker first; it ends with us, however we end.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shards::runtime::disk::{DirLock, DiskError, lock_dir};

use super::serve::{self, Serving};
use super::{EXIT_CONFIG, EXIT_OK};
use crate::config::Origin;
use crate::edge::native::STEPS_PREFIX;
use crate::edge::subjects::collide;
use crate::settings::Settings;

/// Where Debian puts servers; not in everybody's PATH.
const MORE_PATHS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];
const NATS_PORT: u16 = 4222;
/// How long the server may take to speak; a large store is read first.
const SPEAKS_WITHIN: Duration = Duration::from_secs(20);
/// How long the worker may take to settle with it before people are told what to try.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take to end before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no server to develop with.
#[derive(Debug, thiserror::Error)]
enum DevError {
    #[error("nats-server is not installed; `make deps` installs it, or put one (2.9 or newer) in your PATH")]
    Missing,
    #[error(
        "nats.url is {0}, but dev starts a NATS server of its own on this machine: name a port of 127.0.0.1, leave it out, or work for that server with `endstation serve --provision`"
    )]
    Elsewhere(String),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    #[error("nats-server does not speak on port {port}; its last words in {log}: {words}", log = .log.display())]
    Silent { port: u16, log: PathBuf, words: String },
}

/// Starts a server and serves on it until told to end.
pub fn main(settings: &Settings) -> u8 {
    let server = match Server::start(settings) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("endstation dev: {error}");
            return EXIT_CONFIG;
        }
    };
    let mut settings = settings.clone();
    settings.nats.url = server.url();
    // Both profiles, whatever subjects were chosen for the other.
    let steps = format!("{STEPS_PREFIX}*");
    if !settings.nats.assign_subjects.iter().any(|subject| collide(subject, &steps)) {
        settings.nats.assign_subjects.push(steps);
    }
    let code = serve::run(&settings, true, |serving| {
        // What is sent before the streams are made would be lost.
        let began = Instant::now();
        while serving.status().complaint().is_some() && began.elapsed() < READY_WITHIN {
            std::thread::sleep(Duration::from_millis(10));
        }
        // A reader that went away is no reason to end.
        let _ = welcome(&settings, serving);
    });
    drop(server);
    if code == EXIT_OK {
        eprintln!("endstation dev: the journal and the streams stay in {}", settings.storage_dir.display());
    }
    code
}

fn welcome(settings: &Settings, serving: &Serving) -> io::Result<()> {
    let binary = std::env::args().next().unwrap_or_else(|| "endstation".to_owned());
    let url = &settings.nats.url;
    let example = Path::new("examples/assignments.ndjson");
    let file = if example.exists() { "examples/assignments.ndjson" } else { "-" };
    let echo = if example.exists() { "" } else { r#"echo '{"type":"echo","inputs":{"hello":"beamline"}}' | "# };
    let mut out = io::stdout().lock();
    writeln!(out, "NATS with JetStream   {url}   (its store and log: {})", home(settings).display())?;
    writeln!(out, "health and metrics    http://{0}/_health   http://{0}/metrics", serving.ops_address())?;
    writeln!(out, "try, from another terminal:")?;
    writeln!(out, "  {echo}{binary} send {file} --nats {url}")?;
    writeln!(out, "Ctrl-C ends the worker, then the server.")?;
    out.flush()
}

fn home(settings: &Settings) -> PathBuf {
    settings.storage_dir.join("nats")
}

/// A running nats-server. Ends with this value.
struct Server {
    child: Child,
    port: u16,
    /// Two servers on one store would ruin it.
    _lock: DirLock,
}

impl Server {
    fn start(settings: &Settings) -> Result<Server, DevError> {
        let binary = find().ok_or(DevError::Missing)?;
        let wanted = port(settings)?;
        let home = home(settings);
        let lock = lock_dir(&home)?;
        let port = free(wanted).map_err(|error| DevError::System("looking for a free port", error))?;
        let log_path = home.join("server.log");
        let failed = |error| DevError::System("starting nats-server", error);
        let log = std::fs::File::options().create(true).append(true).open(&log_path).map_err(failed)?;
        let mut command = Command::new(binary);
        command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"]).arg(&home);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log).process_group(0);
        // SAFETY: between fork and exec only one system call is made, which allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        let mut server = Server { child: command.spawn().map_err(failed)?, port, _lock: lock };
        let began = Instant::now();
        while !server.speaks() {
            let ended = server.child.try_wait().map_err(failed)?.is_some();
            if ended || began.elapsed() > SPEAKS_WITHIN {
                let text = std::fs::read_to_string(&log_path).unwrap_or_default();
                let words = text.lines().last().unwrap_or("none").to_owned();
                return Err(DevError::Silent { port, log: log_path, words });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Whether it greets, as a NATS server does first of all.
    fn speaks(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else { return false };
        let mut greeting = [0; 4];
        stream.set_read_timeout(Some(Duration::from_millis(500))).is_ok()
            && stream.read_exact(&mut greeting).is_ok()
            && greeting == *b"INFO"
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while began.elapsed() < ENDS_WITHIN && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(MORE_PATHS.map(PathBuf::from));
    folders.map(|folder| folder.join("nats-server")).find(|binary| binary.is_file())
}

/// The port that was asked for, if any was.
fn port(settings: &Settings) -> Result<Option<u16>, DevError> {
    let row = settings.rows().iter().find(|row| row.key == "nats.url");
    if row.is_none_or(|row| row.origin == Origin::Default) {
        return Ok(None);
    }
    let url = &settings.nats.url;
    let place = url.strip_prefix("nats://").unwrap_or(url).trim_end_matches('/');
    let (host, port) = place.split_once(':').map_or((place, Some(NATS_PORT)), |(host, port)| (host, port.parse().ok()));
    match port {
        Some(port) if matches!(host, "127.0.0.1" | "localhost") => Ok(Some(port)),
        _ => Err(DevError::Elsewhere(url.clone())),
    }
}

/// The wanted port, or an error where it is taken; without one the usual port, or where that is taken any other.
fn free(wanted: Option<u16>) -> io::Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| Ok(listener.local_addr()?.port()));
    match wanted {
        Some(port) => bind(port),
        None => bind(NATS_PORT).or_else(|_| bind(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(url: &str) -> Option<Option<u16>> {
        let settings = Settings::load(None, std::iter::empty(), &[("nats.url", url, "--set")]).expect("a usable url");
        port(&settings).ok()
    }

    #[test]
    fn a_port_of_this_machine_may_be_chosen_and_another_machine_may_not() {
        assert_eq!(port(&Settings::default()).ok(), Some(None));
        assert_eq!(asked("nats://127.0.0.1:4333"), Some(Some(4333)));
        assert_eq!(asked("nats://localhost"), Some(Some(NATS_PORT)));
        assert_eq!(asked("nats://example.com:4222"), None);
        assert_eq!(asked("nats://127.0.0.1:1,nats://127.0.0.1:2"), None);
    }

    #[test]
    fn a_taken_port_is_an_error_only_where_it_was_asked_for() -> io::Result<()> {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        assert!(free(Some(taken.local_addr()?.port())).is_err());
        assert!(free(None)? > 0);
        Ok(())
    }
}
