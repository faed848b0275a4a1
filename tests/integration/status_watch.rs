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
async fn a_watch_without_a_gateway_does_not_begin() {
    let dead = crate::support::upstream::DeadPort::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.args(["status", "--watch", &format!("--url={}", dead.url())]).env_clear().stdin(Stdio::null());
    let ended = within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(1));
}
