//! Every block whose own code panics, at its first poll and in the middle of its work, or on a compute thread: its step fails
//! alone, once and with what may have happened, and other tenants' steps of the same blocks succeed meanwhile. Nothing of it
//! stays taken: not a place to run, not memory, not a connection.
//!
//! Needs a worker with failpoints: `cargo test --features failpoints --test it panics`.

#[cfg(not(feature = "failpoints"))]
#[test]
#[ignore = "blocks panic only with `cargo test --features failpoints`"]
fn panics_need_a_build_with_the_failpoints_feature() {}

#[cfg(feature = "failpoints")]
mod on_purpose {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use anyhow::{Context as _, Result, ensure};
    use serde_json::{Value, json};

    use crate::objects::Server;
    use crate::place::Place;
    use crate::provider::Provider;
    use crate::record;
    use crate::router::Assignment;
    use crate::scenario::cli::objects;
    use crate::scenario::{ai, stores};
    use crate::worker::{Settings, Worker};
    use crate::world::{PATIENCE, World};

    /// Whose blocks panic at their first, second and third poll; nobody else's do.
    const ILL: [&str; 3] = ["mallory", "trudy", "oscar"];
    const WELL: &str = "acme";
    /// Steps of each block and tenant: more than run at once, so that a place which stays taken is missed.
    const EACH: usize = 3;

    /// A step of each block, and whether its block is pure and may be polled only once.
    struct Row {
        block: &'static str,
        inputs: fn(&str) -> Value,
        pure: bool,
        once: bool,
    }

    const ROWS: [Row; 16] = [
        Row { block: "echo", inputs: |name| json!({"name": name}), pure: true, once: true },
        Row { block: "sleep", inputs: |_| json!({"ms": 5}), pure: true, once: false },
        Row { block: "crypto.hash", inputs: |name| json!({"text": name}), pure: true, once: true },
        Row { block: "crypto.hash", inputs: |_| json!({"text": "x".repeat(200 << 10)}), pure: true, once: false },
        Row { block: "crypto.sign", inputs: |name| json!({"key": "hooks", "text": name}), pure: true, once: true },
        Row {
            block: "crypto.verify",
            inputs: |name| json!({"key": "hooks", "text": name, "signature": "AAAA"}),
            pure: true,
            once: true,
        },
        Row { block: "fs.blob_put", inputs: |name| json!({"path": name, "content": name}), pure: false, once: false },
        Row {
            block: "fs.blob_put",
            inputs: |name| json!({"connector": "archive", "path": name, "content": name}),
            pure: false,
            once: false,
        },
        Row { block: "fs.blob_get", inputs: |_| json!({"path": "there"}), pure: true, once: false },
        Row {
            block: "http.request",
            inputs: |name| json!({"connector": "place", "path": format!("/{name}")}),
            pure: true,
            once: false,
        },
        Row {
            block: "http.request",
            inputs: |name| json!({"connector": "place", "path": format!("/{name}"), "text": "x"}),
            pure: false,
            once: false,
        },
        Row { block: "media.render", inputs: |_| board(json!({})), pure: true, once: false },
        Row { block: "media.render", inputs: |name| board(json!({"to": format!("{name}.png")})), pure: false, once: false },
        Row { block: "ai.generate", inputs: |name| json!({"prompt": name, "stream": true}), pure: true, once: false },
        Row { block: "sql.query", inputs: |_| json!({"connector": "notes", "sql": "SELECT 1"}), pure: true, once: true },
        Row {
            block: "sql.query",
            inputs: |_| json!({"connector": "notes", "mode": "write", "sql": "CREATE TABLE IF NOT EXISTS t (a)"}),
            pure: false,
            once: false,
        },
    ];

    fn board(mut inputs: Value) -> Value {
        inputs["bytes"] =
            json!("iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAFklEQVR42mP4zwAE/yEkgvUfysUqAwCeow/x3VZc7gAAAABJRU5ErkJggg==");
        inputs
    }

    /// What each block needs, for every tenant; of a tenant two steps run at once, with memory for one image.
    fn settings(store: &Server, place: &Place, provider: &Provider) -> Settings {
        let settings = ai::provided(stores::settings(store), provider);
        let all = ["ARCHIVE", "LLM"]
            .into_iter()
            .fold(settings, |settings, name| settings.set(&format!("ENDSTATION__CONNECTORS__{name}__TENANTS"), "*"));
        all.set("ENDSTATION__CONNECTORS__PLACE__TENANTS", "*")
            .set("ENDSTATION__CONNECTORS__PLACE__URL", &format!("http://{}", place.address))
            .set("ENDSTATION__CONNECTORS__PLACE__ALLOW", "127.0.0.0/8")
            .set("ENDSTATION__CONNECTORS__NOTES__KIND", "sqlite")
            .set("ENDSTATION__CONNECTORS__NOTES__TENANTS", "*")
            .set("ENDSTATION__KEYS__HOOKS__TENANTS", "*")
            .set("ENDSTATION__KEYS__HOOKS__ALGORITHM", "hmac-sha256")
            .set("ENDSTATION__KEYS__HOOKS__SECRET", "secret://env/IT_HOOKS")
            .set("IT_HOOKS", "a key for hooks only")
            .set("ENDSTATION__EVENTS__ENABLED", "true")
            .set("ENDSTATION__LIMITS__TENANT_RUNNING", "2")
            .set("ENDSTATION__LIMITS__TENANT_MEMORY", "256MiB")
    }

    fn steps(row: &Row, tenant: &str, round: usize) -> Vec<Assignment> {
        let name = |n| format!("{}-{tenant}-{round}-{n}", row.block);
        // A name that two rows of one block share would be one blob.
        let at = ROWS.iter().position(|other| std::ptr::eq(other, row)).unwrap_or_default();
        (0..EACH).map(|n| Assignment::new(tenant, row.block, (row.inputs)(&format!("{at}-{}", name(n))))).collect()
    }

    /// Descriptors that the worker has open.
    fn descriptors(worker: &Worker) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", worker.pid()?))?.count())
    }

    /// All that runs has given back what it took.
    async fn at_rest(worker: &Worker) -> Result<()> {
        for gauge in ["endstation_running", "endstation_queued", "endstation_unpublished"] {
            worker.metric_becomes(gauge, |value| value == 0.0).await.with_context(|| gauge.to_owned())?;
        }
        Ok(())
    }

    /// A step failed of its own block's code, once, and says what may have happened.
    async fn failed_alone(world: &World, job: &Assignment, pure: bool) -> Result<()> {
        let seen = world.router.result(&job.id, PATIENCE).await?;
        let effect = if pure { "none" } else { "unknown" };
        ensure!((seen.status(), seen.code()) == ("error", "INTERNAL_ERROR"), "{}: {:?}", job.json["job"], seen.object);
        ensure!(seen.object["effect"] == effect, "{}: {:?}", job.json["job"], seen.object);
        let letter = world.router.dead_letter(&job.body(), PATIENCE).await?;
        ensure!(letter["error_code"] == "INTERNAL_ERROR", "{letter:?}");
        Ok(())
    }

    #[tokio::test]
    async fn every_block_that_panics_fails_its_step_alone_and_gives_everything_back() -> Result<()> {
        let (store, place, provider) = (Server::start(), Place::open().await?, Provider::open().await?);
        let panics = format!("block-panics=return({}@1,{}@2,{}@3)", ILL[0], ILL[1], ILL[2]);
        let mut world = World::jetstream(settings(&store, &place, &provider).set("FAILPOINTS", &panics)).await?;
        let listed = world.worker.command(&["blocks", "ls"]).output()?;
        for block in objects(&listed)? {
            // What waits for people runs nothing that could panic.
            let runs = block["name"] != "human.approval";
            ensure!(!runs || ROWS.iter().any(|row| block["name"] == row.block), "{} has no row here", block["name"]);
        }
        for tenant in ILL.into_iter().chain([WELL]) {
            // One that no block of this worker's writes: what is read must be there.
            let folder = world.worker.storage().join("blobs").join(crate::ledger::tenant_folder(tenant));
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("there"), "x")?;
        }
        let (mut panicked, mut ran, mut opened) = (0, 0, Vec::new());
        for round in 0..3 {
            let mut sent: Vec<(&Row, &str, Vec<Assignment>)> = Vec::new();
            for row in &ROWS {
                for tenant in ILL.into_iter().chain([WELL]) {
                    sent.push((row, tenant, steps(row, tenant, round)));
                }
            }
            let jobs: Vec<Assignment> = sent.iter().flat_map(|(_, _, jobs)| jobs.clone()).collect();
            world.router.send_all(&jobs).await?;
            let mut by_row: BTreeMap<(&str, usize), usize> = BTreeMap::new();
            for (row, tenant, jobs) in &sent {
                for job in jobs {
                    let seen = world.router.result(&job.id, PATIENCE).await?;
                    let succeeded = seen.status() == "success";
                    // Who is done before its third poll has not panicked.
                    let may_succeed = *tenant == WELL || (*tenant == ILL[1] && row.once) || *tenant == ILL[2];
                    let (of, said) = (&job.json["job"]["type"], &seen.object);
                    ensure!(if *tenant == WELL { succeeded } else { succeeded <= may_succeed }, "{of} of {tenant}: {said:?}");
                    if succeeded {
                        ran += 1;
                        continue;
                    }
                    failed_alone(&world, job, row.pure).await?;
                    panicked += 1;
                    *by_row.entry((row.block, ILL.iter().position(|ill| ill == tenant).unwrap_or_default())).or_default() += 1;
                }
            }
            // Whatever waits for others was really met in its middle.
            for block in ["sleep", "fs.blob_put", "fs.blob_get", "http.request", "media.render", "ai.generate", "sql.query"] {
                ensure!(by_row.contains_key(&(block, 1)), "{block} is done at its first poll: {by_row:?}");
            }
            for block in ["http.request", "media.render", "ai.generate"] {
                ensure!(by_row.contains_key(&(block, 2)), "{block} is done at its second poll: {by_row:?}");
            }
            at_rest(&world.worker).await?;
            // Nobody has been told to end yet: descriptors are those of connections that are kept.
            opened.push(descriptors(&world.worker)?);
        }
        // A connection is kept for each tenant and place, or two, so a few may come; of those that steps panicked over none
        // stays.
        let begun = Instant::now();
        while descriptors(&world.worker)? > opened[0] + 12 {
            ensure!(begun.elapsed() < Duration::from_secs(5), "descriptors grow: {opened:?}, {}", descriptors(&world.worker)?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.worker.metric_becomes("endstation_panics_total", |panics| panics == f64::from(panicked)).await?;
        ensure!(world.worker.exited()?.is_none(), "it lives on");
        world.finish().await?;
        let facts = json!({"blocks": ROWS.len(), "panics": panicked, "succeeded_beside": ran, "descriptors": opened});
        record::summary("panics", facts)
    }

    /// What is computed for a block fails it as its own code does.
    #[tokio::test]
    async fn a_panic_on_a_compute_thread_fails_the_step_and_the_thread_goes_on() -> Result<()> {
        let (store, place, provider) = (Server::start(), Place::open().await?, Provider::open().await?);
        let mut world = World::jetstream(settings(&store, &place, &provider)).await?;
        world.worker.kill();
        // As many pieces as there are steps: what comes after them is computed as ever.
        world.worker.launch(&[("FAILPOINTS", "piece-panics=6*panic(on purpose)")])?;
        world.worker.ready().await?;
        let jobs: Vec<(Assignment, bool)> = (0..2)
            .flat_map(|n| {
                let hash = json!({"text": format!("{n}{}", "x".repeat(200 << 10))});
                [
                    (Assignment::new(ILL[0], "crypto.hash", hash), true),
                    (Assignment::new(ILL[0], "media.render", board(json!({}))), true),
                    (Assignment::new(ILL[0], "media.render", board(json!({"to": format!("{n}.png")}))), false),
                ]
            })
            .collect();
        // They need no thread, and are not held up.
        let beside: Vec<_> =
            (0..20).map(|n| Assignment::new(WELL, "fs.blob_put", json!({"path": n.to_string(), "content": "x"}))).collect();
        for (job, _) in &jobs {
            world.router.send(job).await?;
        }
        world.router.send_all(&beside).await?;
        for (job, pure) in &jobs {
            failed_alone(&world, job, *pure).await?;
        }
        for job in &beside {
            ensure!(world.router.result(&job.id, PATIENCE).await?.status() == "success", "a step of another tenant");
        }
        for job in jobs.iter().map(|(job, _)| job.as_another()) {
            let seen = world.router.run(&job, PATIENCE).await?;
            ensure!(seen.status() == "success", "the threads go on: {:?}", seen.object);
        }
        at_rest(&world.worker).await?;
        ensure!(world.worker.exited()?.is_none(), "it lives on");
        world.finish().await
    }
}
