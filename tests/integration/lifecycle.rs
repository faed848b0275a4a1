//! The gateway as a process: its sockets, its certificates, how it stops, and how it reloads.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use crate::support::certificate::Certificate;
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::process::{Process, command, set};
use crate::support::*;
use insights_gateway::config::{self, Sources};
use tempfile::TempDir;
use tokio::net::TcpStream;

#[tokio::test]
async fn an_upstream_over_tls_is_trusted_only_by_its_root() {
    let (known, unknown) = (Certificate::new(), Certificate::new());
    let upstream = Upstream::tls(known.server(), |_| Plan::page(PAGE)).await;
    let trusting = TestConfig::new(upstream.url()).set("upstream.ca_file", known.path("cert.pem")).start().await;
    trusting.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(upstream.count(), 1);
    for config in [
        TestConfig::new(upstream.url()),
        TestConfig::new(upstream.url()).set("upstream.ca_file", unknown.path("cert.pem")),
    ] {
        config.start().await.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    }
    assert_eq!(upstream.count(), 1, "no request, and so no secret, before the certificate is trusted");
}

#[tokio::test]
async fn an_upstream_that_speaks_no_tls_is_unreachable_and_sees_no_secret() {
    let upstream = Upstream::start().await;
    let url = upstream.url().replace("http:", "https:");
    let gateway = TestConfig::new(url).set("upstream.connect_timeout", "300ms").start().await;
    gateway.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    assert_eq!(upstream.count(), 0);
}

async fn with_tls(upstream: &Upstream, certificate: &Certificate) -> Gateway {
    TestConfig::new(upstream.url())
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"))
        .set("server.header_timeout", "2s")
        .start()
        .await
}

#[tokio::test]
async fn tls_speaks_http_1_and_http_2_as_agreed() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    let gateway = with_tls(&upstream, &certificate).await;
    for alpn in [&[][..], &["http/1.1"]] {
        let stream = certificate.connect(gateway.data, alpn).await;
        assert_eq!(Client::over(stream).ask(&post(ASK)).await.text(), PAGE);
    }
    let stream = certificate.connect(gateway.data, &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let io = hyper_util::rt::TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io);
    let (mut sender, connection) = within(handshake).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://localhost{METADATA}"));
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    assert_eq!(within(sender.send_request(request)).await.unwrap().status(), 200);
    // Plain HTTP on the TLS port is refused with an explanation, and the next client is served.
    gateway.ask(&post(ASK)).await.assert_refused(400, "bad_request");
    let stream = certificate.connect(gateway.data, &[]).await;
    assert_eq!(Client::over(stream).ask(&post(ASK)).await.detail(), "hit");
}

#[tokio::test]
async fn unfinished_handshakes_keep_no_client_out() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    let gateway = with_tls(&upstream, &certificate).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(gateway.connect().await);
    }
    let stream = certificate.connect(gateway.data, &[]).await;
    assert_eq!(Client::over(stream).ask(&post(ASK)).await.status, 200);
    // They are closed after the header timeout.
    for client in &mut silent {
        assert_eq!(client.rest().await, b"");
    }
}

fn socket(folder: &TempDir) -> (String, std::path::PathBuf) {
    let path = folder.path().join("gateway.sock");
    (format!("unix:{}", path.display()), path)
}

#[tokio::test]
async fn a_unix_socket_is_served_and_its_file_removed_at_the_end() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let (listen, path) = socket(&folder);
    let gateway = TestConfig::new(upstream.url()).set("server.listen", listen).start().await;
    Client::connect_unix(&path).await.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    gateway.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn only_a_stale_socket_file_is_replaced() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let (listen, path) = socket(&folder);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket that its owner left behind");
    let config = || TestConfig::new(upstream.url()).set("server.listen", listen.clone());
    let gateway = config().start().await;
    Client::connect_unix(&path).await.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    let bind = || insights_gateway::gateway::Gateway::bind(config::load(&config().sources()).unwrap());
    assert!(bind().is_err(), "another process listens there");
    Client::connect_unix(&path).await.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    gateway.stop().await;
    fs::write(&path, "precious").unwrap();
    assert!(bind().is_err(), "that is not a socket");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

fn upstream_at(upstream: &Upstream) -> String {
    set("upstream.url", &upstream.url())
}

#[tokio::test]
async fn sigterm_lets_requests_in_flight_finish_and_refuses_new_connections() {
    for signal in ["TERM", "INT"] {
        let gate = Gate::default();
        let held = Plan::page(PAGE).after(&gate);
        let upstream = Upstream::script(move |_| held.clone()).await;
        let process = Process::start(vec![upstream_at(&upstream)]).await;
        let mut in_flight = Client::connect(process.data).await;
        in_flight.send(&post(ASK)).await;
        upstream.arrived(1).await;
        let mut idle = Client::connect(process.data).await;
        assert_eq!(idle.ask(&get("/nowhere", "")).await.status, 404);
        process.signal(signal);
        poll("readyz is 503", || async {
            let answer = Client::connect(process.admin).await.ask(&get("/readyz", "Connection: close\r\n")).await;
            (answer.status == 503).then_some(())
        })
        .await;
        poll("new connections are refused", || async { TcpStream::connect(process.data).await.is_err().then_some(()) })
            .await;
        assert_eq!(idle.rest().await, b"", "an idle connection is closed");
        gate.open();
        let answer = in_flight.answer().await;
        answer.assert_page(PAGE, "miss");
        assert_eq!(in_flight.rest().await, b"");
        let (code, said) = process.ended().await;
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.contains(SECRET) && !said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_drain_ends_when_its_time_is_up() {
    let upstream = Upstream::script(|_| Plan::silence()).await;
    let process = Process::start(vec![upstream_at(&upstream), set("server.drain", "300ms")]).await;
    let mut stuck = Client::connect(process.data).await;
    stuck.send(&post(ASK)).await;
    upstream.arrived(1).await;
    process.signal("TERM");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn a_request_that_comes_in_pieces_across_sigterm_is_still_answered() {
    let upstream = Upstream::start().await;
    let process = Process::start(vec![upstream_at(&upstream)]).await;
    let mut client = Client::connect(process.data).await;
    let request = post_to(QUERY, "Expect: 100-continue\r\n", ASK);
    // The head and half the body. The interim response shows that the request is under way.
    client.send(&request[..request.len() - 10]).await;
    assert_eq!(client.next().await.map(|interim| interim.status), Some(100));
    process.signal("TERM");
    poll("new connections are refused", || async { TcpStream::connect(process.data).await.is_err().then_some(()) })
        .await;
    client.send(&request[request.len() - 10..]).await;
    client.answer().await.assert_page(PAGE, "miss");
    assert_eq!(process.ended().await.0, Some(0));
}

#[test]
fn a_taken_port_is_74_and_a_bad_configuration_64_before_any_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = (taken.local_addr().unwrap().to_string(), taken);
    let run = |arguments: &[String]| {
        let Output { status, stderr, .. } = command(arguments).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    let free = "127.0.0.1:0";
    for (data, admin) in [(taken.0.as_str(), free), (free, taken.0.as_str())] {
        let (code, said) = run(&[set("server.listen", data), set("admin.listen", admin)]);
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains(&taken.0), "{said}");
        // If a port were bound first, this would be 74.
        let (code, said) = run(&[set("server.listen", data), set("admin.listen", admin), set("retry.attempts", "0")]);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains("retry.attempts"), "{said}");
    }
    let (code, said) = run(&[set("server.listen", "unix:/nowhere/at/all.sock"), set("admin.listen", free)]);
    assert_eq!(code, Some(74), "{said}");
}

struct Files {
    folder: TempDir,
}

impl Files {
    fn new(rate: &str, secret: &str) -> Self {
        let files = Self { folder: TempDir::new().unwrap() };
        files.write_secret(secret);
        files.write_config(rate);
        files
    }

    fn config(&self) -> std::path::PathBuf {
        self.folder.path().join("gateway.toml")
    }

    fn write_secret(&self, secret: &str) {
        replace(&self.folder.path().join("secret"), secret);
    }

    fn write_config(&self, rate: &str) {
        self.write_config_with("", rate);
    }

    /// With other sections before it.
    fn write_config_with(&self, sections: &str, rate: &str) {
        let secret = self.folder.path().join("secret");
        let text = format!(
            "{sections}\n[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = {{ file = '{}' }}\nrate = '{rate}'\n",
            secret.display()
        );
        replace(&self.config(), &text);
    }

    fn sources(&self, upstream: &Upstream) -> Sources {
        TestConfig::new(upstream.url()).without_account().sources().with_file(self.config())
    }
}

/// In one step, as editors and orchestrators do it, so that no reader sees half a file.
fn replace(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&new).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    fs::rename(new, path).unwrap();
}

fn basic(secret: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{KEY}:{secret}")))
}

#[tokio::test]
async fn a_reload_changes_rate_and_secret_on_open_connections_and_keeps_the_pages() {
    let (upstream, files) = (Upstream::start().await, Files::new("5/s", "first-secret"));
    let gateway = Gateway::start(files.sources(&upstream)).await;
    let mut client = gateway.connect().await;
    client.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(upstream.seen()[0].header("authorization"), Some(basic("first-secret").as_str()));
    files.write_secret("second-secret");
    files.write_config("7/s");
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    let answer = client.ask(&get(METADATA, "")).await;
    answer.assert_page(PAGE, "miss");
    assert_eq!(upstream.seen()[1].header("authorization"), Some(basic("second-secret").as_str()));
    assert_eq!(gateway.admin("/status").await.json()["accounts"][0]["rate"], "7/s");
    client.ask(&post(ASK)).await.assert_page(PAGE, "hit");
}

#[tokio::test]
async fn a_changed_secret_file_is_noticed_without_a_signal() {
    let (upstream, files) = (Upstream::start().await, Files::new("0/s", "first-secret"));
    let gateway = Gateway::start(files.sources(&upstream)).await;
    gateway.settle().await;
    files.write_secret("second-secret");
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(upstream.seen()[0].header("authorization"), Some(basic("second-secret").as_str()));
}

#[tokio::test]
async fn a_bad_new_configuration_is_refused_counted_and_leaves_the_old_one() {
    let (upstream, files) = (Upstream::start().await, Files::new("5/s", "first-secret"));
    let gateway = Gateway::start(files.sources(&upstream)).await;
    let mut client = gateway.connect().await;
    for (n, bad) in ["[accounts.main\n", "[cache]\ncapacty = '1MiB'\n", ""].into_iter().enumerate() {
        replace(&files.config(), bad);
        gateway.reload.notify_one();
        gateway.metric_reaches("reloads_total", &["result=\"refused\""], n as f64 + 1.0).await;
        assert_eq!(client.ask(&get(&format!("{METADATA}?n={n}"), "")).await.status, 200);
        assert_eq!(upstream.seen()[n].header("authorization"), Some(basic("first-secret").as_str()));
    }
    fs::remove_file(files.folder.path().join("secret")).unwrap();
    files.write_config("9/s");
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"refused\""], 4.0).await;
    assert_eq!(gateway.admin("/status").await.json()["accounts"][0]["rate"], "5/s", "all or nothing");
    assert_eq!(gateway.metric("reloads_total", &["result=\"applied\""]).await, 0.0);
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    files.write_secret("second-secret");
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    assert_eq!(gateway.admin("/status").await.json()["accounts"][0]["rate"], "9/s");
}

#[tokio::test]
async fn query_texts_are_shown_only_while_show_queries_is_on() {
    let (upstream, files) = (Upstream::start().await, Files::new("5/s", "first-secret"));
    let gateway = Gateway::start(files.sources(&upstream)).await;
    let ask = async |measure: &str| {
        let body = format!(r#"{{ "query": {{"measures":["{measure}"]}} }}"#);
        gateway.ask(&post(&body)).await.assert_page(PAGE, "miss");
    };
    // Each with another rate, which shows that it is in effect.
    let reload = async |show_queries: bool, rate: &str| {
        files.write_config_with(&format!("[admin]\nshow_queries = {show_queries}\n"), rate);
        gateway.reload.notify_one();
        let in_effect = async || gateway.admin("/status").await.json()["accounts"][0]["rate"] == rate;
        poll("the new configuration", || async { in_effect().await.then_some(()) }).await;
    };
    let listed = async || gateway.admin("/cache/entries").await;

    ask("Hidden").await;
    let before = listed().await;
    assert_eq!(before.json()["entries"].as_array().unwrap().len(), 1);
    assert_eq!(before.json()["entries"][0].get("query"), None);
    assert!(!before.text().contains("Hidden"), "{before:?}");

    reload(true, "6/s").await;
    ask("Shown").await;
    gateway.ask(&get(&format!("{QUERY}?pageToken=a+b/="), "")).await.assert_page(PAGE, "miss");
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    let json = listed().await.json();
    let mut texts: Vec<_> = json["entries"].as_array().unwrap().iter().map(|entry| entry["query"].as_str()).collect();
    texts.sort_unstable();
    let shown = r#"{"query":{"measures":["Shown"]}}"#;
    assert_eq!(texts, [None, None, Some("pageToken=a%2Bb%2F%3D"), Some(shown)], "not of pages stored before: {json}");

    reload(false, "7/s").await;
    let after = listed().await;
    assert_eq!(after.json()["entries"].as_array().unwrap().len(), 4);
    assert!(!after.text().contains("Shown") && !after.text().contains("\"query\":"), "{after:?}");
}

#[tokio::test]
async fn sighup_reloads_the_process() {
    let (upstream, files) = (Upstream::start().await, Files::new("5/s", "first-secret"));
    let config = format!("--config={}", files.config().display());
    let process = Process::start(vec![config, upstream_at(&upstream)]).await;
    replace(&files.config(), "[nonsense]\n");
    process.signal("HUP");
    let refused = "insights_gateway_reloads_total{result=\"refused\"}";
    poll("a refusal", || async { process.metric(refused).await.filter(|count| count != "0") }).await;
    assert_eq!(process.ask(&post(ASK)).await.status, 200);
    files.write_secret("second-secret");
    files.write_config("5/s");
    process.signal("HUP");
    let applied = "insights_gateway_reloads_total{result=\"applied\"}";
    poll("a new configuration", || async { process.metric(applied).await.filter(|count| count != "0") }).await;
    assert_eq!(process.ask(&get(METADATA, "")).await.status, 200);
    assert_eq!(upstream.seen()[1].header("authorization"), Some(basic("second-secret").as_str()));
    process.signal("TERM");
    let (code, said) = process.ended().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("first-secret") && !said.contains("second-secret"), "{said}");
}

#[tokio::test]
async fn a_new_certificate_reaches_new_connections() {
    let (upstream, one, other) = (Upstream::start().await, Certificate::new(), Certificate::new());
    let gateway = with_tls(&upstream, &one).await;
    let mut old = Client::over(one.connect(gateway.data, &[]).await);
    assert_eq!(old.ask(&post(ASK)).await.status, 200);
    fs::copy(other.path("key.pem"), one.path("key.pem")).unwrap();
    fs::copy(other.path("cert.pem"), one.path("cert.pem")).unwrap();
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    assert_eq!(Client::over(other.connect(gateway.data, &[]).await).ask(&post(ASK)).await.status, 200);
    assert_eq!(old.ask(&post(ASK)).await.status, 200, "an open connection is not disturbed");
}

#[tokio::test]
async fn a_drain_waits_for_requests_whatever_handshakes_are_unfinished() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let upstream = Upstream::script(move |_| held.clone()).await;
    let certificate = Certificate::new();
    let process = Process::start(vec![
        upstream_at(&upstream),
        set("server.tls.cert", &certificate.path("cert.pem")),
        set("server.tls.key", &certificate.path("key.pem")),
    ])
    .await;
    let mut in_flight = Client::over(certificate.connect(process.data, &[]).await);
    in_flight.send(&post(ASK)).await;
    upstream.arrived(1).await;
    let _no_handshake = TcpStream::connect(process.data).await.unwrap();
    // Connections are accepted in order, so the silent one has been accepted once this one is served.
    let mut later = Client::over(certificate.connect(process.data, &[]).await);
    assert_eq!(later.ask(&get("/nowhere", "Connection: close\r\n")).await.status, 404);
    process.signal("TERM");
    // Asked through the admin plane, which stays up during the drain: a connection to the data plane would be one more
    // unfinished handshake.
    let ready =
        async || Client::connect(process.admin).await.ask(&get("/readyz", "Connection: close\r\n")).await.status;
    poll("readyz is 503", || async { (ready().await == 503).then_some(()) }).await;
    for _ in 0..300 {
        assert_eq!(ready().await, 503, "still draining");
    }
    gate.open();
    in_flight.answer().await.assert_page(PAGE, "miss");
    assert_eq!(process.ended().await.0, Some(0));
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_socket_file_behind() {
    let (folder, taken) = (TempDir::new().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (listen, path) = socket(&folder);
    let admin = taken.local_addr().unwrap().to_string();
    let sources =
        TestConfig::new("http://127.0.0.1:9").set("server.listen", listen).set("admin.listen", admin).sources();
    assert!(insights_gateway::gateway::Gateway::bind(config::load(&sources).unwrap()).is_err());
    assert!(tokio::net::UnixStream::connect(&path).await.is_err());
    assert!(!path.exists(), "no file is left for the next start");
}

#[tokio::test]
async fn a_secret_that_changes_during_the_start_is_noticed() {
    let (upstream, files) = (Upstream::start().await, Files::new("0/s", "first-secret"));
    let gateway = Gateway::start(files.sources(&upstream)).await;
    // The configuration has been read, and nothing has run since then.
    files.write_secret("second-secret");
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!(upstream.seen()[0].header("authorization"), Some(basic("second-secret").as_str()));
}
