//! The way of dead letters to and from the worker's own store: those that no stream takes go in, and come out when one does.
//!
//! Keeps count of what is under way and decides when to look again; the outbox publishes. A letter out of the store goes the
//! way of any other, but for its end: the store is told, not a shard.

use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use shards::ids::{Key, Text};
use shards::runtime::ports::{About, Outlet, Parcel};

use super::inflight::Sent;
use super::limits::{RESEND_MS, STORE_ANSWER_MS, STORE_LOOK_MS};
use crate::dlq::clerk::Desk;
use crate::dlq::store::Kept;
use crate::dlq::{Deposit, Done, Place, Question, Why};

/// See the module. Lives on the edge's thread.
pub(crate) struct DeadLetters {
    desk: Option<Desk>,
    answers: Option<flume::r#async::RecvStream<'static, Done>>,
    /// What the clerk has said and nobody has looked at.
    pub(crate) came: Vec<Done>,
    /// Letters on their way into the store.
    going_in: usize,
    /// Letters of the store that are out, or asked for.
    flying: usize,
    reading: bool,
    /// Where the last ones read ended.
    after: Option<Place>,
    /// Subjects that a stream takes, as last seen.
    covered: Vec<Text>,
    /// It was asked whether a stream takes the others.
    asked: bool,
    look_at: Instant,
    /// A stream refused one: how long the next look waits.
    pause_ms: u64,
}

impl DeadLetters {
    pub(crate) fn new(desk: Option<Desk>) -> DeadLetters {
        DeadLetters {
            answers: desk.as_ref().map(|desk| desk.done.clone().into_stream()),
            desk,
            came: Vec::new(),
            going_in: 0,
            flying: 0,
            reading: false,
            after: None,
            covered: Vec::new(),
            asked: false,
            look_at: Instant::now(),
            pause_ms: 0,
        }
    }

    /// Whether there is a store at all.
    pub(crate) fn keeps(&self) -> bool {
        self.desk.is_some()
    }

    /// Letters on their way into the store.
    pub(crate) fn going_in(&self) -> usize {
        self.going_in
    }

    /// Takes in what the clerk says.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) {
        let Some(answers) = &mut self.answers else { return };
        while let Poll::Ready(Some(done)) = answers.poll_next_unpin(cx) {
            self.came.push(done);
        }
    }

    /// Puts a letter into the store; its end comes with what the clerk says.
    pub(crate) fn keep(&mut self, sent: Sent, why: Why, told: bool) {
        let Some(desk) = &self.desk else { return };
        let Sent { shard, parcel, sends, .. } = sent;
        self.going_in += 1;
        desk.ask(Question::Keep(Deposit { shard, parcel, sends, why, told }));
    }

    /// One that went in is in, or came back.
    pub(crate) fn went_in(&mut self) {
        self.going_in -= 1;
    }

    /// Whether it is time to look at what waits in the store: subjects of it.
    pub(crate) fn due(&self, now: Instant) -> Option<Vec<Text>> {
        let desk = self.desk.as_ref()?;
        let idle = self.flying == 0 && !self.reading && now >= self.look_at;
        idle.then(|| desk.status.subjects()).filter(|subjects| !subjects.is_empty())
    }

    /// Asks for what can be sent, given the subjects that a stream takes. `true`: the others are to be asked about.
    pub(crate) fn look(&mut self, covered: Vec<Text>, now: Instant) -> bool {
        let wonders = !self.asked;
        self.asked = wonders;
        let wait_ms = if wonders { STORE_ANSWER_MS } else { STORE_LOOK_MS };
        self.look_at = now + Duration::from_millis(wait_ms);
        self.covered = covered;
        self.after = None;
        self.read();
        wonders
    }

    fn read(&mut self) {
        let Some(desk) = self.desk.as_ref().filter(|_| !self.covered.is_empty()) else { return };
        self.reading = true;
        desk.ask(Question::Read { after: self.after, subjects: self.covered.clone() });
    }

    /// The letters that were read, to be published; where `open` is false there is nobody to publish them to.
    pub(crate) fn read_back(&mut self, list: Vec<Kept>, open: bool) -> Vec<Sent> {
        self.reading = false;
        if !open {
            return Vec::new();
        }
        self.after = list.last().map(|kept| kept.place);
        self.flying = list.len();
        list.into_iter().map(|kept| Sent { shard: 0, kept: Some(kept.place), parcel: parcel(kept), sends: 0 }).collect()
    }

    /// A stream has this one.
    pub(crate) fn taken(&mut self, place: Place) {
        if let Some(desk) = &self.desk {
            desk.ask(Question::Sent(vec![place]));
        }
        self.pause_ms = 0;
        self.landed();
    }

    /// This one is not taken: it waits on.
    pub(crate) fn not_taken(&mut self, now: Instant) {
        // Once for all that were read together.
        if self.after.take().is_some() {
            self.pause_ms = (self.pause_ms * 2).clamp(*RESEND_MS.start(), *RESEND_MS.end());
        }
        self.look_at = now + Duration::from_millis(self.pause_ms);
        self.landed();
    }

    /// When all that were read have come to their end, the next ones are; unless one was not taken.
    fn landed(&mut self) {
        self.flying = self.flying.saturating_sub(1);
        if self.flying == 0 && self.after.is_some() {
            self.read();
        }
    }
}

fn parcel(kept: Kept) -> Parcel {
    let headers = kept.head.headers.into_iter().map(|(name, value)| (Text::from(name), Text::from(value))).collect();
    let about = About { line: 0, call: 0, by_call: false, key: Key([0; 16]), status: None, replayed: false, boot: 0, tries: 0 };
    let (subject, body) = (Text::from(kept.head.subject), kept.body);
    Parcel { outlet: Outlet::DeadLetter, subject, headers, body, reply: None, confirm: None, about }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::runtime::ports::Parcel;

    fn letter(n: u32) -> Parcel {
        let about =
            About { line: 0, call: 0, by_call: false, key: Key([0; 16]), status: None, replayed: false, boot: 0, tries: 0 };
        let headers = vec![("Nats-Msg-Id".into(), format!("d-{n}").into())];
        let (subject, body) = ("caf.exec.dlq.v1".into(), bytes::Bytes::from_static(b"{}"));
        Parcel { outlet: Outlet::DeadLetter, subject, headers, body, reply: None, confirm: None, about }
    }

    /// What the clerk says next.
    fn said(dead: &DeadLetters) -> Done {
        let desk = dead.desk.as_ref().expect("a store");
        desk.done.recv_timeout(Duration::from_secs(5)).expect("an answer")
    }

    #[test]
    fn letters_go_in_and_come_out_batch_after_batch_until_all_are_taken() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let clerk = crate::dlq::Clerk::start(dir.path(), 1 << 20)?;
        let mut dead = DeadLetters::new(Some(clerk.desk().clone()));
        let now = Instant::now();
        assert!(dead.due(now).is_none(), "nothing waits");
        let count = crate::dlq::SEND_MAX as u32 + 3;
        for n in 0..count {
            dead.keep(Sent { shard: 0, parcel: letter(n), sends: 1, kept: None }, Why::NoStream, true);
        }
        for _ in 0..count {
            assert!(matches!(said(&dead), Done::Kept(_, Ok(()))));
            dead.went_in();
        }
        let subjects = dead.due(now).expect("they wait");
        assert!(dead.look(Vec::new(), now), "no stream yet: ask");
        assert!(dead.due(now).is_none() && dead.due(now + Duration::from_millis(STORE_ANSWER_MS)).is_some());
        assert!(!dead.look(subjects, now));
        let mut taken = Vec::new();
        while taken.len() < count as usize {
            let Done::Read(list) = said(&dead) else { panic!("letters") };
            for sent in dead.read_back(list, true) {
                taken.push(sent.parcel.headers[0].1.to_string());
                dead.taken(sent.kept.expect("its place"));
            }
        }
        let Done::Read(rest) = said(&dead) else { panic!("nothing more") };
        assert!(rest.is_empty() && dead.read_back(rest, true).is_empty());
        let expected: Vec<String> = (0..count).map(|n| format!("d-{n}")).collect();
        assert_eq!(taken, expected);
        Ok(())
    }

    #[test]
    fn a_letter_that_is_not_taken_stays_and_is_looked_at_later_and_later() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let clerk = crate::dlq::Clerk::start(dir.path(), 1 << 20)?;
        let mut dead = DeadLetters::new(Some(clerk.desk().clone()));
        let mut now = Instant::now();
        dead.keep(Sent { shard: 0, parcel: letter(1), sends: 1, kept: None }, Why::Refused, false);
        assert!(matches!(said(&dead), Done::Kept(_, Ok(()))));
        for pause_ms in [250, 500, 1_000] {
            dead.look(dead.due(now).expect("it waits"), now);
            let Done::Read(list) = said(&dead) else { panic!("the letter") };
            assert_eq!(dead.read_back(list, true).len(), 1);
            dead.not_taken(now);
            assert!(dead.due(now + Duration::from_millis(pause_ms - 1)).is_none());
            now += Duration::from_millis(pause_ms);
        }
        Ok(())
    }
}
