//! Blobs in an object store, against an S3 server that this program starts: a put and the same again, a part of a blob, a
//! content that gives the name, what may not be replaced, a copy from the worker's own disk, and a quota that is used up.
//!
//!     cargo run --release --example blob_store
//!
//! Needs nothing else. The worker is this very program, started with `run -`; what it prints are the steps' results.

#![expect(clippy::print_stdout, reason = "it is a program that tells a story")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use server::{ACCESS_KEY, BUCKET, SECRET_KEY, Server};

#[expect(dead_code, reason = "the server of the tests, which use more of it")]
#[path = "../src/blocks/remote/tests/server.rs"]
mod server;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|command| command == "run") {
        return ExitCode::from(endstation::cli::main());
    }
    match story() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blob_store: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Server::start();
    println!("a store listens on http://{}\n", store.address);
    let mut worker = Worker::start(folder.path(), &store)?;
    let report = "What happened in May, and why.";
    let put = json!({ "connector": "archive", "path": "reports/may.txt", "content": report });
    let other = json!({ "connector": "archive", "path": "reports/may.txt", "content": "Something else." });
    let part = json!({ "connector": "archive", "path": "reports/may.txt", "offset": 5, "length": 8 });
    let named = json!({ "connector": "archive", "address": "sha256", "path": "builds", "content": "a build" });
    let local = json!({ "path": "drafts/june.txt", "content": "What may happen in June." });
    let copy = json!({ "connector": "archive", "path": "reports/june.txt", "blob": "drafts/june.txt" });
    let large = json!({ "connector": "archive", "path": "large", "content": "x".repeat(100_000) });
    let steps = [
        ("a report, put into the store", "fs.blob_put", &put, "OK"),
        ("the same, by another step", "fs.blob_put", &put, "OK"),
        ("a part of it", "fs.blob_get", &part, "OK"),
        ("another one, which may not replace it", "fs.blob_put", &other, "ERROR"),
        ("a build, named by its content", "fs.blob_put", &named, "OK"),
        ("a draft, on the worker's own disk", "fs.blob_put", &local, "OK"),
        ("the draft, copied into the store", "fs.blob_put", &copy, "OK"),
        ("more than the tenant may keep there", "fs.blob_put", &large, "ERROR"),
    ];
    for (what, block, inputs, status) in steps {
        let result = worker.run(block, inputs)?;
        println!("{what} ({block})\n  {}", tell(&result));
        ensure!(result["status"] == status, "not as it should be: {result}");
        ensure!(!result.to_string().contains(SECRET_KEY), "the key was told");
    }
    worker.end()?;
    println!("\nin the store, after {} requests:", store.requests.load(Ordering::Relaxed));
    let objects = store.objects();
    objects.iter().for_each(|name| println!("  {name}"));
    ensure!(objects.len() == 3 && store.scraps().is_empty(), "three blobs and nothing beside them");
    Ok(())
}

/// The worker: takes a step a line, and answers each with a line.
struct Worker {
    child: Child,
    steps: ChildStdin,
    results: BufReader<ChildStdout>,
    asked: usize,
}

impl Worker {
    fn start(folder: &Path, store: &Server) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["run", "-"]);
        for setting in [
            "tenants=acme".to_owned(),
            "store=s3".to_owned(),
            format!("endpoint=http://{}", store.address),
            format!("bucket={BUCKET}"),
            "region=us-east-1".to_owned(),
            "access_key=secret://env/STORE_ACCESS_KEY".to_owned(),
            "secret_key=secret://env/STORE_SECRET_KEY".to_owned(),
            "bytes_max=64KiB".to_owned(),
        ] {
            command.args(["--set", &format!("connectors.archive.{setting}")]);
        }
        command.env("STORE_ACCESS_KEY", ACCESS_KEY).env("STORE_SECRET_KEY", SECRET_KEY);
        command.env("ENDSTATION__STORAGE__DIR", folder.join("data")).current_dir(folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let steps = child.stdin.take().context("its input")?;
        let results = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Worker { child, steps, results, asked: 0 })
    }

    fn run(&mut self, block: &str, inputs: &Value) -> Result<Value> {
        self.asked += 1;
        let step = format!("s{}", self.asked);
        let context = json!({ "tenant_id": "acme", "flow_id": "story", "step_id": step, "attempt": 1 });
        writeln!(self.steps, "{}", json!({ "type": block, "inputs": inputs, "context": context }))?;
        let mut line = String::new();
        self.results.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))
    }

    fn end(mut self) -> Result<()> {
        drop(self.steps);
        // Two steps failed, as they should.
        let status = self.child.wait()?;
        ensure!(status.code() == Some(1), "the worker ended with {status}");
        Ok(())
    }
}

fn tell(result: &Value) -> String {
    let (outputs, error) = (&result["outputs"], &result["error"]);
    if result["status"] != "OK" {
        return format!("{}: {}", error["code"].as_str().unwrap_or("?"), error["message"].as_str().unwrap_or("?"));
    }
    let path = &outputs["path"];
    match outputs["content"].as_str() {
        Some(content) => format!("{content:?}, of the {} bytes of {path}", outputs["total"]),
        None => {
            let created = if outputs["created"] == true { "created" } else { "was there already" };
            format!("{path}, {} bytes: {created}", outputs["size"])
        }
    }
}
