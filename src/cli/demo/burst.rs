//! The burst: as many echo steps as this process does in two seconds, each journaled like any other, fed from this thread.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;
use shards::ids::{Text, Ticket};
use shards::map;
use shards::outcome::Status;
use shards::runtime::ports::{Inbound, Outgoing, Outlet};
use shards::step::{Delivery, Origin};

use super::paper::{Paper, thousands};
use super::{DemoError, beneath};
use crate::cli::run;
use crate::edge::wire::{HEADER_ASSIGNMENT, line_subject};
use crate::ops::process::Usage;
use crate::settings::Settings;
use crate::worker::Worker;

const TOOK: Duration = Duration::from_secs(2);
/// Steps under way on each shard: enough to share commits, few enough that none waits long.
const UNDER_WAY: usize = 256;
const TENANTS: u64 = 16;
/// Latencies up to a minute, in microseconds, with three digits.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Shows it.
pub(super) fn show(settings: &Settings, folder: &Path, paper: &mut Paper) -> Result<(), DemoError> {
    let worker = run::start(&beneath(settings, folder, "burst"))?;
    paper.heading("4  Two seconds of echo steps at full load, every outcome durable before it is told")?;
    let mut burst = Burst::new(&worker);
    let (began, before) = (Instant::now(), Usage::now());
    burst.run(began + TOOK)?;
    let (took, after) = (began.elapsed(), Usage::now());
    let shards = worker.inboxes.len();
    let (steps, latencies) = (burst.done, burst.latencies);
    worker.drain(Duration::from_secs(5));
    worker.stop()?;
    let per_s = steps as f64 / took.as_secs_f64();
    let cpu_us = after.cpu_us.saturating_sub(before.cpu_us) as f64 / steps.max(1) as f64;
    let (p50, p99) = (latencies.value_at_quantile(0.5), latencies.value_at_quantile(0.99));
    paper.line(&format!(
        "{} steps/s, p50 {:.2} ms, p99 {:.2} ms with {} under way, {cpu_us:.1} µs of CPU a step, its feeding included",
        thousands(per_s as u64),
        p50 as f64 / 1e3,
        p99 as f64 / 1e3,
        UNDER_WAY * shards
    ))?;
    paper.object(
        "burst",
        json!({
            "steps": steps, "took_ms": took.as_millis() as u64, "steps_per_s": per_s as u64, "latency_p50_us": p50,
            "latency_p99_us": p99, "under_way": UNDER_WAY * shards, "cpu_us_per_step": (cpu_us * 10.0).round() / 10.0,
            "shards": shards,
        }),
    )?;
    Ok(())
}

/// Steps in slots: a slot is sent anew when its result is here.
struct Burst<'a> {
    worker: &'a Worker,
    subject: Text,
    /// When each slot's step was sent.
    sent: Vec<Instant>,
    next: u64,
    done: u64,
    latencies: Histogram<u64>,
    batches: Vec<Vec<Delivery>>,
    confirms: Vec<Vec<Ticket>>,
}

impl<'a> Burst<'a> {
    fn new(worker: &'a Worker) -> Self {
        let shards = worker.inboxes.len();
        Burst {
            worker,
            subject: line_subject("burst"),
            sent: vec![Instant::now(); UNDER_WAY * shards],
            next: 0,
            done: 0,
            latencies: Histogram::new_with_max(LATENCY_US_MAX, 3).expect("three digits of a minute can be had"),
            batches: vec![Vec::new(); shards],
            confirms: vec![Vec::new(); shards],
        }
    }

    /// Keeps every slot busy until then, and waits for the last results.
    fn run(&mut self, until: Instant) -> Result<(), DemoError> {
        (0..self.sent.len()).for_each(|slot| self.send(slot));
        let mut under_way = self.sent.len();
        while under_way > 0 {
            self.flush();
            let Ok(batch) = self.worker.outbound.recv_timeout(Duration::from_millis(200)) else {
                match self.worker.watch(Duration::ZERO) {
                    Some(error) => return Err(error.into()),
                    None => continue,
                }
            };
            let now = Instant::now();
            for item in batch.items {
                let Outgoing::Parcel(parcel) = item else { continue };
                self.confirms[usize::from(batch.shard)].extend(parcel.confirm);
                if parcel.outlet != Outlet::Result {
                    continue;
                }
                let slot = parcel.about.line as usize - 1;
                self.latencies.saturating_record(now.duration_since(self.sent[slot]).as_micros() as u64);
                self.done += u64::from(parcel.about.status == Some(Status::Ok));
                if now < until {
                    self.send(slot);
                } else {
                    under_way -= 1;
                }
            }
        }
        self.flush();
        Ok(())
    }

    fn send(&mut self, slot: usize) {
        let n = self.next;
        self.next += 1;
        let tenant = format!("tenant-{}", n % TENANTS);
        let body = format!(r#"{{"type":"echo","inputs":{{"n":{n}}},"context":{{"tenant_id":"{tenant}"}}}}"#);
        let shard = usize::from(map::shard(map::partition(&tenant), self.batches.len() as u16));
        self.batches[shard].push(Delivery {
            origin: Origin::Line(slot as u64 + 1),
            subject: self.subject.clone(),
            headers: vec![(Text::from_static(HEADER_ASSIGNMENT), Text::from(format!("burst-{n}")))],
            body: body.into(),
            reply: None,
        });
        self.sent[slot] = Instant::now();
    }

    fn flush(&mut self) {
        for (shard, inbox) in self.worker.inboxes.iter().enumerate() {
            let confirms = std::mem::take(&mut self.confirms[shard]);
            let batch = std::mem::take(&mut self.batches[shard]);
            // A shard that is gone says so in its exit.
            if !confirms.is_empty() {
                let _ = inbox.send(Inbound::Confirmed(confirms));
            }
            if !batch.is_empty() {
                let _ = inbox.send(Inbound::Deliveries(batch));
            }
        }
    }
}
