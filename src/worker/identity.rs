//! Who this worker is: its id and its deployment's secret, as configured, as its journal says, or new.

use std::path::Path;

use shards::ids::Salt;
use shards::runtime::disk::inspect;

use crate::settings::Settings;

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
