//! The types of the layer, and how its parts ask the layer below.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tower::{Layer, Service, ServiceExt};

use super::owners::JobOwners;
use crate::cache::{CacheResponse, Store};
use crate::core::clock::Clock;
use crate::core::draining::Draining;
use crate::core::error::GatewayError;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::semantics::request_directives::RequestDirectives;
use crate::twilio::endpoint::Operation;

/// The layer's settings, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long an identical submission gets the same job; zero turns sharing off.
    pub dedup: Duration,
    /// The time limit of a query that became a job after its own time was up.
    pub deadline: Duration,
}

/// Makes [`Jobs`] services.
#[derive(Debug, Clone)]
pub struct JobsLayer(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) owners: JobOwners,
    pub(super) settings: Settings,
    pub(super) draining: Draining,
    pub(super) clock: Clock,
}

impl JobsLayer {
    /// Reads known jobs from `store`, and records in `owners` which policy each job belongs to. Holds no client once
    /// `draining` has begun.
    pub fn new(store: Store, owners: JobOwners, settings: Settings, draining: Draining, clock: Clock) -> Self {
        Self(Arc::new(Shared { store, owners, settings, draining, clock }))
    }
}

impl<S> Layer<S> for JobsLayer {
    type Service = Jobs<S>;

    fn layer(&self, inner: S) -> Jobs<S> {
        Jobs { inner, shared: Arc::clone(&self.0) }
    }
}

/// Serves query jobs. See [the layer](super).
#[derive(Debug, Clone)]
pub struct Jobs<S> {
    pub(super) inner: S,
    pub(super) shared: Arc<Shared>,
}

pub(super) type Answered = Result<CacheResponse, GatewayError>;

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    pub(super) async fn ask(&self, query: ClientQuery) -> Answered {
        self.inner.clone().oneshot(query).await
    }

    /// A request about the job `id`, on behalf of the client that sent `query`.
    pub(super) fn about(&self, query: &ClientQuery, operation: Operation, id: &str, parameters: &str) -> ClientQuery {
        let (endpoint, account) = (operation.endpoint(), &query.team.account);
        let path = endpoint.path_of(id);
        let canonical = CanonicalQuery {
            key: Key::of_path(account, endpoint, &path, parameters, b""),
            expected_as: None,
            path,
            parameters: parameters.into(),
            body: Bytes::new(),
        };
        let urgency = query.directives.urgency;
        ClientQuery {
            endpoint,
            canonical: Arc::new(canonical),
            directives: RequestDirectives { urgency, ..RequestDirectives::default() },
            headers: None,
            base: None,
            redact: None,
            received: self.shared.clock.now(),
            ..query.clone()
        }
    }
}
