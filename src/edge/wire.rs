//! [`EdgeWire`]: the one place where messages become arrivals and letters become messages.
//!
//! `decode` reads a message as far as it can be read and never fails; `render` writes a letter in its asker's profile.
//! Both are pure: the same message gives the same key, fingerprint and asker whenever it is read, from a stream, from a
//! file or back from the journal, and the same letter gives the same bytes.
//!
//! Reading does not build a tree: the body is walked once, which checks it and leaves a tape of where its members stand; ids
//! and inputs are slices of it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use shards::block::Demand;
use shards::event::{Hold, Letter, Post, Reply};
use shards::gate::Gate;
use shards::ids::{AskerId, BlockId, Fingerprint, Identity, Key, Now, Salt, Text};
use shards::limits::Limits;
use shards::map::partition;
use shards::outcome::{Code, Fault, Outcome, Status};
use shards::runtime::ports::{About, Outlet, Parcel, Wire};
use shards::step::{Arrival, Asker, Content, Delivery, EffectClass, Headers, Needs, Notice, Origin, Profile, Source, Work};

use crate::blocks;
use crate::edge::fingerprint::{Canon, field};
use crate::edge::json::Tape;
use crate::edge::native::Encoding;
use crate::edge::reading::{Ask, Heads, Mail, Reading, Unreadable, is_assignment, unsupported};
use crate::edge::roll::Roll;
use crate::edge::{answer, beamline, event, native, notice, protobuf, waiting};
use crate::policy::Policy;
use crate::policy::narrow::{Guardrails, Narrow, Scopes};
use crate::policy::signers::Kind;

/// How the subject of a line's delivery begins. No NATS subject has a space in it, so a message that was read back from
/// the journal still shows that it was a line.
const LINE_SUBJECT_PREFIX: &str = "line ";
/// The flow that a forced attempt of a step without coordinates is keyed under; `$` marks names of ours.
const LINE_FLOW: &str = "$line";
/// What stands before a block's name in the fingerprint of a step that only says what it would do; no block's name has a blank.
const SANDBOX: &str = "dry run of ";
/// The subject token of events about messages whose tenant could not be read.
const NO_TENANT: &str = "$quarantine";

/// Finds a block by one of its names and looks at its inputs, and at what this tenant may do with it.
pub type Lookup = fn(&Query<'_>) -> Result<Found, Fault>;

/// A step that a block is looked for. Lives on its core.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// What the block looks at; its inputs, or where they are.
    pub step: blocks::Ask<'a>,
    /// Whether outputs of an earlier step will do.
    pub cached: bool,
    /// Whether it is only to say what it would do.
    pub sandbox: bool,
    /// Whether what it would do is asked for, as a digest.
    pub plan: bool,
    /// Whether blocks for development are there.
    pub dev: bool,
}

/// What [`Lookup`] finds.
#[derive(Clone, Debug)]
pub struct Found {
    /// The block.
    pub block: BlockId,
    /// The block that it counts as.
    pub kind: BlockId,
    /// Its canonical name.
    pub canonical: &'static str,
    /// What running it twice with these inputs may do.
    pub effect: EffectClass,
    /// The inputs to run it with, where they are not those that came.
    pub inputs: Option<Bytes>,
    /// What it needs of the machine.
    pub demand: Demand,
    /// It waits for people, on these terms.
    pub gate: Option<Rc<Gate>>,
    /// A policy forbids it.
    pub denied: Option<Fault>,
    /// The digest of what it would do, where that is asked for and can be told.
    pub plan_digest: Option<String>,
}

/// What the translation needs to know. Shared, never changes while the process runs.
#[derive(Clone, Debug)]
pub struct WireSettings {
    /// This worker's id.
    pub worker_id: Text,
    /// The deployment's secret.
    pub salt: Salt,
    /// The worker's bounds.
    pub limits: Limits,
    /// Where acks go.
    pub ack_subject: Text,
    /// Where results go.
    pub result_subject: Text,
    /// Where dead letters go.
    pub dlq_subject: Text,
    /// Where lifecycle events go: this, a dot, the tenant.
    pub events_prefix: Text,
    /// Whether lifecycle events are sent at all.
    pub events: bool,
    /// The workers that stand in for each other, by a name of theirs: see [`waiting::crew`].
    pub crew: Text,
    /// Which start of this worker it is.
    pub boot: u32,
    /// Whether blocks for development are there.
    pub dev: bool,
    /// Whether there is a device for the gpu lane.
    pub device: bool,
    /// The block table.
    pub blocks: Lookup,
    /// The same for inputs by reference, which is looked at in their place.
    pub references: Lookup,
    /// What tenants may do.
    pub policy: Arc<Policy>,
}

impl WireSettings {
    /// The subjects and limits that ship.
    pub fn shipped(worker_id: Text, salt: Salt, blocks: Lookup) -> Self {
        WireSettings {
            worker_id,
            salt,
            limits: Limits::default(),
            ack_subject: Text::from_static("caf.exec.assign.v1.ack"),
            result_subject: Text::from_static("caf.exec.result.v1"),
            dlq_subject: Text::from_static("caf.exec.dlq.v1"),
            events_prefix: Text::from_static("beamline.worker.events"),
            events: true,
            crew: Text::from_static("crew"),
            boot: 1,
            dev: false,
            device: false,
            blocks,
            references: |_| Err(unsupported("/payload_ref")),
            policy: Arc::new(Policy::shut()),
        }
    }
}

/// Names a line's assignment; honoured on lines alone.
pub const HEADER_ASSIGNMENT: &str = "endstation-assignment-id";
/// Names a line's attempt; honoured on lines alone.
pub const HEADER_ATTEMPT: &str = "endstation-attempt";
/// Makes a line only say what it would do; honoured on lines alone.
pub const HEADER_SANDBOX: &str = "endstation-sandbox";

/// The translation between messages and the machine's types. Lives on its core.
#[derive(Debug)]
pub struct EdgeWire {
    settings: WireSettings,
    tape: RefCell<Tape>,
    canon: RefCell<Canon>,
    roll: RefCell<Roll>,
    /// What a signature is over, put together.
    signed: RefCell<Vec<u8>>,
}

/// The subject for lines of the file `name`.
pub fn line_subject(name: &str) -> Text {
    format!("{LINE_SUBJECT_PREFIX}{name}").into()
}

/// Whether a message is a line of a file or pipe, read now or read back.
fn is_line(delivery: &Delivery) -> bool {
    match delivery.origin {
        Origin::Line(_) => true,
        Origin::Journal { source, .. } => source == Source::Line,
        Origin::Core | Origin::Stream(_) | Origin::Call(_) => false,
    }
}

/// A message is not signed as it must be.
fn unsigned(rule: &str) -> Fault {
    let details = serde_json::json!({ "rule": rule });
    Fault::new(Code::SignatureInvalid, "the message is not signed as it must be").with_details(details.to_string())
}

/// Outputs of a step cannot be used again.
fn not_kept(rule: &str) -> Fault {
    let details = serde_json::json!({ "field": "/cache", "rule": rule });
    Fault::new(Code::InvalidInput, "outputs of the step cannot be kept").with_details(details.to_string())
}

/// A step is about to do something else than the plan that its sender requires.
fn unlike(required: &str, now: Option<&str>) -> Option<Fault> {
    let rule = match now {
        Some(now) if now == required => return None,
        Some(_) => "the digest of what the step would do now",
        None => {
            "left out: what the step would do cannot be told without reading its inputs, unless payload_ref says their sha256"
        }
    };
    let details = serde_json::json!({ "field": "/require_plan", "rule": rule, "required": required, "plan_digest": now });
    let fault = Fault::new(Code::PermissionDenied, "The step would do something else than the plan that is required.");
    Some(fault.with_details(details.to_string()))
}

/// A body that takes of a try's credit for as long as somebody holds it.
struct Owed {
    body: Bytes,
    _hold: Hold,
}

impl AsRef<[u8]> for Owed {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// An arrival but for the delivery it came in.
struct Read {
    tenant: Text,
    key: Key,
    fingerprint: Fingerprint,
    asker: Option<Asker>,
    content: Content,
}

impl EdgeWire {
    /// A translation with these settings.
    pub fn new(settings: WireSettings) -> Self {
        EdgeWire {
            settings,
            tape: RefCell::default(),
            canon: RefCell::default(),
            roll: RefCell::default(),
            signed: RefCell::default(),
        }
    }

    fn read(&self, delivery: &Delivery, since_ms: u64) -> Read {
        let mut tape = self.tape.borrow_mut();
        let read = self.try_read(delivery, since_ms, &mut tape);
        tape.trim();
        match read {
            Ok(read) => read,
            Err(Unreadable { tenant, fault }) => Read {
                tenant,
                key: self.settings.salt.quarantine_key(&delivery.subject, &delivery.headers, &delivery.body),
                fingerprint: raw_fingerprint(&delivery.body),
                asker: None,
                content: Content::Garbage(fault),
            },
        }
    }

    fn try_read(&self, delivery: &Delivery, since_ms: u64, tape: &mut Tape) -> Result<Read, Unreadable> {
        if notice::is_notice(&delivery.subject) {
            let (tenant, key, notice) = notice::read(delivery, &self.settings.salt, &self.settings.limits, tape);
            let size_max = self.settings.limits.payload_bytes_max;
            // Nothing is computed over what is too large, so nothing would be known of its signature either.
            let notice = if delivery.body.len() as u64 > size_max {
                Notice::Refused(Fault::new(Code::InvalidInput, "the message is larger than this worker takes"))
            } else {
                notice
            };
            let checked = self.check_signature(notice::kind(&delivery.subject), &tenant, delivery, since_ms);
            let notice = match checked {
                Ok(_) => notice::signed_by(notice, self.settings.policy.signer(delivery)),
                Err(fault) => Notice::Refused(fault),
            };
            return Ok(Read { tenant, key, fingerprint: Fingerprint([0; 32]), asker: None, content: Content::Notice(notice) });
        }
        let garbage = |why| Unreadable::new(Fault::new(Code::InvalidFormat, why));
        let line = is_line(delivery);
        let (body, unsaid) = match Encoding::of(delivery) {
            Encoding::Protobuf => {
                protobuf::request_text(&delivery.body).map_err(|_| garbage("the message is not a StepRequest in protobuf"))?
            }
            Encoding::Json => {
                (Text::try_from(delivery.body.clone()).map_err(|_| garbage("the message is not UTF-8 text"))?, None)
            }
        };
        let doc = tape.read(&body).ok_or_else(|| garbage("the message is not JSON"))?;
        if !doc.top().is_object() {
            return Err(garbage("the message is not a JSON object"));
        }
        let limits = &self.settings.limits;
        let size = delivery.body.len();
        let fault = if size as u64 > limits.payload_bytes_max {
            let details = format!(r#"{{"size_bytes":{size},"payload_bytes_max":{}}}"#, limits.payload_bytes_max);
            Some(Fault::new(Code::InvalidInput, "the message is larger than this worker takes").with_details(details))
        } else {
            unsaid
        };
        let heads = Heads::read(&delivery.headers);
        let dry = line && heads.sandbox.is_some();
        let forced = if line { heads.attempt.and_then(|attempt| attempt.parse().ok()) } else { None };
        let mut mail = Mail { body: &body, doc: &doc, subject: &delivery.subject, heads, line, fault, limits };
        let native = native::is_native(&mail);
        let mut reading = if native { native::read(&mut mail)? } else { beamline::read(&mut mail)? };
        if let Ok(ask) = &mut reading.ask {
            ask.sandbox |= dry;
        }
        // Before anything of it counts: what is not signed as it must be is nobody's.
        reading.ceiling = self.check_signature(Kind::Step, &reading.tenant, delivery, since_ms).map_err(|fault| {
            let tenant = reading.tenant.clone();
            Unreadable { tenant, fault }
        })?;
        Ok(self.arrive(&body, delivery, reading, forced, since_ms))
    }

    /// The scopes that a message's signer leaves to it.
    fn check_signature(&self, kind: Kind, tenant: &str, delivery: &Delivery, at_ms: u64) -> Result<Option<Scopes>, Fault> {
        if delivery.body.len() as u64 > self.settings.limits.payload_bytes_max {
            // Nothing is computed over what is refused for its size; and nobody is answered who has to sign.
            let demanded = self.settings.policy.demands_signature(tenant) && !matches!(delivery.origin, Origin::Journal { .. });
            return if demanded { Err(unsigned("the message is larger than this worker takes")) } else { Ok(None) };
        }
        let signed = self.settings.policy.check_signature(kind, tenant, delivery, at_ms, &mut self.signed.borrow_mut());
        signed.map_err(|rule| unsigned(&rule))
    }

    /// Names the step and its asker, and looks its block up.
    fn arrive(&self, body: &Text, delivery: &Delivery, mut reading: Reading<'_>, forced: Option<u64>, since_ms: u64) -> Read {
        let salt = &self.settings.salt;
        reading.attempt = forced.or(reading.attempt);
        let assignment_id = std::mem::take(&mut reading.assignment_id);
        let assignment_id = if assignment_id.is_empty() { self.derived_id(delivery, &reading) } else { assignment_id };
        let work = match std::mem::replace(&mut reading.ask, Err(Fault::new(Code::InternalError, ""))) {
            Ok(ask) => self.work(body, &reading, ask, since_ms),
            Err(fault) => Err(fault),
        };
        let (key, fingerprint, content) = match work {
            Ok((fingerprint, work)) => {
                let key = salt.key(identity(&reading, &assignment_id, forced));
                (key, fingerprint, Content::Work(work))
            }
            Err(fault) => {
                let key = salt.answer_key(&reading.tenant, &assignment_id);
                (key, raw_fingerprint(&delivery.body), Content::Refusal(fault))
            }
        };
        let asker = Asker {
            id: salt.asker(key, &assignment_id),
            profile: reading.profile,
            assignment_id,
            request_id: reading.request_id,
            trace_id: reading.trace_id,
            provider_id: reading.provider_id,
            job_type: reading.job_type,
            run_id: reading.run_id,
            flow_id: reading.flow_id,
            step_id: reading.step_id,
            attempt: reading.attempt,
        };
        Read { tenant: reading.tenant, key, fingerprint, asker: Some(asker), content }
    }

    /// An assignment id for a native step that came without one: its coordinates' key, else the message's own hash.
    fn derived_id(&self, delivery: &Delivery, reading: &Reading<'_>) -> Text {
        let salt = &self.settings.salt;
        match identity(reading, "", None) {
            place @ Identity::Coordinates { .. } => format!("step-{}", salt.key(place)).into(),
            Identity::Assignment { .. } => {
                format!("message-{}", salt.quarantine_key(&delivery.subject, &[], &delivery.body)).into()
            }
        }
    }

    fn work(&self, body: &Text, reading: &Reading<'_>, ask: Ask<'_>, since_ms: u64) -> Result<(Fingerprint, Work), Fault> {
        let (tenant, name, provider) = (&reading.tenant, &reading.job_type, &reading.provider_id);
        let inputs = match ask.reference.or(ask.inputs) {
            Some(text) => body.as_bytes().slice_ref(text.as_bytes()),
            None => Bytes::from_static(b"{}"),
        };
        if ask.cache.is_some() && ask.reference.is_some() {
            return Err(not_kept("not beside payload_ref: what is there may be another thing each time"));
        }
        let look = if ask.reference.is_some() { self.settings.references } else { self.settings.blocks };
        let narrow = Narrow {
            scopes: match (ask.scopes, reading.ceiling) {
                (Some(asked), Some(ceiling)) => Some(asked.and(ceiling)),
                (asked, ceiling) => asked.or(ceiling),
            },
            guardrails: Guardrails::read(ask.guardrails.unwrap_or_default().as_bytes())?,
        };
        let WireSettings { policy, dev, .. } = &self.settings;
        let step = blocks::Ask { policy, tenant, name, inputs: &inputs, provider, narrow: &narrow };
        let (sandbox, plan) = (ask.sandbox, ask.require_plan.is_some());
        let found = look(&Query { step, cached: ask.cache.is_some(), sandbox, plan, dev: *dev })?;
        if ask.effect_ceiling.is_some_and(|ceiling| found.effect > ceiling) {
            let fault = Fault::new(Code::PermissionDenied, "the block may do more than the sender allows");
            return Err(fault.with_details(field("/effect_ceiling")));
        }
        if ask.cache.is_some() && found.effect != EffectClass::Pure {
            return Err(not_kept("only for a step whose effect class is pure"));
        }
        if ask.cache.is_some() && found.gate.is_some() {
            return Err(not_kept("not for a step that waits for people"));
        }
        let rewritten = found.inputs.as_deref().map(|inputs| std::str::from_utf8(inputs).unwrap_or_default());
        // What only says what it would do is another step: its outcome never stands for that of one that does it.
        let block: Cow<'_, str> = if sandbox { format!("{SANDBOX}{}", found.canonical).into() } else { found.canonical.into() };
        let fingerprint = self.canon.borrow_mut().fingerprint(&block, ask.content, rewritten)?;
        let (needs, lacking) = ask.needs.settle(found.demand, self.settings.device, &self.settings.limits);
        let changed = ask.require_plan.and_then(|required| unlike(&required, found.plan_digest.as_deref()));
        let work = Work {
            block: found.block,
            kind: found.kind,
            effect: if sandbox { EffectClass::Pure } else { found.effect },
            inputs: found.inputs.unwrap_or(inputs),
            priority: ask.priority,
            // How long people have, their step itself says.
            budget_ms: found.gate.as_ref().map_or(ask.budget_ms, |gate| gate.wait_ms()),
            not_after_ms: ask.not_after_ms.unwrap_or(since_ms.saturating_add(self.settings.limits.horizon_ms)),
            retry: ask.retry,
            note: ask.note,
            effect_ceiling: ask.effect_ceiling,
            needs: if sandbox { Needs::default() } else { needs },
            guardrails: ask.guardrails.map_or_else(Bytes::new, |text| body.as_bytes().slice_ref(text.as_bytes())),
            cache: ask.cache.filter(|_| !sandbox),
            // What only says what it would do asks nobody.
            gate: found.gate.filter(|_| !sandbox),
            sandbox,
            denied: found.denied.or(lacking).map(Box::new),
            changed: changed.map(Box::new),
        };
        Ok((fingerprint, work))
    }

    /// The headers of a letter. They agree with its payload, and a message id is always among them.
    fn headers(&self, arrival: &Arrival, message_id: Text, extra: usize) -> Headers {
        let mut headers = Headers::with_capacity(4 + extra);
        headers.push((Text::from_static("Nats-Msg-Id"), message_id));
        headers.push((Text::from_static("version"), Text::from_static("1")));
        if !arrival.tenant.is_empty() {
            headers.push((Text::from_static("tenant_id"), arrival.tenant.clone()));
        }
        let trace = arrival.asker.as_ref().and_then(|asker| asker.trace_id.as_ref());
        if let Some(trace) = trace.filter(|trace| is_assignment(trace)) {
            headers.push((Text::from_static("trace_id"), trace.clone()));
        }
        headers
    }

    /// The headers of an ack: its payload says the rest, unless the router would not take the trace there.
    fn ack_headers(asker: &Asker, message_id: Text) -> Headers {
        let mut headers = Headers::with_capacity(1);
        headers.push((Text::from_static("Nats-Msg-Id"), message_id));
        let trace = asker.trace_id.as_ref().filter(|trace| is_assignment(trace));
        if let Some(trace) = trace.filter(|_| answer::payload_trace(asker).is_none()) {
            headers.push((Text::from_static("trace_id"), trace.clone()));
        }
        headers
    }

    /// A result for the reader of a file's answers.
    fn line_answer(&self, arrival: &Arrival, outcome: &Outcome, replayed: bool) -> Bytes {
        self.roll.borrow_mut().cut(|pen| match &arrival.asker {
            Some(asker) if asker.profile == Profile::Beamline => {
                answer::result(pen, &self.settings, arrival, asker, outcome, Some(replayed));
            }
            _ => native::step_result(pen, arrival, outcome, Some(replayed)),
        })
    }

    /// Subject and headers of an event under this id.
    fn of_event(&self, roll: &mut Roll, arrival: &Arrival, id: Text) -> (Text, Headers) {
        let mut headers = self.headers(arrival, id, 1);
        headers.push((Text::from_static("Content-Type"), Text::from_static(event::CONTENT_TYPE)));
        let tenant = if arrival.tenant.is_empty() { NO_TENANT } else { &arrival.tenant };
        (roll.text(|pen| _ = pen.raw(&self.settings.events_prefix).raw(".").raw(tenant)), headers)
    }

    fn own_hash(&self, delivery: &Delivery) -> Key {
        self.settings.salt.quarantine_key(&delivery.subject, &delivery.headers, &delivery.body)
    }

    fn render_line(&self, arrival: &Arrival, letter: &Letter) -> Option<(Outlet, Text, Headers, Bytes)> {
        let (outcome, replayed) = match letter {
            Letter::Result { outcome, replayed, .. } => (outcome, *replayed),
            Letter::DeadLetter { .. } => return self.render_message(arrival, letter),
            Letter::Ack { .. }
            | Letter::Lifecycle { .. }
            | Letter::ApprovalNeeded { .. }
            | Letter::Copy { .. }
            | Letter::NoCopy
            | Letter::Progress { .. }
            | Letter::Reply(_) => return None,
        };
        // Its reader went with the run that read it; a later run that has the same line asks for itself.
        if !matches!(arrival.delivery.origin, Origin::Line(_)) {
            return None;
        }
        Some((Outlet::Result, arrival.delivery.subject.clone(), Headers::new(), self.line_answer(arrival, outcome, replayed)))
    }

    fn render_message(&self, arrival: &Arrival, letter: &Letter) -> Option<(Outlet, Text, Headers, Bytes)> {
        let settings = &self.settings;
        let roll = &mut *self.roll.borrow_mut();
        Some(match letter {
            Letter::Ack { accepted, fault, overload, at_ms } => {
                let asker = arrival.asker.as_ref().filter(|asker| asker.profile == Profile::Beamline)?;
                // The router may have had its answer long ago: a late refusal must not look like a second one.
                if fault.as_ref().is_some_and(|fault| fault.code == Code::Expired) {
                    return None;
                }
                let headers = Self::ack_headers(asker, message_id(roll, "a-", asker.id));
                let body = roll.cut(|pen| answer::ack(pen, arrival, asker, *accepted, fault.as_ref(), *overload, *at_ms));
                (Outlet::Ack, settings.ack_subject.clone(), headers, body)
            }
            Letter::Result { outcome, under, .. } => {
                let asker = arrival.asker.as_ref()?;
                let expired = outcome.fault.as_ref().is_some_and(|fault| fault.code == Code::Expired);
                if outcome.status == Status::Quarantined || (expired && asker.profile == Profile::Beamline) {
                    return None;
                }
                match asker.profile {
                    Profile::Beamline => {
                        let headers = self.headers(arrival, message_id(roll, "r-", asker.id), 0);
                        let body = roll.cut(|pen| answer::result(pen, settings, arrival, asker, outcome, None));
                        (Outlet::Result, settings.result_subject.clone(), headers, body)
                    }
                    Profile::Native => {
                        // Only the step's own outcome may take the place that its subject has for one.
                        let (tenant, key) = (&arrival.tenant, under);
                        let subject = roll.text(|pen| _ = pen.raw(native::RESULTS_PREFIX).raw(tenant).raw(".").hex(&key.0));
                        let encoding = Encoding::of(&arrival.delivery);
                        let body = match encoding {
                            Encoding::Json => roll.cut(|pen| native::step_result(pen, arrival, outcome, None)),
                            Encoding::Protobuf => protobuf::step_result(arrival, outcome),
                        };
                        let mut headers = self.headers(arrival, message_id(roll, "r-", asker.id), 2);
                        headers.push((Text::from_static("Content-Type"), Text::from_static(encoding.media_type())));
                        headers.push((Text::from_static(native::CREATE_ONLY), Text::from_static("0")));
                        (Outlet::Result, subject, headers, body)
                    }
                }
            }
            Letter::Lifecycle { stage, outcome, sequence, at_ms } => {
                if !settings.events {
                    return None;
                }
                let (mark, name) = (mark(arrival), event::name(*stage));
                let id = roll.text(|pen| _ = pen.raw("e-").hex(mark).raw("-").raw(name).raw("-").int(u64::from(*sequence)));
                let told = event::Told { id: &id, sequence: *sequence, at_ms: *at_ms };
                let body = roll.cut(|pen| event::lifecycle(pen, settings, arrival, &told, *stage, outcome.as_deref()));
                let (subject, headers) = self.of_event(roll, arrival, id);
                (Outlet::Event, subject, headers, body)
            }
            Letter::ApprovalNeeded { why, escalated, until_ms, sequence, at_ms } => {
                let gate = arrival.work().and_then(|work| work.gate.as_ref()).filter(|_| settings.events)?;
                let (mark, boot) = (mark(arrival), u64::from(settings.boot));
                // A later life asks again, under the same numbers.
                let id = roll.text(|pen| {
                    _ = pen.raw("e-").hex(mark).raw("-approval_needed-").int(boot).raw("-").int(u64::from(*sequence));
                });
                let told = event::Told { id: &id, sequence: *sequence, at_ms: *at_ms };
                let asked = event::Asked { why: *why, escalated: *escalated, until_ms: *until_ms };
                let body = roll.cut(|pen| event::approval(pen, settings, arrival, &told, gate, &asked));
                let (subject, headers) = self.of_event(roll, arrival, id);
                (Outlet::Event, subject, headers, body)
            }
            Letter::Copy { frames } => {
                // The same writing is stored once, however often it is sent, and never over a newer one.
                let tag = frames.last_chunk::<16>().copied().unwrap_or_default();
                let id = roll.text(|pen| _ = pen.raw("c-").hex(&arrival.key.0).raw("-").hex(&tag));
                let headers = vec![(Text::from_static("Nats-Msg-Id"), id)];
                (Outlet::Copy, waiting::subject(&settings.crew, &arrival.key).into(), headers, frames.clone())
            }
            Letter::NoCopy => {
                let (subject, body) = waiting::removal(&settings.crew, &arrival.key);
                (Outlet::Copy, subject.into(), Headers::new(), body)
            }
            Letter::Progress { chunk, try_number, sequence, at_ms } => {
                if !settings.events {
                    return None;
                }
                // What a later life says under the same number is another thing.
                let (mark, boot) = (mark(arrival), u64::from(settings.boot));
                let id = roll.text(|pen| {
                    _ = pen.raw("e-").hex(mark).raw("-progress-").int(boot).raw("-").int(u64::from(*sequence));
                });
                let told = event::Told { id: &id, sequence: *sequence, at_ms: *at_ms };
                let body = roll.cut(|pen| event::progress(pen, settings, arrival, &told, &chunk.text, *try_number));
                // Its credit comes back when the message is written and nobody holds it any more.
                let body = Bytes::from_owner(Owed { body, _hold: chunk.hold.clone() });
                let (subject, headers) = self.of_event(roll, arrival, id);
                (Outlet::Event, subject, headers, body)
            }
            Letter::Reply(reply) => {
                // Where nobody waits there is nobody to tell.
                let subject = arrival.delivery.reply.clone()?;
                let outlet = if *reply == Reply::Unknown { Outlet::Doubt } else { Outlet::Reply };
                let media_type = Encoding::of(&arrival.delivery).media_type();
                let headers = vec![(Text::from_static("Content-Type"), Text::from_static(media_type))];
                (outlet, subject, headers, notice::reply(roll, &arrival.delivery, reply))
            }
            Letter::DeadLetter { outcome, earlier } => {
                let code = answer::dead_code(outcome);
                let mark = match outcome.status {
                    // A message put aside goes by its own bytes: another of the same asker is another dead letter.
                    Status::Quarantined => self.own_hash(&arrival.delivery).0,
                    _ => *mark(arrival),
                };
                let id = roll.text(|pen| _ = pen.raw("d-").hex(&mark).raw("-").raw(code));
                let mut headers = self.headers(arrival, id, 3);
                headers.push((Text::from_static("x-dlq-reason"), Text::from_static(code)));
                let original = arrival.delivery.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("nats-msg-id"));
                // A line break would end the header, and the client refuses to send it.
                if let Some((_, id)) = original.filter(|(_, id)| !id.contains(['\r', '\n'])) {
                    headers.push((Text::from_static("x-original-msg-id"), id.clone()));
                }
                // A line's subject is its file's name, and that may be anything.
                let original = &arrival.delivery.subject;
                if !original.contains(['\r', '\n']) {
                    headers.push((Text::from_static("x-original-subject"), original.clone()));
                }
                let body = roll.cut(|pen| answer::dead_letter(pen, settings, arrival, outcome, earlier));
                let native_line =
                    is_line(&arrival.delivery) && arrival.asker.as_ref().is_some_and(|asker| asker.profile == Profile::Native);
                let subject = if native_line || arrival.delivery.subject.starts_with(native::STEPS_PREFIX) {
                    let tenant = if arrival.tenant.is_empty() { NO_TENANT } else { &arrival.tenant };
                    roll.text(|pen| _ = pen.raw(native::DLQ_PREFIX).raw(tenant))
                } else {
                    settings.dlq_subject.clone()
                };
                (Outlet::DeadLetter, subject, headers, body)
            }
        })
    }
}

impl Wire for EdgeWire {
    fn decode(&self, delivery: Delivery, now: Now) -> Arrival {
        let (received_ms, since_ms) = match &delivery.origin {
            Origin::Journal { since_ms, .. } => (*since_ms, *since_ms),
            Origin::Stream(token) => (now.wall_ms, token.stored_ms),
            Origin::Line(_) | Origin::Core | Origin::Call(_) => (now.wall_ms, now.wall_ms),
        };
        let Read { tenant, key, fingerprint, asker, content } = self.read(&delivery, since_ms);
        Arrival { partition: partition(&tenant), delivery, tenant, key, fingerprint, asker, content, received_ms, adopted: None }
    }

    fn render(&self, post: &Post) -> Option<Parcel> {
        let arrival = &*post.arrival;
        let answers = matches!(post.letter, Letter::Ack { .. } | Letter::Result { .. } | Letter::Reply(_));
        let rendered = if is_line(&arrival.delivery) {
            self.render_line(arrival, &post.letter)
        } else if answers && arrival.by_call() {
            self.render_call(arrival, &post.letter)
        } else {
            self.render_message(arrival, &post.letter)
        };
        let (outlet, subject, headers, body) = rendered?;
        let (outcome, replayed) = match &post.letter {
            Letter::Result { outcome, replayed, .. } => (Some(outcome), *replayed),
            _ => (None, false),
        };
        let about = About {
            line: if let Origin::Line(line) = arrival.delivery.origin { line } else { 0 },
            call: if let (true, Origin::Call(call)) = (answers, &arrival.delivery.origin) { *call } else { 0 },
            by_call: arrival.by_call(),
            key: arrival.key,
            status: outcome.map(|outcome| outcome.status),
            replayed,
            boot: outcome.map_or(0, |outcome| outcome.boot),
            tries: outcome.map_or(0, |outcome| outcome.tries),
        };
        let reply = if outlet == Outlet::Result { arrival.delivery.reply.clone() } else { None };
        Some(Parcel { outlet, subject, headers, body, reply, confirm: post.confirm, about })
    }
}

/// What names the step: its coordinates if they are complete, else its assignment; a forced attempt always counts.
fn identity<'a>(reading: &'a Reading<'_>, assignment: &'a str, forced: Option<u64>) -> Identity<'a> {
    let tenant = &*reading.tenant;
    match (&reading.flow_id, &reading.step_id, reading.attempt) {
        (Some(flow), Some(step), Some(attempt)) => {
            Identity::Coordinates { tenant, run: reading.run_id.as_deref(), flow, step, attempt }
        }
        _ => match forced {
            Some(attempt) => Identity::Coordinates { tenant, run: None, flow: LINE_FLOW, step: assignment, attempt },
            None => Identity::Assignment { tenant, assignment },
        },
    }
}

/// What an answer's message id is drawn from: the asker, or the message's own hash.
fn mark(arrival: &Arrival) -> &[u8; 16] {
    match &arrival.asker {
        Some(asker) => &asker.id.0,
        None => &arrival.key.0,
    }
}

fn message_id(roll: &mut Roll, kind: &'static str, asker: AskerId) -> Text {
    roll.text(|pen| _ = pen.raw(kind).hex(&asker.0))
}

fn raw_fingerprint(body: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(body).into())
}

mod call;
#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod decode_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod notice_tests;
#[cfg(test)]
mod render_tests;
#[cfg(test)]
mod sample;
