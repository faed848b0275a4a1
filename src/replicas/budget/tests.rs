use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::advance;

use super::ledger::{Answer, Ask, Question, Spend, Token};
use super::*;
use crate::budget::{AccountBudget, AttemptOutcome, CircuitPolicy};
use crate::core::backoff::Backoff;
use crate::core::units::Rate;
use crate::replicas::StoreError;
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::request::waiters::{Waiter, Waiters};
use crate::semantics::request_directives::Urgency;
use crate::twilio::endpoint::Operation;

mod alone_tests;
mod model_tests;
mod together_tests;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn limits(per_second: u32, burst: u32) -> Limits {
    Limits {
        rate: Rate::new(per_second, S),
        burst,
        concurrency: 1000,
        queue: 1000,
        adapt: true,
        max_pause: 300 * S,
        backoff: Backoff { base: 250 * MS, max: 20 * S },
        circuit: CircuitPolicy { consecutive: 10, ratio: 0.5, open: 5 * S },
    }
}

fn team(name: &str, weight: u32) -> Team {
    Team { weight, ..Team::example(name) }
}

/// A call that a client of this team waits for. Each asks for something else.
fn call_of(team: &Team, patience: Duration) -> (UpstreamCall, Waiter) {
    let team = Arc::new(team.clone());
    let body = bytes::Bytes::copy_from_slice(&fastrand::u128(..).to_le_bytes());
    let key = Key::new(&team.account, Operation::Query, "", &body);
    let waiters = Waiters::of_clients();
    let waiter = waiters.join(&team, Urgency::new(3));
    let deadline = Instant::now() + patience;
    (UpstreamCall { team, key, body, waiters, deadline, ..UpstreamCall::example(Operation::Query, "", "") }, waiter)
}

/// One attempt of a team that ends like this; when it was sent.
async fn attempt(budget: &AccountBudget, team: &Team, outcome: AttemptOutcome) -> Instant {
    let (call, _waiter) = call_of(team, 60 * S);
    let mut permit = budget.acquire(&call).await.unwrap();
    permit.spend();
    let sent = Instant::now();
    permit.end(outcome);
    sent
}

async fn send(budget: &AccountBudget, team: &Team) -> Instant {
    attempt(budget, team, AttemptOutcome::Answered(RateLimitHeaders::default())).await
}
