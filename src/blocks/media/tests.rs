//! Images through the block: what comes out, on compute threads and on a device; what is refused, bombs among it.

use std::io::Cursor;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{ImageFormat, Rgba, RgbaImage};
use serde_json::{Value, json};
use shards::ids::{Key, Text};
use shards::step::Needs;

use super::super::local::LocalBlobs;
use super::super::tests::checks::{Case, bad, good};
use super::super::tests::{assert_presentable, on_a_shard, pointer, run_with, shut};
use super::super::{Ask, build_all, find};
use super::*;
use crate::policy::narrow::NOTHING;

/// A picture without any symmetry, half of it more or less transparent.
fn picture(width: u32, height: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, y| {
        let alpha = if x * 2 < width { 255 } else { (y * 255 / height) as u8 };
        Rgba([(x * 7 % 256) as u8, (y * 11 % 256) as u8, ((x + 2 * y) % 256) as u8, alpha])
    })
}

fn file(picture: &RgbaImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let written = match format {
        ImageFormat::Jpeg => image::DynamicImage::from(picture.clone()).into_rgb8().write_to(&mut out, format),
        _ => picture.write_to(&mut out, format),
    };
    written.expect("an encoder of the library's own");
    out.into_inner()
}

fn png(width: u32, height: u32) -> String {
    BASE64.encode(file(&picture(width, height), ImageFormat::Png))
}

fn pixels(outputs: &Value) -> RgbaImage {
    let encoded = BASE64.decode(outputs["bytes"].as_str().expect("the file")).expect("base64");
    image::load_from_memory(&encoded).expect("an image").into_rgba8()
}

async fn render(blobs: &Rc<LocalBlobs>, inputs: Value) -> Result<Value, Fault> {
    run_with(&shut(), blobs, "acme", "media.render", &inputs.to_string(), 1).await
}

/// The block on the lane and with the memory that these are.
async fn needing(reach: &Reach, blobs: &Rc<LocalBlobs>, name: &str, needs: Needs, inputs: &Value) -> Result<Value, Fault> {
    let (id, entry) = find(name, false).expect("there");
    let text = inputs.to_string();
    entry.check(&Ask { policy: &reach.policy, tenant: "acme", name, inputs: text.as_bytes(), provider: "", narrow: &NOTHING })?;
    let (tenant, key, inputs) = (Text::from_static("acme"), Key([0; 16]), Bytes::from(text));
    let cx = BlockCx {
        tenant,
        key,
        try_number: 1,
        left_ms: 60_000,
        needs,
        inputs,
        blobs: blobs.clone(),
        guardrails: Bytes::new(),
        cache: None,
        trace_id: None,
        observers: None,
    };
    let outputs = build_all(reach)[usize::from(id.0)].execute(cx).await?;
    Ok(serde_json::from_slice(&outputs).expect("JSON"))
}

const ON_DEVICE: Needs = Needs { lane: Lane::Gpu, memory_bytes: MEMORY_BYTES_DEFAULT, concurrency: 0 };

#[test]
fn an_image_comes_out_in_every_format_as_it_went_in() {
    on_a_shard(|blobs, _| async move {
        for (from, name) in [(ImageFormat::Png, "png"), (ImageFormat::WebP, "webp"), (ImageFormat::Jpeg, "jpeg")] {
            let given = BASE64.encode(file(&picture(37, 23), from));
            for to in ["png", "webp", "jpeg"] {
                let outputs = render(&blobs, json!({ "bytes": given, "format": to, "quality": 100 })).await.expect("rendered");
                let said = (&outputs["format"], &outputs["width"], &outputs["height"], &outputs["computed_by"]);
                assert_eq!(said, (&json!(to), &json!(37), &json!(23), &json!("cpu")));
                if (from, to) != (ImageFormat::Jpeg, "jpeg") && from != ImageFormat::Jpeg && to != "jpeg" {
                    assert_eq!(pixels(&outputs), picture(37, 23), "{name} to {to}");
                }
            }
            let kept = render(&blobs, json!({ "bytes": given })).await.expect("rendered");
            assert_eq!(kept["format"], name, "as it came");
        }
    });
}

#[test]
fn operations_are_done_in_their_order() {
    on_a_shard(|blobs, _| async move {
        let operations = json!([
            { "op": "crop", "x": 3, "y": 2, "width": 20, "height": 10 },
            { "op": "invert" },
            { "op": "crop", "x": 1, "y": 1, "width": 2, "height": 3 },
        ]);
        let outputs = render(&blobs, json!({ "bytes": png(40, 30), "operations": operations })).await.expect("rendered");
        let (made, from) = (pixels(&outputs), picture(40, 30));
        assert_eq!(made.dimensions(), (2, 3));
        for (x, y, pixel) in made.enumerate_pixels() {
            let Rgba([r, g, b, a]) = *from.get_pixel(x + 4, y + 3);
            assert_eq!(*pixel, Rgba([255 - r, 255 - g, 255 - b, a]), "at {x}, {y}");
        }
    });
}

#[test]
fn a_shape_is_kept_fitted_or_filled() {
    on_a_shard(|blobs, _| async move {
        for (resize, want) in [
            (json!({ "width": 30 }), (30, 20)),
            (json!({ "height": 10 }), (15, 10)),
            (json!({ "width": 7, "height": 50 }), (7, 50)),
            (json!({ "width": 30, "height": 30, "fit": "contain" }), (30, 20)),
            (json!({ "width": 300, "height": 100, "fit": "contain" }), (150, 100)),
            (json!({ "width": 30, "height": 30, "fit": "cover" }), (30, 30)),
            (json!({ "width": 1, "height": 100, "fit": "cover" }), (1, 100)),
            (json!({ "width": 1, "fit": "exact", "filter": "nearest" }), (1, 1)),
        ] {
            let mut operation = resize.clone();
            operation["op"] = json!("resize");
            let outputs = render(&blobs, json!({ "bytes": png(60, 40), "operations": [operation] })).await.expect("rendered");
            assert_eq!(pixels(&outputs).dimensions(), want, "{resize}");
        }
    });
}

#[test]
fn one_image_is_laid_over_another_and_kept_as_a_blob() {
    on_a_shard(|blobs, _| async move {
        let white = RgbaImage::from_pixel(4, 4, Rgba([255, 255, 255, 255]));
        blobs_put(&blobs, "mark.png", &file(&white, ImageFormat::Png)).await;
        blobs_put(&blobs, "in.png", &file(&picture(20, 20), ImageFormat::Png)).await;
        let inputs = json!({
            "path": "in.png", "to": "out/made.webp", "format": "webp",
            "operations": [{ "op": "overlay", "path": "mark.png", "x": -2, "y": 18 }],
        });
        let outputs = render(&blobs, inputs.clone()).await.expect("rendered");
        assert_eq!((&outputs["blob"]["path"], &outputs["blob"]["created"]), (&json!("out/made.webp"), &json!(true)));
        assert_eq!(outputs.get("bytes"), None);
        let again = render(&blobs, inputs.clone()).await.expect("the same content is agreed with");
        assert_eq!(again["blob"]["created"], json!(false));
        let mut other = inputs;
        other["operations"] = json!([]);
        let fault = render(&blobs, other.clone()).await.expect_err("other content stands there");
        assert_eq!(fault.code, Code::ExecutionFailed);
        other["overwrite"] = json!(true);
        render(&blobs, other).await.expect("replaced");
        let shown = render(&blobs, json!({ "path": "out/made.webp", "format": "png" })).await.expect("rendered");
        assert_eq!(pixels(&shown), picture(20, 20));
    });
}

async fn blobs_put(blobs: &Rc<LocalBlobs>, path: &str, content: &[u8]) {
    use shards::block::Blobs as _;
    blobs.put("acme", path, Bytes::copy_from_slice(content), false).await.expect("stored");
}

#[test]
fn a_device_gives_the_same_bytes_and_says_that_it_was_one() {
    on_a_shard(|blobs, _| async move {
        let settings = gpu::Settings { devices: gpu::Devices::Host, ..gpu::Settings::default() };
        let (client, group) = gpu::start(&settings).expect("the CPU is always there");
        let reach = Reach { device: Some(client), ..shut() };
        let operations = json!([
            { "op": "resize", "width": 33, "height": 21, "fit": "cover" },
            { "op": "tone", "brightness": -20, "contrast_percent": 130 },
            { "op": "overlay", "bytes": png(9, 9), "x": 5, "y": 4, "opacity_percent": 60 },
            { "op": "grayscale" },
        ]);
        let inputs = json!({ "bytes": png(97, 61), "operations": operations });
        let here = render(&blobs, inputs.clone()).await.expect("rendered");
        let there = needing(&reach, &blobs, "media.render", ON_DEVICE, &inputs).await.expect("rendered");
        assert_eq!((&here["computed_by"], &there["computed_by"]), (&json!("cpu"), &json!("host")));
        assert_eq!(here["bytes"], there["bytes"]);
        for (algorithm, text) in [("sha256", "abc".to_owned()), ("blake3", "x".repeat(200_000))] {
            let inputs = json!({ "algorithm": algorithm, "text": text });
            let here = needing(&reach, &blobs, "crypto.hash", Needs::default(), &inputs).await.expect("hashed");
            let there = needing(&reach, &blobs, "crypto.hash", ON_DEVICE, &inputs).await.expect("hashed");
            assert_eq!((&here["digest"], &here["size"]), (&there["digest"], &there["size"]), "{algorithm}");
            assert_eq!((here.get("computed_by"), &there["computed_by"]), (None, &json!("host")));
        }
        let inputs = json!({ "algorithm": "sha512", "text": "x" });
        let fault = needing(&reach, &blobs, "crypto.hash", ON_DEVICE, &inputs).await.expect_err("no such kernel");
        assert_eq!((fault.code, pointer(&fault).as_str()), (Code::InvalidInput, "/algorithm"));
        group.close(Duration::from_secs(1));
        let fault = needing(&reach, &blobs, "media.render", ON_DEVICE, &json!({ "bytes": png(4, 4) })).await.expect_err("closed");
        assert_eq!(fault.code, Code::ResourceUnavailable);
    });
}

#[test]
fn without_a_device_nothing_stands_in_for_it() {
    on_a_shard(|blobs, _| async move {
        for (name, inputs) in [("media.render", json!({ "bytes": png(4, 4) })), ("crypto.hash", json!({ "text": "x" }))] {
            let fault = needing(&shut(), &blobs, name, ON_DEVICE, &inputs).await.expect_err("there is none");
            assert_eq!(fault.code, Code::ResourceUnavailable, "{name}");
            assert!(String::from_utf8_lossy(&fault.details).contains("gpu.devices"), "{name}");
        }
    });
}

/// A PNG's first chunk that claims these sides, and nothing behind it.
fn claim(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    header.extend_from_slice(&[8, 6, 0, 0, 0]);
    let mut sum = flate2::Crc::new();
    sum.update(&header);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&sum.sum().to_be_bytes());
    file
}

#[test]
fn bombs_and_damage_are_refused_and_nothing_is_made_of_them() {
    let whole = |format| file(&picture(64, 48), format);
    let mut table: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), Vec::new()),
        ("a text".into(), b"hello".to_vec()),
        ("a GIF".into(), b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec()),
        ("an SVG".into(), b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
        ("a TIFF".into(), b"II*\0\x08\0\0\0".to_vec()),
        ("a PNG's signature alone".into(), b"\x89PNG\r\n\x1a\n".to_vec()),
        ("no pixels".into(), claim(0, 0)),
        ("a line of four billion".into(), claim(u32::MAX, 1)),
        ("a square of 2^62".into(), claim(1 << 31, 1 << 31)),
        ("just too many".into(), claim(4097, 4096)),
        ("a side too long".into(), claim(16_385, 1)),
        ("promises without data".into(), claim(4000, 4000)),
    ];
    for (name, format) in [("PNG", ImageFormat::Png), ("JPEG", ImageFormat::Jpeg), ("WebP", ImageFormat::WebP)] {
        let file = whole(format);
        for cut in [1, 8, 16, 30, file.len() / 2] {
            table.push((format!("{name} cut after {cut}"), file[..cut].to_vec()));
        }
    }
    // A JPEG that was cut is shown as far as it goes by most decoders: either is right, but never a panic.
    let may_pass = |name: &str| name.starts_with("JPEG cut");
    let count = table.len();
    on_a_shard(move |blobs, _| async move {
        for (name, file) in table {
            let told = render(&blobs, json!({ "bytes": BASE64.encode(&file) })).await;
            match told {
                Err(fault) => {
                    assert_presentable(&fault);
                    assert_eq!(fault.code, Code::InvalidInput, "{name}");
                }
                Ok(_) => assert!(may_pass(&name), "{name} was taken"),
            }
        }
    });
    eprintln!("{count} damaged or hostile images");
}

#[test]
fn every_bit_of_a_small_image_may_be_wrong() {
    let files: Vec<Vec<u8>> =
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP].map(|format| file(&picture(5, 4), format)).into();
    let mut seen = 0;
    for file in files {
        for bit in 0..file.len() * 8 {
            let mut bent = file.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            // Whatever comes of it, it comes, and within the bound.
            if let Ok((image, _)) = codec::decode(&bent, 1 << 16) {
                assert!(u64::from(image.width()) * u64::from(image.height()) <= 1 << 16);
            }
            seen += 1;
        }
    }
    eprintln!("{seen} bit flips");
}

#[test]
fn memory_bounds_what_is_read_and_what_is_made() {
    on_a_shard(|blobs, _| async move {
        let needs = Needs { lane: Lane::Cpu, memory_bytes: 24 << 10, concurrency: 0 };
        let of = |side: u32, operations: Value| json!({ "bytes": png(side, side), "operations": operations });
        let ask = async |inputs: Value| needing(&shut(), &blobs, "media.render", needs, &inputs).await;
        ask(of(32, json!([]))).await.expect("a thousand pixels fit");
        let fault = ask(of(33, json!([]))).await.expect_err("read");
        assert!(String::from_utf8_lossy(&fault.details).contains("1024 are allowed"), "{fault:?}");
        let fault = ask(of(32, json!([{ "op": "invert" }, { "op": "resize", "width": 33 }]))).await.expect_err("made");
        assert_eq!((fault.code, pointer(&fault).as_str()), (Code::InvalidInput, "/operations/1"));
        // What `cover` makes before it cuts counts.
        let cover = json!([{ "op": "resize", "width": 1, "height": 64, "fit": "cover" }]);
        let fault = ask(of(32, cover)).await.expect_err("made");
        assert_eq!(pointer(&fault), "/operations/0");
        // All images of a step are there at once.
        let over = |side: u32| json!([{ "op": "overlay", "bytes": png(side, side), "x": 0, "y": 0 }]);
        ask(of(24, over(21))).await.expect("576 and 441 pixels fit");
        let fault = ask(of(24, over(22))).await.expect_err("576 and 484 pixels");
        let details: Value = serde_json::from_slice(&fault.details).expect("JSON");
        assert!(details["cause"].as_str().is_some_and(|cause| cause.contains("448 are allowed")), "{fault:?}");
        assert_eq!(details["pointer"], "/operations/0");
    });
}

/// What `media.render` takes and what it refuses.
pub(in crate::blocks) fn cases() -> Vec<Case> {
    const INVALID: Code = Code::InvalidInput;
    const MISSING: Code = Code::MissingRequiredField;
    let with = |operation: Value| json!({ "path": "a.png", "operations": [operation] });
    let mut cases = vec![
        good("media.render", json!({ "path": "a.png" })),
        good("image.render", json!({ "bytes": "AAAA", "operations": null, "format": "jpg", "quality": 1.0 })),
        good("media.render", json!({ "path": "a.png", "to": "b/c.png", "overwrite": true })),
        good("media.render", with(json!({ "op": "crop", "width": 1, "height": 1 }))),
        good("media.render", with(json!({ "op": "resize", "width": 1, "height": null, "filter": "nearest", "fit": "cover" }))),
        good("media.render", with(json!({ "op": "tone", "brightness": -255, "contrast_percent": 0 }))),
        good("media.render", with(json!({ "op": "overlay", "path": "b.png", "x": -16384, "opacity_percent": 0 }))),
        bad("media.render", "{}", MISSING, "/bytes"),
        bad("media.render", json!({ "path": "a", "bytes": "" }), INVALID, "/path"),
        bad("media.render", json!({ "text": "a" }), MISSING, "/bytes"),
        bad("media.render", json!({ "path": "../a" }), INVALID, "/path"),
        bad("media.render", json!({ "bytes": "!" }), INVALID, "/bytes"),
        bad("media.render", json!({ "path": "a", "format": "gif" }), INVALID, "/format"),
        bad("media.render", json!({ "path": "a", "quality": 0 }), INVALID, "/quality"),
        bad("media.render", json!({ "path": "a", "quality": 101 }), INVALID, "/quality"),
        bad("media.render", json!({ "path": "a", "to": "/etc/passwd" }), INVALID, "/to"),
        bad("media.render", json!({ "path": "a", "overwrite": true }), INVALID, "/overwrite"),
        bad("media.render", json!({ "path": "a", "operations": {} }), INVALID, "/operations"),
        bad("media.render", json!({ "path": "a", "operations": vec![json!({ "op": "invert" }); 33] }), INVALID, "/operations"),
    ];
    for (operation, code, at) in [
        (json!("invert"), INVALID, ""),
        (json!({}), MISSING, "/op"),
        (json!({ "op": "rotate" }), INVALID, "/op"),
        (json!({ "op": "crop", "height": 1 }), INVALID, "/width"),
        (json!({ "op": "crop", "width": 0, "height": 1 }), INVALID, "/width"),
        (json!({ "op": "crop", "width": 1, "height": 16385 }), INVALID, "/height"),
        (json!({ "op": "crop", "width": 1, "height": 1, "x": -1 }), INVALID, "/x"),
        (json!({ "op": "resize" }), INVALID, ""),
        (json!({ "op": "resize", "width": 1, "filter": "box" }), INVALID, "/filter"),
        (json!({ "op": "resize", "width": 1, "fit": "squeeze" }), INVALID, "/fit"),
        (json!({ "op": "tone", "brightness": 256 }), INVALID, "/brightness"),
        (json!({ "op": "tone", "contrast_percent": -1 }), INVALID, "/contrast_percent"),
        (json!({ "op": "overlay" }), MISSING, "/bytes"),
        (json!({ "op": "overlay", "path": "/a" }), INVALID, "/path"),
        (json!({ "op": "overlay", "path": "a", "x": 1.5 }), INVALID, "/x"),
        (json!({ "op": "overlay", "path": "a", "y": 16385 }), INVALID, "/y"),
        (json!({ "op": "overlay", "path": "a", "opacity_percent": 101 }), INVALID, "/opacity_percent"),
    ] {
        cases.push(bad("media.render", with(operation), code, &format!("/operations/0{at}")));
    }
    cases
}
