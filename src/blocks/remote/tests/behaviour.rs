//! What a blob in a store is like, whatever store it is.

use sha2::Digest as _;

use super::super::super::local::folder_of;
use super::super::super::tests::checks;
use super::*;
use crate::offload::stores::UPLOAD_SHARE_BYTES;

/// Runs `test` with a store in memory and with one on a server.
fn on_each_store<F: Future<Output = ()>>(test: impl Fn(Reach, Rc<LocalBlobs>) -> F) {
    on_a_shard(|blobs, _| async {
        test(with(memory()), blobs.clone()).await;
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        test(with(store), blobs).await;
        assert!(server.requests.load(Ordering::Relaxed) > 0, "nothing was asked of the server");
        assert_eq!(server.scraps(), Vec::<String>::new());
    });
}

#[test]
fn what_was_put_is_got_and_lies_under_the_tenants_own_prefix() {
    on_each_store(|reach, blobs| async move {
        let inputs = json!({ "connector": "archive", "path": "a/ü b.txt", "content": "grüße" });
        let put = run(&reach, &blobs, "fs.blob_put", inputs.clone()).await.expect("put");
        let digest = hex(&Sha256::digest("grüße"));
        assert_eq!(put, json!({ "path": "a/ü b.txt", "size": 7, "created": true, "sha256": digest }));
        let again = run(&reach, &blobs, "fs.put", inputs).await.expect("put again");
        assert_eq!(again["created"], false);
        let got = run(&reach, &blobs, "fs.blob_get", json!({ "connector": "archive", "path": "a/ü b.txt" })).await.expect("got");
        assert_eq!(got, json!({ "path": "a/ü b.txt", "size": 7, "content": "grüße", "bytes": "Z3LDvMOfZQ==" }));
        let hashed = run(&reach, &blobs, "crypto.hash", json!({ "connector": "archive", "path": "a/ü b.txt" })).await;
        assert_eq!(hashed.expect("hashed")["digest"], digest);
        // The worker's own disk has none of it.
        let local = run(&reach, &blobs, "fs.blob_get", json!({ "path": "a/ü b.txt" })).await.expect_err("not there");
        assert_eq!(local.code, Code::InvalidInput);
        let missing =
            run(&reach, &blobs, "fs.get", json!({ "connector": "archive", "path": "none" })).await.expect_err("not there");
        assert_eq!((missing.code, &details(&missing)["pointer"]), (Code::InvalidInput, &json!("/path")));
        let empty = json!({ "connector": "archive", "path": "empty", "content": "" });
        assert_eq!(run(&reach, &blobs, "fs.put", empty).await.expect("put")["size"], 0);
        let got = run(&reach, &blobs, "fs.get", json!({ "connector": "archive", "path": "empty" })).await.expect("got");
        assert_eq!(got["content"], "");
    });
}

#[test]
fn an_object_is_named_by_prefix_folder_and_path() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(store);
        run(&reach, &blobs, "fs.put", json!({ "connector": "archive", "path": "a/b", "content": "x" })).await.expect("put");
        assert_eq!(server.objects(), [format!("pre/fix/{}/a/b", folder_of("acme"))]);
    });
}

#[test]
fn nothing_is_replaced_unless_asked_for() {
    on_each_store(|reach, blobs| async move {
        for (name, content, overwrite, created) in [
            ("fs.blob_put", "one", None, Some(true)),
            ("fs.blob_put", "one", None, Some(false)),
            ("fs.blob_put", "two", None, None),
            ("fs.blob_put", "six", None, None),
            ("fs.blob_put", "longer", Some(false), None),
            ("fs_blob_put", "two", None, Some(false)),
            ("fs.blob_put", "three", Some(true), Some(false)),
            ("fs.blob_put", "two", None, None),
        ] {
            let inputs = json!({ "connector": "archive", "path": "a", "content": content, "overwrite": overwrite });
            match (run(&reach, &blobs, name, inputs).await, created) {
                (Ok(put), Some(created)) => assert_eq!(put["created"], created, "{name} {content}"),
                (Err(fault), None) => assert_eq!((fault.code, fault.effect), (Code::ExecutionFailed, Effected::None)),
                (other, _) => panic!("{name} {content}: {other:?}"),
            }
        }
        let got = run(&reach, &blobs, "fs.get", json!({ "connector": "archive", "path": "a" })).await.expect("got");
        assert_eq!(got["content"], "three");
    });
}

#[test]
fn of_two_writers_at_once_one_creates_and_the_other_is_told() {
    on_each_store(|reach, _| async move {
        let remote = remote(&reach);
        for round in 0..8 {
            let path = format!("race/{round}");
            let put = |content: &'static str| remote.put("acme", &path, Bytes::from_static(content.as_bytes()), false);
            let (one, two) = futures_util::future::join(put("one"), put("two")).await;
            assert_ne!(one.is_ok(), two.is_ok(), "{one:?} {two:?}");
            let (same, other) = futures_util::future::join(
                remote.put("acme", &format!("same/{round}"), Bytes::from_static(b"same"), false),
                remote.put("acme", &format!("same/{round}"), Bytes::from_static(b"same"), false),
            )
            .await;
            assert_ne!(same.expect("put").created, other.expect("put").created);
        }
    });
}

#[test]
fn a_content_gives_its_own_name() {
    on_each_store(|reach, blobs| async move {
        let digest = hex(&Sha256::digest("content"));
        for (folder, path) in [(None, digest.clone()), (Some("by/digest"), format!("by/digest/{digest}"))] {
            for created in [true, false] {
                let inputs = json!({ "connector": "archive", "address": "sha256", "path": folder, "content": "content" });
                let put = run(&reach, &blobs, "fs.put", inputs).await.expect("put");
                assert_eq!(put, json!({ "path": path, "size": 7, "created": created, "sha256": digest }));
            }
        }
        // On the worker's own disk, too.
        let put = run(&reach, &blobs, "fs.put", json!({ "address": "sha256", "content": "content" })).await.expect("put");
        assert_eq!(put["path"], digest);
        let inputs = json!({ "address": "sha256", "blob": digest, "path": "copies", "connector": "archive" });
        let put = run(&reach, &blobs, "fs.put", inputs).await.expect("put");
        assert_eq!(put["path"], format!("copies/{digest}"));
    });
}

#[test]
fn a_part_of_a_blob_is_got_where_ever_it_lies() {
    on_each_store(|reach, blobs| async move {
        let content: String = ('a'..='z').collect();
        for connector in [json!("archive"), json!(null)] {
            let at = |more: Value| {
                let mut inputs = json!({ "connector": connector, "path": "letters" });
                inputs.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
                inputs
            };
            run(&reach, &blobs, "fs.put", at(json!({ "content": content, "overwrite": true }))).await.expect("put");
            for (offset, length, expected) in [
                (0, Some(3), "abc"),
                (23, None, "xyz"),
                (23, Some(99), "xyz"),
                (5, Some(0), ""),
                (26, None, ""),
                (1, Some(1), "b"),
            ] {
                let got = run(&reach, &blobs, "fs.get", at(json!({ "offset": offset, "length": length }))).await.expect("got");
                assert_eq!((&got["content"], &got["size"]), (&json!(expected), &json!(expected.len())));
                assert_eq!((&got["offset"], &got["total"]), (&json!(offset), &json!(26)));
            }
            let beyond = run(&reach, &blobs, "fs.get", at(json!({ "offset": 27 }))).await.expect_err("beyond its end");
            assert_eq!((beyond.code, &details(&beyond)["pointer"]), (Code::InvalidInput, &json!("/offset")));
        }
    });
}

#[test]
fn a_digest_is_compared_with_what_came() {
    on_each_store(|reach, blobs| async move {
        let right = hex(&Sha256::digest("content"));
        let wrong = hex(&Sha256::digest("other"));
        let put =
            |path: &str, sha256: &str| json!({ "connector": "archive", "path": path, "content": "content", "sha256": sha256 });
        run(&reach, &blobs, "fs.put", put("right", &right)).await.expect("put");
        let fault = run(&reach, &blobs, "fs.put", put("wrong", &wrong)).await.expect_err("another content");
        assert_eq!((fault.code, &details(&fault)["pointer"]), (Code::ExecutionFailed, &json!("/sha256")));
        let get = |sha256: &str| json!({ "connector": "archive", "path": "right", "sha256": sha256 });
        run(&reach, &blobs, "fs.get", get(&right.to_uppercase())).await.expect("got");
        assert_eq!(run(&reach, &blobs, "fs.get", get(&wrong)).await.expect_err("another").code, Code::ExecutionFailed);
        let copy =
            json!({ "connector": "archive", "path": "copy", "blob": "right", "blob_connector": "archive", "sha256": wrong });
        assert_eq!(run(&reach, &blobs, "fs.put", copy).await.expect_err("another").code, Code::ExecutionFailed);
        for path in ["wrong", "copy"] {
            let get = json!({ "connector": "archive", "path": path });
            assert_eq!(run(&reach, &blobs, "fs.get", get).await.expect_err("nothing was left").code, Code::InvalidInput);
        }
    });
}

#[test]
fn two_tenants_with_the_same_path_never_meet() {
    on_each_store(|reach, _| async move {
        let remote = remote(&reach);
        let long = "t".repeat(256);
        let tenants = ["acme", "ACME", "acme-", "t-acme", &long];
        for tenant in tenants {
            let stored = remote.put(tenant, "same/path", Bytes::from(tenant.to_owned()), false).await.expect("put");
            assert!(stored.created, "{tenant}");
        }
        for tenant in tenants {
            let blob = remote.open(tenant, "same/path").await.expect("there");
            assert_eq!(blob.read(0, 1_000).await.expect("read"), tenant.as_bytes());
        }
        assert!(remote.open("other", "same/path").await.is_err());
    });
}

#[test]
fn no_path_leads_to_another_place() {
    on_a_shard(|_, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        for reach in [with(memory()), with(store)] {
            let remote = remote(&reach);
            let long = vec!["x".repeat(250); 4].join("/");
            let mut paths = checks::bad_paths();
            // The runtime's own, which only blocks refuse.
            paths.retain(|path| path != "$outputs/x");
            paths.extend(["$outputs", "$outputs/", "$outputs/$x", " a", "a ", "a\u{85}", "\u{2003}a", &long].map(str::to_owned));
            // A store's prefix makes a path too long that none would.
            assert!(super::super::path::check(&long).is_ok());
            for path in paths {
                for overwrite in [false, true] {
                    let put = remote.put("acme", &path, Bytes::from_static(b"x"), overwrite).await;
                    let fault = put.expect_err(&path);
                    assert_eq!((fault.code, &details(&fault)["pointer"]), (Code::InvalidInput, &json!("/path")), "{path:?}");
                }
                let fault = remote.open("acme", &path).await.err().expect(&path);
                assert_eq!(fault.code, Code::InvalidInput, "{path:?}");
            }
            let odd = ["..a/...", "a b:c*?", "%2e%2e/x", "a%2fb", "a&b=c", "a+b", "#?", "'\"<>", "~"];
            for path in odd {
                remote.put("acme", path, Bytes::from(path.to_owned()), false).await.expect(path);
            }
            for path in odd {
                let blob = remote.open("acme", path).await.expect(path);
                assert_eq!(blob.read(0, 100).await.expect(path), path.as_bytes());
            }
        }
        assert!(server.objects().iter().all(|name| name.starts_with(&format!("pre/fix/{}/", folder_of("acme")))));
        assert_eq!(server.objects().len(), 9);
    });
}

#[test]
fn who_is_not_listed_is_told_no_more_than_that() {
    on_a_shard(|blobs, _| async move {
        let reach = with(StoreSettings { tenants: Some(vec!["other".to_owned()]), ..memory() });
        let (_, entry) = find("fs.put", false).expect("known");
        for (inputs, pointer) in [
            (json!({ "connector": "archive", "path": "a", "content": "x" }), "/connector"),
            (json!({ "connector": "nothing", "path": "a", "content": "x" }), "/connector"),
            (json!({ "path": "a", "blob": "b", "blob_connector": "archive" }), "/blob_connector"),
        ] {
            let text = inputs.to_string();
            let checked = entry.check(&Ask {
                policy: &reach.policy,
                tenant: "acme",
                name: "fs.put",
                inputs: text.as_bytes(),
                provider: "",
                narrow: &NOTHING,
            });
            let denied = checked.expect("good inputs").denied.expect("denied");
            assert_eq!((denied.code, &details(&denied)["pointer"]), (Code::PermissionDenied, &json!(pointer)));
            assert_eq!(run(&reach, &blobs, "fs.put", inputs).await.expect_err("denied").code, Code::PermissionDenied);
        }
    });
}

#[test]
fn where_a_store_cannot_refuse_nobody_asks_it_to() {
    on_a_shard(|blobs, _| async move {
        let reach = with(StoreSettings { if_absent: false, ..memory() });
        let put = |more: &str| json!({ "connector": "archive", "path": "a", "content": more });
        let fault = run(&reach, &blobs, "fs.put", put("x")).await.expect_err("it might be replaced");
        assert_eq!((fault.code, &details(&fault)["pointer"]), (Code::InvalidInput, &json!("/overwrite")));
        run(&reach, &blobs, "fs_blob_put", put("x")).await.expect("told to replace it");
        let inputs = json!({ "connector": "archive", "address": "sha256", "content": "x" });
        run(&reach, &blobs, "fs.put", inputs.clone()).await.expect("the content gives the name");
        assert_eq!(run(&reach, &blobs, "fs.put", inputs).await.expect("again")["created"], false);
    });
}

#[test]
fn a_large_blob_goes_both_ways_and_is_never_here_as_a_whole() {
    on_a_shard(|blobs, _| async move {
        let mut server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(store);
        let remote = remote(&reach);
        let (size, mut sent, piece) = (64 << 20, 0, Bytes::from(noise(1 << 20)));
        let mut writer = Blobs::create(&*blobs, "acme", "large", false).await.expect("begun");
        while sent < size {
            writer.write(piece.clone()).await.expect("written");
            sent += piece.len();
        }
        let digest = hex(&writer.finish().await.expect("whole").sha256);

        let up = json!({ "connector": "archive", "path": "large", "blob": "large" });
        let put = run(&reach, &blobs, "fs.put", up.clone()).await.expect("put");
        assert_eq!((&put["size"], &put["sha256"]), (&json!(size), &json!(digest)));
        assert_eq!(run(&reach, &blobs, "fs.put", up).await.expect("put again")["created"], false);
        let down = json!({ "path": "back", "blob": "large", "blob_connector": "archive", "sha256": digest });
        assert_eq!(run(&reach, &blobs, "fs.put", down).await.expect("back")["sha256"], digest);
        // Jumping about gives the same bytes.
        let blob = remote.open("acme", "large").await.expect("there");
        for offset in [0, 5 << 20, 1, (64 << 20) - 3, 7] {
            let read = blob.read(offset, 100).await.expect("read");
            let expected: Vec<u8> = (0..read.len()).map(|at| piece[(offset as usize + at) % piece.len()]).collect();
            assert!(!read.is_empty() && read == expected, "{offset}");
        }
        assert!(blob.read(64 << 20, 100).await.expect("its end").is_empty());

        let load = reach.stores.stores.load();
        let peak = load.bytes_peak.load(Ordering::Relaxed);
        assert!(peak <= UPLOAD_SHARE_BYTES, "{peak} bytes at once");
        assert!(until(|| load.bytes.load(Ordering::Relaxed) == 0).await);
        assert_eq!(server.scraps(), Vec::<String>::new());
        server.kill();
    });
}
