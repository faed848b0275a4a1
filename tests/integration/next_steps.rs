//! Messages about failures at the edges say what to do next: to the client if possible, otherwise in the log, and only
//! once.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value as Json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::certificate::Certificate;
use crate::support::gateway::SECRET;
use crate::support::openapi::Document;
use crate::support::process::{Process, command, quiet, set};
use crate::support::*;

/// The log lines whose message contains `part`, each with its level.
fn lines(log: &str, part: &str) -> Vec<(String, Json)> {
    let events = log.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let said = events.filter(|event| event["message"].as_str().unwrap_or_default().contains(part));
    said.map(|event| (event["level"].as_str().unwrap().to_owned(), event)).collect()
}

async fn log_of(process: Process) -> String {
    process.signal("TERM");
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
    log
}

#[tokio::test]
async fn plain_http_on_a_tls_listener_gets_an_explanation() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    let config = TestConfig::new(upstream.url())
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"));
    let gateway = config.start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let large = post(&format!("{{\"query\":{{\"measures\":[\"{}\"]}}}}", "a".repeat(40_000)));
    for request in [get(METADATA, ""), post(ASK), large, preface] {
        let answer = gateway.ask(&request).await;
        answer.assert_refused(400, "bad_request");
        assert!(answer.text().contains("use https://"), "{answer:?}");
        assert_eq!(answer.header("connection"), "close");
    }
    // Bytes that are neither TLS nor HTTP are refused as before, and TLS still works.
    let mut other = TcpStream::connect(gateway.data).await.unwrap();
    other.write_all(b"\0\x01\x02\x03\x04\x05").await.unwrap();
    let stream = certificate.connect(gateway.data, &["http/1.1"]).await;
    Client::over(stream).ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn tls_on_a_plain_http_listener_is_logged_once_a_minute() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    let process = Process::start(vec![set("upstream.url", &upstream.url())]).await;
    for _ in 0..3 {
        let stream = TcpStream::connect(process.data).await.unwrap();
        assert!(certificate.shake(stream, &[], None).await.is_err());
    }
    process.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    let log = log_of(process).await;
    let said = lines(&log, "speaks TLS to a listener of plain HTTP");
    assert_eq!(said.len(), 1, "{log}");
    assert!(said[0].0 == "WARN" && said[0].1["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{said:?}");
}

#[tokio::test]
async fn a_log_filter_is_reloaded() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let file = folder.path().join("gateway.toml");
    fs::write(&file, "[log]\nfilter = 'info'\n").unwrap();
    let arguments = quiet(vec![set("upstream.url", &upstream.url()), format!("--config={}", file.display())]);
    let mut process = Process::spawn(command(&arguments)).await;
    let ask = async |process: &Process, n: u32| process.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
    ask(&process, 1).await.assert_page(PAGE, "miss");
    for (n, filter) in [(2, "debug"), (3, "off"), (4, "debug")] {
        fs::write(&file, format!("[log]\nfilter = '{filter}'\n")).unwrap();
        process.signal("HUP");
        let applied = (n - 1).to_string();
        poll("the reload", || async {
            let count = process.metric("insights_gateway_reloads_total{result=\"applied\"}").await;
            (count? == applied).then_some(())
        })
        .await;
        ask(&process, n).await.assert_page(PAGE, "miss");
    }
    process.says(|event| event["message"] == "upstream attempt").await;
    let log = log_of(process).await;
    assert_eq!(lines(&log, "upstream attempt").len(), 2, "of the second and of the fourth: {log}");
    assert!(lines(&log, "this cannot change while the gateway runs").is_empty(), "{log}");
}

#[tokio::test]
async fn a_misspelt_path_gets_the_right_one_and_is_never_repeated() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for (path, part) in [
        (format!("/v3{QUERY}"), "take /v3 off the end of the client's base URL: set"),
        (
            format!("/v3{QUERY}"),
            "base URL to http://localhost, so that it asks for http://localhost/v3/InsightsDomains/Conversations/Query",
        ),
        ("/v3".to_owned(), "set the client's base URL to http://localhost, so"),
        ("/v3/".to_owned(), "asks for http://localhost/v3/InsightsDomains/Conversations/Metadata, for example"),
        ("/v3/InsightsDomains/Conversations".to_owned(), "set the client's base URL to http://localhost, so"),
        (format!("/xscript{METADATA}"), "something in front of /v3; set the client's base URL to http://localhost, so"),
        (format!("/v3/InsightsDomains{QUERY}"), "asks for http://localhost/v3/InsightsDomains/Conversations/Query"),
        (QUERY.to_lowercase(), "did you mean /v3/InsightsDomains/Conversations/Query,"),
        (format!("{METADATA}/"), "did you mean /v3/InsightsDomains/Conversations/Metadata,"),
        (
            "/v3/InsightsDomains/Voice/<script>".replace(['<', '>'], "x"),
            "set the client's base URL to http://localhost, so",
        ),
    ] {
        let answer = gateway.ask(&get(&path, "")).await;
        answer.assert_refused(404, "not_found");
        assert!(answer.text().contains(part) && !answer.text().contains("xscript"), "{answer:?}");
    }
    let nameless = gateway.ask(b"GET /v3 HTTP/1.0\r\n\r\n").await;
    assert!(nameless.text().contains("set the client's base URL to http://HOST:PORT, so"), "{nameless:?}");
    assert_eq!(upstream.count(), 0);
    let public = "https://insights.example/api";
    let behind = TestConfig::new(upstream.url()).set("server.public_url", public).start().await;
    let answer = behind.ask(&get("/v3", "")).await;
    assert!(answer.text().contains("set the client's base URL to https://insights.example/api, so"), "{answer:?}");
}

/// A path of the other port is not found, and the message says which port has it.
#[tokio::test]
async fn each_port_says_which_paths_the_other_one_has() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let document = Document::of(&gateway, "").await;
    let paths = document.json()["paths"].as_object().unwrap().keys();
    let (of_data, of_admin): (Vec<_>, Vec<_>) =
        paths.partition(|path| path.starts_with("/v3/") || path.starts_with("/_gateway/"));
    assert!(of_data.len() > 5 && of_admin.len() > 10, "{of_data:?} {of_admin:?}");
    for path in of_admin {
        let answer = gateway.ask(&get(path, "")).await;
        answer.assert_refused(404, "not_found");
        assert!(answer.text().contains("on the admin plane's port, which is admin.listen"), "{path}: {answer:?}");
    }
    for path in of_data {
        for request in [get(path, ""), post_to(path, "", ASK)] {
            let answer = gateway.ask_admin(&request).await;
            let expected =
                format!("this is the admin plane's port; Twilio's API is on the data plane's: http://{}", gateway.data);
            assert_eq!((answer.status, &answer.json()["error"]), (404, &expected.into()), "{path}");
        }
    }
    for (path, part) in
        [("/v3", "data plane's: http://"), ("/v3x", "the admin plane has /,"), ("/v30/x", "the admin plane has /,")]
    {
        let answer = gateway.ask_admin(&get(path, "")).await;
        assert!(answer.status == 404 && answer.text().contains(part), "{path}: {answer:?}");
    }
    assert_eq!(upstream.count(), 0);

    // A team's token is wrong here. The address of the other port is told only to those who show the right one.
    let closed = TestConfig::new(upstream.url()).set("admin.token_sha256", sha256_hex("right")).start().await;
    for header in ["", "Authorization: Bearer of-a-team\r\n", "Authorization: Basic ZGFzaGJvYXJkczp0b2tlbg==\r\n"] {
        let answer = closed.ask_admin(&get(METADATA, header)).await;
        assert_eq!(answer.status, 401);
        assert!(answer.text().contains("on the data plane's port, which is server.listen"), "{answer:?}");
        assert!(!answer.text().contains(&closed.data.port().to_string()), "{answer:?}");
    }
    assert_eq!(closed.ask_admin(&get(METADATA, "Authorization: Bearer right\r\n")).await.status, 404);
}

#[tokio::test]
async fn faults_in_the_explorers_json_are_placed_in_what_the_user_sent() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for (body, expected) in [
        // Each is read by the explorer, but not by the data plane.
        ("{\"team\":\"local\",\n \"query\":{\"measures\":[],\n   \"measures\":[]}}", "line 3, column 4"),
        ("{\"team\":\"local\",\n\n \"query\":{\"measures\":[\"\\ud800\"]}}", "line 3, column 26"),
        ("{\"team\":\"local\",\n \"query\":[}", "line 2, column 11"),
    ] {
        for path in ["/explorer/query", "/explorer/cost"] {
            let answer = gateway.ask_admin(&post_to(path, "", body)).await;
            assert_eq!(answer.status, 400, "{answer:?}");
            assert!(answer.text().contains(expected), "{body}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn invalid_json_is_reported_with_line_and_column() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let answer = gateway.ask(&post("{\n  \"query\": {\n    \"measures\": [}\n}")).await;
    answer.assert_refused(400, "invalid_json");
    assert!(answer.text().contains("(line 3, column 18)"), "{answer:?}");
    let purge = post_to("/cache/purge", "", "{\"all\":\n  tru}");
    assert!(gateway.ask_admin(&purge).await.text().contains("line 2, column 6"));
}

#[tokio::test]
async fn a_wrong_and_a_missing_admin_token_have_different_messages() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("admin.token_sha256", sha256_hex("right")).start().await;
    for (header, part) in
        [("", "needs its token"), ("Authorization: Bearer wrong\r\n", "this is not the admin plane's token")]
    {
        let answer = gateway.ask_admin(&get("/status", header)).await;
        assert_eq!(answer.status, 401);
        assert!(answer.text().contains(part), "{answer:?}");
    }
}

#[tokio::test]
async fn an_echo_of_the_secret_is_logged_once_an_episode() {
    let upstream = Upstream::script(|_| Plan::page(&format!("\"{SECRET}\""))).await;
    let process = Process::start(vec![set("upstream.url", &upstream.url())]).await;
    let unstored = post_to(QUERY, "Cache-Control: no-store\r\n", ASK);
    for _ in 0..2 {
        for _ in 0..3 {
            process.ask(&unstored).await.assert_refused(502, "upstream_invalid");
        }
        upstream.heal(PAGE);
        process.ask(&unstored).await.assert_page(PAGE, "bypass");
        upstream.set(|_| Plan::page(&format!("\"{SECRET}\"")));
    }
    let log = log_of(process).await;
    assert_eq!(lines(&log, "repeated the account's credentials").len(), 2, "{log}");
    assert_eq!(lines(&log, "no longer repeat the account's credentials").len(), 2, "{log}");
}

#[tokio::test]
async fn a_circuit_that_stays_open_is_logged_once_an_episode() {
    let upstream = Upstream::script(|_| Plan::json(503, "{}")).await;
    let keys = [("retry.attempts", "1"), ("circuit.consecutive", "3"), ("circuit.open", "50ms")];
    let mut arguments: Vec<_> = keys.iter().map(|(key, value)| set(key, value)).collect();
    arguments.push(set("upstream.url", &upstream.url()));
    let process = Process::start(arguments).await;
    // Until probes of many queries have failed, so that the circuit has opened several times.
    let asked = AtomicU32::new(0);
    poll("twelve attempts", || async {
        let n = asked.fetch_add(1, Ordering::Relaxed);
        process.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        (upstream.count() >= 12).then_some(())
    })
    .await;
    upstream.heal(PAGE);
    poll("an answer", || async { (process.ask(&get(METADATA, "")).await.status == 200).then_some(()) }).await;
    let log = log_of(process).await;
    let opened = lines(&log, "the circuit is open");
    assert_eq!((opened.len(), opened[0].0.as_str()), (1, "WARN"), "{log}");
    let closed = lines(&log, "the circuit is closed");
    assert!(closed.len() == 1 && closed[0].1["open_for_ms"].is_u64(), "{log}");
}

#[test]
fn an_address_that_cannot_be_opened_names_what_sets_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap().to_string();
    let run = |mut command: Command| {
        let Output { status, stderr, .. } = command.stdin(Stdio::null()).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    for (key, other, named) in [
        ("server.listen", "admin.listen", "--listen (server.listen)"),
        ("admin.listen", "server.listen", "--admin-listen (admin.listen)"),
    ] {
        let (code, said) = run(command(&[set(key, &taken_address), set(other, "127.0.0.1:0")]));
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("another process listens there") && said.contains(named), "{said}");
    }
    let (code, said) = run(command(&[set("server.listen", "192.0.2.1:0"), set("server.open", "true")]));
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("no such address"), "{said}");
    let mut simulate = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    simulate.args(["simulate", "--listen", &taken_address]).env_clear();
    let (code, said) = run(simulate);
    assert!(code == Some(74) && said.contains("with --listen"), "{said}");
}
