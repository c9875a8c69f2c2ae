//! Compute threads: where what keeps a core for long is computed, so that no shard waits for it. The cpu lane's other half: the
//! lane says how many steps compute at once, these threads do it.
//!
//! A shard hands over a piece of work with what it needs and gets it back with its result; a piece is short (a stride of a body, a
//! megabyte of a blob, one image), so that pieces of many steps take turns. Threads start with the first piece: most workers need
//! none. A piece cannot be interrupted: whoever asked for it may go, and what it made is dropped. While a thread is at one, the page
//! of the shard that brought it names the step: should the process die of it, the step gets its strike.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

use rustix::thread::{CpuSet, sched_setaffinity};
use shards::limits::COMPUTE_THREADS_MAX;
use shards::runtime::page::Deputy;

/// Pieces that wait for a thread; who brings more waits for room.
const QUEUE_MAX: usize = 1_024;
/// How much a thread yields to the shard or edge whose core it shares (a nice level; 19 is the most).
const NICE: i32 = 10;

/// One piece, with whoever waits for it; done by the thread of this number.
type Piece = Box<dyn FnOnce(usize) + Send>;

/// The way to the threads. Crosses cores; cloned for each that asks.
#[derive(Clone)]
pub struct Compute(Arc<State>);

struct State {
    seats: Vec<ComputeSeat>,
    pieces: OnceLock<flume::Sender<Piece>>,
}

/// Where one thread runs. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComputeSeat {
    /// The cores that it may use.
    pub cores: Vec<usize>,
    /// It has them with a shard or the edge, and yields to these.
    pub shared: bool,
}

impl Compute {
    /// One thread for each of `seats`, of which there are 1 to [`COMPUTE_THREADS_MAX`].
    pub fn new(seats: Vec<ComputeSeat>) -> Compute {
        debug_assert!((1..=COMPUTE_THREADS_MAX).contains(&seats.len()), "somebody computes, and the page has room for all");
        Compute(Arc::new(State { seats, pieces: OnceLock::new() }))
    }

    /// Threads there are.
    pub fn threads(&self) -> usize {
        self.0.seats.len()
    }

    /// What `piece` comes to, computed on one of the threads.
    ///
    /// # Panics
    /// As `piece` does: the panic goes on where it was asked for. Also where the system has no thread for us.
    pub async fn run<T: Send + 'static>(&self, piece: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, waiting) = flume::bounded::<Result<T, Box<dyn Any + Send>>>(1);
        let deputy = Deputy::here();
        let piece: Piece = Box::new(move |thread| {
            let _named = deputy.map(|deputy| deputy.name(thread));
            // Nobody may be waiting any more.
            let _ = answer.send(catch_unwind(AssertUnwindSafe(|| {
                fail::fail_point!("piece-panics");
                piece()
            })));
        });
        // Neither end goes while the other is there: the sender is kept here, the threads end with it.
        self.pieces().send_async(piece).await.expect("the compute threads are there as long as the way to them");
        match waiting.recv_async().await.expect("every piece that was taken is answered") {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    fn pieces(&self) -> &flume::Sender<Piece> {
        self.0.pieces.get_or_init(|| {
            let (pieces, taken) = flume::bounded::<Piece>(QUEUE_MAX);
            for (index, seat) in self.0.seats.iter().enumerate() {
                let (seat, taken) = (seat.clone(), taken.clone());
                let started = std::thread::Builder::new().name(format!("compute-{index}")).spawn(move || {
                    seat.take();
                    for piece in taken {
                        piece(index);
                    }
                });
                if let Err(error) = started {
                    tracing::error!(%error, thread = index, "no thread to compute on");
                }
            }
            pieces
        })
    }
}

impl ComputeSeat {
    /// Seats for the cores that were named, one each; without any, one for each core that no shard and no edge uses, and where
    /// there is none, one on all `allowed` cores that yields to everybody else.
    pub fn all(named: Option<&[usize]>, taken: &[usize], allowed: &[usize]) -> Vec<ComputeSeat> {
        let free: Vec<usize> = allowed.iter().copied().filter(|core| !taken.contains(core)).collect();
        let cores = named.unwrap_or(&free);
        let cores = &cores[..cores.len().min(COMPUTE_THREADS_MAX)];
        if cores.is_empty() {
            return vec![ComputeSeat { cores: allowed.to_vec(), shared: true }];
        }
        cores.iter().map(|core| ComputeSeat { cores: vec![*core], shared: taken.contains(core) }).collect()
    }

    fn take(&self) {
        let mut set = CpuSet::new();
        self.cores.iter().for_each(|core| set.set(*core));
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::warn!(%error, cores = ?self.cores, "a compute thread cannot be pinned");
        }
        // On Linux a nice level is a thread's own.
        if self.shared
            && let Err(error) = rustix::process::setpriority_process(None, NICE)
        {
            tracing::warn!(%error, "a compute thread does not yield to the shard whose core it shares");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    use shards::runtime::layout::Layout;

    use super::*;

    fn compute(threads: usize) -> Compute {
        Compute::new(vec![ComputeSeat { cores: Layout::allowed(), shared: true }; threads])
    }

    #[test]
    fn seats_are_the_named_cores_or_the_free_ones_or_a_polite_one() {
        let seat = |cores: &[usize], shared| ComputeSeat { cores: cores.to_vec(), shared };
        assert_eq!(ComputeSeat::all(None, &[0, 1], &[0, 1, 2, 3]), [seat(&[2], false), seat(&[3], false)]);
        assert_eq!(ComputeSeat::all(None, &[0, 1], &[0, 1]), [seat(&[0, 1], true)]);
        assert_eq!(ComputeSeat::all(Some(&[1, 2]), &[0, 1], &[0, 1, 2]), [seat(&[1], true), seat(&[2], false)]);
    }

    #[test]
    fn a_piece_comes_back_with_what_it_was_given() {
        let text = String::from("given");
        let length = block_on(compute(2).run(move || (text.len(), text)));
        assert_eq!(length, (5, "given".to_owned()));
    }

    #[test]
    fn a_panic_goes_on_where_it_was_asked_for_and_the_thread_stays() {
        let compute = compute(1);
        let asked = compute.clone();
        let panic = std::thread::spawn(move || block_on(asked.run(|| -> u8 { panic!("on purpose") }))).join();
        assert_eq!(panic.expect_err("it panicked").downcast_ref::<&str>(), Some(&"on purpose"));
        assert_eq!(block_on(compute.run(|| 7)), 7);
    }

    #[test]
    fn whoever_goes_leaves_its_piece_to_end_alone() {
        let (compute, done) = (compute(1), Arc::new(AtomicUsize::new(0)));
        for _ in 0..3 {
            let counted = done.clone();
            let mut asked = Box::pin(compute.run(move || {
                std::thread::sleep(Duration::from_millis(5));
                counted.fetch_add(1, SeqCst)
            }));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(asked.as_mut().poll(&mut cx).is_pending());
        }
        let counted = done.clone();
        assert_eq!(block_on(compute.run(move || counted.load(SeqCst))), 3, "in the order in which they came");
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }
}
