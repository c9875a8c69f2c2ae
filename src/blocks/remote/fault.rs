//! What a store's trouble means to a step: fixed sentences, what was said in the details, and what may have happened there.

use serde_json::json;
use shards::outcome::{Code, Effected, Fault};

use crate::net::error::Phase;
use crate::offload::stores::{OBJECT_BYTES_MAX, StoreError, Trouble};

use super::super::inputs::fault;

/// What may have happened by an end of a write that came to this error.
pub(super) fn touched(error: &StoreError) -> Effected {
    match error.trouble {
        _ if !error.sent => Effected::None,
        // The store says that it did not do it.
        Trouble::Missing
        | Trouble::Setup
        | Trouble::Denied
        | Trouble::Taken
        | Trouble::Contended
        | Trouble::Busy
        | Trouble::Refused => Effected::None,
        _ => Effected::Unknown,
    }
}

/// The fault of an error.
pub(super) fn of(error: &StoreError, effect: Effected) -> Fault {
    let (code, sentence) = match error.trouble {
        Trouble::Missing => return nothing_there(),
        Trouble::Taken => return taken(),
        Trouble::Setup => (Code::ExecutionFailed, "The store's bucket is not there, or is set up in another way."),
        Trouble::Denied => (Code::PermissionDenied, "The store does not let this worker do that."),
        Trouble::Changed => (Code::ResourceUnavailable, "The blob was replaced while it was read."),
        Trouble::Contended => (Code::ResourceUnavailable, "Others write this blob just now."),
        Trouble::Busy => (Code::ResourceUnavailable, "The store asks to be left alone for now."),
        Trouble::Failed => (Code::Http5xx, "The store answered with an error of its own."),
        Trouble::Refused => (Code::ExecutionFailed, "The store will not do that."),
        Trouble::Unclear => (Code::ExecutionFailed, "What the store answered cannot be understood."),
        Trouble::Forbidden => (Code::PermissionDenied, "A policy of this worker forbids the way to the store."),
        Trouble::Unreachable => (Code::ConnectionError, "The store cannot be reached."),
        Trouble::Untrusted => (Code::ExecutionFailed, "The store's certificate does not hold."),
        Trouble::Late(Phase::Stall, _) => (Code::ResourceUnavailable, "The exchange with the store stood still."),
        Trouble::Late(..) => (Code::ConnectionError, "The store took too long to be reached."),
        Trouble::Broken => (Code::NetworkError, "The exchange with the store broke off."),
        Trouble::Secret => (Code::ResourceUnavailable, "A secret that the store needs cannot be read."),
        Trouble::Full => (Code::ResourceUnavailable, "Too much is under way to stores."),
    };
    let mut details = json!({ "cause": error.cause });
    if let Trouble::Late(phase, ms) = error.trouble {
        details["phase"] = json!(phase.as_str());
        details["ms"] = json!(ms);
    }
    if error.trouble == Trouble::Forbidden {
        details["pointer"] = json!("/connector");
        details["rule"] = json!("the connector's endpoint is public, or opened by its allow list");
    }
    Fault::new(code, sentence).with_details(details.to_string()).with_effect(effect)
}

/// No blob there.
pub(super) fn nothing_there() -> Fault {
    fault(Code::InvalidInput, "There is no blob at this path.", "path", "names a stored blob")
}

/// Another content stands there and may not be replaced.
pub(super) fn taken() -> Fault {
    let sentence = "Another content stands at this path and may not be replaced.";
    fault(Code::ExecutionFailed, sentence, "path", "free, or holding the same content")
}

/// Others come and go at this path.
pub(super) fn contended() -> Fault {
    fault(Code::ResourceUnavailable, "Others write this blob just now.", "path", "written by one at a time")
}

/// The thread that speaks to stores has gone.
pub(super) fn gone() -> Fault {
    Fault::new(Code::ResourceUnavailable, "The exchange with the store broke off.").with_details(r#"{"cause":"it was given up"}"#)
}

/// More than one object may hold.
pub(super) fn too_large() -> Fault {
    let details = json!({ "pointer": "/content", "rule": "at most 16 GiB in a store", "size_max": OBJECT_BYTES_MAX });
    Fault::new(Code::InvalidInput, "The blob is larger than one may be.").with_details(details.to_string())
}

/// A tenant's own total would be more than it may keep.
pub(super) fn over_quota(store: &str, used: u64, bytes_max: u64) -> Fault {
    let details = json!({
        "pointer": "/connector",
        "rule": format!("connectors.{store}.bytes_max"),
        "used": used,
        "bytes_max": bytes_max,
    });
    Fault::new(Code::QuotaExceeded, "The tenant's room in this store is used up.").with_details(details.to_string())
}
