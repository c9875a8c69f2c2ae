//! Statements on a PostgreSQL server that this program starts: rows written and read with their types, a statement that means harm
//! and is a text, one that writes without saying so, rows into a blob, and a worker that has lost its journal and still writes
//! nothing twice.
//!
//!     cargo run --release --example sql_postgres
//!
//! Needs PostgreSQL's programs (Debian's package postgresql; `make deps`). The worker is this very program, started with `run -`;
//! what it prints are the steps' results.

#![expect(clippy::print_stdout, reason = "it is a program that tells a story")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use server::{DATABASE, PASSWORD, Server, USER};

#[expect(dead_code, reason = "the server of the tests, which use more of it")]
#[path = "../src/blocks/sql/tests/server.rs"]
mod server;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|command| command == "run" || command == "sql") {
        return ExitCode::from(endstation::cli::main());
    }
    match story() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sql_postgres: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start();
    println!("a server listens on 127.0.0.1:{}\n", server.port());
    let init = worker(&["sql", "init", "crm"], folder.path(), &server)?.output()?;
    ensure!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    print!("endstation sql init crm\n  {}", String::from_utf8_lossy(&init.stdout));

    let table = "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, item text, price numeric(10, 2), tags text[], \
                 detail jsonb, at timestamptz DEFAULT now())";
    let insert = "INSERT INTO orders (item, price, tags, detail) VALUES ($1, $2, $3, $4) RETURNING id, price";
    let lamp = json!(["lamp", {"type": "numeric", "value": "19.90"}, ["brass", "old"], {"watts": 40}]);
    let harm = json!(["'); DROP TABLE orders; --", {"type": "numeric", "value": "0"}, [], null]);
    let write = |sql: &str, params: &Value| json!({ "connector": "crm", "mode": "write", "sql": sql, "params": params });
    let order = write(insert, &lamp);
    let read =
        json!({ "connector": "crm", "sql": "SELECT id, item, price, tags, detail FROM orders WHERE id = $1", "params": [1] });
    let unsaid = json!({ "connector": "crm", "sql": "WITH gone AS (DELETE FROM orders RETURNING id) SELECT * FROM gone" });
    let export = json!({ "connector": "crm", "sql": "SELECT n, sqrt(n) AS root FROM generate_series(1, 100000) AS n",
                         "to": "exports/roots.csv", "rows": "csv" });
    let steps = [
        ("a table", "s1", write(table, &json!([])), "OK"),
        ("an order", "s2", order.clone(), "OK"),
        ("one that means harm", "s3", write(insert, &harm), "OK"),
        ("the order, read", "s4", read, "OK"),
        ("a statement that writes and does not say so", "s5", unsaid, "ERROR"),
        ("a hundred thousand rows into a blob", "s6", export, "OK"),
    ];
    let mut first = Worker::start(&folder.path().join("first"), &server)?;
    for (what, step, inputs, status) in &steps {
        let result = first.run(step, inputs)?;
        println!("{what}\n  {}", tell(&result));
        ensure!(result["status"] == *status, "not as it should be: {result}");
        ensure!(!result.to_string().contains(PASSWORD), "the password was told");
    }
    let before = first.run("s2", &order)?;
    first.end()?;

    // Another journal, which knows nothing: the database knows the step.
    let mut second = Worker::start(&folder.path().join("second"), &server)?;
    let after = second.run("s2", &order)?;
    second.end()?;
    println!("the same step, by a worker without its journal\n  {}", tell(&after));
    ensure!(after["outputs"] == before["outputs"], "{after} is not {before}");
    let count = server.ask("SELECT count(*) FROM orders");
    println!("\nin the table: {count} orders");
    ensure!(count == "2", "two orders and no more");
    Ok(())
}

/// This program as the worker's, told where the server is.
fn worker(args: &[&str], folder: &Path, server: &Server) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args);
    for setting in [
        "tenants=acme".to_owned(),
        "kind=postgres".to_owned(),
        "host=127.0.0.1".to_owned(),
        format!("port={}", server.port()),
        format!("database={DATABASE}"),
        format!("user={USER}"),
        "password=secret://env/CRM_PASSWORD".to_owned(),
        // On this machine alone; anywhere else it stays verify-full.
        "tls=disable".to_owned(),
        "allow=127.0.0.1".to_owned(),
        "max_connections=64".to_owned(),
        "dedup=true".to_owned(),
    ] {
        command.args(["--set", &format!("connectors.crm.{setting}")]);
    }
    command.args(["--set", "worker.key_salt=the same for every worker of a deployment"]);
    command.env("CRM_PASSWORD", PASSWORD).env("ENDSTATION__STORAGE__DIR", folder.join("data"));
    Ok(command)
}

/// The worker: takes a step a line, and answers each with a line.
struct Worker {
    child: Child,
    steps: ChildStdin,
    results: BufReader<ChildStdout>,
}

impl Worker {
    fn start(folder: &Path, server: &Server) -> Result<Worker> {
        let mut command = worker(&["run", "-"], folder, server)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let steps = child.stdin.take().context("its input")?;
        let results = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Worker { child, steps, results })
    }

    fn run(&mut self, step: &str, inputs: &Value) -> Result<Value> {
        let context = json!({ "tenant_id": "acme", "flow_id": "story", "step_id": step, "attempt": 1 });
        writeln!(self.steps, "{}", json!({ "type": "sql.query", "inputs": inputs, "context": context }))?;
        let mut line = String::new();
        self.results.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))
    }

    fn end(mut self) -> Result<()> {
        drop(self.steps);
        self.child.wait()?;
        Ok(())
    }
}

fn tell(result: &Value) -> String {
    let (outputs, error) = (&result["outputs"], &result["error"]);
    if result["status"] != "OK" {
        return format!("{}: {}", error["code"].as_str().unwrap_or("?"), error["message"].as_str().unwrap_or("?"));
    }
    match &outputs["blob"]["path"] {
        Value::String(path) => format!("{} rows, {} bytes in {path}", outputs["row_count"], outputs["blob"]["size"]),
        _ => outputs["rows"].to_string(),
    }
}
