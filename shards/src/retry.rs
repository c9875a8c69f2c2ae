//! When to try again: exponential backoff with full jitter, never past the step's budget.
//!
//! Jitter is drawn from the key and the try's number, so a replayed history waits exactly as long.

use crate::ids::Key;
use crate::outcome::{Effected, Fault};
use crate::planted::{Bug, planted};
use crate::step::{EffectClass, RetryPolicy};

/// How long to wait before the next try, in milliseconds, or `None` if there is to be none.
///
/// `tries` have been made; `left_ms` of the budget remain.
pub fn next_delay_ms(
    policy: &RetryPolicy,
    effect: EffectClass,
    fault: &Fault,
    key: Key,
    tries: u32,
    left_ms: u64,
) -> Option<u64> {
    if (tries >= policy.tries_max && !planted(Bug::RetryForever)) || !fault.code.retryable() {
        return None;
    }
    // Something that may have happened is never silently done again.
    if effect == EffectClass::Unsafe && fault.effect != Effected::None && !planted(Bug::RetryUnsafe) {
        return None;
    }
    let ceiling = policy.backoff_ms.saturating_mul(1 << (tries - 1).min(32)).min(policy.backoff_ms_max);
    let delay = match fault.retry_after_ms {
        Some(asked) => asked.max(1),
        None => 1 + draw(key, tries) % ceiling.max(1),
    };
    (delay < left_ms).then_some(delay)
}

fn draw(key: Key, tries: u32) -> u64 {
    let mut seed = u64::from(tries).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for half in key.0.chunks_exact(8) {
        seed = (seed ^ u64::from_le_bytes(half.try_into().expect("eight bytes"))).wrapping_mul(0xff51_afd7_ed55_8ccd);
        seed ^= seed >> 33;
    }
    seed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Code;

    const POLICY: RetryPolicy = RetryPolicy { tries_max: 3, backoff_ms: 100, backoff_ms_max: 150 };

    fn delay(fault: &Fault, effect: EffectClass, tries: u32, left_ms: u64) -> Option<u64> {
        next_delay_ms(&POLICY, effect, fault, Key([7; 16]), tries, left_ms)
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_within_tries_and_budget() {
        let fault = Fault::new(Code::NetworkError, "The network failed.");
        for seed in 0..200u8 {
            let key = Key([seed; 16]);
            let first = next_delay_ms(&POLICY, EffectClass::Pure, &fault, key, 1, 60_000).expect("one of three");
            assert!((1..=100).contains(&first));
            let second = next_delay_ms(&POLICY, EffectClass::Pure, &fault, key, 2, 60_000).expect("two of three");
            assert!((1..=150).contains(&second));
        }
        assert_eq!(delay(&fault, EffectClass::Pure, 3, 60_000), None, "tries used up");
        assert_eq!(delay(&fault, EffectClass::Pure, 1, 1), None, "no budget left");
    }

    #[test]
    fn only_retryable_faults_are_tried_again_and_unsafe_ones_only_without_effect() {
        let bad = Fault::new(Code::InvalidInput, "No.");
        assert_eq!(delay(&bad, EffectClass::Pure, 1, 60_000), None);
        let unknown = Fault::new(Code::ConnectionError, "Cut.").with_effect(Effected::Unknown);
        assert_eq!(delay(&unknown, EffectClass::Unsafe, 1, 60_000), None);
        assert!(delay(&unknown, EffectClass::Idempotent, 1, 60_000).is_some());
    }

    #[test]
    fn the_other_sides_wish_is_obeyed() {
        let mut fault = Fault::new(Code::ResourceUnavailable, "Busy.");
        fault.retry_after_ms = Some(5_000);
        assert_eq!(delay(&fault, EffectClass::Pure, 1, 60_000), Some(5_000));
        assert_eq!(delay(&fault, EffectClass::Pure, 1, 4_000), None);
    }
}
