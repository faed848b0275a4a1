use super::*;

#[tokio::test]
async fn one_of_many_claims_leads_and_the_others_are_told() {
    let Some(server) = TestServer::start() else { return };
    let replicas = Replica::three(&server).await;
    let claims = (0..300).map(|n| replicas[n % 3].flights.claim(&wanted()));
    let (mut leases, mut waits) = (Vec::new(), Vec::new());
    for turn in futures_util::future::join_all(claims).await {
        match turn {
            ClaimOutcome::Lead(lease) => leases.push(lease),
            ClaimOutcome::Wait(ends) => waits.push(tokio::spawn(ends)),
            turn => panic!("{turn:?}"),
        }
    }
    assert_eq!((leases.len(), waits.len()), (1, 299));
    leases.pop().unwrap().finish(&response("page", true));
    for ends in waits {
        assert_eq!(body(timeout(PATIENCE, ends).await.unwrap().unwrap()), "page");
    }
}

#[test]
fn those_who_wait_ask_often_enough_to_be_told_within_100_ms() {
    let pauses = std::iter::successors(Some(FIRST_PAUSE), |pause| Some(longer(*pause)));
    let pauses: Vec<_> = pauses.take(100).collect();
    assert_eq!(pauses[..5], [5, 10, 20, 40, 40].map(Duration::from_millis));
    assert!(pauses.iter().all(|pause| *pause <= 40 * MS), "{pauses:?}");
}

#[tokio::test]
#[ignore = "it measures time: run it on a machine that does nothing else"]
async fn those_who_wait_are_told_at_once() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    for _ in 0..5 {
        let lease = one.lead(&wanted()).await;
        let ends = tokio::spawn(two.join(&wanted()).await);
        // Until the pauses are the longest.
        tokio::time::sleep(150 * MS).await;
        let finished = Instant::now();
        lease.finish(&response("page", false));
        assert_eq!(body(timeout(PATIENCE, ends).await.unwrap().unwrap()), "page");
        assert!(finished.elapsed() < 100 * MS, "{:?}", finished.elapsed());
    }
}

#[tokio::test]
async fn a_failure_is_told_to_those_who_wait_and_to_nobody_else() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    lease.finish(&failure());
    let WaitOutcome::Ended(FlightResult { result: Err(error), .. }) = ended(ends).await else { panic!("no failure") };
    assert_eq!((error.reason(), error.retry_after()), (Reason::UpstreamUnreachable, Some(2000 * MS)));
    three.lead(&wanted()).await;
}

#[tokio::test]
async fn a_refresh_is_wanted_once_clients_of_another_replica_wait_for_it() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let refresh = || ClaimRequest { waiters: Waiters::of_refresh(), ..wanted() };
    let (led, followed) = (refresh(), refresh());
    let lease = one.lead(&led).await;
    let ends = tokio::spawn(two.join(&followed).await);
    two.sees_a_renewal().await;
    assert!(!led.waiters.is_wanted(), "nobody waits for the refresh of the other replica either");
    let _client = followed.waiters.join(&followed.team, Urgency::default());
    timeout(PATIENCE, led.waiters.wanted()).await.expect("the leader sees that a client waits");
    lease.finish(&response("page", true));
    assert_eq!(body(timeout(PATIENCE, ends).await.unwrap().unwrap()), "page");
    until("it stands for nobody once it has ended", || !led.waiters.is_wanted()).await;
}

#[tokio::test]
async fn the_call_of_a_client_is_not_kept_for_clients_elsewhere() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let (led, followed) = (wanted(), wanted());
    let client = led.waiters.join(&led.team, Urgency::default());
    let _lease = one.lead(&led).await;
    let _client = followed.waiters.join(&followed.team, Urgency::default());
    let ends = two.join(&followed).await;
    let _ends = tokio::spawn(ends);
    two.sees_a_renewal().await;
    two.sees_a_renewal().await;
    drop(client);
    timeout(PATIENCE, led.waiters.abandoned()).await.expect("those elsewhere claim it again");
}

#[tokio::test]
async fn a_refusal_of_one_replica_is_not_told() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    for refusal in [
        GatewayError::abandoned(),
        GatewayError::new(Reason::QueueFull, ""),
        GatewayError::new(Reason::CircuitOpen, ""),
    ] {
        let lease = one.lead(&wanted()).await;
        let ends = two.join(&wanted()).await;
        lease.finish(&FlightResult::failed(refusal));
        assert!(matches!(ended(ends).await, WaitOutcome::Lost));
    }
    drop(two.lead(&wanted()).await);
}

#[tokio::test]
async fn a_leader_that_dies_costs_one_lease() {
    let Some(server) = TestServer::start() else { return };
    // The leader has two thirds of it to renew it in time.
    let settings = || Shared { lease: 3000 * MS, ..server.settings() };
    // A process that ends takes all its tasks with it.
    let (process, replica_settings) = (tokio::runtime::Runtime::new().unwrap(), settings());
    let two = Replica::with(&server, settings()).await;
    let claimed = process.spawn(async move {
        let clock = Clock::new();
        let store = SharedStore::start(replica_settings, crate::metrics::Metrics::new(), clock);
        until("the store is reached", || store.is_up()).await;
        SharedFlights::new(store, clock).claim(&wanted()).await
    });
    let ClaimOutcome::Lead(_held) = claimed.await.unwrap() else { panic!("it does not lead") };
    let ends = tokio::spawn(two.join(&wanted()).await);
    two.sees_a_renewal().await;
    assert!(!ends.is_finished());
    process.shutdown_background();
    let waited = timeout(PATIENCE, ends).await.unwrap().unwrap();
    assert!(matches!(waited, WaitOutcome::Lost), "{waited:?}");
    two.lead(&wanted()).await;
}

#[tokio::test]
async fn a_leader_that_lost_its_lock_leaves_the_others_alone() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let lost = one.lead(&wanted()).await;
    let waits_for_lost = three.join(&wanted()).await;
    let newer = two.lead(&since_now(two.clock)).await;
    lost.finish(&response("old", true));
    assert!(matches!(ended(waits_for_lost).await, WaitOutcome::Lost));
    let ends = three.join(&wanted()).await;
    newer.finish(&response("new", true));
    assert_eq!(body(ended(ends).await), "new");
}

#[tokio::test]
async fn only_those_who_demand_a_new_response_share_a_forced_flight() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let any = one.lead(&wanted()).await;
    let lease = one.lead(&forced()).await;
    let (waits_for_any, waits) = (three.join(&wanted()).await, two.join(&forced()).await);
    any.finish(&response("any", false));
    lease.finish(&response("new", false));
    assert_eq!((body(ended(waits_for_any).await), body(ended(waits).await)), ("any".to_owned(), "new".to_owned()));
}

#[tokio::test]
async fn a_flight_from_before_the_result_set_does_not_do() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let _older = one.lead(&wanted()).await;
    let long_ago = ClaimRequest { not_before: Some(two.clock.moment().before(60_000 * MS)), ..wanted() };
    drop(two.join(&long_ago).await);
    let _newer = three.lead(&since_now(three.clock)).await;
    drop(two.join(&long_ago).await);
}

#[tokio::test]
async fn a_response_that_was_just_stored_is_looked_for() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let begun = Instant::now();
    loop {
        one.lead(&wanted()).await.finish(&response("page", true));
        let mut turn = two.claim(&wanted()).await;
        // The end may not have reached the store yet.
        while let ClaimOutcome::Wait(ends) = turn {
            ended(ends).await;
            turn = two.claim(&wanted()).await;
        }
        match turn {
            ClaimOutcome::Stored(StoredSize::Usual, since) => {
                let now = two.clock.moment();
                assert!(now.before(begun.elapsed() + MS) <= since && since <= now, "{since:?}");
                break;
            }
            // This machine stood still for longer than that is known.
            ClaimOutcome::Lead(lease) if begun.elapsed() > STORED && begun.elapsed() < PATIENCE => drop(lease),
            turn => panic!("{turn:?}"),
        }
        two.becomes_free().await;
    }
    let lease = two.lead(&ClaimRequest { is_new: true, ..wanted() }).await;
    let ends = three.join(&wanted()).await;
    drop(lease);
    assert!(matches!(ended(ends).await, WaitOutcome::Lost));
}

#[tokio::test]
async fn a_long_response_is_looked_for_where_it_is_stored() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let long: &'static str = String::leak("x".repeat(LARGE + 1));
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    lease.finish(&response(long, true));
    assert!(matches!(ended(ends).await, WaitOutcome::Stored(Some(_))));
    let content = three.content().await;
    assert!(content.len() == 2 && content.iter().all(|(_, _, value)| value.len() < 1024), "{content:?}");
    assert!(matches!(three.claim(&wanted()).await, ClaimOutcome::Stored(StoredSize::Large, _)));
    // Nobody finds one that is not stored, or not put where the others look.
    for (name, length, stored) in [("not stored", LARGE + 1, false), ("not shared", LONGEST_BODY + 1, true)] {
        let request = ClaimRequest { is_new: true, ..wanted() };
        let lease = one.lead(&request).await;
        let ends = two.join(&request).await;
        lease.finish(&response(String::leak("x".repeat(length)), stored));
        assert!(matches!(ended(ends).await, WaitOutcome::Unavailable), "{name}");
    }
}

#[tokio::test]
async fn a_claim_that_is_run_twice_leads() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::of(&server).await;
    let flight = Flight::new(one.store.clone(), one.clock, &wanted());
    let claims = [flight.claim(-1, true).await.unwrap(), flight.claim(-1, true).await.unwrap()];
    assert_eq!(claims[0].0, LEADS);
    assert_eq!(claims[0], claims[1]);
}
