//! From what went wrong on the way to a step's [`Fault`]: which code, and what may have happened on the other side.

use hyper::Method;
use serde_json::json;
use shards::outcome::{Code, Effected, Fault};
use shards::step::EffectClass;

use crate::net::client::is_safe;
use crate::net::decode::DecodeError;
use crate::net::error::{Failure, NetError, Phase};
use crate::policy::Refused;

/// A failure with what is needed to judge it.
pub(super) struct Told<'a> {
    pub(super) failure: Failure,
    pub(super) effect: EffectClass,
    pub(super) method: &'a Method,
}

impl Told<'static> {
    /// Before there was a request.
    pub(super) fn nothing(failure: Failure) -> Self {
        Told { failure, effect: EffectClass::Pure, method: &Method::GET }
    }

    /// One try took longer than the step gives it.
    pub(super) fn late(ms: u64, effect: EffectClass, method: &Method, sent: bool) -> Fault {
        let fault = Fault::new(Code::NetworkError, "The exchange took longer than one try may.");
        let fault = fault.with_details(json!({ "phase": "attempt", "ms": ms, "pointer": "/attempt_ms" }).to_string());
        fault.with_effect(touched(effect, method, sent))
    }
}

impl Told<'_> {
    /// As the step's fault.
    pub(super) fn fault(&self) -> Fault {
        of(&self.failure.error).with_effect(touched(self.effect, self.method, self.failure.sent))
    }
}

/// What may have happened on the other side.
fn touched(effect: EffectClass, method: &Method, sent: bool) -> Effected {
    if !sent || effect == EffectClass::Pure || is_safe(method) { Effected::None } else { Effected::Unknown }
}

/// The fault of an error; its sentence is fixed, what was said stands in the details.
pub(in crate::blocks) fn of(error: &NetError) -> Fault {
    let (code, sentence) = match error {
        NetError::Denied(denial) => return Refused::of(denial, "/url").fault(),
        NetError::NoSuchName => (Code::ConnectionError, "The host's name has no address."),
        NetError::Unresolved(_) => (Code::ConnectionError, "The host's name could not be looked up."),
        NetError::Full => (Code::ResourceUnavailable, "Too many names are being looked up."),
        NetError::Unreachable(_) => (Code::ConnectionError, "The host takes no connection."),
        // Another try would find the same certificate.
        NetError::Untrusted(_) => (Code::ExecutionFailed, "The host's certificate does not hold."),
        NetError::Tls(_) => (Code::ConnectionError, "The host could not be spoken to under TLS."),
        NetError::Late { phase: Phase::Dns, .. } => (Code::ConnectionError, "The host's name took too long to look up."),
        NetError::Late { phase: Phase::Connect, .. } => (Code::ConnectionError, "The host took too long to take the connection."),
        NetError::Late { phase: Phase::FirstByte, .. } => (Code::NetworkError, "The host took too long to answer."),
        NetError::Late { phase: Phase::Stall, .. } => (Code::NetworkError, "The answer stopped coming."),
        NetError::Broken(_) => (Code::NetworkError, "The exchange broke off."),
        NetError::Proxy(_) => (Code::ConnectionError, "The proxy let nothing through."),
        NetError::Redirects(_) => (Code::HttpError, "The host redirects further than the step allows."),
        NetError::Encoding(DecodeError::TooLarge(_)) => (Code::ExecutionFailed, "The answer is larger than the step takes."),
        NetError::Encoding(_) => (Code::ExecutionFailed, "The answer's encoding does not hold."),
        NetError::Blob => (Code::ResourceUnavailable, "The blob store does not answer now."),
        NetError::Secret(_) => (Code::ResourceUnavailable, "A secret that the connector needs cannot be read."),
    };
    let mut details = match error {
        NetError::Late { phase, ms } => json!({ "phase": phase.as_str(), "ms": ms }),
        NetError::Redirects(most) => json!({ "redirects": most, "pointer": "/redirects" }),
        NetError::Encoding(DecodeError::TooLarge(most)) => json!({ "bytes_max": most, "pointer": "/bytes_max" }),
        _ => json!({}),
    };
    details["cause"] = json!(error.to_string());
    Fault::new(code, sentence).with_details(details.to_string())
}
