//! One SubmitStream: many steps under way at once, each told as accepted and then how it ended, or why it is not taken.
//!
//! It reads on only while there is room for another, and nothing is read past an answer that the client does not take: so
//! a stream holds at most its bound of steps, and their answers.

use std::collections::HashMap;
use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use prost::Message;
use proto::v1;
use proto::v1::step_update::Said as Update;
use tokio::sync::mpsc;
use tonic::Status;

use super::calls::{Call, Said, Told, line};
use super::desk::Desk;
use super::mail::Heads;
use super::refusal;
use crate::edge::limits::{STEPS_IN_FLIGHT_MAX, UPDATES_MAX};

/// The task. Lives on the edge's thread.
pub(super) struct Steps<S> {
    desk: Desk,
    heads: Heads,
    requests: Pin<Box<S>>,
    out: mpsc::Sender<Result<v1::StepUpdate, Status>>,
    tell: mpsc::UnboundedSender<(u64, Said)>,
    told: Told,
    /// Those whose end was not told yet, by their number.
    open: HashMap<u64, Open>,
    /// The number of the last request.
    last: u64,
}

/// A request under way; its call is closed when this goes.
struct Open {
    _call: Call,
    assignment_id: Option<String>,
    request_id: Option<String>,
    /// Its acceptance was told. The shard says it again before the outcome to who rode along with another's step.
    accepted: bool,
}

/// What a turn may be about.
enum Turn {
    Said(u64, Said),
    Request(v1::StepRequest),
    /// The client sends nothing more.
    Last,
    /// The client is gone, or broke off.
    Gone(Option<Status>),
    Ending,
}

impl<S: Stream<Item = Result<v1::StepRequest, Status>> + Send + 'static> Steps<S> {
    /// Starts it; the updates.
    pub(super) fn start(
        desk: Desk,
        heads: Heads,
        requests: S,
    ) -> impl Stream<Item = Result<v1::StepUpdate, Status>> + Send + use<S> {
        let (out, updates) = mpsc::channel(UPDATES_MAX);
        let (tell, told) = line();
        let requests = Box::pin(requests);
        let steps = Steps { desk, heads, requests, out, tell, told, open: HashMap::new(), last: 0 };
        tokio::spawn(steps.run());
        futures_util::stream::unfold(updates, |mut updates| async { updates.recv().await.map(|update| (update, updates)) })
    }

    async fn run(mut self) {
        let mut ending = self.desk.ending.clone();
        let mut more = true;
        while more || !self.open.is_empty() {
            let room = more && self.open.len() < STEPS_IN_FLIGHT_MAX;
            let turn = tokio::select! {
                biased;
                Some((number, said)) = self.told.recv() => Turn::Said(number, said),
                request = self.requests.next(), if room => match request {
                    Some(Ok(request)) => Turn::Request(request),
                    Some(Err(status)) => Turn::Gone(Some(status)),
                    None => Turn::Last,
                },
                () = self.out.closed() => Turn::Gone(None),
                _ = ending.wait_for(|ending| *ending) => Turn::Ending,
            };
            let sent = match turn {
                Turn::Said(number, said) => self.say(number, said).await,
                Turn::Request(request) => self.submit(request).await,
                Turn::Last => {
                    more = false;
                    true
                }
                // The steps go on; only their asker is lost.
                Turn::Gone(why) => {
                    if let Some(status) = why {
                        let _ = self.out.send(Err(status)).await;
                    }
                    return;
                }
                Turn::Ending => {
                    let _ = self.out.send(Err(refusal::ended())).await;
                    return;
                }
            };
            if !sent {
                return;
            }
        }
    }

    async fn submit(&mut self, step: v1::StepRequest) -> bool {
        self.last += 1;
        let number = self.last;
        match self.desk.submit_one(&self.tell, number, &step, &self.heads).await {
            Ok(call) => {
                let open = Open { _call: call, assignment_id: step.assignment_id, request_id: step.request_id, accepted: false };
                self.open.insert(number, open);
                true
            }
            Err(why) => {
                let refused = refusal::refused(refusal::closed(why), self.desk.draining());
                let said = Some(Update::Refused(refused));
                let (assignment_id, request_id) = (step.assignment_id, step.request_id);
                self.out.send(Ok(v1::StepUpdate { number, assignment_id, request_id, said })).await.is_ok()
            }
        }
    }

    /// Passes on what is said of a request; false if the client is gone.
    async fn say(&mut self, number: u64, said: Said) -> bool {
        let Some(open) = self.open.get_mut(&number) else { return true };
        if matches!(said, Said::Accepted(_)) && std::mem::replace(&mut open.accepted, true) {
            return true;
        }
        let draining = self.desk.draining();
        let refused = |error| Update::Refused(refusal::refused(error, draining));
        let read = match said {
            Said::Accepted(body) => v1::StepAccepted::decode(body).map(Update::Accepted),
            Said::Ended(body) => v1::StepResult::decode(body).map(Update::Result),
            Said::Reply(body) => v1::StepError::decode(body).map(refused),
            Said::Full => Ok(refused(refusal::closed(super::calls::Closed::Full))),
        };
        let said = read.unwrap_or_else(|_| refused(refusal::unreadable()));
        let (assignment_id, request_id) = (open.assignment_id.clone(), open.request_id.clone());
        if !matches!(said, Update::Accepted(_)) {
            self.open.remove(&number);
        }
        self.out.send(Ok(v1::StepUpdate { number, assignment_id, request_id, said: Some(said) })).await.is_ok()
    }
}
