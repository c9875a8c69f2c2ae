//! What a process has used, read from `/proc`: processor time and the most memory it ever held.

use anyhow::{Context, Result};

/// Processor time of all its threads so far, in microseconds (10 ms steps: a measurement must be seconds long).
pub(crate) fn cpu_us(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The second field is the command in parentheses and may hold anything: count from its end.
    let rest = stat.rsplit_once(") ").context("stat without a command")?.1;
    let mut fields = rest.split(' ').skip(11);
    let mut ticks = || fields.next().and_then(|text| text.parse::<u64>().ok()).context("stat without times");
    Ok((ticks()? + ticks()?) * 1_000_000 / ticks_per_second())
}

fn ticks_per_second() -> u64 {
    // SAFETY: sysconf reads a constant and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// The most memory it ever held, in bytes.
pub(crate) fn peak_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.split_whitespace().next().context("VmHWM is empty")?.parse()?;
    Ok(kib * 1024)
}

/// Threads it has now.
pub(crate) fn threads(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).context("no Threads")?;
    Ok(line.trim().parse()?)
}
