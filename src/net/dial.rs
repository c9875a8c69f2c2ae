//! From checked addresses to a connection: the first that takes one, each given a head start over the next. Lives on its core.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use glommio::net::TcpStream;
use shards::runtime::rt;

use super::error::{NetError, Phase};
use super::limits::{ADDRESSES_MAX, STAGGER_MS};

/// Ends `work` after so long, and what it waits for with it.
pub(crate) async fn within<T>(ms: u64, phase: Phase, work: impl Future<Output = T>) -> Result<T, NetError> {
    let mut work = pin!(work);
    // Much of it is there already, and a timer costs more than a look.
    if let Poll::Ready(value) = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        return Ok(value);
    }
    let timer = pin!(rt::sleep(Duration::from_millis(ms)));
    match select(work, timer).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(((), _)) => Err(NetError::Late { phase, ms }),
    }
}

type Attempt = Pin<Box<dyn Future<Output = Result<TcpStream, String>>>>;

fn attempt(address: SocketAddr) -> Attempt {
    Box::pin(async move {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        // Requests are written whole; waiting for more to send only costs time.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    })
}

/// Connects to the first of these addresses that lets us; they were checked, and nothing else is connected to.
pub(super) async fn dial(addresses: &[IpAddr], port: u16) -> Result<TcpStream, NetError> {
    let mut left = addresses.iter().take(ADDRESSES_MAX).map(|address| SocketAddr::new(*address, port));
    let mut racing: Vec<Attempt> = Vec::new();
    let mut why = String::from("there is no address");
    loop {
        match left.next() {
            Some(address) => racing.push(attempt(address)),
            None if racing.is_empty() => return Err(NetError::Unreachable(why)),
            None => {}
        }
        let patience = async {
            // With nothing left to try beside them, those that race have all the time there is.
            if left.len() == 0 {
                std::future::pending::<()>().await;
            }
            rt::sleep(Duration::from_millis(STAGGER_MS)).await;
        };
        let race = std::future::poll_fn(|cx| {
            let mut index = 0;
            while index < racing.len() {
                match racing[index].as_mut().poll(cx) {
                    Poll::Ready(Ok(stream)) => return Poll::Ready(Some(stream)),
                    Poll::Ready(Err(error)) => {
                        why = error;
                        drop(racing.swap_remove(index));
                        // The next is due at once.
                        return Poll::Ready(None);
                    }
                    Poll::Pending => index += 1,
                }
            }
            Poll::Pending
        });
        let (race, patience) = (pin!(race), pin!(patience));
        if let Either::Left((Some(stream), _)) = select(race, patience).await {
            return Ok(stream);
        }
    }
}
