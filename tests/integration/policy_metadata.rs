//! The account's metadata, on which teams with a policy depend.

use insights_gateway::config::Sources;

use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::*;

fn config(upstream: &Upstream) -> TestConfig {
    TestConfig::new(upstream.url())
        .set("retry.attempts", "1")
        .set("teams.free.token_sha256", sha256_hex("free"))
        .set("teams.narrow.token_sha256", sha256_hex("narrow"))
        .set("teams.narrow.policy.deny", "Conversation.ParticipantId")
}

fn of(team: &str) -> String {
    format!("Authorization: Bearer {team}\r\n")
}

fn metadata(upstream: &Upstream) -> usize {
    upstream.seen().iter().filter(|seen| seen.target() == METADATA).count()
}

#[tokio::test]
async fn a_response_that_is_not_metadata_replaces_no_page_of_it() {
    let upstream = Upstream::with_metadata().await;
    let gateway = config(&upstream).start().await;
    let ask = async |n: usize| {
        let body = format!(r#"{{"query":{{"measures":["Conversation.Count"]}},"pageSize":{n}}}"#);
        gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await.status
    };
    assert_eq!(ask(1).await, 200);
    for (n, other) in ["{}", r#"{"cubes":[],"cubes":[]}"#, r#"{"cubes":[7]}"#].into_iter().enumerate() {
        upstream.set(move |seen| Plan::page(if seen.target() == METADATA { other } else { PAGE }));
        let headers = format!("{}Cache-Control: no-cache\r\n", of("free"));
        gateway.ask(&get(METADATA, &headers)).await.assert_page(MEMBERS, "stale_error");
        assert_eq!(ask(n + 2).await, 200, "{other}");
    }
    // It may contain more than is documented.
    let more = MEMBERS.replace("{\"domain\"", "{\"more\":[1],\"domain\"");
    let shown = more.clone();
    upstream.set(move |seen| Plan::page(if seen.target() == METADATA { &shown } else { PAGE }));
    let headers = format!("{}Cache-Control: no-cache\r\n", of("free"));
    gateway.ask(&get(METADATA, &headers)).await.assert_page(&more, "miss");
}

#[tokio::test]
async fn metadata_that_may_not_be_kept_is_not_fetched_for_every_query() {
    let no_store = "Content-Type: application/json\r\nCache-Control: no-store\r\n";
    let upstream = Upstream::script(move |seen| match seen.target() {
        METADATA => Plan::with(200, no_store, MEMBERS),
        _ => Plan::page(PAGE),
    })
    .await;
    let gateway = config(&upstream).start().await;
    for n in 1..=5 {
        let body = format!(r#"{{"query":{{"measures":["Conversation.Count"]}},"pageSize":{n}}}"#);
        assert_eq!(gateway.ask(&post_to(QUERY, &of("narrow"), &body)).await.status, 200);
    }
    assert_eq!(metadata(&upstream), 1, "its view is kept for a short time");
    for team in ["free", "narrow"] {
        assert_eq!(gateway.ask(&get(METADATA, &of(team))).await.detail(), "miss");
    }
    assert_eq!(metadata(&upstream), 3);
}

#[tokio::test]
async fn a_team_with_a_policy_can_page_at_another_upstream() {
    let walked = |seen: &Seen| match seen.target() {
        METADATA => Plan::page(MEMBERS),
        _ => Plan::page(r#"{"data":[],"meta":{"nextToken":"next"}}"#),
    };
    let (one, other) = (Upstream::script(walked).await, Upstream::script(walked).await);
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("gateway.toml");
    let write = |url: String| {
        let new = path.with_extension("new");
        let team =
            format!("[teams.narrow]\ntoken_sha256 = '{}'\npolicy = {{ deny = ['Secret.*'] }}\n", sha256_hex("narrow"));
        let account = format!(
            "[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\nrate = '0/s'\n"
        );
        std::fs::write(&new, format!("[server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n[upstream]\nurl = '{url}'\n{account}{team}")).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write(one.url());
    let gateway = Gateway::start(Sources::default().with_file(&path)).await;
    let walk = async || {
        assert_eq!(gateway.ask(&post_to(QUERY, &of("narrow"), ASK)).await.status, 200);
        gateway.ask(&get(&format!("{QUERY}?pageToken=next"), &of("narrow"))).await.status
    };
    assert_eq!(walk().await, 200);
    write(other.url());
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    assert_eq!(walk().await, 200);
    assert_eq!(other.count(), 3);
}
