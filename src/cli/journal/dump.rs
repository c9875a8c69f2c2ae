//! `endstation journal dump`: frames as NDJSON, printed while they are read; one segment at a time is in memory.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use shards::ids::{Key, Lsn};
use shards::journal::{CodecError, FrameView, Kind, Peek};

use super::{DumpArgs, code, open, tell};
use crate::cli::EXIT_USAGE;
use crate::ops::journal::{Finding, Folder, Stop};
use crate::ops::timeline::row;

/// Prints the frames that `args` ask for, and to `err` what could not be read. Gives the exit code.
pub(super) fn main(dir: &Path, args: &DumpArgs, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    if args.from.zip(args.to).is_some_and(|(from, to)| from > to) {
        writeln!(err, "error: --from is above --to")?;
        return Ok(EXIT_USAGE);
    }
    let journal = match open(dir, err)? {
        Ok(journal) => journal,
        Err(code) => return Ok(code),
    };
    let mut out = BufWriter::new(out);
    let (mut findings, mut buffer) = (Vec::new(), Vec::new());
    for folder in journal.folders.iter().filter(|folder| args.shard.is_none_or(|shard| shard == folder.shard)) {
        findings.extend(folder.findings.iter().cloned());
        shard(folder, args, &mut buffer, &mut findings, &mut out)?;
    }
    out.flush()?;
    findings.iter().try_for_each(|finding| tell(finding, err))?;
    Ok(code(findings.iter()))
}

fn shard(
    folder: &Folder,
    args: &DumpArgs,
    buffer: &mut Vec<u8>,
    findings: &mut Vec<Finding>,
    out: &mut impl Write,
) -> io::Result<()> {
    let (from, to) = (Lsn(args.from.unwrap_or_default()), Lsn(args.to.unwrap_or(u64::MAX)));
    let mut filter = Filter { args, keys: HashSet::new() };
    for segment in &folder.segments {
        // Which keys are a tenant's is said by frames that may lie before the first one wanted.
        let before = segment.durable_elsewhere > Lsn(0) && segment.durable_elsewhere < from && args.tenant.is_none();
        if before || segment.head.first_lsn > to {
            continue;
        }
        let read = segment.read(buffer, |place, view| {
            if filter.wants(&view)? && (from..=to).contains(&place.lsn) {
                let row = row(folder.shard, place.lsn.0, view, args.bodies)?;
                serde_json::to_writer(&mut *out, &row).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        });
        match read {
            Ok(_) => {}
            Err(Stop::Wrong(finding)) => findings.push(finding),
            Err(Stop::Taker(error)) => return Err(error),
        }
    }
    Ok(())
}

/// What of the journal is wanted, wherever it stands.
struct Filter<'a> {
    args: &'a DumpArgs,
    /// Keys of the wanted tenant: frames about a step after its first do not name the tenant.
    keys: HashSet<Key>,
}

impl Filter<'_> {
    fn wants(&mut self, view: &FrameView<'_>) -> Result<bool, CodecError> {
        let kind = |kinds: &[Kind]| kinds.is_empty() || view.kind().is_some_and(|kind| kinds.contains(&kind));
        let Some(wanted) = &self.args.tenant else { return Ok(kind(&self.args.kind)) };
        let tenant = match view.peek()? {
            Peek::Accepted(fact) => Some(fact.tenant),
            Peek::Result(fact) => Some(fact.tenant),
            Peek::Answer(fact) | Peek::Quarantined(fact) => Some(fact.tenant),
            _ => None,
        };
        let own = match tenant {
            Some(tenant) if tenant == wanted => {
                self.keys.insert(view.key());
                true
            }
            Some(_) => false,
            None => self.keys.contains(&view.key()),
        };
        Ok(own && kind(&self.args.kind))
    }
}
