//! `ai.generate`: a model's answer, from a provider that a connector leads to: OpenAI's interface or one like it, Anthropic's
//! Messages, or Ollama. Text, how a text goes on, or vectors; streamed where the step says so.
//!
//! Its effect class is pure: nothing stays behind on the other side, so another run harms nothing. It does cost again, and its text
//! may be another.
//!
//! [`wish`] reads the inputs, [`body`] writes them as each provider takes them, [`reply`] reads what they say, [`stream`] tells it
//! while it comes, [`refusal`] says what went wrong. The exchange itself is that of `http.request`.

use std::cell::Cell;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use serde_json::json;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::hex;
use shards::outcome::{Code, Fault};
use shards::step::EffectClass;

use crate::net::client::Order;
use crate::net::decode;
use crate::net::egress::Target;
use crate::net::payload::Payload;
use crate::policy::narrow::Guardrails;
use crate::policy::providers::{Kind, ProviderSettings, Served};
use crate::policy::{Policy, Refused};
use crate::secrets::Redaction;

use super::http::answer;
use super::http::{AGENT, IDEMPOTENCY_KEY, pass_on_trace, sign};
use super::inputs::missing;
use super::outputs::{json as json_text, push_text};
use super::source::HERE_BYTES;
use super::{Ask, Checked, Reach};

mod body;
pub(super) mod plan;
mod refusal;
mod reply;
mod stream;
#[cfg(test)]
pub(super) mod tests;
mod wish;

use body::Letter;
use refusal::Asked;
use reply::{Call, Reply, Vectors};
use wish::{Matter, Wish};

pub(super) static INFO: BlockInfo = BlockInfo {
    name: "ai.generate",
    aliases: &["text.generate", "chat", "completion", "embedding"],
    version: "1.0.0",
    effect: EffectClass::Pure,
};

/// Its names that say which operation is meant.
pub(super) const TELLING: &[&str] = &["chat", "completion", "embedding"];

/// Which form of its interface Anthropic is to answer in.
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// The largest answer that comes whole, decoded, in bytes: what it becomes stays below what the journal takes.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
const _: () = assert!(ANSWER_BYTES_MAX * 6 + (1 << 20) <= shards::limits::MESSAGE_BYTES_MAX as u64);

/// See the module. Lives on its core.
pub(super) struct Generate {
    reach: Reach,
}

/// Where a wish goes, by the policy as it is. Lives on its core.
struct Plan<'p> {
    served: Served<'p>,
    model: String,
    letter: Letter,
    target: Target,
}

/// Why there is no plan.
enum Unplanned {
    /// A policy forbids it; another policy may not.
    Denied(Refused),
    /// The provider has no such thing.
    Wrong(Fault),
}

impl Unplanned {
    fn fault(self) -> Fault {
        match self {
            Unplanned::Denied(refused) => refused.fault(),
            Unplanned::Wrong(fault) => fault,
        }
    }
}

/// A step before acceptance: its inputs, and whom its tenant may ask.
pub(super) fn check(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let inputs = wish::spelled_out(ask.name, ask.provider, ask.inputs)?;
    let wish = Wish::read(inputs.as_deref().map_or(ask.inputs, str::as_bytes))?;
    // What a provider does not take is a matter of how the connector is set up, too.
    let denied = plan(ask.policy, ask.tenant, &wish, &ask.narrow.guardrails).err().map(Unplanned::fault);
    Ok(Checked { inputs: inputs.map(Bytes::from), denied, ..Checked::as_sent(EffectClass::Pure) })
}

fn plan<'p>(policy: &'p Policy, tenant: &str, wish: &Wish<'_>, guardrails: &Guardrails) -> Result<Plan<'p>, Unplanned> {
    let served = policy.provider(tenant, wish.connector.as_deref(), wish.provider_id.as_deref()).map_err(Unplanned::Denied)?;
    let Served { route, connector, provider } = served;
    let model = match (&wish.model, provider.models.first()) {
        (Some(model), _) => model.to_string(),
        (None, Some(first)) => first.clone(),
        (None, None) => return Err(Unplanned::Wrong(missing("model", "required: the connector names none"))),
    };
    if !provider.models.is_empty() && !provider.models.contains(&model) {
        let rule = format!("connectors.{}.models does not list it", connector.name);
        return Err(Unplanned::Denied(Refused { rule, pointer: Some("/model".to_owned()) }));
    }
    let letter = body::letter(provider.kind, &model, wish).map_err(Unplanned::Wrong)?;
    let denied = |denial| Unplanned::Denied(Refused::of(&denial, "/connector"));
    let base = connector.settings.url.as_ref().map(|url| url.as_str().trim_end_matches('/')).unwrap_or_default();
    let target = Target::parse(&format!("{base}{}", letter.path)).map_err(denied)?;
    guardrails.guard(route.guard).check_target(&target).map_err(denied)?;
    guardrails.fits(letter.body.len() as u64, "messages").map_err(Unplanned::Wrong)?;
    Ok(Plan { served, model, letter, target })
}

impl Generate {
    pub(super) fn new(reach: &Reach) -> Self {
        Generate { reach: reach.clone() }
    }

    async fn run(&self, cx: &BlockCx, wish: &Wish<'_>) -> Result<Bytes, Fault> {
        let policy = self.reach.policy.clone();
        let guardrails = Guardrails::read(&cx.guardrails)?;
        let plan = plan(&policy, &cx.tenant, wish, &guardrails).map_err(Unplanned::fault)?;
        let Served { route, connector, provider } = plan.served;
        let guard = guardrails.guard(route.guard);
        let (mut headers, mut private, mut redaction) = (HeaderMap::new(), Vec::new(), Redaction::default());
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        pass_on_trace(cx, &mut headers);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(decode::ACCEPTED));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static(accepted(provider.kind, wish.stream)));
        if provider.kind == Kind::Anthropic {
            headers.insert(ANTHROPIC_VERSION, HeaderValue::from_static("2023-06-01"));
        }
        let signed = sign(&connector.settings.auth, &mut headers, &mut private, &mut redaction);
        let asked = Asked { connector: &connector.name, provider: provider.kind.as_str(), redaction: &redaction };
        signed.map_err(|error| asked.network(&error))?;
        if connector.settings.idempotency_key {
            headers.insert(IDEMPOTENCY_KEY, HeaderValue::try_from(hex(&cx.key.0)).expect("digits"));
            private.push(IDEMPOTENCY_KEY);
        }
        let sent = Cell::new(false);
        let order = Order {
            tenant: &cx.tenant,
            guard: &guard,
            connector: route.connector.map(|(position, connector)| (position, &connector.trust)),
            proxy: policy.proxy(&route, &plan.target),
            sent: &sent,
            method: Method::POST,
            target: plan.target,
            headers,
            private,
            body: Payload::Whole(Bytes::from(plan.letter.body)),
            patience: wish.patience,
            // A key goes to one place, and a redirect would lead to another.
            redirects_max: 0,
        };
        let begun_us = self.reach.client.now().mono_us;
        let mut answer = self.reach.client.fetch(order).await.map_err(|failure| asked.network(&failure.error))?;
        let first_us = self.reach.client.now().mono_us.saturating_sub(begun_us);
        if !answer.status.is_success() {
            let body = answer::excerpt(&mut answer).await;
            let wall_ms = self.reach.client.now().wall_ms;
            return Err(asked.status(answer.status.as_u16(), &answer.headers, &body, wall_ms));
        }
        let wrong = |wrong| asked.wrong(&wrong);
        let mut out = Outputs::new(wish, provider, &asked);
        // One that does not stream although it was asked to has answered all the same.
        let whole = !wish.stream || (provider.kind != Kind::Ollama && answer::media_type(&answer.headers) == "application/json");
        if whole {
            let body =
                answer::body(&mut answer, guardrails.bytes_max(ANSWER_BYTES_MAX)).await.map_err(|error| asked.network(&error))?;
            let kind = provider.kind;
            match &wish.matter {
                Matter::Texts(texts) => {
                    let texts = texts.len();
                    let vectors = self.read_out(body, move |body| Vectors::read(kind, body, texts)).await.map_err(wrong)?;
                    out.head(&plan.model, &vectors.reply);
                    out.vectors(&vectors.list).await;
                    out.usage(&vectors.reply);
                }
                _ => {
                    let reply = self.read_out(body, move |body| Reply::whole(kind, body)).await.map_err(wrong)?;
                    let told = if wish.stream { Some(stream::tell_whole(cx, &reply.text, &redaction).await) } else { None };
                    out.reply(&plan.model, &reply, told).await;
                }
            }
        } else {
            let (reply, told) = stream::tell(cx, answer, provider.kind, &asked).await?;
            out.reply(&plan.model, &reply, Some(told)).await;
        }
        let total_us = self.reach.client.now().mono_us.saturating_sub(begun_us);
        Ok(out.done(first_us, total_us))
    }
}

impl Generate {
    /// What a body comes to: one that is long is read on a compute thread.
    async fn read_out<T: Send + 'static>(&self, body: Bytes, read: impl FnOnce(&Bytes) -> T + Send + 'static) -> T {
        match body.len() {
            ..=HERE_BYTES => read(&body),
            _ => self.reach.compute.run(move || read(&body)).await,
        }
    }
}

fn accepted(kind: Kind, stream: bool) -> &'static str {
    match (kind, stream) {
        (_, false) => "application/json",
        (Kind::Ollama, true) => "application/x-ndjson",
        (_, true) => "text/event-stream",
    }
}

impl Block for Generate {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let wish = Wish::read(&cx.inputs)?;
            stream::bounded(self.run(&cx, &wish), wish.attempt_ms).await.unwrap_or_else(|| {
                let details = json!({ "phase": "attempt", "ms": wish.attempt_ms, "pointer": "/attempt_ms" });
                let fault = Fault::new(Code::NetworkError, "The exchange took longer than one try may.");
                Err(fault.with_details(details.to_string()))
            })
        })
    }
}

/// The outputs as they are written; what could hold a secret is freed of it.
struct Outputs<'a> {
    out: Vec<u8>,
    provider: &'a ProviderSettings,
    asked: &'a Asked<'a>,
    operation: &'static str,
}

impl<'a> Outputs<'a> {
    fn new(wish: &Wish<'_>, provider: &'a ProviderSettings, asked: &'a Asked<'a>) -> Self {
        Outputs { out: b"{".to_vec(), provider, asked, operation: wish.operation.as_str() }
    }

    fn clean(&self, text: &str) -> String {
        match self.asked.redaction.apply(text.as_bytes()) {
            Some(clean) => String::from_utf8_lossy(&clean).into_owned(),
            None => text.to_owned(),
        }
    }

    /// A member; it is not the first.
    fn member(&mut self, name: &str, json: &[u8]) {
        self.out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        self.out.extend_from_slice(json);
    }

    fn head(&mut self, model: &str, reply: &Reply) {
        self.out.extend_from_slice(b"\"provider\":");
        self.out.extend_from_slice(&json_text(self.asked.provider));
        self.member("connector", &json_text(self.asked.connector));
        self.member("operation", &json_text(self.operation));
        let model = self.clean(reply.model.as_deref().unwrap_or(model));
        self.member("model", &json_text(&model));
        if let Some(id) = &reply.id {
            let id = self.clean(id);
            self.member("id", &json_text(&id));
        }
    }

    async fn reply(&mut self, model: &str, reply: &Reply, told: Option<u64>) {
        self.head(model, reply);
        let text = self.clean(&reply.text);
        push_text(&mut self.out, "text", text.as_bytes()).await;
        let finish = reply.finish.map_or("other", reply::Finish::as_str);
        self.member("finish_reason", &json_text(finish));
        if !reply.calls.is_empty() {
            let calls: Vec<_> = reply.calls.iter().map(|call| self.call(call)).collect();
            self.member("tool_calls", &json_text(&calls));
        }
        if let Some(told) = told {
            self.member("streamed", told.to_string().as_bytes());
        }
        self.usage(reply);
    }

    fn call(&self, call: &Call) -> serde_json::Value {
        let Call { id, name, arguments } = call;
        json!({ "id": self.clean(id), "name": self.clean(name), "arguments": self.clean(arguments) })
    }

    async fn vectors(&mut self, list: &[Bytes]) {
        self.out.extend_from_slice(b",\"embeddings\":[");
        for (at, vector) in list.iter().enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            self.out.extend_from_slice(vector);
            glommio::yield_if_needed().await;
        }
        self.out.push(b']');
    }

    /// Tokens, and what they cost where both are known.
    fn usage(&mut self, reply: &Reply) {
        let (input, output) = match (reply.usage.input, reply.usage.output) {
            (Some(input), Some(output)) => (input, output),
            // Half of it says nothing of the whole.
            _ => return,
        };
        let usage = json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output });
        self.member("usage", usage.to_string().as_bytes());
        if let Some(prices) = &self.provider.prices {
            self.member("cost", json!(prices.cost(input, output)).to_string().as_bytes());
            self.member("currency", &json_text(&self.provider.currency));
        }
    }

    fn done(mut self, first_us: u64, total_us: u64) -> Bytes {
        let ms = |us: u64| format!("{}.{:02}", us / 1_000, us % 1_000 / 10);
        let timing = format!("{{\"first_byte\":{},\"total\":{}}}", ms(first_us), ms(total_us));
        self.member("timing_ms", timing.as_bytes());
        self.out.push(b'}');
        Bytes::from(self.out)
    }
}
