use super::*;
use crate::accounts::AccountId;

#[tokio::test]
async fn nobody_joins_a_flight_from_before_a_purge() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let purged = one.lead(&wanted()).await;
    let from_before = two.join(&wanted()).await;
    three.flights.purge(&Purge::Account(AccountId::other()), None);
    drop(three.join(&wanted()).await);
    // It came before the flight began, and was told late.
    let earlier = three.clock.moment().before(60_000 * MS);
    three.flights.purge(&Purge::Operation(Operation::Query), Some(earlier));
    drop(three.join(&wanted()).await);
    three.flights.purge(&Purge::Operation(Operation::Query), None);
    // One that was told late does not take back a later one.
    three.flights.purge(&Purge::Operation(Operation::Query), Some(earlier));
    let newer = three.lead(&wanted()).await;
    purged.finish(&response("purged", false));
    assert!(matches!(ended(from_before).await, WaitOutcome::Lost));
    // Those from before the purge may have the newer one.
    let ends = two.join(&wanted()).await;
    newer.finish(&response("new", true));
    assert_eq!(body(ended(ends).await), "new");
}

#[tokio::test]
async fn purges_of_all_kinds_match_and_are_bounded() {
    let Some(server) = TestServer::start() else { return };
    let replica = Replica::of(&server).await;
    let page = ClaimRequest { operation: Operation::Page, first: Some(wanted().key), ..wanted() };
    let page = ClaimRequest { key: Key::new(&page.team.account, Operation::Page, "pageToken=a", b""), ..page };
    for which in [
        Purge::All,
        Purge::Account(AccountId::example()),
        Purge::Data(AccountId::example()),
        Purge::Operation(Operation::Query),
        Purge::Key(wanted().key.short().to_string()),
    ] {
        let flights = SharedFlights::new(replica.store.clone(), replica.clock);
        flights.purge(&which, None);
        assert!(flights.purged(&wanted()).is_some() && flights.purged(&page).is_some(), "{which:?}");
        let other = ClaimRequest {
            key: Key::new(&page.team.account, Operation::JobStatus, "", b""),
            operation: Operation::JobStatus,
            ..wanted()
        };
        let is_of_all = matches!(which, Purge::All | Purge::Account(_));
        assert_eq!(flights.purged(&other).is_some(), is_of_all, "{which:?}");
    }
    let flights = SharedFlights::new(replica.store.clone(), replica.clock);
    let now = replica.clock.moment();
    let replaced = |n: usize| (Key::new(&page.team.account, Operation::Query, &n.to_string(), b""), now);
    flights.outdate((0..10 * PURGES).map(replaced).collect());
    assert_eq!(flights.purged(&wanted()), None, "other pages");
    flights.outdate(vec![(wanted().key, now)]);
    flights.outdate(vec![(wanted().key, now.before(MS))]);
    assert_eq!([&wanted(), &page].map(|request| flights.purged(request)), [Some(now); 2]);
    let flights = SharedFlights::new(replica.store.clone(), replica.clock);
    flights.outdate((0..=REPLACED).map(replaced).collect());
    assert!(flights.replaced().is_empty() && flights.purged(&wanted()).is_some());
    for n in 0..10 * PURGES {
        replica.flights.purge(&Purge::Key(format!("{n:016x}")), None);
    }
    assert!(replica.flights.lock().len() <= PURGES);
    assert!(replica.flights.purged(&wanted()).is_some(), "what cannot be told apart counts as purged");
}
