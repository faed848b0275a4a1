//! What a connection may do and how long it may stay open: under the newest configuration, and until another client
//! needs its place.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::certificate::{Authority, Certificate, Issued};
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::SanType;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

fn bearer(token: &str) -> Vec<u8> {
    get(METADATA, &format!("Authorization: Bearer {token}\r\n"))
}

fn account() -> String {
    format!("[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\nrate = '0/s'\n")
}

// --- Places ---------------------------------------------------------------------------------------------------

/// With four places, and a team whose token is `good`.
async fn with_four_places(upstream: &Upstream, folder: &TempDir) -> Gateway {
    let file = folder.path().join("gateway.toml");
    fs::write(&file, format!("{}[teams.a]\ntoken_sha256 = ['{}']\n", account(), sha256_hex("good"))).unwrap();
    let config = TestConfig::new(upstream.url()).without_account().set("server.max_connections", "4");
    Gateway::start(config.sources().with_file(file)).await
}

/// The status of a request on a new connection, which must be answered soon.
async fn soon(address: SocketAddr, request: &[u8]) -> u16 {
    let begun = Instant::now();
    let status = Client::connect(address).await.ask(request).await.status;
    // Idle connections have 75 s, and heads 10 s. The machine may be busy with other tests.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    status
}

#[tokio::test]
async fn a_client_with_a_token_gets_a_place_from_idle_unidentified_clients() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let gateway = with_four_places(&upstream, &folder).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let refused = get("/nowhere", "");
    let unfinished = format!("GET {METADATA} HTTP/1.1\r\nHost: ");
    // INITIAL_WINDOW_SIZE 0, and a request whose refusal is therefore never read.
    let untaken = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0"[..],
        b"\0\0\x17\x01\x05\0\0\0\x01\x82\x86\x04\x08/nowhere\x01\x09localhost",
    ]
    .concat();
    for said in [&b""[..], preface, &refused, unfinished.as_bytes(), &untaken] {
        let mut strangers = Vec::new();
        for _ in 0..6 {
            let mut stranger = gateway.connect().await;
            stranger.send(said).await;
            if said == refused {
                assert_eq!(stranger.answer().await.status, 404);
            }
            strangers.push(stranger);
        }
        for _ in 0..3 {
            assert_eq!(soon(gateway.data, &bearer("good")).await, 200, "{:?}", String::from_utf8_lossy(said));
        }
    }
}

#[tokio::test]
async fn unidentified_connections_are_closed_before_identified_ones() {
    let (upstream, folder) = (Upstream::start().await, TempDir::new().unwrap());
    let gateway = with_four_places(&upstream, &folder).await;
    let mut known = gateway.connect().await;
    assert_eq!(known.ask(&bearer("good")).await.status, 200);
    let mut strangers = Vec::new();
    for _ in 0..20 {
        let mut stranger = gateway.connect().await;
        assert_eq!(stranger.ask(&get("/nowhere", "")).await.status, 404);
        strangers.push(stranger);
    }
    assert_eq!(known.ask(&bearer("good")).await.status, 200);
}

#[tokio::test]
async fn a_busy_connection_keeps_its_place() {
    let gate = Gate::default();
    let held = Plan::page(PAGE).after(&gate);
    let (upstream, folder) = (Upstream::script(move |_| held.clone()).await, TempDir::new().unwrap());
    let gateway = with_four_places(&upstream, &folder).await;
    let mut busy = Vec::new();
    for n in 0..3 {
        let mut client = gateway.connect().await;
        client.send(&get(&format!("{METADATA}?n={n}"), "Authorization: Bearer good\r\n")).await;
        upstream.arrived(n + 1).await;
        busy.push(client);
    }
    for _ in 0..10 {
        assert_eq!(soon(gateway.data, &get("/nowhere", "")).await, 404);
    }
    gate.open();
    for client in &mut busy {
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn an_unfinished_handshake_or_proxy_header_holds_no_place() {
    let (upstream, certificate) = (Upstream::start().await, Certificate::new());
    for proxied in [false, true] {
        let mut config = TestConfig::new(upstream.url())
            .set("server.max_connections", "3")
            .set("server.tls.cert", certificate.path("cert.pem"))
            .set("server.tls.key", certificate.path("key.pem"));
        if proxied {
            config = config.set("server.proxy_protocol", "127.0.0.1");
        }
        let gateway = config.start().await;
        let mut silent = Vec::new();
        for _ in 0..6 {
            silent.push(gateway.connect().await);
        }
        if !proxied {
            let begun = Instant::now();
            let stream = certificate.connect(gateway.data, &[]).await;
            assert_eq!(Client::over(stream).ask(&post(ASK)).await.status, 200);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        } else {
            let mut newest = gateway.connect().await;
            newest.send(b"no PROXY header at all").await;
            let begun = Instant::now();
            assert_eq!(newest.rest().await, b"");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    }
}

#[tokio::test]
async fn probes_are_served_when_the_admin_plane_is_full() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut client = Client::connect(gateway.admin).await;
        assert_eq!(client.ask(&get("/livez", "")).await.status, 200);
        held.push(client);
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(soon(gateway.admin, &get(path, "")).await, 200, "{path}");
    }
    drop(held);
    // Busy ones, which are never closed for others. For each the gateway waits for its body.
    let purge = b"POST /cache/purge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\nExpect: 100-continue\r\n\r\n";
    let mut busy = Vec::new();
    for _ in 0..64 {
        let mut client = Client::connect(gateway.admin).await;
        client.send(purge).await;
        assert_eq!(client.next().await.map(|answer| answer.status), Some(100));
        busy.push(client);
    }
    for _ in 0..20 {
        for path in ["/livez", "/readyz"] {
            assert_eq!(soon(gateway.admin, &get(path, "")).await, 200, "{path}");
        }
    }
    Client::connect(gateway.admin).await.ask(&get("/metrics", "")).await.assert_overloaded();
    for client in &mut busy {
        client.send(br#"{"all":true}"#).await;
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(soon(gateway.admin, &get("/metrics", "")).await, 200);
}

impl Answer {
    /// A place in the reserve. The request reached no layer, so it has no id.
    fn assert_overloaded(&self) {
        assert_eq!((self.status, self.reason().as_str(), self.header("retry-after")), (503, "overloaded", "1"));
    }
}

/// A gateway that listens on `listen` with a free port. Another process may take the port in between.
async fn bound(listen: &str) -> (insights_gateway::gateway::Gateway, u16) {
    for _ in 0..20 {
        let free = tokio::net::TcpListener::bind("[::]:0").await.expect("this machine has IPv6");
        let port = free.local_addr().unwrap().port();
        drop(free);
        let listen = listen.replace("PORT", &port.to_string());
        let config = TestConfig::new("http://127.0.0.1:9").set("server.listen", listen).set("server.open", "true");
        let config = insights_gateway::config::load(&config.sources()).unwrap_or_else(|faults| panic!("{faults}"));
        if let Ok(gateway) = insights_gateway::gateway::Gateway::bind(config) {
            return (gateway, port);
        }
    }
    panic!("cannot listen on {listen}");
}

#[tokio::test]
async fn both_wildcards_of_a_port_may_be_listened_on() {
    for (listen, listeners, over_ipv4) in [
        ("0.0.0.0:PORT,[::]:PORT", 2, true),
        ("[::]:PORT,0.0.0.0:PORT", 2, true),
        ("127.0.0.1:PORT,[::]:PORT", 2, true),
        ("[::]:PORT", 1, true),
        ("[::1]:PORT", 1, false),
    ] {
        let (gateway, port) = bound(listen).await;
        assert_eq!(gateway.data_addresses().len(), listeners, "{listen}");
        assert!(TcpStream::connect(("::1", port)).await.is_ok(), "{listen}");
        assert_eq!(TcpStream::connect(("127.0.0.1", port)).await.is_ok(), over_ipv4, "{listen}");
    }
}

// --- Certificates ---------------------------------------------------------------------------------------------

/// A gateway with TLS, whose configuration file tests rewrite.
struct Certified {
    upstream: Upstream,
    certificate: Certificate,
    gateway: Gateway,
}

fn configuration(certificate: &Certificate, authority: Option<&Authority>, teams: &str) -> String {
    let tls =
        format!("[server.tls]\ncert = '{}'\nkey = '{}'\n", certificate.path("cert.pem"), certificate.path("key.pem"));
    let client_ca = authority.map(|authority| format!("client_ca = '{}'\n", authority.write(certificate)));
    format!("{}{tls}{}{teams}", account(), client_ca.unwrap_or_default())
}

impl Certified {
    async fn start(authority: &Authority, teams: &str) -> Self {
        let (upstream, certificate) = (Upstream::start().await, Certificate::new());
        let file = Path::new(&certificate.path("gateway.toml")).to_owned();
        fs::write(&file, configuration(&certificate, Some(authority), teams)).unwrap();
        let config = TestConfig::new(upstream.url()).without_account();
        let gateway = Gateway::start(config.sources().with_file(file)).await;
        Self { upstream, certificate, gateway }
    }

    async fn reload(&self, authority: Option<&Authority>, teams: &str) {
        let applied = self.gateway.metric("reloads_total", &["result=\"applied\""]).await;
        let text = configuration(&self.certificate, authority, teams);
        fs::write(self.certificate.path("gateway.toml"), text).unwrap();
        self.gateway.reload.notify_one();
        self.gateway.metric_reaches("reloads_total", &["result=\"applied\""], applied + 1.0).await;
    }

    async fn http1(&self, own: Option<&Issued>) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.gateway.data).await.unwrap();
        Client::over(self.certificate.shake(stream, &[], own).await.unwrap())
    }

    async fn http2(&self, own: Option<&Issued>) -> Http2 {
        let stream = TcpStream::connect(self.gateway.data).await.unwrap();
        let stream = self.certificate.shake(stream, &["h2"], own).await.unwrap();
        let (sender, connection) = within(http2::handshake(TokioExecutor::new(), TokioIo::new(stream))).await.unwrap();
        Http2 { sender, ended: tokio::spawn(async move { drop(connection.await) }) }
    }
}

struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    ended: JoinHandle<()>,
}

impl Http2 {
    async fn ask(&mut self, token: Option<&str>) -> u16 {
        within(self.sender.ready()).await.unwrap();
        let request = http::Request::get(format!("https://localhost{METADATA}"));
        let request = token
            .into_iter()
            .fold(request, |request, token| request.header("authorization", format!("Bearer {token}")));
        let answer = within(self.sender.send_request(request.body(Full::default()).unwrap())).await.expect("an answer");
        let status = answer.status().as_u16();
        within(answer.into_body().collect()).await.unwrap();
        status
    }

    /// The gateway has sent GOAWAY, and the connection ends.
    async fn assert_sent_away(self) {
        let Self { sender, ended } = self;
        within(ended).await.unwrap();
        assert!(sender.is_closed());
    }
}

const TEAMS: &str = "[teams.dashboards]\n[teams.exports]\n";

fn dashboards(authority: &Authority) -> Issued {
    authority.issue(&[SanType::DnsName("dashboards".try_into().unwrap())], "whoever")
}

fn with_token() -> String {
    format!("{TEAMS}[teams.programs]\ntoken_sha256 = ['{}']\n", sha256_hex("good"))
}

#[tokio::test]
async fn certificates_are_judged_by_the_newest_authority_on_open_connections_too() {
    let (old, new) = (Authority::new(), Authority::new());
    // Another authority; then none.
    for next in [Some(&new), None] {
        let teams = with_token();
        let certified = Certified::start(&old, &teams).await;
        let own = dashboards(&old);
        let (mut one, mut other) = (certified.http1(Some(&own)).await, certified.http1(Some(&own)).await);
        let (mut third, mut fourth) = (certified.http2(Some(&own)).await, certified.http2(Some(&own)).await);
        assert_eq!(one.ask(&get(METADATA, "")).await.status, 200);
        assert_eq!(other.ask(&get(METADATA, "")).await.status, 200);
        assert_eq!((third.ask(None).await, fourth.ask(None).await), (200, 200));
        // Without an authority a team needs a token.
        let teams = match next {
            Some(_) => teams,
            None => format!("[teams.dashboards]\ntoken_sha256 = ['{}']\n", sha256_hex("good")),
        };
        certified.reload(next, &teams).await;
        let refused = one.ask(&get(METADATA, "")).await;
        refused.assert_refused(401, "unauthenticated");
        assert_eq!(refused.find("connection"), Some("close"));
        assert_eq!(one.rest().await, b"");
        let by_token = other.ask(&bearer("good")).await;
        assert_eq!((by_token.status, by_token.find("connection")), (200, Some("close")), "a token is sufficient");
        assert_eq!(third.ask(None).await, 401);
        third.assert_sent_away().await;
        assert_eq!(fourth.ask(Some("good")).await, 200);
        fourth.assert_sent_away().await;
        if next.is_some() {
            let known = dashboards(&new);
            assert_eq!(certified.http1(Some(&known)).await.ask(&get(METADATA, "")).await.status, 200);
        }
        assert_eq!(certified.upstream.count(), 1, "one fetch, then hits");
    }
}

#[tokio::test]
async fn a_certificate_of_the_new_authority_stays_valid() {
    let (old, new) = (Authority::new(), Authority::new());
    let certified = Certified::start(&old, TEAMS).await;
    let own = dashboards(&old);
    let mut client = certified.http1(Some(&own)).await;
    assert_eq!(client.ask(&get(METADATA, "")).await.status, 200);
    // Nothing has changed for clients, so no connection is renewed.
    certified.reload(Some(&old), &with_token()).await;
    let answer = client.ask(&get(METADATA, "")).await;
    assert_eq!((answer.status, answer.find("connection")), (200, None));
    let both = [fs::read_to_string(old.write(&certified.certificate)).unwrap(), {
        fs::read_to_string(new.write(&certified.certificate)).unwrap()
    }]
    .concat();
    let text = configuration(&certified.certificate, Some(&new), TEAMS);
    fs::write(certified.certificate.path("clients.pem"), both).unwrap();
    fs::write(certified.certificate.path("gateway.toml"), text).unwrap();
    certified.gateway.reload.notify_one();
    certified.gateway.metric_reaches("reloads_total", &["result=\"applied\""], 2.0).await;
    let answer = client.ask(&get(METADATA, "")).await;
    assert_eq!((answer.status, answer.find("connection")), (200, Some("close")), "the connection is renewed once");
}

#[tokio::test]
async fn a_removed_team_is_unknown_on_open_connections_too() {
    let authority = Authority::new();
    let certified = Certified::start(&authority, &with_token()).await;
    let own = dashboards(&authority);
    let (mut one, mut two) = (certified.http1(Some(&own)).await, certified.http2(Some(&own)).await);
    assert_eq!((one.ask(&get(METADATA, "")).await.status, two.ask(None).await), (200, 200));
    let teams = with_token().replace("[teams.dashboards]\n", "");
    certified.reload(Some(&authority), &teams).await;
    one.ask(&get(METADATA, "")).await.assert_refused(401, "unauthenticated");
    assert_eq!(two.ask(None).await, 401);
    assert_eq!(one.ask(&bearer("good")).await.status, 200);
    assert_eq!(two.ask(Some("good")).await, 200);
}

#[tokio::test]
async fn an_open_connection_without_a_certificate_is_refused_once_one_is_demanded() {
    let authority = Authority::new();
    let certified = Certified::start(&authority, &with_token()).await;
    let (mut one, mut two) = (certified.http1(None).await, certified.http2(None).await);
    assert_eq!((one.ask(&bearer("good")).await.status, two.ask(Some("good")).await), (200, 200));
    // Without teams only the certificate identifies a client.
    certified.reload(Some(&authority), "").await;
    let refused = one.ask(&get(METADATA, "")).await;
    refused.assert_refused(401, "unauthenticated");
    assert_eq!(refused.find("connection"), Some("close"));
    assert_eq!(two.ask(Some("good")).await, 401);
    two.assert_sent_away().await;
    assert_eq!(certified.http1(Some(&dashboards(&authority))).await.ask(&get(METADATA, "")).await.status, 200);
}

#[tokio::test]
async fn an_older_session_is_not_resumed_under_another_authority() {
    let (old, new) = (Authority::new(), Authority::new());
    let certified = Certified::start(&old, TEAMS).await;
    // One client configuration, so that the second handshake could resume the first's session.
    let config = Arc::new(certified.certificate.client(&[], Some(&dashboards(&old))));
    let ask = async || {
        let stream = TcpStream::connect(certified.gateway.data).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = within(tokio_rustls::TlsConnector::from(Arc::clone(&config)).connect(name, stream)).await.ok()?;
        let kind = stream.get_ref().1.handshake_kind();
        let status = Client::over(stream).try_ask(&get(METADATA, "")).await?.status;
        Some((status, kind == Some(rustls::HandshakeKind::Resumed)))
    };
    assert_eq!(ask().await, Some((200, false)));
    assert_eq!(ask().await, Some((200, true)), "sessions are resumed while nothing changes");
    certified.reload(Some(&new), TEAMS).await;
    assert_eq!(ask().await, None, "the certificate is not from the new authority");
}
