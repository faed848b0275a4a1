//! What happened to one request on its way, for the access line, the audit log, the metrics and the
//! trace.
//!
//! Written by the layers that know, read once by the outermost. Collapsed requests each have their own: the
//! upstream's share is counted for the one that began the call.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use crate::accounts::Team;
use crate::core::clock::{Clock, Instant};
use crate::core::error::Reason;
use crate::core::outcome::Outcome;
use crate::semantics::trace::{SpanId, TraceContext};
use crate::twilio::endpoint::Operation;

/// The facts of one request, filled in as they become known.
#[derive(Debug, Default)]
pub struct RequestContext {
    /// What it asks for, once routed.
    pub operation: OnceLock<Operation>,
    /// Who asks, once known.
    pub team: OnceLock<Arc<Team>>,
    /// What became of it.
    pub outcome: OnceLock<Outcome>,
    /// Why the gateway refused or failed.
    pub reason: OnceLock<Reason>,
    /// `RateLimit-Policy` and `RateLimit`, once the caller is known.
    pub rate_limit: OnceLock<(HeaderValue, HeaderValue)>,
    /// The trace that it belongs to, if to any.
    pub trace: Option<Box<TraceContext>>,
    keeps_query: AtomicBool,
    query: OnceLock<Bytes>,
    recording: Option<Box<Recording>>,
    upstream_events: Mutex<Vec<UpstreamEvent>>,
}

/// When the stages ended, for requests that may become a trace.
#[derive(Debug)]
struct Recording {
    clock: Clock,
    ended: [OnceLock<Instant>; Stage::ALL.len()],
}

/// A part of the way that every request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Route, caller, permission and rate.
    Authenticate,
    /// The body is read, and the question understood.
    Read,
    /// The cache answers, from memory or from upstream.
    Cache,
}

impl Stage {
    /// All, in the order of the way.
    pub const ALL: [Self; 3] = [Self::Authenticate, Self::Read, Self::Cache];

    /// The name of its span.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authenticate => "admit",
            Self::Read => "read",
            Self::Cache => "cache",
        }
    }
}

/// A stretch between the cache and Twilio.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamEvent {
    /// When it began.
    pub begun: Instant,
    /// When it ended.
    pub ended: Instant,
    /// What it was.
    pub kind: UpstreamEventKind,
}

/// What a [`UpstreamEvent`] was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamEventKind {
    /// Waiting for a token.
    Wait {
        /// Was there one in the end.
        granted: bool,
    },
    /// One try, under this name, and how it ended: with a status, or why there is none.
    Attempt {
        /// The span that was named to Twilio as the parent.
        span: Option<SpanId>,
        /// An HTTP status, or a reason.
        result: Result<u16, Reason>,
    },
}

/// The legs of a request, added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Attempts that went upstream.
    pub attempts: u32,
    /// Time spent waiting for tokens.
    pub wait: Duration,
    /// Time spent upstream.
    pub upstream: Duration,
}

impl RequestContext {
    /// Of a request that belongs to `trace`. What may become a trace of its own is timed by `clock`.
    pub fn new(trace: Option<TraceContext>, clock: Option<Clock>) -> Self {
        let recording = clock.map(|clock| Box::new(Recording { clock, ended: Default::default() }));
        Self { trace: trace.map(Box::new), recording, ..Self::default() }
    }

    /// From now on it keeps the query that it asks: somebody wants to read it in the end.
    pub fn keep_query(&self) {
        self.keeps_query.store(true, Relaxed);
    }

    /// It asks this, in canonical form.
    pub fn asks(&self, query: &Bytes) {
        if self.keeps_query.load(Relaxed) {
            // Set once, by the only layer that reads bodies.
            let _ = self.query.set(query.clone());
        }
    }

    /// What it asks, if that was to be kept, and if it was a query.
    pub fn query(&self) -> Option<&Bytes> {
        self.query.get()
    }

    /// May it become a trace.
    pub fn is_recorded(&self) -> bool {
        self.recording.is_some()
    }

    /// A stage ends now. Costs nothing where nothing is recorded.
    pub fn end_of(&self, stage: Stage) {
        if let Some(Recording { clock, ended }) = self.recording.as_deref() {
            let _ = ended[stage as usize].set(clock.now());
        }
    }

    /// When a stage ended, if it is recorded and did.
    pub fn ended(&self, stage: Stage) -> Option<Instant> {
        self.recording.as_ref()?.ended[stage as usize].get().copied()
    }

    /// It went another leg.
    pub fn add(&self, event: UpstreamEvent) {
        self.lock().push(event);
    }

    /// Did it go any leg at all.
    pub fn went_upstream(&self) -> bool {
        !self.lock().is_empty()
    }

    /// The legs so far, in the order in which they ended. A call that survives its client adds to them.
    pub fn upstream_events(&self) -> Vec<UpstreamEvent> {
        self.lock().clone()
    }

    /// The legs so far, added up.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for event in self.lock().iter() {
            let took = event.ended.saturating_duration_since(event.begun);
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
        // One push, or a look.
        self.upstream_events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
