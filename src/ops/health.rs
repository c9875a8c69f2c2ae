//! Whether the worker is well: a short list of named checks, each looked at when somebody asks.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value, json};
use shards::limits::STALL_SAID_MS;
use shards::runtime::ports::Gauge;

use crate::dlq::DlqStatus;
use crate::edge::status::EdgeStatus;

/// What one look found. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Whether it holds.
    pub ok: bool,
    /// What there is to say.
    pub message: String,
}

impl Check {
    /// It holds.
    pub fn ok(message: impl Into<String>) -> Check {
        Check { ok: true, message: message.into() }
    }

    /// It does not.
    pub fn fail(message: impl Into<String>) -> Check {
        Check { ok: false, message: message.into() }
    }

    /// It holds unless there is a complaint.
    pub fn unless(complaint: Option<&str>) -> Check {
        complaint.map_or_else(|| Check::ok("ok"), Check::fail)
    }
}

/// Looks once. Shared.
pub type Look = Arc<dyn Fn() -> Check + Send + Sync>;

/// What a check decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Health and readiness.
    Both,
    /// Readiness alone: not ready is not ill (a worker that drains).
    Ready,
    /// Health alone: somebody should look, and the worker works on meanwhile.
    Health,
}

/// The checks. Shared, never changes while the process runs.
#[derive(Clone, Default)]
pub struct Checks {
    list: Vec<(&'static str, Scope, Look)>,
}

impl Checks {
    /// The checks that every worker has: `journal` (it has room: its disk is not full, and it is within its budget), `shards`
    /// (all take work, and turn) and `clock` (it has not jumped).
    pub fn of_shards(gauges: &[Arc<Gauge>]) -> Checks {
        let (disks, seats) = (gauges.to_vec(), gauges.to_vec());
        let journal = move || {
            let count = |of: fn(&Gauge) -> bool| disks.iter().filter(|gauge| of(gauge)).count();
            let full = count(|gauge| gauge.disk_full.load(Relaxed));
            let over = count(|gauge| gauge.over_budget.load(Relaxed));
            let wait = format!("of {} shards: new steps wait, known ones are answered", disks.len());
            match (full, over) {
                (0, 0) => Check::ok("has room"),
                (0, over) => {
                    Check::fail(format!("over journal.bytes_max, with nothing older than journal.horizon_min, for {over} {wait}"))
                }
                (full, _) => Check::fail(format!("the disk is full for {full} {wait}")),
            }
        };
        let shards = move || {
            let count = |of: fn(&Gauge) -> bool| seats.iter().filter(|gauge| of(gauge)).count();
            let (ready, waits) = (count(|gauge| gauge.ready.load(Relaxed)), count(|gauge| gauge.waits.load(Relaxed)));
            let waiting = if waits > 0 { format!(", {waits} may not begin yet") } else { String::new() };
            match count(|gauge| gauge.stall_ms.load(Relaxed) >= STALL_SAID_MS) {
                0 => Check { ok: ready + waits == seats.len(), message: format!("{ready} of {} ready{waiting}", seats.len()) },
                stalled => Check::fail(format!("{stalled} of {} do not turn", seats.len())),
            }
        };
        let clocks = gauges.to_vec();
        let clock = move || {
            let jumped = clocks.iter().any(|gauge| gauge.clock_jumped.load(Relaxed));
            Check::unless(jumped.then_some("jumped ahead by more than 5 minutes: nothing new is accepted until it is set right"))
        };
        let checks = Checks::default().with("journal", Scope::Both, Arc::new(journal));
        checks.with("shards", Scope::Both, Arc::new(shards)).with("clock", Scope::Both, Arc::new(clock))
    }

    /// The same and `nats`: what the edge has to complain of.
    pub fn with_edge(self, status: &Arc<EdgeStatus>) -> Checks {
        let (status, owner) = (Arc::clone(status), Arc::clone(status));
        let owns = move || match owner.stands_by_for() {
            Some(by) => Check::fail(format!("standing by: worker {by} owns the work")),
            None => Check::ok(match owner.owner_epoch.load(Relaxed) {
                0 => "nobody owns the work".to_owned(),
                epoch => format!("this worker owns the work, epoch {epoch}"),
            }),
        };
        self.with("nats", Scope::Both, Arc::new(move || Check::unless(status.complaint()))).with(
            "ownership",
            Scope::Ready,
            Arc::new(owns),
        )
    }

    /// The same and `dlq`: whether dead letters find room.
    pub fn with_dlq(self, status: &Arc<DlqStatus>) -> Checks {
        let status = Arc::clone(status);
        let look = move || match status.complaint() {
            Some(complaint) => Check::fail(complaint),
            None => Check::ok(match status.waiting.load(Relaxed) {
                0 => "nothing waits".to_owned(),
                waiting => format!("{waiting} dead letters wait for a stream"),
            }),
        };
        self.with("dlq", Scope::Health, Arc::new(look))
    }

    /// The same and one more.
    pub fn with(mut self, name: &'static str, scope: Scope, look: Look) -> Checks {
        self.list.push((name, scope, look));
        self
    }

    /// Looks at all of them.
    pub fn look(&self) -> Report {
        Report { found: self.list.iter().map(|(name, scope, look)| (*name, *scope, look())).collect() }
    }
}

/// What one look at all checks found.
#[derive(Clone, Debug)]
pub struct Report {
    found: Vec<(&'static str, Scope, Check)>,
}

impl Report {
    /// Every check of health holds.
    pub fn healthy(&self) -> bool {
        self.found.iter().all(|(_, scope, check)| check.ok || *scope == Scope::Ready)
    }

    /// Every check holds.
    pub fn ready(&self) -> bool {
        self.found.iter().all(|(_, scope, check)| check.ok || *scope == Scope::Health)
    }

    /// Names and whether they hold, those of health alone.
    pub fn holds(&self) -> Vec<(&'static str, bool)> {
        self.found.iter().filter(|(_, scope, _)| *scope != Scope::Ready).map(|(name, _, check)| (*name, check.ok)).collect()
    }

    /// The platform's form of health. Its own check fails on the word "ok" at top level, so that stands only below `checks`.
    pub fn health(&self) -> Value {
        let status = if self.healthy() { "healthy" } else { "unhealthy" };
        self.body(status, |scope| scope != Scope::Ready)
    }

    /// The same form for readiness.
    pub fn readiness(&self) -> Value {
        self.body(if self.ready() { "ready" } else { "unready" }, |scope| scope != Scope::Health)
    }

    fn body(&self, status: &str, wanted: fn(Scope) -> bool) -> Value {
        let mut checks = Map::new();
        for (name, _, check) in self.found.iter().filter(|(_, scope, _)| wanted(*scope)) {
            let status = if check.ok { "ok" } else { "fail" };
            checks.insert((*name).to_owned(), json!({"status": status, "message": check.message}));
        }
        json!({"status": status, "timestamp": super::logs::stamp(jiff::Timestamp::now()), "checks": checks})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_ill_and_a_draining_worker_only_not_ready() {
        let gauges = [Arc::new(Gauge::default()), Arc::new(Gauge::default())];
        let draining = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = Arc::clone(&draining);
        let drain: Look = Arc::new(move || Check::unless(seen.load(Relaxed).then_some("draining")));
        let checks = Checks::of_shards(&gauges).with("draining", Scope::Ready, drain);
        let said = |report: &Report| (report.healthy(), report.ready());

        gauges[0].ready.store(true, Relaxed);
        assert_eq!(said(&checks.look()), (false, false), "one shard still recovers");
        gauges[1].ready.store(true, Relaxed);
        assert_eq!(said(&checks.look()), (true, true));
        draining.store(true, Relaxed);
        assert_eq!(said(&checks.look()), (true, false));
        draining.store(false, Relaxed);
        gauges[1].stall_ms.store(STALL_SAID_MS, Relaxed);
        assert_eq!(said(&checks.look()), (false, false), "one shard does not turn");
        gauges[1].stall_ms.store(STALL_SAID_MS - 1, Relaxed);
        gauges[1].disk_full.store(true, Relaxed);
        let report = checks.look();
        assert_eq!(said(&report), (false, false));
        assert_eq!(report.holds(), [("journal", false), ("shards", true), ("clock", true)]);
        gauges[1].disk_full.store(false, Relaxed);
        gauges[0].over_budget.store(true, Relaxed);
        assert_eq!(checks.look().holds(), [("journal", false), ("shards", true), ("clock", true)]);
        gauges[0].clock_jumped.store(true, Relaxed);
        assert_eq!(checks.look().holds(), [("journal", false), ("shards", true), ("clock", false)]);
        let body = report.health();
        assert_eq!((&body["status"], &body["checks"]["journal"]["status"]), (&json!("unhealthy"), &json!("fail")));
        assert_eq!(body["checks"]["shards"]["status"], "ok");
        assert!(body["checks"].get("draining").is_none());
    }
}
