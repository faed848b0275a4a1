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
use crate::cache::entry::Entry;
use crate::cache::flight::{Flown, Kind};
use crate::cache::purge::Purged;
use crate::cache::record::{self, Calendar, decode, encode, head};
use crate::cache::sets::{Membership, ResultSet};
use crate::cache::store::{Store, Unkept};
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
        account: "main".into(),
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
        let settings = DiskSettings { folder: folder.to_owned(), capacity };
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
    assert_eq!((&*after.stored.account, after.stored.operation), (&*before.stored.account, before.stored.operation));
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

#[tokio::test]
async fn replacements_and_purges_reach_the_disk() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let set = Some(ResultSet::begin(key(2), clock.moment(), stored(2, clock, "").lifetimes));
    first.keep(1);
    first.insert(1, stored(1, clock, "newer"));
    first.insert(2, StoredResponse { account: "other".into(), result_set: set, ..stored(2, clock, body(2)) });
    let further = StoredResponse { operation: Operation::Page, result_set: set, ..stored(3, clock, body(3)) };
    first.insert(3, further);
    first.insert(4, StoredResponse { operation: Operation::Metadata, ..stored(4, clock, body(4)) });
    first.keep(5);
    first.keep(6);
    first.until("written", |first| first.view().entries == 6).await;
    assert_eq!(first.store.purge(&Purge::Account("other".to_owned())).pages, 2, "with its result set");
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

/// A first page that begins a result set and names another page.
fn first_page(n: u32, next: u32, clock: Clock, body: &'static str) -> StoredResponse {
    let set = ResultSet::begin(key(n), clock.moment(), stored(n, clock, "").lifetimes);
    StoredResponse { result_set: Some(set), next: Some(key(next)), ..stored(n, clock, body) }
}

fn further_page(n: u32, result_set: Option<ResultSet>, clock: Clock, body: &'static str) -> StoredResponse {
    StoredResponse { operation: Operation::Page, result_set, ..stored(n, clock, body) }
}

#[tokio::test]
async fn pages_that_a_new_first_page_ends_do_not_come_back() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    // Of no set, of the older set of the same query, and of another query's set.
    first.insert(2, further_page(2, None, clock, "old"));
    first.insert(1, first_page(1, 2, clock, "new"));
    let older = first_page(3, 4, clock, "old");
    first.insert(4, further_page(4, older.result_set, clock, "old"));
    first.insert(3, older);
    first.insert(3, first_page(3, 4, clock, "new"));
    let others = first_page(5, 6, clock, "other");
    let set = others.result_set;
    first.insert(5, others);
    first.insert(6, further_page(6, set, clock, "old"));
    first.insert(7, first_page(7, 6, clock, "new"));
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!([1, 3, 5, 7].map(|n| second.body(n)), ["new", "new", "other", "new"].map(|body| Some(body.to_owned())));
    assert_eq!([2, 4, 6].map(|n| second.body(n)), [None, None, None]);
}

#[tokio::test]
async fn a_page_that_memory_dropped_for_one_it_does_not_keep_stays_gone() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    let clock = first.clock;
    let kept = first_page(1, 2, clock, "old");
    let set = kept.result_set;
    first.insert(1, kept);
    first.insert(2, further_page(2, set, clock, "old"));
    let newer = first_page(1, 2, clock, "not to be kept");
    let unkept = Unkept {
        account: Arc::clone(&newer.account),
        asked: clock.now(),
        made: newer.made,
        begins: newer.result_set,
        next: newer.next,
        is_shared: true,
    };
    first.store.supersede(key(1), &unkept);
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!([1, 2].map(|n| second.body(n)), [None, None]);
}

#[tokio::test]
async fn a_page_that_cannot_be_written_takes_the_older_one_with_it() {
    // Larger than the disk may be.
    let home = TempDir::new().unwrap();
    let first = Running::with(home.path(), 64 * MIB, MIB).await;
    first.keep(1);
    first.insert(1, stored(1, first.clock, vec![b'x'; 2 << 20]));
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!(second.body(1), None);
    // The queue for the disk is full.
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    first.keep(1);
    let shared = &first.store.disk_handle().unwrap().shared;
    let waiting = shared.waiting.swap(WAITING, Ordering::Relaxed);
    first.insert(1, stored(1, first.clock, "newer"));
    shared.waiting.store(waiting, Ordering::Relaxed);
    let (second, _home) = after_a_kill(&first, home.path()).await;
    assert_eq!((first.writes("dropped"), second.body(1)), (1, None));
    // The queue for removals is full as well.
    first.keep(2);
    first.store.purge(&Purge::Key(key(1000).to_string()));
    shared.removals.store(WAITING_REMOVALS, Ordering::Relaxed);
    shared.waiting.store(WAITING, Ordering::Relaxed);
    first.insert(2, stored(2, first.clock, "newer"));
    shared.removals.store(0, Ordering::Relaxed);
    shared.waiting.store(0, Ordering::Relaxed);
    first.close().await;
    assert_eq!(Running::start(home.path()).await.body(2), None);
}

/// The thread's work, done without a thread: it gets no more messages.
fn worker(folder: &Path, memory: &Memory) -> Worker {
    let (metrics, clock) = (Metrics::new(), Clock::new());
    Worker {
        folder: folder.to_owned(),
        capacity: MIB,
        clock,
        boot: 0,
        memory: memory.clone(),
        room: MIB,
        order: Weak::new(),
        shared: Arc::new(Shared {
            metrics,
            enabled: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            waiting_bytes: AtomicU64::new(0),
            removals: AtomicU64::new(0),
            removals_lost: AtomicBool::new(false),
            purges: AtomicU64::new(0),
            fault: Mutex::default(),
        }),
        receiver: mpsc::channel().1,
        loaded: watch::channel(false).0,
        restored: true,
        batch: Vec::new(),
        closing: None,
        purgers: Vec::new(),
        clear: false,
        unwritten: HashSet::new(),
        removals_only: RemovalsOnly::No,
        locked: false,
        said: None,
    }
}

#[tokio::test]
async fn what_could_not_be_written_is_removed_when_the_file_is_opened_again() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    (1..=4).for_each(|n| first.keep(n));
    first.close().await;
    let mut worker = worker(home.path(), first.store.memory());
    let newer = || stored(1, first.clock, "newer");
    worker.batch = vec![file::Change::Keep(key(1), newer()), file::Change::Remove(vec![key(2)])];
    worker.shared.waiting.store(1, Ordering::Relaxed);
    worker.shared.waiting_bytes.store(page_weight(&newer()), Ordering::Relaxed);
    assert!(!worker.abandon_batch(), "the file stays");
    let mut file = file::PageFile::open(home.path(), MIB, first.clock, 0).unwrap();
    worker.work_with(&mut file).unwrap();
    assert!(worker.unwritten.is_empty());
    let (begun, second) = (first.clock.now(), Duration::from_secs(1));
    worker.shared.fails("no space".to_owned(), begun);
    worker.shared.fails("no permission".to_owned(), begun + second);
    let fault = worker.shared.fault().clone();
    assert_eq!(fault, Some(DiskFault { since: begun, cause: "no permission".to_owned() }), "one episode");
    // While pages cannot be written, those that they replace are still removed.
    worker.removals_only = RemovalsOnly::Until(first.clock.now() + HOUR);
    worker.batch = vec![file::Change::Keep(key(3), newer())];
    worker.shared.waiting.store(1, Ordering::Relaxed);
    worker.shared.waiting_bytes.store(page_weight(&newer()), Ordering::Relaxed);
    worker.write(&mut file).unwrap();
    assert!(worker.shared.fault().is_some(), "removals alone do not end it");
    worker.removals_only = RemovalsOnly::No;
    worker.batch = vec![file::Change::Keep(key(5), newer())];
    worker.shared.waiting.store(1, Ordering::Relaxed);
    worker.shared.waiting_bytes.store(page_weight(&newer()), Ordering::Relaxed);
    worker.write(&mut file).unwrap();
    assert_eq!(*worker.shared.fault(), None, "a page was written");
    drop(file);
    let second = Running::start(home.path()).await;
    assert_eq!([1, 2, 3, 4].map(|n| second.body(n).is_some()), [false, false, false, true]);
    // Too many to remember: all pages are removed.
    worker.removals_only = RemovalsOnly::No;
    let keys = (0..70_000u32).map(key).collect();
    worker.batch = vec![file::Change::Remove(keys)];
    worker.abandon_batch();
    assert!(worker.clear && worker.unwritten.is_empty());
}

#[tokio::test]
async fn a_further_page_that_arrives_after_its_set_has_changed_is_not_kept() {
    let (store, clock) = (Store::new(MIB, &Metrics::new()), Clock::new());
    let first = first_page(1, 2, clock, "new");
    let set = first.result_set;
    assert!(insert(&store, 1, clock, first));
    // It was of no set when it was asked for, or of another set.
    assert!(!insert(&store, 2, clock, further_page(2, None, clock, "old")));
    assert!(!insert(&store, 2, clock, further_page(2, first_page(1, 2, clock, "").result_set, clock, "old")));
    assert!(insert(&store, 2, clock, further_page(2, set, clock, "new")));
}

#[tokio::test]
async fn pages_that_contradict_each_other_are_not_loaded_together_in_any_order() {
    let clock = Clock::new();
    for first_comes_first in [true, false] {
        let store = Store::new(MIB, &Metrics::new());
        let memory = store.memory();
        let pages = [(1, first_page(1, 2, clock, "new")), (2, further_page(2, None, clock, "old"))];
        let sized = StoredResponse { place: key(2), ..further_page(3, None, clock, "old") };
        let mut pages: Vec<_> = pages.into_iter().chain([(3, sized)]).collect();
        if !first_comes_first {
            pages.reverse();
        }
        for (n, page) in pages {
            memory.restore(key(n), page, clock);
        }
        assert_eq!([1, 2, 3].map(|n| store.page(&key(n)).is_some()), [true, false, false], "{first_comes_first}");
    }
}

#[tokio::test]
async fn a_foreign_file_is_moved_aside() {
    for foreign in [&b"# Shopping list\n- milk\n"[..], &[0; 300_000], b"redb"] {
        let home = TempDir::new().unwrap();
        fs::write(home.path().join(file::NAME), foreign).unwrap();
        let running = Running::start(home.path()).await;
        assert!(running.view().enabled);
        let names = files(home.path());
        assert_eq!((names.len(), &*names[0]), (2, file::NAME));
        assert!(names[1].starts_with("pages.redb.corrupt-"), "{names:?}");
        assert_eq!(fs::read(home.path().join(&names[1])).unwrap(), foreign, "not touched");
        running.keep(1);
        running.close().await;
        assert_eq!(Running::start(home.path()).await.body(1), Some(body(1)));
    }
}

#[tokio::test]
async fn a_database_of_something_else_or_another_version_is_moved_aside() {
    let version = |version: u64| {
        move |database: &redb::Database| {
            let transaction = database.begin_write().unwrap();
            let table = redb::TableDefinition::<&str, u64>::new("format");
            transaction.open_table(table).unwrap().insert("version", version).unwrap();
            transaction.commit().unwrap();
        }
    };
    let other = |database: &redb::Database| {
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("pages");
        transaction.open_table(table).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
    };
    let makers: [&dyn Fn(&redb::Database); 3] = [&version(u64::from(record::VERSION) + 1), &version(0), &other];
    for make in makers {
        let home = TempDir::new().unwrap();
        make(&redb::Database::create(home.path().join(file::NAME)).unwrap());
        let running = Running::start(home.path()).await;
        assert!(running.view().enabled);
        assert_eq!(files(home.path()).len(), 2);
    }
}

#[tokio::test]
async fn damage_anywhere_costs_only_pages() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    (0..40).for_each(|n| first.keep(n));
    first.close().await;
    let whole = fs::read(home.path().join(file::NAME)).unwrap();
    for round in 0..30 {
        let home = TempDir::new().unwrap();
        let path = home.path().join(file::NAME);
        fs::write(&path, &whole).unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let at = fastrand::u64(..whole.len() as u64);
        match round % 3 {
            0 => file.set_len(at).unwrap(),
            1 => {
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&[fastrand::u8(..); 512]).unwrap();
            }
            _ => {
                let mut byte = [0];
                file.seek(SeekFrom::Start(at)).unwrap();
                file.read_exact(&mut byte).unwrap();
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&[byte[0] ^ 1 << fastrand::u8(..8)]).unwrap();
            }
        }
        drop(file);
        let running = Running::start(home.path()).await;
        assert!(running.view().enabled, "round {round} at {at}");
        for n in 0..40 {
            assert!(running.body(n).is_none_or(|found| found == body(n)), "round {round} at {at}: a wrong page");
        }
        running.keep(100);
        running.close().await;
        assert_eq!(running.writes("written"), 1, "round {round} at {at}");
    }
}

#[tokio::test]
async fn a_locked_file_is_left_alone() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    first.keep(1);
    let second = Running::start(home.path()).await;
    assert!(!second.view().enabled);
    second.keep(2);
    assert_eq!(second.body(2), Some(body(2)), "in memory");
    second.until("no longer locked", |second| second.writes("failed") == 1).await;
    second.close().await;
    first.close().await;
    assert_eq!(files(home.path()), [file::NAME]);
    let third = Running::start(home.path()).await;
    assert_eq!((third.body(1), third.body(2)), (Some(body(1)), None));
}

#[tokio::test]
async fn without_a_folder_the_tier_is_off_and_the_store_works() {
    let home = TempDir::new().unwrap();
    let not_a_folder = home.path().join("file");
    fs::write(&not_a_folder, "").unwrap();
    let running = Running::start(&not_a_folder).await;
    assert!(!running.view().enabled);
    running.until("a fault", |running| running.view().fault.is_some()).await;
    let fault = running.view().fault.unwrap();
    assert!(fault.since <= running.clock.now() && fault.cause.contains("exists"), "{fault:?}");
    running.keep(1);
    assert_eq!(running.body(1), Some(body(1)));
    running.close().await;
    assert_eq!(fs::read(&not_a_folder).unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn misses_wait_a_limited_time_for_the_load() {
    let home = TempDir::new().unwrap();
    let running = Running::start(home.path()).await;
    let before = running.clock.now();
    // Nothing is ever sent on this channel, so the load never ends.
    let (_never, loaded) = watch::channel(false);
    let disk = Disk { loaded, patience: before + LOADING_PATIENCE, ..running.store.disk_handle().unwrap() };
    disk.get(&call(1).team.account, &key(1), before).unwrap().await;
    assert!(running.clock.now() - before >= LOADING_PATIENCE);
    assert!(disk.get(&call(1).team.account, &key(1), running.clock.now()).is_none());
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

/// The age that a page has when its record is read with the `later` clocks. It was new when it was written.
fn age_after(clock: Clock, boot: Boot, later: (Clock, Boot)) -> Duration {
    let mut record = Vec::new();
    encode(&key(1), &stored(1, clock, body(1)), &Calendar::read(clock, boot), &mut record).unwrap();
    let read = decode(&key(1), &record, &Calendar::read(later.0, later.1)).unwrap();
    read.age(later.0.moment())
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_between_two_processes_makes_no_page_younger() {
    let (clock, machine) = Clock::simulation();
    let mut record = Vec::new();
    encode(&key(1), &stored(1, clock, body(1)), &Calendar::read(clock, 7), &mut record).unwrap();
    let age = |boot| {
        let calendar = Calendar::read(clock, boot);
        decode(&key(1), &record, &calendar).unwrap().age(clock.moment())
    };
    machine.suspend(HOUR);
    assert_eq!([7, 8, 0].map(age), [HOUR; 3]);
    machine.step_wall(-1800);
    assert_eq!(age(7), HOUR, "of this boot");
    assert_eq!(age(8), HOUR / 2, "of another boot, only wall time counts");
    machine.step_wall(3600);
    assert_eq!(age(7), HOUR * 3 / 2, "the older of the two");
    assert_eq!(age_after(clock, 7, (clock, 7)), Duration::ZERO);
    assert!(clock.moment() > Moment::from_nanos(0));
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
    assert_eq!(purged, Purged { pages: 2, not_lasting: None, shared: None });
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
    assert_eq!(running.store.purge(&Purge::All), Purged { pages: 1, not_lasting: None, shared: None });
    assert!(files(home.path()).is_empty(), "{:?}", files(home.path()));
    // There is no page to remove.
    assert_eq!(running.store.purge(&Purge::All), Purged { pages: 0, not_lasting: None, shared: None });
}

#[tokio::test]
async fn a_purge_says_so_where_the_file_is_another_processs_or_the_tier_has_ended() {
    let home = TempDir::new().unwrap();
    let first = Running::start(home.path()).await;
    first.keep(1);
    let second = Running::start(home.path()).await;
    let purged = second.store.purge(&Purge::All);
    assert!(purged.not_lasting.is_some_and(|why| why.contains("another process")));
    assert_eq!(files(home.path()), [file::NAME]);
    second.close().await;
    first.close().await;
    assert_eq!(first.store.purge(&Purge::All), Purged { pages: 1, not_lasting: None, shared: None });
    assert!(files(home.path()).is_empty());
}

fn lifetimes() -> impl Strategy<Value = Lifetimes> {
    let part = || (0u64..1 << 40).prop_map(Duration::from_millis);
    (part(), part(), part()).prop_map(|(fresh, stale_while_revalidate, stale_if_error)| Lifetimes {
        fresh,
        stale_while_revalidate,
        stale_if_error,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        body in prop::collection::vec(any::<u8>(), 0..2000), account in ".{0,20}", status in 100u16..1000,
        lifetimes in lifetimes(), chained in any::<bool>(), next in any::<bool>(), age in 0u64..1_000_000,
    ) {
        let clock = Clock::new();
        let calendar = Calendar::read(clock, 7);
        let made = clock.moment().before(Duration::from_millis(age));
        let kept = StoredResponse {
            representation: Arc::new(Representation { status: StatusCode::from_u16(status).unwrap(), ..page_of(body) }),
            account: account.as_str().into(),
            made,
            lifetimes,
            result_set: chained.then(|| ResultSet::begin(key(7), made, lifetimes)),
            next: next.then(|| key(8)),
            ..stored(1, clock, "")
        };
        let mut record = Vec::new();
        encode(&key(1), &kept, &calendar, &mut record).unwrap();
        let read = decode(&key(1), &record, &calendar).unwrap();
        prop_assert_eq!(read.made, kept.made);
        prop_assert_eq!(read.lifetimes, kept.lifetimes);
        prop_assert_eq!(&read.representation.body, &kept.representation.body);
        prop_assert_eq!(&read.representation.headers, &kept.representation.headers);
        prop_assert_eq!((read.representation.status, &read.representation.etag), (kept.representation.status, &kept.representation.etag));
        prop_assert_eq!((read.place, read.result_set), (kept.place, kept.result_set));
        prop_assert_eq!((read.next, read.settled, &*read.account), (kept.next, kept.settled, &*kept.account));
        let head = head(&record).unwrap();
        prop_assert_eq!((head.account, head.first.is_some()), (&*account, chained));
        // Not under another key.
        prop_assert!(decode(&key(2), &record, &calendar).is_none());
    }

    #[test]
    fn damaged_records_are_not_read(cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(), bit in 0u8..8) {
        let clock = Clock::new();
        let calendar = Calendar::read(clock, 7);
        let mut record = Vec::new();
        encode(&key(1), &stored(1, clock, body(1)), &calendar, &mut record).unwrap();
        prop_assert!(decode(&key(1), &record[..cut.index(record.len())], &calendar).is_none());
        let at = flip.index(record.len());
        record[at] ^= 1 << bit;
        prop_assert!(decode(&key(1), &record, &calendar).is_none());
        head(&record);
        // Without the hash, which an attacker could compute.
        let _ = record::read_stored(&record[1 + blake3::OUT_LEN..], &calendar);
    }

    #[test]
    fn arbitrary_bytes_are_not_read(mut garbage in prop::collection::vec(any::<u8>(), 0..600)) {
        let calendar = Calendar::read(Clock::new(), 7);
        prop_assert!(decode(&key(1), &garbage, &calendar).is_none());
        let _ = record::read_stored(&garbage, &calendar);
        if let Some(version) = garbage.first_mut() {
            *version = record::VERSION;
        }
        prop_assert!(decode(&key(1), &garbage, &calendar).is_none());
        head(&garbage);
    }
}

fn page_of(body: Vec<u8>) -> Representation {
    Arc::into_inner(page(body)).unwrap()
}
