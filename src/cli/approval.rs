//! `endstation approval ls | show | approve | reject`: steps that wait for people, and what somebody on this machine decides of
//! them. It goes over the admin socket of the worker that has them; elsewhere, people signal over NATS or gRPC.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Subcommand};
use ed25519_dalek::Signer as _;
use serde_json::Value;
use shards::ids::unhex;

use super::config::Form;
use super::step::visible;
use super::{EXIT_CONFIG, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Global, duration, storage_dir, worker_on};
use crate::ops::admin::{self, Request};
use crate::ops::people;
use crate::policy::keys::Seed;
use crate::policy::signers::{self, Kind};
use crate::secrets::SecretRef;

const EXAMPLES: &str = "\
Examples:
  endstation approval ls
  endstation approval show 3f0c
  endstation approval approve 3f0c --as ann --comment \"looks right\"
  endstation approval link 3f0c --as ann --for 2h
  endstation approval reject 3f0c --signer ann --key secret://file/etc/keys/ann

Exit codes: 0 done, 1 it does not count (or nothing waits under this key), 2 usage, 3 no worker listens there";

/// The most rows that are asked for to find a key by its beginning.
const LOOK_MAX: usize = 10_000;

/// `endstation approval …`
#[derive(Debug, Subcommand)]
pub enum ApprovalCommand {
    /// List steps that wait for people, those whose time is over first
    #[command(after_help = EXAMPLES)]
    Ls(LsArgs),
    /// Print one, whole
    Show(ShowArgs),
    /// Approve one
    #[command(after_help = EXAMPLES)]
    Approve(DecideArgs),
    /// Reject one
    #[command(after_help = EXAMPLES)]
    Reject(DecideArgs),
    /// Print a link to the approval page, by which one person decides one of them
    #[command(after_help = EXAMPLES)]
    Link(LinkArgs),
}

/// `endstation approval link`
#[derive(Clone, Debug, Args)]
pub struct LinkArgs {
    /// The step's key, or how it begins where that says enough
    pub key: String,
    /// Who decides by it: whoever has the link is taken for this person
    #[arg(long = "as", value_name = "NAME")]
    pub actor: String,
    /// How long it holds
    #[arg(long = "for", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub holds: Duration,
    /// The worker's storage folder [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `endstation approval ls`
#[derive(Clone, Debug, Default, Args)]
pub struct LsArgs {
    /// Only this tenant's
    #[arg(long)]
    pub tenant: Option<String>,
    /// Only so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// The worker's storage folder [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `endstation approval show`
#[derive(Clone, Debug, Default, Args)]
pub struct ShowArgs {
    /// The step's key, or how it begins where that says enough
    pub key: String,
    /// The worker's storage folder [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `endstation approval approve|reject`
#[derive(Clone, Debug, Default, Args)]
pub struct DecideArgs {
    /// The step's key, or how it begins where that says enough
    pub key: String,
    /// Who decides [default: the environment's USER]
    #[arg(long = "as", value_name = "NAME", conflicts_with = "signer")]
    pub actor: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub comment: String,
    /// The digest of the plan that is approved, where the step asks about one
    #[arg(long, value_name = "DIGEST")]
    pub plan: Option<String>,
    /// Who signs the decision: the name of a [signers.*] of the worker
    #[arg(long, value_name = "NAME", requires = "sign_with")]
    pub signer: Option<String>,
    /// With which Ed25519 key, as a secret's reference: secret://file/PATH or secret://env/NAME
    #[arg(long = "key", value_name = "SECRET", requires = "signer", id = "sign_with")]
    pub sign_with: Option<String>,
    /// The worker's storage folder [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Does it, and gives the exit code.
///
/// # Errors
/// The worker cannot be asked, or the output not be written.
pub fn main(command: &ApprovalCommand, global: &Global) -> io::Result<u8> {
    let data = match command {
        ApprovalCommand::Ls(args) => &args.data,
        ApprovalCommand::Show(args) => &args.data,
        ApprovalCommand::Approve(args) | ApprovalCommand::Reject(args) => &args.data,
        ApprovalCommand::Link(args) => &args.data,
    };
    let dir = match storage_dir(data.as_deref(), global) {
        Ok(dir) => dir,
        Err(code) => return Ok(code),
    };
    run(command, &dir, Form::of_stdout(), &mut io::stdout().lock(), &mut io::stderr().lock())
}

fn run(command: &ApprovalCommand, dir: &Path, form: Form, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let Some(stream) = worker_on(dir, err)? else { return Ok(EXIT_CONFIG) };
    match command {
        ApprovalCommand::Ls(args) => ls(&stream, args, form, out),
        ApprovalCommand::Show(args) => match named(&stream, &args.key, err)? {
            Ok(row) => {
                match form {
                    Form::Table => writeln!(out, "{}", visible_lines(&serde_json::to_string_pretty(&row)?))?,
                    Form::Ndjson => writeln!(out, "{row}")?,
                }
                Ok(EXIT_OK)
            }
            Err(code) => Ok(code),
        },
        ApprovalCommand::Approve(args) => decide(&stream, args, true, form, out, err),
        ApprovalCommand::Reject(args) => decide(&stream, args, false, form, out, err),
        ApprovalCommand::Link(args) => {
            let row = match named(&stream, &args.key, err)? {
                Ok(row) => row,
                Err(code) => return Ok(code),
            };
            let key = row["key"].as_str().unwrap_or_default();
            let for_ms = args.holds.as_millis() as u64;
            let done = match admin::ask(&stream, Request::Link { key, actor: &args.actor, for_ms }, |_| Ok(())) {
                Ok(done) => done,
                Err(error) => {
                    writeln!(err, "error: {error}")?;
                    return Ok(EXIT_FAILED);
                }
            };
            writeln!(out, "{}", done["link"].as_str().unwrap_or_default())?;
            Ok(EXIT_OK)
        }
    }
}

fn ls(stream: &UnixStream, args: &LsArgs, form: Form, out: &mut impl Write) -> io::Result<u8> {
    let mut left = args.limit;
    let mut first = true;
    for row in rows(stream, None)? {
        if left == 0 || args.tenant.as_ref().is_some_and(|tenant| row["tenant"] != tenant.as_str()) {
            continue;
        }
        left -= 1;
        if form == Form::Ndjson {
            writeln!(out, "{row}")?;
            continue;
        }
        if std::mem::take(&mut first) {
            writeln!(out, "{:32}  {:20}  {:27}  {:>7}  TITLE", "KEY", "TENANT", "UNTIL", "VOTES")?;
        }
        let text = |name: &str| visible(row[name].as_str().unwrap_or_default());
        let votes = format!("{}/{}", row["votes"].as_array().map_or(0, Vec::len), row["quorum"]);
        writeln!(out, "{:32}  {:20}  {:27}  {votes:>7}  {}", text("key"), text("tenant"), text("until"), text("title"))?;
    }
    if first && form == Form::Table {
        writeln!(out, "nothing waits for people")?;
    }
    Ok(EXIT_OK)
}

fn rows(stream: &UnixStream, key: Option<&str>) -> io::Result<Vec<Value>> {
    let mut rows = Vec::new();
    admin::ask(stream, Request::Waiting { rows_max: LOOK_MAX, key }, |row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// The one step whose key begins so.
fn named(stream: &UnixStream, key: &str, err: &mut impl Write) -> io::Result<Result<Value, u8>> {
    // A whole key is found among however many; the beginning of one among those of which something is due first.
    let whole = unhex::<16>(key).map(|_| key);
    let mut named: Vec<Value> = rows(stream, whole)?;
    named.retain(|row| row["key"].as_str().is_some_and(|whole| !key.is_empty() && whole.starts_with(&key.to_ascii_lowercase())));
    match named.len() {
        1 => Ok(Ok(named.remove(0))),
        0 => {
            writeln!(err, "nothing waits for people under a key that begins with {}", visible(key))?;
            Ok(Err(EXIT_FAILED))
        }
        _ => {
            let keys: Vec<&str> = named.iter().filter_map(|row| row["key"].as_str()).take(3).collect();
            writeln!(err, "error: several keys begin so: {} …", keys.join(", "))?;
            Ok(Err(EXIT_USAGE))
        }
    }
}

fn decide(
    stream: &UnixStream,
    args: &DecideArgs,
    approve: bool,
    form: Form,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<u8> {
    let row = match named(stream, &args.key, err)? {
        Ok(row) => row,
        Err(code) => return Ok(code),
    };
    let user = || std::env::var("USER").ok().filter(|user| !user.is_empty());
    let actor = if args.signer.is_some() { None } else { args.actor.clone().or_else(user) };
    if actor.is_none() && args.signer.is_none() {
        writeln!(err, "error: --as NAME is needed: the environment has no USER")?;
        return Ok(EXIT_USAGE);
    }
    let body = people::signal(&row, approve, actor.as_deref(), &args.comment, args.plan.as_deref()).to_string();
    let signature = match (&args.signer, &args.sign_with) {
        (Some(signer), Some(secret)) => match sign(signer, secret, &body) {
            Ok(header) => Some(header),
            Err(why) => {
                writeln!(err, "error: --key: {why}")?;
                return Ok(EXIT_USAGE);
            }
        },
        _ => None,
    };
    let tenant = row["tenant"].as_str().unwrap_or_default();
    let done = admin::ask(stream, Request::Signal { tenant, signature: signature.as_deref(), body: &body }, |_| Ok(()))?;
    let reply = &done["reply"];
    let counts = reply["disposition"] == "NOTED";
    if form == Form::Ndjson {
        writeln!(out, "{reply}")?;
        return Ok(if counts { EXIT_OK } else { EXIT_FAILED });
    }
    let text = |name: &str| visible(reply[name].as_str().unwrap_or_default());
    match reply["disposition"].as_str() {
        Some("NOTED") => writeln!(out, "noted: {}", if approve { "approved" } else { "rejected" })?,
        Some("DUPLICATE") => writeln!(err, "{} said {} before, and that stands", text("actor"), text("decision"))?,
        Some("ALREADY_ENDED") => writeln!(err, "it was decided before: {}", visible(&reply["decided"].to_string()))?,
        Some("NOT_FOUND") => writeln!(err, "nothing waits under this key any more")?,
        _ => {
            let (error, details) = (&reply["error"], &reply["error"]["details"]);
            let more = if details.is_null() { String::new() } else { format!(" {details}") };
            writeln!(
                err,
                "error: {}{}",
                visible(error["message"].as_str().unwrap_or("the worker did not take it")),
                visible(&more)
            )?;
        }
    }
    Ok(if counts { EXIT_OK } else { EXIT_FAILED })
}

/// The header that signs a decision.
fn sign(signer: &str, secret: &str, body: &str) -> Result<String, String> {
    let seed = Seed { secret: SecretRef::parse(secret)?, public: None };
    let key = seed.signing_key().map_err(|error| error.to_string())?;
    let mut signed = Vec::new();
    signers::encode(Kind::Notice("signal"), "application/json", body.as_bytes(), &mut signed);
    Ok(format!("{signer};{}", BASE64.encode(key.sign(&signed).to_bytes())))
}

/// Several lines, each without what would rewrite a terminal.
fn visible_lines(text: &str) -> String {
    text.lines().map(visible).collect::<Vec<_>>().join("\n")
}
