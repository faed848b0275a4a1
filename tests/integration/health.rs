//! Health in three states: each failure is shown with its cause, logged once an episode, and ends when Twilio answers
//! again.

use std::fs;
use std::time::Duration;

use insights_gateway::config::Sources;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::certificate::Certificate;
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::process::{Process, set};
use crate::support::upstream::DeadPort;
use crate::support::*;

const ADMIN: &str = "token-of-the-admin-plane";

/// The binary in front of this upstream, with quick retries.
async fn process(url: &str, keys: &[(&str, &str)]) -> Process {
    let base = [
        ("upstream.url", url),
        ("retry.base", "1ms"),
        ("retry.max", "5ms"),
        ("circuit.consecutive", "1000"),
        ("circuit.ratio", "1.0"),
    ];
    Process::start(base.iter().chain(keys).map(|(key, value)| set(key, value)).collect()).await
}

async fn admin(process: &Process, path: &str) -> Answer {
    Client::connect(process.admin).await.ask(&get(path, "Connection: close\r\n")).await
}

/// The check of the only account's upstream. `/readyz` and `/status` must agree about it.
async fn upstream_check(process: &Process) -> Json {
    let ready = admin(process, "/readyz").await;
    let status = admin(process, "/status").await.json();
    let check = |page: &Json| {
        let checks = page["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == "upstream/default").unwrap().clone()
    };
    assert_eq!(ready.status, 200, "a failing upstream does not make the gateway not ready");
    let (told, listed) = (check(&ready.json()), check(&status));
    assert_eq!((&told["state"], &told["cause"]), (&listed["state"], &listed["cause"]));
    assert_eq!((&ready.json()["state"], &status["state"]), (&told["state"], &told["state"]));
    told
}

/// A query that is never answered from the cache.
fn unstored() -> Vec<u8> {
    post_to(QUERY, "Cache-Control: no-store\r\n", ASK)
}

/// Sends several queries that fail, and returns the check of the upstream, which is then degraded.
async fn degrades(process: &Process) -> Json {
    for _ in 0..3 {
        let status = process.ask(&unstored()).await.status;
        assert!(status >= 500, "{status}");
    }
    let check = upstream_check(process).await;
    assert_eq!((&check["state"], &check["ok"]), (&json!("degraded"), &json!(true)), "{check}");
    assert!(check["since"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{check}");
    assert!(check["runbook"].as_str().unwrap().starts_with("docs/runbook.md#"), "{check}");
    check
}

/// The log lines at which an episode begins or ends: their level and their cause, which is empty at the end.
fn episodes(log: &str) -> Vec<(String, String)> {
    let events = log.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let of = |event: Json| {
        let message = event["message"].as_str().unwrap_or_default();
        let is_one = message.starts_with("Twilio cannot be asked") || message.starts_with("Twilio answers again");
        let text = event["cause"].as_str().unwrap_or_default().to_owned();
        assert!(!message.starts_with("Twilio answers again") || event["failed_for_ms"].is_u64(), "{event}");
        is_one.then(|| (event["level"].as_str().unwrap().to_owned(), text))
    };
    events.filter_map(of).collect()
}

async fn log_of(process: Process) -> Vec<(String, String)> {
    process.signal("TERM");
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
    episodes(&log)
}

#[tokio::test]
async fn connection_failures_are_shown_with_their_class_and_logged_once() {
    let process = process("http://gateway.invalid:9", &[("upstream.connect_timeout", "15s")]).await;
    let cause = degrades(&process).await["cause"].as_str().unwrap().to_owned();
    assert!(cause.starts_with("DNS: gateway.invalid: "), "{cause}");
    assert_eq!(log_of(process).await, [("WARN".to_owned(), cause)]);
}

#[tokio::test]
async fn an_upstream_that_comes_back_ends_the_episode() {
    let dead = DeadPort::new();
    let address = dead.url().strip_prefix("http://").unwrap().to_owned();
    let process = process(&dead.url(), &[("circuit.consecutive", "1000")]).await;
    let before = upstream_check(&process).await;
    assert_eq!((&before["state"], &before["since"]), (&json!("ok"), &Json::Null), "no query was sent yet");
    let cause = degrades(&process).await["cause"].as_str().unwrap().to_owned();
    assert!(cause.starts_with(&format!("TCP: {address}: ")) && cause.contains("refused"), "{cause}");
    let upstream = dead.heal(|_| Plan::page(PAGE));
    process.ask(&unstored()).await.assert_page(PAGE, "bypass");
    assert_eq!(upstream_check(&process).await, json!({"check": "upstream/default", "ok": true, "state": "ok"}));
    // A second episode has lines of its own.
    upstream.set(|_| Plan::json(503, "{}"));
    assert_eq!(degrades(&process).await["cause"], "status: 503");
    upstream.heal(PAGE);
    process.ask(&unstored()).await.assert_page(PAGE, "bypass");
    let of = |level: &str, cause: &str| (level.to_owned(), cause.to_owned());
    let expected = [of("WARN", &cause), of("INFO", ""), of("WARN", "status: 503"), of("INFO", "")];
    assert_eq!(log_of(process).await, expected);
}

#[tokio::test]
async fn bad_answers_are_shown_with_their_class() {
    for (plan, expected) in [
        (Plan::silence(), "timeout: no answer within 200 ms"),
        (Plan::json(500, "{}"), "status: 500"),
        (Plan::page("<html>"), "invalid answer: Twilio answered 200 with something that is not JSON"),
        (Plan::reset(), "TCP: the connection broke before an answer came: "),
        (Plan::raw("SSH-2.0-x\r\n\r\n").then_close(), "invalid answer: not HTTP: "),
    ] {
        let upstream = Upstream::script(move |_| plan.clone()).await;
        let gateway = TestConfig::new(upstream.url()).set("upstream.attempt_timeout", "200ms").start().await;
        gateway.ask(&post(ASK)).await;
        let ready = gateway.admin("/readyz").await.json();
        let check = &ready["checks"][3];
        assert_eq!((&ready["state"], &check["check"]), (&json!("degraded"), &json!("upstream/default")));
        assert!(check["cause"].as_str().unwrap().starts_with(expected), "{expected}: {check}");
        upstream.heal(PAGE);
        gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
        assert_eq!(gateway.admin("/readyz").await.json()["state"], "ok", "{expected}");
    }
}

#[tokio::test]
async fn client_errors_of_the_upstream_do_not_degrade_health() {
    for status in [400, 404, 429] {
        let upstream = Upstream::script(move |_| Plan::json(status, "{}")).await;
        let gateway = TestConfig::new(upstream.url()).set("retry.attempts", "1").start().await;
        assert_eq!(gateway.ask(&post(ASK)).await.status, status);
        assert_eq!(gateway.admin("/readyz").await.json()["state"], "ok", "{status}");
    }
}

#[tokio::test]
async fn a_clients_short_wait_does_not_degrade_health() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let answer = gateway.ask(&post_to(QUERY, "Prefer: wait=1\r\n", ASK)).await;
    answer.assert_refused(504, "upstream_timeout");
    assert_eq!(gateway.admin("/readyz").await.json()["state"], "ok");
}

#[tokio::test]
async fn faults_of_the_upstreams_certificate_are_shown() {
    let day = |days: i64| {
        let date = (jiff::Timestamp::now() + Duration::from_secs(days.unsigned_abs() * 86_400))
            .to_zoned(jiff::tz::TimeZone::UTC);
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    let mut expired = Certificate::params(&["localhost", "127.0.0.1"]);
    (expired.not_before, expired.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 2, 2));
    let mut early = Certificate::params(&["localhost", "127.0.0.1"]);
    (early.not_before, early.not_after) = (day(10), day(20));
    let elsewhere = Certificate::params(&["elsewhere.example", "other.example"]);
    let good = Certificate::params(&["localhost", "127.0.0.1"]);
    for (params, is_trusted, expected) in [
        (expired, true, "TLS: the certificate of 127.0.0.1 expired 2020-02-02T00:00:00Z"),
        (early, true, "TLS: the certificate of 127.0.0.1 is not valid before "),
        (elsewhere, true, "TLS: the certificate is for elsewhere.example, other.example, not for 127.0.0.1"),
        (good, false, "TLS: an unknown authority signed the certificate of 127.0.0.1"),
    ] {
        let certificate = Certificate::made_of(&params);
        let upstream = Upstream::tls(certificate.server(), |_| Plan::page(PAGE)).await;
        let mut config = TestConfig::new(upstream.url());
        if is_trusted {
            config = config.set("upstream.ca_file", certificate.path("cert.pem"));
        }
        let gateway = config.start().await;
        gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
        let check = gateway.admin("/readyz").await.json()["checks"][3].clone();
        assert!(check["cause"].as_str().unwrap().starts_with(expected), "{expected}: {check}");
    }
}

#[tokio::test]
async fn an_upstream_without_tls_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 512];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let gateway = TestConfig::new(url).start().await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    let check = gateway.admin("/readyz").await.json()["checks"][3].clone();
    let cause = check["cause"].as_str().unwrap();
    assert!(cause.starts_with("TLS: 127.0.0.1:") && cause.contains("does not answer in TLS"), "{check}");
    server.abort();
}

#[tokio::test]
async fn a_proxy_that_refuses_is_recognised() {
    let proxy =
        Upstream::script(|_| Plan::raw("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").then_close()).await;
    let config = TestConfig::new("http://insights.example").set("upstream.proxy", proxy.url());
    let gateway = config.start().await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    let check = gateway.admin("/readyz").await.json()["checks"][3].clone();
    let expected = format!("proxy: the proxy {} answers CONNECT with 407", proxy.address);
    assert_eq!(check["cause"], json!(expected));
}

#[tokio::test]
async fn credentials_are_unknown_until_twilio_has_been_asked() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::json(400, "{}"),
        2 => Plan::page(PAGE),
        _ => Plan::json(403, "{}"),
    })
    .await;
    let gateway = TestConfig::new(upstream.url()).set("cache.errors.fresh", "0s").start().await;
    let credentials = async || gateway.admin("/status").await.json()["accounts"][0]["credentials"].clone();
    assert_eq!(credentials().await, "unknown");
    for (status, expected) in [(400, "unknown"), (200, "accepted"), (502, "rejected")] {
        assert_eq!(gateway.ask(&unstored()).await.status, status);
        assert_eq!(credentials().await, expected);
    }
    let ready = gateway.admin("/readyz").await;
    assert_eq!((ready.status, &ready.json()["state"]), (503, &json!("failing")));
    assert_eq!(ready.json()["checks"][2]["cause"], "status: 403");
    let status = gateway.admin("/status").await.json();
    assert_eq!(status["accounts"][0]["credentials_rejected_status"], 403);
    assert_eq!(status["errors"][0]["cause"], "status: 403");
    let excluded = gateway.admin("/readyz?exclude=credentials/default").await;
    assert_eq!((excluded.status, &excluded.json()["state"]), (200, &json!("ok")));
}

#[tokio::test]
async fn what_is_known_of_credentials_survives_a_reload_until_they_are_replaced() {
    let upstream = Upstream::script(|seen| match seen.number {
        1 => Plan::page(PAGE),
        2 => Plan::json(401, "{}"),
        _ => Plan::page(PAGE),
    })
    .await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("gateway.toml");
    let configure = |secret: &str| {
        let account = format!("account_sid = 'AC1'\napi_key = 'SK1'\napi_secret = '{secret}'\n");
        fs::write(&path, format!("[accounts.main]\n{account}")).unwrap();
    };
    configure("a-secret-of-twilio");
    let config = TestConfig::new(upstream.url()).without_account();
    let gateway = Gateway::start(config.sources().with_file(&path)).await;
    let credentials = async || {
        let (ready, status) = (gateway.admin("/readyz").await, gateway.admin("/status").await.json());
        let account = &status["accounts"][0];
        json!([ready.status, account["credentials"], account["credentials_rejected_status"]])
    };
    let mut reloads = 0.0;
    let mut reload = async || {
        reloads += 1.0;
        gateway.reload.notify_one();
        gateway.metric_reaches("reloads_total", &["applied"], reloads).await;
    };
    assert_eq!(gateway.ask(&unstored()).await.status, 200);
    reload().await;
    assert_eq!(credentials().await, json!([200, "accepted", null]), "the same as before");
    assert_eq!(gateway.ask(&unstored()).await.status, 502);
    reload().await;
    assert_eq!(credentials().await, json!([503, "rejected", 401]), "Twilio rejects these");
    configure("another-secret-of-twilio");
    reload().await;
    assert_eq!(credentials().await, json!([200, "unknown", null]), "Twilio has not seen these yet");
    assert_eq!(gateway.ask(&unstored()).await.status, 200);
    assert_eq!(credentials().await, json!([200, "accepted", null]));
}

#[tokio::test]
async fn the_log_says_with_which_status_twilio_rejects_credentials() {
    let upstream = Upstream::script(|_| Plan::json(401, "{}")).await;
    let mut process = process(&upstream.url(), &[]).await;
    process.ask(&post(ASK)).await.assert_refused(502, "upstream_rejected_credentials");
    let line = process.says(|event| event["status"] == 401 && event["level"] == "ERROR").await;
    assert!(line["message"].as_str().unwrap().contains("with 401"), "{line}");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn a_disk_cache_that_does_not_work_says_since_when_and_why() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let process = process(&upstream.url(), &[("cache.disk.path", file.to_str().unwrap())]).await;
    let check = poll("a fault of the disk", || async {
        let ready = admin(&process, "/readyz").await.json();
        let check = ready["checks"].as_array().unwrap().iter().find(|check| check["check"] == "disk").unwrap().clone();
        assert_eq!((&check["state"], check["since"].is_string()), (&json!("degraded"), true), "at every time: {check}");
        assert!(check["cause"].is_string(), "{check}");
        check["cause"].as_str().unwrap().contains("exists").then_some(check)
    })
    .await;
    assert!(check["since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap() <= jiff::Timestamp::now(), "{check}");
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_has_been_a_fault_since_it_is_in_use() {
    let mut params = Certificate::params(&["localhost", "127.0.0.1"]);
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2090, 1, 1), rcgen::date_time_ymd(2091, 1, 1));
    let (upstream, certificate) = (Upstream::start().await, Certificate::made_of(&params));
    let before = jiff::Timestamp::now() - Duration::from_secs(1);
    let config = TestConfig::new(upstream.url())
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"));
    let gateway = config.start().await;
    let ready = gateway.admin("/readyz").await.json();
    let check = ready["checks"].as_array().unwrap().iter().find(|check| check["check"] == "certificate").unwrap();
    assert_eq!((&ready["state"], &check["state"]), (&json!("degraded"), &json!("degraded")));
    let since: jiff::Timestamp = check["since"].as_str().unwrap().parse().unwrap();
    assert!(since >= before && since <= jiff::Timestamp::now(), "{check}");
    assert!(check["detail"].as_str().unwrap().contains("not valid before 2090-01-01"), "{check}");
}

#[tokio::test]
async fn without_a_token_only_states_are_shown() {
    let dead = DeadPort::new();
    let gateway = TestConfig::new(dead.url()).set("admin.token_sha256", sha256_hex(ADMIN)).start().await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    let ask = async |header: &str| gateway.ask_admin(&get("/readyz", header)).await;
    for (exclude, state) in [("upstream", "ok"), ("upstream/default", "degraded"), ("upstream/other", "degraded")] {
        let ready = gateway.ask_admin(&get(&format!("/readyz?exclude={exclude}"), "")).await;
        assert_eq!(ready.json()["state"], state, "no guess of a name is confirmed: {exclude}");
    }
    for header in ["", "Authorization: Bearer wrong\r\n"] {
        let ready = ask(header).await;
        assert_eq!(
            (ready.status, &ready.json()["ready"], &ready.json()["state"]),
            (200, &json!(true), &json!("degraded"))
        );
        let states: Vec<_> = ready.json()["checks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|check| {
                let members: Vec<_> = check.as_object().unwrap().keys().cloned().collect();
                (check["check"].as_str().unwrap().to_owned(), check["state"].as_str().unwrap().to_owned(), members)
            })
            .collect();
        let of = |check: &str, state: &str, members: &[&str]| {
            (check.to_owned(), state.to_owned(), members.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        let bare = ["check", "ok", "state"];
        let expected = [
            of("serving", "ok", &bare),
            of("configuration", "ok", &bare),
            of("credentials", "ok", &bare),
            of("upstream", "degraded", &["check", "ok", "since", "state"]),
        ];
        assert_eq!(states, expected);
        let text = ready.text();
        assert!(!text.contains("default") && !text.contains("127.0.0.1") && !text.contains("TCP"), "{text}");
    }
    let told = ask(&format!("Authorization: Bearer {ADMIN}\r\n")).await.json();
    assert!(told["checks"][3]["cause"].as_str().unwrap().starts_with("TCP: 127.0.0.1"), "{told}");
}

#[tokio::test]
async fn a_certificate_that_expires_soon_degrades_health_until_it_is_replaced() {
    let upstream = Upstream::start().await;
    let now = jiff::Timestamp::now();
    let until = |days: i64| {
        let date = (now + Duration::from_secs(u64::try_from(days).unwrap() * 86_400)).to_zoned(jiff::tz::TimeZone::UTC);
        (date.year(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    let certificate = |days: i64| {
        let (year, month, day) = until(days);
        let mut params = Certificate::params(&["localhost", "127.0.0.1"]);
        params.not_after = rcgen::date_time_ymd(year.into(), month, day);
        Certificate::made_of(&params)
    };
    let soon = certificate(10);
    let config = TestConfig::new(upstream.url())
        .set("server.tls.cert", soon.path("cert.pem"))
        .set("server.tls.key", soon.path("key.pem"));
    let gateway = config.start().await;
    let ready = gateway.admin("/readyz").await;
    let check = ready.json()["checks"][2].clone();
    assert_eq!((ready.status, &ready.json()["state"]), (200, &json!("degraded")));
    assert_eq!((&check["check"], &check["state"]), (&json!("certificate"), &json!("degraded")));
    let (year, month, day) = until(10);
    assert!(
        check["detail"].as_str().unwrap().contains(&format!("ends {year}-{month:02}-{day:02}T00:00:00Z")),
        "{check}"
    );
    let metric = async || gateway.metric("listener_certificate_expiry_timestamp_seconds", &[]).await;
    let midnight = |days| {
        let (year, month, day) = until(days);
        let text = format!("{year}-{month:02}-{day:02}T00:00:00Z");
        text.parse::<jiff::Timestamp>().unwrap().as_second() as f64
    };
    assert_eq!(metric().await, midnight(10));
    assert_eq!(gateway.metric("health_state", &[]).await, 1.0);
    let later = certificate(100);
    for name in ["cert.pem", "key.pem"] {
        fs::copy(later.path(name), soon.path(name)).unwrap();
    }
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["applied"], 1.0).await;
    assert_eq!(gateway.admin("/readyz").await.json()["state"], "ok");
    assert_eq!(metric().await, midnight(100));
}

#[tokio::test]
async fn tokens_that_expire_soon_degrade_health_and_have_a_metric() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let path = folder.path().join("gateway.toml");
    let ends = |days: u64| jiff::Timestamp::now() + Duration::from_secs(days * 86_400);
    let (soon, later) = (ends(3), ends(100));
    let entry =
        |token: &str, ends: jiff::Timestamp| format!("{{ sha256 = '{}', expires = '{ends}' }}", sha256_hex(token));
    let text = format!(
        "[server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n[upstream]\nurl = '{}'\n\
         [accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\n\
         [teams.a]\ntoken_sha256 = ['{}']\n[teams.b]\ntoken_sha256 = [{}, {}]\n[teams.c]\ntoken_sha256 = [{}]\n",
        upstream.url(),
        sha256_hex("a"),
        entry("b", soon),
        entry("b2", later),
        entry("c", later),
    );
    fs::write(&path, text).unwrap();
    let gateway = Gateway::start(Sources::default().with_file(&path)).await;
    let ready = gateway.admin("/readyz").await.json();
    let tokens: Vec<_> = ready["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["check"].as_str().unwrap().starts_with("token/"))
        .map(|check| (check["check"].as_str().unwrap(), check["state"].as_str().unwrap()))
        .collect();
    assert_eq!(tokens, [("token/b", "degraded"), ("token/c", "ok")]);
    assert_eq!(ready["state"], "degraded");
    let name = "team_token_expiry_timestamp_seconds";
    for (team, expected) in [("\"a\"", 0.0), ("\"b\"", soon.as_second() as f64), ("\"c\"", later.as_second() as f64)] {
        assert_eq!(gateway.metric(name, &[team]).await, expected, "{team}");
    }
}

#[tokio::test]
async fn each_account_has_its_own_health() {
    // The `Authorization` of `SK1:s`.
    let upstream = Upstream::script(|seen| match seen.header("authorization") {
        Some("Basic U0sxOnM=") => Plan::page(PAGE),
        _ => Plan::json(503, "{}"),
    })
    .await;
    let text = "[accounts.main]\naccount_sid = 'AC1'\napi_key = 'SK1'\napi_secret = 's'\n\
                [accounts.other]\naccount_sid = 'AC2'\napi_key = 'SK2'\napi_secret = 's'\n";
    let team = |name: &str, account: &str| {
        format!("[teams.{name}]\naccount = '{account}'\ntoken_sha256 = ['{}']\n", sha256_hex(name))
    };
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("gateway.toml");
    fs::write(&path, format!("{text}{}{}", team("a", "main"), team("b", "other"))).unwrap();
    let config = TestConfig::new(upstream.url()).without_account();
    let gateway = Gateway::start(config.sources().with_file(&path)).await;
    for (team, status) in [("a", 200), ("b", 503)] {
        let authorization = format!("Authorization: Bearer {team}\r\n");
        assert_eq!(gateway.ask(&post_to(QUERY, &authorization, ASK)).await.status, status);
    }
    let checks = gateway.admin("/readyz").await.json()["checks"].clone();
    let states = checks.as_array().unwrap()[2..].iter().map(|check| json!([check["check"], check["state"]]));
    let expected = [
        json!(["credentials/main", "ok"]),
        json!(["upstream/main", "ok"]),
        json!(["credentials/other", "ok"]),
        json!(["upstream/other", "degraded"]),
    ];
    assert_eq!(states.collect::<Vec<_>>(), expected);
}
