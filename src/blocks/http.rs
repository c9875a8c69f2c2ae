//! `http.request`: one HTTP exchange with the outside world, by the open network or through a connector.
//!
//! What running it twice may do follows from the method: GET, HEAD and OPTIONS are pure, PUT and DELETE idempotent, POST and
//! PATCH unsafe, unless the connector's other side runs a request once that comes twice with one `Idempotency-Key`: then each
//! carries the step's own key. An answer that goes into a blob that may not be replaced makes a pure request conditional.
//!
//! [`request`] reads the inputs, [`answer`] makes outputs of what comes back, [`fault`] says what failed and what may have
//! happened by then.

use std::borrow::Cow;
use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::future::{Either, select};
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use shards::block::{Blob, Block, BlockCx, BlockInfo, Local};
use shards::ids::{Key, hex};
use shards::outcome::{Code, Effected, Fault};
use shards::runtime::rt;
use shards::step::EffectClass;

use crate::net::client::{Order, is_safe};
use crate::net::decode;
use crate::net::error::{Failure, NetError};
use crate::net::payload::Payload;
use crate::policy::narrow::Guardrails;
use crate::policy::{Auth, Connector};
use crate::secrets::{Redaction, SecretRef};

use super::inputs::forbidden;
use super::{Ask, BLOBS, Checked, NO_SCOPES, Reach};

pub(super) mod answer;
pub(super) mod fault;
pub(super) mod graphql;
pub(super) mod plan;
mod request;
pub(super) mod sse;
mod stream;
#[cfg(test)]
pub(super) mod tests;

use fault::Told;
use request::{Content, Form, Request};

pub(super) static INFO: BlockInfo =
    BlockInfo { name: "http.request", aliases: &["http", graphql::NAME], version: "1.0.0", effect: EffectClass::Unsafe };

/// Who says it.
pub(super) const AGENT: &str = concat!("endstation/", env!("CARGO_PKG_VERSION"));
/// Which trace a request belongs to.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// By which the other side tells a request that comes twice.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// See the module. Lives on its core.
pub(super) struct Http {
    reach: Reach,
}

impl Http {
    pub(super) fn new(reach: &Reach) -> Self {
        Http { reach: reach.clone() }
    }

    /// One try; `sent` tells, even to who gives it up, whether the other side may have acted on it.
    async fn run(&self, cx: &BlockCx, request: &Request<'_>, sent: &Cell<bool>) -> Result<Bytes, Fault> {
        if matches!(request.form, Form::Stream) && cx.observers.is_none() {
            let details = r#"{"pointer":"/response","rule":"stream needs events.enabled"}"#;
            return Err(Fault::new(Code::ExecutionFailed, "This worker tells observers nothing.").with_details(details));
        }
        let policy = self.reach.policy.clone();
        let route = policy.route(&cx.tenant, request.connector.as_deref()).map_err(|refused| refused.fault())?;
        let guardrails = Guardrails::read(&cx.guardrails)?;
        let guard = guardrails.guard(route.guard);
        let target = request.target(&route, &guard)?;
        let effect = effect(request, route.connector.map(|(_, connector)| connector));
        // What could not be kept is not asked for.
        let keep = match &request.form {
            Form::Blob { connector, .. } => self.reach.blobs(cx, connector.as_deref(), "response_blob_connector")?,
            _ => cx.blobs.clone(),
        };
        let (mut headers, mut private, mut redaction) = (request.headers.clone(), Vec::new(), Redaction::default());
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        pass_on_trace(cx, &mut headers);
        headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static(decode::ACCEPTED));
        if let Some((_, connector)) = route.connector {
            sign(&connector.settings.auth, &mut headers, &mut private, &mut redaction)
                .map_err(|error| Told::nothing(Failure::unsent(error)).fault())?;
            if connector.settings.idempotency_key {
                headers.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(hex(&cx.key.0)).expect("digits"));
                private.push(IDEMPOTENCY_KEY);
            }
        }
        let body = match &request.content {
            Content::None => Payload::Empty,
            Content::Bytes(bytes, media_type) => {
                headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(media_type));
                Payload::Whole(bytes.clone())
            }
            Content::Blob { path, connector } => {
                let blobs = self.reach.blobs(cx, connector.as_deref(), "blob_connector")?;
                headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
                let blob = Rc::from(blobs.open(&cx.tenant, path).await?) as Rc<dyn Blob>;
                guardrails.fits(blob.size(), "blob")?;
                Payload::Blob(blob)
            }
        };
        let order = Order {
            tenant: &cx.tenant,
            guard: &guard,
            connector: route.connector.map(|(position, connector)| (position, &connector.trust)),
            proxy: policy.proxy(&route, &target),
            sent,
            method: request.method.clone(),
            target,
            headers,
            private,
            body,
            patience: request.patience,
            redirects_max: request.redirects_max,
        };
        let told = |failure| Told { failure, effect, method: &request.method };
        let begun_us = self.reach.client.now().mono_us;
        let answer = self.reach.client.fetch(order).await.map_err(|failure| told(failure).fault())?;
        if !request.expect.includes(answer.status) {
            let wall_ms = self.reach.client.now().wall_ms;
            return Err(answer::unexpected(answer, &redaction, effect, &request.method, wall_ms).await);
        }
        let elapsed_us = || self.reach.client.now().mono_us.saturating_sub(begun_us);
        let done = match &request.form {
            Form::Blob { path, overwrite, .. } => {
                answer::save((&*keep, &cx.tenant), answer, request, path, *overwrite, &redaction, elapsed_us).await
            }
            Form::Stream => stream::tell(cx, answer, request, redaction, elapsed_us).await,
            form => answer::show(answer, request, *form.inline(), &redaction, elapsed_us).await,
        };
        // The other side has said that it did it; what failed was to take its answer in.
        done.map_err(|fault| match effect {
            EffectClass::Pure => fault,
            _ if is_safe(&request.method) => fault,
            _ => fault.with_effect(Effected::Applied),
        })
    }
}

/// Tells the other side which trace the request belongs to, unless the step says so itself.
pub(super) fn pass_on_trace(cx: &BlockCx, headers: &mut HeaderMap) {
    if let Some(parent) = cx.trace_id.as_deref().and_then(|trace| traceparent(trace, &cx.key, cx.try_number)) {
        headers.entry(TRACEPARENT).or_insert(parent);
    }
}

/// As W3C Trace Context has it; none where the trace is no such one. The span is the step's own, another for each try.
pub(super) fn traceparent(trace: &str, key: &Key, try_number: u32) -> Option<HeaderValue> {
    let span = key.0.first_chunk().map_or(0, |half| u64::from_be_bytes(*half));
    let span = span.wrapping_add(u64::from(try_number)).max(1);
    is_trace(trace).then(|| HeaderValue::try_from(format!("00-{trace}-{span:016x}-01")).expect("digits"))
}

fn is_trace(text: &str) -> bool {
    text.len() == 32
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && text.bytes().any(|byte| byte != b'0')
}

/// A step before acceptance: its inputs, and what its tenant may reach.
pub(super) fn check(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let spelled_out = if ask.name == graphql::NAME { Some(graphql::spelled_out(ask.inputs)?) } else { None };
    let mut request = Request::read(spelled_out.as_deref().map_or(ask.inputs, str::as_bytes))?;
    let guardrails = &ask.narrow.guardrails;
    let too_much = request.keep_to(guardrails).err();
    let route = match ask.policy.route(ask.tenant, request.connector.as_deref()) {
        Ok(route) => route,
        Err(refused) => {
            let (denied, effect) = (Some(refused.fault()), effect(&request, None));
            return Ok(Checked { inputs: spelled_out.map(Bytes::from), denied, ..Checked::as_sent(effect) });
        }
    };
    let effect = effect(&request, route.connector.map(|(_, connector)| connector));
    // What is wrong with the place is wrong for good; what a policy says of it may change.
    let denied = match request.target(&route, &guardrails.guard(route.guard)) {
        Err(fault) if fault.code == Code::PermissionDenied => Some(fault),
        Err(fault) => return Err(fault),
        Ok(_) => None,
    };
    let denied = denied.or(too_much).or_else(|| stores_denied(ask, &request));
    let blobs = matches!(request.content, Content::Blob { .. }) || matches!(request.form, Form::Blob { .. });
    let scopes = if blobs { BLOBS } else { NO_SCOPES };
    drop(request);
    Ok(Checked { inputs: spelled_out.map(Bytes::from), scopes, denied, ..Checked::as_sent(effect) })
}

/// What forbids the stores that the body comes from and the answer goes to.
fn stores_denied(ask: &Ask<'_>, request: &Request<'_>) -> Option<Fault> {
    let from = match &request.content {
        Content::Blob { connector, .. } => ask.store_denied(connector.as_deref(), "blob_connector"),
        _ => None,
    };
    let Form::Blob { connector: Some(name), overwrite, .. } = &request.form else { return from };
    match ask.policy.store(ask.tenant, name, "response_blob_connector") {
        Ok(store) if !overwrite && !store.settings.if_absent => {
            Some(forbidden("overwrite", "true: this store cannot refuse to replace what is there"))
        }
        _ => from.or_else(|| ask.store_denied(Some(name), "response_blob_connector")),
    }
}

fn effect(request: &Request<'_>, connector: Option<&Connector>) -> EffectClass {
    let honoured = connector.is_some_and(|connector| connector.settings.idempotency_key);
    let by_method = match request.method.as_str() {
        "GET" | "HEAD" | "OPTIONS" => EffectClass::Pure,
        "PUT" | "DELETE" => EffectClass::Idempotent,
        _ if honoured => EffectClass::Idempotent,
        _ => EffectClass::Unsafe,
    };
    match request.form {
        Form::Blob { overwrite: false, .. } if by_method == EffectClass::Pure => EffectClass::Conditional,
        Form::Blob { .. } if by_method == EffectClass::Pure => EffectClass::Idempotent,
        _ => by_method,
    }
}

/// Says who the request comes from.
pub(super) fn sign(
    auth: &Auth,
    headers: &mut HeaderMap,
    private: &mut Vec<HeaderName>,
    redaction: &mut Redaction,
) -> Result<(), NetError> {
    let read = |secret: &SecretRef| secret.read().map_err(|error| NetError::Secret(error.to_string()));
    let (name, value) = match auth {
        Auth::None => return Ok(()),
        Auth::Bearer(token) => {
            let token = read(token)?;
            redaction.add(token.as_bytes());
            (AUTHORIZATION, zeroize::Zeroizing::new(format!("Bearer {}", &**token)))
        }
        Auth::Basic { user, password } => {
            let password = read(password)?;
            redaction.add(password.as_bytes());
            let pair = zeroize::Zeroizing::new(format!("{user}:{}", &**password));
            let pair = zeroize::Zeroizing::new(BASE64.encode(pair.as_bytes()));
            redaction.add(pair.as_bytes());
            (AUTHORIZATION, zeroize::Zeroizing::new(format!("Basic {}", &**pair)))
        }
        Auth::Header { name, value } => {
            let value = read(value)?;
            redaction.add(value.as_bytes());
            let name = HeaderName::from_bytes(name.as_bytes());
            (name.map_err(|_| NetError::Secret("the header's name is none".to_owned()))?, value)
        }
    };
    let broken = |_| NetError::Secret("the secret has characters that no header can carry".to_owned());
    let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(broken)?;
    value.set_sensitive(true);
    private.push(name.clone());
    headers.insert(name, value);
    Ok(())
}

impl Block for Http {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let mut request = Request::read(&cx.inputs)?;
            request.keep_to(&Guardrails::read(&cx.guardrails)?)?;
            let sent = Cell::new(false);
            let Some(ms) = request.attempt_ms else { return self.run(&cx, &request, &sent).await };
            let effect = self.effect_of(&request, &cx);
            let (work, timer) = (pin!(self.run(&cx, &request, &sent)), pin!(rt::sleep(Duration::from_millis(ms))));
            match select(work, timer).await {
                Either::Left((result, _)) => result,
                Either::Right(((), _)) => Err(Told::late(ms, effect, &request.method, sent.get())),
            }
        })
    }
}

impl Http {
    fn effect_of(&self, request: &Request<'_>, cx: &BlockCx) -> EffectClass {
        let route = self.reach.policy.route(&cx.tenant, request.connector.as_deref());
        effect(request, route.ok().and_then(|route| route.connector).map(|(_, connector)| connector))
    }
}

/// Text that was borrowed from inputs, as its owner.
type Words<'a> = Cow<'a, str>;
