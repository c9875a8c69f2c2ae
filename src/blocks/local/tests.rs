//! Attacks on the tenant's root, and crashes around a put.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use shards::outcome::Code;

use super::super::tests::{assert_presentable, files, on_a_shard, pointer};
use super::*;

const SECRET: &str = "somebody else's";

async fn put(blobs: &LocalBlobs, path: &str, content: &'static str, overwrite: bool) -> Result<Stored, Fault> {
    Blobs::put(blobs, "acme", path, Bytes::from_static(content.as_bytes()), overwrite).await
}

async fn get(blobs: &LocalBlobs, tenant: &str, path: &str) -> Result<Vec<u8>, Fault> {
    let blob = Blobs::open(blobs, tenant, path).await?;
    let mut content = Vec::new();
    loop {
        match blob.read(content.len() as u64, 1 << 20).await? {
            chunk if chunk.is_empty() => return Ok(content),
            chunk => content.extend_from_slice(&chunk),
        }
    }
}

#[track_caller]
fn refused<T>(answer: Result<T, Fault>) {
    let fault = answer.err().expect("refused");
    assert_presentable(&fault);
    assert_eq!((fault.code, pointer(&fault).as_str()), (Code::InvalidInput, "/path"));
}

/// A tenant's folder, and beside the root a folder that nobody may reach.
async fn besieged(blobs: &LocalBlobs, root: &Path) -> (PathBuf, tempfile::TempDir) {
    put(blobs, "mine", "mine", false).await.expect("put");
    let outside = tempfile::tempdir().expect("a folder outside");
    fs::write(outside.path().join("secret"), SECRET).expect("written");
    (root.join(folder_of("acme")), outside)
}

async fn refused_in_every_way(blobs: &LocalBlobs, path: &str) {
    refused(get(blobs, "acme", path).await);
    refused(put(blobs, path, "x", false).await);
    refused(put(blobs, path, "x", true).await);
}

fn untouched(outside: &tempfile::TempDir) {
    assert_eq!(files(outside.path()), ["secret"]);
    assert_eq!(fs::read_to_string(outside.path().join("secret")).expect("there"), SECRET);
}

#[test]
fn a_link_to_a_file_is_neither_read_nor_written() {
    on_a_shard(|blobs, root| async move {
        let (home, outside) = besieged(&blobs, &root).await;
        symlink(outside.path().join("secret"), home.join("link")).expect("linked");
        symlink("mine", home.join("inner")).expect("linked");
        symlink("/proc/self/exe", home.join("magic")).expect("linked");
        symlink("nowhere", home.join("dangling")).expect("linked");
        for path in ["link", "inner", "magic", "dangling"] {
            refused_in_every_way(&blobs, path).await;
            assert!(home.join(path).is_symlink());
        }
        assert!(!home.join("nowhere").exists());
        untouched(&outside);
    });
}

#[test]
fn a_link_to_a_folder_is_not_passed() {
    on_a_shard(|blobs, root| async move {
        let (home, outside) = besieged(&blobs, &root).await;
        symlink(outside.path(), home.join("out")).expect("linked");
        fs::create_dir(home.join("real")).expect("made");
        symlink(outside.path(), home.join("real/deeper")).expect("linked");
        symlink("real", home.join("alias")).expect("linked");
        for path in ["out/secret", "out/new", "out/new/file", "real/deeper/secret", "alias/file", "out"] {
            refused_in_every_way(&blobs, path).await;
        }
        untouched(&outside);
    });
}

#[test]
fn a_folder_swapped_for_a_link_is_noticed() {
    on_a_shard(|blobs, root| async move {
        let (home, outside) = besieged(&blobs, &root).await;
        put(&blobs, "folder/secret", "inside", false).await.expect("put");
        fs::rename(home.join("folder"), home.join("moved")).expect("moved");
        symlink(outside.path(), home.join("folder")).expect("linked");
        refused_in_every_way(&blobs, "folder/secret").await;
        refused_in_every_way(&blobs, "folder/new").await;
        assert_eq!(get(&blobs, "acme", "moved/secret").await.expect("there"), b"inside");
        untouched(&outside);

        // Even the tenant's own folder, and the one for unfinished files.
        let _ = fs::remove_dir(home.join(TMP));
        symlink(outside.path(), home.join(TMP)).expect("linked");
        refused(put(&blobs, "another", "x", true).await);
        fs::rename(&home, root.join("elsewhere")).expect("moved");
        symlink(outside.path(), &home).expect("linked");
        refused_in_every_way(&blobs, "secret").await;
        untouched(&outside);
    });
}

#[test]
fn folders_pipes_and_files_in_the_way_are_refused() {
    on_a_shard(|blobs, root| async move {
        let (home, _outside) = besieged(&blobs, &root).await;
        fs::create_dir(home.join("folder")).expect("made");
        rustix::fs::mknodat(rustix::fs::CWD, home.join("pipe"), FileType::Fifo, Mode::RWXU, 0).expect("made");
        for path in ["folder", "pipe", "mine/below", "mine/below/deeper"] {
            refused_in_every_way(&blobs, path).await;
        }
        refused(get(&blobs, "acme", "nothing").await);
        refused(get(&blobs, "acme", "no/folder").await);
        refused(get(&blobs, "nobody", "mine").await);
        assert!(!root.join(folder_of("nobody")).exists(), "reading makes no folders");
    });
}

#[test]
fn paths_are_checked_here_too() {
    on_a_shard(|blobs, root| async move {
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "a/",
            "$tmp/x",
            "$other/x",
            "$outputs",
            "$outputs/",
            "$outputs/$x",
            "a\0b",
        ] {
            refused_in_every_way(&blobs, path).await;
        }
        assert!(files(&root).is_empty());
        put(&blobs, "$outputs/ab/cd", "large", false).await.expect("the runtime's own folder");
        assert_eq!(get(&blobs, "acme", "$outputs/ab/cd").await.expect("there"), b"large");
    });
}

#[test]
fn two_tenants_with_the_same_path_never_meet() {
    on_a_shard(|blobs, root| async move {
        let long = "t".repeat(256);
        let tenants = ["acme", "ACME", "acme-", "t-acme", &long];
        for tenant in tenants {
            let stored = Blobs::put(&*blobs, tenant, "same/path", Bytes::from(tenant.to_owned()), false).await.expect("put");
            assert!(stored.created);
        }
        for tenant in tenants {
            assert_eq!(get(&blobs, tenant, "same/path").await.expect("there"), tenant.as_bytes());
        }
        refused(get(&blobs, "other", "same/path").await);
        assert_eq!(files(&root).len(), tenants.len());
        assert_eq!(folder_of("acme"), "t-822b33ad87c148a0a20a5ba7cd5ebcaa");
    });
}

#[test]
fn a_blob_is_created_once_agreed_with_or_refused() {
    on_a_shard(|blobs, root| async move {
        let first = put(&blobs, "a", "one", false).await.expect("put");
        assert_eq!((first.size, first.created), (3, true));
        assert_eq!(first.sha256, <[u8; 32]>::from(Sha256::digest("one")));
        assert_eq!(put(&blobs, "a", "one", false).await, Ok(Stored { created: false, ..first }));
        for other in ["two", "", "ones"] {
            let fault = put(&blobs, "a", other, false).await.expect_err("taken");
            assert_presentable(&fault);
            assert_eq!(fault.code, Code::ExecutionFailed);
        }
        assert_eq!(get(&blobs, "acme", "a").await.expect("there"), b"one");

        let before = Blobs::open(&*blobs, "acme", "a").await.expect("open");
        assert!(!put(&blobs, "a", "longer than one", true).await.expect("put").created);
        assert_eq!(get(&blobs, "acme", "a").await.expect("there"), b"longer than one");
        assert_eq!(before.read(0, 100).await.expect("read"), "one", "an open blob stays what it was");
        assert!(put(&blobs, "b", "", true).await.expect("put").created);
        assert_eq!(get(&blobs, "acme", "b").await.expect("there"), b"");
        assert_eq!(files(&root).len(), 2);
    });
}

#[test]
fn of_two_puts_at_once_one_creates_and_the_other_sees_it() {
    on_a_shard(|blobs, _| async move {
        let (one, two) =
            futures_util::future::join(put(&blobs, "x/same", "same", false), put(&blobs, "x/same", "same", false)).await;
        assert_ne!(one.expect("put").created, two.expect("put").created);
        let (one, two) =
            futures_util::future::join(put(&blobs, "y/other", "one", false), put(&blobs, "y/other", "two", false)).await;
        assert_ne!(one.is_ok(), two.is_ok());
        let winner = if one.is_ok() { "one" } else { "two" };
        assert_eq!(get(&blobs, "acme", "y/other").await.expect("there"), winner.as_bytes());
    });
}

#[test]
fn ten_mebibytes_survive_the_chunks() {
    on_a_shard(|blobs, _| async move {
        let content: Bytes = (0..10_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into();
        let stored = Blobs::put(&*blobs, "acme", "large", content.clone(), false).await.expect("put");
        assert_eq!(stored.size, 10 << 20);
        assert_eq!(stored.sha256, <[u8; 32]>::from(Sha256::digest(&content)));
        assert!(get(&blobs, "acme", "large").await.expect("there") == content);
        assert!(!Blobs::put(&*blobs, "acme", "large", content, false).await.expect("agreed").created);
    });
}

#[test]
fn leftovers_of_a_killed_worker_disturb_nobody_and_are_swept() {
    on_a_shard(|blobs, root| async move {
        put(&blobs, "kept", "kept", false).await.expect("put");
        let tmp = root.join(folder_of("acme")).join(TMP);
        for number in 0..4 {
            fs::write(tmp.join(format!("0-{}-{number}", std::process::id())), "half a bl").expect("written");
        }
        assert!(put(&blobs, "new", "whole", false).await.expect("passes over the taken names").created);
        assert_eq!(files(&tmp).len(), 4);
        drop(blobs);
        assert_eq!(sweep(&root).expect("swept"), 4);
        assert_eq!(sweep(&root).expect("swept"), 0);
        assert_eq!(files(&root).len(), 2);
        assert_eq!(sweep(&root.join("not there")).expect("nothing to sweep"), 0);
    });
}

#[test]
fn a_root_that_is_not_there_is_made() {
    on_a_shard(|_, root| async move {
        let blobs = LocalBlobs::open(&root.join("a/b"), 3).expect("made");
        put(&blobs, "x", "y", false).await.expect("put");
        assert!(LocalBlobs::open(&root.join("a/b").join(folder_of("acme")).join("x"), 0).is_err(), "a file is no root");
    });
}

#[test]
fn the_words_of_the_disk_become_the_faults_that_were_promised() {
    for (errno, code) in [
        (Errno::NOSPC, Code::ResourceUnavailable),
        (Errno::DQUOT, Code::ResourceUnavailable),
        (Errno::MFILE, Code::ResourceUnavailable),
        (Errno::LOOP, Code::InvalidInput),
        (Errno::NOTDIR, Code::InvalidInput),
        (Errno::ISDIR, Code::InvalidInput),
        (Errno::NAMETOOLONG, Code::InvalidInput),
    ] {
        let fault = Refusal::from(errno);
        assert_presentable(&fault);
        assert_eq!(fault.code, code, "{errno}");
    }
    assert_presentable(&Refusal::unsynced(Errno::IO));
    assert_eq!(Refusal::unsynced(Errno::IO).code, Code::ExecutionFailed);
    assert_eq!(Refusal::unsynced(Errno::MFILE).code, Code::ResourceUnavailable, "no disk has been asked");
}
