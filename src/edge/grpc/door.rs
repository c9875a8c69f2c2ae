//! The door: where gRPC listens, with its certificates. They are read first of all, while an error can still be told to the one
//! who starts us; it is opened last, so that nobody waits behind it for a journal to be read.
//!
//! It bounds what comes in before a request is read: connections, streams on each, the time that a silent one is kept.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::edge::limits::{
    CALL_CONNECTIONS_MAX, CALL_HEADERS_BYTES_MAX, CALL_PING_EVERY_MS, CALL_PONG_WITHIN_MS, CALL_SILENCE_MS, CALL_STREAMS_MAX,
};
use crate::settings::GrpcSettings;

/// Why gRPC cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address cannot be had.
    #[error("grpc.bind {0}: {1}")]
    Bind(SocketAddr, io::Error),
    /// A file cannot be read.
    #[error("{0} {path}: {2}", path = .1.display())]
    Unreadable(&'static str, PathBuf, io::Error),
    /// The files are there and of no use.
    #[error("grpc.tls: {0}; cert and key must be PEM and belong together, client_ca must be PEM")]
    Unusable(String),
}

/// A door that is not open yet: its certificates can be used.
pub struct DoorFrame {
    server: Server,
    settings: GrpcSettings,
}

/// An open door. Crosses to the edge's thread once.
pub struct Door {
    listener: TcpListener,
    server: Server,
    /// The largest message that is taken, in bytes.
    pub(super) message_bytes_max: usize,
    /// Whether there are events to watch.
    pub(super) events: bool,
    /// Where it listens: the port is real where 0 was asked for.
    pub address: SocketAddr,
}

impl DoorFrame {
    /// Reads the certificates.
    ///
    /// # Errors
    /// A file is missing or unusable.
    pub fn of(settings: &GrpcSettings) -> Result<DoorFrame, DoorError> {
        let mut server = Server::builder()
            .max_concurrent_streams(CALL_STREAMS_MAX)
            .http2_max_header_list_size(CALL_HEADERS_BYTES_MAX)
            .http2_keepalive_interval(Some(Duration::from_millis(CALL_PING_EVERY_MS)))
            .http2_keepalive_timeout(Some(Duration::from_millis(CALL_PONG_WITHIN_MS)));
        if let Some(tls) = &settings.tls {
            let identity = Identity::from_pem(pem("grpc.tls.cert", &tls.cert)?, pem("grpc.tls.key", &tls.key)?);
            let mut config = ServerTlsConfig::new().identity(identity).timeout(Duration::from_millis(CALL_SILENCE_MS));
            if let Some(ca) = &tls.client_ca {
                config = config.client_ca_root(Certificate::from_pem(pem("grpc.tls.client_ca", ca)?));
            }
            server = server.tls_config(config).map_err(|error| DoorError::Unusable(chain(&error)))?;
        }
        Ok(DoorFrame { server, settings: settings.clone() })
    }

    /// Binds.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn open(self) -> Result<Door, DoorError> {
        let DoorFrame { server, settings } = self;
        let bound = crate::ops::http::patient_bind(settings.bind).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (address, listener) = bound.map_err(|error| DoorError::Bind(settings.bind, error))?;
        if settings.tls.is_none() && !address.ip().is_loopback() {
            tracing::warn!(%address, "gRPC is served without TLS where others can reach it: whoever can may speak for any tenant");
        }
        Ok(Door { listener, server, message_bytes_max: settings.message_bytes_max, events: settings.events, address })
    }
}

impl Door {
    /// The server, and those who come in.
    pub(super) fn pass(self) -> io::Result<(Server, impl Stream<Item = io::Result<Connection>>)> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let places = Arc::new(Semaphore::new(CALL_CONNECTIONS_MAX));
        let coming = futures_util::stream::unfold((listener, places), |(listener, places)| async {
            let connection = next(&listener, &places).await?;
            Some((Ok(connection), (listener, places)))
        });
        Ok((self.server, coming))
    }
}

/// The next one to come in, once there is a place for it.
async fn next(listener: &tokio::net::TcpListener, places: &Arc<Semaphore>) -> Option<Connection> {
    let place = places.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers must not wait for company; without it they are late, not wrong.
                let _ = stream.set_nodelay(true);
                let patience = Box::pin(tokio::time::sleep(Duration::from_millis(CALL_SILENCE_MS)));
                return Some(Connection { stream, patience: Some(patience), _place: place });
            }
            Err(error) => {
                // Out of descriptors, or the client went away: neither is a reason to stop.
                tracing::warn!(%error, "a gRPC connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn pem(key: &'static str, path: &Path) -> Result<Vec<u8>, DoorError> {
    std::fs::read(path).map_err(|error| DoorError::Unreadable(key, path.to_owned(), error))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// One who came in. Holds its place until it is gone; one that never says anything is shown out.
pub(super) struct Connection {
    stream: TcpStream,
    /// Until its first byte.
    patience: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.patience = None;
        } else if let Some(patience) = &mut self.patience
            && patience.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
