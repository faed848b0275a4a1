use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::timeout;

use super::*;
use crate::accounts::Team;
use crate::config::Shared;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::replicas::test_server::{TestServer, until};
use crate::request::call::UpstreamResponse;
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::request::waiters::Waiters;

const MS: Duration = Duration::from_millis(1);
/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(10);

fn wanted() -> Wanted {
    let team = Arc::new(Team::example("local"));
    let key = Key::new(&team.account, Operation::Query, "", b"query");
    Wanted {
        team,
        waiters: Waiters::of_clients(),
        operation: Operation::Query,
        key,
        first: None,
        is_forced: false,
        not_before: None,
        is_new: false,
        context: Arc::default(),
    }
}

/// Of a client that demands a new response.
fn forced() -> Wanted {
    Wanted { is_forced: true, ..wanted() }
}

/// Of a client for whom no flight does that began before now.
fn since_now(clock: Clock) -> Wanted {
    Wanted { not_before: Some(clock.moment()), ..wanted() }
}

fn response(body: &'static str, stored: bool) -> FlightResult {
    let answer =
        UpstreamResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: body.into(), next_token: None };
    FlightResult { result: Ok(Arc::new(Representation::new(answer, &[]))), stored, age: None, by_another: false }
}

fn failure() -> FlightResult {
    FlightResult::failed(GatewayError::new(Reason::UpstreamUnreachable, "no connection").with_retry_after(2000 * MS))
}

struct Replica {
    store: SharedStore,
    flights: SharedFlights,
    clock: Clock,
}

impl Replica {
    async fn of(server: &TestServer) -> Self {
        Self::with(server, server.settings()).await
    }

    async fn with(server: &TestServer, settings: Shared) -> Self {
        let clock = Clock::new();
        let store = server.replica_with(settings, clock).await;
        Self { flights: SharedFlights::new(store.clone(), clock), store, clock }
    }

    async fn three(server: &TestServer) -> [Self; 3] {
        [Self::of(server).await, Self::of(server).await, Self::of(server).await]
    }

    async fn claim(&self, wanted: &Wanted) -> Turn {
        timeout(PATIENCE, self.flights.claim(wanted)).await.expect("a claim ends")
    }

    async fn lead(&self, wanted: &Wanted) -> FillLease {
        match self.claim(wanted).await {
            Turn::Lead(lease) => lease,
            turn => panic!("{turn:?} instead of the lead"),
        }
    }

    async fn join(&self, wanted: &Wanted) -> BoxFuture<'static, Waited> {
        match self.claim(wanted).await {
            Turn::Wait(ends) => ends,
            turn => panic!("{turn:?} instead of a wait"),
        }
    }

    /// Everything in the store: the keys with their expiry in milliseconds, and the parts of their values.
    async fn content(&self) -> Vec<(String, i64, Vec<u8>)> {
        const DUMP: &str = r"
local all = {}
for _, key in ipairs(redis.call('KEYS', '*flight*')) do
  local kind = redis.call('TYPE', key).ok
  local value = kind == 'hash' and table.concat(redis.call('HGETALL', key), ' ') or redis.call('GET', key)
  table.insert(all, {key, redis.call('PTTL', key), value})
end
return all";
        self.store.run("test", &script(DUMP, &[])).await.unwrap()
    }

    /// Waits until the lock lasts longer than before.
    async fn sees_a_renewal(&self) {
        let mut left = self.content().await[0].1;
        let renewed = async {
            loop {
                let now = self.content().await[0].1;
                if now > left {
                    return;
                }
                left = now;
                tokio::time::sleep(5 * MS).await;
            }
        };
        timeout(PATIENCE, renewed).await.expect("a leader that lives renews its lock");
    }

    async fn is_free(&self) -> bool {
        self.content().await.is_empty()
    }

    async fn becomes_free(&self) {
        let free = async {
            while !self.is_free().await {
                tokio::time::sleep(5 * MS).await;
            }
        };
        timeout(PATIENCE, free).await.expect("the lock is given back");
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lead(_) => "Lead",
            Self::Wait(_) => "Wait",
            Self::Stored(Size::Usual) => "Stored",
            Self::Stored(Size::Large) => "Stored, and large",
            Self::Alone => "Alone",
        })
    }
}

async fn ended(ends: BoxFuture<'static, Waited>) -> Waited {
    timeout(PATIENCE, ends).await.expect("a wait ends")
}

fn body(waited: Waited) -> String {
    match waited {
        Waited::Ended(FlightResult { result: Ok(page), by_another: true, .. }) => {
            String::from_utf8(page.body.to_vec()).unwrap()
        }
        waited => panic!("{waited:?}"),
    }
}

#[tokio::test]
async fn one_of_many_claims_leads_and_the_others_are_told() {
    let Some(server) = TestServer::start() else { return };
    let replicas = Replica::three(&server).await;
    let claims = (0..300).map(|n| replicas[n % 3].flights.claim(&wanted()));
    let (mut leases, mut waits) = (Vec::new(), Vec::new());
    for turn in futures_util::future::join_all(claims).await {
        match turn {
            Turn::Lead(lease) => leases.push(lease),
            Turn::Wait(ends) => waits.push(tokio::spawn(ends)),
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
    let Waited::Ended(FlightResult { result: Err(error), .. }) = ended(ends).await else { panic!("no failure") };
    assert_eq!((error.reason(), error.retry_after()), (Reason::UpstreamUnreachable, Some(2000 * MS)));
    three.lead(&wanted()).await;
}

#[tokio::test]
async fn a_refresh_is_wanted_once_clients_of_another_replica_wait_for_it() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let refresh = || Wanted { waiters: Waiters::of_refresh(), ..wanted() };
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
        assert!(matches!(ended(ends).await, Waited::Lost));
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
    let Turn::Lead(_held) = claimed.await.unwrap() else { panic!("it does not lead") };
    let ends = tokio::spawn(two.join(&wanted()).await);
    two.sees_a_renewal().await;
    assert!(!ends.is_finished());
    process.shutdown_background();
    let waited = timeout(PATIENCE, ends).await.unwrap().unwrap();
    assert!(matches!(waited, Waited::Lost), "{waited:?}");
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
    assert!(matches!(ended(waits_for_lost).await, Waited::Lost));
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
    let long_ago = Wanted { not_before: Some(two.clock.moment().before(60_000 * MS)), ..wanted() };
    drop(two.join(&long_ago).await);
    let _newer = three.lead(&since_now(three.clock)).await;
    drop(two.join(&long_ago).await);
}

#[tokio::test]
async fn nobody_joins_a_flight_from_before_a_purge() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let purged = one.lead(&wanted()).await;
    let from_before = two.join(&wanted()).await;
    three.flights.purge(&Purge::Account("another".to_owned()), None);
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
    assert!(matches!(ended(from_before).await, Waited::Lost));
    // Those from before the purge may have the newer one.
    let ends = two.join(&wanted()).await;
    newer.finish(&response("new", true));
    assert_eq!(body(ended(ends).await), "new");
}

#[tokio::test]
async fn purges_of_all_kinds_match_and_are_bounded() {
    let Some(server) = TestServer::start() else { return };
    let replica = Replica::of(&server).await;
    let page = Wanted { operation: Operation::Page, first: Some(wanted().key), ..wanted() };
    let page = Wanted { key: Key::new(&page.team.account, Operation::Page, "pageToken=a", b""), ..page };
    for which in [
        Purge::All,
        Purge::Account("main".to_owned()),
        Purge::Data("main".to_owned()),
        Purge::Operation(Operation::Query),
        Purge::Key(wanted().key.short().to_string()),
    ] {
        let flights = SharedFlights::new(replica.store.clone(), replica.clock);
        flights.purge(&which, None);
        assert!(flights.purged(&wanted()).is_some() && flights.purged(&page).is_some(), "{which:?}");
        let other = Wanted {
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
    assert_eq!([&wanted(), &page].map(|wanted| flights.purged(wanted)), [Some(now); 2]);
    let flights = SharedFlights::new(replica.store.clone(), replica.clock);
    flights.outdate((0..=REPLACED).map(replaced).collect());
    assert!(flights.replaced().is_empty() && flights.purged(&wanted()).is_some());
    for n in 0..10 * PURGES {
        replica.flights.purge(&Purge::Account(n.to_string()), None);
    }
    assert!(replica.flights.lock().len() <= PURGES);
    assert!(replica.flights.purged(&wanted()).is_some(), "what cannot be told apart counts as purged");
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
        while let Turn::Wait(ends) = turn {
            ended(ends).await;
            turn = two.claim(&wanted()).await;
        }
        match turn {
            Turn::Stored(Size::Usual) => break,
            // This machine stood still for longer than that is known.
            Turn::Lead(lease) if begun.elapsed() > STORED && begun.elapsed() < PATIENCE => drop(lease),
            turn => panic!("{turn:?}"),
        }
        two.becomes_free().await;
    }
    let lease = two.lead(&Wanted { is_new: true, ..wanted() }).await;
    let ends = three.join(&wanted()).await;
    drop(lease);
    assert!(matches!(ended(ends).await, Waited::Lost));
}

#[tokio::test]
async fn a_long_response_is_looked_for_where_it_is_stored() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let long: &'static str = String::leak("x".repeat(LARGE + 1));
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    lease.finish(&response(long, true));
    assert!(matches!(ended(ends).await, Waited::Stored(Some(_))));
    let content = three.content().await;
    assert!(content.len() == 2 && content.iter().all(|(_, _, value)| value.len() < 1024), "{content:?}");
    assert!(matches!(three.claim(&wanted()).await, Turn::Stored(Size::Large)));
    // Nobody finds one that is not stored, or not put where the others look.
    for (name, length, stored) in [("not stored", LARGE + 1, false), ("not shared", LONGEST_BODY + 1, true)] {
        let wanted = Wanted { is_new: true, ..wanted() };
        let lease = one.lead(&wanted).await;
        let ends = two.join(&wanted).await;
        lease.finish(&response(String::leak("x".repeat(length)), stored));
        assert!(matches!(ended(ends).await, Waited::Alone), "{name}");
    }
}

#[tokio::test]
async fn a_store_that_goes_away_sends_everybody_upstream() {
    let Some(mut server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = tokio::spawn(two.join(&wanted()).await);
    server.kill();
    let waited = timeout(PATIENCE, ends).await.unwrap().unwrap();
    assert!(matches!(waited, Waited::Alone), "{waited:?}");
    assert!(matches!(two.claim(&wanted()).await, Turn::Alone));
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
        assert!(matches!(one.claim(&wanted()).await, Turn::Alone));
    }
    // Longer than the claims that the store has not read yet are good for.
    tokio::time::sleep(2 * short).await;
    server.thaw();
    two.lead(&wanted()).await;
}

#[tokio::test]
async fn a_renewal_that_comes_too_late_does_not_take_the_lock_again() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::of(&server).await;
    let flight = Flight::new(one.store.clone(), one.clock, &wanted());
    let now = one.store.server_time().unwrap();
    for (now, is_free) in [(0, true), (u64::MAX / 4, true), (now, false)] {
        let due = Due::within(flight.patience(), now);
        let mut command = script(RENEW, &[&flight.lock]);
        command.arg(&flight.id).arg(60_000).arg(1).arg(due.from).arg(due.until);
        let replied: i64 = one.store.run("test", &command).await.unwrap();
        assert_eq!((one.is_free().await, clock::negative(&replied).is_some()), (is_free, is_free));
    }
}

const MINUTE: u64 = 60_000_000;

#[tokio::test]
async fn a_clock_of_the_store_that_was_set_keeps_nobody_from_leading() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::of(&server).await;
    for set in [u64::saturating_sub, u64::saturating_add] {
        let believed = set(one.store.server_time().unwrap(), MINUTE);
        one.store.learn_time((believed, believed), one.clock.moment());
        drop(one.lead(&wanted()).await);
        one.becomes_free().await;
    }
}

#[tokio::test]
async fn a_leader_keeps_its_lock_when_the_clock_of_the_store_is_set() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::of(&server).await;
    for set in [u64::saturating_sub, u64::saturating_add] {
        let mut flight = Flight::new(one.store.clone(), one.clock, &wanted());
        let (turn, _, begun) = flight.claim(-1, true).await.unwrap();
        assert_eq!(turn, LEADS);
        flight.begun = set(begun, MINUTE);
        // Not even a renewal that comes now would be in time otherwise.
        one.store.run::<bool>("test", redis::cmd("DEL").arg(&flight.lock)).await.unwrap();
        flight.renew().await;
        let id = one.store.run::<Option<String>>("test", redis::cmd("HGET").arg(&flight.lock).arg("id")).await;
        assert_eq!(id, Ok(Some(flight.id.clone())));
        one.store.run::<bool>("test", redis::cmd("DEL").arg(&flight.lock)).await.unwrap();
    }
}

/// As on a server that took over and whose clock is behind.
#[tokio::test]
async fn a_flight_from_the_future_does_only_for_those_who_accept_any() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let _lease = one.lead(&wanted()).await;
    let lock = Flight::new(one.store.clone(), one.clock, &wanted()).lock;
    let later = one.store.server_time().unwrap() + MINUTE;
    one.store.run::<u8>("test", redis::cmd("HSET").arg(&lock).arg("begun").arg(later)).await.unwrap();
    drop(two.join(&wanted()).await);
    let _newer = two.lead(&Wanted { not_before: Some(two.clock.moment().before(60_000 * MS)), ..wanted() }).await;
}

/// As on a server that took over and whose clock is behind.
#[tokio::test]
async fn a_lock_that_lasts_longer_than_any_lease_counts_as_gone() {
    let Some(server) = TestServer::start() else { return };
    let settings = Shared { lease: 60_000 * MS, ..server.settings() };
    let (one, two) = (Replica::with(&server, settings.clone()).await, Replica::with(&server, settings).await);
    let _lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    let lock = Flight::new(one.store.clone(), one.clock, &wanted()).lock;
    let longer = one.store.run::<bool>("test", redis::cmd("PEXPIRE").arg(&lock).arg(3_600_000)).await;
    assert!(longer.unwrap());
    assert!(matches!(ended(ends).await, Waited::Lost));
    let mut leases = Vec::new();
    for damage in [&["PERSIST", &*lock][..], &["HSET", &lock, "begun", "x"], &["HDEL", &lock, "begun"]] {
        leases.push(two.lead(&wanted()).await);
        let mut command = redis::cmd(damage[0]);
        for part in &damage[1..] {
            command.arg(part);
        }
        one.store.run::<u8>("test", &command).await.unwrap();
    }
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

#[tokio::test]
async fn every_key_expires_and_tells_nothing() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    let mut seen = one.content().await;
    lease.finish(&response("a secret page", true));
    assert_eq!(body(ended(ends).await), "a secret page");
    seen.extend(one.content().await);
    let has = |kind: &str| seen.iter().any(|(key, ..)| key.contains(kind));
    assert!(has(":flight:") && has(":flight-end:"), "{seen:?}");
    for (key, expiry, value) in seen {
        assert!((1..=5000).contains(&expiry), "{key}: {expiry} ms");
        assert!(!value.windows(6).any(|window| window == b"secret") && !key.contains("AC1"), "{key}");
    }
}

#[tokio::test]
async fn an_end_that_was_changed_in_the_store_is_not_believed() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let _lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    // An end of another flight, under this one's id.
    let id: String = three
        .store
        .run("test", redis::cmd("HGET").arg(Flight::new(three.store.clone(), three.clock, &wanted()).lock).arg("id"))
        .await
        .unwrap();
    let other = Flight::new(three.store.clone(), three.clock, &wanted());
    let sealed = other.seal(&flight_record::encode(&response("forged", true)).unwrap()).unwrap();
    let forged = Flight { id, ..Flight::new(three.store.clone(), three.clock, &wanted()) };
    three
        .store
        .run::<()>("test", redis::cmd("SET").arg(forged.ending()).arg(sealed).arg("PX").arg(5000))
        .await
        .unwrap();
    assert!(matches!(ended(ends).await, Waited::Alone));
}

#[tokio::test]
async fn what_is_too_long_does_not_cross() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, three] = Replica::three(&server).await;
    let lease = one.lead(&wanted()).await;
    let ends = two.join(&wanted()).await;
    let lock = Flight::new(three.store.clone(), three.clock, &wanted()).lock;
    let id: String = three.store.run("test", redis::cmd("HGET").arg(&lock).arg("id")).await.unwrap();
    let flight = Flight { id, ..Flight::new(three.store.clone(), three.clock, &wanted()) };
    let long = vec![1_u8; LONGEST_END + 1];
    let before = server.sent();
    three
        .store
        .run::<()>("test", redis::cmd("SET").arg(flight.ending()).arg(&long).arg("PX").arg(60_000))
        .await
        .unwrap();
    assert!(matches!(ended(ends).await, Waited::Alone), "an end");
    three.store.run::<()>("test", redis::cmd("HSET").arg(&lock).arg("id").arg(&long)).await.unwrap();
    assert!(matches!(three.claim(&wanted()).await, Turn::Lead(_)), "an id");
    assert!(server.sent() - before < 1 << 20);
    drop(lease);
}

#[tokio::test]
async fn a_lock_of_another_type_is_replaced() {
    let Some(server) = TestServer::start() else { return };
    let [one, two, _] = Replica::three(&server).await;
    let damage = async || {
        let lock = Flight::new(one.store.clone(), one.clock, &wanted()).lock;
        one.store.run::<()>("test", redis::cmd("SET").arg(lock).arg("x")).await.unwrap();
    };
    let mut flight = Flight::new(one.store.clone(), one.clock, &wanted());
    damage().await;
    let turn;
    (turn, _, flight.begun) = flight.claim(-1, true).await.unwrap();
    assert_eq!(turn, LEADS);
    damage().await;
    flight.renew().await;
    assert!(matches!(two.claim(&wanted()).await, Turn::Wait(_)), "the renewal took it again");
    damage().await;
    assert_eq!(flight.end("lost", &[]).await, Ok(0));
    assert!(one.is_free().await);
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

#[test]
fn a_renewal_comes_before_the_lease_ends() {
    for (lease, timeout) in [(5000 * MS, 100 * MS), (5000 * MS, 4000 * MS), (5000 * MS, 4999 * MS), (2 * MS, MS)] {
        assert!(until_renewal(lease, timeout) + timeout < lease, "{lease:?} {timeout:?}");
    }
    assert!(until_renewal(6000 * MS, 100 * MS) <= 2000 * MS, "one of them may fail");
}
