//! A reload must not open the gateway to more clients: a new configuration is judged by the listeners that are open.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::certificate::{Authority, Certificate};
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::*;
use insights_gateway::config::Sources;
use insights_gateway::server::{Inherited, InheritedSocket};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;

const TOKEN: &str = "igw_token-of-the-tests";

fn hash() -> String {
    sha256_hex(TOKEN)
}

/// A gateway whose account is in the environment and the rest in a file, which tests overwrite.
struct Guarded {
    gateway: Gateway,
    file: PathBuf,
    applied: u32,
    refused: u32,
    _folder: TempDir,
}

/// Replaces `TOKEN` by its hash.
fn with_hash(text: &str) -> String {
    text.replace("TOKEN", &hash())
}

impl Guarded {
    async fn start(upstream: &Upstream, text: &str, inherited: Inherited) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, with_hash(text)).unwrap();
        let sources = Sources::default()
            .with_variable("TWILIO_ACCOUNT_SID", SID)
            .with_variable("TWILIO_API_KEY", KEY)
            .with_variable("TWILIO_API_SECRET", SECRET)
            .with_variable("INSIGHTS_GATEWAY_UPSTREAM__URL", upstream.url())
            .with_file(&file);
        let gateway = Gateway::start_with(sources, inherited).await;
        Self { gateway, file, applied: 0, refused: 0, _folder: folder }
    }

    async fn reloads(&self, result: &str) -> u32 {
        let head = format!("Authorization: Bearer {TOKEN}\r\nConnection: close\r\n");
        let page = self.gateway.ask_admin(&get("/metrics", &head)).await.text();
        let sample = format!("insights_gateway_reloads_total{{result=\"{result}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&sample)?.parse().ok()).expect("the reloads are counted")
    }

    /// Overwrites the file and requests a reload.
    async fn reload(&self, text: &str) {
        fs::write(&self.file, with_hash(text)).unwrap();
        self.gateway.reload.notify_one();
    }

    async fn applies(&mut self, text: &str) {
        self.reload(text).await;
        self.applied += 1;
        poll("a reload", || async { (self.reloads("applied").await == self.applied).then_some(()) }).await;
        assert_eq!(self.reloads("refused").await, self.refused);
    }

    /// The reload must be refused with this reason.
    async fn refuses(&mut self, text: &str, why: &str) {
        self.reload(text).await;
        self.refused += 1;
        poll("a refusal", || async { (self.reloads("refused").await == self.refused).then_some(()) }).await;
        assert_eq!(self.reloads("applied").await, self.applied, "{text}");
        let status = self.gateway.ask_admin(&get("/status", &format!("Authorization: Bearer {TOKEN}\r\n"))).await;
        let faults = status.json()["configuration"]["faults"].to_string();
        assert!(faults.contains(why), "{text}: {faults}");
    }

    async fn is_shut(&self) {
        self.gateway.ask(&get(METADATA, "")).await.assert_refused(401, "unauthenticated");
        assert_eq!(self.gateway.ask(&get(METADATA, &format!("Authorization: Bearer {TOKEN}\r\n"))).await.status, 200);
    }

    async fn admin_is_shut(&self) {
        let purge = post_to("/cache/purge", "", r#"{"all":true}"#);
        assert_eq!(self.gateway.ask_admin(&purge).await.status, 401);
        assert_eq!(self.gateway.ask_admin(&get("/status", "")).await.status, 401);
    }
}

const TEAM: &str = "[teams.t]\ntoken_sha256 = 'TOKEN'\n";
const ADMIN: &str = "[admin]\nlisten = '0.0.0.0:0'\ntoken_sha256 = 'TOKEN'\n";

#[tokio::test]
async fn a_reload_that_would_open_the_gateway_is_refused() {
    let upstream = Upstream::start().await;
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let wide = format!("[server]\nlisten = ['{listen}']\n");
        let mut guarded = Guarded::start(&upstream, &format!("{wide}{ADMIN}{TEAM}"), Inherited::default()).await;
        for (text, why) in [
            // Truncated, with the account still known: a valid configuration for loopback.
            (String::new(), "server.listen: "),
            (String::new(), "admin.token_sha256: "),
            ("[server]\nlisten = ['127.0.0.1:0']\n[admin]\ntoken_sha256 = 'TOKEN'\n".into(), "server.open = true"),
            ("[server]\nlisten = ['127.0.0.1:0', '[::1]:0']\n".to_owned() + ADMIN, "is not loopback"),
            ("[server]\nlisten = ['unix:/nowhere/a.sock']\n".to_owned() + ADMIN, "is not loopback"),
            (format!("{wide}{TEAM}"), "the admin plane's "),
            (format!("{TEAM}[admin]\nlisten = '127.0.0.1:0'\n"), "the admin plane's "),
            (format!("{wide}{TEAM}[admin]\nlisten = '[::1]:0'\n"), "token new"),
            (format!("{wide}{ADMIN}"), "is not loopback"),
            (format!("{wide}{ADMIN}[teams.t]\ntoken_sha256 = []\n"), "must not be empty"),
            (format!("{wide}{ADMIN}[teams.t]\n"), "missing"),
        ] {
            guarded.refuses(&text, why).await;
            guarded.admin_is_shut().await;
        }
        // Once, because refusals of unidentified clients are delayed.
        guarded.is_shut().await;
        guarded.applies(&format!("[server]\nlisten = ['127.0.0.1:0']\n{ADMIN}{TEAM}")).await;
        guarded.is_shut().await;
        // The configuration allows it explicitly.
        guarded.applies(&format!("[server]\nopen = true\n{ADMIN}")).await;
        assert_eq!(guarded.gateway.ask(&get(METADATA, "")).await.status, 200);
        guarded.refuses(ADMIN, "server.open = true").await;
    }
}

#[tokio::test]
async fn a_reload_after_a_file_change_is_judged_in_the_same_way() {
    let upstream = Upstream::start().await;
    let text = format!("[server]\nlisten = ['0.0.0.0:0']\n{ADMIN}{TEAM}");
    let guarded = Guarded::start(&upstream, &text, Inherited::default()).await;
    fs::write(&guarded.file, "").unwrap();
    poll("a refusal", || async { (guarded.reloads("refused").await == 1).then_some(()) }).await;
    guarded.is_shut().await;
    guarded.admin_is_shut().await;
}

#[tokio::test]
async fn a_socket_of_systemd_is_judged_by_its_address() {
    let upstream = Upstream::start().await;
    let text = |teams: &str| format!("[server]\nlisten = ['systemd:gateway']\n{ADMIN}{teams}");
    let hand_over = |address: &str| {
        let mut inherited = Inherited::default();
        inherited.add("gateway", InheritedSocket::Tcp(std::net::TcpListener::bind(address).unwrap()));
        inherited
    };
    let mut wide = Guarded::start(&upstream, &text(TEAM), hand_over("0.0.0.0:0")).await;
    for text in [text(""), ADMIN.to_owned(), "[server]\nlisten = ['127.0.0.1:0']\n".to_owned() + ADMIN] {
        wide.refuses(&text, "is not loopback").await;
        wide.is_shut().await;
    }
    let mut local = Guarded::start(&upstream, &text(TEAM), hand_over("127.0.0.1:0")).await;
    local.applies(&text("")).await;
    assert_eq!(local.gateway.ask(&get(METADATA, "")).await.status, 200);
}

#[tokio::test]
async fn on_loopback_a_reload_may_take_teams_and_tokens_away() {
    let upstream = Upstream::start().await;
    let folder = TempDir::new().unwrap();
    let listen = format!(
        "[server]\nlisten = ['127.0.0.1:0', '[::ffff:127.0.0.1]:0', 'unix:{}']\n",
        folder.path().join("a.sock").display()
    );
    let text = format!("{listen}[admin]\nlisten = '127.0.0.1:0'\ntoken_sha256 = 'TOKEN'\n{TEAM}");
    let mut guarded = Guarded::start(&upstream, &text, Inherited::default()).await;
    guarded.is_shut().await;
    guarded.applies("[admin]\nlisten = '127.0.0.1:0'\n").await;
    assert_eq!(guarded.gateway.ask(&get(METADATA, "")).await.status, 200);
    assert_eq!(guarded.gateway.admin("/status").await.status, 200);
}

/// The status of a request over TLS; `None` if a client without a certificate cannot send one.
async fn over_tls(guarded: &Guarded, certificate: &Certificate) -> Option<u16> {
    let stream = TcpStream::connect(guarded.gateway.data).await.unwrap();
    let stream = certificate.shake(stream, &["http/1.1"], None).await.ok()?;
    Client::over(stream).try_ask(&get(METADATA, "")).await.map(|answer| answer.status)
}

#[tokio::test]
async fn a_reload_that_would_let_in_clients_without_a_certificate_is_refused() {
    let (upstream, certificate, authority) = (Upstream::start().await, Certificate::new(), Authority::new());
    let clients = authority.write(&certificate);
    let tls = |open: bool, clients: Option<&str>| {
        let (cert, key) = (certificate.path("cert.pem"), certificate.path("key.pem"));
        let client_ca = clients.map_or(String::new(), |path| format!(", client_ca = '{path}'"));
        let listen = if open { "0.0.0.0:0" } else { "127.0.0.1:0" };
        let tls = format!("tls = {{ cert = '{cert}', key = '{key}'{client_ca} }}");
        format!("[server]\nopen = {open}\nlisten = ['{listen}']\n{tls}\n{ADMIN}")
    };
    for open in [false, true] {
        let mut guarded = Guarded::start(&upstream, &tls(open, Some(&clients)), Inherited::default()).await;
        assert_eq!(over_tls(&guarded, &certificate).await, None);
        for text in [tls(open, None), format!("[server]\nopen = {open}\n{ADMIN}"), ADMIN.to_owned()] {
            guarded.refuses(&text, "server.tls.client_ca: was removed").await;
            assert_eq!(over_tls(&guarded, &certificate).await, None, "{text}");
        }
        // Teams decide about access as well.
        guarded.applies(&format!("{}{TEAM}", tls(open, None))).await;
        assert_eq!(over_tls(&guarded, &certificate).await, Some(401));
    }
    // Without TLS no certificate can be demanded, whatever the new text says.
    let mut clear =
        Guarded::start(&upstream, &format!("{ADMIN}{TEAM}[server]\nlisten = ['127.0.0.1:0']\n"), Inherited::default())
            .await;
    clear.refuses(&tls(false, Some(&clients)), "cannot take effect before a restart").await;
    clear.is_shut().await;
}

#[tokio::test]
async fn certificates_name_no_team_once_the_configuration_accepts_none() {
    let (upstream, certificate, authority) = (Upstream::start().await, Certificate::new(), Authority::new());
    let clients = authority.write(&certificate);
    let (cert, key) = (certificate.path("cert.pem"), certificate.path("key.pem"));
    let tls = |more: &str| format!("tls = {{ cert = '{cert}', key = '{key}'{more} }}\n");
    let text = |tls: &str| format!("[server]\nlisten = ['0.0.0.0:0']\n{tls}{ADMIN}{TEAM}");
    let with_clients = text(&tls(&format!(", client_ca = '{clients}'")));
    let mut guarded = Guarded::start(&upstream, &with_clients, Inherited::default()).await;
    let data = guarded.gateway.data;
    let ask = async |head: &str| {
        let issued = authority.issue(&[], "t");
        let stream = TcpStream::connect(data).await.unwrap();
        let stream = certificate.shake(stream, &["http/1.1"], Some(&issued)).await.unwrap();
        Client::over(stream).ask(&get(METADATA, head)).await
    };
    // The text may lack TLS, which stays as it is until a restart, or only the authority.
    for without in [text(""), text(&tls(""))] {
        assert_eq!(ask("").await.status, 200);
        guarded.applies(&without).await;
        ask("").await.assert_refused(401, "unauthenticated");
        assert_eq!(ask(&format!("Authorization: Bearer {TOKEN}\r\n")).await.status, 200);
        guarded.applies(&with_clients).await;
    }
}

#[tokio::test]
async fn a_file_that_appears_after_its_configuration_is_used() {
    let upstream = Upstream::start().await;
    let local = "[server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n";
    let mut guarded = Guarded::start(&upstream, local, Inherited::default()).await;
    let folder = TempDir::new().unwrap();
    let secret = folder.path().join("secret");
    let named = |secret: &Path| {
        format!(
            "{local}[accounts.main]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = {{ file = '{}' }}\n",
            secret.display()
        )
    };
    guarded.refuses(&named(&secret), "No such file").await;
    // A pipe is checked, but not waited for.
    assert!(std::process::Command::new("mkfifo").arg(&secret).status().unwrap().success());
    guarded.refused += 1;
    poll("another try", || async { (guarded.reloads("refused").await == guarded.refused).then_some(()) }).await;
    fs::remove_file(&secret).unwrap();
    fs::write(&secret, format!("{SECRET}\n")).unwrap();
    poll("the secret", || async { (guarded.reloads("applied").await == 1).then_some(()) }).await;
    let status = guarded.gateway.admin("/status").await.json();
    assert_eq!(status["configuration"]["faults"], json!([]));
}

#[tokio::test]
async fn a_certificate_that_is_corrected_after_a_refusal_is_used() {
    let (upstream, old, new) = (Upstream::start().await, Certificate::new(), Certificate::new());
    let text = |key: &str| {
        let (cert, key) = (old.path("cert.pem"), old.path(key));
        format!(
            "[server]\nlisten = ['127.0.0.1:0']\ntls = {{ cert = '{cert}', key = '{key}' }}\n\
             [admin]\nlisten = '127.0.0.1:0'\n"
        )
    };
    let mut guarded = Guarded::start(&upstream, &text("key.pem"), Inherited::default()).await;
    // A key that belongs to another certificate, in a file that the old configuration does not name.
    fs::copy(new.path("key.pem"), old.path("other.pem")).unwrap();
    guarded.refuses(&text("other.pem"), "server.tls.key: this key does not belong").await;
    fs::copy(old.path("key.pem"), old.path("other.pem")).unwrap();
    poll("the key", || async { (guarded.reloads("applied").await == 1).then_some(()) }).await;
    assert_eq!(over_tls(&guarded, &old).await, Some(200));
}
