//! A PostgreSQL server of its own for a test or an example: on a free port, in a folder that goes with it, started, stopped,
//! killed and started again. As root it runs as an unprivileged user, for it refuses root.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Whom the worker is there, and its password.
pub(crate) const USER: &str = "worker";
pub(crate) const PASSWORD: &str = "s3cret-of-the-database";
pub(crate) const DATABASE: &str = "crm";
/// Who may do anything there, by the socket in its folder.
const ADMIN: &str = "postgres";
/// How long it may take to come up.
const START_MAX: Duration = Duration::from_secs(30);

/// See the module. Dies with this value.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
    child: Option<Child>,
}

/// Where PostgreSQL's programs are: Debian keeps them out of the path.
fn bin(program: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
        folders.sort();
        folders.reverse();
        let paths = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
        folders.extend(paths);
        let needed = ["initdb", "postgres", "pg_ctl", "psql"];
        let found = folders.into_iter().find(|folder| needed.iter().all(|program| folder.join(program).exists()));
        found.expect("PostgreSQL is not installed: run `make deps`")
    });
    folder.join(program)
}

/// The unprivileged user and group that it runs as, where we are root.
fn other() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let known = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of = |name: &str| {
        let line = known.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??))
    };
    of("postgres").or_else(|| of("nobody"))
}

fn command(program: &str) -> Command {
    unprivileged(bin(program))
}

/// A program that runs as the other user, where there is one.
pub(crate) fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    match other() {
        None => Command::new(program),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]).arg(program);
            command
        }
    }
}

pub(crate) fn own(path: &Path) {
    if let Some((user, group)) = other() {
        chown(path, Some(user), Some(group)).expect("ours to give away");
    }
}

fn done(what: &str, output: std::io::Result<Output>) -> String {
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A cluster as `initdb` makes it, made once and copied.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    static LOCK: Mutex<()> = Mutex::new(());
    let _one = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    TEMPLATE
        .get_or_init(|| {
            let dir = folder();
            let data = dir.path().join("data");
            let args = ["-N", "-E", "UTF8", "--locale=C.UTF-8", "--auth-local=trust", "--auth-host=scram-sha-256", "-U", ADMIN];
            done("initdb", command("initdb").args(args).arg("-D").arg(&data).current_dir(dir.path()).output());
            dir
        })
        .path()
}

/// A folder that the other user may use.
pub(crate) fn folder() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("endstation-pg-").tempdir().expect("a folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    own(dir.path());
    dir
}

impl Server {
    /// Started, with the database, the worker's user and its own schema rights in it.
    pub(crate) fn start() -> Server {
        Server::with(&[])
    }

    /// The same, with settings such as `max_connections=5`.
    pub(crate) fn with(settings: &[&str]) -> Server {
        let dir = folder();
        let from = template().join("data");
        done("cp", unprivileged("cp").arg("-r").arg(from).arg(dir.path()).output());
        let settings = settings.iter().map(|&one| one.to_owned()).collect();
        let mut server = Server { dir, port: free_port(), settings, child: None };
        server.restart();
        server.ask_in("postgres", &format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'"));
        server.ask_in("postgres", &format!("CREATE DATABASE {DATABASE} OWNER {USER}"));
        server.ask(&format!("GRANT ALL ON SCHEMA public TO {USER}"));
        server
    }

    /// Starts it again, on the same port and data.
    pub(crate) fn restart(&mut self) {
        self.stop("immediate");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = command("postgres");
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        let usual = ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=16MB", "max_connections=50", "autovacuum=off"];
        for setting in usual.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        command.args(["-p", &self.port.to_string()]).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().expect("postgres starts"));
        let begun = Instant::now();
        while !self.psql("postgres", "SELECT 1").is_ok_and(|output| output.status.success()) {
            assert!(begun.elapsed() < START_MAX, "PostgreSQL does not come up:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it: `fast` ends sessions in order, `immediate` as a crash would.
    pub(crate) fn stop(&mut self, mode: &str) {
        let Some(mut child) = self.child.take() else { return };
        let data = self.dir.path().join("data");
        let _it_may_be_gone =
            command("pg_ctl").args(["stop", "-w", "-m", mode, "-D"]).arg(data).current_dir(self.dir.path()).output();
        let _status = child.wait();
    }

    /// From its next start on it speaks TLS as well, with these files.
    pub(crate) fn secure(&mut self, cert: &Path, key: &Path) {
        for (from, name) in [(cert, "server.crt"), (key, "server.key")] {
            let to = self.dir.path().join("data").join(name);
            fs::copy(from, &to).expect("copied");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("ours");
            own(&to);
        }
        self.settings.push("ssl=on".to_owned());
    }

    /// From now on it lets in over TCP who has a certificate of this authority; no authority: who knows the password.
    pub(crate) fn demand(&self, authority: &Path) {
        let data = self.dir.path().join("data");
        let how = match authority.exists() {
            true => {
                let to = data.join("clients.crt");
                fs::copy(authority, &to).expect("copied");
                own(&to);
                self.ask("ALTER SYSTEM SET ssl_ca_file = 'clients.crt'");
                "cert"
            }
            false => "scram-sha-256",
        };
        fs::write(data.join("pg_hba.conf"), format!("local all all trust\nhostssl all all 127.0.0.1/32 {how}\n"))
            .expect("written");
        self.ask("SELECT pg_reload_conf()");
        // It takes a moment until new sessions meet the new rules.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Makes a standby of it, which is read and not written.
    pub(crate) fn demote(&mut self) {
        self.stop("fast");
        let signal = self.dir.path().join("data/standby.signal");
        fs::write(&signal, "").expect("written");
        own(&signal);
        self.restart();
    }

    /// Makes it take writes again.
    pub(crate) fn promote(&self) {
        let data = self.dir.path().join("data");
        done("pg_ctl promote", command("pg_ctl").args(["promote", "-w", "-D"]).arg(data).current_dir(self.dir.path()).output());
    }

    /// Runs SQL as its administrator and gives what it prints.
    pub(crate) fn ask(&self, sql: &str) -> String {
        self.ask_in(DATABASE, sql)
    }

    fn ask_in(&self, database: &str, sql: &str) -> String {
        done(sql, self.psql(database, sql))
    }

    fn psql(&self, database: &str, sql: impl AsRef<OsStr>) -> std::io::Result<Output> {
        let mut command = Command::new(bin("psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h"]).arg(self.dir.path());
        command.args(["-p", &self.port.to_string(), "-U", ADMIN, "-d", database, "-c"]).arg(sql).output()
    }

    /// Where it listens, on the loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}
