//! What the blocks give back, and what is left of one that is dropped midway.

use std::time::Instant;

use super::*;

#[test]
fn echo_gives_back_its_inputs_byte_for_byte() {
    on_a_shard(|blobs, _| async move {
        let echo = &build_all(&shut())[0];
        for (inputs, outputs) in [
            (r#"{ "b" : 1.50, "a":"\u00e9" }"#, r#"{ "b" : 1.50, "a":"\u00e9" }"#),
            ("[1e2]", "[1e2]"),
            ("", "{}"),
            ("null", "{}"),
        ] {
            let cx = BlockCx {
                tenant: Text::from_static("acme"),
                key: Key([0; 16]),
                try_number: 1,
                left_ms: 60_000,
                needs: shards::step::Needs::default(),
                inputs: Bytes::from(inputs),
                blobs: blobs.clone(),
                guardrails: Bytes::new(),
                cache: None,
                trace_id: None,
                observers: None,
            };
            assert_eq!(echo.execute(cx).await.expect("echo"), outputs);
        }
    });
}

#[test]
fn sleep_takes_its_time() {
    on_a_shard(|blobs, _| async move {
        let start = Instant::now();
        assert_eq!(run(&blobs, "sleep", json!({ "ms": 30 })).await, Ok(json!({ "slept_ms": 30 })));
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(run(&blobs, "sleep", json!({ "ms": 0 })).await, Ok(json!({ "slept_ms": 0 })));
        assert_eq!(run(&blobs, "sleep", json!(null)).await, Ok(json!({ "slept_ms": 100 })));
    });
}

#[test]
fn digests_are_the_published_ones() {
    let vectors = [
        ("sha256", "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("sha256", "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            "sha512",
            "",
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ),
        (
            "sha512",
            "abc",
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        ("blake3", "", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        ("blake3", "abc", "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
    ];
    on_a_shard(|blobs, _| async move {
        run(&blobs, "fs_blob_put", json!({ "path": "abc", "content": "abc" })).await.expect("put");
        run(&blobs, "fs_blob_put", json!({ "path": "empty", "content": "" })).await.expect("put");
        for (algorithm, text, digest) in vectors {
            let expected = json!({ "algorithm": algorithm, "digest": digest, "size": text.len() });
            let (bytes, path) = if text.is_empty() { ("", "empty") } else { ("YWJj", "abc") };
            for source in [json!({ "text": text }), json!({ "bytes": bytes }), json!({ "path": path })] {
                let mut inputs = source;
                inputs["algorithm"] = json!(algorithm);
                assert_eq!(run(&blobs, "crypto.hash", inputs).await.as_ref(), Ok(&expected));
            }
        }
        let default = run(&blobs, "crypto.hash", json!({ "text": "abc" })).await.expect("hash");
        assert_eq!(default["algorithm"], "sha256");
    });
}

#[test]
fn a_long_hash_lets_others_run() {
    on_a_shard(|blobs, _| async move {
        let text = "a".repeat(16 << 20);
        let ticks = Rc::new(RefCell::new(0));
        let (counter, done) = (ticks.clone(), Rc::new(RefCell::new(false)));
        let stop = done.clone();
        let other = glommio::spawn_local(async move {
            while !*stop.borrow() {
                *counter.borrow_mut() += 1;
                glommio::timer::sleep(Duration::from_millis(1)).await;
            }
        });
        for algorithm in ["sha512", "sha256", "sha512", "sha256"] {
            run(&blobs, "crypto.hash", json!({ "text": text, "algorithm": algorithm })).await.expect("hash");
        }
        *done.borrow_mut() = true;
        other.await;
        assert!(*ticks.borrow() >= 10, "the other task ran {} times", ticks.borrow());
    });
}

#[test]
fn what_was_put_is_got_back() {
    on_a_shard(|blobs, root| async move {
        let put = run(&blobs, "fs.blob_put", json!({ "path": "a/ü.txt", "content": "grüße\n\"\u{1}" })).await.expect("put");
        assert_eq!((&put["path"], &put["size"], &put["created"]), (&json!("a/ü.txt"), &json!(10), &json!(true)));
        let got = run(&blobs, "fs.get", json!({ "path": "a/ü.txt" })).await.expect("get");
        let expected = json!({ "path": "a/ü.txt", "size": 10, "content": "grüße\n\"\u{1}", "bytes": "Z3LDvMOfZQoiAQ==" });
        assert_eq!(got, expected);
        assert_eq!(files(&root), [format!("{}/a/ü.txt", folder_of("acme"))]);

        run(&blobs, "fs.put", json!({ "path": "raw", "bytes": "/wA" })).await.expect("put");
        let got = run(&blobs, "fs_blob_get", json!({ "path": "raw" })).await.expect("get");
        assert_eq!(got, json!({ "path": "raw", "size": 2, "bytes": "/wA=" }));
    });
}

#[test]
fn text_is_told_from_bytes_wherever_a_character_is_cut() {
    on_a_shard(|blobs, root| async move {
        run(&blobs, "fs.put", json!({ "path": "seed", "content": "" })).await.expect("put");
        for shift in 0..4 {
            let text = "x".repeat(shift) + &"文𝄞é".repeat(20_000);
            let path = root.join(folder_of("acme")).join("text");
            std::fs::write(&path, &text).expect("written");
            let got = run(&blobs, "fs.get", json!({ "path": "text" })).await.expect("get");
            assert!(got["content"] == text.as_str());
            // Cut in the last character, it is text no more.
            std::fs::write(&path, &text.as_bytes()[..text.len() - 1]).expect("written");
            let got = run(&blobs, "fs.get", json!({ "path": "text" })).await.expect("get");
            assert!(got.get("content").is_none() && got["size"] == text.len() - 1);
        }
    });
}

#[test]
fn the_older_name_overwrites_unless_told() {
    on_a_shard(|blobs, _| async move {
        for (name, content, overwrite, created) in [
            ("fs_blob_put", "one", None, Some(true)),
            ("fs_blob_put", "two", None, Some(false)),
            ("fs_blob_put", "three", Some(false), None),
            ("fs.blob_put", "three", None, None),
            ("fs.put", "two", None, Some(false)),
            ("fs.blob_put", "three", Some(true), Some(false)),
        ] {
            let inputs = json!({ "path": "a", "content": content, "overwrite": overwrite });
            match (run(&blobs, name, inputs).await, created) {
                (Ok(put), Some(created)) => assert_eq!(put["created"], created, "{name} {content}"),
                (Err(fault), None) => {
                    assert_presentable(&fault);
                    assert_eq!(fault.code, Code::ExecutionFailed);
                }
                (other, _) => panic!("{name} {content}: {other:?}"),
            }
        }
        run(&blobs, "fs_blob_put", json!({ "path": "a", "bytes": "/w==" })).await.expect("bytes under the older name");
        assert_eq!(run(&blobs, "fs.get", json!({ "path": "a" })).await.expect("get")["bytes"], "/w==");
    });
}

#[test]
fn a_blob_that_is_too_large_to_return_is_still_hashed() {
    on_a_shard(|blobs, root| async move {
        run(&blobs, "fs.put", json!({ "path": "seed", "content": "" })).await.expect("put");
        std::fs::write(root.join(folder_of("acme")).join("large"), vec![b'a'; (8 << 20) + 1]).expect("written");
        let fault = run(&blobs, "fs.get", json!({ "path": "large" })).await.expect_err("too large");
        assert_presentable(&fault);
        assert_eq!(fault.code, Code::ExecutionFailed);
        let hashed = run(&blobs, "crypto.hash", json!({ "path": "large" })).await.expect("hash");
        assert_eq!(hashed["size"], (8 << 20) + 1);
    });
}

#[test]
fn the_development_block_fails_as_often_as_told() {
    on_a_shard(|blobs, _| async move {
        let inputs = r#"{"times":2,"code":"RESOURCE_UNAVAILABLE","message":"Not yet."}"#;
        for try_number in 1..=2 {
            let fault = run_as(&blobs, "acme", "test.fail", inputs, try_number).await.expect_err("fails");
            assert_eq!((fault.code, &*fault.message), (Code::ResourceUnavailable, "Not yet."));
        }
        assert_eq!(run_as(&blobs, "acme", "test.fail", inputs, 3).await, Ok(json!({ "tries": 3 })));
        let fault = run_as(&blobs, "acme", "test.fail", "", 1).await.expect_err("fails once");
        assert_eq!(fault.code, Code::NetworkError);
    });
}

#[test]
fn a_try_dropped_at_any_await_leaves_nothing_partial_behind() {
    on_a_shard(|blobs, root| async move {
        let content = "0123456789abcdef".repeat(50_000);
        run(&blobs, "fs.put", json!({ "path": "there", "content": content })).await.expect("put");
        for (name, inputs) in [
            ("echo", json!({ "a": 1 })),
            ("sleep", json!({ "ms": 5 })),
            ("crypto.hash", json!({ "path": "there" })),
            ("fs.blob_get", json!({ "path": "there" })),
            ("test.fail", json!({})),
            ("fs.blob_put", json!({ "path": "new/folder/blob", "content": content })),
            ("fs_blob_put", json!({ "path": "there", "content": content.replace('0', "X") })),
        ] {
            let mut finished = false;
            for polls in 0..200 {
                finished = drop_after(polls, run(&blobs, name, inputs.clone())).await;
                for file in files(&root) {
                    assert!(!file.contains('$'), "{name} left {file} after {polls} polls");
                    let size = std::fs::metadata(root.join(&file)).expect("a blob").len();
                    assert_eq!(size, content.len() as u64, "{name} left a part of {file} after {polls} polls");
                }
                if finished {
                    break;
                }
            }
            assert!(finished, "{name} never got to its end");
        }
        assert_eq!(files(&root).len(), 2);
    });
}
