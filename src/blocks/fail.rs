//! `test.fail`: a development block. It fails the first `times` tries (1 unless told) with a retryable `code`
//! (NETWORK_ERROR unless told) and an optional `message`, then succeeds with the number of tries.
//!
//! Known only where the worker runs for development; elsewhere its name is as unknown as any.

use bytes::Bytes;
use shards::block::{Block, BlockCx, BlockInfo, Local};
use shards::ids::Text;
use shards::limits::TRIES_MAX;
use shards::outcome::{Code, Fault};
use shards::step::EffectClass;

use super::Checked;
use super::inputs::{Inputs, forbidden};

pub(super) static INFO: BlockInfo = BlockInfo { name: "test.fail", aliases: &[], version: "1.0.0", effect: EffectClass::Pure };

const MESSAGE: &str = "This block fails on purpose.";
const MESSAGE_BYTES_MAX: usize = 256;

pub(super) struct Fail;

/// How often it fails, and how.
struct Plan {
    times: u32,
    fault: Fault,
}

fn read(inputs: &[u8]) -> Result<Plan, Fault> {
    let inputs = Inputs::read(inputs)?;
    let times = inputs.integer("times", 0..=u64::from(TRIES_MAX), 1)? as u32;
    let code = match inputs.text("code")? {
        None => Code::NetworkError,
        Some(name) => Code::ALL
            .iter()
            .copied()
            .find(|code| code.retryable() && code.as_str() == name)
            .ok_or_else(|| forbidden("code", "a retryable error code"))?,
    };
    let message = match inputs.text("message")? {
        None => Text::from_static(MESSAGE),
        Some(text) if text.len() <= MESSAGE_BYTES_MAX => Text::from(text.as_ref()),
        Some(_) => return Err(forbidden("message", "at most 256 bytes")),
    };
    Ok(Plan { times, fault: Fault { message, ..Fault::new(code, MESSAGE) } })
}

pub(super) fn check(_name: &str, inputs: &[u8]) -> Result<Checked, Fault> {
    read(inputs).map(|_| Checked::as_sent(EffectClass::Pure))
}

impl Block for Fail {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move {
            let plan = read(&cx.inputs)?;
            if cx.try_number <= plan.times {
                return Err(plan.fault);
            }
            Ok(Bytes::from(format!(r#"{{"tries":{}}}"#, cx.try_number)))
        })
    }
}
