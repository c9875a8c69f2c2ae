//! The way out for log lines: a bounded channel and one thread that writes, so that a stalled reader of standard error
//! never stalls a shard. What does not fit is counted, and said once there is room.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Lines that may wait.
const LINES_MAX: usize = 8_192;

enum Item {
    Line(Vec<u8>),
    Flush(flume::Sender<()>),
}

/// Where lines are put. Crosses cores.
#[derive(Clone)]
pub(super) struct Pipe {
    lines: flume::Sender<Item>,
    lost: Arc<AtomicU64>,
}

impl Pipe {
    /// Starts the thread that writes to `out`; `said` makes a line that tells how many were lost.
    pub(super) fn open(out: impl Write + Send + 'static, said: fn(u64) -> Vec<u8>) -> std::io::Result<Pipe> {
        Pipe::bounded(LINES_MAX, out, said)
    }

    fn bounded(lines_max: usize, mut out: impl Write + Send + 'static, said: fn(u64) -> Vec<u8>) -> std::io::Result<Pipe> {
        let (lines, inbox) = flume::bounded(lines_max);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new().name("logs".to_owned()).spawn(move || {
            while let Ok(item) = inbox.recv() {
                // Nobody can be told that standard error is gone.
                match item {
                    Item::Line(line) => drop(out.write_all(&line)),
                    Item::Flush(done) => {
                        let _ = out.flush();
                        let _ = done.send(());
                    }
                }
                let lost = counted.swap(0, Relaxed);
                if lost > 0 {
                    let _ = out.write_all(&said(lost));
                }
            }
        })?;
        Ok(Pipe { lines, lost })
    }

    /// Never waits.
    pub(super) fn put(&self, line: Vec<u8>) {
        if self.lines.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits until all that was put is written, but not longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let (done, told) = flume::bounded(1);
        if self.lines.send_timeout(Item::Flush(done), patience).is_ok() {
            let _ = told.recv_timeout(patience);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, PoisonError};
    use std::time::Instant;

    /// Writes nothing until its gate opens.
    struct Slow(flume::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_never_time() -> anyhow::Result<()> {
        let (gate, shut) = flume::unbounded();
        let written = Arc::new(Mutex::new(Vec::new()));
        let pipe = Pipe::bounded(4, Slow(shut, Arc::clone(&written)), |lost| format!("lost {lost}\n").into_bytes())?;
        let start = Instant::now();
        for line in 0..100 {
            pipe.put(format!("{line}\n").into_bytes());
        }
        pipe.flush(Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(gate);
        pipe.flush(Duration::from_secs(10));
        let text = String::from_utf8(written.lock().unwrap_or_else(PoisonError::into_inner).clone())?;
        let lost: usize = text.lines().filter_map(|line| line.strip_prefix("lost ")?.parse::<usize>().ok()).sum();
        let kept = text.lines().filter(|line| !line.starts_with("lost ")).count();
        assert_eq!(kept + lost, 100, "{text}");
        assert!((4..=6).contains(&kept), "{text}");
        Ok(())
    }
}
