//! Servers that mean harm, or do not know better: a table of what they do, and of what a step must say of it.
//!
//! Every row is a [`Row`]: a server's script, the inputs of a step, and the outcomes that are right. [`Field::play`] runs it as
//! it stands and again as a POST, and after each asks that nothing panicked, that the try ended in its time, that the fault is
//! one of the fixed sentences, and that neither this server nor another is any the worse for it. What is wrong with the rows of
//! a table is told all at once, at its end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_rustls::rustls::ServerConfig;
use futures_util::future::{Either, join_all, select};
use shards::runtime::rt::{self, caught, panic_text};

use super::*;

mod bodies;
mod contents;
mod frames;
mod handshakes;
mod heads;
mod honest;
mod scenes;
mod secure;
mod streams;

use secure::{Secure, Tls};

/// What a server does wrong, for the count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Head,
    Status,
    Field,
    Length,
    Chunk,
    Interim,
    Order,
    Cut,
    Body,
    Encoding,
    Media,
    Redirect,
    RetryAfter,
    Cookie,
    Tls,
    H2,
}

/// What is right for a step to say.
#[derive(Debug)]
enum Wanted {
    /// These outputs, as far as they are named; null: none of that name.
    Done(Value),
    /// This code, and these words in its details.
    Fault(Code, &'static str),
}

/// What the server speaks under.
enum Over {
    /// Nothing.
    Plain,
    /// TLS.
    Tls(Arc<ServerConfig>),
    /// Nothing, where the step expects TLS.
    Bare,
    /// TLS, where the step expects none.
    Hidden(Arc<ServerConfig>),
}

/// One misbehaviour.
struct Row {
    kind: Kind,
    name: String,
    /// One for each connection; further ones get the last.
    scripts: Vec<Vec<Act>>,
    over: Over,
    /// All but the URL.
    inputs: Value,
    /// Any of these is right.
    wanted: Vec<Wanted>,
    /// What a POST may say of its effect; empty: it is not tried as one.
    post: Vec<Effected>,
    retry_after_ms: Option<Option<u64>>,
    /// The longest that one try may take.
    ms: u64,
    /// Nothing else runs beside it.
    alone: bool,
    /// The connection that comes next is an honest one, so that the next request must be served by it.
    again: bool,
    /// What the server has time for before that.
    pause_ms: u64,
}

/// A connection that is served as it should be, once.
fn honest() -> Vec<Act> {
    vec![Act::Hear, Act::Echo]
}

/// A server that does this with its first connection, and serves what comes after.
fn row(kind: Kind, name: impl Into<String>, script: Vec<Act>) -> Row {
    Row {
        kind,
        name: name.into(),
        scripts: vec![script, honest()],
        over: Over::Plain,
        inputs: json!({}),
        wanted: Vec::new(),
        post: Vec::new(),
        retry_after_ms: None,
        ms: 2_500,
        alone: false,
        again: true,
        pause_ms: 0,
    }
}

/// For rows in which a wait is what ends it.
fn brief() -> Value {
    json!({ "connect_ms": 200, "first_byte_ms": 200, "stall_ms": 200 })
}

/// A server that hears a request, says this, and closes.
fn says(kind: Kind, name: impl Into<String>, answer: impl AsRef<[u8]>) -> Row {
    row(kind, name, vec![Act::Hear, Act::say(answer)])
}

impl Row {
    /// With these inputs.
    fn with(mut self, inputs: Value) -> Row {
        self.inputs = inputs;
        self
    }

    fn done(mut self, outputs: Value) -> Row {
        self.wanted.push(Wanted::Done(outputs));
        self
    }

    fn fault(mut self, code: Code, words: &'static str) -> Row {
        self.wanted.push(Wanted::Fault(code, words));
        self
    }

    /// The exchange broke.
    fn broken(self, words: &'static str) -> Row {
        self.fault(Code::NetworkError, words).post(Effected::Unknown)
    }

    /// And a POST says this of its effect.
    fn post(mut self, effect: Effected) -> Row {
        self.post.push(effect);
        self
    }

    fn retry_after(mut self, ms: Option<u64>) -> Row {
        self.retry_after_ms = Some(ms);
        self
    }

    fn alone(mut self) -> Row {
        self.alone = true;
        self
    }

    /// Nothing is asked of this server again.
    fn once(mut self) -> Row {
        self.again = false;
        self
    }

    fn pause(mut self, ms: u64) -> Row {
        self.pause_ms = ms;
        self
    }

    fn over(mut self, over: Over) -> Row {
        self.over = over;
        self
    }

    /// With these connections, and honest ones after them.
    fn scripts(mut self, scripts: Vec<Vec<Act>>) -> Row {
        self.scripts = scripts;
        self.scripts.push(honest());
        self
    }

    fn serve(&self) -> Server {
        let scripts = self.scripts.clone();
        let under = |config: &Arc<ServerConfig>| {
            let config = config.clone();
            move |stream| Secure::accept(&config, stream)
        };
        match &self.over {
            Over::Plain => Server::start(scripts),
            Over::Bare => Server::within("https", scripts, Some),
            Over::Tls(config) => Server::within("https", scripts, under(config)),
            Over::Hidden(config) => Server::within("http", scripts, under(config)),
        }
    }
}

/// All sentences that a fault may have; no word of a server's is among them.
const SENTENCES: [&str; 16] = [
    "A policy of this worker forbids it.",
    "The answer is larger than the step takes.",
    "The answer stopped coming.",
    "The answer's body is not what the step takes it for.",
    "The answer's encoding does not hold.",
    "The exchange broke off.",
    "The exchange took longer than one try may.",
    "The host answered with a server error.",
    "The host asks to be left alone for now.",
    "The host could not be spoken to under TLS.",
    "The host redirects further than the step allows.",
    "The host takes no connection.",
    "The host took too long to answer.",
    "The host took too long to take the connection.",
    "The host's answer is not what the step expects.",
    "The host's certificate does not hold.",
];

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the panics of each thread from now on, those that are caught too.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
}

/// Where the rows are played: one shard, one way out, one tenant.
struct Field {
    blobs: Rc<LocalBlobs>,
    /// Open to this machine; `ca` trusts the tests' authority, `mutual` shows a certificate of it too.
    open: Reach,
    /// Open to one address alone, through `lab`.
    shut: Reach,
    tls: Tls,
    honest: Server,
    asked: Cell<usize>,
    /// Panics of steps, of which somebody complained.
    panics: Cell<usize>,
    /// The longest that the shard has kept another task waiting.
    gap: Rc<Cell<Duration>>,
    wrong: RefCell<Vec<String>>,
    servers: RefCell<Vec<(String, Server)>>,
}

/// What this thread has computed so far: a machine that is busy with other things keeps no shard longer.
fn spent() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Field {
    fn new(blobs: Rc<LocalBlobs>, root: &std::path::Path) -> Field {
        count_panics();
        let tls = Tls::new(root);
        let connector = |tls: crate::net::tls::TlsFiles, allow: &str| ConnectorSettings {
            tenants: None,
            url: None,
            allow: vec![crate::net::egress::Allow::parse(allow).expect("a network")],
            auth: Auth::None,
            idempotency_key: false,
            provider: None,
            tls,
            direct: true,
        };
        let mut settings = PolicySettings::default();
        settings.connectors.insert("ca".to_owned(), connector(tls.trusting(), "127.0.0.0/8"));
        settings.connectors.insert("mutual".to_owned(), connector(tls.showing(), "127.0.0.0/8"));
        let open = reach(Policy::new(settings, true).expect("the files are there"));
        let mut settings = PolicySettings::default();
        settings.connectors.insert("lab".to_owned(), connector(Default::default(), "127.0.0.1/32"));
        let shut = reach(Policy::new(settings, false).expect("nothing to read"));
        let honest = Server::start(vec![std::iter::repeat_n(honest(), 40).flatten().collect()]);
        let gap = Rc::new(Cell::new(Duration::ZERO));
        let (told, ticks) = (Rc::downgrade(&gap), Duration::from_millis(5));
        rt::spawn("a clock that ticks beside", async move {
            loop {
                let begun = spent();
                rt::sleep(ticks).await;
                let Some(gap) = told.upgrade() else { return };
                gap.set(gap.get().max(spent().saturating_sub(begun)));
            }
        });
        Field {
            blobs,
            open,
            shut,
            tls,
            honest,
            asked: Cell::default(),
            panics: Cell::default(),
            gap,
            wrong: RefCell::default(),
            servers: RefCell::default(),
        }
    }

    fn complain(&self, name: &str, what: impl std::fmt::Display) {
        self.wrong.borrow_mut().push(format!("{name}: {what}"));
    }

    /// One step, within `ms`: its result, or why there is none.
    async fn try_once(&self, inputs: Value, ms: u64) -> Result<Result<Value, Fault>, String> {
        let reach = if inputs["connector"] == "lab" { &self.shut } else { &self.open };
        let begun = Instant::now();
        let work = pin!(caught(ask(reach, &self.blobs, inputs)));
        let result = match select(work, pin!(rt::sleep(Duration::from_millis(3 * ms)))).await {
            Either::Left((Ok(result), _)) => result,
            Either::Left((Err(panic), _)) => {
                self.panics.set(self.panics.get() + 1);
                return Err(format!("panicked: {}", panic_text(panic.as_ref())));
            }
            Either::Right(_) => return Err("does not end".to_owned()),
        };
        match begun.elapsed().as_millis() as u64 {
            took if took > ms => Err(format!("took {took} ms of {ms}")),
            _ => Ok(result),
        }
    }

    /// A server that is as it should be answers as it should.
    async fn ask_honest(&self, name: &str, url: &str, path: &str, connector: &Value) {
        let mut inputs = json!({ "url": url });
        if !connector.is_null() {
            inputs["connector"] = connector.clone();
        }
        match self.try_once(inputs, 2_500).await {
            Ok(Ok(outputs)) if outputs["text"] == path => {}
            other => self.complain(name, format_args!("and then {url}: {other:?}")),
        }
    }

    async fn play_once(&self, row: &Row, as_post: bool) {
        let name = format!("{:?}: {}{}", row.kind, row.name, if as_post { ", as a POST" } else { "" });
        let server = row.serve();
        let mut inputs = json!({ "connect_ms": 1_500, "first_byte_ms": 1_500, "stall_ms": 1_500 });
        let own = row.inputs.as_object().cloned().unwrap_or_default();
        inputs.as_object_mut().expect("an object").extend(own);
        inputs["url"] = json!(server.url("/first"));
        if as_post {
            inputs["method"] = json!("POST");
            if inputs.get("text").is_none() {
                inputs["text"] = json!("x");
            }
        }
        match self.try_once(inputs, row.ms).await {
            Err(why) => self.complain(&name, why),
            Ok(result) => {
                if !row.wanted.iter().any(|wanted| fits(wanted, &result)) {
                    self.complain(&name, format_args!("{:?} is wanted and not {}", row.wanted, shown(&result)));
                }
                if let Err(fault) = &result {
                    self.look_at(&name, row, fault, as_post);
                }
            }
        }
        let path = format!("/honest/{}", self.asked.replace(self.asked.get() + 1));
        self.ask_honest(&name, &self.honest.url(&path), &path, &Value::Null).await;
        if row.again {
            rt::sleep(Duration::from_millis(row.pause_ms)).await;
            self.ask_honest(&name, &server.url("/again"), "/again", &row.inputs["connector"]).await;
        }
        self.servers.borrow_mut().push((name, server));
    }

    /// What holds for every fault.
    fn look_at(&self, name: &str, row: &Row, fault: &Fault, as_post: bool) {
        if !SENTENCES.contains(&&*fault.message) || fault.message.contains(|c: char| c.is_ascii_digit()) {
            self.complain(name, format_args!("says {:?}", fault.message));
        }
        if !serde_json::from_slice::<Value>(&fault.details).is_ok_and(|details| details.is_object()) {
            self.complain(name, format_args!("details are {:?}", fault.details));
        }
        let is_safe =
            !as_post && row.inputs.get("method").is_none_or(|method| method == "HEAD") && row.inputs.get("text").is_none();
        let effects = if is_safe { &[Effected::None][..] } else { &row.post };
        if !effects.contains(&fault.effect) {
            self.complain(name, format_args!("effect {:?} is wanted and not {}", effects, shown(&Err(fault.clone()))));
        }
        if row.retry_after_ms.is_some_and(|ms| ms != fault.retry_after_ms) {
            self.complain(name, format_args!("retry after {:?}", fault.retry_after_ms));
        }
    }

    async fn play_row(&self, row: &Row) {
        // With a body or a method of its own it is played as it stands alone.
        self.play_once(row, false).await;
        if !row.post.is_empty() && row.inputs.get("text").is_none() && row.inputs.get("method").is_none() {
            self.play_once(row, true).await;
        }
    }

    /// Plays all rows: most beside each other, some alone.
    async fn play(&self, rows: Vec<Row>) {
        let begun = Instant::now();
        self.gap.take();
        let (alone, beside): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.alone);
        for rows in beside.chunks(24) {
            join_all(rows.iter().map(|row| self.play_row(row))).await;
        }
        let together = self.gap.take();
        let mut gaps = Vec::new();
        for row in &alone {
            self.play_row(row).await;
            let gap = self.gap.take();
            gaps.push(format!("{} ms by {}", gap.as_millis(), row.name));
            if gap > Duration::from_millis(500) {
                self.complain(&row.name, format_args!("kept the shard for {} ms", gap.as_millis()));
            }
        }
        let mut counts = BTreeMap::new();
        for row in beside.iter().chain(&alone) {
            *counts.entry(row.kind).or_insert(0) += 1;
        }
        let count = beside.len() + alone.len();
        println!("{count} hostile servers in {} ms: {counts:?}", begun.elapsed().as_millis());
        println!("the shard was kept for {} ms at most with {} at once; alone: {gaps:?}", together.as_millis(), 24);
    }

    /// Ends the way out, and asks that it leaves nothing behind; then tells what was wrong.
    async fn end(self) {
        let Field { open, shut, wrong, servers, honest, panics, .. } = self;
        drop((open, shut));
        let mut servers = servers.into_inner();
        servers.push(("the honest one".to_owned(), honest));
        let begun = Instant::now();
        // Some servers sleep before they notice.
        while servers.iter().any(|(_, server)| server.open() > 0) && begun.elapsed() < Duration::from_secs(2) {
            rt::sleep(Duration::from_millis(20)).await;
        }
        let mut wrong = wrong.into_inner();
        if PANICS.with(Cell::get) > panics.get() {
            wrong.push("something panicked, and no step noticed".to_owned());
        }
        for (name, server) in servers.iter().filter(|(_, server)| server.open() > 0) {
            wrong.push(format!("{name}: {} of its connections are still open", server.open()));
        }
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}

/// Whether a result is what is wanted.
fn fits(wanted: &Wanted, result: &Result<Value, Fault>) -> bool {
    match (wanted, result) {
        (Wanted::Done(parts), Ok(outputs)) => holds(outputs, parts),
        (Wanted::Fault(code, words), Err(fault)) => {
            fault.code == *code && String::from_utf8_lossy(&fault.details).contains(words)
        }
        _ => false,
    }
}

/// Whether `parts` are members of `whole`; null is one that is not there.
fn holds(whole: &Value, parts: &Value) -> bool {
    match (whole, parts) {
        (Value::Object(whole), Value::Object(parts)) => parts.iter().all(|(name, part)| match whole.get(name) {
            None => part.is_null(),
            Some(value) => !part.is_null() && holds(value, part),
        }),
        _ => whole == parts,
    }
}

/// A result as far as one wants to read of it.
fn shown(result: &Result<Value, Fault>) -> String {
    let mut text = match result {
        Ok(outputs) => format!("done: {outputs}"),
        Err(fault) => format!("{:?}, effect {:?}: {}", fault.code, fault.effect, String::from_utf8_lossy(&fault.details)),
    };
    text.truncate(text.floor_char_boundary(400));
    text
}

/// Plays a table on a shard of its own.
fn play(rows: impl FnOnce(&Field) -> Vec<Row>) {
    on_a_shard(|blobs, root| async move {
        let field = Field::new(blobs, &root);
        field.play(rows(&field)).await;
        field.end().await;
    });
}

#[test]
fn whatever_a_server_makes_of_a_head_a_step_ends_in_time_and_says_so() {
    play(|_| heads::rows());
}

#[test]
fn whatever_a_server_makes_of_a_body_a_step_ends_in_time_and_says_so() {
    play(|_| bodies::rows());
}

#[test]
fn whatever_a_server_says_of_its_answer_a_step_believes_what_holds() {
    play(contents::rows);
}

#[test]
fn whatever_a_server_does_with_tls_a_step_speaks_to_nobody_else() {
    play(|field| handshakes::rows(&field.tls));
}

#[test]
fn whatever_a_server_does_with_its_frames_a_step_ends_in_time_and_says_so() {
    play(|field| streams::rows(&field.tls));
}
