//! `sleep`: waits `ms` milliseconds (100 unless told) on the shard's timer and says so.

use std::time::Duration;

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::limits::BUDGET_MS_MAX;
use shards::outcome::Fault;
use shards::step::EffectClass;

use super::inputs::Inputs;
use super::sandbox::Planned;
use super::{Ask, Checked};

pub(super) static INFO: BlockInfo = BlockInfo { name: "sleep", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

const MS_DEFAULT: u64 = 100;

pub(super) struct Sleep;

fn read(inputs: &[u8]) -> Result<u64, Fault> {
    Inputs::read(inputs)?.integer("ms", 0..=BUDGET_MS_MAX, MS_DEFAULT)
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

pub(super) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let ms = read(ask.inputs)?;
    Ok(Planned::of(serde_json::json!({ "sleep_ms": ms })).with_outputs(serde_json::json!({ "slept_ms": ms })))
}

impl Block for Sleep {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let ms = read(&cx.inputs)?;
            shards::runtime::rt::sleep(Duration::from_millis(ms)).await;
            Ok(Bytes::from(format!(r#"{{"slept_ms":{ms}}}"#)))
        })
    }
}
