//! What becomes of a step when the store, the network or the step itself does not go on.

use super::*;
use crate::blocks::tests::answering;

const LATE: Duration = Duration::from_millis(STALL_MS * 8);

fn put(path: &str, content: &str) -> Value {
    json!({ "connector": "archive", "path": path, "content": content })
}

async fn seeded(reach: &Reach, blobs: &Rc<LocalBlobs>, bytes: usize) {
    Blobs::put(&**blobs, "acme", "large", Bytes::from(noise(bytes)), true).await.expect("put");
    let inputs = json!({ "connector": "archive", "path": "large", "blob": "large" });
    run(reach, blobs, "fs.put", inputs).await.expect("put");
}

#[test]
fn another_key_is_not_let_in_and_no_secret_is_told() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        for (name, text) in [("secret", "anotherSecretThatIsWrong"), ("access", "AKIDUNKNOWN")] {
            let (store, secrets) = on_s3(server.address);
            std::fs::write(secrets.path().join(name), text).expect("written");
            let reach = with(store);
            let get = json!({ "connector": "archive", "path": "a" });
            for (block, inputs) in [("fs.put", put("a", "x")), ("fs.get", get), ("fs_blob_put", put("a", "x"))] {
                let fault = run(&reach, &blobs, block, inputs).await.expect_err("not let in");
                assert_eq!((fault.code, fault.effect), (Code::PermissionDenied, Effected::None), "{name} {block} {fault:?}");
                assert!(!String::from_utf8_lossy(&fault.details).contains(text), "{fault:?}");
            }
            // The right key, once it is there, is taken up without a restart.
            std::fs::write(secrets.path().join("secret"), SECRET_KEY).expect("written");
            std::fs::write(secrets.path().join("access"), ACCESS_KEY).expect("written");
            run(&reach, &blobs, "fs_blob_put", put("a", "x")).await.expect("let in");
            std::fs::remove_file(secrets.path().join("secret")).expect("removed");
            let fault = run(&reach, &blobs, "fs.put", put("a", "x")).await.expect_err("no secret");
            assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, Effected::None));
        }
        assert_eq!(server.objects().len(), 1);
    });
}

#[test]
fn a_bucket_that_is_not_there_is_not_taken_for_an_empty_one() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (mut store, _secrets) = on_s3(server.address);
        let StoreKind::S3 { bucket, .. } = &mut store.kind else { panic!("an S3 store") };
        *bucket = "nowhere".to_owned();
        let reach = with(store);
        for (block, inputs) in [("fs.put", put("a", "x")), ("fs.get", json!({ "connector": "archive", "path": "a" }))] {
            let fault = run(&reach, &blobs, block, inputs).await.expect_err("no bucket");
            assert_eq!((fault.code, fault.effect), (Code::ExecutionFailed, Effected::None), "{block} {fault:?}");
            assert!(fault.message.contains("bucket"), "{fault:?}");
        }
    });
}

#[test]
fn a_place_that_is_not_public_is_not_connected_to_unless_opened() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(StoreSettings { allow: Vec::new(), ..store });
        let fault = run(&reach, &blobs, "fs.put", put("a", "x")).await.expect_err("not opened");
        assert_eq!((fault.code, fault.effect), (Code::PermissionDenied, Effected::None), "{fault:?}");
        assert_eq!(server.requests.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_server_that_dies_midway_leaves_the_effect_to_be_seen_by_the_next_try() {
    on_a_shard(|blobs, _| async move {
        let mut server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(store);
        run(&reach, &blobs, "fs.put", put("before", "x")).await.expect("put");
        server.kill();
        let fault = run(&reach, &blobs, "fs.put", put("after", "x")).await.expect_err("gone");
        assert_eq!((fault.code, fault.effect), (Code::ConnectionError, Effected::None), "{fault:?}");
        let fault = run(&reach, &blobs, "fs.get", json!({ "connector": "archive", "path": "before" })).await.expect_err("gone");
        assert_eq!(fault.code, Code::ConnectionError, "{fault:?}");
    });
}

#[test]
fn a_server_that_dies_while_parts_are_sent_has_no_object() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        Blobs::put(&*blobs, "acme", "large", Bytes::from(noise(12 << 20)), true).await.expect("put");
        valve.narrow_up(7 << 20, true);
        let inputs = json!({ "connector": "archive", "path": "large", "blob": "large" });
        let fault = run(&reach, &blobs, "fs.put", inputs.clone()).await.expect_err("cut");
        assert_eq!((fault.code, fault.effect), (Code::NetworkError, Effected::None), "{fault:?}");
        assert_eq!(server.objects(), Vec::<String>::new());
        valve.open();
        assert_eq!(run(&reach, &blobs, "fs.put", inputs).await.expect("another try")["created"], true);
        assert_eq!(server.objects().len(), 1);
    });
}

#[test]
fn a_lost_answer_is_unknown_and_another_try_finds_its_own_work() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        valve.narrow_down(0, true);
        let inputs = put("a", "content");
        // Cut only once the server has it.
        let watching = async {
            assert!(until(|| server.objects().len() == 1).await, "the server has not got it");
        };
        valve.narrow_down(0, false);
        let cutting = async {
            watching.await;
            valve.narrow_down(0, true);
        };
        let (done, ()) = futures_util::future::join(run(&reach, &blobs, "fs.put", inputs.clone()), cutting).await;
        let fault = done.expect_err("no answer");
        assert_eq!(fault.effect, Effected::Unknown, "{fault:?}");
        assert!(fault.code.retryable(), "{fault:?}");
        valve.open();
        let again = run(&reach, &blobs, "fs.put", inputs).await.expect("another try");
        assert_eq!(again["created"], false, "it finds what the first has left");
        assert_eq!(server.objects().len(), 1);
    });
}

#[test]
fn only_an_answer_that_says_no_leaves_no_doubt() {
    on_a_shard(|blobs, _| async move {
        for (answer, effect) in [
            ("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Effected::None),
            ("HTTP/1.1 305 Use Proxy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Effected::Unknown),
        ] {
            let (store, _secrets) = on_s3(answering(|_, _| answer.to_owned()));
            let fault = run(&with(store), &blobs, "fs.put", put("a", "content")).await.expect_err(answer);
            assert_eq!((fault.code, fault.effect), (Code::ExecutionFailed, effect), "{answer} {fault:?}");
        }
    });
}

#[test]
fn an_upload_that_stands_still_is_given_up_in_time() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        Blobs::put(&*blobs, "acme", "large", Bytes::from(noise(16 << 20)), true).await.expect("put");
        valve.narrow_up(7 << 20, false);
        let started = Instant::now();
        let inputs = json!({ "connector": "archive", "path": "large", "blob": "large" });
        let fault = run(&reach, &blobs, "fs.put", inputs).await.expect_err("still");
        let took = started.elapsed();
        assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, Effected::None), "{fault:?}");
        assert_eq!((&details(&fault)["phase"], &details(&fault)["ms"]), (&json!("stall"), &json!(STALL_MS)));
        // Its giving up stands still, too, and is not waited for longer than a stall.
        assert!(took < LATE, "{took:?}");
        assert_eq!(server.objects(), Vec::<String>::new());
    });
}

#[test]
fn a_slow_exchange_that_moves_is_not_given_up() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        seeded(&reach, &blobs, 1 << 20).await;
        let started = Instant::now();
        let done = std::cell::Cell::new(false);
        valve.narrow_down(0, false);
        let reading = async {
            let hashed = run(&reach, &blobs, "crypto.hash", json!({ "connector": "archive", "path": "large" })).await;
            done.set(true);
            hashed
        };
        let dripping = async {
            while !done.get() {
                valve.narrow_down(96 << 10, false);
                rt::sleep(Duration::from_millis(STALL_MS / 4)).await;
            }
        };
        let (hashed, ()) = futures_util::future::join(reading, dripping).await;
        assert_eq!(hashed.expect("slow, but it moves")["size"], 1 << 20);
        assert!(started.elapsed() > Duration::from_millis(STALL_MS * 2), "{:?}", started.elapsed());
    });
}

#[test]
fn a_download_that_stands_still_is_given_up_in_time() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        seeded(&reach, &blobs, 8 << 20).await;
        valve.narrow_down(3 << 20, false);
        let started = Instant::now();
        let fault =
            run(&reach, &blobs, "crypto.hash", json!({ "connector": "archive", "path": "large" })).await.expect_err("still");
        assert_eq!((fault.code, &details(&fault)["phase"]), (Code::ResourceUnavailable, &json!("stall")), "{fault:?}");
        assert!(started.elapsed() < LATE, "{:?}", started.elapsed());
        // One that never answers at all.
        valve.narrow_down(0, false);
        let fault = run(&reach, &blobs, "fs.get", json!({ "connector": "archive", "path": "large" })).await.expect_err("still");
        assert_eq!((fault.code, &details(&fault)["phase"]), (Code::ResourceUnavailable, &json!("stall")), "{fault:?}");
        // One that is cut short is not taken for the whole.
        valve.open();
        valve.narrow_down(3 << 20, true);
        let fault =
            run(&reach, &blobs, "crypto.hash", json!({ "connector": "archive", "path": "large" })).await.expect_err("cut");
        assert_eq!(fault.code, Code::NetworkError, "{fault:?}");
    });
}

#[test]
fn a_try_that_is_dropped_midway_leaves_nothing_and_closes_its_connection() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        Blobs::put(&*blobs, "acme", "large", Bytes::from(noise(12 << 20)), true).await.expect("put");
        let inputs = json!({ "connector": "archive", "path": "large", "blob": "large" });
        let mut cut = 0;
        for polls in [1, 3, 8, 20, 40, 60, 80, 100, 120, 140] {
            let finished = drop_after(polls, run(&reach, &blobs, "fs.put", inputs.clone())).await;
            cut += u32::from(!finished);
            if !finished {
                assert!(until(|| server.scraps().is_empty()).await, "{polls}: {:?}", server.scraps());
                assert_eq!(server.objects(), Vec::<String>::new(), "{polls}");
            } else {
                server.objects().iter().for_each(|name| std::fs::remove_file(server.file(name)).expect("removed"));
                break;
            }
        }
        assert!(cut >= 4, "only {cut} were cut");
        let load = reach.stores.stores.load();
        assert!(until(|| load.bytes.load(Ordering::Relaxed) == 0).await);

        // In the middle of the body of its second part: the connection goes with it.
        valve.narrow_up(8 << 20, false);
        let dropped = {
            let running = run(&reach, &blobs, "fs.put", inputs);
            let waiting = rt::sleep(Duration::from_millis(STALL_MS / 2));
            matches!(
                futures_util::future::select(Box::pin(running), Box::pin(waiting)).await,
                futures_util::future::Either::Right(_)
            )
        };
        assert!(dropped);
        valve.narrow_up(i64::MAX, false);
        // The part whose body was cut may come to its end at this server once its upload is gone: then it is the server's own.
        let left = || server.scraps().into_iter().filter(|scrap| !scrap.ends_with(".part-2")).collect::<Vec<_>>();
        assert!(until(|| left().is_empty()).await, "{:?}", server.scraps());
        assert_eq!(server.objects(), Vec::<String>::new());
    });
}

#[test]
fn a_reader_that_goes_closes_its_connection() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let valve = Valve::before(server.address);
        let (store, _secrets) = on_s3(valve.address);
        let reach = with(store);
        seeded(&reach, &blobs, 12 << 20).await;
        let before = valve.connections();
        let blob = remote(&reach).open("acme", "large").await.expect("there");
        assert!(!blob.read(0, 10).await.expect("read").is_empty());
        drop(blob);
        // Those that wait for another request stay; the one in the middle of a body goes.
        assert!(until(|| valve.connections() < before.max(1)).await, "{} of {before}", valve.connections());
    });
}

#[test]
fn a_blob_that_is_replaced_while_it_is_read_is_no_mixture() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(store);
        let first = "1".repeat(1_000);
        run(&reach, &blobs, "fs.put", put("a", &first)).await.expect("put");
        let blob = remote(&reach).open("acme", "a").await.expect("there");
        assert_eq!(blob.read(0, 10).await.expect("read"), "1111111111");
        run(&reach, &blobs, "fs_blob_put", put("a", &"2".repeat(1_000))).await.expect("replaced");
        // Another request for the rest would be another blob's.
        let fault = blob.read(500, 10).await.expect_err("replaced");
        assert_eq!((fault.code, fault.effect), (Code::ResourceUnavailable, Effected::None), "{fault:?}");
    });
}
