//! What each tenant keeps in a store, where that is bounded. A tenant has one shard, so all that this worker writes for it is
//! counted here; how much there was before is measured once, by a list of the tenant's objects, and again before anything is
//! refused: others may have removed some. What others write is seen only then.
//!
//! Invariant: what is known and what is reserved stays at or below the bound when a reservation grows.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use shards::outcome::{Effected, Fault};
use tokio::sync::Mutex;

use crate::offload::stores::{Place, Stores};

use super::fault;

/// Tenants that are remembered before all idle ones are forgotten; forgetting only costs another list.
const ACCOUNTS_MAX: usize = 16_384;
/// A refusal is looked into again after so long at the earliest: a list costs.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Lists in a row, while others write: the largest sum stands then, and what was missed shows with the next.
const MEASURES_MAX: u32 = 3;

/// By tenant. Lives on its core.
#[derive(Default)]
pub(super) struct Accounts(RefCell<HashMap<String, Rc<Account>>>);

impl Accounts {
    pub(super) fn of(&self, tenant: &str, bytes_max: u64) -> Rc<Account> {
        let mut accounts = self.0.borrow_mut();
        if accounts.len() >= ACCOUNTS_MAX {
            accounts.retain(|_, account| Rc::strong_count(account) > 1);
        }
        let new = || {
            Rc::new(Account {
                bytes_max,
                used: Cell::new(None),
                reserved: Cell::new(0),
                open: Cell::new(0),
                ended: Cell::new(0),
                writing: RefCell::default(),
                measuring: Mutex::default(),
            })
        };
        accounts.entry(tenant.to_owned()).or_insert_with(new).clone()
    }
}

/// One tenant's. Lives on its core.
pub(super) struct Account {
    bytes_max: u64,
    /// What is kept, and when that was measured; none: not known, or not for sure any more.
    used: Cell<Option<(u64, Instant)>>,
    /// What is being written, in bytes.
    reserved: Cell<u64>,
    /// Writes under way.
    open: Cell<u32>,
    /// Writes that have ended, however.
    ended: Cell<u64>,
    /// The objects that are being written.
    writing: RefCell<HashMap<String, Writers>>,
    measuring: Mutex<()>,
}

/// Who writes one object now. Lives on its core.
#[derive(Default)]
struct Writers {
    count: u32,
    /// There were several at once, since there was none.
    met: bool,
}

/// What one write takes of an account. Dropped, it gives it back.
pub(super) struct Reservation {
    account: Rc<Account>,
    stores: Stores,
    home: Place,
    store: String,
    path: String,
    bytes: u64,
    /// The store may have taken it without our knowing.
    doubtful: bool,
}

impl Reservation {
    pub(super) fn open(account: Rc<Account>, stores: Stores, home: Place, store: String, path: String) -> Self {
        account.open.set(account.open.get() + 1);
        let mut writing = account.writing.borrow_mut();
        let writers = writing.entry(path.clone()).or_default();
        writers.count += 1;
        writers.met |= writers.count > 1;
        drop(writing);
        Reservation { account, stores, home, store, path, bytes: 0, doubtful: false }
    }

    /// Takes so much more.
    pub(super) async fn grow(&mut self, bytes: u64) -> Result<(), Fault> {
        let mut measured = false;
        loop {
            let used = self.account.used.get();
            if let Some((used, since)) = used {
                let wanted = used.saturating_add(self.account.reserved.get()).saturating_add(bytes);
                if wanted <= self.account.bytes_max {
                    self.account.reserved.set(self.account.reserved.get() + bytes);
                    self.bytes += bytes;
                    return Ok(());
                }
                let alone = self.account.reserved.get() == self.bytes && self.account.open.get() == 1;
                if measured || !alone || since.elapsed() < LOOK_AGAIN {
                    return Err(fault::over_quota(&self.store, used, self.account.bytes_max));
                }
            }
            self.measure(used).await?;
            measured = true;
        }
    }

    /// Asks the store, unless somebody else has meanwhile.
    async fn measure(&self, before: Option<(u64, Instant)>) -> Result<(), Fault> {
        let _turn = self.account.measuring.lock().await;
        if self.account.used.get() != before {
            return Ok(());
        }
        let mut most = 0;
        for _ in 0..MEASURES_MAX {
            let ended = self.account.ended.get();
            let sum = self.stores.measure(self.home.clone()).await.map_err(|error| fault::of(&error, Effected::None))?;
            // A list may have passed the place of what was written meanwhile.
            most = sum.max(most);
            if self.account.ended.get() == ended {
                most = sum;
                break;
            }
        }
        self.account.used.set(Some((most, Instant::now())));
        Ok(())
    }

    /// From now on the store may have it.
    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// It is known what became of it: so much is there now, and so much is not any more.
    pub(super) fn keep(mut self, written: u64, replaced: u64) {
        self.doubtful = false;
        let met = self.account.writing.borrow().get(&self.path).is_some_and(|writers| writers.met);
        if replaced > 0 && met {
            // Two that replace the same object may both take it for theirs to subtract: only the store knows.
            self.account.used.set(None);
        } else if let Some((used, since)) = self.account.used.get() {
            self.account.used.set(Some(((used + written).saturating_sub(replaced), since)));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.reserved.set(self.account.reserved.get() - self.bytes);
        self.account.open.set(self.account.open.get() - 1);
        self.account.ended.set(self.account.ended.get() + 1);
        let mut writing = self.account.writing.borrow_mut();
        if let Some(writers) = writing.get_mut(&self.path) {
            writers.count -= 1;
            if writers.count == 0 {
                writing.remove(&self.path);
            }
        }
        if self.doubtful {
            self.account.used.set(None);
        }
    }
}
