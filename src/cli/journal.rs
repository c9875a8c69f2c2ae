//! `endstation journal check | stat | dump`: the journal's files, read and never touched, also while a worker writes them.
//!
//! `check` says whether all is as it was written, `stat` how much there is and how long it will last, `dump` what it says.

mod check;
mod dump;
mod stat;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use shards::journal::Kind;

use super::config::Form;
use super::{EXIT_CONFIG, EXIT_DAMAGED, EXIT_FAILED, EXIT_NEWER, EXIT_OK, Global, storage_dir};
use crate::ops::journal::wrong::Grade;
use crate::ops::journal::{Finding, Journal};

const CODES: &str = "\
Exit codes: 0 sound (a torn tail, which a crash leaves, is), 1 some of it could not be read, 2 usage,
3 no journal there, 4 damaged, 5 written by a newer version";

const CHECK: &str = "\
Reads every segment of every shard: headers, checksums, sequence and lsn without gaps; decodes every frame and folds them all.
Changes nothing; may run beside the worker or on a copy.";

/// `endstation journal …`
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Say whether the journal is as it was written, and where it is not
    #[command(long_about = CHECK, after_help = CODES)]
    Check(PlaceArgs),
    /// Say how large it is, how fast it grows and how long it will last; times the disk's fsync with a small file
    #[command(after_help = CODES)]
    Stat(PlaceArgs),
    /// Print its frames, one JSON object a line; secrets by name are hidden
    #[command(after_help = CODES)]
    Dump(DumpArgs),
}

/// Where the journal is.
#[derive(Clone, Debug, Default, Args)]
pub struct PlaceArgs {
    /// Where the journal is kept [default: storage.dir]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `endstation journal dump`
#[derive(Clone, Debug, Default, Args)]
pub struct DumpArgs {
    /// Where the journal is
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Only this shard
    #[arg(long, value_name = "N")]
    pub shard: Option<u16>,
    /// Only from this frame on
    #[arg(long, value_name = "LSN")]
    pub from: Option<u64>,
    /// Only up to this frame
    #[arg(long, value_name = "LSN")]
    pub to: Option<u64>,
    /// Only frames of this kind; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kind)]
    pub kind: Vec<Kind>,
    /// Only what is about this tenant's steps
    #[arg(long)]
    pub tenant: Option<String>,
    /// With headers, bodies and outputs instead of their sizes
    #[arg(long)]
    pub bodies: bool,
}

fn kind(text: &str) -> Result<Kind, String> {
    let known = || Kind::ALL.into_iter().filter(|kind| kind.known());
    let names = || known().map(Kind::name).collect::<Vec<_>>().join(", ");
    known().find(|kind| kind.name() == text).ok_or_else(|| format!("must be one of {}", names()))
}

/// Does it, and gives the exit code.
///
/// # Errors
/// A folder cannot be listed, or the output not be written.
pub fn main(command: &JournalCommand, global: &Global) -> io::Result<u8> {
    let (out, err, form) = (&mut io::stdout().lock(), &mut io::stderr().lock(), Form::of_stdout());
    let run = |place: &PlaceArgs, run: &mut dyn FnMut(&Path) -> io::Result<u8>| match storage_dir(place.data.as_deref(), global) {
        Ok(dir) => run(&dir),
        Err(code) => Ok(code),
    };
    match command {
        JournalCommand::Check(place) => run(place, &mut |dir| check::main(dir, form, out, err)),
        JournalCommand::Dump(args) => run(&args.place, &mut |dir| dump::main(dir, args, out, err)),
        // The only one that needs the configuration, for the bounds.
        JournalCommand::Stat(place) => {
            let data = place.data.as_ref().map(|dir| dir.display().to_string());
            let flags: Vec<_> = data.iter().map(|dir| ("storage.dir", dir.as_str(), "--data")).collect();
            match global.settings_or_exit(&flags) {
                Ok(settings) => stat::main(&settings, form, out, err),
                Err(code) => Ok(code),
            }
        }
    }
}

/// The journal under `dir`; where there is none, that is said to `err` and the exit code is the error.
fn open(dir: &Path, err: &mut impl Write) -> io::Result<Result<Journal, u8>> {
    let what = match Journal::open(dir) {
        Ok(journal) if !journal.folders.is_empty() => return Ok(Ok(journal)),
        Ok(_) => "there is no journal in it".to_owned(),
        Err(error) => error.to_string(),
    };
    writeln!(err, "error: {}: {what}; name the worker's storage.dir with --data", dir.display())?;
    Ok(Err(EXIT_CONFIG))
}

/// The exit code that says the worst of what was found.
fn code<'a>(findings: impl Iterator<Item = &'a Finding>) -> u8 {
    match findings.map(|finding| finding.wrong.grade()).max() {
        None => EXIT_OK,
        Some(Grade::Unread) => EXIT_FAILED,
        Some(Grade::Newer) => EXIT_NEWER,
        Some(Grade::Damaged) => EXIT_DAMAGED,
    }
}

/// One finding for people, in two lines.
fn tell(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let word = match finding.wrong.grade() {
        Grade::Unread => "unread",
        Grade::Newer => "newer",
        Grade::Damaged => "DAMAGE",
    };
    writeln!(out, "  {word}: {finding}\n    cure: {}", finding.wrong.cure())
}

/// Bytes in the unit that people read best.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}
