//! What this process uses of the machine, as the kernel counts it.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all threads since the process started, in microseconds.
    pub cpu_us: u64,
    /// Memory that is resident now, in bytes.
    pub memory_bytes: u64,
}

impl Usage {
    /// Reads it. What the system does not tell is 0.
    pub fn now() -> Usage {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = u64::try_from(cpu.tv_sec).unwrap_or_default();
        let cpu_us = seconds * 1_000_000 + u64::try_from(cpu.tv_nsec).unwrap_or_default() / 1_000;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Usage { cpu_us, memory_bytes: resident(&status).unwrap_or_default() }
    }
}

/// `VmRSS:      1234 kB`
fn resident(status: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// How busy the process was since it was last asked. Lives with whoever asks.
#[derive(Debug)]
pub struct Meter {
    at: Instant,
    usage: Usage,
}

impl Meter {
    /// Starts measuring.
    pub fn start() -> Meter {
        Meter { at: Instant::now(), usage: Usage::now() }
    }

    /// Cores that were busy on average since the last call, and the usage now.
    pub fn read(&mut self) -> (f64, Usage) {
        let next = Meter::start();
        let wall_us = next.at.duration_since(self.at).as_secs_f64() * 1e6;
        let cores = next.usage.cpu_us.saturating_sub(self.usage.cpu_us) as f64 / wall_us.max(1.0);
        let usage = next.usage;
        *self = next;
        (cores, usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_kernel_s_text() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   12 kB\nThreads:\t1\n"), Some(12 * 1024));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[test]
    fn a_busy_thread_shows_as_a_busy_core() {
        let mut meter = Meter::start();
        let start = Instant::now();
        while start.elapsed().as_millis() < 50 {
            std::hint::black_box(start);
        }
        let (cores, usage) = meter.read();
        assert!(cores > 0.05 && usage.memory_bytes > 1 << 20, "{cores} {usage:?}");
    }
}
