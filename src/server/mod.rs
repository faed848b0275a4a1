//! Listeners, connections, drain. This module handles HTTP's framing and does not know what the requests ask.
//!
//! Call [`bind`] first, so that an address that is in use fails the start. Then [`run`] serves until its `shutdown`
//! future ends, and until the requests under way have ended or the drain time is up.

mod bind;
mod connections;
mod frames;
mod framing;
mod guard;
mod metered;
mod names;
mod protocol;
mod proxy;
mod refusal;
mod response_future;
mod streams;
pub(crate) mod tls;
mod tracked_body;
mod warning_limit;

use std::convert::Infallible;
use std::future::{Future, poll_fn, ready};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, poll_immediate};
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tower::Service;

use self::bind::Accepted;
pub use self::bind::{BindError, Bound, Inherited, InheritedSocket, bind};
pub use self::connections::{Connections, Reserve};
use self::connections::{LARGEST_LIST, Order, Place, WaitingHead};
use self::guard::{TimeoutIo, Timeouts};
use self::metered::Metered;
use self::proxy::ProxyError;
use self::response_future::ResponseFuture;
use self::streams::Streams;
use self::tls::{CertifiedPeer, TlsAcceptor};
use crate::config::Proxies;
use crate::core::error::{GatewayError, Reason};
use crate::core::peer::{Origin, Peer};
use crate::request::body::ResponseBody;

/// Limits of connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections open at the same time, over all listeners that share this.
    pub connections: Arc<Connections>,
    /// For a complete request head, and also for a PROXY header and a TLS handshake together.
    pub header_timeout: Duration,
    /// For a client to take any of the bytes that it is sent.
    pub write_timeout: Duration,
    /// The proxies whose connections begin with a PROXY header.
    pub proxies: Arc<Proxies>,
    /// For requests under way when the server is told to stop.
    pub drain: Duration,
    /// How long connections without a request stay open then: a client may be sending one, and gets a refusal instead
    /// of a reset. While requests are under way on other connections it is six times as long, because the process has
    /// to stay for those.
    pub linger: Duration,
}

/// How long responses that were given at the end of the drain time may take to be written.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long a request that has begun to arrive may take on a connection that is about to close.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// How often the drain checks whether requests are still under way.
const LOOK: Duration = Duration::from_millis(20);

/// Serves until `shutdown` ends, then lets the requests under way finish. `service` is called again for every request,
/// with the peer, so that a reload reaches open connections.
///
/// After `shutdown`, kept-alive connections stay open for a short time, so that the service can refuse a late request
/// with a reason. When the drain time is up, the service has to end the requests that it still works on.
pub async fn run<S>(
    listeners: Vec<Bound>,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    service: impl Fn(&Arc<Peer>) -> S + Clone + Send + Sync + 'static,
    shutdown: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|bound| {
            let accept = Accept { serving: Serving { limits: limits.clone(), service: service.clone() } };
            let (tls, shutdown, connections) = (tls.clone(), shutdown.clone(), limits.connections.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = accept.forever(&bound, tls) => {}
                    // At once, so that no response in progress seems to keep its connection open.
                    () = shutdown => connections.give_all(Order::Leave),
                }
            })
        })
        .collect();
    for task in accepting {
        // The panic of a listener's task has been reported already.
        let _ = task.await;
    }
    if tokio::time::timeout(limits.drain, drained(&limits)).await.is_err() {
        // The service has just ended its requests.
        let _ = tokio::time::timeout(LAST_ANSWERS, quiet(&limits.connections)).await;
        tracing::warn!("connections were still open when server.drain was up");
    }
    limits.connections.give_all(Order::End);
}

/// Lets every connection end the requests under way on it, and close.
async fn drained(limits: &Limits) {
    let connections = &limits.connections;
    connections.give_all(Order::Leave);
    let idle = async {
        tokio::time::sleep(limits.linger).await;
        let busy = async {
            while connections.are_busy() {
                tokio::time::sleep(LOOK).await;
            }
        };
        // In both cases the connections close now.
        let _ = tokio::time::timeout(limits.linger * 5, busy).await;
        connections.give_all(Order::Close);
        // Do not wait for a client that waits for nothing, even if it has begun a request and never ends it.
        loop {
            tokio::time::sleep(LAST_REQUEST).await;
            connections.end_quiet();
        }
    };
    tokio::select! {
        () = connections.emptied() => {}
        () = idle => {}
    }
}

/// Waits until no client waits for a response.
async fn quiet(connections: &Connections) {
    tokio::time::sleep(LOOK).await;
    while connections.are_awaited() {
        tokio::time::sleep(LOOK).await;
    }
    // The last response may still be on its way to the socket.
    tokio::time::sleep(LOOK).await;
}

struct Accept<F> {
    serving: Serving<F>,
}

impl<S, F> Accept<F>
where
    F: Fn(&Arc<Peer>) -> S + Clone + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    async fn forever(&self, bound: &Bound, tls: Option<TlsAcceptor>) {
        loop {
            // Accept first, then find a place: an idle connection is closed only for one that is really there.
            // Connections beyond the limit wait in the kernel's backlog.
            match bound.accept().await {
                Ok(Accepted::Tcp(stream, origin)) => {
                    let place = self.serving.limits.connections.enter().await;
                    self.begin(stream, origin, tls.clone(), place);
                }
                Ok(Accepted::Unix(stream, origin)) => {
                    let place = self.serving.limits.connections.enter().await;
                    self.begin(stream, origin, None, place);
                }
                Err(error) => {
                    // Most likely no file descriptor is free. Some become free later; a busy loop does not help.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn begin<T>(&self, stream: T, origin: Origin, tls: Option<TlsAcceptor>, place: Place)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let is_proxied = is_proxied(&self.serving.limits.proxies, origin);
        if tls.is_none() && !is_proxied {
            return self.serving.serve(stream, PeerIdentity::Plain(Arc::new(Peer::new(origin))), place);
        }
        let serving = self.serving.clone();
        tokio::spawn(async move {
            let (timeouts, connection) = (serving.limits.header_timeout, Arc::clone(place.connection()));
            let opening = async move {
                let (stream, peer) = introduced(stream, origin, is_proxied).await?;
                match tls {
                    None => serving.serve(stream, PeerIdentity::Plain(Arc::new(peer)), place),
                    Some(tls) => {
                        let mut stream = Metered::new(stream, Arc::clone(place.connection()), place.head_share());
                        // A record of a handshake begins with 22 (RFC 8446 section 5.1), a request with a letter.
                        if stream.first().await.map_err(OpenError::Tls)?.is_ascii_alphabetic() {
                            return Err(refuse_plain(stream).await);
                        }
                        let (mut stream, certified) = tls.accept(stream, peer).await.map_err(OpenError::Tls)?;
                        stream.get_mut().0.is_open();
                        serving.serve(stream, PeerIdentity::Certified(Box::new(certified)), place);
                    }
                }
                Ok::<_, OpenError>(())
            };
            let opened = tokio::select! {
                opened = tokio::time::timeout(timeouts, opening) => opened,
                // No request has come yet, so there is nothing to wait for.
                () = connection.told_to_leave() => return,
            };
            match opened {
                Ok(Ok(())) => {}
                // A wrong setting somewhere, which only this line shows.
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

/// The peer of a connection.
enum PeerIdentity {
    /// Known when the connection was accepted.
    Plain(Arc<Peer>),
    /// Identified by a certificate, which may become invalid.
    Certified(Box<CertifiedPeer>),
}

impl PeerIdentity {
    /// Who the peer is now, and whether the client should open a new connection.
    fn peer(&self) -> (Arc<Peer>, bool) {
        match self {
            Self::Plain(peer) => (Arc::clone(peer), false),
            Self::Certified(certified) => certified.peer(),
        }
    }
}

/// Why a connection is closed before it can send a request.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("TLS handshake failed: {0}")]
    Tls(std::io::Error),
    #[error("plain HTTP on a listener of TLS; the client was told")]
    Plain,
}

/// Tells a client in plain HTTP that this listener uses TLS. Then it reads what the client still sends for a while:
/// closing a connection with unread bytes resets it, and the answer may be lost.
async fn refuse_plain<T>(mut stream: T) -> OpenError
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    const MOST: u64 = 64 * 1024;
    const LONGEST: Duration = Duration::from_secs(1);
    let message = "this port speaks TLS, and the request came in plain HTTP; use https:// in the address";
    let answered = async {
        stream.write_all(&refusal::answer(Reason::BadRequest, message)).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MOST), &mut tokio::io::sink()).await
    };
    // If the client has left, there is nothing more to do.
    let _ = tokio::time::timeout(LONGEST, answered).await;
    OpenError::Plain
}

fn is_proxied(proxies: &Proxies, origin: Origin) -> bool {
    match origin {
        Origin::Tcp(address) => proxies.networks.iter().any(|network| network.contains(address.ip())),
        Origin::Unix { .. } | Origin::Unknown => proxies.unix,
    }
}

/// Reads the PROXY header, if there has to be one. Returns the stream after it, and the peer.
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
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    fn serve<T>(&self, io: T, who: PeerIdentity, place: Place)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let timeouts = Timeouts { header: self.limits.header_timeout, write: self.limits.write_timeout };
        let io = TokioIo::new(TimeoutIo::new(io, &place, timeouts));
        let (service, place) = (self.service.clone(), Arc::new(place));
        let held = Arc::clone(&place);
        let connection = Arc::clone(place.connection());
        connection.is_of(&who.peer().0);
        let service = service_fn(move |request: Request<Incoming>| {
            let (guard, version, method) = (connection.begin(), request.version(), request.method().clone());
            let (peer, is_outdated) = who.peer();
            if is_outdated {
                connection.give(Order::Leave);
            }
            if connection.refuses(&request) {
                return ResponseFuture::new(Either::Right(ready(Ok(reserved())).boxed()), method, version, guard);
            }
            let mut service = service(&peer);
            // HTTP/1.1 reads one head at a time, so the connection's own task may work on it. A request that is passed on at
            // once is not moved into a future first.
            let is_ready = version < Version::HTTP_2
                && matches!(service.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
            let answer = match is_ready {
                true => Either::Left(service.call(request)),
                false => {
                    let waiting = (version == Version::HTTP_2).then(|| place.wait_to_begin(request.headers()));
                    Either::Right(answer_later(service, request, waiting).boxed())
                }
            };
            ResponseFuture::new(answer, method, version, guard)
        });
        let served = builder(timeouts.write).serve_connection(io, service).into_owned();
        tokio::spawn(async move {
            let (mut served, connection) = (pin!(served), held.connection());
            let mut is_told = Order::Stay;
            let ended = std::future::poll_fn(|context| {
                let order = connection.poll_order(context);
                if order > is_told {
                    is_told = order;
                    match order {
                        Order::Yield | Order::End => return Poll::Ready(Ok(())),
                        // HTTP/1.1 cannot tell a client before the next response.
                        Order::Leave if !connection.is_http2() => {}
                        _ => served.as_mut().graceful_shutdown(),
                    }
                }
                connection.next_turn();
                served.as_mut().poll(context)
            });
            if let Err(error) = ended.await {
                tracing::debug!(error = %error, "connection ended");
            }
        });
    }
}

/// Calls the service as soon as it is ready. `waiting` counts the request's head until then.
async fn answer_later<S>(
    mut service: S,
    request: Request<Incoming>,
    waiting: Option<WaitingHead>,
) -> Result<Response<ResponseBody>, Infallible>
where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    poll_fn(|context| service.poll_ready(context)).await?;
    let mut answer = pin!(service.call(request));
    let first = poll_immediate(answer.as_mut()).await;
    // The service has seen the head, and keeps what it needs of it.
    drop(waiting);
    match first {
        Some(answer) => answer,
        None => answer.await,
    }
}

/// The response to a request that the reserve does not serve.
fn reserved() -> Response<ResponseBody> {
    let error = GatewayError::new(Reason::Overloaded, "all connections are busy; come back shortly");
    let mut response = Response::new(ResponseBody::full(error.to_body()));
    *response.status_mut() = error.reason().status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Bytes that hyper keeps of a head. It is above the accepted size, so that the gateway itself refuses a larger head
/// and says why; but not far above, because a thousand clients may send their heads slowly.
const LONGEST_HEAD: usize = 64 * 1024;

/// HTTP/1.1, and HTTP/2 by prior knowledge or ALPN, both with limits.
fn builder(write_timeout: Duration) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams { write_timeout });
    builder
        .http1()
        .timer(TokioTimer::new())
        // Off, because `guard` does this; see there.
        .header_read_timeout(None)
        .max_buf_size(LONGEST_HEAD)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        // RFC 9113 section 6.5.2 recommends at least 100.
        .max_concurrent_streams(100)
        // This bounds CONTINUATION frames too.
        .max_header_list_size(LARGEST_LIST)
        // A client is disconnected that resets streams faster than they are accepted, or makes errors all the time.
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        // A query is small. Bytes that were received and not read stay in memory, up to the second limit for each
        // connection.
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}
