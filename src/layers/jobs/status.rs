//! The status of a job, and waits for its end.

use std::pin::pin;
use std::time::Duration;

use tower::Service;

use super::answers::{has_failed, retry_after};
use super::layer::{Answered, Jobs};
use crate::cache::CacheResponse;
use crate::core::error::GatewayError;
use crate::request::query::ClientQuery;
use crate::semantics::request_directives::CacheDirectives;

/// Added to a wait, because a status is still fresh at the exact moment at which its lifetime ends.
pub(super) const MOMENT: Duration = Duration::from_millis(1);

/// The shortest pause before a waiting client asks again, where no longer one is known.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// The status of a job. With `Prefer: wait` it waits until the job has ended, the time is up, or the process shuts
    /// down.
    pub(super) async fn status(&self, mut query: ClientQuery) -> Answered {
        let clock = self.shared.clock;
        query.directives.cache = self.shielded(&query);
        let CacheDirectives { only_if_cached, .. } = query.directives.cache;
        let mut waits = query.directives.wait.is_some();
        // Polled while the client waits, and not again after it has ended.
        let mut shutdown = pin!(self.shared.draining.begun());
        let mut last = None;
        loop {
            let mut poll = pin!(self.poll(query.clone()));
            let polled = tokio::select! {
                biased;
                polled = &mut poll => Some(polled),
                () = &mut shutdown, if waits => {
                    waits = false;
                    None
                }
            };
            let known = |failed: Option<&Answered>| match only_if_cached {
                true => None,
                false => self.known_status(&query, failed.and_then(|failed| failed.as_ref().err())),
            };
            let (mut response, is_new) = match polled {
                Some(Ok(response)) if !has_failed(&response) => (response, true),
                // A poll that failed does not end the wait, and one that is on its way does not prolong it.
                unanswered => match (
                    self.as_polled(&query).or_else(|| last.take()).or_else(|| known(unanswered.as_ref())),
                    unanswered,
                ) {
                    (Some(known), _) => (known, false),
                    (None, Some(failed)) => return self.with_next_poll(&query, failed),
                    (None, None) => {
                        let answered = poll.await;
                        return self.with_next_poll(&query, answered);
                    }
                },
            };
            let Some(stated) = self.poll_after(&response) else { return Ok(response) };
            let wait = self.next_poll(query.key()).unwrap_or(if is_new { stated } else { Duration::ZERO });
            response.headers = vec![retry_after(wait)];
            if !waits || clock.now() >= query.deadline {
                return Ok(response);
            }
            let pause = if wait.is_zero() { SHORTEST_PAUSE } else { wait + MOMENT };
            tokio::select! {
                biased;
                () = &mut shutdown => waits = false,
                () = tokio::time::sleep_until((clock.now() + pause).min(query.deadline)) => {}
            }
            // Ask for a newer status than the last one. At the end of the wait a poll would be too late, so the last
            // known status is the answer.
            query.received = clock.now();
            let is_over = !waits || clock.now() >= query.deadline;
            query.directives.cache = CacheDirectives {
                only_if_cached: only_if_cached || is_over,
                max_stale: is_over.then_some(Duration::MAX),
                ..CacheDirectives::default()
            };
            last = Some(response);
        }
    }
}
