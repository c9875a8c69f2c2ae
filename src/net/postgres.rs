//! Connections to PostgreSQL servers on a shard: from a checked address to a session, and the request that cancels what a session
//! is at. What is said in a session is not decided here.
//!
//! A connection's own task ends with its session or when it is given up; a panic in it costs that connection alone. No message of
//! a server may be longer than [`MESSAGE_BYTES_MAX`]: it would be held as a whole.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_rustls::TlsConnector;
use futures_rustls::pki_types::ServerName;
use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use shards::ids::Text;
use shards::runtime::rt::{Clock, Stop, caught, sleep, spawn};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::{CancelToken, Client, Config, NoTls};

use crate::offload::Offload;
use crate::policy::databases::{Database, PostgresSettings};

use super::client::untrusted;
use super::dial::{dial, within};
use super::egress::Host;
use super::error::{NetError, Phase};
use super::names::Names;
use super::socket::{Socket, Stream};

/// The longest message that a server may send, in bytes: one row at most.
pub const MESSAGE_BYTES_MAX: u32 = 16 << 20;
/// From the first packet to a session, in milliseconds.
pub const CONNECT_MS: u64 = 10_000;
/// How long a connection that was given up may take to end by itself.
const LINGER: Duration = Duration::from_secs(2);
/// What asks a server for TLS (protocol 3.0, SSLRequest).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Why there is no session.
#[derive(Debug)]
pub enum NoSession {
    /// The way there.
    Net(NetError),
    /// The server, or what it says.
    Server(tokio_postgres::Error),
}

impl From<NetError> for NoSession {
    fn from(error: NetError) -> Self {
        NoSession::Net(error)
    }
}

/// A session and the task that carries it. Lives on its core. Dropped, it says goodbye and ends.
pub struct Session {
    /// What speaks in it.
    pub client: Client,
    /// By which what it is at is cancelled.
    pub token: CancelToken,
    /// Why its connection ended, once it has and not by our word; all who were at something in it may look.
    pub ended: Rc<RefCell<Option<String>>>,
    stop: Stop,
}

/// The way to servers. Lives on its core.
pub struct Dialer {
    names: Names,
}

impl Dialer {
    /// One for a shard.
    pub fn new(offload: Offload, clock: Clock) -> Dialer {
        Dialer { names: Names::new(offload, clock) }
    }

    /// A session as the connector's own user. `options` are the server's `-c name=value`; `ended` is dropped when the connection
    /// has ended.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open<H: 'static>(
        &self,
        database: &Database,
        server: &PostgresSettings,
        login: Login<'_>,
        application: &str,
        options: &str,
        ended: H,
    ) -> Result<Session, NoSession> {
        let mut config = Config::new();
        config.user(login.user).dbname(&server.database).application_name(application).ssl_mode(SslMode::Disable);
        if let Some(password) = login.password {
            config.password(password);
        }
        if !options.is_empty() {
            config.options(options);
        }
        let opened = within(CONNECT_MS, Phase::Connect, async {
            let stream = self.stream(database, server).await?;
            config.connect_raw(Wire::new(stream), NoTls).await.map_err(NoSession::Server)
        });
        let (client, connection) = opened.await??;
        let (stop, token) = (Stop::default(), client.cancel_token());
        let work = stop.race(caught(connection));
        let why = Rc::<RefCell<Option<String>>>::default();
        let told = why.clone();
        spawn("a database connection", async move {
            match work.await {
                Some(Ok(Err(error))) => {
                    let error = super::link::text(&error);
                    tracing::debug!(error, "a database connection ended");
                    // Whoever waits in the session is only told that it is closed, and looks here before it runs again.
                    told.replace(Some(error));
                }
                Some(Err(_)) => tracing::error!("the database library panicked on a connection; it is closed"),
                Some(Ok(Ok(()))) | None => {}
            }
            drop(ended);
        });
        Ok(Session { client, token, ended: why, stop })
    }

    /// Asks the server to cancel what a session is at.
    ///
    /// # Errors
    /// It could not be asked.
    pub async fn cancel(&self, database: &Database, server: &PostgresSettings, token: &CancelToken) -> Result<(), NoSession> {
        within(CONNECT_MS, Phase::Connect, async {
            let stream = self.stream(database, server).await?;
            token.cancel_query_raw(ToEnd(Wire::new(stream)), NoTls).await.map_err(NoSession::Server)
        })
        .await?
    }

    /// The bytes to and from a server: its address checked, under TLS where its connector says so.
    async fn stream(&self, database: &Database, server: &PostgresSettings) -> Result<Socket, NetError> {
        let target = &server.target;
        // Where it is, is the operator's word and no tenant's: names are looked up for nobody.
        let addresses: Rc<[IpAddr]> = match target.host() {
            Host::Ip(address) => Rc::from([*address]),
            Host::Name(name) => self.names.addresses(&Text::new(), name).await?,
        };
        database.guard.check_addresses(target, &addresses)?;
        let mut stream = dial(&addresses, target.port()).await?;
        let Some(trust) = &database.trust else { return Ok(Socket::new(Stream::Plain(stream))) };
        let broken = |error: io::Error| NetError::Broken(error.to_string());
        stream.write_all(&SSL_REQUEST).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut said = [0];
        // One byte and no more: what a stranger puts behind it must not be taken for the server's own.
        stream.read_exact(&mut said).await.map_err(broken)?;
        if said != *b"S" {
            return Err(NetError::Tls("the server speaks no TLS".to_owned()));
        }
        let name = match target.host() {
            Host::Ip(address) => ServerName::IpAddress((*address).into()),
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|_| NetError::Untrusted("the host is no name that a certificate can have".to_owned()))?,
        };
        let stream = TlsConnector::from(trust.clone()).connect(name, stream).await.map_err(|error| untrusted(&error))?;
        Ok(Socket::new(Stream::Tls(Box::new(stream))))
    }
}

/// As whom. Lives on its core.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// The role.
    pub user: &'a str,
    /// Its password.
    pub password: Option<&'a str>,
}

impl Session {
    /// Gives it up while it may be at something: once it is dropped, the goodbye has a while to be heard, and then the connection is
    /// closed.
    pub fn abandon(&self) {
        let stop = self.stop.clone();
        spawn("a database connection that was given up", async move {
            sleep(LINGER).await;
            stop.ask();
        });
    }

    /// Closes the connection, whoever is at anything in it.
    pub fn close(&self) {
        self.stop.ask();
    }
}

/// A connection's bytes as the library wants them, each message's length looked at as it comes.
struct Wire {
    socket: Socket,
    /// Of the head of the next message, so far.
    head: [u8; 5],
    known: usize,
    /// Of a message's body, still to come.
    left: usize,
}

impl Wire {
    fn new(socket: Socket) -> Wire {
        Wire { socket, head: [0; 5], known: 0, left: 0 }
    }

    /// Looks at what came.
    fn judge(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = (self.head.len() - self.known).min(bytes.len());
            self.head[self.known..self.known + wanted].copy_from_slice(&bytes[..wanted]);
            self.known += wanted;
            bytes = &bytes[wanted..];
            if self.known == self.head.len() {
                let [_, length @ ..] = self.head;
                let length = u32::from_be_bytes(length);
                if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, TOO_LONG));
                }
                (self.known, self.left) = (0, length as usize - 4);
            }
        }
        Ok(())
    }
}

/// The way of a request to cancel: it is not shut before the other side has closed it, which it does once it has seen to the
/// request. A pooler may forget one whose asker is gone.
struct ToEnd(Wire);

impl AsyncRead for ToEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ToEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = &mut self.get_mut().0.socket;
        let mut room = [0; 64];
        // However it ends, the request is not ours any more.
        while std::task::ready!(socket.poll_some(cx, &mut room)).is_ok_and(|read| read > 0) {}
        Poll::Ready(Ok(()))
    }
}

/// What an overlong message is called.
pub const TOO_LONG: &str = "a message of the server is longer than it may be";

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let room = buf.initialize_unfilled();
        let read = std::task::ready!(wire.socket.poll_some(cx, room))?;
        wire.judge(&room[..read])?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        hyper::rt::Write::poll_write(Pin::new(&mut self.get_mut().socket), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        hyper::rt::Write::poll_flush(Pin::new(&mut self.get_mut().socket), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        hyper::rt::Write::poll_shutdown(Pin::new(&mut self.get_mut().socket), cx)
    }
}
