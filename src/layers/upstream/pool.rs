//! Connections to the upstream, kept from one call to the next.
//!
//! A connection has no task of its own: the call that uses it drives it, so that a response passes no other task on its
//! way to the call. An idle connection is checked four times in [`IDLE`], and closed after that time. If the upstream
//! has closed it meanwhile, its next use fails. No connection is used for longer than [`OLDEST`], so that the
//! upstream's name is resolved again.
//!
//! When one ends in use, the others took the same network path and have most likely ended with it: all are closed.
//!
//! It does not know the content of requests, and repeats none that may have been sent.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::rt::{Read, Write};
use tokio::sync::Notify;
use tower::{BoxError, Service, ServiceExt};

use crate::core::clock::{Clock, Instant};

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection is used in all, because the upstream's name may get another address.
const OLDEST: Duration = Duration::from_secs(5 * 60);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("connecting took longer than upstream.connect_timeout")]
    TooSlow,
    #[error(transparent)]
    Failed(BoxError),
}

/// Connections to one upstream, which `C` makes.
#[derive(Debug)]
pub(super) struct Pool<C, T: Read + Write> {
    connector: C,
    url: Uri,
    /// For DNS, TCP, a proxy and TLS together.
    connect_timeout: Duration,
    clock: Clock,
    idle: Arc<Idle<T>>,
}

impl<C, T> Pool<C, T>
where
    C: Service<Uri, Response = T, Error = BoxError, Future: Send + 'static> + Clone + Send + 'static,
    T: Read + Write + Unpin + Send + 'static,
{
    pub(super) fn new(connector: C, url: Uri, connect_timeout: Duration, clock: Clock) -> Self {
        let links = Links { idle: Vec::new(), swept: false };
        let idle = Idle { clock, links: Mutex::new(links), more: Notify::new() };
        Self { connector, url, connect_timeout, clock, idle: Arc::new(idle) }
    }

    /// A connection for one call, and whether it was used before: the upstream may have closed one that was. While a
    /// new one is made, another that becomes idle may be taken instead.
    pub(super) async fn take(&self) -> Result<(Link<T>, bool), ConnectError> {
        if let Some(link) = self.idle.take() {
            return Ok((link, true));
        }
        let connecting = self.connector.clone().oneshot(self.url.clone());
        let mut connecting = Box::pin(connect(connecting, self.connect_timeout, self.clock));
        loop {
            tokio::select! {
                biased;
                made = &mut connecting => return made.map(|link| (link, false)),
                () = self.idle.more.notified() => {}
            }
            if let Some(link) = self.idle.take() {
                let idle = Arc::clone(&self.idle);
                tokio::spawn(async move {
                    if let Ok(link) = connecting.await {
                        idle.keep(link);
                    }
                });
                return Ok((link, true));
            }
        }
    }

    /// Keeps a connection for the next call, if its last response was read to the end and it stays open.
    pub(super) fn put_back(&self, link: Link<T>) {
        self.idle.keep(link);
    }

    /// A connection that was used before has ended: the next call gets a new one, or one that has been used since.
    pub(super) fn discard_idle(&self) {
        drop(self.idle.take_all());
    }
}

async fn connect<T, F>(connecting: F, limit: Duration, clock: Clock) -> Result<Link<T>, ConnectError>
where
    T: Read + Write + Unpin,
    F: Future<Output = Result<T, BoxError>>,
{
    let io = match tokio::time::timeout(limit, connecting).await {
        Ok(io) => io.map_err(ConnectError::Failed)?,
        Err(_) => return Err(ConnectError::TooSlow),
    };
    let (sender, connection) = http1::handshake(io).await.map_err(|error| ConnectError::Failed(error.into()))?;
    Ok(Link { sender, connection: Some(connection), made: clock.now() })
}

#[derive(Debug)]
struct Idle<T: Read + Write> {
    clock: Clock,
    links: Mutex<Links<T>>,
    /// Notified when another connection becomes idle.
    more: Notify,
}

#[derive(Debug)]
struct Links<T: Read + Write> {
    /// The last one kept is the first one taken, so the first in the list have been idle for longest.
    idle: Vec<(Link<T>, Instant)>,
    /// Whether there is a task that closes connections that have been idle too long.
    swept: bool,
}

impl<T: Read + Write + Unpin + Send + 'static> Idle<T> {
    fn take(&self) -> Option<Link<T>> {
        let now = self.clock.now();
        // Separate statements, so that no connection is closed under the lock.
        loop {
            let (link, since) = self.lock().idle.pop()?;
            if now < since + IDLE && now < link.made + OLDEST {
                return Some(link);
            }
        }
    }

    fn take_all(&self) -> Vec<(Link<T>, Instant)> {
        std::mem::take(&mut self.lock().idle)
    }

    fn keep(self: &Arc<Self>, mut link: Link<T>) {
        let now = self.clock.now();
        if now >= link.made + OLDEST || !link.is_idle() {
            return;
        }
        let mut links = self.lock();
        links.idle.push((link, now));
        if !std::mem::replace(&mut links.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
        drop(links);
        self.more.notify_one();
    }

    /// Closes connections that have been idle too long or have ended. Returns whether any are left.
    fn sweep(&self) -> bool {
        let now = self.clock.now();
        let mut links = self.lock();
        let closes = |(link, since): &mut (Link<T>, Instant)| {
            *since + IDLE <= now || link.made + OLDEST <= now || !link.is_idle()
        };
        let closed: Vec<_> = links.idle.extract_if(.., closes).collect();
        links.swept = !links.idle.is_empty();
        let is_left = links.swept;
        drop(links);
        // Without the lock, because closing takes time.
        drop(closed);
        is_left
    }

    fn lock(&self) -> MutexGuard<'_, Links<T>> {
        // Every change under this lock is one insertion or removal.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep<T: Read + Write + Unpin + Send + 'static>(idle: Weak<Idle<T>>) {
    loop {
        tokio::time::sleep(IDLE / 4).await;
        if !idle.upgrade().is_some_and(|idle| idle.sweep()) {
            return;
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link<T: Read + Write> {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended. Only dropping the connection returns a request that it has not sent.
    connection: Option<Connection<T, Full<Bytes>>>,
    made: Instant,
}

impl<T: Read + Write + Unpin> Link<T> {
    /// Drives the connection while `exchange` waits for a response. `exchange` sends through the sender that it is
    /// given.
    pub(super) async fn drive<'a, F: Future>(
        &'a mut self,
        exchange: impl FnOnce(&'a mut SendRequest<Full<Bytes>>) -> F,
    ) -> F::Output {
        let Self { sender, connection, .. } = self;
        let mut exchange = pin!(exchange(sender));
        poll_fn(|context| {
            // A response is a head and a body, and the call waits for each. The connection has to be polled again to
            // notice the second wait.
            for _ in 0..2 {
                if let Poll::Ready(output) = exchange.as_mut().poll(context) {
                    return Poll::Ready(output);
                }
                poll_to_its_end(connection, context);
            }
            exchange.as_mut().poll(context)
        })
        .await
    }

    /// Whether it has finished its requests and is open. The last user's task is not woken for it any more.
    fn is_idle(&mut self) -> bool {
        poll_to_its_end(&mut self.connection, &mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }
}

/// The caller that waits for a response learns how the connection ended.
fn poll_to_its_end<C: Future + Unpin>(connection: &mut Option<C>, context: &mut Context<'_>) {
    if connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(context).is_ready()) {
        *connection = None;
    }
}

#[cfg(test)]
mod tests;
