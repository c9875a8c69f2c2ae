//! The operations of `media.render` as a step writes them, and what they are for an image whose size is known. Pure.

use std::borrow::Cow;

use gpu::{Filter, Format, Image, Operation};
use serde::Deserialize;
use serde_json::value::RawValue;
use shards::outcome::{Code, Fault};

use crate::blocks::inputs::{Inputs, fault, forbidden};
use crate::blocks::source::Source;

/// In their order.
pub(super) struct Operations<'a>(Vec<Written<'a>>);

enum Written<'a> {
    /// As it will be computed.
    Plain(Operation),
    Resize {
        width: Option<u32>,
        height: Option<u32>,
        filter: Filter,
        fit: Fit,
    },
    Overlay {
        source: Source<'a>,
        x: i32,
        y: i32,
        opacity: u8,
    },
}

/// What becomes of the shape of an image that gets both sides of another.
#[derive(Clone, Copy)]
enum Fit {
    /// The sides, whatever the shape.
    Exact,
    /// As large as it can be within the sides.
    Contain,
    /// As small as it can be to fill the sides, and cut in the middle.
    Cover,
}

#[derive(Deserialize)]
struct List<'a>(#[serde(borrow)] Vec<&'a RawValue>);

/// A whole number, negative ones too.
fn signed(inputs: &Inputs<'_>, name: &str, range: std::ops::RangeInclusive<i64>, default: i64) -> Result<i64, Fault> {
    let Some(raw) = inputs.json(name).filter(|raw| *raw != "null") else { return Ok(default) };
    let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64);
    let number = raw.parse().ok().or_else(|| whole(raw.parse().ok()?));
    let rule = || forbidden(name, &format!("a whole number from {} to {}", range.start(), range.end()));
    number.filter(|number| range.contains(number)).ok_or_else(rule)
}

impl<'a> Operations<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self, Fault> {
        if text == "null" {
            return Ok(Operations(Vec::new()));
        }
        let list: List<'a> = serde_json::from_str(text).map_err(|_| forbidden("operations", "a list of objects"))?;
        if list.0.len() > gpu::limits::OPERATIONS_MAX {
            return Err(forbidden("operations", &format!("at most {}", gpu::limits::OPERATIONS_MAX)));
        }
        let read = |(index, raw): (usize, &&'a RawValue)| {
            written(raw.get()).map_err(|fault| within(&fault, &format!("/operations/{index}")))
        };
        list.0.iter().enumerate().map(read).collect::<Result<_, _>>().map(Operations)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// What overlays are made of, with the pointers to them.
    pub(super) fn overlays(&self) -> impl Iterator<Item = (String, &Source<'a>)> {
        self.0.iter().enumerate().filter_map(|(index, written)| match written {
            Written::Overlay { source, .. } => Some((format!("/operations/{index}"), source)),
            _ => None,
        })
    }

    /// What is to be computed for this image; `overlays` in their order.
    ///
    /// # Errors
    /// An operation would make an image of more pixels than that, or takes a part that is not in the image.
    pub(super) fn over(self, image: &Image, overlays: Vec<Image>, pixels_max: u64) -> Result<Vec<Operation>, Fault> {
        let (mut width, mut height) = (image.width(), image.height());
        let (mut operations, mut overlays) = (Vec::new(), overlays.into_iter());
        for (index, written) in self.0.into_iter().enumerate() {
            let pointer = format!("operations/{index}");
            match written {
                Written::Plain(operation) => {
                    if let Operation::Crop { x, y, width: w, height: h } = operation {
                        let inside = |from: u32, length: u32, side: u32| from.checked_add(length).is_some_and(|end| end <= side);
                        if !inside(x, w, width) || !inside(y, h, height) {
                            let rule = format!("within the image, which is {width} by {height} here");
                            return Err(fault(Code::InvalidInput, "A part is not in the image.", &pointer, &rule));
                        }
                        (width, height) = (w, h);
                    }
                    operations.push(operation);
                }
                Written::Resize { width: w, height: h, filter, fit } => {
                    let sides = fit.sides((width, height), w, h);
                    let pixels = u64::from(sides.whole.0) * u64::from(sides.whole.1);
                    let side = sides.whole.0.max(sides.whole.1);
                    if pixels > pixels_max || side > gpu::limits::SIDE_PIXELS_MAX {
                        let rule = format!(
                            "at most {pixels_max} pixels with the memory that is kept for the step, and {} a side",
                            gpu::limits::SIDE_PIXELS_MAX
                        );
                        return Err(fault(Code::InvalidInput, "The image would become too large.", &pointer, &rule));
                    }
                    operations.push(Operation::Resize { width: sides.whole.0, height: sides.whole.1, filter });
                    (width, height) = sides.whole;
                    if let Some((w, h)) = sides.part {
                        operations.push(Operation::Crop { x: (width - w) / 2, y: (height - h) / 2, width: w, height: h });
                        (width, height) = (w, h);
                    }
                }
                Written::Overlay { x, y, opacity, .. } => {
                    let image = overlays.next().expect("one for each");
                    operations.push(Operation::Overlay { image, x, y, opacity });
                }
            }
        }
        if operations.len() > gpu::limits::OPERATIONS_MAX {
            let rule = format!("at most {} with what `cover` cuts", gpu::limits::OPERATIONS_MAX);
            return Err(forbidden("operations", &rule));
        }
        Ok(operations)
    }
}

/// The sides that an image gets, and those of its part that is kept.
struct Sides {
    whole: (u32, u32),
    part: Option<(u32, u32)>,
}

impl Fit {
    fn sides(self, (width, height): (u32, u32), w: Option<u32>, h: Option<u32>) -> Sides {
        let scaled = |side: u32, by: u32, of: u32| {
            // Rounded; never nothing.
            ((u64::from(side) * u64::from(by) + u64::from(of) / 2) / u64::from(of)).clamp(1, u32::MAX.into()) as u32
        };
        let by_width = |w: u32| (w, scaled(height, w, width));
        let by_height = |h: u32| (scaled(width, h, height), h);
        let (w, h) = match (w, h) {
            (Some(w), Some(h)) => (w, h),
            (Some(w), None) => return Sides { whole: by_width(w), part: None },
            (None, Some(h)) => return Sides { whole: by_height(h), part: None },
            (None, None) => return Sides { whole: (width, height), part: None },
        };
        let wider = u64::from(width) * u64::from(h) > u64::from(height) * u64::from(w);
        match self {
            Fit::Exact => Sides { whole: (w, h), part: None },
            Fit::Contain => Sides { whole: if wider { by_width(w) } else { by_height(h) }, part: None },
            Fit::Cover => {
                let whole = if wider { by_height(h) } else { by_width(w) };
                Sides { whole: (whole.0.max(w), whole.1.max(h)), part: Some((w, h)) }
            }
        }
    }
}

fn written(text: &str) -> Result<Written<'_>, Fault> {
    let inputs = Inputs::read(text.as_bytes())?;
    let side = |name: &str| inputs.integer(name, 1..=gpu::limits::SIDE_PIXELS_MAX.into(), 0).map(|side| side as u32);
    let place = |name: &str| inputs.integer(name, 0..=gpu::limits::SIDE_PIXELS_MAX.into(), 0).map(|at| at as u32);
    let needed = |name: &str| match side(name) {
        Ok(0) => Err(forbidden(name, "required")),
        other => other,
    };
    let far = i64::from(gpu::limits::SIDE_PIXELS_MAX);
    Ok(match &*inputs.text_needed("op")? {
        "crop" => {
            Written::Plain(Operation::Crop { x: place("x")?, y: place("y")?, width: needed("width")?, height: needed("height")? })
        }
        "resize" => {
            let (width, height) = (Some(side("width")?).filter(|side| *side > 0), Some(side("height")?).filter(|side| *side > 0));
            if width.is_none() && height.is_none() {
                return Err(forbidden("", "`width`, `height` or both"));
            }
            let fit =
                word(&inputs, "fit", Fit::Exact, &[("exact", Fit::Exact), ("contain", Fit::Contain), ("cover", Fit::Cover)])?;
            const FILTERS: [(&str, Filter); 4] = [
                ("nearest", Filter::Nearest),
                ("bilinear", Filter::Triangle),
                ("bicubic", Filter::CatmullRom),
                ("lanczos3", Filter::Lanczos3),
            ];
            Written::Resize { width, height, filter: word(&inputs, "filter", Filter::Lanczos3, &FILTERS)?, fit }
        }
        "grayscale" => Written::Plain(Operation::Grayscale),
        "invert" => Written::Plain(Operation::Invert),
        "opaque" => Written::Plain(Operation::Convert(Format::Rgb8)),
        "tone" => Written::Plain(Operation::Tone {
            brightness: signed(&inputs, "brightness", -255..=255, 0)? as i32,
            contrast: inputs.integer("contrast_percent", 0..=25_600, 100)? as u32 * 256 / 100,
        }),
        "overlay" => {
            inputs.exactly_one(&["bytes", "path"])?;
            Written::Overlay {
                source: Source::read(&inputs)?,
                x: signed(&inputs, "x", -far..=far, 0)? as i32,
                y: signed(&inputs, "y", -far..=far, 0)? as i32,
                opacity: (inputs.integer("opacity_percent", 0..=100, 100)? * 255 / 100) as u8,
            }
        }
        _ => return Err(forbidden("op", "crop, resize, grayscale, invert, opaque, tone or overlay")),
    })
}

fn word<T: Copy>(inputs: &Inputs<'_>, name: &str, default: T, words: &[(&str, T)]) -> Result<T, Fault> {
    let Some(text) = inputs.text(name)? else { return Ok(default) };
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    let rule = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| forbidden(name, &rule()))
}

/// A fault of an operation as one of the inputs: its pointer begins with the operation's.
fn within(inner: &Fault, pointer: &str) -> Fault {
    let details: serde_json::Value = serde_json::from_slice(&inner.details).unwrap_or_default();
    let text = |name: &str| details[name].as_str().map(Cow::Borrowed).unwrap_or_default();
    let details = serde_json::json!({ "pointer": format!("{pointer}{}", text("pointer")), "rule": text("rule") });
    inner.clone().with_details(details.to_string())
}
