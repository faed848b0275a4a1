//! The explorer's endpoints: an operator sends requests as a team, and the team's policy and limits apply.

use crate::support::gateway::with_teams;
use crate::support::*;
use serde_json::json;

const TOKEN: &str = "igw_admin-token-of-the-tests";

fn ask_as(team: &str) -> String {
    format!(r#"{{"team":"{team}","query":{{"measures":["Conversation.Count"]}}}}"#)
}

async fn explore(gateway: &Gateway, path: &str, body: &str) -> Answer {
    let head = format!("Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n");
    gateway.ask_admin(&post_to(path, &head, body)).await
}

#[tokio::test]
async fn a_query_runs_as_the_team_through_the_whole_stack() {
    let (upstream, folder) = (Upstream::with_metadata().await, tempfile::TempDir::new().unwrap());
    let (hash, audit) = (sha256_hex(TOKEN), folder.path().join("audit.jsonl"));
    let policy = "requests = '3/h'\npolicy = { deny = ['Conversation.ParticipantId'] }";
    let keys = [("admin.token_sha256", hash.as_str()), ("log.audit", audit.to_str().unwrap())];
    let (gateway, _folder) = with_teams(&upstream, "rate = '5/s'", &[("open", ""), ("tight", policy)], &keys).await;

    let first = explore(&gateway, "/explorer/query", &ask_as("open")).await;
    assert_eq!((first.status, first.detail(), first.header("cache-control")), (200, "miss", "no-store"));
    assert_eq!(explore(&gateway, "/explorer/query", &ask_as("open")).await.detail(), "hit");
    let status = gateway.ask_admin(&get("/status", &format!("Authorization: Bearer {TOKEN}\r\n"))).await.json();
    assert_eq!((&status["teams"][0]["asked"]["hit"], &status["teams"][0]["upstream_attempts"]), (&json!(1), &json!(1)));
    assert!(upstream.count() == 1, "the page is kept like any other");

    let denied =
        r#"{"team":"tight","query":{"measures":["Conversation.Count"],"dimensions":["Conversation.ParticipantId"]}}"#;
    explore(&gateway, "/explorer/query", denied).await.assert_refused(403, "field_not_allowed");
    let metadata = explore(&gateway, "/explorer/metadata", r#"{"team":"tight"}"#).await;
    assert!(metadata.status == 200 && !metadata.text().contains("ParticipantId"), "{}", metadata.text());
    assert!(explore(&gateway, "/explorer/metadata", r#"{"team":"open"}"#).await.text().contains("ParticipantId"));
    explore(&gateway, "/explorer/query", &ask_as("tight")).await;
    let limited = explore(&gateway, "/explorer/query", &ask_as("tight")).await;
    limited.assert_refused(429, "team_rate_limit");

    gateway.stop().await;
    let lines = std::fs::read_to_string(audit).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() == 7 && lines.iter().all(|line| line["via"] == "admin"), "{lines:?}");
    assert_eq!((&lines[0]["team"], &lines[0]["fields"]["measures"][0]), (&json!("open"), &json!("Conversation.Count")));
}

#[tokio::test]
async fn the_cost_of_a_query_is_shown_without_any_cost() {
    let upstream = Upstream::with_metadata().await;
    let hash = sha256_hex(TOKEN);
    let teams = [
        ("open", ""),
        ("tight", "policy = { deny = ['Conversation.ParticipantId'] }"),
        ("none", "operations = ['metadata']"),
    ];
    let (gateway, _folder) = with_teams(&upstream, "rate = '5/s'", &teams, &[("admin.token_sha256", &hash)]).await;
    let cost = async |body: &str| {
        let answer = explore(&gateway, "/explorer/cost", body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        (json["cost"].as_str().unwrap().to_owned(), json["calls"].as_u64().unwrap())
    };
    let said = |cost: &str, calls| (cost.to_owned(), calls);
    assert_eq!(cost(&ask_as("open")).await, said("call", 1));
    assert_eq!(cost(&ask_as("tight")).await, said("call", 2), "its policy needs metadata");
    assert_eq!(cost(&ask_as("none")).await, said("refused", 0));
    assert_eq!(cost(r#"{"team":"open","query":7}"#).await, said("refused", 0));
    assert_eq!(cost(r#"{"team":"open"}"#).await, said("call", 1));
    assert_eq!(upstream.count(), 0);
    let status = gateway.ask_admin(&get("/status", &format!("Authorization: Bearer {TOKEN}\r\n"))).await.json();
    assert_eq!(status["requests"].as_object().unwrap().values().filter_map(|count| count.as_u64()).sum::<u64>(), 0);

    explore(&gateway, "/explorer/query", &ask_as("open")).await;
    assert_eq!(cost(&ask_as("open")).await, said("hit", 0));
    let again = ask_as("open").replace("}}", "},\"refresh\":true}");
    assert_eq!(cost(&again).await, said("call", 1));
    explore(&gateway, "/explorer/metadata", r#"{"team":"open"}"#).await;
    assert_eq!(cost(r#"{"team":"open"}"#).await, said("hit", 0));
    assert_eq!(cost(&ask_as("tight")).await, said("hit", 0), "teams whose effective queries are equal share pages");
    let denied =
        r#"{"team":"tight","query":{"measures":["Conversation.Count"],"dimensions":["Conversation.ParticipantId"]}}"#;
    assert_eq!(cost(denied).await, said("refused", 0));
    let answer = explore(&gateway, "/explorer/cost", &ask_as("open")).await.json();
    assert!(answer["calls_left"].is_u64() && answer["circuit"] == "closed", "{answer}");
}

#[tokio::test]
async fn a_wrong_question_gets_an_explanation_and_makes_no_call() {
    let upstream = Upstream::start().await;
    let hash = sha256_hex(TOKEN);
    let (gateway, _folder) = with_teams(&upstream, "", &[("open", "")], &[("admin.token_sha256", &hash)]).await;
    for (path, body, part) in [
        ("/explorer/query", "", "a JSON object"),
        ("/explorer/query", r#"["open",{},null,null,null,false]"#, "a JSON object"),
        ("/explorer/query", r#"{"team":"open""#, "the text ends"),
        ("/explorer/query", r#"{"team":"open"}"#, "send query"),
        ("/explorer/query", r#"{"team":"nobody","query":{}}"#, "the teams are open"),
        ("/explorer/query", r#"{"team":"open","queri":{}}"#, "unknown field"),
        ("/explorer/query", r#"{"team":"open","query":{},"pageToken":"x"}"#, "not both"),
        ("/explorer/metadata", r#"{"team":"open","query":{}}"#, "only the team"),
    ] {
        let answer = explore(&gateway, path, body).await;
        assert!(answer.status == 400 && answer.text().contains(part), "{body}: {answer:?}");
    }
    assert_eq!(explore(&gateway, "/explorer/query", &"x".repeat(300 << 10)).await.status, 413);
    assert_eq!(gateway.ask_admin(&post_to("/explorer/query", "", &ask_as("open"))).await.status, 401);
    let head = format!("Authorization: Bearer {TOKEN}\r\n");
    let get = gateway.ask_admin(&get("/explorer/query", &head)).await;
    assert_eq!((get.status, get.header("allow")), (405, "POST"));
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn the_explorer_is_off_if_switched_off_or_if_teams_exist_without_an_admin_token() {
    let upstream = Upstream::start().await;
    let without = TestConfig::new(upstream.url()).start().await;
    let answer = without.ask_admin(&post_to("/explorer/query", "", &ask_as("local"))).await;
    assert_eq!((answer.status, answer.detail()), (200, "miss"), "a gateway without teams");
    let url = format!("http://{}", without.data);
    let expected = json!({"enabled": true, "teams": ["local"], "url": url, "needs_token": false});
    assert_eq!(without.admin("/status").await.json()["explorer"], expected);

    let off = TestConfig::new(upstream.url()).set("admin.explorer", "false").start().await;
    let (open, _folder) = with_teams(&upstream, "", &[("open", "")], &[]).await;
    for (gateway, team) in [(&off, "local"), (&open, "open")] {
        for path in ["/explorer/query", "/explorer/metadata", "/explorer/cost"] {
            assert_eq!(gateway.ask_admin(&post_to(path, "", &ask_as(team))).await.status, 404, "{path}");
        }
        assert_eq!(gateway.admin("/status").await.json()["explorer"]["enabled"], false);
    }
}
