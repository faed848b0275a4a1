//! What a gateway does while the store does not answer, or refuses.

use std::time::Duration;

use tokio::time::Instant;

use super::{ask, is_alone, replicas};
use crate::support::store::{Link, Proxy, Server, sharing};
use crate::support::*;

#[tokio::test]
async fn the_store_is_never_needed() {
    let Some(mut server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let gateways = replicas(&upstream, &[server.url()], &[]).await;
    gateways[0].ask(&ask(1)).await.assert_page(PAGE, "miss");
    server.kill();
    gateways[0].ask(&ask(2)).await.assert_page(PAGE, "miss");
    is_alone(&gateways[0]).await;
    let ready = gateways[0].admin("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    let status = gateways[0].admin("/status").await.json();
    assert_eq!(status["shared"]["state"], "degraded", "{status}");
    assert!(status["shared"]["cause"].is_string() && status["shared"]["since"].is_string(), "{status}");
    gateways[0].ask(&ask(1)).await.assert_page(PAGE, "hit");
    server.run().await;
    gateways[0].metric_reaches("shared_up", &[], 1.0).await;
    gateways[0].ask(&ask(3)).await.assert_page(PAGE, "miss");
    assert_eq!(gateways[0].admin("/status").await.json()["shared"]["state"], "ok");
}

#[tokio::test]
async fn a_gateway_starts_before_its_store() {
    let Some(mut server) = Server::start().await else { return };
    server.kill();
    let upstream = Upstream::start().await;
    let gateway = sharing(TestConfig::new(upstream.url()), &server.url(), 2).start().await;
    gateway.ask(&ask(1)).await.assert_page(PAGE, "miss");
    server.run().await;
    gateway.metric_reaches("shared_up", &[], 1.0).await;
}

#[tokio::test]
async fn no_request_fails_when_the_store_does_not_answer() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    for link in [Link::Frozen, Link::Garbage, Link::Cut] {
        let proxy = Proxy::start(server.address()).await;
        let gateways = replicas(&upstream, &[proxy.url()], &[("shared.timeout", "200ms")]).await;
        proxy.set(link);
        gateways[0].ask(&ask(link as usize)).await.assert_page(PAGE, "miss");
        is_alone(&gateways[0]).await;
        gateways[0].ask(&ask(10 + link as usize)).await.assert_page(PAGE, "miss");
        proxy.set(Link::Whole);
        gateways[0].metric_reaches("shared_up", &[], 1.0).await;
        gateways.into_iter().next().unwrap().stop().await;
    }
}

#[tokio::test]
#[ignore = "it measures time: run it on a machine that does nothing else"]
async fn a_store_that_does_not_answer_delays_a_request_by_four_timeouts_at_most() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    for link in [Link::Frozen, Link::Garbage, Link::Cut] {
        let proxy = Proxy::start(server.address()).await;
        let gateways = replicas(&upstream, &[proxy.url()], &[("shared.timeout", "200ms")]).await;
        proxy.set(link);
        let begun = Instant::now();
        gateways[0].ask(&ask(link as usize)).await.assert_page(PAGE, "miss");
        assert!(begun.elapsed() < Duration::from_millis(800 + 50), "{link:?}: {:?}", begun.elapsed());
        is_alone(&gateways[0]).await;
        let begun = Instant::now();
        gateways[0].ask(&ask(10 + link as usize)).await.assert_page(PAGE, "miss");
        assert!(begun.elapsed() < Duration::from_millis(100), "nothing waits for it: {link:?}, {:?}", begun.elapsed());
        proxy.set(Link::Whole);
        let begun = Instant::now();
        gateways[0].metric_reaches("shared_up", &[], 1.0).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{link:?}: {:?}", begun.elapsed());
        gateways.into_iter().next().unwrap().stop().await;
    }
}

/// The rest of the time goes to the tokens of the budget: one ask that is under way, and one of this request.
#[tokio::test]
#[ignore = "it measures time: run it on a machine that does nothing else"]
async fn a_slow_store_delays_a_request_by_four_timeouts_at_most() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let proxy = Proxy::start(server.address()).await;
    let keys = [("shared.timeout", "200ms"), ("accounts.default.rate", "50/s")];
    let gateways = replicas(&upstream, &[proxy.url()], &keys).await;
    proxy.set(Link::Slow);
    for number in 0..10 {
        let begun = Instant::now();
        gateways[0].ask(&ask(number)).await.assert_page(PAGE, "miss");
        assert!(begun.elapsed() < Duration::from_millis(800 + 50), "{:?}", begun.elapsed());
    }
    assert_eq!(gateways[0].metric("shared_up", &[]).await, 1.0, "it is slow, and not lost");
}

#[tokio::test]
async fn no_request_fails_while_the_store_refuses() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    // Full, and without the replicas of its own that it wants.
    for (number, key) in ["maxmemory", "min-replicas-to-write"].into_iter().enumerate() {
        let gateways = replicas(&upstream, &[server.url()], &[]).await;
        server.ask::<String>(&["CONFIG", "SET", key, "1"]);
        for other in 0..5 {
            gateways[0].ask(&ask(100 * number + other)).await.assert_page(PAGE, "miss");
        }
        is_alone(&gateways[0]).await;
        server.ask::<String>(&["CONFIG", "SET", key, "0"]);
        gateways[0].metric_reaches("shared_up", &[], 1.0).await;
        gateways.into_iter().next().unwrap().stop().await;
    }
}
