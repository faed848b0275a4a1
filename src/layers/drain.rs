//! The end of the process: refuses requests that come too late, and those that are not answered in time.
//!
//! From the beginning of a drain, new requests are refused, so that their clients use another gateway. Requests in
//! progress go on, and are refused when the drain time is up. The error is the same in both cases, because it means the
//! same to a client.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::core::draining::Draining;
use crate::core::error::{GatewayError, Reason};

/// Makes [`Drain`] services that end together.
#[derive(Debug, Clone)]
pub struct DrainLayer(Draining);

impl DrainLayer {
    /// Refuses requests once `draining` has begun.
    pub fn new(draining: Draining) -> Self {
        Self(draining)
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = Drain<S>;

    fn layer(&self, inner: S) -> Drain<S> {
        Drain { inner, draining: self.0.clone() }
    }
}

/// Refuses requests during shutdown; see the module.
#[derive(Debug, Clone)]
pub struct Drain<S> {
    inner: S,
    draining: Draining,
}

impl<S, R> Service<R> for Drain<S>
where
    S: Service<R, Error = GatewayError>,
{
    type Response = S::Response;
    type Error = GatewayError;
    type Future = DrainFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> DrainFuture<S::Future> {
        let inner = (!self.draining.has_begun()).then(|| self.inner.call(request));
        DrainFuture { inner, draining: self.draining.clone(), over: None }
    }
}

pin_project! {
    /// A response, or a refusal if the end comes first.
    pub struct DrainFuture<F> {
        // `None` where the request came too late.
        #[pin]
        inner: Option<F>,
        draining: Draining,
        // Only requests that are not answered at once wait for the end.
        over: Option<BoxFuture<'static, ()>>,
    }
}

impl<F, T> Future for DrainFuture<F>
where
    F: Future<Output = Result<T, GatewayError>>,
{
    type Output = Result<T, GatewayError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(inner) = this.inner.as_pin_mut() {
            if let Poll::Ready(answer) = inner.poll(context) {
                return Poll::Ready(answer);
            }
            let over = this.over.get_or_insert_with(|| Box::pin(this.draining.clone().over()));
            ready!(over.as_mut().poll(context));
        }
        let message = "the gateway is shutting down; ask again, and another one will answer";
        Poll::Ready(Err(GatewayError::new(Reason::Draining, message).with_retry_after(Duration::from_secs(1))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;
    use tower::{ServiceExt, service_fn};

    use super::*;

    /// A request that is answered when the test says so.
    async fn ask(draining: Draining, answer: oneshot::Receiver<u32>) -> Result<u32, GatewayError> {
        let inner = service_fn(|answer: oneshot::Receiver<u32>| async { Ok(answer.await.expect("the test answers")) });
        DrainLayer::new(draining).layer(inner).oneshot(answer).await
    }

    #[tokio::test(start_paused = true)]
    async fn requests_under_way_may_end_and_late_ones_are_refused() {
        let draining = Draining::default();
        let (answer, answered) = oneshot::channel();
        let mut under_way = std::pin::pin!(ask(draining.clone(), answered));
        assert!(under_way.as_mut().now_or_never().is_none());
        draining.begin();
        let (_unused, late) = oneshot::channel();
        let refused = ask(draining.clone(), late).await.unwrap_err();
        assert_eq!((refused.reason(), refused.retry_after().is_some()), (Reason::Draining, true));
        assert!(under_way.as_mut().now_or_never().is_none());
        answer.send(7).unwrap();
        assert_eq!(under_way.await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_still_under_way_at_the_end_are_refused() {
        let draining = Draining::default();
        let (_unused, answered) = oneshot::channel();
        let under_way = tokio::spawn(ask(draining.clone(), answered));
        tokio::task::yield_now().await;
        draining.begin();
        draining.end();
        assert_eq!(under_way.await.unwrap().unwrap_err().reason(), Reason::Draining);
        // The same holds for one that is first polled after the end.
        let (_unused, answered) = oneshot::channel();
        assert_eq!(ask(draining.clone(), answered).await.unwrap_err().reason(), Reason::Draining);
    }
}
