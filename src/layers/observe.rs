//! The outermost layer: sees every request and its final status, and says so.
//!
//! A request id in and out, the headers that every answer has, one access line, one audit record, the metrics, the
//! trace, and a guard that notices a client that leaves before its answer. It decides nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tower::{Layer, Service};

use crate::audit::{AuditLog, Record};
use crate::core::clock::{Clock, Instant};
use crate::core::outcome::Outcome;
use crate::core::peer::Peer;
use crate::core::request_id::{self, REQUEST_ID};
use crate::metrics::HotRequests;
use crate::request::body::ResponseBody;
use crate::request::context::RequestContext;
use crate::request::incoming::IncomingRequest;
use crate::semantics::trace::TraceContext;
use crate::telemetry::{Exporter, Finished};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Which requests get a line in the log.
#[derive(Debug, Clone, Copy)]
pub struct AccessLog {
    /// Any at all.
    pub enabled: bool,
    /// Share of hits, 0 to 1.
    pub hits: f64,
    /// Slower ones always, as warnings.
    pub slow: Duration,
}

/// Which requests become traces.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Where they go.
    pub exporter: Exporter,
    /// Share of those that begin no work upstream, 0 to 1. What a client traces already is up to the client.
    pub sample: f64,
}

/// Makes [`Observe`] services.
#[derive(Clone)]
pub struct ObserveLayer {
    requests: Arc<HotRequests>,
    log: AccessLog,
    tracing: Option<Tracing>,
    audit: Option<AuditLog>,
    clock: Clock,
}

impl ObserveLayer {
    /// Counts in `requests`, logs and traces as `log` and `tracing` have it, and records in `audit`.
    pub fn new(
        requests: HotRequests,
        log: AccessLog,
        tracing: Option<Tracing>,
        audit: Option<AuditLog>,
        clock: Clock,
    ) -> Self {
        Self { requests: Arc::new(requests), log, tracing, audit, clock }
    }

    /// The beginning of a request. A trace that its client does not record is not recorded here either.
    fn begin(&self, headers: &HeaderMap) -> RequestContext {
        let theirs = TraceContext::read(headers);
        let recorded = self.tracing.is_some() && theirs.as_ref().is_none_or(|trace| trace.sampled);
        let trace = theirs.or_else(|| recorded.then(TraceContext::begin));
        RequestContext::new(trace, recorded.then_some(self.clock))
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: Arc::new(self.clone()), peer: Arc::default() }
    }
}

/// Watches. See the module.
#[derive(Clone)]
pub struct Observe<S> {
    inner: S,
    layer: Arc<ObserveLayer>,
    peer: Arc<Peer>,
}

impl<S> Observe<S> {
    /// The same, for the requests of this peer.
    #[must_use]
    pub fn of(self, peer: Arc<Peer>) -> Self {
        Self { peer, ..self }
    }
}

impl<S, B> Service<Request<B>> for Observe<S>
where
    S: Service<IncomingRequest<B>, Response = Response<ResponseBody>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let received = self.layer.clock.now();
        let request_id = request_id::of(request.headers());
        let context = Arc::new(self.layer.begin(request.headers()));
        if self.layer.audit.is_some() {
            context.keep_query();
        }
        let mut watch = Watch {
            layer: Arc::clone(&self.layer),
            peer: Arc::clone(&self.peer),
            received,
            request_id: request_id.clone(),
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
            context: Arc::clone(&context),
            ended: None,
        };
        let peer = Arc::clone(&self.peer);
        let answer = self.inner.call(IncomingRequest { request, peer, received, context });
        Box::pin(async move {
            let mut response = answer.await?;
            let headers = response.headers_mut();
            headers.insert(REQUEST_ID, request_id);
            if let Some((policy, limit)) = watch.context.rate_limit.get() {
                headers.insert(RATE_LIMIT_POLICY, policy.clone());
                headers.insert(RATE_LIMIT, limit.clone());
            }
            watch.end(&response);
            Ok(response)
        })
    }
}

/// Writes the line and counts when it is dropped: after the answer, or when the client left.
struct Watch {
    layer: Arc<ObserveLayer>,
    peer: Arc<Peer>,
    received: Instant,
    request_id: HeaderValue,
    method: Method,
    target: Option<PathAndQuery>,
    context: Arc<RequestContext>,
    ended: Option<(StatusCode, u64)>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.layer.clock.now() - self.received;
        let (status, bytes) = self.ended.map_or((Finished::CLIENT_LEFT, 0), |(status, bytes)| (status.as_u16(), bytes));
        let outcome = self.context.outcome.get().copied().filter(|_| self.ended.is_some()).unwrap_or(Outcome::Failed);
        let (team, operation) = (self.context.team.get(), self.context.operation.get());
        self.layer.requests.requested(team.map(Arc::as_ref), operation.copied(), outcome, status, took);
        if let Some(reason) = self.context.reason.get() {
            self.layer.requests.failed(*reason);
        }
        let AccessLog { enabled, hits, slow } = self.layer.log;
        let is_slow = took >= slow;
        let sampled = outcome != Outcome::Hit || hits >= 1.0 || fastrand::f64() < hits;
        let exporter = self.exporter(outcome);
        if enabled && (is_slow || sampled) {
            self.log(outcome, status, bytes, took, is_slow, exporter.is_some());
        }
        if let Some(exporter) = exporter {
            exporter.offer(Finished {
                context: Arc::clone(&self.context),
                received: self.received,
                ended: self.received + took,
                request_id: self.request_id.clone(),
                method: self.method.clone(),
                target: self.target.clone(),
                outcome,
                status,
                bytes,
            });
        }
        if let Some(audit) = &self.layer.audit {
            audit.record(self.record(outcome, status, bytes, took));
        }
    }
}

impl Watch {
    fn end(&mut self, response: &Response<ResponseBody>) {
        self.ended = Some((response.status(), response.body().size_hint().exact().unwrap_or_default()));
    }

    /// Where the request's trace goes, if it becomes one. One that is its own beginning becomes one if it went
    /// upstream or failed; the others are many and alike.
    fn exporter(&self, outcome: Outcome) -> Option<&Exporter> {
        let Tracing { exporter, sample } = self.layer.tracing.as_ref().filter(|_| self.context.is_recorded())?;
        let worked = match outcome {
            Outcome::Miss | Outcome::Collapsed | Outcome::Bypass | Outcome::StaleError | Outcome::Failed => true,
            Outcome::Hit | Outcome::Stale | Outcome::Revalidated | Outcome::Refused => self.context.went_upstream(),
        };
        let begun_elsewhere = self.context.trace.as_ref().is_some_and(|trace| trace.parent.is_some());
        (begun_elsewhere || worked || fastrand::f64() < *sample).then_some(exporter)
    }

    fn reason(&self, status: u16) -> &'static str {
        match self.context.reason.get() {
            Some(reason) => reason.as_str(),
            None if status == Finished::CLIENT_LEFT => "client_left",
            None => "",
        }
    }

    fn record(&self, outcome: Outcome, status: u16, bytes: u64, took: Duration) -> Record {
        Record {
            received: self.layer.clock.wall(self.received),
            request_id: self.request_id.clone(),
            peer: Arc::clone(&self.peer),
            team: self.context.team.get().cloned(),
            operation: self.context.operation.get().copied(),
            method: self.method.clone(),
            query: self.context.query().cloned(),
            outcome,
            status,
            reason: self.reason(status),
            bytes,
            took,
        }
    }

    fn log(&self, outcome: Outcome, status: u16, bytes: u64, took: Duration, is_slow: bool, traced: bool) {
        let (team, totals) = (self.context.team.get(), self.context.totals());
        // An id that nobody else has ever seen helps nobody.
        let trace = self.context.trace.as_ref().filter(|trace| traced || trace.parent.is_some());
        let trace_id = trace.map(|trace| trace.trace.to_string());
        let reason = self.reason(status);
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: "insights_gateway::access",
                    $level,
                    request_id = self.request_id.to_str().unwrap_or_default(),
                    peer = self.peer.as_str(),
                    team = team.map_or("", |team| &*team.name),
                    account = team.map_or("", |team| &*team.account.name),
                    operation = self.context.operation.get().map_or("none", |operation| operation.as_str()),
                    method = self.method.as_str(),
                    path = self.target.as_ref().map_or("", PathAndQuery::path),
                    status,
                    outcome = outcome.as_str(),
                    reason,
                    bytes,
                    duration_ms = millis(took),
                    wait_ms = millis(totals.wait),
                    upstream_ms = millis(totals.upstream),
                    attempts = totals.attempts,
                    trace_id = trace_id.as_deref(),
                )
            };
        }
        if is_slow { line!(tracing::Level::WARN) } else { line!(tracing::Level::INFO) }
    }
}

/// Milliseconds with microseconds behind the point.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
