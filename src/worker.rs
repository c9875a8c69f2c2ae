//! The wiring: settings become seats, seats become running shards, and everything is shut down in reverse.
//!
//! A [`Worker`] is the shards and their ports, whoever feeds them: the edge (`serve`) or a file (`run`).

mod allowance;
mod identity;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use shards::envelope::Envelope;
use shards::ids::{BlockId, Salt, Text, hex};
use shards::journal::Message;
use shards::runtime::disk::reshard::Wanted;
use shards::runtime::disk::{DirLock, DiskError, DiskSettings, lock_dir};
use shards::runtime::keeper::Keeper;
use shards::runtime::launch::{Exit, Found, ShardError, launch};
use shards::runtime::layout::{Layout, LayoutError};
use shards::runtime::ports::{Control, Gauge, Inbound, Outbound};
use shards::runtime::rt::Clock;
use shards::runtime::seat::{Furniture, Seat};
use shards::runtime::tenure::{Grant, Lease};
use shards::runtime::watchdog::{Watch, watch};
use thiserror::Error;

use crate::blocks::{self, Cache, CacheCounts, Checked, Databases, Kept, Reach, Shelf};
use crate::compute::{Compute, ComputeSeat};
use crate::edge::route;
use crate::edge::wire::{EdgeWire, Found as FoundBlock, Query, WireSettings};
use crate::net::client::Client;
use crate::offload::Offload;
use crate::offload::sqlite::Sqlite;
use crate::offload::stores::Stores;
use crate::policy::databases::Database;
use crate::policy::{Policy, PolicyError};
use crate::settings::Settings;

pub use identity::{Identity, stored};

/// Batches that a shard's inbox holds; nearly full, the edge asks for less.
const INBOX_BATCHES: usize = 64;
/// How long a shard may take to open its journal before somebody should hear of it.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// Where embedded databases are, beneath the worker's storage.
const DATABASES: &str = "sql";
/// The shards need a turn to take in the word to drain before their gauges mean anything.
pub const TAKEN_IN: Duration = Duration::from_millis(20);

/// Why a worker could not start or go on.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The data directory or a journal.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The cores.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A shard.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The tenants' blobs.
    #[error("storage.blobs_dir {path}: {source}", path = .path.display())]
    Blobs {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The system's limit of open files.
    #[error(
        "this process may open {limit} files, and {shards} shards need {wanted} at least: raise its limit (ulimit -n, LimitNOFILE= in a systemd unit) to 4096 or more"
    )]
    Files {
        /// How many it may.
        limit: u64,
        /// How many it should.
        wanted: u64,
        /// For so many shards.
        shards: usize,
    },
    /// What tenants may do.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The devices.
    #[error(transparent)]
    Gpu(#[from] gpu::StartError),
    /// A shard ended though nobody asked it to.
    #[error("shard {0} ended by itself")]
    Ended(u16),
}

/// Running shards and the ways to reach them.
pub struct Worker {
    /// What each shard found in its journal.
    pub found: Vec<Found>,
    /// By shard.
    pub inboxes: Vec<flume::Sender<Inbound>>,
    /// By shard.
    pub gauges: Vec<Arc<Gauge>>,
    /// From all shards.
    pub outbound: flume::Receiver<Outbound>,
    /// The cores in use.
    pub layout: Layout,
    /// Whether this worker owns what it works on.
    pub lease: Lease,
    /// This journal's own name, for those who lease what it works on.
    pub journal: String,
    /// What came of looking for kept outputs.
    pub cache: Arc<CacheCounts>,
    /// The databases that its steps may ask.
    pub databases: Vec<Arc<Database>>,
    grants: Vec<flume::Sender<Grant>>,
    controls: Vec<flume::Sender<Control>>,
    exits: flume::Receiver<Exit>,
    keeper: Option<Keeper>,
    /// The threads of the devices, which end after the shards.
    _devices: Option<gpu::Group>,
    _lock: DirLock,
}

/// What makes one worker differ from another besides its settings.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who it is and the secret of its deployment.
    pub identity: Identity,
    /// Whether blocks for development are there.
    pub dev: bool,
}

impl Worker {
    /// Takes the data directory for this process: what is wrong with it is found out before anything else.
    ///
    /// # Errors
    /// It is held, or cannot be made or written.
    pub fn hold(settings: &Settings) -> Result<DirLock, WorkerError> {
        Ok(lock_dir(&absolute(&settings.storage_dir))?)
    }

    /// [`Worker::hold`] and then [`Worker::start_on`].
    ///
    /// # Errors
    /// Those of both.
    pub fn start(settings: &Settings, plan: &Plan) -> Result<Worker, WorkerError> {
        Worker::start_on(settings, plan, Worker::hold(settings)?)
    }

    /// Starts the shards on the directory that is held; returns once all of them have read their journals, which are rewritten
    /// before if another number of shards wrote them. They wait for a [`Grant`] then.
    ///
    /// # Errors
    /// A journal is damaged or not ours, a core cannot be used.
    pub fn start_on(settings: &Settings, plan: &Plan, lock: DirLock) -> Result<Worker, WorkerError> {
        let layout = Layout::resolve(&settings.cores, &Layout::allowed())?;
        allowance::raise(layout.shards.len())?;
        if settings.memory_is_short() {
            keep_less_memory();
        }
        let policy = Arc::new(Policy::new(settings.policy.clone(), plan.dev)?);
        let offload = Offload::new(policy.dns().to_vec());
        let taken: Vec<usize> = layout.shards.iter().chain(&layout.edge).copied().collect();
        let compute = Compute::new(ComputeSeat::all(layout.cpu.as_deref(), &taken, &Layout::allowed()));
        let (device, devices) = settings.gpu.as_ref().map(gpu::start).transpose()?.unzip();
        let (stores, sqlite) = (Stores::new(offload.clone()), Sqlite::default());
        let counts = Arc::new(CacheCounts::default());
        let storage_dir = absolute(&settings.storage_dir);
        let blobs_dir = &absolute(&settings.blobs_dir);
        blocks::local::sweep(blobs_dir).map_err(|source| WorkerError::Blobs { path: blobs_dir.clone(), source })?;
        let count = layout.shards.len();
        policy.share_out(count)?;
        // Never full, so that a shard never waits for the edge: what is in it is bounded by `limits.unpublished`, since a
        // shard takes nothing new while so many outcomes are unconfirmed.
        let (outbound_to, outbound) = flume::unbounded();
        let (envelopes_to, envelopes) = flume::bounded::<Envelope>(count * 4);
        let (found_to, found_from) = flume::bounded(count);
        let (exits_to, exits) = flume::bounded(count);
        let clock = Clock::start();
        let segment_bytes = segment_bytes(settings.limits.journal_bytes_max, count);
        let wanted = Wanted {
            dir: &storage_dir,
            shards: count as u16,
            worker_id: &plan.identity.worker_id,
            salt: &plan.identity.salt,
            segment_bytes,
            along: &[identity::NAME_FILE],
            unowned,
        };
        let generation = wanted.settle()?;
        let journal = identity::journal(&storage_dir, generation)?;
        let lease = Lease::unbounded();
        let (mut inboxes, mut controls, mut gauges) = (Vec::new(), Vec::new(), Vec::new());
        let mut grants = Vec::new();
        for (index, core) in layout.shards.iter().enumerate() {
            let (inbox_to, inbox) = flume::bounded(INBOX_BATCHES);
            let (control_to, control) = flume::bounded(INBOX_BATCHES);
            let (grant_to, granted) = flume::bounded(1);
            let gauge = Arc::new(Gauge::default());
            let mut limits = settings.shard_limits(index, count);
            if limits.cpu_running_max == 0 {
                limits.cpu_running_max = cpu_running(compute.threads(), count);
            }
            // Opened here, where an error can still be told to the one who starts us.
            let opened = blocks::local::LocalBlobs::open(blobs_dir, index as u16);
            let blobs = opened.map_err(|source| WorkerError::Blobs { path: blobs_dir.clone(), source })?;
            drop(blobs);
            let wire = WireSettings {
                worker_id: Text::from(plan.identity.worker_id.clone()),
                salt: plan.identity.salt.clone(),
                limits: limits.clone(),
                ack_subject: Text::from(settings.nats.ack_subject.clone()),
                result_subject: Text::from(settings.nats.result_subject.clone()),
                dlq_subject: Text::from(settings.nats.dlq_subject.clone()),
                events_prefix: Text::from(settings.nats.events_prefix.clone()),
                events: settings.events,
                boot: 0,
                dev: plan.dev,
                device: device.is_some(),
                crew: crate::edge::waiting::crew(&settings.nats),
                blocks: lookup,
                references: lookup_reference,
                policy: policy.clone(),
            };
            let folder = blobs_dir.clone();
            let (policy, offload, compute) = (policy.clone(), offload.clone(), compute.clone());
            let (outputs, device, stores) = (settings.outputs.clone(), device.clone(), stores.clone());
            let (cache, counts) = (settings.cache, counts.clone());
            let (databases_dir, sqlite, place) = (storage_dir.join(DATABASES), sqlite.clone(), (index as u16, count as u16));
            let seat = Seat {
                shard: index as u16,
                shards: count as u16,
                generation,
                core: *core,
                dir: storage_dir.clone(),
                worker_id: plan.identity.worker_id.clone(),
                salt: plan.identity.salt.clone(),
                limits,
                block_names: blocks::names(),
                events: settings.events,
                progress_us: settings.nats.ack_wait_ms * 1000 / 3,
                segment_bytes,
                clock,
                inbox,
                control,
                grants: granted,
                lease: lease.clone(),
                outbound: outbound_to.clone(),
                envelopes: envelopes_to.clone(),
                gauge: gauge.clone(),
                furnish: Box::new(move |boot| {
                    give_back_memory();
                    let databases = Databases::new(databases_dir, sqlite, offload.clone(), clock, place);
                    let sql = std::rc::Rc::new(databases);
                    let client = std::rc::Rc::new(Client::new(offload, compute.clone(), clock));
                    let stores = std::rc::Rc::new(Shelf::new(stores));
                    let cache = std::rc::Rc::new(Cache::new(cache, clock, counts));
                    let reach = Reach { policy, client, compute, device, stores, cache, sql };
                    let blobs: std::rc::Rc<dyn shards::block::Blobs> = std::rc::Rc::new(
                        blocks::local::LocalBlobs::open(&folder, boot.shard).expect("it was opened a moment ago"),
                    );
                    Furniture {
                        wire: EdgeWire::new(WireSettings { boot: boot.boot, ..wire }),
                        blocks: blocks::build_all(&reach),
                        outputs: std::rc::Rc::new(Kept::new(&reach, blobs.clone(), outputs)),
                        blobs,
                    }
                }),
            };
            launch(seat, found_to.clone(), exits_to.clone())?;
            inboxes.push(inbox_to);
            controls.push(control_to);
            grants.push(grant_to);
            gauges.push(gauge);
        }
        let mut worker = Worker {
            found: Vec::new(),
            inboxes,
            gauges,
            outbound,
            layout,
            lease,
            journal,
            cache: counts,
            databases: policy.databases().to_vec(),
            grants,
            controls,
            exits,
            keeper: Some(Keeper::new(envelopes, count)),
            _devices: devices,
            _lock: lock,
        };
        let watched = Watch {
            shards: worker.gauges.iter().cloned().zip(worker.inboxes.iter().cloned()).collect(),
            block_names: blocks::names(),
            stall_ms_max: settings.limits.stall_ms_max,
        };
        if let Err(error) = watch(watched) {
            tracing::warn!(%error, "no watchdog: a shard that stalls is not prodded");
        }
        worker.wait_until_open(&found_from)?;
        Ok(worker)
    }

    fn wait_until_open(&mut self, found: &flume::Receiver<Found>) -> Result<(), WorkerError> {
        let started = Instant::now();
        let mut patience = OPEN_PATIENCE;
        while self.found.len() < self.gauges.len() {
            if let Ok(found) = found.recv_timeout(Duration::from_millis(20)) {
                self.found.push(found);
            }
            if let Ok(exit) = self.exits.try_recv() {
                return Err(early(exit));
            }
            if started.elapsed() > patience {
                tracing::warn!(waited_s = patience.as_secs(), "the journal is still being read");
                patience *= 2;
            }
        }
        self.found.sort_by_key(|found| found.shard);
        Ok(())
    }

    /// Which start of this worker this is: the newest of its shards'.
    pub fn boot(&self) -> u32 {
        self.found.iter().map(|found| found.boot).max().unwrap_or(1)
    }

    /// Lets the shards begin, since nobody else can own what they work on; returns once all of them take work.
    ///
    /// # Errors
    /// A shard could not take up what its journal holds.
    pub fn begin(&self) -> Result<(), WorkerError> {
        for grant in &self.grants {
            let _ = grant.send(Grant::default());
        }
        while !self.gauges.iter().all(|gauge| gauge.ready.load(Relaxed)) {
            if let Some(error) = self.watch(Duration::from_millis(1)) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// How the shards are told to begin, by shard, for who learns when they may.
    pub fn grants(&self) -> &[flume::Sender<Grant>] {
        &self.grants
    }

    /// The newest epoch of ownership that the journals have seen.
    pub fn owner_epoch(&self) -> u32 {
        self.found.iter().map(|found| found.owner_epoch).max().unwrap_or(0)
    }

    /// The keeper, for the one who serves the metrics; once.
    pub fn take_keeper(&mut self) -> Option<Keeper> {
        self.keeper.take()
    }

    /// How shards are told things besides work.
    pub fn controls(&self) -> &[flume::Sender<Control>] {
        &self.controls
    }

    /// Waits for a shard to end, at most this long: an error, since nobody asked it to.
    pub fn watch(&self, at_most: Duration) -> Option<WorkerError> {
        self.exits.recv_timeout(at_most).ok().map(early)
    }

    /// Tells the shards to take nothing new. Only after [`TAKEN_IN`] does [`Worker::is_idle`] mean anything.
    pub fn begin_drain(&self) {
        for control in &self.controls {
            let _ = control.send(Control::Drain);
        }
    }

    /// Whether all that is here has been answered.
    pub fn is_idle(&self) -> bool {
        self.gauges.iter().all(|gauge| gauge.idle.load(Relaxed))
    }

    /// Takes nothing new and waits until all that is here has been answered, at most `grace`. True if it has.
    pub fn drain(&self, grace: Duration) -> bool {
        self.begin_drain();
        let until = Instant::now() + grace;
        std::thread::sleep(TAKEN_IN);
        while Instant::now() < until {
            if self.is_idle() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Ends the shards. What is unfinished stays in their journals.
    ///
    /// # Errors
    /// A shard failed on its way out.
    pub fn stop(self) -> Result<(), WorkerError> {
        for control in &self.controls {
            let _ = control.send(Control::Stop);
        }
        for _ in &self.controls {
            let Ok(exit) = self.exits.recv() else { break };
            exit.result?;
        }
        Ok(())
    }
}

/// The ring opens files by path and takes only absolute ones.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn early(exit: Exit) -> WorkerError {
    exit.result.map_or_else(WorkerError::Shard, |()| WorkerError::Ended(exit.shard))
}

/// What was freed goes back to the system after this where memory is short, in milliseconds: the allocator's own second is as much
/// as a flood of large messages brings in that time.
const PURGE_AFTER_MS: std::ffi::c_long = 50;
/// `mi_option_purge_delay` in mimalloc's list of options (its `mimalloc.h`); the crate does not name it.
const PURGE_DELAY: std::ffi::c_int = 15;

/// Has the allocator keep less of what was freed: it costs time, so only where memory is short.
fn keep_less_memory() {
    // SAFETY: it takes no pointer and may be called at any time, on any thread.
    #[expect(unsafe_code, reason = "the allocator offers it only so")]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_AFTER_MS);
    }
}

/// Hands the memory that reading a journal took back to the system: the allocator keeps it per thread, and this thread will
/// not need as much again.
fn give_back_memory() {
    // SAFETY: it takes no pointer and may be called at any time, on any thread.
    #[expect(unsafe_code, reason = "the allocator offers it only so")]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// A quarter of a shard's budget at most, so that pruning has something to prune.
fn segment_bytes(journal_bytes_max: u64, shards: usize) -> u64 {
    let quarter = journal_bytes_max / shards.max(1) as u64 / 4;
    quarter.clamp(4 << 20, DiskSettings::SEGMENT_BYTES_DEFAULT)
}

/// Steps of the cpu lane that one of so many shards runs at once where nobody says: while a thread computes for one, the next piece
/// of another is fetched. More would only fetch what nobody computes over yet, at the cost of whoever shares the cores.
fn cpu_running(threads: usize, shards: usize) -> u32 {
    (2 * threads).div_ceil(shards.max(1)).max(1) as u32
}

/// The shard that the edge gives a message to whose tenant the wire could not read.
fn unowned(message: &Message, shards: u16) -> u16 {
    let header = message.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("tenant_id")).map(|(_, value)| &**value);
    route::shard(&message.subject, &message.body, header, shards).0
}

/// The block table, as the wire asks it.
///
/// # Errors
/// UNKNOWN_JOB_TYPE, or what is wrong with the inputs.
pub fn lookup(query: &Query<'_>) -> Result<FoundBlock, shards::outcome::Fault> {
    let (block, entry) = named(query)?;
    let form = match (query.sandbox, query.cached) {
        (true, _) => blocks::sandbox::id_of(block),
        (false, true) => blocks::cached::id_of(block),
        (false, false) => block,
    };
    found(form, block, entry, query, entry.check(&query.step)?)
}

/// The same for inputs that are elsewhere; the query's say where.
///
/// # Errors
/// UNKNOWN_JOB_TYPE, or what is wrong with the reference.
pub fn lookup_reference(query: &Query<'_>) -> Result<FoundBlock, shards::outcome::Fault> {
    let (block, entry) = named(query)?;
    let checked = blocks::reference::check(entry, &query.step)?;
    let form = if query.sandbox { blocks::sandbox::id_of_referred(block) } else { blocks::reference::id_of(block) };
    found(form, block, entry, query, checked)
}

fn named(query: &Query<'_>) -> Result<(BlockId, &'static blocks::Entry), shards::outcome::Fault> {
    let unknown = || shards::outcome::Fault::new(shards::outcome::Code::UnknownJobType, "No block has this name.");
    blocks::find(query.step.name, query.dev).ok_or_else(unknown)
}

fn found(
    block: BlockId,
    kind: BlockId,
    entry: &'static blocks::Entry,
    query: &Query<'_>,
    checked: Checked,
) -> Result<FoundBlock, shards::outcome::Fault> {
    let Checked { effect, inputs, needs: demand, scopes, gate, denied } = checked;
    let denied = query.step.narrow.denied(entry.scopes.or(scopes)).or(denied);
    let referred = block == blocks::reference::id_of(kind) || block == blocks::sandbox::id_of_referred(kind);
    // What is denied has no plan, and is told to be denied.
    let plan_digest = if query.plan && denied.is_none() {
        // By its own name and with the inputs it runs with, as a dry run plans it.
        let step = blocks::Ask {
            name: entry.info.name,
            inputs: inputs.as_deref().unwrap_or(query.step.inputs),
            provider: "",
            ..query.step
        };
        blocks::sandbox::digest(entry, &step, referred)?
    } else {
        None
    };
    Ok(FoundBlock { block, kind, canonical: entry.info.name, effect, inputs, demand, gate, denied, plan_digest })
}

/// A name that nothing else has: 32 hexadecimal digits.
pub fn random_name() -> String {
    hex(&random_salt().0[..16])
}

/// A random secret, for a deployment that has none yet.
pub fn random_salt() -> Salt {
    let mut bytes = [0; 32];
    let mut source = std::fs::File::open("/dev/urandom").expect("every Linux has /dev/urandom");
    source.read_exact(&mut bytes).expect("/dev/urandom never ends");
    Salt(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_lane_is_as_wide_as_there_are_threads_to_compute() {
        let widths = [(1, 1), (1, 4), (4, 2), (255, 1)].map(|(threads, shards)| cpu_running(threads, shards));
        assert_eq!(widths, [2, 1, 4, 510]);
    }

    #[test]
    fn the_option_that_keeps_less_memory_is_the_one_that_is_meant() {
        // SAFETY: it takes no pointer and may be called at any time, on any thread.
        #[expect(unsafe_code, reason = "the allocator offers it only so")]
        let before_ms = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(before_ms, 1_000, "the allocator's own: another number has another default");
    }
}
