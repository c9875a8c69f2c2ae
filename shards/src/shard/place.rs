//! What a step takes of its core while it runs: a running slot in its lane, memory, a turn among its own kind. Taken in
//! [`Shard::take_place`], given back in [`Shard::leave_place`], and asked for by [`fit`].
//!
//! Memory goes in the order in which it was first lacked: who needs much is not overtaken for ever by who needs little.

use std::collections::BTreeSet;

use super::{Job, Shard, State};
use crate::ids::Ticket;
use crate::lane::Fit;
use crate::limits::Limits;
use crate::planted::{Bug, planted};
use crate::quota::{Account, Taken};
use crate::step::{Lane, Needs, Work};
use crate::tenant::{TenantIndex, Tenants};

/// What the running steps have taken, over all tenants. Lives on its core.
#[derive(Debug, Default)]
pub(super) struct InUse {
    by_lane: [u32; Lane::ALL.len()],
    memory_bytes: u64,
    /// Steps that wait, by lane.
    queued: [u32; Lane::ALL.len()],
    /// Nothing else takes memory before this one.
    first: Option<(TenantIndex, Ticket)>,
    /// Left their ring because memory was lacking.
    without: BTreeSet<TenantIndex>,
    /// Which lane is asked first for the next step to start: each in its turn, so that none takes all slots of the core.
    turn: usize,
}

impl InUse {
    /// Running steps of a lane.
    pub(super) fn running(&self, lane: Lane) -> u32 {
        self.by_lane[lane as usize]
    }

    /// Who has gone, or waits for its own tenant or a slot of its lane, holds up nobody else.
    fn drop_idle_first(&mut self, jobs: &[Job], tenants: &Tenants, limits: &Limits) {
        self.first = self.first.filter(|(tenant, first)| {
            let work = jobs[first.slot as usize].arrival.work().filter(|_| waits(jobs, *first));
            work.is_some_and(|work| {
                self.has_room(work.needs.lane, limits) && fits_its_tenant(&tenants.peek(*tenant).account, work) == Fit::Take
            })
        });
    }

    fn has_room(&self, lane: Lane, limits: &Limits) -> bool {
        self.running(lane) < limits.lane_running_max(lane) || planted(Bug::IgnoreLaneLimit)
    }
}

impl Shard {
    /// Running steps of a lane.
    pub fn running_in(&self, lane: Lane) -> u32 {
        self.in_use.running(lane)
    }

    /// Waiting steps of a lane, those before their next try among them.
    pub fn queued_in(&self, lane: Lane) -> u32 {
        self.in_use.queued[lane as usize]
    }

    /// A step has a place in the queue from here on.
    pub(super) fn queue_up(&mut self, slot: u32) {
        self.queued += 1;
        self.in_use.queued[self.lane_of(slot) as usize] += 1;
    }

    /// It has none any more.
    pub(super) fn unqueue(&mut self, slot: u32) {
        self.queued -= 1;
        self.in_use.queued[self.lane_of(slot) as usize] -= 1;
    }

    fn lane_of(&self, slot: u32) -> Lane {
        self.jobs[slot as usize].arrival.work().map_or(Lane::Io, |work| work.needs.lane)
    }

    /// Memory that is kept for running steps, in bytes.
    pub fn memory_in_use(&self) -> u64 {
        self.in_use.memory_bytes
    }

    /// The next step to start, if any may.
    pub(super) fn next_to_start(&mut self) -> Option<u32> {
        loop {
            let next = self.next_in_lanes();
            // Who was to have memory first may have it now, or have gone: then it is the turn of those who stood behind.
            if next.is_some() || !self.memory_is_offered() {
                return next;
            }
        }
    }

    fn next_in_lanes(&mut self) -> Option<u32> {
        let Shard { jobs, tenants, in_use, lanes, settings, running, .. } = self;
        let limits = &settings.limits;
        for offset in 0..Lane::ALL.len() {
            let turn = (in_use.turn + offset) % Lane::ALL.len();
            let lane = Lane::ALL[turn];
            while *running < limits.shard_running_max && in_use.has_room(lane, limits) {
                let popped = lanes.of(lane).pop(|tenant, ticket| fit(jobs, tenants, in_use, limits, tenant, ticket));
                let Some((_, ticket)) = popped else { break };
                if waits(jobs, ticket) {
                    in_use.turn = (turn + 1) % Lane::ALL.len();
                    return Some(ticket.slot);
                }
            }
        }
        None
    }

    /// Puts those back into their rings that left for want of memory, unless another is before them; whether any are.
    fn memory_is_offered(&mut self) -> bool {
        let Shard { jobs, tenants, in_use, lanes, settings, .. } = self;
        if in_use.without.is_empty() {
            return false;
        }
        in_use.drop_idle_first(jobs, tenants, &settings.limits);
        if in_use.first.is_some() {
            return false;
        }
        for tenant in std::mem::take(&mut in_use.without) {
            lanes.revive(tenant);
        }
        true
    }

    /// Whether a step that waits elsewhere than in its lane may start now.
    pub(super) fn may_start(&mut self, slot: u32) -> bool {
        let (ticket, lane) = (self.ticket(slot), self.lane_of(slot));
        let Shard { jobs, tenants, in_use, settings, running, .. } = self;
        let (limits, tenant) = (&settings.limits, jobs[slot as usize].tenant);
        let first = in_use.first;
        let may = *running < limits.shard_running_max
            && in_use.has_room(lane, limits)
            && fit(jobs, tenants, in_use, limits, tenant, ticket) == Fit::Take;
        // Those that wait elsewhere have an order of their own, and keep no memory from the lanes.
        if in_use.first != first && in_use.first.is_some_and(|(_, taken)| taken == ticket) {
            in_use.first = first;
        }
        may
    }

    /// A queued step has its running slot from here on.
    pub(super) fn take_place(&mut self, slot: u32) -> bool {
        let job = &mut self.jobs[slot as usize];
        let (Some(charge), Some(work)) = (job.charge.as_mut(), job.arrival.work()) else { return false };
        let taken = Taken { kind: work.kind, needs: work.needs };
        self.tenants.get(job.tenant).account.start(charge, taken);
        if self.in_use.first.is_some_and(|(_, first)| first.slot == slot && first.generation == job.generation) {
            self.in_use.first = None;
        }
        self.in_use.by_lane[taken.needs.lane as usize] += 1;
        self.in_use.memory_bytes += taken.needs.memory_bytes;
        self.running += 1;
        self.unqueue(slot);
        true
    }

    /// A running slot has been given back, to the tenant's account already.
    pub(super) fn leave_place(&mut self, tenant: TenantIndex, taken: Taken) {
        self.running -= 1;
        self.in_use.by_lane[taken.needs.lane as usize] -= 1;
        self.in_use.memory_bytes -= taken.needs.memory_bytes;
        self.lanes.revive(tenant);
        for tenant in std::mem::take(&mut self.in_use.without) {
            self.lanes.revive(tenant);
        }
    }
}

/// Whether a ticket's step waits in its lane; else its entry there is of no use.
fn waits(jobs: &[Job], ticket: Ticket) -> bool {
    let job = &jobs[ticket.slot as usize];
    job.generation == ticket.generation && job.state == State::Queued
}

/// Whether a step may start now, of a shard that has a running slot for it.
#[inline]
fn fit(jobs: &[Job], tenants: &Tenants, in_use: &mut InUse, limits: &Limits, tenant: TenantIndex, ticket: Ticket) -> Fit {
    let account = &tenants.peek(tenant).account;
    let Some(work) = jobs[ticket.slot as usize].arrival.work().filter(|_| waits(jobs, ticket)) else { return Fit::Take };
    let fits = fits_its_tenant(account, work);
    let bytes = work.needs.memory_bytes;
    if fits != Fit::Take || bytes == 0 || planted(Bug::IgnoreMemory) {
        return fits;
    }
    in_use.drop_idle_first(jobs, tenants, limits);
    // What is larger than all there is (it was accepted under another limit) runs when nothing else has any.
    let there = in_use.memory_bytes == 0 || in_use.memory_bytes.saturating_add(bytes) <= limits.shard_memory_bytes_max;
    if there && in_use.first.is_none_or(|(_, first)| first == ticket) {
        return Fit::Take;
    }
    in_use.first.get_or_insert((tenant, ticket));
    in_use.without.insert(tenant);
    Fit::Leave
}

/// Whether its own tenant has what a step needs.
#[inline]
fn fits_its_tenant(account: &Account, work: &Work) -> Fit {
    let Needs { memory_bytes, concurrency, .. } = work.needs;
    if !account.may_run() {
        return Fit::Leave;
    }
    if concurrency > 0 && account.running_of(work.kind) >= concurrency && !planted(Bug::IgnoreConcurrency) {
        return Fit::Skip;
    }
    if memory_bytes > 0 && !account.has_memory(memory_bytes) && !planted(Bug::IgnoreMemory) {
        return Fit::Leave;
    }
    Fit::Take
}
