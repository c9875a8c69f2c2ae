//! `test.abort`: a development block. It ends the whole process, at once or, where `after_ms` says so, after a while, on its
//! core or on a compute thread: what a step looks like that must not take the worker with it for ever.
//!
//! Known only where the worker runs for development; elsewhere its name is as unknown as any.

use std::time::Duration;

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::outcome::Fault;
use shards::runtime::rt;
use shards::step::EffectClass;

use super::inputs::Inputs;
use super::{Checked, Reach};
use crate::compute::Compute;

pub(super) static INFO: BlockInfo = BlockInfo { name: "test.abort", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

const AFTER_MS_MAX: u64 = 60_000;

/// See the module. Lives on its core.
pub(super) struct Abort {
    compute: Compute,
}

/// When, and where.
struct Task {
    after: Duration,
    compute_thread: bool,
}

fn read(inputs: &[u8]) -> Result<Task, Fault> {
    let inputs = Inputs::read(inputs)?;
    let after = inputs.integer("after_ms", 0..=AFTER_MS_MAX, 0).map(Duration::from_millis)?;
    Ok(Task { after, compute_thread: inputs.flag("compute_thread")?.unwrap_or(false) })
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Abort {
    pub(super) fn new(reach: &Reach) -> Self {
        Abort { compute: reach.compute.clone() }
    }
}

impl Block for Abort {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn instant(&self, cx: &BlockCx) -> Option<Result<Bytes, Fault>> {
        match read(&cx.inputs) {
            Ok(Task { after: Duration::ZERO, compute_thread: false }) => std::process::abort(),
            Ok(_) => None,
            Err(fault) => Some(Err(fault)),
        }
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let task = read(&cx.inputs)?;
            rt::sleep(task.after).await;
            if task.compute_thread {
                self.compute.run(|| std::process::abort()).await
            }
            std::process::abort()
        })
    }
}
