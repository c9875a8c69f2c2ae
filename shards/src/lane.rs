//! One bounded queue of steps to run: deficit round robin over tenants, priorities with aging inside a tenant.
//!
//! A tenant at its running limit leaves the ring until a slot returns, so a busy tenant costs the others nothing. So does one
//! whose next step lacks memory; a step that only waits for others of its kind lets later ones of its tenant go first.
//! Entries are tickets; one whose step has gone meanwhile (timed out, cancelled) is recognised by its caller and skipped.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::ids::Ticket;
use crate::limits::{LANE_SKIP_MAX, PRIORITY_STEP_MS};
use crate::step::Lane as Kind;
use crate::tenant::TenantIndex;

/// Whether the entry on top may be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It may, or its step has gone and the entry is of no use.
    Take,
    /// Not this one; a later one of its tenant perhaps.
    Skip,
    /// Nothing of its tenant, until [`Lane::revive`].
    Leave,
}

/// One [`Lane`] of each kind. Lives on its core.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: [Lane; Kind::ALL.len()],
}

impl Lanes {
    /// The lane of this kind.
    pub fn of(&mut self, kind: Kind) -> &mut Lane {
        &mut self.lanes[kind as usize]
    }

    /// What a tenant waits for may be there: see [`Lane::revive`].
    pub fn revive(&mut self, tenant: TenantIndex) {
        for lane in &mut self.lanes {
            lane.revive(tenant);
        }
    }

    /// Drops the entries that are not `alive`.
    pub fn retain(&mut self, mut alive: impl FnMut(Ticket) -> bool) {
        for lane in &mut self.lanes {
            lane.retain(&mut alive);
        }
    }

    /// Entries queued in all of them, gone ones included until they come up.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(Lane::len).sum()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(Lane::is_empty)
    }
}

/// The steps of one kind waiting to run on this shard. Lives on its core.
#[derive(Debug, Default)]
pub struct Lane {
    ring: VecDeque<TenantIndex>,
    queues: Vec<Queue>,
    pushed: u64,
    waiting: usize,
    /// Entries passed over in one look, kept for the next one: its memory is used again.
    passed: Vec<Reverse<(u64, u64, Slot)>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Soonest first: the moment of arrival, moved earlier by priority. That is aging: everything gets old.
    heap: BinaryHeap<Reverse<(u64, u64, Slot)>>,
    weight: u32,
    deficit: u32,
    in_ring: bool,
}

/// A ticket in a form that has an order.
type Slot = (u32, u32);

impl Lane {
    /// Queues a step that arrived at `arrived_ms` (any clock, the same for all).
    pub fn push(&mut self, tenant: TenantIndex, ticket: Ticket, priority: u8, arrived_ms: u64) {
        let index = tenant.0 as usize;
        if index >= self.queues.len() {
            self.queues.resize_with(index + 1, || Queue { weight: 1, ..Queue::default() });
        }
        let queue = &mut self.queues[index];
        let order = arrived_ms.saturating_add((100 - u64::from(priority.min(100))) * PRIORITY_STEP_MS);
        queue.heap.push(Reverse((order, self.pushed, (ticket.slot, ticket.generation))));
        self.pushed += 1;
        self.waiting += 1;
        if !queue.in_ring {
            queue.in_ring = true;
            self.ring.push_back(tenant);
        }
    }

    /// The next step to run that `fits`; tenants without one leave the ring until [`Lane::revive`].
    pub fn pop(&mut self, mut fits: impl FnMut(TenantIndex, Ticket) -> Fit) -> Option<(TenantIndex, Ticket)> {
        while let Some(&tenant) = self.ring.front() {
            let queue = &mut self.queues[tenant.0 as usize];
            let taken = loop {
                let Some(Reverse((_, _, (slot, generation)))) = queue.heap.peek() else { break None };
                let ticket = Ticket { slot: *slot, generation: *generation };
                match fits(tenant, ticket) {
                    Fit::Take => {
                        queue.heap.pop();
                        break Some(ticket);
                    }
                    Fit::Skip if self.passed.len() < LANE_SKIP_MAX => self.passed.extend(queue.heap.pop()),
                    Fit::Skip | Fit::Leave => break None,
                }
            };
            queue.heap.extend(self.passed.drain(..));
            let Some(ticket) = taken else {
                queue.in_ring = false;
                queue.deficit = 0;
                self.ring.pop_front();
                continue;
            };
            if queue.deficit == 0 {
                queue.deficit = queue.weight;
            }
            self.waiting -= 1;
            queue.deficit -= 1;
            if queue.deficit == 0 {
                self.ring.rotate_left(1);
            }
            return Some((tenant, ticket));
        }
        None
    }

    /// A slot of this tenant returned: it may be in the ring again.
    pub fn revive(&mut self, tenant: TenantIndex) {
        if let Some(queue) = self.queues.get_mut(tenant.0 as usize)
            && !queue.in_ring
            && !queue.heap.is_empty()
        {
            queue.in_ring = true;
            self.ring.push_back(tenant);
        }
    }

    /// Drops the entries that are not `alive`.
    pub fn retain(&mut self, mut alive: impl FnMut(Ticket) -> bool) {
        self.waiting = 0;
        for queue in &mut self.queues {
            queue.heap.retain(|Reverse((_, _, (slot, generation)))| alive(Ticket { slot: *slot, generation: *generation }));
            self.waiting += queue.heap.len();
        }
    }

    /// Entries queued, gone ones included until they come up.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(slot: u32) -> Ticket {
        Ticket { slot, generation: 1 }
    }

    fn drain(lane: &mut Lane) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| lane.pop(|_, _| Fit::Take)).map(|(tenant, ticket)| (tenant.0, ticket.slot)).collect()
    }

    #[test]
    fn tenants_take_turns_whatever_they_have_queued() {
        let mut lane = Lane::default();
        for slot in 0..4 {
            lane.push(TenantIndex(0), ticket(slot), 50, 0);
        }
        lane.push(TenantIndex(1), ticket(10), 50, 5);
        lane.push(TenantIndex(2), ticket(20), 50, 9);
        assert_eq!(drain(&mut lane), [(0, 0), (1, 10), (2, 20), (0, 1), (0, 2), (0, 3)]);
    }

    #[test]
    fn priority_goes_first_and_age_catches_up() {
        let mut lane = Lane::default();
        lane.push(TenantIndex(0), ticket(1), 0, 0);
        lane.push(TenantIndex(0), ticket(2), 100, 5_000);
        lane.push(TenantIndex(0), ticket(3), 100, 10_001);
        assert_eq!(drain(&mut lane), [(0, 2), (0, 1), (0, 3)]);
    }

    #[test]
    fn a_tenant_at_its_limit_is_passed_over_until_revived() {
        let mut lane = Lane::default();
        lane.push(TenantIndex(0), ticket(1), 50, 0);
        lane.push(TenantIndex(1), ticket(2), 50, 0);
        let not_the_first = |tenant: TenantIndex, _| if tenant.0 == 0 { Fit::Leave } else { Fit::Take };
        assert_eq!(lane.pop(not_the_first), Some((TenantIndex(1), ticket(2))));
        assert_eq!(lane.pop(|_, _| Fit::Take), None, "left the ring");
        lane.revive(TenantIndex(0));
        assert_eq!(lane.pop(|_, _| Fit::Take), Some((TenantIndex(0), ticket(1))));
        assert!(lane.is_empty());
    }

    #[test]
    fn what_is_passed_over_keeps_its_place_and_is_not_looked_past_without_bound() {
        let mut lane = Lane::default();
        let skipped = LANE_SKIP_MAX as u32;
        for slot in 0..skipped + 2 {
            lane.push(TenantIndex(0), ticket(slot), 50, slot.into());
        }
        let from = |first: u32| move |_, ticket: Ticket| if ticket.slot < first { Fit::Skip } else { Fit::Take };
        assert_eq!(lane.pop(from(skipped + 1)), None, "further down than it looks");
        lane.revive(TenantIndex(0));
        assert_eq!(lane.pop(from(skipped)), Some((TenantIndex(0), ticket(skipped))));
        assert_eq!(lane.len(), skipped as usize + 1);
        let rest: Vec<u32> = drain(&mut lane).into_iter().map(|(_, slot)| slot).collect();
        assert_eq!(rest, (0..skipped).chain([skipped + 1]).collect::<Vec<_>>());
    }
}
