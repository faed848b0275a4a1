//! Purges reach the disk before they return.

use super::*;

#[tokio::test]
async fn replacements_and_purges_reach_the_disk() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let set = Some(ResultSet::begin(key(2), clock.moment(), stored(2, clock, "").lifetimes));
    first.keep(1);
    first.insert(1, stored(1, clock, "newer"));
    first.insert(2, StoredResponse { account: AccountId::other(), result_set: set, ..stored(2, clock, body(2)) });
    let further = StoredResponse { operation: Operation::Page, result_set: set, ..stored(3, clock, body(3)) };
    first.insert(3, further);
    first.insert(4, StoredResponse { operation: Operation::Metadata, ..stored(4, clock, body(4)) });
    first.keep(5);
    first.keep(6);
    first.until("written", |first| first.view().entries == 6).await;
    assert_eq!(first.store.purge(&Purge::Account(AccountId::other())).pages, 2, "with its result set");
    assert_eq!(first.store.purge(&Purge::Operation(Operation::Metadata)).pages, 1);
    assert_eq!(first.store.purge(&Purge::Key(key(5).to_string())).pages, 1);
    first.keep(5);
    first.close().await;

    let second = Running::start(home.path()).await;
    assert_eq!(second.body(1).as_deref(), Some("newer"));
    assert_eq!([2, 3, 4].map(|n| second.body(n)), [None, None, None]);
    assert!(second.body(5).is_some(), "kept after the purge");
    assert!(second.body(6).is_some());
    second.store.purge(&Purge::All);
    second
        .until("purged", |second| second.view() == DiskView { enabled: true, entries: 0, bytes: 0, fault: None })
        .await;
}

#[tokio::test]
async fn a_full_queue_drops_pages_and_never_purges() {
    let home = TempDir::new().unwrap();
    let running = Running::start(home.path()).await;
    let disk = running.store.disk_handle().unwrap();
    disk.shared.waiting.store(WAITING, Ordering::Relaxed);
    running.keep(1);
    assert_eq!((running.writes("dropped"), running.body(1)), (1, Some(body(1))));
    disk.shared.waiting.store(0, Ordering::Relaxed);
    running.keep(2);
    running.until("written", |running| running.view().entries == 1).await;
    disk.shared.waiting.store(WAITING, Ordering::Relaxed);
    running.store.purge(&Purge::All);
    running.until("purged", |running| running.view().entries == 0).await;
}

#[tokio::test]
async fn a_purge_is_on_the_disk_when_it_returns() {
    let (home, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let set = ResultSet::begin(key(1), clock.moment(), stored(1, clock, "").lifetimes);
    first.insert(1, StoredResponse { result_set: Some(set), next: Some(key(2)), ..stored(1, clock, body(1)) });
    first.insert(2, StoredResponse { operation: Operation::Page, result_set: Some(set), ..stored(2, clock, body(2)) });
    first.keep(3);
    first.until("written", |first| first.writes("written") == 3).await;
    let purged = first.store.purge(&Purge::Key(key(1).short().to_string()));
    assert_eq!(purged, PurgeReport { pages: 2, not_durable: None, shared: None });
    // As after a kill at this moment.
    copy_of_open_file(home.path(), other.path());
    let second = Running::start(other.path()).await;
    assert_eq!([1, 2, 3].map(|n| second.body(n).is_some()), [false, false, true]);
}

#[tokio::test]
async fn a_purge_that_cannot_be_written_removes_the_file() {
    let home = TempDir::new().unwrap();
    // Every write to it fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", home.path().join(file::NAME)).unwrap();
    let running = Running::start(home.path()).await;
    assert!(!running.view().enabled);
    running.keep(1);
    assert_eq!(running.store.purge(&Purge::All), PurgeReport { pages: 1, not_durable: None, shared: None });
    assert!(files(home.path()).is_empty(), "{:?}", files(home.path()));
    // There is no page to remove.
    assert_eq!(running.store.purge(&Purge::All), PurgeReport { pages: 0, not_durable: None, shared: None });
}

#[tokio::test]
async fn a_purge_says_so_where_the_file_is_another_processs_or_the_tier_has_ended() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    first.keep(1);
    let second = Running::start(home.path()).await;
    let purged = second.store.purge(&Purge::All);
    assert!(purged.not_durable.is_some_and(|why| why.contains("another process")));
    assert_eq!(files(home.path()), [file::NAME]);
    second.close().await;
    first.close().await;
    assert_eq!(first.store.purge(&Purge::All), PurgeReport { pages: 1, not_durable: None, shared: None });
    assert!(files(home.path()).is_empty());
}

#[tokio::test]
async fn replaced_pages_go_with_their_sets_and_newer_ones_stay() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let set = ResultSet::begin(key(1), clock.moment(), stored(1, clock, "").lifetimes);
    let of_set = |n, operation, next| {
        let page = stored(n, clock, body(n));
        first.insert(n, StoredResponse { operation, result_set: Some(set), next: Some(key(next)), ..page });
    };
    of_set(1, Operation::Query, 2);
    of_set(2, Operation::Page, 3);
    of_set(3, Operation::Page, 9);
    (4..=6).for_each(|n| first.keep(n));
    let flight = |n| {
        let kind = (key(n), Kind::Any);
        first.store.flights.claim_refresh(kind, Flown::of(&call(n), None)).unwrap().0
    };
    let [of_newer, before, after] = [4, 7, 8].map(flight);
    let (now, earlier) = (clock.moment(), clock.moment().before(HOUR));
    before.calls(now.before(HOUR));
    after.calls(now.after(HOUR));
    // The second page tells of the whole set.
    let replaced = [(2, now.after(HOUR)), (4, earlier), (5, now.after(HOUR)), (7, now), (8, now)];
    first.store.outdate(&replaced.map(|(n, at)| (key(n), at)).into(), clock);
    let kept = |running: &Running| [1, 2, 3, 4, 5, 6].map(|n| running.body(n).is_some());
    assert_eq!(kept(&first), [false, false, false, true, false, true]);
    assert_eq!([of_newer, before, after].map(|lease| lease.is_outdated()), [false, true, false]);
    assert_eq!(first.store.membership(&key(3), now), Membership::Unknown, "nothing is left of the set");
    first.close().await;

    let second = Running::start(home.path()).await;
    assert_eq!(kept(&second), [false, false, false, true, false, true]);
    // Nobody knows any more when it was requested.
    second.store.outdate(&[(key(4), earlier)].into(), second.clock);
    assert_eq!(kept(&second), [false, false, false, false, false, true]);
}

#[tokio::test]
async fn no_place_of_a_replaced_set_stays_behind_a_page_that_memory_has_lost() {
    let home = TempDir::new().unwrap();
    let running = Running::start(home.path()).await;
    let (clock, sets) = (running.clock, &running.store.memory().sets);
    let first = stored(1, clock, body(1));
    let set = ResultSet::begin(key(1), clock.moment(), first.lifetimes);
    let account = first.account;
    running.insert(1, StoredResponse { result_set: Some(set), next: Some(key(2)), ..first });
    sets.expect(key(3), set, account);
    running.store.outdate(&[(key(1), clock.moment().after(HOUR))].into(), clock);
    assert_eq!(running.store.membership(&key(3), clock.moment()), Membership::Unknown);
}

#[tokio::test]
async fn a_look_up_brings_what_was_not_replaced_meanwhile() {
    let home = TempDir::new().unwrap();
    let running = Running::start(home.path()).await;
    let (clock, store) = (running.clock, &running.store);
    let adopt = |n, seen| {
        let (page, now) = (stored(n, clock, body(n)), clock.now());
        store.adopt(key(n), Entry::new(&key(n), page, now, now, Duration::ZERO), seen)
    };
    let seen = store.lookup_snapshot();
    store.outdate(&[(key(7), clock.moment())].into(), clock);
    assert!(adopt(8, seen) && !adopt(7, seen));
    assert!(adopt(7, store.lookup_snapshot()), "it was looked up after that");
    let seen = store.lookup_snapshot();
    store.outdate(&(100..5100).map(|n| (key(n), clock.moment())).collect(), clock);
    assert!(!adopt(9, seen), "too many to be remembered");
}

#[tokio::test]
async fn what_is_removed_while_pages_are_loaded_does_not_come_back() {
    const PAGES: u32 = 2000;
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    for n in 0..PAGES {
        let made = first.clock.moment().before(Duration::from_millis((PAGES - n).into()));
        first.insert(n, StoredResponse { made, ..stored(n, first.clock, body(n)) });
    }
    first.close().await;

    let (metrics, clock) = (Metrics::new(), Clock::new());
    let settings = DiskSettings { folder: home.path().to_owned(), capacity: 64 * MIB, is_shared: false };
    let store = Store::new(64 * MIB, &metrics).with_disk(settings, &metrics, clock);
    let disk = store.disk_handle().unwrap();
    let deadline = clock.now() + DEADLINE;
    while store.size().0 == 0 && !*disk.loaded.borrow() {
        assert!(clock.now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The newest is loaded last.
    store.outdate(&[(key(PAGES - 1), clock.moment())].into(), clock);
    disk.loaded.clone().wait_for(|loaded| *loaded).await.unwrap();
    assert_eq!([0, PAGES - 2, PAGES - 1].map(|n| store.page(&key(n)).is_some()), [true, true, false]);
    assert!(disk.shared.removed().is_none());
}
