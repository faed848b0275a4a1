//! Many clients with one upstream call.

use crate::support::*;
use tempfile::TempDir;

pub const OLD: &str = r#"{"data":[],"meta":{"page":"old"}}"#;
pub const NEW: &str = r#"{"data":[],"meta":{"page":"new"}}"#;

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
