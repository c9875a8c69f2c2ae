//! Whom a connection trusts and who it says it is: client configurations for the system's roots and for each connector.
//!
//! Built once, before or beside the shards; they cross cores and never change. `ring` is the provider, as everywhere here.

use std::path::Path;
use std::sync::Arc;

use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::client::WebPkiServerVerifier;
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::{ClientConfig, RootCertStore};

/// A client configuration. Shared, never changes.
pub type Trust = Arc<ClientConfig>;

/// The files of a connector; all PEM. Shared, never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Roots that are trusted beside the system's.
    pub ca: Option<std::path::PathBuf>,
    /// Our certificate, with those between it and its root.
    pub cert: Option<std::path::PathBuf>,
    /// Its key.
    pub key: Option<std::path::PathBuf>,
}

impl TlsFiles {
    /// Whether nothing is named: the system's roots alone, and no certificate of ours.
    pub fn is_plain(&self) -> bool {
        *self == TlsFiles::default()
    }
}

/// The system's roots and no certificate of ours. Blocks for some milliseconds.
///
/// # Errors
/// No root can be read.
pub fn system() -> Result<Trust, String> {
    build(system_roots()?, None)
}

/// What a connector says, beside the system's roots. Blocks: for start-up.
///
/// # Errors
/// A file that cannot be read or does not hold what it should, with the configuration's field in front.
pub fn of(files: &TlsFiles) -> Result<Trust, (&'static str, String)> {
    let mut roots = match system_roots() {
        Ok(roots) => roots,
        // A connector's own roots may be all that there are.
        Err(_) if files.ca.is_some() => RootCertStore::empty(),
        Err(why) => return Err(("ca", why)),
    };
    if let Some(path) = &files.ca {
        for certificate in certificates(path).map_err(|why| ("ca", why))? {
            roots.add(certificate).map_err(|error| ("ca", format!("{}: {error}", path.display())))?;
        }
    }
    let identity = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert).map_err(|why| ("cert", why))?;
            let read = PrivateKeyDer::from_pem_file(key);
            Some((chain, read.map_err(|error| ("key", format!("{}: {error}", key.display())))?))
        }
        _ => None,
    };
    build(roots, identity).map_err(|why| ("cert", why))
}

/// The same for a PostgreSQL server, which hangs up where another protocol is offered.
///
/// # Errors
/// As for [`of`].
pub fn of_postgres(files: &TlsFiles) -> Result<Trust, (&'static str, String)> {
    let mut config = Arc::unwrap_or_clone(of(files)?);
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| said(&error))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|error| said(&error))?;
    if certificates.is_empty() {
        return Err(said(&"there is no certificate in it"));
    }
    Ok(certificates)
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(match found.errors.first() {
            Some(error) => format!("the system's roots cannot be read: {error}"),
            None => "the system has no roots (on Debian: the package ca-certificates)".to_owned(),
        }),
        _ => Ok(roots),
    }
}

fn build(
    roots: RootCertStore,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<Trust, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let verifier = verifier.map_err(|error| error.to_string())?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.with_webpki_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?,
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
