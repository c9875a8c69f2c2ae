//! Tells the platform every few seconds that this worker lives, and how busy it is.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::Serialize;
use shards::limits::STALL_SAID_MS;
use shards::runtime::ports::Gauge;

use super::nats::Link;
use super::status::EdgeStatus;
use super::thread::{EdgeSettings, Halt, Phase};

#[derive(Serialize)]
struct Heartbeat<'a> {
    version: &'a str,
    worker_id: &'a str,
    timestamp: String,
    status: &'a str,
    resources: Resources,
    metadata: Metadata,
}

#[derive(Serialize)]
struct Resources {
    /// Percent of all cores this process may use, since the last heartbeat.
    cpu: f64,
    gpu: f64,
    mem_bytes: u64,
    jobs_in_flight: u32,
}

#[derive(Serialize)]
struct Metadata {
    /// 0 idle, 1 all places taken.
    load: f64,
    queue_depth: u32,
    shards: usize,
}

/// The task. Lives on the edge's thread.
pub(crate) struct Heart {
    settings: Rc<EdgeSettings>,
    link: Link,
    gauges: Vec<Arc<Gauge>>,
    phase: Phase,
    status: Arc<EdgeStatus>,
    cpu_since: (Instant, u64),
}

impl Heart {
    pub(crate) fn new(
        settings: Rc<EdgeSettings>,
        link: Link,
        gauges: Vec<Arc<Gauge>>,
        phase: Phase,
        status: Arc<EdgeStatus>,
    ) -> Heart {
        Heart { settings, link, gauges, phase, status, cpu_since: (Instant::now(), cpu_ms()) }
    }

    pub(crate) async fn run(mut self) {
        let subject = async_nats::Subject::from(self.settings.nats.heartbeat_subject.as_str());
        let mut beat = tokio::time::interval(Duration::from_millis(self.settings.nats.heartbeat_ms.max(100)));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            beat.tick().await;
            // Who stands by has nothing to offer.
            if self.link.connected() && self.status.stands_by_for().is_none() {
                let body = self.body();
                self.link.offer(subject.clone(), None, body.into());
            }
        }
    }

    fn body(&mut self) -> Vec<u8> {
        let sum = |of: fn(&Gauge) -> u32| self.gauges.iter().map(|gauge| of(gauge)).fold(0, u32::saturating_add);
        let running = sum(|gauge| gauge.running.load(Relaxed));
        let queued = sum(|gauge| gauge.queued.load(Relaxed));
        let well = self.status.complaint().is_none() && self.gauges.iter().all(|gauge| is_well(gauge));
        let status = if self.phase.now() != Halt::Run {
            "draining"
        } else if !well {
            "degraded"
        } else if sum(|gauge| gauge.free.load(Relaxed)) == 0 || running >= self.settings.running_max {
            "busy"
        } else {
            "ready"
        };
        let cpu = self.cpu();
        let heartbeat = Heartbeat {
            version: "1",
            worker_id: &self.settings.worker_id,
            timestamp: jiff::Timestamp::now().to_string(),
            status,
            resources: Resources { cpu, gpu: 0.0, mem_bytes: mem_bytes(), jobs_in_flight: running },
            metadata: Metadata {
                load: round(share(running, self.settings.running_max).max(share(queued, self.settings.queued_max))),
                queue_depth: queued,
                shards: self.gauges.len(),
            },
        };
        serde_json::to_vec(&heartbeat).unwrap_or_default()
    }

    fn cpu(&mut self) -> f64 {
        let now = (Instant::now(), cpu_ms());
        let (then, used) = std::mem::replace(&mut self.cpu_since, now);
        let wall_ms = now.0.duration_since(then).as_secs_f64() * 1000.0;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        if wall_ms < 1.0 { 0.0 } else { round((now.1.saturating_sub(used) as f64 / wall_ms / cores * 100.0).min(100.0)) }
    }
}

/// It takes work, has room for it, turns, and has a clock that it believes.
fn is_well(gauge: &Gauge) -> bool {
    !gauge.clock_jumped.load(Relaxed)
        && gauge.ready.load(Relaxed)
        && !gauge.disk_full.load(Relaxed)
        && gauge.stall_ms.load(Relaxed) < STALL_SAID_MS
}

fn share(part: u32, whole: u32) -> f64 {
    f64::from(part) / f64::from(whole.max(1))
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// CPU time of the process, user and system.
fn cpu_ms() -> u64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as u64 * 1000 + spent.tv_nsec as u64 / 1_000_000
}

/// Resident memory of the process; 0 where there is no /proc.
fn mem_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
