//! What is not taken, as gRPC says it: a status with google.rpc details, which name field and rule of bad input and the wait
//! of what came at a bad time.

use std::collections::HashMap;
use std::time::Duration;

use prost_types::value::Kind;
use proto::v1;
use shards::limits::CALL_AGAIN_MS;
use shards::outcome::{Code, Effected, Fault};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use super::calls::Closed;
use crate::edge::protobuf::error;

/// Whose codes ErrorInfo carries: StepError's.
const DOMAIN: &str = "beamline.worker.v1";

const TENANT_RULE: &str = "1 to 256 characters of A-Z, a-z, 0-9, _ and -";
const AGREE_RULE: &str = "the tenant_id of the metadata must be that of the message";

/// What the fields of a StepRequest and of a StepCancel must be, by their JSON pointers: the comments of the `.proto` files.
const RULES: &[(&str, &str)] = &[
    ("/tenant_id", AGREE_RULE),
    ("/context", "must be an object"),
    ("/context/tenant_id", TENANT_RULE),
    ("/context/run_id", "at most 256 bytes"),
    ("/context/flow_id", "at most 256 bytes"),
    ("/context/step_id", "at most 256 bytes"),
    ("/type", "the name of a block that this worker has, at most 256 bytes"),
    ("/version_req", "empty or *: this worker has one version of each block"),
    ("/resources/class", "CPU, IO or unspecified: this worker has no other"),
    ("/timeout_ms", "at most 86400000 (24 h)"),
    ("/retry/max_attempts", "1 to 100, 0 for the default"),
    ("/retry/backoff_ms", "at most 86400000 (24 h)"),
    ("/retry/backoff_max_ms", "at most 86400000 (24 h)"),
    ("/retry/budget_ms", "at most 86400000 (24 h)"),
    ("/priority", "0 to 100"),
    ("/not_after", "a time from 1970 on"),
    ("/effect_ceiling", "a known effect class, and not below what the block may do"),
    ("/payload_ref", "a uri of the form blob:PATH or blob://CONNECTOR/PATH, with sha256 and size where they are known"),
    ("/assignment_id", "1 to 256 visible ASCII characters; required where context names no flow_id, step_id and attempt"),
    ("/request_id", "at most 256 bytes"),
    ("/actor", "at most 256 bytes"),
    ("/reason", "at most 1024 bytes"),
];

/// The status that a StepError ends a call with; `draining`: the worker is about to end.
pub(super) fn status(error: &v1::StepError, draining: bool) -> Status {
    let code = Code::ALL.iter().find(|code| code.as_str() == error.code).copied().unwrap_or(Code::InternalError);
    let mut details = ErrorDetails::new();
    details.set_error_info(code.as_str(), DOMAIN, HashMap::new());
    if let Some(ms) = error.retry_after_ms {
        details.set_retry_info(Some(Duration::from_millis(u64::from(ms))));
    }
    if let Some((field, rule)) = violation(error, code) {
        details.add_bad_request_violation(field, rule);
    }
    Status::with_error_details(grpc_code(code, draining), error.message.clone(), details)
}

/// The same as a message of a SubmitStream.
pub(super) fn refused(error: v1::StepError, draining: bool) -> v1::StepRefused {
    let code = status(&error, draining).code();
    v1::StepRefused { code: code as i32, error: Some(error) }
}

fn grpc_code(code: Code, draining: bool) -> tonic::Code {
    match code {
        Code::InvalidInput | Code::MissingRequiredField | Code::InvalidFormat | Code::UnknownJobType => {
            tonic::Code::InvalidArgument
        }
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::SignatureInvalid => tonic::Code::Unauthenticated,
        Code::QuotaExceeded => tonic::Code::ResourceExhausted,
        // Another worker may take it: what every client library understands by it.
        Code::SystemOverload if draining => tonic::Code::Unavailable,
        Code::SystemOverload => tonic::Code::ResourceExhausted,
        Code::KeyConflict => tonic::Code::AlreadyExists,
        Code::ResourceUnavailable => tonic::Code::FailedPrecondition,
        _ => tonic::Code::Internal,
    }
}

/// Which field breaks which rule, if it is about one. A field's path is that of the message, with dots.
fn violation(error: &v1::StepError, code: Code) -> Option<(String, String)> {
    let word = |name: &str| match &error.details.as_ref()?.fields.get(name)?.kind {
        Some(Kind::StringValue(text)) => Some(text.as_str()),
        _ => None,
    };
    // A block's check points into the inputs, and says its rule itself.
    if let Some(pointer) = word("pointer") {
        return Some((path(&format!("/inputs{pointer}")), word("rule").unwrap_or(&error.message).to_owned()));
    }
    let field = match (word("field"), code) {
        (Some(field), _) => field,
        (None, Code::UnknownJobType) => "/type",
        (None, Code::InvalidInput | Code::InvalidFormat | Code::MissingRequiredField) => "",
        _ => return None,
    };
    let rule = RULES.iter().find(|(pointer, _)| *pointer == field).map(|(_, rule)| *rule);
    let rule = rule.map_or_else(|| error.message.clone(), |rule| format!("{}: {rule}", error.message));
    Some((path(field), rule))
}

/// A JSON pointer as a path with dots.
fn path(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".").replace("~1", "/").replace("~0", "~")
}

/// A tenant that can be none, in this field of a message that never reaches a shard.
pub(super) fn bad_tenant(field: &str) -> Status {
    let mut details = ErrorDetails::with_bad_request_violation(field, TENANT_RULE);
    details.set_error_info(Code::InvalidInput.as_str(), DOMAIN, HashMap::new());
    Status::with_error_details(tonic::Code::InvalidArgument, "a field has a value that its rule forbids", details)
}

/// Metadata and message name different tenants.
pub(super) fn other_tenant() -> Status {
    let mut details = ErrorDetails::with_bad_request_violation("tenant_id", AGREE_RULE);
    details.set_error_info(Code::PermissionDenied.as_str(), DOMAIN, HashMap::new());
    Status::with_error_details(tonic::Code::PermissionDenied, "metadata and message name different tenants", details)
}

/// The edge itself has no room, or no time.
pub(super) fn closed(why: Closed) -> v1::StepError {
    let message = match why {
        Closed::Full => "The worker has no room for more calls.",
        Closed::Ending => "The worker is shutting down.",
        Closed::Waiting => "The worker stands by.",
    };
    error(&Fault { retry_after_ms: Some(CALL_AGAIN_MS), ..Fault::new(Code::SystemOverload, message) }, Effected::None)
}

/// An answer that protobuf cannot carry back: it is nested too deeply.
pub(super) fn unreadable() -> v1::StepError {
    error(&Fault::new(Code::InternalError, "The answer cannot be written as protobuf."), Effected::Unknown)
}

/// The worker ended before there was an answer. What was accepted is in the journal: whoever asks again gets its answer.
pub(super) fn ended() -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(Duration::from_millis(CALL_AGAIN_MS)));
    details.set_error_info(Code::SystemOverload.as_str(), DOMAIN, HashMap::new());
    Status::with_error_details(tonic::Code::Unavailable, "the worker ends; ask again: what was accepted is kept", details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn said(fault: &Fault, draining: bool) -> (tonic::Code, ErrorDetails) {
        let error = v1::StepError::decode(crate::edge::protobuf::step_error(fault)).expect("a StepError");
        let status = status(&error, draining);
        assert_eq!(status.message(), &*fault.message);
        (status.code(), status.get_error_details())
    }

    #[test]
    fn bad_input_names_field_and_rule() {
        let violation = |fault: &Fault| {
            let (code, details) = said(fault, false);
            let all = &details.bad_request().expect("a BadRequest").field_violations;
            assert_eq!((code, all.len()), (tonic::Code::InvalidArgument, 1));
            (all[0].field.clone(), all[0].description.clone())
        };
        let own = Fault::new(Code::InvalidInput, "No.").with_details(r#"{"field":"/retry/max_attempts"}"#);
        assert_eq!(violation(&own), ("retry.max_attempts".into(), "No.: 1 to 100, 0 for the default".into()));
        let block = Fault::new(Code::MissingRequiredField, "No.").with_details(r#"{"pointer":"/path","rule":"required"}"#);
        assert_eq!(violation(&block), ("inputs.path".into(), "required".into()));
        let whole = Fault::new(Code::InvalidInput, "No.").with_details(r#"{"pointer":"","rule":"an object"}"#);
        assert_eq!(violation(&whole), ("inputs".into(), "an object".into()));
        let unknown = violation(&Fault::new(Code::UnknownJobType, "No."));
        assert_eq!(unknown.0, "type");
        assert!(unknown.1.contains("name of a block"), "{unknown:?}");
        let deep = Fault::new(Code::InvalidFormat, "No.").with_details(r#"{"field":"/inputs/a~1b/0"}"#);
        assert_eq!(violation(&deep), ("inputs.a/b.0".into(), "No.".into()));
    }

    #[test]
    fn the_rules_name_the_bounds_that_are_in_force() {
        use shards::limits::{BUDGET_MS_MAX, ID_BYTES_MAX, TRIES_MAX};
        for (pointer, bound) in [
            ("/timeout_ms", BUDGET_MS_MAX),
            ("/retry/budget_ms", BUDGET_MS_MAX),
            ("/retry/max_attempts", u64::from(TRIES_MAX)),
            ("/context/tenant_id", ID_BYTES_MAX as u64),
            ("/request_id", ID_BYTES_MAX as u64),
        ] {
            let rule = RULES.iter().find(|(known, _)| *known == pointer).expect("a rule").1;
            assert!(rule.contains(&bound.to_string()), "{pointer}: {rule}");
        }
    }

    #[test]
    fn what_came_at_a_bad_time_says_when_to_come_again() {
        let full = Fault { retry_after_ms: Some(1_500), ..Fault::new(Code::QuotaExceeded, "Full.") };
        let (code, details) = said(&full, false);
        assert_eq!(code, tonic::Code::ResourceExhausted);
        let wait = details.retry_info().and_then(|info| info.retry_delay);
        assert_eq!(wait, Some(Duration::from_millis(1_500)));
        assert_eq!(details.error_info().map(|info| &*info.reason), Some("QUOTA_EXCEEDED"));
        assert!(details.bad_request().is_none());
        let worker = Fault { retry_after_ms: Some(1_000), ..Fault::new(Code::SystemOverload, "Full.") };
        assert_eq!(said(&worker, false).0, tonic::Code::ResourceExhausted);
        assert_eq!(said(&worker, true).0, tonic::Code::Unavailable);
        assert_eq!(said(&Fault::new(Code::KeyConflict, "Known."), false).0, tonic::Code::AlreadyExists);
        let error = closed(Closed::Full);
        let update = refused(error.clone(), false);
        assert_eq!((update.code, update.error), (tonic::Code::ResourceExhausted as i32, Some(error)));
    }
}
