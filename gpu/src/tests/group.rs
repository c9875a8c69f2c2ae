//! The group: what its clients see when it is full, when jobs are cancelled, when a device fails, panics or is lost, and when it
//! ends. The device is one that does as it is told, and writes down what it was asked.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::client::{Cancel, Client, Pending, Refusal};
use crate::device::cuda::{Cuda, CudaPlan};
use crate::device::host::Host;
use crate::device::{Device, DeviceKind, Missing, Trouble};
use crate::group::{Devices, Fallback, Group, Settings, StartError, launch, start};
use crate::image::{Format, Image};
use crate::job::{Algorithm, Answer, Digest, Failure, Hash, Operation, Output, Render, Work};
use crate::plan::{Invalid, Step, plan};
use crate::status::DeviceState;
use crate::testing::Random;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// A buffer that begins so makes the device do something.
const LOSE: &[u8] = b"lose";
const FAIL: &[u8] = b"fail";
const PANIC: &[u8] = b"panic";

/// What a test and its devices share.
#[derive(Default)]
struct Script {
    /// Held by a test to keep every device within its batch.
    gate: Mutex<()>,
    begun: AtomicUsize,
    opened: AtomicUsize,
    /// So many of the next attempts to open fail.
    closed: AtomicUsize,
    /// Buffers of each batch.
    batches: Mutex<Vec<Vec<Bytes>>>,
    /// Memory by plan of the batches under way, and the most of it.
    held: AtomicU64,
    peak: AtomicU64,
}

impl Script {
    fn until(&self, what: &str, met: impl Fn(&Script) -> bool) {
        let end = Instant::now() + LONG;
        while !met(self) {
            assert!(Instant::now() < end, "never: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A host device under a script.
struct Scripted {
    host: Host,
    script: Arc<Script>,
}

impl Device for Scripted {
    type Plan = Arc<Script>;

    fn open(script: &Arc<Script>) -> Result<Scripted, Missing> {
        if script.closed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Missing::Device("as the script says".to_owned()));
        }
        script.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Scripted { host: Host::open(&())?, script: script.clone() })
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda
    }

    fn name(&self) -> Arc<str> {
        Arc::from("scripted")
    }

    fn hash(&mut self, algorithm: Algorithm, buffers: &[&Bytes]) -> Result<Vec<Digest>, Trouble> {
        let script = &self.script;
        script.batches.lock().unwrap().push(buffers.iter().map(|buffer| (*buffer).clone()).collect());
        let memory = buffers.iter().map(|buffer| plan(hash(algorithm, buffer)).unwrap().memory_bytes).sum();
        script.peak.fetch_max(script.held.fetch_add(memory, Ordering::SeqCst) + memory, Ordering::SeqCst);
        script.begun.fetch_add(1, Ordering::SeqCst);
        drop(script.gate.lock());
        script.held.fetch_sub(memory, Ordering::SeqCst);
        for buffer in buffers {
            if buffer.starts_with(LOSE) {
                return Err(Trouble::Lost("as the script says".to_owned()));
            } else if buffer.starts_with(FAIL) {
                return Err(Trouble::Failed("as the script says".to_owned()));
            }
            assert!(!buffer.starts_with(PANIC), "as the script says");
        }
        self.host.hash(algorithm, buffers)
    }

    fn render(&mut self, image: &Image, steps: &[Step]) -> Result<Image, Trouble> {
        self.script.begun.fetch_add(1, Ordering::SeqCst);
        drop(self.script.gate.lock());
        match image.pixels()[0] {
            1 => Err(Trouble::Lost("as the script says".to_owned())),
            2 => Err(Trouble::Failed("as the script says".to_owned())),
            _ => self.host.render(image, steps),
        }
    }
}

fn hash(algorithm: Algorithm, buffer: &[u8]) -> Work {
    Work::Hash(Hash { algorithm, buffers: vec![Bytes::copy_from_slice(buffer)] })
}

fn settings() -> Settings {
    Settings { streams: 1, batch_wait: Duration::ZERO, ..Settings::default() }
}

fn scripted(settings: &Settings) -> (Client, Group, Arc<Script>) {
    let script = Arc::new(Script::default());
    let (client, group) = launch::<Scripted>(DeviceKind::Cuda, vec![(0, script.clone())], settings).unwrap();
    (client, group, script)
}

fn submit(client: &Client, buffer: &[u8]) -> Pending {
    client.submit(hash(Algorithm::Sha256, buffer), &Cancel::default()).unwrap()
}

fn answer(pending: Pending) -> Result<Answer, Failure> {
    pending.wait_timeout(LONG).expect("an answer in time")
}

fn digests(pending: Pending) -> Vec<Digest> {
    let Output::Digests(digests) = answer(pending).unwrap().output else { panic!("digests") };
    digests
}

fn on_host(algorithm: Algorithm, buffers: &[Bytes]) -> Vec<Digest> {
    Host::open(&()).unwrap().hash(algorithm, &buffers.iter().collect::<Vec<_>>()).unwrap()
}

/// Keeps the device within a batch of its own while `within` runs.
fn while_busy(client: &Client, script: &Script, within: impl FnOnce()) {
    let gate = script.gate.lock().unwrap();
    let before = script.begun.load(Ordering::SeqCst);
    let busy = submit(client, b"busy");
    script.until("a batch begins", |script| script.begun.load(Ordering::SeqCst) > before);
    within();
    drop(gate);
    assert!(answer(busy).is_ok());
}

fn pixel(red: u8) -> Work {
    let image = Image::new(1, 1, Format::Rgb8, Bytes::copy_from_slice(&[red, 0, 0])).unwrap();
    Work::Render(Render { image, operations: vec![Operation::Invert] })
}

#[test]
fn the_host_answers_every_job_with_its_own_digests_whatever_the_order() {
    let (client, group) = start(&Settings { devices: Devices::Host, streams: 2, ..Settings::default() }).unwrap();
    let mut random = Random(21);
    let mut jobs: Vec<(Algorithm, Vec<Bytes>, Pending)> = (0..400)
        .map(|_| {
            let algorithm = [Algorithm::Sha256, Algorithm::Blake3][random.below(2) as usize];
            let buffers: Vec<Bytes> = (0..random.below(6)).map(|_| random.edge()).collect();
            let work = Work::Hash(Hash { algorithm, buffers: buffers.clone() });
            let pending = client.submit(work, &Cancel::default()).unwrap();
            (algorithm, buffers, pending)
        })
        .collect();
    for at in (1..jobs.len()).rev() {
        jobs.swap(at, random.below(at as u32 + 1) as usize);
    }
    for (algorithm, buffers, pending) in jobs {
        let answer = answer(pending).unwrap();
        assert_eq!(answer.output, Output::Digests(on_host(algorithm, &buffers)));
        assert_eq!((answer.kind, &*answer.device), (DeviceKind::Host, "host"));
        assert!(answer.batch_jobs >= 1);
    }
    let status = client.status();
    assert_eq!((status.jobs, status.waiting_bytes), (0, 0));
    assert_eq!(status.devices.iter().map(|device| device.jobs).sum::<u64>(), 400);
    group.close(LONG);
    assert!(client.status().devices.iter().all(|device| device.state == DeviceState::Ended));
}

#[test]
fn without_cuda_the_host_stands_in_only_where_the_settings_say_so() {
    let none = Settings { kernels_dir: None, ..settings() };
    let host = Settings { fallback: Fallback::Host, ..none.clone() };
    match start(&none) {
        Err(StartError::Missing(missing)) => {
            let text = missing.to_string();
            assert!(text.starts_with("no CUDA: ") && text.contains("gpu.fallback = \"host\""), "{text}");
            let (client, _group) = start(&host).unwrap();
            assert_eq!(answer(submit(&client, b"abc")).unwrap().kind, DeviceKind::Host);
        }
        Err(error) => panic!("{error}"),
        Ok((client, _group)) => {
            eprintln!("SKIPPED in part: this machine has a CUDA device, so nothing stands in for it");
            assert_eq!(answer(submit(&client, b"abc")).unwrap().kind, DeviceKind::Cuda);
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let plan = CudaPlan { ordinal: 4_321, cache: Arc::new(crate::cache::Cache::new(None)) };
    let text = Cuda::open(&plan).map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with("no CUDA: ") && text.len() > 60, "{text}");
}

#[test]
fn a_full_lane_refuses_and_takes_again_when_it_has_room() {
    let (client, _group, script) = scripted(&Settings { jobs_max: 3, ..settings() });
    while_busy(&client, &script, || {
        let waiting = [submit(&client, b"1"), submit(&client, b"2")];
        let refusal = client.submit(hash(Algorithm::Sha256, b"3"), &Cancel::default()).unwrap_err();
        assert_eq!(refusal, Refusal::Jobs { jobs_max: 3 });
        assert!(refusal.retryable());
        assert_eq!(client.status().jobs, 3);
        // Given up, they are not forgotten: their room returns when the desk comes to them.
        drop(waiting);
    });
    script.until("there is room", |_| client.status().jobs == 0);
    assert!(answer(submit(&client, b"3")).is_ok());
}

#[test]
fn data_that_waits_is_bounded_in_bytes() {
    let (client, _group, script) = scripted(&Settings { waiting_bytes_max: 1_000, ..settings() });
    let too_large = client.submit(hash(Algorithm::Blake3, &[0; 1_001]), &Cancel::default()).unwrap_err();
    assert_eq!(too_large, Refusal::TooLarge { bytes: 1_001, bytes_max: 1_000 });
    assert!(!too_large.retryable());
    while_busy(&client, &script, || {
        let waiting = submit(&client, &[0; 900]);
        let refusal = client.submit(hash(Algorithm::Sha256, &[0; 97]), &Cancel::default()).unwrap_err();
        assert_eq!(refusal, Refusal::Bytes { bytes_max: 1_000 });
        assert_eq!((client.status().waiting_bytes, client.status().jobs), (904, 2));
        drop(waiting);
    });
    script.until("there is room", |_| client.status().waiting_bytes == 0);
}

#[test]
fn what_is_not_as_it_must_be_is_refused_at_once() {
    let (client, _group, script) = scripted(&settings());
    let buffers = vec![Bytes::new(); crate::limits::BUFFERS_PER_JOB_MAX + 1];
    let refusal = client.submit(Work::Hash(Hash { algorithm: Algorithm::Sha256, buffers }), &Cancel::default()).unwrap_err();
    assert_eq!(refusal, Refusal::Invalid(Invalid::Buffers(crate::limits::BUFFERS_PER_JOB_MAX + 1)));
    assert_eq!((client.status().jobs, script.begun.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_batch_goes_on_without_a_job_that_was_cancelled() {
    let (client, _group, script) = scripted(&Settings { batch_wait: Duration::from_millis(50), ..settings() });
    let (cancel, mut kept) = (Cancel::default(), Vec::new());
    let mut given_up = None;
    while_busy(&client, &script, || {
        kept.push(submit(&client, b"keep1"));
        given_up = Some(client.submit(hash(Algorithm::Sha256, b"drop1"), &cancel).unwrap());
        drop(submit(&client, b"drop2"));
        kept.push(submit(&client, b"keep2"));
        // The desk has them as one batch by now; the device has not.
        std::thread::sleep(Duration::from_millis(150));
        cancel.cancel();
    });
    assert_eq!(answer(given_up.unwrap()).unwrap_err(), Failure::Cancelled);
    for (pending, buffer) in kept.into_iter().zip(["keep1", "keep2"]) {
        assert_eq!(digests(pending), on_host(Algorithm::Sha256, &[Bytes::from_static(buffer.as_bytes())]));
    }
    let seen: Vec<Bytes> = script.batches.lock().unwrap()[1..].concat();
    assert_eq!(seen, ["keep1", "keep2"]);
}

#[test]
fn an_image_is_left_out_even_when_its_batch_has_begun() {
    let (client, _group, script) = scripted(&Settings { batch_wait: Duration::from_millis(100), ..settings() });
    let cancel = Cancel::default();
    let gate = script.gate.lock().unwrap();
    let first = client.submit(pixel(10), &Cancel::default()).unwrap();
    let second = client.submit(pixel(20), &cancel).unwrap();
    let third = client.submit(pixel(30), &Cancel::default()).unwrap();
    script.until("the batch begins", |script| script.begun.load(Ordering::SeqCst) == 1);
    cancel.cancel();
    drop(gate);
    assert_eq!(answer(first).unwrap().batch_jobs, 3);
    assert_eq!(answer(second).unwrap_err(), Failure::Cancelled);
    let Output::Image(image) = answer(third).unwrap().output else { panic!("an image") };
    assert_eq!(&image.pixels()[..], [225, 255, 255]);
    assert_eq!(script.begun.load(Ordering::SeqCst), 2);
}

#[test]
fn jobs_that_wait_together_run_together_within_the_budget() {
    let bytes_max = 10_000;
    let settings = Settings { streams: 2, memory_bytes_max: bytes_max, batch_jobs_max: 5, ..settings() };
    let (client, _group, script) = scripted(&settings);
    let mut random = Random(22);
    let too_large = client.submit(hash(Algorithm::Sha256, &[0; 5_000]), &Cancel::default()).unwrap_err();
    assert!(matches!(too_large, Refusal::TooLarge { bytes_max: 5_000, .. }), "{too_large:?}");
    let gate = script.gate.lock().unwrap();
    let jobs: Vec<(Bytes, Pending)> = (0..200)
        .map(|_| {
            let length = random.below(3_000) as usize;
            let buffer = random.bytes(length);
            let pending = submit(&client, &buffer);
            (buffer, pending)
        })
        .collect();
    script.until("both streams are busy", |script| script.begun.load(Ordering::SeqCst) == 2);
    drop(gate);
    for (buffer, pending) in jobs {
        assert_eq!(digests(pending), on_host(Algorithm::Sha256, &[buffer]));
    }
    let batches = script.batches.lock().unwrap();
    assert!(batches.iter().all(|batch| batch.len() <= 5));
    assert!(batches.iter().any(|batch| batch.len() > 1), "nothing was batched");
    let peak = script.peak.load(Ordering::SeqCst);
    assert!(peak > bytes_max / 4 && peak <= bytes_max, "{peak}");
}

#[test]
fn a_batch_that_fails_leaves_the_device_as_it_is() {
    let (client, _group, script) = scripted(&settings());
    let failure = answer(submit(&client, FAIL)).unwrap_err();
    assert_eq!(failure, Failure::Failed("as the script says".to_owned()));
    assert!(answer(submit(&client, b"abc")).is_ok());
    assert_eq!((script.opened.load(Ordering::SeqCst), client.status().devices[0].losses), (1, 0));
}

#[test]
fn a_panic_answers_its_jobs_and_does_not_end_the_group() {
    let (client, _group, script) = scripted(&settings());
    for _ in 0..3 {
        let failure = answer(submit(&client, PANIC)).unwrap_err();
        assert_eq!(failure, Failure::Panicked("as the script says".to_owned()));
        script.until("the device is open again", |_| client.status().up());
        assert_eq!(digests(submit(&client, b"abc")), on_host(Algorithm::Sha256, &[Bytes::from_static(b"abc")]));
    }
    assert_eq!((script.opened.load(Ordering::SeqCst), client.status().devices[0].losses), (4, 3));
}

#[test]
fn a_lost_device_is_opened_again_and_its_jobs_are_told() {
    let (client, _group, script) = scripted(&settings());
    let mut waiting = None;
    script.closed.store(0, Ordering::SeqCst);
    let gate = script.gate.lock().unwrap();
    let lost = submit(&client, LOSE);
    script.until("the batch begins", |script| script.begun.load(Ordering::SeqCst) == 1);
    waiting.replace(submit(&client, b"waits"));
    script.closed.store(1, Ordering::SeqCst);
    drop(gate);
    let failure = answer(lost).unwrap_err();
    assert_eq!(failure, Failure::Lost("as the script says".to_owned()));
    assert!(failure.retryable());
    // No other device works, so what waits is told too.
    assert!(matches!(answer(waiting.unwrap()).unwrap_err(), Failure::Lost(_)));
    script.until("the device is open again", |_| client.status().up());
    assert!(answer(submit(&client, b"abc")).is_ok());
    let status = client.status();
    assert_eq!((status.devices[0].losses, script.opened.load(Ordering::SeqCst)), (1, 2));
    assert_eq!((status.devices[0].state, &*status.devices[0].name), (DeviceState::Up, "scripted"));
}

#[test]
fn while_no_device_works_nothing_is_taken() {
    let (client, _group, script) = scripted(&settings());
    script.closed.store(1_000, Ordering::SeqCst);
    assert!(matches!(answer(submit(&client, LOSE)).unwrap_err(), Failure::Lost(_)));
    script.until("the device is down", |_| !client.status().up());
    let refusal = client.submit(hash(Algorithm::Sha256, b"abc"), &Cancel::default()).unwrap_err();
    assert_eq!(refusal, Refusal::Down);
    assert_eq!(client.status().devices[0].state, DeviceState::Down);
    script.closed.store(0, Ordering::SeqCst);
    script.until("the device is open again", |_| client.status().up());
    assert!(answer(submit(&client, b"abc")).is_ok());
}

#[test]
fn one_thread_loses_the_device_for_all_of_its_threads() {
    let (client, _group, script) = scripted(&Settings { streams: 3, ..settings() });
    assert_eq!(script.opened.load(Ordering::SeqCst), 3);
    assert!(matches!(answer(submit(&client, LOSE)).unwrap_err(), Failure::Lost(_)));
    script.until("all have opened it again", |script| script.opened.load(Ordering::SeqCst) == 6);
    script.until("all are up", |_| client.status().devices.iter().all(|device| device.state == DeviceState::Up));
    assert!(answer(submit(&client, b"abc")).is_ok());
    assert!(client.status().devices.iter().all(|device| device.losses == 1));
}

#[test]
fn an_image_that_loses_the_device_takes_only_those_after_it_along() {
    let (client, _group, script) = scripted(&Settings { batch_wait: Duration::from_millis(100), ..settings() });
    let jobs: Vec<Pending> = [9, 2, 8, 1, 7].map(|red| client.submit(pixel(red), &Cancel::default()).unwrap()).into();
    let answers: Vec<_> = jobs.into_iter().map(answer).collect();
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert!(matches!(answers[1], Err(Failure::Failed(_))));
    assert!(matches!((&answers[3], &answers[4]), (Err(Failure::Lost(_)), Err(Failure::Lost(_)))));
    script.until("the device is open again", |script| script.opened.load(Ordering::SeqCst) == 2);
}

#[test]
fn a_device_that_does_not_open_is_an_error_at_the_start() {
    let script = Arc::new(Script { closed: AtomicUsize::new(1), ..Script::default() });
    let settings = Settings { streams: 2, ..settings() };
    let started = launch::<Scripted>(DeviceKind::Cuda, vec![(0, script)], &settings);
    assert!(matches!(started.map(|_| ()), Err(StartError::Missing(Missing::Device(_)))));
    let none = launch::<Scripted>(DeviceKind::Cuda, vec![(0, Arc::default())], &Settings { streams: 0, ..settings });
    assert!(matches!(none.map(|_| ()), Err(StartError::Zero("streams"))));
}

#[test]
fn a_close_with_patience_runs_what_waits() {
    let (client, group, script) = scripted(&Settings { batch_wait: Duration::from_secs(3_600), ..settings() });
    let waiting: Vec<Pending> = (0..50).map(|n: u8| submit(&client, &[n; 40])).collect();
    group.close(LONG);
    for (n, pending) in (0..50_u8).zip(waiting) {
        assert_eq!(digests(pending), on_host(Algorithm::Sha256, &[Bytes::copy_from_slice(&[n; 40])]));
    }
    assert_eq!(client.submit(hash(Algorithm::Sha256, b"late"), &Cancel::default()).unwrap_err(), Refusal::Closed);
    assert_eq!((client.status().jobs, script.batches.lock().unwrap().len()), (0, 1));
}

#[test]
fn a_close_without_patience_answers_what_waits() {
    let (client, group, script) = scripted(&settings());
    let gate = script.gate.lock().unwrap();
    let runs = submit(&client, b"runs");
    script.until("a batch begins", |script| script.begun.load(Ordering::SeqCst) == 1);
    let waiting: Vec<Pending> = (0..50).map(|n: u8| submit(&client, &[n; 40])).collect();
    let closing = std::thread::spawn(move || drop(group));
    // It cannot end before the batch does, which goes on only once the group is in a hurry.
    script.until("it is closed", |_| client.shared.hurried());
    drop(gate);
    closing.join().unwrap();
    assert!(answer(runs).is_ok());
    for pending in waiting {
        assert_eq!(answer(pending).unwrap_err(), Failure::Closed);
    }
    assert_eq!(client.status().jobs, 0);
}

#[test]
fn jobs_submitted_while_the_group_closes_are_answered_or_refused() {
    for _ in 0..30 {
        let (client, group, _script) = scripted(&settings());
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let client = client.clone();
                std::thread::spawn(move || {
                    let mut taken = 0;
                    loop {
                        match client.submit(hash(Algorithm::Sha256, b"abc"), &Cancel::default()) {
                            Ok(pending) => {
                                taken += 1;
                                assert!(matches!(answer(pending), Ok(_) | Err(Failure::Closed)));
                            }
                            Err(Refusal::Closed | Refusal::Down) => return taken,
                            Err(refusal) => panic!("{refusal}"),
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(3));
        drop(group);
        assert!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>() > 0);
        assert_eq!(client.status().jobs, 0);
    }
}
