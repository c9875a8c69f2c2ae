//! TLS for the servers of the tests: an authority that the connector `ca` trusts, certificates that hold and such that do not,
//! and the server's side of a connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::server::WebPkiClientVerifier;
use futures_rustls::rustls::version::{TLS12, TLS13};
use futures_rustls::rustls::{RootCertStore, ServerConnection, StreamOwned};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

use super::super::server::Cut;
use super::*;
use crate::net::tls::TlsFiles;

/// A fatal alert of TLS: handshake_failure.
pub(super) const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];
/// A fatal alert of TLS: protocol_version.
pub(super) const ALERT_VERSION: [u8; 7] = [0x15, 3, 1, 0, 2, 2, 70];

/// An authority, which signs what it is told to.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("random")).expect("what it is made of"))
    }

    /// A certificate of these, and its key.
    fn sign(&self, params: &CertificateParams) -> Shown {
        let key = KeyPair::generate().expect("random");
        let certificate = params.signed_by(&key, &self.0).expect("what it is made of");
        Shown { chain: vec![certificate.der().clone()], pem: certificate.pem(), key }
    }
}

/// A certificate with its key.
pub(super) struct Shown {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
}

/// A certificate for this name, valid now.
pub(super) fn named(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).expect("a name")
}

/// All that rows need of TLS.
pub(super) struct Tls {
    ours: Authority,
    theirs: Authority,
    folder: PathBuf,
}

impl Tls {
    /// Writes what connectors read into a folder of the test's.
    pub(super) fn new(root: &Path) -> Tls {
        let tls = Tls { ours: Authority::new(), theirs: Authority::new(), folder: root.join("tls") };
        std::fs::create_dir_all(&tls.folder).expect("a folder");
        let client = tls.ours.sign(&named("worker"));
        for (name, text) in [("ca", tls.ours.0.pem()), ("cert", client.pem), ("key", client.key.serialize_pem())] {
            std::fs::write(tls.folder.join(name), text).expect("written");
        }
        tls
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join(name))
    }

    /// Who trusts our authority.
    pub(super) fn trusting(&self) -> TlsFiles {
        TlsFiles { ca: self.file("ca"), cert: None, key: None }
    }

    /// Who also shows a certificate of it.
    pub(super) fn showing(&self) -> TlsFiles {
        TlsFiles { ca: self.file("ca"), cert: self.file("cert"), key: self.file("key") }
    }

    /// As it should be.
    pub(super) fn good(&self) -> Arc<ServerConfig> {
        config(self.ours.sign(&named("127.0.0.1")), &[], |_| {})
    }

    /// As it should be, and for HTTP/2.
    pub(super) fn good_h2(&self) -> Arc<ServerConfig> {
        config(self.ours.sign(&named("127.0.0.1")), &[b"h2"], |_| {})
    }

    /// As it should be, with something changed, and with these protocols.
    pub(super) fn with(&self, protocols: &[&[u8]], change: impl FnOnce(&mut ServerConfig)) -> Arc<ServerConfig> {
        config(self.ours.sign(&named("127.0.0.1")), protocols, change)
    }

    /// Signed by our authority, but not as it should be.
    pub(super) fn odd(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<ServerConfig> {
        let mut params = named("127.0.0.1");
        change(&mut params);
        config(self.ours.sign(&params), &[], |_| {})
    }

    /// Signed by somebody else.
    pub(super) fn strange(&self) -> Arc<ServerConfig> {
        config(self.theirs.sign(&named("127.0.0.1")), &[], |_| {})
    }

    /// Signed by itself.
    pub(super) fn self_signed(&self) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("random");
        let certificate = named("127.0.0.1").self_signed(&key).expect("what it is made of");
        config(Shown { chain: vec![certificate.der().clone()], pem: String::new(), key }, &[], |_| {})
    }

    /// Ours, and many others behind it that lead nowhere.
    pub(super) fn long(&self, others: usize) -> Arc<ServerConfig> {
        let mut shown = self.ours.sign(&named("127.0.0.1"));
        let other = self.theirs.sign(&named("elsewhere")).chain;
        shown.chain.extend(other.into_iter().cycle().take(others));
        config(shown, &[], |_| {})
    }

    /// Asks for a certificate of ours, in the older version or the newer.
    pub(super) fn mutual(&self, older: bool) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ours.0.der().clone()).expect("a root");
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let shown = self.ours.sign(&named("127.0.0.1"));
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[if older { &TLS12 } else { &TLS13 }]).expect("known ones");
        let builder = builder.with_client_cert_verifier(verifier.expect("there is a root"));
        Arc::new(builder.with_single_cert(shown.chain, private(&shown.key)).expect("they belong together"))
    }
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

fn config(shown: Shown, protocols: &[&[u8]], change: impl FnOnce(&mut ServerConfig)) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("known ones").with_no_client_auth();
    let mut config = builder.with_single_cert(shown.chain, private(&shown.key)).expect("they belong together");
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    change(&mut config);
    Arc::new(config)
}

/// A certificate that is only for those who ask.
pub(super) fn for_clients(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

/// The server's side of a connection under TLS.
pub(super) struct Secure(StreamOwned<ServerConnection, TcpStream>);

impl Secure {
    /// Shakes hands; nothing where that fails.
    pub(super) fn accept(config: &Arc<ServerConfig>, mut stream: TcpStream) -> Option<Secure> {
        let mut session = ServerConnection::new(config.clone()).ok()?;
        while session.is_handshaking() {
            session.complete_io(&mut stream).ok()?;
        }
        Some(Secure(StreamOwned::new(session, stream)))
    }
}

impl Read for Secure {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Secure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Cut for Secure {
    fn wire(&mut self) -> &mut TcpStream {
        &mut self.0.sock
    }

    fn bye(&mut self) {
        self.0.conn.send_close_notify();
        // Where it cannot be said, the connection is over in any case.
        let _ = self.0.flush();
    }
}
