//! Writes to an account, and how they invalidate its stored responses.
//!
//! A custom field is a measure: a new one changes the account's metadata, and a changed one changes the results of
//! queries. So a write that succeeded, or whose result is unknown, removes the account's stored metadata and queries,
//! in memory and on the disk, and the data derived from them: which queries are settled, and the metadata that policies
//! see. A call that was in progress then is still answered, but its response is not stored.
//!
//! A write that was sent continues in a separate task even if its client leaves. So its result is known, and stored
//! responses are removed after Twilio has written, not before. The process waits for these tasks before it ends. If the
//! result is not known in time, it counts as unknown: otherwise the next process would restore the old responses from
//! the disk.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::oneshot;
use tokio::task::JoinError;
use tokio::time::timeout;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use super::layer::CacheLayer;
use super::pending_writes::PendingWrite;
use crate::accounts::Account;
use crate::cache::{Purge, PurgeReport};
use crate::core::error::{GatewayError, Reason, Retry};
use crate::request::call::{UpstreamCall, UpstreamResponse};

type Answered = Result<UpstreamResponse, GatewayError>;

/// How long the answer to a write waits for the tiers behind memory. If they take longer, they drop their parts after it.
const TIER_PATIENCE: Duration = Duration::from_secs(1);

/// Sends a write, and before the answer removes the stored responses that it may have made wrong. If its client leaves,
/// the write is dropped only if nothing of it was sent yet.
pub(super) async fn send<S>(inner: S, call: UpstreamCall, layer: Arc<CacheLayer>) -> Answered
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Send + 'static,
    S::Future: Send,
{
    let (account, span) = (Arc::clone(&call.team.account), call.context.span());
    let mut pending = layer.writes.begin();
    // In a separate task, because stored responses must be removed even if this task panics.
    let mut sent = tokio::spawn(inner.oneshot(call).instrument(span.clone()));
    let done = async move {
        let answered = tokio::select! {
            biased;
            answered = &mut sent => answered.unwrap_or_else(failed),
            () = pending.is_given_up() => {
                sent.abort();
                Err(GatewayError::new(Reason::Draining, "the gateway ended before Twilio answered this write"))
            }
        };
        if !changes_nothing(&answered) {
            drop_outdated(&layer, &account, pending).await;
        }
        answered
    };
    tokio::spawn(done.instrument(span)).await.unwrap_or_else(failed)
}

fn failed(error: JoinError) -> Answered {
    let message = "the gateway failed during this write, which may have been done; tell whoever operates it";
    Err(GatewayError::new(Reason::Internal, message).with_cause(error))
}

/// Whether it is certain that Twilio has written nothing.
fn changes_nothing(answered: &Answered) -> bool {
    match answered {
        // After a 408 from something in between, Twilio may have got the whole write.
        Ok(answer) => answer.status.is_client_error() && answer.status != StatusCode::REQUEST_TIMEOUT,
        Err(error) => {
            let reason = error.reason();
            error.retry() == Retry::NothingSent
                || error.is_abandoned()
                || reason.is_of_the_budget()
                || reason == Reason::UpstreamRejectedCredentials
        }
    }
}

/// Drops the stored metadata and queries of an account, also those that were stored under another name of it. Returns
/// when memory has none of them any more, and the tiers behind it have none or take too long. The write is `pending`
/// until all of this is done.
async fn drop_outdated(layer: &CacheLayer, account: &Arc<Account>, pending: PendingWrite) {
    let (store, which) = (layer.store.clone(), Purge::Data(account.id()));
    let (in_memory, dropped) = oneshot::channel();
    let purge = tokio::task::spawn_blocking(move || {
        store.purge_and_tell(&which, |pages| {
            // The receiver is gone only if the runtime ends.
            let _ = in_memory.send(pages);
        })
    });
    let reported = {
        let account = Arc::clone(account);
        async move {
            report(&account, purge.await);
            drop(pending);
        }
    };
    // In a separate task, because the answer does not wait for a slow disk, and its fault is reported nevertheless.
    let reported = tokio::spawn(reported.in_current_span());
    let pages = dropped.await.unwrap_or_default();
    tracing::info!(account = %account.name, pages, "a custom field was written, or may have been: the stored metadata and queries of its account were removed");
    // If it takes longer, the responses are removed after the answer.
    let _ = timeout(TIER_PATIENCE, reported).await;
}

/// Reports a purge that may not last.
fn report(account: &Account, purged: Result<PurgeReport, JoinError>) {
    let error = match purged {
        Ok(PurgeReport { not_durable, .. }) => not_durable,
        Err(error) => Some(error.to_string()),
    };
    if let Some(error) = error {
        tracing::error!(account = %account.name, error, "the disk could not remove the responses that a write made wrong, and a restart may restore them: purge the account");
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn answer(status: u16) -> Answered {
        let status = StatusCode::from_u16(status).unwrap();
        Ok(UpstreamResponse { status, headers: HeaderMap::new(), body: Default::default(), next_token: None })
    }

    #[test]
    fn stored_responses_are_kept_only_if_certainly_nothing_was_written() {
        let error = |reason, retry| Err(GatewayError::new(reason, "scripted").with_retry(retry));
        for status in [400, 403, 404, 409, 412, 422, 429] {
            assert!(changes_nothing(&answer(status)), "{status}");
        }
        for status in [200, 201, 408, 500, 502, 503, 504] {
            assert!(!changes_nothing(&answer(status)), "{status}");
        }
        for reason in [Reason::Deadline, Reason::QueueFull, Reason::CircuitOpen, Reason::UpstreamRejectedCredentials] {
            assert!(changes_nothing(&error(reason, Retry::Never)), "{reason:?}");
        }
        assert!(changes_nothing(&error(Reason::UpstreamUnreachable, Retry::NothingSent)));
        assert!(changes_nothing(&Err(GatewayError::abandoned())));
        for reason in [Reason::UpstreamTimeout, Reason::UpstreamUnreachable, Reason::UpstreamInvalid, Reason::Internal]
        {
            assert!(!changes_nothing(&error(reason, Retry::IfRepeatable)), "{reason:?}");
        }
    }
}
