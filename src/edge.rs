//! The edge: what stands between the shards and NATS. tokio lives here.
mod answer;
pub mod beamline;
mod event;
pub mod fingerprint;
pub mod intake;
mod json;
pub mod native;
pub mod nats;
pub mod outbox;
mod pen;
mod reading;
pub mod subjects;
pub mod thread;
pub mod wire;
