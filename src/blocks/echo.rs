//! `echo`: gives back its inputs, byte for byte.

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::outcome::Fault;
use shards::step::EffectClass;

use super::sandbox::Planned;
use super::{Ask, Checked, inputs};

pub(super) static INFO: BlockInfo = BlockInfo { name: "echo", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

pub(super) struct Echo;

/// Any JSON value will do, and that it is one was settled when the message was read.
pub(super) fn check(_name: &str, _inputs: &[u8]) -> Result<Checked, Fault> {
    Ok(Checked::as_sent(EffectClass::Pure))
}

pub(super) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let inputs = if inputs::absent(ask.inputs) { "{}" } else { std::str::from_utf8(ask.inputs).unwrap_or("{}") };
    Ok(Planned::of(serde_json::json!({ "give_back": "the inputs" })).with_outputs(inputs))
}

impl Block for Echo {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn instant(&self, cx: &BlockCx) -> Option<Result<Bytes, Fault>> {
        Some(Ok(if inputs::absent(&cx.inputs) { Bytes::from_static(b"{}") } else { cx.inputs.clone() }))
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.instant(&cx).expect("echo always answers at once") })
    }
}
