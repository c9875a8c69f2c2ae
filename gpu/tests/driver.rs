//! The CUDA device with a stand-in for the driver (`standin.c`): that the lane calls it as it wants to be called, and what
//! becomes of its errors. The stand-in is loaded under the driver's name before anybody asks for the driver, so this is a
//! process of its own, and its tests take turns.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpu::{
    Algorithm, Answer, Cancel, Client, DeviceKind, DeviceState, Devices, Failure, Filter, Format, Hash, Image, Operation, Output,
    Render, Settings, Work, start,
};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use sha2::Digest as _;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

struct Driver {
    libraries: Vec<Library>,
    _turn: MutexGuard<'static, ()>,
}

impl Driver {
    fn load() -> Driver {
        static TURN: Mutex<()> = Mutex::new(());
        static BUILT: OnceLock<tempfile::TempDir> = OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = BUILT.get_or_init(build).path();
        let open = |name: &str| {
            // SAFETY: the libraries are what `build` made of `standin.c`; they have no initialisers.
            unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) }.unwrap()
        };
        Driver { libraries: vec![open("libcuda.so"), open("libnvrtc.so")], _turn: turn }
    }

    fn ask(&self, library: usize, name: &str) -> i32 {
        // SAFETY: the functions that are asked for by this take nothing and return an int.
        unsafe { self.libraries[library].get::<unsafe extern "C" fn() -> i32>(name.as_bytes()).unwrap()() }
    }

    fn set(&self, name: &str, after: i32) {
        // SAFETY: the functions that are set by this take an int and return nothing.
        unsafe { self.libraries[0].get::<unsafe extern "C" fn(i32)>(name.as_bytes()).unwrap()(after) }
    }

    /// Nothing is left of what a lane took.
    fn clean(&self) {
        assert_eq!((self.ask(0, "standin_live"), self.ask(0, "standin_retained")), (0, 0));
    }
}

fn build() -> tempfile::TempDir {
    let here = env!("CARGO_MANIFEST_DIR");
    let folder = tempfile::tempdir().unwrap();
    let prelude = std::fs::read_to_string(format!("{here}/kernels/emulated.h")).unwrap();
    let mut sources = vec![format!("{here}/tests/standin.c")];
    for module in ["sha256", "blake3", "image"] {
        let text = std::fs::read_to_string(format!("{here}/kernels/{module}.cu")).unwrap();
        let file = folder.path().join(format!("{module}.c"));
        std::fs::write(&file, format!("{prelude}\n{text}")).unwrap();
        sources.push(file.to_str().unwrap().to_owned());
    }
    for name in ["libcuda.so", "libnvrtc.so"] {
        let mut cc = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
        cc.args(["-std=gnu11", "-O2", "-Wall", "-shared", "-fPIC", "-Wl,-Bsymbolic", &format!("-Wl,-soname,{name}"), "-o"]);
        let made = cc.arg(folder.path().join(name)).args(&sources).output().expect("a C compiler: make deps installs one");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    folder
}

fn settings() -> Settings {
    Settings { devices: Devices::Cuda(Vec::new()), streams: 2, ..Settings::default() }
}

fn run(client: &Client, work: Work) -> Result<Answer, Failure> {
    client.submit(work, &Cancel::default()).unwrap().wait_timeout(LONG).expect("an answer in time")
}

fn buffers() -> Vec<Bytes> {
    let lengths = [0, 1, 55, 56, 63, 64, 65, 119, 120, 1_023, 1_024, 1_025, 5_000, 70_000];
    lengths.into_iter().map(|length| (0..length).map(|n: usize| (n * 7 + length) as u8).collect()).collect()
}

fn hash(algorithm: Algorithm) -> Work {
    Work::Hash(Hash { algorithm, buffers: buffers() })
}

fn expect(algorithm: Algorithm) -> Output {
    let digest = |buffer: &Bytes| match algorithm {
        Algorithm::Sha256 => sha2::Sha256::digest(buffer).into(),
        Algorithm::Blake3 => *blake3::hash(buffer).as_bytes(),
    };
    Output::Digests(buffers().iter().map(digest).collect())
}

fn image(width: u32, height: u32, format: Format) -> Image {
    let pixels = (0..width * height * format.channels()).map(|n| (n * n / 3 + n) as u8).collect();
    Image::new(width, height, format, pixels).unwrap()
}

fn render() -> Work {
    let over = image(9, 5, Format::Rgba8);
    let operations = vec![
        Operation::Crop { x: 3, y: 2, width: 50, height: 30 },
        Operation::Convert(Format::Rgba8),
        Operation::Resize { width: 33, height: 61, filter: Filter::Lanczos3 },
        Operation::Overlay { image: over, x: -2, y: 58, opacity: 200 },
        Operation::Tone { brightness: 9, contrast: 300 },
        Operation::SwapRedBlue,
        Operation::Resize { width: 40, height: 20, filter: Filter::Nearest },
        Operation::Grayscale,
    ];
    Work::Render(Render { image: image(61, 47, Format::Rgb8), operations })
}

#[test]
fn jobs_are_computed_by_the_device_and_nothing_of_it_is_kept() {
    let driver = Driver::load();
    let (client, group) = start(&settings()).unwrap();
    let (on_host, _host) = start(&Settings { devices: Devices::Host, ..settings() }).unwrap();
    for _ in 0..20 {
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let answer = run(&client, hash(algorithm)).unwrap();
            assert_eq!((answer.kind, &*answer.device), (DeviceKind::Cuda, "stand-in"));
            assert_eq!(answer.output, expect(algorithm));
        }
        let answer = run(&client, render()).unwrap();
        assert_eq!(answer.kind, DeviceKind::Cuda);
        assert!(answer.output == run(&on_host, render()).unwrap().output);
    }
    assert_eq!(driver.ask(0, "standin_live"), 0);
    group.close(LONG);
    driver.clean();
}

#[test]
fn a_context_that_breaks_is_let_go_by_all_streams_and_opened_again() {
    let driver = Driver::load();
    let (client, group) = start(&settings()).unwrap();
    driver.set("standin_lose_after", 0);
    let Failure::Lost(why) = run(&client, hash(Algorithm::Sha256)).unwrap_err() else { panic!("not lost") };
    assert!(why.contains("illegal address"), "{why}");
    let until = Instant::now() + LONG;
    while !client.status().devices.iter().all(|device| device.losses > 0 && device.state == DeviceState::Up) {
        assert!(Instant::now() < until, "never open again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(run(&client, hash(Algorithm::Blake3)).unwrap().output, expect(Algorithm::Blake3));
    group.close(LONG);
    driver.clean();
}

#[test]
fn a_device_without_memory_fails_the_batch_and_goes_on() {
    let driver = Driver::load();
    let (client, group) = start(&settings()).unwrap();
    for allocation in 0..4 {
        driver.set("standin_no_memory_after", allocation);
        assert!(matches!(run(&client, hash(Algorithm::Sha256)).unwrap_err(), Failure::Failed(_)));
        assert_eq!(run(&client, hash(Algorithm::Sha256)).unwrap().output, expect(Algorithm::Sha256));
    }
    assert!(client.status().devices.iter().all(|device| device.losses == 0));
    group.close(LONG);
    driver.clean();
}

#[test]
fn kernels_are_compiled_once_and_again_where_what_was_kept_does_not_load() {
    let driver = Driver::load();
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { kernels_dir: Some(folder.path().to_owned()), ..settings() };
    let compiled = || {
        let before = driver.ask(1, "standin_compiled");
        drop(start(&settings).unwrap());
        driver.ask(1, "standin_compiled") - before
    };
    assert_eq!(compiled(), 3, "once for two streams");
    assert_eq!(compiled(), 0, "what is kept is read");
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let text = "old";
        std::fs::write(file.unwrap().path(), format!("// {}\n{text}", blake3::hash(text.as_bytes()).to_hex())).unwrap();
    }
    assert_eq!(compiled(), 3, "whole, and not what a driver takes");
    driver.clean();
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let _driver = Driver::load();
    let text = start(&Settings { devices: Devices::Cuda(vec![7]), ..settings() }).map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with("no CUDA: ") && text.contains("gpu.fallback"), "{text}");
}
