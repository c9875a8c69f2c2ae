//! Tells who runs a file of the steps in it that wait for people, and how these decide; on standard error, once for each.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use shards::runtime::ports::Gauge;

use crate::cli::step::visible;
use crate::ops::people::{self, People};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// So many are told of by name at once.
const ROWS_MAX: usize = 100;

/// Looks until it is dropped. Lives on the thread that runs the file.
pub(crate) struct Waits {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Waits {
    /// For the worker that shows these gauges and keeps its storage in `dir`. Without a thread to be had nothing is told.
    pub(crate) fn watch(gauges: Vec<Arc<Gauge>>, people: People, dir: &Path) -> Waits {
        let ended = Arc::new(AtomicBool::new(false));
        let (over, dir) = (ended.clone(), dir.to_owned());
        let thread = std::thread::Builder::new().name("waits".to_owned()).spawn(move || look(&gauges, &people, &dir, &over));
        Waits { ended, thread: thread.ok() }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(gauges: &[Arc<Gauge>], people: &People, dir: &Path, over: &AtomicBool) {
    let mut told = HashSet::new();
    let mut seen = 0;
    while !over.load(Relaxed) {
        std::thread::sleep(LOOK_EVERY);
        let parked: u32 = gauges.iter().map(|gauge| gauge.parked.load(Relaxed)).sum();
        if std::mem::replace(&mut seen, parked) == parked {
            continue;
        }
        // A worker that just ends does not answer, and there is nothing more to tell then.
        for waiting in people.waiting(None, ROWS_MAX).unwrap_or_default() {
            if told.insert(waiting.key) {
                let row = people::row(&waiting);
                let text = |name: &str| visible(row[name].as_str().unwrap_or_default());
                let (title, until, key) = (text("title"), text("until"), text("key"));
                eprintln!("waits for people until {until}: {title}");
                eprintln!("  endstation approval approve {key} --data {} --as NAME    (or reject, or show)", dir.display());
            }
        }
    }
}
