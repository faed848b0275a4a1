use std::collections::BTreeMap;
use std::path::Path;

use redis::cmd;

use super::*;
use crate::accounts::Team;
use crate::cache::flight::{Flown, Kind};
use crate::cache::sets::Membership;
use crate::cache::{DiskSettings, EntryView, Purge, Unkept};
use crate::config::Shared as Settings;
use crate::metrics::{Metrics, ReasonLabels, SharedLabels, StaticLabel};
use crate::replicas::LONGEST_BODY;
use crate::replicas::test_server::{Bottleneck, TestServer, until};
use crate::request::query::ClientQuery;
use crate::semantics::freshness::Lifetimes;
use crate::twilio::endpoint::Operation;

pub(in crate::replicas) const S: Duration = Duration::from_secs(1);

/// One replica: memory, and the pages that it shares.
pub(in crate::replicas) struct Replica {
    pub(in crate::replicas) store: Store,
    pub(in crate::replicas) pages: SharedPages,
    pub(in crate::replicas) shared: SharedStore,
    pub(in crate::replicas) account: Arc<Account>,
    pub(in crate::replicas) metrics: Arc<Metrics>,
    pub(in crate::replicas) clock: Clock,
}

impl Replica {
    pub(in crate::replicas) async fn start(server: &TestServer) -> Self {
        let replica = Self::with(server.settings(), "main", Clock::new());
        replica.shares().await;
        replica
    }

    /// With an account of this name, which is the same for all of them.
    pub(in crate::replicas) fn with(settings: Settings, name: &str, clock: Clock) -> Self {
        Self::over(|metrics| Store::new(1 << 26, metrics), settings, name, clock)
    }

    /// With pages that survive a restart in this folder.
    pub(in crate::replicas) fn on_disk(folder: &Path, settings: Settings) -> Self {
        let (disk, clock) =
            (DiskSettings { folder: folder.to_owned(), capacity: 1 << 26, is_shared: true }, Clock::new());
        let local = |metrics: &Arc<Metrics>| Store::new(1 << 26, metrics).with_disk(disk, metrics, clock);
        Self::over(local, settings, "main", clock)
    }

    fn over(local: impl FnOnce(&Arc<Metrics>) -> Store, settings: Settings, name: &str, clock: Clock) -> Self {
        let metrics = Metrics::new();
        let shared = SharedStore::start(settings, Arc::clone(&metrics), clock);
        let account = Account { name: name.into(), ..Account::clone(&Team::example("team").account) };
        let (account, accounts) = (Arc::new(account), KnownAccounts::default());
        accounts.set(&[Arc::clone(&account)]);
        let mut pages = None;
        let store = local(&metrics).with_replicas(|local| {
            let tier = SharedPages::new(local, shared.clone(), accounts, clock);
            Arc::new(pages.insert(tier).clone())
        });
        Self { store, pages: pages.unwrap(), shared, account, metrics, clock }
    }

    pub(in crate::replicas) async fn shares(&self) {
        until("pages are shared", || self.pages.0.changes.generation().is_some()).await;
    }

    /// A new response to this query.
    pub(in crate::replicas) fn response(&self, name: &'static str) -> StoredResponse {
        let stored = StoredResponse::example(key(name), self.clock.moment(), 60 * S);
        StoredResponse { account: Arc::clone(&self.account.name), ..stored }
    }

    pub(in crate::replicas) fn keep(&self, name: &'static str) {
        self.keep_as(self.response(name), Kind::Any);
    }

    /// Keeps the response of a flight that begins and ends now.
    pub(in crate::replicas) fn keep_as(&self, stored: StoredResponse, kind: Kind) {
        self.keep_of(stored, kind, self.clock.now());
    }

    pub(in crate::replicas) fn keep_of(&self, stored: StoredResponse, kind: Kind, asked: Instant) {
        let (key, query) = (stored.place, ClientQuery::example(Operation::Query, "any", ""));
        let (lease, _) = self.store.flights.claim_refresh((key, kind), Flown::of(&query, None)).unwrap();
        let entry = Entry::new(&key, stored, asked, self.clock.now(), Duration::ZERO);
        assert!(self.store.insert(key, entry, &lease, |_| true));
    }

    fn load(&self, name: &'static str, context: &Arc<RequestContext>) -> Option<BoxFuture<'static, ()>> {
        self.store.load(&self.account, &key(name), context, self.clock.now())
    }

    /// A new response to this query with a body of this length, which can hardly be compressed.
    fn long_response(&self, name: &'static str, length: usize) -> StoredResponse {
        let mut body = vec![0; length];
        fastrand::fill(&mut body);
        let stored = self.response(name);
        StoredResponse { representation: Arc::new(stored.representation.with_body(body.into())), ..stored }
    }

    /// What this replica would serve, after a look at the store where memory has nothing.
    pub(in crate::replicas) async fn body(&self, name: &'static str) -> Option<String> {
        let key = key(name);
        if self.store.page(&key).is_none() {
            self.store.load(&self.account, &key, &Arc::default(), self.clock.now())?.await;
        }
        self.in_memory(name)
    }

    pub(in crate::replicas) fn in_memory(&self, name: &'static str) -> Option<String> {
        let entry = self.store.page(&key(name))?;
        Some(String::from_utf8_lossy(&entry.stored.representation.body).into_owned())
    }

    /// Returns once all that was kept until now is in the store.
    pub(in crate::replicas) async fn written(&self) {
        self.pages.0.writer.flush(10 * S).await;
    }

    pub(in crate::replicas) async fn run<T: redis::FromRedisValue>(&self, command: &mut redis::Cmd) -> T {
        self.shared.run("test", command).await.unwrap()
    }

    fn operations(&self, operation: &'static str, result: &'static str) -> u64 {
        let labels = SharedLabels { operation: StaticLabel(operation), result: StaticLabel(result) };
        self.metrics.shared_operations.get_or_create(&labels).get()
    }

    async fn page_keys(&self) -> Vec<String> {
        self.run(cmd("KEYS").arg("*:page:*")).await
    }
}

pub(in crate::replicas) fn key(name: &'static str) -> Key {
    *ClientQuery::example(Operation::Query, name, "").key()
}

fn example_body(name: &'static str) -> String {
    format!("{{\"page\":\"{}\"}}", key(name))
}

/// The first page of a set, and its second page.
pub(in crate::replicas) fn set_of(replica: &Replica, first: &'static str, second: &'static str) -> [StoredResponse; 2] {
    let stored = replica.response(first);
    let result_set = Some(ResultSet::begin(key(first), stored.made, stored.lifetimes));
    let next = Some(key(second));
    [
        StoredResponse { result_set, next, ..stored },
        StoredResponse { result_set, operation: Operation::Page, ..replica.response(second) },
    ]
}

#[tokio::test]
async fn a_page_is_found_by_a_replica_with_other_names_and_another_wall_clock() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    // Its clocks have nothing in common with those of this machine.
    let (clock, machine) = Clock::simulation();
    machine.step_wall(-3600);
    let other = Replica::with(server.settings(), "renamed", clock);
    other.shares().await;
    let stored = StoredResponse { made: one.clock.moment().before(20 * S), ..one.response("a") };
    one.keep_as(stored, Kind::Any);
    one.written().await;
    assert_eq!(other.in_memory("a"), None);
    assert_eq!(other.body("a").await, Some(example_body("a")));
    let entry = other.store.page(&key("a")).unwrap();
    assert_eq!(&*entry.stored.account, "renamed");
    let age = entry.stored.age(other.clock.moment());
    assert!(age >= 20 * S && age < 25 * S, "{age:?}");
    assert!(entry.asked <= other.clock.now());
    // And back: what the other replica keeps.
    other.keep("b");
    other.written().await;
    assert_eq!(one.body("b").await, Some(example_body("b")));
    assert_eq!(one.operations("page_get", "ok"), 1);
}

#[tokio::test]
async fn names_and_values_tell_nothing_and_all_keys_expire() {
    let Some(server) = TestServer::start() else { return };
    let replica = Replica::start(&server).await;
    replica.keep("a");
    let [first, second] = set_of(&replica, "first", "second");
    replica.keep_as(first, Kind::Forced);
    replica.keep_as(second, Kind::Any);
    replica.written().await;
    let purge = replica.store.clone();
    tokio::task::spawn_blocking(move || purge.purge(&Purge::Operation(Operation::Metadata))).await.unwrap();
    let keys: Vec<String> = replica.run(cmd("KEYS").arg("*")).await;
    let kinds = keys.iter().map(|key| key.split(':').nth(2).unwrap());
    let kinds = kinds.fold(BTreeMap::new(), |mut kinds, kind| {
        *kinds.entry(kind).or_insert(0) += 1;
        kinds
    });
    assert_eq!(kinds, BTreeMap::from([("page", 3), ("{changes}", 5)]), "{keys:?}");
    for name in &keys {
        let left: i64 = replica.run(cmd("PTTL").arg(name)).await;
        assert!(left > 0, "{name}: {left}");
        let dump: Vec<u8> = replica.run(cmd("DUMP").arg(name)).await;
        for secret in ["AC1", "upstream", "{\"page\"", "application/json"] {
            assert!(!name.contains(secret), "{name}");
            assert!(!dump.windows(secret.len()).any(|part| part == secret.as_bytes()), "{name}");
        }
        if name.contains(":page:") {
            assert!(left <= 60_000, "not beyond its windows: {left}");
        }
    }
}

#[tokio::test]
async fn what_cannot_be_opened_is_a_miss() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    one.keep("a");
    one.written().await;
    let other_key = Settings { seal: vec![zeroize::Zeroizing::new([8; 32])], ..server.settings() };
    let stranger = Replica::with(other_key, "main", Clock::new());
    stranger.shares().await;
    assert_eq!(stranger.body("a").await, None);
    assert_eq!(stranger.metrics.shared_unsealed.get(), 1);

    let reader = Replica::start(&server).await;
    let name = one.page_keys().await.remove(0);
    let sealed: Vec<u8> = one.run(cmd("GET").arg(&name)).await;
    // Another time of the request, one bit, a cut, nothing at all.
    let mut later = sealed.clone();
    later[0] += 1;
    let mut damaged = sealed.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (n, forged) in [&later, &damaged, &sealed[..20].to_vec(), &vec![]].into_iter().enumerate() {
        let _: () = one.run(cmd("SET").arg(&name).arg(forged)).await;
        assert_eq!(reader.body("a").await, None);
        assert_eq!(reader.metrics.shared_unsealed.get(), n as u64 + 1);
        let there: Vec<u8> = one.run(cmd("GET").arg(&name)).await;
        assert!(there == *forged && reader.operations("page_remove", "ok") == 0, "it is left alone");
    }
    let _: () = one.run(cmd("SET").arg(&name).arg(&sealed)).await;
    assert!(reader.body("a").await.is_some());
}

#[tokio::test]
async fn of_two_pages_the_one_requested_later_stays() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let asked = one.clock.now() - 10 * S;
    other.keep("a");
    other.written().await;
    let slow = StoredResponse { representation: one.response("slow").representation, ..one.response("a") };
    one.keep_of(slow, Kind::Any, asked);
    one.written().await;
    let third = Replica::start(&server).await;
    assert_eq!(third.body("a").await, Some(example_body("a")));
}

/// As in a cluster, where a page is not on the server that has the shared clock.
#[tokio::test]
async fn a_page_is_kept_by_a_server_with_another_clock() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let puts = || one.operations("page_put", "ok");
    for set in [u64::saturating_sub, u64::saturating_add] {
        let begun = one.clock.now();
        loop {
            let (before, now) = (puts(), one.clock.moment());
            let (time, server) = (one.shared.time().unwrap(), one.shared.server_time().unwrap());
            one.shared.learn_time((time.0, set(server, 3_600_000_000)), now);
            one.keep("a");
            one.written().await;
            // The store may have told its clock again in between.
            if puts() == before + 2 {
                break;
            }
            assert!(one.clock.now() < begun + 10 * S, "{} puts", puts() - before);
        }
        let other = Replica::start(&server).await;
        assert!(other.body("a").await.is_some());
        let _: u64 = one.run(cmd("DEL").arg(one.page_keys().await)).await;
    }
}

#[tokio::test]
async fn a_further_page_comes_with_the_first_page_of_its_set() {
    let Some(server) = TestServer::start() else { return };
    let (one, other, third) =
        (Replica::start(&server).await, Replica::start(&server).await, Replica::start(&server).await);
    let [first, second] = set_of(&one, "first", "second");
    one.keep_as(first.clone(), Kind::Any);
    one.written().await;
    // Not fetched yet: it is known to which set it will belong.
    assert_eq!(third.body("second").await, None);
    let membership = third.store.membership(&key("second"), third.clock.moment());
    let id = |membership: Membership| membership.result_set().map(|set| (set.first, set.id));
    assert_eq!(id(membership), first.result_set.map(|set| (set.first, set.id)));
    one.keep_as(second, Kind::Any);
    one.written().await;
    assert_eq!(other.body("second").await, Some(example_body("second")));
    assert_eq!(other.in_memory("first"), Some(example_body("first")));
}

#[tokio::test]
async fn pages_of_a_replaced_set_are_not_mixed_with_those_of_the_new_one() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let [first, second] = set_of(&one, "first", "second");
    one.keep_as(first, Kind::Any);
    one.keep_as(second, Kind::Any);
    one.written().await;
    assert!(other.body("second").await.is_some() && other.body("first").await.is_some());
    // The same tokens name other rows now.
    let [newer, _] = set_of(&one, "first", "second");
    let newer = StoredResponse { representation: one.response("newer").representation, ..newer };
    one.keep_as(newer.clone(), Kind::Any);
    one.written().await;
    until("the other replica drops the old set", || other.in_memory("second").is_none()).await;
    assert_eq!(other.body("second").await, None);
    let membership = other.store.membership(&key("second"), other.clock.moment());
    assert_eq!(membership.result_set().map(|set| set.id), newer.result_set.map(|set| set.id));
    assert_eq!(other.body("first").await, Some(example_body("newer")));
}

#[tokio::test]
async fn many_who_ask_at_once_look_once() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    let found = futures_util::future::join_all((0..200).map(|_| other.body("a"))).await;
    assert!(found.iter().all(Option::is_some));
    assert_eq!(other.operations("page_get", "ok"), 1);
    assert!(other.pages.lookups().is_empty());
    assert_eq!(other.body("absent").await, None);
    assert_eq!(other.operations("page_get", "miss"), 1);
}

#[tokio::test]
async fn a_page_that_was_replaced_while_the_store_was_away_does_not_come_back() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::with(server.settings_with_door("door"), "main", Clock::new());
    one.shares().await;
    let other = Replica::start(&server).await;
    for name in ["a", "b"] {
        one.keep(name);
    }
    one.written().await;
    server.close_door("door", &one.shared).await;
    assert!(one.load("c", &Arc::default()).is_none(), "nobody waits for it");
    let newer = |name| StoredResponse { representation: one.response("newer").representation, ..one.response(name) };
    one.keep_as(newer("a"), Kind::Forced);
    one.keep_as(newer("b"), Kind::Any);
    assert!(other.body("a").await.is_some(), "it cannot know");
    server.open_door("door");
    one.shares().await;
    until("what was forced is told", || other.in_memory("a").is_none()).await;
    until("all is removed", || one.pages.0.writer.is_idle()).await;
    for name in ["a", "b"] {
        assert_eq!(other.body(name).await, None, "{name}");
        assert_eq!(one.in_memory(name), Some(example_body("newer")));
    }
}

#[tokio::test]
async fn a_page_that_is_too_large_is_not_written_and_the_older_one_goes() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    one.keep("a");
    one.written().await;
    assert_eq!(one.page_keys().await.len(), 1);
    one.keep_as(one.long_response("a", LONGEST_BODY + 1), Kind::Any);
    let reason = ReasonLabels { reason: StaticLabel("too_large") };
    assert_eq!(one.metrics.shared_skipped.get_or_create(&reason).get(), 1);
    one.written().await;
    until("it is gone", || one.pages.0.writer.is_idle()).await;
    assert_eq!(one.page_keys().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_page_beyond_its_windows_is_not_used() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    let stored = StoredResponse { lifetimes: Lifetimes::fresh_only(4 * S), ..one.response("a") };
    one.keep_as(stored, Kind::Any);
    one.written().await;
    let name = one.page_keys().await.remove(0);
    // Whoever can write to the store makes it last.
    let _: bool = one.run(cmd("PERSIST").arg(&name)).await;
    tokio::time::sleep(4 * S).await;
    assert_eq!(other.body("a").await, None);
    let entries: Vec<EntryView> = other.store.entries(None, 10, other.clock.moment());
    assert!(entries.is_empty());
}

#[tokio::test]
async fn a_large_page_is_shared() {
    let Some(server) = TestServer::start() else { return };
    let (one, other) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep_as(one.long_response("a", 2 * LARGE), Kind::Any);
    one.written().await;
    let found = other.body("a").await;
    assert!(found.is_some() && found == one.in_memory("a"));
    assert_eq!((one.operations("page_put_large", "ok"), other.operations("page_get_large", "ok")), (1, 1));
    assert_eq!(other.metrics.shared_unsealed.get(), 0);
}

/// A replica that has sent a large page of which only a part has arrived.
async fn sending(server: &TestServer) -> (Replica, Bottleneck) {
    let (settings, bottleneck) = server.settings_with_bottleneck(LARGE);
    let one = Replica::with(settings, "main", Clock::new());
    one.shares().await;
    one.keep_as(one.long_response("large", 2 * LARGE), Kind::Any);
    bottleneck.is_reached().await;
    (one, bottleneck)
}

#[tokio::test]
async fn a_large_page_that_takes_long_holds_nothing_up() {
    let Some(server) = TestServer::start() else { return };
    let (one, bottleneck) = sending(&server).await;
    let (other, episode) = (Replica::start(&server).await, one.shared.episode());
    one.keep("small");
    until("a small page is written", || one.operations("page_put", "ok") == 1).await;
    other.keep("b");
    other.written().await;
    assert!(one.body("b").await.is_some());
    bottleneck.open();
    one.written().await;
    assert!(other.body("large").await.is_some());
    assert_eq!((one.shared.episode(), one.operations("page_put_large", "ok")), (episode, 1));
}

#[tokio::test]
async fn a_large_page_that_fails_is_no_lost_store() {
    let Some(server) = TestServer::start() else { return };
    let (one, bottleneck) = sending(&server).await;
    let episode = one.shared.episode();
    bottleneck.close();
    one.written().await;
    until("it is given up", || one.pages.0.writer.is_idle()).await;
    assert_eq!((one.operations("page_put_large", "error"), one.page_keys().await.len()), (1, 0));
    one.keep("small");
    one.written().await;
    assert_eq!((one.shared.episode(), one.page_keys().await.len()), (episode, 1));
    // The next large one has a new connection.
    bottleneck.open();
    one.keep_as(one.long_response("a", 2 * LARGE), Kind::Any);
    one.written().await;
    assert_eq!(one.operations("page_put_large", "ok"), 1);
}

#[tokio::test]
async fn a_large_page_that_was_overtaken_does_not_come_back() {
    let Some(server) = TestServer::start() else { return };
    for is_replaced in [true, false] {
        let (one, bottleneck) = sending(&server).await;
        if is_replaced {
            one.keep("large");
        } else {
            let account = Arc::clone(&one.account.name);
            let (asked, made) = (one.clock.now(), one.clock.moment());
            let unkept = Unkept { account, asked, made, begins: None, next: None, is_shared: true };
            one.store.supersede(key("large"), &unkept);
        }
        let done = if is_replaced { "page_put" } else { "page_remove" };
        until("the later change is made", || one.operations(done, "ok") == 1).await;
        bottleneck.open();
        one.written().await;
        let other = Replica::start(&server).await;
        assert_eq!(other.body("large").await, is_replaced.then(|| example_body("large")));
        server.flush();
    }
}

#[tokio::test]
async fn a_value_of_another_type_is_a_miss_that_is_replaced_or_removed() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    let damage = async || {
        let name = one.page_keys().await.remove(0);
        let _: () = one.run(cmd("DEL").arg(&name)).await;
        let _: () = one.run(cmd("RPUSH").arg(&name).arg("of another type")).await;
    };
    one.keep("a");
    one.written().await;
    damage().await;
    let other = Replica::start(&server).await;
    assert_eq!((other.body("a").await, other.metrics.shared_unsealed.get()), (None, 1));
    assert_eq!(one.page_keys().await.len(), 1, "who cannot read it leaves it alone");
    one.keep("a");
    one.written().await;
    assert!(other.body("a").await.is_some());
    damage().await;
    let account = Arc::clone(&one.account.name);
    let (asked, made) = (one.clock.now(), one.clock.moment());
    let unkept = Unkept { account, asked, made, begins: None, next: None, is_shared: true };
    one.store.supersede(key("a"), &unkept);
    one.written().await;
    assert!(one.pages.0.writer.is_idle() && one.page_keys().await.is_empty());
    assert_eq!((one.operations("page_remove", "ok"), one.operations("page_remove", "error")), (1, 0));
}

#[tokio::test]
async fn a_request_that_has_waited_enough_does_not_ask_the_store() {
    let Some(server) = TestServer::start() else { return };
    let one = Replica::start(&server).await;
    assert!(one.load("a", &Arc::new(RequestContext::that_has_waited())).is_none());
    let context = Arc::default();
    one.load("a", &context).unwrap().await;
    assert!(
        context.store_wait.left(one.shared.patience()).is_some_and(|left| left < one.shared.patience()),
        "it counts"
    );
}

#[tokio::test]
async fn a_look_up_that_panics_is_not_waited_for() {
    let Some(server) = TestServer::start() else { return };
    let replica = Replica::start(&server).await;
    let mut failed = replica.pages.join(key("a"), async { panic!("a defect") });
    let ended = async { while failed.changed().await.is_ok() {} };
    tokio::time::timeout(10 * S, ended).await.expect("it has ended");
    let (sender, begun) = tokio::sync::oneshot::channel();
    let _second = replica.pages.join(key("a"), async { sender.send(()).unwrap() });
    tokio::time::timeout(10 * S, begun).await.expect("another one begins").unwrap();
}

#[tokio::test]
async fn a_purge_that_waits_is_told_before_the_process_ends() {
    let Some(server) = TestServer::start() else { return };
    let (one, two) = (Replica::start(&server).await, Replica::start(&server).await);
    one.keep("a");
    one.written().await;
    assert!(two.body("a").await.is_some());
    one.pages.0.changes.outdate_store();
    one.pages.close().await;
    let late = Replica::start(&server).await;
    assert_eq!(late.body("a").await, None, "it has read the purge");
}
