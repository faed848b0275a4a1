//! Listeners, connections, drain. Knows HTTP's framing and nothing of what is asked.
//!
//! [`bind`] first, so that a port that is taken is a start that fails; then [`run`] until its shutdown future
//! ends, and until what was under way has ended or the drain time is up.

mod guard;
pub mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Service, ServiceExt};

use self::guard::{Busy, Guarded, Held};
use self::tls::TlsAcceptor;
use crate::config::Listen;

/// A listener that is open.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener, SocketFile),
}

/// A socket's file, which goes when the listener does.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bound {
    /// Where it listens, in the form of the configuration.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(_, file) => format!("unix:{}", file.0.display()),
        }
    }

    /// The TCP address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

/// A listener that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: String,
    source: io::Error,
}

/// Opens a listener.
///
/// # Errors
///
/// When the address is taken or not ours. A socket file that nobody listens on is replaced; any other file is not.
pub fn bind(listen: &Listen) -> Result<Bound, BindError> {
    let bound = match listen {
        Listen::Tcp(address) => bind_tcp(*address).map(Bound::Tcp),
        Listen::Unix(path) => bind_unix(path).map(|listener| Bound::Unix(listener, SocketFile(path.clone()))),
    };
    bound.map_err(|source| {
        let address = match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => format!("unix:{}", path.display()),
        };
        BindError { address, source }
    })
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the last connections' TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;

    let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if stale {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// What connections may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, over all listeners that share this.
    pub connections: Arc<Semaphore>,
    /// For a whole request head.
    pub header_timeout: Duration,
    /// For what is under way when the server is told to stop.
    pub drain: Duration,
}

/// Serves until `shutdown` ends, then lets what is under way finish. `service` is asked anew for every
/// request, so that a reload reaches connections that are open.
pub async fn run<S>(
    listeners: Vec<Bound>,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    service: impl Fn() -> S + Clone + Send + Sync + 'static,
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
    F: Fn() -> S + Clone + Send + Sync + 'static,
    D: Future<Output = ()> + Clone + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    async fn forever(&self, bound: &Bound, tls: Option<TlsAcceptor>) {
        loop {
            // Before accept, so that connections beyond the limit wait in the kernel's backlog.
            let Ok(permit) = Arc::clone(&self.serving.limits.connections).acquire_owned().await else { return };
            let accepted = match bound {
                Bound::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Best effort: without it small answers are slower, not wrong.
                    let _ = stream.set_nodelay(true);
                    match tls.clone() {
                        Some(tls) => self.serve_tls(stream, tls, permit),
                        None => self.serving.serve(stream, permit, self.graceful.watcher()),
                    }
                }),
                Bound::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                    self.serving.serve(stream, permit, self.graceful.watcher());
                }),
            };
            if let Err(error) = accepted {
                // Out of descriptors, most likely: they come back, a busy loop does not help.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn serve_tls(&self, stream: tokio::net::TcpStream, tls: TlsAcceptor, permit: OwnedSemaphorePermit) {
        let (serving, watcher, shutdown) = (self.serving.clone(), self.graceful.watcher(), self.shutdown.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(serving.limits.header_timeout, tls.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                // Nothing has been asked yet, so there is nothing to wait for.
                () = shutdown => return,
            };
            match shaken {
                Ok(Ok(stream)) => serving.serve(stream, permit, watcher),
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
        });
    }
}

#[derive(Clone)]
struct Serving<F> {
    limits: Limits,
    service: F,
}

impl<S, F> Serving<F>
where
    F: Fn() -> S + Clone + Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<Full<Bytes>>, Error = Infallible> + Send + 'static,
    S::Future: Send,
{
    fn serve<T>(&self, io: T, permit: OwnedSemaphorePermit, watcher: Watcher)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let busy = Busy::default();
        let io = TokioIo::new(Guarded::new(io, busy.clone(), self.limits.header_timeout));
        let service = self.service.clone();
        let service = service_fn(move |request| {
            let guard = busy.begin();
            let answer = service().oneshot(request);
            async move { answer.await.map(|response| response.map(|body| Held { body, _busy: guard })) }
        });
        let connection = builder().serve_connection(io, service).into_owned();
        let connection = watcher.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "connection ended");
            }
            drop(permit);
        });
    }
}

/// HTTP/1.1, and HTTP/2 by prior knowledge or ALPN, both bounded.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Off: `guard` does it. See there.
        .header_read_timeout(None)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(200)
        // Above what is let in, so that the refusal is ours and says why.
        .max_header_list_size(256 * 1024)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}
