//! A crash where it matters to blocks that touch the outside: the process aborts, is started again, and each step has one
//! outcome and its effect what its class promises, counted at its own server: objects in a store, images among the worker's own
//! blobs and in the store, a provider's requests. The same of `http.request` is in [`super::http`], of the simple blocks in
//! [`super::crash`].
//!
//! Needs a worker with failpoints: `cargo test --features failpoints --test it crash_blocks`.

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "crash points need `cargo test --features failpoints`"]
fn crash_points_of_blocks_need_a_build_with_the_failpoints_feature() {}

#[cfg(feature = "failpoints")]
mod points {
    use std::time::Duration;

    use anyhow::{Context as _, Result, ensure};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::{Value, json};

    use crate::ledger::Ledger;
    use crate::objects::Server;
    use crate::provider::{Provider, WORDS};
    use crate::record;
    use crate::router::peer::Router;
    use crate::router::{Assignment, Strictness, Subjects};
    use crate::scenario::ai;
    use crate::scenario::stores;
    use crate::server::NatsServer;
    use crate::worker::Worker;
    use crate::world::{PATIENCE, World};

    /// Four by four pixels of a checkerboard.
    const BOARD: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFklEQVR42mP4zwAE/yEkgvUfysUqAwCeow/x3VZc7gAAAABJRU5ErkJggg==";
    /// Steps of a kind that are under way at the crash.
    const STEPS: u32 = 3;

    /// What steps of one kind do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        /// fs.blob_put into the store.
        Put,
        /// media.render into the worker's own blobs.
        RenderHere,
        /// media.render into the store.
        RenderThere,
        /// ai.generate.
        Generate,
    }

    const KINDS: [Kind; 4] = [Kind::Put, Kind::RenderHere, Kind::RenderThere, Kind::Generate];

    impl Kind {
        /// The blob that a step leaves, or its prompt.
        fn name(self, point: &str, n: u32) -> String {
            match self {
                Kind::Put => format!("put-{point}-{n}"),
                Kind::RenderHere => format!("here-{point}-{n}"),
                Kind::RenderThere => format!("there-{point}-{n}"),
                Kind::Generate => format!("what is {point} {n}?"),
            }
        }

        fn step(self, point: &str, n: u32) -> Assignment {
            let name = self.name(point, n);
            let (block, inputs) = match self {
                Kind::Put => ("fs.blob_put", json!({"connector": "archive", "path": name, "content": name})),
                Kind::RenderHere => ("media.render", render(json!({"to": name}))),
                Kind::RenderThere => ("media.render", render(json!({"to": name, "to_connector": "archive"}))),
                Kind::Generate => ("ai.generate", json!({"prompt": name})),
            };
            Assignment::new("acme", block, inputs)
        }
    }

    fn render(mut inputs: Value) -> Value {
        inputs["bytes"] = json!(BOARD);
        inputs["operations"] = json!([{"op": "resize", "width": 48, "height": 32, "filter": "nearest"}]);
        inputs
    }

    /// Where effects are counted.
    struct Servers {
        /// Keeps the store alive.
        _store: Server,
        provider: Provider,
        /// The objects of the store.
        there: Ledger,
        /// The files of the worker.
        here: Ledger,
        /// What every rendered image comes to.
        image: Vec<u8>,
    }

    impl Servers {
        /// How many steps have had their effect so far; what a provider was asked again counts again.
        fn effects(&mut self, kind: Kind, point: &str) -> Result<usize> {
            let mut effects = 0;
            for n in 0..STEPS {
                let name = kind.name(point, n);
                effects += match kind {
                    Kind::Put | Kind::RenderThere => self.there.count("acme", &name)?,
                    Kind::RenderHere => self.here.count("acme", &name)?,
                    Kind::Generate => self.provider.asked(&name),
                };
            }
            Ok(effects)
        }

        /// What a step that succeeded has left, once.
        fn judge(&mut self, kind: Kind, name: &str, outputs: &Value) -> Result<()> {
            match kind {
                Kind::Put => self.there.written_once("acme", name, name.as_bytes()),
                Kind::RenderHere | Kind::RenderThere => {
                    ensure!(outputs["blob"]["path"] == name && outputs["blob"]["size"] == self.image.len(), "{outputs}");
                    let ledger = if kind == Kind::RenderHere { &mut self.here } else { &mut self.there };
                    ledger.written_once("acme", name, &self.image)
                }
                Kind::Generate => {
                    ensure!(outputs["text"] == WORDS.concat(), "{outputs}");
                    // Pure: asked again at most once, for one crash.
                    let asked = self.provider.asked(name);
                    ensure!((1..=2).contains(&asked), "{name} was asked {asked} times");
                    Ok(())
                }
            }
        }
    }

    async fn survives(point: &str) -> Result<()> {
        let (store, provider) = (Server::start(), Provider::open().await?);
        let server = NatsServer::start(true).await?;
        // Acks and results may be cut apart by the crash: their order is another test's business.
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        let worker = Worker::start(&server.url(), ai::provided(stores::settings(&store), &provider)).await?;
        let mut world = World { router, worker, server };
        let seen = world.router.run(&Assignment::new("acme", "media.render", render(json!({}))), PATIENCE).await?;
        let image = STANDARD.decode(seen.object["outputs"]["bytes"].as_str().with_context(|| format!("{:?}", seen.object))?)?;
        let (there, here) = (Ledger::new(&store.file("")), Ledger::new(world.worker.dir()));
        let mut servers = Servers { _store: store, provider, there, here, image };
        let mut cases = 0;
        for kind in KINDS {
            // It ends in order: what it told before is not told again, which would be a point of another step's life.
            world.worker.terminate()?;
            world.worker.ended(PATIENCE).await?;
            let jobs: Vec<_> = (0..STEPS).map(|n| kind.step(point, n)).collect();
            world.router.send_all(&jobs).await?;
            world.worker.launch(&[("FAILPOINTS", &format!("{point}=return"))])?;
            let died = world.worker.aborted(Duration::from_secs(20)).await;
            died.with_context(|| format!("{point} did not trip in {kind:?}"))?;
            let before = servers.effects(kind, point)?;
            ensure!((before == 0) == (point == "C2"), "{point}, {kind:?}: {before} effects before the crash");
            world.worker.restart().await?;
            world.router.all_answered(PATIENCE).await?;
            world.router.stream_is_empty().await?;
            world.router.read_result_stream().await?;
            for (n, job) in (0..STEPS).zip(&jobs) {
                let seen = world.router.result(&job.id, PATIENCE).await?;
                let said = || format!("{point}, {kind:?}: {:?}", seen.object);
                ensure!(seen.status() == "success", "{}", said());
                servers.judge(kind, &kind.name(point, n), &seen.object["outputs"]).with_context(said)?;
                cases += 1;
            }
            let after = servers.effects(kind, point)?;
            match (kind, point) {
                // Asked for nothing before; or whoever had asked could not know it any more.
                (Kind::Generate, "C2") => ensure!(after == STEPS as usize, "{after} requests"),
                (Kind::Generate, "C3" | "C4" | "C5") => ensure!(after > STEPS as usize, "{after} requests"),
                // What is durable is not asked again.
                (Kind::Generate, _) => ensure!(after < 2 * STEPS as usize, "{after} requests"),
                _ => ensure!(after == STEPS as usize, "{after} blobs"),
            }
        }
        world.finish().await?;
        record::summary("crash_blocks", json!({"point": point, "kinds": KINDS.len(), "steps": cases, "outcomes": cases}))
    }

    crash_points! {
        C2: c2_before_the_effect;
        C3: c3_the_effect_is_there_and_nobody_knows;
        C4: c4_done_before_the_result;
        C5: c5_torn_result;
        C6: c6_durable_unpublished;
    }
}
