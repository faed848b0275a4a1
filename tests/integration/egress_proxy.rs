//! The forward proxy to Twilio: it is always asked for a tunnel, is used only for the upstream, and gets no other data.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::certificate::Certificate;
use crate::support::upstream::DeadPort;
use crate::support::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use insights_gateway::config::{self, Sources};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A name that never resolves (RFC 6761 section 6.4): a request that reaches it has gone through the proxy.
const NOWHERE: &str = "insights.invalid";
const PASSWORD: &str = "planted-proxy-passw0rd/:@";

/// A forward proxy that connects every tunnel to one upstream, or answers as it is told.
struct Proxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<&'static str>>,
}

const OPEN: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

impl Proxy {
    async fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { address, heads: Arc::default(), answer: Arc::new(Mutex::new(OPEN)) };
        let (heads, answer) = (Arc::clone(&proxy.heads), Arc::clone(&proxy.answer));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (heads, answer) = (Arc::clone(&heads), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    heads.lock().unwrap().push(String::from_utf8(head).unwrap());
                    let answer = *answer.lock().unwrap();
                    let _ = stream.write_all(answer.as_bytes()).await;
                    if answer.starts_with("HTTP/1.1 200") {
                        let mut upstream = TcpStream::connect(upstream).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut upstream).await;
                    } else if answer == "silence" {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        proxy
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn an_upstream_is_reached_through_the_proxy_by_connect_be_it_http() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(upstream.address).await;
    for (url, target) in [
        (format!("http://{NOWHERE}"), format!("{NOWHERE}:80")),
        (format!("http://{NOWHERE}:8080"), format!("{NOWHERE}:8080")),
        (format!("http://{}", upstream.address), upstream.address.to_string()),
    ] {
        let before = proxy.heads().len();
        let gateway = TestConfig::new(url).set("upstream.proxy", proxy.url()).start().await;
        for n in 0..3 {
            gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await.assert_page(PAGE, "miss");
        }
        let heads = proxy.heads().split_off(before);
        assert_eq!(heads, [format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")], "the tunnel is kept");
    }
    let seen = upstream.seen();
    assert!(seen[0].head.starts_with("GET /v3/") && seen[0].header("host") == Some(NOWHERE), "{}", seen[0].head);
    assert!(seen.iter().all(|seen| !seen.head.to_lowercase().contains("proxy")));
}

#[tokio::test]
async fn tls_goes_through_the_tunnel_to_the_upstream_itself() {
    let certificate = Certificate::new();
    let upstream = Upstream::tls(certificate.server(), |_| Plan::page(PAGE)).await;
    let proxy = Proxy::to(upstream.address).await;
    let config = |host: &str| {
        TestConfig::new(format!("https://{host}:8443"))
            .set("upstream.ca_file", certificate.path("cert.pem"))
            .set("upstream.proxy", proxy.url())
            .set("retry.attempts", "1")
    };
    config("localhost").start().await.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    // The certificate is not for this name, and the proxy cannot change that.
    config(NOWHERE).start().await.ask(&post(ASK)).await.assert_refused(502, "upstream_unreachable");
    assert_eq!(upstream.count(), 1);
    assert!(proxy.heads().iter().all(|head| !head.contains("Authorization")), "no credential of the account");
}

#[tokio::test]
async fn the_proxys_password_is_sent_only_to_the_proxy() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(upstream.address).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let percent = "planted-proxy-passw0rd%2F%3A%40";
    let in_url = format!("http://us%40er:{percent}@{}", proxy.address);
    let in_table =
        format!("{{ url = 'http://us%40er@{}', password = {{ file = '{}' }} }}", proxy.address, file.display());
    let in_variable = format!("{{ url = 'http://us%40er@{}', password = {{ env = 'SECRET' }} }}", proxy.address);
    let basic = BASE64_STANDARD.encode(format!("us@er:{PASSWORD}"));
    for setting in [in_url, in_table, in_variable] {
        let sources = TestConfig::new(format!("http://{NOWHERE}")).set("upstream.proxy", &setting).sources();
        let sources = sources.with_variable("SECRET", PASSWORD);
        let config = config::load(&sources).unwrap();
        for shown in [config.show(), format!("{config:?}"), config.warnings.join("\n")] {
            for form in [PASSWORD, percent, &basic] {
                assert!(!shown.contains(form), "{shown}");
            }
        }
        assert!(config.show().contains("\nproxy = { url = \"http://us%40er@127.0.0.1:"), "{}", config.show());
        let before = proxy.heads().len();
        let gateway = Gateway::start(sources).await;
        gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
        let head = proxy.heads()[before].clone();
        assert!(head.contains(&format!("\r\nProxy-Authorization: Basic {basic}\r\n")), "{head}");
    }
    assert!(upstream.seen().iter().all(|seen| !seen.head.contains(&basic)));
}

#[tokio::test]
async fn a_proxy_that_opens_no_tunnel_is_named_and_nothing_was_sent() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(upstream.address).await;
    let gateway = TestConfig::new(format!("http://{NOWHERE}"))
        .set("upstream.proxy", format!("http://planted-user:planted-password@{}", proxy.address))
        .set("upstream.connect_timeout", "500ms")
        .set("retry.attempts", "2")
        .start()
        .await;
    for (n, (answer, told)) in [
        ("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", "CONNECT with 407"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n<html>planted-page</html>", "CONNECT with 403"),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "CONNECT with 503"),
        ("HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", "CONNECT with 302"),
        ("SSH-2.0-x\r\n\r\n", "proxy"),
        ("", "proxy"),
        ("silence", ""),
    ]
    .into_iter()
    .enumerate()
    {
        *proxy.answer.lock().unwrap() = answer;
        let before = proxy.heads().len();
        let begun = Instant::now();
        let answer = gateway.ask(&get(&format!("{METADATA}?n={n}"), "")).await;
        answer.assert_refused(502, "upstream_unreachable");
        assert!(answer.text().contains(told), "{}", answer.text());
        assert!(!answer.text().contains("planted"), "{}", answer.text());
        assert!(begun.elapsed() < Duration::from_secs(5), "{told}: {:?}", begun.elapsed());
        assert_eq!(proxy.heads().len(), before + 2, "nothing was sent, so it is tried again");
    }
    assert_eq!(upstream.connections(), 0);
    *proxy.answer.lock().unwrap() = OPEN;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_unreachable() {
    let dead = DeadPort::new();
    let gateway = TestConfig::new(format!("http://{NOWHERE}"))
        .set("upstream.proxy", dead.url())
        .set("retry.attempts", "1")
        .start()
        .await;
    let answer = gateway.ask(&post(ASK)).await;
    answer.assert_refused(502, "upstream_unreachable");
    assert!(answer.text().contains("proxy"), "{}", answer.text());
}

#[tokio::test]
async fn the_environments_proxy_is_used_except_for_loopback_and_exempt_hosts() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::to(upstream.address).await;
    let through = async |url: &str, variables: &[(&str, &str)], key: Option<&str>| {
        let config = TestConfig::new(url).set("retry.attempts", "1").set("upstream.connect_timeout", "2s");
        let config = match key {
            Some(value) => config.set("upstream.proxy", value),
            None => config,
        };
        let mut sources = config.sources();
        for (name, value) in variables {
            sources = sources.with_variable(*name, value);
        }
        let before = proxy.heads().len();
        let status = Gateway::start(sources).await.ask(&post(ASK)).await.status;
        let went = proxy.heads().len() > before;
        // A name that never resolves is reached through the proxy, or not at all.
        assert_eq!(status, if went || !url.contains(NOWHERE) { 200 } else { 502 }, "{url} {variables:?}");
        went
    };
    let (named, here) = (format!("http://{NOWHERE}:8080"), upstream.url());
    let (url, dead) = (proxy.url(), DeadPort::new().url());
    let bare = proxy.address.to_string();
    assert!(through(&named, &[("HTTPS_PROXY", &url)], None).await);
    assert!(through(&named, &[("https_proxy", &url)], None).await);
    assert!(
        through(&named, &[("https_proxy", &url), ("HTTPS_PROXY", &dead)], None).await,
        "the lower case first, like curl"
    );
    assert!(through(&named, &[("HTTPS_PROXY", &bare)], None).await);
    assert!(through(&named, &[("HTTPS_PROXY", &dead)], Some(&url)).await, "the key overrides the environment");
    assert!(through(&named, &[("HTTPS_PROXY", &url), ("NO_PROXY", "other.invalid,.example")], None).await);
    for none in [
        &[("HTTP_PROXY", url.as_str())][..],
        &[("HTTPS_PROXY", "")],
        &[("HTTPS_PROXY", &url), ("NO_PROXY", "*")],
        &[("HTTPS_PROXY", &url), ("NO_PROXY", NOWHERE)],
        &[("HTTPS_PROXY", &url), ("no_proxy", ".invalid")],
        &[("HTTPS_PROXY", &url), ("NO_PROXY", "a.example, invalid:8080")],
    ] {
        assert!(!through(&named, none, None).await, "{none:?}");
    }
    assert!(!through(&named, &[("HTTPS_PROXY", &url)], Some("none")).await);
    let by_name = here.replace("127.0.0.1", "localhost");
    for loopback in [&here, &by_name] {
        assert!(!through(loopback, &[("HTTPS_PROXY", &dead)], None).await, "{loopback}");
        assert!(!through(loopback, &[("HTTPS_PROXY", "socks5://nonsense")], None).await, "{loopback}");
    }
    assert!(through(&here, &[], Some(&url)).await, "a configured proxy is also used for loopback");
}

#[test]
fn an_invalid_proxy_is_a_fault_with_its_place_and_without_secrets() {
    let faults = |key: Option<&str>, variable: Option<&str>| {
        let config = TestConfig::new("https://insights.invalid");
        let config = match key {
            Some(value) => config.set("upstream.proxy", value),
            None => config,
        };
        let mut sources: Sources = config.sources();
        if let Some(value) = variable {
            sources = sources.with_variable("HTTPS_PROXY", value);
        }
        let faults = config::load(&sources).map(|config| config.show()).unwrap_err().to_string();
        assert!(!faults.contains("planted"), "{faults}");
        faults
    };
    for url in [
        "https://planted:planted@egress.example:3128",
        "socks5://planted@egress.example:1080",
        "http://planted:planted@egress.example:0",
        "http://egress.example/planted",
        "http://planted@egress .example",
        "http://",
        "planted:planted@",
        "http://planted%zz@egress.example",
    ] {
        assert!(faults(Some(url), None).starts_with("flags: upstream.proxy: "), "{url}");
        assert!(faults(None, Some(url)).starts_with("environment: HTTPS_PROXY: "), "{url}");
    }
    for (table, told) in [
        ("{ password = 'planted' }", "upstream.proxy"),
        ("{ url = 'http://egress.example', password = 'planted' }", "names no user"),
        ("{ url = 'http://u:planted@egress.example', password = 'planted' }", "contains a password too"),
        ("{ url = 'http://u@egress.example', password = { file = '/nowhere' } }", "cannot be read"),
        ("{ url = 'http://u@egress.example', pasword = 'planted' }", "did you mean"),
        ("{ url = 'https://u@egress.example' }", "upstream.proxy.url"),
        ("[ 'http://egress.example' ]", "upstream.proxy"),
    ] {
        let faults = faults(Some(table), None);
        assert!(faults.contains(told), "{table}: {faults}");
    }
}

#[tokio::test]
async fn a_reload_applies_a_new_proxy() {
    let upstream = Upstream::start().await;
    let (one, other) = (Proxy::to(upstream.address).await, Proxy::to(upstream.address).await);
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gateway.toml");
    let write = |proxy: &Proxy| std::fs::write(&file, format!("[upstream]\nproxy = '{}'\n", proxy.url())).unwrap();
    write(&one);
    let sources = TestConfig::new(format!("http://{NOWHERE}")).sources().with_file(&file);
    let gateway = Gateway::start(sources).await;
    gateway.ask(&get(METADATA, "")).await.assert_page(PAGE, "miss");
    write(&other);
    gateway.reload.notify_one();
    gateway.metric_reaches("reloads_total", &["result=\"applied\""], 1.0).await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    assert_eq!((one.heads().len(), other.heads().len()), (1, 1));
}
