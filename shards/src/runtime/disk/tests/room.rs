//! A disk that fills up and has room again: a small tmpfs, filled by another file. Skipped where nothing may be mounted.

use std::process::Command;
use std::time::Duration;

use super::*;

/// A file system of 9 MiB that goes with this value.
struct Small(TempDir);

impl Small {
    fn new(test: &str) -> Option<Small> {
        let dir = TempDir::new().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=9m", "none"]).arg(dir.path()).status();
        if mount.is_ok_and(|status| status.success()) {
            return Some(Small(dir));
        }
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: {test} needs the right to mount a tmpfs");
        }
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Takes all the room there is.
fn fill(dir: &Path) -> PathBuf {
    let ballast = dir.join("ballast");
    let file = OpenOptions::new().append(true).create(true).open(&ballast).unwrap();
    let mut at = file.metadata().unwrap().len();
    for piece in [1 << 20, 4096] {
        while let Ok(written @ 1..) = file.write_at(&vec![1; piece], at) {
            at += written as u64;
        }
    }
    ballast
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if what() {
            return;
        }
        glommio::timer::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never came");
}

async fn next(disk: &Disk) -> News {
    loop {
        match disk.news().await {
            News::MarkDue | News::Durable { .. } => {}
            news => return news,
        }
    }
}

#[test]
fn what_runs_ends_in_the_reserve_of_a_full_disk_and_the_rest_waits_for_room() {
    let Some(small) = Small::new("what_runs_ends_in_the_reserve_of_a_full_disk_and_the_rest_waits_for_room") else { return };
    let path = small.path();
    on_a_core(async move {
        let disk = open(&path).await.0.disk;
        start(&disk);
        until(|| disk.reserve_bytes() == 2 << 20).await;
        let ballast = fill(&path);
        let mut news = Vec::new();
        for at_ms in 1..=4 {
            let lsn = append_large(&disk, at_ms, 400_000);
            news.extend(durable(&disk, lsn).await);
        }
        let full = next(&disk).await;
        assert!(news.is_empty() && matches!(full, News::Disk(DiskNews::Full)), "told while half a segment is left: {full:?}");
        let lsn = append_large(&disk, 5, 1_000_000);
        let news = durable(&disk, lsn).await;
        assert!(matches!(news[..], [DiskNews::Closed { .. }]), "{news:?}");
        assert_eq!(disk.reserve_bytes(), 0, "it is written to");
        let lsn = append_large(&disk, 6, 1_040_000);
        durable(&disk, lsn).await;
        let lsn = append_large(&disk, 7, 800_000);
        glommio::timer::sleep(Duration::from_millis(600)).await;
        assert_eq!(disk.durable(), Lsn(6), "nothing is left");
        fs::remove_file(&ballast).unwrap();
        let began = std::time::Instant::now();
        let news = durable(&disk, lsn).await;
        let took = began.elapsed();
        assert!(matches!(news[..], [DiskNews::Room, DiskNews::Closed { .. }]), "{news:?}");
        assert!(took < Duration::from_secs(1), "{took:?} after there was room");
        assert_eq!(disk.reserve_bytes(), 2 << 20, "and there is a reserve again");
        disk.close().await;
        assert_eq!(open(&path).await.1, [1, 2, 3, 4, 5, 6, 7]);
    });
}

#[test]
fn a_journal_is_opened_on_a_full_disk_again_and_again() {
    let Some(small) = Small::new("a_journal_is_opened_on_a_full_disk_again_and_again") else { return };
    let path = small.path();
    on_a_core(async move {
        let disk = open(&path).await.0.disk;
        start(&disk);
        until(|| disk.reserve_bytes() > 0).await;
        let lsn = append_large(&disk, 1, 1_000_000);
        durable(&disk, lsn).await;
        disk.close().await;
        for life in 2..=3 {
            // Everything that the last life has not used is somebody else's.
            for segment in numbered_segments(&path) {
                let used = fs::read(&segment).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 9);
                OpenOptions::new().write(true).open(&segment).unwrap().set_len(used).unwrap();
            }
            let ballast = fill(&path);
            if life == 3 {
                // The reserve is used up; here is enough for the smallest of segments.
                let ballast = OpenOptions::new().write(true).open(ballast).unwrap();
                ballast.set_len(ballast.metadata().unwrap().len() - (1 << 20) - (16 << 10)).unwrap();
            }
            let (opened, seen) = open(&path).await;
            assert_eq!(seen, (1..life).collect::<Vec<_>>());
            start(&opened.disk);
            assert!(matches!(next(&opened.disk).await, News::Disk(DiskNews::Full)));
            let lsn = append(&opened.disk, life);
            durable(&opened.disk, lsn).await;
            opened.disk.close().await;
        }
        fs::remove_file(path.join("ballast")).unwrap();
        let (opened, seen) = open(&path).await;
        assert_eq!(seen, [1, 2, 3]);
        start(&opened.disk);
        until(|| opened.disk.reserve_bytes() > 0).await;
        assert!(opened.disk.try_news().is_none(), "there is room");
    });
}

#[test]
fn a_first_start_on_a_full_disk_says_what_is_wanted() {
    let Some(small) = Small::new("a_first_start_on_a_full_disk_says_what_is_wanted") else { return };
    let path = small.path();
    on_a_core(async move {
        fill(&path);
        let Err(error) = open_with(settings(&path)).await else { panic!("there is no room") };
        let said = error.to_string();
        assert!(said.contains("no room") && said.contains("storage.dir"), "{said}");
    });
}

fn numbered_segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("1/0")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|ending| ending == "seg")).collect()
}
