//! The layer's types: its policy, what its services share, and the service itself.

use std::sync::Arc;
use std::time::Duration;

use tower::Layer;

use super::pending_writes::PendingWrites;
use super::refresh_backoff::RefreshBackoff;
use crate::cache::{CacheResponse, Store};
use crate::core::clock::Clock;
use crate::core::error::GatewayError;
use crate::metrics::Metrics;
use crate::semantics::freshness::Lifetimes;

/// How long each kind of response is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Metadata.
    pub metadata: Lifetimes,
    /// Queries and their pages.
    pub query: Lifetimes,
    /// Queries whose data no longer changes.
    pub settled: Lifetimes,
    /// How long ago such a query's time range must have closed.
    pub settled_after: Duration,
    /// Query jobs.
    pub jobs: JobLifetimes,
    /// Twilio's 400s and 404s; zero means never.
    pub errors: Duration,
    /// How long a shared call or a refresh may take, with waits and retries. A client's own deadline ends only that
    /// client's wait.
    pub deadline: Duration,
    /// A refresh is delayed by a random time up to this, so that responses that were stored at the same time are not
    /// all refreshed at the same time.
    pub refresh_jitter: Duration,
    /// Whether queries are kept as text too, for operators to read. The text can name people, and takes memory.
    pub keep_queries: bool,
}

/// `[cache.jobs]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLifetimes {
    /// How long an identical submission gets the same job; zero turns sharing off.
    pub dedup: Duration,
    /// The longest time for which results are kept.
    pub results: Duration,
}

/// Makes [`Caching`] services, which share one store.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    pub(super) store: Store,
    pub(super) refreshes: RefreshBackoff,
    pub(super) policy: Policy,
    pub(super) writes: PendingWrites,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
}

impl CacheLayer {
    /// Keeps responses in `store` for as long as `policy` says.
    pub fn new(store: Store, policy: Policy, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let (refreshes, writes) = (RefreshBackoff::default(), PendingWrites::default());
        Self { store, refreshes, policy, writes, metrics, clock }
    }

    /// The same; `writes` has the writes that it sends, until they have ended.
    #[must_use]
    pub fn with_writes(self, writes: PendingWrites) -> Self {
        Self { writes, ..self }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Caching<S>;

    fn layer(&self, inner: S) -> Caching<S> {
        Caching { inner: Arc::new(inner), layer: Arc::new(self.clone()) }
    }
}

/// The cache in front of `S`. See [the layer](super).
#[derive(Debug)]
pub struct Caching<S> {
    // Shared, because a hit clones this service and does not use it.
    pub(super) inner: Arc<S>,
    pub(super) layer: Arc<CacheLayer>,
}

impl<S> Clone for Caching<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), layer: Arc::clone(&self.layer) }
    }
}

/// The response to a query, or why there is none.
pub(super) type Answered = Result<CacheResponse, GatewayError>;
