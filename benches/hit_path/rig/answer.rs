//! The bare server and the upstream: hyper on one thread, with the same response to every query.

use std::convert::Infallible;
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::part::{Failure, Role};
use super::queries;

/// Serves until standard input ends, which happens in any case when the benchmark ends. The first line on standard
/// output is the port.
pub fn run(role: Role, size: usize, distinct: u32) -> Result<(), Failure> {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let pages = Arc::new(Pages::new(size, distinct.max(1)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?.port());
        let calls = Arc::new(AtomicU64::new(0));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (pages, calls) = (Arc::clone(&pages), Arc::clone(&calls));
            tokio::task::spawn_local(async move {
                let connection = http1::Builder::new();
                // Ends with its client. Errors of the client do not matter.
                let _ = match role {
                    Role::Upstream => {
                        let service = service_fn(move |request| counted(request, pages.next(), Arc::clone(&calls)));
                        connection.serve_connection(TokioIo::new(stream), service).await
                    }
                    Role::Bare | Role::Load => {
                        let service = service_fn(move |request| bare(request, pages.next()));
                        connection.serve_connection(TokioIo::new(stream), service).await
                    }
                };
            });
        }
    })
}

/// As many copies of one page as there are queries, in the order in which those are requested. A cache reads that much
/// memory. Where it no longer fits into the processor's caches, the server that it is compared to must have the same
/// disadvantage.
struct Pages {
    pages: Vec<Bytes>,
    order: Vec<u32>,
    served: AtomicUsize,
}

impl Pages {
    fn new(size: usize, distinct: u32) -> Self {
        let page = queries::answer(size);
        let pages = (0..distinct).map(|_| Bytes::from(page.clone())).collect();
        Self { pages, order: queries::zipf(distinct), served: AtomicUsize::new(0) }
    }

    fn next(&self) -> Bytes {
        let served = self.served.fetch_add(1, Ordering::Relaxed);
        self.pages[self.order[served % self.order.len()] as usize].clone()
    }
}

async fn bare(request: Request<Incoming>, page: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    // The whole body, as a gateway has to read it; its content does not matter.
    let _ = request.into_body().collect().await;
    Ok(json(page))
}

/// The upstream: `GET` of the metadata returns some, and any other `GET` returns how many queries there were.
async fn counted(
    request: Request<Incoming>,
    page: Bytes,
    calls: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::GET && request.uri().path() == queries::METADATA_PATH {
        return Ok(json(Bytes::from_static(queries::METADATA.as_bytes())));
    }
    if request.method() == Method::GET {
        return Ok(json(calls.load(Ordering::Relaxed).to_string().into()));
    }
    calls.fetch_add(1, Ordering::Relaxed);
    bare(request, page).await
}

fn json(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
