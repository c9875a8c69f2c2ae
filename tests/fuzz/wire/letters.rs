//! Every letter that an arrival can come to, rendered and held against the contract.

use std::rc::Rc;

use bytes::Bytes;
use endstation::edge::wire::EdgeWire;
use shards::audit::{AuditItem, AuditKind};
use shards::event::{Letter, Overload, Post, Reply, Stage};
use shards::ids::Text;
use shards::outcome::{Code, Effected, Fault, Outcome, Status};
use shards::runtime::ports::Wire;
use shards::step::{Arrival, Content};

use super::{NOW, contract};

const STAGES: [Stage; 7] =
    [Stage::Accepted, Stage::Started, Stage::Retrying, Stage::Completed, Stage::Failed, Stage::Canceled, Stage::DeadLettered];

/// Renders letter number `which`, or all of them.
pub fn check(wire: &EdgeWire, arrival: Arrival, which: Option<usize>) {
    let letters = of(&arrival, which.unwrap_or(0));
    let arrival = Rc::new(arrival);
    let chosen = which.map(|which| which % letters.len());
    for (_, letter) in letters.into_iter().enumerate().filter(|(index, _)| chosen.is_none_or(|chosen| chosen == *index)) {
        let post = Post { confirm: None, arrival: arrival.clone(), letter };
        let Some(parcel) = wire.render(&post) else { continue };
        contract::check(&arrival, &parcel);
        let again = wire.render(&post).map(|parcel| parcel.body);
        assert_eq!(again.as_ref(), Some(&parcel.body), "the same letter, other bytes");
    }
}

/// The letters that the machine can owe for an arrival; `salt` picks what a block may have failed with.
fn of(arrival: &Arrival, salt: usize) -> Vec<Letter> {
    let at_ms = NOW.wall_ms + 5;
    let overload = [Overload::Healthy, Overload::Degraded, Overload::Overloaded, Overload::Critical][salt % 4];
    let mut letters = Vec::new();
    let mut outcomes = Vec::new();
    match &arrival.content {
        Content::Work(work) => {
            letters.push(Letter::Ack { accepted: true, fault: None, overload, at_ms });
            let code = Code::ALL[salt % Code::ALL.len()];
            let fault = Fault { retry_after_ms: Some(5), ..Fault::new(code, "5 timeouts, the connection is unavailable") };
            let fault = fault.with_details("{\"status\":503}").with_effect(Effected::Unknown);
            outcomes.push(Outcome { outputs: work.inputs.clone(), ..outcome(Status::Ok, None) });
            outcomes.push(Outcome { outputs: reference(), spilled: true, ..outcome(Status::Ok, None) });
            outcomes.push(outcome(Status::Error, Some(fault)));
            outcomes.push(outcome(Status::Timeout, None));
            outcomes.push(outcome(Status::Cancelled, Some(Fault::new(Code::CancelledByUser, "the step was stopped"))));
        }
        Content::Refusal(fault) => {
            letters.push(Letter::Ack { accepted: false, fault: Some(fault.clone()), overload, at_ms });
            outcomes.push(outcome(Status::Error, Some(fault.clone())));
        }
        Content::Garbage(fault) => outcomes.push(outcome(Status::Quarantined, Some(fault.clone()))),
        // Only who waits is told, and nobody does here.
        Content::Notice(_) => return vec![Letter::Reply(Reply::Unknown)],
    }
    for (index, stage) in STAGES.into_iter().enumerate() {
        let outcome = outcomes.get(index).cloned().map(Rc::new);
        letters.push(Letter::Lifecycle { stage, outcome, sequence: index as u32, at_ms });
    }
    for outcome in outcomes.into_iter().map(Rc::new) {
        letters.push(Letter::Result { outcome: outcome.clone(), replayed: salt.is_multiple_of(2), under: arrival.key });
        if outcome.status != Status::Ok {
            letters.push(Letter::DeadLetter { outcome, earlier: Vec::new() });
        }
    }
    letters
}

fn reference() -> Bytes {
    Bytes::from(format!("{{\"uri\":\"file:///x\",\"sha256\":\"{}\",\"size\":9}}", "0".repeat(64)))
}

/// An outcome with everything that does not depend on how it ended.
pub fn outcome(status: Status, fault: Option<Fault>) -> Outcome {
    Outcome {
        status,
        effect: if status == Status::Ok { Effected::Applied } else { Effected::None },
        outputs: Bytes::new(),
        spilled: false,
        fault,
        tries: 2,
        received_ms: NOW.wall_ms,
        started_ms: NOW.wall_ms + 1,
        ended_ms: NOW.wall_ms + 3,
        ran_us: 1_500,
        queue_depth: 4,
        boot: 1,
        owner_epoch: 3,
    }
}

/// An audit item that stands for any.
pub fn audit() -> AuditItem {
    AuditItem {
        kind: AuditKind::Quarantine,
        wall_ms: NOW.wall_ms,
        tenant_seq: 1,
        outcome_digest: [0; 32],
        actor: Text::from_static("worker"),
        config_epoch: 0,
    }
}
