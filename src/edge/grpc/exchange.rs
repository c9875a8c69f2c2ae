//! Between the calls and the shards: requests go to their shard's port, and what the shards write comes apart into what calls
//! are told, what watches see, and what goes on to NATS.
//!
//! It never waits for NATS. While there is no connection, what must reach it waits behind it as it does without gRPC, bounded
//! by what the shards let be under way; events beyond a bound are dropped and counted, and keep-alives are of no use. Dead
//! letters of calls do not wait: they go into the worker's own store, which sends them once a stream takes them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt;
use shards::runtime::ports::{Outbound, Outgoing, Outlet, Parcel};
use shards::step::{Delivery, Origin, Settle};
use tokio::sync::mpsc;

use super::calls::{Calls, Said};
use super::watch::Watches;
use crate::dlq::{Deposit, Desk, Done, Question};
use crate::edge::limits::{BATCH_MAX, CONFIRM_AFTER_MS, STRANDED_EVENTS_MAX, TURN_BATCHES_MAX};
use crate::edge::ports::Ports;
use crate::edge::route;
use crate::edge::status::{EdgeStatus, add, bump};

/// The task. Lives on the edge's thread.
pub(super) struct Exchange {
    pub(super) ports: Rc<RefCell<Ports>>,
    /// What calls bring.
    pub(super) requests: mpsc::Receiver<Delivery>,
    /// What the shards send.
    pub(super) outbound: flume::Receiver<Outbound>,
    /// What of it goes to NATS.
    pub(super) onward: flume::Sender<Outbound>,
    pub(super) calls: Arc<Calls>,
    pub(super) watches: Arc<Watches>,
    pub(super) status: Arc<EdgeStatus>,
    /// The store of dead letters, at a desk of its own.
    pub(super) dlq: Option<Desk>,
    /// Events sent on since there is no connection.
    pub(super) stranded: usize,
}

impl Exchange {
    /// Until the shards are gone.
    pub(super) async fn run(mut self) {
        let shards = self.ports.borrow().count();
        let mut outbound = self.outbound.clone().into_stream();
        let mut stored = self.dlq.as_ref().map(|desk| desk.done.clone().into_stream());
        let mut came: Vec<Delivery> = Vec::with_capacity(BATCH_MAX);
        let mut asking = true;
        loop {
            let blocked = self.ports.borrow().blocked();
            let batch = tokio::select! {
                count = self.requests.recv_many(&mut came, BATCH_MAX), if asking => {
                    asking = count > 0;
                    None
                }
                batch = outbound.next() => match batch {
                    Some(batch) => Some(batch),
                    None => return,
                },
                Some(done) = said(&mut stored) => {
                    self.stored(done);
                    None
                }
                () = tokio::time::sleep(Duration::from_millis(CONFIRM_AFTER_MS)), if blocked => {
                    self.ports.borrow_mut().flush();
                    None
                }
            };
            if !came.is_empty() {
                add(&self.status.calls, came.len() as u64);
                for delivery in came.drain(..) {
                    self.hand_over(delivery, shards);
                }
                self.ports.borrow_mut().flush();
            }
            if let Some(batch) = batch {
                self.sort(batch);
                for _ in 1..TURN_BATCHES_MAX {
                    let Ok(batch) = self.outbound.try_recv() else { break };
                    self.sort(batch);
                }
                self.ports.borrow_mut().flush_full();
            }
            // Whoever was told something has its turn before more is told.
            tokio::task::yield_now().await;
        }
    }

    fn hand_over(&self, delivery: Delivery, shards: u16) {
        let (shard, _) = route::shard(&delivery.subject, &delivery.body, None, shards);
        let refused = self.ports.borrow_mut().offer(shard, delivery);
        if let Err(delivery) = refused
            && let Origin::Call(call) = delivery.origin
        {
            bump(&self.status.calls_refused);
            self.calls.tell(call, Said::Full);
        }
    }

    /// Takes a batch apart; what is left of it goes on.
    fn sort(&mut self, mut batch: Outbound) {
        let connected = self.status.connected.load(Relaxed);
        if connected {
            self.stranded = 0;
        }
        let shard = batch.shard;
        batch.items.retain_mut(|item| match item {
            Outgoing::Parcel(parcel) if parcel.about.call != 0 => {
                self.answer(shard, parcel);
                false
            }
            Outgoing::Parcel(parcel) if parcel.outlet == Outlet::Event => {
                self.watches.saw(parcel);
                let goes_on = connected || self.stranded < STRANDED_EVENTS_MAX;
                self.stranded += usize::from(!connected && goes_on);
                if !goes_on {
                    bump(&self.status.events_dropped);
                }
                goes_on
            }
            Outgoing::Parcel(parcel) if !connected && parcel.outlet == Outlet::DeadLetter && parcel.about.by_call => {
                let Some(desk) = &self.dlq else { return true };
                // The call was told how it ended, or may ask again.
                desk.ask(Question::Keep(Deposit::without_server(shard, parcel.clone(), true)));
                false
            }
            Outgoing::Settle(_, Settle::Progress) => connected,
            Outgoing::Parcel(_) | Outgoing::Settle(..) | Outgoing::Claim { .. } => true,
        });
        if !batch.items.is_empty() {
            // The other end goes only when the thread does.
            let _ = self.onward.send(batch);
        }
    }

    /// A dead letter is in the store; or it is not, and waits for NATS as others do.
    fn stored(&mut self, done: Done) {
        let Done::Kept(deposit, verdict) = done else { return };
        let Deposit { shard, parcel, .. } = deposit;
        match (verdict, parcel.confirm) {
            (Ok(()), Some(ticket)) => self.ports.borrow_mut().confirm(shard, ticket),
            (Ok(()), None) => {}
            (Err(_), _) => _ = self.onward.send(Outbound { shard, items: vec![Outgoing::Parcel(parcel)] }),
        }
    }

    /// Tells a call. Whether its client still waits or not, that is all that was owed.
    fn answer(&self, shard: u16, parcel: &mut Parcel) {
        let body = std::mem::take(&mut parcel.body);
        let said = match parcel.outlet {
            Outlet::Ack => Said::Accepted(body),
            Outlet::Result => Said::Ended(body),
            Outlet::Event | Outlet::DeadLetter | Outlet::Claim | Outlet::Copy | Outlet::Reply | Outlet::Doubt => {
                Said::Reply(body)
            }
        };
        self.calls.tell(parcel.about.call, said);
        if let Some(ticket) = parcel.confirm {
            self.ports.borrow_mut().confirm(shard, ticket);
        }
    }
}

/// What the clerk says next; where there is none, nothing.
async fn said(stored: &mut Option<flume::r#async::RecvStream<'static, Done>>) -> Option<Done> {
    match stored {
        Some(stored) => stored.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::grpc::calls;
    use crate::edge::thread::ShardLink;
    use bytes::Bytes;
    use shards::ids::{Key, Text, Ticket};
    use shards::runtime::ports::{About, Gauge, Inbound};
    use shards::step::StreamToken;

    fn parcel(outlet: Outlet, call: u64, confirm: Option<u32>) -> Outgoing {
        let about = About { line: 0, call, by_call: false, key: Key([0; 16]), status: None, replayed: false, boot: 0, tries: 0 };
        let confirm = confirm.map(|slot| Ticket { slot, generation: 1 });
        let (subject, body) = (Text::new(), Bytes::from_static(b"body"));
        Outgoing::Parcel(Parcel { outlet, subject, headers: Vec::new(), body, reply: None, confirm, about })
    }

    fn progress() -> Outgoing {
        let token = StreamToken { consumer: 0, sequence: 1, stored_ms: 0, delivered: 1, reply: Text::new(), inherited: false };
        Outgoing::Settle(token, Settle::Progress)
    }

    fn exchange() -> (Exchange, flume::Receiver<Outbound>, flume::Receiver<Inbound>) {
        let (inbox, taken) = flume::bounded(4);
        let ports = Ports::new(vec![ShardLink { inbox, gauge: Arc::new(Gauge::default()), bytes_max: 1 << 20 }]);
        let (onward, to_nats) = flume::unbounded();
        let exchange = Exchange {
            ports: Rc::new(RefCell::new(ports)),
            requests: mpsc::channel(1).1,
            outbound: flume::unbounded().1,
            onward,
            calls: Arc::default(),
            watches: Arc::default(),
            status: Arc::default(),
            dlq: None,
            stranded: 0,
        };
        (exchange, to_nats, taken)
    }

    #[test]
    fn answers_to_calls_go_nowhere_else_and_count_as_told() {
        let (mut exchange, to_nats, taken) = exchange();
        let (tell, mut told) = calls::line();
        let call = exchange.calls.open(&tell, 9, 1).expect("room");
        let items = vec![
            parcel(Outlet::Ack, call.number, None),
            parcel(Outlet::Result, call.number, Some(3)),
            parcel(Outlet::Result, call.number + 1, Some(4)),
            parcel(Outlet::DeadLetter, 0, Some(5)),
        ];
        exchange.sort(Outbound { shard: 0, items });
        assert!(matches!(told.try_recv(), Ok((9, Said::Accepted(_)))));
        assert!(matches!(told.try_recv(), Ok((9, Said::Ended(_)))));
        assert!(told.try_recv().is_err());
        exchange.ports.borrow_mut().flush();
        let confirmed = match taken.try_recv() {
            Ok(Inbound::Confirmed(tickets)) => tickets.iter().map(|ticket| ticket.slot).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(confirmed, [3, 4], "a client that is gone was told, too");
        let left = to_nats.try_recv().expect("the dead letter");
        assert!(matches!(&left.items[..], [Outgoing::Parcel(parcel)] if parcel.outlet == Outlet::DeadLetter));
        assert!(to_nats.is_empty());
    }

    #[test]
    fn without_nats_events_are_bounded_and_what_must_arrive_is_not_lost() {
        let (mut exchange, to_nats, _taken) = exchange();
        let events = |count: usize| (0..count).map(|_| parcel(Outlet::Event, 0, None)).collect::<Vec<_>>();
        let mut items = events(STRANDED_EVENTS_MAX + 5);
        items.push(progress());
        items.push(parcel(Outlet::Result, 0, Some(1)));
        exchange.sort(Outbound { shard: 0, items });
        let kept = to_nats.try_recv().expect("a batch").items;
        assert_eq!(kept.len(), STRANDED_EVENTS_MAX + 1);
        assert!(matches!(kept.last(), Some(Outgoing::Parcel(parcel)) if parcel.outlet == Outlet::Result));
        assert_eq!(exchange.status.events_dropped.load(Relaxed), 5);
        exchange.status.connected.store(true, Relaxed);
        exchange.sort(Outbound { shard: 0, items: vec![progress(), parcel(Outlet::Event, 0, None)] });
        assert_eq!(to_nats.try_recv().expect("a batch").items.len(), 2, "with a connection everything goes on");
    }

    fn dead(slot: u32, by_call: bool) -> Outgoing {
        let Outgoing::Parcel(mut parcel) = parcel(Outlet::DeadLetter, 0, Some(slot)) else { panic!("a parcel") };
        parcel.about.by_call = by_call;
        Outgoing::Parcel(parcel)
    }

    fn next(desk: &Desk) -> Done {
        desk.done.recv_timeout(Duration::from_secs(5)).expect("an answer")
    }

    #[test]
    fn without_nats_dead_letters_of_calls_go_into_the_store_and_count_as_told_once_they_are_there() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let clerk = crate::dlq::Clerk::start(dir.path(), 1 << 20)?;
        let (mut exchange, to_nats, taken) = exchange();
        exchange.dlq = Some(clerk.desk().another());
        exchange.sort(Outbound { shard: 0, items: vec![dead(1, true), dead(2, false)] });
        let left = to_nats.try_recv()?.items;
        assert!(matches!(&left[..], [Outgoing::Parcel(parcel)] if !parcel.about.by_call), "a message's waits for its server");
        exchange.ports.borrow_mut().flush();
        assert!(taken.is_empty(), "it is not stored yet");
        let done = next(exchange.dlq.as_ref().expect("a desk"));
        assert!(clerk.desk().done.is_empty(), "nobody else is told");
        exchange.stored(done);
        exchange.ports.borrow_mut().flush();
        assert!(matches!(taken.try_recv(), Ok(Inbound::Confirmed(tickets)) if tickets[..].iter().map(|t| t.slot).eq([1])));
        exchange.status.connected.store(true, Relaxed);
        exchange.sort(Outbound { shard: 0, items: vec![dead(3, true)] });
        assert_eq!(to_nats.try_recv()?.items.len(), 1, "with a connection it goes on");
        Ok(())
    }

    #[test]
    fn a_dead_letter_that_finds_no_room_waits_for_nats() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let clerk = crate::dlq::Clerk::start(dir.path(), 8)?;
        let (mut exchange, to_nats, taken) = exchange();
        exchange.dlq = Some(clerk.desk().another());
        exchange.sort(Outbound { shard: 0, items: vec![dead(1, true)] });
        assert!(to_nats.is_empty());
        let done = next(exchange.dlq.as_ref().expect("a desk"));
        exchange.stored(done);
        assert_eq!(to_nats.try_recv()?.items.len(), 1);
        exchange.ports.borrow_mut().flush();
        assert!(taken.is_empty());
        Ok(())
    }
}
