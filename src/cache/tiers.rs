//! Two tiers, one behind the other: the disk, and the store that replicas share.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::purge::Purge;
use super::tier::{Candidate, InsertOutcome, PurgeCompletion, PurgeOutcome, Replacement, Tier};
use crate::accounts::Account;
use crate::core::clock::Instant;
use crate::request::context::RequestContext;
use crate::request::key::Key;

/// Two tiers as one. Each is told of the same changes, in the same order.
#[derive(Debug)]
pub(super) struct Tiers {
    /// Asked first.
    pub(super) near: Arc<dyn Tier>,
    pub(super) far: Arc<dyn Tier>,
}

impl Tier for Tiers {
    fn get(
        &self,
        account: &Arc<Account>,
        key: &Key,
        context: &Arc<RequestContext>,
        now: Instant,
    ) -> Option<BoxFuture<'static, ()>> {
        match (self.near.get(account, key, context, now), self.far.get(account, key, context, now)) {
            (Some(near), Some(far)) => Some(Box::pin(async move {
                near.await;
                far.await;
            })),
            (one, other) => one.or(other),
        }
    }

    fn put(&self, candidate: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        self.far.put(candidate, &mut || {
            let mut removed = Vec::new();
            let kept = self.near.put(candidate, &mut || {
                let kept = keep();
                removed.clone_from(&kept.removed);
                kept
            });
            InsertOutcome { kept, removed }
        })
    }

    fn remove(&self, replaced: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        self.far.remove(replaced, &mut || {
            let mut removed = Vec::new();
            self.near.remove(replaced, &mut || {
                removed = remove();
                removed.clone()
            });
            removed
        });
    }

    fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        let mut near = None;
        let far = self.far.purge(which, &mut || {
            let mut firsts = HashSet::new();
            near = Some(self.near.purge(which, &mut || {
                firsts = mark();
                firsts.clone()
            }));
            firsts
        });
        Box::new(move || {
            let (near, far) = (near.map(|near| near()).unwrap_or_default(), far());
            PurgeOutcome { not_durable: near.not_durable.or(far.not_durable), shared: near.shared.or(far.shared) }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // First the far one, which may still bring changes from others.
            self.far.close().await;
            self.near.close().await;
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::accounts::AccountId;
    use crate::cache::entry::Entry;
    use crate::cache::flight::{Flown, Kind};
    use crate::cache::store::{Store, UnstoredResponse};
    use crate::cache::stored::StoredResponse;
    use crate::core::clock::Clock;
    use crate::metrics::Metrics;
    use crate::request::query::ClientQuery;
    use crate::twilio::endpoint::Operation;

    /// Records what it is told.
    #[derive(Debug)]
    struct Journal {
        lines: Arc<Mutex<Vec<String>>>,
        name: &'static str,
        lasted: PurgeOutcome,
    }

    impl Journal {
        fn say(&self, line: &str) {
            self.lines.lock().unwrap().push(format!("{} {line}", self.name));
        }
    }

    impl Tier for Journal {
        fn get(
            &self,
            _: &Arc<Account>,
            _: &Key,
            _: &Arc<RequestContext>,
            _: Instant,
        ) -> Option<BoxFuture<'static, ()>> {
            let (lines, name) = (Arc::clone(&self.lines), self.name);
            Some(Box::pin(async move { lines.lock().unwrap().push(format!("{name} get")) }))
        }

        fn put(&self, _: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
            let InsertOutcome { kept, removed } = keep();
            self.say(&format!("put {kept} {}", removed.len()));
            kept
        }

        fn remove(&self, _: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
            let removed = remove();
            self.say(&format!("remove {}", removed.len()));
        }

        fn purge(&self, which: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
            mark();
            self.say(&format!("purge {which:?}"));
            Box::new(|| self.lasted.clone())
        }

        fn close(&self) -> BoxFuture<'_, ()> {
            self.say("close");
            Box::pin(std::future::ready(()))
        }
    }

    #[tokio::test]
    async fn both_tiers_are_told_everything_and_memory_changes_once() {
        let (lines, clock) = (Arc::new(Mutex::new(Vec::new())), Clock::new());
        let journal = |name, lasted| Arc::new(Journal { lines: Arc::clone(&lines), name, lasted });
        let near = journal("near", PurgeOutcome { not_durable: Some("disk".to_owned()), shared: None });
        let far = journal("far", PurgeOutcome { not_durable: None, shared: Some(false) });
        let store = Store::new(1 << 20, &Metrics::new()).with_tier(Arc::new(Tiers { near, far }));
        let taken = || std::mem::take(&mut *lines.lock().unwrap());

        let query = ClientQuery::example(Operation::Query, "q", "");
        let (key, now) = (*query.key(), clock.now());
        let (lease, _) = store.flights.claim_refresh((key, Kind::Any), Flown::of(&query, None)).unwrap();
        let stored = StoredResponse::example(key, clock.moment(), Duration::from_secs(60));
        assert!(store.insert(key, Entry::new(&key, stored, now, now, Duration::ZERO), &lease, |_| true));
        assert_eq!(taken(), ["near put true 0", "far put true 0"]);
        store.load(&query.team.account, &key, &query.context, now).unwrap().await;
        assert_eq!(taken(), ["near get", "far get"]);
        let (account, made) = (AccountId::example(), clock.moment());
        store
            .supersede(key, &UnstoredResponse { account, asked: now, made, begins: None, next: None, is_shared: true });
        assert_eq!(taken(), ["near remove 1", "far remove 1"]);
        // However many pages another replica has replaced, neither tier is waited for.
        let replaced = ["q", "r", "s"].map(|name| (*ClientQuery::example(Operation::Query, name, "").key(), made));
        store.outdate(&replaced.into(), clock);
        assert_eq!(taken(), ["near remove 3", "far remove 3"]);
        let purged = store.purge(&Purge::All);
        assert_eq!((purged.not_durable.as_deref(), purged.shared), (Some("disk"), Some(false)));
        assert_eq!(taken(), ["near purge All", "far purge All"]);
        store.close().await;
        assert_eq!(taken(), ["far close", "near close"]);
    }
}
