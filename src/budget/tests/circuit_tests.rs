//! The circuit breaker, as calls experience it.

use super::*;

#[tokio::test(start_paused = true)]
async fn one_query_that_always_fails_does_not_open_the_circuit() {
    let budget = budget(limits(1000, 1000, 100));
    let (poisonous, _waiter) = patient();
    for _ in 0..200 {
        let mut permit = budget.acquire(&poisonous).await.unwrap();
        permit.spend();
        permit.end(AttemptOutcome::Failed);
    }
    assert_eq!(budget.status().circuit, CircuitState::Closed);
    for _ in 0..2 {
        attempt(&budget, AttemptOutcome::Failed).await.unwrap();
    }
    assert_eq!(budget.status().circuit, CircuitState::Open, "three different ones are the upstream's");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_refuses_at_once_and_a_probe_closes_it() {
    let (budget, start) = (budget(limits(100, 100, 100)), Instant::now());
    for _ in 0..9 {
        attempt(&budget, AttemptOutcome::Failed).await.unwrap();
    }
    let (last, _waiter) = patient();
    let mut permit = budget.acquire(&last).await.unwrap();
    permit.spend();
    budget.set_limits(Limits { rate: Rate::new(1, 60 * S), ..limits(100, 1, 100) });
    let waiting = spend(&budget, call_of(&Team::example("local"), 3, 600 * S));
    tokio::task::yield_now().await;
    permit.end(AttemptOutcome::Failed);
    assert_eq!(waiting.await.unwrap(), Err(Reason::CircuitOpen), "a waiting call is refused");
    let error = attempt(&budget, AttemptOutcome::Failed).await.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (Reason::CircuitOpen, Some(5 * S)));
    assert_eq!(Instant::now(), start);

    budget.set_limits(limits(100, 100, 100));
    advance(5 * S).await;
    let tokens = budget.status().tokens;
    let (probe, _waiter) = patient();
    let mut probe = budget.acquire(&probe).await.unwrap();
    probe.spend();
    assert!(budget.status().tokens < tokens, "a probe pays");
    assert_eq!(attempt(&budget, AttemptOutcome::Failed).await.unwrap_err().reason(), Reason::CircuitOpen);
    assert_eq!(budget.status().circuit, CircuitState::HalfOpen);
    probe.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
    assert_eq!((budget.status().circuit, budget.status().broken_for), (CircuitState::Closed, None));
    attempt(&budget, AttemptOutcome::Failed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_given_up_lets_another_try() {
    let budget = budget(limits(100, 100, 100));
    for _ in 0..10 {
        attempt(&budget, AttemptOutcome::Failed).await.unwrap();
    }
    advance(5 * S).await;
    let (call, _waiter) = patient();
    drop(budget.acquire(&call).await.unwrap());
    let mut unclear = budget.acquire(&call).await.unwrap();
    unclear.spend();
    drop(unclear);
    attempt(&budget, AttemptOutcome::Answered(RateLimitHeaders::default())).await.unwrap();
    assert_eq!(budget.status().circuit, CircuitState::Closed);
}
