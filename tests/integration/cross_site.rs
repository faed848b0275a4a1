//! Web pages of other sites, in a browser that reaches the gateway: they get no data where no token is demanded.

use crate::http2;
use crate::support::certificate::{Authority, Certificate};
use crate::support::*;
use tokio::net::TcpStream;

const TOKEN: &str = "igw_token-of-the-tests";

fn hash() -> String {
    sha256_hex(TOKEN)
}

/// The headers that browsers send with requests of pages of other sites.
const FOREIGN: [&str; 7] = [
    "Origin: https://evil.example\r\n",
    "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nContent-Type: text/plain\r\n",
    "Origin: null\r\n",
    "Origin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\n",
    "Origin: http://localhost\r\nOrigin: https://evil.example\r\n",
    "Sec-Fetch-Site: cross-site\r\n",
    "Sec-Fetch-Site: same-site\r\n",
];

/// The headers of programs and of pages of the same site; their `Host` is `localhost`.
const OWN: [&str; 5] = [
    "",
    "Content-Type: text/plain\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\n",
    "Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n",
    "Sec-Fetch-Site: none\r\n",
];

#[tokio::test]
async fn a_page_of_another_site_gets_no_data_from_a_gateway_without_teams() {
    let upstream = Upstream::start().await;
    for open in ["false", "true"] {
        let gateway = TestConfig::new(upstream.url()).set("server.open", open).start().await;
        let seen = upstream.count();
        for head in FOREIGN {
            for request in [
                post_to(QUERY, head, ASK),
                get(METADATA, head),
                get(&format!("{QUERY}?pageToken=x"), head),
                get("/nowhere", head),
                format!("HEAD {METADATA} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n").into_bytes(),
                format!("OPTIONS {QUERY} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n").into_bytes(),
                format!("PUT {QUERY} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n").into_bytes(),
            ] {
                let answer = gateway.ask(&request).await;
                assert_eq!(answer.status, 403, "{}", String::from_utf8_lossy(&request));
                if !request.starts_with(b"HEAD") {
                    answer.assert_refused(403, "origin_not_allowed");
                }
                assert_eq!(answer.find("access-control-allow-origin"), None);
            }
        }
        assert_eq!(upstream.count(), seen, "none of these went upstream");
        for head in OWN {
            assert_eq!(gateway.ask(&post_to(QUERY, head, ASK)).await.status, 200, "{head}");
        }
    }
}

#[tokio::test]
async fn pages_are_told_from_programs_over_http_2_too() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let mut sender = http2::connect(&gateway).await;
    let request = |headers: &[(&'static str, String)]| {
        let mut request = http2::request("POST", &gateway, QUERY, ASK);
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    };
    for headers in [
        vec![("origin", "https://evil.example".to_owned())],
        vec![("origin", "null".to_owned())],
        vec![("sec-fetch-site", "cross-site".to_owned())],
        vec![("origin", format!("http://127.0.0.1:{}", gateway.data.port() ^ 1))],
    ] {
        http2::ask(&mut sender, request(&headers)).await.assert_refused(403, "origin_not_allowed");
    }
    assert_eq!(upstream.count(), 0);
    let own = [("origin", format!("http://{}", gateway.data)), ("sec-fetch-site", "same-origin".to_owned())];
    http2::ask(&mut sender, request(&own)).await.assert_page(PAGE, "miss");
    http2::ask(&mut sender, request(&[])).await.assert_page(PAGE, "hit");
}

#[tokio::test]
async fn a_token_is_enough_for_a_page_and_a_certificate_alone_is_not() {
    let (upstream, certificate, authority) = (Upstream::start().await, Certificate::new(), Authority::new());
    let gateway = TestConfig::new(upstream.url())
        .set("server.tls.cert", certificate.path("cert.pem"))
        .set("server.tls.key", certificate.path("key.pem"))
        .set("server.tls.client_ca", authority.write(&certificate))
        .set("teams.t.token_sha256", hash())
        .start()
        .await;
    let ask = async |head: &str| {
        let stream = TcpStream::connect(gateway.data).await.unwrap();
        let issued = authority.issue(&[], "t");
        let stream = certificate.shake(stream, &["http/1.1"], Some(&issued)).await.unwrap();
        Client::over(stream).ask(&get(METADATA, head)).await
    };
    assert_eq!(ask("").await.status, 200);
    for head in FOREIGN {
        ask(head).await.assert_refused(403, "origin_not_allowed");
        // A browser does not send a token by itself.
        assert_eq!(ask(&format!("{head}Authorization: Bearer {TOKEN}\r\n")).await.status, 200, "{head}");
    }
}

/// A GET with this `Host`.
fn named(path: &str, host: &str, head: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{head}\r\n").into_bytes()
}

const ADMIN_PATHS: [&str; 7] = ["/", "/livez", "/readyz", "/metrics", "/status", "/cache/entries", "/nowhere"];

#[tokio::test]
async fn a_page_of_another_site_gets_no_data_from_the_admin_plane() {
    let upstream = Upstream::start().await;
    let public = "http://insights.internal:8080";
    let gateway = TestConfig::new(upstream.url()).set("server.public_url", public).start().await;
    let refused = |answer: Answer, request: &str| {
        assert_eq!(answer.status, 403, "{request}");
        assert_eq!(answer.json()["reason"], "origin_not_allowed", "{request}");
    };
    for path in ADMIN_PATHS {
        for head in FOREIGN {
            refused(gateway.ask_admin(&get(path, head)).await, &format!("{path} {head}"));
        }
        for host in ["evil.example", "localhost.evil.example:9090", "127.0.0.1.evil.example"] {
            refused(gateway.ask_admin(&named(path, host, "")).await, &format!("{path} {host}"));
        }
        for host in ["not a host", ""] {
            assert_eq!(gateway.ask_admin(&named(path, host, "")).await.status, 400, "{path} {host}");
        }
        let own = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", gateway.admin);
        for request in [
            named(path, &gateway.admin.to_string(), &own),
            named(path, "LOCALHOST", ""),
            named(path, "[::1]:9090", ""),
            named(path, "insights.internal", ""),
        ] {
            let status = gateway.ask_admin(&request).await.status;
            assert_eq!(status, if path == "/nowhere" { 404 } else { 200 }, "{path}");
        }
    }
    for head in FOREIGN {
        refused(gateway.ask_admin(&post_to("/cache/purge", head, r#"{"all":true}"#)).await, head);
    }
    assert_eq!(gateway.ask_admin(&post_to("/cache/purge", "", r#"{"all":true}"#)).await.json()["purged"], 0);
}

#[tokio::test]
async fn not_even_a_link_on_another_site_opens_a_page() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    let link = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for path in ["/", "/runbook", "/status", "/events"] {
        assert_eq!(gateway.ask_admin(&get(path, link)).await.status, 403, "{path}");
    }
    // An address that a person types has no site.
    let typed = link.replace("cross-site", "none");
    assert_eq!(gateway.ask_admin(&get("/", &typed)).await.status, 200);
}

#[tokio::test]
async fn with_a_token_the_admin_plane_answers_no_page_of_another_site_either() {
    let upstream = Upstream::start().await;
    let beyond = |listen: &'static str| {
        TestConfig::new(upstream.url()).set("admin.listen", listen).set("admin.token_sha256", hash()).start()
    };
    let (wide, local) = (beyond("0.0.0.0:0").await, beyond("127.0.0.1:0").await);
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for gateway in [&wide, &local] {
        for path in ["/", "/status", "/metrics"] {
            assert_eq!(gateway.ask_admin(&get(path, &token)).await.status, 200);
            // Under any host name, because the token protects it.
            assert_eq!(gateway.ask_admin(&named(path, "gateway.internal", &token)).await.status, 200);
            for head in FOREIGN.into_iter().filter(|head| head.contains("Origin")) {
                let answer = gateway.ask_admin(&get(path, &format!("{head}{token}"))).await;
                assert_eq!((answer.status, &answer.json()["reason"]), (403, &"origin_not_allowed".into()), "{head}");
                assert_eq!(gateway.ask_admin(&get(path, head)).await.status, 401);
            }
        }
        let purge = |head: &str| post_to("/cache/purge", &format!("{head}{token}"), r#"{"all":true}"#);
        assert_eq!(gateway.ask_admin(&purge("Origin: https://evil.example\r\n")).await.status, 403);
        assert_eq!(gateway.ask_admin(&purge("Origin: http://localhost\r\n")).await.status, 200);
        for probe in ["/livez", "/readyz"] {
            assert_eq!(gateway.ask_admin(&get(probe, "")).await.status, 200);
            for head in FOREIGN {
                assert_eq!(gateway.ask_admin(&get(probe, head)).await.status, 403, "{head}");
            }
        }
    }
    // A probe by a DNS name, which on loopback could be a page's.
    for probe in ["/livez", "/readyz"] {
        assert_eq!(wide.ask_admin(&named(probe, "gateway.monitoring.svc:9090", "")).await.status, 200);
        assert_eq!(local.ask_admin(&named(probe, "evil.example:9090", "")).await.status, 403);
    }
}
