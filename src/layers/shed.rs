//! Sheds load: beyond so many requests at once, one more is refused rather than queued.
//!
//! The bound is on requests, since one HTTP/2 connection carries many. Waiting for upstream tokens has a
//! bound of its own, further down.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::TryFutureExt;
use futures_util::future::MapErr;
use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::{BoxError, Layer, Service};

use crate::model::error::{GatewayError, Reason};

/// Makes [`Shed`] services that share one bound.
#[derive(Debug, Clone)]
pub struct ShedLayer(tower::limit::GlobalConcurrencyLimitLayer);

impl ShedLayer {
    /// At most `requests` at once.
    pub fn new(requests: usize) -> Self {
        Self(tower::limit::GlobalConcurrencyLimitLayer::new(requests))
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed(LoadShed::new(self.0.layer(inner)))
    }
}

/// Refuses what is too much. See the module.
#[derive(Debug, Clone)]
pub struct Shed<S>(LoadShed<ConcurrencyLimit<S>>);

impl<S, R> Service<R> for Shed<S>
where
    S: Service<R, Error = GatewayError>,
{
    type Response = S::Response;
    type Error = GatewayError;
    type Future = MapErr<<LoadShed<ConcurrencyLimit<S>> as Service<R>>::Future, fn(BoxError) -> GatewayError>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.0.poll_ready(context).map_err(ours_or_overloaded)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.0.call(request).map_err(ours_or_overloaded as fn(BoxError) -> GatewayError)
    }
}

fn ours_or_overloaded(error: BoxError) -> GatewayError {
    match error.downcast::<GatewayError>() {
        Ok(error) => *error,
        Err(_) => {
            GatewayError::new(Reason::Overloaded, "the gateway has as many requests as it can hold; come back shortly")
                .with_retry_after(Duration::from_secs(1))
        }
    }
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn one_too_many_is_refused_and_errors_pass() {
        let service = ShedLayer::new(1).layer(service_fn(|forever: bool| async move {
            if forever {
                std::future::pending::<()>().await;
            }
            Err::<(), _>(GatewayError::new(Reason::NotFound, "x"))
        }));
        let held = tokio::spawn(service.clone().oneshot(true));
        tokio::task::yield_now().await;
        let refused = service.clone().oneshot(false).await.unwrap_err();
        assert_eq!((refused.reason(), refused.retry_after().is_some()), (Reason::Overloaded, true));
        held.abort();
        assert!(held.await.is_err());
        assert_eq!(service.oneshot(false).await.unwrap_err().reason(), Reason::NotFound);
    }
}
