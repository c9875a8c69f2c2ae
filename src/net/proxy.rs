//! A way out through a proxy: a tunnel (CONNECT) to an address that the guard has checked, for HTTP as for HTTPS. The proxy is
//! told no name, so it cannot look up another address than we did. Lives on its core.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use glommio::net::TcpStream;
use zeroize::Zeroizing;

use crate::secrets::SecretRef;

use super::egress::Target;
use super::error::NetError;

/// The head of a proxy's answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
const END: &[u8] = b"\r\n\r\n";

/// A proxy. Shared, never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Where it is; spoken to in the clear.
    pub target: Target,
    /// Who we say we are to it.
    pub login: Option<(String, SecretRef)>,
}

impl Proxy {
    /// Makes a connection to the proxy one to `address`.
    pub(super) async fn tunnel(&self, mut stream: TcpStream, address: SocketAddr) -> Result<TcpStream, NetError> {
        let broken = |error: std::io::Error| NetError::Proxy(error.to_string());
        let mut request = Zeroizing::new(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n"));
        if let Some((user, password)) = &self.login {
            let password = password.read().map_err(|error| NetError::Secret(error.to_string()))?;
            let pair = Zeroizing::new(format!("{user}:{}", &**password));
            request.push_str(&Zeroizing::new(format!("Proxy-Authorization: Basic {}\r\n", BASE64.encode(pair.as_bytes()))));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut head = Vec::new();
        let mut piece = [0; 512];
        let end = |head: &[u8]| head.windows(END.len()).position(|window| window == END).map(|at| at + END.len());
        while end(&head).is_none() {
            match stream.read(&mut piece).await.map_err(broken)? {
                0 => return Err(NetError::Proxy("it closed the connection".to_owned())),
                bytes => head.extend_from_slice(&piece[..bytes]),
            }
            if head.len() > HEAD_BYTES_MAX {
                return Err(NetError::Proxy("its answer has no end".to_owned()));
            }
        }
        let status =
            head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|digits| std::str::from_utf8(digits).ok());
        match status.and_then(|digits| digits.parse::<u16>().ok()) {
            // Whoever is at the other end speaks only when spoken to: what follows the head at once is not from there.
            Some(200..=299) if end(&head) == Some(head.len()) => Ok(stream),
            Some(200..=299) => Err(NetError::Proxy("it says more than it was asked".to_owned())),
            Some(status) => Err(NetError::Proxy(format!("it answered with status {status}"))),
            None => Err(NetError::Proxy("it does not speak HTTP".to_owned())),
        }
    }
}
