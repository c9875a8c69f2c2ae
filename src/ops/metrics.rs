//! Metrics by the names that dashboards query, from what the shards have counted themselves.
//!
//! Nothing is counted here: tallies and gauges are absolute values, written as they stand. The specification's and the
//! platform's names come first, the project's own (`endstation_…`, base units, by shard) after them. No label is an id.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge as Value, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use shards::outcome::Code;
use shards::runtime::ports::Gauge;
use shards::step::Lane;
use shards::tally::{BlockTally, LATENCY_BOUNDS_US, Tally};

use crate::blocks::CacheCounts;
use crate::dlq::DlqStatus;
use crate::policy::databases::{Database, PostgresSettings};

use super::EdgeFigures;
use super::process::Usage;

/// The statuses of [`BlockTally::by_status`], as results spell them.
pub const STATUSES: [&str; 4] = ["success", "error", "timeout", "cancelled"];
/// What stands for a block where there was none: refusals and messages put aside.
const NO_BLOCK: &str = "_other";

/// Everything the metrics are made of.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Names of the blocks, in the order of the tallies.
    pub blocks: &'a [String],
    /// The newest of each shard.
    pub tallies: &'a [Tally],
    /// One a shard.
    pub gauges: &'a [Arc<Gauge>],
    /// Name and whether it holds.
    pub checks: &'a [(&'a str, bool)],
    /// The edge, if there is one.
    pub edge: Option<EdgeFigures>,
    /// The store of dead letters, if there is one.
    pub dlq: Option<&'a DlqStatus>,
    /// What came of looking for kept outputs.
    pub cache: &'a CacheCounts,
    /// The databases that steps may ask.
    pub databases: &'a [Arc<Database>],
    /// This process.
    pub usage: Usage,
}

/// Prometheus text, version 0.0.4.
pub fn render(view: &View<'_>) -> String {
    let mut page = Page::default();
    page.by_block(view);
    page.by_pool(view);
    page.by_shard(view);
    page.edge(view);
    page.dlq(view);
    page.cache(view);
    page.databases(view);
    // Families are never empty and have names: there is nothing else to fail on in memory.
    TextEncoder::new().encode_to_string(&page.families).unwrap_or_default()
}

#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    fn by_block(&mut self, view: &View<'_>) {
        let blocks: Vec<(&str, BlockTally)> =
            view.blocks.iter().enumerate().map(|(index, name)| (name.as_str(), sum(view.tallies, index))).collect();
        let by_status = |block: &str, status: &str| {
            let rows = blocks.iter().flat_map(|(name, tally)| {
                let labelled = STATUSES.iter().zip(tally.by_status);
                labelled.map(move |(text, count)| counter(&[(block, name), (status, text)], count as f64))
            });
            rows.collect::<Vec<Metric>>()
        };
        self.counters("worker_tasks_total", "Steps that came to an outcome.", by_status("block_type", "status"));
        let latencies = |label, per_unit: f64| {
            blocks.iter().map(|(name, tally)| histogram(&[(label, *name)], tally, per_unit)).collect::<Vec<_>>()
        };
        let help = "From receipt to decision.";
        self.family("worker_task_latency_ms", help, MetricType::HISTOGRAM, latencies("block_type", 1e3));
        let failures = blocks.iter().map(|(name, tally)| {
            let failed: u64 = tally.by_status[1..].iter().sum();
            counter(&[("block_type", name)], failed as f64)
        });
        self.counters("worker_task_failures_total", "Steps whose outcome is not success.", failures.collect());

        let executions = by_status("step_type", "execution_status");
        self.counters("worker_step_executions_total", "Steps that came to an outcome.", executions);
        self.family("worker_step_execution_duration_seconds", help, MetricType::HISTOGRAM, latencies("step_type", 1e6));
        self.counters("worker_step_errors_total", "Faults by code.", errors(&blocks, view.tallies));
    }

    fn by_pool(&mut self, view: &View<'_>) {
        // Pools are the lanes.
        let by_lane = |label: &str, which: usize| {
            let of = |(at, lane): (usize, &Lane)| {
                let total = view.gauges.iter().map(|gauge| f64::from(gauge.by_lane[at][which].load(Relaxed))).sum();
                gauge(&[(label, lane.as_str())], total)
            };
            Lane::ALL.iter().enumerate().map(of).collect::<Vec<_>>()
        };
        self.gauges("worker_pool_queue_depth", "Steps that wait, by lane.", by_lane("pool", 0));
        self.gauges("worker_queue_depth", "Steps that wait, by lane.", by_lane("resource_pool", 0));
        self.gauges("worker_active_tasks", "Steps that run, by lane.", by_lane("resource_pool", 1));
        let usage = view.usage;
        let cpu_ms = vec![counter(&[], usage.cpu_us as f64 / 1e3)];
        self.counters("worker_resource_cpu_time_ms", "CPU time of the process.", cpu_ms);
        let memory = || vec![gauge(&[], usage.memory_bytes as f64)];
        self.gauges("worker_resource_mem_bytes", "Resident memory of the process.", memory());
        self.counters("process_cpu_seconds_total", "CPU time of the process.", vec![counter(&[], usage.cpu_us as f64 / 1e6)]);
        self.gauges("process_resident_memory_bytes", "Resident memory of the process.", memory());
        let checks = view.checks.iter().map(|(name, ok)| gauge(&[("check", name)], f64::from(u8::from(*ok))));
        self.gauges("worker_health_status", "1 where the check holds, else 0.", checks.collect());
    }

    fn by_shard(&mut self, view: &View<'_>) {
        type Count = fn(&Tally) -> u64;
        let counters: [(&str, &str, Count); 18] = [
            ("endstation_accepted_total", "Steps accepted.", |t| t.accepted),
            ("endstation_tries_total", "Tries started.", |t| t.started),
            ("endstation_retries_total", "Tries after a first one.", |t| t.retried),
            ("endstation_duplicates_total", "Arrivals answered from the journal or joined to a step in flight.", |t| {
                t.duplicates
            }),
            ("endstation_handed_back_total", "Deliveries handed back for load.", |t| t.handed_back),
            ("endstation_refused_total", "Assignments refused.", |t| t.refused),
            ("endstation_quarantined_total", "Messages put aside.", |t| t.quarantined),
            ("endstation_superseded_total", "Unfinished keys of the journal that another owner has had since.", |t| t.superseded),
            ("endstation_conflicts_total", "Arrivals with a known key and other content.", |t| t.conflicts),
            (
                "endstation_journal_carried_total",
                "Steps without an end that were written again because their segment had to go.",
                |t| t.carried,
            ),
            ("endstation_stale_total", "Verdicts of tries that no longer mattered.", |t| t.stale),
            ("endstation_panics_total", "Block code that panicked.", |t| t.panics),
            ("endstation_dead_letters_total", "Dead letters written.", |t| t.dead_letters),
            ("endstation_outbox_posted_total", "Letters handed to the edge.", |t| t.posted),
            ("endstation_journal_fsyncs_total", "Commits of the journal.", |t| t.fsyncs),
            ("endstation_journal_bytes_total", "Bytes written to the journal.", |t| t.journal_bytes),
            ("endstation_journal_frames_total", "Frames written to the journal.", |t| t.journal_frames),
            ("endstation_faults_total", "Outcomes, answers and messages with a fault.", |t| t.faults.iter().sum()),
        ];
        let shards: Vec<String> = (0..view.tallies.len().max(view.gauges.len())).map(|shard| shard.to_string()).collect();
        let labelled = |make: fn(&[(&str, &str)], f64) -> Metric, of: Count| -> Vec<Metric> {
            shards.iter().zip(view.tallies).map(|(shard, tally)| make(&[("shard", shard)], of(tally) as f64)).collect()
        };
        for (name, help, of) in counters {
            self.counters(name, help, labelled(counter, of));
        }
        self.gauges("endstation_keys", "Keys remembered.", labelled(gauge, |t| t.keys));
        let mut shown = |name, help, of: fn(&Gauge) -> f64| {
            let rows = shards.iter().zip(view.gauges).map(|(shard, shown)| gauge(&[("shard", shard)], of(shown)));
            self.gauges(name, help, rows.collect());
        };
        shown("endstation_unpublished", "Outcomes not yet known as published.", |g| f64::from(g.unpublished.load(Relaxed)));
        shown("endstation_queued", "Steps that wait.", |g| f64::from(g.queued.load(Relaxed)));
        shown("endstation_waiting_for_people", "Steps that wait for people.", |g| f64::from(g.parked.load(Relaxed)));
        shown("endstation_running", "Steps that run.", |g| f64::from(g.running.load(Relaxed)));
        shown("endstation_memory_reserved_bytes", "Memory that is kept for the steps that run.", |g| {
            g.memory_bytes.load(Relaxed) as f64
        });
        shown("endstation_free", "Deliveries that would be taken now.", |g| f64::from(g.free.load(Relaxed)));
        shown("endstation_journal_disk_full", "1 while the journal's disk is full and new steps wait.", |g| {
            f64::from(u8::from(g.disk_full.load(Relaxed)))
        });
        shown(
            "endstation_journal_over_budget",
            "1 while the journal is over its budget, nothing may go and new steps wait.",
            |g| f64::from(u8::from(g.over_budget.load(Relaxed))),
        );
        shown("endstation_journal_reserve_bytes", "Space kept for when the disk is full; 0 while it is used.", |g| {
            g.reserve_bytes.load(Relaxed) as f64
        });
        shown("worker_shard_stall_seconds", "How long the shard has not turned though it has work; 0 while it turns.", |g| {
            g.stall_ms.load(Relaxed) as f64 / 1e3
        });
        shown("endstation_shard_ready", "1 where the shard takes work.", |g| f64::from(u8::from(g.ready.load(Relaxed))));
    }

    fn cache(&mut self, view: &View<'_>) {
        for (name, help, value) in [
            ("endstation_cache_hits_total", "Steps answered with outputs of an earlier one.", &view.cache.hits),
            ("endstation_cache_misses_total", "Steps that found no outputs that would do.", &view.cache.misses),
        ] {
            self.counters(name, help, vec![counter(&[], value.load(Relaxed) as f64)]);
        }
    }

    fn databases(&mut self, view: &View<'_>) {
        type Value = fn(&Database, &PostgresSettings) -> u64;
        let rows = |make: fn(&[(&str, &str)], f64) -> Metric, of: Value| {
            let servers = view.databases.iter().filter_map(|one| Some((one, one.server()?)));
            servers.map(|(one, server)| make(&[("connector", &one.name)], of(one, server) as f64)).collect::<Vec<_>>()
        };
        let gauges: [(&str, &str, Value); 3] = [
            ("endstation_sql_sessions", "Sessions with a database server.", |one, _| one.counts.sessions.load(Relaxed).into()),
            ("endstation_sql_sessions_max", "As many as there may be.", |_, server| server.connections_max.into()),
            ("endstation_sql_waiting", "Steps that wait for a session.", |one, _| one.counts.waiting.load(Relaxed).into()),
        ];
        for (name, help, of) in gauges {
            self.gauges(name, help, rows(gauge, of));
        }
        let counters: [(&str, &str, Value); 3] = [
            ("endstation_sql_sessions_opened_total", "Sessions opened.", |one, _| one.counts.opened.load(Relaxed)),
            ("endstation_sql_joined_total", "Reads that went behind others in a session.", |one, _| {
                one.counts.joined.load(Relaxed)
            }),
            ("endstation_sql_cancelled_total", "Statements given up and cancelled at the server.", |one, _| {
                one.counts.cancelled.load(Relaxed)
            }),
        ];
        for (name, help, of) in counters {
            self.counters(name, help, rows(counter, of));
        }
    }

    fn edge(&mut self, view: &View<'_>) {
        let Some(edge) = view.edge else { return };
        let mut count = |name, help, value: u64| self.counters(name, help, vec![counter(&[], value as f64)]);
        count("endstation_edge_received_total", "Messages received.", edge.received);
        count("endstation_edge_handed_back_total", "Deliveries the edge handed back.", edge.handed_back);
        count("endstation_edge_lost_total", "Core NATS messages lost: too slow.", edge.lost);
        count("endstation_edge_reconnects_total", "Connections lost and found again.", edge.reconnects);
        count("endstation_edge_calls_total", "Requests that came by gRPC.", edge.calls);
        count("endstation_edge_calls_refused_total", "Requests by gRPC that the edge had no room for.", edge.calls_refused);
        count("endstation_edge_events_dropped_total", "Events not kept for NATS while it was away.", edge.events_dropped);
        count("endstation_outbox_fenced_total", "Results refused because another was there first.", edge.fenced);
        count("endstation_claims_total", "Steps that must never run twice, claimed before they were run.", edge.claimed);
        count("endstation_claims_lost_total", "Such steps not run, because they had been claimed before.", edge.claims_lost);
        count("endstation_outbox_unsendable_total", "Letters that no server takes as they are, by try.", edge.unsendable);
        count("endstation_outbox_published_total", "Letters published, resends included.", edge.published);
        count("endstation_outbox_confirmed_total", "Letters confirmed by the server.", edge.confirmed);
        count("endstation_outbox_resent_total", "Letters sent again.", edge.resent);
        count("endstation_outbox_duplicates_total", "First publishes that the server already had.", edge.duplicates);
        let mut now = |name, help, value: u32| self.gauges(name, help, vec![gauge(&[], f64::from(value))]);
        now("endstation_owner_epoch", "The epoch of this worker's ownership; 0 where nobody owns the work.", edge.owner_epoch);
        now("endstation_standby", "1 where another worker owns the work.", u32::from(edge.standby));
        now("endstation_outbox_unconfirmed", "Letters sent and not yet confirmed.", edge.unconfirmed);
        now("endstation_edge_calls_waiting", "Requests by gRPC that wait for their answer.", edge.calls_waiting);
        now("endstation_edge_backlog", "Messages that wait for a full inbox.", edge.backlog);
    }

    fn dlq(&mut self, view: &View<'_>) {
        let Some(dlq) = view.dlq else { return };
        let value = |value: &AtomicU64| value.load(Relaxed) as f64;
        let mut count = |name, help, count| self.counters(name, help, vec![counter(&[], value(count))]);
        count("endstation_dlq_stored_total", "Dead letters put into the worker's own store.", &dlq.stored);
        count("endstation_dlq_sent_total", "Dead letters of the store that a stream has taken.", &dlq.sent);
        count("endstation_dlq_dropped_total", "Dead letters of the store that made room: published, kept nowhere.", &dlq.dropped);
        count(
            "endstation_dlq_refused_total",
            "Dead letters that the store did not take, by try: they wait in the journal.",
            &dlq.refused,
        );
        let mut now = |name, help, now| self.gauges(name, help, vec![gauge(&[], value(now))]);
        now("endstation_dlq_waiting", "Dead letters of the store that wait for a stream.", &dlq.waiting);
        now("endstation_dlq_bytes", "Bytes of the store of dead letters.", &dlq.bytes);
        now("endstation_dlq_bytes_max", "Its budget.", &dlq.bytes_max);
    }

    fn counters(&mut self, name: &str, help: &str, metrics: Vec<Metric>) {
        self.family(name, help, MetricType::COUNTER, metrics);
    }

    fn gauges(&mut self, name: &str, help: &str, metrics: Vec<Metric>) {
        self.family(name, help, MetricType::GAUGE, metrics);
    }

    /// The encoder refuses an empty family, so one is left out.
    fn family(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }
}

/// One block's counts over all shards.
fn sum(tallies: &[Tally], block: usize) -> BlockTally {
    let mut all = BlockTally::default();
    for tally in tallies.iter().filter_map(|tally| tally.blocks.get(block)) {
        add(&mut all.by_status, &tally.by_status);
        add(&mut all.latency, &tally.latency);
        add(&mut all.faults, &tally.faults);
        all.latency_us += tally.latency_us;
    }
    all
}

fn add(all: &mut [u64], more: &[u64]) {
    for (all, more) in all.iter_mut().zip(more) {
        *all += more;
    }
}

/// By block and code, those that happened; what no block had is under [`NO_BLOCK`], so that the sum is all faults.
fn errors(blocks: &[(&str, BlockTally)], tallies: &[Tally]) -> Vec<Metric> {
    let mut rows = Vec::new();
    for (index, code) in Code::ALL.iter().enumerate() {
        let all: u64 = tallies.iter().filter_map(|tally| tally.faults.get(index)).sum();
        let mut of_blocks = 0;
        for (name, tally) in blocks.iter().filter(|(_, tally)| tally.faults[index] > 0) {
            of_blocks += tally.faults[index];
            rows.push(counter(&[("step_type", name), ("error_code", code.as_str())], tally.faults[index] as f64));
        }
        if all > of_blocks {
            rows.push(counter(&[("step_type", NO_BLOCK), ("error_code", code.as_str())], (all - of_blocks) as f64));
        }
    }
    rows
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    pairs.iter().map(pair).collect()
}

fn counter(pairs: &[(&str, &str)], value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::from_label(labels(pairs));
    metric.set_counter(counter);
    metric
}

fn gauge(pairs: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Value::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels(pairs));
    metric.set_gauge(gauge);
    metric
}

/// The latencies of a block in a unit of `per_unit` microseconds.
fn histogram(pairs: &[(&str, &str)], tally: &BlockTally, per_unit: f64) -> Metric {
    let mut below = 0;
    let buckets = LATENCY_BOUNDS_US.iter().zip(tally.latency).map(|(bound, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64 / per_unit);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(tally.latency.iter().sum());
    histogram.set_sample_sum(tally.latency_us as f64 / per_unit);
    let mut metric = Metric::from_label(labels(pairs));
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::outcome::Status;

    fn page(edge: Option<EdgeFigures>) -> String {
        let mut tallies = [Tally::new(2), Tally::new(2)];
        tallies[0].outcome(0, Status::Ok, None, 900);
        tallies[1].outcome(0, Status::Ok, None, 1_000);
        tallies[1].outcome(0, Status::Timeout, Some(Code::Timeout), 70_000_000);
        tallies[1].fault(Code::Timeout);
        tallies[1].fault(Code::InvalidFormat);
        tallies[1].fsyncs = 3;
        let gauges = [Arc::new(Gauge::default()), Arc::new(Gauge::default())];
        gauges[0].by_lane[Lane::ALL.len() - 1][0].store(2, Relaxed);
        gauges[1].by_lane[Lane::ALL.len() - 1][0].store(3, Relaxed);
        gauges[1].by_lane[1][1].store(4, Relaxed);
        gauges[1].disk_full.store(true, Relaxed);
        gauges[0].over_budget.store(true, Relaxed);
        gauges[0].stall_ms.store(2_500, Relaxed);
        gauges[0].reserve_bytes.store(4096, Relaxed);
        let blocks = ["echo".to_owned(), "sleep".to_owned()];
        let usage = Usage { cpu_us: 1_500_000, memory_bytes: 4096 };
        render(&View {
            blocks: &blocks,
            tallies: &tallies,
            gauges: &gauges,
            checks: &[("journal", true), ("nats", false)],
            edge,
            dlq: None,
            cache: &CacheCounts::default(),
            databases: &[],
            usage,
        })
    }

    #[test]
    fn values_stand_under_the_names_that_dashboards_query() {
        let text = page(Some(EdgeFigures { published: 9, ..EdgeFigures::default() }));
        for line in [
            r#"worker_tasks_total{block_type="echo",status="success"} 2"#,
            r#"worker_tasks_total{block_type="sleep",status="error"} 0"#,
            r#"worker_task_latency_ms_bucket{block_type="echo",le="0.5"} 0"#,
            r#"worker_task_latency_ms_bucket{block_type="echo",le="1"} 2"#,
            r#"worker_task_latency_ms_bucket{block_type="echo",le="60000"} 2"#,
            r#"worker_task_latency_ms_bucket{block_type="echo",le="+Inf"} 3"#,
            r#"worker_task_latency_ms_sum{block_type="echo"} 70001.9"#,
            r#"worker_task_failures_total{block_type="echo"} 1"#,
            r#"worker_step_executions_total{step_type="echo",execution_status="timeout"} 1"#,
            r#"worker_step_execution_duration_seconds_bucket{step_type="echo",le="0.001"} 2"#,
            r#"worker_step_execution_duration_seconds_count{step_type="echo"} 3"#,
            r#"worker_step_errors_total{step_type="echo",error_code="TIMEOUT"} 1"#,
            r#"worker_step_errors_total{step_type="_other",error_code="INVALID_FORMAT"} 1"#,
            r#"worker_pool_queue_depth{pool="io"} 5"#,
            r#"worker_queue_depth{resource_pool="io"} 5"#,
            r#"worker_active_tasks{resource_pool="io"} 0"#,
            r#"worker_active_tasks{resource_pool="cpu"} 4"#,
            r#"worker_pool_queue_depth{pool="gpu"} 0"#,
            "endstation_cache_hits_total 0",
            r#"endstation_memory_reserved_bytes{shard="0"} 0"#,
            "worker_resource_cpu_time_ms 1500",
            "worker_resource_mem_bytes 4096",
            r#"worker_health_status{check="journal"} 1"#,
            r#"worker_health_status{check="nats"} 0"#,
            r#"endstation_journal_fsyncs_total{shard="1"} 3"#,
            r#"endstation_unpublished{shard="0"} 0"#,
            r#"worker_shard_stall_seconds{shard="0"} 2.5"#,
            r#"endstation_journal_disk_full{shard="1"} 1"#,
            r#"endstation_journal_over_budget{shard="0"} 1"#,
            r#"endstation_journal_reserve_bytes{shard="0"} 4096"#,
            "endstation_outbox_published_total 9",
            "# TYPE worker_task_latency_ms histogram",
        ] {
            assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains(r#"step_type="_other",error_code="TIMEOUT""#), "the block's own faults are not counted twice");
    }

    #[test]
    fn a_name_is_declared_once_and_nothing_is_claimed_of_an_edge_that_is_not_there() {
        let text = page(None);
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(!text.contains("outbox_published"));
    }
}
