use std::path::Path;

use redis::cmd;

use super::*;
use crate::accounts::Team;
use crate::cache::flight::{Flown, Kind};
use crate::cache::{DiskSettings, UnstoredResponse};
use crate::config::Shared as Settings;
use crate::metrics::{Metrics, SharedLabels, StaticLabel};
use crate::replicas::test_server::{TestServer, until};
use crate::request::query::ClientQuery;
use crate::twilio::endpoint::Operation;

mod damage_tests;
mod large_tests;
mod lookup_tests;
mod set_tests;
mod write_tests;

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
        until("pages are shared", || self.pages.0.feed.generation().is_some()).await;
    }

    /// A new response to this query.
    pub(in crate::replicas) fn response(&self, name: &'static str) -> StoredResponse {
        let stored = StoredResponse::example(key(name), self.clock.moment(), 60 * S);
        StoredResponse { account: self.account.id(), ..stored }
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
