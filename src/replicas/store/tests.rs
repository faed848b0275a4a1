use std::time::Duration;

use super::*;
use crate::replicas::seal::Context;
use crate::replicas::test_server::{TestServer, until};

mod cluster_tests;
mod request_tests;

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
    assert!(store.view().cause.is_none());
    // What is known of the store's time may be late, but it goes on.
    until("its time has gone on", || store.time().unwrap() > before).await;
}

#[tokio::test]
async fn a_reload_takes_new_keys_unless_they_are_for_another_store() {
    let Some(server) = TestServer::start() else { return };
    let store = server.replica().await;
    let with = |seals: &[u8]| Shared {
        seal: seals.iter().map(|byte| zeroize::Zeroizing::new([*byte; 32])).collect(),
        ..server.settings()
    };
    let context = Context { kind: "page", account: "AC1", key: "a", bound: b"" };
    let is_opened_by = |keys: &Shared, sealed: &[u8]| Sealer::new(&keys.seal).open(&context, sealed).is_some();
    let before = store.sealer().seal(&context, b"value").unwrap();
    let (new, elsewhere) = (with(&[8, 7]), server.settings_with_door("elsewhere"));
    store.reload(&new);
    let after = store.sealer().seal(&context, b"value").unwrap();
    assert!(is_opened_by(&with(&[8]), &after) && store.sealer().open(&context, &before).is_some());
    store.reload(&Shared { seal: with(&[9]).seal, ..elsewhere });
    let after = store.sealer().seal(&context, b"value").unwrap();
    assert!(is_opened_by(&with(&[8]), &after), "what is for another store waits for a restart");
}

#[tokio::test]
async fn the_moment_of_a_time_is_the_one_at_which_the_store_shows_it() {
    let Some(server) = TestServer::start() else { return };
    let clock = Clock::new();
    let store = server.replica_with(server.settings(), clock).await;
    let now = clock.moment();
    for moment in [now, now.before(Duration::from_secs(100)), now.after(Duration::from_secs(100))] {
        // A heartbeat in between may correct what is known of the store's clock.
        let distance = store.moment_of(store.time_of(moment).unwrap()).unwrap();
        let distance = distance.since(moment).max(moment.since(distance));
        assert!(distance < Duration::from_secs(10), "{distance:?}");
    }
}
