//! The world outside that blocks reach: one server per effect class with a ledger of its own, which no crash of ours touches.

use std::collections::BTreeMap;

use shards::ids::{Fingerprint, Key};
use shards::outcome::{Code, Effected, Fault};
use shards::step::EffectClass;

use crate::plan::{Rates, SECOND};
use crate::rng::Rng;

/// Which effect: one per (K, F).
pub type EffectId = (Key, [u8; 32]);

/// What the servers outside have done.
#[derive(Debug, Default)]
pub struct Ledger {
    done: BTreeMap<EffectId, Done>,
}

/// One effect's story at its own server.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub class: EffectClass,
    /// Requests that came.
    pub calls: u32,
    /// Times that something changed: servers that tell repeats apart change once.
    pub applied: u32,
}

impl Ledger {
    pub fn apply(&mut self, key: Key, fingerprint: &Fingerprint, class: EffectClass) {
        let done = self.done.entry((key, fingerprint.0)).or_insert(Done { class, calls: 0, applied: 0 });
        done.calls += 1;
        match class {
            EffectClass::Pure => {}
            EffectClass::Idempotent | EffectClass::Transactional | EffectClass::Conditional => done.applied = 1,
            EffectClass::Unsafe => done.applied += 1,
        }
    }

    pub fn applied(&self, key: Key, fingerprint: &Fingerprint) -> u32 {
        self.done.get(&(key, fingerprint.0)).map_or(0, |done| done.applied)
    }

    pub fn all(&self) -> impl Iterator<Item = (&EffectId, &Done)> {
        self.done.iter()
    }
}

/// What one try will do, drawn when it starts.
#[derive(Clone, Debug)]
pub struct Script {
    /// When its effect happens after its start, if it does.
    pub effect_us: Option<u64>,
    /// The request is on its way already when the worker dies: it happens all the same.
    pub survives: bool,
    /// How long it runs.
    pub lasts_us: u64,
    pub end: End,
}

/// How a try ends when nobody stops it.
#[derive(Clone, Debug)]
pub enum End {
    Done,
    Spilled,
    Failed(Fault),
    Panicked,
}

impl Script {
    pub fn draw(rng: &mut Rng, rates: &Rates, class: EffectClass, budget_ms: u64) -> Script {
        let mut lasts_us = if rng.chance(800) { rng.range(50, 60_000) } else { rng.range(10_000, 3 * SECOND) };
        if rng.chance(rates.overlong) {
            lasts_us = budget_ms * 1000 + rng.range(1, 20) * SECOND;
        }
        let pure = class == EffectClass::Pure;
        let mut script =
            Script { effect_us: (!pure).then(|| rng.below(lasts_us)), survives: rng.chance(500), lasts_us, end: End::Done };
        if rng.chance(rates.spill) {
            script.end = End::Spilled;
        }
        if rng.chance(rates.panic) {
            script.end = End::Panicked;
            if rng.chance(500) {
                script.effect_us = None;
            }
        } else if rng.chance(rates.retryable + rates.fail) {
            let code = if rng.below(rates.retryable + rates.fail) < rates.retryable {
                rng.pick(&[Code::NetworkError, Code::Http5xx, Code::ResourceUnavailable])
            } else {
                rng.pick(&[Code::ExecutionFailed, Code::InvalidInput, Code::HttpError])
            };
            // An honest block: "none" only where its own try did nothing.
            let effect = match rng.below(4) {
                0 if !pure => Effected::Unknown,
                1 if !pure => {
                    script.effect_us = None;
                    Effected::Unknown
                }
                2 if !pure => Effected::Applied,
                _ => {
                    script.effect_us = None;
                    Effected::None
                }
            };
            let mut fault = Fault::new(code, "It failed.").with_effect(effect);
            if rng.chance(100) {
                fault.retry_after_ms = Some(rng.range(1, 3_000));
            }
            script.end = End::Failed(fault);
        }
        script
    }
}
