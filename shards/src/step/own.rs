//! What waits for long holds its own bytes. A message lies in the buffer in which it came, beside others, and whatever keeps one
//! word of it keeps all of that buffer: as many bytes as the connection reads at once, for every step that waits.

use std::rc::Rc;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Arrival, Content, Origin};
use crate::gate::{Gate, Vote};
use crate::ids::Text;

/// One place where bytes of the message are kept.
enum Piece<'a> {
    Text(&'a mut Text),
    Bytes(&'a mut Bytes),
}

impl Piece<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Piece::Text(text) => text.as_bytes(),
            Piece::Bytes(bytes) => bytes,
        }
    }

    fn set(self, new: Bytes) {
        match self {
            // It was a text before.
            Piece::Text(text) => *text = Text::try_from(new).unwrap_or_else(|_| text.clone()),
            Piece::Bytes(bytes) => *bytes = new,
        }
    }
}

impl Arrival {
    /// The same in one allocation of its own, but for a few that hold nothing of the message.
    pub fn own(&self) -> Arrival {
        let mut own = self.clone();
        let old = self.delivery.body.clone();
        let mut beside = 0;
        pieces(&mut own, &mut |piece| {
            if within(&old, piece.get()).is_none() {
                beside += piece.get().len();
            }
        });
        let mut room = BytesMut::with_capacity(old.len() + beside);
        room.put_slice(&old);
        let body = room.split().freeze();
        pieces(&mut own, &mut |piece| match within(&old, piece.get()) {
            Some(at) => {
                let end = at + piece.get().len();
                piece.set(body.slice(at..end));
            }
            None => {
                room.put_slice(piece.get());
                piece.set(room.split().freeze());
            }
        });
        own
    }
}

impl Vote {
    /// The same in an allocation of its own.
    pub fn own(mut self) -> Vote {
        let texts = [&mut self.actor, &mut self.comment, &mut self.id, &mut self.plan];
        let mut room = BytesMut::with_capacity(texts.iter().map(|text| text.len()).sum());
        for text in texts {
            room.put_slice(text.as_bytes());
            Piece::Text(text).set(room.split().freeze());
        }
        self
    }
}

/// Where `part` begins in `whole`, if it is a part of it.
fn within(whole: &Bytes, part: &[u8]) -> Option<usize> {
    let at = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    (at + part.len() <= whole.len()).then_some(at)
}

/// Every place where an arrival keeps bytes of what came.
fn pieces(arrival: &mut Arrival, each: &mut impl FnMut(Piece<'_>)) {
    let Arrival { delivery, tenant, asker, content, .. } = arrival;
    each(Piece::Bytes(&mut delivery.body));
    each(Piece::Text(&mut delivery.subject));
    for (name, value) in &mut delivery.headers {
        each(Piece::Text(name));
        each(Piece::Text(value));
    }
    if let Some(reply) = &mut delivery.reply {
        each(Piece::Text(reply));
    }
    if let Origin::Stream(token) = &mut delivery.origin {
        each(Piece::Text(&mut token.reply));
    }
    each(Piece::Text(tenant));
    if let Some(asker) = asker {
        let always = [&mut asker.assignment_id, &mut asker.request_id, &mut asker.provider_id, &mut asker.job_type];
        let some = [&mut asker.trace_id, &mut asker.run_id, &mut asker.flow_id, &mut asker.step_id];
        for text in always.into_iter().chain(some.into_iter().flatten()) {
            each(Piece::Text(text));
        }
    }
    let Content::Work(work) = content else { return };
    each(Piece::Bytes(&mut work.inputs));
    each(Piece::Bytes(&mut work.guardrails));
    if let Some(note) = &mut work.note {
        each(Piece::Text(note));
    }
    if let Some(cache) = &mut work.cache {
        each(Piece::Text(&mut cache.key));
    }
    if let Some(gate) = &mut work.gate {
        let Gate { first, escalation, plan, .. } = Rc::make_mut(gate);
        for round in std::iter::once(first).chain(escalation) {
            round.approvers.iter_mut().for_each(|name| each(Piece::Text(name)));
        }
        if let Some(plan) = plan {
            each(Piece::Text(plan));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::CacheWish;
    use crate::gate::Round;
    use crate::ids::{AskerId, BlockId, Fingerprint, Key, Partition};
    use crate::step::{Asker, Delivery, EffectClass, Needs, Profile, RetryPolicy, StreamToken, Work};

    /// An arrival and a vote all of whose texts lie in this buffer.
    fn in_buffer(buffer: &Bytes) -> (Arrival, Vote) {
        let mut at = 64;
        let mut text = |length: usize| {
            at += length;
            Text::try_from(buffer.slice(at - length..at)).expect("letters")
        };
        let token = StreamToken { consumer: 1, sequence: 2, stored_ms: 3, delivered: 4, reply: text(9), inherited: false };
        let body = buffer.slice(1_000..2_000);
        let in_body = |at: usize, length: usize| Text::try_from(body.slice(at..at + length)).expect("letters");
        let round = |name: Text| Round { approvers: vec![name], quorum: 1, wait_ms: 5 };
        let gate = Gate {
            first: round(in_body(300, 5)),
            escalation: Some(round(text(4))),
            approve_overdue: false,
            remind_ms: None,
            signed: false,
            plan: Some(text(64)),
        };
        let work = Work {
            block: BlockId(1),
            kind: BlockId(2),
            effect: EffectClass::Pure,
            inputs: body.slice(200..400),
            priority: 50,
            budget_ms: 6,
            not_after_ms: 7,
            retry: RetryPolicy { tries_max: 1, backoff_ms: 1, backoff_ms_max: 1 },
            note: Some(text(11)),
            effect_ceiling: None,
            needs: Needs::default(),
            guardrails: body.slice(400..450),
            cache: Some(CacheWish { key: in_body(0, 20), ttl_ms: 8 }),
            gate: Some(Rc::new(gate)),
            sandbox: false,
            denied: None,
            changed: None,
        };
        let asker = Asker {
            id: AskerId([1; 16]),
            profile: Profile::Native,
            assignment_id: in_body(20, 36),
            request_id: in_body(60, 36),
            trace_id: Some(text(32)),
            provider_id: in_body(100, 3),
            job_type: in_body(110, 8),
            run_id: Some(in_body(120, 4)),
            flow_id: Some(text(5)),
            step_id: Some(in_body(130, 6)),
            attempt: Some(1),
        };
        let delivery = Delivery {
            origin: Origin::Stream(token),
            subject: text(10),
            headers: vec![(text(7), text(12)), (text(3), Text::new())],
            body: body.clone(),
            reply: Some(text(13)),
        };
        let arrival = Arrival {
            delivery,
            tenant: in_body(140, 4),
            partition: Partition(3),
            key: Key([2; 16]),
            fingerprint: Fingerprint([3; 32]),
            asker: Some(asker),
            content: Content::Work(work),
            received_ms: 9,
            adopted: None,
        };
        let vote =
            Vote { actor: text(4), approve: true, comment: text(100), id: Text::new(), signed: false, plan: text(64), at_ms: 1 };
        (arrival, vote)
    }

    #[test]
    fn nothing_of_the_buffer_is_kept_and_nothing_is_another() {
        let letters: Vec<u8> = (0..4_000_u32).map(|at| b'a' + (at * at % 23) as u8).collect();
        let buffer = Bytes::from(letters);
        let (arrival, vote) = in_buffer(&buffer);
        let own = (arrival.own(), vote.clone().own());
        assert_eq!(format!("{own:?}"), format!("{:?}", (&arrival, &vote)));
        assert!(!buffer.is_unique(), "the first ones lie in it");
        drop((arrival, vote));
        assert!(buffer.is_unique(), "the others do not");
    }
}
