//! Operations on an image on a device: it goes there once, and comes back once.

use super::{Arg, Machine, u32s};
use crate::device::{Trouble, host};
use crate::image::Image;
use crate::job::Filter;
use crate::kernels::Kernel;
use crate::plan::{Change, Shape, Step};
use crate::taps::{FIRST_SHIFT, LAST_SHIFT, Order, taps};

/// What `steps` make of `image`.
pub(crate) fn render<M: Machine>(machine: &mut M, image: &Image, steps: &[Step]) -> Result<Image, Trouble> {
    let Some(last) = steps.last() else { return Ok(image.clone()) };
    let mut pixels = machine.upload(image.pixels())?;
    for step in steps {
        pixels = change(machine, pixels, step)?;
    }
    host::finished(last.to, machine.download(&pixels, last.to.bytes())?)
}

fn change<M: Machine>(machine: &mut M, pixels: M::Memory, step: &Step) -> Result<M::Memory, Trouble> {
    let (from, to) = (step.from, step.to);
    let (threads, channels) = (to.pixels(), u64::from(from.format.channels()));
    let is = |number: u32| Arg::Is(u64::from(number));
    match &step.change {
        Change::Crop { x, y } => {
            let out = machine.reserve(to.bytes())?;
            let args = [Arg::At(&pixels), Arg::At(&out), Arg::Is(channels), is(from.width), is(to.width), is(*x), is(*y)];
            machine.run(Kernel::Crop, threads, &args)?;
            Ok(out)
        }
        Change::Nearest => {
            let out = machine.reserve(to.bytes())?;
            let sizes = [is(from.width), is(from.height), is(to.width), is(to.height)];
            let [width, height, new_width, new_height] = sizes;
            let args = [Arg::At(&pixels), Arg::At(&out), Arg::Is(channels), width, height, new_width, new_height];
            machine.run(Kernel::Nearest, threads, &args)?;
            Ok(out)
        }
        Change::Filter(filter) => {
            let order = Order::of(from, to);
            let between = order.between(from, to);
            let values = between.pixels() as usize * from.format.channels() as usize;
            let down = order == Order::VerticalFirst;
            let first = machine.reserve(values * 4)?;
            pass(machine, Kernel::ResizeFirst, *filter, down, (&pixels, from), (&first, between))?;
            drop(pixels);
            let out = machine.reserve(to.bytes())?;
            pass(machine, Kernel::ResizeLast, *filter, !down, (&first, between), (&out, to))?;
            Ok(out)
        }
        Change::Gray => {
            machine.run(Kernel::Gray, threads, &[Arg::At(&pixels), Arg::Is(channels)])?;
            Ok(pixels)
        }
        Change::Table(table) => {
            let table = machine.upload(&table[..])?;
            machine.run(Kernel::Table, threads, &[Arg::At(&pixels), Arg::Is(channels), Arg::At(&table)])?;
            Ok(pixels)
        }
        Change::Swap => {
            machine.run(Kernel::SwapRedBlue, threads, &[Arg::At(&pixels), Arg::Is(channels)])?;
            Ok(pixels)
        }
        Change::Convert => {
            let out = machine.reserve(to.bytes())?;
            let args = [Arg::At(&pixels), Arg::At(&out), Arg::Is(channels), is(to.format.channels())];
            machine.run(Kernel::Convert, threads, &args)?;
            Ok(out)
        }
        Change::Overlay(part) => {
            let over = machine.upload(part.image.pixels())?;
            let args = [
                Arg::At(&pixels),
                Arg::Is(channels),
                is(from.width),
                is(part.x),
                is(part.y),
                Arg::At(&over),
                is(part.image.format().channels()),
                is(part.image.width()),
                is(part.left),
                is(part.top),
                is(part.width),
                Arg::Is(u64::from(part.opacity)),
            ];
            machine.run(Kernel::Overlay, part.width * part.height, &args)?;
            Ok(pixels)
        }
    }
}

/// One pass of a resize, across or down.
fn pass<M: Machine>(
    machine: &mut M,
    kernel: Kernel,
    filter: Filter,
    down: bool,
    (pixels, from): (&M::Memory, Shape),
    (out, to): (&M::Memory, Shape),
) -> Result<(), Trouble> {
    let taps = if down { taps(from.height, to.height, filter) } else { taps(from.width, to.width, filter) };
    let starts = machine.upload(&u32s(taps.starts))?;
    let offsets = machine.upload(&u32s(taps.offsets))?;
    let weights = machine.upload(&u32s(taps.weights.into_iter().map(i32::cast_unsigned)))?;
    let shift = if kernel == Kernel::ResizeFirst { FIRST_SHIFT } else { LAST_SHIFT };
    let args = [
        Arg::At(pixels),
        Arg::At(out),
        Arg::Is(u64::from(from.format.channels())),
        Arg::Is(u64::from(from.width)),
        Arg::Is(u64::from(to.width)),
        Arg::Is(u64::from(down)),
        Arg::At(&starts),
        Arg::At(&offsets),
        Arg::At(&weights),
        Arg::Is(u64::from(shift)),
    ];
    machine.run(kernel, to.pixels(), &args)
}
