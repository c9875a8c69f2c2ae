//! What was measured, on what machine: a table of medians for people, and every measurement as JSON.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::KeepArgs;
use crate::disk::Fsync;
use crate::nats::Row;

/// Where the numbers come from.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    date: String,
    host: String,
    cores: usize,
    cpu: String,
    kernel: String,
    nats_server: String,
    build: &'static str,
    fsync: Fsync,
}

impl Machine {
    /// Looks at this machine.
    pub(crate) fn look(args: &KeepArgs, fsync: Fsync) -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name.trim());
        let version = std::process::Command::new("nats-server").arg("--version").output();
        let version = version.context("nats-server is not installed: run `make deps`")?;
        Ok(Machine {
            date: args.date.clone().unwrap_or_else(|| jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()),
            host: args.host.clone().unwrap_or_else(|| read("/proc/sys/kernel/hostname")),
            cores: std::thread::available_parallelism()?.get(),
            cpu: cpu.unwrap_or("unknown").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease"),
            nats_server: String::from_utf8_lossy(&version.stdout).trim().to_owned(),
            build: if cfg!(debug_assertions) { "dev" } else { "release" },
            fsync,
        })
    }

    /// Two lines that say where figures come from.
    pub(crate) fn head(&self) -> String {
        format!(
            "{} · {} · {} cores, {} · kernel {} · {} · {} build\nfdatasync of 4 KiB: p50 {} µs, p99 {} µs\n",
            self.date,
            self.host,
            self.cores,
            self.cpu,
            self.kernel,
            self.nats_server,
            self.build,
            self.fsync.p50_us,
            self.fsync.p99_us
        )
    }
}

/// Everything that one command measured.
#[derive(Debug, Serialize)]
pub(crate) struct Keep<R> {
    /// Which command.
    pub(crate) scenario: &'static str,
    /// Where.
    pub(crate) machine: Machine,
    /// What the table shows.
    pub(crate) medians: Vec<R>,
    /// All of it.
    pub(crate) measurements: Vec<R>,
}

impl<R: Serialize> Keep<R> {
    /// Shows the table and keeps both forms.
    pub(crate) fn publish(&self, args: &KeepArgs, table: &str) -> Result<()> {
        std::io::stdout().write_all(table.as_bytes())?;
        if args.out.as_os_str() == "-" {
            return Ok(());
        }
        let dir = args.out.join(format!("{}-{}", self.machine.date, self.machine.host));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::write(dir.join(format!("{}.json", self.scenario)), serde_json::to_string_pretty(self)? + "\n")?;
        // `table.txt` holds the table of each scenario that was run, the newest of each.
        let path = dir.join("table.txt");
        let head = format!("== {} ==\n", self.scenario);
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let others: String = kept.split_inclusive("\n\n").filter(|part| !part.starts_with(&head)).collect::<Vec<_>>().concat();
        std::fs::write(&path, format!("{others}{head}{table}\n"))?;
        eprintln!("kept in {}", dir.display());
        Ok(())
    }
}

/// What was measured over NATS.
pub(crate) type Report = Keep<Row>;

impl Keep<Row> {
    /// With the medians worked out.
    pub(crate) fn new(scenario: &'static str, machine: Machine, measurements: Vec<Row>) -> Self {
        let mut medians: Vec<Row> = Vec::new();
        for row in &measurements {
            if medians.iter().any(|known| known.load == row.load && known.subject == row.subject) {
                continue;
            }
            let same: Vec<&Row> =
                measurements.iter().filter(|other| other.load == row.load && other.subject == row.subject).collect();
            medians.push(median(&same, row));
        }
        Keep { scenario, machine, medians, measurements }
    }

    /// Shows the table with a note beneath, and keeps both forms.
    pub(crate) fn show(&self, args: &KeepArgs, note: &str) -> Result<()> {
        self.publish(args, &(self.table()? + note))
    }

    fn table(&self) -> Result<String> {
        let mut text = self.machine.head();
        text += "file streams · CPU in µs a step\n";
        writeln!(
            text,
            "{:<13} {:<36} {:>9} {:>6} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7} {:>7} {:>8} {:>7} {:>8} {:>6} {:>5}",
            "load",
            "subject",
            "steps/s",
            "floor",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "p99.9",
            "cpu",
            "server",
            "driver",
            "peak MB",
            "fsyncs",
            "jrnl B",
            "msgs",
            "bad"
        )?;
        for row in &self.medians {
            let floor = self.medians.iter().find(|floor| floor.load == row.load && floor.subject == row.floor);
            let share = floor.map_or(0.0, |floor| 100.0 * row.per_second / floor.per_second.max(1.0));
            let ms = |us: u64| if us == 0 { "-".to_owned() } else { format!("{:.2}", us as f64 / 1e3) };
            let per = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
            writeln!(
                text,
                "{:<13} {:<36} {:>9.0} {:>5.0}% {:>8} {:>8} {:>8} {:>8} {:>7.1} {:>7.1} {:>7.1} {:>8.1} {:>7} {:>8} {:>6} {:>5}",
                row.load,
                row.subject,
                row.per_second,
                share,
                ms(row.p50_us),
                ms(row.p95_us),
                ms(row.p99_us),
                ms(row.p999_us),
                row.cpu_us,
                row.server_cpu_us,
                row.driver_cpu_us,
                row.peak_mb,
                per(row.fsyncs, 3),
                per(row.journal_bytes, 0),
                per(row.messages, 2),
                row.failed + row.repeated + row.lost
            )?;
        }
        Ok(text)
    }
}

/// The median of each figure by itself; what went wrong is summed.
fn median(rows: &[&Row], like: &Row) -> Row {
    let float = |of: fn(&Row) -> f64| {
        let mut values: Vec<f64> = rows.iter().map(|row| of(row)).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let whole = |of: fn(&Row) -> u64| {
        let mut values: Vec<u64> = rows.iter().map(|row| of(row)).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let sum = |of: fn(&Row) -> u64| rows.iter().map(|row| of(row)).sum();
    let counted = like.fsyncs.is_some();
    Row {
        steps: whole(|row| row.steps),
        per_second: float(|row| row.per_second),
        p50_us: whole(|row| row.p50_us),
        p95_us: whole(|row| row.p95_us),
        p99_us: whole(|row| row.p99_us),
        p999_us: whole(|row| row.p999_us),
        cpu_us: float(|row| row.cpu_us),
        server_cpu_us: float(|row| row.server_cpu_us),
        driver_cpu_us: float(|row| row.driver_cpu_us),
        peak_mb: float(|row| row.peak_mb),
        threads: whole(|row| row.threads),
        fsyncs: counted.then(|| float(|row| row.fsyncs.unwrap_or_default())),
        journal_bytes: counted.then(|| float(|row| row.journal_bytes.unwrap_or_default())),
        messages: counted.then(|| float(|row| row.messages.unwrap_or_default())),
        failed: sum(|row| row.failed),
        repeated: sum(|row| row.repeated),
        lost: sum(|row| row.lost),
        send_lag_p99_us: whole(|row| row.send_lag_p99_us),
        ..like.clone()
    }
}
