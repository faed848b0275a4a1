use super::*;

#[tokio::test]
async fn a_store_that_goes_away_sends_everybody_upstream() {
    let Some(mut server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = tokio::spawn(two.join(&wanted()).await);
    server.kill();
    let waited = timeout(PATIENCE, ends).await.unwrap().unwrap();
    assert!(matches!(waited, WaitOutcome::Unavailable), "{waited:?}");
    assert!(matches!(two.claim(&wanted()).await, ClaimOutcome::Unavailable));
    lease.finish(&response("page", true));
    server.run();
    until("the store is back", || two.store.is_up()).await;
    two.lead(&wanted()).await;
}

#[tokio::test]
async fn a_store_that_froze_claims_nothing_for_those_who_gave_up() {
    let Some(server) = TestServer::start() else { return };
    let (short, lease) = (200 * MS, 60_000 * MS);
    let one = Replica::with(&server, Shared { timeout: short, lease, ..server.settings() }).await;
    let two = Replica::with(&server, Shared { lease, ..server.settings() }).await;
    server.freeze();
    while one.store.is_up() {
        assert!(matches!(one.claim(&wanted()).await, ClaimOutcome::Unavailable));
    }
    // Longer than the claims that the store has not read yet are good for.
    tokio::time::sleep(2 * short).await;
    server.thaw();
    two.lead(&wanted()).await;
}

#[tokio::test]
async fn a_lock_is_given_back_once_the_store_is_reached_again() {
    let Some(server) = TestServer::start() else { return };
    let lease = 60_000 * MS;
    let one = Replica::with(&server, Shared { lease, ..server.settings_with_door("door") }).await;
    let two = Replica::with(&server, Shared { lease, ..server.settings() }).await;
    let led = one.lead(&wanted()).await;
    server.close_door("door", &one.store).await;
    led.finish(&response("page", true));
    assert!(!two.is_free().await);
    server.open_door("door");
    two.becomes_free().await;
}

#[tokio::test]
async fn a_store_that_lost_the_lock_gets_it_again() {
    let Some(server) = TestServer::start() else { return };
    let settings = Shared { lease: 3000 * MS, ..server.settings() };
    let (one, two) = (Replica::with(&server, settings.clone()).await, Replica::with(&server, settings).await);
    let lease = one.lead(&wanted()).await;
    two.store.run::<()>("test", redis::cmd("FLUSHALL").arg("SYNC")).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while two.is_free().await {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(5 * MS).await;
    }
    let ends = two.join(&wanted()).await;
    lease.finish(&response("page", true));
    assert_eq!(body(ended(ends).await), "page");
}
