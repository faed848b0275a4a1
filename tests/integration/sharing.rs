//! Many clients with one upstream call, and how old a shared page may be.

use crate::support::*;
use tempfile::TempDir;

const OLD: &str = r#"{"data":[],"meta":{"page":"old"}}"#;
const NEW: &str = r#"{"data":[],"meta":{"page":"new"}}"#;

/// A page for each of `clients`, and how many of them were collapsed, missed and hit.
async fn answers(clients: Vec<Client>, page: &str) -> (usize, usize, usize) {
    let mut details = Vec::new();
    for mut client in clients {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, page));
        assert_eq!(answer.has_note("collapsed"), answer.detail() == "collapsed", "{answer:?}");
        details.push(answer.detail().to_owned());
    }
    let count = |word: &str| details.iter().filter(|detail| *detail == word).count();
    (count("collapsed"), count("miss"), count("hit"))
}

async fn waiter_count(gateway: &Gateway, requests: impl IntoIterator<Item = Vec<u8>>) -> Vec<Client> {
    let mut clients = Vec::new();
    for request in requests {
        let mut client = gateway.connect().await;
        client.send(&request).await;
        clients.push(client);
    }
    gateway.settle().await;
    clients
}

#[tokio::test]
async fn fifty_identical_queries_make_one_upstream_request() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let clients = waiter_count(&gateway, (0..50).map(|_| post(ASK))).await;
    upstream.arrived(1).await;
    gate.open();
    assert_eq!(answers(clients, PAGE).await, (49, 1, 0));
    assert_eq!(upstream.count(), 1);
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(gateway.metric("requests_total", &["outcome=\"collapsed\"", "status=\"200\""]).await, 49.0);
}

#[tokio::test]
async fn equal_queries_share_whatever_their_spelling() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let spellings = [
        r#"{"query":{"filters":[{"op":"AND","expressions":[{"op":"EQ","field":"A","values":["1"]},{"op":"IN","field":"B","values":["x","y"]}]}],"measures":["M"]}}"#,
        r#"{ "query" : { "measures" : [ "M" ] , "filters" : [ {"expressions":[{"values":["y","x","y"],"field":"B","op":"IN"},{"op":"EQ","field":"A","values":["1"]}],"op":"AND"} ] } }"#,
        "{\r\n\t\"query\":{\"dimensions\":null,\"measures\":[\"\\u004d\"],\"filters\":[{\"op\":\"AND\",\"expressions\":[{\"op\":\"EQ\",\"field\":\"A\",\"values\":[\"1\"]},{\"op\":\"EQ\",\"field\":\"A\",\"values\":[\"1\"]},{\"op\":\"IN\",\"field\":\"B\",\"values\":[\"x\",\"y\"]}]}]},\"pageSize\":null}",
    ];
    let clients = waiter_count(&gateway, spellings.iter().map(|body| post(body))).await;
    upstream.arrived(1).await;
    gate.open();
    assert_eq!(answers(clients, PAGE).await, (2, 1, 0));
    assert_eq!(upstream.count(), 1, "{:?}", upstream.seen());
    // Parameters too: the same token in another encoding.
    for (token, detail) in [("a%2Bb%2f%3D", "miss"), ("a+b/=", "hit"), ("%61%2bb/=", "hit")] {
        gateway.ask(&get(&format!("{QUERY}?pageToken={token}"), "")).await.assert_page(PAGE, detail);
    }
}

#[tokio::test]
async fn different_queries_never_share() {
    let gate = Gate::default();
    let opened = gate.clone();
    let upstream = Upstream::script(move |seen| {
        let page = format!("{{\"cubes\":[],\"asked\":{:?}}}", format!("{} {}", seen.target(), seen.text()));
        Plan::page(&page).after(&opened)
    })
    .await;
    // Enough places for all at the same time.
    let gateway = TestConfig::new(upstream.url()).set("accounts.default.concurrency", "100").start().await;
    let query = |inner: &str| post(&format!(r#"{{"query":{{{inner}}}}}"#));
    let requests = [
        query(r#""measures":["A","B"]"#),
        query(r#""measures":["B","A"]"#),
        query(r#""measures":["a","B"]"#),
        query(r#""measures":["A","B"],"limit":1"#),
        query(r#""measures":["A","B"],"limit":1.0"#),
        query(r#""measures":["A","B"],"limit":null"#),
        query(r#""measures":["A","B"],"limit":"1""#),
        query(r#""filters":[{"op":"AND","expressions":[{"op":"EQ","field":"A","values":["1","2"]}]}]"#),
        query(r#""filters":[{"op":"AND","expressions":[{"op":"EQ","field":"A","values":["2","1"]}]}]"#),
        query(r#""filters":[{"op":"OR","expressions":[{"op":"EQ","field":"A","values":["1","2"]}]}]"#),
        query(r#""filters":[{"expressions":[{"op":"EQ","field":"A","values":["1","2"]}]}]"#),
        query(r#""filters":[{"op":"and","expressions":[{"op":"EQ","field":"A","values":["1","2"]}]}]"#),
        post_to(&format!("{QUERY}?pageSize=1"), "", ASK),
        post_to(&format!("{QUERY}?pageSize=2"), "", ASK),
        post_to(&format!("{QUERY}?pagesize=2"), "", ASK),
        post_to(QUERY, "", r#"{"pageSize":1,"query":{"measures":["Conversation.Count"]}}"#),
        get(&format!("{QUERY}?pageToken=a"), ""),
        get(&format!("{QUERY}?pageToken=A"), ""),
        get(&format!("{QUERY}?pageToken=a&pageSize=1"), ""),
        get(METADATA, ""),
        get(&format!("{METADATA}?pageToken=a"), ""),
    ];
    let count = requests.len();
    let clients = waiter_count(&gateway, requests.clone()).await;
    upstream.arrived(count).await;
    gate.open();
    let mut pages = std::collections::HashSet::new();
    for (n, mut client) in clients.into_iter().enumerate() {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.detail()), (200, "miss"));
        assert!(pages.insert(answer.text()), "{:?} got another's page", String::from_utf8_lossy(&requests[n]));
    }
    assert_eq!(upstream.count(), count);
}

#[tokio::test]
async fn accounts_never_share_and_teams_of_one_account_do() {
    let hash = sha256_hex;
    let account = |name: &str| {
        format!("[accounts.{name}]\naccount_sid = 'AC{name}'\napi_key = 'SK{name}'\napi_secret = 's'\nrate = '0/s'\n")
    };
    let team = |name: &str, account: &str| {
        format!("[teams.{name}]\naccount = '{account}'\ntoken_sha256 = ['{}']\n", hash(&format!("token-of-{name}")))
    };
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    let text = [account("one"), account("two"), team("red", "one"), team("green", "one"), team("blue", "two")].concat();
    std::fs::write(&file, text).unwrap();
    // A hash, because a response that contains a credential is not passed on.
    let upstream =
        Upstream::script(move |seen| Plan::page(&format!("{:?}", hash(seen.header("authorization").unwrap())))).await;
    let gateway = Gateway::start(TestConfig::new(upstream.url()).without_account().sources().with_file(&file)).await;
    let ask = async |team: &str, headers: &str| {
        let headers = format!("Authorization: Bearer token-of-{team}\r\n{headers}");
        gateway.ask(&post_to(QUERY, &headers, ASK)).await
    };
    let red = ask("red", "").await;
    assert_eq!((red.status, red.detail()), (200, "miss"));
    ask("blue", "Cache-Control: only-if-cached\r\n").await.assert_refused(504, "only_if_cached");
    let blue = ask("blue", "").await;
    assert_eq!((blue.status, blue.detail()), (200, "miss"));
    assert_ne!(red.text(), blue.text());
    ask("green", "").await.assert_page(&red.text(), "hit");
    // The token is the secret: another team's name or a part of the token is not accepted.
    let refused = ask("nobody", "").await;
    refused.assert_refused(401, "unauthenticated");
    assert!(refused.find("www-authenticate").is_some());
    gateway.ask(&post(ASK)).await.assert_refused(401, "unauthenticated");
    gateway.ask(&post_to(QUERY, "Authorization: Bearer \r\n", ASK)).await.assert_refused(401, "unauthenticated");
    gateway.ask(&post_to(QUERY, "Authorization: Basic Og==\r\n", ASK)).await.assert_refused(401, "unauthenticated");
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_flight_outlives_the_client_that_began_it() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let first = waiter_count(&gateway, [post(ASK)]).await;
    upstream.arrived(1).await;
    drop(first);
    gateway.metric_reaches("requests_total", &["status=\"499\""], 1.0).await;
    // A client that comes after the first has left still joins its flight.
    let second = waiter_count(&gateway, [post(ASK)]).await;
    gate.open();
    assert_eq!(answers(second, PAGE).await, (1, 0, 0));
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn the_response_of_a_flight_without_waiters_is_stored() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    drop(waiter_count(&gateway, (0..3).map(|_| post(ASK))).await);
    upstream.arrived(1).await;
    gateway.metric_reaches("requests_total", &["status=\"499\""], 3.0).await;
    gate.open();
    gateway.metric_reaches("cache_entries", &[], 1.0).await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).set("accounts.default.concurrency", "1").start().await;
    let one = waiter_count(&gateway, [get(METADATA, "")]).await;
    upstream.arrived(1).await;
    let waiting = waiter_count(&gateway, [post(ASK)]).await;
    gateway.metric_reaches("queue_length", &["account=\"default\""], 1.0).await;
    drop(waiting);
    poll("the queue is empty", || async { (gateway.metric("queue_length", &[]).await == 0.0).then_some(()) }).await;
    gate.open();
    assert_eq!(answers(one, PAGE).await, (0, 1, 0));
    gateway.settle().await;
    assert_eq!(upstream.count(), 1, "no client waited for the second");
}

#[tokio::test]
async fn a_failing_flight_fails_only_for_those_who_wait_for_it() {
    for (failure, status) in [(Plan::reset(), 502), (Plan::page("no JSON"), 502), (Plan::json(503, "{}"), 503)] {
        let gate = Gate::default();
        let held = failure.after(&gate);
        let upstream = Upstream::script(move |_| held.clone()).await;
        let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
        let clients = waiter_count(&gateway, (0..10).map(|_| post(ASK))).await;
        upstream.arrived(1).await;
        gate.open();
        for mut client in clients {
            assert_eq!(client.answer().await.status, status);
        }
        assert_eq!(upstream.count(), 1, "no waiter made its own call");
        upstream.heal(PAGE);
        gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
        assert_eq!(upstream.count(), 2);
    }
}

#[tokio::test]
async fn a_leader_with_a_short_deadline_does_not_end_the_call() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
    let mut hasty = waiter_count(&gateway, [post_to(QUERY, "Prefer: wait=1\r\n", ASK)]).await;
    upstream.arrived(1).await;
    let patient = waiter_count(&gateway, (0..5).map(|_| post(ASK))).await;
    hasty.remove(0).answer().await.assert_refused(504, "upstream_timeout");
    gate.open();
    assert_eq!(answers(patient, PAGE).await, (5, 0, 0));
    assert_eq!(upstream.count(), 1, "its call continues for the others");
}

async fn short_lived(upstream: &Upstream, fresh: &str, revalidate: &str, error: &str) -> Gateway {
    TestConfig::new(upstream.url())
        .set("cache.query.fresh", fresh)
        .set("cache.query.stale_while_revalidate", revalidate)
        .set("cache.query.stale_if_error", error)
        .set("retry.attempts", "1")
        // This test is not about the circuit.
        .set("circuit.ratio", "1.0")
        .start()
        .await
}

#[tokio::test]
async fn a_stale_page_is_served_at_once_while_one_refresh_runs() {
    let upstream = Upstream::script(|_| Plan::page(OLD)).await;
    let gateway = short_lived(&upstream, "200ms", "60s", "60s").await;
    gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
    let gate = Gate::default();
    let held = Plan::page(NEW).after(&gate);
    upstream.set(move |_| held.clone());
    let stale = poll("the page becomes stale", || async {
        let answer = gateway.ask(&post(ASK)).await;
        assert_eq!(answer.text(), OLD);
        (answer.detail() == "stale").then_some(answer)
    })
    .await;
    assert!(stale.header("cache-status").contains("ttl=-"), "{stale:?}");
    assert!(stale.find("age").is_some());
    upstream.arrived(2).await;
    for _ in 0..10 {
        gateway.ask(&post(ASK)).await.assert_page(OLD, "stale");
    }
    assert_eq!(upstream.count(), 2, "one refresh for all");
    gate.open();
    poll("the new page", || async { (gateway.ask(&post(ASK)).await.text() == NEW).then_some(()) }).await;
}

#[tokio::test]
async fn a_failed_refresh_makes_nothing_fresh_and_removes_no_page() {
    let upstream = Upstream::script(|_| Plan::page(OLD)).await;
    let gateway = short_lived(&upstream, "100ms", "60s", "60s").await;
    gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
    for failure in [Plan::json(500, "{}"), Plan::json(400, "{}"), Plan::json(404, "{}"), Plan::page("x"), Plan::reset()]
    {
        let before = upstream.count();
        upstream.set(move |_| failure.clone());
        poll("two refreshes that fail", || async {
            let answer = gateway.ask(&post(ASK)).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, OLD));
            (upstream.count() >= before + 2).then_some(())
        })
        .await;
        gateway.ask(&post(ASK)).await.assert_page(OLD, "stale");
    }
    upstream.heal(NEW);
    poll("the new page", || async { (gateway.ask(&post(ASK)).await.text() == NEW).then_some(()) }).await;
}

#[tokio::test]
async fn an_error_is_answered_with_a_stale_page_within_its_window_and_no_further() {
    for failure in [Plan::json(500, "{}"), Plan::json(429, "{}"), Plan::page("x"), Plan::reset()] {
        let upstream = Upstream::script(|_| Plan::page(OLD)).await;
        let gateway = short_lived(&upstream, "50ms", "0s", "400ms").await;
        let begun = tokio::time::Instant::now();
        gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
        let stored = tokio::time::Instant::now();
        upstream.set(move |_| failure.clone());
        poll("the stale page", || async {
            let answer = gateway.ask(&post(ASK)).await;
            let late = begun.elapsed().as_millis() > 450;
            assert!(late || answer.text() == OLD, "{answer:?}");
            (late || answer.detail() == "stale_error").then_some(())
        })
        .await;
        poll("the window's end", || async {
            let asked = stored.elapsed();
            let answer = gateway.ask(&post(ASK)).await;
            if answer.status == 200 {
                assert!(asked.as_millis() <= 450, "served {asked:?} after it was stored");
            }
            (answer.status != 200).then_some(())
        })
        .await;
        upstream.heal(NEW);
        gateway.ask(&post(ASK)).await.assert_page(NEW, "miss");
    }
}

#[tokio::test]
async fn a_client_error_of_twilio_is_not_hidden_by_a_stale_page() {
    let upstream = Upstream::script(|_| Plan::page(OLD)).await;
    let gateway = short_lived(&upstream, "50ms", "0s", "60s").await;
    gateway.ask(&post(ASK)).await.assert_page(OLD, "miss");
    for (status, seen) in [(401, 502), (403, 502), (400, 400), (404, 404)] {
        upstream.set(move |_| Plan::json(status, "{}"));
        poll("Twilio's verdict", || async { (gateway.ask(&post(ASK)).await.status == seen).then_some(()) }).await;
    }
}

#[tokio::test]
async fn request_directives_are_followed() {
    let upstream = Upstream::script(|seen| Plan::page(&format!("{{\"n\":{}}}", seen.number))).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let ask = async |wish: &str| gateway.ask(&post_to(QUERY, &format!("Cache-Control: {wish}\r\n"), ASK)).await;
    ask("only-if-cached").await.assert_refused(504, "only_if_cached");
    assert_eq!(upstream.count(), 0);
    // Neither stored nor served from the cache.
    let bypass = ask("no-store").await;
    bypass.assert_page("{\"n\":1}", "bypass");
    assert!(bypass.has_note("fwd=bypass") && !bypass.has_note("stored"));
    ask("only-if-cached").await.assert_refused(504, "only_if_cached");
    let first = ask("max-age=60").await;
    first.assert_page("{\"n\":2}", "miss");
    assert!(first.has_note("fwd=uri-miss") && first.has_note("stored") && first.find("age").is_none());
    let hit = ask("only-if-cached").await;
    hit.assert_page("{\"n\":2}", "hit");
    assert_eq!(hit.header("etag"), first.header("etag"));
    assert!(hit.header("age").parse::<u32>().is_ok_and(|age| age < 20), "{hit:?}");
    // Fetched again; all other clients get the new page next.
    let forced = ask("no-cache").await;
    forced.assert_page("{\"n\":3}", "miss");
    assert!(forced.has_note("fwd=request"));
    ask("max-age=60").await.assert_page("{\"n\":3}", "hit");
    ask("max-age=0").await.assert_page("{\"n\":4}", "miss");
    ask("min-fresh=3600").await.assert_page("{\"n\":5}", "miss");
    ask("no-store").await.assert_page("{\"n\":6}", "bypass");
    ask("only-if-cached").await.assert_page("{\"n\":5}", "hit");
    ask("max-age=nonsense, min-fresh=-1, unknown").await.assert_page("{\"n\":5}", "hit");
    assert_eq!(upstream.count(), 6);
}

#[tokio::test]
async fn a_client_that_has_the_page_gets_304_and_no_body() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for (method, target, body) in [("GET", METADATA, ""), ("HEAD", METADATA, ""), ("POST", QUERY, ASK)] {
        let request = |headers: &str| {
            let length = body.len();
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
                .into_bytes()
        };
        let mut client = gateway.connect().await;
        let tag = client.ask(&request("")).await.header("etag").to_owned();
        for sent in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let answer = client.ask(&request(&format!("If-None-Match: {sent}\r\n"))).await;
            assert_eq!((answer.status, answer.detail(), answer.header("etag")), (304, "revalidated", tag.as_str()));
            // RFC 9110 section 8.6: if there is a length, it must be that of the page.
            assert!(answer.find("content-length").is_none_or(|length| length == PAGE.len().to_string()), "{answer:?}");
            assert!(answer.find("x-request-id").is_some());
        }
        // Also for a response with `no-store`.
        let answer = client.ask(&request(&format!("Cache-Control: no-store\r\nIf-None-Match: {tag}\r\n"))).await;
        assert_eq!((answer.status, answer.detail(), answer.header("etag")), (304, "bypass", tag.as_str()));
        // The connection can still be used, so no body followed.
        let answer = client.ask(&request("If-None-Match: \"other\"\r\n")).await;
        assert_eq!((answer.status, answer.detail()), (200, "hit"));
        client.ask(&get("/nowhere", "")).await.assert_refused(404, "not_found");
    }
}

#[tokio::test]
async fn responses_that_twilio_forbids_to_store_are_not_stored() {
    for (control, kept) in [
        ("no-store", false),
        ("private", false),
        ("max-age=0, no-cache", false),
        ("max-age=60", true),
        ("public", true),
    ] {
        let headers = format!("Content-Type: application/json\r\nCache-Control: {control}\r\n");
        let upstream = Upstream::script(move |_| Plan::with(200, &headers, PAGE)).await;
        let gateway = short_lived(&upstream, "60s", "0s", "0s").await;
        let first = gateway.ask(&post(ASK)).await;
        first.assert_page(PAGE, "miss");
        assert_eq!(first.has_note("stored"), kept, "{control}");
        gateway.ask(&post(ASK)).await.assert_page(PAGE, if kept { "hit" } else { "miss" });
    }
}

#[tokio::test]
async fn purging_drops_pages_and_a_bad_purge_none() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let purge = async |body: &str| {
        let length = body.len();
        let request =
            format!("POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}");
        Client::connect(gateway.admin).await.ask(request.as_bytes()).await
    };
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"all":false}"#,
        r#"{"all":true,"account":"default"}"#,
        r#"{"al":true}"#,
        r#"{"operation":"x"}"#,
    ] {
        assert_eq!(purge(bad).await.status, 400, "{bad}");
    }
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(purge(r#"{"operation":"query"}"#).await.json()["purged"], 1);
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "hit");
    assert_eq!(purge(r#"{"all":true}"#).await.json()["purged"], 2);
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn only_if_cached_never_asks_upstream_with_any_other_directive() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for directives in [
        "only-if-cached, no-store",
        "only-if-cached, no-cache",
        "only-if-cached, max-age=0",
        "no-store, only-if-cached",
    ] {
        let answer = gateway.ask(&post_to(QUERY, &format!("Cache-Control: {directives}\r\n"), ASK)).await;
        assert_eq!((answer.status, upstream.count()), (504, 0), "{directives}: {answer:?}");
    }
}

#[tokio::test]
async fn a_purge_is_not_undone_by_a_flight_that_was_under_way() {
    let gate = Gate::default();
    let held = Plan::page(OLD).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let clients = waiter_count(&gateway, [post(ASK)]).await;
    upstream.arrived(1).await;
    let request = "POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{\"all\":true}";
    assert_eq!(Client::connect(gateway.admin).await.ask(request.as_bytes()).await.status, 200);
    upstream.heal(NEW);
    gate.open();
    assert_eq!(answers(clients, OLD).await, (0, 1, 0));
    // A caller purges because data at Twilio has changed, and must not get a response from before that.
    gateway.ask(&post(ASK)).await.assert_page(NEW, "miss");
}

#[tokio::test]
async fn no_cache_is_not_answered_by_a_flight_that_began_before_it() {
    let gate = Gate::default();
    let held = Plan::page(OLD).after(&gate);
    let upstream = Upstream::script(move |seen| if seen.number == 1 { held.clone() } else { Plan::page(NEW) }).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let plain = waiter_count(&gateway, [post(ASK)]).await;
    upstream.arrived(1).await;
    // By now Twilio may already have read its data for the first request.
    let mut forced = waiter_count(&gateway, [post_to(QUERY, "Cache-Control: no-cache\r\n", ASK)]).await;
    gate.open();
    assert_eq!(answers(plain, OLD).await, (0, 1, 0));
    assert_eq!(forced.remove(0).answer().await.text(), NEW, "refetch now");
}

#[tokio::test]
async fn a_page_of_another_site_cannot_purge() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    gateway.ask(&post(ASK)).await;
    for foreign in ["Host: localhost\r\nOrigin: https://evil.example", "Host: rebound.example"] {
        let request = format!("POST /cache/purge HTTP/1.1\r\n{foreign}\r\nContent-Length: 12\r\n\r\n{{\"all\":true}}");
        assert_eq!(Client::connect(gateway.admin).await.ask(request.as_bytes()).await.status, 403, "{foreign}");
    }
    assert_eq!(gateway.ask(&post(ASK)).await.detail(), "hit");
}
