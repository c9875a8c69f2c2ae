//! A secret in each place that takes one, and a search for all of them in everything that can be read: the log at its most
//! talkative, whatever goes over NATS, the files of journal, blobs and dead letters, health and metrics, the answers of the
//! command line.
//!
//! The other side says back whatever it is sent, in every form that occurs to it ([`crate::mirror`]); that a secret was really
//! sent there is looked at, too. What a tenant has an answer put into a blob is its own, and not looked at.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::cli::objects;
use crate::canary::Canaries;
use crate::mirror::Mirror;
use crate::objects::{ACCESS_KEY, SECRET_KEY, Server};
use crate::record;
use crate::router::peer::{Router, introduced};
use crate::router::{Assignment, Strictness, Subjects};
use crate::server::NatsServer;
use crate::worker::{Settings, Worker};
use crate::world::{PATIENCE, World};

/// Everything that goes over NATS, by the beginning of its subject.
pub(super) struct Heard(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Heard {
    /// From now on.
    pub(super) async fn all(client: async_nats::Client) -> Result<Heard> {
        let mut messages = client.subscribe(">").await?;
        client.flush().await?;
        let heard: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
        let kept = heard.clone();
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let subject: Vec<&str> = message.subject.split('.').take(3).collect();
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let said = kept.entry(subject.join(".")).or_default();
                said.extend_from_slice(format!("\n{} {:?}\n", message.subject, message.headers).as_bytes());
                said.extend_from_slice(&message.payload);
            }
        });
        Ok(Heard(heard))
    }

    fn taken(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Looks for the canaries in everything that the worker shows and keeps, and what these commands print. How many outputs it
/// were.
pub(super) async fn search(canaries: &Canaries, world: &World, heard: &Heard, commands: &[Vec<String>]) -> Result<usize> {
    let worker = &world.worker;
    let mut searched = 0;
    let mut look = |output: &str, bytes: &[u8]| {
        searched += 1;
        canaries.absent(output, bytes)
    };
    for path in ["/metrics", "/_state", "/_health", "/_readyz", "/_build", "/livez"] {
        look(path, worker.get(path).await?.1.as_bytes())?;
    }
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let usual = [
        "config show",
        "config show --origin",
        "config check",
        "dlq ls",
        "journal dump --bodies",
        "journal stat",
        "journal check",
    ];
    let mut commands: Vec<Vec<String>> = usual.iter().map(|line| words(line)).chain(commands.iter().cloned()).collect();
    for row in objects(&run(worker.command(&["dlq", "ls"])).await?)? {
        commands.push(words(&format!("dlq show {}", row["id"].as_str().context("an id")?)));
    }
    for words in &commands {
        let output = run(worker.command(&words.iter().map(String::as_str).collect::<Vec<_>>())).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code().is_some_and(|code| code < 2), "{words:?}: {} {said}", output.status);
        look(&format!("standard output of {words:?}"), &output.stdout)?;
        look(&format!("standard error of {words:?}"), &output.stderr)?;
    }
    for (subject, said) in heard.taken() {
        look(&format!("what is said on {subject}"), &said)?;
    }
    for (path, content) in files(&worker.storage())? {
        look(&path, &content)?;
    }
    look("the log", worker.log_text().as_bytes())?;
    Ok(searched)
}

async fn run(mut command: Command) -> Result<Output> {
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// Every file beneath a folder, without what was only reserved of it.
fn files(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // What the worker takes away meanwhile is gone.
            let Ok(mut content) = std::fs::read(&path) else { continue };
            content.truncate(content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            found.push((path.display().to_string(), content));
        }
    }
    Ok(found)
}

/// The places, as they are written, and the secrets in them.
struct Planted {
    settings: Settings,
    canaries: Canaries,
    /// What must have been sent to the mirror, or this would search for nothing.
    sent: Vec<(String, String)>,
}

impl Planted {
    fn set(&mut self, key: &str, value: &str) {
        let settings = std::mem::replace(&mut self.settings, Settings::core());
        self.settings = settings.set(&format!("ENDSTATION__{}", key.replace('.', "__").to_ascii_uppercase()), value);
    }

    /// Has `key` refer to a secret that stands in the environment.
    fn refer(&mut self, key: &str, secret: &str) {
        let name = format!("IT_{}", key.replace('.', "_").to_ascii_uppercase());
        self.set(key, &format!("secret://env/{name}"));
        let settings = std::mem::replace(&mut self.settings, Settings::core());
        self.settings = settings.set(&name, secret);
    }

    /// A connector of tenant `acme` at this place.
    fn connector(&mut self, name: &str, fields: &[(&str, &str)]) {
        for (field, value) in [("tenants", "acme"), ("allow", "127.0.0.0/8")].iter().chain(fields) {
            self.set(&format!("connectors.{name}.{field}"), value);
        }
    }
}

/// A text that headers take and writers of JSON escape, around what is told from all else.
fn awkward(part: &str) -> String {
    format!("q\"{part}\\w/<&>'")
}

fn planted(mirror: &Mirror, store: &Server) -> Planted {
    let settings = Settings::default().set("RUST_LOG", "trace").set("ENDSTATION__EVENTS__ENABLED", "true");
    let mut all = Planted { settings, canaries: Canaries::default(), sent: Vec::new() };
    let (url, bucket) = (format!("http://{}", mirror.address), [("region", "us-east-1"), ("bucket", "vault")]);

    let (bearer, password, value) = (awkward("canary-bearer-4f1c"), awkward("canary-pass-77ab"), awkward("canary-value-0d3e"));
    all.connector("token", &[("url", &url), ("direct", "true")]);
    all.refer("connectors.token.bearer", &bearer);
    all.canaries.plant_around("connectors.token.bearer", "canary-bearer-4f1c", &bearer);
    all.sent.push(("connectors.token.bearer".into(), format!("Bearer {bearer}")));
    all.connector("login", &[("url", &url), ("direct", "true"), ("user", "ann")]);
    all.refer("connectors.login.password", &password);
    all.canaries.plant_login("connectors.login.password", "ann", "canary-pass-77ab", &password);
    all.connector("header", &[("url", &url), ("direct", "true"), ("header", "x-api-key")]);
    all.refer("connectors.header.value", &value);
    all.canaries.plant_around("connectors.header.value", "canary-value-0d3e", &value);
    all.sent.push(("connectors.header.value".into(), value));

    all.set("net.proxy", &url);
    all.set("net.proxy_user", "ann");
    all.refer("net.proxy_password", "canary-proxy-9c20");
    all.canaries.plant_login("net.proxy_password", "ann", "canary-proxy-9c20", "canary-proxy-9c20");
    all.sent.push(("net.proxy_password".into(), "Proxy-Authorization: Basic".into()));
    all.connector("proxied", &[("url", &url)]);
    all.connector("blocked", &[("url", "http://127.0.0.1:9")]);

    for (name, provider, field) in [("gpt", "openai", "bearer"), ("claude", "anthropic", "value")] {
        all.connector(name, &[("url", &url), ("direct", "true"), ("provider", provider), ("models", "small-1")]);
        let (key, part) = (format!("connectors.{name}.{field}"), format!("canary-{name}-5b18"));
        all.refer(&key, &part);
        all.canaries.plant(&key, &part);
        all.sent.push((key, part));
    }
    all.set("connectors.claude.header", "x-api-key");

    let there = format!("http://{}", store.address);
    let archive = [("store", "s3"), ("endpoint", &*there), ("bucket", "blobs"), ("region", "us-east-1"), ("bytes_max", "64KiB")];
    all.connector("archive", &[&archive[..], &[("direct", "true")]].concat());
    for (key, secret) in [("connectors.archive.access_key", ACCESS_KEY), ("connectors.archive.secret_key", SECRET_KEY)] {
        all.refer(key, secret);
        all.canaries.plant(key, secret);
    }
    let s3 = [&bucket[..], &[("store", "s3"), ("endpoint", &*url), ("direct", "true")]].concat();
    all.connector("locked", &s3);
    for field in ["access_key", "secret_key", "session_token"] {
        let (key, secret) = (format!("connectors.locked.{field}"), format!("canary{}61e7", field.replace('_', "")));
        all.refer(&key, &secret);
        all.canaries.plant(&key, &secret);
    }
    all.sent.push(("connectors.locked.session_token".into(), "canarysessiontoken61e7".into()));
    all.sent.push(("connectors.locked.access_key".into(), "canaryaccesskey61e7".into()));
    let azure = [("store", "azblob"), ("endpoint", &*url), ("bucket", "vault"), ("account", "acct"), ("direct", "true")];
    all.connector("signed", &azure);
    all.refer("connectors.signed.sas_token", "sv=2024-01-01&sig=canary-sas-28fd");
    all.canaries.plant_around("connectors.signed.sas_token", "canary-sas-28fd", "sv=2024-01-01&sig=canary-sas-28fd");
    all.sent.push(("connectors.signed.sas_token".into(), "canary-sas-28fd".into()));
    all.connector("keyed", &azure);
    // base64, as Azure gives them out.
    all.refer("connectors.keyed.account_key", "Y2FuYXJ5YWNjb3VudGtleTk5MDE=");
    all.canaries.plant("connectors.keyed.account_key", "Y2FuYXJ5YWNjb3VudGtleTk5MDE");
    all.canaries.plant("connectors.keyed.account_key, decoded", "canaryaccountkey9901");
    all.connector("cloud", &[("store", "gcs"), ("endpoint", &*url), ("bucket", "vault"), ("direct", "true")]);
    let credential = json!({"type": "service_account", "client_email": "a@b", "private_key": "canary-gcs-73de"});
    all.refer("connectors.cloud.credential", &credential.to_string());
    all.canaries.plant_around("connectors.cloud.credential", "canary-gcs-73de", &credential.to_string());

    let seed = "c0ffee03c0ffee17c0ffee29c0ffee31c0ffee47c0ffee59c0ffee61c0ffee73";
    for (name, algorithm, secret, part) in [
        ("release", "ed25519", seed, seed),
        ("hooks", "hmac-sha256", "canary-hmac-key-1a6f", "canary-hmac-key-1a6f"),
        ("broken", "ed25519", "canary-no-seed-e2c4", "canary-no-seed-e2c4"),
        ("short", "hmac-sha256", "hex:canary-b81", "canary-b81"),
    ] {
        all.set(&format!("keys.{name}.tenants"), "acme");
        all.set(&format!("keys.{name}.algorithm"), algorithm);
        all.refer(&format!("keys.{name}.secret"), secret);
        all.canaries.plant_around(&format!("keys.{name}.secret"), part, secret);
    }
    let database = [("kind", "postgres"), ("host", "127.0.0.1"), ("port", "9"), ("database", "crm"), ("user", "ann")];
    all.connector("crm", &[&database[..], &[("tls", "disable"), ("direct", "true")]].concat());
    all.refer("connectors.crm.password", "canary-database-6e0b");
    all.canaries.plant("connectors.crm.password", "canary-database-6e0b");
    all.set("worker.key_salt", "canary-salt-3390");
    all.canaries.plant("worker.key_salt", "canary-salt-3390");
    all.set("nats.user", "it");
    all.set("nats.password", "canary-nats-a7d1");
    all.canaries.plant_login("nats.password", "it", "canary-nats-a7d1", "canary-nats-a7d1");
    all
}

/// Steps that need each of the secrets, and whether they succeed.
fn steps() -> Vec<(Assignment, bool)> {
    let mut steps = Vec::new();
    let mut step = |well: bool, block: &str, inputs: Value| steps.push((Assignment::new("acme", block, inputs), well));
    for connector in ["token", "login", "header", "proxied"] {
        for (path, well) in [("text", true), ("json", true), ("escaped", true), ("no", false), ("unwell", false), ("cut", false)]
        {
            step(well, "http.request", json!({"connector": connector, "path": format!("/{path}")}));
        }
        for path in ["text", "json", "escaped", "events"] {
            step(true, "http.request", json!({"connector": connector, "path": format!("/{path}"), "response": "stream"}));
        }
        step(true, "http.request", json!({"connector": connector, "path": "/json", "method": "POST", "json": {"x": 1}}));
        step(false, "http.request", json!({"connector": connector, "url": "http://127.0.0.1:1/elsewhere"}));
    }
    step(false, "http.request", json!({"connector": "blocked", "path": "/"}));
    step(false, "sql.query", json!({"connector": "crm", "sql": "SELECT 1"}));
    for connector in ["gpt", "claude"] {
        step(true, "ai.generate", json!({"connector": connector, "prompt": "well"}));
        step(true, "ai.generate", json!({"connector": connector, "prompt": "well", "stream": true}));
        step(false, "ai.generate", json!({"connector": connector, "prompt": "fail"}));
        step(false, "ai.generate", json!({"connector": connector, "prompt": "well", "model": "huge-1"}));
    }
    step(true, "fs.blob_put", json!({"connector": "archive", "path": "a", "content": "kept"}));
    step(false, "fs.blob_put", json!({"connector": "archive", "path": "large", "content": "x".repeat(100_000)}));
    step(false, "fs.blob_get", json!({"connector": "archive", "path": "nowhere"}));
    for connector in ["locked", "signed", "keyed", "cloud"] {
        step(false, "fs.blob_put", json!({"connector": connector, "path": "a", "content": "x", "overwrite": true}));
        step(false, "fs.blob_get", json!({"connector": connector, "path": "a"}));
        step(false, "media.render", json!({"connector": connector, "path": "a"}));
        step(false, "crypto.hash", json!({"connector": connector, "path": "a"}));
    }
    for (key, well) in [("release", true), ("hooks", true), ("broken", false), ("short", false)] {
        step(well, "crypto.sign", json!({"key": key, "text": "a text"}));
        step(well, "crypto.verify", json!({"key": key, "text": "a text", "signature": "AAAA"}));
    }
    steps
}

#[tokio::test]
async fn no_secret_of_any_place_is_in_any_output() -> Result<()> {
    let (mirror, store) = (Mirror::open().await?, Server::start());
    let Planted { settings, canaries, sent } = planted(&mirror, &store);
    let server = NatsServer::guarded(true, &["--user", "it", "--pass", "canary-nats-a7d1"]).await?;
    let known = server.url().replace("//", "//it:canary-nats-a7d1@");
    let router = Router::connect(&known, true, Subjects::default(), Strictness::default()).await?;
    let heard = Heard::all(introduced(&known)?.connect(&known).await?).await?;
    let worker = Worker::start(&server.url(), settings).await?;
    let world = World { router, worker, server };
    let steps = steps();
    let jobs: Vec<Assignment> = steps.iter().map(|(job, _)| job.clone()).collect();
    world.router.send_all(&jobs).await?;
    let mut wrong = Vec::new();
    for (job, well) in &steps {
        let seen = world.router.result(&job.id, PATIENCE).await?;
        let (inputs, outputs) = (&job.json["job"]["payload"], &seen.object.get("outputs"));
        // What was sent came back, and was taken out.
        let echoed =
            ["token", "login", "header"].iter().any(|name| inputs["connector"] == *name) && inputs.get("response").is_none();
        let clean = |outputs: &Value| {
            let heard = outputs["json"].get("heard").unwrap_or(&outputs["text"]);
            heard.as_str().is_some_and(|heard| heard.contains("[REDACTED]"))
        };
        if (seen.status() == "success") != *well || (echoed && outputs.is_some_and(|outputs| !clean(outputs))) {
            wrong.push(format!("{}: {:?}", job.json["job"], seen.object));
        }
    }
    ensure!(wrong.is_empty(), "{} steps not as they should be: {}", wrong.len(), wrong.join("\n"));
    world.worker.metric_becomes("endstation_unpublished", |waiting| waiting == 0.0).await?;
    for (place, text) in &sent {
        ensure!(mirror.was_sent(text), "{place} was sent to nobody");
    }
    let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let mut commands: Vec<_> = jobs.iter().map(|job| words(format!("step show --tenant acme --assignment {}", job.id))).collect();
    for connector in ["token", "login", "header", "proxied", "gpt", "claude"] {
        let url = format!("http://{}/x", mirror.address);
        commands.push(words(format!("policy explain --tenant acme --connector {connector} --url {url}")));
    }
    world.finish().await?;
    let searched = search(&canaries, &world, &heard, &commands).await?;
    let facts =
        json!({"places": canaries.len(), "outputs": searched, "searches": canaries.len() * searched, "steps": steps.len()});
    record::summary("secrets", facts)
}

/// The other ways to say who the worker is to its server.
#[tokio::test]
async fn a_login_of_the_server_is_in_no_output_however_it_is_given() -> Result<()> {
    let secret = "canary-nats-6e05";
    let mut searched = 0;
    for (place, access, login, setting) in [
        ("nats.url, a password", vec!["--user", "it", "--pass", secret], "it:canary-nats-6e05@", None),
        ("nats.url, a token", vec!["--auth", secret], "canary-nats-6e05@", None),
        ("nats.token", vec!["--auth", secret], "canary-nats-6e05@", Some("ENDSTATION__NATS__TOKEN")),
    ] {
        let server = NatsServer::guarded(true, &access).await?;
        let known = server.url().replace("//", &format!("//{login}"));
        let settings = Settings::default().set("RUST_LOG", "trace");
        let (url, settings) = match setting {
            Some(name) => (server.url(), settings.set(name, secret)),
            None => (known.clone(), settings),
        };
        let router = Router::connect(&known, true, Subjects::default(), Strictness::default()).await?;
        let heard = Heard::all(introduced(&known)?.connect(&known).await?).await?;
        let worker = Worker::start(&url, settings).await?;
        let mut world = World { router, worker, server };
        let seen = world.router.run(&Assignment::new("acme", "echo", json!({"n": 1})), PATIENCE).await?;
        ensure!(seen.status() == "success", "{place}: {:?}", seen.object);
        // A server that goes and comes back is said who we are again.
        world.server.kill();
        world.server.restart().await?;
        let seen = world.router.run(&Assignment::new("acme", "echo", json!({"n": 2})), PATIENCE).await?;
        ensure!(seen.status() == "success", "{place}: {:?}", seen.object);
        let mut canaries = Canaries::default();
        canaries.plant_login(place, "it", secret, secret);
        searched += search(&canaries, &world, &heard, &[]).await?;
        world.finish().await?;
    }
    record::summary("secrets_of_the_server", json!({"places": 3, "outputs": searched}))
}

/// A secret where only a reference may stand, or where none belongs.
#[test]
fn a_secret_in_the_wrong_place_is_not_said_in_its_error() -> Result<()> {
    let folder = super::cli::Place::new()?;
    let (secret, seed) = ("canary-wrong-51b9", "c0ffee03c0ffee17c0ffee29c0ffee31c0ffee47c0ffee59c0ffee61c0ffee7");
    let mut canaries = Canaries::default();
    canaries.plant("a setting", secret);
    canaries.plant("a seed", seed);
    let (mut searched, mut refused) = (0, 0);
    for setting in [
        format!("connectors.a.bearer={secret}"),
        format!("connectors.a.password={secret}"),
        format!("connectors.a.value={secret}"),
        format!("connectors.a.url=http://ann:{secret}@h/x"),
        format!("connectors.a.url=http://ann:{secret}@:99999"),
        format!("connectors.a.access_key={secret}"),
        format!("connectors.a.secret_key={secret}"),
        format!("connectors.a.endpoint=http://ann:{secret}@h"),
        format!("connectors.a.sas_token={secret}"),
        format!("connectors.a.account_key={secret}"),
        format!("connectors.a.credential={{\"private_key\":\"{secret}\"}}"),
        format!("connectors.a.session_token=secret://vault/{secret}"),
        format!("keys.k.secret={secret}"),
        format!("keys.k.public={seed}"),
        format!("keys.k.public={secret}"),
        format!("net.proxy=http://ann:{secret}@p:3128"),
        format!("net.proxy_password={secret}"),
        format!("nats.url=nats://ann:{secret}@h:x"),
        format!("nats.url=nats://{secret}@h:99999"),
    ] {
        for verb in [["config", "check"], ["config", "show"], ["dlq", "ls"]] {
            let output = folder.run(&[&verb[..], &["--set", &setting]].concat())?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code().is_some(), "{setting}: {verb:?} ends with {}: {said}", output.status);
            refused += usize::from(output.status.code() == Some(3));
            canaries.absent(&format!("standard output of {verb:?} with {setting}"), &output.stdout)?;
            canaries.absent(&format!("standard error of {verb:?} with {setting}"), &output.stderr)?;
            searched += 2;
        }
    }
    ensure!(refused > searched / 4, "{refused} of {searched} are errors at all");
    record::summary("secrets_in_the_wrong_place", json!({"outputs": searched, "refused": refused}))
}
