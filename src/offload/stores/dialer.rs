//! Connections to a store, on the stores' thread: a name is looked up once, its addresses are judged, and one of these is
//! connected to.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_rustls::pki_types::ServerName;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::net::egress::{Host, Scheme, Target};
use crate::net::error::{NetError, Phase};
use crate::net::limits::ADDRESSES_MAX;
use crate::net::tls::Trust;
use crate::offload::{NoAddress, Offload};
use crate::policy::stores::Store;

/// How long a connection may take, the lookup and TLS included, in milliseconds.
const CONNECT_MS: u64 = 10_000;

/// See the module. Crosses tasks of its thread.
#[derive(Clone)]
pub(super) struct Dialer {
    store: Arc<Store>,
    offload: Offload,
}

impl Dialer {
    pub(super) fn new(store: Arc<Store>, offload: Offload) -> Self {
        Dialer { store, offload }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Link>, NetError> {
        let target = Target::parse(&uri.to_string())?;
        let addresses = match target.host() {
            Host::Ip(address) => vec![*address],
            Host::Name(name) => {
                self.store.guard.check_target(&target)?;
                self.offload.resolve(name.clone()).await.map_err(unknown)?.list
            }
        };
        self.store.guard.check_addresses(&target, &addresses)?;
        let mut why = String::from("there is no address");
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            match TcpStream::connect(SocketAddr::new(address, target.port())).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(TokioIo::new(match target.scheme() {
                        Scheme::Http => Link::Plain(stream),
                        Scheme::Https => Link::Tls(Box::new(self.encrypt(&target, stream).await?)),
                    }));
                }
                Err(error) => why = error.to_string(),
            }
        }
        Err(NetError::Unreachable(why))
    }

    async fn encrypt(&self, target: &Target, stream: TcpStream) -> Result<TlsStream<TcpStream>, NetError> {
        let trust = match &self.store.trust {
            Some(trust) => trust.clone(),
            None => self.offload.roots().await.map_err(NetError::Tls)?,
        };
        let name = match target.host() {
            Host::Ip(address) => ServerName::IpAddress((*address).into()),
            Host::Name(name) => ServerName::try_from(name.clone()).map_err(|error| NetError::Tls(error.to_string()))?,
        };
        TlsConnector::from(plain_http(&trust)).connect(name, stream).await.map_err(|error| {
            let certificate = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<futures_rustls::rustls::Error>())
                .is_some_and(|inner| matches!(inner, futures_rustls::rustls::Error::InvalidCertificate(_)));
            if certificate { NetError::Untrusted(error.to_string()) } else { NetError::Tls(error.to_string()) }
        })
    }
}

/// The same trust for HTTP/1.1 alone: one transfer on a connection, so that one that is given up ends by closing it.
fn plain_http(trust: &Trust) -> Trust {
    let mut config = (**trust).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

fn unknown(why: NoAddress) -> NetError {
    match why {
        NoAddress::NoSuchName => NetError::NoSuchName,
        NoAddress::Unknown(why) => NetError::Unresolved(why),
        NoAddress::Full => NetError::Full,
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Link>;
    type Error = NetError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Link>, NetError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NetError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move {
            let late = |_| NetError::Late { phase: Phase::Connect, ms: CONNECT_MS };
            tokio::time::timeout(Duration::from_millis(CONNECT_MS), connecting).await.map_err(late)?
        })
    }
}

/// A connection.
pub(super) enum Link {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Link::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Link::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Link::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
