//! The form in which a client gets a response: links, 304, gzip, `Age` and `Cache-Status`.
//!
//! This layer is between decode and the cache, so that the cache handles only one form of a response. It applies to
//! every response: a stored one, one from upstream, and one of which a policy hides a part. No client waits for
//! compression: the first response that could be compressed is sent as it is, and its gzip body is made in the
//! background for later ones.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderValue, header};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::cache::response::{Content, Source};
use crate::cache::{CacheResponse, Store};
use crate::core::clock::Clock;
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::request::key::Key;
use crate::request::query::{ClientQuery, Redact};
use crate::request::response::{ClientResponse, Redacted};
use crate::semantics::cache_status;
use crate::twilio::links::{Base, Links};

/// Makes [`Represent`] services.
#[derive(Debug, Clone)]
pub struct RepresentLayer(Arc<Compressor>, Arc<Links>);

/// Compresses stored responses.
#[derive(Debug)]
struct Compressor {
    store: Store,
    clock: Clock,
}

impl RepresentLayer {
    /// Keeps the gzip bodies of stored responses in `store`, and rewrites `links` to lead to the gateway.
    pub fn new(store: Store, links: Links, clock: Clock) -> Self {
        Self(Arc::new(Compressor { store, clock }), Arc::new(links))
    }
}

impl<S> Layer<S> for RepresentLayer {
    type Service = Represent<S>;

    fn layer(&self, inner: S) -> Represent<S> {
        Represent { inner, compressor: Arc::clone(&self.0), links: Arc::clone(&self.1) }
    }
}

/// Chooses the form of a response. See the module.
#[derive(Debug, Clone)]
pub struct Represent<S> {
    inner: S,
    compressor: Arc<Compressor>,
    links: Arc<Links>,
}

impl<S> Service<ClientQuery> for Represent<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError>,
{
    type Response = ClientResponse;
    type Error = GatewayError;
    type Future = RepresentFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut query: ClientQuery) -> Self::Future {
        let preferences = Preferences {
            if_none_match: query.directives.if_none_match.take(),
            gzip: query.directives.gzip.then(|| (Arc::clone(&self.compressor), *query.key())),
            redact: query.redact.take(),
            // The jobs layer names addresses too.
            links: query.base.clone().map(|base| (Arc::clone(&self.links), base)),
        };
        RepresentFuture { cached: self.inner.call(query), preferences }
    }
}

pin_project! {
    /// A response in the form that its client wants.
    pub struct RepresentFuture<F> {
        #[pin]
        cached: F,
        preferences: Preferences,
    }
}

impl<F> Future for RepresentFuture<F>
where
    F: Future<Output = Result<CacheResponse, GatewayError>>,
{
    type Output = Result<ClientResponse, GatewayError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let cached = ready!(this.cached.poll(context))?;
        Poll::Ready(this.preferences.represent(cached))
    }
}

/// What a client prefers, as far as the form of the response depends on it.
struct Preferences {
    if_none_match: Option<HeaderValue>,
    /// Set if gzip is acceptable: the compressor, and the key under which the response is stored.
    gzip: Option<(Arc<Compressor>, Key)>,
    redact: Option<Arc<dyn Redact>>,
    /// Where links lead.
    links: Option<(Arc<Links>, Arc<Base>)>,
}

impl Preferences {
    fn represent(&self, mut cached: CacheResponse) -> Result<ClientResponse, GatewayError> {
        if cached.has_links
            && let Some((links, base)) = &self.links
        {
            lead_back(&mut cached, links, base)?;
        }
        let original = cached.representation();
        let redacted = match &self.redact {
            // An error contains no data.
            Some(redact) if original.status.is_success() => redact.redact(original)?,
            _ => None,
        };
        let page = redacted.as_ref().map_or(original, |redacted| &redacted.representation);
        let lazy = match (&redacted, &cached.content) {
            (Some(redacted), _) => Some(&redacted.gzip),
            (None, Content::Stored(entry)) => Some(&entry.compression.gzip),
            (None, Content::Forwarded(..)) => None,
        };
        let coded = self.gzip.as_ref().and(lazy).and_then(|lazy| lazy.get());
        let has = self.if_none_match.as_ref().and_then(|tags| page.tag_of_client(tags, coded));
        let not_modified = has.is_some();
        if let Some((compressor, key)) = &self.gzip
            && coded.is_none()
            && !not_modified
        {
            match (&redacted, &cached.content) {
                (Some(redacted), _) => compress(redacted),
                (None, Content::Stored(entry)) => compressor.store.compress(*key, entry, compressor.clock),
                (None, Content::Forwarded(..)) => {}
            }
        }
        let outcome = match cached.outcome {
            // That the upstream failed, or that the cache was bypassed, is more important than that the client already
            // has the response.
            Outcome::StaleError | Outcome::Bypass => cached.outcome,
            _ if not_modified => Outcome::Revalidated,
            outcome => outcome,
        };
        let key = match &cached.content {
            Content::Stored(entry) => &entry.key_param,
            Content::Forwarded(_, key) => key,
        };
        let cache_status = match cached.source {
            Source::Hit { ttl } => cache_status::hit(ttl, outcome, key),
            Source::Forwarded { why, stored, collapsed } => {
                cache_status::forwarded(why, original.status.as_u16(), stored, collapsed, outcome, key)
            }
        };
        Ok(ClientResponse {
            etag: has.or_else(|| coded.map_or_else(|| page.etag.clone(), |coded| Some(coded.etag.clone()))),
            coded: coded.map(|coded| coded.body.clone()),
            page: Arc::clone(page),
            outcome,
            cache_status,
            age: cached.age,
            not_modified,
            headers: cached.headers,
        })
    }
}

/// Rewrites the links in a response so that they lead to `base`. The stored response keeps Twilio's links.
fn lead_back(cached: &mut CacheResponse, links: &Links, base: &Base) -> Result<(), GatewayError> {
    let original = Arc::clone(cached.representation());
    let location = original.headers.iter().find(|(name, _)| *name == header::LOCATION);
    let location = location.and_then(|(_, value)| links.rewrite_location(value.to_str().ok()?, base));
    if let Some(location) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
        cached.headers.push((header::LOCATION, location));
    }
    let body = links.rewrite(&original.body, base).map_err(|error| {
        let message = "Twilio's answer about query jobs is ambiguous JSON, in which links cannot be told apart";
        GatewayError::new(Reason::UpstreamInvalid, message).with_cause(error)
    })?;
    if body != original.body {
        let key = match &cached.content {
            Content::Stored(entry) => entry.key_param,
            Content::Forwarded(_, key) => *key,
        };
        cached.content = Content::Forwarded(Arc::new(original.with_body(body)), key);
    }
    Ok(())
}

/// Compresses a redacted response, once. It is not in the store; the policy's view keeps it.
fn compress(redacted: &Arc<Redacted>) {
    if redacted.representation.may_be_coded() && redacted.gzip.begin() {
        let redacted = Arc::clone(redacted);
        tokio::task::spawn_blocking(move || redacted.representation.gzip().map(|coded| redacted.gzip.set(coded)));
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::time::Duration;

    use http::{HeaderMap, StatusCode};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::metrics::Metrics;
    use crate::request::call::UpstreamResponse;
    use crate::request::response::{LazyGzip, Representation};
    use crate::semantics::cache_status::{Forward, KeyParam};
    use crate::semantics::request_directives::RequestDirectives;
    use crate::twilio::endpoint::Operation;

    fn representation(byte: u8) -> Arc<Representation> {
        Arc::new(Representation::new(
            UpstreamResponse {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: vec![byte; 4096].into(),
                next_token: None,
            },
            &[],
        ))
    }

    fn links() -> Links {
        Links::new(&"https://insights.twilio.com".parse().unwrap(), None)
    }

    /// A client that has the response with this tag, and may accept gzip.
    fn having(if_none_match: Option<HeaderValue>, gzip: bool, redact: Option<Arc<dyn Redact>>) -> ClientQuery {
        let directives = RequestDirectives { if_none_match, gzip, ..RequestDirectives::default() };
        ClientQuery { directives, redact, ..ClientQuery::example(Operation::Metadata, "", "") }
    }

    async fn represent(outcome: Outcome, query: ClientQuery) -> ClientResponse {
        let inner = service_fn(move |query: ClientQuery| {
            assert!(query.redact.is_none() && query.directives.if_none_match.is_none());
            let content = Content::Forwarded(representation(b'x'), KeyParam::new(&query.key().short()));
            let source = Source::Forwarded { why: Forward::UriMiss, stored: true, collapsed: false };
            ready(Ok::<_, GatewayError>(CacheResponse::new(content, source, outcome, None)))
        });
        let layer = RepresentLayer::new(Store::new(1 << 20, &Metrics::new()), links(), Clock::new());
        layer.layer(inner).oneshot(query).await.unwrap()
    }

    #[tokio::test]
    async fn cache_status_tells_the_outcome_for_this_client() {
        use Outcome::{Bypass, Collapsed, Miss, Revalidated, StaleError};
        let tag = representation(b'x').etag.clone();
        for (outcome, told) in
            [(Miss, Revalidated), (Collapsed, Revalidated), (StaleError, StaleError), (Bypass, Bypass)]
        {
            let response = represent(outcome, having(tag.clone(), false, None)).await;
            assert_eq!((response.outcome, response.not_modified), (told, true));
            let detail = format!("detail={};", told.as_str());
            assert!(response.cache_status.to_str().unwrap().contains(&detail), "{:?}", response.cache_status);
        }
    }

    #[derive(Debug)]
    struct HidingPolicy(Arc<Redacted>);

    impl Redact for HidingPolicy {
        fn redact(&self, _: &Arc<Representation>) -> Result<Option<Arc<Redacted>>, GatewayError> {
            Ok(Some(Arc::clone(&self.0)))
        }
    }

    #[tokio::test]
    async fn a_redacted_response_has_a_tag_and_a_gzip_body_of_its_own() {
        let redacted = Arc::new(Redacted { representation: representation(b'y'), gzip: LazyGzip::default() });
        let redact = || Some(Arc::new(HidingPolicy(Arc::clone(&redacted))) as Arc<dyn Redact>);
        let whole = representation(b'x').etag.clone();
        let first = represent(Outcome::Hit, having(whole, true, redact())).await;
        assert!(!first.not_modified && first.coded.is_none(), "it is compressed after the first response");
        assert!(Arc::ptr_eq(&first.page, &redacted.representation));
        let compressed = async {
            while redacted.gzip.get().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), compressed).await.unwrap();
        let second = represent(Outcome::Hit, having(None, true, redact())).await;
        assert!(second.coded.is_some() && second.etag == redacted.representation.gzip_etag());
        let third = represent(Outcome::Hit, having(second.etag, false, redact())).await;
        assert_eq!((third.outcome, third.not_modified), (Outcome::Revalidated, true));
    }
}
