//! What a purge drops, and who may purge. After a purge no client gets a response that was requested before it, and no
//! restart brings it back.

use std::process::Command;

use crate::support::process::{self, Process, set};
use crate::support::*;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tempfile::TempDir;

const OLD: &str = r#"{"cubes":[],"data":[],"meta":{"page":"old"}}"#;
const NEW: &str = r#"{"cubes":[],"data":[],"meta":{"page":"new"}}"#;

async fn purge(admin: std::net::SocketAddr, which: &str) -> Answer {
    let length = which.len();
    let request = format!("POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{which}");
    Client::connect(admin).await.ask(request.as_bytes()).await
}

fn key_of(answer: &Answer) -> String {
    let (_, rest) = answer.header("cache-status").split_once("key=\"").unwrap();
    rest.trim_end_matches('"').to_owned()
}

#[tokio::test]
async fn a_client_that_asks_after_a_purge_joins_no_earlier_call() {
    for scope in ["all", "account", "operation", "key"] {
        for (request, operation) in [
            (post(ASK), "query"),
            (get(METADATA, ""), "metadata"),
            (post_to(QUERY, "Cache-Control: no-cache\r\n", ASK), "query"),
            (get(&format!("{QUERY}?pageToken=a"), ""), "page"),
        ] {
            let upstream = Upstream::start().await;
            let gateway = TestConfig::new(upstream.url()).start().await;
            let key = key_of(&gateway.ask(&request).await);
            assert_eq!(purge(gateway.admin, r#"{"all":true}"#).await.json()["purged"], 1);
            let gate = Gate::default();
            let held = Plan::page(OLD).after(&gate);
            upstream.set(move |_| held.clone());
            let mut before = gateway.connect().await;
            before.send(&request).await;
            upstream.arrived(2).await;
            let which = match scope {
                "all" => r#"{"all":true}"#.to_owned(),
                "account" => r#"{"account":"default"}"#.to_owned(),
                "operation" => format!("{{\"operation\":\"{operation}\"}}"),
                _ => format!("{{\"key\":\"{key}\"}}"),
            };
            assert_eq!(purge(gateway.admin, &which).await.status, 200, "{which}");
            upstream.heal(NEW);
            gateway.ask(&request).await.assert_page(NEW, "miss");
            gate.open();
            // A client that asked before the purge may get its response; no other client does.
            assert_eq!(before.answer().await.text(), OLD, "{which}");
            let plain = if operation == "query" { post(ASK) } else { request };
            gateway.ask(&plain).await.assert_page(NEW, "hit");
            assert_eq!(upstream.count(), 3);
        }
    }
}

#[tokio::test]
async fn a_head_after_a_purge_is_not_answered_by_a_get_from_before_it() {
    let gate = Gate::default();
    let held = Plan::page(OLD).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut before = gateway.connect().await;
    before.send(&get(METADATA, "")).await;
    upstream.arrived(1).await;
    assert_eq!(purge(gateway.admin, r#"{"operation":"metadata"}"#).await.status, 200);
    upstream.heal("{\"cubes\":[],\"a\":\"longer page\",\"meta\":{\"page\":\"new\"}}");
    let head = format!("HEAD {METADATA} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = gateway.ask(head.as_bytes()).await;
    assert_eq!((answer.detail(), answer.header("content-length")), ("miss", "52"));
    gate.open();
    assert_eq!(before.answer().await.text(), OLD);
}

#[tokio::test]
async fn a_purge_of_something_else_costs_no_call() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut before = gateway.connect().await;
    before.send(&post(ASK)).await;
    upstream.arrived(1).await;
    assert_eq!(purge(gateway.admin, r#"{"operation":"metadata"}"#).await.json()["purged"], 0);
    let mut after = gateway.connect().await;
    after.send(&post(ASK)).await;
    gateway.settle().await;
    gate.open();
    before.answer().await.assert_page(PAGE, "miss");
    after.answer().await.assert_page(PAGE, "collapsed");
    assert_eq!(upstream.count(), 1);
}

/// A process with a disk tier that has stored the page of [`ASK`] on the disk.
async fn with_page_on_disk(mut command: Command, upstream: &Upstream, folder: &TempDir) -> Process {
    command.args(process::quiet(arguments(upstream, folder)));
    let process = Process::spawn(command).await;
    process.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    poll("the page on the disk", || async {
        let entries = process.metric("insights_gateway_cache_disk_entries").await;
        (entries.as_deref() == Some("1")).then_some(())
    })
    .await;
    process
}

fn arguments(upstream: &Upstream, folder: &TempDir) -> Vec<String> {
    let path = folder.path().join("pages").display().to_string();
    vec![set("upstream.url", &upstream.url()), set("cache.disk.path", &path), set("cache.query.fresh", "1h")]
}

fn command(program: &str) -> Command {
    let mut command = process::command(&[]);
    if program != "serve" {
        // The same program and arguments, started by a shell.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", program, command.get_program().to_str().unwrap()]);
        shell.args(command.get_args()).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command = shell;
    }
    command
}

#[tokio::test]
async fn a_kill_right_after_a_purge_brings_no_page_back() {
    for which in [r#"{"all":true}"#, r#"{"account":"default"}"#, r#"{"operation":"query"}"#] {
        let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
        let process = with_page_on_disk(command("serve"), &upstream, &folder).await;
        assert_eq!(purge(process.admin, which).await.json()["purged"], 1);
        process.signal("KILL");
        process.ended().await;
        let again = Process::start(arguments(&upstream, &folder)).await;
        again.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    }
}

#[tokio::test]
async fn a_purge_on_a_full_disk_is_not_undone_by_a_restart() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    // Writing beyond the limit then returns an error, as on a full disk, instead of a signal that ends the process.
    let process = with_page_on_disk(command("trap '' XFSZ; exec \"$0\" \"$@\""), &upstream, &folder).await;
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    assert_eq!(purge(process.admin, r#"{"all":true}"#).await.json()["purged"], 1);
    process.signal("KILL");
    process.ended().await;
    let again = Process::start(arguments(&upstream, &folder)).await;
    again.ask(&post(ASK)).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn without_a_purge_the_page_survives_the_kill() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let process = with_page_on_disk(command("serve"), &upstream, &folder).await;
    process.signal("KILL");
    process.ended().await;
    let again = Process::start(arguments(&upstream, &folder)).await;
    again.ask(&post(ASK)).await.assert_page(PAGE, "hit");
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
