//! A client's deadline ends its own wait, but not the call that it shares with others.

use crate::support::*;

fn hasty() -> Vec<u8> {
    post_to(QUERY, "Prefer: wait=1\r\n", ASK)
}

#[tokio::test]
async fn a_patient_client_is_served_by_the_call_that_an_impatient_one_began() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut first = gateway.connect().await;
    first.send(&hasty()).await;
    upstream.arrived(1).await;
    let mut patient = gateway.connect().await;
    patient.send(&post(ASK)).await;
    gateway.settle().await;
    first.answer().await.assert_refused(504, "upstream_timeout");
    gate.open();
    patient.answer().await.assert_page(PAGE, "collapsed");
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn six_impatient_clients_cost_one_call() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for _ in 0..6 {
        gateway.ask(&hasty()).await.assert_refused(504, "upstream_timeout");
    }
    assert_eq!(upstream.count(), 1);
    gate.open();
    gateway.metric_reaches("cache_entries", &[], 1.0).await;
    gateway.ask(&hasty()).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_call_that_timed_out_is_repeated_by_none_of_those_who_waited_for_it() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let gateway =
        TestConfig::new(upstream.url()).set("upstream.attempt_timeout", "1s").set("retry.attempts", "1").start().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        client.send(&post(ASK)).await;
        // Each has a little more time than the previous one.
        gateway.settle().await;
        clients.push(client);
    }
    for mut client in clients {
        client.answer().await.assert_refused(504, "upstream_timeout");
    }
    assert_eq!(upstream.count(), 1);
    upstream.heal(PAGE);
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn an_impatient_client_alone_is_refused_at_once_where_its_turn_comes_too_late() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url())
        .set("accounts.default.rate", "1/min")
        .set("accounts.default.burst", "1")
        .set("accounts.default.adapt", "false")
        .start()
        .await;
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    let begun = tokio::time::Instant::now();
    let refused = gateway.ask(&post_to(QUERY, "Prefer: wait=5\r\n", ASK)).await;
    refused.assert_refused(429, "deadline");
    assert!(begun.elapsed().as_secs() < 4, "it waited although its turn would come too late");
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|wait| (50..=60).contains(&wait)), "{refused:?}");
}
