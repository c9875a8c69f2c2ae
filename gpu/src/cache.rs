//! Compiled kernels, kept in memory and, where there is a folder, in files: one for each source, architecture and compiler.
//! What is in a file is believed only if its digest, which stands before it, is right. A folder that fails costs time only.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names a compiled source. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(String);

impl Key {
    /// Of a source for an architecture, by a compiler.
    pub(crate) fn of(source: &str, arch: &str, compiler: (i32, i32)) -> Key {
        let mut hasher = blake3::Hasher::new();
        for part in [source, arch] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.update(&compiler.0.to_le_bytes()).update(&compiler.1.to_le_bytes());
        Key(hasher.finalize().to_hex().to_string())
    }
}

/// All of them of a process. Shared by the threads of a group; one compiles, the others wait for it.
pub(crate) struct Cache {
    folder: Option<PathBuf>,
    memory: Mutex<HashMap<Key, Arc<str>>>,
}

impl Cache {
    /// `folder` is made when something is first kept in it.
    pub(crate) fn new(folder: Option<PathBuf>) -> Cache {
        Cache { folder, memory: Mutex::new(HashMap::new()) }
    }

    /// What is kept, or what `compile` makes.
    ///
    /// # Errors
    /// Those of `compile`.
    pub(crate) fn get<E>(&self, key: &Key, compile: impl FnOnce() -> Result<String, E>) -> Result<Arc<str>, E> {
        let mut memory = self.lock();
        if let Some(text) = memory.get(key) {
            return Ok(text.clone());
        }
        let kept = self.file(key).and_then(|file| read(&file));
        let text: Arc<str> = match kept {
            Some(text) => text.into(),
            None => {
                let text = compile()?;
                if let Some(file) = self.file(key)
                    && let Err(error) = write(&file, &text)
                {
                    tracing::warn!(%error, file = %file.display(), "a compiled kernel is not kept");
                }
                text.into()
            }
        };
        memory.insert(key.clone(), text.clone());
        Ok(text)
    }

    /// What is kept does not load: it is compiled again when it is next asked for.
    pub(crate) fn forget(&self, key: &Key) {
        self.lock().remove(key);
        if let Some(file) = self.file(key)
            && let Err(error) = std::fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = %file.display(), "a compiled kernel that does not load stays");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<str>>> {
        // A compiler that panicked has changed nothing here.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, key: &Key) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{}.ptx", key.0)))
    }
}

fn read(file: &Path) -> Option<String> {
    let whole = std::fs::read_to_string(file).ok()?;
    let (digest, text) = whole.split_once('\n')?;
    (digest == mark(text)).then(|| text.to_owned())
}

/// Under another name first, so that nobody reads a half.
fn write(file: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = file.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, format!("{}\n{text}", mark(text)))?;
    std::fs::rename(&part, file)
}

fn mark(text: &str) -> String {
    format!("// {}", blake3::hash(text.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> Result<String, &'static str> {
        Err("compiled")
    }

    #[test]
    fn what_was_compiled_is_read_again_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, key) = (folder.path().join("kernels"), Key::of("source", "compute_90", (12, 4)));
        let first = Cache::new(Some(inside.clone()));
        assert_eq!(first.get(&key, || Ok::<_, ()>("text\nmore".to_owned())).as_deref(), Ok("text\nmore"));
        assert_eq!(first.get(&key, never).as_deref(), Ok("text\nmore"));
        assert_eq!(Cache::new(Some(inside)).get(&key, never).as_deref(), Ok("text\nmore"));
        assert_eq!(Cache::new(None).get(&key, never), Err("compiled"));
    }

    #[test]
    fn another_source_architecture_or_compiler_is_another_key() {
        let keys = [
            Key::of("ab", "c", (12, 4)),
            Key::of("a", "bc", (12, 4)),
            Key::of("ab", "d", (12, 4)),
            Key::of("ab", "c", (12, 5)),
            Key::of("ab", "c", (13, 4)),
        ];
        for (n, key) in keys.iter().enumerate() {
            assert!(!keys[..n].contains(key));
        }
    }

    #[test]
    fn a_damaged_file_is_compiled_again() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::of("source", "compute_90", (12, 4));
        let cache = || Cache::new(Some(folder.path().to_owned()));
        cache().get(&key, || Ok::<_, ()>("text".to_owned())).unwrap();
        let file = cache().file(&key).unwrap();
        for damaged in ["", "text", "// no digest\ntext", &format!("{}\ntexT", mark("text"))] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(cache().get(&key, || Ok::<_, ()>("new".to_owned())).as_deref(), Ok("new"), "{damaged:?}");
        }
        assert_eq!(cache().get(&key, never).as_deref(), Ok("new"));
        cache().forget(&key);
        assert_eq!(cache().get(&key, never), Err("compiled"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::new(Some(file.path().join("below-a-file")));
        let key = Key::of("source", "compute_90", (12, 4));
        assert_eq!(cache.get(&key, || Ok::<_, ()>("text".to_owned())).as_deref(), Ok("text"));
        assert_eq!(cache.get(&key, never).as_deref(), Ok("text"));
        cache.forget(&key);
    }
}
