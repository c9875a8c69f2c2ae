//! The keeper's ear: takes the envelopes of all shards and keeps the newest tally of each.

use crate::envelope::Envelope;
use crate::tally::Tally;

/// The newest tally of each shard. Lives with whoever serves the metrics.
#[derive(Debug)]
pub struct Keeper {
    inbox: flume::Receiver<Envelope>,
    newest: Vec<Tally>,
}

impl Keeper {
    /// For this many shards.
    pub fn new(inbox: flume::Receiver<Envelope>, shards: usize) -> Self {
        Keeper { inbox, newest: vec![Tally::default(); shards] }
    }

    /// Takes in what has come, and gives the newest tally of each shard.
    pub fn tallies(&mut self) -> &[Tally] {
        while let Ok(Envelope::Tally { shard, tally }) = self.inbox.try_recv() {
            if let Some(place) = self.newest.get_mut(usize::from(shard)) {
                *place = *tally;
            }
        }
        &self.newest
    }
}
