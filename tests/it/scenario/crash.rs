//! A crash at each named point of a step's life, for a pure and for a conditional block: the process aborts there, is
//! started again, and the step has exactly one outcome and the effect happened once.
//!
//! Needs a worker with failpoints: `cargo test --features failpoints --test it crash`.

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "crash points need `cargo test --features failpoints`"]
fn crash_points_need_a_build_with_the_failpoints_feature() {}

#[cfg(feature = "failpoints")]
mod points {
    use std::time::Duration;

    use anyhow::{Context, Result, ensure};
    use serde_json::json;

    use crate::ledger::Ledger;
    use crate::router::peer::Router;
    use crate::router::{Assignment, Strictness, Subjects};
    use crate::server::NatsServer;
    use crate::worker::{Settings, Worker};
    use crate::world::{PATIENCE, World};

    async fn survives(point: &str, block: &str) -> Result<()> {
        let server = NatsServer::start(true).await?;
        // Acks and results may be cut apart by the crash: their order is another test's business.
        let strict = Strictness { message_ids: true, order: false, owners: false };
        let router = Router::connect(&server.url(), true, Subjects::default(), strict).await?;
        // The first start makes streams and consumer, so that the crash is the step's and not the provisioning's.
        let worker = Worker::start(&server.url(), Settings::default()).await?;
        let mut world = World { router, worker, server };
        world.worker.kill();
        let mut ledger = Ledger::new(world.worker.dir());
        let file = |n: u32| (format!("{point}-{n}.txt"), format!("content {n}"));
        let jobs: Vec<Assignment> = (0..3)
            .map(|n| match block {
                "echo" => Assignment::new("acme", "echo", json!({"n": n})),
                _ => Assignment::new("acme", block, json!({"path": file(n).0, "content": file(n).1})),
            })
            .collect();
        world.router.send_all(&jobs).await?;
        world.worker.launch(&[("FAILPOINTS", &format!("{point}=return"))])?;
        world.worker.aborted(Duration::from_secs(15)).await.with_context(|| format!("{point} did not trip"))?;
        ledger.look()?;
        if point == "C9" {
            world.server.kill();
            world.server.restart().await?;
        }
        world.worker.restart().await?;
        world.router.all_answered(PATIENCE).await?;
        let emptied = std::time::Instant::now();
        while world.router.left_in_stream().await? > 0 {
            ensure!(emptied.elapsed() < PATIENCE, "messages stay in the stream");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.router.read_result_stream().await?;
        for job in &jobs {
            let seen = world.router.result(&job.id, PATIENCE).await?;
            ensure!(seen.status() == "success", "{point}: {:?}", seen.object);
        }
        if block != "echo" {
            for n in 0..3 {
                ledger.written_once("acme", &file(n).0, file(n).1.as_bytes())?;
            }
        }
        world.finish().await
    }

    macro_rules! points {
        ($($point:ident: $pure:ident, $conditional:ident;)*) => {$(
            #[tokio::test]
            async fn $pure() -> Result<()> {
                survives(stringify!($point), "echo").await
            }

            #[tokio::test]
            async fn $conditional() -> Result<()> {
                survives(stringify!($point), "fs.blob_put").await
            }
        )*};
    }

    points! {
        C0: c0_before_accepted_is_durable_echo, c0_before_accepted_is_durable_blob_put;
        C1: c1_accepted_before_the_event_echo, c1_accepted_before_the_event_blob_put;
        C2: c2_before_the_effect_echo, c2_before_the_effect_blob_put;
        C3: c3_effect_perhaps_sent_echo, c3_effect_perhaps_sent_blob_put;
        C4: c4_effect_done_before_result_echo, c4_effect_done_before_result_blob_put;
        C5: c5_torn_result_echo, c5_torn_result_blob_put;
        C6: c6_durable_unpublished_echo, c6_durable_unpublished_blob_put;
        C7: c7_published_unrecorded_echo, c7_published_unrecorded_blob_put;
        C8: c8_recorded_unacked_echo, c8_recorded_unacked_blob_put;
        C9: c9_acked_server_forgets_echo, c9_acked_server_forgets_blob_put;
    }
}
