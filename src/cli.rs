//! The command line: what can be asked of the binary, and which code it ends with.
//!
//! Exit codes: 0 all went well, 1 some of it did not, 2 the command line cannot be used, 3 the configuration cannot be used,
//! 4 the journal is damaged, 5 a newer version wrote it; 130 a flow's run was stopped by a signal.

pub mod approval;
pub mod blocks;
pub mod config;
pub mod demo;
pub mod dev;
pub mod dlq;
pub mod drain;
pub mod journal;
pub mod policy;
pub mod run;
pub mod send;
pub mod serve;
pub mod sql;
pub mod step;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, process_env};
use crate::edge::native::Encoding;
use shards::journal::segment::HeadError;
use shards::runtime::disk::DiskError;
use shards::runtime::launch::ShardError;

use crate::ops::admin::{self, SOCKET};
use crate::ops::journal::Wrong;
use crate::ops::journal::wrong::Grade;
use crate::ops::logs;
use crate::ops::timeline::Wanted;
use crate::settings::Settings;
use crate::worker::WorkerError;

/// All went well.
pub const EXIT_OK: u8 = 0;
/// Some of it did not.
pub const EXIT_FAILED: u8 = 1;
/// The command line cannot be used.
pub const EXIT_USAGE: u8 = 2;
/// The configuration cannot be used, or names a folder where there is nothing of what is asked for.
pub const EXIT_CONFIG: u8 = 3;
/// The journal is not as it was written.
pub const EXIT_DAMAGED: u8 = 4;
/// A newer version wrote the journal.
pub const EXIT_NEWER: u8 = 5;
/// A flow's run was told to stop, and can go on later: what shells say of SIGINT.
pub const EXIT_STOPPED: u8 = 130;

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("ENDSTATION_PROFILE"),
    ", ",
    env!("ENDSTATION_TARGET"),
    ", ",
    env!("ENDSTATION_RUSTC"),
    ")"
);

const EXAMPLES: &str = "\
Examples:
  endstation demo                            steps run, the worker is killed, nothing is lost
  endstation run steps.ndjson                run a file's steps, one JSON object a line
  cat steps.ndjson | endstation run -        the same from a pipe
  endstation run flow.json                   run a flow: steps that follow from each other
  endstation run --dry-run flow.json         say what each step would do, and do nothing
  endstation dev                             a worker for development, with its own streams
  endstation serve --set nats.url=n1:4222    a worker for a NATS server
  endstation send steps.ndjson               send assignments, show what comes back
  endstation step show 3f0c…                 what became of a step
  endstation journal check                   whether every frame of the journal is as it was written
  endstation dlq ls --since 2h               steps that could not be done, wherever their letters are
  endstation approval ls                     steps that wait for people; also show, approve and reject
  endstation drain --wait 60s                let the running worker finish what it has, and end
  endstation blocks example crypto.hash      steps to try a block with; also `blocks ls` and `blocks schema`
  endstation policy explain --tenant acme --url https://api.example.com/
                                             whether a tenant may reach it, and by which rule
  endstation sql init crm                    let a database keep records, so that no write is done twice
  endstation config show --origin            every setting, and where it came from

Exit codes: 0 all went well, 1 some of it did not, 2 usage, 3 configuration, 4 damaged journal, 5 newer journal,
            130 a flow's run was stopped";

const DRAIN_CODES: &str = "\
Exit codes: 0 drained and ended, 1 not within the wait (it goes on draining), 2 usage, 3 no worker listens there";

const STEP_EXAMPLES: &str = "\
Examples:
  endstation step show 3f0c5a1e9b7d42688a90c1d2e3f40516
  endstation step show --tenant acme --flow f-1 --step s-1 --attempt 1
  endstation step show --tenant acme --assignment 0b8c…

Exit codes: 0 known, 1 unknown, 2 usage, 3 configuration";

/// A durable, thread-per-core worker for Beamline flow steps.
#[derive(Debug, Parser)]
#[command(name = "endstation", version = VERSION, about, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// What is told to every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What is told to every command: where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Configuration file [default: ./endstation.toml if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, over file and environment; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,
}

impl Global {
    /// The configuration, with `flags` (key, value, name of the flag) above all else; of two `--set` the last decides.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn settings(&self, flags: &[(&str, &str, &str)]) -> Result<Settings, ConfigError> {
        let set = self.set.iter().rev().map(|(key, value)| (key.as_str(), value.as_str(), "--set"));
        let all: Vec<(&str, &str, &str)> = flags.iter().copied().chain(set).collect();
        Settings::load(self.config.as_deref(), process_env(), &all)
    }

    /// The same; where it cannot be used, all faults are printed and the exit code is the error.
    ///
    /// # Errors
    /// [`EXIT_CONFIG`].
    pub fn settings_or_exit(&self, flags: &[(&str, &str, &str)]) -> Result<Settings, u8> {
        self.settings(flags).map_err(|error| {
            for fault in &error.faults {
                let _ = writeln!(io::stderr(), "error: {fault}");
            }
            EXIT_CONFIG
        })
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE, for example nats.url=nats://127.0.0.1:4222".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let ms = crate::config::parse_duration(text);
    ms.map(Duration::from_millis).ok_or_else(|| "must be a duration with a unit, such as 500ms, 30s or 2m".to_owned())
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the steps of a file or pipe here, without NATS
    Run(RunArgs),
    /// Work for a NATS server until told to stop
    Serve(ServeArgs),
    /// Like serve, for development: makes its streams and opens all local blocks
    Dev,
    /// Send assignments from a file to a worker, and show what comes back
    Send(SendArgs),
    /// What became of a step
    #[command(subcommand)]
    Step(StepCommand),
    /// The journal: whether it is sound, what it holds
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// Dead letters, in the worker's own store and in the server's streams
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Steps that wait for people
    #[command(subcommand)]
    Approval(approval::ApprovalCommand),
    /// Let a running worker take nothing more, finish what it has, and end
    #[command(after_help = DRAIN_CODES)]
    Drain(DrainArgs),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What tenants may reach, and by which rule
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// The blocks: which there are, what they take and give
    #[command(subcommand)]
    Blocks(blocks::BlocksCommand),
    /// Databases that keep the records of writes
    #[command(subcommand)]
    Sql(sql::SqlCommand),
    /// See steps run, the worker be killed, and nothing be lost
    Demo,
}

/// `endstation run`
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Steps, one JSON object a line, or a flow, one JSON object with steps; - is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Where the journal is kept [default: storage.dir]
    #[arg(long, visible_alias = "storage", value_name = "DIR", conflicts_with = "dry_run")]
    pub data: Option<PathBuf>,
    /// Run every step again, also those that went well before; a flow under a run id of its own
    #[arg(long, conflicts_with = "dry_run")]
    pub fresh: bool,
    /// Only say what each step would do, and do nothing; leaves nothing behind
    #[arg(long)]
    pub dry_run: bool,
    /// For a dry run of a flow: outputs by the id of a step, one JSON object
    #[arg(long, value_name = "FILE")]
    pub fixtures: Option<PathBuf>,
    /// The run of a flow: under the same id it goes on where it was [default: of its id, version and content]
    #[arg(long, value_name = "ID")]
    pub run_id: Option<String>,
    /// Whose flow it is [default: local]
    #[arg(long, value_name = "TENANT")]
    pub tenant: Option<String>,
}

/// `endstation serve`
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// Create missing streams
    #[arg(long)]
    pub provision: bool,
}

/// `endstation send`
#[derive(Clone, Debug, Default, Args)]
pub struct SendArgs {
    /// Assignments or steps, one JSON object a line; - : standard input
    pub file: PathBuf,
    /// The server [default: nats.url]
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// Where to send them [default: the first of nats.assign_subjects]
    #[arg(long, value_name = "SUBJECT")]
    pub subject: Option<String>,
    /// Send steps as they are, to the native subject of their tenant; without it each becomes an assignment
    #[arg(long)]
    pub native: bool,
    /// As --native, in protobuf
    #[arg(long)]
    pub protobuf: bool,
    /// Send steps by gRPC: http:// or https://, host and port
    #[arg(long, value_name = "URL", conflicts_with_all = ["nats", "subject", "native", "protobuf"])]
    pub grpc: Option<String>,
    /// Who signs the worker's certificate (PEM), for https://
    #[arg(long, value_name = "FILE", requires = "grpc")]
    pub ca: Option<PathBuf>,
    /// A certificate of our own (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["grpc", "key"])]
    pub cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["grpc", "cert"])]
    pub key: Option<PathBuf>,
    /// How long to wait for the results
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

/// `endstation step …`
#[derive(Debug, Subcommand)]
pub enum StepCommand {
    /// Its frames in the journal, from the first to the last
    #[command(after_help = STEP_EXAMPLES)]
    Show(StepArgs),
}

/// `endstation step show`
#[derive(Clone, Debug, Default, Args)]
pub struct StepArgs {
    /// The step's key: 32 hexadecimal digits
    #[arg(conflicts_with_all = ["tenant", "run", "flow", "step", "attempt", "assignment"], required_unless_present = "tenant")]
    pub key: Option<String>,
    /// The tenant
    #[arg(long)]
    pub tenant: Option<String>,
    /// The run of the flow, if the step named one
    #[arg(long, requires = "flow")]
    pub run: Option<String>,
    /// The flow
    #[arg(long, requires_all = ["tenant", "step", "attempt"])]
    pub flow: Option<String>,
    /// The step of the flow
    #[arg(long, requires = "flow")]
    pub step: Option<String>,
    /// The attempt
    #[arg(long, requires = "flow")]
    pub attempt: Option<u64>,
    /// The assignment, instead of flow, step and attempt
    #[arg(long, requires = "tenant", conflicts_with = "flow")]
    pub assignment: Option<String>,
    /// Where the journal is kept [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `endstation drain`
#[derive(Clone, Debug, Default, Args)]
pub struct DrainArgs {
    /// How long to wait for it
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub wait: Duration,
    /// The worker's storage folder [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `endstation config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration can be used, and everything that is wrong with it
    Check,
    /// Print every key with its value; secrets are hidden
    Show {
        /// And where each value came from
        #[arg(long)]
        origin: bool,
    },
}

/// Does what the command line says, and gives the exit code.
pub fn main() -> u8 {
    // Trips the crash points named in the environment, in builds made for tests.
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE } else { EXIT_OK };
        }
    };
    let code = dispatch(&cli);
    logs::flush();
    code
}

fn dispatch(cli: &Cli) -> u8 {
    let global = &cli.global;
    match &cli.command {
        Command::Run(args) => {
            let data = args.data.as_ref().map(|dir| dir.display().to_string());
            let flags: Vec<_> = data.iter().map(|dir| ("storage.dir", dir.as_str(), "--data")).collect();
            let RunArgs { file, fresh, dry_run: dry, fixtures, run_id, tenant, .. } = args.clone();
            let run = run::Run { file, fresh, dry, run_id, tenant, fixtures };
            with_settings(global, &flags, |settings| run::main(&run, settings))
        }
        Command::Serve(args) => {
            let flags: &[_] = if args.provision { &[("nats.provision", "true", "--provision")] } else { &[] };
            with_settings(global, flags, serve::main)
        }
        Command::Dev => with_settings(global, &[("nats.provision", "true", "dev")], dev::main),
        Command::Send(args) => {
            let flags: Vec<_> = args.nats.iter().map(|url| ("nats.url", url.as_str(), "--nats")).collect();
            let native = match (args.protobuf || args.grpc.is_some(), args.native) {
                (true, _) => Some(Encoding::Protobuf),
                (false, true) => Some(Encoding::Json),
                (false, false) => None,
            };
            let (ca, cert, key) = (args.ca.clone(), args.cert.clone(), args.key.clone());
            let call = args.grpc.clone().map(|url| send::Call { url, ca, cert, key });
            let (file, subject) = (args.file.clone(), args.subject.clone());
            let send = send::Send { file, subject, native, call, timeout: args.timeout };
            with_settings(global, &flags, |settings| send::main(&send, settings))
        }
        Command::Demo => with_settings(global, &[], demo::main),
        Command::Step(StepCommand::Show(args)) => told(step_show(args, global)),
        Command::Journal(command) => told(journal::main(command, global)),
        Command::Approval(command) => told(approval::main(command, global)),
        Command::Dlq(command) => told(dlq::main(command, global)),
        Command::Drain(args) => match storage_dir(args.data.as_deref(), global) {
            Ok(dir) => {
                let form = config::Form::of_stdout();
                told(drain::main(&dir, args.wait, form, &mut io::stdout().lock(), &mut io::stderr().lock()))
            }
            Err(code) => code,
        },
        Command::Policy(policy::PolicyCommand::Explain(args)) => match global.settings_or_exit(&[]) {
            Ok(settings) => told(policy::run(&settings, args)),
            Err(code) => code,
        },
        Command::Blocks(command) => told(blocks::main(command)),
        Command::Sql(command) => match global.settings_or_exit(&[]) {
            Ok(settings) => told(sql::main(command, &settings, &mut io::stdout().lock())),
            Err(code) => code,
        },
        Command::Config(ConfigCommand::Check) => {
            told(config::check(&global.settings(&[]), config::Form::of_stdout(), &mut io::stdout().lock()))
        }
        Command::Config(ConfigCommand::Show { origin }) => {
            told(config::show(&global.settings(&[]), *origin, config::Form::of_stdout(), &mut io::stdout().lock()))
        }
    }
}

/// Runs a command that works, as opposed to one that only shows: with its settings and with logging.
fn with_settings(global: &Global, flags: &[(&str, &str, &str)], command: impl FnOnce(&Settings) -> u8) -> u8 {
    match global.settings_or_exit(flags) {
        Ok(settings) => {
            logs::init(settings.log_level, logs::Form::of_stderr());
            command(&settings)
        }
        Err(code) => code,
    }
}

fn step_show(args: &StepArgs, global: &Global) -> io::Result<u8> {
    let StepArgs { key, tenant, run, flow, step, attempt, assignment, data } = args.clone();
    let wanted = Wanted { key, tenant, run, flow, step, attempt, assignment };
    let dir = match storage_dir(data.as_deref(), global) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    step::show(&dir, &wanted, config::Form::of_stdout(), &mut io::stdout().lock(), &mut io::stderr().lock())
}

/// Where the journal is kept: `data`, or what the configuration says, which is not needed otherwise.
fn storage_dir(data: Option<&Path>, global: &Global) -> Result<PathBuf, u8> {
    match data {
        Some(dir) => Ok(dir.to_owned()),
        None => global.settings_or_exit(&[]).map(|settings| settings.storage_dir),
    }
}

/// The worker that runs on `dir`; none is told to `err`.
fn worker_on(dir: &Path, err: &mut impl Write) -> io::Result<Option<UnixStream>> {
    match admin::connect(dir) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => {
            let socket = dir.join(SOCKET);
            writeln!(err, "error: no worker listens on {} ({error}); is it another storage.dir?", socket.display())?;
            Ok(None)
        }
    }
}

/// The exit code of a worker that cannot start.
fn cannot_start(error: &WorkerError) -> u8 {
    let (WorkerError::Disk(disk) | WorkerError::Shard(ShardError::Disk(disk))) = error else { return EXIT_CONFIG };
    let wrong = match disk {
        DiskError::Head { error, .. } => Wrong::Head(error.clone()),
        DiskError::Damaged { damage, .. } => Wrong::Damage(*damage),
        DiskError::Io { .. } | DiskError::NoRoom { .. } | DiskError::NoRoomToReshard { .. } | DiskError::Held { .. } => {
            return EXIT_CONFIG;
        }
    };
    match (wrong.grade(), wrong) {
        (Grade::Newer, _) => EXIT_NEWER,
        (_, Wrong::Damage(_) | Wrong::Head(HeadError::Damaged)) => EXIT_DAMAGED,
        _ => EXIT_CONFIG,
    }
}

/// A reader that has seen enough is no failure.
fn told(result: io::Result<u8>) -> u8 {
    match result {
        Ok(code) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_OK,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            EXIT_FAILED
        }
    }
}
