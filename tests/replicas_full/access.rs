//! Ways to reach a store: TLS, a user with few rights, passwords, a unix socket.

use std::fs;

use super::bound::{Extra, now};
use super::load::query;
use super::rig::{PHASE, Setup};
use super::servers::{Cluster, Sentinels};
use super::support::certificate::Certificate;
use super::support::store::{Server, free_port};
use super::support::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn tls() {
    let certificate = Certificate::new();
    let port = free_port().await.to_string();
    let (chain, key) = (certificate.path("cert.pem"), certificate.path("key.pem"));
    let mut flags = vec!["--tls-port", &port, "--tls-auth-clients", "no"];
    flags.extend(["--tls-cert-file", &chain, "--tls-key-file", &key, "--tls-ca-cert-file", &chain]);
    let Some(mut server) = Server::start_with(&flags, &[]).await else { return };
    let url = format!("rediss://127.0.0.1:{port}");
    let mut rig = Setup::new("TLS with its own root, kill -9, restart", url).set("shared.ca_file", chain).start().await;
    rig.survives_a_restart(&mut server).await;
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn unix_socket() {
    let folder = tempfile::TempDir::new().unwrap();
    let socket = folder.path().join("store.sock").display().to_string();
    let Some(mut server) = Server::start_with(&["--unixsocket", &socket], &[]).await else { return };
    let mut rig = Setup::new("unix socket, kill -9, restart", format!("unix://{socket}")).start().await;
    rig.survives_a_restart(&mut server).await;
    rig.finish().await;
}

/// The rights that the handbook says are enough.
fn documented_rights() -> Vec<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/replicas.md")).unwrap();
    let page = page.replace("\\\n", " ");
    let line = page.lines().find_map(|line| line.strip_prefix("ACL SETUSER gateway ")).expect("the page has an ACL");
    line.split_whitespace().map(|word| word.replace("PASSWORD", "right")).collect()
}

/// Everything that replicas do, with only those rights on these servers.
async fn documented_acl(name: &str, url: String, servers: &[&Server]) {
    let rights = documented_rights();
    let words: Vec<_> = ["ACL", "SETUSER", "gateway"].into_iter().chain(rights.iter().map(String::as_str)).collect();
    for server in servers {
        server.ask::<String>(&words);
    }
    let setup = Setup::new(name, url).set("shared.username", "gateway");
    let mut rig = setup.set("shared.password", "right").start().await;
    rig.shares_pages().await;
    // Purges and forced refreshes too.
    for gateway in &rig.gateways {
        let purge = post_to("/cache/purge", "Content-Type: application/json\r\n", r#"{"all":true}"#);
        let purged = Client::connect(gateway.admin).await.ask(&purge).await;
        assert_eq!((purged.status, &purged.json()["shared"]), (200, &true.into()), "{}", purged.text());
        let refresh = post_to(QUERY, "Cache-Control: no-cache\r\n", &query(1));
        assert_eq!(Client::connect(gateway.data).await.ask(&refresh).await.status, 200);
    }
    tokio::time::sleep(PHASE).await;
    for server in servers {
        let refused: Vec<redis::Value> = server.ask(&["ACL", "LOG"]);
        rig.check(refused.is_empty(), format!("refused: {refused:?}"));
    }
    rig.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn least_rights() {
    let Some(server) = Server::start().await else { return };
    documented_acl("the documented ACL", server.url(), &[&server]).await;
    documented_acl("the documented ACL, database 3", format!("{}/3", server.url()), &[&server]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn least_rights_behind_sentinel() {
    let Some(servers) = Sentinels::start(&[]).await else { return };
    documented_acl("the documented ACL, Sentinel", servers.url(), &[&servers.primary, &servers.replica]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn least_rights_in_a_cluster() {
    let Some(cluster) = Cluster::start(true).await else { return };
    documented_acl("the documented ACL, cluster", cluster.url(), &cluster.nodes.iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn wrong_password_then_right() {
    let Some(server) = Server::start().await else { return };
    server.ask::<String>(&["ACL", "SETUSER", "gateway", "on", ">right", "~*", "&*", "+@all"]);
    let setup = Setup::new("wrong password, then right", server.url()).set("shared.username", "gateway");
    let mut rig = setup.set("shared.password", "wr0ng-secret").start_idle().await;
    for gateway in &rig.gateways {
        poll("the cause is known", || async {
            let status = Client::connect(gateway.admin).await.ask(&get("/status", "")).await.text();
            assert!(!status.contains("wr0ng-secret"), "{status}");
            (status.contains("WRONGPASS") || status.contains("authentication failed")).then_some(())
        })
        .await;
    }
    let begun = now();
    rig.load(rig.dashboards());
    tokio::time::sleep(2 * PHASE).await;
    rig.unload().await;
    rig.restart_with(&[("shared.password", "right")]).await;
    rig.share().await;
    rig.allow(Extra::Burst { from: begun, until: now() });
    rig.load(rig.dashboards());
    tokio::time::sleep(PHASE).await;
    rig.shares_pages().await;
    rig.finish().await;
}
