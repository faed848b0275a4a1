//! The outermost layer: it sees every request and its final status, and tells the subscribers.
//!
//! It creates the request's context, puts the request id and the rate limit into the response, and creates the one
//! event at the request's end: when the response is ready, or when the client leaves before that.

mod access_log;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderName, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

pub use self::access_log::AccessLog;
use crate::core::clock::Clock;
use crate::core::outcome::Outcome;
use crate::core::peer::Peer;
use crate::core::request_id::{self, REQUEST_ID};
use crate::request::body::ResponseBody;
use crate::request::context::{RequestContext, RequestHead};
use crate::request::ended::{RequestEnded, RequestSubscriber};
use crate::request::incoming::IncomingRequest;
use crate::semantics::trace::TraceContext;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Makes [`Observe`] services.
#[derive(Clone)]
pub struct ObserveLayer {
    subscribers: Arc<[Box<dyn RequestSubscriber>]>,
    keeps_query: bool,
    sample: Option<f64>,
    clock: Clock,
}

impl ObserveLayer {
    /// Tells `subscribers` of every end, in their order. `sample` is the share, 0 to 1, of the requests that do not go
    /// upstream which is exported as traces. Without `sample` no request is traced.
    pub fn new(subscribers: Vec<Box<dyn RequestSubscriber>>, sample: Option<f64>, clock: Clock) -> Self {
        let keeps_query = subscribers.iter().any(|subscriber| subscriber.reads_query());
        Self { subscribers: subscribers.into(), keeps_query, sample, clock }
    }

    /// The context of a request. A trace that the client does not sample is not recorded here either.
    fn begin<B>(&self, request: &Request<B>, peer: &Arc<Peer>) -> RequestContext {
        let theirs = TraceContext::read(request.headers());
        let is_recorded = self.sample.is_some() && theirs.as_ref().is_none_or(|trace| trace.sampled);
        let trace = theirs.or_else(|| is_recorded.then(TraceContext::begin));
        let head = RequestHead {
            id: request_id::of(request.headers()),
            peer: Arc::clone(peer),
            method: request.method().clone(),
            target: request.uri().path_and_query().cloned(),
        };
        let context = RequestContext::new(head, trace, is_recorded.then_some(self.clock));
        if self.keeps_query {
            context.keep_query();
        }
        context
    }

    /// Whether a request is exported as a trace. A trace that begins here is exported if the request went upstream or
    /// failed. The other requests are many and similar, so only a share of them is exported.
    fn traces(&self, request: &RequestEnded) -> bool {
        let Some(sample) = self.sample.filter(|_| request.context.is_recorded()) else { return false };
        let has_worked = match request.outcome {
            Outcome::Miss | Outcome::Collapsed | Outcome::Bypass | Outcome::StaleError | Outcome::Failed => true,
            Outcome::Hit | Outcome::Shared | Outcome::Stale | Outcome::Revalidated | Outcome::Refused => {
                request.context.went_upstream()
            }
        };
        let begun_elsewhere = request.context.trace.as_ref().is_some_and(|trace| trace.parent.is_some());
        begun_elsewhere || has_worked || fastrand::f64() < sample
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: Arc::new(self.clone()), peer: Arc::default() }
    }
}

/// Observes requests. See the module.
#[derive(Clone)]
pub struct Observe<S> {
    inner: S,
    layer: Arc<ObserveLayer>,
    peer: Arc<Peer>,
}

impl<S> Observe<S> {
    /// The same service, for the requests of this peer.
    #[must_use]
    pub fn of(self, peer: Arc<Peer>) -> Self {
        Self { peer, ..self }
    }
}

impl<S, B> Service<Request<B>> for Observe<S>
where
    S: Service<IncomingRequest<B>, Response = Response<ResponseBody>, Error = Infallible>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Observed<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let received = self.layer.clock.now();
        let peer = Arc::clone(&self.peer);
        let context = Arc::new(self.layer.begin(&request, &peer));
        let watch = Watch {
            layer: Arc::clone(&self.layer),
            request: RequestEnded {
                context: Arc::clone(&context),
                received,
                ended: received,
                outcome: Outcome::Failed,
                status: RequestEnded::CLIENT_LEFT,
                bytes: 0,
                is_traced: false,
            },
        };
        let answer = self.inner.call(IncomingRequest { request: Box::new(request), peer, received, context });
        Observed { answer, watch: Some(watch) }
    }
}

pin_project! {
    /// A response with the headers that every response has. Its end is told when it is ready or dropped.
    pub struct Observed<F> {
        #[pin]
        answer: F,
        // Dropped after `answer`, which may still record what happens when a client leaves.
        watch: Option<Watch>,
    }
}

impl<F> Future for Observed<F>
where
    F: Future<Output = Result<Response<ResponseBody>, Infallible>>,
{
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.answer.poll(context))?;
        if let Some(mut watch) = this.watch.take() {
            let (context, headers) = (&watch.request.context, response.headers_mut());
            headers.insert(REQUEST_ID, context.head.id.clone());
            if let Some((policy, limit)) = context.rate_limit.get() {
                headers.insert(RATE_LIMIT_POLICY, policy.clone());
                headers.insert(RATE_LIMIT, limit.clone());
            }
            watch.answered(&response);
        }
        Poll::Ready(Ok(response))
    }
}

/// Tells the subscribers when it is dropped: after the response is ready, or when the client has left. Until
/// [`Watch::answered`] is called, the event says that the client left.
struct Watch {
    layer: Arc<ObserveLayer>,
    request: RequestEnded,
}

impl Watch {
    fn answered(&mut self, response: &Response<ResponseBody>) {
        let request = &mut self.request;
        request.outcome = request.context.outcome.get().unwrap_or(Outcome::Failed);
        request.status = response.status().as_u16();
        request.bytes = response.body().size_hint().exact().unwrap_or_default();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.request.ended = self.layer.clock.now();
        self.request.is_traced = self.layer.traces(&self.request);
        for subscriber in &*self.layer.subscribers {
            subscriber.ended(&self.request);
        }
    }
}
