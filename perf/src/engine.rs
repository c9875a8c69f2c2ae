//! One shard without NATS: steps in, outcomes out. Not written yet.

use anyhow::{Result, bail};

/// How to measure a shard.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct EngineArgs {}

/// Measures.
pub(crate) fn measure(_args: &EngineArgs) -> Result<()> {
    bail!("the engine scenario is not written yet")
}
