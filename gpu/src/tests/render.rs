//! Images: the host device by a reference in floating point that was written apart from it and by what must hold for any image,
//! the kernels by the host device.

use bytes::Bytes;

use crate::device::Device as _;
use crate::device::host::Host;
use crate::image::{Format, Image};
use crate::job::{Filter, Operation, Render, Work};
use crate::limits;
use crate::machine::emulated::Emulated;
use crate::machine::render;
use crate::plan::{Invalid, Plan, Task, plan};
use crate::testing::Random;

const FORMATS: [Format; 3] = [Format::Gray8, Format::Rgb8, Format::Rgba8];
const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Triangle, Filter::CatmullRom, Filter::Lanczos3];

fn planned(image: &Image, operations: &[Operation]) -> Result<Plan, Invalid> {
    plan(Work::Render(Render { image: image.clone(), operations: operations.to_vec() }))
}

fn on_host(plan: &Plan) -> Image {
    let Task::Render { image, steps } = &plan.task else { panic!("an image") };
    Host::open(&()).unwrap().render(image, steps).unwrap()
}

fn made(image: &Image, operations: &[Operation]) -> Image {
    on_host(&planned(image, operations).unwrap())
}

fn image(width: u32, height: u32, format: Format, pixels: &[u8]) -> Image {
    Image::new(width, height, format, Bytes::copy_from_slice(pixels)).unwrap()
}

fn resize(width: u32, height: u32, filter: Filter) -> Operation {
    Operation::Resize { width, height, filter }
}

/// By the definition: every new pixel from all old ones, both axes at once, in f64, with colours counted by alpha.
fn reference(image: &Image, width: u32, height: u32, filter: Filter) -> Vec<f64> {
    let kernel = |x: f64| match filter {
        Filter::Nearest => panic!("has no kernel"),
        Filter::Triangle => {
            if x.abs() < 1.0 {
                1.0 - x.abs()
            } else {
                0.0
            }
        }
        Filter::CatmullRom => match x.abs() {
            x if x <= 1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
            x if x <= 2.0 => -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0,
            _ => 0.0,
        },
        Filter::Lanczos3 => match x.abs() * std::f64::consts::PI {
            p if p < 1e-12 => 1.0,
            p if x.abs() < 3.0 => 3.0 * p.sin() * (p / 3.0).sin() / (p * p),
            _ => 0.0,
        },
    };
    let weights = |old: u32, new: u32, at: u32| {
        let scale = f64::from(old) / f64::from(new);
        let all: Vec<f64> =
            (0..old).map(|k| kernel((f64::from(k) + 0.5 - (f64::from(at) + 0.5) * scale) / scale.max(1.0))).collect();
        let sum: f64 = all.iter().sum();
        all.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>()
    };
    let channels = image.format().channels() as usize;
    let columns: Vec<Vec<f64>> = (0..width).map(|x| weights(image.width(), width, x)).collect();
    let mut out = Vec::new();
    for y in 0..height {
        let rows = weights(image.height(), height, y);
        for column in &columns {
            let mut sums = [0.0; 4];
            for (row, down) in image.pixels().chunks_exact(image.width() as usize * channels).zip(&rows) {
                for (pixel, across) in row.chunks_exact(channels).zip(column) {
                    let cover = if channels == 4 { f64::from(pixel[3]) } else { 1.0 };
                    for (c, value) in pixel.iter().enumerate() {
                        sums[c] += across * down * f64::from(*value) * if c == 3 { 1.0 } else { cover };
                    }
                }
            }
            let whole = sums[3];
            for (c, sum) in sums[..channels].iter().enumerate() {
                let value = if channels == 4 && c < 3 { if whole > 0.0 { sum / whole } else { 0.0 } } else { *sum };
                out.push(value.clamp(0.0, 255.0));
            }
        }
    }
    out
}

#[test]
fn a_resize_is_within_one_of_the_definition() {
    let mut random = Random(11);
    for filter in [Filter::Triangle, Filter::CatmullRom, Filter::Lanczos3] {
        for _ in 0..60 {
            let format = random.format();
            let old = (1 + random.below(40), 1 + random.below(40));
            let new = (1 + random.below(60), 1 + random.below(60));
            let before = random.image(old.0, old.1, format);
            let after = made(&before, &[resize(new.0, new.1, filter)]);
            let exact = reference(&before, new.0, new.1, filter);
            assert_eq!((after.width(), after.height(), after.pixels().len()), (new.0, new.1, exact.len()));
            let channels = format.channels() as usize;
            for (at, (value, exact_value)) in after.pixels().iter().zip(&exact).enumerate() {
                // Where hardly anything is seen, a colour is the quotient of two numbers near nothing.
                let faint = channels == 4 && exact[at / 4 * 4 + 3] < 8.0 && at % 4 < 3;
                let off = (f64::from(*value) - exact_value).abs();
                assert!(faint || off <= 1.0, "{filter:?} {format:?} {old:?} to {new:?} at {at}: {value} for {exact_value}");
            }
        }
    }
}

#[test]
fn an_image_of_one_colour_keeps_it() {
    let mut random = Random(12);
    for filter in FILTERS {
        for _ in 0..50 {
            let format = random.format();
            let mut colour = random.bytes(format.channels() as usize).to_vec();
            if format == Format::Rgba8 {
                colour[3] = colour[3].max(1);
            }
            let (width, height) = (1 + random.below(90), 1 + random.below(90));
            let before = image(width, height, format, &colour.repeat((width * height) as usize));
            let after = made(&before, &[resize(1 + random.below(90), 1 + random.below(90), filter)]);
            assert!(after.pixels().chunks_exact(colour.len()).all(|pixel| pixel == colour), "{filter:?} {format:?} {colour:?}");
        }
    }
}

#[test]
fn a_long_side_made_one_pixel_is_its_mean() {
    let pixels: Vec<u8> = (0..limits::SIDE_PIXELS_MAX).map(|x| if x % 2 == 0 { 10 } else { 201 }).collect();
    for filter in [Filter::Triangle, Filter::CatmullRom, Filter::Lanczos3] {
        for (width, height) in [(limits::SIDE_PIXELS_MAX, 1), (1, limits::SIDE_PIXELS_MAX)] {
            let after = made(&image(width, height, Format::Gray8, &pixels), &[resize(1, 1, filter)]);
            assert!((105..=106).contains(&after.pixels()[0]), "{filter:?}: {}", after.pixels()[0]);
        }
    }
}

#[test]
fn the_same_size_is_the_same_image() {
    let mut random = Random(13);
    for filter in FILTERS {
        for format in FORMATS {
            let before = random.image(17, 9, format);
            assert_eq!(made(&before, &[resize(17, 9, filter)]), before);
            let wider = made(&before, &[resize(17, 18, filter)]);
            assert_ne!(wider, before);
        }
    }
}

#[test]
fn an_image_turned_round_gives_the_result_turned_round() {
    let mut random = Random(14);
    let turned = |image: &Image| {
        let channels = image.format().channels() as usize;
        let pixels: Vec<u8> = image.pixels().chunks_exact(channels).rev().flatten().copied().collect();
        self::image(image.width(), image.height(), image.format(), &pixels)
    };
    for filter in [Filter::Triangle, Filter::CatmullRom, Filter::Lanczos3] {
        for _ in 0..30 {
            let (width, height) = (1 + random.below(30), 1 + random.below(30));
            let before = random.image(width, height, Format::Rgb8);
            let size = resize(1 + random.below(30), 1 + random.below(30), filter);
            let (one, other) = (made(&before, std::slice::from_ref(&size)), turned(&made(&turned(&before), &[size])));
            for (a, b) in one.pixels().iter().zip(other.pixels()) {
                assert!(a.abs_diff(*b) <= 1, "{filter:?}: {a} and {b}");
            }
        }
    }
}

#[test]
fn what_cannot_be_seen_does_not_shine_through() {
    // Green without alpha beside opaque red.
    let before = image(2, 1, Format::Rgba8, &[0, 255, 0, 0, 200, 0, 0, 255]);
    let after = made(&before, &[resize(1, 1, Filter::Triangle)]);
    assert_eq!(&after.pixels()[..], [200, 0, 0, 128]);
}

#[test]
fn each_operation_does_what_it_says() {
    let rgb = image(2, 1, Format::Rgb8, &[255, 0, 0, 10, 20, 30]);
    let check = |operation: Operation, expect: &[u8]| {
        assert_eq!(&made(&rgb, std::slice::from_ref(&operation)).pixels()[..], expect, "{operation:?}")
    };
    check(Operation::Grayscale, &[54, 54, 54, 19, 19, 19]);
    check(Operation::Invert, &[0, 255, 255, 245, 235, 225]);
    check(Operation::SwapRedBlue, &[0, 0, 255, 30, 20, 10]);
    check(Operation::Convert(Format::Gray8), &[54, 19]);
    check(Operation::Convert(Format::Rgba8), &[255, 0, 0, 255, 10, 20, 30, 255]);
    check(Operation::Tone { brightness: 5, contrast: 256 }, &[255, 5, 5, 15, 25, 35]);
    check(Operation::Tone { brightness: 0, contrast: 512 }, &[255, 0, 0, 0, 0, 0]);
    check(Operation::Tone { brightness: 0, contrast: 0 }, &[128; 6]);
    check(Operation::Crop { x: 1, y: 0, width: 1, height: 1 }, &[10, 20, 30]);
    check(resize(4, 1, Filter::Nearest), &[255, 0, 0, 255, 0, 0, 10, 20, 30, 10, 20, 30]);
    let over = |x, y, opacity, pixels: &[u8], format| Operation::Overlay { image: image(1, 1, format, pixels), x, y, opacity };
    check(over(0, 0, 255, &[1, 2, 3], Format::Rgb8), &[1, 2, 3, 10, 20, 30]);
    check(over(1, 0, 255, &[110, 120, 130, 128], Format::Rgba8), &[255, 0, 0, 60, 70, 80]);
    check(over(1, 0, 128, &[110, 120, 130], Format::Rgb8), &[255, 0, 0, 60, 70, 80]);
    check(over(0, 0, 0, &[1, 2, 3], Format::Rgb8), &rgb.pixels()[..]);
    check(over(2, 0, 255, &[1, 2, 3], Format::Rgb8), &rgb.pixels()[..]);
    check(over(-1, 0, 255, &[1, 2, 3], Format::Rgb8), &rgb.pixels()[..]);
    check(over(i32::MAX, i32::MIN, 255, &[1, 2, 3], Format::Rgb8), &rgb.pixels()[..]);
    let clear = image(1, 1, Format::Rgba8, &[9, 9, 9, 0]);
    let seen = made(&clear, &[over(0, 0, 255, &[40, 50, 60, 100], Format::Rgba8)]);
    assert_eq!(&seen.pixels()[..], [40, 50, 60, 100], "over nothing it is what it is");
    assert_eq!(made(&rgb, &[]), rgb);
}

#[test]
fn hostile_sizes_are_refused_before_anything_is_reserved() {
    let side = limits::SIDE_PIXELS_MAX;
    let new = |width, height| Image::new(width, height, Format::Rgba8, Bytes::new());
    assert_eq!(new(0, 5), Err(Invalid::Empty));
    assert_eq!(new(u32::MAX, u32::MAX), Err(Invalid::Side { pixels: u32::MAX }));
    assert_eq!(new(side, side), Err(Invalid::Pixels { pixels: u64::from(side) * u64::from(side) }));
    assert_eq!(new(2, 2), Err(Invalid::Length { bytes: 0, expected: 16 }));
    let small = image(2, 3, Format::Gray8, &[0; 6]);
    let refused = |operation: Operation| planned(&small, &[operation]).unwrap_err();
    assert_eq!(refused(resize(0, 1, Filter::Triangle)), Invalid::Empty);
    assert_eq!(refused(resize(side + 1, 1, Filter::Nearest)), Invalid::Side { pixels: side + 1 });
    assert!(matches!(refused(resize(side, side, Filter::Lanczos3)), Invalid::Pixels { .. }));
    let outside = Invalid::Outside { width: 2, height: 3 };
    assert_eq!(refused(Operation::Crop { x: 1, y: 0, width: 2, height: 1 }), outside);
    assert_eq!(refused(Operation::Crop { x: u32::MAX, y: 0, width: 2, height: 1 }), outside);
    assert_eq!(refused(Operation::Crop { x: 0, y: 0, width: 0, height: 1 }), Invalid::Empty);
    assert_eq!(refused(Operation::Tone { brightness: 256, contrast: 0 }), Invalid::Range("brightness"));
    assert_eq!(refused(Operation::Tone { brightness: 0, contrast: 65_537 }), Invalid::Range("contrast"));
    let many = vec![Operation::Invert; limits::OPERATIONS_MAX + 1];
    assert_eq!(planned(&small, &many).unwrap_err(), Invalid::Operations(limits::OPERATIONS_MAX + 1));
}

#[test]
fn kernels_render_as_the_host_does_to_the_byte() {
    let mut random = Random(15);
    let (mut forwards, mut backwards) = (Emulated::new(false), Emulated::new(true));
    for round in 0..600 {
        let job = random.render(if round % 10 == 0 { 300 } else { 40 });
        let plan = plan(Work::Render(job.clone())).unwrap();
        let Task::Render { image, steps } = &plan.task else { panic!("an image") };
        let expect = on_host(&plan);
        for emulated in [&mut forwards, &mut backwards] {
            let image = render(emulated, image, steps).unwrap();
            assert!(image == expect, "round {round}: {:?}", job.operations);
            let peak = emulated.peak() as u64;
            assert!(peak <= plan.memory_bytes, "round {round}: {peak} of {}", plan.memory_bytes);
        }
    }
    assert!(forwards.runs() > 600 && forwards.runs() == backwards.runs());
}

#[test]
fn kernels_render_images_of_the_longest_sides() {
    let mut random = Random(16);
    let mut emulated = Emulated::new(false);
    let side = limits::SIDE_PIXELS_MAX;
    for ((width, height), (wide, high)) in [((side, 2), (2, side)), ((1, side), (side, 1)), ((side, 3), (side - 1, 2))] {
        for filter in FILTERS {
            let before = random.image(width, height, Format::Rgba8);
            let plan = planned(&before, &[resize(wide, high, filter)]).unwrap();
            let Task::Render { image, steps } = &plan.task else { panic!("an image") };
            assert!(render(&mut emulated, image, steps).unwrap() == on_host(&plan), "{filter:?} to {wide} × {high}");
            assert!(emulated.peak() as u64 <= plan.memory_bytes);
        }
    }
}

#[test]
fn a_cuda_device_renders_as_the_host_does_to_the_byte() {
    let Some(mut cuda) = super::hash::device("a_cuda_device_renders_as_the_host_does_to_the_byte") else { return };
    let mut random = Random(17);
    for round in 0..600 {
        let job = random.render([40, 333, 1_111][round % 3]);
        let plan = plan(Work::Render(job.clone())).unwrap();
        let Task::Render { image, steps } = &plan.task else { panic!("an image") };
        assert!(cuda.render(image, steps).unwrap() == on_host(&plan), "round {round}: {:?}", job.operations);
    }
}
