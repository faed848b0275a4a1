//! Browsers on the admin plane: login, sessions, and pages of other sites.

use std::time::Duration;

use crate::support::events::{EventStream, Told};
use crate::support::*;
use tokio::time::Instant;

const TOKEN: &str = "igw_admin-token-of-the-tests";

async fn start() -> (Upstream, Gateway) {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).set("admin.token_sha256", sha256_hex(TOKEN)).start().await;
    (upstream, gateway)
}

async fn log_in(gateway: &Gateway, token: &str) -> Answer {
    let head = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://localhost\r\n";
    gateway.ask_admin(&post_to("/login", head, &format!("token={token}"))).await
}

/// The header line with the cookie that a login has set.
fn cookie(login: &Answer) -> String {
    let (pair, attributes) = login.header("set-cookie").split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict", "without an end, so that it ends with the browser");
    format!("Cookie: {pair}\r\n")
}

#[tokio::test]
async fn a_browser_logs_in_and_out() {
    let (_upstream, gateway) = start().await;
    let html = "Accept: text/html,*/*\r\n";
    let led = gateway.ask_admin(&get("/", html)).await;
    assert_eq!((led.status, led.header("location")), (303, "/login"));
    assert_eq!(gateway.ask_admin(&get("/", "")).await.status, 401, "programs are not redirected");
    assert_eq!(gateway.ask_admin(&get("/status", html)).await.status, 401);
    let form = gateway.ask_admin(&get("/login", html)).await;
    assert_eq!((form.status, form.header("content-type")), (200, "text/html; charset=utf-8"));

    let login = log_in(&gateway, TOKEN).await;
    assert_eq!((login.status, login.header("location")), (303, "/"));
    let session = cookie(&login);
    assert!(!session.contains(TOKEN));
    for path in ["/", "/status", "/metrics", "/cache/entries"] {
        assert_eq!(gateway.ask_admin(&get(path, &session)).await.status, 200, "{path}");
        assert_eq!(gateway.ask_admin(&get(path, "Cookie: insights_gateway_session=x\r\n")).await.status, 401, "{path}");
    }
    let again = gateway.ask_admin(&get("/login", &session)).await;
    assert_eq!((again.status, again.header("location")), (303, "/"));
    let own = format!("{session}Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(gateway.ask_admin(&post_to("/cache/purge", &own, "{\"all\":true}")).await.status, 200);

    let wrong = format!("{session}Authorization: Bearer wrong\r\n");
    assert_eq!(
        gateway.ask_admin(&get("/status", &wrong)).await.status,
        401,
        "a wrong token is refused despite a session"
    );

    let mut events = EventStream::open(gateway.admin, &session).await;
    events.event("snapshot").await;
    let out = gateway.ask_admin(&post_to("/logout", &own, "")).await;
    assert_eq!((out.status, out.header("location")), (303, "/login"));
    assert!(out.header("set-cookie").contains("Max-Age=0"));
    assert_eq!(gateway.ask_admin(&get("/status", &session)).await.status, 401);
    within(async { while events.next().await != Told::End {} }).await;
}

#[tokio::test]
async fn wrong_tokens_have_their_own_message_and_are_delayed_from_the_third_on() {
    let (_upstream, gateway) = start().await;
    let missing = gateway.admin("/status").await.text();
    let wrong = gateway.ask_admin(&get("/status", "Authorization: Bearer x\r\n")).await;
    assert!(wrong.status == 401 && missing != wrong.text() && wrong.text().contains("not the admin plane's token"));
    let mut took = Vec::new();
    for _ in 0..4 {
        let begun = Instant::now();
        let answer = log_in(&gateway, "igw_wrong").await;
        took.push(begun.elapsed());
        assert_eq!((answer.status, answer.find("set-cookie")), (401, None));
        assert!(answer.text().contains("not the admin token"), "{}", answer.text());
    }
    assert!(took[2] >= Duration::from_millis(250) && took[3] >= Duration::from_millis(500), "{took:?}");
    assert_eq!(log_in(&gateway, TOKEN).await.status, 303, "the right one is not held back");
    assert_eq!(log_in(&gateway, &"x".repeat(5000)).await.status, 413);
}

#[tokio::test]
async fn a_session_ends_when_the_token_changes() {
    let (upstream, folder) = (Upstream::start().await, tempfile::TempDir::new().unwrap());
    let file = folder.path().join("gateway.toml");
    let write = |token: &str| {
        std::fs::write(&file, format!("[admin]\ntoken_sha256 = '{}'\n", sha256_hex(token))).unwrap();
    };
    write(TOKEN);
    let gateway = Gateway::start(TestConfig::new(upstream.url()).sources().with_file(&file)).await;
    let session = cookie(&log_in(&gateway, TOKEN).await);
    assert_eq!(gateway.ask_admin(&get("/status", &session)).await.status, 200);
    let mut events = EventStream::open(gateway.admin, &session).await;
    write("igw_another");
    gateway.reload.notify_one();
    poll("the reload", || async { (gateway.ask_admin(&get("/status", &session)).await.status == 401).then_some(()) })
        .await;
    within(async { while events.next().await != Told::End {} }).await;
    // The first token again, and no login in between: its sessions have ended all the same.
    write(TOKEN);
    gateway.reload.notify_one();
    let shown = format!("Authorization: Bearer {TOKEN}\r\n");
    poll("the reload", || async { (gateway.ask_admin(&get("/status", &shown)).await.status == 200).then_some(()) })
        .await;
    assert_eq!(gateway.ask_admin(&get("/status", &session)).await.status, 401);
    assert_eq!(log_in(&gateway, TOKEN).await.status, 303);
}

#[tokio::test]
async fn without_an_admin_token_there_is_no_login() {
    let upstream = Upstream::start().await;
    let gateway = TestConfig::new(upstream.url()).start().await;
    for request in [get("/login", ""), post_to("/login", "", "token=x"), post_to("/logout", "", "")] {
        let answer = gateway.ask_admin(&request).await;
        assert_eq!((answer.status, answer.header("location"), answer.find("set-cookie")), (303, "/", None));
    }
    assert_eq!(gateway.ask_admin(&get("/", "Accept: text/html\r\n")).await.status, 200);
}

#[tokio::test]
async fn a_page_of_another_site_cannot_use_a_session() {
    let (upstream, gateway) = start().await;
    let session = cookie(&log_in(&gateway, TOKEN).await);
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    for foreign in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        let head = format!("{session}{foreign}{form}");
        for request in [
            post_to("/cache/purge", &head, "{\"all\":true}"),
            post_to("/explorer/query", &head, "{}"),
            post_to("/logout", &head, ""),
            post_to("/login", &format!("{foreign}{form}"), &format!("token={TOKEN}")),
            get("/status", &head),
            get("/events", &head),
            get("/", &head),
        ] {
            let answer = gateway.ask_admin(&request).await;
            assert_eq!(answer.status, 403, "{}", String::from_utf8_lossy(&request));
            assert_eq!(answer.find("set-cookie"), None);
        }
        // Browsers send no Authorization across sites by themselves. Programs must not name another origin either.
        if foreign.starts_with("Origin") {
            let answer =
                gateway.ask_admin(&post_to("/cache/purge", &format!("{token}{foreign}"), "{\"all\":true}")).await;
            assert_eq!(answer.status, 403);
        }
    }
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "hit");
    assert_eq!(upstream.count(), 1);
    assert_eq!(gateway.ask_admin(&get("/status", &session)).await.status, 200, "nobody was logged out");
    // A link on another site leads to the login form.
    let link = "Accept: text/html\r\nSec-Fetch-Site: cross-site\r\n";
    assert_eq!(gateway.ask_admin(&get("/", link)).await.header("location"), "/login");
    assert_eq!(gateway.ask_admin(&get("/login", link)).await.status, 200);
}

#[tokio::test]
async fn pages_load_nothing_from_elsewhere() {
    let (_upstream, gateway) = start().await;
    let session = cookie(&log_in(&gateway, TOKEN).await);
    for (path, head) in [("/", session.as_str()), ("/login", "")] {
        let page = gateway.ask_admin(&get(path, head)).await;
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert_eq!((page.header("x-content-type-options"), page.header("referrer-policy")), ("nosniff", "same-origin"));
        assert_eq!(page.header("cache-control"), "no-store");
    }
}
