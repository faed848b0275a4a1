//! One call for all clients that ask the same at the same time.

use super::*;

#[tokio::test(start_paused = true)]
async fn identical_calls_share_one_flight() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let asking: Vec<_> = (0..500).map(|_| tokio::spawn(cache.clone().oneshot(call("q")))).collect();
    settle().await;
    upstream.open(1);
    let mut outcomes = Vec::new();
    for reply in asking {
        outcomes.push(reply.await.unwrap().unwrap().outcome);
    }
    let misses = outcomes.iter().filter(|outcome| **outcome == Outcome::Miss).count();
    let collapsed = outcomes.iter().filter(|outcome| **outcome == Outcome::Collapsed).count();
    assert_eq!((misses, collapsed, upstream.calls()), (1, 499, 1));
}

#[tokio::test(start_paused = true)]
async fn different_calls_do_not() {
    let upstream = Upstream::gated(&[Next::Page("1"), Next::Page("2")]);
    let cache = cache(&upstream);
    let (one, two) = (tokio::spawn(cache.clone().oneshot(call("a"))), tokio::spawn(cache.clone().oneshot(call("b"))));
    settle().await;
    assert_eq!(upstream.calls(), 2);
    upstream.open(2);
    assert_ne!(one.await.unwrap().unwrap().page.body, two.await.unwrap().unwrap().page.body);
}

#[tokio::test(start_paused = true)]
async fn a_flight_survives_the_client_that_began_it() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    let leaving = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    leaving.abort();
    settle().await;
    upstream.open(1);
    settle().await;
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Hit, "1", Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_and_not_stored() {
    let upstream = Upstream::gated(&[Next::Fail(Reason::UpstreamInvalid), Next::Page("1")]);
    let cache = cache(&upstream);
    let asking: Vec<_> = (0..10).map(|_| tokio::spawn(cache.clone().oneshot(call("q")))).collect();
    settle().await;
    upstream.open(2);
    for reply in asking {
        assert_eq!(reply.await.unwrap().unwrap_err().reason(), Reason::UpstreamInvalid);
    }
    assert_eq!(upstream.calls(), 1);
    assert_eq!(said(ask(&cache, call("q")).await), is(Outcome::Miss, "1", None));
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_lost_flight_start_another() {
    for death in [Next::Panic, Next::Abandoned] {
        let upstream = Upstream::gated(&[death.clone(), Next::Page("1")]);
        let cache = cache(&upstream);
        let leader = tokio::spawn(cache.clone().oneshot(call("q")));
        settle().await;
        let follower = tokio::spawn(cache.clone().oneshot(call("q")));
        settle().await;
        leader.abort();
        upstream.open(2);
        assert_eq!(follower.await.unwrap().unwrap().page.body, "1");
        assert_eq!(upstream.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_that_began_a_lost_flight_gets_an_error() {
    let upstream = Upstream::gated(&[Next::Panic, Next::Page("1")]);
    let cache = cache(&upstream);
    upstream.open(2);
    assert_eq!(ask(&cache, call("q")).await.unwrap_err(), Reason::Internal);
    assert_eq!(ask(&cache, call("q")).await.unwrap().outcome, Outcome::Miss, "and its key is free");
}

#[tokio::test(start_paused = true)]
async fn a_client_with_time_left_repeats_a_call_that_was_not_sent() {
    let upstream = Upstream::gated(&[Next::Fail(Reason::Deadline), Next::Page("1")]);
    let cache = cache(&upstream);
    let hasty = tokio::spawn(cache.clone().oneshot(ClientQuery { deadline: Instant::now() + S, ..call("q") }));
    settle().await;
    let patient = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    upstream.open(2);
    assert_eq!(hasty.await.unwrap().unwrap_err().reason(), Reason::Deadline);
    assert_eq!(patient.await.unwrap().unwrap().page.body, "1");
}

#[tokio::test(start_paused = true)]
async fn no_client_waits_longer_than_its_deadline_and_one_call_serves_all() {
    let upstream = Upstream::gated(&[Next::Page("1")]);
    let cache = cache(&upstream);
    // The client with the shortest deadline begins the call, and leaves before it ends.
    for _ in 0..6 {
        let begun = Instant::now();
        let hasty = ask(&cache, ClientQuery { deadline: Instant::now() + S, ..call("q") }).await;
        assert_eq!((hasty.unwrap_err(), begun.elapsed()), (Reason::UpstreamTimeout, S));
    }
    let patient = tokio::spawn(cache.clone().oneshot(call("q")));
    settle().await;
    upstream.open(1);
    assert_eq!(patient.await.unwrap().unwrap().page.body, "1");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_timed_out_is_not_repeated() {
    let upstream = Upstream::gated(&[Next::Fail(Reason::UpstreamTimeout)]);
    let cache = cache(&upstream);
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(tokio::spawn(cache.clone().oneshot(call("q"))));
        // Each has a little more time than the previous one.
        settle().await;
        advance(S).await;
    }
    upstream.open(1);
    for reply in waiting {
        assert_eq!(reply.await.unwrap().unwrap_err().reason(), Reason::UpstreamTimeout);
    }
    assert_eq!(upstream.calls(), 1);
}
