//! How much a tenant may keep in a store.

use super::*;

const MAX: u64 = 1_000;

fn put(path: &str, bytes: usize) -> Value {
    json!({ "connector": "archive", "path": path, "content": "x".repeat(bytes), "overwrite": true })
}

#[track_caller]
fn refused(done: Result<Value, Fault>, used: u64) {
    let fault = done.expect_err("over its quota");
    assert_eq!((fault.code, fault.effect), (Code::QuotaExceeded, Effected::None));
    let expected = json!({ "pointer": "/connector", "rule": "connectors.archive.bytes_max", "used": used, "bytes_max": MAX });
    assert_eq!(details(&fault), expected);
}

#[test]
fn a_tenant_keeps_as_much_as_it_may_and_no_byte_more() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        for store in [memory(), store] {
            let reach = with(StoreSettings { bytes_max: Some(MAX), ..store });
            run(&reach, &blobs, "fs.put", put("a", 600)).await.expect("room");
            refused(run(&reach, &blobs, "fs.put", put("b", 401)).await, 600);
            run(&reach, &blobs, "fs.put", put("b", 400)).await.expect("exactly");
            refused(run(&reach, &blobs, "fs.put", put("c", 1)).await, 1_000);
            run(&reach, &blobs, "fs.put", put("c", 0)).await.expect("nothing takes no room");
            // The same content again takes nothing, but is told of before that is known.
            let same = json!({ "connector": "archive", "path": "a", "content": "x".repeat(600) });
            refused(run(&reach, &blobs, "fs.put", same).await, 1_000);
            // Another tenant has its own.
            let other = run_with(&reach, &blobs, "other", "fs.put", &put("a", 1_000).to_string(), 1).await;
            assert_eq!(other.expect("room")["size"], 1_000);
        }
    });
}

#[test]
fn what_was_there_before_counts_and_what_is_replaced_does_not() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        run(&with(store.clone()), &blobs, "fs.put", put("before", 700)).await.expect("put without a quota");
        let reach = with(StoreSettings { bytes_max: Some(MAX), ..store });
        refused(run(&reach, &blobs, "fs.put", put("after", 301)).await, 700);
        run(&reach, &blobs, "fs.put", put("before", 100)).await.expect("smaller");
        run(&reach, &blobs, "fs.put", put("after", 900)).await.expect("what was replaced has made room");
        refused(run(&reach, &blobs, "fs.put", put("more", 1)).await, 1_000);
    });
}

#[test]
fn writers_at_once_share_what_is_left() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(StoreSettings { bytes_max: Some(MAX), ..store });
        let puts = (0..10).map(|n| run(&reach, &blobs, "fs.put", put(&format!("at/once/{n}"), 300)));
        let puts: Vec<_> = puts.collect();
        let done = futures_util::future::join_all(puts).await;
        assert_eq!(done.iter().filter(|one| one.is_ok()).count(), 3);
        let kept: u64 = server.objects().iter().map(|name| std::fs::metadata(server.file(name)).expect("there").len()).sum();
        assert_eq!(kept, 900);
    });
}

#[test]
fn a_blob_of_unknown_size_is_stopped_where_the_room_ends() {
    on_a_shard(|blobs, _| async move {
        let server = Server::start();
        let (store, _secrets) = on_s3(server.address);
        let reach = with(StoreSettings { bytes_max: Some(10 << 20), ..store });
        Blobs::put(&*blobs, "acme", "large", Bytes::from(noise(12 << 20)), true).await.expect("put");
        let copy = json!({ "connector": "archive", "path": "large", "blob": "large" });
        let fault = run(&reach, &blobs, "fs.put", copy).await.expect_err("over its quota");
        assert_eq!((fault.code, fault.effect), (Code::QuotaExceeded, Effected::None));
        assert!(until(|| server.scraps().is_empty()).await, "{:?}", server.scraps());
        assert_eq!(server.objects(), Vec::<String>::new());
        // What it had reserved is free again.
        Blobs::put(&*blobs, "acme", "fits", Bytes::from(noise(10 << 20)), true).await.expect("put");
        let copy = json!({ "connector": "archive", "path": "fits", "blob": "fits" });
        assert_eq!(run(&reach, &blobs, "fs.put", copy).await.expect("room")["size"], 10 << 20);
    });
}
