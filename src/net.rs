//! The way out: HTTP to the outside world from a shard's own ring.
//!
//! [`client::Client`] lives on its core and does one exchange: it asks the guard, resolves the name once, checks every address
//! of the answer, connects to one that was checked, and follows redirects through the same door. What a block makes of an
//! answer is the block's business ([`crate::blocks`]). Names are resolved and system roots are read on the offload thread
//! ([`crate::offload`]); everything else, TLS too, runs where the tenant lives.
//!
//! Nothing here retries a request that may have been sent, and every wait has an end of its own that stops its I/O.

pub mod client;
pub mod decode;
pub(crate) mod dial;
pub mod egress;
pub mod error;
pub mod limits;
pub(crate) mod link;
pub mod names;
pub mod payload;
mod pool;
pub mod postgres;
pub mod proxy;
mod socket;
pub mod tls;
