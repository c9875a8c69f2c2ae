//! The workers, their connections and their server, and what is done to them: one trouble after the other, each healed later.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::Signal;

use super::Plan;
use crate::dice::Dice;
use crate::proxy::{Mode, Proxy, Way};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};

/// How long one end of a flapping connection lasts.
const FLAP: Duration = Duration::from_millis(300);
/// A worker's disk of its own, in MiB: not so large that filling it takes long.
const DISK_MIB: u64 = 224;

/// Something that can be done to a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// `kill -9` of a worker, started again at once.
    Kill,
    /// The same, started again after another has had time to take its work.
    KillForLong,
    /// SIGSTOP, then SIGCONT.
    Stop,
    /// The same, beyond its lease.
    StopForLong,
    /// SIGTERM, and started again when it has ended.
    Drain,
    /// `kill -9` of the server, and started again.
    KillServer,
    /// Its connections are ended.
    Cut,
    /// Its connection swallows what is sent, both ways or one.
    Hole,
    /// Nobody listens.
    Refuse,
    /// Up and down.
    Flap,
    /// A few bytes a second.
    Trickle,
    /// Everything takes longer.
    Delay,
    /// Its disk is full.
    FullDisk,
}

/// How often each, in comparison.
const SHARES: [(u64, Trouble); 13] = [
    (52, Trouble::Kill),
    (4, Trouble::KillForLong),
    (3, Trouble::Stop),
    (2, Trouble::StopForLong),
    (4, Trouble::Drain),
    (8, Trouble::KillServer),
    (9, Trouble::Cut),
    (4, Trouble::Hole),
    (3, Trouble::Refuse),
    (2, Trouble::Flap),
    (2, Trouble::Trickle),
    (4, Trouble::Delay),
    (3, Trouble::FullDisk),
];

/// One worker and what is being done to it.
struct Member {
    /// Its connection, which outlives it.
    proxy: Proxy,
    worker: Worker,
    has_disk: bool,
    /// It is dead until then.
    back: Option<Instant>,
    wakes: Option<Instant>,
    drains: bool,
    /// Its connection is in trouble until then.
    wire: Option<Instant>,
    /// Its connection changes again then, and is up now.
    flaps: Option<(Instant, bool)>,
    full: Option<Instant>,
}

/// What was done, and what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// By kind of trouble.
    pub(super) troubles: BTreeMap<Trouble, u64>,
    /// `kill -9` of workers, of either kind.
    pub(super) kills: u64,
    /// Of these, those of the worker that owned the work, as far as the router had seen.
    pub(super) kills_of_owner: u64,
    /// Workers that a step ended.
    pub(super) aborts: u64,
    /// Workers that ended because another had taken their work.
    pub(super) superseded: u64,
    /// Workers that drained to the end, and those that ended before they were done.
    pub(super) drained: u64,
    pub(super) drains_cut: u64,
    /// Starts with slow commits.
    pub(super) slow_starts: u64,
    /// The most memory that a worker had, in bytes.
    pub(super) memory_max: f64,
}

/// See the module. The fields die in this order.
pub(super) struct Fleet {
    members: Vec<Member>,
    server: NatsServer,
    server_back: Option<Instant>,
    next: Instant,
    dice: Dice,
    pub(super) done: Done,
}

impl Fleet {
    /// All workers of the plan, at work or standing by.
    pub(super) async fn start(plan: &Plan, server: NatsServer, mut dice: Dice) -> Result<Self> {
        let settings = Settings::default()
            .set("ENDSTATION__NATS__OWNERSHIP", if plan.shared { "shared" } else { "exclusive" })
            .set("ENDSTATION__CORES__SHARDS", plan.shards);
        let mut members = Vec::new();
        for number in 0..plan.workers {
            let proxy = Proxy::start(server.port(), Mode::Pass)?;
            let small = settings.clone().set("ENDSTATION__JOURNAL__BYTES_MAX", "96MiB");
            let has_disk = plan.full_disk && number == 0;
            let mut worker = Worker::stopped(&proxy.url(), if has_disk { small } else { settings.clone() })?;
            let has_disk = has_disk && worker.mount(DISK_MIB)?;
            let (back, wakes, wire, flaps, full) = (None, None, None, None, None);
            members.push(Member { proxy, worker, has_disk, back, wakes, drains: false, wire, flaps, full });
        }
        let own = dice.other();
        let mut fleet = Fleet { members, server, server_back: None, next: Instant::now(), dice: own, done: Done::default() };
        for index in 0..fleet.members.len() {
            fleet.launch(index)?;
            if index == 0 {
                fleet.members[0].worker.ready().await?;
            }
        }
        Ok(fleet)
    }

    /// Heals what is due, looks who has ended, and does the next thing if it is time. `owner`: who owns the work.
    pub(super) async fn tick(&mut self, owner: &str) -> Result<()> {
        let now = Instant::now();
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if due(&mut self.server_back) {
            self.server.restart().await?;
        }
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if due(&mut member.wakes) {
                member.worker.signal(Signal::CONT)?;
            }
            if due(&mut member.full) {
                member.worker.volume()?.empty()?;
            }
            if due(&mut member.wire) {
                member.flaps = None;
                member.proxy.set(Mode::Pass);
            }
            if let Some((at, up)) = member.flaps.filter(|(at, _)| *at <= now) {
                member.proxy.set(if up { Mode::Refuse } else { Mode::Pass });
                member.flaps = Some((at + FLAP, !up));
            }
            if due(&mut member.back) {
                self.launch(index)?;
            } else if self.members[index].back.is_none() {
                self.look(index, now)?;
            }
        }
        if now >= self.next {
            self.next = now + Duration::from_millis(self.dice.range(200, 700));
            let trouble = *self.dice.weighted(&SHARES);
            // Mostly the one that does the work.
            let owner = self.members.iter().position(|member| member.worker.id() == owner);
            let any = self.dice.range(0, self.members.len() as u64) as usize;
            let index = owner.filter(|_| self.dice.per_mille(600)).unwrap_or(any);
            self.make(trouble, index, owner == Some(index), now)?;
        }
        Ok(())
    }

    fn launch(&mut self, index: usize) -> Result<()> {
        let slow = self.dice.per_mille(80);
        self.done.slow_starts += u64::from(slow);
        let slow = if slow { format!(";slow-disk=return({})", self.dice.range(3, 30)) } else { String::new() };
        self.members[index].worker.launch(&[("FAILPOINTS", &format!("dev-blocks=return{slow}"))])
    }

    /// A worker that has ended by itself is started again, if it had a reason.
    fn look(&mut self, index: usize, now: Instant) -> Result<()> {
        let pause = Duration::from_millis(self.dice.range(0, 200));
        let member = &mut self.members[index];
        let Some(status) = member.worker.exited()? else { return Ok(()) };
        let tail = member.worker.log_tail();
        let drains = std::mem::take(&mut member.drains);
        match (status.code(), status.signal()) {
            // Told to end before it had begun, it has nothing to finish.
            (Some(0), _) | (_, Some(libc::SIGTERM)) if drains => self.done.drained += 1,
            (Some(1), _) if tail.contains("has taken lease.") => self.done.superseded += 1,
            (Some(1), _) if drains => self.done.drains_cut += 1,
            (_, Some(libc::SIGABRT)) => self.done.aborts += 1,
            _ => bail!("worker {} ended with {status}:\n{tail}", member.worker.id()),
        }
        member.wakes = None;
        member.back = Some(now + pause);
        Ok(())
    }

    fn make(&mut self, trouble: Trouble, index: usize, is_owner: bool, now: Instant) -> Result<()> {
        let dice = &mut self.dice;
        let mut within = |from_ms, to_ms| now + Duration::from_millis(dice.range(from_ms, to_ms));
        let member = &mut self.members[index];
        let (runs, calm) = (member.back.is_none(), member.wire.is_none());
        let still = member.wakes.is_some() || member.drains;
        match trouble {
            Trouble::Kill | Trouble::KillForLong if runs => {
                self.done.kills += 1;
                self.done.kills_of_owner += u64::from(is_owner);
                member.worker.kill();
                (member.wakes, member.drains) = (None, false);
                member.back = Some(if trouble == Trouble::Kill { within(0, 150) } else { within(3_000, 5_000) });
            }
            Trouble::Stop | Trouble::StopForLong if runs && !still => {
                member.worker.signal(Signal::STOP)?;
                member.wakes = Some(if trouble == Trouble::Stop { within(100, 1_000) } else { within(3_500, 6_000) });
            }
            Trouble::Drain if runs && !still => {
                member.worker.terminate()?;
                member.drains = true;
            }
            Trouble::KillServer if self.server_back.is_none() => {
                self.server.kill();
                self.server_back = Some(within(0, 600));
            }
            Trouble::Cut => member.proxy.cut(),
            Trouble::Hole if calm => {
                let way = *self.dice.one_of(&[Way::Both, Way::Out, Way::In]);
                let lasts = Duration::from_millis(self.dice.range(300, 5_000));
                member.proxy.set(Mode::Hole(way));
                member.wire = Some(now + lasts);
            }
            Trouble::Refuse if calm => {
                member.proxy.set(Mode::Refuse);
                member.wire = Some(within(200, 4_000));
            }
            Trouble::Flap if calm => {
                member.wire = Some(within(2_000, 4_000));
                member.flaps = Some((now, true));
            }
            Trouble::Trickle if calm => {
                member.proxy.set(Mode::Trickle(1));
                member.wire = Some(within(1_000, 4_000));
            }
            Trouble::Delay if calm => {
                member.wire = Some(within(1_000, 4_000));
                member.proxy.set(Mode::Delay(Duration::from_millis(self.dice.range(5, 150))));
            }
            Trouble::FullDisk if member.has_disk && member.full.is_none() => {
                member.worker.volume()?.fill()?;
                member.full = Some(within(500, 2_500));
            }
            _ => return Ok(()),
        }
        *self.done.troubles.entry(trouble).or_default() += 1;
        Ok(())
    }

    /// Nothing more is done to anybody: everything is healed, and everybody runs.
    pub(super) async fn heal(&mut self) -> Result<()> {
        if self.server_back.take().is_some() {
            self.server.restart().await?;
        }
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            member.proxy.set(Mode::Pass);
            if member.wakes.take().is_some() {
                member.worker.signal(Signal::CONT)?;
            }
            if member.full.take().is_some() {
                member.worker.volume()?.empty()?;
            }
            (member.wire, member.flaps) = (None, None);
        }
        self.keep_running().await
    }

    /// Starts who has ended since.
    pub(super) async fn keep_running(&mut self) -> Result<()> {
        let now = Instant::now();
        for index in 0..self.members.len() {
            self.look(index, now)?;
            if self.members[index].back.take().is_some() {
                self.members[index].worker.launch(&[("FAILPOINTS", "dev-blocks=return")])?;
            }
        }
        Ok(())
    }

    /// The workers that are ready for work now: the owner, or all that share it.
    pub(super) async fn ready(&self) -> Vec<&Worker> {
        let mut ready = Vec::new();
        for member in &self.members {
            if let Ok((200, _)) = member.worker.get("/_readyz").await {
                ready.push(&member.worker);
            }
        }
        ready
    }

    /// Takes note of how much memory they have.
    pub(super) async fn weigh(&mut self) {
        for member in &self.members {
            if member.wakes.is_none()
                && let Ok(bytes) = member.worker.metric("worker_resource_mem_bytes").await
            {
                self.done.memory_max = self.done.memory_max.max(bytes);
            }
        }
    }

    /// Everybody drains and ends well.
    pub(super) async fn end(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.worker.terminate()?;
            let status = member.worker.ended(Duration::from_secs(15)).await?;
            if !status.success() {
                bail!("worker {} ended with {status}:\n{}", member.worker.id(), member.worker.log_tail());
            }
        }
        Ok(())
    }

    /// The workers.
    pub(super) fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.members.iter().map(|member| &member.worker)
    }

    /// What they say of themselves, for a failure's text.
    pub(super) async fn states(&self) -> String {
        let mut said = String::new();
        for worker in self.workers() {
            for page in ["/_readyz", "/_state", "/_health"] {
                let answer = worker.get(page).await;
                said += &format!("{} {page}: {answer:?}\n", worker.id());
            }
        }
        said
    }

    /// The ends of their logs, for a failure's text.
    pub(super) fn logs(&self) -> String {
        let log = |worker: &Worker| format!("--- {} ---\n{}", worker.id(), worker.log_tail());
        self.workers().map(log).collect::<Vec<_>>().join("\n")
    }
}
