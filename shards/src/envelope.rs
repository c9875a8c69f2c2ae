//! The only thing that ever crosses from a shard to the rest of the process besides its ports: [`Envelope`].

use crate::tally::Tally;

/// Shard → keeper. Crosses cores.
#[derive(Debug, Clone)]
pub enum Envelope {
    /// What a shard has counted since it started; a newer one replaces an older.
    Tally {
        /// Which shard.
        shard: u16,
        /// Its counts.
        tally: Box<Tally>,
    },
}
