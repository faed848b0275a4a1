//! Writes to an account, and how they invalidate its stored responses.
//!
//! A custom field is a measure: a new one changes the account's metadata, and a changed one changes the results of
//! queries. So a write that succeeded, or whose result is unknown, removes the account's stored metadata and queries,
//! in memory and on the disk, and the data derived from them: which queries are settled, and the metadata that policies
//! see. A call that was in progress then is still answered, but its response is not stored.
//!
//! A write that was sent continues in a separate task even if its client leaves. So its result is known, and stored
//! responses are removed after Twilio has written, not before.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use tokio::task::JoinError;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use super::layer::CacheLayer;
use crate::accounts::Account;
use crate::cache::{Purge, PurgeReport};
use crate::core::error::{GatewayError, Reason, Retry};
use crate::request::call::{UpstreamCall, UpstreamResponse};

type Answered = Result<UpstreamResponse, GatewayError>;

/// How long the answer to a write waits for the disk. If the disk takes longer, it drops its part after the answer.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Sends a write, and before the answer removes the stored responses that it may have made wrong. If its client leaves,
/// the write is dropped only if nothing of it was sent yet.
pub(super) async fn send<S>(inner: S, call: UpstreamCall, layer: Arc<CacheLayer>) -> Answered
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError> + Send + 'static,
    S::Future: Send,
{
    let (account, span) = (Arc::clone(&call.team.account), call.context.span());
    // In a separate task, because stored responses must be removed even if this task panics.
    let sent = tokio::spawn(inner.oneshot(call).instrument(span.clone()));
    let done = async move {
        let answered = sent.await.unwrap_or_else(failed);
        if !changes_nothing(&answered) {
            drop_outdated(&layer, &account).await;
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
        Err(error) => error.retry() == Retry::NothingSent || error.is_abandoned() || is_refused(error.reason()),
    }
}

/// Whether a call with this error was not sent, or was refused by Twilio.
fn is_refused(reason: Reason) -> bool {
    use Reason::{CircuitOpen, Deadline, QueueFull, TeamRateLimit, UpstreamRejectedCredentials};
    matches!(reason, Deadline | QueueFull | CircuitOpen | TeamRateLimit | UpstreamRejectedCredentials)
}

/// Drops the stored metadata and queries of an account, under each of its names.
async fn drop_outdated(layer: &CacheLayer, account: &Account) {
    let purges = layer.same_data.of(account).iter().map(|name| {
        let (store, which) = (layer.store.clone(), Purge::Data(name.to_string()));
        tokio::task::spawn_blocking(move || store.purge(&which))
    });
    let purged = tokio::time::timeout(DISK_PATIENCE, join_all(purges)).await.unwrap_or_default();
    let pages: u64 = purged.iter().flatten().map(|purged| purged.pages).sum();
    tracing::info!(account = %account.name, pages, "a custom field was written, or may have been: the stored metadata and queries of its account were removed");
    for PurgeReport { not_durable, .. } in purged.into_iter().flatten() {
        if let Some(error) = not_durable {
            tracing::error!(account = %account.name, error, "the disk could not remove the responses that a write made wrong, and a restart may restore them: purge the account");
        }
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
