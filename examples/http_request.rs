//! `http.request` against a server that this program starts: an answer as JSON, a body into a blob, a server that is down twice, a
//! redirect to where no step may go, and a payment through a connector that is made once however often it is sent.
//!
//!     cargo run --release --example http_request
//!
//! Needs nothing else. The worker is this very program, started with `run`; what it prints are the steps' results.

#![expect(clippy::print_stdout, reason = "it is a program that tells a story")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const TOKEN: &str = "the-token-that-nobody-sees";

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|command| command == "run") {
        return ExitCode::from(endstation::cli::main());
    }
    match story() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("http_request: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = Shop::open()?;
    let at = format!("http://{}", shop.address);
    println!("a shop listens on {at}\n");
    let steps = [
        ("a catalogue, as JSON", json!({ "url": format!("{at}/catalogue"), "query": { "limit": 2 } })),
        ("a picture, into a blob", json!({ "url": format!("{at}/picture"), "response_blob": "pictures/bolt.bin" })),
        ("a server that is down twice", json!({ "url": format!("{at}/flaky") })),
        ("a redirect to a metadata service", json!({ "url": format!("{at}/trap") })),
        ("a page that is not there", json!({ "url": format!("{at}/nowhere") })),
        ("a payment, through a connector", json!({ "connector": "shop", "path": "/payments", "json": { "cents": 1999 } })),
    ];
    let line = |(number, (_, inputs)): (usize, &(&str, Value))| {
        json!({
            "type": "http.request", "inputs": inputs, "retry": { "max_attempts": 3, "backoff_ms": 20 },
            "context": { "tenant_id": "acme", "flow_id": "story", "step_id": format!("s{number}"), "attempt": 1 },
        })
    };
    let file: String = steps.iter().enumerate().map(|step| format!("{}\n", line(step))).collect();
    let path = folder.path().join("steps.ndjson");
    std::fs::write(&path, file)?;

    let told = run(folder.path(), &at, &path)?;
    for ((what, _), (step, result)) in steps.iter().zip(&told) {
        println!("{what} ({step})\n  {}", tell(result));
    }
    // All of it once more: what went well is answered from the journal, and nothing is paid twice.
    let again = run(folder.path(), &at, &path)?;
    let payments = shop.payments();
    println!("\nrun again: {} of {} steps come from the journal, as they were", same(&told, &again), told.len());
    println!("payments made: {}, asked for with {} keys; the token was seen in none of the results", payments.0, payments.1);
    ensure!(payments.0 == 1, "a payment was made {} times", payments.0);
    ensure!(told.iter().chain(&again).all(|(_, result)| !result.to_string().contains(TOKEN)), "the token was told");
    Ok(())
}

/// Runs the file and gives its results in the order of its lines.
fn run(folder: &std::path::Path, at: &str, file: &std::path::Path) -> Result<Vec<(String, Value)>> {
    let output = Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(file)
        .args(["--set", "connectors.shop.tenants=acme", "--set", "connectors.shop.idempotency_key=true"])
        .args(["--set", &format!("connectors.shop.url={at}")])
        .args(["--set", "connectors.shop.bearer=secret://env/SHOP_TOKEN"])
        .env("SHOP_TOKEN", TOKEN)
        .env("ENDSTATION__STORAGE__DIR", folder.join("data"))
        .current_dir(folder)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut results = Vec::new();
    for line in text.lines() {
        let result: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let step = result["context"]["step_id"].as_str().context("a result of no step")?.to_owned();
        results.push((step, result));
    }
    results.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(results)
}

fn tell(result: &Value) -> String {
    let outputs = &result["outputs"];
    if result["status"] == "OK" {
        let body = ["json", "blob", "text"].iter().find_map(|name| outputs.get(*name));
        return format!(
            "{} after {} retries: {}",
            outputs["status"],
            result["retries_used"].as_u64().unwrap_or(0),
            body.unwrap_or(&Value::Null)
        );
    }
    let error = &result["error"];
    format!("{} {} {}", error["code"].as_str().unwrap_or("?"), error["message"].as_str().unwrap_or("?"), error["details"])
}

fn same(one: &[(String, Value)], other: &[(String, Value)]) -> usize {
    let good = one.iter().zip(other).filter(|((_, one), (_, other))| one["status"] == "OK" && one["outputs"] == other["outputs"]);
    good.count()
}

/// The server: what it has been paid, and by which keys.
struct Shop {
    address: SocketAddr,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    payments: HashMap<String, usize>,
    flaky: usize,
}

impl Shop {
    fn open() -> Result<Shop> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let book = Arc::new(Mutex::new(Book::default()));
        let kept = book.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let book = kept.clone();
                // Whoever hangs up is not waited for.
                std::thread::spawn(move || _ = serve(stream, &book));
            }
        });
        Ok(Shop { address, book })
    }

    /// Payments made, and keys that they came with.
    fn payments(&self) -> (usize, usize) {
        let book = self.book.lock().expect("no panic holds it");
        (book.payments.values().sum(), book.payments.len())
    }
}

fn serve(stream: TcpStream, book: &Mutex<Book>) -> Result<()> {
    let mut out = stream.try_clone()?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
        stream.read_exact(&mut vec![0; length])?;
        let path = first.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        let (status, more, body) = answer(&path, &headers, &mut book.lock().expect("no panic holds it"));
        write!(out, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{more}\r\n", body.len())?;
        out.write_all(&body)?;
    }
}

fn answer(path: &str, headers: &HashMap<String, String>, book: &mut Book) -> (&'static str, &'static str, Vec<u8>) {
    let json = "content-type: application/json\r\n";
    match path {
        "/catalogue" => ("200 OK", json, br#"[{"id":1,"name":"bolt"},{"id":2,"name":"nut"}]"#.to_vec()),
        "/picture" => ("200 OK", "", (0..100_000_u32).map(|at| (at * 31 % 251) as u8).collect()),
        "/flaky" => {
            book.flaky += 1;
            if book.flaky < 3 {
                ("503 Busy", "retry-after: 0\r\n", Vec::new())
            } else {
                ("200 OK", json, b"{\"up\":true}".to_vec())
            }
        }
        "/trap" => ("302 Found", "location: http://169.254.169.254/latest/meta-data/\r\n", Vec::new()),
        "/payments" => {
            let known = headers.get("authorization").is_some_and(|value| value.ends_with(TOKEN));
            let Some(key) = headers.get("idempotency-key").filter(|_| known) else { return ("401 Unauthorized", "", Vec::new()) };
            book.payments.entry(key.clone()).or_insert(1);
            ("201 Created", json, format!("{{\"paid\":true,\"for\":\"Bearer {TOKEN}\"}}").into_bytes())
        }
        _ => ("404 Not Found", "", b"no such page".to_vec()),
    }
}
