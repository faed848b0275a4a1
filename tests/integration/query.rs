//! `insights-gateway query`, tested with the binary: through a gateway to the simulator, and against servers that
//! answer as a test demands.

mod jobs;
mod terminal;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::certificate::Certificate;
use crate::support::upstream::DeadPort;
use crate::support::*;
use insights_gateway::simulator::jobs::JobSettings;
use insights_gateway::simulator::{Settings, Simulator};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const TOKEN: &str = "igw_token-of-a-team";

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_insights-gateway"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

/// The result of a command: its code, standard output and standard error.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    output: String,
    errors: String,
}

/// Runs it in its own thread, because the servers under test use this one.
async fn run(mut command: Command) -> Said {
    let Output { status, stdout, stderr } =
        within(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: status.code(), output: text(stdout), errors: text(stderr) }
}

/// `query` with these words, and with arguments that may contain spaces.
async fn query(url: &str, words: &str, more: &[&str], environment: &[(&str, &str)]) -> Said {
    let arguments: Vec<&str> = ["query", "--url", url].into_iter().chain(words.split_whitespace()).collect();
    run(command(&[&arguments, more].concat(), environment)).await
}

/// A simulator with settled data, a gateway for it, and the gateway's URL.
async fn gateway() -> (Gateway, Simulator, String) {
    let settings = Settings {
        jobs: JobSettings::default(),
        public_url: None,
        rate: None,
        latency: Duration::ZERO,
        seed: 42,
        rows: 400,
        now: "2026-05-20T12:00:00Z".parse().unwrap(),
    };
    let simulator = Simulator::new(settings);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(simulator.clone().run(listener, std::future::pending()));
    let gateway = TestConfig::new(upstream).set("accounts.default.api_secret", "secret").start().await;
    let url = format!("http://{}", gateway.data);
    (gateway, simulator, url)
}

/// A page in Twilio's format.
fn page(rows: &Json, next: Option<&str>) -> Plan {
    let meta = json!({"key": "items", "pageSize": 1, "nextToken": next});
    Plan::json(200, &json!({"domain": "Conversations", "items": rows, "meta": meta}).to_string())
}

fn refused(status: u16, reason: &str, headers: &str) -> Plan {
    let params = json!({"source": "gateway", "reason": reason});
    let body =
        json!({"code": 20000 + u32::from(status), "message": "so it is", "httpStatusCode": status, "params": params});
    Plan::with(status, &format!("Content-Type: application/json\r\n{headers}"), &body.to_string())
}

// --- Through a gateway ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn every_format_has_every_row_of_every_page() {
    let (_gateway, _simulator, url) = gateway().await;
    let asked = "--measure Conversation.Count ConversationSummary.AverageMessages \
                 --dimension ConversationSummary.Channels ConversationSummary.HandledByHuman \
                 --order ConversationSummary.Channels --page-size 3 --all";
    let json = query(&url, asked, &["--format=json"], &[]).await;
    assert_eq!((json.code, json.errors.as_str()), (Some(0), ""), "{json:?}");
    let rows: Vec<serde_json::Map<String, Json>> = serde_json::from_str(&json.output).unwrap();
    assert!(rows.len() > 6, "more than two pages: {rows:?}");

    let lines = query(&url, asked, &["--format=ndjson"], &[]).await;
    let read: Vec<_> =
        lines.output.lines().map(|line| serde_json::from_str::<serde_json::Map<_, _>>(line).unwrap()).collect();
    assert_eq!((lines.code, &read), (Some(0), &rows));

    let csv = query(&url, asked, &["--format=csv"], &[]).await;
    let mut table = csv.output.lines();
    let header = "ConversationSummary.Channels,ConversationSummary.HandledByHuman,Conversation.Count,\
                  ConversationSummary.AverageMessages";
    assert_eq!((csv.code, table.next()), (Some(0), Some(header)));
    let first = &rows[0];
    let channels = first["ConversationSummary.Channels"].to_string().replace('"', "\"\"");
    let expected = format!(
        "\"{channels}\",{},{},{}",
        first["ConversationSummary.HandledByHuman"],
        first["Conversation.Count"],
        first["ConversationSummary.AverageMessages"]
    );
    assert_eq!(table.next(), Some(expected.as_str()));
    assert_eq!(table.count() + 1, rows.len());

    let table = query(&url, asked, &[], &[]).await;
    assert_eq!((table.code, table.errors.as_str()), (Some(0), ""));
    assert!(table.output.lines().all(|line| line.chars().count() <= 72), "{}", table.output);
    assert!(table.output.lines().count() > rows.len());
}

#[tokio::test]
async fn the_first_page_alone_says_that_there_are_more() {
    let (_gateway, _simulator, url) = gateway().await;
    let asked = "--dimension Conversation.ConversationId --format ndjson --page-size 5";
    let said = query(&url, asked, &[], &[]).await;
    assert_eq!((said.code, said.output.lines().count()), (Some(0), 5));
    assert!(said.errors.contains("more rows than these 5; --all"), "{}", said.errors);
}

#[tokio::test]
async fn filters_orders_and_zones_reach_twilio_as_documented() {
    let upstream = Upstream::script(|_| page(&json!([{"C.Count": 1}]), None)).await;
    let more = ["--filter", "C.Name=\"a, b\",c", "C.N<5", "--filter=C.Type!=X", "--since=2026-04-01"];
    let asked = "--measure C.Count --dimension C.Name --time C.Created --zone Europe/Zurich --order C.Count:desc";
    let said = query(&upstream.url(), asked, &more, &[]).await;
    assert_eq!((said.code, upstream.count()), (Some(0), 1), "with --time no metadata is requested: {said:?}");
    let seen = &upstream.seen()[0];
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("authorization"), None);
    let expected = json!({
        "query": {
            "measures": ["C.Count"],
            "dimensions": ["C.Name"],
            "filters": [{"op": "AND", "expressions": [
                {"op": "IN", "field": "C.Name", "values": ["a, b", "c"]},
                {"op": "LT", "field": "C.N", "values": ["5"]},
                {"op": "NE", "field": "C.Type", "values": ["X"]},
                {"op": "GT", "field": "C.Created", "values": ["2026-04-01"]},
            ]}],
            "orderBy": [{"field": "C.Count", "direction": "DESC"}],
        },
        "properties": {"timezone": "Europe/Zurich"},
    });
    assert_eq!(serde_json::from_slice::<Json>(&seen.body).unwrap(), expected);
}

#[tokio::test]
async fn a_time_range_finds_the_only_time_of_the_cube() {
    let (_gateway, simulator, url) = gateway().await;
    let asked = "--measure Conversation.Count --format json --since 2026-04-01 --until 2026-04-08";
    let some: Json = serde_json::from_str(&query(&url, asked, &[], &[]).await.output).unwrap();
    let all = query(&url, "--measure Conversation.Count --format json", &[], &[]).await;
    let all: Json = serde_json::from_str(&all.output).unwrap();
    let count = |rows: &Json| rows[0]["Conversation.Count"].as_u64().unwrap();
    assert!((1..count(&all)).contains(&count(&some)), "{some} of {all}");

    // Two times: the command does not guess, and requests only metadata.
    simulator.clear_requests();
    let asked = "--measure ConversationSummary.Count --since 2026-04-01";
    let said = query(&url, asked, &[], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(64), ""));
    let candidates = "choose one with --time: ConversationSummary.CreatedDate, ConversationSummary.ClosedDate";
    assert!(said.errors.contains(candidates), "{}", said.errors);
    assert_eq!(simulator.requests().len(), 0, "metadata was in the cache");
    let said = query(&url, asked, &["--time=ConversationSummary.CreatedDate"], &[]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[tokio::test]
async fn a_refusal_of_twilio_is_printed_in_its_words() {
    let (_gateway, _simulator, url) = gateway().await;
    let said = query(&url, "--measure Conversation.Cout", &[], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(1), ""));
    assert!(
        said.errors.starts_with("insights-gateway: Twilio refused: 400 (code 20001): Unknown field"),
        "{}",
        said.errors
    );
    assert!(said.errors.contains("request id: "), "{}", said.errors);
}

#[tokio::test]
async fn a_token_comes_from_the_variable_or_a_file() {
    let (upstream, folder) = (Upstream::script(|_| page(&json!([]), None)).await, TempDir::new().unwrap());
    let config = TestConfig::new(upstream.url())
        .set("teams.dashboards.token_sha256", sha256_hex(TOKEN))
        .set("teams.others.token_sha256", sha256_hex("igw_other"));
    let gateway = config.start().await;
    let url = format!("http://{}", gateway.data);
    let file = folder.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = format!("--token-file={}", file.display());
    let variable = ("INSIGHTS_GATEWAY_TOKEN", TOKEN);
    let wrong = ("INSIGHTS_GATEWAY_TOKEN", "igw_wrong");
    let asked = "--measure C.Count --format json";
    for (more, environment) in [
        (vec![], vec![variable]),
        (vec!["--team=dashboards"], vec![variable]),
        (vec![file.as_str()], vec![]),
        // A flag overrides a variable.
        (vec![file.as_str()], vec![wrong]),
    ] {
        let said = query(&url, asked, &more, &environment).await;
        assert_eq!((said.code, said.output.as_str(), said.errors.as_str()), (Some(0), "[]\n", ""), "{more:?}");
    }
    for (more, environment, step) in [
        (vec![], vec![], "set INSIGHTS_GATEWAY_TOKEN"),
        (vec![], vec![("INSIGHTS_GATEWAY_TOKEN", "")], "set INSIGHTS_GATEWAY_TOKEN"),
        (vec![], vec![wrong], "the token in INSIGHTS_GATEWAY_TOKEN is not"),
        (vec!["--team=others"], vec![variable], "the token in INSIGHTS_GATEWAY_TOKEN is not"),
    ] {
        let said = query(&url, asked, &more, &environment).await;
        assert_eq!((said.code, said.output.as_str()), (Some(1), ""), "{said:?}");
        assert!(said.errors.contains(step) && said.errors.contains("401 unauthenticated"), "{}", said.errors);
        assert!(!said.errors.contains("igw_"), "{}", said.errors);
    }
}

#[tokio::test]
async fn a_gateway_on_a_unix_socket_can_be_used() {
    let (upstream, folder) =
        (Upstream::script(|_| page(&json!([{"C.Count": 3}]), None)).await, TempDir::new().unwrap());
    let path = folder.path().join("insights.sock").display().to_string();
    let gateway = TestConfig::new(upstream.url()).set("server.listen", format!("unix:{path}")).start().await;
    let said = query(&format!("unix://{path}"), "--measure C.Count --format csv", &[], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(0), "C.Count\n3\n"), "{said:?}");
    // The gateway's own variable names the same address.
    let listen = format!("unix:{path},127.0.0.1:1");
    let arguments = ["query", "--measure", "C.Count", "--format", "csv"];
    let said = run(command(&arguments, &[("INSIGHTS_GATEWAY_SERVER__LISTEN", &listen)])).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    gateway.stop().await;
    let said = query(&format!("unix://{path}"), "--measure C.Count", &[], &[]).await;
    assert!(said.code == Some(1) && said.errors.contains("is this the path of its socket"), "{said:?}");
}

#[tokio::test]
async fn explanations_go_to_standard_error() {
    let (_gateway, _simulator, url) = gateway().await;
    let asked = "--measure Conversation.Count --format json --explain";
    let first = query(&url, asked, &[], &[]).await;
    assert_eq!(first.code, Some(0));
    assert!(first.errors.contains("\nanswer   miss: by a call to Twilio; the answer is kept\n"), "{}", first.errors);
    let second = query(&url, asked, &[], &[]).await;
    assert_eq!(second.output, first.output);
    assert!(second.errors.contains("\nanswer   hit: from the cache, fresh for another "), "{}", second.errors);
    assert!(second.errors.contains("\nsum      1 page (1 hit), 1 row, "), "{}", second.errors);
    let key = |said: &Said| said.errors.lines().find_map(|line| line.strip_prefix("key      ").map(str::to_owned));
    assert_eq!(key(&first).map(|key| key.len()), Some(16), "{}", first.errors);
    assert_eq!(key(&first), key(&second));
}

// --- Against servers of any kind --------------------------------------------------------------------------------------

#[tokio::test]
async fn usage_is_explained_where_the_gateway_has_it() {
    let usage =
        json!({"team": "local", "requests": {"hit": 2}, "upstream_attempts": 0, "calls_saved": 2, "limits": {}});
    let server = Upstream::script(move |seen| match seen.target() {
        "/_gateway/usage" => Plan::json(200, &usage.to_string()),
        _ => page(&json!([]), None),
    })
    .await;
    let said = query(&server.url(), "--measure C.Count --explain", &[], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(0), "no rows\n"));
    assert!(
        said.errors.ends_with("usage    team local: 2 requests (2 hit); 0 calls to Twilio, 2 saved\n"),
        "{}",
        said.errors
    );
}

#[tokio::test]
async fn a_table_is_printed_exactly() {
    let rows = json!([
        {"Conversation.ConversationStatus": "CLOSED", "Conversation.Count": 1204, "Conversation.Channels": ["VOICE", "SMS"]},
        {"Conversation.ConversationStatus": "a\u{1b}[2Jb\u{202e}c", "Conversation.Count": null},
    ]);
    let server = Upstream::script(move |_| page(&rows, None)).await;
    let asked = "--measure Conversation.Count --dimension Conversation.ConversationStatus Conversation.Channels";
    let expected = "\
Conversation.
ConversationStatus             Conversation.Channels  Conversation.Count
-----------------------------  ---------------------  ------------------
CLOSED                         VOICE, SMS                           1204
a\\u001b[2Jb\\u202ec             -                                       -
";
    let said = query(&server.url(), asked, &[], &[]).await;
    assert_eq!((said.code, said.output.as_str(), said.errors.as_str()), (Some(0), expected, ""));
}

#[tokio::test]
async fn a_page_that_fails_ends_with_1_after_the_rows_before_it() {
    let rows = json!([{"C.Name": "one"}]);
    for (format, expected) in [
        ("csv", "C.Name\none\n"),
        ("ndjson", "{\"C.Name\":\"one\"}\n"),
        ("json", "[\n{\"C.Name\":\"one\"}\n"),
        ("table", "C.Name\n------\none\n"),
    ] {
        let rows = rows.clone();
        let server = Upstream::script(move |seen| match seen.number {
            1 => page(&rows, Some("a+b/=")),
            _ => refused(503, "circuit_open", "Retry-After: 5\r\nX-Request-Id: r2\r\n"),
        })
        .await;
        let said = query(&server.url(), "--dimension C.Name --all", &["--format", format], &[]).await;
        assert_eq!((said.code, said.output.as_str()), (Some(1), expected), "{format}");
        let expected =
            "insights-gateway: the gateway refused: 503 circuit_open: so it is\n  come back in 5 s\n  request id: r2\n";
        assert_eq!(said.errors, expected);
        assert!(server.seen()[1].target().ends_with("/Query?pageToken=a%2Bb%2F%3D"));
        assert_eq!(server.connections(), 1, "all pages use one connection");
    }
}

#[tokio::test]
async fn pages_are_walked_however_often_connections_are_closed() {
    let server = Upstream::script(|seen| {
        page(&json!([{"N": seen.number}]), ["a", "b", "c", "d"].get(seen.number - 1).copied()).then_close()
    })
    .await;
    let said = query(&server.url(), "--measure N --all --format csv", &[], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(0), "N\n1\n2\n3\n4\n5\n"), "{said:?}");
    assert_eq!((server.count(), server.connections()), (5, 5), "no page was requested twice");
}

#[tokio::test]
async fn repeating_pages_end_the_walk() {
    let server = Upstream::script(|seen| page(&json!([{"N": seen.number}]), Some(["a", "b"][seen.number % 2]))).await;
    let said = query(&server.url(), "--measure N --all --format ndjson", &[], &[]).await;
    assert_eq!((said.code, said.output.lines().count()), (Some(1), 3));
    assert!(said.errors.contains("repeats an earlier one"), "{}", said.errors);
}

#[tokio::test]
async fn a_reader_that_stops_early_is_not_a_failure() {
    let rows: Json = (0..200).map(|n| json!({"N": n, "Text": "x".repeat(200)})).collect::<Vec<_>>().into();
    let server = Upstream::script(move |seen| page(&rows, Some(&seen.number.to_string()))).await;
    for format in ["csv", "json", "ndjson"] {
        let url = server.url();
        let arguments = ["query", "--url", &url, "--measure", "N", "--dimension", "Text", "--all", "--format", format];
        let mut command = command(&arguments, &[]);
        let ended = tokio::task::spawn_blocking(move || {
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            child.wait_with_output().unwrap()
        });
        let ended = within(ended).await.unwrap();
        assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]), "{format}");
    }
}

#[tokio::test]
async fn tls_is_trusted_by_the_root_that_is_named() {
    let (known, unknown) = (Certificate::new(), Certificate::new());
    let server = Upstream::tls(known.server(), |_| page(&json!([{"N": 1}]), None)).await;
    let ca = |certificate: &Certificate| format!("--ca-file={}", certificate.path("cert.pem"));
    let said = query(&server.url(), "--measure N --format csv", &[&ca(&known)], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(0), "N\n1\n"), "{said:?}");
    for more in [vec![], vec![ca(&unknown)]] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let said = query(&server.url(), "--measure N", &more, &[("INSIGHTS_GATEWAY_TOKEN", TOKEN)]).await;
        assert_eq!(said.code, Some(1));
        assert!(said.errors.contains("TLS: ") && said.errors.contains("--ca-file"), "{}", said.errors);
    }
    assert_eq!(server.count(), 1, "no token is sent before the certificate is trusted");
    let said = query(&server.url(), "--measure N", &["--ca-file=/nowhere.pem"], &[]).await;
    assert!(said.code == Some(64) && said.errors.contains("/nowhere.pem"), "{said:?}");
    // The wrong scheme in both directions.
    let said = query(&server.url().replace("https", "http"), "--measure N", &[], &[]).await;
    assert!(said.code == Some(1) && said.errors.contains("https://"), "{said:?}");
    let clear = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = clear.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = clear.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        let _ = stream.read(&mut [0; 1024]).await;
    });
    let said = query(&format!("https://{address}"), "--measure N", &[], &[]).await;
    assert!(said.code == Some(1) && said.errors.contains("use http://"), "{said:?}");
}

#[tokio::test]
async fn a_missing_gateway_or_another_server_is_reported() {
    let dead = DeadPort::new();
    let said = query(&dead.url(), "--measure N", &[], &[]).await;
    assert_eq!((said.code, said.output.as_str()), (Some(1), ""));
    assert!(said.errors.contains("no answer: ") && said.errors.contains("--url"), "{}", said.errors);
    let other = Upstream::start().await;
    let elsewhere = format!("Location: {}\r\n", other.url());
    for (plan, words) in [
        (Plan::json(200, "[]"), "no list of rows"),
        (Plan::json(200, r#"{"items":[1]}"#), "no list of rows"),
        (Plan::json(200, "<html>"), "not JSON"),
        (Plan::json(404, "<html>"), "is --url its data address"),
        (Plan::with(302, &elsewhere, ""), "redirects are not followed"),
        (Plan::raw("SSH-2.0-x 200\r\n\r\n").then_close(), "not HTTP/1.1"),
        (Plan::close(), "closed"),
        (Plan::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{").then_close(), "cut"),
    ] {
        let server = Upstream::script(move |_| plan.clone()).await;
        let said = query(&server.url(), "--measure N", &[], &[("INSIGHTS_GATEWAY_TOKEN", TOKEN)]).await;
        assert_eq!((said.code, said.output.as_str()), (Some(1), ""), "{said:?}");
        assert!(said.errors.contains(words), "{words}: {}", said.errors);
    }
    assert_eq!(other.count(), 0, "a token is sent to no other server");
}

#[tokio::test]
async fn wrong_usage_is_64_and_asks_nobody() {
    let server = Upstream::start().await;
    let v3 = format!("{}/gw/v3/InsightsDomains", server.url());
    let secret = server.url().replace("http://", "http://user:s3cret@");
    let base = server.url();
    for (url, words, hint) in [
        (base.as_str(), "", "--measure"),
        (&base, "--measure N --filter N>=1", "Twilio has no >="),
        (&base, "--measure N --filter N", "FIELD=VALUE"),
        (&base, "--measure N --since today", "2026-04-02"),
        (&base, "--measure N --order N:up", ":desc"),
        (&base, "--measure N --token x", "--token"),
        (&base, "--measure N --job --page-size 1001", "1000"),
        (&base, "--measure N --token-file /nowhere/token", "/nowhere/token"),
        (&v3, "--measure N", "leave out /v3"),
        (&secret, "--measure N", "must not contain a user"),
        ("127.0.0.1:8080", "--measure N", "put http://"),
        ("ftp://h", "--measure N", "http://HOST:PORT"),
    ] {
        let said = query(url, words, &[], &[]).await;
        assert_eq!((said.code, said.output.as_str()), (Some(64), ""), "{words}: {said:?}");
        assert!(said.errors.contains(hint) && !said.errors.contains("s3cret"), "{words}: {}", said.errors);
    }
    let said = query(&v3, "--measure N", &[], &[]).await;
    assert!(said.errors.contains(&format!("follows: {base}/gw\n")), "{}", said.errors);
    let said = query(&base, "--measure N", &[], &[("INSIGHTS_GATEWAY_TOKEN", "a b")]).await;
    assert!(said.code == Some(64) && !said.errors.contains("a b"), "{said:?}");
    assert_eq!(server.count(), 0);
}

// --- Not our business, but our variable -------------------------------------------------------------------------------

#[tokio::test]
async fn the_variable_with_the_token_is_not_configuration() {
    let account = [("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000001"), ("TWILIO_AUTH_TOKEN", "x")];
    let environment = [&account[..], &[("INSIGHTS_GATEWAY_TOKEN", TOKEN)]].concat();
    let said = run(command(&["check"], &environment)).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!said.output.contains(TOKEN) && !said.errors.contains(TOKEN), "{said:?}");
}
