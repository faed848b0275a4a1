use super::*;

#[tokio::test]
async fn a_renewal_that_comes_too_late_does_not_take_the_lock_again() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::of(&server).await;
    let flight = Flight::new(one.store.clone(), one.clock, &wanted());
    let now = one.store.server_time().unwrap();
    for (now, is_free) in [(0, true), (u64::MAX / 4, true), (now, false)] {
        let due = Due::within(flight.patience(), now);
        let mut command = RENEW.call(&[&flight.lock]);
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
    let _newer = two.lead(&ClaimRequest { not_before: Some(two.clock.moment().before(60_000 * MS)), ..wanted() }).await;
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
    assert!(matches!(ended(ends).await, WaitOutcome::Lost));
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

#[test]
fn a_renewal_comes_before_the_lease_ends() {
    for (lease, timeout) in [(5000 * MS, 100 * MS), (5000 * MS, 4000 * MS), (5000 * MS, 4999 * MS), (2 * MS, MS)] {
        assert!(until_renewal(lease, timeout) + timeout < lease, "{lease:?} {timeout:?}");
    }
    assert!(until_renewal(6000 * MS, 100 * MS) <= 2000 * MS, "one of them may fail");
}
