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

/// Opens as many files as this process may.
pub(crate) fn raise_files() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers are to a limit of ours that outlives the calls.
    let failed = unsafe {
        let read = libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        read != 0 || libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0
    };
    anyhow::ensure!(!failed, "no more files may be opened: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Threads it has now.
pub(crate) fn threads(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).context("no Threads")?;
    Ok(line.trim().parse()?)
}

/// The processor clock of a thread of this process, in microseconds; 0 is the caller's own.
pub(crate) fn thread_cpu_us(tid: u32) -> Result<u64> {
    // As pthread_getcpuclockid makes it: the id's complement, "of a thread" (4), "what the scheduler gave" (2).
    let clock = if tid == 0 { libc::CLOCK_THREAD_CPUTIME_ID } else { (!(tid as libc::clockid_t) << 3) | 6 };
    clock_us(clock)
}

/// Processor time of this process so far, kernel threads that work for it included, in microseconds.
pub(crate) fn own_cpu_us() -> Result<u64> {
    clock_us(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_us(clock: libc::clockid_t) -> Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours that outlives the call.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    anyhow::ensure!(failed == 0, "a clock cannot be read: {}", std::io::Error::last_os_error());
    Ok(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000)
}

/// The ids of this process's threads of that name, oldest first. Helper threads bear the name of the thread that made them.
pub(crate) fn threads_named(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        let comm = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if comm.trim() == name {
            found.extend(path.file_name().and_then(|tid| tid.to_str()?.parse::<u32>().ok()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The memory that a process holds now, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().next().context("VmRSS is empty")?.parse()?;
    Ok(kib * 1024)
}
