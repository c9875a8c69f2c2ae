//! `endstation journal stat`: how much there is, how fast it grows, and how long the journal will remember at that rate.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use shards::limits::Limits;
use shards::runtime::disk::{FsyncTimes, is_held, measure};

use super::{code, open, size};
use crate::cli::config::Form;
use crate::ops::journal::survey::{self, Rate, Survey};
use crate::ops::timeline::time;
use crate::settings::Settings;

/// Says it of the journal in the storage folder of `settings`. Gives the exit code.
pub(super) fn main(settings: &Settings, form: Form, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let dir = &settings.storage_dir;
    let journal = match open(dir, err)? {
        Ok(journal) => journal,
        Err(code) => return Ok(code),
    };
    let fsync = match measure(dir) {
        Ok(times) => Some(times),
        Err(error) => {
            writeln!(err, "warning: the disk's fsync is not timed: {error}")?;
            None
        }
    };
    let (in_use, now_ms) = (is_held(dir), jiff::Timestamp::now().as_millisecond().unsigned_abs());
    let surveys = survey::all(&journal);
    let count = surveys.len();
    for (index, survey) in surveys.iter().enumerate() {
        let stat = Stat::of(survey, &settings.shard_limits(index, count), dir, in_use, now_ms);
        match form {
            Form::Table => stat.table(dir, now_ms, out)?,
            Form::Ndjson => writeln!(out, "{}", stat.line(dir, now_ms))?,
        }
    }
    let whole = Whole { limits: &settings.limits, surveys: &surveys, in_use, fsync };
    match form {
        Form::Table => whole.table(out)?,
        Form::Ndjson => writeln!(out, "{}", whole.line())?,
    }
    let findings = || surveys.iter().flat_map(|survey| &survey.findings);
    if findings().next().is_some() {
        writeln!(err, "warning: not all of it is sound, and the figures cover what is; see endstation journal check")?;
    }
    Ok(code(findings()))
}

/// All shards together.
struct Whole<'a> {
    limits: &'a Limits,
    surveys: &'a [Survey],
    in_use: bool,
    fsync: Option<FsyncTimes>,
}

impl Whole<'_> {
    fn sum(&self, of: fn(&Survey) -> u64) -> u64 {
        self.surveys.iter().map(of).sum()
    }

    fn line(&self) -> Value {
        let Limits { journal_bytes_max, horizon_ms, horizon_min_ms, .. } = self.limits;
        json!({
            "shards": self.surveys.len(), "bytes": self.sum(|survey| survey.bytes),
            "disk_bytes": self.sum(|survey| survey.disk_bytes), "bytes_max": journal_bytes_max,
            "horizon_ms": horizon_ms, "horizon_min_ms": horizon_min_ms, "in_use": self.in_use,
            "fsync_p50_us": self.fsync.map(|times| times.p50_us), "fsync_p99_us": self.fsync.map(|times| times.p99_us),
        })
    }

    fn table(&self, out: &mut impl Write) -> io::Result<()> {
        let (bytes, disk) = (size(self.sum(|survey| survey.bytes)), size(self.sum(|survey| survey.disk_bytes)));
        writeln!(out, "all: {bytes} of {}, {disk} on disk", size(self.limits.journal_bytes_max))?;
        let ms = |us: u64| us as f64 / 1000.0;
        match self.fsync {
            Some(times) => writeln!(out, "fsync: p50 {:.2} ms, p99 {:.2} ms", ms(times.p50_us), ms(times.p99_us)),
            None => Ok(()),
        }
    }
}

/// One shard's figures.
struct Stat<'a> {
    survey: &'a Survey,
    rate: Rate,
    /// The shard's part of `journal.bytes_max`.
    bytes_max: u64,
    /// Until the budget is used up at this rate; absent where the journal stands still.
    full_in_ms: Option<u64>,
    /// How far back the journal will remember at this rate.
    horizon_ms: u64,
    /// Its configured least.
    horizon_min_ms: u64,
    beside: KeyFiles,
}

/// What lies beside a shard's segments so that boots and memory stay small.
#[derive(Clone, Copy, Default)]
struct KeyFiles {
    files: u64,
    bytes: u64,
}

impl KeyFiles {
    /// A worker may be at work in the folder: what goes meanwhile is not counted.
    fn of(folder: &Path) -> KeyFiles {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let keys = entries.filter(|entry| entry.path().extension().is_some_and(|suffix| suffix == "keys"));
        keys.filter_map(|entry| entry.metadata().ok())
            .fold(KeyFiles::default(), |KeyFiles { files, bytes }, file| KeyFiles { files: files + 1, bytes: bytes + file.len() })
    }
}

impl<'a> Stat<'a> {
    fn of(survey: &'a Survey, limits: &Limits, dir: &Path, in_use: bool, now_ms: u64) -> Stat<'a> {
        // A worker that is idle shows its rate as it falls; of a journal at rest the last minutes of work tell more.
        let rate = survey.pace.rate(if in_use { now_ms } else { survey.newest_ms });
        let lasts = |bytes: u64| (rate.bytes_per_s > 0.0).then(|| (bytes as f64 / rate.bytes_per_s * 1000.0) as u64);
        let bytes_max = limits.journal_bytes_max;
        Stat {
            survey,
            rate,
            bytes_max,
            full_in_ms: lasts(bytes_max.saturating_sub(survey.bytes)),
            horizon_ms: lasts(bytes_max).map_or(limits.horizon_ms, |lasts| lasts.min(limits.horizon_ms)),
            horizon_min_ms: limits.horizon_min_ms,
            beside: KeyFiles::of(&dir.join(survey.generation.to_string()).join(survey.shard.to_string())),
        }
    }

    fn line(&self, dir: &Path, now_ms: u64) -> Value {
        let survey = self.survey;
        let pinned = survey.pinned().map(|(span, open)| {
            json!({
                "file": within(dir, &span.path).display().to_string(), "bytes": span.bytes, "steps": open.len(),
                "oldest_key": open[0].key.to_string(), "oldest_lsn": open[0].message.0,
            })
        });
        json!({
            "generation": survey.generation, "shard": survey.shard, "segments": survey.spans.len(),
            "bytes": survey.bytes, "disk_bytes": survey.disk_bytes, "bytes_max": self.bytes_max,
            "frames": survey.frames.iter().sum::<u64>(), "oldest": survey.oldest_ms.map(time),
            "oldest_age_ms": survey.oldest_ms.map(|at| now_ms.saturating_sub(at)),
            "bytes_per_s": self.rate.bytes_per_s.round(), "frames_per_s": self.rate.frames_per_s.round(),
            "full_in_ms": self.full_in_ms, "horizon_ms": self.horizon_ms,
            "below_horizon_min": self.horizon_ms < self.horizon_min_ms,
            "key_files": self.beside.files, "key_bytes": self.beside.bytes, "keys": survey.keys, "unfinished": survey.unfinished(), "unpublished": survey.unpublished(),
            "pinned": pinned.collect::<Vec<_>>(),
        })
    }

    fn table(&self, dir: &Path, now_ms: u64, out: &mut impl Write) -> io::Result<()> {
        let Stat { survey, rate, bytes_max, .. } = self;
        let (bytes, budget, disk) = (size(survey.bytes), size(*bytes_max), size(survey.disk_bytes));
        let segments = survey.spans.len();
        writeln!(out, "shard {}: {segments} segments, {bytes} of {budget}, {disk} on disk", survey.shard)?;
        if let Some(oldest) = survey.oldest_ms {
            writeln!(out, "  oldest frame: {}, {} ago", time(oldest), about(now_ms.saturating_sub(oldest)))?;
        }
        write!(out, "  of late {}/s, {:.0} frames/s: ", size(rate.bytes_per_s as u64), rate.frames_per_s)?;
        match self.full_in_ms {
            Some(ms) => writeln!(out, "full in {}, remembers {}", about(ms), about(self.horizon_ms))?,
            None => writeln!(out, "it stands still, remembers {}", about(self.horizon_ms))?,
        }
        if self.horizon_ms < self.horizon_min_ms {
            writeln!(out, "  less than journal.horizon_min: at this rate new work will wait; raise journal.bytes_max")?;
        }
        let (unfinished, unpublished) = (survey.unfinished(), survey.unpublished());
        writeln!(out, "  {} keys, {unfinished} steps unfinished, {unpublished} outcomes unpublished", survey.keys)?;
        let KeyFiles { files, bytes } = self.beside;
        if files > 0 {
            writeln!(out, "  {files} key files beside the segments, {}", size(bytes))?;
        }
        for (span, open) in survey.pinned() {
            let (file, key, lsn) = (within(dir, &span.path).display(), open[0].key, open[0].message.0);
            writeln!(out, "  {file} is held by {} of them, the oldest {key} at lsn {lsn}", open.len())?;
        }
        Ok(())
    }
}

/// The path as seen from the storage folder.
fn within<'a>(dir: &Path, path: &'a Path) -> &'a Path {
    path.strip_prefix(dir).unwrap_or(path)
}

/// A duration to two digits or so, in the unit that people read best.
fn about(ms: u64) -> String {
    match ms / 1000 {
        0 => "under 1s".to_owned(),
        s @ 1..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}
