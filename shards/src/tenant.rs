//! The tenants of one shard: their accounts, their audit sequence, and what waits unaccepted.

use std::collections::VecDeque;
use std::rc::Rc;

use hashbrown::HashMap;

use crate::ids::Text;
use crate::limits::Limits;
use crate::quota::Account;
use crate::step::Arrival;

/// A tenant's index on its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantIndex(pub u32);

/// One tenant. Lives on its core.
#[derive(Debug)]
pub struct Tenant {
    /// Its id.
    pub name: Text,
    /// What it may take and has taken.
    pub account: Account,
    /// The number of its newest audit item.
    pub audit_seq: u64,
    /// Arrivals that no server keeps for us, waiting for a place in the queue; not accepted yet.
    pub waiting: VecDeque<Waiting>,
}

/// An arrival that waits unaccepted. Lives on its core.
#[derive(Debug)]
pub struct Waiting {
    /// Its budget is over then, monotonic: what is done to the clock meanwhile must not end its wait.
    pub until_us: u64,
    /// Itself.
    pub arrival: Rc<Arrival>,
}

/// All tenants of one shard. Lives on its core.
#[derive(Debug)]
pub struct Tenants {
    limits: Limits,
    by_name: HashMap<Text, TenantIndex>,
    list: Vec<Tenant>,
}

impl Tenants {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Tenants { limits, by_name: HashMap::new(), list: Vec::new() }
    }

    /// The tenant of this name, made known if it wasn't.
    pub fn find(&mut self, name: &Text) -> TenantIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = TenantIndex(self.list.len() as u32);
        // A copy, so that the table does not keep the tenant's first message in memory.
        let name = Text::from(name.to_string());
        self.by_name.insert(name.clone(), index);
        self.list.push(Tenant { name, account: Account::new(&self.limits), audit_seq: 0, waiting: VecDeque::new() });
        index
    }

    /// The tenant of this name, if it has been here.
    pub fn seen(&self, name: &Text) -> Option<TenantIndex> {
        self.by_name.get(name).copied()
    }

    /// One tenant.
    pub fn get(&mut self, index: TenantIndex) -> &mut Tenant {
        &mut self.list[index.0 as usize]
    }

    /// One tenant, to look at.
    pub fn peek(&self, index: TenantIndex) -> &Tenant {
        &self.list[index.0 as usize]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Tenant> {
        self.list.iter()
    }

    /// The indices of all of them.
    pub fn indices(&self) -> impl Iterator<Item = TenantIndex> + use<> {
        (0..self.list.len() as u32).map(TenantIndex)
    }
}
