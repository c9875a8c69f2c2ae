//! The edge's end of each shard's inbox: what waits for room in it, and how much the shard would take.
//!
//! Nothing here blocks. A full inbox leaves deliveries and confirmations waiting, within bounds; the edge's tick tries again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use shards::event::Claimant;
use shards::ids::Ticket;
use shards::runtime::ports::{Gauge, Inbound};
use shards::step::{Delivery, Origin};

use super::limits::{BACKLOG_BYTES_MAX, BACKLOG_CORE_MAX, BACKLOG_STREAM_MAX, BATCH_BYTES_MAX, BATCH_MAX, INBOX_BYTES_MAX};
use super::thread::ShardLink;

/// All shards, by number. Lives on the edge's thread.
pub(crate) struct Ports {
    shards: Vec<Port>,
}

struct Port {
    inbox: flume::Sender<shards::runtime::ports::Inbound>,
    gauge: Arc<Gauge>,
    /// Bytes that the shard may hold.
    bytes_max: u64,
    /// Deliveries in each batch of the inbox and their bytes, oldest first: the last `inbox.len()` of them are still there.
    sizes: VecDeque<(u32, u64)>,
    /// Their sums.
    in_inbox: u32,
    in_inbox_bytes: u64,
    backlog: VecDeque<Delivery>,
    backlog_bytes: u64,
    confirmed: Vec<Ticket>,
    claimed: Vec<(Ticket, Claimant)>,
}

impl Ports {
    pub(crate) fn new(links: Vec<ShardLink>) -> Ports {
        let port = |link: ShardLink| Port {
            inbox: link.inbox,
            gauge: link.gauge,
            bytes_max: link.bytes_max,
            sizes: VecDeque::new(),
            in_inbox: 0,
            in_inbox_bytes: 0,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            confirmed: Vec::new(),
            claimed: Vec::new(),
        };
        Ports { shards: links.into_iter().map(port).collect() }
    }

    /// How many shards there are.
    pub(crate) fn count(&self) -> u16 {
        self.shards.len() as u16
    }

    /// Whether every shard takes work.
    pub(crate) fn ready(&self) -> bool {
        self.shards.iter().all(|port| port.gauge.ready.load(Ordering::Relaxed))
    }

    /// How many more deliveries the shards would take, less what is already on its way to them.
    pub(crate) fn free(&mut self) -> u32 {
        self.shards.iter_mut().map(Port::free).fold(0, u32::saturating_add)
    }

    /// How many more bytes the shards would hold, less what is already on its way to them.
    pub(crate) fn free_bytes(&mut self) -> u64 {
        self.shards.iter_mut().map(Port::free_bytes).fold(0, u64::saturating_add)
    }

    /// Bytes that all shards may hold.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.shards.iter().map(|port| port.bytes_max).fold(0, u64::saturating_add)
    }

    /// Whether steps wait or run, so that places may come free without anything else happening here.
    pub(crate) fn busy(&self) -> bool {
        let busy = |port: &Port| {
            port.in_inbox > 0 || port.gauge.running.load(Ordering::Relaxed) + port.gauge.queued.load(Ordering::Relaxed) > 0
        };
        self.shards.iter().any(busy)
    }

    /// Deliveries whose end is not told yet, as the shards last said: here, on their way to a shard, or with it.
    pub(crate) fn held(&self) -> u64 {
        let held = |port: &Port| {
            let gauge = &port.gauge;
            let with_it =
                [&gauge.queued, &gauge.running, &gauge.unpublished].map(|level| u64::from(level.load(Ordering::Relaxed)));
            with_it.iter().sum::<u64>() + u64::from(port.in_inbox) + port.backlog.len() as u64
        };
        self.shards.iter().map(held).sum()
    }

    /// Whether something waits for room in an inbox.
    pub(crate) fn blocked(&self) -> bool {
        self.shards.iter().any(|port| !port.backlog.is_empty() || !port.confirmed.is_empty() || !port.claimed.is_empty())
    }

    /// Messages waiting here.
    pub(crate) fn backlog(&self) -> usize {
        self.shards.iter().map(|port| port.backlog.len()).sum()
    }

    /// Takes a delivery for a shard; gives it back when its bound is reached. [`Ports::flush`] sends it on.
    #[expect(clippy::result_large_err, reason = "the error is the delivery itself, handed back without a copy")]
    pub(crate) fn offer(&mut self, shard: u16, delivery: Delivery) -> Result<(), Delivery> {
        let port = &mut self.shards[usize::from(shard)];
        let bound = match delivery.origin {
            Origin::Stream(_) => BACKLOG_STREAM_MAX,
            _ => BACKLOG_CORE_MAX,
        };
        let bytes = port.backlog_bytes + delivery.body.len() as u64;
        // One alone waits whatever its size: the shard says what is wrong with it.
        if port.backlog.len() >= bound || (bytes > port.bytes_max.min(BACKLOG_BYTES_MAX) && !port.backlog.is_empty()) {
            return Err(delivery);
        }
        port.backlog_bytes = bytes;
        port.backlog.push_back(delivery);
        Ok(())
    }

    /// Takes a confirmation for a shard.
    pub(crate) fn confirm(&mut self, shard: u16, ticket: Ticket) {
        if let Some(port) = self.shards.get_mut(usize::from(shard)) {
            port.confirmed.push(ticket);
        }
    }

    /// Takes the answer to a claim for a shard: whose it is.
    pub(crate) fn claimed(&mut self, shard: u16, ticket: Ticket, by: Claimant) {
        if let Some(port) = self.shards.get_mut(usize::from(shard)) {
            port.claimed.push((ticket, by));
        }
    }

    /// Sends on what the inboxes have room for: confirmations first, they free places.
    pub(crate) fn flush(&mut self) {
        for port in &mut self.shards {
            port.flush();
        }
    }

    /// As [`Ports::flush`] where much has come together; true if confirmations are left. They are in no hurry and wake their
    /// shard, so a few of them travel with the next deliveries.
    pub(crate) fn flush_full(&mut self) -> bool {
        let mut left = false;
        for port in &mut self.shards {
            if !port.backlog.is_empty() || !port.claimed.is_empty() || port.confirmed.len() >= BATCH_MAX {
                port.flush();
            }
            left |= !port.confirmed.is_empty() || !port.claimed.is_empty();
        }
        left
    }

    /// Hands over the copy that another owner left of a step; gives it back where there is no room.
    pub(crate) fn adopt(&mut self, shard: u16, copy: Bytes) -> Result<(), Bytes> {
        let port = &mut self.shards[usize::from(shard)];
        if port.inbox.is_full() {
            return Err(copy);
        }
        let bytes = copy.len() as u64;
        port.send(Inbound::Adopted(copy), 1, bytes);
        Ok(())
    }

    /// Says that no more of these come; false where there is no room to say so.
    pub(crate) fn copies_read(&mut self, shard: u16) -> bool {
        let port = &mut self.shards[usize::from(shard)];
        let room = !port.inbox.is_full();
        if room {
            port.send(Inbound::CopiesRead, 0, 0);
        }
        room
    }

    /// Takes back the stream deliveries that have not reached a shard.
    pub(crate) fn withdraw(&mut self) -> Vec<Delivery> {
        let mut withdrawn = Vec::new();
        for port in &mut self.shards {
            let (streamed, kept) = port.backlog.drain(..).partition(|delivery| matches!(delivery.origin, Origin::Stream(_)));
            port.backlog = kept;
            port.backlog_bytes = port.backlog.iter().map(|delivery| delivery.body.len() as u64).sum();
            withdrawn.extend::<VecDeque<Delivery>>(streamed);
        }
        withdrawn
    }
}

impl Port {
    /// Forgets the batches that the shard has taken.
    fn look(&mut self) {
        while self.sizes.len() > self.inbox.len() {
            let Some((count, bytes)) = self.sizes.pop_front() else { return };
            self.in_inbox -= count;
            self.in_inbox_bytes -= bytes;
        }
    }

    fn free(&mut self) -> u32 {
        self.look();
        if !self.gauge.ready.load(Ordering::Relaxed) {
            return 0;
        }
        let free = self.gauge.free.load(Ordering::Relaxed);
        free.saturating_sub(self.in_inbox).saturating_sub(self.backlog.len() as u32)
    }

    fn free_bytes(&mut self) -> u64 {
        self.look();
        let held = self.gauge.held_bytes.load(Ordering::Relaxed);
        self.bytes_max.saturating_sub(held).saturating_sub(self.in_inbox_bytes).saturating_sub(self.backlog_bytes)
    }

    fn flush(&mut self) {
        if !self.confirmed.is_empty() && !self.inbox.is_full() {
            let confirmed = std::mem::take(&mut self.confirmed);
            self.send(Inbound::Confirmed(confirmed), 0, 0);
        }
        if !self.claimed.is_empty() && !self.inbox.is_full() {
            let claimed = std::mem::take(&mut self.claimed);
            self.send(Inbound::Claimed(claimed), 0, 0);
        }
        self.look();
        // What a shard refuses it holds, too, until that is told: half as much again as it may hold otherwise, and no more.
        let held = self.gauge.held_bytes.load(Ordering::Relaxed);
        let left = (self.bytes_max + self.bytes_max / 2).saturating_sub(held);
        let bytes_max = INBOX_BYTES_MAX.min(self.bytes_max / 4).min(left);
        while !self.backlog.is_empty() && !self.inbox.is_full() && self.in_inbox_bytes < bytes_max {
            let (mut count, mut bytes) = (0, 0);
            for delivery in self.backlog.iter().take(BATCH_MAX) {
                count += 1;
                bytes += delivery.body.len() as u64;
                if bytes >= BATCH_BYTES_MAX {
                    break;
                }
            }
            let batch = self.backlog.drain(..count).collect();
            self.backlog_bytes -= bytes;
            self.send(Inbound::Deliveries(batch), count as u32, bytes);
        }
    }

    /// This thread is the inbox's only sender, so room that was seen is still there. A shard that is gone takes nothing more:
    /// the process is ending, and what it should have had is still with the server.
    fn send(&mut self, inbound: Inbound, deliveries: u32, bytes: u64) {
        if self.inbox.try_send(inbound).is_ok() {
            self.sizes.push_back((deliveries, bytes));
            self.in_inbox += deliveries;
            self.in_inbox_bytes += bytes;
        }
        // Keeps the list short while nobody asks for `free`.
        if self.sizes.len() > 2 * self.inbox.len() + 64 {
            self.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const BYTES_MAX: u64 = 8 << 20;

    fn large(sequence: u64, bytes: usize) -> Delivery {
        Delivery { body: vec![0; bytes].into(), ..delivery(sequence) }
    }

    fn delivery(sequence: u64) -> Delivery {
        let reply = format!("$JS.ACK.s.c.1.{sequence}.1.1.0");
        let token = super::super::token::parse(&reply, 0).expect("a delivery");
        Delivery { origin: Origin::Stream(token), subject: "s".into(), headers: Vec::new(), body: Bytes::new(), reply: None }
    }

    fn port(capacity: usize, free: u32) -> (Ports, flume::Receiver<Inbound>, Arc<Gauge>) {
        let (inbox, taken) = flume::bounded(capacity);
        let gauge = Arc::new(Gauge::default());
        gauge.free.store(free, Ordering::Relaxed);
        gauge.ready.store(true, Ordering::Relaxed);
        (Ports::new(vec![ShardLink { inbox, gauge: gauge.clone(), bytes_max: BYTES_MAX }]), taken, gauge)
    }

    #[test]
    fn what_is_on_its_way_to_a_shard_is_not_free() {
        let (mut ports, taken, _) = port(4, 10);
        for n in 0..3 {
            ports.offer(0, delivery(n)).expect("room");
        }
        assert_eq!(ports.free(), 7, "waiting here");
        ports.flush();
        assert_eq!(ports.free(), 7, "in the inbox");
        taken.recv().expect("a batch");
        assert_eq!(ports.free(), 10, "the shard has it, its gauge tells");
    }

    #[test]
    fn a_full_inbox_keeps_things_waiting_in_order() {
        let (mut ports, taken, _) = port(1, 10);
        ports.offer(0, delivery(1)).expect("room");
        ports.flush();
        ports.offer(0, delivery(2)).expect("room");
        ports.confirm(0, Ticket { slot: 1, generation: 1 });
        ports.flush();
        assert!(ports.blocked());
        assert!(matches!(taken.recv(), Ok(Inbound::Deliveries(batch)) if batch.len() == 1));
        ports.flush();
        assert!(matches!(taken.recv(), Ok(Inbound::Confirmed(_))), "confirmations go first");
        ports.flush();
        assert!(matches!(taken.recv(), Ok(Inbound::Deliveries(_))));
        assert!(!ports.blocked());
    }

    #[test]
    fn a_few_confirmations_wait_for_company() {
        let (mut ports, taken, _) = port(4, 10);
        let confirm = |ports: &mut Ports, slot| ports.confirm(0, Ticket { slot, generation: 1 });
        confirm(&mut ports, 1);
        assert!(ports.flush_full(), "left");
        assert!(taken.is_empty());
        ports.offer(0, delivery(1)).expect("room");
        assert!(!ports.flush_full());
        assert!(matches!(taken.recv(), Ok(Inbound::Confirmed(list)) if list.len() == 1), "they travel with deliveries");
        assert!(matches!(taken.recv(), Ok(Inbound::Deliveries(_))));
        (0..BATCH_MAX as u32).for_each(|slot| confirm(&mut ports, slot));
        assert!(!ports.flush_full(), "many are company enough");
        assert!(matches!(taken.recv(), Ok(Inbound::Confirmed(list)) if list.len() == BATCH_MAX));
    }

    #[test]
    fn a_stream_delivery_over_the_bound_comes_back() {
        let (mut ports, _taken, _) = port(1, 10);
        for n in 0..BACKLOG_STREAM_MAX {
            ports.offer(0, delivery(n as u64)).expect("room");
        }
        assert!(ports.offer(0, delivery(0)).is_err());
        let core = Delivery { origin: Origin::Core, ..delivery(0) };
        ports.offer(0, core).expect("core has its own, higher bound");
        assert_eq!(ports.withdraw().len(), BACKLOG_STREAM_MAX);
        assert_eq!(ports.backlog(), 1);
    }

    #[test]
    fn large_messages_go_in_small_batches_and_take_of_the_shards_bytes_on_their_way() {
        let (mut ports, taken, gauge) = port(64, 100);
        gauge.held_bytes.store(1 << 20, Ordering::Relaxed);
        for n in 0..6 {
            ports.offer(0, large(n, 1 << 20)).expect("room");
        }
        assert_eq!(ports.free_bytes(), 1 << 20, "what it holds and what waits here are not free");
        ports.flush();
        assert_eq!(ports.free_bytes(), 1 << 20, "nor is what is in the inbox");
        assert_eq!(taken.len(), 2, "a quarter of what it may hold");
        assert!(matches!(taken.recv(), Ok(Inbound::Deliveries(batch)) if batch.len() == 1));
        assert_eq!(ports.free_bytes(), 2 << 20, "the shard has one and its gauge tells");
        gauge.held_bytes.store(BYTES_MAX + BYTES_MAX / 2, Ordering::Relaxed);
        ports.flush();
        assert_eq!(taken.len(), 1, "it holds all that it may and what it refused");
        gauge.held_bytes.store(BYTES_MAX, Ordering::Relaxed);
        ports.flush();
        assert_eq!(taken.len(), 2);
    }

    #[test]
    fn no_more_bytes_wait_than_the_shard_may_hold() {
        let (mut ports, _taken, _) = port(1, 100);
        for n in 0..8 {
            ports.offer(0, large(n, 1 << 20)).expect("room");
        }
        assert!(ports.offer(0, large(8, 1)).is_err());
        ports.withdraw();
        ports.offer(0, large(9, 9 << 20)).expect("one alone, whatever its size");
    }

    #[test]
    fn a_shard_that_is_not_ready_has_nothing_free() {
        let (mut ports, _taken, gauge) = port(1, 10);
        gauge.ready.store(false, Ordering::Relaxed);
        assert_eq!(ports.free(), 0);
    }
}
