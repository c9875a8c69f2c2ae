//! Claims against a real nats-server: who is first has the step, whatever becomes of workers, answers and the server.

use super::*;
use shards::event::Claimant;
use shards::ids::Lsn;
use shards::runtime::tenure::Grant;

/// A worker of which the test plays the one shard.
struct Claimer {
    inbox: flume::Receiver<Inbound>,
    outbox: flume::Sender<Outbound>,
    granted: flume::Receiver<Grant>,
    halt: watch::Sender<Halt>,
    status: Arc<EdgeStatus>,
    edge: Option<JoinHandle<Result<(), EdgeError>>>,
}

impl Claimer {
    fn start(port: u16, journal: &str, mode: NatsMode) -> Result<Claimer> {
        let mut settings = settings(port, mode, true);
        settings.nats.ownership = Ownership::Shared;
        let (to_edge, outbound) = flume::bounded(64);
        let (to_shard, inbox) = flume::bounded(64);
        let (grant, granted) = flume::bounded(1);
        let gauge = Arc::new(Gauge::default());
        gauge.ready.store(true, Relaxed);
        let (halt, phase) = watch::channel(Halt::Run);
        let status = Arc::new(EdgeStatus::default());
        let estate = Estate {
            lease: Lease::unbounded(),
            grants: vec![grant],
            journal: journal.into(),
            epoch: 0,
            knows: false,
            done: Arc::default(),
        };
        let links = Links { shards: vec![ShardLink { inbox: to_shard, gauge, bytes_max: 1 << 30 }], outbound, dlq: None, estate };
        let edge = Some(thread::spawn(settings, links, None, phase, status.clone())?);
        Ok(Claimer { inbox, outbox: to_edge, granted, halt, status, edge })
    }

    fn ask(&self, step: u8, accepted: u64) -> Result<()> {
        let (ticket, key) = (Ticket { slot: u32::from(step), generation: 1 }, Key([step; 16]));
        self.outbox.send(Outbound { shard: 0, items: vec![Outgoing::Claim { ticket, key, accepted: Lsn(accepted) }] })?;
        Ok(())
    }

    fn answer(&self) -> Result<(u32, Claimant)> {
        match self.inbox.recv_timeout(Duration::from_secs(10)).context("an answer to a claim")? {
            Inbound::Claimed(list) if list.len() == 1 => Ok((list[0].0.slot, list[0].1)),
            other => anyhow::bail!("{other:?}"),
        }
    }

    fn claim(&self, step: u8, accepted: u64) -> Result<Claimant> {
        self.ask(step, accepted)?;
        let (slot, by) = self.answer()?;
        ensure!(slot == u32::from(step));
        Ok(by)
    }
}

impl Drop for Claimer {
    fn drop(&mut self) {
        let _ = self.halt.send(Halt::Stop);
        if let Some(edge) = self.edge.take() {
            let _ = edge.join();
        }
    }
}

#[tokio::test]
async fn workers_that_start_at_the_same_moment_on_an_empty_server_all_have_what_they_need() -> Result<()> {
    // Of two that make the same stream at once one may be told that it overlaps with the other's: one pair in seven was.
    for round in 0..16 {
        let store = tempfile::tempdir()?;
        let server = Server::start(free_port()?, Some(store.path()))?;
        let workers = ["one", "two", "three"].map(|journal| Claimer::start(server.port, journal, NatsMode::Auto));
        for worker in workers {
            let worker = worker?;
            let granted = worker.granted.recv_timeout(Duration::from_secs(10)).with_context(|| format!("round {round}"))?;
            assert!(granted.claims, "round {round}: it goes on without claims");
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_two_workers_the_first_has_the_step_for_good() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let one = Claimer::start(server.port, "one", NatsMode::Auto)?;
    let two = Claimer::start(server.port, "two", NatsMode::Auto)?;
    for worker in [&one, &two] {
        assert!(worker.granted.recv_timeout(Duration::from_secs(10))?.claims);
    }
    assert_eq!(one.claim(1, 10)?, Claimant::Ours);
    assert_eq!(two.claim(1, 10)?, Claimant::Another, "the number of its frame means something in its own journal only");
    assert_eq!(two.claim(2, 3)?, Claimant::Ours);
    assert_eq!(one.claim(1, 10)?, Claimant::Ours, "asked again for the same");
    assert_eq!(one.claim(1, 99)?, Claimant::Forgotten);
    let counts = |worker: &Claimer| (worker.status.claimed.load(Relaxed), worker.status.claims_lost.load(Relaxed));
    assert_eq!((counts(&one), counts(&two)), ((2, 1), (1, 1)));

    // The same journal in another life.
    drop(one);
    let one = Claimer::start(server.port, "one", NatsMode::Auto)?;
    assert_eq!(one.claim(1, 10)?, Claimant::Ours);
    assert_eq!(one.claim(2, 3)?, Claimant::Another);
    Ok(())
}

#[tokio::test]
async fn a_claim_outlives_the_server_and_one_asked_meanwhile_is_answered_after() -> Result<()> {
    let store = tempfile::tempdir()?;
    let mut server = Server::start(free_port()?, Some(store.path()))?;
    let (one, two) = (Claimer::start(server.port, "one", NatsMode::Auto)?, Claimer::start(server.port, "two", NatsMode::Auto)?);
    for worker in [&one, &two] {
        worker.granted.recv_timeout(Duration::from_secs(10))?;
    }
    for step in 0..100 {
        assert_eq!(one.claim(step, 10)?, Claimant::Ours);
    }
    server.kill();
    two.ask(200, 1)?;
    std::thread::sleep(Duration::from_millis(300));
    let port = server.port;
    drop(server);
    let _server = Server::start(port, Some(store.path()))?;
    assert_eq!(two.answer()?, (200, Claimant::Ours));
    for step in 0..100 {
        assert_eq!(two.claim(step, 10)?, Claimant::Another, "{step}");
    }
    Ok(())
}

#[tokio::test]
async fn a_place_for_claims_that_is_gone_is_made_again() -> Result<()> {
    let store = tempfile::tempdir()?;
    let server = Server::start(free_port()?, Some(store.path()))?;
    let one = Claimer::start(server.port, "one", NatsMode::Auto)?;
    one.granted.recv_timeout(Duration::from_secs(10))?;
    let context = jetstream::new(async_nats::connect(format!("127.0.0.1:{}", server.port)).await?);
    context.delete_stream("KV_endstation_claims").await?;
    assert_eq!(one.claim(1, 10)?, Claimant::Ours);
    let mut stream = context.get_stream("KV_endstation_claims").await?;
    let age = stream.info().await?.config.max_age;
    assert_eq!(age, Duration::from_secs(7_200 + 600), "as long as the journal remembers, and a little more");
    Ok(())
}

#[tokio::test]
async fn without_jetstream_nothing_is_claimed() -> Result<()> {
    let server = Server::start(free_port()?, None)?;
    let one = Claimer::start(server.port, "one", NatsMode::Auto)?;
    assert!(!one.granted.recv_timeout(Duration::from_secs(10))?.claims);
    Ok(())
}
