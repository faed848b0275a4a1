//! Answers hits, and sends each miss upstream once, however many clients ask.
//!
//! `semantics::freshness` decides what may be served. This layer looks up, asks it, and acts on the decision: it
//! serves, refreshes in the background, lets identical queries share one flight, stores what may be stored, and serves
//! a stale response within its window when the upstream fails. It never marks an old response fresh, never replaces a
//! usable response with an error, and stores nothing of a failed call.
//!
//! It knows neither HTTP nor the form in which a client gets a response: bodies are canonical and keys are computed
//! above it, and `layers::represent` chooses the form. `crate::cache` stores.

mod advice;
mod age;
mod bypass;
mod fetch;
mod fill;
mod jobs;
mod keep;
mod layer;
mod pending_writes;
mod polls;
mod refresh_backoff;
mod submissions;
mod writes;

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either, Ready, ready};
use tower::Service;
use tracing::Instrument;

use self::bypass::bypass;
use self::layer::Answered;
pub use self::layer::{CacheLayer, Caching, JobLifetimes, Policy};
pub use self::pending_writes::PendingWrites;
use crate::cache::CacheResponse;
use crate::cache::entry::Entry;
use crate::core::error::{GatewayError, Reason};
use crate::core::outcome::Outcome;
use crate::request::call::{UpstreamCall, UpstreamResponse};
use crate::request::query::ClientQuery;
use crate::semantics::freshness::{Decision, decide};
use crate::twilio::endpoint::CacheClass;

impl<S> Service<ClientQuery> for Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = CacheResponse;
    type Error = GatewayError;
    /// A hit is ready at once and allocates nothing here.
    type Future = Either<Ready<Answered>, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, query: ClientQuery) -> Self::Future {
        let is_kept = query.endpoint.cache != CacheClass::None && !query.directives.cache.no_store;
        if !is_kept && !query.directives.cache.only_if_cached {
            let span = query.context.span();
            let bypass = bypass(S::clone(&self.inner), query, Arc::clone(&self.layer));
            return Either::Right(Box::pin(bypass.instrument(span)));
        }
        let entry = self.layer.page(&query);
        let load = || self.layer.store.load(&query.team.account, query.key(), &query.context, self.layer.clock.now());
        if entry.is_none()
            && let Some(loading) = load()
        {
            // A short wait costs less than a token for a response that a tier already has.
            let cache = self.clone();
            return Either::Right(Box::pin(async move {
                loading.await;
                let entry = cache.layer.page(&query);
                let is_shared = entry.as_ref().is_some_and(|entry| entry.by_another);
                cache.answer(query, entry, is_shared).await
            }));
        }
        self.answer(query, entry, false)
    }
}

impl<S> Caching<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Answers with `entry` if it may be served, and fetches otherwise. `is_shared`: this query has brought it from the
    /// store that replicas share.
    fn answer(
        &self,
        query: ClientQuery,
        entry: Option<Arc<Entry>>,
        is_shared: bool,
    ) -> Either<Ready<Answered>, BoxFuture<'static, Answered>> {
        let now = self.layer.clock.moment();
        let decision =
            decide(entry.as_ref().map(|e| (&e.stored.lifetimes, e.stored.age(now))), &query.directives.cache);
        match (decision, entry) {
            (Decision::Serve, Some(entry)) => {
                let is_fresh = entry.stored.age(now) <= entry.stored.lifetimes.fresh;
                let outcome = (is_shared && is_fresh).then_some(Outcome::Shared);
                Either::Left(ready(Ok(CacheResponse::stored(entry, outcome, now))))
            }
            (Decision::ServeAndRefresh, Some(entry)) => {
                if entry.stored.is_refreshable() {
                    self.refresh(query, entry.asked);
                }
                Either::Left(ready(Ok(CacheResponse::stored(entry, None, now))))
            }
            (Decision::Refuse, _) => Either::Left(ready(Err(GatewayError::new(
                Reason::OnlyIfCached,
                "no stored response satisfies this request, and it forbids asking Twilio",
            )))),
            (_, entry) => Either::Right(Box::pin(self.clone().fetch(query, entry))),
        }
    }
}

#[cfg(test)]
mod tests;
