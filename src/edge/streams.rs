//! The JetStream API, spoken plainly: which stream covers a subject, our consumers, and the streams that `provision` makes.
//!
//! A question has three kinds of answers: a fact, a refusal that only a person can lift ([`Trouble::Fatal`]), and no answer
//! ([`Trouble::Unsure`]), which is asked again and never taken for a "no".

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::lease::Reach;
use super::limits::{ACK_PENDING_MAX, DUPLICATES_NS, STREAM_AGE_NS};
use super::native::{OWN_PATTERNS, STEPS_PREFIX};
use super::nats::Link;
use super::stuck::Standing;
use super::subjects::{collide, covers, durable, filters, widest};
use super::thread::EdgeError;
use crate::settings::{NatsMode, NatsSettings};

/// Why something could not be settled.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No answer, or one that may be another in a moment.
    Unsure(String),
    /// It will not get better by itself.
    Fatal(EdgeError),
}

/// Where a subject's messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cover {
    /// These streams take it (more than one only for a wildcard).
    Streams(Vec<String>),
    /// JetStream is there, and no stream takes it.
    Bare,
    /// There is no JetStream for us here.
    Off,
}

/// Where work comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A durable consumer of a stream.
    Pull(Consumer),
    /// A queue subscription.
    Core(String),
}

/// A durable pull consumer of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Consumer {
    pub(crate) stream: String,
    pub(crate) durable: String,
    pub(crate) filter: Option<String>,
}

const NOT_ENABLED: [u64; 2] = [10_039, 10_076];
const CONSUMER_NOT_FOUND: u64 = 10_014;
const STREAM_NOT_FOUND: u64 = 10_059;

/// What the API answered.
enum Answer {
    Fact(Value),
    Error {
        err_code: u64,
        code: u64,
        description: String,
    },
    /// There is definitely nobody to ask.
    Off,
}

async fn ask(link: &Link, what: &str, body: &Value) -> Result<Answer, Trouble> {
    use async_nats::client::RequestErrorKind;
    let answer = match link.client.request(format!("$JS.API.{what}"), Bytes::from(body.to_string())).await {
        Ok(answer) => answer,
        Err(error) if error.kind() == RequestErrorKind::NoResponders && !link.client.server_info().jetstream => {
            return Ok(Answer::Off);
        }
        Err(error) => return Err(Trouble::Unsure(format!("JetStream API {what}: {error}"))),
    };
    let value: Value =
        serde_json::from_slice(&answer.payload).map_err(|error| Trouble::Unsure(format!("JetStream API {what}: {error}")))?;
    let Some(error) = value.get("error") else { return Ok(Answer::Fact(value)) };
    let number = |key| error.get(key).and_then(Value::as_u64).unwrap_or(0);
    if NOT_ENABLED.contains(&number("err_code")) {
        return Ok(Answer::Off);
    }
    let description = error.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Answer::Error { err_code: number("err_code"), code: number("code"), description })
}

/// What must be there.
async fn fact(link: &Link, what: &str) -> Result<Value, Trouble> {
    match ask(link, what, &json!({})).await? {
        Answer::Fact(value) => Ok(value),
        Answer::Error { description, .. } => Err(Trouble::Unsure(format!("JetStream API {what}: {description}"))),
        Answer::Off => Err(Trouble::Unsure(format!("JetStream API {what}: JetStream is gone"))),
    }
}

/// A refusal: busy and unavailable (5xx) may pass, the rest will not.
fn refused(what: &str, code: u64, description: &str, cure: impl FnOnce() -> EdgeError) -> Trouble {
    if code >= 500 { Trouble::Unsure(format!("{what}: {description}")) } else { Trouble::Fatal(cure()) }
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Which streams take `subject`.
pub(crate) async fn find(link: &Link, subject: &str) -> Result<Cover, Trouble> {
    match ask(link, "STREAM.NAMES", &json!({ "subject": subject })).await? {
        Answer::Off => Ok(Cover::Off),
        Answer::Error { description, .. } => Err(Trouble::Unsure(format!("looking for the stream of {subject}: {description}"))),
        Answer::Fact(value) => {
            let names = texts(value.get("streams"));
            Ok(if names.is_empty() { Cover::Bare } else { Cover::Streams(names) })
        }
    }
}

/// A stream's subjects; a warning where it has no second copy. `None`: it is gone.
pub(crate) async fn subjects(link: &Link, stream: &str, warn: bool) -> Result<Option<Vec<String>>, Trouble> {
    match ask(link, &format!("STREAM.INFO.{stream}"), &json!({})).await? {
        Answer::Fact(value) => {
            let config = value.get("config");
            let replicas = config.and_then(|config| config.get("num_replicas")).and_then(Value::as_u64).unwrap_or(1);
            if warn && replicas <= 1 {
                tracing::warn!(stream, "the stream has one replica: what its server loses is lost");
            }
            Ok(Some(texts(config.and_then(|config| config.get("subjects")))))
        }
        Answer::Error { err_code: STREAM_NOT_FOUND, .. } => Ok(None),
        Answer::Error { description, .. } => Err(Trouble::Unsure(format!("reading stream {stream}: {description}"))),
        Answer::Off => Err(Trouble::Unsure(format!("reading stream {stream}: JetStream is gone"))),
    }
}

/// Decides where work comes from, and makes what is missing: consumers always, streams where `provision` says so.
pub(crate) async fn plan(link: &Link, settings: &NatsSettings) -> Result<Vec<Source>, Trouble> {
    let own = [&settings.ack_subject, &settings.result_subject, &settings.heartbeat_subject, &settings.dlq_subject];
    for own in own.into_iter().map(String::as_str).chain(OWN_PATTERNS) {
        if let Some(assign) = settings.assign_subjects.iter().find(|assign| collide(assign, own)) {
            return Err(Trouble::Fatal(EdgeError::Loop { assign: assign.clone(), own: own.to_owned() }));
        }
    }
    let assign = widest(settings.assign_subjects.clone());
    if settings.mode == NatsMode::Core {
        return Ok(assign.into_iter().map(Source::Core).collect());
    }
    if settings.provision {
        provision(link, settings).await?;
    }
    let mut sources = Vec::new();
    let mut streams: Vec<String> = Vec::new();
    for subject in &assign {
        match find(link, subject).await? {
            Cover::Streams(names) => streams.extend(names),
            _ if settings.mode == NatsMode::Auto => sources.push(Source::Core(subject.clone())),
            Cover::Bare => return Err(Trouble::Fatal(EdgeError::NoStream(subject.clone()))),
            Cover::Off => return Err(Trouble::Fatal(EdgeError::NoJetStream)),
        }
    }
    streams.sort();
    streams.dedup();
    let by_core = |subject: &String| sources.contains(&Source::Core(subject.clone()));
    let by_stream: Vec<String> = assign.into_iter().filter(|subject| !by_core(subject)).collect();
    for stream in streams {
        let subjects =
            subjects(link, &stream, true).await?.ok_or_else(|| Trouble::Unsure(format!("stream {stream} vanished")))?;
        for wanted in by_stream.iter().filter(|wanted| subjects.iter().any(|subject| collide(subject, wanted))) {
            if !subjects.iter().any(|subject| covers(subject, wanted)) {
                tracing::warn!(stream, wanted, "the stream takes only a part of this assign subject: the rest reaches no worker");
            }
        }
        let filters = filters(&subjects, &by_stream);
        let count = filters.len();
        for (index, filter) in filters.into_iter().enumerate() {
            let consumer = Consumer { stream: stream.clone(), durable: durable(&settings.durable, index, count), filter };
            ensure(link, &consumer, settings).await?;
            sources.push(Source::Pull(consumer));
        }
    }
    Ok(sources)
}

/// Sees to it that a consumer exists as we need it.
pub(crate) async fn ensure(link: &Link, consumer: &Consumer, settings: &NatsSettings) -> Result<(), Trouble> {
    let Consumer { stream, durable, filter } = consumer;
    let wrong = |why: String| Trouble::Fatal(EdgeError::Consumer { stream: stream.clone(), durable: durable.clone(), why });
    let ours = json!({
        "ack_wait": settings.ack_wait_ms.saturating_mul(1_000_000),
        "max_deliver": -1,
        "max_ack_pending": ACK_PENDING_MAX,
    });
    let mut config = match ask(link, &format!("CONSUMER.INFO.{stream}.{durable}"), &json!({})).await? {
        Answer::Fact(value) => {
            let config = value.get("config").cloned().unwrap_or_default();
            let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
            if !text("deliver_subject").is_empty() {
                return Err(wrong("it is a push consumer".into()));
            }
            if text("ack_policy") != "explicit" {
                return Err(wrong(format!("its ack policy is {}, not explicit", text("ack_policy"))));
            }
            if text("filter_subject") != filter.as_deref().unwrap_or_default() || config.get("filter_subjects").is_some() {
                return Err(wrong(format!(
                    "it filters {:?}, we need {:?}",
                    text("filter_subject"),
                    filter.as_deref().unwrap_or_default()
                )));
            }
            if let Some(first) = behind(link, consumer, &value).await? {
                tracing::error!(
                    stream,
                    durable,
                    first,
                    "the server lost messages of the stream that its consumer counts as delivered, and would never hand out the next ones: making the consumer again"
                );
                match ask(link, &format!("CONSUMER.DELETE.{stream}.{durable}"), &json!({})).await? {
                    Answer::Fact(_) | Answer::Error { err_code: CONSUMER_NOT_FOUND, .. } => fresh(consumer, first),
                    Answer::Error { description, .. } => {
                        return Err(Trouble::Unsure(format!("consumer {durable}: {description}")));
                    }
                    Answer::Off => return Err(Trouble::Unsure("JetStream is gone".into())),
                }
            } else {
                let same = ["ack_wait", "max_deliver", "max_ack_pending"].iter().all(|key| config.get(*key) == ours.get(*key));
                if same {
                    return Ok(());
                }
                tracing::warn!(
                    stream,
                    durable,
                    "the consumer's ack_wait, max_deliver or max_ack_pending differ from ours: changing them"
                );
                config
            }
        }
        Answer::Error { err_code: CONSUMER_NOT_FOUND, .. } => fresh(consumer, 1),
        Answer::Error { description, .. } => {
            return Err(Trouble::Unsure(format!("consumer {durable} of {stream}: {description}")));
        }
        Answer::Off => return Err(Trouble::Unsure("JetStream is gone".into())),
    };
    for (key, value) in ours.as_object().into_iter().flatten() {
        config[key.as_str()] = value.clone();
    }
    let what = format!("CONSUMER.DURABLE.CREATE.{stream}.{durable}");
    match ask(link, &what, &json!({ "stream_name": stream, "config": config })).await? {
        Answer::Fact(_) => {
            tracing::info!(stream, durable, filter, "consumer made ready");
            Ok(())
        }
        Answer::Error { code, description, .. } => Err(refused(&what, code, &description, || EdgeError::Consumer {
            stream: stream.clone(),
            durable: durable.clone(),
            why: description.clone(),
        })),
        Answer::Off => Err(Trouble::Unsure("JetStream is gone".into())),
    }
}

/// A consumer that is to be made, for messages from this sequence on.
fn fresh(consumer: &Consumer, first: u64) -> Value {
    let mut config = json!({ "durable_name": consumer.durable, "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant" });
    if first > 1 {
        config["deliver_policy"] = json!("by_start_sequence");
        config["opt_start_seq"] = json!(first);
    }
    if let Some(filter) = &consumer.filter {
        config["filter_subject"] = json!(filter);
    }
    config
}

/// Whether a consumer is ahead of its stream, and then the first message that a new one in its place should hand out.
///
/// nats-server 2.9.10, killed, may lose a stream's newest messages and keep what a consumer knew of them. The numbers are given
/// out again, and the consumer takes the messages under them for delivered. A consumer of an interest stream is left as it is:
/// without one the stream drops what it holds.
async fn behind(link: &Link, consumer: &Consumer, info: &Value) -> Result<Option<u64>, Trouble> {
    let sequence = |pointer: &str| info.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let delivered = sequence("/delivered/stream_seq");
    let stream = fact(link, &format!("STREAM.INFO.{}", consumer.stream)).await?;
    let Some(last) = stream.pointer("/state/last_seq").and_then(Value::as_u64).filter(|last| *last < delivered) else {
        return Ok(None);
    };
    match stream.pointer("/config/retention").and_then(Value::as_str) {
        // What is left there has been settled by nobody, or is settled again.
        Some("workqueue") => Ok(Some(1)),
        Some("limits") => Ok(Some(sequence("/ack_floor/stream_seq").min(last) + 1)),
        _ => {
            tracing::error!(
                stream = consumer.stream,
                durable = consumer.durable,
                last,
                delivered,
                "the server lost messages of an interest stream that its consumer counts as delivered: the next ones are not handed out until the stream's numbers have passed the consumer's"
            );
            Ok(None)
        }
    }
}

/// How far a consumer and its stream have come.
pub(super) async fn reach(link: &Link, consumer: &Consumer) -> Result<Reach, Trouble> {
    let Consumer { stream, durable, .. } = consumer;
    let of_consumer = fact(link, &format!("CONSUMER.INFO.{stream}.{durable}")).await?;
    let of_stream = fact(link, &format!("STREAM.INFO.{stream}")).await?;
    let number = |value: &Value, pointer| value.pointer(pointer).and_then(Value::as_u64);
    let reach = number(&of_consumer, "/delivered/stream_seq").zip(number(&of_stream, "/state/last_seq"));
    let (delivered, last) = reach.ok_or_else(|| Trouble::Unsure(format!("{durable} of {stream} does not say how far it is")))?;
    Ok(Reach { delivered, last })
}

/// What a consumer has handed out and what it could.
pub(super) async fn standing(link: &Link, consumer: &Consumer) -> Result<Standing, Trouble> {
    let value = fact(link, &format!("CONSUMER.INFO.{}.{}", consumer.stream, consumer.durable)).await?;
    let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    Ok(Standing {
        deliveries: number("/delivered/consumer_seq"),
        out: number("/num_ack_pending"),
        pending: number("/num_pending"),
        waiting: number("/num_waiting"),
    })
}

/// The stream sequences between which a consumer's deliveries are out: after its ack floor, up to its newest delivery.
pub(crate) async fn unsettled(link: &Link, consumer: &Consumer) -> Result<Option<(u64, u64)>, Trouble> {
    let Answer::Fact(value) = ask(link, &format!("CONSUMER.INFO.{}.{}", consumer.stream, consumer.durable), &json!({})).await?
    else {
        return Ok(None);
    };
    let sequence = |at: &str| value.get(at).and_then(|at| at.get("stream_seq")).and_then(Value::as_u64);
    Ok(sequence("ack_floor").zip(sequence("delivered")).map(|(floor, last)| (floor + 1, last)))
}

/// A message as the API gives it; headers and body in base64.
#[derive(Debug, Deserialize)]
pub(crate) struct Stored {
    pub(crate) subject: String,
    #[serde(rename = "seq")]
    pub(crate) sequence: u64,
    #[serde(rename = "hdrs", default)]
    pub(crate) headers: String,
    #[serde(rename = "data", default)]
    pub(crate) body: String,
    #[serde(default)]
    pub(crate) time: String,
}

/// Reads one message of a stream; `None`: there is none.
pub(crate) async fn stored(link: &Link, stream: &str, question: &Value) -> Result<Option<Stored>, Trouble> {
    match ask(link, &format!("STREAM.MSG.GET.{stream}"), question).await? {
        Answer::Fact(mut value) => {
            let message = value.get_mut("message").map(Value::take).unwrap_or_default();
            serde_json::from_value(message).map(Some).map_err(|error| Trouble::Unsure(format!("a message of {stream}: {error}")))
        }
        _ => Ok(None),
    }
}

/// Creates the streams that are missing: work as a work queue, results and dead letters by time. The native profile has streams
/// of its own, where native steps are among the work: a subject for each key would be a burden in everybody's stream.
async fn provision(link: &Link, settings: &NatsSettings) -> Result<(), Trouble> {
    let mut missing = Vec::new();
    for subject in &settings.assign_subjects {
        match find(link, subject).await? {
            Cover::Streams(_) => {}
            Cover::Bare => missing.push(subject.clone()),
            Cover::Off if settings.mode == NatsMode::Auto => {
                tracing::warn!("there is no JetStream to provision streams in: going by core NATS");
                return Ok(());
            }
            Cover::Off => return Err(Trouble::Fatal(EdgeError::NoJetStream)),
        }
    }
    let is_native = |subject: &String| subject.starts_with(STEPS_PREFIX);
    let (steps, assignments): (Vec<_>, Vec<_>) = missing.into_iter().partition(is_native);
    for (name, subjects) in [("CAF_ASSIGN", assignments), ("BEAMLINE_STEPS", steps)] {
        if !subjects.is_empty() {
            create(link, settings, name, &subjects, "workqueue").await?;
        }
    }
    let mut kept = vec![("CAF_RESULT", settings.result_subject.as_str()), ("CAF_DLQ", &settings.dlq_subject)];
    if settings.assign_subjects.iter().any(is_native) {
        kept.extend(["BEAMLINE_RESULTS", "BEAMLINE_DLQ"].into_iter().zip(OWN_PATTERNS));
    }
    for (name, subject) in kept {
        if find(link, subject).await? == Cover::Bare {
            create(link, settings, name, &[subject.to_owned()], "limits").await?;
        }
    }
    Ok(())
}

async fn create(link: &Link, settings: &NatsSettings, name: &str, subjects: &[String], retention: &str) -> Result<(), Trouble> {
    let config = json!({
        "name": name,
        "subjects": subjects,
        "retention": retention,
        "storage": "file",
        "discard": if retention == "workqueue" { "new" } else { "old" },
        "max_age": STREAM_AGE_NS,
        "duplicate_window": DUPLICATES_NS,
        "num_replicas": settings.replicas.max(1),
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1,
    });
    match ask(link, &format!("STREAM.CREATE.{name}"), &config).await? {
        Answer::Fact(_) => {
            tracing::info!(stream = name, ?subjects, retention, replicas = settings.replicas.max(1), "stream created");
            if settings.replicas <= 1 && retention != "workqueue" {
                tracing::warn!(stream = name, "the stream has one replica: what its server loses is lost");
            }
            Ok(())
        }
        // Another worker made it at the same moment: of two at once nats-server refuses one, for overlapping with the other.
        Answer::Error { .. } if matches!(find(link, &subjects[0]).await?, Cover::Streams(_)) => Ok(()),
        Answer::Error { code, description, .. } => {
            Err(refused(name, code, &description, || EdgeError::Provision { stream: name.to_owned(), why: description.clone() }))
        }
        Answer::Off => Err(Trouble::Unsure("JetStream is gone".into())),
    }
}
