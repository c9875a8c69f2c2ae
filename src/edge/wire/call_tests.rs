//! What calls are told: themselves, in protobuf, and on no subject.

use std::rc::Rc;

use prost::Message;
use proto::v1;
use shards::event::Stage;
use shards::outcome::Effected;

use super::sample::{NOW_MS, in_both, native, read, wire};
use super::*;

const CALL: Origin = Origin::Call(41);
const BEFORE: Origin = Origin::Journal { source: Source::Call, since_ms: NOW_MS };

fn step(origin: Origin) -> Delivery {
    let [_, binary] = in_both(&sample::step(&[("/assignment_id", serde_json::json!("mine"))]));
    Delivery { origin, ..binary }
}

fn outcome(status: Status, fault: Option<Fault>) -> Rc<Outcome> {
    Rc::new(Outcome {
        status,
        effect: Effected::None,
        outputs: Bytes::from_static(b"{\"n\":1}"),
        fault,
        tries: 1,
        received_ms: NOW_MS,
        started_ms: NOW_MS,
        ended_ms: NOW_MS + 5,
        ran_us: 1,
        spilled: false,
        queue_depth: 0,
        boot: 1,
        owner_epoch: 0,
    })
}

fn told(delivery: Delivery, letter: Letter) -> Option<Parcel> {
    wire().render(&Post { confirm: None, arrival: Rc::new(read(delivery)), letter })
}

fn accepted() -> Letter {
    Letter::Ack { accepted: true, fault: None, overload: shards::event::Overload::Healthy, at_ms: NOW_MS }
}

fn result(fault: Option<Fault>) -> Letter {
    let status = if fault.is_some() { Status::Error } else { Status::Ok };
    Letter::Result { outcome: outcome(status, fault), replayed: false, under: shards::ids::Key([7; 16]) }
}

fn answer(parcel: &Parcel) -> (Outlet, u64, bool) {
    (parcel.outlet, parcel.about.call, parcel.subject.is_empty() && parcel.headers.is_empty() && parcel.reply.is_none())
}

#[test]
fn a_step_is_the_same_by_whatever_way_it_comes() {
    let [a, b, c] = [CALL, Origin::Core, BEFORE].map(|origin| read(step(origin)));
    for other in [&b, &c] {
        assert_eq!((a.key, a.fingerprint, &a.tenant), (other.key, other.fingerprint, &other.tenant));
        assert_eq!(a.asker.as_ref().map(|asker| asker.id), other.asker.as_ref().map(|asker| asker.id));
    }
    let not_after = |arrival: &Arrival| arrival.work().map(|work| work.not_after_ms);
    assert_eq!(not_after(&a), Some(NOW_MS + wire().settings.limits.horizon_ms));
    assert_eq!(not_after(&a), not_after(&c), "from its first receipt");
}

#[test]
fn acceptance_outcome_and_refusal_go_to_the_call_alone() {
    let parcel = told(step(CALL), accepted()).expect("told");
    assert_eq!(answer(&parcel), (Outlet::Ack, 41, true));
    assert!(v1::StepAccepted::decode(parcel.body).expect("a StepAccepted").at.is_some());

    let parcel = told(step(CALL), result(None)).expect("told");
    assert_eq!(answer(&parcel), (Outlet::Result, 41, true));
    let said = v1::StepResult::decode(parcel.body).expect("a StepResult");
    assert_eq!((said.status(), said.assignment_id.as_deref()), (v1::step_result::Status::Ok, Some("mine")));

    let expired = Fault::new(Code::Expired, "Late.");
    let parcel = told(step(CALL), result(Some(expired))).expect("told");
    assert_eq!(answer(&parcel), (Outlet::Result, 41, true), "an outcome, if a bad one");

    let conflict = Fault::new(Code::KeyConflict, "Known.");
    let refused = Fault { retry_after_ms: Some(9), ..Fault::new(Code::QuotaExceeded, "Full.") };
    for letter in [result(Some(conflict)), Letter::Reply(Reply::Refused(refused))] {
        let parcel = told(step(CALL), letter).expect("told");
        assert_eq!(answer(&parcel), (Outlet::Reply, 41, true));
        let error = v1::StepError::decode(parcel.body).expect("a StepError");
        assert!(
            matches!((&*error.code, error.retry_after_ms), ("KEY_CONFLICT", None) | ("QUOTA_EXCEEDED", Some(9))),
            "{error:?}"
        );
    }
    let no = Letter::Ack { accepted: false, fault: None, overload: shards::event::Overload::Healthy, at_ms: NOW_MS };
    assert!(told(step(CALL), no).is_none(), "the result says it");
}

#[test]
fn a_call_of_an_earlier_life_is_told_nothing_and_observers_what_they_always_are() {
    for letter in [accepted(), result(None), Letter::Reply(Reply::Unknown)] {
        assert!(told(step(BEFORE), letter.clone()).is_none(), "{letter:?}");
    }
    for origin in [CALL, BEFORE] {
        let failed = outcome(Status::Error, Some(Fault::new(Code::ExecutionFailed, "No.")));
        let dead =
            told(step(origin.clone()), Letter::DeadLetter { outcome: failed, earlier: Vec::new() }).expect("a dead letter");
        assert_eq!((dead.outlet, dead.about.call, &*dead.subject), (Outlet::DeadLetter, 0, "beamline.worker.dlq.v1.acme"));
        let stage = Letter::Lifecycle { stage: Stage::Started, outcome: None, sequence: 1, at_ms: NOW_MS };
        let event = told(step(origin), stage).expect("an event");
        assert_eq!((event.outlet, event.about.call, &*event.subject), (Outlet::Event, 0, "beamline.worker.events.acme"));
    }
}

#[test]
fn an_event_is_the_same_to_those_who_watch() {
    let failed = outcome(Status::Error, Some(Fault::new(Code::ExecutionFailed, "No.").with_details("{\"a\":1}")));
    let stage = Letter::Lifecycle { stage: Stage::Failed, outcome: Some(failed), sequence: 2, at_ms: NOW_MS };
    let event = told(step(CALL), stage).expect("an event");
    let said = protobuf::lifecycle(&event.body).expect("a LifecycleEvent");
    assert_eq!(said.kind(), v1::lifecycle_event::Kind::Failed);
    assert_eq!((&*said.r#type, said.sequence, &*said.worker_id), ("echo", 2, "w-1"));
    assert_eq!(said.at.map(|at| at.seconds as u64 * 1000), Some(NOW_MS));
    assert_eq!(said.context.map(|context| context.tenant_id).as_deref(), Some("acme"));
    let result = said.result.expect("a result");
    let error = result.error.clone().expect("why");
    assert_eq!((result.status(), result.latency_ms, result.outputs.is_none()), (v1::step_result::Status::Error, 5, true));
    assert_eq!((&*error.code, error.effect(), error.details.is_some()), ("EXECUTION_FAILED", v1::step_error::Effect::None, true));
    assert!(protobuf::lifecycle(b"{}").is_none() && protobuf::lifecycle(b"junk").is_none());
}

#[test]
fn a_notice_by_a_call_is_replied_to_at_once_and_in_protobuf() {
    let cancel = v1::StepCancel { assignment_id: Some("a".into()), ..Default::default() }.encode_to_vec();
    let subject = Text::from_static("beamline.worker.cancel.v1.acme");
    let delivery = Delivery { origin: CALL, subject, ..native("application/protobuf", cancel) };
    let parcel = told(delivery, Letter::Reply(Reply::Unknown)).expect("told");
    assert_eq!(answer(&parcel), (Outlet::Reply, 41, true), "nobody else could know better");
    let reply = v1::StepCancelReply::decode(parcel.body).expect("a StepCancelReply");
    assert_eq!(reply.disposition(), v1::step_cancel_reply::Disposition::NotFound);
}
