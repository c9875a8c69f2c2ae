//! The edge: what stands between the shards and NATS. tokio lives here.
pub mod beamline;
pub mod fingerprint;
pub mod intake;
pub mod native;
pub mod nats;
pub mod outbox;
pub mod subjects;
pub mod thread;
pub mod wire;
