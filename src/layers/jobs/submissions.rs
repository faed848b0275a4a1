//! Submissions: with which `Idempotency-Key` they are sent, and which of them share a job.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use tower::Service;

use super::answers::{is_of_use, retry_after, told};
use super::layer::{Answered, Jobs, Shared};
use crate::cache::entry::Entry;
use crate::cache::{CacheResponse, UnstoredResponse};
use crate::core::error::{GatewayError, Reason};
use crate::core::uuid;
use crate::request::key::Key;
use crate::request::query::ClientQuery;
use crate::semantics::request_directives::CacheDirectives;
use crate::twilio::endpoint::{IDEMPOTENCY_KEY, Operation};
use crate::twilio::job::Job;

/// The greatest length of a client's `Idempotency-Key`, in bytes.
const LONGEST_KEY: usize = 255;

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// Submits a job, or finds the one that an identical submission made.
    pub(super) async fn submit(&self, mut query: ClientQuery) -> Answered {
        let has_own_key = has_own_key(query.headers.as_deref())?;
        if !has_own_key {
            let key = HeaderValue::try_from(uuid::v7(self.shared.clock.wall_now(), fastrand::u128(..)));
            query.headers = key.ok().map(|key| Arc::new(only(IDEMPOTENCY_KEY, key)));
        }
        if has_own_key || self.shared.settings.dedup.is_zero() {
            if query.directives.cache.only_if_cached {
                let message = "no job is shared with this submission, and it forbids asking Twilio";
                return Err(GatewayError::new(Reason::OnlyIfCached, message));
            }
            query.directives.cache.no_store = true;
        }
        let CacheDirectives { no_cache, no_store, only_if_cached, .. } = query.directives.cache;
        if !no_cache && !no_store {
            self.drop_lost(&query, !only_if_cached).await;
        }
        let mut response = self.ask(query).await?;
        if let Some(wait) = self.poll_after(&response) {
            response.headers.push(retry_after(wait));
        }
        Ok(response)
    }

    /// Removes the stored answer to an identical earlier submission if its job must not be shared. Clients that submit
    /// at the same time then share one new job. `may_poll` says whether the status may be polled to find out.
    async fn drop_lost(&self, query: &ClientQuery, may_poll: bool) {
        let Shared { store, clock, .. } = &*self.shared;
        if let Some(loading) = store.load(&query.team.account, query.key(), &query.context, clock.now()) {
            loading.await;
        }
        let now = clock.moment();
        let made = store.page(query.key()).filter(|entry| entry.stored.age(now) <= entry.stored.lifetimes.fresh);
        let Some(made) = made.filter(|entry| entry.stored.representation.status.is_success()) else { return };
        if !self.may_share(query, &made, may_poll).await {
            let unstored = UnstoredResponse {
                account: made.stored.account,
                asked: made.asked,
                made: made.stored.made,
                begins: None,
                next: None,
                is_shared: true,
            };
            store.supersede(*query.key(), &unstored);
        }
    }

    /// Whether the job that this submission `made` may be shared, as far as is known.
    async fn may_share(&self, query: &ClientQuery, made: &Entry, may_poll: bool) -> bool {
        let Shared { store, clock, .. } = &*self.shared;
        let now = clock.moment();
        let Some(id) = Job::read(&made.stored.representation.body).and_then(|job| job.id) else { return true };
        let job = Key::of_job(&query.team.account, &id);
        // After a restart, or on another replica, only the stored answer says which submission made the job.
        if store.jobs.get(&job).is_none_or(|known| known.submission.is_none()) {
            store.jobs.update(job, |known| known.submission = Some(*query.key()));
        }
        let is_over = || self.is_over(&job);
        if is_over() {
            return false;
        }
        // A hit does not wait for the store. What other replicas know counts for the next submission.
        store.jobs.ask_lost(&query.team.account, job, *clock);
        if let Some(status) = store.fresh(&job, now) {
            return is_of_use(&status);
        }
        // Twilio asked for no poll before this time.
        let told = told(&made.stored.representation).unwrap_or_default();
        if !may_poll || made.stored.age(now) < told || self.next_poll(&job).is_some() {
            return true;
        }
        match self.ask_briefly(&self.about(query, Operation::JobStatus, &id, "")).await {
            Some(Ok(status)) => is_of_use(status.representation()) && !is_over(),
            Some(Err(_)) | None => true,
        }
    }

    /// Whether the job whose status has this key is known to be lost, or its results to have expired.
    pub(super) fn is_over(&self, status: &Key) -> bool {
        let Shared { store, clock, .. } = &*self.shared;
        let is_lost = || store.jobs.get(status).is_some_and(|known| known.lost.is_some());
        is_lost() || store.results_end(status, *clock).is_some_and(|end| end.since(clock.moment()).is_zero())
    }
}

/// Whether the client has sent an `Idempotency-Key`.
fn has_own_key(headers: Option<&HeaderMap>) -> Result<bool, GatewayError> {
    let mut keys = headers.into_iter().flat_map(|headers| headers.get_all(IDEMPOTENCY_KEY));
    let is_key =
        |key: &HeaderValue| (1..=LONGEST_KEY).contains(&key.len()) && key.as_bytes().iter().all(u8::is_ascii_graphic);
    match (keys.next(), keys.next()) {
        (None, _) => Ok(false),
        (Some(key), None) if is_key(key) => Ok(true),
        _ => Err(GatewayError::new(
            Reason::BadRequest,
            "send one Idempotency-Key of 1 to 255 visible ASCII characters, or none and the gateway makes one",
        )),
    }
}

pub(super) fn only(name: &'static str, value: HeaderValue) -> HeaderMap {
    [(HeaderName::from_static(name), value)].into_iter().collect()
}
