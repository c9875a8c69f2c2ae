//! The scenarios, by what a user of the platform would notice.

mod bad_input;
mod burst;
mod chaos;
mod cli;
mod conflict;
mod connection;
mod core_nats;
mod crash;
mod descriptors;
mod disk_fails;
mod disk_full;
mod disk_slow;
mod dlq;
mod drain;
mod grpc;
mod happy;
mod harm;
mod health;
mod http;
mod journal;
mod keys;
mod memory;
mod native;
mod ownership;
mod poison;
mod provision;
mod redelivery;
mod rehearsal;
mod reshard;
mod stall;
mod storage;
mod stores;
#[cfg(feature = "failpoints")]
mod upgrade;
