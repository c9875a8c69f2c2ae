//! Answers `$SRV.PING`, `INFO` and `STATS`, so that `nats micro ls`, `info` and `stats` see this worker.
//!
//! By hand: the service of async-nats counts what comes through endpoints of its own, and a worker's work comes through none.
//! What is said here is read from the counters that metrics show. Answers go to inboxes alone, as everywhere.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use async_nats::{Message, Subject};
use futures_util::StreamExt;
use futures_util::stream::select_all;
use serde_json::{Value, json};

use super::frames::is_inbox;
use super::nats::Link;
use super::status::EdgeStatus;
use super::thread::EdgeSettings;

/// The service's name: a part of its subjects.
const NAME: &str = "endstation";

/// The task. Lives on the edge's thread.
pub(crate) struct Micro {
    settings: Rc<EdgeSettings>,
    link: Link,
    status: Arc<EdgeStatus>,
    started: String,
}

impl Micro {
    pub(crate) fn new(settings: Rc<EdgeSettings>, link: Link, status: Arc<EdgeStatus>) -> Micro {
        Micro { settings, link, status, started: jiff::Timestamp::now().to_string() }
    }

    /// Until it is aborted, or the client's death.
    pub(crate) async fn run(self) {
        let mut ears = Vec::new();
        for subject in ["$SRV.*".to_owned(), format!("$SRV.*.{NAME}"), format!("$SRV.*.{NAME}.{}", self.settings.worker_id)] {
            let Ok(ear) = self.link.client.subscribe(subject).await else { return };
            ears.push(ear);
        }
        let mut ears = select_all(ears);
        while let Some(question) = ears.next().await {
            self.answer(&question);
        }
    }

    fn answer(&self, question: &Message) {
        let Some(reply) = question.reply.as_ref().filter(|reply| is_inbox(reply, self.link.inbox())) else { return };
        let Some(answer) = self.said(question.subject.split('.').nth(1).unwrap_or_default()) else { return };
        // Who asks asks again: one that the connection will not take now is left out.
        let _ = self.link.offer(Subject::from(reply.as_str()), None, answer.to_string().into());
    }

    /// What is said to a question of this kind.
    fn said(&self, kind: &str) -> Option<Value> {
        let nats = &self.settings.nats;
        let mut said = json!({
            "name": NAME,
            "id": self.settings.worker_id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": { "subjects": nats.assign_subjects.join(","), "boot": self.settings.boot.to_string() },
        });
        let subject = nats.assign_subjects.first();
        let endpoint = json!({ "name": "work", "subject": subject, "queue_group": nats.durable });
        match kind {
            "PING" => said["type"] = json!("io.nats.micro.v1.ping_response"),
            "INFO" => {
                said["type"] = json!("io.nats.micro.v1.info_response");
                said["description"] = json!("runs Beamline flow steps");
                said["endpoints"] = json!([endpoint]);
            }
            "STATS" => {
                said["type"] = json!("io.nats.micro.v1.stats_response");
                said["started"] = json!(self.started);
                let mut endpoint = endpoint;
                endpoint["num_requests"] = json!(self.status.received.load(Relaxed));
                endpoint["num_errors"] = json!(self.status.slow_lost.load(Relaxed));
                endpoint["last_error"] = json!(self.status.complaint().unwrap_or_default());
                // How long steps take is in the metrics; the edge does not see it.
                endpoint["processing_time"] = json!(0);
                endpoint["average_processing_time"] = json!(0);
                said["endpoints"] = json!([endpoint]);
            }
            _ => return None,
        }
        Some(said)
    }
}
