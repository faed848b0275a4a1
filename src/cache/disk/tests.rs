mod file_tests;
mod purge_tests;
mod record_tests;
mod set_tests;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Weak;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use proptest::prelude::*;
use tempfile::TempDir;

use super::shared::WAITING;
use super::*;
use crate::accounts::AccountId;
use crate::cache::entry::Entry;
use crate::cache::flight::{Flown, Kind};
use crate::cache::purge::PurgeReport;
use crate::cache::record::{self, ClockSnapshot, decode, encode, head};
use crate::cache::sets::{Membership, ResultSet};
use crate::cache::store::{Store, UnstoredResponse};
use crate::cache::stored::StoredResponse;
use crate::core::clock::Moment;
use crate::metrics::{ResultLabels, StaticLabel};
use crate::request::call::UpstreamResponse;
use crate::request::query::ClientQuery;
use crate::request::response::Representation;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;
use crate::twilio::settled::Verdict;

const MIB: u64 = 1024 * 1024;
const HOUR: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(20);

fn call(n: u32) -> ClientQuery {
    ClientQuery::example(Operation::Query, &n.to_string(), "")
}

fn key(n: u32) -> Key {
    *call(n).key()
}

fn page(body: impl Into<bytes::Bytes>) -> Arc<Representation> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("twilio-request-id", HeaderValue::from_static("RQ1"));
    Arc::new(Representation::new(
        UpstreamResponse { status: StatusCode::OK, headers, body: body.into(), next_token: None },
        &[],
    ))
}

fn stored(n: u32, clock: Clock, body: impl Into<bytes::Bytes>) -> StoredResponse {
    let lifetimes = Lifetimes { fresh: HOUR, stale_while_revalidate: HOUR, stale_if_error: HOUR * 2 };
    StoredResponse {
        representation: page(body),
        account: AccountId::example(),
        operation: Operation::Query,
        made: clock.moment(),
        lifetimes,
        place: key(n),
        result_set: None,
        next: None,
        settled: Some(Verdict::Recent),
    }
}

fn body(n: u32) -> String {
    format!("{{\"page\":{n}}}")
}

/// One process: a store over a folder.
struct Running {
    store: Store,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Running {
    async fn start(folder: &Path) -> Self {
        Self::with(folder, 64 * MIB, 64 * MIB).await
    }

    /// Returns once the pages are loaded, or the tier has failed to.
    async fn with(folder: &Path, memory: u64, capacity: u64) -> Self {
        let (metrics, clock) = (Metrics::new(), Clock::new());
        let settings = DiskSettings { folder: folder.to_owned(), capacity, is_shared: false };
        let store = Store::new(memory, &metrics).with_disk(settings, &metrics, clock);
        // However slow the disk is. Waits with a limit are tested separately.
        let mut loaded = store.disk_handle().unwrap().loaded;
        loaded.wait_for(|loaded| *loaded).await.unwrap();
        Self { store, metrics, clock }
    }

    /// Returns once the thread has closed the file.
    async fn close(&self) {
        self.store.close().await;
        self.until("closed", |closing| !closing.view().enabled).await;
    }

    fn keep(&self, n: u32) {
        self.insert(n, stored(n, self.clock, body(n)));
    }

    fn insert(&self, n: u32, stored: StoredResponse) {
        insert(&self.store, n, self.clock, stored);
    }

    fn body(&self, n: u32) -> Option<String> {
        let entry = self.store.page(&key(n))?;
        Some(String::from_utf8(entry.stored.representation.body.to_vec()).unwrap())
    }

    fn body_length(&self, n: u32) -> Option<usize> {
        self.store.page(&key(n)).map(|entry| entry.stored.representation.body.len())
    }

    fn view(&self) -> DiskView {
        self.store.disk().unwrap()
    }

    fn writes(&self, result: &'static str) -> u64 {
        self.metrics.cache_disk_writes.get_or_create(&ResultLabels { result: StaticLabel(result) }).get()
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = self.clock.now() + DEADLINE;
        while !so(self) {
            assert!(self.clock.now() < deadline, "{what}: {:?}", self.view());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Stores like a flight that finishes.
fn insert(store: &Store, n: u32, clock: Clock, stored: StoredResponse) -> bool {
    let (lease, _) = store.flights.claim_refresh((key(n), Kind::Any), Flown::of(&call(n), None)).unwrap();
    let entry = Entry::new(&key(n), stored, clock.now(), clock.now(), Duration::ZERO);
    store.insert(key(n), entry, &lease, |_| true)
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn pages_survive_a_restart_as_they_were() {
    let home = TempDir::new().unwrap();
    let folder = home.path().join("made/by/us");
    let first = Running::start(&folder).await;
    let clock = first.clock;
    let set = ResultSet::begin(key(1), clock.moment(), stored(1, clock, "").lifetimes);
    let kept = StoredResponse { result_set: Some(set), next: Some(key(2)), ..stored(1, clock, body(1)) };
    first.insert(1, kept);
    let before = first.store.page(&key(1)).unwrap();
    first.close().await;
    assert_eq!((first.writes("written"), first.view().enabled), (1, false));
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(folder.join(file::NAME)).unwrap().permissions().mode() & 0o777, 0o600);

    let second = Running::start(&folder).await;
    assert_eq!((second.view().enabled, second.view().entries), (true, 1));
    let after = second.store.page(&key(1)).unwrap();
    assert_eq!(
        (&after.stored.representation.body, &after.stored.representation.headers),
        (&before.stored.representation.body, &before.stored.representation.headers)
    );
    assert_eq!(
        (after.stored.representation.status, &after.stored.representation.etag),
        (before.stored.representation.status, &before.stored.representation.etag)
    );
    assert_eq!((after.stored.account, after.stored.operation), (before.stored.account, before.stored.operation));
    assert_eq!(
        (after.stored.lifetimes, after.stored.settled, after.stored.next),
        (before.stored.lifetimes, before.stored.settled, before.stored.next)
    );
    assert_eq!(after.key_param, before.key_param);
    // Both clocks read the machine's at their start, so they differ only by what it was set by meanwhile.
    let now = second.clock.moment();
    let (age, true_age) = (after.stored.age(now), before.stored.age(now));
    assert!(age >= true_age && age - true_age < Duration::from_secs(1), "{age:?} {true_age:?}");
    // The next page still belongs to the set.
    let membership = second.store.membership(&key(2), second.clock.moment());
    assert_eq!(membership, Membership::Of(after.stored.result_set.unwrap()));
    assert!(after.stored.result_set.unwrap().is(&set));
}

#[tokio::test]
async fn a_newer_page_is_never_overwritten_by_an_older_one() {
    let clock = Clock::new();
    let store = Store::new(MIB, &Metrics::new());
    insert(&store, 1, clock, stored(1, clock, "new"));
    let memory = store.memory();
    assert!(!memory.restore(key(1), stored(1, clock, "old"), clock));
    assert_eq!(store.page(&key(1)).unwrap().stored.representation.body, "new");
    // Nor may it take a place that another result set has.
    let set = ResultSet::begin(key(9), clock.moment(), Lifetimes::fresh_only(HOUR));
    insert(&store, 9, clock, StoredResponse { result_set: Some(set), next: Some(key(2)), ..stored(9, clock, "first") });
    assert!(!memory.restore(key(2), stored(2, clock, "old"), clock));
    let of =
        |set| StoredResponse { result_set: Some(set), operation: Operation::Page, ..stored(2, clock, "of the set") };
    assert!(!memory.restore(key(2), of(ResultSet::begin(key(9), clock.moment(), set.lifetimes)), clock));
    assert!(memory.restore(key(2), of(set), clock) && store.page(&key(2)).is_some());
}

#[tokio::test]
async fn pages_that_are_too_old_or_from_the_future_are_removed() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let aged = |n, age| StoredResponse { made: clock.moment().before(age), ..stored(n, clock, body(n)) };
    first.insert(1, aged(1, HOUR * 2));
    first.insert(2, aged(2, HOUR * 4));
    first.insert(3, StoredResponse { made: clock.moment().after(HOUR), ..stored(3, clock, body(3)) });
    first.close().await;

    let second = Running::start(home.path()).await;
    assert_eq!(second.view().entries, 1);
    let old = second.store.page(&key(1)).unwrap();
    let age = old.stored.age(second.clock.moment());
    assert!(age.abs_diff(HOUR * 2) < DEADLINE, "{age:?}");
    assert!(second.body(2).is_none() && second.body(3).is_none());
}

#[tokio::test]
async fn the_oldest_are_removed_from_the_disk_and_the_newest_are_loaded() {
    let home = TempDir::new().unwrap();
    let first = Running::with(home.path(), 64 * MIB, MIB).await;
    let clock = first.clock;
    for n in 0..200 {
        let made = clock.moment().before(Duration::from_secs(200 - u64::from(n)));
        first.insert(n, StoredResponse { made, ..stored(n, clock, vec![b'x'; 15_000]) });
    }
    // It is larger than the capacity.
    first.insert(999, stored(999, clock, vec![b'x'; 2 << 20]));
    first.close().await;
    assert_eq!((first.writes("written"), first.writes("dropped")), (200, 1));

    let second = Running::with(home.path(), 10 * 16 * 1024, MIB).await;
    let view = second.view();
    assert!(view.bytes <= MIB && view.entries > 50, "{view:?}");
    let loaded: Vec<u32> = (0..200).filter(|n| second.store.page(&key(*n)).is_some()).collect();
    assert!(loaded.len() >= 8, "{loaded:?}");
    assert_eq!(loaded, (200 - u32::try_from(loaded.len()).unwrap()..200).collect::<Vec<_>>());
    second.close().await;

    let smaller = Running::with(home.path(), 64 * MIB, MIB / 4).await;
    assert!(smaller.view().bytes <= MIB / 4 && smaller.body_length(199) == Some(15_000), "{:?}", smaller.view());
}

/// The state after a kill: the file as it is, which the thread has not closed.
fn copy_of_open_file(from: &Path, to: &Path) {
    fs::copy(from.join(file::NAME), to.join(file::NAME)).unwrap();
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    let (home, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = Running::start(home.path()).await;
    first.keep(1);
    first.until("written", |first| first.writes("written") == 1).await;
    copy_of_open_file(home.path(), other.path());
    let second = Running::start(other.path()).await;
    assert_eq!(second.body(1), Some(body(1)));
    assert_eq!(files(other.path()), [file::NAME]);
}

/// The pages that a process serves which starts after a kill of this one.
async fn after_a_kill(running: &Running, home: &Path) -> (Running, TempDir) {
    let other = TempDir::new().unwrap();
    // A purge is on the disk when it returns, and so are the changes before it.
    running.store.purge(&Purge::Key(key(1000).to_string()));
    copy_of_open_file(home, other.path());
    (Running::start(other.path()).await, other)
}

#[tokio::test(start_paused = true)]
async fn misses_wait_a_limited_time_for_the_load() {
    let home = TempDir::new().unwrap();
    let running = Running::start(home.path()).await;
    let before = running.clock.now();
    // Nothing is ever sent on this channel, so the load never ends.
    let (_never, loaded) = watch::channel(false);
    let disk = Disk { loaded, patience: before + LOADING_PATIENCE, ..running.store.disk_handle().unwrap() };
    disk.get(&call(1).team.account, &key(1), &call(1).context, before).unwrap().await;
    assert!(running.clock.now() - before >= LOADING_PATIENCE);
    assert!(disk.get(&call(1).team.account, &key(1), &call(1).context, running.clock.now()).is_none());
}
