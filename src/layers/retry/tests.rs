use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use tower::service_fn;

use super::*;
use crate::core::clock::Instant;
use crate::core::error::Reason;
use crate::request::waiters::Waiters;
use crate::twilio::endpoint::Operation;

const S: Duration = Duration::from_secs(1);

type Scripted = Result<u16, Repeat>;

fn call(operation: Operation, deadline: Duration) -> UpstreamCall {
    let deadline = Instant::now() + deadline;
    UpstreamCall { deadline, waiters: Waiters::of_refresh(), ..UpstreamCall::example(operation, "", "") }
}

fn budgets() -> PerAccount<RetryBudget> {
    PerAccount::example(RetryBudget::new(Instant::now()))
}

/// Runs a call against a script of answers; gives the last answer and how many attempts were made.
async fn run_with(policy: Policy, call: UpstreamCall, script: &[Scripted]) -> (Result<u16, Reason>, usize) {
    run_asking(policy, call, script, None).await
}

/// The same; each answer and failure asks to come back after so many seconds.
async fn run_asking(
    policy: Policy,
    call: UpstreamCall,
    script: &[Scripted],
    wait: Option<u64>,
) -> (Result<u16, Reason>, usize) {
    let left = Arc::new(Mutex::new(script.iter().copied().collect::<VecDeque<_>>()));
    let upstream = {
        let left = Arc::clone(&left);
        service_fn(move |call: UpstreamCall| {
            call.attempt_begins(Instant::now(), None);
            let next = left.lock().unwrap().pop_front().expect("an attempt beyond the script");
            std::future::ready(match next {
                Ok(status) => Ok(UpstreamResponse {
                    status: StatusCode::from_u16(status).unwrap(),
                    headers: wait.map(|wait| (http::header::RETRY_AFTER, wait.into())).into_iter().collect(),
                    body: Bytes::new(),
                    next_token: None,
                }),
                Err(retry) => {
                    let error = GatewayError::new(Reason::UpstreamUnreachable, "scripted").with_retry(retry);
                    Err(wait.map_or(error.clone(), |wait| error.with_retry_after(Duration::from_secs(wait))))
                }
            })
        })
    };
    let retry = RetryLayer::new(policy, budgets(), Metrics::new(), Clock::new()).layer(upstream);
    let result = retry.oneshot(call).await;
    let attempts = script.len() - left.lock().unwrap().len();
    (result.map(|answer| answer.status.as_u16()).map_err(|error| error.reason()), attempts)
}

fn policy() -> Policy {
    let backoff = Backoff { base: Duration::from_millis(250), max: 20 * S };
    Policy { attempts: 4, backoff, budget: 10.0 }
}

async fn run(script: &[Scripted]) -> (Result<u16, Reason>, usize) {
    run_with(policy(), call(Operation::Query, 90 * S), script).await
}

#[tokio::test(start_paused = true)]
async fn tries_again_until_it_succeeds_or_may_not() {
    assert_eq!(run(&[Ok(200)]).await, (Ok(200), 1));
    assert_eq!(run(&[Ok(503), Ok(502), Ok(504), Ok(200)]).await, (Ok(200), 4));
    assert_eq!(run(&[Ok(429), Ok(429), Ok(429), Ok(429)]).await, (Ok(429), 4));
    assert_eq!(run(&[Err(Repeat::NothingSent), Err(Repeat::IfRepeatable), Ok(200)]).await, (Ok(200), 3));
}

#[tokio::test(start_paused = true)]
async fn does_not_repeat_what_would_end_the_same_way() {
    for status in [400, 404, 409, 415, 422, 501] {
        assert_eq!(run(&[Ok(status)]).await, (Ok(status), 1));
    }
    assert_eq!(run(&[Err(Repeat::Never)]).await, (Err(Reason::UpstreamUnreachable), 1));
}

#[tokio::test(start_paused = true)]
async fn repeats_a_500_once() {
    assert_eq!(run(&[Ok(500), Ok(200)]).await, (Ok(200), 2));
    assert_eq!(run(&[Ok(500), Ok(500)]).await, (Ok(500), 2));
}

#[tokio::test(start_paused = true)]
async fn writes_are_repeated_only_where_nothing_was_done() {
    let write = || call(Operation::FieldsWrite, 90 * S);
    assert_eq!(run_with(policy(), write(), &[Ok(503)]).await, (Ok(503), 1));
    assert_eq!(run_with(policy(), write(), &[Err(Repeat::IfRepeatable)]).await.1, 1);
    assert_eq!(run_with(policy(), write(), &[Err(Repeat::NothingSent), Ok(429), Ok(201)]).await, (Ok(201), 3));
}

#[tokio::test(start_paused = true)]
async fn a_poll_is_sent_once() {
    let poll = || call(Operation::JobStatus, 90 * S);
    for status in [429, 500, 502, 503, 504] {
        assert_eq!(run_with(policy(), poll(), &[Ok(status)]).await, (Ok(status), 1));
    }
    for retry in [Repeat::IfRepeatable, Repeat::OnceIfRepeatable] {
        assert_eq!(run_with(policy(), poll(), &[Err(retry)]).await.1, 1);
    }
    assert_eq!(run_with(policy(), poll(), &[Err(Repeat::NothingSent), Ok(200)]).await, (Ok(200), 2));
}

#[tokio::test(start_paused = true)]
async fn stays_inside_the_deadline() {
    let begun = Instant::now();
    let slow = Policy { backoff: Backoff { base: 100 * S, max: 100 * S }, ..policy() };
    let script = [Ok(503); 4];
    let (result, _) = run_with(slow, call(Operation::Query, 2 * S), &script).await;
    assert_eq!(result, Ok(503));
    assert!(begun.elapsed() <= 2 * S);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_asks_to_stay_away_holds_its_own_retries_back() {
    for failure in [Ok(503), Ok(502), Ok(500), Err(Repeat::IfRepeatable)] {
        let begun = Instant::now();
        let patient = call(Operation::Query, 90 * S);
        assert_eq!(run_asking(policy(), patient, &[failure, Ok(200)], Some(7)).await, (Ok(200), 2), "{failure:?}");
        assert_eq!(begun.elapsed(), 7 * S, "{failure:?}");
    }
    let begun = Instant::now();
    let hurried = call(Operation::Query, 6 * S);
    assert_eq!(run_asking(policy(), hurried, &[Ok(503); 4], Some(7)).await, (Ok(503), 1));
    assert_eq!(begun.elapsed(), Duration::ZERO, "what would come too late is not waited for");
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_call_is_not_tried_again() {
    let abandoned = UpstreamCall { waiters: Waiters::of_clients(), ..call(Operation::Query, 90 * S) };
    assert_eq!(run_with(policy(), abandoned, &[Ok(503)]).await, (Ok(503), 1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_multiplied() {
    let upstream = service_fn(|_: UpstreamCall| {
        std::future::ready(Err::<UpstreamResponse, _>(
            GatewayError::new(Reason::UpstreamUnreachable, "down").with_retry(Repeat::NothingSent),
        ))
    });
    let attempts = Arc::new(Mutex::new(0));
    let counted = {
        let attempts = Arc::clone(&attempts);
        service_fn(move |call: UpstreamCall| {
            *attempts.lock().unwrap() += 1;
            call.attempt_begins(Instant::now(), None);
            upstream.oneshot(call)
        })
    };
    let retry = RetryLayer::new(Policy { budget: 0.2, ..policy() }, budgets(), Metrics::new(), Clock::new());
    let retry = retry.layer(counted);
    let calls: Vec<_> =
        (0..1000).map(|_| tokio::spawn(retry.clone().oneshot(call(Operation::Query, 90 * S)))).collect();
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
    let attempts = *attempts.lock().unwrap();
    assert!((1003..=1250).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_not_sent_uses_up_nothing() {
    let sent = |failing: bool| {
        move |call: UpstreamCall| {
            let is_first = call.context.totals(Instant::now()).attempts == 0;
            let refused = failing && !is_first;
            if !refused {
                call.attempt_begins(Instant::now(), None);
            }
            let status = if is_first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            let (headers, body) = (http::HeaderMap::new(), Bytes::new());
            std::future::ready(match refused {
                true => Err(GatewayError::new(Reason::QueueFull, "scripted")),
                false => Ok(UpstreamResponse { status, headers, body, next_token: None }),
            })
        }
    };
    let new = || call(Operation::Query, 90 * S);
    let metrics = Metrics::new();
    let layer = RetryLayer::new(Policy { budget: 0.0, ..policy() }, budgets(), Arc::clone(&metrics), Clock::new());
    let (works, refuses) = (layer.layer(service_fn(sent(false))), layer.layer(service_fn(sent(true))));
    for _ in 0..4 {
        let abandoned = UpstreamCall { waiters: Waiters::of_clients(), ..new() };
        assert_eq!(works.clone().oneshot(abandoned).await.unwrap().status, 503, "nobody waits for a retry");
        assert_eq!(refuses.clone().oneshot(new()).await.unwrap().status, 503, "the retry was refused below");
        let dropped = tokio::time::timeout(Duration::ZERO, works.clone().oneshot(new())).await;
        assert!(dropped.is_err(), "its client left during the backoff");
    }
    assert_eq!(counted(&metrics), 0);
    for expected in [200, 200, 200, 503] {
        let now = Instant::now();
        assert_eq!(works.clone().oneshot(new()).await.unwrap().status, expected, "{:?}", now.elapsed());
    }
    assert_eq!(counted(&metrics), 3);
}

#[tokio::test(start_paused = true)]
async fn attempts_of_another_call_of_the_same_request_are_not_those_of_a_retry() {
    let other = call(Operation::JobStatus, 90 * S);
    let submission = UpstreamCall { context: Arc::clone(&other.context), ..call(Operation::JobSubmit, 90 * S) };
    let upstream = service_fn(move |call: UpstreamCall| {
        let other = other.clone();
        async move {
            if call.sent.attempts() > 0 {
                // While the retry waits for its token, and then finds the queue full.
                other.attempt_begins(Instant::now(), None);
                tokio::time::sleep(S).await;
                return Err(GatewayError::new(Reason::QueueFull, "scripted"));
            }
            call.attempt_begins(Instant::now(), None);
            let (status, headers, body) = (StatusCode::TOO_MANY_REQUESTS, http::HeaderMap::new(), Bytes::new());
            Ok(UpstreamResponse { status, headers, body, next_token: None })
        }
    });
    let metrics = Metrics::new();
    let layer = RetryLayer::new(policy(), budgets(), Arc::clone(&metrics), Clock::new());
    assert_eq!(layer.layer(upstream).oneshot(submission).await.unwrap_err().reason(), Reason::QueueFull);
    let account = ConfigLabel("main".into());
    assert_eq!(metrics.retries.get_or_create(&RetryLabels { account, reason: Ending::Status(429) }).get(), 0);
}

/// What `retries_total` counts for retries after a 503.
fn counted(metrics: &Metrics) -> u64 {
    let account = ConfigLabel("main".into());
    metrics.retries.get_or_create(&RetryLabels { account, reason: Ending::Status(503) }).get()
}

#[tokio::test(start_paused = true)]
async fn retries_of_a_long_pause_are_not_sent_all_at_once() {
    let begun = Instant::now();
    let pause_ends = begun + 60 * S;
    let (sent, metrics) = (Arc::new(Mutex::new(Vec::new())), Metrics::new());
    // Each first try fails at once. Retries get their tokens only when the pause ends.
    let paused = {
        let sent = Arc::clone(&sent);
        service_fn(move |call: UpstreamCall| {
            let sent = Arc::clone(&sent);
            async move {
                let is_first = call.context.totals(Instant::now()).attempts == 0;
                if !is_first {
                    tokio::time::sleep_until(pause_ends).await;
                    sent.lock().unwrap().push(Instant::now());
                }
                call.attempt_begins(Instant::now(), None);
                let status = if is_first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
                let (headers, body) = (http::HeaderMap::new(), Bytes::new());
                Ok::<_, GatewayError>(UpstreamResponse { status, headers, body, next_token: None })
            }
        })
    };
    let layer = RetryLayer::new(Policy { budget: 0.0, ..policy() }, budgets(), Arc::clone(&metrics), Clock::new());
    let retry = layer.layer(paused);
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.extend((0..2).map(|_| tokio::spawn(retry.clone().oneshot(call(Operation::Query, 90 * S)))));
        // More than the ten seconds for which a retry counts after it was sent.
        tokio::time::sleep(11 * S).await;
    }
    assert_eq!(counted(&metrics), 0, "none was sent yet");
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap().unwrap().status.as_u16());
    }
    assert_eq!(*sent.lock().unwrap(), [pause_ends; 3]);
    assert_eq!(counted(&metrics), 3);
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 3, "{answers:?}");
    assert_eq!(retry.clone().oneshot(call(Operation::Query, 90 * S)).await.unwrap().status, 503, "all three count");
    tokio::time::sleep(10 * S).await;
    assert_eq!(retry.oneshot(call(Operation::Query, 90 * S)).await.unwrap().status, 200, "they were sent 10 s ago");
}
