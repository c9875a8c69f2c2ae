//! `endstation dlq ls | show`: dead letters, wherever they are: in the worker's own store, in a stream of the server, or both.
//!
//! The store's files are read as they are, also while a worker writes them; the server is asked like any client would. A letter
//! that is in both places is shown once.

mod ls;
mod show;
mod stream;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::config::Form;
use super::{EXIT_CONFIG, EXIT_DAMAGED, EXIT_FAILED, EXIT_NEWER, Global};
use crate::dlq::reading::{self, Unread};
use crate::settings::Settings;

const LS_CODES: &str = "\
Examples:
  endstation dlq ls --tenant acme --since 2h
  endstation dlq ls --reason POISON --limit 0 | jq .id

Exit codes: 0 shown, 1 the server named with --nats could not be read, 2 usage, 3 configuration or nothing to read,
4 a file of the store is damaged, 5 a newer version wrote one";

const SHOW_CODES: &str = "\
Exit codes: 0 known, 1 unknown (or the server named with --nats could not be read), 2 usage, 3 configuration";

/// `endstation dlq …`
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters, the newest last
    #[command(after_help = LS_CODES)]
    Ls(LsArgs),
    /// Print one, whole; secrets by name are hidden
    #[command(after_help = SHOW_CODES)]
    Show(ShowArgs),
}

/// Where dead letters are looked for.
#[derive(Clone, Debug, Default, Args)]
pub struct PlaceArgs {
    /// The worker's storage folder [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The server [default: nats.url]
    #[arg(long, value_name = "URL", conflicts_with = "offline")]
    pub nats: Option<String>,
    /// Ask no server: only the worker's own store
    #[arg(long)]
    pub offline: bool,
}

/// `endstation dlq ls`
#[derive(Clone, Debug, Default, Args)]
pub struct LsArgs {
    /// Where they are looked for
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only this tenant's
    #[arg(long)]
    pub tenant: Option<String>,
    /// Only those with this error code
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
    /// Only those of so long ago at most (2h), or since this moment (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<u64>,
    /// Only so many, the newest; 0: all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: usize,
}

/// `endstation dlq show`
#[derive(Clone, Debug, Default, Args)]
pub struct ShowArgs {
    /// The letter's id, or how it begins where that says enough
    pub id: String,
    /// Where it is looked for
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Also show what goes by a secret's name
    #[arg(long)]
    pub secrets: bool,
}

/// A moment, Unix ms.
fn since(text: &str) -> Result<u64, String> {
    let now = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    let ago = crate::config::parse_duration(text).map(|ms| now.saturating_sub(ms));
    let at = || text.parse::<jiff::Timestamp>().ok().map(|at| at.as_millisecond().max(0).unsigned_abs());
    ago.or_else(at).ok_or_else(|| "must be a duration with a unit (30m, 2h) or a moment (2026-01-31T12:00:00Z)".to_owned())
}

/// Does it, and gives the exit code.
///
/// # Errors
/// The store cannot be read, or the output not be written.
pub fn main(command: &DlqCommand, global: &Global) -> io::Result<u8> {
    let (out, err, form) = (&mut io::stdout().lock(), &mut io::stderr().lock(), Form::of_stdout());
    let place = match command {
        DlqCommand::Ls(args) => &args.place,
        DlqCommand::Show(args) => &args.place,
    };
    let data = place.data.as_ref().map(|dir| dir.display().to_string());
    let data = data.iter().map(|dir| ("storage.dir", dir.as_str(), "--data"));
    let nats = place.nats.iter().map(|url| ("nats.url", url.as_str(), "--nats"));
    let flags: Vec<_> = data.chain(nats).collect();
    let settings = match global.settings_or_exit(&flags) {
        Ok(settings) => settings,
        Err(code) => return Ok(code),
    };
    match command {
        DlqCommand::Ls(args) => ls::main(args, &settings, form, out, err),
        DlqCommand::Show(args) => show::main(args, &settings, form, out, err),
    }
}

/// Whether the store and the server could be read, for the exit code.
#[derive(Default)]
struct Sight {
    /// What of the store could not.
    unread: Vec<Unread>,
    /// The server could not, though it was named.
    blind: bool,
    /// There was something to read.
    any: bool,
}

impl Sight {
    /// Gives every letter of the store and then of the streams to `each`.
    fn read(
        settings: &Settings,
        place: &PlaceArgs,
        wanted: &stream::Wanted,
        err: &mut impl Write,
        mut each: impl FnMut(Letter<'_>),
    ) -> io::Result<Sight> {
        let dir = &settings.storage_dir;
        let mut sight = Sight { any: reading::exists(dir), ..Sight::default() };
        sight.unread = reading::read(dir, |found, body| {
            each(Letter::Stored(&found, body));
            true
        })?;
        for what in &sight.unread {
            writeln!(err, "warning: {what}")?;
        }
        if place.offline {
            return Ok(sight);
        }
        match stream::read(&settings.nats, wanted, |found| each(Letter::Streamed(&found))) {
            Ok(streams) => sight.any |= streams > 0,
            Err(why) => {
                sight.blind = place.nats.is_some();
                let word = if sight.blind { "error" } else { "note" };
                writeln!(err, "{word}: {}: {why}; only the store in {} is shown", settings.nats.url, dir.display())?;
            }
        }
        if !sight.any && !sight.blind {
            writeln!(
                err,
                "error: {}: there is no store of dead letters in it, and no stream; name the worker's storage.dir with --data",
                dir.display()
            )?;
        }
        Ok(sight)
    }

    /// The exit code, where `otherwise` would be right if all could be read.
    fn code(&self, otherwise: u8) -> u8 {
        let newer = |what: &Unread| matches!(what, Unread::Newer(..));
        match () {
            () if self.unread.iter().any(|what| !newer(what)) => EXIT_DAMAGED,
            () if self.unread.iter().any(newer) => EXIT_NEWER,
            () if self.blind => EXIT_FAILED,
            () if !self.any => EXIT_CONFIG,
            () => otherwise,
        }
    }
}

/// A letter as it was found.
enum Letter<'a> {
    /// In the store, with its body.
    Stored(&'a reading::Found, &'a [u8]),
    /// In a stream.
    Streamed(&'a stream::Found),
}
