//! `insights-gateway status --watch`, tested with the binary.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::*;

#[tokio::test]
async fn a_watch_asks_again_until_its_output_is_closed() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let url = format!("--url=http://{}", gateway.admin);
    let watched = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
        command.args(["status", "--watch", &url]).env_clear().stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let is_first = |line: &String| line.starts_with("insights-gateway ") && line.contains(", up ");
        let looks = lines.filter(is_first).take(2).count();
        // Its output is closed now.
        (looks, child.wait_with_output().unwrap())
    });
    let (looks, ended) = within(watched).await.unwrap();
    assert_eq!((looks, ended.status.code(), ended.stderr.as_slice()), (2, Some(0), &b""[..]));
}

#[tokio::test]
async fn the_last_minute_counts_every_refusal_at_once_and_with_its_reason() {
    let upstream = Upstream::script(|_| Plan::reset()).await;
    let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
    // More than the errors that are remembered.
    for _ in 0..60 {
        gateway.ask(&post("nonsense")).await.assert_refused(400, "invalid_json");
    }
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    let minute = gateway.admin("/status").await.json()["last_minute"].clone();
    assert_eq!((&minute["requests"]["refused"], &minute["requests"]["failed"]), (&60.into(), &1.into()), "{minute}");
    let reasons = serde_json::json!([
        {"reason": "invalid_json", "count": 60},
        {"reason": "upstream_unreachable", "count": 1},
    ]);
    assert_eq!(minute["reasons"], reasons);
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.args(["status", &format!("--url=http://{}", gateway.admin)]).env_clear().stdin(Stdio::null());
    let ended = within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    let page = String::from_utf8(ended.stdout).unwrap();
    assert!(page.contains("last minute: 61 requests") && page.contains("refused 60, failed 1"), "{page}");
    assert!(page.contains("why: invalid_json 60, upstream_unreachable 1"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 72), "{page}");
}

#[tokio::test]
async fn a_rate_is_shown_in_the_unit_of_the_configuration() {
    let upstream = Upstream::start().await;
    let account = |key: &str| format!("accounts.default.{key}");
    let gateway = TestConfig::new(upstream.url()).set(&account("rate"), "300/min").start().await;
    let shown = gateway.admin("/status").await.json()["accounts"][0].clone();
    assert_eq!((&shown["rate"], &shown["rate_now"]), (&"300/min".into(), &"300/min".into()), "{shown}");
}

#[tokio::test]
async fn a_watch_without_a_gateway_does_not_begin() {
    let dead = crate::support::upstream::DeadPort::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.args(["status", "--watch", &format!("--url={}", dead.url())]).env_clear().stdin(Stdio::null());
    let ended = within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(1));
}
