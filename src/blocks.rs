//! The block table: every kind of step this worker knows, by name, with its check before acceptance.
//!
//! A check is pure and runs on the raw inputs; whatever it lets through, the block's `execute` takes. Positions in
//! [`TABLE`] are the [`BlockId`]s of this process; the journal holds `name@version`, never the position.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use shards::block::{Blobs, Block, BlockCx, BlockInfo, Demand};
use shards::gate::Gate;
use shards::ids::{BlockId, Text};
use shards::outcome::Fault;
use shards::step::{EffectClass, Lane};

use crate::compute::Compute;
use crate::net::client::Client;
use crate::policy::narrow::{Guardrails, Narrow, Scopes};
use crate::policy::{Policy, Scope};

use manifest::Manifest;
use sandbox::Planned;

pub use cached::{Cache, CacheCounts, CacheSettings};
pub use path::check as path_rule;
pub use reference::Kept;
pub use remote::Shelf;
pub use sql::Databases;

mod abort;
mod ai;
pub mod approval;
pub mod cached;
mod device;
mod eat;
mod echo;
#[cfg(feature = "failpoints")]
mod effect;
mod fail;
mod fs;
mod hang;
mod hash;
mod http;
mod inputs;
pub mod local;
pub mod manifest;
mod media;
mod outputs;
mod panic;
mod path;
pub mod reference;
mod remote;
pub mod sandbox;
mod sign;
mod sleep;
mod source;
pub mod sql;

/// One kind of step. Shared, never changes.
pub struct Entry {
    /// What the worker says of it.
    pub info: &'static BlockInfo,
    /// Only known where the worker runs for development.
    pub dev: bool,
    /// Names of it under which what its inputs leave out is something else.
    telling: &'static [&'static str],
    /// What a step of it must not be left without.
    pub scopes: Scopes,
    /// What a step of it needs whose inputs nobody has seen yet.
    pub unread: Demand,
    manifest: &'static str,
    check: Check,
    /// What a step of it would do, with inputs that its check let through. Pure: it is given nothing to reach out with.
    plan: fn(&Ask<'_>) -> Result<Planned, Fault>,
    build: fn(&Reach) -> Rc<dyn Block>,
}

/// What a check looks at: the inputs alone, under the name that they came, or at what the tenant may do, too.
enum Check {
    Inputs(fn(&str, &[u8]) -> Result<Checked, Fault>),
    Policy(fn(&Ask<'_>) -> Result<Checked, Fault>),
}

impl Ask<'_> {
    /// What forbids this step to use a store that it names in its field `pointer`; nothing, where it names none.
    fn store_denied(&self, connector: Option<&str>, pointer: &str) -> Option<Fault> {
        let store = self.policy.store(self.tenant, connector?, pointer);
        let listed = store.and_then(|store| self.narrow.guardrails.store(store, pointer));
        listed.err().map(|refused| refused.fault())
    }

    /// Whether blobs there can be kept from being replaced.
    fn refuses_to_replace(&self, connector: Option<&str>, pointer: &str) -> bool {
        let Some(name) = connector else { return true };
        self.policy.store(self.tenant, name, pointer).is_ok_and(|store| store.settings.if_absent)
    }
}

/// A step that is looked at before acceptance. Lives on its core.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// What tenants may do.
    pub policy: &'a Policy,
    /// Whose step it is.
    pub tenant: &'a str,
    /// The name that the block was asked for by.
    pub name: &'a str,
    /// JSON text; empty or `null` counts as `{}`.
    pub inputs: &'a [u8],
    /// What the platform's executor is called by the sender; empty where there is none.
    pub provider: &'a str,
    /// What the step allows itself less than its tenant may.
    pub narrow: &'a Narrow,
}

/// All that blocks reach beyond their step: what they may, and how. A block that is built with another one of these reaches
/// nothing else. Lives on its core.
#[derive(Clone)]
pub struct Reach {
    /// What tenants may do.
    pub policy: Arc<Policy>,
    /// The way out.
    pub client: Rc<Client>,
    /// Where what takes long is computed.
    pub compute: Compute,
    /// The devices, where there are any.
    pub device: Option<gpu::Client>,
    /// Object stores.
    pub stores: Rc<Shelf>,
    /// What tenants keep of outputs.
    pub cache: Rc<Cache>,
    /// Databases.
    pub sql: Rc<Databases>,
}

impl Reach {
    /// The blobs of a step: in the store that it names in its field `pointer`, or the worker's own.
    fn blobs(&self, cx: &BlockCx, connector: Option<&str>, pointer: &str) -> Result<Rc<dyn Blobs>, Fault> {
        let Some(name) = connector else { return Ok(cx.blobs.clone()) };
        let store = self.policy.store(&cx.tenant, name, pointer).map_err(|refused| refused.fault())?;
        Guardrails::read(&cx.guardrails)?.store(store, pointer).map_err(|refused| refused.fault())?;
        Ok(self.stores.of(store))
    }
}

/// What a check found out. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What running this very step twice may do.
    pub effect: EffectClass,
    /// The inputs to run with where they are not the ones as sent: the name as sent changed a default.
    pub inputs: Option<Bytes>,
    /// What it needs of the machine.
    pub needs: Demand,
    /// What these inputs must not be left without, besides what the block itself needs.
    pub scopes: Scopes,
    /// It runs nothing, and waits for people on these terms.
    pub gate: Option<Rc<Gate>>,
    /// A policy forbids it, whatever else is true of it.
    pub denied: Option<Fault>,
}

impl Checked {
    fn as_sent(effect: EffectClass) -> Self {
        Checked { effect, inputs: None, needs: IO, scopes: NO_SCOPES, gate: None, denied: None }
    }
}

/// What a step needs that touches nothing of its tenant's.
const NO_SCOPES: Scopes = Scopes::of(&[]);
/// What a step needs that names a blob.
const BLOBS: Scopes = Scopes::of(&[Scope::Blob]);

/// Nothing but a slot among the steps that wait for others.
const IO: Demand = Demand { lane: Lane::Io, memory_bytes: 0, device_form: false, memory_on_device_bytes: 0 };
/// A compute thread.
const CPU: Demand = Demand { lane: Lane::Cpu, ..IO };

/// All blocks; a [`BlockId`] is a position here.
pub static TABLE: &[Entry] = &[
    Entry {
        info: &echo::INFO,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/echo.json"),
        check: Check::Inputs(echo::check),
        plan: echo::plan,
        build: |_| Rc::new(echo::Echo),
    },
    Entry {
        info: &sleep::INFO,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/sleep.json"),
        check: Check::Inputs(sleep::check),
        plan: sleep::plan,
        build: |_| Rc::new(sleep::Sleep),
    },
    Entry {
        info: &hash::INFO,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: hash::DEMAND,
        manifest: include_str!("blocks/manifests/crypto.hash.json"),
        check: Check::Policy(hash::check),
        plan: hash::plan,
        build: |reach| Rc::new(hash::Hash::new(reach)),
    },
    Entry {
        info: &sign::SIGN,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[Scope::Keys]),
        unread: CPU,
        manifest: include_str!("blocks/manifests/crypto.sign.json"),
        check: Check::Policy(sign::check_sign),
        plan: sign::plan_sign,
        build: |reach| Rc::new(sign::Sign::new(reach)),
    },
    Entry {
        info: &sign::VERIFY,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[Scope::Keys]),
        unread: CPU,
        manifest: include_str!("blocks/manifests/crypto.verify.json"),
        check: Check::Policy(sign::check_verify),
        plan: sign::plan_verify,
        build: |reach| Rc::new(sign::Verify::new(reach)),
    },
    Entry {
        info: &fs::PUT,
        dev: false,
        telling: &[fs::LEGACY_PUT],
        scopes: Scopes::of(&[Scope::Blob]),
        unread: IO,
        manifest: include_str!("blocks/manifests/fs.blob_put.json"),
        check: Check::Policy(fs::check_put),
        plan: fs::plan::put,
        build: |reach| Rc::new(fs::Put::new(reach)),
    },
    Entry {
        info: &fs::GET,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[Scope::Blob]),
        unread: IO,
        manifest: include_str!("blocks/manifests/fs.blob_get.json"),
        check: Check::Policy(fs::check_get),
        plan: fs::plan::get,
        build: |reach| Rc::new(fs::Get::new(reach)),
    },
    Entry {
        info: &http::INFO,
        dev: false,
        telling: &[http::graphql::NAME],
        scopes: Scopes::of(&[Scope::Http]),
        unread: IO,
        manifest: include_str!("blocks/manifests/http.request.json"),
        check: Check::Policy(http::check),
        plan: http::plan::plan,
        build: |reach| Rc::new(http::Http::new(reach)),
    },
    Entry {
        info: &media::INFO,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[Scope::Blob]),
        unread: media::DEMAND,
        manifest: include_str!("blocks/manifests/media.render.json"),
        check: Check::Policy(media::check),
        plan: media::plan,
        build: |reach| Rc::new(media::Media::new(reach)),
    },
    Entry {
        info: &ai::INFO,
        dev: false,
        telling: ai::TELLING,
        scopes: Scopes::of(&[Scope::Ai]),
        unread: IO,
        manifest: include_str!("blocks/manifests/ai.generate.json"),
        check: Check::Policy(ai::check),
        plan: ai::plan::plan,
        build: |reach| Rc::new(ai::Generate::new(reach)),
    },
    Entry {
        info: &approval::INFO,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/human.approval.json"),
        check: Check::Inputs(approval::check),
        plan: approval::plan,
        build: |_| Rc::new(approval::Approval),
    },
    Entry {
        info: &sql::INFO,
        dev: false,
        telling: &[],
        scopes: Scopes::of(&[Scope::Sql]),
        unread: IO,
        manifest: include_str!("blocks/manifests/sql.query.json"),
        check: Check::Policy(sql::check),
        plan: sql::plan::plan,
        build: |reach| Rc::new(sql::Sql::new(reach)),
    },
    Entry {
        info: &fail::INFO,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.fail.json"),
        check: Check::Inputs(fail::check),
        plan: sandbox::unsaid,
        build: |_| Rc::new(fail::Fail),
    },
    Entry {
        info: &abort::INFO,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.abort.json"),
        check: Check::Inputs(abort::check),
        plan: sandbox::unsaid,
        build: |reach| Rc::new(abort::Abort::new(reach)),
    },
    Entry {
        info: &hang::INFO,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.hang.json"),
        check: Check::Inputs(hang::check),
        plan: sandbox::unsaid,
        build: |_| Rc::new(hang::Hang),
    },
    Entry {
        info: &panic::INFO,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.panic.json"),
        check: Check::Inputs(panic::check),
        plan: sandbox::unsaid,
        build: |_| Rc::new(panic::Panic),
    },
    Entry {
        info: &eat::INFO,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.eat.json"),
        check: Check::Inputs(eat::check),
        plan: sandbox::unsaid,
        build: |_| Rc::new(eat::Eat),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::PURE,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.effect.json"),
        check: Check::Inputs(effect::check_pure),
        plan: sandbox::unsaid,
        build: |_| Rc::new(effect::Doing(&effect::PURE)),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::IDEMPOTENT,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.effect.json"),
        check: Check::Inputs(effect::check_idempotent),
        plan: sandbox::unsaid,
        build: |_| Rc::new(effect::Doing(&effect::IDEMPOTENT)),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::TRANSACTIONAL,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.effect.json"),
        check: Check::Inputs(effect::check_transactional),
        plan: sandbox::unsaid,
        build: |_| Rc::new(effect::Doing(&effect::TRANSACTIONAL)),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::CONDITIONAL,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.effect.json"),
        check: Check::Inputs(effect::check_conditional),
        plan: sandbox::unsaid,
        build: |_| Rc::new(effect::Doing(&effect::CONDITIONAL)),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::UNSAFE,
        dev: true,
        telling: &[],
        scopes: Scopes::of(&[]),
        unread: IO,
        manifest: include_str!("blocks/manifests/test.effect.json"),
        check: Check::Inputs(effect::check_unsafe),
        plan: sandbox::unsaid,
        build: |_| Rc::new(effect::Doing(&effect::UNSAFE)),
    },
];

/// The block that goes by `name`, canonical or alias. `dev` opens the development blocks.
pub fn find(name: &str, dev: bool) -> Option<(BlockId, &'static Entry)> {
    let index = TABLE.iter().position(|entry| (dev || !entry.dev) && entry.goes_by(name))?;
    Some((BlockId(index as u16), &TABLE[index]))
}

/// Whether outputs of the block that goes by `name` say what they cost.
pub fn is_paid_for(name: &str) -> bool {
    ai::INFO.name == name || ai::INFO.aliases.contains(&name)
}

/// One of each block, in the order of [`TABLE`], behind them the same for inputs by reference, behind these the same for outputs
/// that may be there already, and behind these what only says what it would do, without and with inputs by reference: what a shard
/// runs steps with.
pub fn build_all(reach: &Reach) -> Vec<Rc<dyn Block>> {
    let blocks: Vec<Rc<dyn Block>> = TABLE.iter().map(|entry| (entry.build)(reach)).collect();
    let referred = TABLE.iter().zip(&blocks).map(|(entry, block)| {
        let referred: Rc<dyn Block> = Rc::new(reference::Referred::new(entry, block.clone(), reach));
        referred
    });
    let referred: Vec<_> = referred.collect();
    let cached = blocks.iter().map(|block| -> Rc<dyn Block> { Rc::new(cached::Cached::new(block.clone(), reach.cache.clone())) });
    let cached: Vec<_> = cached.collect();
    let sandboxed = sandbox::build_all(&reach.policy);
    blocks.into_iter().chain(referred).chain(cached).chain(sandboxed).collect()
}

/// `name@version` of each block, in the order of [`build_all`].
pub fn names() -> Vec<Text> {
    let name = |entry: &Entry| Text::from(format!("{}@{}", entry.info.name, entry.info.version));
    let dry = |entry: &Entry| Text::from(format!("{}@{}{}", entry.info.name, entry.info.version, sandbox::MARK));
    TABLE.iter().chain(TABLE).chain(TABLE).map(name).chain(TABLE.iter().chain(TABLE).map(dry)).collect()
}

impl Entry {
    /// Validates the inputs of a step, and looks at what its tenant may do.
    ///
    /// # Errors
    /// INVALID_INPUT or MISSING_REQUIRED_FIELD; the details hold `{"pointer":"/path","rule":"…"}`, the pointer relative
    /// to the inputs.
    pub fn check(&self, ask: &Ask<'_>) -> Result<Checked, Fault> {
        match self.check {
            Check::Inputs(check) => check(ask.name, ask.inputs),
            Check::Policy(check) => check(ask),
        }
    }

    /// What it says of itself.
    pub fn manifest(&self) -> Manifest<'static> {
        Manifest::read(self.manifest).expect("compiled in; a test reads each")
    }

    /// Whether its steps wait for people, and run nothing.
    pub fn asks_people(&self) -> bool {
        std::ptr::eq(self.info, &raw const approval::INFO)
    }

    fn goes_by(&self, name: &str) -> bool {
        self.info.name == name || self.info.aliases.contains(&name)
    }
}

#[cfg(test)]
mod tests;
