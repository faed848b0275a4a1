//! What is known of one request, from its head to its end.
//!
//! Each layer writes here what it finds out, and the subscribers of the request's end read it. Requests that share one
//! upstream call have a context each. The waits and attempts of that call are in the context of the request that began
//! it, and log lines about the call carry that request's id.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use tracing::Span;

use crate::accounts::Team;
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::core::peer::Peer;
use crate::core::set_once::SetOnce;
use crate::request::store_wait::StoreWait;
use crate::semantics::trace::{SpanId, TraceContext};
use crate::twilio::endpoint::Operation;

/// The target of the spans that carry the request id.
pub const SPAN_TARGET: &str = "insights_gateway::request";

/// What is known of a request before it is routed.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Its id: the client's own or a new one. The response has it in `X-Request-Id`.
    pub id: HeaderValue,
    /// Who sent it.
    pub peer: Arc<Peer>,
    /// Its method.
    pub method: Method,
    /// Its path and query string. Only the path may be logged, because query strings hold page tokens.
    pub target: Option<PathAndQuery>,
}

/// Without an id, for contexts that belong to no client's request.
impl Default for RequestHead {
    fn default() -> Self {
        Self { id: HeaderValue::from_static(""), peer: Arc::default(), method: Method::GET, target: None }
    }
}

impl RequestHead {
    /// The id as text.
    pub fn id(&self) -> &str {
        // Ids are visible ASCII in all cases.
        self.id.to_str().unwrap_or_default()
    }

    /// The path without its query string; empty where the request line has none.
    pub fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::path)
    }
}

/// The facts of one request, filled in as they become known.
#[derive(Debug)]
pub struct RequestContext {
    /// What is known before it is routed.
    pub head: RequestHead,
    /// The operation, once routed.
    pub operation: SetOnce<Operation>,
    /// The team, once known.
    pub team: OnceLock<Arc<Team>>,
    /// How it was answered: from the cache, by Twilio, or with an error.
    pub outcome: SetOnce<Outcome>,
    /// Why the gateway refused or failed.
    pub reason: SetOnce<Reason>,
    /// The error that became the response, if there was one.
    pub error: OnceLock<GatewayError>,
    /// `RateLimit-Policy` and `RateLimit`, once the caller is known.
    pub rate_limit: OnceLock<(HeaderValue, HeaderValue)>,
    /// How long it has waited for the store that replicas share.
    pub store_wait: StoreWait,
    /// The distributed trace that it belongs to, if there is one.
    pub trace: Option<Box<TraceContext>>,
    keeps_query: AtomicBool,
    query: OnceLock<Bytes>,
    recording: Option<Box<Recording>>,
    upstream_events: Mutex<Vec<UpstreamEvent>>,
    was_tried: AtomicBool,
}

/// When the stages ended, for requests that may be exported as a trace.
#[derive(Debug)]
struct Recording {
    clock: Clock,
    ended: [OnceLock<Instant>; Stage::ALL.len()],
}

/// A stage that every request passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Route, caller, permission and rate.
    Authenticate,
    /// The body is read and parsed.
    Read,
    /// The cache responds, from memory or from upstream.
    Cache,
}

impl Stage {
    /// All stages, in the order in which a request passes through them.
    pub const ALL: [Self; 3] = [Self::Authenticate, Self::Read, Self::Cache];

    /// The name of its span in a distributed trace.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authenticate => "admit",
            Self::Read => "read",
            Self::Cache => "cache",
        }
    }
}

/// A wait or an attempt on the way from the cache to Twilio.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamEvent {
    /// When it began.
    pub begun: Instant,
    /// When it ended; `None` while it is under way.
    pub ended: Option<Instant>,
    /// Whether it is a wait or an attempt, and how it ended.
    pub kind: UpstreamEventKind,
}

/// The two kinds of [`UpstreamEvent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamEventKind {
    /// Waiting for a token.
    Wait {
        /// Whether a token was granted in the end.
        granted: bool,
    },
    /// One exchange with Twilio.
    Attempt {
        /// The span that was sent to Twilio as the parent.
        span: Option<SpanId>,
        /// The HTTP status, or why there is none; `None` while it is under way.
        result: Option<Result<u16, Reason>>,
    },
}

/// The upstream events of a request, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Attempts that went upstream, the one under way included.
    pub attempts: u32,
    /// Time spent waiting for tokens.
    pub wait: Duration,
    /// Time spent upstream.
    pub upstream: Duration,
}

/// The context of no client's request.
impl Default for RequestContext {
    fn default() -> Self {
        Self::new(RequestHead::default(), None, None)
    }
}

impl RequestContext {
    /// The context of a request that belongs to `trace`. With a `clock`, the ends of its stages are recorded.
    pub fn new(head: RequestHead, trace: Option<TraceContext>, clock: Option<Clock>) -> Self {
        let recording = clock.map(|clock| Box::new(Recording { clock, ended: Default::default() }));
        // Not the rest of a default value, whose head would be made and dropped again for every request.
        Self {
            head,
            operation: SetOnce::default(),
            team: OnceLock::new(),
            outcome: SetOnce::default(),
            reason: SetOnce::default(),
            error: OnceLock::new(),
            rate_limit: OnceLock::new(),
            trace: trace.map(Box::new),
            keeps_query: AtomicBool::new(false),
            query: OnceLock::new(),
            recording,
            upstream_events: Mutex::default(),
            was_tried: AtomicBool::new(false),
            store_wait: StoreWait::default(),
        }
    }

    /// The context of a request that has waited for the store for as long as any may.
    #[cfg(test)]
    pub fn that_has_waited() -> Self {
        Self { store_wait: StoreWait::spent(), ..Self::default() }
    }

    /// The context of the refresh that this request starts in the background. Its log lines carry the request's id, but
    /// its waits and attempts are not those of the request.
    #[must_use]
    pub fn of_refresh(&self) -> Self {
        Self { team: self.team.clone(), ..Self::new(self.head.clone(), None, None) }
    }

    /// The span of log lines about this request, which joins each of them to the access line by `request_id`.
    ///
    /// Created only where a request leaves the path of a hit, and only where [`SPAN_TARGET`] is enabled. Its level is
    /// error, because warnings and errors have to carry the id too.
    pub fn span(&self) -> Span {
        let team = self.team.get();
        tracing::error_span!(
            target: SPAN_TARGET,
            parent: None,
            "request",
            request_id = self.head.id(),
            team = team.map(|team| &*team.name),
            account = team.map(|team| &*team.account.name),
        )
    }

    /// Keeps the query from now on, because a subscriber reads it at the end.
    pub fn keep_query(&self) {
        self.keeps_query.store(true, Relaxed);
    }

    /// Keeps the query in its canonical form, if a subscriber needs it.
    pub fn asks(&self, query: &Bytes) {
        if self.keeps_query.load(Relaxed) {
            // Only the layer that reads bodies calls this; the first value stays.
            let _ = self.query.set(query.clone());
        }
    }

    /// The query, if there was one and it was kept.
    pub fn query(&self) -> Option<&Bytes> {
        self.query.get()
    }

    /// Whether it may be exported as a trace.
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// Records that a stage ends now, if the request is recorded.
    pub fn end_of(&self, stage: Stage) {
        if let Some(Recording { clock, ended }) = self.recording.as_deref() {
            let _ = ended[stage as usize].set(clock.now());
        }
    }

    /// When a stage ended; `None` if it has not, or if the request is not recorded.
    pub fn ended(&self, stage: Stage) -> Option<Instant> {
        self.recording.as_ref()?.ended[stage as usize].get().copied()
    }

    /// Adds a wait or an attempt. Returns its number.
    pub fn add(&self, event: UpstreamEvent) -> usize {
        if matches!(event.kind, UpstreamEventKind::Attempt { .. }) {
            self.was_tried.store(true, Relaxed);
        }
        let mut events = self.lock();
        events.push(event);
        events.len() - 1
    }

    /// Adds an attempt that begins now, at `begun`. Returns its number.
    pub fn attempt_begins(&self, begun: Instant, span: Option<SpanId>) -> usize {
        self.add(UpstreamEvent { begun, ended: None, kind: UpstreamEventKind::Attempt { span, result: None } })
    }

    /// The attempt with this number has ended.
    pub fn attempt_ended(&self, number: usize, at: Instant, ending: Result<u16, Reason>) {
        if let Some(UpstreamEvent { ended, kind: UpstreamEventKind::Attempt { result, .. }, .. }) =
            self.lock().get_mut(number)
        {
            (*ended, *result) = (Some(at), Some(ending));
        }
    }

    /// Whether it caused an attempt. Read for every hit, so it takes no lock.
    pub fn was_tried(&self) -> bool {
        self.was_tried.load(Relaxed)
    }

    /// Whether it waited for a token or was tried.
    pub fn went_upstream(&self) -> bool {
        !self.lock().is_empty()
    }

    /// The waits that have ended and the attempts that have begun, in the order in which that happened. A call that survives its client adds to them.
    pub fn upstream_events(&self) -> Vec<UpstreamEvent> {
        self.lock().clone()
    }

    /// The same, added up; the time of an attempt under way is that until `now`.
    pub fn totals(&self, now: Instant) -> Totals {
        let mut totals = Totals::default();
        for event in self.lock().iter() {
            let took = event.ended.unwrap_or(now).saturating_duration_since(event.begun);
            match event.kind {
                UpstreamEventKind::Wait { .. } => totals.wait += took,
                UpstreamEventKind::Attempt { .. } => {
                    totals.attempts += 1;
                    totals.upstream += took;
                }
            }
        }
        totals
    }

    fn lock(&self) -> MutexGuard<'_, Vec<UpstreamEvent>> {
        // Each critical section is one change or one read, so a panic cannot leave the list half changed.
        self.upstream_events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_attempt_counts_from_when_it_is_sent() {
        let (context, start) = (RequestContext::default(), Instant::now());
        let wait = UpstreamEventKind::Wait { granted: true };
        context.add(UpstreamEvent { begun: start, ended: Some(start + S), kind: wait });
        let totals = |after: Duration| {
            let Totals { attempts, wait, upstream } = context.totals(start + after);
            (attempts, wait.as_secs(), upstream.as_secs())
        };
        assert_eq!((totals(S), context.was_tried()), ((0, 1, 0), false));
        let first = context.attempt_begins(start + S, None);
        assert_eq!((totals(3 * S), context.was_tried()), ((1, 1, 2), true));
        context.attempt_ended(first, start + 4 * S, Ok(503));
        let _second = context.attempt_begins(start + 5 * S, None);
        assert_eq!((totals(4 * S), totals(9 * S)), ((2, 1, 3), (2, 1, 7)));
    }
}
