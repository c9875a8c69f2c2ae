use anyhow::{Context, Result, ensure};

use super::super::record::tests::head;
use super::*;

const ROOMY: u64 = 1 << 20;

fn open(dir: &Path, bytes_max: u64) -> Result<Store> {
    Ok(Store::open(dir, bytes_max, Arc::default())?)
}

fn letter(id: &str, size: usize, told: bool) -> (Head, Bytes) {
    (Head { told, ..head(id) }, Bytes::from(vec![b'x'; size]))
}

fn subjects() -> Vec<Text> {
    vec![Text::from_static("caf.exec.dlq.v1")]
}

fn ids(store: &Store) -> Vec<String> {
    store.waiting(None, &subjects(), usize::MAX, u64::MAX).into_iter().map(|kept| kept.head.id).collect()
}

fn places(store: &Store) -> Vec<Place> {
    store.waiting(None, &subjects(), usize::MAX, u64::MAX).into_iter().map(|kept| kept.place).collect()
}

#[test]
fn letters_are_kept_once_over_restarts_and_gone_when_sent() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut store = open(dir.path(), ROOMY)?;
    let letters = [letter("a", 10, true), letter("b", 20, false), letter("a", 10, true)];
    ensure!(store.keep(&letters).iter().all(Result::is_ok));
    ensure!(store.keep(&letters[..1]).iter().all(Result::is_ok), "known: nothing to do");
    let mut store = open(dir.path(), ROOMY)?;
    assert_eq!(ids(&store), ["a", "b"]);
    let read = store.waiting(None, &subjects(), 1, ROOMY);
    assert_eq!((read.len(), &read[0].body[..]), (1, &[b'x'; 10][..]));
    assert_eq!(store.waiting(Some(read[0].place), &subjects(), 9, ROOMY).len(), 1, "the rest");
    ensure!(store.waiting(None, &[Text::from_static("other")], 9, ROOMY).is_empty(), "no stream takes that");
    store.sent(&[read[0].place])?;
    let mut store = open(dir.path(), ROOMY)?;
    assert_eq!(ids(&store), ["b"]);
    let left = places(&store);
    store.sent(&left)?;
    ensure!(shelf::numbers(dir.path())?.is_empty(), "the files went with their last letter");
    ensure!(fs::read_dir(dir.path())?.next().is_none(), "and so did the marks");
    Ok(())
}

#[test]
fn a_file_cut_anywhere_keeps_every_whole_letter_and_takes_new_ones() -> Result<()> {
    let dir = tempfile::tempdir()?;
    open(dir.path(), ROOMY)?.keep(&[letter("a", 5, true), letter("b", 5, true)]);
    let path = shelf::letters_path(dir.path(), 1);
    let whole = fs::read(&path)?;
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end])?;
        let mut store = open(dir.path(), ROOMY)?;
        let before = ids(&store);
        ensure!(store.keep(&[letter("c", 5, true)]) == [Ok(())]);
        let mut after = before.clone();
        after.push("c".to_owned());
        assert_eq!(ids(&open(dir.path(), ROOMY)?), after, "cut at {end}");
        for number in shelf::numbers(dir.path())? {
            fs::remove_file(shelf::letters_path(dir.path(), number))?;
        }
    }
    Ok(())
}

#[test]
fn a_full_store_lets_the_oldest_told_letters_go_and_no_others() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut store = open(dir.path(), 64 << 10)?;
    ensure!(store.keep(&[letter("untold", 1_000, false)]) == [Ok(())]);
    for n in 0..200 {
        ensure!(store.keep(&[letter(&format!("told-{n}"), 1_000, true)]) == [Ok(())], "letter {n}");
    }
    let left = ids(&store);
    ensure!(left.contains(&"untold".to_owned()), "nobody had that one: {left:?}");
    ensure!(left.contains(&"told-199".to_owned()) && !left.contains(&"told-0".to_owned()), "{left:?}");
    ensure!(left.len() > 30, "a good part of the budget is in use: {left:?}");
    let dropped = store.status.dropped.load(Relaxed) as usize;
    assert_eq!(dropped + left.len(), 201, "each is here or counted");
    ensure!(store.used() <= 64 << 10);
    assert_eq!(ids(&open(dir.path(), 64 << 10)?), left);
    Ok(())
}

#[test]
fn what_nobody_has_had_is_refused_when_full_and_taken_when_there_is_room() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut store = open(dir.path(), 64 << 10)?;
    let mut kept = Vec::new();
    let refused = loop {
        let id = format!("{}", kept.len());
        match &store.keep(&[letter(&id, 1_000, false)])[..] {
            [Ok(())] => kept.push(id),
            [Err(refusal)] => break refusal.clone(),
            _ => anyhow::bail!("one verdict for one letter"),
        }
        ensure!(kept.len() < 100, "the budget holds");
    };
    assert_eq!(refused, Refusal::Full);
    ensure!(store.status.complaint().context("it is full")?.contains("dlq.bytes_max"));
    assert_eq!(ids(&store), kept);
    let first: Vec<Place> = places(&store).into_iter().step_by(2).collect();
    store.sent(&first)?;
    ensure!(store.keep(&[letter("late", 1_000, false)]) == [Ok(())], "what was sent makes room");
    let left = ids(&open(dir.path(), 64 << 10)?);
    assert_eq!(left.len(), kept.len() - first.len() + 1);
    ensure!(store.status.dropped.load(Relaxed) == 0);
    Ok(())
}

#[test]
fn a_crash_while_letters_are_moved_shows_each_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    open(dir.path(), ROOMY)?.keep(&[letter("a", 5, true), letter("b", 5, true)]);
    fs::copy(shelf::letters_path(dir.path(), 1), shelf::letters_path(dir.path(), 2))?;
    let store = open(dir.path(), ROOMY)?;
    assert_eq!(ids(&store), ["a", "b"]);
    assert_eq!(shelf::numbers(dir.path())?, [1], "the copy went");
    Ok(())
}

#[test]
fn a_damaged_file_is_left_as_it_is() -> Result<()> {
    let dir = tempfile::tempdir()?;
    open(dir.path(), ROOMY)?.keep(&[letter("a", 50, true), letter("b", 50, true), letter("c", 50, true)]);
    let path = shelf::letters_path(dir.path(), 1);
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes)?;
    let mut store = open(dir.path(), ROOMY)?;
    assert_eq!(ids(&store), ["a", "c"]);
    let left = places(&store);
    store.sent(&left)?;
    ensure!(fs::read(&path)? == bytes, "its bytes are for whoever can mend it");
    ensure!(ids(&open(dir.path(), ROOMY)?).is_empty(), "and what was sent stays sent");
    Ok(())
}

#[test]
fn a_folder_that_cannot_be_written_refuses_and_says_why() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("dlq");
    let mut store = open(&folder, ROOMY)?;
    fs::remove_dir(&folder)?;
    fs::write(&folder, "")?;
    let verdicts = store.keep(&[letter("a", 5, false)]);
    ensure!(matches!(verdicts[..], [Err(Refusal::Disk(_))]), "{verdicts:?}");
    ensure!(store.status.complaint().context("a complaint")?.contains("wait in the journal"));
    fs::remove_file(&folder)?;
    fs::create_dir(&folder)?;
    ensure!(store.keep(&[letter("a", 5, false)]) == [Ok(())]);
    ensure!(store.status.complaint().is_none());
    Ok(())
}
