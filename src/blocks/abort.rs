//! `test.abort`: a development block. It ends the whole process, at once or, where `after_ms` says so, after a while: what a
//! step looks like that must not take the worker with it for ever.
//!
//! Known only where the worker runs for development; elsewhere its name is as unknown as any.

use std::time::Duration;

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::outcome::Fault;
use shards::runtime::rt;
use shards::step::EffectClass;

use super::Checked;
use super::inputs::Inputs;

pub(super) static INFO: BlockInfo = BlockInfo { name: "test.abort", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

const AFTER_MS_MAX: u64 = 60_000;

pub(super) struct Abort;

fn read(inputs: &[u8]) -> Result<Duration, Fault> {
    Inputs::read(inputs)?.integer("after_ms", 0..=AFTER_MS_MAX, 0).map(Duration::from_millis)
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Block for Abort {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn instant(&self, cx: &BlockCx) -> Option<Result<Bytes, Fault>> {
        match read(&cx.inputs) {
            Ok(Duration::ZERO) => std::process::abort(),
            Ok(_) => None,
            Err(fault) => Some(Err(fault)),
        }
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            rt::sleep(read(&cx.inputs)?).await;
            std::process::abort()
        })
    }
}
