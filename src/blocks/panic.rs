//! `test.panic`: a development block. Its own code panics: what a step looks like that must harm nobody but itself.
//!
//! Known only where the worker runs for development; elsewhere its name is as unknown as any.

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::outcome::Fault;
use shards::step::EffectClass;

use super::Checked;
use super::inputs::Inputs;

pub(super) static INFO: BlockInfo = BlockInfo { name: "test.panic", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

pub(super) struct Panic;

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    Inputs::read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Block for Panic {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, _cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async { panic!("on purpose") })
    }
}
