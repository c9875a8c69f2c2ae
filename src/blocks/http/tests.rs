//! `http.request` against servers that the tests script, byte for byte.

use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};
use shards::outcome::{Code, Effected, Fault};
use shards::step::EffectClass;

use super::super::local::LocalBlobs;
use super::super::tests::{on_a_shard, reach, run_with};
use super::super::{Ask, Reach, find};
use crate::policy::narrow::NOTHING;
use crate::policy::{Auth, ConnectorSettings, Policy, PolicySettings, Scope};
use crate::secrets::SecretRef;

pub(in crate::blocks) mod checks;
mod connectors;
mod exchanges;
mod hostile;
mod names;
pub(in crate::blocks) mod server;

use server::{Act, Server};

/// Everybody may reach everything public, and this machine.
fn open() -> Reach {
    reach(Policy::new(PolicySettings::default(), true).expect("nothing to read"))
}

/// Runs an `http.request` of tenant `acme`.
async fn ask(reach: &Reach, blobs: &Rc<LocalBlobs>, inputs: Value) -> Result<Value, Fault> {
    run_with(reach, blobs, "acme", "http.request", &inputs.to_string(), 1).await
}

/// A fault's details.
fn details(fault: &Fault) -> Value {
    serde_json::from_slice(&fault.details).expect("details are JSON")
}
