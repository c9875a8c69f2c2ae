//! Who this worker is: its id and its deployment's secret, as configured, as its journal says, or new; and the name of its
//! journal, which nobody chooses: two workers may go by one id by mistake, two journals never by one name.

use std::io::Write;
use std::path::Path;

use shards::ids::Salt;
use shards::runtime::disk::{DiskError, inspect};

use crate::settings::Settings;

/// Beside the shards' folders; goes along where the journal is rewritten.
pub(super) const NAME_FILE: &str = "name";

/// Who a worker is. Shared, never changes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub worker_id: String,
    /// The deployment's secret.
    pub salt: Salt,
}

/// What the journal in `dir` says of its worker; `None` where there is none yet. One that cannot be read is found out when
/// it is opened, with its own error.
pub fn stored(dir: &Path) -> Option<Identity> {
    let head = inspect(dir).ok()??;
    Some(Identity { worker_id: head.worker_id, salt: head.salt })
}

/// The name of the journal in `dir`: random, made once, and moved away with it.
///
/// # Errors
/// It can be neither read nor made.
pub(super) fn journal(dir: &Path, generation: u64) -> Result<String, DiskError> {
    let folder = dir.join(generation.to_string());
    let (path, new) = (folder.join(NAME_FILE), folder.join(format!("{NAME_FILE}.new")));
    if let Ok(name) = std::fs::read_to_string(&path)
        && name.len() == 32
    {
        return Ok(name);
    }
    let name = super::random_name();
    let write = || {
        std::fs::create_dir_all(&folder)?;
        let mut file = std::fs::File::create(&new)?;
        file.write_all(name.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(&folder)?.sync_all()
    };
    write().map_err(|source| DiskError::Io { doing: "naming the journal in", path: path.clone(), source })?;
    Ok(name)
}

impl Identity {
    /// As configured; where the configuration is silent, as the journal says; else with `salt`.
    ///
    /// A worker id that nobody chose follows the journal: a host name may change, the journal's owner does not.
    pub fn resolve(settings: &Settings, salt: impl FnOnce() -> Salt) -> Identity {
        let stored = stored(&settings.storage_dir);
        let chosen = settings.worker_id_chosen();
        let worker_id = match &stored {
            Some(stored) if !chosen => stored.worker_id.clone(),
            _ => settings.worker_id.clone(),
        };
        let salt = settings.salt().or_else(|| stored.map(|stored| stored.salt)).unwrap_or_else(salt);
        Identity { worker_id, salt }
    }
}
