//! Key files and the snapshot in a shard's folder. Every step of a seal leaves something whole: a file is written under another
//! name, synced, and renamed; what counts is what the snapshot names, and it is renamed last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crate::dedup::Entry;
use crate::event::Sealed;
use crate::fold::Restored;
use crate::ids::{Key, Lsn};
use crate::keys::{self, Facts, Footer, KeyMap, Merge, Owner, PAGE_BYTES, PIECE_BYTES, Unfit, Writer};
use crate::limits::KEY_FILES_MAX;
use crate::snapshot::{self, Seal, Snapshot};

const SNAPSHOT: &str = "snapshot";
const KEYS_SUFFIX: &str = ".keys";
const UNFINISHED: &str = ".part";
/// Files are written in pieces of this size, in bytes.
const WRITE_BYTES: usize = 1 << 20;
/// Pages that are read at once while files are merged.
const PAGES_AT_ONCE: u64 = 64;

/// The key files of one shard. Lives on the sealer's thread.
#[derive(Debug)]
pub struct Shelf {
    folder: PathBuf,
    owner: Owner,
    /// Oldest first.
    files: Vec<Arc<KeyMap>>,
}

/// What an earlier life kept.
#[derive(Debug)]
pub struct Kept {
    /// What it knew.
    pub snapshot: Snapshot,
    /// Its key files, oldest first.
    pub files: Vec<Arc<KeyMap>>,
}

impl Shelf {
    pub(super) fn new(folder: PathBuf, owner: Owner, files: Vec<Arc<KeyMap>>) -> Shelf {
        Shelf { folder, owner, files }
    }

    /// What the newest snapshot in `folder` says, with the key files it names; none where there is no snapshot. Nothing is changed.
    ///
    /// # Errors
    /// Something of it cannot be read or used: the segments have to be read instead.
    pub fn look(folder: &Path, owner: &Owner) -> io::Result<Option<Kept>> {
        let bytes = match fs::read(folder.join(SNAPSHOT)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let snapshot = snapshot::decode(&bytes, owner).map_err(unfit)?;
        let files = snapshot.files.iter().map(|facts| {
            let map = open_map(&folder.join(facts.name()), owner)?;
            if map.facts() == *facts { Ok(Arc::new(map)) } else { Err(unfit(Unfit("a key file is not the one of the snapshot"))) }
        });
        let files = files.collect::<io::Result<_>>()?;
        Ok(Some(Kept { snapshot, files }))
    }

    /// Forgets the snapshot, so that the next boot reads all segments.
    ///
    /// # Errors
    /// The system refused.
    pub fn forget(folder: &Path) -> io::Result<()> {
        match fs::remove_file(folder.join(SNAPSHOT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_folder(folder),
        }
    }

    /// Looks for a key, the newest file first. Blocks.
    ///
    /// # Errors
    /// A file cannot be read or is damaged.
    pub fn find(folder: &Path, files: &[Arc<KeyMap>], key: &Key) -> io::Result<Option<Entry>> {
        for map in files.iter().rev().filter(|map| map.may_hold(key)) {
            let file = File::open(folder.join(map.facts().name()))?;
            let mut bytes = [0; PAGE_BYTES];
            for page in map.pages_for(key) {
                file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64)?;
                if let Some(entry) = keys::find(&bytes, page, key).map_err(unfit)? {
                    return Ok(Some(entry));
                }
            }
        }
        Ok(None)
    }

    /// Removes what no snapshot names; what cannot be removed is only in the way.
    pub(super) fn tidy(&self) {
        if self.files.is_empty() {
            let _ = Shelf::forget(&self.folder);
        }
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let stands = self.files.iter().any(|map| map.facts().name() == name);
            if name.ends_with(UNFINISHED) || (name.ends_with(KEYS_SUFFIX) && !stands) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Puts a seal's keys into a file of their own or merges them with what is there, and keeps its snapshot.
    pub(super) fn seal(&mut self, seal: Seal, segment: u64, stop: &AtomicBool) -> (Sealed, io::Result<()>) {
        let Seal { from, before, finished, rest } = seal;
        let count = finished.iter().map(Vec::len).sum();
        let mut entries = Vec::with_capacity(count);
        for piece in finished {
            entries.extend_from_slice(&piece);
        }
        keys::sort(&mut entries);
        let kept = self.keep(&entries, (from, before), rest.floor, stop).and_then(|files| {
            let facts: Vec<_> = files.iter().map(|map| map.facts()).collect();
            self.keep_snapshot(before, segment, &facts, &rest)?;
            Ok(files)
        });
        match kept {
            Ok(files) => {
                self.files.clone_from(&files);
                // What is near in memory is forgotten together.
                entries.sort_unstable_by_key(Entry::table);
                (Sealed { entries, files: Some(files) }, Ok(()))
            }
            Err(error) => {
                entries.sort_unstable_by_key(Entry::lsn);
                (Sealed { entries, files: None }, Err(error))
            }
        }
    }

    /// The files that stand once these keys, finished by the frames of a span, are among them.
    fn keep(&self, entries: &[Entry], span: (Lsn, Lsn), floor: Lsn, stop: &AtomicBool) -> io::Result<Vec<Arc<KeyMap>>> {
        let alive = self.files.iter().filter(|map| map.facts().newest >= floor);
        let mut files: Vec<_> = alive.cloned().collect();
        files.push(Arc::new(self.write(span, entries.len() as u64, entries.iter().copied().map(Ok), stop)?));
        let counts: Vec<u64> = files.iter().map(|map| map.facts().count).collect();
        if let Some(at) = keys::to_merge(&counts, KEY_FILES_MAX) {
            let some = files.split_off(at);
            let most = counts[at..].iter().sum();
            let span = (some[0].facts().from, span.1);
            let pages = some.iter().map(|map| Pages::open(&self.folder, map)).collect::<io::Result<Vec<_>>>()?;
            files.push(Arc::new(self.write(span, most, Merge::new(pages, floor), stop)?));
        }
        Ok(files)
    }

    pub(super) fn keep_snapshot(&self, before: Lsn, segment: u64, files: &[Facts], rest: &Restored) -> io::Result<()> {
        let bytes = snapshot::encode(&self.owner, before, segment, files, rest);
        replace(&self.folder, SNAPSHOT, |file| file.write_all(&bytes))
    }

    pub(super) fn write(
        &self,
        (from, to): (Lsn, Lsn),
        most: u64,
        entries: impl Iterator<Item = io::Result<Entry>>,
        stop: &AtomicBool,
    ) -> io::Result<KeyMap> {
        let mut writer = Writer::new(from, to, most);
        let name = writer.name();
        let mut map = None;
        replace(&self.folder, &name, |file| {
            for entry in entries {
                writer.push(&entry?, |page| {
                    if stop.load(Relaxed) { Err(io::Error::other("the worker is ending")) } else { file.write_all(page) }
                })?;
            }
            let written = writer.finish(|page| file.write_all(page))?;
            written.tail(&self.owner, |piece| file.write_all(piece))?;
            map = Some(written);
            Ok(())
        })?;
        map.ok_or_else(|| io::ErrorKind::Other.into())
    }
}

/// The entries of a key file, in order.
struct Pages {
    file: File,
    pages: u64,
    /// The next page that is not in `bytes`.
    next: u64,
    bytes: Vec<u8>,
    /// The page that `at` counts in, and the first of `bytes`.
    page: u64,
    first: u64,
    at: usize,
}

impl Pages {
    fn open(folder: &Path, map: &KeyMap) -> io::Result<Pages> {
        let file = File::open(folder.join(map.facts().name()))?;
        Ok(Pages { file, pages: map.pages(), next: 0, bytes: Vec::new(), page: 0, first: 0, at: 0 })
    }

    fn entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if self.page == self.next {
                if self.next == self.pages {
                    return Ok(None);
                }
                let some = (self.pages - self.next).min(PAGES_AT_ONCE);
                self.bytes.resize(some as usize * PAGE_BYTES, 0);
                self.file.read_exact_at(&mut self.bytes, self.next * PAGE_BYTES as u64)?;
                for nth in 0..some {
                    keys::entries(&self.bytes[nth as usize * PAGE_BYTES..][..PAGE_BYTES], self.next + nth).map_err(unfit)?;
                }
                (self.first, self.next) = (self.next, self.next + some);
            }
            let page = &self.bytes[(self.page - self.first) as usize * PAGE_BYTES..][..PAGE_BYTES];
            if let Some(entry) = keys::nth(page, self.at) {
                self.at += 1;
                return Ok(Some(entry));
            }
            (self.page, self.at) = (self.page + 1, 0);
        }
    }
}

impl Iterator for Pages {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<io::Result<Entry>> {
        self.entry().transpose()
    }
}

fn open_map(path: &Path, owner: &Owner) -> io::Result<KeyMap> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut last = [0; PAGE_BYTES];
    let at = length.checked_sub(PAGE_BYTES as u64).ok_or_else(|| unfit(Unfit("a key file is too short")))?;
    file.read_exact_at(&mut last, at)?;
    let footer = Footer::decode(&last, owner, length).map_err(unfit)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(footer.map_at()))?;
    let mut file = io::BufReader::with_capacity(16 * PIECE_BYTES, file);
    footer.read_map(|piece| file.read_exact(piece).map_err(Trouble)).map_err(|Trouble(error)| error)
}

/// Why a map could not be read.
struct Trouble(io::Error);

impl From<Unfit> for Trouble {
    fn from(why: Unfit) -> Trouble {
        Trouble(unfit(why))
    }
}

fn unfit(why: Unfit) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Writes a file whole, or leaves the one of that name as it was.
fn replace(folder: &Path, name: &str, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    let part = folder.join(format!("{name}{UNFINISHED}"));
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&part)?;
    let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
    let filled = fill(&mut file).and_then(|()| file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all());
    if let Err(error) = filled {
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fs::rename(&part, folder.join(name))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
