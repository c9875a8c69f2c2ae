//! Key files: what is put in is found, what is not is not, damage is seen, and filters seldom err.

use std::convert::Infallible;

use super::*;
use crate::ids::{AskerId, Fingerprint};

fn key(number: u64) -> Key {
    let mut key = Key([0; 16]);
    key.0.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    key
}

fn entry(number: u64, lsn: u64) -> Entry {
    Entry::finished(key(number), &Fingerprint([number as u8; 32]), &AskerId([3; 16]), Lsn(lsn), number.is_multiple_of(7))
}

fn owner() -> Owner {
    Owner { worker_id: "w".to_owned(), generation: 1, shard: 0, salt: Salt([9; 32]) }
}

fn file(mut list: Vec<Entry>) -> (KeyMap, Vec<u8>) {
    sort(&mut list);
    let mut bytes = Vec::new();
    let mut take = |piece: &[u8]| -> Result<(), Infallible> {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let mut writer = Writer::new(Lsn(1), Lsn(100), list.len() as u64);
    for entry in &list {
        let Ok(()) = writer.push(entry, &mut take);
    }
    let Ok(map) = writer.finish(&mut take);
    let Ok(()) = map.tail(&owner(), &mut take);
    (map, bytes)
}

fn open(bytes: &[u8]) -> Result<KeyMap, Unfit> {
    let footer = Footer::decode(&bytes[bytes.len().saturating_sub(PAGE_BYTES)..], &owner(), bytes.len() as u64)?;
    let mut rest = &bytes[footer.map_at() as usize..];
    footer.read_map(|piece| {
        let (now, later) = rest.split_at(piece.len());
        piece.copy_from_slice(now);
        rest = later;
        Ok(())
    })
}

fn look(map: &KeyMap, bytes: &[u8], key: &Key) -> Result<Option<Entry>, Unfit> {
    for page in map.pages_for(key) {
        let at = page as usize * PAGE_BYTES;
        if let Some(entry) = find(&bytes[at..at + PAGE_BYTES], page, key)? {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

#[test]
fn what_is_put_in_is_found_and_hardly_anything_else_is_looked_for() {
    for count in [0, 1, 101, 102, 103, 30_000] {
        let (written, bytes) = file((0..count).map(|number| entry(number, number + 5)).collect());
        let map = open(&bytes).unwrap();
        assert_eq!(map.facts(), written.facts());
        assert_eq!((map.facts().count, map.facts().answers), (count, count.div_ceil(7)));
        for number in 0..count {
            assert!(map.may_hold(&key(number)));
            assert_eq!(look(&map, &bytes, &key(number)), Ok(Some(entry(number, number + 5))));
        }
        let strangers = (count..count + 20_000).filter(|number| map.may_hold(&key(*number)));
        assert!(strangers.count() <= 60, "the filter errs too often");
        assert_eq!(look(&map, &bytes, &key(count + 1)), Ok(None));
    }
}

#[test]
fn keys_that_begin_alike_are_found_over_the_edge_of_a_page() {
    let alike = |number: u64| {
        let mut key = Key([5; 16]);
        key.0[8..].copy_from_slice(&number.to_be_bytes());
        Entry::finished(key, &Fingerprint([1; 32]), &AskerId([3; 16]), Lsn(number + 1), false)
    };
    let (map, bytes) = file((0..300).map(alike).chain((0..300).map(|number| entry(number, 1))).collect());
    for number in 0..300 {
        assert_eq!(look(&map, &bytes, &alike(number).key), Ok(Some(alike(number))));
    }
}

#[test]
fn of_two_entries_of_a_key_the_newer_stays_and_none_below_the_floor() {
    let list = |list: &[(u64, u64)]| {
        let mut list: Vec<Entry> = list.iter().map(|(number, lsn)| entry(*number, *lsn)).collect();
        sort(&mut list);
        list
    };
    let (older, newer) = (list(&[(1, 10), (2, 11), (3, 12), (4, 3), (1, 2)]), list(&[(2, 21), (5, 22), (6, 4)]));
    let ok = |list: Vec<Entry>| list.into_iter().map(Ok::<Entry, Infallible>);
    let merged: Vec<Entry> = Merge::new([ok(older), ok(newer)], Lsn(5)).map(|Ok(entry)| entry).collect();
    assert_eq!(merged, list(&[(1, 10), (2, 21), (3, 12), (5, 22)]));
}

#[test]
fn a_changed_byte_is_seen_wherever_it_stands() {
    let (_, bytes) = file((0..500).map(|number| entry(number, number)).collect());
    for at in (0..bytes.len()).step_by(13) {
        let mut bent = bytes.clone();
        bent[at] ^= 0x20;
        let found = open(&bent).and_then(|map| {
            for page in 0..map.pages() {
                entries(&bent[page as usize * PAGE_BYTES..][..PAGE_BYTES], page)?;
            }
            Ok(())
        });
        assert!(found.is_err(), "byte {at} of {}", bytes.len());
    }
    assert!(open(&bytes[..bytes.len() - PAGE_BYTES]).is_err());
    assert!(open(&[]).is_err());
}

#[test]
fn files_are_merged_so_that_no_more_than_so_many_are_left_and_keys_are_moved_seldom() {
    let mut files: Vec<u64> = Vec::new();
    let (mut moved, units) = (0, 1000);
    for _ in 0..units {
        files.push(1);
        while let Some(at) = to_merge(&files, 8) {
            let together = files.split_off(at).iter().sum();
            files.push(together);
            moved += together;
        }
        assert!(files.len() <= 8);
    }
    assert_eq!(files.iter().sum::<u64>(), units);
    assert!(moved < 5 * units, "each key is moved {} times", moved / units);
}
