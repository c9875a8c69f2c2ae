//! Object stores as connectors: what is written of them, resolved, and whom they are open to.
//!
//! A step names a store and never a place in the network: endpoint, bucket and credentials are the operator's alone. Whatever a
//! tenant keeps there lies under a prefix of its own.

use std::sync::Arc;

use crate::net::egress::{Allow, Guard, Target};
use crate::net::tls::{self, TlsFiles, Trust};
use crate::secrets::SecretRef;

use super::PolicyError;

/// A store as resolved. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Who may use it; none named: nobody. `None`: all.
    pub tenants: Option<Vec<String>>,
    /// What it is, and where.
    pub kind: StoreKind,
    /// What stands before every tenant's own prefix; empty or ending with a slash.
    pub prefix: String,
    /// What it opens besides public addresses.
    pub allow: Vec<Allow>,
    /// Whom we trust, and our own certificate.
    pub tls: TlsFiles,
    /// What one tenant may keep there, in bytes.
    pub bytes_max: Option<u64>,
    /// An exchange that moves no byte for so long is given up, in milliseconds.
    pub stall_ms: u64,
    /// Whether the store refuses a write that must not replace anything; where it does not, nobody may ask for one.
    pub if_absent: bool,
}

/// What a store is. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// This process's memory, gone with it: for development and tests.
    Memory,
    /// Amazon S3, or what speaks its protocol.
    S3 {
        /// Where.
        endpoint: Target,
        /// In which bucket.
        bucket: String,
        /// For which region requests are signed.
        region: String,
        /// Whose key.
        access_key: SecretRef,
        /// The key.
        secret_key: SecretRef,
        /// Beside a key that holds for some time only.
        session_token: Option<SecretRef>,
    },
    /// Google Cloud Storage.
    Gcs {
        /// Where.
        endpoint: Target,
        /// In which bucket.
        bucket: String,
        /// A service account's key: the JSON that Google hands out.
        credential: SecretRef,
    },
    /// Azure Blob Storage.
    Azblob {
        /// Where.
        endpoint: Target,
        /// In which container.
        container: String,
        /// Whose.
        account: String,
        /// How it lets us in.
        login: AzureLogin,
    },
}

impl StoreKind {
    /// Where it is; the memory is nowhere.
    pub fn endpoint(&self) -> Option<&Target> {
        match self {
            StoreKind::S3 { endpoint, .. } | StoreKind::Gcs { endpoint, .. } | StoreKind::Azblob { endpoint, .. } => {
                Some(endpoint)
            }
            StoreKind::Memory => None,
        }
    }
}

/// How an Azure account lets us in. Crosses cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureLogin {
    /// With the account's key.
    Key(SecretRef),
    /// With a shared access signature.
    Signature(SecretRef),
}

/// A store as shards and the stores' thread use it. Shared, never changes.
#[derive(Debug)]
pub struct Store {
    /// Its name.
    pub name: String,
    /// As resolved.
    pub settings: StoreSettings,
    /// What requests to it may reach.
    pub guard: Guard,
    /// Whom they trust where it is not the system alone.
    pub trust: Option<Trust>,
}

impl Store {
    /// Reads the certificates that it names.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub(super) fn new(
        name: String,
        settings: StoreSettings,
        more: Vec<Allow>,
        own: &[std::net::SocketAddr],
    ) -> Result<Arc<Store>, PolicyError> {
        let trust = match settings.tls.is_plain() {
            true => None,
            false => {
                let built = tls::of(&settings.tls);
                Some(built.map_err(|(field, why)| PolicyError { connector: name.clone(), field, why })?)
            }
        };
        let guard = Guard::new(settings.allow.iter().cloned().chain(more).collect(), None, own.iter().copied());
        Ok(Arc::new(Store { name, settings, guard, trust }))
    }

    pub(super) fn lists(&self, tenant: &str) -> bool {
        self.settings.tenants.as_ref().is_none_or(|tenants| tenants.iter().any(|one| one == tenant))
    }
}
