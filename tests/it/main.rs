//! The worker as its users meet it: the real binary against a real nats-server, judged by a model of the router.
//!
//! [`router`] is the model, written from the wire contract alone; [`server`], [`worker`] and [`ledger`] are the world around
//! it, [`objects`] an S3 server, [`volume`] is a disk that fails and [`proxy`] a connection that does, [`place`] is what HTTP
//! steps reach, [`database`] a PostgreSQL server, [`provider`] a stub of a model's provider, [`mirror`] says back what it is sent, and [`canary`] looks for
//! secrets; [`stranded`] judges what a killed server forgot; [`scenario`] holds the tests. Nothing here links the worker's
//! code: what counts is what goes over the wire. Every test has its own server, ports and folders, so they run in parallel;
//! the heavy ones take turns.

mod browser;
mod canary;
#[expect(dead_code, reason = "the same server as in the library's own tests, which use more of it")]
#[path = "../../src/blocks/sql/tests/server.rs"]
mod database;
#[cfg(feature = "failpoints")]
mod dice;
#[cfg(feature = "failpoints")]
mod effect;
mod group;
mod ledger;
mod mirror;
mod native;
#[expect(dead_code, reason = "the same server as in the library's own tests, which use more of it")]
#[path = "../../src/blocks/remote/tests/server.rs"]
mod objects;
mod place;
mod provider;
mod proxy;
mod record;
mod router;
mod scenario;
mod server;
mod stranded;
mod volume;
mod worker;
mod world;
