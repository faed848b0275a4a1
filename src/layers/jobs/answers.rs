//! What an answer says about its job.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::layer::Jobs;
use crate::cache::CacheResponse;
use crate::cache::response::{Content, Source};
use crate::core::error::whole_seconds;
use crate::request::response::Representation;
use crate::twilio::job::{self, Job, State};

impl<S> Jobs<S> {
    /// How long the job of this answer must not be polled from now on; `None` if it has ended, or the answer is about
    /// no job.
    pub(super) fn poll_after(&self, response: &CacheResponse) -> Option<Duration> {
        let told = told(response.representation())?;
        let age = match &response.content {
            Content::Stored(entry) => entry.stored.age(self.shared.clock.moment()),
            Content::Forwarded(..) if matches!(response.source, Source::Hit { .. }) => response.age.unwrap_or_default(),
            Content::Forwarded(..) => Duration::ZERO,
        };
        Some(told.saturating_sub(age))
    }
}

/// Whether Twilio answered a poll with an error that says nothing about the job.
pub(super) fn has_failed(response: &CacheResponse) -> bool {
    job::is_failed_poll(response.representation().status)
}

pub(super) fn is_success(response: &CacheResponse) -> bool {
    response.representation().status.is_success()
}

/// The `Retry-After` of an answer about an unfinished job; `None` for a job that has ended.
pub(super) fn told(answer: &Representation) -> Option<Duration> {
    let (_, value) = answer.headers.iter().find(|(name, _)| *name == header::RETRY_AFTER)?;
    let seconds = value.to_str().ok()?.parse().ok()?;
    answer.status.is_success().then(|| Duration::from_secs(seconds))
}

/// `Retry-After`: whole seconds, at least one.
pub(super) fn retry_after(wait: Duration) -> (HeaderName, HeaderValue) {
    (header::RETRY_AFTER, whole_seconds(wait).as_secs().into())
}

/// Whether a job with this status is unfinished or has results. An answer without a status changes nothing.
pub(super) fn is_of_use(status: &Representation) -> bool {
    match status.status {
        StatusCode::NOT_FOUND | StatusCode::GONE => false,
        StatusCode::OK => {
            Job::read(&status.body).is_none_or(|job| matches!(job.state, State::Unfinished | State::Completed))
        }
        _ => true,
    }
}
