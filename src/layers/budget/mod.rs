//! Every upstream attempt pays here: a token of its account's bucket and one of its places.
//!
//! It sits inside retry, so that a retry pays like a first try, and it watches what comes back: a 429 pauses
//! the whole account. It does not decide what is tried again, and holds no request bodies.

mod account;
mod bucket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::StatusCode;
use tower::{Layer, Service, ServiceExt};

pub use account::{AccountBudget, Limits, Standing};

use crate::metrics::{AccountLabels, Metrics, Name};
use crate::model::call::{Answer, Call};
use crate::model::clock::Clock;
use crate::model::error::{GatewayError, Reason};
use crate::model::hints;

/// The budgets of all accounts. They outlive a reload, so that no reload forgets what is owed.
#[derive(Debug, Clone, Default)]
pub struct Budgets(Arc<Mutex<HashMap<Arc<str>, AccountBudget>>>);

impl Budgets {
    /// Sets an account's limits; an account that is new starts with a full bucket.
    pub fn set(&self, account: &Arc<str>, limits: Limits, clock: Clock) {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match budgets.get(account) {
            Some(known) => known.set_limits(limits),
            None => drop(budgets.insert(Arc::clone(account), AccountBudget::new(Arc::clone(account), limits, clock))),
        }
    }

    /// One account's budget.
    pub fn get(&self, account: &str) -> Option<AccountBudget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned()
    }
}

/// Makes [`Budget`] services.
#[derive(Debug, Clone)]
pub struct BudgetLayer {
    budgets: Budgets,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl BudgetLayer {
    /// Spends from `budgets`.
    pub fn new(budgets: Budgets, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self { budgets, metrics, clock }
    }
}

impl<S> Layer<S> for BudgetLayer {
    type Service = Budget<S>;

    fn layer(&self, inner: S) -> Budget<S> {
        Budget { inner, layer: self.clone() }
    }
}

/// Makes attempts pay. See the module.
#[derive(Debug, Clone)]
pub struct Budget<S> {
    inner: S,
    layer: BudgetLayer,
}

impl<S> Service<Call> for Budget<S>
where
    S: Service<Call, Response = Answer, Error = GatewayError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = GatewayError;
    type Future = BoxFuture<'static, Result<Answer, GatewayError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GatewayError>> {
        // The inner service is made ready once there is a token.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let (inner, BudgetLayer { budgets, metrics, clock }) = (self.inner.clone(), self.layer.clone());
        Box::pin(async move {
            let account = Arc::clone(&call.team.account.name);
            let Some(budget) = budgets.get(&account) else {
                return Err(GatewayError::new(Reason::Internal, "the account has no budget"));
            };
            let arrived = clock.now();
            let permit = budget.acquire(call.deadline, &call.interest).await;
            let waited = clock.now() - arrived;
            call.journey.waited(waited);
            let labels = AccountLabels { account: Name(account) };
            metrics.upstream_wait.get_or_create(&labels).observe(waited.as_secs_f64());
            let mut permit = permit?;
            permit.spend();
            let answer = inner.oneshot(call).await;
            match &answer {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    budget.pause(hints::pause(&answer.headers, clock.wall(clock.now())));
                }
                Ok(_) => budget.accepted(),
                Err(_) => {}
            }
            // Only now: a pause must be in force before the freed place lets the next call through.
            drop(permit);
            answer
        })
    }
}
