//! From a store's settings and its secrets to the library's operator: static credentials, nothing from the environment, from
//! profiles or from a machine's metadata service.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use opendal::services::{Azblob, Gcs, Memory, S3};
use opendal::{HttpTransporter, OperationContext, Operator};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::offload::Offload;
use crate::policy::stores::{AzureLogin, Store, StoreKind};
use crate::secrets::{Redaction, SecretRef};

use super::error::{StoreError, Trouble};
use super::transport::Transport;

/// A store that can be spoken to. Crosses tasks of its thread.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) operator: Operator,
    pub(super) redaction: Arc<Redaction>,
    /// Of its secrets: with others it is made anew.
    pub(super) mark: [u8; 32],
}

/// The secrets of a store as they are now, in the order in which its settings name them.
pub(super) struct Secrets {
    read: Vec<Zeroizing<String>>,
    pub(super) mark: [u8; 32],
}

impl Secrets {
    /// Reads small files: microseconds.
    pub(super) fn read(store: &Store) -> Result<Secrets, StoreError> {
        let references: Vec<&SecretRef> = match &store.settings.kind {
            StoreKind::Memory => Vec::new(),
            StoreKind::S3 { access_key, secret_key, session_token, .. } => {
                [Some(access_key), Some(secret_key), session_token.as_ref()].into_iter().flatten().collect()
            }
            StoreKind::Gcs { credential, .. } => vec![credential],
            StoreKind::Azblob { login: AzureLogin::Key(secret) | AzureLogin::Signature(secret), .. } => vec![secret],
        };
        let read: Result<Vec<_>, _> = references.into_iter().map(SecretRef::read).collect();
        let read = read.map_err(|error| StoreError::unsent(Trouble::Secret, error.to_string()))?;
        let mut hasher = Sha256::new();
        for secret in &read {
            hasher.update((secret.len() as u64).to_le_bytes());
            hasher.update(secret.as_bytes());
        }
        Ok(Secrets { read, mark: hasher.finalize().into() })
    }
}

impl Service {
    pub(super) fn build(store: &Arc<Store>, secrets: &Secrets, offload: &Offload) -> Result<Service, StoreError> {
        let mut redaction = Redaction::default();
        for secret in &secrets.read {
            conceal(&mut redaction, secret);
        }
        let operator = build(&store.settings.kind, &secrets.read);
        let operator = operator.map_err(|error| StoreError::of(&error, false, &redaction))?;
        let transport = HttpTransporter::new(Transport::new(store, offload.clone()));
        let context = OperationContext::new().with_http_transport(transport);
        let operator = operator.with_context(context);
        Ok(Service { operator, redaction: Arc::new(redaction), mark: secrets.mark })
    }
}

fn build(kind: &StoreKind, secrets: &[Zeroizing<String>]) -> opendal::Result<Operator> {
    let secret = |position: usize| secrets.get(position).map_or("", |secret| secret.as_str());
    match kind {
        StoreKind::Memory => Operator::new(Memory::default()),
        StoreKind::S3 { endpoint, bucket, region, .. } => {
            let service = S3::default()
                .endpoint(endpoint.as_str().trim_end_matches('/'))
                .bucket(bucket)
                .region(region)
                .access_key_id(secret(0))
                .secret_access_key(secret(1))
                .session_token(secret(2))
                // The store compares what arrives with what was sent.
                .checksum_algorithm("crc32c")
                .disable_config_load()
                .disable_ec2_metadata();
            Operator::new(service)
        }
        StoreKind::Gcs { endpoint, bucket, .. } => {
            let credential = Zeroizing::new(BASE64.encode(secret(0)));
            let service = Gcs::default()
                .endpoint(endpoint.as_str().trim_end_matches('/'))
                .bucket(bucket)
                .credential(&credential)
                .disable_config_load()
                .disable_vm_metadata();
            Operator::new(service)
        }
        StoreKind::Azblob { endpoint, container, account, login } => {
            let service =
                Azblob::default().endpoint(endpoint.as_str().trim_end_matches('/')).container(container).account_name(account);
            Operator::new(match login {
                AzureLogin::Key(_) => service.account_key(secret(0)),
                AzureLogin::Signature(_) => service.sas_token(secret(0).trim_start_matches('?')),
            })
        }
    }
}

/// A secret in the forms in which it may come back: as it is, its members where it is JSON, its parts where it is a query.
fn conceal(redaction: &mut Redaction, secret: &str) {
    redaction.add(secret.as_bytes());
    if let Ok(serde_json::Value::Object(members)) = serde_json::from_str(secret) {
        for (_, member) in members.iter().filter(|(name, _)| name.starts_with("private_key")) {
            if let Some(text) = member.as_str() {
                redaction.add(text.as_bytes());
            }
        }
    }
    for (name, value) in url::form_urlencoded::parse(secret.trim_start_matches('?').as_bytes()) {
        if name == "sig" {
            redaction.add(value.as_bytes());
            let encoded: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
            redaction.add(encoded.as_bytes());
        }
    }
}
