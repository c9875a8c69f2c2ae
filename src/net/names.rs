//! The names that one shard has looked up of late, each tenant's apart: who else asked for a name, or what came of it, shows
//! nowhere. Lives on its core.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::Shared;
use shards::block::Local;
use shards::ids::Text;
use shards::runtime::rt::Clock;

use crate::offload::{NoAddress, Offload, Resolved};

use super::error::{NetError, Phase};
use super::limits::{NAME_MS_MAX, NAMES_MAX, NO_NAME_MS, RESOLVE_MS_MAX};

type Lookup = Shared<Local<'static, Resolved>>;

/// See the module.
pub(super) struct Names {
    offload: Offload,
    clock: Clock,
    known: RefCell<HashMap<(Text, String), Entry>>,
}

enum Entry {
    /// Asked for at that time; whoever asks meanwhile waits for the same answer. Its first asker may have given up.
    Asked(Lookup, u64),
    /// Known until then.
    Known(Result<Rc<[IpAddr]>, NoAddress>, u64),
}

impl Names {
    pub(super) fn new(offload: Offload, clock: Clock) -> Self {
        Names { offload, clock, known: RefCell::default() }
    }

    /// All addresses of `name`, as the resolver gave them.
    pub(super) async fn addresses(&self, tenant: &Text, name: &str) -> Result<Rc<[IpAddr]>, NetError> {
        let key = (tenant.clone(), name.to_owned());
        let now_ms = self.clock.now().mono_us / 1_000;
        let lookup = match self.known.borrow().get(&key) {
            Some(Entry::Known(result, until_ms)) if now_ms < *until_ms => return result.clone().map_err(told),
            Some(Entry::Asked(lookup, since_ms)) if now_ms < since_ms + RESOLVE_MS_MAX => Some(lookup.clone()),
            _ => None,
        };
        let lookup = lookup.unwrap_or_else(|| {
            let (offload, name) = (self.offload.clone(), name.to_owned());
            let asking: Local<'static, Resolved> = Box::pin(async move { offload.resolve(name).await });
            let lookup = asking.shared();
            let mut known = self.known.borrow_mut();
            if known.len() >= NAMES_MAX {
                known.retain(|_, entry| match entry {
                    Entry::Asked(_, since_ms) => now_ms < *since_ms + RESOLVE_MS_MAX,
                    Entry::Known(_, until_ms) => now_ms < *until_ms,
                });
            }
            // Full of names that still hold: this one is asked for and not remembered.
            if known.len() < NAMES_MAX {
                known.insert(key.clone(), Entry::Asked(lookup.clone(), now_ms));
            }
            lookup
        });
        // A lookup whose asker stopped waiting is still polled by whoever asks next, for as long as its answer is no older than it
        // could be while somebody waits.
        let resolved = super::dial::within(RESOLVE_MS_MAX, Phase::Dns, lookup).await;
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(late) => {
                self.known.borrow_mut().remove(&key);
                return Err(late);
            }
        };
        let now_ms = self.clock.now().mono_us / 1_000;
        let (result, until_ms) = match resolved {
            Ok(addresses) => (Ok(Rc::from(addresses.list)), now_ms + addresses.hold_ms.min(NAME_MS_MAX)),
            Err(why @ NoAddress::NoSuchName) => (Err(why), now_ms + NO_NAME_MS),
            Err(why) => (Err(why), now_ms),
        };
        if let Some(entry) = self.known.borrow_mut().get_mut(&key) {
            *entry = Entry::Known(result.clone(), until_ms);
        }
        result.map_err(told)
    }
}

fn told(why: NoAddress) -> NetError {
    match why {
        NoAddress::NoSuchName => NetError::NoSuchName,
        NoAddress::Unknown(why) => NetError::Unresolved(why),
        NoAddress::Full => NetError::Full,
    }
}
