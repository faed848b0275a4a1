//! Records how attempts end, for the health of their upstream. It logs when an upstream begins to fail and when it
//! answers again: one line per episode, however many attempts there are.
//!
//! It changes neither calls nor responses. The layers above decide what is retried, and when an upstream gets no
//! attempts.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use crate::accounts::{Account, PerAccount};
use crate::core::cause::{Cause, CauseKind};
use crate::core::clock::{Clock, Instant};
use crate::core::error::{GatewayError, Reason};
use crate::health::upstream::{AccountAttempts, Attempt, Change};
use crate::request::call::{UpstreamCall, UpstreamResponse};

/// Makes [`Watch`] services.
#[derive(Debug, Clone)]
pub struct WatchLayer {
    attempts: PerAccount<AccountAttempts>,
    patience: Duration,
    clock: Clock,
}

impl WatchLayer {
    /// Writes to `attempts`. `patience` is the longest time that an attempt may take. An attempt that timed out after
    /// less than half of it says nothing about the upstream, because only the client's time was up.
    pub fn new(attempts: PerAccount<AccountAttempts>, patience: Duration, clock: Clock) -> Self {
        Self { attempts, patience, clock }
    }

    fn ended(&self, account: &Account, result: &Result<UpstreamResponse, GatewayError>, begun: Instant) {
        let now = self.clock.now();
        let had_time = now.saturating_duration_since(begun) * 2 >= self.patience;
        let Some(attempt) = seen(result, had_time) else { return };
        let cause = match &attempt {
            Attempt::Failed(cause) => cause.to_string(),
            Attempt::Answered { .. } => String::new(),
        };
        let name = &*account.name;
        match self.attempts.of(account).ended(attempt, now) {
            Some(Change::Began) => {
                tracing::warn!(
                    account = name,
                    cause,
                    "Twilio cannot be asked, or fails; this is said once until it answers again"
                );
            }
            Some(Change::Ended(took)) => {
                tracing::info!(account = name, failed_for_ms = took.as_millis(), "Twilio answers again");
            }
            None => {}
        }
    }
}

/// What the end of an attempt says about the upstream, if anything. `had_time` is false if the client left the attempt
/// too little time.
fn seen(result: &Result<UpstreamResponse, GatewayError>, had_time: bool) -> Option<Attempt> {
    match result {
        Ok(answer) if answer.status.is_server_error() => {
            Some(Attempt::Failed(Cause::new(CauseKind::Status, answer.status.as_u16().to_string())))
        }
        Ok(answer) => Some(Attempt::Answered { accepted: answer.status.is_success() }),
        // The connection was closed while it was idle. Only a new connection shows whether the upstream works.
        Err(error) if error.is_on_kept_connection() => None,
        Err(error) => {
            let kind = match error.reason() {
                // The upstream answers; the credentials are wrong.
                Reason::UpstreamRejectedCredentials => return Some(Attempt::Answered { accepted: false }),
                Reason::UpstreamTimeout if !had_time => return None,
                Reason::UpstreamTimeout => CauseKind::Timeout,
                Reason::UpstreamUnreachable => CauseKind::Tcp,
                Reason::UpstreamInvalid => CauseKind::InvalidAnswer,
                _ => return None,
            };
            let cause = error.upstream_cause().cloned().unwrap_or_else(|| Cause::new(kind, error.message()));
            Some(Attempt::Failed(cause))
        }
    }
}

impl<S> Layer<S> for WatchLayer {
    type Service = Watch<S>;

    fn layer(&self, inner: S) -> Watch<S> {
        Watch { inner, layer: self.clone() }
    }
}

/// Records how attempts end. See the module.
#[derive(Debug, Clone)]
pub struct Watch<S> {
    inner: S,
    layer: WatchLayer,
}

impl<S> Service<UpstreamCall> for Watch<S>
where
    S: Service<UpstreamCall, Response = UpstreamResponse, Error = GatewayError>,
    S::Future: Send + 'static,
{
    type Response = UpstreamResponse;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<UpstreamResponse, GatewayError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: UpstreamCall) -> Self::Future {
        let (account, layer) = (Arc::clone(&call.team.account), self.layer.clone());
        let (begun, answer) = (layer.clock.now(), self.inner.call(call));
        Box::pin(async move {
            let result = answer.await;
            layer.ended(&account, &result, begun);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::twilio::endpoint::Operation;

    const S: Duration = Duration::from_secs(1);

    fn answered(status: u16) -> Result<UpstreamResponse, GatewayError> {
        let status = StatusCode::from_u16(status).unwrap();
        Ok(UpstreamResponse { status, headers: HeaderMap::new(), body: Default::default(), next_token: None })
    }

    fn error(reason: Reason) -> GatewayError {
        GatewayError::new(reason, "scripted")
    }

    fn failed(kind: CauseKind, text: &str) -> Option<Attempt> {
        Some(Attempt::Failed(Cause::new(kind, text)))
    }

    #[test]
    fn answers_count_as_success_and_upstream_errors_as_failure() {
        let (good, there) = (Attempt::Answered { accepted: true }, Attempt::Answered { accepted: false });
        assert_eq!(seen(&answered(200), true), Some(good));
        for status in [400, 404, 429] {
            assert_eq!(seen(&answered(status), true), Some(there.clone()), "{status}");
        }
        assert_eq!(seen(&Err(error(Reason::UpstreamRejectedCredentials)), true), Some(there));
        assert_eq!(seen(&answered(503), true), failed(CauseKind::Status, "503"));
        for (reason, kind) in [
            (Reason::UpstreamUnreachable, CauseKind::Tcp),
            (Reason::UpstreamTimeout, CauseKind::Timeout),
            (Reason::UpstreamInvalid, CauseKind::InvalidAnswer),
        ] {
            assert_eq!(seen(&Err(error(reason)), true), failed(kind, "scripted"));
            let told = error(reason).with_upstream_cause(Cause::new(CauseKind::Dns, "no such name"));
            assert_eq!(seen(&Err(told), true), failed(CauseKind::Dns, "no such name"));
            assert_eq!(seen(&Err(error(reason).on_kept_connection()), true), None);
        }
        for reason in [Reason::BadRequest, Reason::Internal] {
            assert_eq!(seen(&Err(error(reason)), true), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_of_a_client_with_little_time_says_nothing_about_the_upstream() {
        for (took, is_counted) in [(4 * S, false), (5 * S, true), (10 * S, true)] {
            let attempts = AccountAttempts::default();
            let slow = service_fn(|_: UpstreamCall| async move {
                tokio::time::sleep(took).await;
                Err::<UpstreamResponse, _>(error(Reason::UpstreamTimeout))
            });
            let begun = Instant::now();
            let service = WatchLayer::new(PerAccount::example(attempts.clone()), 10 * S, Clock::new()).layer(slow);
            let call = UpstreamCall::example(Operation::Query, "", "");
            service.oneshot(call).await.unwrap_err();
            let failing_since = attempts.now().failing_since;
            assert_eq!(failing_since, is_counted.then_some(begun + took), "{took:?}");
        }
    }
}
