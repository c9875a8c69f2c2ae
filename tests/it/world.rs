//! One server, one worker, one router: what most scenarios start with, and how they all end.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::{Mutex, MutexGuard};

use crate::router::peer::Router;
use crate::router::{Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};

/// How long answers may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A deployment of one worker. The fields die in this order.
#[derive(Debug)]
pub(crate) struct World {
    /// The router's side.
    pub(crate) router: Router,
    /// The worker.
    pub(crate) worker: Worker,
    /// The server between them.
    pub(crate) server: NatsServer,
}

/// The heavy scenarios take turns: two at once would measure each other.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

impl World {
    /// With JetStream, judged strictly.
    pub(crate) async fn jetstream(settings: Settings) -> Result<Self> {
        World::with(true, settings, Strictness::default()).await
    }

    /// On core NATS, where answers may go without headers.
    pub(crate) async fn core(settings: Settings) -> Result<Self> {
        World::with(false, settings, Strictness { message_ids: false, order: true, owners: false }).await
    }

    /// With or without JetStream, and as strict as said.
    pub(crate) async fn with(jetstream: bool, settings: Settings, strict: Strictness) -> Result<Self> {
        let server = NatsServer::start(jetstream).await?;
        let router = Router::connect(&server.url(), jetstream, Subjects::default(), strict).await?;
        let worker = Worker::start(&server.url(), settings).await?;
        Ok(World { router, worker, server })
    }

    /// Every assignment is answered once, no rule was broken, and nothing more comes.
    pub(crate) async fn finish(&self) -> Result<()> {
        self.router.all_answered(PATIENCE).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.router.verdict()
    }
}
