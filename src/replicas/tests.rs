use std::time::Duration;

use super::test_server::{TestServer, until};
use super::*;

#[tokio::test]
async fn the_store_is_found_again_after_it_was_gone() {
    let Some(mut server) = TestServer::start() else { return };
    let store = server.replica().await;
    let ping = redis::cmd("PING");
    assert_eq!(store.run::<String>("test", &ping).await.unwrap(), "PONG");
    let before = store.time().unwrap();
    server.kill();
    until("an operation fails", || !store.is_up()).await;
    assert_eq!(store.run::<String>("test", &ping).await, Err(StoreError::Down));
    assert!(store.view().cause.is_some());
    server.run();
    until("it is back", || store.is_up()).await;
    assert_eq!(store.run::<String>("test", &ping).await.unwrap(), "PONG");
    assert!(store.time().unwrap() > before && store.view().cause.is_none());
}

#[tokio::test]
async fn replicas_count_each_other() {
    let Some(server) = TestServer::start() else { return };
    let (one, two) = (server.replica().await, server.replica().await);
    until("both are seen", || one.replicas() == 2 && two.replicas() == 2).await;
    let (a, b) = (one.time().unwrap().0, two.time().unwrap().0);
    assert!(a.abs_diff(b) < Duration::from_secs(1).as_micros() as u64, "{a} {b}");
}
