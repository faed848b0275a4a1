//! `[validate]`: compares names in queries with the account's cached metadata.
//!
//! It applies only to teams without a policy. Under a policy, a query with a name that metadata does not have has
//! already been refused, in the same words as one that names a denied member.
//!
//! With hints, a cache hit costs one more pointer to its query. With refusals, it costs one more look-up in the cache
//! too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use http::{HeaderValue, StatusCode};
use tower::{Service, ServiceExt};

use super::bodies::UNCOUNTED;
use super::restriction::{MetadataView, Restriction, Restrictions, of_metadata};
use crate::accounts::Team;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::request::key::Key;
use crate::request::query::{CanonicalQuery, ClientQuery};
use crate::request::response::ClientResponse;
use crate::semantics::request_directives::{CacheDirectives, RequestDirectives};
use crate::twilio::endpoint::{self, Operation};
use crate::twilio::permission::Permission;
use crate::twilio::policy::Policy;
use crate::twilio::query::{self, Query};
use crate::twilio::validate::{UnknownNames, Validation};

/// Compares queries with metadata, and fetches metadata if a refusal needs it.
#[derive(Debug)]
pub(super) struct Validator {
    validation: Validation,
    /// A policy that denies nothing, so that a view under it shows all metadata.
    open: Arc<Policy>,
    /// When metadata was last requested without success, by its key.
    failed: Mutex<HashMap<Key, Instant, RandomState>>,
}

impl Validator {
    /// A query is refused only because of metadata that is younger than this.
    const YOUNG: Duration = Duration::from_secs(60);

    /// How long after its arrival a query waits for metadata. After that it is forwarded.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// How long metadata is not requested again after a request without success.
    const PAUSE: Duration = Duration::from_secs(10);

    pub(super) fn new(validation: Validation) -> Self {
        Self { validation, open: Arc::new(Policy::new(&[], &[])), failed: Mutex::default() }
    }

    /// What [`hint`](Self::hint) needs of a query; `None` if there will be no hint.
    pub(super) fn hintable(&self, query: &ClientQuery) -> Option<Arc<CanonicalQuery>> {
        let is_hintable = self.validation != Validation::Off && is_comparable(query);
        is_hintable.then(|| Arc::clone(&query.canonical))
    }

    /// The value of `Insights-Gateway-Hint` in Twilio's response to this query. It is based on metadata that is fresh
    /// in the cache.
    pub(super) fn hint(
        &self,
        restrictions: &Restrictions,
        team: &Team,
        asked: &CanonicalQuery,
        response: &ClientResponse,
    ) -> Option<HeaderValue> {
        if response.page.status != StatusCode::BAD_REQUEST {
            return None;
        }
        let restriction = restrictions.of(&self.open, &team.account);
        let view = restrictions.fresh(&restriction)?.ok()?;
        HeaderValue::try_from(unknown_names(team, asked, &view)?.to_string()).ok()
    }

    /// Whether this query has to be compared with metadata before it is forwarded. A query that is answered from the
    /// cache was compared before.
    pub(super) fn must_check(&self, restrictions: &Restrictions, query: &ClientQuery) -> bool {
        let CacheDirectives { no_cache, no_store, only_if_cached, .. } = query.directives.cache;
        self.validation == Validation::Reject
            && is_comparable(query)
            && !only_if_cached
            && (no_cache || no_store || restrictions.page(query.key()).is_none())
    }

    /// Refuses a query with a name that the metadata of the last minute does not have. If older metadata has all of the
    /// names, the query is forwarded. Otherwise newer metadata is fetched through `inner`.
    ///
    /// # Errors
    ///
    /// [`Reason::InvalidQuery`], with the text of the hint. There is no error if metadata cannot be fetched.
    pub(super) async fn check<S>(
        &self,
        inner: S,
        restrictions: &Restrictions,
        query: &ClientQuery,
    ) -> Result<(), GatewayError>
    where
        S: Service<ClientQuery, Response = ClientResponse, Error = GatewayError>,
    {
        let restriction = restrictions.of(&self.open, &query.team.account);
        let of =
            |view: &MetadataView| unknown_names(&query.team, &query.canonical, view).filter(UnknownNames::are_certain);
        let refused = |unknown: UnknownNames| Err(GatewayError::new(Reason::InvalidQuery, unknown.to_string()));
        // Metadata of the last seconds that is not in the cache.
        if let Some(view) = restriction.unstored(query.received, restrictions.purges()) {
            return of(&view).map_or(Ok(()), refused);
        }
        let cached = restrictions.fresh(&restriction).and_then(Result::ok);
        if cached.is_some_and(|view| of(&view).is_none()) {
            return Ok(());
        }
        match self.fetch(inner, restrictions, &restriction, query).await {
            Some(view) => of(&view).map_or(Ok(()), refused),
            None => Ok(()),
        }
    }

    /// The view of the account's metadata of the last minute.
    async fn fetch<S>(
        &self,
        inner: S,
        restrictions: &Restrictions,
        restriction: &Restriction,
        query: &ClientQuery,
    ) -> Option<Arc<MetadataView>>
    where
        S: Service<ClientQuery, Response = ClientResponse, Error = GatewayError>,
    {
        let (key, received) = (restriction.metadata, query.received);
        let pauses = |failed: &Instant| received.saturating_duration_since(*failed) < Self::PAUSE;
        let is_paused = self.lock().get(&key).is_some_and(pauses);
        let purges = restrictions.purges();
        // A request that may not wait would be refused, which says nothing about metadata.
        let asks_cache = is_paused || query.deadline <= received;
        let reply = inner.oneshot(Self::metadata_query(query, asks_cache)).await;
        let fits = |reply: &ClientResponse| {
            reply.page.status == StatusCode::OK
                && reply.outcome != Outcome::StaleError
                && reply.age.is_none_or(|age| age < Self::YOUNG)
        };
        match reply {
            Ok(reply) if fits(&reply) => {
                let view = restriction.view(&reply.page).ok()?;
                if restrictions.fresh(restriction).is_none() {
                    restriction.remember(&view, received, purges);
                }
                Some(view)
            }
            // Only this team has to wait.
            Err(error) if error.reason() == Reason::TeamRateLimit => None,
            _ if asks_cache => None,
            _ => {
                self.lock().insert(key, received);
                None
            }
        }
    }

    /// A request for metadata of the last minute, of Twilio or of the cache alone.
    fn metadata_query(query: &ClientQuery, asks_cache: bool) -> ClientQuery {
        let wanted = of_metadata(&query.directives);
        // Metadata must be younger than a minute, so exactly a minute is too old.
        let max_age = Some(Self::YOUNG - Duration::from_secs(1));
        ClientQuery {
            endpoint: Operation::Metadata.endpoint(),
            team: Arc::clone(&query.team),
            canonical: Arc::new(CanonicalQuery::of_metadata(&query.team.account)),
            directives: RequestDirectives {
                cache: CacheDirectives { max_age, only_if_cached: asks_cache, ..wanted.cache },
                ..wanted
            },
            headers: None,
            redact: None,
            base: None,
            received: query.received,
            deadline: query.deadline.min(query.received + Self::PATIENCE),
            context: Arc::clone(&query.context),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant, RandomState>> {
        // Each critical section is one read or one change.
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the names of this query can be compared. Large queries are forwarded: they would have to be read outside the
/// data plane's threads, and what is kept of them counts towards the memory limit.
fn is_comparable(query: &ClientQuery) -> bool {
    query.team.policy.is_none()
        && query.endpoint.body == endpoint::Body::Query
        && query.canonical.body.len() <= UNCOUNTED
}

fn unknown_names(team: &Team, asked: &CanonicalQuery, view: &MetadataView) -> Option<UnknownNames> {
    let value = query::parse(&asked.body).ok()?;
    let query = Query::read(&value).ok()?;
    UnknownNames::find(&query, &view.catalog, team.operations.allows(Permission::Metadata))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use bytes::Bytes;
    use http::HeaderMap;
    use tokio::time::advance;
    use tower::service_fn;

    use super::super::restriction::FreshPages;
    use super::super::tokens::IssuedPageTokens;
    use super::*;
    use crate::request::call::UpstreamResponse;
    use crate::request::response::Representation;

    const METADATA: &str = r#"{"cubes":[{"name":"C","measures":[{"name":"C.Count","type":"number"}]}]}"#;
    const TYPO: &str = r#"{"query":{"measures":["C.Cout"]}}"#;

    fn response(status: StatusCode, age: Option<Duration>, outcome: Outcome) -> ClientResponse {
        let (headers, body) = (HeaderMap::new(), Bytes::from_static(METADATA.as_bytes()));
        let page = Arc::new(Representation::new(UpstreamResponse { status, headers, body, next_token: None }, &[]));
        let cache_status = HeaderValue::from_static("insights-gateway");
        ClientResponse {
            page,
            coded: None,
            etag: None,
            outcome,
            cache_status,
            age,
            not_modified: false,
            headers: Vec::new(),
        }
    }

    /// A validator that refuses queries, in front of a cache that stores nothing.
    struct Rig {
        validator: Validator,
        restrictions: Restrictions,
        calls: AtomicUsize,
    }

    impl Rig {
        fn new() -> Self {
            let restrictions = Restrictions::new(FreshPages::new(|_| None, || 0), IssuedPageTokens::default());
            Self { validator: Validator::new(Validation::Reject), restrictions, calls: AtomicUsize::new(0) }
        }

        /// Whether a query with a misspelt name is refused if this is the answer to the request for metadata.
        async fn refuses(&self, metadata: Result<ClientResponse, GatewayError>) -> bool {
            self.refuses_within(Duration::from_secs(90), metadata).await
        }

        /// The same for a query that may take this time.
        async fn refuses_within(&self, time: Duration, metadata: Result<ClientResponse, GatewayError>) -> bool {
            let query = ClientQuery::example(Operation::Query, "", TYPO);
            let query = ClientQuery { deadline: query.received + time, ..query };
            assert!(self.validator.must_check(&self.restrictions, &query));
            let inner = service_fn(|asked: ClientQuery| {
                assert_eq!(
                    (asked.endpoint.operation, asked.directives.cache.max_age),
                    (Operation::Metadata, Some(Duration::from_secs(59)))
                );
                let is_sent = !asked.directives.cache.only_if_cached;
                self.calls.fetch_add(usize::from(is_sent), SeqCst);
                let nothing = || Err(GatewayError::new(Reason::OnlyIfCached, "nothing"));
                std::future::ready(if is_sent { metadata.clone() } else { nothing() })
            });
            let refused = self.validator.check(inner, &self.restrictions, &query).await.map_err(|error| error.reason());
            assert!(matches!(refused, Ok(()) | Err(Reason::InvalidQuery)), "{refused:?}");
            refused.is_err()
        }

        fn calls(&self) -> usize {
            self.calls.load(SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_query_is_refused_only_by_metadata_of_the_last_minute() {
        const S: Duration = Duration::from_secs(1);
        for (status, age, outcome, expected) in [
            (200, None, Outcome::Miss, true),
            (200, Some(59 * S), Outcome::Hit, true),
            (200, Some(60 * S), Outcome::Miss, false),
            (200, Some(S), Outcome::StaleError, false),
            (500, None, Outcome::Miss, false),
        ] {
            let response = response(StatusCode::from_u16(status).unwrap(), age, outcome);
            assert_eq!(Rig::new().refuses(Ok(response)).await, expected, "{status} {age:?} {outcome:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn metadata_that_is_not_kept_is_fetched_once_in_ten_seconds() {
        let rig = Rig::new();
        let fresh = || Ok(response(StatusCode::OK, None, Outcome::Miss));
        for expected in [1, 1, 1, 2] {
            assert!(rig.refuses(fresh()).await);
            assert_eq!(rig.calls(), expected);
            advance(Duration::from_millis(3400)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_query_that_may_not_wait_fetches_no_metadata_and_keeps_no_other_from_it() {
        let rig = Rig::new();
        let fresh = || Ok(response(StatusCode::OK, None, Outcome::Miss));
        assert!(!rig.refuses_within(Duration::ZERO, fresh()).await);
        assert_eq!(rig.calls(), 0);
        assert!(rig.refuses(fresh()).await);
        assert_eq!(rig.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn metadata_that_cannot_be_fetched_is_asked_for_once_in_ten_seconds() {
        let rig = Rig::new();
        let failed = |reason| Err(GatewayError::new(reason, "no"));
        for expected in [1, 1, 1, 2] {
            assert!(!rig.refuses(failed(Reason::UpstreamTimeout)).await);
            assert_eq!(rig.calls(), expected);
            advance(Duration::from_millis(3400)).await;
        }
        // A team that has reached its own limit says nothing about metadata.
        let rig = Rig::new();
        for expected in [1, 2] {
            assert!(!rig.refuses(failed(Reason::TeamRateLimit)).await);
            assert_eq!(rig.calls(), expected);
        }
        assert!(rig.refuses(Ok(response(StatusCode::OK, None, Outcome::Miss))).await);
    }
}
