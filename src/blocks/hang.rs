//! `test.hang`: a development block. It keeps its core and never lets go of it, or, where `ms` says so, after so long: what a
//! step looks like that must not hold up the worker for ever.
//!
//! Known only where the worker runs for development; elsewhere its name is as unknown as any.

use std::time::{Duration, Instant};

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::outcome::Fault;
use shards::step::EffectClass;

use super::Checked;
use super::inputs::Inputs;

pub(super) static INFO: BlockInfo = BlockInfo { name: "test.hang", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

const MS_MAX: u64 = 60_000;

pub(super) struct Hang;

/// How long; zero for ever.
fn read(inputs: &[u8]) -> Result<Duration, Fault> {
    Inputs::read(inputs)?.integer("ms", 0..=MS_MAX, 0).map(Duration::from_millis)
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Block for Hang {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let lasts = read(&cx.inputs)?;
            let begun = Instant::now();
            while lasts.is_zero() || begun.elapsed() < lasts {
                std::hint::spin_loop();
            }
            Ok(Bytes::from_static(b"{}"))
        })
    }
}
