//! Several gateways that share one store.

mod outages;
mod secrets;

use tokio::time::Instant;

use crate::support::store::{Server, sharing};
use crate::support::*;

/// A query that no other test asks, so that what is stored can be told apart.
fn ask(number: usize) -> Vec<u8> {
    post(&format!(r#"{{"query":{{"measures":["Conversation.Count{number}"]}}}}"#))
}

/// Gateways that share the store at these URLs, one each, once all of them reach it.
pub async fn replicas(upstream: &Upstream, urls: &[String], keys: &[(&str, &str)]) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for url in urls {
        let mut config = sharing(TestConfig::new(upstream.url()), url, urls.len() as u32);
        for (key, value) in keys {
            config = config.set(key, *value);
        }
        gateways.push(config.start().await);
    }
    for gateway in &gateways {
        gateway.metric_reaches("shared_up", &[], 1.0).await;
        gateway.metric_reaches("replicas", &[], urls.len() as f64).await;
    }
    gateways
}

/// Returns once this gateway has put so many pages into the store.
async fn is_shared(gateway: &Gateway, pages: usize) {
    gateway.metric_reaches("shared_operations_total", &["\"page_put\"", "\"ok\""], pages as f64).await;
}

async fn is_alone(gateway: &Gateway) {
    poll("the gateway is alone", || async { (gateway.metric("shared_up", &[]).await == 0.0).then_some(()) }).await;
}

#[tokio::test]
async fn a_page_that_one_replica_fetched_is_a_hit_on_the_others() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let gateways = replicas(&upstream, &vec![server.url(); 3], &[]).await;
    gateways[0].ask(&post(ASK)).await.assert_page(PAGE, "miss");
    is_shared(&gateways[0], 1).await;
    for gateway in &gateways[1..] {
        poll("the page is a hit", || async { (gateway.ask(&post(ASK)).await.detail() == "hit").then_some(()) }).await;
    }
    assert_eq!(upstream.count(), 1, "{:?}", upstream.seen());
}

#[tokio::test]
async fn the_same_miss_on_all_replicas_is_one_upstream_call() {
    let Some(server) = Server::start().await else { return };
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateways = replicas(&upstream, &vec![server.url(); 3], &[]).await;
    let mut clients = Vec::new();
    for gateway in &gateways {
        for _ in 0..200 {
            let mut client = gateway.connect().await;
            client.send(&post(ASK)).await;
            clients.push(client);
        }
        gateway.settle().await;
    }
    upstream.arrived(1).await;
    gate.open();
    for client in &mut clients {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, PAGE));
    }
    assert_eq!(upstream.count(), 1, "{:?}", upstream.seen());
}

/// A refresh waits while clients ask for other things. A client of another replica that needs what it brings must not wait
/// with it.
#[tokio::test]
async fn a_refresh_that_a_client_of_another_replica_waits_for_is_sent_among_the_calls_of_clients() {
    const OTHERS: usize = 6;
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let keys = [
        ("accounts.default.concurrency", "1"),
        ("cache.query.fresh", "1ms"),
        ("cache.query.stale_while_revalidate", "1h"),
    ];
    let gateways = replicas(&upstream, &vec![server.url(); 2], &keys).await;
    gateways[0].ask(&post(ASK)).await;
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    upstream.set(move |_| held.clone());
    // It takes the only slot, the refresh waits for that, and other clients come all the time.
    let mut first = gateways[0].connect().await;
    first.send(&ask(0)).await;
    upstream.arrived(2).await;
    let claimed = gateways[0].metric("shared_operations_total", &["\"flight_claim\"", "\"ok\""]).await;
    poll("a refresh", || async { (gateways[0].ask(&post(ASK)).await.detail() == "stale").then_some(()) }).await;
    gateways[0].metric_reaches("shared_operations_total", &["\"flight_claim\"", "\"ok\""], claimed + 1.0).await;
    let mut clients = tokio::task::JoinSet::new();
    for other in 1..=OTHERS {
        let mut client = gateways[0].connect().await;
        clients.spawn(async move {
            for number in (other..).step_by(OTHERS) {
                client.ask(&ask(number)).await;
            }
        });
    }
    gateways[0].metric_reaches("queue_length", &[], 1.0 + OTHERS as f64).await;
    let mut waiting = gateways[1].connect().await;
    waiting.send(&post_to(QUERY, "Cache-Control: max-age=0\r\n", ASK)).await;
    gateways[1].metric_reaches("shared_operations_total", &["\"flight_wait\"", "\"ok\""], 1.0).await;
    gate.open();
    assert_eq!(waiting.answer().await.status, 200);
    let asked_for_it = upstream.seen().iter().filter(|seen| seen.text() == upstream.seen()[0].text()).count();
    assert_eq!(asked_for_it, 2, "the first page and its refresh");
}

#[tokio::test]
async fn a_purge_holds_on_all_replicas() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let gateways = replicas(&upstream, &vec![server.url(); 2], &[]).await;
    for gateway in &gateways {
        gateway.ask(&post(ASK)).await;
    }
    let purged = gateways[0].ask_admin(&post_to("/cache/purge", "", r#"{"all":true}"#)).await;
    assert_eq!((purged.status, &purged.json()["shared"]), (200, &true.into()), "{}", purged.text());
    poll("the other replica has dropped its page", || async {
        let listed = gateways[1].admin("/cache/entries").await;
        (listed.json()["entries"].as_array().is_some_and(Vec::is_empty)).then_some(())
    })
    .await;
    gateways[1].ask(&post(ASK)).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn what_no_cache_brought_replaces_the_page_everywhere() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let gateways = replicas(&upstream, &vec![server.url(); 2], &[]).await;
    gateways[0].ask(&post(ASK)).await;
    is_shared(&gateways[0], 1).await;
    poll("the other has it", || async { (gateways[1].ask(&post(ASK)).await.detail() == "hit").then_some(()) }).await;
    const NEW: &str = r#"{"data":[],"meta":{"page":"new"},"cubes":[]}"#;
    upstream.heal(NEW);
    gateways[0].ask(&post_to(QUERY, "Cache-Control: no-cache\r\n", ASK)).await.assert_page(NEW, "miss");
    poll("the other serves the new page", || async { (gateways[1].ask(&post(ASK)).await.text() == NEW).then_some(()) })
        .await;
    assert_eq!(upstream.count(), 2, "{:?}", upstream.seen());
}

#[tokio::test]
async fn a_replica_that_drains_is_not_counted_any_more() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let mut gateways = replicas(&upstream, &vec![server.url(); 2], &[]).await;
    gateways.remove(0).stop().await;
    let counted: usize = server.ask(&["ZCARD", "insights-gateway:1:{changes}:replicas"]);
    assert_eq!(counted, 1);
    gateways[0].metric_reaches("replicas", &[], 1.0).await;
}

#[tokio::test]
async fn a_damaged_feed_of_purges_heals_and_one_that_is_refused_degrades_health() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let gateways = replicas(&upstream, &vec![server.url(); 2], &[]).await;
    let purges = || async {
        let purged = gateways[0].ask_admin(&post_to("/cache/purge", "", r#"{"all":true}"#)).await;
        (purged.json()["shared"] == true).then_some(())
    };
    poll("a purge is told", purges).await;
    server.ask::<String>(&["SET", "insights-gateway:1:{changes}", "text"]);
    poll("a purge is told again", purges).await;
    gateways[0].ask(&ask(1)).await.assert_page(PAGE, "miss");
    poll("pages are shared", || async { (gateways[1].ask(&ask(1)).await.detail() == "hit").then_some(()) }).await;
    // All keys but those of the feed, whose names end in `ed`.
    server.ask::<String>(&["ACL", "SETUSER", "default", "resetkeys", "~*[^e]?", "~*e[^d]"]);
    let check = poll("health is degraded", || async {
        let ready = gateways[0].admin("/readyz").await;
        assert_eq!(ready.status, 200, "{}", ready.text());
        let checks = ready.json()["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["check"] == "shared" && check["state"] == "degraded")
    })
    .await;
    assert!(check["cause"].as_str().unwrap().ends_with("shared.prefix: NOPERM"), "{check}");
    assert_eq!(gateways[0].metric("shared_up", &[]).await, 1.0);
    gateways[0].ask(&ask(2)).await.assert_page(PAGE, "miss");
    server.ask::<String>(&["ACL", "SETUSER", "default", "allkeys"]);
    poll("health is ok", || async {
        (gateways[0].admin("/status").await.json()["shared"]["state"] == "ok").then_some(())
    })
    .await;
    poll("a purge is told once more", purges).await;
}

#[tokio::test]
async fn all_replicas_together_spend_one_budget() {
    const RATE: f64 = 20.0;
    const BURST: f64 = 2.0;
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let keys = [("accounts.default.rate", "20/s"), ("accounts.default.burst", "2")];
    let gateways = replicas(&upstream, &vec![server.url(); 3], &keys).await;
    let begun = Instant::now();
    let mut clients = Vec::new();
    for (number, gateway) in gateways.iter().enumerate() {
        for other in 0..20 {
            let mut client = gateway.connect().await;
            client.send(&ask(100 * number + other)).await;
            clients.push(client);
        }
    }
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 200);
    }
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(upstream.count(), 60);
    assert!(took >= (60.0 - BURST) / RATE - 0.05, "60 calls in {took} s are more than the rate allows");
}

#[tokio::test]
async fn damaged_values_in_the_store_neither_stop_requests_nor_end_all_sharing() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let gateways = replicas(&upstream, &vec![server.url(); 2], &[("accounts.default.rate", "50/s")]).await;
    gateways[0].ask(&ask(1)).await.assert_page(PAGE, "miss");
    let budget = |kind: &str| {
        let keys: Vec<String> = server.ask(&["KEYS", &format!("*:{kind}")]);
        keys.into_iter().next().unwrap()
    };
    server.ask::<i64>(&["HSET", &budget("limits"), "forged", "9000000000000000 60000000000 1"]);
    let pause = format!("{}", u64::MAX / 4096);
    server.ask::<i64>(&["HSET", &budget("budget"), "read", "0", "tat", &pause]);
    for number in 10..20 {
        gateways[number % 2].ask(&ask(number)).await.assert_page(PAGE, "miss");
    }
    let state = budget("budget");
    server.ask::<i64>(&["DEL", &state]);
    server.ask::<String>(&["SET", &state, "of another type", "EX", "60"]);
    for number in 20..30 {
        gateways[number % 2].ask(&ask(number)).await.assert_page(PAGE, "miss");
    }
    // The store is still reached, and pages are still shared.
    poll("the page is shared", || async { (gateways[1].ask(&ask(30)).await.detail() != "miss").then_some(()) }).await;
    gateways[0].metric_reaches("shared_up", &[], 1.0).await;
}
