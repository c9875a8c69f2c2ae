//! `media.render`: an image made of an image. Decoding and encoding are work for compute threads, what lies between for the
//! device of the gpu lane where the step asks for that, else for a compute thread, too: the bytes are the same.
//!
//! How large an image may become follows from the memory that is kept for the step: an image that says in ten bytes that it has
//! a billion pixels is refused before any of them is made.

mod codec;
mod operations;

use std::borrow::Cow;

use bytes::Bytes;
use gpu::{Cancel, Image, Output, Render, Work};
use serde_json::json;
use shards::block::{Block, BlockCx, BlockInfo, Demand, Local, Stored};
use shards::ids::hex;
use shards::outcome::{Code, Fault};
use shards::step::{EffectClass, Lane};

use crate::policy::narrow::Guardrails;

use super::device::Device;
use super::inputs::{Inputs, fault, forbidden};
use super::outputs::push_base64;
use super::sandbox::{Planned, places};
use super::source::Source;
use super::{Ask, Checked, Reach, path};
use codec::Encoding;
use operations::Operations;

pub(super) static INFO: BlockInfo =
    BlockInfo { name: "media.render", aliases: &["image.render"], version: "1.0.0", effect: EffectClass::Conditional };

/// Kept for a step that names no memory, in bytes: enough for 11 million pixels.
const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;
/// What every step of it needs.
pub(super) const DEMAND: Demand = Demand {
    lane: Lane::Cpu,
    memory_bytes: MEMORY_BYTES_DEFAULT,
    device_form: true,
    memory_on_device_bytes: MEMORY_BYTES_DEFAULT,
};
/// Memory that a pixel of all images read may take: twice eight bytes while a decoder works on sixteen bits a channel, and
/// four as what it leaves; later four each of the image, of what is made of it on the way, and of the file.
const PIXEL_MEMORY_BYTES: u64 = 24;
/// Largest encoded image that is read, in bytes.
const ENCODED_BYTES_MAX: u64 = 32 << 20;
/// Largest encoded image that outputs hold, in bytes.
const INLINE_BYTES_MAX: usize = 8 << 20;

/// `media.render`. Lives on its core.
pub(super) struct Media {
    reach: Reach,
    device: Device,
}

/// What is asked for.
struct Task<'a> {
    source: Source<'a>,
    operations: Operations<'a>,
    encoding: Option<Encoding>,
    quality: u8,
    /// Where the image goes; into the outputs where that is not said.
    to: Option<Goal<'a>>,
}

/// The blob that an image becomes.
struct Goal<'a> {
    path: Cow<'a, str>,
    connector: Option<Cow<'a, str>>,
    overwrite: bool,
}

fn read(inputs: &[u8]) -> Result<Task<'_>, Fault> {
    let inputs = Inputs::read(inputs)?;
    inputs.exactly_one(&["bytes", "path"])?;
    let encoding = match inputs.text("format")?.as_deref() {
        None => None,
        Some(name) => Some(Encoding::named(name).ok_or_else(|| forbidden("format", "jpeg, png or webp"))?),
    };
    let quality = inputs.integer("quality", 1..=100, 85)? as u8;
    let overwrite = inputs.flag("overwrite")?;
    let to = match inputs.text("to")? {
        Some(to) => {
            path::check(&to).map_err(|rule| forbidden("to", rule))?;
            Some(Goal { path: to, connector: inputs.text("to_connector")?, overwrite: overwrite.unwrap_or(false) })
        }
        None if overwrite.is_some() => return Err(forbidden("overwrite", "only where `to` is given")),
        None if inputs.text("to_connector")?.is_some() => return Err(forbidden("to_connector", "only where `to` is given")),
        None => None,
    };
    let operations = Operations::read(inputs.json("operations").unwrap_or("[]"))?;
    Ok(Task { source: Source::read(&inputs)?, operations, encoding, quality, to })
}

pub(super) fn check(ask: &Ask<'_>) -> Result<Checked, Fault> {
    let task = read(ask.inputs)?;
    let mut denied = ask.store_denied(task.source.connector(), "connector");
    for (pointer, source) in task.operations.overlays() {
        denied = denied.or_else(|| ask.store_denied(source.connector(), &format!("{}/connector", &pointer[1..])));
    }
    let effect = match &task.to {
        None => EffectClass::Pure,
        Some(goal) => {
            denied = denied.or_else(|| ask.store_denied(goal.connector.as_deref(), "to_connector"));
            if !goal.overwrite && denied.is_none() && !ask.refuses_to_replace(goal.connector.as_deref(), "to_connector") {
                denied = Some(forbidden("overwrite", "true: this store cannot refuse to replace what is there"));
            }
            if goal.overwrite { EffectClass::Idempotent } else { EffectClass::Conditional }
        }
    };
    Ok(Checked { needs: DEMAND, denied, ..Checked::as_sent(effect) })
}

pub(super) fn plan(ask: &Ask<'_>) -> Result<Planned, Fault> {
    let task = read(ask.inputs)?;
    let overlays: Vec<String> = task.operations.overlays().map(|(pointer, _)| pointer).collect();
    let format = task.encoding.map(Encoding::name);
    let render =
        json!({ "format": format, "quality": task.quality, "operations": task.operations.count(), "overlays": overlays });
    let mut planned = task.source.planned(ask, Planned::of(json!({ "render": render })))?;
    for (pointer, source) in task.operations.overlays() {
        if let Source::Blob { path, .. } = source {
            let store = places::store(ask, source.connector(), &format!("{}/connector", &pointer[1..]))?;
            planned.does.insert(pointer.clone(), json!({ "path": path }));
            planned = planned.at(&format!("{pointer}/read_from"), store);
        }
    }
    let mut outputs = json!({ "format": format.unwrap_or("png"), "width": 1, "height": 1, "size": 1, "computed_by": "cpu" });
    match &task.to {
        Some(Goal { path, connector, overwrite }) => {
            let precondition = if *overwrite { "none: what stands there is replaced" } else { "no other content stands there" };
            planned.does.insert("write".to_owned(), json!({ "path": path, "precondition": precondition }));
            planned = planned.at("write_to", places::store(ask, connector.as_deref(), "to_connector")?);
            outputs["blob"] = json!({ "path": path, "size": 1, "sha256": "0".repeat(64), "created": true });
        }
        None => outputs["bytes"] = json!("AA=="),
    }
    Ok(planned.with_outputs(outputs))
}

impl Media {
    pub(super) fn new(reach: &Reach) -> Self {
        Media { reach: reach.clone(), device: Device::new(reach) }
    }

    async fn run(&self, cx: &BlockCx) -> Result<Bytes, Fault> {
        let task = read(&cx.inputs)?;
        let pixels_max = cx.needs.memory_bytes.max(PIXEL_MEMORY_BYTES) / PIXEL_MEMORY_BYTES;
        let mut left = pixels_max;
        let encoded = task.source.whole(&self.reach, cx, ENCODED_BYTES_MAX).await?.into_owned();
        let (image, found) = self.decode("", encoded, &mut left).await?;
        let mut overlays = Vec::new();
        for (pointer, source) in task.operations.overlays() {
            let encoded = source.whole(&self.reach, cx, ENCODED_BYTES_MAX).await?.into_owned();
            overlays.push(self.decode(&pointer, encoded, &mut left).await?.0);
        }
        let encoding = task.encoding.unwrap_or(found);
        let operations = task.operations.over(&image, overlays, pixels_max)?;
        let (image, by) = self.render(cx, Render { image, operations }).await?;
        let (width, height, quality) = (image.width(), image.height(), task.quality);
        let encoded = self.reach.compute.run(move || encoding.encode(&image, quality)).await;
        let encoded = encoded.map_err(|cause| failed("The image cannot be encoded.", "/format", &cause))?;
        Guardrails::read(&cx.guardrails)?.fits(encoded.len() as u64, "format")?;
        let head =
            json!({ "format": encoding.name(), "width": width, "height": height, "size": encoded.len(), "computed_by": by });
        match &task.to {
            Some(Goal { path, connector, overwrite }) => {
                let blobs = self.reach.blobs(cx, connector.as_deref(), "to_connector")?;
                let stored = blobs.put(&cx.tenant, path, Bytes::from(encoded), *overwrite).await?;
                Ok(with_blob(head, path, &stored))
            }
            None if encoded.len() > INLINE_BYTES_MAX => {
                let rule = format!("an image of more than {INLINE_BYTES_MAX} bytes needs `to`");
                Err(fault(Code::ExecutionFailed, "The image is too large for outputs.", "to", &rule))
            }
            None => {
                let mut out = head.to_string().into_bytes();
                out.pop();
                push_base64(&mut out, "bytes", &encoded).await;
                out.push(b'}');
                Ok(Bytes::from(out))
            }
        }
    }

    /// Takes the image's pixels of those that are `left` to the step: all of its images are there at once.
    async fn decode(&self, pointer: &str, encoded: Vec<u8>, left: &mut u64) -> Result<(Image, Encoding), Fault> {
        let pixels_max = *left;
        let decoded = self.reach.compute.run(move || codec::decode(&encoded, pixels_max)).await;
        let (image, encoding) = decoded.map_err(|error| error.fault(pointer))?;
        *left -= u64::from(image.width()) * u64::from(image.height());
        Ok((image, encoding))
    }

    /// What the operations make of the image, and what computed it.
    async fn render(&self, cx: &BlockCx, render: Render) -> Result<(Image, String), Fault> {
        if cx.needs.lane == Lane::Gpu {
            let answer = self.device.compute(Work::Render(render)).await?;
            let Output::Image(image) = answer.output else { unreachable!("a render gives an image") };
            return Ok((image, answer.device.to_string()));
        }
        // Given up with the try: what is computed for nobody ends at the next operation.
        let given_up = GivenUp(Cancel::default());
        let cancel = given_up.0.clone();
        let image = self.reach.compute.run(move || gpu::render_here(render, &cancel)).await;
        let image = image.map_err(|cause| failed("The image cannot be made.", "/operations", &cause.to_string()))?;
        Ok((image, "cpu".to_owned()))
    }
}

/// Says so when it is dropped.
struct GivenUp(Cancel);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn with_blob(mut head: serde_json::Value, path: &str, stored: &Stored) -> Bytes {
    head["blob"] = json!({ "path": path, "size": stored.size, "sha256": hex(&stored.sha256), "created": stored.created });
    Bytes::from(head.to_string())
}

fn failed(sentence: &'static str, pointer: &str, cause: &str) -> Fault {
    Fault::new(Code::ExecutionFailed, sentence).with_details(json!({ "pointer": pointer, "cause": cause }).to_string())
}

impl Block for Media {
    fn info(&self) -> &'static BlockInfo {
        &INFO
    }

    fn execute<'a>(&'a self, cx: BlockCx) -> Local<'a, Result<Bytes, Fault>> {
        Box::pin(async move { self.run(&cx).await })
    }
}

#[cfg(test)]
pub(in crate::blocks) mod tests;
