//! Query jobs: submissions that are safe to repeat and are shared, statuses that cost Twilio few polls, and queries
//! that become jobs.
//!
//! This layer is between `represent` and `cache`, and gets its answers from the cache. The answer to a submission, a
//! job's status and its results are stored responses like any other: they survive a restart, can be purged, and are
//! fetched once for all clients that wait. `layers::cache::jobs` decides how long they are fresh. This layer decides
//! about:
//!
//! * **Submissions.** A submission without an `Idempotency-Key` gets a UUIDv7. All its attempts carry the same one, so
//!   a repeated submission makes one job. If its end stays unknown, the next identical submission has the same key. A
//!   submission with its own key, or with `no-store`, is not shared: it gets no stored answer and leaves none. Any other
//!   submission gets the answer of an identical one within `cache.jobs.dedup`,
//!   unless that job is known to have failed, been cancelled or expired. If the job's `Retry-After` has passed, its
//!   status is polled first. `no-cache` asks for a new job, and later submissions share that new job.
//! * **Polls** (`polls`). Until `Retry-After` has passed, no directive of a client makes a poll go upstream. `no-cache`,
//!   `no-store` and `max-age` cause a new poll only for a job that has ended. After a poll that failed the next one
//!   waits too, and the last known status is the answer. Clients are told how much of the wait is left.
//!   `Prefer: wait` delays an answer until the job has ended, the time is up, or the process shuts down. If no status is
//!   known when a poll fails, the answer to the job's submission counts as one. A poll that takes long holds only those
//!   who have no other answer.
//! * **Queries with `Prefer: respond-async`** (`respond_async`).
//! * **Policies.** A job, and the page tokens of its lists and results, belong to the policy under which they were
//!   given out (`owners`). A list leaves out jobs that belong to other policies.

mod answers;
mod layer;
mod owners;
mod policies;
mod polls;
mod respond_async;
mod status;
mod submissions;

use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either};
use tower::Service;

use self::answers::is_success;
use self::layer::Answered;
pub use self::layer::{Jobs, JobsLayer, Settings};
pub use self::owners::JobOwners;
use self::policies::scope;
use crate::cache::CacheResponse;
use crate::core::error::GatewayError;
use crate::request::query::ClientQuery;
use crate::twilio::endpoint::Operation;
use crate::twilio::permission::Permission;

impl<S> Service<ClientQuery> for Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = CacheResponse;
    type Error = GatewayError;
    /// Requests that are not about jobs are passed on without a box.
    type Future = Either<S::Future, BoxFuture<'static, Answered>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, query: ClientQuery) -> Self::Future {
        let may_become_a_job = query.endpoint.operation == Operation::Query
            && query.directives.respond_async
            // A further page is part of a result set, and no query of its own.
            && query.canonical.expected_as.is_none()
            && query.team.operations.allows(Permission::Jobs);
        if query.endpoint.permission == Permission::Jobs {
            return Either::Right(Box::pin(self.clone().answer(query)));
        }
        match may_become_a_job {
            true => Either::Right(Box::pin(self.clone().respond_async(query))),
            false => Either::Left(self.inner.call(query)),
        }
    }
}

impl<S> Jobs<S>
where
    S: Service<ClientQuery, Response = CacheResponse, Error = GatewayError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn answer(self, query: ClientQuery) -> Answered {
        let scope = scope(&query);
        if let Some(scope) = &scope {
            self.prove(scope, &query).await?;
        }
        let asked = query.clone();
        let mut response = match query.endpoint.operation {
            Operation::JobSubmit => self.submit(query).await?,
            Operation::JobStatus => self.status(query).await?,
            _ => self.ask(query).await?,
        };
        if let Some(scope) = &scope {
            self.give(scope, &asked, &mut response).await?;
        }
        response.has_links = asked.endpoint.operation != Operation::JobResults && is_success(&response);
        Ok(response)
    }
}

#[cfg(test)]
mod tests;
