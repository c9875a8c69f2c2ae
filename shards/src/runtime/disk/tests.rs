//! Real files, real rings: what was durable is there again, what is damaged is refused, and room is found out early.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "these tests have an executor without the runtime around it")]

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use glommio::LocalExecutorBuilder;
use tempfile::TempDir;

use super::*;
use crate::ids::{AskerId, Key, Partition};
use crate::journal::batch::BatchHead;
use crate::journal::segment::SegmentHead;
use crate::journal::{Fact, Frame, Head, decode};

mod room;

const HEAD: Head = Head { key: Key([7; 16]), partition: Partition(1), owner_epoch: 0 };

fn on_a_core<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    LocalExecutorBuilder::default().make().unwrap().run(async {
        // glommio parks with runnable tasks when its preempt timer fires before the first of them is polled, as it does on a
        // busy machine; without any timer it would sleep for ever.
        let heartbeat = async {
            loop {
                glommio::timer::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        glommio::spawn_local(heartbeat).detach();
        work.await
    })
}

fn settings(dir: &Path) -> DiskSettings {
    DiskSettings {
        dir: dir.to_owned(),
        generation: 1,
        shard: 0,
        shards: 2,
        worker_id: "w-1".to_owned(),
        salt: Salt([3; 32]),
        segment_bytes: 2 << 20,
    }
}

/// Opens and gives the `at_ms` of every PUBLISHED frame, in order, with how it was opened.
async fn open_with(settings: DiskSettings) -> Result<(Opened, Vec<u64>), DiskError> {
    let mut seen = Vec::new();
    let mut expected = None;
    let opened = Disk::open(settings, |lsn, view| {
        assert!(expected.is_none_or(|expected| expected == lsn), "lsns are contiguous");
        expected = Some(lsn.next());
        if let Fact::Published { at_ms, .. } = decode(&Bytes::copy_from_slice(view.raw()))?.fact {
            seen.push(at_ms);
        }
        Ok(())
    })
    .await?;
    Ok((opened, seen))
}

async fn open(dir: &Path) -> (Opened, Vec<u64>) {
    open_with(settings(dir)).await.unwrap()
}

fn start(disk: &Disk) {
    glommio::spawn_local(disk.clone().run()).detach();
}

fn append(disk: &Disk, at_ms: u64) -> Lsn {
    let mut log = Log::default();
    log.published(HEAD, &AskerId([1; 16]), at_ms);
    log.urgent = true;
    disk.append(&mut log)
}

/// A frame of about `bytes`, under the number `at_ms`.
fn append_large(disk: &Disk, at_ms: u64, bytes: usize) -> Lsn {
    let fact = Fact::Published { asker: AskerId([1; 16]), at_ms };
    let mut log = Log::default();
    log.append(&Frame { key: HEAD.key, partition: HEAD.partition, owner_epoch: 0, fact });
    // A field that no version knows yet makes it as large as wanted.
    log.bytes.extend_from_slice(&[250, 0x80 | (bytes & 127) as u8, 0x80 | (bytes >> 7 & 127) as u8, (bytes >> 14) as u8]);
    log.bytes.resize(log.bytes.len() + bytes, 0xab);
    let length = (log.bytes.len() as u32).to_le_bytes();
    log.bytes[..4].copy_from_slice(&length);
    log.urgent = true;
    disk.append(&mut log)
}

/// Waits until `lsn` is durable; all other news on the way.
async fn durable(disk: &Disk, lsn: Lsn) -> Vec<DiskNews> {
    let mut others = Vec::new();
    loop {
        match disk.news().await {
            News::Durable { through } if through >= lsn => return others,
            News::Durable { .. } | News::MarkDue => {}
            News::Disk(news) => others.push(news),
            News::Failed(error) => panic!("{error}"),
        }
    }
}

/// Writes `count` frames, each in a commit of its own, and closes; gives the segment's path.
async fn write_commits(dir: &Path, count: u64) -> PathBuf {
    let (opened, _) = open(dir).await;
    start(&opened.disk);
    for at_ms in 1..=count {
        let lsn = append(&opened.disk, at_ms);
        durable(&opened.disk, lsn).await;
    }
    opened.disk.close().await;
    opened.disk.inner.current().path.clone()
}

/// Where the batches of a segment lie.
fn batches(path: &Path) -> Vec<(u64, BatchHead)> {
    let bytes = fs::read(path).unwrap();
    let id = SegmentHead::decode(&bytes).unwrap().id;
    let mut at = SEGMENT_HEAD_BYTES;
    let mut found = Vec::new();
    while let Some(head) = bytes.get(at..).and_then(|bytes| BatchHead::read(id, bytes)) {
        found.push((at as u64, head));
        at += head.size();
    }
    found
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn what_was_durable_is_there_again_and_the_boot_is_counted() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let (opened, seen) = open(dir.path()).await;
        assert_eq!((opened.boot, opened.next_lsn, seen.len()), (1, Lsn(1), 0));
        start(&opened.disk);
        for at_ms in 1..=500 {
            append(&opened.disk, at_ms);
        }
        durable(&opened.disk, Lsn(500)).await;
        opened.disk.close().await;

        let (again, seen) = open(dir.path()).await;
        assert_eq!((again.boot, again.next_lsn, again.records), (2, Lsn(501), 500));
        assert_eq!(seen, (1..=500).collect::<Vec<_>>());
        assert_eq!((again.torn, again.segments.len()), (None, 1));
        start(&again.disk);
        assert_eq!(append(&again.disk, 501), Lsn(501));
        durable(&again.disk, Lsn(501)).await;
        again.disk.close().await;
        assert_eq!(open(dir.path()).await.1, (1..=501).collect::<Vec<_>>());
        // Starting without writing leaves nothing behind but a higher boot.
        let (last, seen) = open(dir.path()).await;
        assert_eq!((last.boot, seen.len(), last.segments.len()), (4, 501, 2));
        assert_eq!(fs::read_dir(dir.path().join("1/0")).unwrap().count(), 3 + 1, "and the reserve");
        assert_eq!(inspect(dir.path()).unwrap().map(|head| (head.boot, head.salt)), Some((4, Salt([3; 32]))));
    });
}

#[test]
fn frames_that_nobody_waits_for_still_become_durable() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let (opened, _) = open(dir.path()).await;
        start(&opened.disk);
        let mut log = Log::default();
        log.published(HEAD, &AskerId([1; 16]), 1);
        let lsn = opened.disk.append(&mut log);
        assert_eq!((log.frames, log.bytes.len(), lsn), (0, 0, Lsn(1)));
        durable(&opened.disk, lsn).await;
    });
}

#[test]
fn an_idle_shard_is_asked_for_exactly_one_mark() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let (opened, _) = open(dir.path()).await;
        let disk = opened.disk;
        start(&disk);
        glommio::timer::sleep(std::time::Duration::from_millis(40)).await;
        assert!(disk.try_news().is_none(), "nothing was written, nothing needs a mark");
        append(&disk, 1);
        let mut due = 0;
        for _ in 0..10 {
            glommio::timer::sleep(std::time::Duration::from_millis(10)).await;
            while let Some(news) = disk.try_news() {
                if matches!(news, News::MarkDue) {
                    due += 1;
                    let mut log = Log::default();
                    log.mark(1, Lsn(1), 0);
                    disk.append(&mut log);
                }
            }
        }
        assert_eq!((due, disk.durable()), (1, Lsn(2)));
    });
}

#[test]
fn full_segments_are_closed_and_pruned() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let (opened, _) = open(dir.path()).await;
        let disk = opened.disk;
        start(&disk);
        let mut news = Vec::new();
        for at_ms in 1..=20 {
            let lsn = append_large(&disk, at_ms, 500_000);
            news.extend(durable(&disk, lsn).await);
        }
        let closed: Vec<(u64, u64)> = news
            .iter()
            .map(|news| match news {
                DiskNews::Closed { from, to, bytes } => {
                    assert!(*bytes > 1_500_000 && *bytes <= 2 << 20);
                    (from.0, to.0)
                }
                news => panic!("{news:?}"),
            })
            .collect();
        assert_eq!(closed, [(1, 4), (5, 8), (9, 12), (13, 16)]);
        disk.prune(Lsn(9));
        let mut looks = 0;
        while disk.probe(Lsn(8)).await.unwrap().is_some() {
            looks += 1;
            assert!(looks < 500, "it stays");
            glommio::timer::sleep(std::time::Duration::from_millis(10)).await;
        }
        let frame = decode(&disk.probe(Lsn(9)).await.unwrap().unwrap()).unwrap();
        assert_eq!(frame.fact, Fact::Published { asker: AskerId([1; 16]), at_ms: 9 });
        disk.close().await;
        let (again, seen) = open(dir.path()).await;
        assert_eq!((seen, again.next_lsn), ((9..=20).collect(), Lsn(21)));
        assert_eq!(again.segments.iter().map(|span| span.from.0).collect::<Vec<_>>(), [9, 13, 17]);
    });
}

#[test]
fn a_frame_larger_than_a_segment_gets_one_of_its_own_size() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let (opened, _) = open(dir.path()).await;
        start(&opened.disk);
        append(&opened.disk, 1);
        let large = append_large(&opened.disk, 2, 2_090_000);
        let more = append_large(&opened.disk, 3, 2_096_900);
        durable(&opened.disk, more).await;
        assert_eq!(opened.disk.probe(large).await.unwrap().map(|raw| raw.len() > 2_090_000), Some(true));
        opened.disk.close().await;
        assert_eq!(open(dir.path()).await.1, [1, 2, 3]);
    });
}

#[test]
fn any_frame_can_be_read_back_before_and_after_reopening() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let (opened, _) = open(dir.path()).await;
        let mut disk = opened.disk;
        start(&disk);
        for at_ms in 1..=300 {
            let lsn = append_large(&disk, at_ms, 10_000 + at_ms as usize);
            if at_ms % 3 == 0 {
                durable(&disk, lsn).await;
            }
        }
        for _ in 0..2 {
            for lsn in (1..=300).rev() {
                let frame = decode(&disk.probe(Lsn(lsn)).await.unwrap().unwrap()).unwrap();
                assert_eq!(frame.fact, Fact::Published { asker: AskerId([1; 16]), at_ms: lsn });
            }
            assert_eq!(disk.probe(Lsn(301)).await.unwrap(), None);
            disk.close().await;
            disk = open(dir.path()).await.0.disk;
            start(&disk);
        }
    });
}

#[test]
fn a_torn_tail_is_cut_and_the_rest_is_kept() {
    for garbage in [false, true] {
        let dir = TempDir::new().unwrap();
        on_a_core(async move {
            let path = write_commits(dir.path(), 5).await;
            let (last, head) = *batches(&path).last().unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            if garbage {
                file.write_all_at(&[0x5a; 100], last + 20).unwrap();
            } else {
                file.set_len(last + head.size() as u64 - 9).unwrap();
            }
            let (opened, seen) = open(dir.path()).await;
            assert_eq!((seen, opened.next_lsn), (vec![1, 2, 3, 4], Lsn(5)));
            assert_eq!(opened.torn, Some(Cut { path: path.clone(), offset: last }));
            start(&opened.disk);
            let lsn = append(&opened.disk, 50);
            durable(&opened.disk, lsn).await;
            opened.disk.close().await;
            let (again, seen) = open(dir.path()).await;
            assert_eq!((seen, again.torn), (vec![1, 2, 3, 4, 50], None), "recovering twice is recovering once");
        });
    }
}

#[test]
fn a_flipped_bit_is_refused_with_its_place_and_nothing_is_changed() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let path = write_commits(dir.path(), 5).await;
        let (third, _) = batches(&path)[2];
        flip(&path, third + 60);
        let before = fs::read(&path).unwrap();
        let Err(DiskError::Damaged { path: named, offset, lsn, damage }) = open_with(settings(dir.path())).await else {
            panic!("damage must be refused")
        };
        assert_eq!((named, offset, lsn, damage), (path.clone(), third, Lsn(3), Damage::Checksum));
        assert_eq!(fs::read(&path).unwrap(), before);
        flip(&path, third + 60);
        // The last batch alone could be a torn one, but not once a later segment has been begun.
        drop(open(dir.path()).await);
        let (last, _) = *batches(&path).last().unwrap();
        flip(&path, last + 60);
        assert!(matches!(open_with(settings(dir.path())).await, Err(DiskError::Damaged { .. })));
        flip(&path, last + 60);
        flip(&path, 100);
        let Err(DiskError::Damaged { damage, .. }) = open_with(settings(dir.path())).await else {
            panic!("a damaged header over a written segment must be refused")
        };
        assert_eq!(damage, Damage::Header);
    });
}

#[test]
fn a_missing_segment_is_noticed() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        write_commits(dir.path(), 2).await;
        let middle = write_commits(dir.path(), 2).await;
        write_commits(dir.path(), 2).await;
        fs::remove_file(middle).unwrap();
        let Err(DiskError::Damaged { damage, .. }) = open_with(settings(dir.path())).await else {
            panic!("a hole must be refused")
        };
        assert_eq!(damage, Damage::Lsn { expected: 3, found: 5 });
    });
}

#[test]
fn a_journal_of_others_is_refused_with_the_reason() {
    let dir = TempDir::new().unwrap();
    on_a_core(async move {
        let path = write_commits(dir.path(), 1).await;
        let good = settings(dir.path());
        let refused = |settings| async {
            match open_with(settings).await {
                Err(DiskError::Head { error, .. }) => error,
                _ => panic!("must be refused"),
            }
        };
        assert_eq!(refused(DiskSettings { shards: 4, ..good.clone() }).await, HeadError::Shards { written: 2, now: 4 });
        assert_eq!(refused(DiskSettings { salt: Salt([4; 32]), ..good.clone() }).await, HeadError::Salt);
        let other = DiskSettings { worker_id: "w-2".to_owned(), ..good.clone() };
        assert!(matches!(refused(other).await, HeadError::Worker { .. }));

        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let mut newer = fs::read(&path).unwrap()[..SEGMENT_HEAD_BYTES].to_vec();
        newer[8..12].copy_from_slice(&[9, 0, 9, 0]);
        let crc = crc32c::crc32c(&newer[..SEGMENT_HEAD_BYTES - 4]);
        newer[SEGMENT_HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&newer, 0).unwrap();
        let error = refused(good).await;
        assert_eq!(error, HeadError::Newer { format: 9 });
        assert!(error.to_string().contains("newer endstation (format 9"));
    });
}

#[test]
fn a_second_process_is_refused_after_two_seconds_and_let_in_afterwards() {
    let dir = TempDir::new().unwrap();
    let lock = lock_dir(dir.path()).unwrap();
    // flock counts open files, so the same process stands for another one.
    let Err(DiskError::Held { holder, .. }) = lock_dir(dir.path()) else { panic!("must be held") };
    assert_eq!(holder, std::process::id().to_string());
    assert!(is_held(dir.path()));
    drop(lock);
    assert!(!is_held(dir.path()) && !is_held(&dir.path().join("missing")));
    drop(lock_dir(dir.path()).unwrap());
}

#[test]
fn the_disk_is_measured_within_its_time() {
    let dir = TempDir::new().unwrap();
    let times = measure(dir.path()).unwrap();
    assert!(times.rounds > 0 && times.p50_us <= times.p99_us);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_goes_while_it_is_opened_is_gone_and_no_trouble() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_owned();
    on_a_core(async move {
        let (opened, _) = open(&path).await;
        start(&opened.disk);
        let file = opened.disk.folder().join("some.keys");
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (coming, ended) = (file.clone(), over.clone());
        let comes_and_goes = std::thread::spawn(move || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                fs::write(&coming, [7; 64]).expect("it can be written");
                fs::remove_file(&coming).expect("it was written just now");
            }
        });
        let (mut here, mut gone) = (0, 0);
        while here + gone < 3_000 {
            match opened.disk.read_beside("some.keys", 0, 64).await.expect("gone or whole") {
                Some(_) => here += 1,
                None => gone += 1,
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        comes_and_goes.join().expect("it does not panic");
        assert!(here > 0 && gone > 0, "{here} {gone}");
        opened.disk.close().await;
    });
}
