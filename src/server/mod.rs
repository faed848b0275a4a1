//! Listeners, connections, drain. Knows HTTP's framing and nothing of what is asked.
//!
//! [`bind`] first, so that a port that is taken is a start that fails; then [`run`] until its shutdown future
//! ends, and until what was under way has ended or the drain time is up.

mod bind;
mod framing;
mod guard;
mod names;
mod proxy;
mod streams;
pub mod tls;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

use self::bind::Accepted;
pub use self::bind::{BindError, Bound, Inherited, InheritedSocket, bind};
use self::guard::{Busy, Guarded, Held, Patience};
use self::proxy::ProxyError;
use self::streams::Streams;
use self::tls::TlsAcceptor;
use crate::config::Proxies;
use crate::model::peer::{Origin, Peer};

/// What connections may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, over all listeners that share this.
    pub connections: Arc<Semaphore>,
    /// For a whole request head; and before it, for a PROXY header and a TLS handshake together.
    pub header_timeout: Duration,
    /// For a client to take anything of what it is sent.
    pub write_timeout: Duration,
    /// Whose connections begin with a PROXY header.
    pub proxies: Arc<Proxies>,
    /// For what is under way when the server is told to stop.
    pub drain: Duration,
}

/// Serves until `shutdown` ends, then lets what is under way finish. `service` is asked anew for every
/// request, so that a reload reaches connections that are open; it is told whose request it is.
pub async fn run<S>(
    listeners: Vec<Bound>,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    service: impl Fn(&Arc<Peer>) -> S + Clone + Send + Sync + 'static,
    shutdown: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) where
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    let graceful = Arc::new(GracefulShutdown::new());
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|bound| {
            let serving = Serving { limits: limits.clone(), service: service.clone() };
            let accept = Accept { serving, graceful: Arc::clone(&graceful), shutdown: shutdown.clone() };
            let (tls, shutdown) = (tls.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = accept.forever(&bound, tls) => {}
                    () = shutdown => {}
                }
            })
        })
        .collect();
    for task in accepting {
        // A listener's task that panicked has been reported by the panic itself.
        let _ = task.await;
    }
    // Only the tasks that accept shared it.
    let Some(graceful) = Arc::into_inner(graceful) else { return };
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open when server.drain was up");
    }
}

struct Accept<F, D> {
    serving: Serving<F>,
    graceful: Arc<GracefulShutdown>,
    shutdown: D,
}

impl<S, F, D> Accept<F, D>
where
    F: Fn(&Arc<Peer>) -> S + Clone + Send + Sync + 'static,
    D: Future<Output = ()> + Clone + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    async fn forever(&self, bound: &Bound, tls: Option<TlsAcceptor>) {
        loop {
            // Before accept, so that connections beyond the limit wait in the kernel's backlog.
            let Ok(permit) = Arc::clone(&self.serving.limits.connections).acquire_owned().await else { return };
            match bound.accept().await {
                Ok(Accepted::Tcp(stream, origin)) => self.begin(stream, origin, tls.clone(), permit),
                Ok(Accepted::Unix(stream, origin)) => self.begin(stream, origin, None, permit),
                Err(error) => {
                    // Out of descriptors, most likely: they come back, a busy loop does not help.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn begin<T>(&self, stream: T, origin: Origin, tls: Option<TlsAcceptor>, permit: OwnedSemaphorePermit)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let is_proxied = is_proxied(&self.serving.limits.proxies, origin);
        if tls.is_none() && !is_proxied {
            return self.serving.serve(stream, Peer::new(origin), permit, self.graceful.watcher());
        }
        let (serving, watcher, shutdown) = (self.serving.clone(), self.graceful.watcher(), self.shutdown.clone());
        tokio::spawn(async move {
            let patience = serving.limits.header_timeout;
            let opening = async move {
                let (stream, peer) = introduced(stream, origin, is_proxied).await?;
                match tls {
                    None => serving.serve(stream, peer, permit, watcher),
                    Some(tls) => {
                        let stream = tls.accept(stream).await.map_err(OpenError::Tls)?;
                        let peer = peer.with_names(tls::names(&stream));
                        serving.serve(stream, peer, permit, watcher);
                    }
                }
                Ok::<_, OpenError>(())
            };
            let opened = tokio::select! {
                opened = tokio::time::timeout(patience, opening) => opened,
                // Nothing has been asked yet, so there is nothing to wait for.
                () = shutdown => return,
            };
            match opened {
                Ok(Ok(())) => {}
                // Somebody's mistake in a setting, which nobody else would see.
                Ok(Err(error @ OpenError::Proxy(ProxyError::Missing | ProxyError::Malformed))) => {
                    tracing::warn!(peer = Peer::new(origin).as_str(), "a connection is refused: {error}");
                }
                Ok(Err(error)) => {
                    tracing::debug!(peer = Peer::new(origin).as_str(), "a connection is refused: {error}")
                }
                Err(_) => tracing::debug!(peer = Peer::new(origin).as_str(), "a connection took too long to open"),
            }
        });
    }
}

/// Why a connection never becomes one that is served.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("TLS handshake failed: {0}")]
    Tls(std::io::Error),
}

fn is_proxied(proxies: &Proxies, origin: Origin) -> bool {
    match origin {
        Origin::Tcp(address) => proxies.networks.iter().any(|network| network.contains(address.ip())),
        Origin::Unix { .. } | Origin::Unknown => proxies.unix,
    }
}

/// The stream behind its PROXY header, if there has to be one, and whose it is.
async fn introduced<T>(mut stream: T, origin: Origin, is_proxied: bool) -> Result<(T, Peer), ProxyError>
where
    T: AsyncRead + Unpin,
{
    let stated = if is_proxied { proxy::read(&mut stream).await? } else { None };
    Ok((stream, Peer::new(stated.map_or(origin, Origin::Tcp))))
}

#[derive(Clone)]
struct Serving<F> {
    limits: Limits,
    service: F,
}

impl<S, F> Serving<F>
where
    F: Fn(&Arc<Peer>) -> S + Clone + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    fn serve<T>(&self, io: T, peer: Peer, permit: OwnedSemaphorePermit, watcher: Watcher)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let busy = Busy::default();
        let patience = Patience { header: self.limits.header_timeout, write: self.limits.write_timeout };
        let io = TokioIo::new(Guarded::new(io, busy.clone(), patience));
        let (service, peer) = (self.service.clone(), Arc::new(peer));
        let service = service_fn(move |request: Request<Incoming>| {
            let (guard, version) = (busy.begin(), request.version());
            let mut service = service(&peer);
            async move {
                // As `oneshot` does, which would move the request about more often than all layers together.
                let answer = match poll_fn(|context| service.poll_ready(context)).await {
                    Ok(()) => service.call(request).await,
                    Err(never) => Err(never),
                };
                streams::answered();
                answer.map(|response| response.map(|body| Held::new(body, version, guard)))
            }
        });
        let connection = builder(patience.write).serve_connection(io, service).into_owned();
        let connection = watcher.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "connection ended");
            }
            drop(permit);
        });
    }
}

/// Bytes that hyper keeps of a head: above what is let in, so that the refusal is ours and says why, and no more, since
/// a thousand clients may send their heads slowly.
const LONGEST_HEAD: usize = 64 * 1024;

/// HTTP/1.1, and HTTP/2 by prior knowledge or ALPN, both bounded.
fn builder(write_timeout: Duration) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams { write_timeout });
    builder
        .http1()
        .timer(TokioTimer::new())
        // Off: `guard` does it. See there.
        .header_read_timeout(None)
        .max_buf_size(LONGEST_HEAD)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        // RFC 9113 section 6.5.2: no fewer than 100.
        .max_concurrent_streams(100)
        // Above what is let in, as with HTTP/1.1. It bounds CONTINUATION frames, too.
        .max_header_list_size(128 * 1024)
        // A client that resets what it asks faster than it is looked at, or makes errors all the time, is sent away.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        // A query is small. What was received and not read is kept, up to the second on each connection.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}
