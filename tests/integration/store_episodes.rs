//! What the log, `/status` and `/readyz` say of a store that is not used: the same cause, and two log lines an episode.

use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::Instant;

use super::support::process::{Process, set};
use super::support::store::{Link, Proxy, Server, free_port};
use super::support::*;

const LOST: &str = "the shared store is not reached: this replica goes on alone";
const REACHED: &str = "the shared store is reached";

/// A gateway that shares the store at this URL.
async fn start(url: &str, further: &[(&str, &str)]) -> Process {
    let keys = [("shared.url", url), ("shared.replicas", "2"), ("shared.timeout", "4s")];
    Process::start(keys.iter().chain(further).map(|(key, value)| set(key, value)).collect()).await
}

async fn admin(gateway: &Process, path: &str) -> Json {
    Client::connect(gateway.admin).await.ask(&get(path, "")).await.json()
}

/// Returns once the episode is logged. The cause is in the log, in `/status` and in `/readyz`.
async fn is_alone_because(gateway: &mut Process, cause: &str) {
    let line = gateway.says(|event| event["message"] == LOST).await;
    assert_eq!((line["level"].as_str(), line["cause"].as_str()), (Some("WARN"), Some(cause)), "{line}");
    let status = admin(gateway, "/status").await;
    assert_eq!(
        (&status["shared"]["state"], &status["shared"]["cause"]),
        (&"degraded".into(), &cause.into()),
        "{status}"
    );
    let ready = admin(gateway, "/readyz").await;
    let check = ready["checks"].as_array().unwrap().iter().find(|check| check["check"] == "shared").unwrap();
    assert_eq!((&check["state"], &check["cause"]), (&"degraded".into(), &cause.into()), "{ready}");
    assert_eq!(gateway.metric("insights_gateway_shared_up{}").await.as_deref(), Some("0"));
}

/// Returns once the store is reached again. Each of these episodes has had one line for its beginning and one for its end.
async fn shares_after(gateway: &mut Process, lost: usize, reached: usize) {
    let count = |log: &[Json], message: &str| log.iter().filter(|event| event["message"] == message).count();
    let deadline = Instant::now() + Duration::from_secs(15);
    while count(&gateway.log(), REACHED) < reached {
        assert!(Instant::now() < deadline, "{:#?}", gateway.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    poll("health is ok", || async { (admin(gateway, "/status").await["shared"]["state"] == "ok").then_some(()) }).await;
    let log = gateway.log();
    assert_eq!((count(&log, LOST), count(&log, REACHED)), (lost, reached), "{log:#?}");
}

/// A user of the store that gateways are, with this password.
fn set_user(server: &Server, password: &str) {
    let password = format!(">{password}");
    server.ask::<String>(&["ACL", "SETUSER", "gateway", "on", "resetpass", &password, "~*", "&*", "+@all"]);
}

const LOGIN: [(&str, &str); 2] = [("shared.username", "gateway"), ("shared.password", "first")];

#[tokio::test]
async fn a_store_that_is_away_at_the_start_is_logged_once_and_so_is_its_return() {
    let Some(mut server) = Server::start().await else { return };
    server.kill();
    let mut gateway = start(&server.url(), &[]).await;
    is_alone_because(&mut gateway, "connection refused").await;
    server.run().await;
    shares_after(&mut gateway, 1, 1).await;
    server.kill();
    is_alone_because(&mut gateway, "connection refused").await;
    server.run().await;
    shares_after(&mut gateway, 2, 2).await;
}

#[tokio::test]
async fn a_store_that_is_there_at_the_start_is_not_logged_as_lost() {
    let Some(server) = Server::start().await else { return };
    let mut gateway = start(&server.url(), &[]).await;
    shares_after(&mut gateway, 0, 1).await;
}

#[tokio::test]
async fn a_server_of_another_kind_is_called_so() {
    let Some(server) = Server::start().await else { return };
    let proxy = Proxy::start(server.address()).await;
    proxy.set(Link::Garbage);
    let mut gateway = start(&proxy.url(), &[]).await;
    is_alone_because(&mut gateway, "what answers at this address is not a Redis or Valkey").await;
    proxy.set(Link::Whole);
    shares_after(&mut gateway, 1, 1).await;
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_named() {
    let Some(server) = Server::start().await else { return };
    set_user(&server, "first");
    let mut gateway = start(&server.url(), &LOGIN).await;
    shares_after(&mut gateway, 0, 1).await;
    for (number, right) in ["set", "get", "xadd"].into_iter().enumerate() {
        server.ask::<String>(&["ACL", "SETUSER", "gateway", &format!("-{right}")]);
        let cause = format!("the user may not run {}: NOPERM", right.to_uppercase());
        is_alone_because(&mut gateway, &cause).await;
        server.ask::<String>(&["ACL", "SETUSER", "gateway", &format!("+{right}")]);
        shares_after(&mut gateway, number + 1, number + 2).await;
    }
}

#[tokio::test]
async fn a_password_that_no_longer_holds_is_the_cause_of_a_connection_that_broke() {
    let Some(server) = Server::start().await else { return };
    set_user(&server, "first");
    let mut gateway = start(&server.url(), &LOGIN).await;
    shares_after(&mut gateway, 0, 1).await;
    set_user(&server, "second");
    server.ask::<usize>(&["CLIENT", "KILL", "USER", "gateway"]);
    let cause = "the store refuses the user name or password: authentication failed";
    is_alone_because(&mut gateway, cause).await;
    set_user(&server, "first");
    shares_after(&mut gateway, 1, 2).await;
}

#[tokio::test]
async fn a_connection_that_broke_is_an_episode_although_the_next_one_works() {
    let Some(server) = Server::start().await else { return };
    set_user(&server, "first");
    let mut gateway = start(&server.url(), &LOGIN).await;
    shares_after(&mut gateway, 0, 1).await;
    server.ask::<usize>(&["CLIENT", "KILL", "USER", "gateway"]);
    let line = gateway.says(|event| event["message"] == LOST).await;
    assert_eq!(line["cause"], "the connection to the store broke");
    shares_after(&mut gateway, 1, 2).await;
}

#[tokio::test]
async fn a_store_that_refuses_writes_says_why() {
    let Some(server) = Server::start().await else { return };
    let mut gateway = start(&server.url(), &[]).await;
    shares_after(&mut gateway, 0, 1).await;
    let nobody = free_port().await.to_string();
    server.ask::<String>(&["REPLICAOF", "127.0.0.1", &nobody]);
    let cause = "the store refuses writes, because it is a copy of another server: READONLY";
    is_alone_because(&mut gateway, cause).await;
    server.ask::<String>(&["REPLICAOF", "NO", "ONE"]);
    shares_after(&mut gateway, 1, 2).await;
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]);
    is_alone_because(&mut gateway, "the store is out of memory: OOM").await;
    server.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]);
    shares_after(&mut gateway, 2, 3).await;
}

#[tokio::test]
async fn a_store_that_refuses_only_the_budget_leaves_the_gateway_alone() {
    let Some(server) = Server::start().await else { return };
    set_user(&server, "first");
    let mut gateway = start(&server.url(), &LOGIN).await;
    shares_after(&mut gateway, 0, 1).await;
    // Without the keys of accounts.
    let keys = ["resetkeys", "~*{changes}*", "~*:page:*", "~*:flight*", "~*:grant:*"];
    server.ask::<String>(&[&["ACL", "SETUSER", "gateway"], keys.as_slice()].concat());
    let cause = "the user lacks a right, or may not use keys that begin with shared.prefix: NOPERM";
    is_alone_because(&mut gateway, cause).await;
    server.ask::<String>(&["ACL", "SETUSER", "gateway", "allkeys"]);
    shares_after(&mut gateway, 1, 2).await;
}
