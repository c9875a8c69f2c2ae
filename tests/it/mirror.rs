//! A server that says back whatever it was sent: in a body, a header, an error's text, as a model's answer, in the words of an
//! object store. And a proxy that takes those to it who say who they are. What it was sent it keeps, so that a test can tell
//! that it was.
//!
//! A path says what is wanted by its words: `no` and `unwell` are statuses, `events` a stream, `cut` an end too early,
//! `escaped` a writer of JSON that escapes every character.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// See the module.
#[derive(Debug)]
pub(crate) struct Mirror {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    /// Opens it on a free port.
    pub(crate) async fn open() -> Result<Mirror> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = heads.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let heads = kept.clone();
                tokio::spawn(async move {
                    // Whoever goes away has heard enough.
                    let _ = serve(stream, &heads).await;
                });
            }
        });
        Ok(Mirror { address, heads })
    }

    /// Whether a request's head had this in it.
    pub(crate) fn was_sent(&self, text: &str) -> bool {
        self.heads.lock().expect("no panic holds it").iter().any(|head| head.contains(text))
    }
}

async fn serve(stream: TcpStream, heads: &Mutex<Vec<String>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let begin = head.len();
            if stream.read_until(b'\n', &mut head).await? == 0 {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&head[begin..]).to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        heads.lock().expect("no panic holds it").push(head.clone());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if head.starts_with("CONNECT ") {
            return tunnel(stream, &path, &head).await;
        }
        let (status, kind, said) = answer(&path, &head, &String::from_utf8_lossy(&body));
        let length = said.len() + if path.contains("cut") { 100 } else { 0 };
        let echo = head.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| {
            ["authorization", "x-api-key", "x-amz-security-token"].contains(&name.to_ascii_lowercase().as_str())
        });
        let echo = echo.map_or_else(String::new, |(_, value)| format!("x-echo: {}\r\n", value.trim()));
        let lines = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{echo}content-length: {length}\r\n\r\n");
        // An answer to HEAD has no body.
        let said = if head.starts_with("HEAD ") { "" } else { &said };
        stream.write_all(lines.as_bytes()).await?;
        stream.write_all(said.as_bytes()).await?;
        if path.contains("cut") {
            return Ok(());
        }
    }
}

fn answer(path: &str, head: &str, body: &str) -> (&'static str, &'static str, String) {
    let fails = body.contains("fail");
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 1, "input_tokens": 1, "output_tokens": 1});
    let refused = |head: &str| json!({"error": {"message": head, "type": head, "code": head}}).to_string();
    match path {
        _ if path.starts_with("/vault") => {
            let said = head.replace('&', "&amp;").replace('<', "&lt;");
            let error = format!("<Error><Code>InvalidAccessKeyId</Code><Message>{said}</Message></Error>");
            ("403 Forbidden", "application/xml", format!("<?xml version=\"1.0\"?>{error}"))
        }
        _ if path.ends_with("/completions") || path.ends_with("/messages") => {
            let choice = json!({"message": {"content": head}, "finish_reason": "stop"});
            let parts = json!([{"type": "text", "text": head}]);
            let whole = json!({
                "model": head, "id": head, "choices": [choice], "content": parts, "stop_reason": "end_turn", "usage": usage,
            });
            if fails { ("401 No", "application/json", refused(head)) } else { ("200 OK", "application/json", whole.to_string()) }
        }
        _ if path.contains("no") => ("403 Forbidden", "application/json", refused(head)),
        _ if path.contains("unwell") => ("500 Unwell", "text/plain", head.to_owned()),
        _ if path.contains("events") => {
            let lines: String = head.lines().map(|line| format!("data: {line}\n")).collect();
            ("200 OK", "text/event-stream", format!("{lines}\ndata: {}\n\n", Value::from(head)))
        }
        _ if path.contains("escaped") => {
            let escaped: String = head.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            ("200 OK", "application/json", format!("{{\"heard\":\"{escaped}\"}}"))
        }
        _ if path.contains("json") => ("200 OK", "application/json", json!({"heard": head}).to_string()),
        _ => ("200 OK", "text/plain", head.to_owned()),
    }
}

/// To where the head asks for, if somebody listens there.
async fn tunnel(mut stream: BufReader<TcpStream>, to: &str, head: &str) -> Result<()> {
    match TcpStream::connect(to).await {
        Ok(mut other) => {
            stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
            copy_bidirectional(&mut stream, &mut other).await?;
        }
        Err(_) => {
            let said = format!("HTTP/1.1 502 {}\r\ncontent-length: {}\r\n\r\n{head}", head.replace("\r\n", " "), head.len());
            stream.write_all(said.as_bytes()).await?;
        }
    }
    Ok(())
}
