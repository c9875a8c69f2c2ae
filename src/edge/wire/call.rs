//! Letters to calls: in protobuf, without subject and headers, for the edge to hand to whoever waits in the call.

use bytes::Bytes;
use shards::event::{Letter, Reply};
use shards::ids::Text;
use shards::outcome::Code;
use shards::runtime::ports::Outlet;
use shards::step::{Arrival, Headers};

use super::EdgeWire;
use crate::edge::{notice, protobuf};

impl EdgeWire {
    /// What a call is told itself: everything but events and dead letters, which go where they always go.
    pub(super) fn render_call(&self, arrival: &Arrival, letter: &Letter) -> Option<(Outlet, Text, Headers, Bytes)> {
        // The call ended with the process that it came to; its client asks again.
        if !arrival.is_call() {
            return None;
        }
        let roll = &mut *self.roll.borrow_mut();
        let step = !notice::is_notice(&arrival.delivery.subject);
        let (outlet, body) = match letter {
            Letter::Ack { accepted: true, at_ms, .. } => (Outlet::Ack, protobuf::accepted(*at_ms)),
            // The result says why not.
            Letter::Ack { accepted: false, .. } => return None,
            Letter::Result { outcome, .. } => match &outcome.fault {
                // It is no outcome of what was asked for.
                Some(fault) if fault.code == Code::KeyConflict => (Outlet::Reply, protobuf::step_error(fault)),
                _ => (Outlet::Result, protobuf::step_result(arrival, outcome)),
            },
            Letter::Reply(Reply::Refused(fault)) if step => (Outlet::Reply, protobuf::step_error(fault)),
            Letter::Reply(reply) => (Outlet::Reply, notice::reply(roll, &arrival.delivery, reply)),
            Letter::Lifecycle { .. }
            | Letter::ApprovalNeeded { .. }
            | Letter::Copy { .. }
            | Letter::NoCopy
            | Letter::Progress { .. }
            | Letter::DeadLetter { .. } => {
                return None;
            }
        };
        Some((outlet, Text::new(), Headers::new(), body))
    }
}
