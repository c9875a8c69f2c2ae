//! `ai.generate` against a stub of a provider that this program starts: an answer with what it cost, a stream, a provider that asks
//! to be left alone first, a model that nobody lists, and vectors.
//!
//!     cargo run --release --example ai_generate
//!
//! Needs nothing else. The worker is this very program, started with `run`; what it prints are the steps' results.

#![expect(clippy::print_stdout, reason = "it is a program that tells a story")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const KEY: &str = "the-key-that-nobody-sees";

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|command| command == "run") {
        return ExitCode::from(endstation::cli::main());
    }
    match story() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ai_generate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = open()?;
    println!("a stub of a provider listens on http://{address}/v1\n");
    let steps = [
        ("an answer", "chat", json!({ "prompt": "What is a bolt?" })),
        ("the same, streamed", "text.generate", json!({ "prompt": "What is a bolt?", "stream": true })),
        ("a provider that is busy at first", "ai.generate", json!({ "prompt": "busy" })),
        ("a model that is not listed", "ai.generate", json!({ "prompt": "x", "model": "huge-1" })),
        ("two vectors", "embedding", json!({ "input": ["a bolt", "a nut"] })),
    ];
    let line = |(number, (_, name, inputs)): (usize, &(&str, &str, Value))| {
        json!({
            "type": name, "inputs": inputs, "retry": { "max_attempts": 3, "backoff_ms": 20 },
            "context": { "tenant_id": "acme", "flow_id": "story", "step_id": format!("s{number}"), "attempt": 1 },
        })
    };
    let file: String = steps.iter().enumerate().map(|step| format!("{}\n", line(step))).collect();
    let path = folder.path().join("steps.ndjson");
    std::fs::write(&path, file)?;
    let told = run(folder.path(), address, &path)?;
    ensure!(told.len() == steps.len(), "{} results for {} steps", told.len(), steps.len());
    for ((what, name, _), result) in steps.iter().zip(&told) {
        println!("{what} ({name})\n  {}", tell(result));
    }
    ensure!(told.iter().all(|result| !result.to_string().contains(KEY)), "the key was told");
    ensure!(told.iter().filter(|result| result["status"] == "OK").count() == 4, "not as it should be: {told:?}");
    println!("\nthe key was seen in none of the results");
    Ok(())
}

/// Runs the file and gives its results in the order of its lines.
fn run(folder: &std::path::Path, address: SocketAddr, file: &std::path::Path) -> Result<Vec<Value>> {
    let output = Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(file)
        .args(["--set", "connectors.llm.tenants=acme", "--set", "connectors.llm.provider=openai"])
        .args(["--set", &format!("connectors.llm.url=http://{address}/v1")])
        .args(["--set", "connectors.llm.bearer=secret://env/LLM_KEY", "--set", "connectors.llm.models=small-1"])
        .args(["--set", "connectors.llm.price_in=0.15", "--set", "connectors.llm.price_out=0.60"])
        .env("LLM_KEY", KEY)
        .env("ENDSTATION__STORAGE__DIR", folder.join("data"))
        .current_dir(folder)
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let read = |line: &str| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"));
    let mut results: Vec<Value> = text.lines().map(read).collect::<Result<_>>()?;
    results.sort_by_key(|result| result["context"]["step_id"].as_str().map(str::to_owned));
    Ok(results)
}

fn tell(result: &Value) -> String {
    let outputs = &result["outputs"];
    if result["status"] == "OK" {
        let said = outputs.get("text").or(outputs.get("embeddings")).unwrap_or(&Value::Null);
        let retries = result["retries_used"].as_u64().unwrap_or(0);
        let streamed = outputs.get("streamed").map(|pieces| format!(", {pieces} pieces")).unwrap_or_default();
        return format!("{said} after {retries} retries, {} {}{streamed}", outputs["cost"], outputs["currency"]);
    }
    let error = &result["error"];
    format!("{} {} {}", error["code"].as_str().unwrap_or("?"), error["message"].as_str().unwrap_or("?"), error["details"])
}

/// Opens the stub on a free port.
fn open() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let busy = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let busy = busy.clone();
            // Whoever hangs up is not waited for.
            std::thread::spawn(move || _ = serve(stream, &busy));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream, busy: &AtomicUsize) -> Result<()> {
    let mut out = stream.try_clone()?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut length, mut known, mut first) = (0, false, String::new());
        if stream.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse()?,
                "authorization" => known = value.ends_with(KEY),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let asked: Value = serde_json::from_slice(&body)?;
        let usage = json!({ "prompt_tokens": 12, "completion_tokens": 6 });
        if asked["stream"] == true {
            write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
            let delta = |word: &str| json!({ "choices": [{ "delta": { "content": word } }] });
            let events = ["A ", "thing ", "with ", "a ", "thread."].map(delta);
            let last = json!({ "choices": [], "usage": usage });
            let texts = events.iter().chain([&last]).map(Value::to_string).chain(["[DONE]".to_owned()]);
            for text in texts {
                let event = format!("data: {text}\n\n");
                write!(out, "{:x}\r\n{event}\r\n", event.len())?;
                std::thread::sleep(Duration::from_millis(5));
            }
            write!(out, "0\r\n\r\n")?;
            continue;
        }
        let busy_now = asked["messages"][0]["content"] == "busy" && busy.fetch_add(1, Ordering::Relaxed) < 2;
        let (status, more, answer) = match () {
            () if !known => ("401 Unauthorized", "", json!({ "error": { "message": format!("not {KEY}") } })),
            () if busy_now => ("429 Busy", "retry-after-ms: 30\r\n", json!({ "error": { "message": "slow down" } })),
            () if first.contains("/embeddings") => {
                let data = json!([{ "index": 0, "embedding": [0.1, 0.2] }, { "index": 1, "embedding": [0.3, 0.4] }]);
                ("200 OK", "", json!({ "data": data, "usage": { "prompt_tokens": 5 } }))
            }
            () => {
                let choice = json!({ "message": { "content": "A thing with a thread." }, "finish_reason": "stop" });
                ("200 OK", "", json!({ "model": "small-1", "choices": [choice], "usage": usage }))
            }
        };
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}");
        write!(out, "{head}content-length: {}\r\n\r\n{answer}", answer.len())?;
    }
}
