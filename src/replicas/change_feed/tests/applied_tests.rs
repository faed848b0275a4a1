use super::*;
use crate::accounts::AccountId;
use crate::cache::flight::Flown;
use crate::replicas::pages::tests::set_of;
use crate::request::query::ClientQuery;

#[tokio::test]
async fn a_purge_of_every_kind_holds_everywhere() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let renamed = Replica::with(server.settings(), "renamed", Clock::new());
    renamed.shares().await;
    let kinds = [
        Purge::All,
        Purge::Account(AccountId::example()),
        Purge::Data(AccountId::example()),
        Purge::Operation(Operation::Query),
        Purge::Key(key("a").to_string()),
        Purge::Key(key("a").short().to_string()),
    ];
    for which in kinds {
        other.keep("a");
        other.written().await;
        assert!(renamed.body("a").await.is_some(), "{which:?}");
        assert!(purge(&one, which.clone()).await, "{which:?}");
        until("memory", || other.in_memory("a").is_none() && renamed.in_memory("a").is_none()).await;
        for replica in [&one, &other, &renamed] {
            assert_eq!(replica.body("a").await, None, "{which:?}: not from the store either");
        }
    }
    // What does not match stays.
    other.keep("a");
    other.written().await;
    purge(&one, Purge::Operation(Operation::Metadata)).await;
    purge(&one, Purge::Key(key("b").to_string())).await;
    assert!(renamed.body("a").await.is_some() && other.in_memory("a").is_some());
}

#[tokio::test]
async fn what_a_flight_brings_that_was_under_way_at_a_purge_is_not_served_by_others() {
    let Some(server) = TestServer::start() else { return };
    let (one, other, third) =
        (Replica::start(&server).await, Replica::start(&server).await, Replica::start(&server).await);
    let asked = other.clock.now();
    // Two times in the same millisecond have no order.
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(purge(&one, Purge::All).await);
    other.keep_of(other.response("a"), Kind::Any, asked);
    other.written().await;
    third.shares().await;
    until("the third has read the purge", || third.pages.feed().knows(&PurgeTarget::Everything(None))).await;
    assert_eq!(third.body("a").await, None);
    // A page that was requested after it, as far as is known of the store's clock.
    let begun = other.clock.now();
    while third.body("b").await.is_none() {
        assert!(other.clock.now() < begun + 10 * S);
        other.keep("b");
        other.written().await;
    }
}

/// Where another server took over, the shared clock is ahead of the server's by as much as that one is behind.
#[tokio::test]
async fn a_purge_holds_where_the_clock_of_the_server_went_back() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let clock = one.shared.key_names().of_deployment(crate::replicas::clock::KEY);
    let before = one.shared.time().unwrap();
    let _: u64 = one.run(cmd("HSET").arg(&clock).arg("ahead").arg(30_000_000)).await;
    let is_ahead = |replica: &Replica| replica.shared.time().unwrap().0 > before.0 + 29_000_000;
    until("the clock is ahead", || is_ahead(&one) && is_ahead(&other)).await;
    // The server knows that, or only the replicas do.
    for is_known in [true, false] {
        have_applied(&one, &other).await;
        one.keep("a");
        one.written().await;
        assert!(other.body("a").await.is_some());
        if !is_known {
            let _: u64 = one.run(cmd("DEL").arg(&clock)).await;
        }
        assert!(purge(&other, Purge::Key(key("a").to_string())).await);
        let third = Replica::start(&server).await;
        assert_eq!(third.body("a").await, None, "{is_known}");
        assert!(is_ahead(&third));
        assert_shared(&one, &other, "a clock that went back").await;
    }
}

#[tokio::test]
async fn a_purge_that_is_read_late_leaves_the_flights_alone_that_called_after_it() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let late = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    late.shares().await;
    server.close_door("door", &late.shared).await;
    assert!(purge(&one, Purge::All).await);
    let flight = |name: &'static str| {
        let query = ClientQuery::example(Operation::Query, name, "");
        late.store.flights.claim_refresh((key(name), Kind::Any), Flown::of(&query, None)).unwrap().0
    };
    let [before, after, follows] = ["before", "after", "follows"].map(flight);
    // A minute, so that nothing depends on how well the store's clock is known.
    before.calls(late.clock.moment().before(60 * S));
    after.calls(late.clock.moment().after(60 * S));
    server.open_door("door");
    late.shares().await;
    assert!(before.is_outdated());
    assert!(!after.is_outdated());
    assert!(follows.is_outdated(), "it may wait for a flight from before the purge");
    assert!(late.store.flights.is_under_way(&key("after")), "others still join it");
    // One of its own is one of now.
    purge(&late, Purge::All).await;
    assert!(after.is_outdated());
}

#[tokio::test]
async fn the_purge_of_a_further_page_drops_its_whole_set() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let [first, second] = set_of(&other, "first", "second");
    other.keep_as(first, Kind::Any);
    other.keep_as(second, Kind::Any);
    other.written().await;
    // The first replica knows neither page.
    assert!(purge(&one, Purge::Key(key("second").short().to_string())).await);
    until("dropped", || other.in_memory("first").is_none()).await;
    until("told", || one.pages.feed().knows(&PurgeTarget::Page(*key("first").as_bytes()))).await;
    let third = Replica::start(&server).await;
    assert_eq!(third.body("first").await, None);
    assert_eq!(third.body("second").await, None);
}

#[tokio::test]
async fn what_a_forced_refresh_brought_replaces_the_page_everywhere() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    let old = other.body("a").await.unwrap();
    let newer = StoredResponse { representation: one.response("newer").representation, ..one.response("a") };
    one.keep_as(newer, Kind::Forced);
    one.written().await;
    until("the old one is dropped", || other.in_memory("a").is_none()).await;
    let new = other.body("a").await.unwrap();
    assert!(new != old && new == one.in_memory("a").unwrap());
}
