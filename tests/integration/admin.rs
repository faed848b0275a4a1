//! The admin plane as scripts and people use it: health, status, and the command that prints it.

use std::process::{Command, Output, Stdio};

use crate::support::*;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

const TOKEN: &str = "igw_admin-token-of-the-tests";

/// Where two values differ in structure: in their members, or in their types where neither is null.
fn differences(at: &str, one: &Json, other: &Json) -> Vec<String> {
    match (one, other) {
        (Json::Null, _) | (_, Json::Null) => Vec::new(),
        (Json::Object(ones), Json::Object(others)) => {
            let missing = ones.keys().filter(|key| !others.contains_key(*key));
            let extra = others.keys().filter(|key| !ones.contains_key(*key));
            let named = missing.chain(extra).map(|key| format!("{at}.{key} is in one alone"));
            let common = ones.iter().filter_map(|(key, one)| Some((format!("{at}.{key}"), one, others.get(key)?)));
            named.chain(common.flat_map(|(at, one, other)| differences(&at, one, other))).collect()
        }
        (Json::Array(ones), Json::Array(others)) => match (ones.first(), others.first()) {
            (Some(one), Some(other)) => differences(&format!("{at}[]"), one, other),
            _ => Vec::new(),
        },
        _ if std::mem::discriminant(one) == std::mem::discriminant(other) => Vec::new(),
        _ => vec![format!("{at}: {one} and {other}")],
    }
}

#[tokio::test]
async fn status_has_the_documented_shape() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let config = TestConfig::new(upstream.url())
        .set("accounts.default.rate", "5/s")
        .set("cache.disk.path", folder.path().display().to_string())
        .set("teams.dashboards.token_sha256", sha256_hex("any"))
        .set("teams.dashboards.requests", "200/s")
        .set("teams.dashboards.upstream", "2/s");
    let gateway = config.start().await;
    let status = gateway.admin("/status").await;
    assert_eq!((status.status, status.header("content-type")), (200, "application/json"));
    let page = include_str!("../../docs/admin.md").split("## The format of /status").nth(1).unwrap();
    let documented = page.split("```json").nth(1).unwrap().split("```").next().unwrap();
    let documented: Json = serde_json::from_str(documented).unwrap();
    assert_eq!(differences("", &documented, &status.json()), [""; 0]);
    assert!(status.json()["started_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
}

#[tokio::test]
async fn health_has_one_line_a_check() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::json(401, "{}"),
        _ => Plan::page(PAGE),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let live = gateway.admin("/livez").await;
    assert_eq!((live.status, live.header("content-type")), (200, "application/json"));
    assert_eq!((&live.json()["live"], &live.json()["checks"][0]["ok"]), (&json!(true), &json!(true)));

    let ready = gateway.admin("/readyz").await;
    assert_eq!(ready.status, 200);
    let expected = json!([
        {"check": "serving", "ok": true, "state": "ok"},
        {"check": "configuration", "ok": true, "state": "ok"},
        {"check": "credentials/default", "ok": true, "state": "ok",
         "detail": "unknown: nobody has asked Twilio with these credentials yet"},
        {"check": "upstream/default", "ok": true, "state": "ok"},
    ]);
    assert_eq!(ready.json(), json!({"ready": true, "state": "ok", "checks": expected}));
    let lines: Vec<Json> =
        ready.text().lines().filter_map(|line| serde_json::from_str(line.trim_end_matches(',')).ok()).collect();
    assert_eq!(Json::from(lines), expected);

    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_rejected_credentials");
    assert_eq!(gateway.metric("credentials_rejected", &["default"]).await, 1.0);
    let wrong = gateway.admin("/readyz").await;
    assert_eq!(wrong.status, 503);
    let check = &wrong.json()["checks"][2];
    assert_eq!(check["ok"], false);
    assert!(check["detail"].as_str().unwrap().contains("replace its key"), "{check}");
    assert!(check["since"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{check}");
    let status = gateway.admin("/status").await.json();
    assert_eq!((&status["ready"], &status["checks"][2]["since"]), (&json!(false), &check["since"]));
}

#[tokio::test]
async fn a_failing_upstream_is_reported_and_the_gateway_stays_ready() {
    let upstream = Upstream::script(|_| Plan::json(503, "{}")).await;
    let config = TestConfig::new(upstream.url()).set("circuit.consecutive", "1").set("retry.attempts", "1");
    let gateway = config.start().await;
    // If only one query failed, that could be the query's fault.
    for n in 0..3 {
        gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
    }
    let ready = gateway.admin("/readyz").await;
    let check = &ready.json()["checks"][3];
    assert_eq!((ready.status, &check["check"], &check["ok"]), (200, &json!("upstream/default"), &json!(true)));
    assert!(check["detail"].as_str().unwrap().contains("probes") && check["since"].is_string(), "{check}");
    assert_eq!((&check["state"], &check["cause"]), (&json!("degraded"), &json!("status: 503")));
    assert_eq!(gateway.metric("circuit_state", &["default"]).await, 2.0);
}

#[tokio::test]
async fn a_refused_configuration_is_reported_and_the_gateway_stays_ready() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, "[retry]\nattempts = 2\n").unwrap();
    let sources = TestConfig::new(upstream.url()).sources().with_file(file.clone());
    let gateway = Gateway::start(sources).await;
    std::fs::write(&file, "[retry]\nattmpts = 2\n").unwrap();
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["refused"], 1.0).await;
    let ready = gateway.admin("/readyz").await;
    let check = &ready.json()["checks"][1];
    assert_eq!((ready.status, &check["ok"], &check["state"]), (200, &json!(true), &json!("degraded")));
    assert!(check["detail"].as_str().unwrap().contains("refused") && check["since"].is_string(), "{check}");
    assert!(check["cause"].as_str().unwrap().contains("retry.attmpts: unknown key"), "{check}");
    let status = gateway.admin("/status").await.json();
    assert!(status["configuration"]["faults"][0].as_str().unwrap().contains("retry.attmpts: unknown key"), "{status}");

    std::fs::write(&file, "[retry]\nattempts = 3\n").unwrap();
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["applied"], 1.0).await;
    let status = gateway.admin("/status").await.json();
    assert_eq!(status["configuration"], json!({"refused_since": null, "faults": []}));
}

/// Runs the command in its own thread, because the gateway under test uses this one.
async fn status(arguments: &[String], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.arg("status").args(arguments).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[tokio::test]
async fn the_command_prints_it_for_people_and_for_scripts() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("accounts.default.rate", "5/s").start().await;
    let url = format!("--url=http://{}", gateway.admin);
    let (code, page, errors) = status(std::slice::from_ref(&url), &[]).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let first = page.lines().next().unwrap();
    let up = format!("insights-gateway {}, up ", env!("CARGO_PKG_VERSION"));
    assert!(first.starts_with(&up) && first.ends_with(" s, ok"), "{page}");
    assert!(page.contains("\ndefault  unknown  closed   5.0/5   5/s   0/10  0     -"), "{page}");
    let listen = gateway.admin.to_string();
    let (code, json, _) = status(&["--json".to_owned()], &[("INSIGHTS_GATEWAY_ADMIN__LISTEN", &listen)]).await;
    let json: Json = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["accounts"][0]["name"]), (Some(0), &json!("default")));
}

#[tokio::test]
async fn the_command_shows_the_token_that_it_is_given() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("admin.token_sha256", sha256_hex(TOKEN)).start().await;
    let url = format!("--url=http://{}", gateway.admin);
    let (code, page, errors) = status(std::slice::from_ref(&url), &[]).await;
    assert_eq!((code, page.as_str()), (Some(1), ""));
    assert!(errors.contains("INSIGHTS_GATEWAY_ADMIN_TOKEN"), "{errors}");
    let (code, _, errors) = status(std::slice::from_ref(&url), &[("INSIGHTS_GATEWAY_ADMIN_TOKEN", TOKEN)]).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let (code, _, errors) = status(&[url.clone(), format!("--token={TOKEN}x")], &[]).await;
    assert!(code == Some(1) && !errors.contains(TOKEN), "{errors}");
    let (code, _, errors) = status(&[url, "--token=a b".to_owned()], &[]).await;
    assert!(code == Some(64) && errors.contains("visible characters"), "{errors}");
}

#[tokio::test]
async fn a_missing_admin_plane_is_reported() {
    let dead = crate::support::upstream::DeadPort::new();
    let (code, page, errors) = status(&[format!("--url={}", dead.url())], &[]).await;
    assert_eq!((code, page.as_str()), (Some(1), ""));
    assert!(errors.contains("no answer"), "{errors}");
}
