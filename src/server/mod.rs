//! Listeners, connections, drain. Knows HTTP's framing and nothing of what is asked.
//!
//! [`bind`] first, so that a port that is taken is a start that fails; then [`run`] until its shutdown future
//! ends, and until what was under way has ended or the drain time is up.

mod bind;
mod connections;
mod frames;
mod framing;
mod guard;
mod metered;
mod names;
mod proxy;
mod streams;
pub mod tls;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, Version, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::Service;

use self::bind::Accepted;
pub use self::bind::{BindError, Bound, Inherited, InheritedSocket, bind};
pub use self::connections::{Connections, Reserve};
use self::connections::{Order, Place};
use self::guard::{TimeoutIo, Timeouts, TrackedBody};
use self::metered::Metered;
use self::proxy::ProxyError;
use self::streams::Streams;
use self::tls::{Certified, TlsAcceptor};
use crate::config::Proxies;
use crate::core::error::{GatewayError, Reason};
use crate::core::peer::{Origin, Peer};
use crate::request::body::ResponseBody;

/// What connections may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, over all listeners that share this.
    pub connections: Arc<Connections>,
    /// For a whole request head; and before it, for a PROXY header and a TLS handshake together.
    pub header_timeout: Duration,
    /// For a client to take anything of what it is sent.
    pub write_timeout: Duration,
    /// Whose connections begin with a PROXY header.
    pub proxies: Arc<Proxies>,
    /// For what is under way when the server is told to stop.
    pub drain: Duration,
    /// How long connections without a request stay open then: a client may just be sending one, and is told that nobody
    /// serves it any more. While requests are under way on others it is six times as long: the process stays anyway.
    pub linger: Duration,
}

/// How long answers that were given when the drain time was up may take to be written.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long a request that has begun to arrive may take, once its connection is to close.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// How often it is looked whether requests are still under way.
const LOOK: Duration = Duration::from_millis(20);

/// Serves until `shutdown` ends, then lets what is under way finish. `service` is asked anew for every
/// request, so that a reload reaches connections that are open; it is told whose request it is.
///
/// When it has been told to stop, kept-alive connections stay open for a little while, so that the service can say of a
/// late request what has become of it. When the drain time is up it is the service that has to end what it still works
/// on.
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
    if tokio::time::timeout(limits.drain, drained(&limits)).await.is_err() {
        // The service has just ended what it worked on.
        let _ = tokio::time::timeout(LAST_ANSWERS, quiet(&limits.connections)).await;
        tracing::warn!("connections were still open when server.drain was up");
    }
    limits.connections.give_all(Order::End);
}

/// Lets every connection end what is under way on it, and go.
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
        // Either way they go now.
        let _ = tokio::time::timeout(limits.linger * 5, busy).await;
        connections.give_all(Order::Close);
        // Nobody is waited for who has nothing to wait for, be it that it has begun a request and never ends it.
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

/// Waits until nobody waits for an answer any more.
async fn quiet(connections: &Connections) {
    tokio::time::sleep(LOOK).await;
    while connections.are_awaited() {
        tokio::time::sleep(LOOK).await;
    }
    // What was given last is on its way to the socket.
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
            // First accepted, and then given a place: only for one that is there does another have to go. Those beyond
            // wait in the kernel's backlog.
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
                    // Out of descriptors, most likely: they come back, a busy loop does not help.
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
            return self.serving.serve(stream, Who::Plain(Arc::new(Peer::new(origin))), place);
        }
        let serving = self.serving.clone();
        tokio::spawn(async move {
            let (timeouts, connection) = (serving.limits.header_timeout, Arc::clone(place.connection()));
            let opening = async move {
                let (stream, peer) = introduced(stream, origin, is_proxied).await?;
                match tls {
                    None => serving.serve(stream, Who::Plain(Arc::new(peer)), place),
                    Some(tls) => {
                        let stream = Metered::new(stream, Arc::clone(place.connection()), place.head_share());
                        let (mut stream, certified) = tls.accept(stream, peer).await.map_err(OpenError::Tls)?;
                        stream.get_mut().0.is_open();
                        serving.serve(stream, Who::Certified(Box::new(certified)), place);
                    }
                }
                Ok::<_, OpenError>(())
            };
            let opened = tokio::select! {
                opened = tokio::time::timeout(timeouts, opening) => opened,
                // Nothing has been asked yet, so there is nothing to wait for.
                () = connection.told_to_leave() => return,
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

/// Whose a connection is.
enum Who {
    /// Known from the start.
    Plain(Arc<Peer>),
    /// Known by a certificate, which may lose its worth.
    Certified(Box<Certified>),
}

impl Who {
    /// Who it is now; and whether the connection should be made anew.
    fn peer(&self) -> (Arc<Peer>, bool) {
        match self {
            Self::Plain(peer) => (Arc::clone(peer), false),
            Self::Certified(certified) => certified.peer(),
        }
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
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    fn serve<T>(&self, io: T, who: Who, place: Place)
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
            let (mut guard, version, method) = (connection.begin(), request.version(), request.method().clone());
            let (peer, is_outdated) = who.peer();
            if is_outdated {
                connection.give(Order::Leave);
            }
            // HTTP/1.1 reads one head at a time.
            let waiting = (version == Version::HTTP_2).then(|| place.wait_to_begin(request.headers()));
            let asked = match connection.refuses(&request) {
                false => Ok((service(&peer), request)),
                true => Err(reserved()),
            };
            async move {
                let mut response = match asked {
                    Ok((mut service, request)) => {
                        // As `oneshot` does, which would move the request about more often than all layers together.
                        poll_fn(|context| service.poll_ready(context)).await?;
                        let mut answer = pin!(service.call(request));
                        let first = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
                        // It has seen the head, and keeps what it needs of it.
                        drop(waiting);
                        match first {
                            Poll::Ready(answer) => answer?,
                            Poll::Pending => answer.await?,
                        }
                    }
                    Err(response) => response,
                };
                guard.answered();
                streams::answered();
                if guard.connection().is_leaving() && version < Version::HTTP_2 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                if method == Method::HEAD {
                    state_length(&mut response);
                }
                Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, &method, version, guard)))
            }
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
                        // HTTP/1.1 has no way to tell a client before its next answer.
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

/// An answer to HEAD says how long the answer to GET would be (RFC 9110 section 9.3.2).
fn state_length(response: &mut Response<ResponseBody>) {
    if let Some(length @ 1..) = response.body().size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
    }
}

/// To what a connection of the reserve is not kept for.
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

/// Bytes that hyper keeps of a head: above what is let in, so that the refusal is ours and says why, and no more, since
/// a thousand clients may send their heads slowly.
const LONGEST_HEAD: usize = 64 * 1024;

/// The same for HTTP/2, where each field counts 32 bytes more (RFC 9113 section 6.5.2). The library refuses what is larger
/// by itself and without a body, so it is well above.
const LARGEST_LIST: u32 = 128 * 1024;

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
        // It bounds CONTINUATION frames, too.
        .max_header_list_size(LARGEST_LIST)
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
