//! Real files: what was sealed is found after a boot, whatever was left over is in nobody's way, and what is damaged is not used.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::dedup::Entry;
use crate::fold::Restored;
use crate::ids::{AskerId, Fingerprint, Key, Lsn, Salt, Text};
use crate::keys::PAGE_BYTES;
use crate::limits::KEY_FILES_MAX;

mod scale;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn key(number: u64) -> Key {
    let mut key = Key([0; 16]);
    key.0.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    key
}

fn entry(number: u64) -> Entry {
    Entry::finished(key(number), &Fingerprint([number as u8; 32]), &AskerId([3; 16]), Lsn(number), number.is_multiple_of(7))
}

fn owner() -> Owner {
    Owner { worker_id: "w".to_owned(), generation: 1, shard: 0, salt: Salt([9; 32]) }
}

/// A seal of the keys with these numbers, which are their outcomes' frames, too.
fn seal(from: u64, to: u64, floor: u64) -> Seal {
    let rest = Restored { floor: Lsn(floor), tenants: vec![(Text::from_static("t"), to)], ..Restored::default() };
    let finished = (from..to).map(entry).collect::<Vec<_>>().chunks(100).map(<[Entry]>::to_vec).collect();
    Seal { from: Lsn(from), before: Lsn(to), finished, rest }
}

fn shelf(folder: &Path) -> Shelf {
    Shelf::new(folder.to_owned(), owner(), Vec::new())
}

fn look(folder: &Path) -> std::io::Result<Kept> {
    Shelf::look(folder, &owner()).map(|kept| kept.expect("a snapshot"))
}

fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_sealed_is_found_after_a_boot_in_no_more_than_so_many_files() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(dir.path());
    for round in 0..40 {
        let (sealed, kept) = shelf.seal(seal(1 + round * 250, 251 + round * 250, 0), round, &GO_ON);
        kept.unwrap();
        assert_eq!((sealed.entries.len(), sealed.files.unwrap().last().unwrap().facts().to), (250, Lsn(251 + round * 250)));
    }
    shelf.tidy();
    let Kept { snapshot, files } = look(dir.path()).unwrap();
    assert!(files.len() <= KEY_FILES_MAX);
    assert_eq!(files_in(dir.path()).len(), files.len() + 1, "nothing is left over");
    assert_eq!((snapshot.before, snapshot.segment), (Lsn(10_001), 39));
    assert_eq!(snapshot.rest.tenants, [(Text::from_static("t"), 10_001)]);
    for number in 1..=10_000 {
        assert_eq!(Shelf::find(dir.path(), &files, &key(number)).unwrap(), Some(entry(number)));
    }
    for number in 10_001..12_000 {
        assert_eq!(Shelf::find(dir.path(), &files, &key(number)).unwrap(), None);
    }
}

#[test]
fn keys_below_the_floor_go_with_their_files_and_with_merges() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(dir.path());
    for round in 0..30_u64 {
        let floor = (round * 250).saturating_sub(600);
        shelf.seal(seal(1 + round * 250, 251 + round * 250, floor), round, &GO_ON).1.unwrap();
        let kept: u64 = look(dir.path()).unwrap().files.iter().map(|map| map.facts().count).sum();
        assert!(kept <= 1_100, "{kept} keys are kept where 850 stand above the floor");
    }
}

#[test]
fn a_seal_that_fails_leaves_everything_as_it_was_and_gives_its_keys_back_in_order() {
    let dir = TempDir::new().unwrap();
    let mut shelf = shelf(dir.path());
    shelf.seal(seal(1, 500, 0), 1, &GO_ON).1.unwrap();
    let before = files_in(dir.path());
    let (sealed, kept) = shelf.seal(seal(500, 900, 0), 2, &AtomicBool::new(true));
    assert!(kept.is_err() && sealed.files.is_none());
    assert_eq!(sealed.entries.iter().map(Entry::lsn).collect::<Vec<_>>(), (500..900).map(Lsn).collect::<Vec<_>>());
    assert_eq!(files_in(dir.path()), before);
    assert_eq!(look(dir.path()).unwrap().snapshot.before, Lsn(500));
    shelf.seal(seal(500, 1000, 0), 2, &GO_ON).1.unwrap();
    assert_eq!(look(dir.path()).unwrap().snapshot.before, Lsn(1000));
}

#[test]
fn what_is_left_over_from_a_death_is_removed() {
    let dir = TempDir::new().unwrap();
    let mut first = shelf(dir.path());
    first.seal(seal(1, 500, 0), 1, &GO_ON).1.unwrap();
    let sound = files_in(dir.path());
    // Died with a key file that no snapshot names, and with half of another.
    for name in ["00000000000000000500-00000000000000000900.keys", "snapshot.part", "1-2.keys.part"] {
        fs::write(dir.path().join(name), b"half").unwrap();
    }
    let Kept { files, .. } = look(dir.path()).unwrap();
    Shelf::new(dir.path().to_owned(), owner(), files).tidy();
    assert_eq!(files_in(dir.path()), sound);
    shelf(dir.path()).tidy();
    assert!(files_in(dir.path()).is_empty(), "of what is not used nothing is kept");
}

#[test]
fn damage_another_owner_and_a_missing_file_are_reasons_to_read_the_segments() {
    let dir = TempDir::new().unwrap();
    shelf(dir.path()).seal(seal(1, 1000, 0), 1, &GO_ON).1.unwrap();
    for other in [
        Owner { worker_id: "v".to_owned(), ..owner() },
        Owner { generation: 2, ..owner() },
        Owner { shard: 1, ..owner() },
        Owner { salt: Salt([8; 32]), ..owner() },
    ] {
        Shelf::look(dir.path(), &other).unwrap_err();
    }
    for name in files_in(dir.path()) {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        // Pages are checked when they are read.
        let pages = if path.extension().is_some() { 10 * PAGE_BYTES } else { 0 };
        for at in (pages..whole.len()).step_by(97) {
            let mut bent = whole.clone();
            bent[at] ^= 4;
            fs::write(&path, &bent).unwrap();
            look(dir.path()).unwrap_err();
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        look(dir.path()).unwrap_err();
        fs::write(&path, &whole).unwrap();
    }
    let files = look(dir.path()).unwrap().files;
    let path = dir.path().join(files[0].facts().name());
    let mut bent = fs::read(&path).unwrap();
    bent[..10 * PAGE_BYTES].fill(0);
    fs::write(&path, &bent).unwrap();
    Shelf::find(dir.path(), &files, &key(5)).unwrap_err();
    fs::remove_file(&path).unwrap();
    look(dir.path()).unwrap_err();
}
