//! The scenarios, by what a user of the platform would notice.

/// A test of each crash point: what is around it `survives` that one.
macro_rules! crash_points {
    ($($point:ident: $name:ident;)*) => {$(
        #[tokio::test]
        async fn $name() -> anyhow::Result<()> {
            survives(stringify!($point)).await
        }
    )*};
}

mod ai;
mod approval;
mod bad_input;
mod burst;
mod chaos;
mod cli;
mod conflict;
mod connection;
mod core_nats;
mod crash;
mod crash_blocks;
mod descriptors;
mod disk_fails;
mod disk_full;
mod disk_slow;
mod dlq;
mod drain;
mod dry_run;
mod flows;
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
mod panics;
mod poison;
mod policy;
mod provision;
mod redelivery;
mod rehearsal;
mod reshard;
mod secrets;
mod sql;
mod stall;
mod storage;
mod stores;
#[cfg(feature = "failpoints")]
mod upgrade;
