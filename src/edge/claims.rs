//! Claims: before a step that must never run twice is run, its key is written create-only where all workers see it.
//!
//! A claim travels as a parcel: it is sent again until a stream answers. Stored means ours. Beaten means that somebody has it,
//! perhaps we: then what stands there is read. A claim is never given back; it goes when
//! the journal would have forgotten the step.

use std::borrow::Cow;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shards::event::Claimant;
use shards::ids::{Key, Lsn, Ticket};
use shards::runtime::ports::{About, Outlet, Parcel};

use super::bucket::CLAIMS;
use super::native::CREATE_ONLY;

/// Claims outlive the horizon by so much: a message that is just in time is claimed a little later.
const SLACK: Duration = Duration::from_secs(600);

/// Who claims. Lives on the edge's thread.
#[derive(Clone, Debug)]
pub(crate) struct Claimer {
    /// The worker's id: for people.
    pub(super) worker: String,
    /// The name of its journal, which knows what became of the step.
    pub(super) journal: String,
}

/// A claim as it stands in the bucket, JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    worker: Cow<'a, str>,
    #[serde(borrow)]
    journal: Cow<'a, str>,
    shard: u16,
    /// The frame that holds the step's message: one that the journal has forgotten has another, and so has each once the journal
    /// is rewritten for another number of shards, which gives no lsn of any shard twice.
    accepted: u64,
}

impl Claimer {
    /// The claim of this key, which this shard has accepted.
    pub(super) fn parcel(&self, shard: u16, ticket: Ticket, key: Key, accepted: Lsn) -> Parcel {
        let about = About { line: 0, call: 0, by_call: false, key, status: None, replayed: false, boot: 0, tries: 0 };
        let record =
            Record { worker: Cow::Borrowed(&self.worker), journal: Cow::Borrowed(&self.journal), shard, accepted: accepted.0 };
        Parcel {
            outlet: Outlet::Claim,
            subject: CLAIMS.subject(&key.to_string()).into(),
            headers: vec![(CREATE_ONLY.into(), "0".into())],
            body: Bytes::from(serde_json::to_vec(&record).expect("texts and numbers")),
            reply: None,
            confirm: Some(ticket),
            about,
        }
    }

    /// Whose claim stands where `asked` was beaten; `None`: none does.
    pub(super) async fn holder(&self, client: &Client, asked: &Parcel) -> Result<Option<Claimant>, async_nats::Error> {
        let Some((_, bytes)) = CLAIMS.read(client, &asked.about.key.to_string()).await? else { return Ok(None) };
        Ok(Some(self.judge(&bytes, &asked.body)))
    }

    fn judge(&self, found: &[u8], asked: &[u8]) -> Claimant {
        match serde_json::from_slice::<Record<'_>>(found) {
            _ if found == asked => Claimant::Ours,
            Ok(record) if record.journal == self.journal => Claimant::Forgotten,
            // What is no claim of ours was not written by us.
            Ok(_) | Err(_) => Claimant::Another,
        }
    }
}

/// Sees to it that there is a place for claims, which are kept for `horizon`.
///
/// # Errors
/// There is none, and it could not be made; or the server did not answer.
pub(super) async fn prepare(client: &Client, replicas: usize, horizon: Duration) -> Result<(), async_nats::Error> {
    if CLAIMS.exists(client).await? {
        return Ok(());
    }
    CLAIMS.create(client, replicas, horizon + SLACK).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket { slot: 3, generation: 2 };

    fn claim(journal: &str, accepted: u64) -> Parcel {
        let claimer = Claimer { worker: "w1".into(), journal: journal.into() };
        claimer.parcel(1, TICKET, Key([0xab; 16]), Lsn(accepted))
    }

    #[test]
    fn a_claim_creates_its_subject() {
        let parcel = claim("j1", 77);
        assert_eq!(&*parcel.subject, "$KV.endstation_claims.abababababababababababababababab");
        let headers: Vec<_> = parcel.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(headers, [("Nats-Expected-Last-Subject-Sequence", "0")]);
        assert_eq!(&parcel.body[..], br#"{"worker":"w1","journal":"j1","shard":1,"accepted":77}"#);
        assert_eq!(parcel.confirm, Some(TICKET));
    }

    #[test]
    fn what_stands_there_is_ours_or_forgotten_or_anothers() {
        let ours = Claimer { worker: "w1".into(), journal: "j1".into() };
        let judge = |found: &[u8]| ours.judge(found, &claim("j1", 77).body);
        assert_eq!(judge(&claim("j1", 77).body), Claimant::Ours, "its answer was lost");
        assert_eq!(judge(&claim("j1", 76).body), Claimant::Forgotten);
        assert_eq!(judge(&claim("j2", 77).body), Claimant::Another);
        assert_eq!(judge(b"a newer form"), Claimant::Another);
    }
}
