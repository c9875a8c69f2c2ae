//! `test.eat`: a development block. It takes memory and writes to it, `mib` of it or, unless told, until there is none: what a
//! step looks like for which the system ends the whole process.
//!
//! Known only where the worker runs for development; elsewhere its name is as unknown as any.

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::outcome::Fault;
use shards::step::EffectClass;

use super::Checked;
use super::inputs::Inputs;

pub(super) static INFO: BlockInfo = BlockInfo { name: "test.eat", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

const MIB_MAX: u64 = 1 << 20;

pub(super) struct Eat;

fn read(inputs: &[u8]) -> Result<u64, Fault> {
    Inputs::read(inputs)?.integer("mib", 1..=MIB_MAX, MIB_MAX)
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Block for Eat {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let mib = read(&cx.inputs)?;
            // Not zeros: memory that was never written to is none.
            let eaten: Vec<Vec<u8>> = (0..mib).map(|_| vec![1; 1 << 20]).collect();
            Ok(Bytes::from(format!(r#"{{"mib":{}}}"#, eaten.len())))
        })
    }
}
