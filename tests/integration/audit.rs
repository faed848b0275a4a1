//! The audit log: what it contains, what it must never contain, and how it behaves as a file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::process::{Process, set};
use crate::support::*;
use insights_gateway::config;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

fn lines(path: &Path) -> Vec<Json> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

/// A team `support` that may not see participants, with the token `T`, and its log.
fn config(upstream: &Upstream, folder: &TempDir) -> (TestConfig, PathBuf) {
    let path = folder.path().join("audit.jsonl");
    let config = TestConfig::new(upstream.url())
        .set("log.audit", path.display().to_string())
        .set("teams.support.token_sha256", sha256_hex("T"))
        .set("teams.support.operations", "query")
        .set("teams.support.policy.deny", "Conversation.ParticipantId");
    (config, path)
}

const TOKEN: &str = "Authorization: Bearer T\r\n";

#[tokio::test]
async fn every_request_leaves_a_line_with_names_and_without_values() {
    let (upstream, folder) = (Upstream::with_metadata().await, TempDir::new().unwrap());
    let (config, path) = config(&upstream, &folder);
    let gateway = config.start().await;
    let query = |dimension: &str| {
        json!({"query": {
            "measures": ["Conversation.Count"],
            "dimensions": [dimension],
            "filters": [{"op": "AND", "expressions": [
                {"field": "Conversation.CreatedAt", "op": "LT", "values": ["a-planted-value"]},
            ]}],
            "orderBy": [{"field": "Conversation.Count", "direction": "DESC"}],
        }, "properties": {"timezone": "Antarctica/Troll"}})
        .to_string()
    };
    let allowed = query("Conversation.Queue");
    let id = "X-Request-Id: asked-by-the-test\r\n";
    let asked = [
        post_to(QUERY, &format!("{TOKEN}{id}"), &allowed),
        post_to(QUERY, TOKEN, &allowed),
        post_to(QUERY, TOKEN, &query("Conversation.ParticipantId")),
        post_to(QUERY, TOKEN, "no json: a-planted-value"),
        post_to(QUERY, "Authorization: Bearer a-planted-token\r\n", &allowed),
        get(METADATA, TOKEN),
        get(&format!("{QUERY}?pageToken=a-planted-value"), TOKEN),
        get("/nowhere?with=a-planted-value", TOKEN),
    ];
    let begun = jiff::Timestamp::now();
    let mut bytes = Vec::new();
    let mut client = gateway.connect().await;
    for request in &asked {
        bytes.push(client.ask(request).await.body.len());
    }
    let from = client.stream.local_addr().unwrap().to_string();
    gateway.stop().await;
    let ended = jiff::Timestamp::now();

    let lines = lines(&path);
    let said: Vec<_> = lines
        .iter()
        .map(|line| {
            let word = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
            (word("team"), word("operation"), word("outcome"), line["status"].as_u64().unwrap(), word("reason"))
        })
        .collect();
    let expected = [
        ("support", "query", "miss", 200, ""),
        ("support", "query", "hit", 200, ""),
        ("support", "query", "refused", 403, "field_not_allowed"),
        ("support", "query", "refused", 400, "invalid_json"),
        ("-", "query", "refused", 401, "unauthenticated"),
        ("support", "metadata", "refused", 403, "operation_not_allowed"),
        ("support", "page", "refused", 403, "field_not_allowed"),
        ("-", "-", "refused", 404, "not_found"),
    ];
    let expected = expected.map(|(team, operation, outcome, status, reason)| {
        (team.to_owned(), operation.to_owned(), outcome.to_owned(), status, reason.to_owned())
    });
    assert_eq!(said, expected);
    for (line, bytes) in lines.iter().zip(bytes) {
        assert_eq!(line["bytes"], bytes, "{line}");
        assert_eq!(line["peer"], from, "{line}");
        let at: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
        let minute = jiff::SignedDuration::from_mins(1);
        assert!((begun - minute..=ended + minute).contains(&at), "{line}");
    }
    assert_eq!(lines[0]["request_id"], "asked-by-the-test");
    let fields = |dimension: &str| {
        json!({
            "measures": ["Conversation.Count"],
            "dimensions": [dimension],
            "filters": ["Conversation.CreatedAt"],
            "orderBy": ["Conversation.Count"],
        })
    };
    assert_eq!((&lines[0]["fields"], &lines[1]["fields"]), (&fields("Conversation.Queue"), &lines[0]["fields"]));
    assert_eq!(lines[2]["fields"], fields("Conversation.ParticipantId"), "the refused member is named");
    assert!(lines[4].get("fields").is_none(), "the body of an unauthenticated request is not read");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("planted") && !text.contains("Troll"), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_client_that_leaves_leaves_a_line() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let folder = TempDir::new().unwrap();
    let (config, path) = config(&upstream, &folder);
    let gateway = config.start().await;
    let mut client = gateway.connect().await;
    client.send(&post_to(QUERY, TOKEN, ASK)).await;
    upstream.arrived(1).await;
    drop(client);
    gateway.metric_reaches("audit_records_total", &["result=\"written\""], 1.0).await;
    let lines = lines(&path);
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&json!(499), &json!("client_left")));
    gate.open();
}

#[tokio::test]
async fn a_rotated_log_is_reopened_on_sighup_even_if_the_configuration_is_refused() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let (path, file) = (folder.path().join("audit.jsonl"), folder.path().join("gateway.toml"));
    let good = format!("[log]\naudit = '{}'\n", path.display());
    fs::write(&file, &good).unwrap();
    let process =
        Process::start(vec![format!("--config={}", file.display()), set("upstream.url", &upstream.url())]).await;
    let reloads = async |result: &str| {
        let sample = format!("insights_gateway_reloads_total{{result=\"{result}\"}}");
        process.metric(&sample).await.and_then(|count| count.parse::<u32>().ok()).unwrap_or_default()
    };
    for (n, result) in ["applied", "refused"].into_iter().enumerate() {
        assert_eq!(process.ask(&get(&format!("{METADATA}?n={n}"), "")).await.status, 200);
        poll("the line", || async { (path.exists() && lines(&path).len() == 1).then_some(()) }).await;
        let rotated = folder.path().join(format!("audit.{n}"));
        fs::rename(&path, &rotated).unwrap();
        if result == "refused" {
            fs::write(&file, "[nonsense]\n").unwrap();
        }
        let before = reloads(result).await;
        process.signal("HUP");
        poll("the reload", || async { (reloads(result).await > before).then_some(()) }).await;
        assert_eq!(lines(&rotated).len(), 1);
        assert!(path.exists(), "after a reload that is {result}");
    }
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn a_log_can_be_turned_on_moved_and_turned_off_by_reloads() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let file = folder.path().join("gateway.toml");
    let at = |name: &str| folder.path().join(name);
    fs::write(&file, "").unwrap();
    let gateway = Gateway::start(TestConfig::new(upstream.url()).sources().with_file(&file)).await;
    let ask = async || assert_eq!(gateway.ask(&post(ASK)).await.status, 200);
    let reload = async |text: String, result: &str, count: f64| {
        fs::write(&file, text).unwrap();
        gateway.reload.notify_one();
        gateway.metric_reaches("reloads_total", &[&format!("result=\"{result}\"")], count).await;
    };
    let audit = |path: &Path| format!("[log]\naudit = '{}'\n", path.display());
    ask().await;
    reload(audit(&at("one")), "applied", 1.0).await;
    ask().await;
    reload(audit(&at("two")), "applied", 2.0).await;
    ask().await;
    ask().await;
    // The whole reload is refused, so the log stays where it was.
    reload(audit(&at("no/such/folder")), "refused", 1.0).await;
    ask().await;
    reload(String::new(), "applied", 3.0).await;
    ask().await;
    gateway.stop().await;
    assert_eq!((lines(&at("one")).len(), lines(&at("two")).len()), (1, 3));
}

#[test]
fn a_log_that_cannot_be_written_is_a_fault_and_check_makes_no_file() {
    let folder = TempDir::new().unwrap();
    let load = |path: &Path| {
        let sources = TestConfig::new("http://127.0.0.1:9").set("log.audit", path.display().to_string()).sources();
        config::load(&sources).map_err(|faults| faults.to_string())
    };
    for (path, fault) in [
        (folder.path().to_owned(), "log.audit: this is not a file"),
        (folder.path().join("no/such/folder"), "log.audit: the folder of this file does not exist"),
        (PathBuf::from("/dev/null"), "log.audit: this is not a file"),
    ] {
        let found = load(&path).unwrap_err();
        assert!(found.contains(fault), "{}: {found}", path.display());
    }
    let path = folder.path().join("audit.jsonl");
    assert!(load(&path).is_ok());
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_with_large_bodies_costs_no_other_team_its_lines() {
    const EACH: usize = 40;
    let (upstream, folder) = (Upstream::with_metadata().await, TempDir::new().unwrap());
    let (config, path) = config(&upstream, &folder);
    let gateway = config.set("teams.exports.token_sha256", sha256_hex("E")).start().await;
    // Small requests with large bodies.
    let values: Vec<String> = (0..60_000).map(|n| format!("value-{n:06}")).collect();
    let filter = json!({"field": "Conversation.Queue", "op": "IN", "values": values});
    let query = json!({"query": {
        "measures": ["Conversation.Count"],
        "filters": [{"op": "AND", "expressions": [filter]}],
    }});
    let large = post_to(QUERY, "Authorization: Bearer E\r\n", &query.to_string());
    let ask = async |request: &[u8]| {
        let mut client = gateway.connect().await;
        for _ in 0..EACH {
            assert_eq!(client.ask(request).await.status, 200);
        }
    };
    let small = post_to(QUERY, TOKEN, ASK);
    tokio::join!(ask(&large), ask(&large), ask(&small));
    gateway.stop().await;
    let lines = lines(&path);
    let of = |team: &str| lines.iter().filter(|line| line["team"] == team).count();
    assert_eq!((of("support"), of("exports")), (EACH, 2 * EACH));
    // Where there was not enough memory for all, a line without names is kept.
    for line in lines.iter().filter(|line| line["team"] == "exports") {
        let (named, cut) = (!line["fields"]["measures"].as_array().unwrap().is_empty(), line["fields"]["cut"] == true);
        assert_ne!(named, cut, "{line}");
    }
}
