//! Pages that a tier brings from another replica.

use std::collections::HashSet;

use futures_util::FutureExt;

use super::*;
use crate::accounts::Account;
use crate::cache::{Candidate, InsertOutcome, PurgeCompletion, PurgeOutcome, Replacement, Tier};
use crate::request::context::RequestContext;

/// Has a page of this age under every key.
#[derive(Debug)]
struct Far {
    local: Store,
    age: Duration,
    clock: Clock,
}

impl Tier for Far {
    fn get(
        &self,
        _: &Arc<Account>,
        key: &Key,
        _: &Arc<RequestContext>,
        now: Instant,
    ) -> Option<BoxFuture<'static, ()>> {
        let stored = StoredResponse::example(*key, self.clock.moment().before(self.age), 60 * S);
        let stored = StoredResponse { lifetimes: POLICY.query, ..stored };
        let mut entry = Entry::new(key, stored, now, now, self.age);
        entry.by_another = true;
        self.local.adopt(*key, entry, self.local.lookup_snapshot());
        Some(ready(()).boxed())
    }

    fn put(&self, _: &Candidate<'_>, keep: &mut dyn FnMut() -> InsertOutcome) -> bool {
        keep().kept
    }

    fn remove(&self, _: &Replacement, remove: &mut dyn FnMut() -> Vec<Key>) {
        remove();
    }

    fn purge(&self, _: &Purge, mark: &mut dyn FnMut() -> HashSet<Key>) -> PurgeCompletion<'_> {
        mark();
        Box::new(PurgeOutcome::default)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_replica_is_shared_once_and_then_a_hit() {
    for (age, outcomes) in [
        (POLICY.query.fresh, [Outcome::Shared, Outcome::Hit]),
        (POLICY.query.fresh + S, [Outcome::Stale, Outcome::Stale]),
    ] {
        let upstream = Upstream::gated(&[]);
        let plain = cache(&upstream);
        let clock = plain.layer.clock;
        let store = plain.layer.store.clone().with_replicas(|local| Arc::new(Far { local, age, clock }));
        let cache = Cache::new(CacheLayer { store, ..plain.layer }, &upstream);
        for outcome in outcomes {
            let reply = ask(&cache, call("q")).await.unwrap();
            assert_eq!((reply.outcome, reply.age), (outcome, Some(age)));
        }
    }
}
