//! A place on the network that a worker's HTTP steps reach: it does what it is asked, once for each `Idempotency-Key` where one
//! comes, and keeps a ledger of what it did.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// How it was asked for.
    pub(crate) method: String,
    /// For what.
    pub(crate) path: String,
    /// The body that came along.
    pub(crate) body: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Place {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    done: Vec<Done>,
    /// By key: which it was.
    keys: HashMap<String, usize>,
    asked: u64,
}

impl Place {
    /// Opens it on a free port.
    pub(crate) async fn open() -> Result<Place> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let book = Arc::new(Mutex::new(Book::default()));
        let kept = book.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let book = kept.clone();
                tokio::spawn(async move {
                    // Whoever goes away in the middle of a request has not asked.
                    let _ = serve(stream, &book).await;
                });
            }
        });
        Ok(Place { address, book })
    }

    /// What was done, in order.
    pub(crate) fn done(&self) -> Vec<Done> {
        self.book.lock().expect("no panic holds it").done.clone()
    }

    /// How often it was asked, repeats included.
    pub(crate) fn asked(&self) -> u64 {
        self.book.lock().expect("no panic holds it").asked
    }
}

async fn serve(stream: TcpStream, book: &Mutex<Book>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first).await? == 0 {
            return Ok(());
        }
        let (mut length, mut key) = (0, None);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse()?,
                "idempotency-key" => key = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let number = {
            let mut book = book.lock().expect("no panic holds it");
            book.asked += 1;
            let next = book.done.len();
            let number = key.map_or(next, |key| *book.keys.entry(key).or_insert(next));
            if number == next {
                book.done.push(Done { method, path, body: String::from_utf8_lossy(&body).into_owned() });
            }
            number
        };
        let answer = format!("{{\"done\":{number}}}");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(format!("{head}{answer}").as_bytes()).await?;
    }
}
