//! Sealed values, the keys that seal them, and the password of the store.

use std::path::Path;

use insights_gateway::config::Sources;

use super::{ask, is_shared, replicas};
use crate::jobs::JOBS;
use crate::support::gateway::{KEY, SECRET, SID};
use crate::support::store::{Server, sharing};
use crate::support::*;

#[tokio::test]
async fn a_wrong_password_is_the_cause_that_health_shows() {
    let Some(server) = Server::start().await else { return };
    server.ask::<String>(&["CONFIG", "SET", "requirepass", "right"]);
    let upstream = Upstream::start().await;
    let config = sharing(TestConfig::new(upstream.url()), &server.url(), 2);
    let gateway = config.set("shared.password", "wr0ng-secret").start().await;
    gateway.ask(&post(ASK)).await.assert_page(PAGE, "miss");
    let cause = poll("the cause is known", || async {
        let status = gateway.admin("/status").await.json();
        let cause = status["shared"]["cause"].as_str().map(str::to_owned);
        cause.filter(|cause| cause.contains("WRONGPASS") || cause.contains("authentication"))
    })
    .await;
    assert!(!cause.contains("wr0ng-secret"), "{cause}");
}

#[tokio::test]
async fn nothing_in_the_store_can_be_read_and_everything_ends() {
    let Some(server) = Server::start().await else { return };
    let upstream = Upstream::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let key = folder.path().join("seal");
    std::fs::write(&key, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
    let seal = format!("[{{file=\"{}\"}}]", key.display());
    let keys = [("shared.seal", seal.as_str()), ("accounts.default.rate", "50/s")];
    let gateways = replicas(&upstream, &vec![server.url(); 2], &keys).await;
    gateways[0].ask(&post(ASK)).await.assert_page(PAGE, "miss");
    gateways[0].ask(&get(METADATA, "")).await;
    is_shared(&gateways[0], 2).await;
    poll("the page is shared", || async { (gateways[1].ask(&post(ASK)).await.detail() == "hit").then_some(()) }).await;
    gateways[1].ask_admin(&post_to("/cache/purge", "", r#"{"account":"default"}"#)).await;
    // The answer to a submission cannot be this page, so its end is unknown and its key is noted.
    gateways[0].ask(&post_to(JOBS, "", ASK)).await;
    let key = upstream.seen().last().unwrap().header("idempotency-key").unwrap().to_owned();
    let content = server.content();
    assert!(content.iter().any(|(name, ..)| name.contains(":job-note:")), "{content:?}");
    assert!(content.len() > 3, "{content:?}");
    for (name, value, ends) in content {
        assert!(ends, "{name} has no expiry");
        for secret in ["Conversation", "data", gateway::SID, gateway::KEY, gateway::SECRET, "default", "local", &key] {
            let shown = |bytes: &[u8]| client::find(bytes, secret.as_bytes()).is_some();
            assert!(!shown(name.as_bytes()) && !shown(&value), "{name} shows {secret}");
        }
    }
}

/// A key in base64, as an entry of `shared.seal`.
fn seal(byte: u8) -> String {
    use base64::Engine;
    format!("'{}'", base64::prelude::BASE64_STANDARD.encode([byte; 32]))
}

/// Gives the gateways' user of the store a password, in place of any other, and writes it where they read it.
fn set_password(server: &Server, folder: &Path, password: &str) {
    let rights = ["~*", "&*", "+@all"];
    let user = ["ACL", "SETUSER", "gateway", "on", "resetpass", &format!(">{password}")].map(str::to_owned);
    server.ask::<String>(&user.iter().map(String::as_str).chain(rights).collect::<Vec<_>>());
    let new = folder.join("new");
    std::fs::write(&new, password).unwrap();
    std::fs::rename(new, folder.join("password")).unwrap();
}

/// Writes the configuration of one of two gateways. Its password is in a file beside it.
fn write_config(folder: &Path, number: usize, upstream: &Upstream, server: &Server, seals: &str) {
    let text = format!(
        "[accounts.default]\naccount_sid = '{SID}'\napi_key = '{KEY}'\napi_secret = '{SECRET}'\nrate = '0/s'\n\
         [server]\nlisten = ['127.0.0.1:0']\n[admin]\nlisten = '127.0.0.1:0'\n[upstream]\nurl = '{}'\n\
         [shared]\nurl = '{}'\nreplicas = 2\ntimeout = '4s'\nseal = [{seals}]\nusername = 'gateway'\npassword = {{ file = '{}' }}\n",
        upstream.url(),
        server.url(),
        folder.join("password").display(),
    );
    let new = folder.join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, folder.join(format!("{number}.toml"))).unwrap();
}

/// Gateways with these configurations, once they see each other.
async fn from_files(folder: &Path) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for number in 0..2 {
        let sources = Sources::default().with_file(folder.join(format!("{number}.toml")));
        gateways.push(Gateway::start(sources).await);
    }
    for gateway in &gateways {
        gateway.metric_reaches("replicas", &[], 2.0).await;
    }
    gateways
}

/// Returns once this gateway has read its configuration again.
async fn reload(gateway: &Gateway) {
    let applied = || gateway.metric("reloads_total", &["applied"]);
    let before = applied().await;
    gateway.reload.notify_one();
    poll("a reload", || async { (applied().await > before).then_some(()) }).await;
}

#[tokio::test]
async fn a_sealing_key_is_rotated_by_reloads_and_no_page_is_lost() {
    let Some(server) = Server::start().await else { return };
    let (upstream, folder) = (Upstream::start().await, tempfile::TempDir::new().unwrap());
    let write = |number, seals: &str| write_config(folder.path(), number, &upstream, &server, seals);
    set_password(&server, folder.path(), "first");
    let (old, new) = (seal(1), seal(2));
    [0, 1].iter().for_each(|number| write(*number, &old));
    let gateways = from_files(folder.path()).await;
    for (step, seals) in [format!("{old}, {new}"), format!("{new}, {old}"), new].iter().enumerate() {
        let number = 4 * step;
        // Before, between and after the two reloads both read what the other writes.
        gateways[0].ask(&ask(number)).await.assert_page(PAGE, "miss");
        is_shared(&gateways[0], 2 * step + 1).await;
        write(0, seals);
        reload(&gateways[0]).await;
        gateways[1].ask(&ask(number)).await.assert_page(PAGE, "shared");
        gateways[1].ask(&ask(number + 1)).await.assert_page(PAGE, "miss");
        is_shared(&gateways[1], step + 1).await;
        gateways[0].ask(&ask(number + 1)).await.assert_page(PAGE, "shared");
        gateways[0].ask(&ask(number + 2)).await.assert_page(PAGE, "miss");
        is_shared(&gateways[0], 2 * step + 2).await;
        write(1, seals);
        reload(&gateways[1]).await;
        gateways[1].ask(&ask(number + 2)).await.assert_page(PAGE, "shared");
    }
    for gateway in &gateways {
        assert_eq!(gateway.metric("shared_unsealed_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn a_new_password_is_used_for_the_next_connection() {
    let Some(server) = Server::start().await else { return };
    let (upstream, folder) = (Upstream::start().await, tempfile::TempDir::new().unwrap());
    set_password(&server, folder.path(), "first");
    [0, 1].iter().for_each(|number| write_config(folder.path(), *number, &upstream, &server, &seal(1)));
    let gateways = from_files(folder.path()).await;
    set_password(&server, folder.path(), "second");
    for gateway in &gateways {
        reload(gateway).await;
    }
    let connections = || {
        let clients: String = server.ask(&["CLIENT", "LIST"]);
        clients.lines().filter(|client| client.contains("user=gateway")).count()
    };
    let killed: usize = server.ask(&["CLIENT", "KILL", "USER", "gateway"]);
    assert_eq!(killed, 2, "the connections of before are still in use");
    poll("both are back", || async { (connections() == 2).then_some(()) }).await;
    for gateway in &gateways {
        gateway.metric_reaches("shared_up", &[], 1.0).await;
    }
    gateways[0].ask(&ask(1)).await.assert_page(PAGE, "miss");
    is_shared(&gateways[0], 1).await;
    poll("the page is shared", || async { (gateways[1].ask(&ask(1)).await.detail() != "miss").then_some(()) }).await;
    assert_eq!(upstream.count(), 1, "{:?}", upstream.seen());
}
