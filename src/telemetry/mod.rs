//! Traces, sent to a collector over OTLP/HTTP. No request ever waits for that.
//!
//! The event of a request's end is put into a bounded queue. A separate task makes spans of the events and sends many
//! at a time. Where the queue is full, or the collector does not accept spans, they are dropped and counted, and
//! requests are not delayed. [`observe`](crate::layers::observe) decides which requests are recorded and sampled.

mod otlp;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::core::backoff::Backoff;
use crate::core::chain::chain;
use crate::core::clock::Clock;
use crate::core::work_queue::{Work, WorkQueue};
use crate::metrics::{Metrics, ResultLabels, StaticLabel};
use crate::request::ended::{RequestEnded, RequestSubscriber};
use crate::semantics::upstream_headers;
use crate::trust::{self, TrustError};

/// Requests that may wait to be sent: a few MiB at most.
const QUEUE: usize = 2048;
/// Requests sent at once.
const BATCH: usize = 256;
/// How long requests are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take to respond.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many times the same spans are sent, at most.
const TRIES: u32 = 4;
const BETWEEN_TRIES: Backoff = Backoff { base: Duration::from_secs(1), max: Duration::from_secs(8) };
/// The longest `Retry-After` that is waited for. Meanwhile requests queue up, and beyond [`QUEUE`] are dropped.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long the end of the process waits for the last spans.
const LAST: Duration = Duration::from_secs(2);

/// Exports requests that have ended. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Exporter {
    queue: WorkQueue<RequestEnded>,
    metrics: Arc<Metrics>,
}

impl RequestSubscriber for Exporter {
    fn ended(&self, request: &RequestEnded) {
        if request.is_traced {
            self.offer(request.clone());
        }
    }
}

impl Exporter {
    /// Starts to send to the collector at `url`, to which `/v1/traces` is added. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the collector is reached over TLS and the trust roots cannot be loaded.
    pub fn start(url: &Uri, metrics: Arc<Metrics>, clock: Clock) -> Result<Self, TrustError> {
        Ok(Self::with(post(url, clock)?, metrics, clock))
    }

    fn with(transport: Transport, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let (queue, work) = WorkQueue::bounded(QUEUE);
        tokio::spawn(Worker { work, transport, metrics: Arc::clone(&metrics), clock, failing: false }.run());
        Self { queue, metrics }
    }

    /// Queues a request, unless too many wait already.
    fn offer(&self, request: RequestEnded) {
        if let Err(lost) = self.queue.offer(request) {
            count(&self.metrics, "dropped", spans::of(&lost).len());
        }
    }

    /// Sends what waits; takes two seconds at most.
    pub async fn close(&self) {
        if tokio::time::timeout(LAST, self.queue.flush()).await.is_err() {
            tracing::warn!("the collector is slow: the last spans are not sent");
        }
    }
}

fn count(metrics: &Metrics, result: &'static str, spans: usize) {
    metrics.spans.get_or_create(&ResultLabels { result: StaticLabel(result) }).inc_by(spans as u64);
}

/// Sends bytes to the collector.
type Transport = Box<dyn Fn(Bytes) -> BoxFuture<'static, Result<(), ExportError>> + Send + Sync>;

/// Why the collector has not accepted them.
#[derive(Debug)]
struct ExportError {
    /// Whether it may accept the same bytes later.
    transient: bool,
    /// What its `Retry-After` says.
    retry_after: Option<Duration>,
    message: String,
}

struct Worker {
    work: Work<RequestEnded>,
    transport: Transport,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Whether the last spans were lost.
    failing: bool,
}

impl Worker {
    async fn run(mut self) {
        let mut batch = Vec::new();
        while let Some(first) = self.work.next().await {
            batch.push(first);
            let until = self.clock.now() + GATHER;
            while batch.len() < BATCH
                && let Ok(Some(request)) = tokio::time::timeout_at(until, self.work.more()).await
            {
                batch.push(request);
            }
            self.export(&batch).await;
            batch.clear();
        }
    }

    async fn export(&mut self, batch: &[RequestEnded]) {
        let requests: Vec<_> = batch.iter().map(spans::of).collect();
        let (bytes, spans) = (otlp::encode(&requests, self.clock), requests.iter().map(Vec::len).sum());
        let sent = self.deliver(bytes.into()).await;
        count(&self.metrics, if sent.is_ok() { "exported" } else { "failed" }, spans);
        // The log tells when this changes, not with every batch.
        match &sent {
            Ok(()) if self.failing => tracing::info!("the collector accepts traces again"),
            Err(error) if !self.failing => {
                tracing::warn!("spans are lost: {}; check telemetry.otlp", error.message);
            }
            _ => {}
        }
        self.failing = sent.is_err();
    }

    async fn deliver(&self, bytes: Bytes) -> Result<(), ExportError> {
        let mut tried = 1;
        loop {
            let error = match (self.transport)(bytes.clone()).await {
                Err(error) if error.transient && tried < TRIES => error,
                result => return result,
            };
            tracing::debug!(tried, "the collector does not accept spans: {}", error.message);
            let asked = error.retry_after.unwrap_or_default().min(LONGEST_WAIT);
            tokio::time::sleep(BETWEEN_TRIES.delay(tried, fastrand::f64()).max(asked)).await;
            tried += 1;
        }
    }
}

fn post(collector: &Uri, clock: Clock) -> Result<Transport, TrustError> {
    let path = collector.path().trim_end_matches('/');
    let path = if path.ends_with("/v1/traces") { path.to_owned() } else { format!("{path}/v1/traces") };
    let mut target = collector.clone().into_parts();
    target.path_and_query = PathAndQuery::try_from(path).ok();
    // The configuration has checked the URL, and a path was added to it, so this does not fail.
    let target = Uri::from_parts(target).unwrap_or_else(|_| collector.clone());
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(PATIENCE / 2));
    // Trust roots are loaded only for TLS, because they take memory.
    if collector.scheme_str() == Some("https") {
        let https = HttpsConnectorBuilder::new().with_tls_config(trust::client_config(true, None)?).https_only();
        return Ok(post_over(https.enable_http1().wrap_connector(http), target, clock));
    }
    Ok(post_over(http, target, clock))
}

fn post_over(connector: impl Connect + Clone + Send + Sync + 'static, target: Uri, clock: Clock) -> Transport {
    let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    Box::new(move |bytes| {
        let mut request = Request::new(Full::new(bytes));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.clone();
        const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
        const AGENT: HeaderValue = HeaderValue::from_static(concat!("insights-gateway/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().extend([(header::CONTENT_TYPE, PROTOBUF), (header::USER_AGENT, AGENT)]);
        let answer = client.request(request);
        Box::pin(async move {
            let transient = |message: String| ExportError { transient: true, retry_after: None, message };
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            let answer = answer.map_err(|_| transient("the collector does not answer".to_owned()))?;
            let answer =
                answer.map_err(|error| transient(format!("no connection to the collector: {}", chain(&error))))?;
            let (head, body) = answer.into_parts();
            // The body is read to its end, so that the connection can be used again.
            let _ = tokio::time::timeout(PATIENCE, Limited::new(body, 64 * 1024).collect()).await;
            match head.status {
                status if status.is_success() => Ok(()),
                status => {
                    // The statuses that OTLP/HTTP declares retryable.
                    let transient = matches!(
                        status,
                        StatusCode::TOO_MANY_REQUESTS
                            | StatusCode::BAD_GATEWAY
                            | StatusCode::SERVICE_UNAVAILABLE
                            | StatusCode::GATEWAY_TIMEOUT
                    );
                    let retry_after = upstream_headers::retry_after(&head.headers, clock.wall(clock.now()));
                    let message = format!("the collector answers {}", status.as_u16());
                    Err(ExportError { transient, retry_after, message })
                }
            }
        })
    })
}

#[cfg(test)]
mod tests;
