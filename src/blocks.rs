//! The block table: every kind of step this worker knows, by name, with its check before acceptance.
//!
//! A check is pure and runs on the raw inputs; whatever it lets through, the block's `execute` takes. Positions in
//! [`TABLE`] are the [`BlockId`]s of this process; the journal holds `name@version`, never the position.

use std::rc::Rc;

use bytes::Bytes;
use shards::block::{Block, BlockInfo};
use shards::ids::BlockId;
use shards::outcome::Fault;
use shards::step::EffectClass;

mod abort;
mod eat;
mod echo;
#[cfg(feature = "failpoints")]
mod effect;
mod fail;
mod fs;
mod hang;
mod hash;
mod inputs;
pub mod local;
mod panic;
mod path;
mod sleep;

/// One kind of step. Shared, never changes.
pub struct Entry {
    /// What the worker says of it.
    pub info: &'static BlockInfo,
    /// Only known where the worker runs for development.
    pub dev: bool,
    check: fn(&str, &[u8]) -> Result<Checked, Fault>,
    build: fn() -> Rc<dyn Block>,
}

/// What a check found out. Lives on its core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What running this very step twice may do.
    pub effect: EffectClass,
    /// The inputs to run with where they are not the ones as sent: the name as sent changed a default.
    pub inputs: Option<Bytes>,
}

impl Checked {
    fn as_sent(effect: EffectClass) -> Self {
        Checked { effect, inputs: None }
    }
}

/// All blocks; a [`BlockId`] is a position here.
pub static TABLE: &[Entry] = &[
    Entry { info: &echo::INFO, dev: false, check: echo::check, build: || Rc::new(echo::Echo) },
    Entry { info: &sleep::INFO, dev: false, check: sleep::check, build: || Rc::new(sleep::Sleep) },
    Entry { info: &hash::INFO, dev: false, check: hash::check, build: || Rc::new(hash::Hash) },
    Entry { info: &fs::PUT, dev: false, check: fs::check_put, build: || Rc::new(fs::Put) },
    Entry { info: &fs::GET, dev: false, check: fs::check_get, build: || Rc::new(fs::Get) },
    Entry { info: &fail::INFO, dev: true, check: fail::check, build: || Rc::new(fail::Fail) },
    Entry { info: &abort::INFO, dev: true, check: abort::check, build: || Rc::new(abort::Abort) },
    Entry { info: &hang::INFO, dev: true, check: hang::check, build: || Rc::new(hang::Hang) },
    Entry { info: &panic::INFO, dev: true, check: panic::check, build: || Rc::new(panic::Panic) },
    Entry { info: &eat::INFO, dev: true, check: eat::check, build: || Rc::new(eat::Eat) },
    #[cfg(feature = "failpoints")]
    Entry { info: &effect::PURE, dev: true, check: effect::check_pure, build: || Rc::new(effect::Doing(&effect::PURE)) },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::IDEMPOTENT,
        dev: true,
        check: effect::check_idempotent,
        build: || Rc::new(effect::Doing(&effect::IDEMPOTENT)),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::TRANSACTIONAL,
        dev: true,
        check: effect::check_transactional,
        build: || Rc::new(effect::Doing(&effect::TRANSACTIONAL)),
    },
    #[cfg(feature = "failpoints")]
    Entry {
        info: &effect::CONDITIONAL,
        dev: true,
        check: effect::check_conditional,
        build: || Rc::new(effect::Doing(&effect::CONDITIONAL)),
    },
    #[cfg(feature = "failpoints")]
    Entry { info: &effect::UNSAFE, dev: true, check: effect::check_unsafe, build: || Rc::new(effect::Doing(&effect::UNSAFE)) },
];

/// The block that goes by `name`, canonical or alias. `dev` opens the development blocks.
pub fn find(name: &str, dev: bool) -> Option<(BlockId, &'static Entry)> {
    let index = TABLE.iter().position(|entry| (dev || !entry.dev) && entry.goes_by(name))?;
    Some((BlockId(index as u16), &TABLE[index]))
}

/// One of each block, in the order of [`TABLE`]: what a shard runs steps with.
pub fn build_all() -> Vec<Rc<dyn Block>> {
    TABLE.iter().map(|entry| (entry.build)()).collect()
}

impl Entry {
    /// Validates the inputs of a step that came under `name`. Empty or `null` inputs count as `{}`.
    ///
    /// # Errors
    /// INVALID_INPUT or MISSING_REQUIRED_FIELD; the details hold `{"pointer":"/path","rule":"…"}`, the pointer relative
    /// to the inputs.
    pub fn check(&self, name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
        (self.check)(name, inputs)
    }

    fn goes_by(&self, name: &str) -> bool {
        self.info.name == name || self.info.aliases.contains(&name)
    }
}

#[cfg(test)]
mod tests;
