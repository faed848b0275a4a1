//! Names in queries against the account's cached metadata: hints on Twilio's 400s, and local refusals.

use crate::http2;
use crate::support::gateway::{NO_RETRY, with_teams};
use crate::support::*;

/// Twilio's answer to a name that it does not know.
const UNKNOWN: &str = r#"{"code":20400,"message":"unknown member","httpStatusCode":400,"userError":true}"#;
const TYPO: &str = r#"{"query":{"measures":["Conversation.Cout"]}}"#;
const HINT: &str = r#"unknown measure "Conversation.Cout"; did you mean "Conversation.Count"?"#;
const JOBS: &str = "/v3/InsightsDomains/Conversations/QueryJobs";
const HEADER: &str = "insights-gateway-hint";

/// Metadata, and a 400 for every query that does not only count conversations.
fn twilio(seen: &Seen) -> Plan {
    match seen.target() {
        METADATA => Plan::page(MEMBERS),
        _ if seen.text() == ASK => Plan::page(PAGE),
        _ => Plan::json(400, UNKNOWN),
    }
}

fn metadata_calls(upstream: &Upstream) -> usize {
    upstream.seen().iter().filter(|seen| seen.target() == METADATA).count()
}

/// A gateway in this mode. With `with_metadata`, a client has already requested metadata.
async fn start(upstream: &Upstream, mode: &str, with_metadata: bool) -> Gateway {
    let gateway = TestConfig::new(upstream.url()).set("validate.mode", mode).start().await;
    if with_metadata {
        assert_eq!(gateway.ask(&get(METADATA, "")).await.status, 200);
    }
    gateway
}

#[tokio::test]
async fn a_400_of_twilios_says_which_name_is_unknown_and_what_was_meant() {
    let upstream = Upstream::script(twilio).await;
    // Hints are the default.
    let gateway = TestConfig::new(upstream.url()).start().await;
    let before = gateway.ask(&post(TYPO)).await;
    assert_eq!((before.status, before.text().as_str(), before.find(HEADER)), (400, UNKNOWN, None));
    assert_eq!(upstream.count(), 1, "metadata is fetched for no hint");
    assert_eq!(gateway.ask(&get(METADATA, "")).await.status, 200);
    // From the cache, bypassed, and fetched anew. The body is Twilio's own.
    for (headers, detail) in [
        ("", "hit"),
        ("Accept-Encoding: gzip\r\nIf-None-Match: *\r\n", "hit"),
        ("Cache-Control: no-store\r\n", "bypass"),
        ("Cache-Control: no-cache\r\n", "miss"),
    ] {
        let answer = gateway.ask(&post_to(QUERY, headers, TYPO)).await;
        let shown = (answer.status, answer.text(), answer.detail().to_owned(), answer.find(HEADER));
        assert_eq!(shown, (400, UNKNOWN.to_owned(), detail.to_owned(), Some(HINT)), "{headers}");
    }
    assert_eq!(gateway.ask(&post_to(&format!("{QUERY}?PageSize=3"), "", TYPO)).await.find(HEADER), Some(HINT));
    let mut sender = http2::connect(&gateway).await;
    for path in [QUERY, JOBS] {
        let answer = http2::ask(&mut sender, http2::request("POST", &gateway, path, TYPO)).await;
        assert_eq!((answer.status, answer.find(HEADER)), (400, Some(HINT)), "{path}");
    }
    let right = gateway.ask(&post(ASK)).await;
    assert_eq!((right.status, right.find(HEADER)), (200, None));
    // A query with known names only, and a further page, whose query is not known.
    let grain = r#"{"query":{"measures":["Conversation.Count"],"dimensions":["Conversation.CreatedDate.hour"]}}"#;
    for request in [post(grain), get(&format!("{QUERY}?pageToken=x"), "")] {
        let answer = gateway.ask(&request).await;
        assert_eq!((answer.status, answer.find(HEADER)), (400, None));
    }
    let off = start(&upstream, "off", true).await;
    assert_eq!(off.ask(&post(TYPO)).await.find(HEADER), None);
}

#[tokio::test]
async fn every_client_that_waits_for_a_400_gets_the_hint() {
    let gate = Gate::default();
    let held = gate.clone();
    let upstream = Upstream::script(move |seen| match seen.target() {
        METADATA => Plan::page(MEMBERS),
        _ => Plan::json(400, UNKNOWN).after(&held),
    })
    .await;
    let gateway = start(&upstream, "hint", true).await;
    let (mut leads, mut waits) = (gateway.connect().await, gateway.connect().await);
    leads.send(&post(TYPO)).await;
    upstream.arrived(2).await;
    // The same query in another spelling.
    waits.send(&post(r#"{ "query": {"measures": ["Conversation.\u0043out"], "filters": null} }"#)).await;
    gateway.settle().await;
    gate.open();
    for (client, detail) in [(&mut leads, "miss"), (&mut waits, "collapsed")] {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.detail(), answer.find(HEADER)), (400, detail, Some(HINT)));
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn a_clients_text_cannot_change_the_header() {
    let upstream = Upstream::script(twilio).await;
    for mode in ["hint", "reject"] {
        let gateway = start(&upstream, mode, true).await;
        let ask = async |name: &str| {
            let body = serde_json::json!({"query": {"measures": [name]}});
            let answer = gateway.ask(&post(&body.to_string())).await;
            assert_eq!(answer.text(), UNKNOWN, "text without the form of a name is forwarded");
            answer.header(HEADER).to_owned()
        };
        let split = ask("Conversation.Cout\r\nSet-Cookie: a=b").await;
        assert_eq!(split, "unknown measure \"Conversation.CoutSetCookieab\"");
        assert_eq!(ask("\u{202e}\u{1b}[31m\"x\\").await, "unknown measure \"31mx\"");
        assert_eq!(ask(&"é".repeat(500)).await, "unknown measure \"\"");
        let many: Vec<_> = (0..500).map(|n| format!("{n} {}", "x".repeat(20))).collect();
        let body = serde_json::json!({"query": {"measures": many}}).to_string();
        let hint = gateway.ask(&post(&body)).await.header(HEADER).to_owned();
        assert!(hint.matches("unknown").count() == 3 && hint.len() < 600, "{hint}");
    }
}

#[tokio::test]
async fn no_hint_reveals_a_name_that_a_team_may_not_know() {
    let upstream = Upstream::script(twilio).await;
    let narrow = "policy = { deny = ['Conversation.ParticipantId', 'Secret.*'] }";
    let closed =
        "policy = { require = [{ op = 'EQ', field = 'Conversation.ConversationStatus', values = ['CLOSED'] }] }";
    let teams = [("free", ""), ("narrow", narrow), ("closed", closed), ("asks", "operations = ['query']")];
    for mode in ["hint", "reject"] {
        let (gateway, _folder) = with_teams(&upstream, "rate = '0/s'", &teams, &[("validate.mode", mode)]).await;
        let of = |team: &str| format!("Authorization: Bearer token-of-{team}\r\n");
        assert_eq!(gateway.ask(&get(METADATA, &of("free"))).await.status, 200);
        for name in ["Conversation.ParticipantId", "Conversation.ParticipantI", "Secret.Cunt", "Conversation.Cout"] {
            let body = format!(r#"{{"query":{{"measures":["Conversation.Count"],"dimensions":["{name}"]}}}}"#);
            let answer = gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await;
            answer.assert_refused(403, "field_not_allowed");
            assert_eq!(answer.find(HEADER), None);
            assert_eq!(answer.json()["message"], format!("this team may not query {name}"));
        }
        // The required filter is in the query that Twilio refuses, and not in the query that the team sent.
        let answer = gateway.ask(&post_to(QUERY, &of("closed"), ASK)).await;
        assert_eq!((answer.status, answer.find(HEADER)), (400, None));
        // This team may not read metadata, so it gets no suggestion.
        let answer = gateway.ask(&post_to(QUERY, &of("asks"), TYPO)).await;
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        let words = if mode == "hint" { answer.header(HEADER) } else { &message };
        assert_eq!(words, "unknown measure \"Conversation.Cout\"");
    }
}

#[tokio::test]
async fn a_query_with_an_unknown_name_is_refused_without_a_call() {
    let upstream = Upstream::script(twilio).await;
    let gateway = start(&upstream, "reject", false).await;
    for times in 1..=3 {
        let answer = gateway.ask(&post(TYPO)).await;
        answer.assert_refused(400, "invalid_query");
        assert_eq!(answer.json()["message"], HINT);
        // Metadata was fetched once.
        assert_eq!(upstream.count(), 1, "{times}");
    }
    let mut sender = http2::connect(&gateway).await;
    for path in [QUERY, JOBS] {
        let answer = http2::ask(&mut sender, http2::request("POST", &gateway, path, TYPO)).await;
        answer.assert_refused(400, "invalid_query");
    }
    gateway.ask(&post_to(QUERY, "Cache-Control: no-cache\r\n", TYPO)).await.assert_refused(400, "invalid_query");
    gateway.ask(&post_to(QUERY, "Cache-Control: no-store\r\n", TYPO)).await.assert_refused(400, "invalid_query");
    assert_eq!(upstream.count(), 1);
    for body in [
        // A grain, a member of another kind, undocumented parts, and text without the form of a name.
        r#"{"query":{"dimensions":["Conversation.CreatedDate.fortnight"]}}"#,
        r#"{"query":{"measures":["Conversation.Queue"]}}"#,
        r#"{"query":{"measures":["Conversation.Cout"],"limit":3}}"#,
        r#"{"query":{"measures":["Conversation.Cout"]},"domain":"Voice"}"#,
        r#"{"query":{"measures":["Conversation.Cout as x"]}}"#,
    ] {
        let before = upstream.count();
        assert_eq!(gateway.ask(&post(body)).await.text(), UNKNOWN, "{body}");
        assert_eq!(upstream.count(), before + 1, "{body}");
    }
    // A hit needs no metadata, and known names need no newer metadata.
    assert_eq!(gateway.ask(&post(ASK)).await.detail(), "miss");
    assert_eq!(gateway.ask(&post(ASK)).await.detail(), "hit");
    assert_eq!(metadata_calls(&upstream), 1);
    gateway.ask(&post_to(QUERY, "Cache-Control: only-if-cached\r\n", TYPO)).await.assert_refused(504, "only_if_cached");
}

#[tokio::test]
async fn older_metadata_is_fetched_again_before_it_refuses() {
    let aged = |age: u32| {
        let headers = format!("Content-Type: application/json\r\nAge: {age}\r\n");
        move |seen: &Seen| match seen.target() {
            METADATA => Plan::with(200, &headers, MEMBERS),
            _ => twilio(seen),
        }
    };
    let upstream = Upstream::script(aged(300)).await;
    let gateway = start(&upstream, "reject", true).await;
    // All names are known: that it is old does not matter.
    assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    assert_eq!(metadata_calls(&upstream), 1);
    upstream.set(aged(0));
    gateway.ask(&post(TYPO)).await.assert_refused(400, "invalid_query");
    assert_eq!((metadata_calls(&upstream), upstream.count()), (2, 3));
    gateway.ask(&post(TYPO)).await.assert_refused(400, "invalid_query");
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn a_field_that_was_made_elsewhere_is_known_once_a_client_demands_new_metadata() {
    let upstream = Upstream::script(twilio).await;
    let gateway = start(&upstream, "reject", true).await;
    gateway.ask(&post(TYPO)).await.assert_refused(400, "invalid_query");
    upstream.set(|seen| match seen.target() {
        METADATA => Plan::page(&MEMBERS.replace("Conversation.Count", "Conversation.Cout")),
        _ => Plan::page(PAGE),
    });
    gateway.ask(&post(TYPO)).await.assert_refused(400, "invalid_query");
    assert_eq!(gateway.ask(&get(METADATA, "Cache-Control: no-cache\r\n")).await.status, 200);
    gateway.ask(&post(TYPO)).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn without_metadata_a_query_is_forwarded() {
    for metadata in [Plan::json(500, UNKNOWN), Plan::page(PAGE), Plan::page("{}"), Plan::reset()] {
        let upstream = Upstream::script(move |seen| match seen.target() {
            METADATA => metadata.clone(),
            _ => Plan::json(400, UNKNOWN),
        })
        .await;
        let mut config = TestConfig::new(upstream.url()).set("validate.mode", "reject");
        for (key, value) in NO_RETRY {
            config = config.set(key, *value);
        }
        let gateway = config.start().await;
        for n in 1..=3 {
            let body = format!(r#"{{"query":{{"measures":["Conversation.Cout"]}},"pageSize":{n}}}"#);
            let answer = gateway.ask(&post(&body)).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.find(HEADER)), (400, UNKNOWN, None));
        }
        assert_eq!(metadata_calls(&upstream), 1, "it is not asked for with every query");
    }
}
