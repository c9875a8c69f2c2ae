//! A stub of a provider with OpenAI's interface: it does what the first word of a prompt says, and keeps count of what it was
//! asked and of who hung up on it.
//!
//! `busy` asks once to be left alone for a second, `refuse` and `echo` say what they were sent, `silent` hears and says
//! nothing, `held` does so once, `drip` streams until somebody hangs up; any other word is answered at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// The words of every answer.
pub(crate) const WORDS: [&str; 5] = ["A ", "thing ", "with ", "a ", "thread."];
/// Between two pieces of a stream.
const PACE: Duration = Duration::from_millis(10);
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(3_600);

/// What is known of one prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When each request that held it had come whole.
    pub(crate) asked: Vec<Instant>,
    /// Requests whose connection went before their answer's end.
    pub(crate) hung_up: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Provider {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    book: Arc<Mutex<HashMap<String, Seen>>>,
}

impl Provider {
    /// Opens it on a free port.
    pub(crate) async fn open() -> Result<Provider> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let book: Arc<Mutex<HashMap<String, Seen>>> = Arc::default();
        let kept = book.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let book = kept.clone();
                tokio::spawn(async move {
                    // Whoever goes away between two requests has asked for nothing.
                    let _ = serve(stream, &book).await;
                });
            }
        });
        Ok(Provider { address, book })
    }

    /// What is known of a prompt.
    pub(crate) fn seen(&self, prompt: &str) -> Seen {
        self.book.lock().expect("no panic holds it").get(prompt).cloned().unwrap_or_default()
    }

    /// How often it was asked that.
    pub(crate) fn asked(&self, prompt: &str) -> usize {
        self.seen(prompt).asked.len()
    }
}

async fn serve(stream: TcpStream, book: &Mutex<HashMap<String, Seen>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length, mut line) = (String::new(), 0, String::new());
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        while !line.trim().is_empty() {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
            head.push_str(&line);
            line.clear();
            stream.read_line(&mut line).await?;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let asked: Value = serde_json::from_slice(&body)?;
        let prompt = asked["messages"][0]["content"].as_str().context("a prompt")?.to_owned();
        let times = {
            let mut book = book.lock().expect("no panic holds it");
            let seen = book.entry(prompt.clone()).or_default();
            seen.asked.push(Instant::now());
            seen.asked.len()
        };
        if answer(&mut stream, &prompt, times, asked["stream"] == true, &head).await.is_err() {
            book.lock().expect("no panic holds it").entry(prompt).or_default().hung_up += 1;
            return Ok(());
        }
    }
}

/// An error: whoever asked has gone.
async fn answer(stream: &mut BufReader<TcpStream>, prompt: &str, times: usize, streamed: bool, head: &str) -> Result<()> {
    let word = prompt.split(' ').next().unwrap_or_default();
    let usage = json!({"prompt_tokens": 12, "completion_tokens": 6});
    let said = if word == "echo" { head.to_owned() } else { WORDS.concat() };
    let choice = json!({"message": {"content": said}, "finish_reason": "stop"});
    let whole = json!({"id": "c-1", "model": "small-1", "choices": [choice], "usage": usage});
    match word {
        "silent" => wait(stream, FOR_EVER).await,
        "held" if times == 1 => wait(stream, FOR_EVER).await,
        "busy" if times == 1 => say(stream, "429 Busy", "retry-after: 1\r\n", &json!({"error": {"message": "slow down"}})).await,
        "refuse" => say(stream, "400 No", "", &json!({"error": {"message": head, "type": "no", "code": "never"}})).await,
        _ if streamed => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            let pieces = if word == "drip" { usize::MAX } else { WORDS.len() };
            for piece in WORDS.iter().cycle().take(pieces) {
                let delta = json!({"id": "c-1", "model": "small-1", "choices": [{"delta": {"content": piece}}]});
                event(stream, &delta.to_string()).await?;
                wait(stream, PACE).await?;
            }
            event(stream, &json!({"choices": [], "usage": usage}).to_string()).await?;
            event(stream, "[DONE]").await?;
            Ok(stream.write_all(b"0\r\n\r\n").await?)
        }
        _ => say(stream, "200 OK", "", &whole).await,
    }
}

/// Waits; an error where the other side goes meanwhile.
async fn wait(stream: &mut BufReader<TcpStream>, time: Duration) -> Result<()> {
    tokio::select! {
        gone = stream.fill_buf() => {
            anyhow::ensure!(!gone?.is_empty(), "hung up");
            Ok(())
        }
        () = sleep(time) => Ok(()),
    }
}

async fn say(stream: &mut BufReader<TcpStream>, status: &str, more: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n", body.len());
    Ok(stream.write_all(format!("{head}{body}").as_bytes()).await?)
}

async fn event(stream: &mut BufReader<TcpStream>, data: &str) -> Result<()> {
    let event = format!("data: {data}\n\n");
    Ok(stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?)
}
