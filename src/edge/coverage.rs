//! Which of the subjects we publish on a stream takes, as far as we know.
//!
//! Asked of the server once per subject and connection, and again where something went wrong. Parcels whose subject is not
//! decided wait here; no answer is never taken for a "no". Subjects of which each is used once (results by key, dead letters by
//! tenant) are asked about all together, by the pattern that they are of.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use shards::ids::Text;

use super::inflight::Sent;
use super::limits::{COMPLAINT_EVERY_MS, DECIDED_MAX};
use super::native::OWN_PATTERNS;
use super::nats::Link;
use super::streams::{self, Cover, Trouble};
use super::subjects::covers;
use crate::settings::NatsMode;

/// See the module. Lives on the edge's thread.
pub(crate) struct Coverage {
    mode: NatsMode,
    decided: HashMap<Text, bool>,
    /// Subjects of streams met so far: answers for subjects not seen before, without asking.
    patterns: Vec<String>,
    /// Parcels whose subject is being asked about, in order.
    pub(crate) waiting: Vec<Sent>,
    /// Subjects to ask about again though they are decided: a stream may have been made since.
    wondered: Vec<Text>,
    question: Option<Question>,
}

type Question = Pin<Box<dyn Future<Output = (Text, Option<Vec<String>>)>>>;

impl Coverage {
    pub(crate) fn new(mode: NatsMode) -> Coverage {
        Coverage {
            mode,
            decided: HashMap::new(),
            patterns: Vec::new(),
            waiting: Vec::new(),
            wondered: Vec::new(),
            question: None,
        }
    }

    /// Has a subject asked about again; until there is an answer the older one stands.
    pub(crate) fn wonder(&mut self, subject: &Text) {
        let asked = asked(subject);
        if self.mode != NatsMode::Core && !self.wondered.contains(&asked) {
            self.wondered.push(asked);
        }
    }

    /// Asks about the first subject that parcels wait for, or somebody wonders about.
    pub(crate) fn ask(&mut self, link: &Link) {
        if self.question.is_some() {
            return;
        }
        let waited = self.waiting.first().map(|first| asked(&first.parcel.subject));
        let Some(subject) = waited.or_else(|| self.wondered.pop()) else { return };
        let link = link.clone();
        self.question = Some(Box::pin(async move {
            let mut said: Option<Instant> = None;
            loop {
                match lookup(&link, &subject).await {
                    Ok(patterns) => return (subject, patterns),
                    Err(trouble) if said.is_none_or(|at| at.elapsed() >= Duration::from_millis(COMPLAINT_EVERY_MS)) => {
                        said = Some(Instant::now());
                        tracing::warn!(%subject, ?trouble, "it is not known yet whether a stream takes this subject");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }));
    }

    /// Whether an answer came: those who wait may try again.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(question) = &mut self.question else { return false };
        let Poll::Ready((subject, patterns)) = question.as_mut().poll(cx) else { return false };
        self.question = None;
        self.learn(subject, patterns);
        true
    }

    /// Whether a stream takes `subject`; `None`: not known yet.
    pub(crate) fn of(&mut self, subject: &Text) -> Option<bool> {
        if self.mode == NatsMode::Core {
            return Some(false);
        }
        let decided = match family(subject) {
            None => self.decided.get(subject),
            Some(pattern) => self.decided.get(pattern),
        };
        let met = |patterns: &[String]| patterns.iter().any(|pattern| covers(pattern, subject));
        match decided {
            // Some of the family are streamed: those that a pattern takes.
            Some(true) if family(subject).is_some() => Some(met(&self.patterns)),
            Some(streamed) => Some(*streamed),
            None => met(&self.patterns).then_some(true),
        }
    }

    /// `patterns`: subjects of the streams found; `None`: no stream takes it.
    fn learn(&mut self, subject: Text, patterns: Option<Vec<String>>) {
        if self.decided.len() >= DECIDED_MAX {
            self.decided.clear();
        }
        if self.decided.insert(subject.clone(), patterns.is_some()) != Some(patterns.is_some()) {
            tracing::info!(%subject, stream = patterns.is_some(), "decided how to publish");
        }
        for pattern in patterns.into_iter().flatten() {
            if !self.patterns.contains(&pattern) {
                self.patterns.push(pattern);
            }
        }
    }

    /// Something went wrong with `subject`: it is asked about again.
    pub(crate) fn doubt(&mut self, subject: &Text) {
        self.decided.remove(&asked(subject));
        self.patterns.retain(|pattern| !covers(pattern, subject));
    }

    /// Another connection: perhaps another server, which has its own streams.
    pub(crate) fn forget(&mut self) {
        self.question = None;
        self.decided.clear();
        self.patterns.clear();
    }
}

/// The pattern that is asked about in place of `subject`, where there is one.
fn family(subject: &str) -> Option<&'static str> {
    OWN_PATTERNS.into_iter().find(|pattern| subject.starts_with(pattern.trim_end_matches(['*', '.'])))
}

/// What is asked about to learn of `subject`.
fn asked(subject: &Text) -> Text {
    family(subject).map_or_else(|| subject.clone(), Text::from_static)
}

/// The subjects of the streams that take `subject`; `None`: definitely none.
async fn lookup(link: &Link, subject: &str) -> Result<Option<Vec<String>>, Trouble> {
    let Cover::Streams(names) = streams::find(link, subject).await? else { return Ok(None) };
    let mut patterns = Vec::new();
    for name in names {
        let subjects = streams::subjects(link, &name, false).await?.unwrap_or_default();
        patterns.extend(subjects.into_iter().filter(|pattern| covers(pattern, subject)));
    }
    Ok(Some(patterns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_met_once_answers_for_all_its_subjects() {
        let mut coverage = Coverage::new(NatsMode::Auto);
        assert_eq!(coverage.of(&"r.v1.a".into()), None);
        coverage.learn("r.v1.a".into(), Some(vec!["r.v1.>".into()]));
        assert_eq!(coverage.of(&"r.v1.b".into()), Some(true));
        coverage.learn("core".into(), None);
        assert_eq!(coverage.of(&"core".into()), Some(false));
        coverage.doubt(&"r.v1.b".into());
        assert_eq!(coverage.of(&"r.v1.c".into()), None);
    }

    #[test]
    fn results_by_key_are_decided_all_together() {
        let key = |n: u32| Text::from(format!("beamline.worker.results.v1.acme.{n}"));
        let pattern = Text::from_static("beamline.worker.results.v1.*.*");
        assert_eq!(asked(&key(1)), pattern);
        let mut coverage = Coverage::new(NatsMode::Auto);
        assert_eq!(coverage.of(&key(1)), None);
        coverage.learn(pattern.clone(), None);
        assert_eq!((coverage.of(&key(1)), coverage.of(&key(2))), (Some(false), Some(false)));
        coverage.doubt(&key(3));
        assert_eq!(coverage.of(&key(1)), None);
        coverage.learn(pattern, Some(vec!["beamline.worker.results.v1.acme.>".into()]));
        assert_eq!(coverage.of(&key(1)), Some(true));
        assert_eq!(coverage.of(&"beamline.worker.results.v1.other.1".into()), Some(false), "no stream takes this tenant's");
        assert_eq!(coverage.of(&"beamline.worker.dlq.v1.acme".into()), None);
    }
}
