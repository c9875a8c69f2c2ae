//! A real browser without a window, driven over WebDriver: Chromium and its driver, which `make deps` installs.

use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::world::PATIENCE;

/// How WebDriver names what it found on a page.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One window. Dies with this value.
#[derive(Debug)]
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its browser ends with it.
        let _ =
            rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.driver), rustix::process::Signal::KILL);
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Starts one.
    pub(crate) async fn start() -> Result<Browser> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut driver = command.spawn().context("chromedriver does not start: `make deps` installs it with chromium")?;
        let said = std::io::BufReader::new(driver.stdout.take().context("its output")?);
        let port = tokio::task::spawn_blocking(move || {
            let mut lines = said.lines().map_while(Result::ok);
            let port = lines.find_map(|line| line.rsplit_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
            // Somebody must read on, or it stands still.
            std::thread::spawn(move || lines.for_each(drop));
            port
        });
        let port = tokio::time::timeout(PATIENCE, port).await??.context("chromedriver names no port")?;
        let mut browser = Browser { driver, port, session: String::new() };
        let args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=900,1000"];
        let options = json!({"browserName": "chrome", "goog:chromeOptions": {"args": args}});
        let session = browser.ask("POST", "/session", &json!({"capabilities": {"alwaysMatch": options}})).await?;
        browser.session = session["sessionId"].as_str().context("a session")?.to_owned();
        Ok(browser)
    }

    /// Goes to a page.
    pub(crate) async fn open(&self, url: &str) -> Result<()> {
        self.say("POST", "url", &json!({ "url": url })).await.map(drop)
    }

    /// The text that is seen of an element.
    pub(crate) async fn text(&self, selector: &str) -> Result<String> {
        let element = self.find(selector).await?;
        let text = self.say("GET", &format!("element/{element}/text"), &Value::Null).await?;
        Ok(text.as_str().context("a text")?.to_owned())
    }

    /// Waits until an element shows a text: a click is answered before the page that it leads to is there.
    pub(crate) async fn shows(&self, selector: &str, text: &str) -> Result<()> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let seen = self.text(selector).await;
            match seen {
                Ok(seen) if seen.contains(text) => return Ok(()),
                seen if tokio::time::Instant::now() > end => bail!("no {text:?} in {selector}: {seen:?}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Clicks an element.
    pub(crate) async fn click(&self, selector: &str) -> Result<()> {
        let element = self.find(selector).await?;
        self.say("POST", &format!("element/{element}/click"), &json!({})).await.map(drop)
    }

    /// Types into an element.
    pub(crate) async fn write(&self, selector: &str, text: &str) -> Result<()> {
        let element = self.find(selector).await?;
        self.say("POST", &format!("element/{element}/value"), &json!({ "text": text })).await.map(drop)
    }

    /// How many elements a page has of a kind.
    pub(crate) async fn count(&self, selector: &str) -> Result<usize> {
        let found = self.say("POST", "elements", &json!({"using": "css selector", "value": selector})).await?;
        Ok(found.as_array().map_or(0, Vec::len))
    }

    /// What is seen, as PNG.
    pub(crate) async fn picture(&self) -> Result<Vec<u8>> {
        let picture = self.say("GET", "screenshot", &Value::Null).await?;
        Ok(BASE64.decode(picture.as_str().context("a picture")?)?)
    }

    async fn find(&self, selector: &str) -> Result<String> {
        let found = self.say("POST", "element", &json!({"using": "css selector", "value": selector})).await?;
        Ok(found[ELEMENT].as_str().with_context(|| format!("no {selector} on the page"))?.to_owned())
    }

    async fn say(&self, method: &str, what: &str, body: &Value) -> Result<Value> {
        self.ask(method, &format!("/session/{}/{what}", self.session), body).await
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let answer = tokio::time::timeout(PATIENCE, async {
            let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await?);
            stream.write_all(request.as_bytes()).await?;
            // It may keep the connection, whatever it is asked.
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 || line.trim().is_empty() {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse()?;
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            Ok::<_, anyhow::Error>((head, body))
        });
        let (head, body) = answer.await.with_context(|| format!("the browser hangs at {method} {path}"))??;
        let value: Value = serde_json::from_slice::<Value>(&body)?["value"].take();
        ensure!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {value}");
        Ok(value)
    }
}
