//! Ownership of the consumers that work comes from: taken before any of it is, kept while it is done, given back at the end.
//!
//! One lease a consumer, in the bucket; the shards begin once all are held. What the rules are is in [`super::lease`]. A lease
//! that cannot be renewed in time only stops us from publishing; one that another has taken ends the process, for what we
//! know of the work is no longer the truth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_nats::client::{RequestError, RequestErrorKind};
use shards::runtime::tenure::{Grant, Lease, since_boot_us};

use super::bucket::{CLAIMS, SHARED, WAITING, Written};
use super::claims::{self, Claimer};
use super::lease::{Claim, Record, Released, Watch};
use super::limits::{
    API_WITHIN_MS, COMPLAINT_EVERY_MS, DOUBT_AFTER_MS, LEASE_HOLD_MS, LEASE_LOOK_MS, LEASE_RENEW_MS, LEASE_TRY_MS,
};
use super::nats::Link;
use super::status::EdgeStatus;
use super::streams::{self, Consumer, Source};
use super::thread::{EdgeError, EdgeSettings, Halt, Phase};
use super::waiting;
use crate::settings::Ownership;

/// What the shards and their starter give the edge to own work for them. Crosses to the edge's thread once.
#[derive(Debug)]
pub struct Estate {
    /// What everybody asks before acting on what is owned.
    pub lease: Lease,
    /// How the shards are told to begin, by shard.
    pub grants: Vec<flume::Sender<Grant>>,
    /// The journal's own name.
    pub journal: String,
    /// The newest epoch that the journal has seen.
    pub epoch: u32,
    /// Whether the journal held anything at this start.
    pub knows: bool,
    /// Set before the end: everything that was begun is finished and told.
    pub done: Arc<AtomicBool>,
}

/// A lease that is ours.
#[derive(Debug)]
struct Held {
    revision: u64,
    record: Record,
}

/// What this worker owns. Lives on the edge's thread.
pub(crate) struct Tenancy {
    ownership: Ownership,
    replicas: usize,
    horizon: Duration,
    claim: Claim,
    lease: Lease,
    grants: Vec<flume::Sender<Grant>>,
    done: Arc<AtomicBool>,
    status: Arc<EdgeStatus>,
    /// By the key in the bucket; taken in the order of the keys, so that two who want several never wait for each other.
    held: BTreeMap<String, Held>,
    /// There is a place for copies of steps that wait for people.
    copies: bool,
    /// When it was last complained of that one could not be renewed; none once it could.
    late_said: Option<Instant>,
}

impl Tenancy {
    pub(crate) fn new(settings: &EdgeSettings, estate: Estate, status: Arc<EdgeStatus>) -> Tenancy {
        let session = crate::worker::random_name();
        let Estate { lease, grants, journal, epoch, knows, done } = estate;
        // Until it is known that nobody else can own it.
        lease.lapse();
        Tenancy {
            ownership: settings.nats.ownership,
            replicas: settings.nats.replicas,
            horizon: settings.horizon,
            claim: Claim { worker: settings.worker_id.clone(), journal, session, epoch, knows },
            lease,
            grants,
            done,
            status,
            held: BTreeMap::new(),
            copies: false,
            late_said: None,
        }
    }

    /// What says whether what is owned still is.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Who claims steps for this worker.
    pub(crate) fn claimer(&self) -> Claimer {
        Claimer { worker: self.claim.worker.clone(), journal: self.claim.journal.clone() }
    }

    /// Nothing that could be owned: the shards may begin. `claims`: where there is JetStream all the same.
    pub(crate) fn free(&mut self, claims: bool) {
        self.lease.unbind();
        self.grant(Grant { claims, ..Grant::default() });
    }

    /// Whether steps can be claimed here; `None`: the end came before that was known.
    async fn can_claim(&self, link: &Link, phase: &mut Phase) -> Option<bool> {
        let without = "steps that must never run twice cannot be claimed before other workers: only a lease keeps them apart";
        self.can(link, phase, CLAIMS.name(), without, || claims::prepare(&link.client, self.replicas, self.horizon)).await
    }

    /// Whether there is a place for copies of steps that wait for people; `None`: the end came before that was known.
    async fn can_copy(&self, link: &Link, phase: &mut Phase) -> Option<bool> {
        let without = "steps that wait for people have no copies: the stream holds each of them until it is decided";
        self.can(link, phase, WAITING.name(), without, || waiting::prepare(&link.client, self.replicas)).await
    }

    /// Whether a bucket is there, or can be made; `None`: the end came before that was known.
    async fn can<F>(&self, link: &Link, phase: &mut Phase, bucket: &str, without: &str, prepare: impl Fn() -> F) -> Option<bool>
    where
        F: Future<Output = Result<(), async_nats::Error>>,
    {
        if self.grants.is_empty() || !link.client.server_info().jetstream {
            return Some(false);
        }
        loop {
            match tokio::time::timeout(Duration::from_millis(API_WITHIN_MS), prepare()).await {
                Ok(Ok(())) => return Some(true),
                Ok(Err(error)) if is_final(&error) => {
                    tracing::warn!(bucket, %error, "{without}");
                    return Some(false);
                }
                Ok(Err(error)) => {
                    tracing::warn!(bucket, %error, "it is not known yet whether there is such a bucket; asking again")
                }
                Err(_) => tracing::warn!(bucket, "it is not known yet whether there is such a bucket; asking again"),
            }
            if phase.wait(Duration::from_millis(LEASE_LOOK_MS)).await == Halt::Stop || link.closed() {
                return None;
            }
        }
    }

    /// Whether there may be copies of steps for this worker to go on with.
    pub(crate) fn has_copies(&self) -> bool {
        self.copies && !self.held.is_empty()
    }

    fn grant(&mut self, grant: Grant) {
        for shard in self.grants.drain(..) {
            let _ = shard.send(grant);
        }
        self.status.standing_by(None);
        self.status.owner_epoch.store(grant.epoch, Relaxed);
    }

    /// Waits until everything that `sources` want owned is ours, and lets the shards begin. By source: up to which sequence a
    /// message may be known to an earlier owner. `None`: the end came before.
    ///
    /// # Errors
    /// Another took meanwhile what was ours.
    pub(crate) async fn own(
        &mut self,
        link: &Link,
        sources: &[Source],
        phase: &mut Phase,
    ) -> Result<Option<Vec<u64>>, EdgeError> {
        let mut wanted: BTreeMap<String, &Consumer> = BTreeMap::new();
        for source in sources {
            if let Source::Pull(consumer) = source {
                wanted.insert(key(consumer), consumer);
            }
        }
        match self.ownership {
            _ if wanted.is_empty() => {
                let Some(claims) = self.can_claim(link, phase).await else { return Ok(None) };
                self.free(claims);
            }
            Ownership::Shared => {
                let Some(claims) = self.can_claim(link, phase).await else { return Ok(None) };
                self.lease.unbind();
                self.grant(Grant { epoch: 0, since: u32::MAX, shared: true, claims, copies: false });
                return Ok(Some(vec![0; sources.len()]));
            }
            Ownership::Exclusive => {
                // Before the lease is: it does not wait for this.
                let Some(claims) = self.can_claim(link, phase).await else { return Ok(None) };
                let Some(copies) = self.can_copy(link, phase).await else { return Ok(None) };
                self.copies |= copies;
                for (key, consumer) in wanted {
                    if !self.held.contains_key(&key) && !self.take(link, &key, consumer, phase).await? {
                        return Ok(None);
                    }
                }
                let grant = Grant { claims, copies, ..self.settle() };
                while !self.renew(link).await? {
                    if phase.wait(Duration::from_millis(LEASE_LOOK_MS)).await == Halt::Stop || link.closed() {
                        return Ok(None);
                    }
                }
                self.grant(grant);
            }
        }
        let inherited = |source: &Source| match source {
            Source::Pull(consumer) => self.held.get(&key(consumer)).map_or(0, |held| held.record.inherited),
            Source::Core(_) => 0,
        };
        Ok(Some(sources.iter().map(inherited).collect()))
    }

    /// One epoch for all that is held: the newest.
    fn settle(&mut self) -> Grant {
        let epoch = self.held.values().map(|held| held.record.epoch).max().unwrap_or(0);
        for Held { record, .. } in self.held.values_mut() {
            if record.since == record.epoch {
                record.since = epoch;
            }
            record.epoch = epoch;
        }
        Grant { epoch, since: self.held.values().map(|held| held.record.since).max().unwrap_or(0), ..Grant::default() }
    }

    /// Waits until this lease may be taken, and takes it. `false`: the end came before.
    async fn take(&mut self, link: &Link, key: &str, consumer: &Consumer, phase: &mut Phase) -> Result<bool, EdgeError> {
        let (mut watch, mut renewed, mut connection) = (Watch::default(), Instant::now(), link.epoch());
        loop {
            // An owner that lost its server with us gets as long as any to renew.
            if std::mem::replace(&mut connection, link.epoch()) != link.epoch() {
                watch = Watch::default();
            }
            match self.try_take(link, key, consumer, &mut watch).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => {
                    watch = Watch::default();
                    tracing::warn!(key, error, "the lease cannot be looked at");
                }
            }
            if phase.wait(Duration::from_millis(LEASE_LOOK_MS)).await == Halt::Stop || link.closed() {
                return Ok(false);
            }
            if renewed.elapsed() >= Duration::from_millis(LEASE_RENEW_MS) {
                renewed = Instant::now();
                self.renew(link).await?;
            }
        }
    }

    async fn try_take(&mut self, link: &Link, key: &str, consumer: &Consumer, watch: &mut Watch) -> Result<bool, String> {
        let told = |error: async_nats::Error| error.to_string();
        let found = SHARED.read(&link.client, key).await.map_err(told)?;
        let found = match &found {
            Some((revision, bytes)) => {
                let record: Record = serde_json::from_slice(bytes).map_err(|error| {
                    format!("what stands there is no lease ({error}); if no newer version wrote it, remove it: nats kv del endstation {key}")
                })?;
                Some((*revision, record))
            }
            None => None,
        };
        let before = found.as_ref().map(|(_, record)| record);
        if !watch.may_take(found.as_ref().map(|(revision, record)| (*revision, record)), &self.claim, Instant::now()) {
            let by = before.map_or("", |record| &record.worker);
            if self.status.standing_by(Some(by)) {
                tracing::info!(
                    stream = consumer.stream,
                    durable = consumer.durable,
                    owner = by,
                    "standing by: another worker owns this work"
                );
            }
            return Ok(false);
        }
        let reach = streams::reach(link, consumer).await.map_err(|trouble| format!("{trouble:?}"))?;
        let record = self.claim.take(before, reach, &server(link));
        let revision = found.as_ref().map_or(0, |(revision, _)| *revision);
        match SHARED.write(&link.client, key, json(&record), revision).await.map_err(told)? {
            Written::At(revision) => {
                tracing::info!(
                    stream = consumer.stream,
                    durable = consumer.durable,
                    epoch = record.epoch,
                    inherited = record.inherited,
                    before = before.map_or("nobody", |record| &record.worker),
                    "this worker owns this work"
                );
                self.held.insert(key.to_owned(), Held { revision, record });
                Ok(true)
            }
            Written::Beaten => Ok(false),
            Written::NoBucket => SHARED.create(&link.client, self.replicas, Duration::ZERO).await.map_err(told).map(|()| false),
        }
    }

    /// Renews what is held for as long as this is polled.
    ///
    /// # Errors
    /// Another has taken it.
    pub(crate) async fn keep(&mut self, link: &Link) -> EdgeError {
        if self.held.is_empty() {
            return std::future::pending().await;
        }
        let (mut pause, mut well) = (LEASE_RENEW_MS, Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if !link.connected() {
                (pause, well) = (LEASE_LOOK_MS / 4, Instant::now());
                continue;
            }
            match self.renew(link).await {
                Ok(true) => (pause, well) = (LEASE_RENEW_MS, Instant::now()),
                Ok(false) => {
                    pause = LEASE_LOOK_MS;
                    if well.elapsed() >= Duration::from_millis(DOUBT_AFTER_MS) {
                        link.doubt().await;
                        well = Instant::now();
                    }
                }
                Err(lost) => return lost,
            }
        }
    }

    /// Writes all that is held again. `false`: not all of it could be, this time.
    async fn renew(&mut self, link: &Link) -> Result<bool, EdgeError> {
        let from_us = since_boot_us();
        for (key, held) in &mut self.held {
            let record = Record { beat: held.record.beat + 1, ..held.record.clone() };
            let patience = Duration::from_millis(LEASE_TRY_MS);
            let written = SHARED.write(&link.client, key, json(&record), held.revision);
            let written = match tokio::time::timeout(patience, written).await {
                // The same as no answer, where somebody listens to every subject.
                Err(_) if matches!(tokio::time::timeout(patience, SHARED.exists(&link.client)).await, Ok(Ok(false))) => {
                    Ok(Ok(Written::NoBucket))
                }
                written => written,
            };
            match written {
                Ok(Ok(Written::At(revision))) => *held = Held { revision, record },
                Ok(Ok(Written::Beaten)) => {
                    match tokio::time::timeout(patience, SHARED.read(&link.client, key)).await {
                        Ok(Ok(None)) => held.revision = 0,
                        Ok(Ok(Some((revision, bytes)))) => match serde_json::from_slice::<Record>(&bytes) {
                            // Our own: the answer to an earlier write was lost, or the server lost a later one.
                            Ok(found) if found.session == record.session => held.revision = revision,
                            found => {
                                self.lease.lapse();
                                let (by, epoch) = found.map_or_else(|_| (String::new(), 0), |found| (found.worker, found.epoch));
                                return Err(EdgeError::Superseded { lease: key.clone(), by, epoch, ours: record.epoch });
                            }
                        },
                        Ok(Err(_)) | Err(_) => {}
                    }
                    return Ok(false);
                }
                Ok(Ok(Written::NoBucket)) => {
                    if let Err(error) = SHARED.create(&link.client, self.replicas, Duration::ZERO).await {
                        tracing::warn!(%error, "the bucket of the leases is gone and cannot be made again");
                    }
                    held.revision = 0;
                    return Ok(false);
                }
                late => {
                    let why = if let Ok(Err(error)) = late { error.to_string() } else { "no answer".to_owned() };
                    if self.late_said.is_none_or(|at| at.elapsed() >= Duration::from_millis(COMPLAINT_EVERY_MS)) {
                        self.late_said = Some(Instant::now());
                        tracing::warn!(key, why, "the lease could not be renewed in time; trying again");
                    }
                    self.status.lease_lapsed.store(!self.lease.holds(), Relaxed);
                    return Ok(false);
                }
            }
        }
        self.lease.extend(from_us + LEASE_HOLD_MS * 1000);
        self.late_said = None;
        self.status.lease_lapsed.store(false, Relaxed);
        Ok(true)
    }

    /// Gives everything back, so that who waits need not wait longer.
    pub(crate) async fn release(&mut self, link: &Link) {
        self.lease.lapse();
        let released = if self.done.load(Relaxed) { Released::Done } else { Released::Unfinished };
        for (key, held) in std::mem::take(&mut self.held) {
            let record = Record { released: Some(released), ..held.record };
            let giving = async {
                let written = SHARED.write(&link.client, &key, json(&record), held.revision).await?;
                // A renewal whose answer nobody waited for may have been the last.
                match (&written, SHARED.read(&link.client, &key).await?) {
                    (Written::Beaten, Some((revision, bytes)))
                        if serde_json::from_slice::<Record>(&bytes).is_ok_and(|found| found.session == record.session) =>
                    {
                        SHARED.write(&link.client, &key, json(&record), revision).await
                    }
                    _ => Ok(written),
                }
            };
            match tokio::time::timeout(Duration::from_millis(LEASE_TRY_MS), giving).await {
                Ok(Ok(Written::At(_))) => tracing::info!(key, ?released, "ownership is given back"),
                _ => tracing::warn!(key, "ownership could not be given back; it ends by itself"),
            }
        }
    }
}

/// A server that said no will say so again; one that cannot be reached may answer yet.
fn is_final(error: &async_nats::Error) -> bool {
    match error.downcast_ref::<RequestError>() {
        // An account without JetStream has nobody who answers.
        Some(error) => error.kind() == RequestErrorKind::NoResponders,
        None => true,
    }
}

/// Where a consumer's lease stands.
fn key(consumer: &Consumer) -> String {
    format!("lease.{}.{}", consumer.stream, consumer.durable)
}

fn server(link: &Link) -> String {
    link.client.server_info().server_id
}

fn json(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).expect("texts and numbers")
}

/// Waits until what we have is ours again. If it no longer is, the process ends; if that is to end, there is no waiting.
pub(super) async fn owned(lease: &Lease, phase: &Phase) {
    while !lease.holds() && phase.now() != Halt::Stop {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
