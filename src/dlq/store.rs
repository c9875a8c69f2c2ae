//! What the clerk does to the files: letters are added and synced, marked when a stream has them, and make room for others.
//!
//! When the budget is used up, room is made in this order: by leaving out what has been sent; by letting the oldest letters go
//! that have been told (published where nothing confirms it, printed by `run`, or a call answered). What nobody can have had never
//! goes: then a new letter is refused, and waits in the journal. Single writer: whoever holds the storage folder's lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use shards::ids::Text;

use super::record::{self, FILE_HEAD_BYTES, FRAME_BYTES, Frame, Head, MARK_BYTES, Why};
use super::shelf::{self, Contents};
use super::{DlqStatus, SHELF_BYTES_MAX, SHELVES_MIN};

/// Where a letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    shelf: u32,
    at: u64,
}

/// A letter read back.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Where it is.
    pub place: Place,
    /// What is known of it.
    pub head: Head,
    /// It, as it is sent.
    pub body: Bytes,
}

/// Why a letter was not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No room, and none to be made.
    #[error("no room within dlq.bytes_max")]
    Full,
    /// The disk.
    #[error("{0}")]
    Disk(String),
}

/// The files and what is in them. Lives on the clerk's thread.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    bytes_max: u64,
    shelves: BTreeMap<u32, Shelf>,
    /// By the hash of their ids: the letters that are here.
    ids: HashMap<u128, Place>,
    /// Subjects, with how many letters of each wait.
    subjects: Vec<(Text, u64)>,
    by_subject: HashMap<Text, u32>,
    /// The shelf that is written to.
    active: Option<(u32, File)>,
    status: Arc<DlqStatus>,
    failed: Option<String>,
}

#[derive(Debug, Default)]
struct Shelf {
    slots: Vec<Slot>,
    /// Bytes of letters and of marks.
    bytes: u64,
    marks_bytes: u64,
    /// Something in it cannot be read: the file stays as it is.
    untouched: bool,
}

impl Shelf {
    /// Bytes of its letters in such a state.
    fn bytes_of(&self, of: fn(State) -> bool) -> u64 {
        self.slots.iter().filter(|slot| of(slot.state)).map(|slot| slot.bytes).sum()
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    at: u64,
    bytes: u64,
    id: u128,
    subject: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It waits for a stream.
    Waiting { told: bool },
    /// No server takes it whole.
    Kept,
    /// A stream has it.
    Sent,
}

impl Store {
    /// Opens the store in `folder`, which is made.
    ///
    /// # Errors
    /// The folder or a file cannot be used.
    pub fn open(folder: &Path, bytes_max: u64, status: Arc<DlqStatus>) -> io::Result<Store> {
        fs::create_dir_all(folder)?;
        status.bytes_max.store(bytes_max, Relaxed);
        let mut store = Store {
            folder: folder.to_owned(),
            bytes_max,
            shelves: BTreeMap::new(),
            ids: HashMap::new(),
            subjects: Vec::new(),
            by_subject: HashMap::new(),
            active: None,
            status,
            failed: None,
        };
        for number in shelf::numbers(folder)? {
            let contents = Contents::read(folder, number)?;
            let untouched = contents.newer.is_some() || !contents.damage.is_empty();
            if untouched {
                let path = shelf::letters_path(folder, number);
                tracing::error!(
                    path = %path.display(), newer = contents.newer, damage = ?contents.damage,
                    "not all of this file of dead letters can be read: it is left as it is, `endstation dlq ls` says more"
                );
            }
            let mut on_shelf =
                Shelf { bytes: contents.raw.len() as u64, marks_bytes: contents.marks_bytes, untouched, ..Shelf::default() };
            for letter in &contents.letters {
                let id = id_hash(&letter.head.id);
                let place = Place { shelf: number, at: letter.at };
                // A crash while letters were moved leaves some twice.
                let state = if letter.sent || store.ids.contains_key(&id) { State::Sent } else { state_of(&letter.head) };
                if state != State::Sent {
                    store.ids.insert(id, place);
                }
                let subject = store.subject(&letter.head.subject);
                store.count(subject, state, 1);
                on_shelf.slots.push(Slot { at: letter.at, bytes: letter.bytes, id, subject, state });
            }
            store.shelves.insert(number, on_shelf);
        }
        let numbers: Vec<u32> = store.shelves.keys().copied().collect();
        for number in numbers {
            store.remove_if_done(number)?;
        }
        store.show();
        Ok(store)
    }

    /// Stores letters; each is durable when this returns, or refused. One that is here already is not stored again.
    pub fn keep(&mut self, letters: &[(Head, Bytes)]) -> Vec<Result<(), Refusal>> {
        let mut batch = Batch { verdicts: vec![Ok(()); letters.len()], ..Batch::default() };
        for (index, (head, body)) in letters.iter().enumerate() {
            let id = id_hash(&head.id);
            if self.ids.contains_key(&id) {
                continue;
            }
            if !batch.ids.insert(id) {
                // Whatever becomes of the first.
                batch.twins.push((index, id));
                continue;
            }
            if let Err(refusal) = self.put(index, id, head, body, &mut batch) {
                batch.verdicts[index] = Err(refusal);
            }
        }
        self.write_out(&mut batch);
        for (index, id) in std::mem::take(&mut batch.twins) {
            if !self.ids.contains_key(&id) {
                batch.verdicts[index] = Err(Refusal::Full);
            }
        }
        let refused = batch.verdicts.iter().filter(|verdict| verdict.is_err()).count();
        self.status.refused.fetch_add(refused as u64, Relaxed);
        self.failed = batch.verdicts.iter().rev().find_map(|verdict| match verdict {
            Err(Refusal::Disk(why)) => Some(why.clone()),
            _ => None,
        });
        self.show();
        batch.verdicts
    }

    /// Up to so many letters, and bytes, that wait for a stream over one of `subjects`, the oldest after `after` first.
    pub fn waiting(&self, after: Option<Place>, subjects: &[Text], count_max: usize, bytes_max: u64) -> Vec<Kept> {
        let wanted: Vec<bool> = self.subjects.iter().map(|(subject, _)| subjects.contains(subject)).collect();
        let (mut found, mut bytes) = (Vec::new(), 0);
        let first = after.map_or(0, |place| place.shelf);
        for (number, on_shelf) in self.shelves.range(first..) {
            let after_at = after.filter(|place| place.shelf == *number).map(|place| place.at);
            let mut file = None;
            for slot in &on_shelf.slots {
                let waits = matches!(slot.state, State::Waiting { .. }) && wanted.get(slot.subject as usize) == Some(&true);
                if !waits || after_at.is_some_and(|at| slot.at <= at) {
                    continue;
                }
                if found.len() >= count_max || (bytes + slot.bytes > bytes_max && !found.is_empty()) {
                    return found;
                }
                match read_back(&self.folder, *number, slot, &mut file) {
                    Ok(kept) => {
                        bytes += slot.bytes;
                        found.push(kept);
                    }
                    Err(error) => {
                        let path = shelf::letters_path(&self.folder, *number);
                        tracing::error!(path = %path.display(), at = slot.at, %error, "a dead letter cannot be read back");
                    }
                }
            }
        }
        found
    }

    /// A stream has these.
    ///
    /// # Errors
    /// That could not be noted: they are sent again.
    pub fn sent(&mut self, places: &[Place]) -> io::Result<()> {
        let mut by_shelf: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for place in places {
            by_shelf.entry(place.shelf).or_default().push(place.at);
        }
        for (number, ats) in by_shelf {
            let Some(on_shelf) = self.shelves.get_mut(&number) else { continue };
            let mut marks = Vec::with_capacity(ats.len() * MARK_BYTES);
            let mut done = Vec::new();
            for at in ats {
                if let Ok(index) = on_shelf.slots.binary_search_by_key(&at, |slot| slot.at)
                    && on_shelf.slots[index].state != State::Sent
                {
                    marks.extend(record::mark(at));
                    let slot = &mut on_shelf.slots[index];
                    done.push((slot.subject, std::mem::replace(&mut slot.state, State::Sent), slot.id));
                }
            }
            on_shelf.marks_bytes += marks.len() as u64;
            for (subject, state, id) in done {
                self.ids.remove(&id);
                self.count(subject, state, -1);
                self.status.sent.fetch_add(1, Relaxed);
            }
            let mut file = OpenOptions::new().create(true).append(true).open(shelf::marks_path(&self.folder, number))?;
            file.write_all(&marks)?;
            self.remove_if_done(number)?;
        }
        self.show();
        Ok(())
    }

    /// Letters that are here and not sent.
    pub fn live(&self) -> usize {
        self.ids.len()
    }

    fn put(&mut self, index: usize, id: u128, head: &Head, body: &Bytes, batch: &mut Batch) -> Result<(), Refusal> {
        let mut bytes = Vec::with_capacity(body.len() + 1_024);
        record::write(&mut bytes, head, body);
        let size = bytes.len() as u64;
        let full = |batch: &Batch, used: u64| used + batch.bytes.len() as u64 + size > self.shelf_bytes();
        if self.active.as_ref().is_some_and(|(number, _)| full(batch, self.shelves[number].bytes)) {
            self.write_out(batch);
            self.active = None;
        }
        while self.used() + batch.bytes.len() as u64 + size + FILE_HEAD_BYTES as u64 > self.bytes_max {
            self.write_out(batch);
            if !self.make_room().map_err(disk)? {
                return Err(Refusal::Full);
            }
        }
        if self.active.is_none() {
            self.active = Some(self.begin_shelf().map_err(disk)?);
        }
        let subject = self.subject(&head.subject);
        let number = self.active.as_ref().map_or(0, |(number, _)| *number);
        let at = self.shelves.get(&number).map_or(0, |on_shelf| on_shelf.bytes) + batch.bytes.len() as u64;
        batch.bytes.extend(bytes);
        batch.slots.push((index, Slot { at, bytes: size, id, subject, state: state_of(head) }));
        Ok(())
    }

    /// Writes and syncs what was put; where that fails the file is left behind, and nothing of it counts.
    fn write_out(&mut self, batch: &mut Batch) {
        let (bytes, slots) = (std::mem::take(&mut batch.bytes), std::mem::take(&mut batch.slots));
        if slots.is_empty() {
            return;
        }
        let Some((number, file)) = &mut self.active else { return };
        let number = *number;
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        let Some(on_shelf) = self.shelves.get_mut(&number) else { return };
        if let Err(error) = written {
            // A failed sync is never retried on the same file: another could confirm what is lost.
            let _ = file.set_len(on_shelf.bytes);
            self.active = None;
            for (index, _) in slots {
                batch.verdicts[index] = Err(disk(error_again(&error)));
            }
            let _ = self.remove_if_done(number);
            return;
        }
        on_shelf.bytes += bytes.len() as u64;
        for (_, slot) in slots {
            self.ids.insert(slot.id, Place { shelf: number, at: slot.at });
            self.shelves.get_mut(&number).expect("looked up above").slots.push(slot);
            self.count(slot.subject, slot.state, 1);
            self.status.stored.fetch_add(1, Relaxed);
        }
    }

    /// Makes some room if any can be made.
    fn make_room(&mut self) -> io::Result<bool> {
        let is_sent = |state| state == State::Sent;
        let is_told = |state| matches!(state, State::Waiting { told: true } | State::Kept);
        let whole = || self.shelves.iter().filter(|(_, on_shelf)| !on_shelf.untouched);
        // The one that gives most: each costs a copy of what stays.
        let most =
            whole().max_by_key(|(_, on_shelf)| on_shelf.bytes_of(is_sent)).filter(|(_, on_shelf)| on_shelf.bytes_of(is_sent) > 0);
        if let Some(number) = most.map(|(number, _)| *number) {
            return self.thin(number, is_sent).map(|()| true);
        }
        let oldest = whole().find(|(_, on_shelf)| on_shelf.bytes_of(is_told) > 0).map(|(number, _)| *number);
        match oldest {
            Some(number) => self.thin(number, is_told).map(|()| true),
            None => Ok(false),
        }
    }

    /// Writes a shelf anew without some of its letters.
    fn thin(&mut self, number: u32, leave_out: fn(State) -> bool) -> io::Result<()> {
        if self.active.as_ref().is_some_and(|(active, _)| *active == number) {
            self.active = None;
        }
        let Some(old) = self.shelves.get(&number) else { return Ok(()) };
        let (out, stay): (Vec<Slot>, Vec<Slot>) = old.slots.iter().partition(|slot| leave_out(slot.state));
        if !stay.is_empty() {
            let (anew, mut file) = self.begin_shelf()?;
            let from = File::open(shelf::letters_path(&self.folder, number))?;
            let mut bytes = Vec::new();
            let mut moved = Vec::new();
            for slot in stay {
                let at = FILE_HEAD_BYTES as u64 + bytes.len() as u64;
                let begin = bytes.len();
                bytes.resize(begin + slot.bytes as usize, 0);
                from.read_exact_at(&mut bytes[begin..], slot.at)?;
                moved.push(Slot { at, ..slot });
            }
            file.write_all(&bytes)?;
            file.sync_data()?;
            let new = self.shelves.get_mut(&anew).expect("made above");
            new.bytes += bytes.len() as u64;
            for slot in moved.iter().filter(|slot| slot.state != State::Sent) {
                self.ids.insert(slot.id, Place { shelf: anew, at: slot.at });
            }
            new.slots = moved;
        }
        for slot in out.iter().filter(|slot| slot.state != State::Sent) {
            self.ids.remove(&slot.id);
            self.count(slot.subject, slot.state, -1);
            self.status.dropped.fetch_add(1, Relaxed);
        }
        self.remove(number)
    }

    fn begin_shelf(&mut self) -> io::Result<(u32, File)> {
        let number = self.shelves.last_key_value().map_or(1, |(number, _)| number + 1);
        let path = shelf::letters_path(&self.folder, number);
        let mut file = OpenOptions::new().create_new(true).append(true).open(path)?;
        file.write_all(&record::file_head())?;
        file.sync_all()?;
        self.sync_folder()?;
        self.shelves.insert(number, Shelf { bytes: FILE_HEAD_BYTES as u64, ..Shelf::default() });
        Ok((number, file))
    }

    /// A shelf of which every letter was sent goes.
    fn remove_if_done(&mut self, number: u32) -> io::Result<()> {
        let done = self
            .shelves
            .get(&number)
            .is_some_and(|on_shelf| !on_shelf.untouched && on_shelf.slots.iter().all(|slot| slot.state == State::Sent));
        if !done {
            return Ok(());
        }
        if self.active.as_ref().is_some_and(|(active, _)| *active == number) {
            self.active = None;
        }
        self.remove(number)
    }

    /// The marks go last: without them the letters would be sent again.
    fn remove(&mut self, number: u32) -> io::Result<()> {
        fs::remove_file(shelf::letters_path(&self.folder, number))?;
        self.shelves.remove(&number);
        self.sync_folder()?;
        match fs::remove_file(shelf::marks_path(&self.folder, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn used(&self) -> u64 {
        self.shelves.values().map(|on_shelf| on_shelf.bytes + on_shelf.marks_bytes).sum()
    }

    fn shelf_bytes(&self) -> u64 {
        (self.bytes_max / SHELVES_MIN).min(SHELF_BYTES_MAX)
    }

    fn subject(&mut self, subject: &str) -> u32 {
        if let Some(index) = self.by_subject.get(subject) {
            return *index;
        }
        let (text, index) = (Text::from(subject.to_owned()), self.subjects.len() as u32);
        self.subjects.push((text.clone(), 0));
        self.by_subject.insert(text, index);
        index
    }

    fn count(&mut self, subject: u32, state: State, change: i64) {
        if let (State::Waiting { .. }, Some((_, waiting))) = (state, self.subjects.get_mut(subject as usize)) {
            *waiting = waiting.saturating_add_signed(change);
        }
    }

    fn show(&self) {
        let waiting: u64 = self.subjects.iter().map(|(_, waiting)| waiting).sum();
        self.status.waiting.store(waiting, Relaxed);
        self.status.bytes.store(self.used(), Relaxed);
        let subjects = self.subjects.iter().filter(|(_, waiting)| *waiting > 0).map(|(subject, _)| subject.clone());
        self.status.show(subjects.collect(), self.failed.clone());
    }
}

/// Letters on their way to the disk.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// With the index of each among the letters that came.
    slots: Vec<(usize, Slot)>,
    ids: HashSet<u128>,
    twins: Vec<(usize, u128)>,
    verdicts: Vec<Result<(), Refusal>>,
}

fn state_of(head: &Head) -> State {
    match head.why {
        Why::TooLarge => State::Kept,
        _ => State::Waiting { told: head.told },
    }
}

fn id_hash(id: &str) -> u128 {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    u128::from_le_bytes(short)
}

fn read_back(folder: &Path, number: u32, slot: &Slot, file: &mut Option<File>) -> io::Result<Kept> {
    let file = match file {
        Some(file) => file,
        None => file.insert(File::open(shelf::letters_path(folder, number))?),
    };
    let mut bytes = vec![0; slot.bytes as usize];
    file.read_exact_at(&mut bytes, slot.at)?;
    let changed = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not as it was written");
    let frame = Frame::read(&bytes).map_err(changed)?;
    let body_at = FRAME_BYTES + frame.head_bytes as usize;
    let head = frame.head(&bytes[FRAME_BYTES..body_at.min(bytes.len())]).map_err(changed)?;
    let body = Bytes::from(bytes).slice(body_at..);
    if !frame.body_holds(&body) {
        return Err(changed(record::Broken::Foreign));
    }
    Ok(Kept { place: Place { shelf: number, at: slot.at }, head, body })
}

fn disk(error: io::Error) -> Refusal {
    Refusal::Disk(error.to_string())
}

fn error_again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests;
