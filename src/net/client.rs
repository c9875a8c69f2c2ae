//! One exchange: from an [`Order`] to the head of an answer, through the guard, over as many redirects as the order allows.
//! Lives on its core.
//!
//! A request that may have been sent is sent again in two cases only: a redirect, which says that it was not acted on, and a kept
//! connection that the other side had closed, where HTTP itself lets a request be repeated that has no effect of its own.

use std::cell::{Cell, OnceCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use bytes::Bytes;
use futures_rustls::TlsConnector;
use futures_rustls::pki_types::ServerName;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use shards::ids::{Now, Text};
use shards::runtime::rt::Clock;

use crate::compute::Compute;
use crate::offload::Offload;

use super::decode::{DecodeError, Decoder};
use super::dial::{dial, within};
use super::egress::{Guard, Host, Scheme, Target};
use super::error::{Failure, NetError, Phase};
use super::limits::HEADERS_MAX;
use super::link::Link;
use super::names::Names;
use super::payload::Payload;
use super::pool::{Place, Pool};
use super::proxy::Proxy;
use super::socket::{Socket, Stream};
use super::tls::Trust;

/// What is sent only to the origin that it was meant for.
const PRIVATE: [HeaderName; 3] = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION];

/// What a block wants. Lives on its core.
pub struct Order<'a> {
    /// Whose step it is: connections are theirs alone.
    pub tenant: &'a Text,
    /// What may be reached.
    pub guard: &'a Guard,
    /// By whose rules: the connector's position and what it trusts, or the system's roots.
    pub connector: Option<(u16, &'a Option<Trust>)>,
    /// Through whom, if not straight there.
    pub proxy: Option<&'a Proxy>,
    /// Set once anything of a request may have reached the other side.
    pub sent: &'a Cell<bool>,
    /// How.
    pub method: Method,
    /// Where.
    pub target: Target,
    /// What is said; `Host` and the body's length are added.
    pub headers: HeaderMap,
    /// Headers that are the connector's own and never leave its origin.
    pub private: Vec<HeaderName>,
    /// What is sent.
    pub body: Payload,
    /// The waits.
    pub patience: Patience,
    /// How many redirects are followed; 0: the redirect itself is the answer.
    pub redirects_max: u32,
}

/// How long each part may take, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Resolving, connecting and TLS.
    pub connect_ms: u64,
    /// From the whole request to the head of the answer.
    pub first_byte_ms: u64,
    /// Between two pieces of the answer's body.
    pub stall_ms: u64,
}

/// Where the time went, in microseconds; all hops together. Zero where a kept connection served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Resolving.
    pub dns_us: u64,
    /// Connecting.
    pub connect_us: u64,
    /// TLS.
    pub tls_us: u64,
    /// From the request to the head of the answer.
    pub first_byte_us: u64,
}

/// An answer whose body is still to be read. Lives on its core.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// HTTP/1.0, 1.1 or 2.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
    /// Who answered: the order's target, or where the last redirect led.
    pub target: Target,
    /// Redirects that were followed.
    pub redirects: u32,
    /// Where the time went so far.
    pub timing: Timing,
    body: Incoming,
    /// Bytes of the body so far, as they came.
    received: u64,
    /// How many there should be, where the other side says so and nobody else looks.
    length: Option<u64>,
    lease: Option<Lease>,
    pool: Rc<Pool>,
    compute: Compute,
    stall_ms: u64,
}

/// The connection that an answer comes on. Lives on its core.
struct Lease {
    place: Place,
    link: Link,
    /// Whether all of the request was taken.
    spent: Rc<Cell<bool>>,
}

/// See the module.
pub struct Client {
    clock: Clock,
    names: Names,
    pool: Rc<Pool>,
    offload: Offload,
    compute: Compute,
    roots: OnceCell<Trust>,
}

impl Client {
    /// One for a shard.
    pub fn new(offload: Offload, compute: Compute, clock: Clock) -> Self {
        Client {
            names: Names::new(offload.clone(), clock),
            pool: Rc::new(Pool::new(clock)),
            clock,
            offload,
            compute,
            roots: OnceCell::new(),
        }
    }

    /// Sends the request and follows its redirects; returns with the head of the answer.
    ///
    /// # Errors
    /// Why there is none, and whether the other side may have acted.
    pub async fn fetch(&self, mut order: Order<'_>) -> Result<Answer, Failure> {
        let mut timing = Timing::default();
        let mut redirects = 0;
        let safe = is_safe(&order.method);
        loop {
            let (response, lease) = self.exchange(&order, &mut timing).await.map_err(|failure| Failure {
                // A redirect after something that has an effect was the answer to it.
                sent: failure.sent || (redirects > 0 && !safe),
                ..failure
            })?;
            if order.redirects_max > 0
                && let Some(location) = location(&response)
            {
                if redirects == order.redirects_max {
                    return Err(Failure::sent(NetError::Redirects(redirects)));
                }
                redirects += 1;
                let target = location.and_then(|location| order.target.join(location).map_err(NetError::from));
                order.redirect(target.map_err(Failure::sent)?, response.status());
                continue;
            }
            let (head, body) = response.into_parts();
            let bodiless = order.method == Method::HEAD || matches!(head.status.as_u16(), 204 | 304);
            let length = head.headers.get(CONTENT_LENGTH).filter(|_| head.version == Version::HTTP_2 && !bodiless);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            return Ok(Answer {
                status: head.status,
                version: head.version,
                headers: head.headers,
                target: order.target,
                redirects,
                timing,
                body,
                received: 0,
                length,
                lease: Some(lease),
                pool: self.pool.clone(),
                compute: self.compute.clone(),
                stall_ms: order.patience.stall_ms,
            });
        }
    }

    /// The present moment.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Connections that wait for a next request.
    pub fn idle(&self) -> usize {
        self.pool.waiting()
    }

    /// One request and the head of its answer.
    async fn exchange(&self, order: &Order<'_>, timing: &mut Timing) -> Result<(Response<Incoming>, Lease), Failure> {
        order.guard.check_target(&order.target).map_err(|denial| Failure::unsent(denial.into()))?;
        let place = Place {
            tenant: order.tenant.clone(),
            connector: order.connector.map(|(position, _)| position),
            tls: order.target.scheme() == Scheme::Https,
            host: order.target.host().clone(),
            port: order.target.port(),
        };
        loop {
            let kept = self.pool.take(&place);
            let reused = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => self.connect(order, timing).await.map_err(Failure::unsent)?,
            };
            let request = order.request(link.is_shared()).map_err(Failure::unsent)?;
            order.sent.set(true);
            let begun_us = self.clock.now().mono_us;
            let first_byte_ms = order.patience.first_byte_ms;
            let spent = order.body.spent();
            let request = request.map(|payload| payload.flow(&spent));
            let answered = within(first_byte_ms, Phase::FirstByte, link.send(request)).await.map_err(|late| {
                // Whoever comes next should not wait for the same silence.
                self.pool.forget(&place);
                Failure::sent(late)
            })?;
            match answered {
                Ok(response) if response.headers().len() > HEADERS_MAX => {
                    return Err(Failure::sent(NetError::Broken("the answer has too many headers".to_owned())));
                }
                Ok(response) => {
                    fail::fail_point!("C3", |_| std::process::abort());
                    timing.first_byte_us += self.clock.now().mono_us.saturating_sub(begun_us);
                    if let Some(shared) = link.share().filter(|_| !reused) {
                        self.pool.keep(&place, shared);
                    }
                    return Ok((response, Lease { place, link, spent }));
                }
                // The other side may close a kept connection whenever it likes; the next one may be as old.
                Err(refused) if reused && (!refused.sent || (refused.broken && is_repeatable(&order.method))) => {
                    self.pool.forget(&place);
                }
                Err(refused) => return Err(Failure { error: refused.error, sent: refused.sent }),
            }
        }
    }

    /// A new connection to where the order leads, every step of it checked and within the order's patience.
    async fn connect(&self, order: &Order<'_>, timing: &mut Timing) -> Result<Link, NetError> {
        let connect_ms = order.patience.connect_ms;
        within(connect_ms, Phase::Connect, async {
            let target = &order.target;
            let mut at_us = self.clock.now().mono_us;
            let mut lap = |of: &mut u64| {
                let now_us = self.clock.now().mono_us;
                *of += now_us.saturating_sub(at_us);
                at_us = now_us;
            };
            let addresses: Rc<[IpAddr]> = match target.host() {
                Host::Ip(address) => Rc::from([*address]),
                Host::Name(name) => self.names.addresses(order.tenant, name).await?,
            };
            lap(&mut timing.dns_us);
            // Checked here and connected to below: nobody is asked again in between.
            order.guard.check_addresses(target, &addresses)?;
            let stream = match order.proxy {
                None => dial(&addresses, target.port()).await?,
                Some(proxy) => {
                    // The operator's own: where it is, is not the tenant's choice and not judged as such.
                    let hop: Rc<[IpAddr]> = match proxy.target.host() {
                        Host::Ip(address) => Rc::from([*address]),
                        Host::Name(name) => self.names.addresses(order.tenant, name).await?,
                    };
                    let stream = dial(&hop, proxy.target.port()).await?;
                    proxy.tunnel(stream, SocketAddr::new(addresses[0], target.port())).await?
                }
            };
            lap(&mut timing.connect_us);
            let stream = if target.scheme() == Scheme::Https {
                let trust = self.trust(order).await?;
                let name = match target.host() {
                    Host::Ip(address) => ServerName::IpAddress((*address).into()),
                    Host::Name(name) => ServerName::try_from(name.clone())
                        .map_err(|_| NetError::Untrusted("the host is no name that a certificate can have".to_owned()))?,
                };
                let stream = TlsConnector::from(trust).connect(name, stream).await.map_err(|error| untrusted(&error))?;
                lap(&mut timing.tls_us);
                Stream::Tls(Box::new(stream))
            } else {
                Stream::Plain(stream)
            };
            Link::open(Socket::new(stream)).await
        })
        .await?
    }

    async fn trust(&self, order: &Order<'_>) -> Result<Trust, NetError> {
        if let Some((_, Some(trust))) = order.connector {
            return Ok(trust.clone());
        }
        if let Some(roots) = self.roots.get() {
            return Ok(roots.clone());
        }
        let roots = self.offload.roots().await.map_err(NetError::Untrusted)?;
        Ok(self.roots.get_or_init(|| roots).clone())
    }
}

impl Order<'_> {
    /// The request as this connection takes it.
    fn request(&self, h2: bool) -> Result<Request<Payload>, NetError> {
        let target = &self.target;
        // HTTP/1.1 names the host in a header and HTTP/2 in the request's own line.
        let uri = if h2 { target.as_str() } else { target.path_and_query() };
        let uri: Uri = uri.parse().map_err(|_| NetError::Broken("the URL is none that HTTP can carry".to_owned()))?;
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        if !h2 {
            let host = HeaderValue::try_from(target.authority());
            let host = host.map_err(|_| NetError::Broken("the host is none that HTTP can carry".to_owned()))?;
            request.headers_mut().insert(HOST, host);
        }
        let expects_body = matches!(self.method, Method::POST | Method::PUT | Method::PATCH);
        if let Some(size) = self.body.size().or(expects_body.then_some(0)) {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        }
        Ok(request)
    }

    /// Turns to where a redirect leads: with another method where the status says so, and without what was not meant for there.
    fn redirect(&mut self, target: Target, status: StatusCode) {
        let as_get = match status {
            StatusCode::SEE_OTHER => self.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == Method::POST,
            _ => false,
        };
        if as_get {
            self.method = Method::GET;
            self.body = Payload::Empty;
            self.headers.remove(CONTENT_TYPE);
        }
        if !self.target.same_origin(&target) {
            for name in PRIVATE.iter().chain(&self.private) {
                self.headers.remove(name);
            }
        }
        self.target = target;
    }
}

impl Answer {
    /// Gives the connection up, and no other request comes to it.
    fn abandon(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.pool.forget(&lease.place);
        }
    }

    /// What undoes an encoding of its body; at most `bytes_max` come out.
    ///
    /// # Errors
    /// The encoding is none that we know.
    pub fn decoder(&self, encoding: Option<&str>, bytes_max: u64) -> Result<Decoder, DecodeError> {
        Decoder::new(encoding, bytes_max, self.compute.clone())
    }

    /// The next piece of the body, none at its end.
    ///
    /// # Errors
    /// It did not come in time, or the connection broke.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, NetError> {
        loop {
            let frame = match within(self.stall_ms, Phase::Stall, self.body.frame()).await {
                Ok(frame) => frame,
                Err(late) => {
                    self.abandon();
                    return Err(late);
                }
            };
            match frame {
                None => {
                    // A stream of HTTP/2 that was reset without an error looks like one that has ended.
                    let cut = self.version == Version::HTTP_2 && !self.body.is_end_stream();
                    if cut || self.length.is_some_and(|length| length != self.received) {
                        self.abandon();
                        return Err(NetError::Broken("the body ended too early".to_owned()));
                    }
                    match self.lease.take() {
                        // Read to its end, and all was said: the connection is as good as new.
                        Some(lease) if lease.link.is_shared() && lease.spent.get() => {}
                        Some(lease) if lease.spent.get() && !lease.link.is_behind() => self.pool.keep(&lease.place, lease.link),
                        Some(lease) if !lease.spent.get() => self.pool.forget(&lease.place),
                        _ => {}
                    }
                    return Ok(None);
                }
                Some(Err(error)) => {
                    self.abandon();
                    return Err(NetError::Broken(super::link::text(&error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.received += data.len() as u64;
                        return Ok(Some(data));
                    }
                    // Trailers say nothing that a step is told.
                    Err(_) => {}
                },
            }
        }
    }
}

/// Where a redirect leads, if the answer is one.
fn location(response: &Response<Incoming>) -> Option<Result<&str, NetError>> {
    let leads = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| leads)?;
    Some(location.to_str().map_err(|_| NetError::Broken("the redirect's location is not readable".to_owned())))
}

/// Whether a method asks for no effect.
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether a request may be sent again without being asked to.
fn is_repeatable(method: &Method) -> bool {
    is_safe(method) || matches!(*method, Method::PUT | Method::DELETE)
}

/// Why there is no TLS: a certificate that does not hold is the other side's, and stays so however often it is tried.
pub(super) fn untrusted(error: &std::io::Error) -> NetError {
    use futures_rustls::rustls::Error;
    let text = super::link::text(error);
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented | Error::UnsupportedNameType) => {
            NetError::Untrusted(text)
        }
        _ => NetError::Tls(text),
    }
}

/// Headers that are ours to write: a step that names one is refused.
pub fn is_ours(name: &HeaderName) -> bool {
    const OURS: [&str; 9] = [
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
    ];
    *name == HOST || *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING || OURS.contains(&name.as_str())
}
