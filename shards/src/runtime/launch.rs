//! Starts the shards: a pinned thread each, with an executor, an open journal, and everything unfinished taken up again.

use std::cell::RefCell;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt as _};
use glommio::{LocalExecutorBuilder, Placement};
use thiserror::Error;

use crate::event::{self, Effects, Event, Role, Untold};
use crate::fold::{Fold, Restored, Unfinished};
use crate::ids::Lsn;
use crate::journal::{self, Fact};
use crate::keys::{KeyMap, Owner};
use crate::limits::{RECALLED_MAX, SEAL_AT_BOOT_BYTES};
use crate::outcome::Outcome;
use crate::shard::{Shard, ShardSettings};
use crate::snapshot::Snapshot;
use crate::step::Delivery;

use super::disk::{Disk, DiskError, DiskSettings, Opened, Start as Beginning};
use super::drive::{Driver, outcome_of};
use super::local::{Local, News};
use super::page::{Page, Polled};
use super::perform::Perform;
use super::ports::{Control, Gauge, Wire};
use super::sealer::{Kept, Sealer, Shelf};
use super::seat::{Boot, Seat};
use super::tenure::Grant;

/// Registered buffers of one ring: it counts against the memlock limit, which is small on many systems.
const IO_MEMORY_BYTES: usize = 256 << 10;
/// How long a task may run before others get their turn.
const PREEMPT: Duration = Duration::from_millis(2);
/// Unfinished steps that are read from the journal at once.
const READ_AHEAD: usize = 32;
/// An executor that has not begun by then, from its thread's start, never may.
const BEGINS_WITHIN: Duration = Duration::from_millis(200);

/// Why a shard could not start or go on.
#[derive(Debug, Error)]
pub enum ShardError {
    /// The journal.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The executor.
    #[error("shard {shard} cannot start on core {core}: {cause}. {cure}")]
    Executor {
        /// Which shard.
        shard: u16,
        /// Which core.
        core: usize,
        /// What the system said.
        cause: String,
        /// What to do.
        cure: &'static str,
    },
    /// A shard's thread ended by a panic.
    #[error("shard {shard} panicked: {said}")]
    Panicked {
        /// Which shard.
        shard: u16,
        /// What it said.
        said: String,
    },
}

/// What a shard says when its thread ends.
#[derive(Debug)]
pub struct Exit {
    /// Which shard.
    pub shard: u16,
    /// How.
    pub result: Result<(), ShardError>,
}

/// What a shard found in its journal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// Which shard.
    pub shard: u16,
    /// Which start this is.
    pub boot: u32,
    /// Frames read.
    pub frames: u64,
    /// Outcomes remembered.
    pub outcomes: u64,
    /// Steps accepted earlier and not finished.
    pub open: u64,
    /// Outcomes not known as published.
    pub unpublished: u64,
    /// The newest epoch of ownership in it.
    pub owner_epoch: u32,
}

/// Starts one shard on its core. `found` hears what the journal held, `exits` how the thread ended; both exactly once at most.
///
/// An executor may park before it has run anything (see [`super::watchdog`]), and nobody holds a waker of a future that was
/// never polled. Such a thread is left asleep, and another takes its place.
///
/// # Errors
/// The thread could not be started.
pub fn launch<W: Wire>(seat: Seat<W>, found: flume::Sender<Found>, exits: flume::Sender<Exit>) -> Result<(), ShardError> {
    let (shard, core) = (seat.shard, seat.core);
    let (begins, begun) = flume::bounded(1);
    let (seats_to, seats) = flume::bounded(1);
    let sealer = Sealer::start(shard, core).map_err(|error| executor_error(shard, core, &error))?;
    let start = Start { shard, core, gauge: seat.gauge.clone(), seats, begins, sealer };
    let _ = seats_to.send(seat);
    loop {
        let (start, found, exits) = (start.clone(), found.clone(), exits.clone());
        let body = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| on_core(start, found)));
            let result = result.unwrap_or_else(|panic| {
                Err(ShardError::Panicked { shard, said: super::rt::panic_text(panic.as_ref()).to_owned() })
            });
            if let Some(result) = result.transpose() {
                let _ = exits.send(Exit { shard, result });
            }
        };
        let thread = std::thread::Builder::new().name(format!("shard-{shard}"));
        thread.spawn(body).map_err(|error| executor_error(shard, core, &error))?;
        if begun.recv_timeout(BEGINS_WITHIN).is_ok() {
            return Ok(());
        }
        tracing::warn!(shard, core, "the shard's executor did not begin: another takes its place");
    }
}

/// A shard that is about to begin, on whichever of its threads comes first. Crosses to its core.
struct Start<W> {
    shard: u16,
    core: usize,
    gauge: Arc<Gauge>,
    /// The one seat.
    seats: flume::Receiver<Seat<W>>,
    begins: flume::Sender<()>,
    sealer: Sealer,
}

impl<W> Clone for Start<W> {
    fn clone(&self) -> Self {
        let Start { shard, core, gauge, seats, begins, sealer } = self;
        let (gauge, seats, begins, sealer) = (gauge.clone(), seats.clone(), begins.clone(), sealer.clone());
        Start { shard: *shard, core: *core, gauge, seats, begins, sealer }
    }
}

impl<W> Start<W> {
    /// The seat, for the first who asks.
    fn take(&self) -> Option<Seat<W>> {
        let seat = self.seats.try_recv().ok()?;
        let _ = self.begins.send(());
        Some(seat)
    }
}

/// The whole life of a shard; `None`: another thread lives it.
fn on_core<W: Wire>(start: Start<W>, found: flume::Sender<Found>) -> Result<Option<()>, ShardError> {
    let executor = LocalExecutorBuilder::new(Placement::Fixed(start.core))
        .name(&format!("shard-{}", start.shard))
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        // One failure is told once.
        Err(error) => return start.take().map(|_| Err(executor_error(start.shard, start.core, &error))).transpose(),
    };
    let gauge = start.gauge.clone();
    let life = async move {
        let Some(seat) = start.take() else { return Ok(None) };
        start.gauge.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Relaxed);
        let sealer = start.sealer;
        let opened = open(seat, found, &sealer).await;
        let Some(driver) = opened.transpose() else {
            sealer.close().await;
            return Ok(Some(()));
        };
        let driver = driver?;
        let (disk, local) = (driver.disk.clone(), driver.local.clone());
        super::rt::spawn("journal", disk.clone().run());
        let relayed = disk.clone();
        super::rt::spawn("journal news", async move {
            loop {
                local.push(News::Disk(relayed.news().await));
            }
        });
        let (seals, local) = (sealer.clone(), driver.local.clone());
        super::rt::spawn("seals", async move {
            while let Some(sealed) = seals.done().await {
                local.push(News::Event(Event::Sealed(sealed)));
            }
        });
        driver.run().await?;
        sealer.close().await;
        // What was appended is written; what was not told yet is told after the next boot.
        disk.close().await;
        Ok(Some(()))
    };
    let mut life = pin!(life);
    // From the first moment on the watchdog can wake it: an executor may park over runnable tasks while it opens, too.
    executor.run(poll_fn(|cx| {
        gauge.prod.hear(cx.waker());
        gauge.beats.fetch_add(1, Relaxed);
        life.as_mut().poll(cx)
    }))
}

fn executor_error(shard: u16, core: usize, error: &dyn Display) -> ShardError {
    let cause = error.to_string();
    let cure = if cause.contains("Operation not permitted") || cause.contains("os error 1)") {
        "io_uring is forbidden here, often by a container's seccomp profile: allow io_uring_setup, io_uring_enter and io_uring_register, or set the sysctl kernel.io_uring_disabled to 0."
    } else if cause.contains("emory") || cause.contains("MemLock") || cause.contains("os error 12)") {
        "Locked memory is too small for the ring: raise the memlock limit (ulimit -l, LimitMEMLOCK= in a systemd unit) to 8 MiB or more."
    } else if cause.contains("os error 24)") {
        "This process may not open more files: raise its limit (ulimit -n, LimitNOFILE= in a systemd unit) to 4096 or more."
    } else {
        "endstation needs Linux 5.8 or newer with io_uring."
    };
    ShardError::Executor { shard, core, cause, cure }
}

/// Waits for the word to begin; `None`: told to end before it came.
async fn granted<W>(seat: &Seat<W>) -> Option<Grant> {
    seat.gauge.idle.store(true, Relaxed);
    seat.gauge.waits.store(true, Relaxed);
    let granted = loop {
        match select(seat.grants.recv_async(), seat.control.recv_async()).await {
            Either::Left((grant, _)) => break grant.ok(),
            Either::Right((Ok(Control::Stop) | Err(_), _)) => break None,
            // There is nothing here to cancel, to finish or to decide; who asked finds nobody to answer.
            Either::Right((Ok(Control::Cancel(_) | Control::Drain | Control::Waiting { .. } | Control::Say { .. }), _)) => {}
        }
    };
    seat.gauge.waits.store(false, Relaxed);
    seat.gauge.idle.store(false, Relaxed);
    granted
}

/// Opens the journal and, once the word comes, takes up where it ends. `None`: told to end before it came.
async fn open<W: Wire>(seat: Seat<W>, found: flume::Sender<Found>, sealer: &Sealer) -> Result<Option<Driver<W>>, ShardError> {
    let local = Local::default();
    let settings = DiskSettings {
        dir: seat.dir.clone(),
        generation: seat.generation,
        shard: seat.shard,
        shards: seat.shards,
        worker_id: seat.worker_id.clone(),
        salt: seat.salt.clone(),
        segment_bytes: seat.segment_bytes,
    };
    let folder = settings.folder();
    let owner = Owner {
        worker_id: settings.worker_id.clone(),
        generation: settings.generation,
        shard: settings.shard,
        salt: settings.salt.clone(),
    };
    let Past { opened, restored, before, files } = read(settings, &owner).await?;
    sealer.begin(folder.clone(), owner, files.clone());
    let sealed: u64 = files.iter().map(|file| file.facts().count).sum();
    let boot = Boot { shard: seat.shard, boot: opened.boot };
    let unfinished = restored.unfinished.clone();
    let report = Found {
        shard: seat.shard,
        boot: opened.boot,
        frames: opened.records,
        outcomes: restored.known.len() as u64 + sealed,
        open: unfinished.iter().filter(|one| one.result.is_none()).count() as u64,
        unpublished: unfinished.iter().filter(|one| one.result.is_some()).count() as u64,
        owner_epoch: restored.owner_epoch,
    };
    // Nobody listens where nobody wants to know.
    let _ = found.send(report);
    let Some(grant) = granted(&seat).await else { return Ok(None) };
    let furniture = (seat.furnish)(boot);
    let now = seat.clock.now();
    let inline_bytes_max = seat.limits.inline_result_bytes;
    let settings = ShardSettings {
        shard: seat.shard,
        boot: opened.boot,
        limits: seat.limits,
        salt: seat.salt,
        blocks: seat.block_names,
        events: seat.events,
        progress_us: seat.progress_us,
        config_epoch: 0,
        owner_epoch: grant.epoch,
        shared: grant.shared,
        claims: grant.claims,
        copies: grant.copies,
    };
    let (page, polled) = Page::open(&folder, opened.boot).unwrap_or_else(|error| {
        tracing::warn!(shard = seat.shard, folder = %folder.display(), %error, "no page for strikes: a step that ends the process is not known for it");
        (Page::nowhere(opened.boot), Vec::new())
    });
    page.settle();
    // Set once, here.
    let _ = seat.gauge.page.set(page);
    let mut shard = Shard::new(settings, opened.next_lsn);
    shard.restore(restored, &opened.segments, now);
    let behind = opened.segments.iter().filter(|span| span.to >= before).map(|span| span.bytes);
    shard.keep_sealed(before, files.clone(), behind.sum::<u64>() >= SEAL_AT_BOOT_BYTES, RECALLED_MAX);
    let disk = opened.disk;
    let mut driver = Driver {
        shard,
        wire: furniture.wire,
        disk: disk.clone(),
        perform: Perform::new(
            furniture.blocks,
            furniture.blobs,
            furniture.outputs,
            seat.clock,
            local.clone(),
            page,
            seat.lease,
            inline_bytes_max,
            seat.events,
        ),
        local,
        clock: seat.clock,
        inbox: seat.inbox,
        control: seat.control,
        outbound: seat.outbound,
        envelopes: seat.envelopes,
        gauge: seat.gauge,
        index: seat.shard,
        fx: Effects::default(),
        at_once: Default::default(),
        out: Vec::new(),
        turn_us: 0,
        settle_due_us: 0,
        hurry: false,
        asked: Vec::new(),
        asks: 0,
        posted: 0,
        tally_due_us: 0,
        untold: true,
        probes: 0,
        to_probe: Default::default(),
        sealer: sealer.clone(),
        files: Rc::new(RefCell::new(files)),
    };
    for polled in polled {
        strike(&mut driver, polled)?;
    }
    // Read ahead: they are a read of the disk each.
    let superseded = |one: &Unfinished| one.owned.streamed && one.owned.epoch < grant.since;
    let reads = unfinished.iter().map(|one| {
        let disk = &disk;
        async move {
            let read = if superseded(one) { None } else { Some(read_again(disk, one).await?) };
            Ok::<_, DiskError>((one, read))
        }
    });
    let mut reads = stream::iter(reads).buffered(READ_AHEAD);
    while let Some(read) = reads.next().await {
        let (one, read) = read?;
        let Some(read) = read else {
            let untold = one.result.map(|decided| Untold { accepted: one.message, decided, role: one.role });
            let (key, fingerprint, asker, partition) = (one.key, one.fingerprint, one.asker, one.owned.partition);
            driver.apply(driver.clock.now(), Event::Superseded { key, fingerprint, asker, partition, untold });
            continue;
        };
        recover(&mut driver, one, read);
        super::rt::yield_if_needed().await;
    }
    drop(reads);
    driver.gauge.free.store(driver.shard.free_slots(), Relaxed);
    driver.gauge.ready.store(true, Relaxed);
    Ok(Some(driver))
}

/// What the journal and what was derived from it came to.
pub(super) struct Past {
    pub(super) opened: Opened,
    pub(super) restored: Restored,
    /// Frames before this one were not read.
    pub(super) before: Lsn,
    pub(super) files: Vec<Arc<KeyMap>>,
}

/// Reads the journal from its newest snapshot on, or all of it.
pub(super) async fn read(settings: DiskSettings, owner: &Owner) -> Result<Past, DiskError> {
    let folder = settings.folder();
    let unfit = match Shelf::look(&folder, owner) {
        Ok(None) => None,
        Ok(Some(Kept { snapshot, files })) => {
            let Snapshot { before, segment, rest, .. } = snapshot;
            let mut fold = Fold::resume(rest);
            let start = Beginning { at: before, segment };
            let opened = Disk::open_from(settings.clone(), Some(start), |lsn, frame| fold.frame(lsn, frame)).await?;
            if let Some(opened) = opened {
                return Ok(Past { opened, restored: fold.finish(), before, files });
            }
            Some("the snapshot is of another journal".to_owned())
        }
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = unfit {
        tracing::warn!(shard = settings.shard, folder = %folder.display(), why, "the snapshot is of no use: all segments are read");
    }
    let mut fold = Fold::default();
    let opened = Disk::open(settings, |lsn, frame| fold.frame(lsn, frame)).await?;
    Ok(Past { opened, restored: fold.finish(), before: Lsn(0), files: Vec::new() })
}

/// A key file cannot be read: nobody can say what is known. Without the snapshot the next boot reads all segments.
pub(super) fn unsound(folder: &Path, source: std::io::Error) -> DiskError {
    let _ = Shelf::forget(folder);
    let why = format!("{source}; the next start reads all segments instead");
    let source = std::io::Error::new(source.kind(), why);
    DiskError::Io { doing: "looking for a key in", path: folder.to_owned(), source }
}

/// Tells the machine which key was being polled when an earlier life died.
fn strike<W: Wire>(driver: &mut Driver<W>, polled: Polled) -> Result<(), DiskError> {
    let Polled { key, partition, boot } = polled;
    // Whether it is decided may stand in a key file.
    let folder = driver.disk.folder().to_owned();
    let files = driver.files.borrow().clone();
    let found = Shelf::find(&folder, &files, &key).map_err(|source| unsound(&folder, source))?;
    if found.is_some() {
        driver.apply(driver.clock.now(), Event::Looked { key, found });
    }
    let logged = driver.fx.log.frames;
    driver.apply(driver.clock.now(), Event::Died { polled: key, partition, boot });
    if driver.fx.log.frames > logged {
        tracing::warn!(shard = driver.index, %key, boot, "the process died in this step's own code: it gets a strike, and runs last and alone");
    }
    Ok(())
}

/// What the journal holds of an unfinished key.
struct Again {
    delivery: Delivery,
    outcome: Option<(Lsn, Rc<Outcome>)>,
}

/// Reads one unfinished key's message and outcome again.
async fn read_again(disk: &Disk, one: &Unfinished) -> Result<Again, DiskError> {
    let Some(delivery) = message_at(disk, one.message).await? else {
        return Err(unreadable("the message of an unfinished step", one.message));
    };
    let outcome = match one.result {
        Some(lsn) => {
            let frame = disk.probe(lsn).await?;
            let outcome = frame.and_then(|bytes| outcome_of(&bytes, one.key));
            // A step that has an outcome is never run again because this version cannot read it.
            Some((lsn, Rc::new(outcome.ok_or_else(|| unreadable("a step's outcome", lsn))?)))
        }
        None => None,
    };
    Ok(Again { delivery, outcome })
}

/// Hands an unfinished key to the machine.
fn recover<W: Wire>(driver: &mut Driver<W>, one: &Unfinished, read: Again) {
    let now = driver.clock.now();
    let mut arrival = driver.wire.decode(read.delivery, now);
    // Who asked for what was settled when it was accepted; another configuration may read the message otherwise.
    arrival.fingerprint = one.fingerprint;
    if let Some(asker) = arrival.asker.as_mut().filter(|_| one.role != Role::Aside) {
        asker.id = one.asker;
    }
    let past = event::Past {
        accepted: one.message,
        tries: one.tries,
        interrupted: one.interrupted,
        retry_at_ms: one.retry_at_ms,
        deadline_ms: one.deadline_ms,
        votes: one.votes.clone(),
        outcome: read.outcome,
        role: one.role,
    };
    driver.apply(now, Event::Recovered { key: one.key, arrival: Rc::new(arrival), past });
}

fn unreadable(what: &str, lsn: Lsn) -> DiskError {
    let why = format!("{what}, frame {}, cannot be read by this version; start the version that wrote it", lsn.0);
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, why);
    DiskError::Io { doing: "recovering from", path: "the journal".into(), source }
}

async fn message_at(disk: &Disk, lsn: Lsn) -> Result<Option<Delivery>, DiskError> {
    let Some(bytes) = disk.probe(lsn).await? else { return Ok(None) };
    let message = match journal::decode(&bytes).map(|frame| frame.fact) {
        Ok(Fact::Accepted(fact)) => fact.message,
        Ok(Fact::Answer(fact) | Fact::Quarantined(fact)) => fact.message,
        Ok(_) | Err(_) => return Ok(None),
    };
    Ok(Some(message.into_delivery()))
}
