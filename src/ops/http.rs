//! Health, readiness, build, state and metrics over HTTP/1.1, on a small thread of its own.
//!
//! It only reads, but for the approval page where that is shown, so a slow or hostile client costs nothing but this thread:
//! connections are bounded, each answers within a deadline. The keeper lives here, because somebody has to listen to the shards even when nobody asks.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use shards::outcome::Code;
use shards::runtime::keeper::Keeper;
use shards::runtime::ports::Gauge;
use shards::tally::Tally;
use tokio::sync::{Semaphore, oneshot};

use super::health::{Checks, Report};
use super::metrics::{self, STATUSES, View};
use super::page::{self, Links};
use super::people::People;
use super::process::Usage;
use super::{EdgeFigures, logs};
use crate::blocks::CacheCounts;
use crate::dlq::DlqStatus;
use crate::edge::status::EdgeStatus;
use crate::policy::databases::Database;

/// How long the address is asked for: a killed predecessor's socket closes late.
const BIND_PATIENCE: Duration = Duration::from_secs(2);
/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// A connection that sends no request for this long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// How often the shards' envelopes are taken in.
const LISTEN_EVERY: Duration = Duration::from_millis(100);

/// Everything there is to show. Crosses to the thread once.
pub struct Sources {
    /// This worker.
    pub worker_id: String,
    /// Names of the blocks, in the order of the block table.
    pub blocks: Vec<String>,
    /// One a shard.
    pub gauges: Vec<Arc<Gauge>>,
    /// The newest tallies.
    pub keeper: Keeper,
    /// What health and readiness mean.
    pub checks: Checks,
    /// The edge, where there is one.
    pub edge: Option<Arc<EdgeStatus>>,
    /// The store of dead letters, where there is one.
    pub dlq: Option<Arc<DlqStatus>>,
    /// What came of looking for kept outputs.
    pub cache: Arc<CacheCounts>,
    /// The databases that steps may ask.
    pub databases: Vec<Arc<Database>>,
    /// The approval page, where it is shown.
    pub page: Option<ApprovalPage>,
}

/// The approval page's links, and whom it asks. Crosses to the thread once.
#[derive(Clone)]
pub struct ApprovalPage {
    /// Who may decide what.
    pub links: Links,
    /// The steps.
    pub people: People,
}

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub struct OpsHandle {
    /// Where it listens: the port is real where 0 was asked for.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl OpsHandle {
    /// Ends it and waits for that.
    pub fn stop(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds `bind`, for up to two seconds, and serves until the handle goes.
///
/// # Errors
/// The address cannot be had, or the thread cannot be started.
pub fn spawn(bind: SocketAddr, sources: Sources) -> io::Result<OpsHandle> {
    let listener = patient_bind(bind)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let thread = std::thread::Builder::new().name("ops".to_owned()).spawn(move || {
        let desk = Rc::new(Desk { started: Instant::now(), sources: RefCell::new(sources) });
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            tokio::select! {
                done = serve(listener, desk) => if let Err(error) = done {
                    tracing::error!(error = &error as &dyn std::error::Error, "health and metrics are no longer served");
                },
                _ = stopped => {}
            }
        });
    })?;
    Ok(OpsHandle { address, stop: Some(stop), thread: Some(thread) })
}

/// Binds, for up to two seconds: a killed predecessor's socket closes late.
pub(crate) fn patient_bind(bind: SocketAddr) -> io::Result<TcpListener> {
    let start = Instant::now();
    loop {
        match TcpListener::bind(bind) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < BIND_PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            bound => return bound,
        }
    }
}

async fn serve(listener: TcpListener, desk: Rc<Desk>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut listen = tokio::time::interval(LISTEN_EVERY);
    listen.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let hearing = Rc::clone(&desk);
    tokio::task::spawn_local(async move {
        loop {
            listen.tick().await;
            hearing.sources.borrow_mut().keeper.tallies();
        }
    });
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the client went away: neither is a reason to stop.
                tracing::warn!(error = &error as &dyn std::error::Error, "a connection to the ops port was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let desk = Rc::clone(&desk);
        tokio::task::spawn_local(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let desk = Rc::clone(&desk);
                async move {
                    let shown = desk.sources.borrow().page.clone();
                    let response = match (shown, request.uri().path().strip_prefix(page::PATH)) {
                        (Some(shown), Some(token)) => {
                            let token = token.to_owned();
                            approval(shown, token, request).await
                        }
                        _ => desk.answer(request.method(), request.uri().path()),
                    };
                    Ok::<_, Infallible>(response)
                }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(16 << 10);
            // A client that breaks off is its own business.
            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            drop(place);
        });
    }
}

/// Answers requests. Lives on the ops thread.
struct Desk {
    started: Instant,
    sources: RefCell<Sources>,
}

impl Desk {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let known = matches!(path, "/_health" | "/_readyz" | "/readyz" | "/livez" | "/_build" | "/_state" | "/metrics");
        if !known {
            return json_response(StatusCode::NOT_FOUND, &json!({"error": "not found", "path": path}));
        }
        if *method != Method::GET && *method != Method::HEAD {
            let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "method not allowed"}));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let sources = &mut *self.sources.borrow_mut();
        let report = sources.checks.look();
        let status = |well: bool| if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        match path {
            "/_health" => json_response(status(report.healthy()), &report.health()),
            "/_readyz" | "/readyz" => json_response(status(report.ready()), &report.readiness()),
            "/livez" => json_response(StatusCode::OK, &json!({"status": "alive"})),
            "/_build" => json_response(StatusCode::OK, &build()),
            "/_state" => json_response(StatusCode::OK, &sources.state(self.started, &report)),
            _ => {
                let text = sources.metrics(&report);
                response(StatusCode::OK, prometheus::TEXT_FORMAT, text.into())
            }
        }
    }
}

/// The approval page. Shards are asked on a thread that may wait.
async fn approval(shown: ApprovalPage, token: String, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let form = match *request.method() {
        Method::GET | Method::HEAD => None,
        Method::POST => match Limited::new(request.into_body(), page::FORM_BYTES_MAX).collect().await {
            Ok(body) => Some(body.to_bytes()),
            Err(_) => return json_response(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error": "the form is too large"})),
        },
        _ => {
            let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "method not allowed"}));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            return response;
        }
    };
    let now_ms = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    let asked = tokio::task::spawn_blocking(move || page::answer(&shown.links, &shown.people, &token, form.as_deref(), now_ms));
    let Ok(shown) = asked.await else {
        return json_response(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": "the page failed"}));
    };
    let status = StatusCode::from_u16(shown.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = response(status, "text/html; charset=utf-8", shown.html.into());
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, page::CONTENT_POLICY),
        // The link is the right to decide: it goes nowhere else.
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Sources {
    fn metrics(&mut self, report: &Report) -> String {
        metrics::render(&View {
            blocks: &self.blocks,
            tallies: self.keeper.tallies(),
            gauges: &self.gauges,
            checks: &report.holds(),
            edge: self.edge.as_deref().map(EdgeFigures::of),
            dlq: self.dlq.as_deref(),
            cache: &self.cache,
            databases: &self.databases,
            usage: Usage::now(),
        })
    }

    fn state(&mut self, started: Instant, report: &Report) -> Value {
        let usage = Usage::now();
        let tallies = self.keeper.tallies();
        let shards = self.gauges.iter().enumerate().map(|(shard, gauge)| {
            json!({
                "shard": shard,
                "ready": gauge.ready.load(Relaxed),
                "idle": gauge.idle.load(Relaxed),
                "disk_full": gauge.disk_full.load(Relaxed),
                "over_budget": gauge.over_budget.load(Relaxed),
                "reserve_bytes": gauge.reserve_bytes.load(Relaxed),
                "free": gauge.free.load(Relaxed),
                "queued": gauge.queued.load(Relaxed),
                "running": gauge.running.load(Relaxed),
                "unpublished": gauge.unpublished.load(Relaxed),
                "turns": gauge.turns.load(Relaxed),
                "tally": tallies.get(shard).map(|tally| tally_json(tally, &self.blocks)),
            })
        });
        json!({
            "worker_id": self.worker_id,
            "timestamp": logs::stamp(jiff::Timestamp::now()),
            "uptime_s": started.elapsed().as_secs(),
            "healthy": report.healthy(),
            "ready": report.ready(),
            "process": {"cpu_ms": usage.cpu_us / 1000, "memory_bytes": usage.memory_bytes},
            "edge": self.edge.as_deref().map(EdgeFigures::of),
            "shards": shards.collect::<Vec<_>>(),
        })
    }
}

fn tally_json(tally: &Tally, blocks: &[String]) -> Value {
    let of_block = |name: &String, counts: &[u64; 4]| {
        let counts = STATUSES.iter().zip(counts).map(|(status, count)| ((*status).to_owned(), Value::from(*count)));
        (name.clone(), Value::Object(counts.collect()))
    };
    let per_block = blocks.iter().zip(&tally.blocks).map(|(name, block)| of_block(name, &block.by_status));
    let faults = Code::ALL.iter().zip(&tally.faults).filter(|(_, count)| **count > 0);
    json!({
        "blocks": per_block.collect::<serde_json::Map<_, _>>(),
        "faults": faults.map(|(code, count)| (code.as_str().to_owned(), Value::from(*count))).collect::<serde_json::Map<_, _>>(),
        "accepted": tally.accepted,
        "started": tally.started,
        "retried": tally.retried,
        "duplicates": tally.duplicates,
        "handed_back": tally.handed_back,
        "refused": tally.refused,
        "quarantined": tally.quarantined,
        "conflicts": tally.conflicts,
        "superseded": tally.superseded,
        "carried": tally.carried,
        "stale": tally.stale,
        "panics": tally.panics,
        "dead_letters": tally.dead_letters,
        "keys": tally.keys,
        "fsyncs": tally.fsyncs,
        "journal_bytes": tally.journal_bytes,
        "journal_frames": tally.journal_frames,
        "posted": tally.posted,
    })
}

/// What this binary is made of.
pub fn build() -> Value {
    json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "rustc": env!("ENDSTATION_RUSTC"),
        "profile": env!("ENDSTATION_PROFILE"),
        "target": env!("ENDSTATION_TARGET"),
    })
}

fn json_response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    response(status, "application/json", body.to_string().into())
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::envelope::Envelope;
    use shards::outcome::Status;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn ask(address: SocketAddr, request: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status = text.split(' ').nth(1).unwrap_or_default().parse()?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    }

    #[test]
    fn every_page_answers_as_the_platform_expects() -> anyhow::Result<()> {
        let (envelopes, inbox) = flume::bounded(4);
        let gauges = vec![Arc::new(Gauge::default())];
        let sources = Sources {
            worker_id: "w-1".to_owned(),
            blocks: vec!["echo".to_owned()],
            gauges: gauges.clone(),
            keeper: Keeper::new(inbox, 1),
            checks: Checks::of_shards(&gauges),
            edge: None,
            dlq: None,
            cache: Arc::default(),
            databases: Vec::new(),
            page: None,
        };
        let handle = spawn("127.0.0.1:0".parse()?, sources)?;
        let address = handle.address;
        let page = |request: &str| -> anyhow::Result<(u16, Value)> {
            let (status, body) = ask(address, request)?;
            Ok((status, serde_json::from_str(&body)?))
        };

        let (status, health) = page("GET /_health")?;
        assert_eq!((status, &health["status"]), (503, &json!("unhealthy")), "{health}");
        assert_eq!(page("GET /readyz")?.0, 503);
        gauges[0].ready.store(true, Relaxed);
        let (status, health) = page("GET /_health?probe=1")?;
        assert_eq!((status, &health["status"]), (200, &json!("healthy")), "{health}");
        assert_eq!(health["timestamp"].as_str().map(str::len), Some(27));
        assert_eq!(health["checks"]["shards"], json!({"status": "ok", "message": "1 of 1 ready"}));
        assert_eq!(page("GET /_readyz")?.0, 200);
        assert_eq!(page("GET /livez")?.0, 200);
        assert_eq!(page("GET /_build")?.1["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(page("GET /nothing")?.0, 404);
        assert_eq!(page("POST /_health")?.0, 405);
        assert_eq!(ask(address, "HEAD /_health")?, (200, String::new()));

        let mut tally = Tally::new(1);
        tally.outcome(0, Status::Ok, None, 5);
        envelopes.send(Envelope::Tally { shard: 0, tally: Box::new(tally) })?;
        let (_, state) = page("GET /_state")?;
        assert_eq!(state["shards"][0]["tally"]["blocks"]["echo"]["success"], 1, "{state}");
        let (_, text) = ask(address, "GET /metrics")?;
        assert!(text.contains(r#"worker_tasks_total{block_type="echo",status="success"} 1"#), "{text}");
        handle.stop();
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
        Ok(())
    }
}
