//! A request as a message: under the native subject of its kind and tenant, so that there is one reading for whatever way a
//! step comes.
//!
//! Of a call's metadata only a tenant and a trace count; everything else does nothing.

use prost::Message;
use proto::v1;
use shards::ids::Text;
use shards::step::{Delivery, Headers, Origin};
use tonic::metadata::MetadataMap;

use crate::edge::native::{CANCEL_PREFIX, Encoding, SIGNALS_PREFIX, STEPS_PREFIX};
use crate::edge::reading::is_tenant;

/// What of a call's metadata counts. Crosses tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    /// Every tenant that was named.
    tenants: Vec<Text>,
    traceparent: Option<Text>,
}

impl Heads {
    /// Picks it out.
    pub(super) fn of(metadata: &MetadataMap) -> Heads {
        // What is no text is still another tenant than any.
        let text = |value: &tonic::metadata::AsciiMetadataValue| Text::from(value.to_str().unwrap_or("?"));
        Heads {
            tenants: metadata.get_all("tenant_id").iter().map(text).collect(),
            traceparent: metadata.get("traceparent").map(text),
        }
    }

    /// The same but for the trace: for many requests at once, each of which may name its own.
    pub(super) fn without_trace(self) -> Heads {
        Heads { traceparent: None, ..self }
    }

    /// Whether no other tenant than this one is named.
    pub(super) fn agree(&self, tenant: &str) -> bool {
        self.tenants.iter().all(|named| *named == tenant)
    }

    /// As the headers of a message; of several tenants the one that does not agree counts.
    fn headers(&self, tenant: &str) -> Headers {
        let mut headers = Headers::with_capacity(3);
        headers.push((Text::from_static("Content-Type"), Text::from_static(Encoding::Protobuf.media_type())));
        let other = self.tenants.iter().find(|named| **named != *tenant);
        if let Some(named) = other.or(self.tenants.first()) {
            headers.push((Text::from_static("tenant_id"), named.clone()));
        }
        if let Some(parent) = &self.traceparent {
            headers.push((Text::from_static("traceparent"), parent.clone()));
        }
        headers
    }
}

/// Whose a message is, as it says itself.
pub(super) fn tenant(context: Option<&v1::BlockContext>) -> &str {
    context.map_or("", |context| &context.tenant_id)
}

/// A step, for its shard.
pub(super) fn step(call: u64, request: &v1::StepRequest, heads: &Heads) -> Delivery {
    message(call, STEPS_PREFIX, tenant(request.context.as_ref()), request, heads)
}

/// A cancel, for the shard of its step.
pub(super) fn cancel(call: u64, cancel: &v1::StepCancel, heads: &Heads) -> Delivery {
    message(call, CANCEL_PREFIX, tenant(cancel.context.as_ref()), cancel, heads)
}

/// A signal, for the shard of its step.
pub(super) fn signal(call: u64, signal: &v1::Signal, heads: &Heads) -> Delivery {
    message(call, SIGNALS_PREFIX, tenant(signal.context.as_ref()), signal, heads)
}

fn message(call: u64, prefix: &'static str, tenant: &str, body: &impl Message, heads: &Heads) -> Delivery {
    // A tenant that cannot stand in a subject is left out there: the reading finds it in the message, and says what is wrong.
    let token = if is_tenant(tenant) { tenant } else { "" };
    Delivery {
        origin: Origin::Call(call),
        subject: Text::from(format!("{prefix}{token}")),
        headers: heads.headers(tenant),
        body: body.encode_to_vec().into(),
        reply: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(pairs: &[(&'static str, &str)]) -> Heads {
        let mut metadata = MetadataMap::new();
        for (name, value) in pairs {
            metadata.append(*name, value.parse().expect("a value"));
        }
        Heads::of(&metadata)
    }

    fn sent(tenant: &str, heads: &Heads) -> (String, Vec<(String, String)>) {
        let context = Some(v1::BlockContext { tenant_id: tenant.into(), ..Default::default() });
        let delivery = step(3, &v1::StepRequest { context, ..Default::default() }, heads);
        let headers = delivery.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        (delivery.subject.to_string(), headers)
    }

    #[test]
    fn only_tenant_and_trace_travel_and_the_tenant_that_disagrees_first() {
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let kind = own("Content-Type", "application/protobuf");
        let (subject, headers) = sent("acme", &heads(&[("x-anything", "1"), ("endstation-attempt", "7"), ("nats-msg-id", "x")]));
        assert_eq!((&*subject, headers), ("beamline.worker.steps.v1.acme", vec![kind.clone()]));
        let (_, headers) = sent("acme", &heads(&[("tenant_id", "acme"), ("tenant_id", "other"), ("traceparent", "00-1")]));
        assert_eq!(headers, [kind.clone(), own("tenant_id", "other"), own("traceparent", "00-1")]);
        let (_, headers) = sent("acme", &heads(&[("traceparent", "00-1")]).without_trace());
        assert_eq!(headers, [kind], "a stream's trace is not that of each of its steps");
    }

    #[test]
    fn a_tenant_that_is_no_token_stands_in_no_subject() {
        for tenant in ["", "a.b", "*", "a b", ">", "a\n"] {
            assert_eq!(sent(tenant, &Heads::default()).0, "beamline.worker.steps.v1.");
        }
    }

    #[test]
    fn every_tenant_that_is_named_must_agree() {
        assert!(heads(&[]).agree("acme"));
        assert!(heads(&[("tenant_id", "acme"), ("tenant_id", "acme")]).agree("acme"));
        assert!(!heads(&[("tenant_id", "acme"), ("tenant_id", "other")]).agree("acme"));
    }
}
