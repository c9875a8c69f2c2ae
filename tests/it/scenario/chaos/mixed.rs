//! Everything at once, at random, from one seed: workers killed, stopped, drained, aborted by a step, cut off, on a full or slow
//! disk; a server that is killed; effects whose answers are lost. In the end no step is lost or has two outcomes, none that must
//! not is done twice, and each can be followed through a journal.
//!
//! A run is one world after the other, each with a seed of its own, until `MIXED_SECONDS` are over. `SEED` names the first.

mod fleet;
mod judge;
mod work;

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::json;

use super::{SETTLE, run_dry};
use crate::dice::Dice;
use crate::effect::{EffectServer, Mood};
use crate::record;
use crate::router::peer::Router;
use crate::router::{Strictness, Subjects};
use crate::server::NatsServer;
use crate::stranded::{self, Stranded};
use crate::world::alone;
use fleet::Fleet;
use work::{Message, Work};

/// Answers that are owed at once, at most.
const OPEN_MAX: usize = 400;
/// Messages that wait for the server's confirmation, at most.
const SENDING_MAX: usize = 256;
/// One world lasts so long, settling not included.
const WORLD: Duration = Duration::from_secs(120);
/// What a worker may have of memory, in bytes.
const MEMORY_MAX: f64 = 512e6;
/// Between two looks at the result stream, for what the router's own connection missed.
const CATCH_UP_EVERY: Duration = Duration::from_secs(2);
/// Between two steps that end the process.
const POISON_EVERY: Duration = Duration::from_secs(25);

/// What a seed stands for.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    /// Workers at one consumer.
    workers: usize,
    /// All of them work; else one does and the others stand by.
    shared: bool,
    /// Cores of the shards.
    shards: &'static str,
    /// The first one has a small disk of its own, which is filled.
    full_disk: bool,
}

impl Plan {
    fn of(seed: u64) -> (Plan, Dice) {
        let mut dice = Dice::new(seed);
        let workers = *dice.weighted(&[(3, 2), (2, 3), (3, 1)]);
        let shared = workers > 1 && dice.per_mille(record::count("MIXED_SHARED", 300).into());
        let shards = dice.weighted(&[(2, "0"), (1, "0-1")]);
        (Plan { seed, workers, shared, shards, full_disk: dice.per_mille(300) }, dice)
    }
}

/// One world. The fields die in this order.
struct Mixed {
    plan: Plan,
    router: Router,
    fleet: Fleet,
    effects: EffectServer,
    work: Work,
    begun: Instant,
    /// How far the streams of results and dead letters have been read.
    results_read: u64,
    letters_read: u64,
}

impl Mixed {
    async fn start(seed: u64) -> Result<Self> {
        let (plan, mut dice) = Plan::of(seed);
        let server = NatsServer::start(true).await?;
        let strict = Strictness { message_ids: true, order: false, owners: plan.workers > 1 };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        let effects = EffectServer::start(Mood { drops: 15, hangs_up: 15, dawdles: 40 }, dice.other())?;
        let fleet = Fleet::start(&plan, server, dice.other()).await?;
        let work = Work::new(dice.other(), plan.clone(), effects.at());
        Ok(Mixed { plan, router, fleet, effects, work, begun: Instant::now(), results_read: 1, letters_read: 1 })
    }

    /// Sends steps and makes trouble until the time is over.
    async fn rage(&mut self, lasts: Duration) -> Result<()> {
        let Mixed { router, fleet, work, .. } = self;
        let mut sending: FuturesUnordered<Pin<Box<dyn Future<Output = Result<()>> + '_>>> = FuturesUnordered::new();
        let (mut caught_up, mut poisoned) = (Instant::now(), Instant::now());
        while self.begun.elapsed() < lasts {
            router.unbroken()?;
            let mut room = OPEN_MAX.saturating_sub(router.ask(|model| model.open()) + sending.len());
            while room > 0 && sending.len() < SENDING_MAX {
                room -= 1;
                let poison = poisoned.elapsed() > POISON_EVERY;
                let message = if poison {
                    poisoned = Instant::now();
                    work.poison()
                } else {
                    work.next(|id| router.ask(|model| model.result_of(id).is_some()))
                };
                sending.push(Box::pin(send(router, message)));
            }
            let owner = router.ask(|model| model.owner().to_owned());
            fleet.tick(&owner).await?;
            if caught_up.elapsed() > CATCH_UP_EVERY {
                caught_up = Instant::now();
                fleet.weigh().await;
                // A server that is down now is up at another time.
                let _missed = router.read_stream("caf.exec.result.v1", &mut self.results_read).await;
            }
            let pause = tokio::time::sleep(Duration::from_millis(5));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    sent = sending.next(), if !sending.is_empty() => { if let Some(sent) = sent { sent? } }
                    () = &mut pause => break,
                }
            }
        }
        fleet.heal().await?;
        while let Some(sent) = sending.next().await {
            sent?;
        }
        Ok(())
    }

    /// Waits until everything has been answered and nothing more comes.
    async fn settle(&mut self) -> Result<Stranded> {
        let deadline = Instant::now() + SETTLE;
        loop {
            self.fleet.keep_running().await?;
            let read = self.router.read_stream("caf.exec.result.v1", &mut self.results_read).await;
            self.router.unbroken()?;
            let open = self.router.ask(|model| model.open());
            if open == 0 && read.is_ok() {
                break;
            }
            let first = self.router.ask(|model| model.unanswered().first().map(|id| (*id).to_owned()));
            if Instant::now() >= deadline {
                bail!("{open} never answered, {first:?} among them; {read:?}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let deadline = Instant::now() + SETTLE;
        loop {
            self.fleet.keep_running().await?;
            let wanted = if self.plan.shared { self.plan.workers } else { 1 };
            let ready = self.fleet.ready().await;
            if ready.len() == wanted {
                return run_dry(&self.router, ready[0], true).await;
            }
            ensure!(Instant::now() < deadline, "{} workers are ready, {wanted} should be", ready.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Everything that must hold does.
    async fn judge(&mut self, stranded: Stranded) -> Result<()> {
        let raged = self.begun.elapsed();
        self.fleet.weigh().await;
        self.fleet.end().await?;
        // Everything once more, and the dead letters.
        let stored = self.router.read_result_stream().await?;
        self.router.read_stream("caf.exec.dlq.v1", &mut self.letters_read).await?;
        self.router.verdict()?;
        let counts = self.router.ask(|model| model.counts());
        let server_killed = self.fleet.done.troubles.contains_key(&fleet::Trouble::KillServer);
        let workers: Vec<_> = self.fleet.workers().collect();
        let mut found = judge::outcomes(&self.plan, server_killed, &self.work, &self.router, &self.effects, &workers)?;
        judge::files(&self.work, &self.router, &workers)?;
        judge::custody(&self.plan, &self.work, &self.router, &workers, &mut found)?;
        ensure!(self.plan.workers > 1 || counts.decided_again == 0, "decided again, and nobody else was there");
        ensure!(counts.dead_letters >= self.work.poison, "{} dead letters for {} poison", counts.dead_letters, self.work.poison);
        let done = &self.fleet.done;
        ensure!(done.memory_max < MEMORY_MAX, "a worker had {} bytes", done.memory_max);
        let deaths_max = 3 * self.work.poison * self.plan.workers as u64;
        ensure!(done.aborts <= deaths_max, "{} deaths by {} poisonous steps", done.aborts, self.work.poison);
        let effects = self.effects.counts();
        let troubles: serde_json::Map<_, _> =
            done.troubles.iter().map(|(trouble, count)| (format!("{trouble:?}"), json!(count))).collect();
        record::summary(
            "mixed",
            json!({
                "seed": self.plan.seed, "seconds": raged.as_secs_f64(), "workers": self.plan.workers,
                "shared": self.plan.shared, "shards": self.plan.shards, "full_disk": self.plan.full_disk,
                "steps": self.work.steps.len(), "resent": self.work.resent, "poison": self.work.poison,
                "worker_kills": done.kills, "kills_of_owner": done.kills_of_owner, "aborts": done.aborts,
                "superseded": done.superseded, "drained": done.drained, "drains_cut": done.drains_cut,
                "slow_starts": done.slow_starts, "troubles": troubles,
                "server_kills": done.troubles.get(&fleet::Trouble::KillServer).copied().unwrap_or_default(),
                "lost": 0, "second_outcomes": 0, "second_unsafe_effects": 0,
                "decided_again": counts.decided_again, "repeats": counts.repeats, "in_result_stream": stored,
                "stranded_by_server": stranded.count, "ghosts_of_server": stranded.ghosts,
                "effect_requests": effects.requests, "effect_repeats": effects.repeats,
                "effects_refused": effects.dropped, "effects_unanswered": effects.unanswered,
                "memory_max_mib": (done.memory_max / 1_048_576.0) as u64, "found": found.json(),
            }),
        )
    }
}

/// Sends one message as it may be sent.
async fn send(router: &Router, message: Message) -> Result<()> {
    router.send(&message.assignment).await
}

async fn world(seed: u64, lasts: Duration) -> Result<()> {
    let mut mixed = Mixed::start(seed).await?;
    let lived = async {
        mixed.rage(lasts).await?;
        let stranded = mixed.settle().await?;
        mixed.judge(stranded).await
    };
    match lived.await {
        Ok(()) => Ok(()),
        Err(error) => {
            let (standing, states) = (stranded::standing(&mixed.router).await, mixed.fleet.states().await);
            Err(error.context(format!("{}\nthe server says {standing:?}\n{states}", mixed.fleet.logs())))
        }
    }
}

#[tokio::test]
async fn whatever_happens_no_step_is_lost_and_none_is_had_twice() -> Result<()> {
    let _turn = alone().await;
    let budget = Duration::from_secs(record::count("MIXED_SECONDS", 10).into());
    let (mut seed, begun) = (u64::from(record::count("SEED", 5)), Instant::now());
    while begun.elapsed() < budget {
        let lasts = WORLD.min(budget - begun.elapsed());
        world(seed, lasts).await.with_context(|| {
            let seconds = lasts.as_secs();
            format!(
                "seed {seed}: again with SEED={seed} MIXED_SECONDS={seconds} \
                 cargo test --features failpoints --test it scenario::chaos::mixed"
            )
        })?;
        seed += 1;
    }
    Ok(())
}
