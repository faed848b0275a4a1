//! Many clients send the same query, or nearly the same, at the same moment: one upstream call per query, no client
//! gets another query's page, and none is answered late.

use std::time::Duration;

use crate::support::*;
use tokio::task::JoinSet;
use tokio::time::Instant;

const OLD: &str = r#"{"data":[],"meta":{"page":"old"}}"#;
const CROWD: usize = 500;

/// The most time between the first and the last response. If waiting clients polled the shared flight, for example
/// every half second, they would be later than that. Clients that are notified are not.
const TOLD_TOGETHER: Duration = Duration::from_millis(250);

/// A polling client is late every time, a busy machine only sometimes.
const TRIES: usize = 4;

/// Runs `rush`, which returns the time between the first and the last response, until that was short enough.
async fn promptly(rush: impl AsyncFn() -> Duration) {
    let mut spreads = Vec::new();
    for _ in 0..TRIES {
        let spread = rush().await;
        if spread < TOLD_TOGETHER {
            return;
        }
        spreads.push(spread);
    }
    panic!("each time the last client was answered long after the first: {spreads:?}");
}

/// Connections that have been used before, so that connecting takes no time in the test.
async fn assemble(gateway: &Gateway) -> Vec<Client> {
    let mut clients = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let mut client = gateway.connect().await;
        assert_eq!(client.ask(&get("/nowhere", "")).await.status, 404);
        clients.push(client);
    }
    clients
}

/// All clients ask. The upstream answers call number `call` when all have asked; then all clients read. Returns the
/// responses, and the time between the first and the last.
async fn rush(
    gateway: &Gateway,
    upstream: &Upstream,
    request: &[u8],
    call: usize,
    gate: &Gate,
) -> (Vec<Answer>, Duration) {
    let mut clients = assemble(gateway).await;
    for client in &mut clients {
        client.send(request).await;
    }
    upstream.arrived(call).await;
    gateway.settle().await;
    let mut reading = JoinSet::new();
    for mut client in clients {
        reading.spawn(async move { (client.answer().await, Instant::now()) });
    }
    gate.open();
    let (answers, times): (Vec<_>, Vec<_>) = reading.join_all().await.into_iter().unzip();
    let spread = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    (answers, spread)
}

/// Fails unless all have the new page, one of them as the leader and the others collapsed, all for the reason `why`.
fn assert_shared(answers: &[Answer], why: &str) {
    assert_eq!(answers.len(), CROWD);
    for answer in answers {
        assert_eq!((answer.status, answer.text().as_str()), (200, PAGE), "{answer:?}");
        assert!(answer.has_note(why), "{answer:?}");
    }
    let count = |detail| answers.iter().filter(|answer| answer.detail() == detail).count();
    assert_eq!((count("miss"), count("collapsed")), (1, CROWD - 1));
}

/// Answers with [`PAGE`] from now on, after the gate is opened.
fn hold(upstream: &Upstream) -> Gate {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    upstream.set(move |_| held.clone());
    gate
}

#[tokio::test]
async fn a_crowd_before_an_empty_cache_makes_one_call() {
    promptly(async || {
        let upstream = Upstream::start().await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        let gate = hold(&upstream);
        let (answers, spread) = rush(&gateway, &upstream, &post(ASK), 1, &gate).await;
        assert_shared(&answers, "fwd=uri-miss");
        gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
        assert_eq!(upstream.count(), 1);
        spread
    })
    .await;
}

#[tokio::test]
async fn a_crowd_before_a_page_too_old_to_serve_makes_one_call() {
    const WINDOW: Duration = Duration::from_millis(1);
    promptly(async || {
        let upstream = Upstream::script(|_| Plan::page(OLD)).await;
        let gateway = TestConfig::new(upstream.url())
            .set("cache.query.fresh", "1ms")
            .set("cache.query.stale_while_revalidate", "1ms")
            // So that the old page is still stored, although it may not be served.
            .set("cache.query.stale_if_error", "1h")
            .start()
            .await;
        gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
        let kept = Instant::now();
        // No request may be sent meanwhile, because it could begin a refresh that the clients would join.
        poll("the page is too old", || async { (kept.elapsed() > 2 * WINDOW).then_some(()) }).await;
        let gate = hold(&upstream);
        let (answers, spread) = rush(&gateway, &upstream, &post(ASK), 2, &gate).await;
        assert_shared(&answers, "fwd=stale");
        assert_eq!(upstream.count(), 2);
        spread
    })
    .await;
}

#[tokio::test]
async fn a_crowd_with_no_cache_makes_one_call() {
    promptly(async || {
        let upstream = Upstream::script(|_| Plan::page(OLD)).await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
        let gate = hold(&upstream);
        let request = post_to(QUERY, "Cache-Control: no-cache\r\n", ASK);
        let (answers, spread) = rush(&gateway, &upstream, &request, 2, &gate).await;
        assert_shared(&answers, "fwd=request");
        gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
        assert_eq!(upstream.count(), 2);
        spread
    })
    .await;
}

/// A query of exactly `length` bytes that differs from the others only in its last bytes.
fn long_query(length: usize, last: &str) -> String {
    let (head, tail) = (r#"{"query":{"measures":["Conversation.Count"],"x":""#, format!("{last}\"}}}}"));
    let filling = "y".repeat(length - head.len() - tail.len());
    format!("{head}{filling}{tail}")
}

#[tokio::test]
async fn long_queries_that_differ_at_their_very_end_do_not_share() {
    for length in [40_000, 100_000] {
        let gate = Gate::default();
        let opened = gate.clone();
        // The page contains its query, so that a page for the wrong client is noticed.
        let upstream = Upstream::script(move |seen| Plan::page(&page_of(&seen.text())).after(&opened)).await;
        let gateway = TestConfig::new(upstream.url()).start().await;
        let queries = ["1", "2"].map(|last| long_query(length, last));
        assert_eq!(queries.each_ref().map(String::len), [length; 2]);
        let mut clients = Vec::new();
        for query in &queries {
            let mut client = gateway.connect().await;
            client.send(&post(query)).await;
            clients.push(client);
        }
        upstream.arrived(2).await;
        gate.open();
        for (client, query) in clients.iter_mut().zip(&queries) {
            client.answer().await.assert_page(&page_of(query), "miss");
        }
        for (client, query) in clients.iter_mut().zip(&queries) {
            client.ask(&post(query)).await.assert_page(&page_of(query), "hit");
        }
        assert_eq!(upstream.count(), 2, "of {length} bytes");
    }
}

fn page_of(query: &str) -> String {
    format!(r#"{{"data":[],"meta":{{"asked":{:?}}}}}"#, &query[query.len() - 10..])
}
