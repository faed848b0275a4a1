//! Sheds load: refuses requests beyond a limit instead of queueing them.
//!
//! The limit is on requests, because one HTTP/2 connection carries many. Waiting for upstream tokens has a separate
//! limit, in a layer below.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, Ready, ready};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service};

use crate::core::error::{GatewayError, Reason};

/// Makes [`Shed`] services that share one limit.
#[derive(Debug, Clone)]
pub struct ShedLayer(Arc<Semaphore>);

impl ShedLayer {
    /// At most `requests` at the same time.
    pub fn new(requests: usize) -> Self {
        Self(Arc::new(Semaphore::new(requests)))
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed { inner, permits: Arc::clone(&self.0) }
    }
}

/// Refuses requests beyond the limit; see the module.
#[derive(Debug, Clone)]
pub struct Shed<S> {
    inner: S,
    permits: Arc<Semaphore>,
}

impl<S, R> Service<R> for Shed<S>
where
    S: Service<R, Error = GatewayError>,
{
    type Response = S::Response;
    type Error = GatewayError;
    type Future = Either<Counted<S::Future>, Ready<Result<S::Response, GatewayError>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Either::Left(Counted { answer: self.inner.call(request), permit }),
            Err(_) => {
                let message = "the gateway already handles as many requests as it may; come back shortly";
                let error = GatewayError::new(Reason::Overloaded, message).with_retry_after(Duration::from_secs(1));
                Either::Right(ready(Err(error)))
            }
        }
    }
}

pin_project! {
    /// A request that was accepted. It counts until it is answered or dropped.
    #[derive(Debug)]
    pub struct Counted<F> {
        #[pin]
        answer: F,
        permit: OwnedSemaphorePermit,
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().answer.poll(context)
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
